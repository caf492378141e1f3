//! The FUSE frontend: one directory with the disk as an image file, and a `stats` file.
//!
//! [`FuseMount::start`] mounts and serves until the kernel ends the session, however that comes about. Nothing is ever
//! unmounted behind anyone's back: [`FuseMount::unmount`] fails where the mount is in use, and the session goes on. What a
//! flush, a hole or a size means is the disk's to say; which errno an error becomes is decided in one place, `errno`.

mod device;
mod errno;
mod files;
mod filesystem;
mod image;
mod mount;
mod options;
mod place;

pub use mount::FuseMount;
pub use options::FuseOptions;
pub use place::usable_directory;

use tracing::debug;

/// What the `stats` file shows; asked for each time it is opened.
pub type StatsText = std::sync::Arc<dyn Fn() -> String + Send + Sync>;

/// Tells the kernel that this process stands between it and a disk: it must not wait for that disk when it needs memory, and is
/// not throttled for the dirty pages of others.
///
/// Holds for the calling thread and those it starts from then on, so call it before the first. Where the process may not
/// (it takes `CAP_SYS_RESOURCE`), nothing changes.
pub fn become_io_flusher() {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        debug!(%error, "the kernel does not grant the I/O flusher state");
    }
}
