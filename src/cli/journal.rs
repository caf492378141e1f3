//! `bucketdisk journal`.

use super::Context;
use super::args::{JournalArgs, JournalExportArgs, JournalVerb};
use super::sparse::{self, Copying, Draft, beside};
use crate::config::format_size;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{journal_content, journal_keys};

/// Does what is asked of a journal.
///
/// # Errors
/// Those of the verb.
pub fn run(args: &JournalArgs, context: &Context) -> Result<()> {
    match &args.verb {
        JournalVerb::Export(args) => export(args, context),
    }
}

/// Copies what a journal holds into a sparse file of the disk's size, and lists the ranges beside it.
///
/// # Errors
/// `NotFound` where there is no journal, `Busy` where a mount uses it, `Exists` where the file is there; `Damaged` where only a
/// part of it could be read: the copy is what the journal held up to there. `NoKey` where it is encrypted and nothing opens it.
fn export(args: &JournalExportArgs, context: &Context) -> Result<()> {
    let shown = args.directory.display().to_string();
    let access = args.key.access(&shown, &args.slot);
    let keys = context.block_on(journal_keys(&args.directory, &access))?;
    let content = journal_content(&args.directory, keys.as_ref())?;
    let list = beside(&args.file, ".ranges");
    sparse::may_make(&list, args.force)?;
    let draft = Draft::begin(&args.file, args.force)?;
    let ranges = content.recovered.ranges();
    let total = sparse::length(&ranges);
    let mut step = context.reporter.step("copying");
    let copying = Copying {
        size_bytes: content.size_bytes,
        block_bytes: u64::from(content.recovered.geometry().block_bytes()),
        read: &mut |offset, buffer| content.recovered.read(offset, buffer),
        done: &mut |done| {
            let words = format!("{} of {}", format_size(done), format_size(total));
            step.update(done, total, &words);
        },
    };
    let missing = copying.run(&draft, &ranges)?;
    sparse::write_ranges(&list, args.force, &ranges)?;
    draft.finish()?;
    drop(step);
    let (shown, listed, copied) = (args.file.display(), list.display(), format_size(total));
    if let Some(reason) = content.damage.or(missing.reason) {
        let text = format!(
            "{shown} has {copied} of what the journal in {} held, and not all; where they are says {listed}",
            args.directory.display()
        );
        return Err(Error::new(ErrorKind::Damaged, text).with_source(reason));
    }
    context.reporter.line(&format!(
        "copied {copied} of writes to {shown}; where they are says {listed}"
    ));
    Ok(())
}
