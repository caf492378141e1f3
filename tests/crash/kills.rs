//! The ways in which a daemon is killed when nobody works any more, or nobody yet, and taking down what is left after any.

use std::process::{Command, Stdio};
use std::time::Duration;

use rand::RngExt;

use super::{Life, Stage};
use crate::moment::Moment;
use crate::pulse::Pulse;
use crate::support::real::{FileSystem, Loop, Mount, mounts, run, wait_for};

impl<'a> Life<'a> {
    /// Kills it when everything was made durable and nobody has written since.
    pub(super) fn kill_idle(
        &mut self,
        stage: Stage<'a>,
        moment: Moment,
        pulse: &Pulse,
    ) -> Result<bool, String> {
        for writer in &mut self.writers {
            let folder = writer.folder(&stage.files.directory);
            writer.sync_all(&folder, pulse)?;
        }
        self.settle(&stage)?;
        moment.wait_after(self.bucket, 0, || false);
        pulse.kill();
        let lived = stage.daemon.kill();
        Ok(self.take_down(stage, lived))
    }

    /// Kills it while the file system is being unmounted.
    pub(super) fn kill_in_umount(
        &mut self,
        stage: Stage<'a>,
        moment: Moment,
        pulse: &Pulse,
    ) -> bool {
        let umount = Command::new("umount")
            .arg(&stage.files.directory)
            .stderr(Stdio::null())
            .spawn();
        let mut umount = umount.expect("umount starts");
        moment.wait_after(self.bucket, 0, || false);
        pulse.kill();
        let lived = stage.daemon.kill();
        umount.wait().expect("umount ends");
        self.take_down(stage, lived)
    }

    /// Kills it while it leaves the disk.
    pub(super) fn kill_in_leave(
        &mut self,
        stage: Stage<'a>,
        moment: Moment,
        pulse: &Pulse,
    ) -> Result<bool, String> {
        let Stage {
            files,
            device,
            disk,
            daemon,
        } = stage;
        files.umount();
        device.detach();
        if self.random.random_bool(0.5) && self.raw.flush_image(&disk.image(), pulse)? {
            self.all_synced();
        }
        for _ in 0..self.random.random_range(1..6) {
            self.raw.write_once(&disk.image())?;
        }
        let directory = disk.directory.to_str().expect("UTF-8").to_owned();
        let checkpoint = self.bucket.checkpoint();
        let umount = self.machine.program(&["umount", &directory]);
        let mut umount = { umount }
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("umount starts");
        moment.wait_after(self.bucket, checkpoint, || {
            umount.try_wait().expect("can be asked").is_some()
        });
        pulse.kill();
        let lived = daemon.kill();
        if umount.wait().expect("umount ends").success() {
            // It was faster, and has promised that the bucket has everything.
            self.all_synced();
            self.raw.all_flushed();
        }
        disk.clear_away();
        Ok(lived)
    }

    /// Takes down what a dead daemon has left.
    pub(super) fn take_down(&mut self, stage: Stage<'a>, lived: bool) -> bool {
        let Stage {
            files,
            device,
            disk,
            ..
        } = stage;
        end(files);
        device.detach();
        if self.random.random_bool(0.5) {
            let directory = disk.directory.to_str().expect("UTF-8");
            let told = self.machine.try_run(&["umount", directory]);
            let said = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(told.status.code(), Some(1), "{said}");
            assert!(said.contains("died") && !disk.is_mounted(), "{said}");
        }
        disk.clear_away();
        lived
    }

    /// Kills a daemon that is only about to take the disk.
    pub(super) fn kill_in_mount(&mut self) {
        let directory = self.machine.path().join("disk");
        let mut arguments = vec![
            "mount",
            self.bucket.url(),
            directory.to_str().expect("UTF-8"),
        ];
        let options = self.mount_options();
        arguments.extend(options.iter().map(String::as_str));
        arguments.push("--foreground");
        let mut daemon = { self.machine.program(&arguments) }
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..150_000)));
        let lives = daemon.try_wait().expect("can be asked").is_none();
        daemon.kill().expect("is killed");
        wait_for("the daemon to be dead", || {
            daemon.try_wait().expect("can be asked").is_some()
        });
        if mounts().contains(&directory) {
            run(Command::new("umount").arg("--lazy").arg(&directory));
        }
        assert!(lives, "the mount failed by itself");
        self.killed("during bucketdisk mount");
    }

    /// Kills the daemon while the file system replays its journal.
    pub(super) fn kill_in_replay(&mut self, disk: Mount<'a>, device: Loop) {
        let (files, daemon) = (self.files(), disk.daemon());
        let mut mount = Command::new("mount")
            .args(["-o", &self.options, &device.device])
            .arg(&files)
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..40_000)));
        let lived = daemon.kill();
        mount.wait().expect("ends");
        end(FileSystem { directory: files });
        device.detach();
        disk.clear_away();
        if lived {
            self.killed("while the journal was replayed");
        }
    }
}

/// Unmounts a file system whose device is dead, if it is mounted.
fn end(files: FileSystem) {
    let directory = files.directory.clone();
    std::mem::forget(files);
    wait_for("the file system to let go", || {
        !mounts().contains(&directory)
            || Command::new("umount")
                .arg(&directory)
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    });
}
