//! A breadth-first search over all states of a model: the first violation that it finds has a shortest path.
//!
//! Of a state that was seen only a fingerprint of 64 bits is kept, with that of the state it was reached from. With ten million
//! states the chance that two share one, so that a state is missed, is about 1 in 400 000.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// What is searched.
pub trait Model {
    /// Everything that can matter later.
    type State: Clone + Hash;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Adds every step that can be taken from a state.
    fn steps(&self, state: &Self::State, steps: &mut Steps<Self::State>);

    /// What must hold in every state.
    ///
    /// # Errors
    /// Says what does not.
    fn check(&self, state: &Self::State) -> Result<(), String>;
}

/// The steps from one state: each with its name, if names are asked for, and the state that it leads to or what it violates.
pub struct Steps<S> {
    next: Vec<(String, Result<S, String>)>,
    named: bool,
}

impl<S> Steps<S> {
    /// Adds one.
    pub fn add(&mut self, name: impl FnOnce() -> String, to: Result<S, String>) {
        let name = if self.named { name() } else { String::new() };
        self.next.push((name, to));
    }
}

/// A violation, and the names of the steps that lead there.
pub struct Violation {
    pub what: String,
    pub path: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.path {
            writeln!(f, "    {step}")?;
        }
        write!(f, "    so: {}", self.what)
    }
}

/// What a search came to.
pub struct Outcome {
    pub states: usize,
    pub took: Duration,
    pub violation: Option<Violation>,
    /// Whether every state was looked at, but for what a violation cut short.
    pub complete: bool,
}

/// Searches until everything is seen, something is violated that has `wanted` in its text, or there are too many states. (Beyond
/// another violation there is no search.)
pub fn search<M: Model>(model: &M, most_states: usize, wanted: &str) -> Outcome {
    let began = Instant::now();
    let mut seen: Seen = HashMap::default();
    let mut open = VecDeque::new();
    let start = model.start();
    seen.insert(fingerprint(&start), None);
    open.push_back((fingerprint(&start), start));
    let mut steps = Steps {
        next: Vec::new(),
        named: false,
    };
    let mut violated = None;
    while let Some((from, state)) = open.pop_front() {
        if let Err(what) = model.check(&state) {
            if what.contains(wanted) {
                violated = Some((from, what));
                break;
            }
            continue;
        }
        model.steps(&state, &mut steps);
        for (_, to) in steps.next.drain(..) {
            match to {
                Ok(state) => {
                    let to = fingerprint(&state);
                    seen.entry(to).or_insert_with(|| {
                        open.push_back((to, state));
                        Some(from)
                    });
                }
                Err(what) if what.contains(wanted) => {
                    violated.get_or_insert((from, what));
                }
                Err(_) => {}
            }
        }
        if violated.is_some() || seen.len() > most_states {
            break;
        }
    }
    let complete = violated.is_some() || open.is_empty();
    Outcome {
        states: seen.len(),
        took: began.elapsed(),
        violation: violated.map(|(last, what)| Violation {
            path: path(model, &seen, last, &what),
            what,
        }),
        complete,
    }
}

/// Each state that was seen, and where it was first reached from.
type Seen = HashMap<u64, Option<u64>, BuildHasherDefault<Already>>;

/// Walks the way to a state once more, this time with names; to the violating step at its end, if it is not the state itself that
/// violates.
fn path<M: Model>(model: &M, seen: &Seen, last: u64, what: &str) -> Vec<String> {
    let mut way = vec![last];
    while let Some(Some(before)) = way.last().and_then(|at| seen.get(at)) {
        way.push(*before);
    }
    let mut names = Vec::new();
    let mut state = model.start();
    let mut steps = Steps {
        next: Vec::new(),
        named: true,
    };
    for at in way.iter().rev().skip(1) {
        model.steps(&state, &mut steps);
        let step = steps.next.drain(..).find_map(|(name, to)| {
            to.ok()
                .filter(|to| fingerprint(to) == *at)
                .map(|to| (name, to))
        });
        let (name, to) = step.expect("the way was taken before");
        names.push(name);
        state = to;
    }
    if model.check(&state).is_ok() {
        model.steps(&state, &mut steps);
        let last = steps.next.drain(..);
        names.extend(
            last.filter(|(_, to)| matches!(to, Err(w) if w == what))
                .map(|(n, _)| n)
                .take(1),
        );
    }
    names
}

fn fingerprint<S: Hash>(state: &S) -> u64 {
    let mut hasher = Folding(0x9E37_79B9_7F4A_7C15);
    state.hash(&mut hasher);
    hasher.finish()
}

/// Multiplies each word in, and folds the 128 bits of the product together: in this place several times as fast as the hash of the
/// standard library, which defends tables against those who choose their keys.
struct Folding(u64);

impl Folding {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0xF135_7AEA_2E62_A9C5;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for Folding {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.fold(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    fn write_isize(&mut self, value: isize) {
        self.fold(value as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }
}

/// Hashes what is a hash already.
#[derive(Default)]
struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed")
    }

    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}
