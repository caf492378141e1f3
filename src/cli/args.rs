//! What the command line may say: names, types, defaults and help of every option. Parsing validates single values and never acts;
//! what only several values together decide is checked by the verbs' `request`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::codec::compress::Compression;
use crate::config::{format_size, parse_duration, parse_size};
use crate::disk::FlushTo;
use crate::error::{Error, ErrorKind};
use crate::open::SMALLEST_JOURNAL_BYTES;
use crate::store::versioned::superblock::MAX_LABEL_BYTES;

use super::key_args::{DiskArgs, KdfArgs, KeyArgs, KeyVerbArgs, SetArgs, SlotArgs};

/// What `--encrypt` means to `mount`.
const ENCRYPTED_ONLY: &str = "Mount no disk that is not encrypted; with --create, encrypt everything of a new one: with a passphrase \
                              that is asked for, or as the options for passphrases say";

/// A disk that lives in a bucket
#[derive(Debug, Parser)]
#[command(
    name = "bucketdisk",
    bin_name = "bucketdisk",
    version,
    about,
    max_term_width = 100,
    after_help = super::exit::help_table(),
    after_long_help = super::exit::help_table(),
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = false
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,

    /// Log more: once for every store request, twice for every kernel request too
    #[arg(short, long, global = true, display_order = 900, action = ArgAction::Count)]
    pub verbose: u8,

    /// Print errors and answers only, no progress
    #[arg(short, long, global = true, display_order = 901)]
    pub quiet: bool,

    /// The start of a daemon: the standard input is its channel to the process that the user started.
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a disk; an existing one is never touched
    #[command(
        mut_arg("kdf_time", |a| a.requires("encrypt")),
        mut_arg("kdf_memory", |a| a.requires("encrypt"))
    )]
    Create(CreateArgs),
    /// Mount a disk: DIR then holds one image file
    #[command(
        args_override_self = true,
        mut_arg("block_size", |a| a.requires("create")),
        mut_arg("label", |a| a.requires("create")),
        mut_arg("compress", |a| a.requires("create")),
        mut_arg("encrypt", |a| a.help(ENCRYPTED_ONLY)),
        mut_arg("kdf_time", |a| a.requires_all(["create", "encrypt"])),
        mut_arg("kdf_memory", |a| a.requires_all(["create", "encrypt"]))
    )]
    Mount(Box<MountArgs>),
    /// Commit everything, unmount, and return once the bucket has it all
    Umount(UmountArgs),
    /// Return once all that was written to a mounted disk is durable
    Flush(FlushArgs),
    /// Copy a mounted disk to a file, with what is not committed
    Export(ExportArgs),
    /// Look after the journal of a disk that is not mounted
    Journal(JournalArgs),
    /// Describe a disk from what its bucket holds
    Info(InfoArgs),
    /// Show a mounted disk's live figures
    Status(StatusArgs),
    /// Delete a disk's objects; nothing else under its prefix is touched
    Delete(DeleteArgs),
    /// Look after what opens an encrypted disk
    Key(KeyVerbArgs),
    /// Change what of a disk can be changed
    Set(SetArgs),
}

/// Which disk, and how its store is reached.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Where the disk lives: s3://BUCKET[/PREFIX] or file:///DIRECTORY
    pub url: String,

    /// A prefix below the URL's; disks under different prefixes live side by side
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,

    /// The S3 service, where it is not Amazon's: https://HOST:PORT or http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    pub endpoint: Option<String>,

    /// The bucket's region
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,

    /// Put the bucket's name in the path of requests, not in the host name
    #[arg(long)]
    pub path_style: bool,

    /// The profile of the AWS configuration files to take credentials from
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// How long a request to a store that does not answer is tried again before it counts as failed
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The disk and its store.
    #[command(flatten)]
    pub target: TargetArgs,

    /// Size of the disk, a multiple of the block size; binary suffixes: 100g
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: u64,

    /// The new disk's block size and label.
    #[command(flatten)]
    pub new: NewDiskArgs,

    /// What is to open it.
    #[command(flatten)]
    pub key: KeyArgs,

    /// Make the disk although the store cannot keep a second writer out of it
    #[arg(long)]
    pub unsafe_no_fencing: bool,
}

/// What `create` and `mount --create` may say of a new disk beside its size.
#[derive(Debug, Args)]
pub struct NewDiskArgs {
    /// Bytes in a block, each of which is one object: a power of two from 4k to 64m
    #[arg(long, value_name = "SIZE", default_value = "256k", value_parser = size)]
    pub block_size: u64,

    /// A name for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = label)]
    pub label: String,

    /// How new blocks are compressed: none, zstd[:1-19], lz4, zlib[:1-9]
    // Measured (README.md, Compression): the least CPU time of those that store less than half, and no slower than any.
    #[arg(long, value_name = "METHOD", default_value = "zstd:1", value_parser = compression)]
    pub compress: Compression,

