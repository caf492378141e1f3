//! `bucketdisk set`.

use super::Context;
use super::args::{compression, label};
use super::key_args::SetArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{self, Settings};

/// Changes what of a disk can be changed.
///
/// # Errors
/// `Usage`; those of [`open::set`].
pub fn run(args: &SetArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    let settings = settings(&args.settings)?;
    context.block_on(open::set(
        &target,
        &access,
        &settings,
        args.unsafe_no_fencing,
    ))?;
    context.reporter.line(&format!(
        "set {} of {}",
        args.settings.join(", "),
        target.url()
    ));
    Ok(())
}

fn settings(words: &[String]) -> Result<Settings> {
    let usage = |text: String| Error::new(ErrorKind::Usage, text);
    let mut settings = Settings::default();
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| {
            usage(format!(
                "'{word}' has no '=': write compress=zstd or label=TEXT"
            ))
        })?;
        let twice = match name {
            "compress" => settings.compression.replace(compression(value)?).is_some(),
            "label" => settings
                .label
                .replace(label(value).map_err(usage)?)
                .is_some(),
            _ => {
                let text = format!("there is no setting '{name}': there are compress and label");
                return Err(usage(text));
            }
        };
        if twice {
            return Err(usage(format!("'{name}' is set twice")));
        }
    }
    Ok(settings)
}
