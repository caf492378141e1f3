//! What a verb tells its user while it works: short lines on the standard output, and for what takes longer than a second a bar
//! on the terminal, or now and then a plain line where there is none.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::plain::plain;
use crate::open::{OnProgress, Progress};

/// What takes no longer shows no progress.
const SHORT: Duration = Duration::from_secs(1);
/// Between two plain lines.
const PLAIN: Duration = Duration::from_secs(10);

/// Prints lines and progress; says nothing where it is quiet.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    quiet: bool,
    lines: bool,
    terminal: bool,
}

impl Reporter {
    /// For this process's standard output and error.
    pub fn new(quiet: bool) -> Reporter {
        Reporter {
            quiet,
            lines: !quiet,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// The same without lines, for a verb whose answer alone is to be on the standard output.
    #[must_use]
    pub fn without_lines(self) -> Reporter {
        Reporter {
            lines: false,
            ..self
        }
    }

    /// Prints a line.
    pub fn line(&self, text: &str) {
        if self.lines {
            // Whoever closed the other end does not want to know.
            let _ = writeln!(std::io::stdout(), "{}", plain(text));
        }
    }

    /// Prints a line that says what to beware of, where it is not mistaken for an answer.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "bucketdisk: warning: {}", plain(text));
        }
    }

    /// Begins something that may take long.
    pub fn step(&self, label: &str) -> Step {
        Step {
            reporter: *self,
            label: label.to_owned(),
            begun: Instant::now(),
            last_line: Instant::now(),
            bar: None,
        }
    }

    /// Shows the progress of a long operation: each of its stages as a step, and at the end of [`Stages`], what was found.
    pub fn stages(&self) -> Stages {
        Stages {
            reporter: *self,
            current: Arc::new(Mutex::new(None)),
        }
    }
}

/// Something that may take long. Dropping it takes its bar away.
#[derive(Debug)]
pub struct Step {
    reporter: Reporter,
    label: String,
    begun: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Shows how far it is: `done` of `total` (0 where that is not known), and a few words.
    pub fn update(&mut self, done: u64, total: u64, words: &str) {
        if self.reporter.quiet || self.begun.elapsed() < SHORT {
            return;
        }
        if self.reporter.terminal {
            let bar = self.bar.get_or_insert_with(|| new_bar(&self.label));
            if total > 0 && bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(style("{prefix} [{bar:30}] {pos}/{len} {msg}"));
            }
            bar.set_position(done);
            bar.set_message(words.to_owned());
        } else if self.last_line.elapsed() >= PLAIN {
            self.last_line = Instant::now();
            self.reporter.line(&format!("{} ... {words}", self.label));
        }
    }

    /// Ends it with a line.
    pub fn done(mut self) {
        self.clear();
        self.reporter.line(&format!("{} ... done", self.label));
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}

fn new_bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style("{prefix} {spinner} {msg}"));
    bar.set_prefix(label.to_owned());
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The stages of one long operation, as they come from whoever does it.
#[derive(Debug, Clone)]
pub struct Stages {
    reporter: Reporter,
    current: Arc<Mutex<Option<(Stage, Step)>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Map,
    Listing,
    Deleting,
}

impl Stages {
    /// What the operation is given to report to.
    pub fn listener(&self) -> OnProgress {
        let stages = self.clone();
        Arc::new(move |progress| stages.take(progress))
    }

    /// Ends the last stage, well or not.
    pub fn finish(&self, well: bool) {
        let last = self.current.lock().take();
        if let (Some((_, step)), true) = (last, well) {
            step.done();
        }
    }

    fn take(&self, progress: Progress) {
        match progress {
            Progress::ReadingMap => self.update(Stage::Map, 0, 0, ""),
            Progress::ListingBlocks { shards, found } => {
                let words = format!("found {found}");
                self.update(Stage::Listing, u64::from(shards), 256, &words);
            }
            Progress::MapKnown { .. } => self.finish(true),
            Progress::Deleting { done, found } => {
                let words = format!("{done} of {found} objects found so far");
                self.update(Stage::Deleting, done, found, &words);
            }
        }
    }

    fn update(&self, stage: Stage, done: u64, total: u64, words: &str) {
        let mut current = self.current.lock();
        if current.as_ref().is_none_or(|(now, _)| *now != stage) {
            if let Some((_, before)) = current.take() {
                before.done();
            }
            let label = match stage {
                Stage::Map => "reading the block map",
                Stage::Listing => "listing non-zero blocks",
                Stage::Deleting => "deleting objects",
            };
            *current = Some((stage, self.reporter.step(label)));
        }
        if let Some((_, step)) = current.as_mut() {
            step.update(done, total, words);
        }
    }
}
