//! What was on its way to the bucket, and when: what a crash leaves is with any of it applied, in any order.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::support::memory::{Bucket, Flight, Mutation};

/// All that was ever on its way to a bucket.
pub struct Flights(Vec<Flight>);

impl Flights {
    pub fn to(bucket: &Bucket) -> Flights {
        Flights(bucket.flights())
    }

    /// The requests that are under way after so many changes, in two parts and any order; of deletions some keys only.
    pub fn under_way(&self, changes: usize, random: &mut SmallRng) -> [Vec<Mutation>; 2] {
        self.under_way_of(self.0.len(), changes, random)
    }

    /// The same of the first so many that were sent.
    pub fn under_way_of(
        &self,
        sent: usize,
        changes: usize,
        random: &mut SmallRng,
    ) -> [Vec<Mutation>; 2] {
        let here = |flight: &&Flight| {
            flight.sent <= changes && flight.ended.is_none_or(|ended| ended > changes)
        };
        let here = self.0[..sent].iter().filter(here);
        let mut first: Vec<Mutation> = here.map(|flight| flight.what.clone()).collect();
        first.shuffle(random);
        for mutation in &mut first {
            if let Mutation::Delete(keys) = mutation {
                keys.shuffle(random);
                keys.truncate(random.random_range(0..=keys.len()));
            }
        }
        let last = first.split_off(random.random_range(0..=first.len()));
        [first, last]
    }
}

/// What requests do, for a message.
pub fn names(mutations: &[Mutation]) -> String {
    let each = mutations.iter().map(|mutation| match mutation {
        Mutation::Put(key, _) | Mutation::PutIfAbsent(key, _) => format!("put {key}"),
        Mutation::Delete(keys) => format!("delete {}", keys.join(" ")),
    });
    each.collect::<Vec<_>>().join(", ")
}
