//! `bucketdisk create`.

use super::Context;
use super::args::CreateArgs;
use crate::block::Geometry;
use crate::config::format_size;
use crate::error::Result;
use crate::open::{self, DiskSpec};

/// Makes a disk.
///
/// # Errors
/// `Usage`; those of [`open::create`].
pub fn run(args: &CreateArgs, context: &Context) -> Result<()> {
    let target = args.target.target()?;
    let geometry = Geometry::new(args.size, args.new.block_size)?;
    let spec = DiskSpec {
        geometry,
        label: args.new.label.clone(),
        unsafe_no_fencing: args.unsafe_no_fencing,
    };
    context.block_on(open::create(&target, &spec))?;
    context.reporter.line(&format!(
        "created {}: {} in blocks of {}",
        target.url(),
        format_size(geometry.size_bytes()),
        format_size(u64::from(geometry.block_bytes())),
    ));
    Ok(())
}
