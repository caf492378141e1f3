//! Another machine, which takes the disk from the bucket alone, or the same one with its journal: it finds an earlier state of everything.

use std::fs;

use rand::RngExt;

use super::{Life, Stage};
use crate::others::Fio;
use crate::support::real::{Loop, Mount};

impl<'a> Life<'a> {
    /// Takes the disk back, and finds an earlier state of everything.
    pub(super) fn come_back(&mut self, end: u32) -> Result<Stage<'a>, String> {
        loop {
            self.forget();
            let found = match !self.journal && self.random.random_bool(0.3) {
                true => Some(self.look_from_afar()?),
                false => None,
            };
            if self.tally.kills < end && self.random.random_bool(0.12) {
                self.kill_in_mount();
                self.forget();
            }
            let disk = self.mount();
            let raw = self.raw.look(&disk.image())?;
            if found.is_some_and(|found| found != raw) {
                return Err("a reader and the next writer see different disks".to_owned());
            }
            let device = self.attach(&disk);
            if self.tally.kills < end && self.random.random_bool(0.12) {
                self.kill_in_replay(disk, device);
                continue;
            }
            self.raw.check(raw, self.journal)?;
            return self.look_at_all(disk, device);
        }
    }

    pub(super) fn look_at_all(
        &mut self,
        disk: Mount<'a>,
        device: Loop,
    ) -> Result<Stage<'a>, String> {
        let daemon = disk.daemon();
        // The first mount replays the journal.
        device.mount(&self.files(), &self.options).umount();
        self.kind.check(&device.device);
        let files = device.mount(&self.files(), &self.options);
        let at = files.directory.clone();
        for writer in &mut self.writers {
            writer.check(&at)?;
        }
        self.copies.check(&at)?;
        Fio::check(&at)?;
        let stage = Stage {
            files,
            device,
            disk,
            daemon,
        };
        self.settle(&stage)?;
        Ok(stage)
    }

    /// Removes all that this machine knows of the disk, but where it has a journal to go on with.
    pub(super) fn forget(&self) {
        if self.journal {
            return;
        }
        if self.memory.exists() {
            fs::remove_dir_all(&self.memory).expect("is forgotten");
        }
    }

    /// What a machine sees that must not take the disk: it is refused, and may read. Answers the raw part.
    pub(super) fn look_from_afar(&mut self) -> Result<Vec<u32>, String> {
        let url = self.bucket.url();
        let info = self.machine.run(&["info", "--json", url]);
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        if !info["holder"].is_null() {
            let directory = self.machine.path().join("disk");
            let refused = self
                .machine
                .try_run(&["mount", url, directory.to_str().expect("UTF-8")]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(5), "{said}");
            self.forget();
        }
        let reader = self.machine.mount(url, "reader", &["--read-only"]);
        let found = self.raw.look(&reader.image())?;
        reader.umount();
        Ok(found)
    }
}
