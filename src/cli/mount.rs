//! `bucketdisk mount`, in the process that serves the mount: the daemon, or the program in the foreground.

use std::sync::Arc;
use std::time::SystemTime;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Context;
use super::args::MountArgs;
use super::daemon::{FromStarter, Starter};
use super::key_args::KeyArgs;
use super::life::Life;
use super::log::{self, Destination};
use super::passphrase::Given;
use super::report::Source;
use super::signals::Signals;
use crate::block::Geometry;
use crate::config::{MemoryPlan, check_cache_size, format_size};
use crate::control::{self, Listening, Service};
use crate::disk::FlushTo;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::fuse::{self, FuseMount, FuseOptions};
use crate::local::make_private;
use crate::open::{self, CacheDirectory, MountSpec, Mounted, Replay, TookOver};

/// How long a mount that is given up before it is ready may take to get so far that its claim can be released.
const GRACE: Duration = Duration::from_secs(5);

/// A mount as it was asked for; everything that can be checked without looking anywhere has been.
pub struct Request {
    spec: MountSpec,
    given: Given,
    fuse: FuseOptions,
    log: Destination,
}

/// What opens the disk, as the command line says.
///
/// # Errors
/// `Usage`.
pub fn given(args: &MountArgs) -> Result<Given> {
    let target = args.target.target_with(usize::from(args.requests))?;
    Ok(args.key.given(&target.url()))
}

/// Checks the options against each other.
///
/// # Errors
/// `Usage`.
pub fn request(args: &MountArgs, kernel: Vec<String>) -> Result<Request> {
    let target = args.target.target_with(usize::from(args.requests))?;
    let cache = match &args.cache_dir {
        None => CacheDirectory::Usual,
        Some(none) if none.as_os_str() == "none" => CacheDirectory::None,
        // A daemon leaves the directory that it is started in.
        Some(directory) => CacheDirectory::At(std::path::absolute(directory).map_err(|e| {
            let text = format!("'{}' is no cache directory", directory.display());
            Error::new(ErrorKind::Usage, text).with_source(e)
        })?),
    };
    let create = match args.size.filter(|_| args.create) {
        None => None,
        Some(size_bytes) => {
            let geometry = Geometry::new(size_bytes, args.new.block_size)?;
            MemoryPlan::divide(
                args.memory,
                args.max_dirty,
                usize::from(args.requests),
                geometry.block_bytes(),
            )?;
            if cache != CacheDirectory::None {
                check_cache_size(args.cache_size, geometry.block_bytes())?;
            }
            // A key may also be that of a disk which is there already.
            let key = match args.new.encrypt {
                true => &args.key,
                false => &KeyArgs::default(),
            };
            Some(args.new.disk(geometry, key, args.unsafe_no_fencing)?)
        }
    };
    if target.is_memory() && create.is_none() {
        return Err(Error::new(
            ErrorKind::Usage,
            "a disk in memory begins and ends with its mount: give --create and --size",
        ));
    }
    if cache == CacheDirectory::None && args.flush == Some(FlushTo::Journal) {
        return Err(Error::new(
            ErrorKind::Usage,
            "--flush journal needs a journal: leave out --cache-dir none",
        ));
    }
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let fuse = FuseOptions {
        filename: args.filename.clone(),
        mode: u32::from(args.mode),
        uid: args.uid.unwrap_or(user),
        gid: args.gid.unwrap_or(group),
        allow_other: args.allow_other,
        read_only: args.read_only,
        source: target.url(),
        extra: kernel,
        threads: 0,
    };
    let spec = MountSpec {
        access: args.key.access(&target.url(), &args.slot),
        encrypted: args.new.encrypt,
        target,
        create,
        read_only: args.read_only,
        list_blocks: args.list_blocks,
        take_over: args.take_over,
        accept_rollback: args.accept_rollback,
        unsafe_no_fencing: args.unsafe_no_fencing,
        commit_interval: args.commit_interval,
        max_dirty_bytes: args.max_dirty,
        max_lag: args.max_lag,
        cache: cache.clone(),
        cache_bytes: args.cache_size,
        journal_bytes: args.journal_size,
        discard_journal: args.discard_journal,
        flush: args.flush,
        memory_bytes: args.memory,
        mountpoint: args.mountpoint.clone(),
        progress: Arc::new(|_| {}),
    };
    Ok(Request {
        given: given(args)?,
        spec,
        fuse,
        log: Destination::choose(args.log.as_deref(), args.foreground)?,
    })
}

