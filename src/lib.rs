//! bucketdisk: a fixed-size, sparse disk that lives in a bucket.
//!
//! A mount shows one image file; its blocks are fetched lazily from, and written back to, one object per block that is not all
//! zero. The bucket is at every instant a consistent disk: see [`store::versioned`] for how, and bucketdisk-layout(5) for the bytes.
//!
//! # Rooms
//!
//! Imports go down only (`tests/rooms.rs` checks it):
//!
//! ```text
//! main > cli > { open, frontend, control, local, config }
//! open         the composition root: the only place that names concrete layers and stacks them
//! frontend     the kernel's requests; knows the disk and nothing below it
//! control      the socket through which `status` and `umount` talk to a daemon
//! disk         bytes to blocks: dirty data in epochs, write-back, flush, read cache in memory, read-ahead
//! store        blocks to objects: `versioned`, the native layout, with claims, commits and checkpoints
//! cache        blocks' objects on the local disk, as the store has them: the read cache's second tier
//! codec        an object's header, packing, and checksum or seal; keys and key slots; pure functions of bytes
//! object       put, get, delete, list over real stores; the decorators that retry, limit and count
//! local        what this machine remembers of a disk; config: sizes and times as users write them
//! secret       keys and passphrases in memory
//! block, error values that all rooms share
//! ```
//!
//! # A read and a write
//!
//! A read goes kernel > [`frontend`] > [`disk::Disk::read_now`] > dirty data > hole? > cached? and is answered on the thread that
//! received it. Only what is in none of these is fetched, on the runtime: several blocks at once, each once however many ask.
//! The store looks into the [`cache`] on the local disk before it asks the bucket, and checks what it finds there as it checks what
//! the bucket answers; what it has fetched it puts there.
//!
//! A write goes kernel > [`disk::Disk::write_now`] > [`journal`] > the open epoch, without reading what it is written over. Later the epoch
//! is sealed, its blocks are completed, stored under a new version, and one record of the log makes them the disk's state; the
//! journal's space is given back. A flush returns when the journal is durable on the local disk, or where that is asked for, or there
//! is none, when that record is acknowledged.
//!
//! # Packing and sealing
//!
//! The codec turns a block into its object on a thread of its own, packed and sealed, just before it is put, and back just after it was
//! fetched; so what the cache on the local disk holds is packed and sealed, too. The journal seals what it is given itself, since it is read
//! back in parts. Keys come from [`open`], which unlocks the superblock, and live in [`secret`]'s memory; nothing above the store knows of
//! them.
//!
//! # Where the next rooms go
//!
//! Another layout is another [`store::BlockStore`], which can use the same [`cache::ObjectCache`]; NBD is another frontend; Swift is
//! another [`object::ObjectClient`].

pub mod block;
pub mod cache;
pub mod cli;
pub mod codec;
pub mod config;
pub mod control;
pub mod disk;
pub mod error;
pub mod frontend;
pub mod journal;
pub mod local;
pub mod object;
pub mod open;
pub mod secret;
pub mod store;
