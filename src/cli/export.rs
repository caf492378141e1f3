//! `bucketdisk export`: a copy of a disk as its mount sees it, what is not committed included.
//!
//! It reads through the mount, as any program could; what it adds to `cp --sparse` is that it goes on where a block cannot be read
//! and says which were, and that it knows which bytes are only here.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;

use super::Context;
use super::args::ExportArgs;
use super::sparse::{self, Copying, Draft, beside};
use super::status;
use crate::config::format_size;
use crate::control;
use crate::error::{Error, ErrorKind, Result};

/// Copies the disk, or what of it is not committed.
///
/// # Errors
/// `NotFound` where the directory is no mount of ours, `System` where its daemon has died; `Exists` where the file is there;
/// `Superseded` or `Damaged` where some of the disk could not be read: the copy is complete but for that.
pub fn run(args: &ExportArgs, context: &Context) -> Result<()> {
    let mountpoint = control::mount_point(&args.mountpoint)?;
    let (_, figures) = status::client(&mountpoint)?.status()?;
    let unknown = || {
        let text = "the daemon is of another version of this program";
        Error::new(ErrorKind::System, text)
    };
    let number = |name: &str| figures[name].as_u64().ok_or_else(unknown);
    let image = Path::new(figures["image"].as_str().ok_or_else(unknown)?);
    let file = File::open(image).map_err(|e| cannot_read(image, e))?;

    let list = beside(
        &args.file,
        if args.dirty_only {
            ".ranges"
        } else {
            ".missing"
        },
    );
    if args.dirty_only {
        sparse::may_make(&list, args.force)?;
    }
    let draft = Draft::begin(&args.file, args.force)?;
    let ranges = match args.dirty_only {
        true => status::client(&mountpoint)?.dirty()?,
        false => data_ranges(&file).map_err(|e| cannot_read(image, e))?,
    };
    let total = sparse::length(&ranges);
    let mut step = context.reporter.step("copying");
    let copying = Copying {
        size_bytes: number("size_bytes")?,
        block_bytes: number("block_bytes")?,
        read: &mut |offset, buffer| {
            file.read_exact_at(buffer, offset)
                .map_err(|e| cannot_read(image, e))
        },
        done: &mut |done| {
            let words = format!("{} of {}", format_size(done), format_size(total));
            step.update(done, total, &words);
        },
    };
    let missing = copying.run(&draft, &ranges)?;
    if args.dirty_only {
        sparse::write_ranges(&list, args.force, &ranges)?;
    } else if !missing.ranges.is_empty() {
        sparse::write_ranges(&list, true, &missing.ranges)?;
    }
    draft.finish()?;
    drop(step);
    let copied = format_size(total - missing.bytes());
    let (shown, listed) = (args.file.display(), list.display());
    let lacks = missing.bytes();
    if let Some(reason) = missing.reason {
        let text = format!(
            "{shown} has {copied} of the disk, but {} could not be read: that is a hole there, and listed in {listed}",
            format_size(lacks),
        );
        return Err(reason.within(text));
    }
    context.reporter.line(&match args.dirty_only {
        true => format!(
            "copied {copied} that are not committed to {shown}; where they are says {listed}"
        ),
        false => format!("copied the disk to {shown}: {copied} of data"),
    });
    Ok(())
}

/// Where the image has data.
fn data_ranges(image: &File) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(image, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(ranges),
            Err(e) => return Err(e.into()),
        };
        at = rustix::fs::seek(image, SeekFrom::Hole(start))?;
        ranges.push(start..at);
    }
}

fn cannot_read(image: &Path, cause: io::Error) -> Error {
    let kind = match cause
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::STALE) => ErrorKind::Superseded,
        Some(rustix::io::Errno::IO) => ErrorKind::Damaged,
        _ if cause.kind() == io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::System,
    };
    Error::new(kind, format!("cannot read {}", image.display())).with_source(cause)
}