    /// Encrypt everything: with a passphrase that is asked for, or as the options for passphrases say
    #[arg(long)]
    pub encrypt: bool,

    /// What trying a passphrase costs.
    #[command(flatten)]
    pub kdf: KdfArgs,
}

/// `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The disk and its store.
    #[command(flatten)]
    pub target: TargetArgs,

    /// The directory to mount on
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// Make the disk first if there is none; needs --size
    #[arg(long, requires = "size", conflicts_with = "read_only")]
    pub create: bool,

    /// With --create: size of the disk, a multiple of the block size; binary suffixes: 100g
    #[arg(long, value_name = "SIZE", requires = "create", value_parser = size)]
    pub size: Option<u64>,

    /// With --create: the new disk's block size and label.
    #[command(flatten)]
    pub new: NewDiskArgs,

    /// What opens the disk.
    #[command(flatten)]
    pub key: KeyArgs,

    /// With which slot.
    #[command(flatten)]
    pub slot: SlotArgs,

    /// Name of the image file in DIR
    #[arg(long, value_name = "NAME", default_value = "disk.img", value_parser = filename)]
    pub filename: String,

    /// Take no writes and claim nothing: show the disk as it is now
    #[arg(long)]
    pub read_only: bool,

    /// Stay in the foreground and log to the standard error
    #[arg(short, long)]
    pub foreground: bool,

    /// Find the non-zero blocks by listing them all, not from the block map
    #[arg(long)]
    pub list_blocks: bool,

    /// The oldest a write becomes before it is committed
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub commit_interval: Duration,

    /// The most memory for data that is not committed yet, or with a journal, for where it lies there; writers wait beyond it
    #[arg(long, value_name = "SIZE", default_value = "256m", value_parser = size)]
    pub max_dirty: u64,

    /// How old a write may become uncommitted before writers wait [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_lag: Option<Duration>,

    /// Where journal and read cache are, for this disk alone; 'none': in memory [default: by the disk's id, see bucketdisk(1)]
    #[arg(long, value_name = "DIR|none")]
    pub cache_dir: Option<PathBuf>,

    /// The most that the read cache takes in the cache directory, or half of what is free there if that is less; 0: nothing
    #[arg(long, value_name = "SIZE", default_value = "10g", value_parser = size)]
    pub cache_size: u64,

    /// The most that the journal takes in the cache directory; writers wait beyond it
    #[arg(long, value_name = "SIZE", default_value = "4g", value_parser = journal_size)]
    pub journal_size: u64,

    /// What a flush (fsync) waits for: the journal on the local disk, or the bucket [default: journal where there is one]
    #[arg(long, value_name = "journal|bucket", value_parser = flush_to)]
    pub flush: Option<FlushTo>,

    /// Give up what a journal holds that is damaged, or that the disk has gone on without
    #[arg(long, conflicts_with = "read_only")]
    pub discard_journal: bool,

    /// Memory for the read cache's first tier and the buffers of requests
    #[arg(long, value_name = "SIZE", default_value = "256m", value_parser = size)]
    pub memory: u64,

    /// The most store requests at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub requests: u16,

    /// Let other users see the mount
    #[arg(long)]
    pub allow_other: bool,

    /// Owner of the image file [default: who mounts]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,

    /// Group of the image file [default: the group of who mounts]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,

    /// Permissions of the image file, octal
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = mode)]
    pub mode: u16,

    /// Claim the disk although another session has not released it; that session is fenced
    #[arg(long, conflicts_with = "read_only")]
    pub take_over: bool,

    /// Mount the disk although the bucket shows an older state than this machine has seen, or another one
    #[arg(long)]
    pub accept_rollback: bool,

    /// Mount for writing although the store cannot keep a second writer out
    #[arg(long)]
    pub unsafe_no_fencing: bool,

    /// Where the daemon logs: a file, or 'syslog' [default: bucketdisk.log in the log directory, see bucketdisk(1)]
    #[arg(long, value_name = "FILE|syslog")]
    pub log: Option<PathBuf>,

    /// Options as mount(8) passes them: comma-separated, those above without dashes, and the usual ones
    // Their meaning is taken before clap sees the line (`mount_options::expand`).
    #[arg(short = 'o', value_name = "OPT[,OPT=VALUE...]", action = ArgAction::Append)]
    pub options: Vec<String>,
}

/// `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// Give up what can be committed no more because another session has taken the disk over
    #[arg(long)]
    pub discard: bool,
}

/// `flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// Return once everything is committed to the bucket, not only in the journal
    #[arg(long)]
    pub bucket: bool,
}

/// `journal`.
#[derive(Debug, Args)]
pub struct JournalArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub verb: JournalVerb,
}

