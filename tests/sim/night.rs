//! Many worlds, one after the other on each of this machine's cores, and the table of what came of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::judge;
use super::profile::Profile;
use super::support::volume::in_runtime;
use super::tally::Tally;
use super::world::World;

thread_local! {
    /// Panics on this thread: those of tasks are caught by the runtime, and would go unnoticed.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes the panics of every thread, beside what is done with them otherwise. To be called once.
pub fn note_panics() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
        otherwise(info);
    }));
}

/// Runs the world of a seed and judges what it has left.
fn simulate(seed: u64) -> Result<Tally, String> {
    PANICS.take();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = in_runtime(World::run(seed));
        let violations = world.violations.lock().join("; ");
        if !violations.is_empty() {
            return Err(violations);
        }
        let judged = in_runtime(judge::judge(&world))?;
        let mut tally = world.tally.lock().clone();
        tally.merge(&judged);
        Ok(tally)
    }));
    match (outcome, PANICS.take().join("; ")) {
        (Ok(outcome), panics) if panics.is_empty() => outcome,
        (Ok(Err(what)), panics) => Err(format!("{what}; panics: {panics}")),
        (_, panics) => Err(format!("panics: {panics}")),
    }
}

/// What to run.
pub struct Night {
    pub seeds: VecDeque<u64>,
    /// Seeds go on from the last of those until there were so many crash points...
    pub points: u64,
    /// ... unless this has passed.
    pub longest: Duration,
}

/// What came of the worlds of one kind.
#[derive(Default)]
struct Row {
    seeds: u64,
    tally: Tally,
    busy: Duration,
}

/// What came of all.
pub struct Morning {
    pub tally: Tally,
    pub failures: Vec<(u64, String)>,
    rows: BTreeMap<&'static str, Row>,
    took: Duration,
}

/// What all threads work on.
struct Work {
    night: Night,
    began: Instant,
    morning: Morning,
}

impl Work {
    /// The next seed; none after a failure: that one is enough to begin with.
    fn next(&mut self) -> Option<u64> {
        let points = self.morning.tally.of("crash points");
        let over = self.night.points > 0 && points >= self.night.points;
        if over || !self.morning.failures.is_empty() || self.began.elapsed() > self.night.longest {
            return None;
        }
        let seed = self.night.seeds.pop_front()?;
        if self.night.points > 0 && self.night.seeds.is_empty() {
            self.night.seeds.push_back(seed.wrapping_add(1));
        }
        Some(seed)
    }

    fn note(&mut self, seed: u64, outcome: Result<Tally, String>, took: Duration) {
        let name = Profile::of(seed).name;
        let row = self.morning.rows.entry(name).or_default();
        row.seeds += 1;
        row.busy += took;
        match outcome {
            Ok(tally) => {
                let points = tally.of("crash points");
                println!("seed {seed} ({name}): {points} crash points, {took:.1?}");
                row.tally.merge(&tally);
                self.morning.tally.merge(&tally);
            }
            Err(what) => self.morning.failures.push((seed, what)),
        }
    }
}

impl Night {
    /// Runs it, on all cores.
    pub fn pass(self) -> Morning {
        let began = Instant::now();
        let work = Mutex::new(Work {
            night: self,
            began,
            morning: Morning {
                tally: Tally::default(),
                failures: Vec::new(),
                rows: BTreeMap::new(),
                took: Duration::ZERO,
            },
        });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let Some(seed) = work.lock().next() else {
                            return;
                        };
                        let since = Instant::now();
                        let outcome = simulate(seed);
                        work.lock().note(seed, outcome, since.elapsed());
                    }
                });
            }
        });
        let mut morning = work.into_inner().morning;
        morning.took = began.elapsed();
        morning
    }
}

impl Morning {
    /// The figures, as a table.
    pub fn table(&self) -> String {
        let head = "| world | seeds | operations | requests | crash points | with a journal | violations | seconds of a core |\n\
                    |---|---|---|---|---|---|---|---|\n";
        let line = |name: &str, seeds: u64, tally: &Tally, violations: usize, time: Duration| {
            format!(
                "| {name} | {seeds} | {} | {} | {} | {} | {violations} | {:.1} |\n",
                tally.operations(),
                tally.of("requests"),
                tally.of("crash points"),
                tally.of("crash points with a journal"),
                time.as_secs_f64(),
            )
        };
        let of = |name: &str| {
            let failed = self.failures.iter();
            failed
                .filter(|(seed, _)| Profile::of(*seed).name == name)
                .count()
        };
        let rows = self.rows.iter();
        let each: String = rows
            .clone()
            .map(|(name, row)| line(name, row.seeds, &row.tally, of(name), row.busy))
            .collect();
        let seeds = rows.clone().map(|(_, row)| row.seeds).sum();
        let busy = rows.map(|(_, row)| row.busy).sum();
        let all = line("all", seeds, &self.tally, self.failures.len(), busy);
        format!(
            "{head}{each}{all}simulated {seeds} seeds with {} crash points in {:.1} s: {} violations\n",
            self.tally.of("crash points"),
            self.took.as_secs_f64(),
            self.failures.len(),
        )
    }
}
