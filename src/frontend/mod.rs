//! Frontends: how a disk is shown to the machine. Each knows [`crate::disk::Disk`] and nothing below it.

pub mod fuse;