/// What can be done with a journal that no mount uses.
#[derive(Debug, Subcommand)]
pub enum JournalVerb {
    /// Copy what a journal holds into a sparse file, and list its ranges in FILE.ranges
    Export(JournalExportArgs),
}

/// `journal export`.
#[derive(Debug, Args)]
pub struct JournalExportArgs {
    /// The cache directory of a disk that is not mounted
    #[arg(value_name = "CACHE-DIR")]
    pub directory: PathBuf,

    /// The file to make, a sparse one
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// What opens an encrypted disk, and so its journal.
    #[command(flatten)]
    pub key: KeyArgs,

    /// The slot of it.
    #[command(flatten)]
    pub slot: SlotArgs,

    /// Replace FILE if it is there
    #[arg(long)]
    pub force: bool,
}

/// `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// The file to make, a sparse one
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Copy only what is not committed, and list its ranges in FILE.ranges
    #[arg(long)]
    pub dirty_only: bool,

    /// Replace FILE if it is there
    #[arg(long)]
    pub force: bool,
}

/// `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The disk, and what opens it.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The mount point
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The disk, and what opens it.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Delete the disk although a session that has not released it may be using it, or although it is too damaged to tell
    #[arg(long)]
    pub even_if_held: bool,
}

pub(super) fn compression(text: &str) -> Result<Compression, Error> {
    text.parse()
}

pub(super) fn size(text: &str) -> Result<u64, Error> {
    parse_size(text)
}

fn journal_size(text: &str) -> Result<u64, Error> {
    let size = parse_size(text)?;
    if size >= SMALLEST_JOURNAL_BYTES {
        return Ok(size);
    }
    let least = format_size(SMALLEST_JOURNAL_BYTES);
    Err(Error::new(
        ErrorKind::Usage,
        format!("a journal takes {least} at least, or leave it out with --cache-dir none"),
    ))
}

fn flush_to(text: &str) -> Result<FlushTo, String> {
    match text {
        "journal" => Ok(FlushTo::Journal),
        "bucket" => Ok(FlushTo::Bucket),
        _ => Err("a flush waits for 'journal' or 'bucket'".to_owned()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, Error> {
    parse_duration(text)
}

/// An endpoint without credentials in it: the command line is for everyone on the machine to read.
fn endpoint(text: &str) -> Result<String, String> {
    let Some(rest) = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
    else {
        return Err("an endpoint begins with http:// or https://".to_owned());
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Err(
            "an endpoint carries no credentials: put them in the environment or a profile"
                .to_owned(),
        );
    }
    if host.is_empty() || host.starts_with(':') {
        return Err("it names no host".to_owned());
    }
    Ok(text.to_owned())
}

fn filename(text: &str) -> Result<String, String> {
    match text {
        "" | "." | ".." => Err("it is not a file name".to_owned()),
        "stats" => Err("'stats' is the name of the mount's own file of figures".to_owned()),
        _ if text.contains(['/', '\0']) => Err("a file name has no '/'".to_owned()),
        _ if text.len() > 255 => Err("a file name has at most 255 bytes".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

pub(super) fn label(text: &str) -> Result<String, String> {
    if text.len() > MAX_LABEL_BYTES {
        Err(format!("a label has at most {MAX_LABEL_BYTES} bytes"))
    } else if text.chars().any(char::is_control) {
        Err("a label has no control characters".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn mode(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(mode),
        _ => Err("permissions are octal, from 0 to 0777, such as 0640".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for bad in ["", ".", "..", "a/b", "stats"] {
            assert!(filename(bad).is_err(), "{bad}");
        }
        for bad in ["8", "0x1", "1000", "+7", ""] {
            assert!(mode(bad).is_err(), "{bad}");
        }
        for bad in [
            "127.0.0.1:9000",
            "http://",
            "http://:9000",
            "http://key:secret@host",
            "ftp://host",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        assert!(label("a\nb").is_err());
        assert_eq!(mode("0640"), Ok(0o640));
        assert!(endpoint("http://127.0.0.1:9000").is_ok());
    }

    #[test]
    fn defaults_shown_are_those_of_the_rooms() {
        let cli = Cli::try_parse_from(["bucketdisk", "mount", "file:///a", "/b"]).expect("parses");
        let Verb::Mount(args) = cli.verb else {
            panic!("mount");
        };
        assert_eq!(
            args.new.block_size,
            u64::from(crate::block::DEFAULT_BLOCK_BYTES)
        );
        assert_eq!(args.memory, crate::config::DEFAULT_MEMORY_BYTES);
        assert_eq!(args.cache_size, crate::config::DEFAULT_CACHE_BYTES);
        assert_eq!(args.max_dirty, crate::config::DEFAULT_MAX_DIRTY_BYTES);
        assert_eq!(usize::from(args.requests), crate::config::DEFAULT_REQUESTS);
    }
}
