//! The scenes: small worlds, each with a part of what can happen. Two machines suffice for most; what a third can do to two is in
//! scenes of its own.

use super::rules::Rules;
use super::world::{Budget, Role, Scene};

/// Stores block 0.
const STORE: (u8, u8) = (1, 0);
/// Makes a hole of it.
const HOLE: (u8, u8) = (0, 1);
/// Stores block 1, and makes a hole of block 0.
const MOVE: (u8, u8) = (2, 1);
/// Stores both.
const BOTH: (u8, u8) = (3, 0);

/// A machine that mounts for writing, with `--take-over`.
fn writer(lives: u8, commits: u8, checkpoints: u8) -> Role {
    Role {
        writes: true,
        takes_over: true,
        lists: false,
        budget: Budget {
            commits,
            heartbeats: 0,
            checkpoints,
            give_ups: 0,
            releases: 0,
        },
        lives,
    }
}

/// One that mounts for reading.
fn reader() -> Role {
    Role {
        writes: false,
        ..writer(1, 0, 0)
    }
}

impl Role {
    fn polite(self) -> Role {
        Role {
            takes_over: false,
            ..self
        }
    }

    fn listing(self) -> Role {
        Role {
            lists: true,
            ..self
        }
    }

    fn releasing(mut self) -> Role {
        self.budget.releases += 1;
        self
    }

    fn giving_up(mut self) -> Role {
        self.budget.give_ups += 1;
        self
    }

    fn beating(mut self) -> Role {
        self.budget.heartbeats += 1;
        self
    }
}

/// One request on its way, no lost answers.
fn scene(name: &'static str, roles: &[Role], commits: &[(u8, u8)]) -> Scene {
    Scene {
        name,
        roles: roles.to_vec(),
        commits: commits.to_vec(),
        flight: 1,
        doubts: 0,
        revivals: true,
        gap_check: true,
        pages: false,
        rules: Rules::ALL,
    }
}

impl Scene {
    fn flight(self, flight: usize) -> Scene {
        Scene { flight, ..self }
    }

    fn doubts(self, doubts: u8) -> Scene {
        Scene { doubts, ..self }
    }

    /// A listing, of the log or of a block's shard, may take two requests.
    fn pages(self) -> Scene {
        Scene {
            pages: true,
            ..self
        }
    }

    /// No put of a block comes after its version was committed, superseded and deleted. (See
    /// `a_very_late_put_can_mislead_a_listing`.)
    fn no_revivals(self) -> Scene {
        Scene {
            revivals: false,
            ..self
        }
    }

    pub fn no_gap_check(self) -> Scene {
        Scene {
            gap_check: false,
            ..self
        }
    }
}

/// Those of every run of the tests.
pub fn small() -> Vec<Scene> {
    vec![
        slow_claim(),
        crash(),
        checkpoints(),
        doubt(),
        polite(),
        garbage(),
        old_checkpoint(),
        reading(),
        three(),
        sleeper(),
        resume(),
        listing_reader(),
        listing_give_up(),
        listing_crash(),
        listing_pruned(),
        listing_twice(),
        release(),
        heir(),
    ]
}

/// A live writer checkpoints and prunes, while the claim of another machine is on its way, whose next session mounts.
pub fn slow_claim() -> Scene {
    let roles = [writer(1, 1, 1), writer(2, 1, 0)];
    scene("slow claim", &roles, &[STORE]).pages()
}

/// A writer dies anywhere, and mounts again, beside another.
pub fn crash() -> Scene {
    let roles = [writer(2, 1, 1), writer(1, 1, 0)];
    scene("crash", &roles, &[STORE])
}

/// Both write checkpoints, the one that has lost the disk too.
pub fn checkpoints() -> Scene {
    let roles = [writer(1, 1, 1), writer(1, 1, 1)];
    scene("checkpoints", &roles, &[STORE]).doubts(1)
}

/// A writer that lives through lost answers: with heartbeat, give-up and release.
pub fn doubt() -> Scene {
    let busy = writer(1, 1, 0).beating().giving_up().releasing();
    scene("doubt", &[busy, writer(1, 0, 0)], &[STORE]).doubts(2)
}

/// Neither takes over: a session that was not released only gives way to a later one of its own machine.
pub fn polite() -> Scene {
    let roles = [writer(2, 1, 1), writer(2, 0, 0)];
    let roles = roles.map(|role| role.polite().releasing());
    scene("polite", &roles, &[STORE])
}

/// Two commits of one block, one after a take-over: superseded versions, and what a crash left.
pub fn garbage() -> Scene {
    let roles = [writer(2, 2, 0), writer(1, 1, 0)];
    scene("garbage", &roles, &[STORE]).doubts(1)
}

/// One machine, two checkpoints.
pub fn old_checkpoint() -> Scene {
    scene("old checkpoint", &[writer(2, 2, 2)], &[STORE]).doubts(1)
}

