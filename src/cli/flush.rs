//! `bucketdisk flush`.

use parking_lot::Mutex;

use super::Context;
use super::args::FlushArgs;
use super::status;
use super::umount::{most_and_done, words};
use crate::control;
use crate::error::Result;

/// Has a mount make durable what was written to it: in its journal, or with `--bucket`, in the bucket.
///
/// # Errors
/// Those of [`status::client`]; why not everything is durable: it stays dirty and is tried again.
pub fn run(args: &FlushArgs, context: &Context) -> Result<()> {
    let mountpoint = control::mount_point(&args.mountpoint)?;
    let client = status::client(&mountpoint)?;
    let step = Mutex::new(context.reporter.step("committing"));
    let most = Mutex::new(0u64);
    let in_bucket = client.flush(args.bucket, |progress| {
        let (most, done) = most_and_done(&mut most.lock(), progress);
        step.lock().update(done, most, &words(progress));
    })?;
    drop(step);
    let place = if in_bucket { "bucket" } else { "journal" };
    context.reporter.line(&format!(
        "flushed {}: everything is in the {place}",
        mountpoint.display()
    ));
    Ok(())
}