/// Mounts and serves until the mount has ended and the bucket has everything. As a daemon, lets go of the terminal once the disk
/// is ready.
///
/// # Errors
/// Why there is no mount; later, why not everything is in the bucket.
pub fn run(request: Request, as_daemon: bool, context: &Context) -> Result<()> {
    let starter = as_daemon.then(Starter::meet).transpose()?.map(Arc::new);
    log::start(&request.log, context.verbose)?;
    let logged_elsewhere = request.log != Destination::Stderr;
    let (url, mountpoint) = (request.spec.target.url(), request.spec.mountpoint.clone());
    // Threads inherit it from the one that starts them.
    fuse::become_io_flusher();
    let runtime = super::runtime(None)?;
    let outcome = runtime.block_on(serve(request, starter, context));
    runtime.shutdown_background();
    if let (Err(error), true) = (&outcome, logged_elsewhere) {
        error!(target: log::TOLD, url, mountpoint = %mountpoint.display(), error = %error.chain(), "ended");
    }
    outcome
}

async fn serve(
    mut request: Request,
    starter: Option<Arc<Starter>>,
    context: &Context,
) -> Result<()> {
    let mut signals = Signals::listen()?;
    if let Some(starter) = &starter {
        starter.listen().await?;
        request.spec.access.keyring = Arc::new(FromStarter {
            starter: Arc::clone(starter),
            given: request.given.clone(),
        });
    }
    let mountpoint = fuse::usable_directory(&request.spec.mountpoint)?;
    if starter.is_some() {
        // Wherever the user was, this process is not to keep that file system from being unmounted.
        std::env::set_current_dir("/").map_err(|e| {
            Error::new(ErrorKind::System, "cannot change to the root directory").with_source(e)
        })?;
    }
    request.spec.mountpoint.clone_from(&mountpoint);
    let sockets = control::directory();
    make_private(&sockets)?;
    let mut listening = Listening::bind(&sockets, &mountpoint)?;
    let mounted = mount(&mut request.spec, &mut signals, starter.as_deref(), context).await?;
    let url = request.spec.target.url();
    let wants_journal =
        request.spec.cache != CacheDirectory::None && !request.spec.target.is_memory();
    announce(&mounted, &url, wants_journal, context);
    let source = Arc::new(Source {
        disk: Arc::clone(&mounted.disk),
        traffic: Arc::clone(&mounted.traffic),
        image: mountpoint.join(&request.fuse.filename),
        mountpoint,
        since: Instant::now(),
    });
    let ready = async {
        let life = start_fuse(&source, &request.fuse).await?;
        listening.serve(Arc::clone(&life) as Arc<dyn Service>)?;
        context.reporter.line(&format!(
            "mounted {url} on {} ({}, {}{})",
            source.mountpoint.display(),
            source.image.display(),
            format_size(mounted.superblock.geometry.size_bytes()),
            if request.fuse.read_only {
                ", read-only"
            } else {
                ""
            },
        ));
        starter.as_deref().map_or(Ok(()), Starter::ready)?;
        Ok(life)
    };
    let life = match ready.await {
        Ok(life) => life,
        Err(error) => {
            release(&mounted).await;
            return Err(error);
        }
    };
    info!(url, mountpoint = %source.mountpoint.display(), "ready");
    let outcome = life.run(&mut signals).await;
    match &outcome {
        Ok(()) => info!("everything is in the bucket and the disk is released"),
        // Then it is not this session's to release.
        Err(error) if error.kind() == ErrorKind::Fenced => {}
        Err(_) => warn!("the disk is not released"),
    }
    listening.finish().await;
    outcome
}

