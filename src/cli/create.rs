//! `bucketdisk create`.

use super::Context;
use super::args::{CreateArgs, NewDiskArgs};
use super::key_args::KeyArgs;
use crate::block::Geometry;
use crate::config::format_size;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{self, DiskSpec, NewDisk};

/// Makes a disk.
///
/// # Errors
/// `Usage`; those of [`open::create`].
pub fn run(args: &CreateArgs, context: &Context) -> Result<()> {
    let target = args.target.target()?;
    let geometry = Geometry::new(args.size, args.new.block_size)?;
    let new = args.new.disk(geometry, &args.key, args.unsafe_no_fencing)?;
    context.block_on(open::create(&target, &new, &args.key.given(&target.url())))?;
    context.reporter.line(&format!(
        "created {}: {} in blocks of {}",
        target.url(),
        format_size(geometry.size_bytes()),
        format_size(u64::from(geometry.block_bytes())),
    ));
    Ok(())
}

impl NewDiskArgs {
    /// The disk to make.
    ///
    /// # Errors
    /// `Usage` where a key is given for a disk that is not to be encrypted.
    pub fn disk(
        &self,
        geometry: Geometry,
        key: &KeyArgs,
        unsafe_no_fencing: bool,
    ) -> Result<NewDisk> {
        if !self.encrypt && !key.is_empty() {
            let text = "a passphrase or key file is for an encrypted disk: say --encrypt too";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(NewDisk {
            spec: DiskSpec {
                geometry,
                label: self.label.clone(),
                compression: self.compress,
                encryption: None,
                unsafe_no_fencing,
            },
            encrypt: self.encrypt.then(|| self.kdf.wish()),
        })
    }
}
