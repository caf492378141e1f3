//! The options by which passphrases and key files are given, and those of the verbs that change them.
//!
//! A secret itself is never an option: everybody on the machine can read a command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::{TargetArgs, duration, size};

/// What opens an encrypted disk.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyArgs {
    /// Take the passphrase from the first line of FILE; '-': of the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key_file", "passphrase_command"])]
    pub passphrase_file: Option<PathBuf>,

    /// Open the disk with all bytes of FILE
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_command")]
    pub key_file: Option<PathBuf>,

    /// Take the passphrase from the first line that a shell command prints
    #[arg(long, value_name = "COMMAND")]
    pub passphrase_command: Option<String>,
}

/// The only slot to try.
#[derive(Debug, Clone, Default, Args)]
pub struct SlotArgs {
    /// Try key slot N only, not all
    #[arg(long, value_name = "N")]
    pub key_slot: Option<u32>,
}

/// A disk in its store, and what opens it.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// The disk and its store.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What opens it.
    #[command(flatten)]
    pub key: KeyArgs,
    /// With which slot.
    #[command(flatten)]
    pub slot: SlotArgs,
}

/// What is going to open a disk.
#[derive(Debug, Clone, Args)]
pub struct NewKeyArgs {
    /// Take the new passphrase from the first line of FILE; '-': of the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_key_file", "new_passphrase_command"])]
    pub new_passphrase_file: Option<PathBuf>,

    /// Let all bytes of FILE open the disk
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_command")]
    pub new_key_file: Option<PathBuf>,

    /// Take the new passphrase from the first line that a shell command prints
    #[arg(long, value_name = "COMMAND")]
    pub new_passphrase_command: Option<String>,
}

/// What trying a passphrase costs.
#[derive(Debug, Clone, Copy, Args)]
pub struct KdfArgs {
    /// How long trying one passphrase takes on this machine
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub kdf_time: Duration,

    /// The most memory that trying one passphrase takes, and at most half of this machine's
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = size)]
    pub kdf_memory: u64,
}

/// `key`.
#[derive(Debug, Args)]
pub struct KeyVerbArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub verb: KeyVerb,
}

/// What can be done with the passphrases of an encrypted disk.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Let another passphrase or key file open a disk too
    Add(KeyAddArgs),
    /// Put another passphrase or key file in the place of one
    Change(KeyAddArgs),
    /// Let a passphrase or key file open a disk no more
    Remove(KeyRemoveArgs),
    /// Show the key slots of a disk
    List(KeyListArgs),
}

/// `key add` and `key change`.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// The disk, and what opens it now.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// What is to open it.
    #[command(flatten)]
    pub new: NewKeyArgs,
    /// What trying that costs.
    #[command(flatten)]
    pub kdf: KdfArgs,

    /// Change the superblock although the store cannot keep two changes at a time apart
    #[arg(long)]
    pub unsafe_no_fencing: bool,
}

/// `key remove`.
#[derive(Debug, Args)]
pub struct KeyRemoveArgs {
    /// The disk, and what opens it now.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Remove key slot N [default: the one that the given passphrase or key file opens]
    #[arg(long, value_name = "N")]
    pub remove_slot: Option<u32>,

    /// Change the superblock although the store cannot keep two changes at a time apart
    #[arg(long)]
    pub unsafe_no_fencing: bool,
}

/// `key list`.
#[derive(Debug, Args)]
pub struct KeyListArgs {
    /// The disk, and what opens it now.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The disk, and what opens it.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// What to set: compress=none|zstd[:LEVEL]|lz4|zlib[:LEVEL], label=TEXT
    #[arg(value_name = "NAME=VALUE", required = true)]
    pub settings: Vec<String>,

    /// Change the superblock although the store cannot keep two changes at a time apart
    #[arg(long)]
    pub unsafe_no_fencing: bool,
}