/// Mounts the disk, unless it is told to stop before that is done: by a signal, or because whoever started it has gone.
async fn mount(
    spec: &mut MountSpec,
    signals: &mut Signals,
    starter: Option<&Starter>,
    context: &Context,
) -> Result<Mounted> {
    let stages = context.reporter.stages();
    spec.progress = stages.listener();
    let mounting = open::mount(spec);
    tokio::pin!(mounting);
    let gone = async {
        match starter {
            Some(starter) => starter.gone().await,
            None => std::future::pending().await,
        }
    };
    let reason = tokio::select! {
        mounted = &mut mounting => {
            stages.finish(mounted.is_ok());
            return mounted;
        }
        signal = signals.next() => signal,
        () = gone => "the end of the process that started it",
    };
    // A claim that has been put is better released than left for the next mount to find.
    if let Ok(Ok(mounted)) = timeout(GRACE, mounting).await {
        release(&mounted).await;
    }
    Err(Error::new(
        ErrorKind::System,
        format!("stopped by {reason} before the disk was ready"),
    ))
}

/// Gives a disk back that nobody has written to.
async fn release(mounted: &Mounted) {
    match timeout(GRACE, mounted.disk.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(error = %error.chain(), "the disk is not released"),
        Err(_) => warn!("the disk is not released: the store does not answer"),
    }
}

fn announce(mounted: &Mounted, url: &str, wants_journal: bool, context: &Context) {
    let geometry = mounted.superblock.geometry;
    let size = format_size(geometry.size_bytes());
    let block = u64::from(geometry.block_bytes());
    if mounted.created {
        let block = format_size(block);
        context
            .reporter
            .line(&format!("created {url}: {size} in blocks of {block}"));
    }
    if let Some(took_over) = &mounted.took_over {
        let line = from_whom(took_over, mounted.replay.as_ref());
        context.reporter.line(&line);
        warn!(target: log::TOLD, url, "{line}");
    }
    if let (Some(replay), None) = (&mounted.replay, &mounted.took_over) {
        let line = format!("going on with {}", kept(replay));
        context.reporter.line(&line);
        warn!(target: log::TOLD, url, "{line}");
    }
    if !mounted.journalled && !mounted.disk.is_read_only() && wants_journal {
        let line =
            "there is no journal on this machine, the log says why: flushes wait for the bucket";
        context.reporter.warning(line);
    }
    if let Some(rollback) = &mounted.rollback {
        let line = format!("{url} is not what it was, which is accepted: {rollback}");
        context.reporter.warning(&line);
        warn!(target: log::TOLD, url, "{line}");
    }
    if let Some(forgotten) = &mounted.forgotten {
        context.reporter.warning(forgotten);
        warn!(target: log::TOLD, url, "{forgotten}");
    }
    if !mounted.fences {
        let line = "this store cannot keep a second writer out; never mount the disk for writing on two machines";
        context.reporter.warning(line);
        warn!(target: log::TOLD, url, "{line}");
    }
    let stored = mounted.disk.status().store.stored_blocks;
    context.reporter.line(&format!(
        "found {stored} non-zero blocks ({} of {size})",
        format_size(stored.saturating_mul(block)),
    ));
}

/// What is said of a disk that its last session had not released.
fn from_whom(took_over: &TookOver, replay: Option<&Replay>) -> String {
    let from = &took_over.from;
    match took_over.was_dead {
        true => format!(
            "the last mount on this machine (process {}) has died: going on from its last commit{}",
            from.pid,
            replay.map_or_else(String::new, |replay| format!(" with {}", kept(replay))),
        ),
        false => {
            format!(
                "took the disk over: it was held by {}; nothing that session commits counts now",
                from.describe(SystemTime::now())
            )
        }
    }
}

/// What a journal had.
fn kept(replay: &Replay) -> String {
    format!(
        "what its journal in {} has kept: {} in {} writes",
        replay.location.display(),
        format_size(replay.written_bytes),
        replay.records
    )
}

async fn start_fuse(source: &Arc<Source>, options: &FuseOptions) -> Result<Arc<Life>> {
    let (shown, options) = (Arc::clone(source), options.clone());
    let start = move || {
        let figures = Arc::clone(&shown);
        let stats: fuse::StatsText = Arc::new(move || figures.report().text());
        FuseMount::start(Arc::clone(&shown.disk), stats, &shown.mountpoint, &options)
    };
    let fuse = spawn_blocking(start).await.map_err(|e| {
        Error::new(ErrorKind::System, "the thread that mounts has failed").with_source(e)
    })??;
    Ok(Life::new(Arc::clone(source), fuse))
}
