//! The command line: `args` says what may be written, each verb is one file, and what they have in common is here.
//!
//! Parsing never acts. Errors leave the program here, as one line on the standard error and an exit code; what a verb answers goes
//! to the standard output.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::Parser;
use clap::error::ErrorKind as ClapKind;

use crate::error::{Error, ErrorKind, Result};

pub mod args;
mod create;
mod daemon;
mod delete;
pub mod exit;
mod export;
mod flush;
mod info;
mod journal;
mod key_args;
mod keys;
mod life;
pub mod log;
mod mount;
mod mount_options;
mod mount_table;
mod passphrase;
mod plain;
mod progress;
mod report;
mod rescue;
mod set;
mod signals;
mod sparse;
mod status;
mod target;
mod umount;

use args::{Cli, Verb};
use plain::plain;
use progress::Reporter;

/// What every verb has at hand.
#[derive(Debug)]
struct Context {
    reporter: Reporter,
    verbose: u8,
}

impl Context {
    /// Runs a verb's work to its end.
    fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        runtime(Some(2))?.block_on(work)
    }

    /// Prints what was asked for.
    fn answer(&self, text: &str) -> Result<()> {
        match writeln!(io::stdout(), "{}", plain(text)) {
            // Whoever has read enough may close the other end.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::new(ErrorKind::System, "cannot print the answer").with_source(e))
            }
            _ => Ok(()),
        }
    }
}

/// Most threads for system calls that wait: those of a directory store. The runtime's own limit is 512, each with a stack.
const BLOCKING_THREADS: usize = 128;

/// The runtime of a verb; `None` chooses the number of threads by that of cores.
fn runtime(threads: Option<usize>) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|e| Error::new(ErrorKind::System, "cannot start the runtime").with_source(e))
}

/// Runs the program for a command line (whose first word is its name) and answers the exit code.
pub fn run(line: impl IntoIterator<Item = OsString>) -> u8 {
    match try_run(line) {
        Ok(code) => code,
        Err(error) => {
            // There is nobody left to tell where this cannot be printed.
            let _ = writeln!(io::stderr(), "bucketdisk: {}", plain(&error.chain()));
            exit::exit_code(error.kind())
        }
    }
}

fn try_run(line: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let expanded = mount_options::expand(line)?;
    let cli = match Cli::try_parse_from(&expanded.line) {
        Ok(cli) => cli,
        Err(error) => return parse_error(&error),
    };
    let context = Context {
        reporter: Reporter::new(cli.quiet),
        verbose: cli.verbose,
    };
    if let Verb::Mount(args) = &cli.verb {
        let request = mount::request(args, expanded.kernel)?;
        if !args.foreground && !cli.daemon {
            log::start_short(cli.verbose)?;
            return daemon::start(&expanded.line, &mount::given(args)?);
        }
        if args.foreground {
            daemon::settle(&expanded.line);
        }
        return mount::run(request, cli.daemon, &context).map(|()| 0);
    }
    log::start_short(cli.verbose)?;
    match &cli.verb {
        Verb::Create(args) => create::run(args, &context),
        Verb::Mount(_) => Ok(()),
        Verb::Umount(args) => umount::run(args, &context),
        Verb::Flush(args) => flush::run(args, &context),
        Verb::Journal(args) => journal::run(args, &context),
        Verb::Export(args) => export::run(args, &context),
        Verb::Info(args) => info::run(args, &context),
        Verb::Status(args) => status::run(args, &context),
        Verb::Delete(args) => delete::run(args, &context),
        Verb::Key(args) => keys::run(args, &context),
        Verb::Set(args) => set::run(args, &context),
    }
    .map(|()| 0)
}

/// Help and version are answers; all else is one sentence.
fn parse_error(error: &clap::Error) -> Result<u8> {
    if matches!(
        error.kind(),
        ClapKind::DisplayHelp | ClapKind::DisplayVersion
    ) {
        return match error.print() {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::new(ErrorKind::System, "cannot print the help").with_source(e))
            }
            _ => Ok(0),
        };
    }
    let text = error.to_string();
    // The first paragraph says what is wrong; what follows are hints at the usage.
    let words: Vec<&str> = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let sentence = words.join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    Err(Error::new(
        ErrorKind::Usage,
        format!("{sentence}; see 'bucketdisk --help'"),
    ))
}
