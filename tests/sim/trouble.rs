//! What befalls a session, beside the weather of its requests.

use std::time::Duration;

use bucketdisk::error::ErrorKind;
use rand::RngExt;
use tokio::time::{Instant, sleep};

use super::machine::{Machine, is_record};
use super::session::Session;
use super::support::fault::{Fault, Request};
use super::support::local_disk::Trouble;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Of operations: those after which the store is away for a while, or refuses everything, or is full.
const AWAY: f64 = 0.01;
/// Of operations: those after which the answer to a record is lost, and so is what would tell what has become of it.
const DOUBTS: f64 = 0.01;

/// Says which requests something befalls.
type Which = fn(&Request) -> bool;

impl Session {
    /// Now and then, something goes wrong from here on.
    pub fn trouble(&mut self) {
        self.local_trouble();
        let world = &self.mounted.world;
        let faulty = &self.mounted.line.faulty;
        if self.random.random_bool(AWAY) {
            // Some last longer than a session may be silent.
            let most = if self.random.random_bool(0.2) {
                1800
            } else {
                120
            };
            let long = Duration::from_secs(self.random.random_range(1..most));
            self.troubled_until = self.troubled_until.max(Instant::now() + long);
            match self.random.random_range(0..3) {
                0 => {
                    world.count("the store is away");
                    faulty.for_a_while(long, Fault::Reset(None));
                }
                1 => {
                    world.count("the store refuses everything");
                    faulty.for_a_while(long, Fault::Status(403, None));
                }
                _ => {
                    world.count("the store is full");
                    let times = self.random.random_range(1..30);
                    faulty.next_of(is_store, vec![Fault::Status(507, None); times]);
                }
            }
        }
        if self.random.random_bool(world.profile.damages) {
            world.count("blocks damaged for a while");
            let times = self.random.random_range(2..20);
            let of_blocks: Which = |request| is_get(request, "blocks/");
            faulty.next_of(of_blocks, vec![Fault::Truncated(100); times]);
        }
        if self.random.random_bool(DOUBTS) {
            world.count("records in doubt");
            let unread = [
                Fault::Truncated(100),
                Fault::Status(403, None),
                Fault::Reset(None),
            ];
            let unread = unread[self.random.random_range(0..unread.len())];
            let times = self.random.random_range(1..4);
            let of_records: Which = |request| is_get(request, "log/");
            faulty.next_of(is_record, [Fault::Answer(ErrorKind::Unreachable)]);
            faulty.next_of(of_records, vec![unread; times]);
        }
    }

    /// The local disk fails, or is full for a while.
    fn local_trouble(&mut self) {
        let (world, Some(local)) = (&self.mounted.world, &self.mounted.local) else {
            return;
        };
        let share = 0.1 * world.profile.local_trouble;
        if self.full_until.is_some_and(|end| end < Instant::now()) {
            self.full_until = None;
            local.set_trouble(Trouble::default());
        }
        if self.full_until.is_none() && self.random.random_bool(share) {
            world.count("local disks that are full");
            let long = Duration::from_secs(self.random.random_range(1..120));
            self.full_until = Some(Instant::now() + long);
            local.set_trouble(Trouble {
                most_files: Some(local.names().len()),
                ..Trouble::default()
            });
        }
        if self.full_until.is_none() && self.random.random_bool(share) {
            world.count("local disks that fail");
            self.mounted.is_troubled();
            let mut trouble = Trouble::default();
            match self.random.random_bool(0.5) {
                true => trouble.failing_syncs = 0..1,
                false => trouble.failing_writes = 0..1,
            }
            local.set_trouble(trouble);
        }
    }

    /// The machine is asleep for a while, or cut off, or its clock goes on without it.
    pub async fn fall_asleep(&mut self, machine: &Machine) {
        let world = self.mounted.world.clone();
        let faulty = self.mounted.line.faulty.clone();
        let long = self.random.random_range(world.profile.sleep.clone());
        let long = Duration::from_millis(long);
        if self.random.random_bool(0.7) {
            self.flush();
        }
        match self.random.random_range(0..3) {
            0 if long < DAY => {
                world.count("machines cut off");
                faulty.for_a_while(long, Fault::Stall(None));
                sleep(long).await;
            }
            1 => {
                world.count("clocks that go on without the machine");
                machine.skip(long);
                sleep(Duration::from_secs(self.random.random_range(1..600))).await;
            }
            _ => {
                world.count(match long > 7 * DAY {
                    true => "weeks asleep",
                    false => "sleeps",
                });
                // What it has sent waits with it, and goes out when it wakes.
                faulty.always(Some(Fault::Silence(Duration::MAX)));
                sleep(long).await;
                faulty.always(None);
            }
        }
        self.troubled_until = Instant::now();
        if self.mounted.overtaken() {
            world.count("sleepers that have lost the disk");
            // What it still has to say.
            self.change(false).await;
            self.flush();
            sleep(Duration::from_secs(self.random.random_range(1..400))).await;
        }
    }
}

fn is_store(request: &Request) -> bool {
    matches!(request, Request::Put(_) | Request::PutIfAbsent(_))
}

fn is_get(request: &Request, folder: &str) -> bool {
    matches!(request, Request::Get(key) if key.starts_with(folder))
}