/// A reader beside a writer.
pub fn reading() -> Scene {
    scene("reader", &[writer(1, 2, 1), reader()], &[STORE, MOVE]).pages()
}

/// A reader beside a writer and a claim that comes late.
pub fn three() -> Scene {
    let roles = [writer(1, 1, 1), writer(1, 0, 0), reader()];
    scene("three", &roles, &[STORE]).flight(0)
}

/// A reader that lists the blocks, quickly or not, beside a writer.
pub fn listing_reader() -> Scene {
    let roles = [writer(1, 2, 1), reader().listing()];
    scene("listing: reader", &roles, &[STORE, MOVE]).pages()
}

/// A writer gives a commit up, and another lists the blocks.
pub fn listing_give_up() -> Scene {
    let roles = [writer(1, 1, 1).giving_up(), writer(1, 0, 0).listing()];
    scene("listing: give-up", &roles, &[STORE])
        .doubts(1)
        .no_revivals()
}

/// A writer dies anywhere, and mounts again, beside one that lists the blocks.
pub fn listing_crash() -> Scene {
    let roles = [writer(2, 2, 0), writer(1, 0, 0).listing()];
    scene("listing: crash", &roles, &[STORE, HOLE]).no_revivals()
}

/// A writer prunes, beside claims that come late and a mount that lists the blocks.
pub fn listing_pruned() -> Scene {
    let roles = [writer(1, 2, 1), writer(2, 0, 0).listing()];
    scene("listing: pruned", &roles, &[STORE, HOLE]).no_revivals()
}

/// A writer whose put of a block may arrive after that version was committed, superseded and deleted.
pub fn listing_revived() -> Scene {
    let roles = [writer(1, 2, 1), writer(1, 0, 0).listing()];
    scene("listing: revived", &roles, &[STORE, HOLE]).doubts(1)
}

/// One machine that dies twice and always lists the blocks.
pub fn listing_twice() -> Scene {
    let roles = [writer(3, 3, 1).listing()];
    scene("listing: twice", &roles, &[STORE, HOLE])
        .flight(0)
        .no_revivals()
}

/// A writer that dies and goes on.
pub fn resume() -> Scene {
    scene("resume", &[writer(2, 2, 0).polite()], &[STORE])
}

/// A writer that sleeps, a mount that is slow, and a third that takes over and puts a checkpoint.
pub fn sleeper() -> Scene {
    let roles = [writer(1, 1, 0), writer(1, 0, 0), writer(1, 0, 1)];
    scene("sleeper", &roles, &[STORE]).flight(0)
}

/// A writer that releases the disk, and another that lists the blocks.
pub fn release() -> Scene {
    let roles = [writer(1, 1, 0).releasing(), writer(1, 0, 0).listing()];
    scene("listing: release", &roles, &[STORE])
        .doubts(1)
        .no_revivals()
}

/// A writer whose next session prunes, and a reader that lists the blocks.
pub fn heir() -> Scene {
    let roles = [writer(2, 2, 1), reader().listing()];
    scene("listing: heir", &roles, &[STORE, HOLE])
        .flight(0)
        .no_revivals()
}

/// Those for a machine that has some minutes.
pub fn large() -> Vec<Scene> {
    vec![
        scene(
            "large: crashes",
            &[writer(2, 1, 1), writer(2, 1, 0)],
            &[STORE],
        ),
        scene(
            "large: checkpoints",
            &[writer(2, 1, 1), writer(2, 1, 1)],
            &[STORE],
        ),
        scene(
            "large: slow requests",
            &[writer(2, 1, 1), writer(2, 1, 0)],
            &[STORE],
        )
        .flight(3)
        .doubts(1),
        scene(
            "large: doubt",
            &[
                writer(1, 1, 1).beating().giving_up().releasing(),
                writer(1, 1, 0),
            ],
            &[STORE],
        )
        .doubts(2),
        scene(
            "large: garbage",
            &[writer(2, 2, 1), writer(1, 0, 0)],
            &[BOTH],
        )
        .doubts(1),
        scene(
            "large: three",
            &[writer(1, 1, 1), writer(2, 0, 0), reader()],
            &[STORE],
        )
        .pages(),
        scene(
            "large: three writers",
            &[writer(1, 1, 1), writer(1, 1, 0), writer(1, 0, 1)],
            &[STORE],
        ),
        scene(
            "large: listing",
            &[writer(2, 2, 1).giving_up(), writer(1, 0, 0).listing()],
            &[STORE, HOLE],
        )
        .no_revivals(),
        scene(
            "large: listing and claims",
            &[writer(1, 2, 1), writer(2, 1, 1).listing()],
            &[STORE, HOLE],
        )
        .no_revivals(),
        scene(
            "large: listing twice",
            &[writer(3, 3, 1).listing()],
            &[STORE, HOLE],
        )
        .no_revivals(),
    ]
}
