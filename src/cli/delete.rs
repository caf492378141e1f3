//! `bucketdisk delete`.

use std::io::{BufRead, IsTerminal, Write};

use super::Context;
use super::args::DeleteArgs;
use super::info::objects;
use super::plain::plain;
use crate::config::format_size;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{self, Access, DiskInfo, Target};

/// Deletes a disk, after asking.
///
/// # Errors
/// `Usage` where nobody can be asked, or the answer is no; those of [`open::delete`].
pub fn run(args: &DeleteArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    if !args.yes {
        confirm(&target, &access, args.even_if_held, context)?;
    }
    let stages = context.reporter.stages();
    let listener = stages.listener();
    let deletion = open::delete(&target, &access, args.even_if_held, &listener);
    let outcome = context.block_on(deletion);
    stages.finish(outcome.is_ok());
    let deleted = outcome.map_err(|error| match error.kind() {
        ErrorKind::Held | ErrorKind::Damaged | ErrorKind::NoKey if !args.even_if_held => error
            .within(format!(
                "{} is not deleted; --even-if-held would delete it all the same",
                target.url()
            )),
        _ => error,
    })?;
    context
        .reporter
        .line(&format!("deleted {}: {deleted} objects", target.url()));
    Ok(())
}

fn confirm(target: &Target, access: &Access, even_if_held: bool, context: &Context) -> Result<()> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{} is not deleted: there is no terminal to ask on, so say --yes",
                target.url()
            ),
        ));
    }
    let stages = context.reporter.without_lines().stages();
    let outcome = context.block_on(open::inspect(target, access, &stages.listener()));
    stages.finish(outcome.is_ok());
    let question = match outcome {
        Ok(info) => question(&target.url(), &info),
        // Nothing more can be told of it, and it is to go all the same.
        Err(error) if even_if_held && error.kind() == ErrorKind::Damaged => format!(
            "delete the damaged disk at {}? It cannot be undone. Type 'yes': ",
            target.url()
        ),
        Err(error) => return Err(error),
    };
    let failed = |e: std::io::Error| {
        Error::new(ErrorKind::System, "cannot ask on the terminal").with_source(e)
    };
    let mut answer = String::new();
    let mut terminal = std::io::stderr();
    write!(terminal, "{}", plain(&question))
        .and_then(|()| terminal.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer))
        .map_err(failed)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!("{} is not deleted: the answer was not 'yes'", target.url()),
    ))
}

fn question(url: &str, info: &DiskInfo) -> String {
    let label = match info.inner.as_ref().map(|inner| inner.label.as_str()) {
        None | Some("") => String::new(),
        Some(label) => format!(" '{label}'"),
    };
    let stored = info.stored.unwrap_or_default();
    format!(
        "delete the disk{label} of {} at {url}, {} with {}? It cannot be undone. Type 'yes': ",
        format_size(info.superblock.geometry.size_bytes()),
        objects(stored.objects),
        format_size(stored.bytes),
    )
}
