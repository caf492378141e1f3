//! A mounted disk's figures, for people (`status`, the mount's `stats` file) and for programs (`status --json`).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::config::{format_duration, format_size};
use crate::disk::{Disk, DiskStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::open::{Traffic, TrafficSnapshot};

/// How long no request has succeeded when the failed ones are called trouble.
const SILENCE_SECONDS: u64 = 5;

/// Where the figures come from.
#[derive(Debug)]
pub struct Source {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Its traffic.
    pub traffic: Arc<Traffic>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The image file there.
    pub image: PathBuf,
    /// Since when.
    pub since: Instant,
}

impl Source {
    /// The figures of this moment.
    pub fn report(&self) -> Report {
        Report {
            mountpoint: self.mountpoint.display().to_string(),
            image: self.image.display().to_string(),
            pid: std::process::id(),
            uptime_seconds: self.since.elapsed().as_secs(),
            disk: self.disk.status(),
            traffic: self.traffic.snapshot(),
        }
    }
}

/// The figures of one moment.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where the disk is mounted.
    pub mountpoint: String,
    /// The image file.
    pub image: String,
    /// The daemon's process.
    pub pid: u32,
    /// How long the disk has been mounted, in seconds.
    pub uptime_seconds: u64,
    /// The disk's figures, and its store's.
    #[serde(flatten)]
    pub disk: DiskStatus,
    /// The requests to the store.
    pub traffic: TrafficSnapshot,
}

impl Report {
    /// For programs.
    ///
    /// # Errors
    /// `System`.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self)
            .map_err(|e| Error::new(ErrorKind::System, "cannot encode the figures").with_source(e))
    }

    /// For people: a line for each subject.
    pub fn text(&self) -> String {
        let (disk, store) = (&self.disk, &self.disk.store);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<10}{value}");
        };
        let label = match store.label.as_str() {
            "" => String::new(),
            label => format!(", label {label}"),
        };
        line("disk", format!("{}{label}", store.location));
        line("id", store.disk_id.clone());
        line(
            "image",
            format!(
                "{}{}",
                self.image,
                if disk.read_only { ", read-only" } else { "" }
            ),
        );
        line(
            "daemon",
            format!(
                "process {}, up {}",
                self.pid,
                format_duration(Duration::from_secs(self.uptime_seconds))
            ),
        );
        line(
            "size",
            format!(
                "{} in blocks of {}",
                format_size(disk.size_bytes),
                format_size(u64::from(disk.block_bytes))
            ),
        );
        line(
            "stored",
            format!(
                "{} allocated; {} non-zero blocks in the bucket",
                format_size(disk.allocated_bytes),
                store.stored_blocks
            ),
        );
        line("dirty", self.dirty());
        line("journal", self.journal());
        line("commits", self.commits());
        line(
            "cache",
            format!(
                "{} of {}, {} hits, {} misses; block map {}",
                format_size(disk.cache_bytes),
                format_size(disk.max_cache_bytes),
                disk.cache_hits,
                disk.cache_misses,
                format_size(store.map_bytes)
            ),
        );
        line("on disk", self.disk_cache());
        line("requests", self.requests());
        line("errors", self.errors());
        if let Some(other) = &store.fenced_by {
            let kept = match disk.dirty_bytes {
                0 => "",
                _ => "; what is dirty can be copied with 'bucketdisk export'",
            };
            line(
                "fenced",
                format!("by {other}: nothing is committed any more{kept}"),
            );
        }
        text
    }

    /// What keeps data from the bucket just now: the last commit's failure, or that of a request that is being tried again.
    pub fn trouble(&self) -> Option<String> {
        let failing = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
            let quiet = now.saturating_sub(self.traffic.last_success.unwrap_or(0));
            (self.traffic.in_flight + self.disk.dirty_bytes > 0 && quiet >= SILENCE_SECONDS)
                .then(|| self.traffic.last_error.clone())
                .flatten()
        };
        self.disk.commit_error.clone().or_else(failing)
    }

    fn journal(&self) -> String {
        let disk = &self.disk;
        let place = match (&disk.journal, &disk.journal_error) {
            (Some(place), None) => place.clone(),
            (_, Some(error)) => format!("failed: {error}"),
            (None, None) => "none".to_owned(),
        };
        format!(
            "{place}; a flush waits for the {}; memory {} of {}",
            disk.flush,
            format_size(disk.dirty_memory_bytes),
            format_size(disk.max_dirty_memory_bytes)
        )
    }

    fn dirty(&self) -> String {
        let disk = &self.disk;
        let mut text = format!(
            "{} of {}",
            format_size(disk.dirty_bytes),
            format_size(disk.max_dirty_bytes)
        );
        if let Some(seconds) = disk.oldest_dirty_seconds {
            let age = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            text.push_str(&format!(", oldest {}", format_duration(age)));
        }
        if disk.commit_blocks > 0 {
            text.push_str(&format!(
                "; committing, {} of {} blocks left",
                disk.commit_blocks_left, disk.commit_blocks
            ));
        }
        text
    }

    fn commits(&self) -> String {
        let store = &self.disk.store;
        let mut text = format!("{} by this mount, head {}", store.commits, store.head);
        if let Some(last) = store.last_commit {
            let ago = SystemTime::now().duration_since(last).unwrap_or_default();
            text.push_str(&format!(", last {} ago", format_duration(ago)));
        }
        if let Some(took) = store.last_commit_took {
            text.push_str(&format!(", which took {}", format_duration(took)));
        }
        if store.garbage_objects > 0 {
            text.push_str(&format!(
                "; {} superseded objects to delete",
                store.garbage_objects
            ));
        }
        text
    }

    fn disk_cache(&self) -> String {
        let Some(cache) = &self.disk.store.disk_cache else {
            return "no cache".to_owned();
        };
        let mut text = format!(
            "{} of {} in {}, {} hits, {} misses",
            format_size(cache.bytes),
            format_size(cache.max_bytes),
            cache.location,
            cache.hits,
            cache.misses
        );
        for (count, what) in [(cache.damaged, "damaged"), (cache.dropped, "not kept")] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        if let Some(error) = &cache.error {
            text.push_str(&format!("; {error}"));
        }
        text
    }

    fn errors(&self) -> String {
        let mut text = format!(
            "{} failed reads, {} times a damaged block; {} failed requests, {} tried again",
            self.disk.read_errors,
            self.disk.damaged_blocks_read,
            self.traffic.errors,
            self.traffic.retries
        );
        if let Some(trouble) = self.trouble() {
            text.push_str(&format!("; now: {trouble}"));
        }
        text
    }

    fn requests(&self) -> String {
        let traffic = &self.traffic;
        format!(
            "{} under way; {} gets ({}), {} puts ({}), {} deletes ({} objects), {} lists",
            traffic.in_flight,
            traffic.gets,
            format_size(traffic.bytes_down),
            traffic.puts + traffic.conditional_puts,
            format_size(traffic.bytes_up),
            traffic.deletes,
            traffic.deleted_objects,
            traffic.lists
        )
    }
}
