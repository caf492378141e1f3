//! `bucketdisk status`.

use std::path::Path;

use super::Context;
use super::args::StatusArgs;
use super::mount_table;
use crate::control::{self, Client};
use crate::error::{Error, ErrorKind, Result};

/// Shows a mount's figures.
///
/// # Errors
/// `NotFound` where the directory is no mount of ours, `System` where its daemon has died, `Denied` where it is another user's.
pub fn run(args: &StatusArgs, context: &Context) -> Result<()> {
    let mountpoint = control::mount_point(&args.mountpoint)?;
    let (text, figures) = client(&mountpoint)?.status()?;
    if args.json {
        context.answer(&format!("{figures:#}"))
    } else {
        context.answer(text.trim_end())
    }
}

/// A connection to the daemon of a mount that is to go on.
///
/// # Errors
/// As for [`run`].
pub fn client(mountpoint: &Path) -> Result<Client> {
    if let Some(client) = Client::connect(&control::directory(), mountpoint)? {
        return Ok(client);
    }
    let shown = mountpoint.display();
    Err(match mount_table::without_daemon(mountpoint)? {
        mount_table::Without::Dead => Error::new(
            ErrorKind::System,
            format!(
                "the daemon of {shown} has died: run 'bucketdisk umount {shown}', then mount again"
            ),
        ),
        mount_table::Without::Refused(error) => error,
    })
}
