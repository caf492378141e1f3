//! Where log lines go: the standard error, a file, or syslog.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::error::{Error, ErrorKind, Result};

/// The variable that says what is logged, in place of `--verbose`.
pub const VARIABLE: &str = "BUCKETDISK_LOG";
/// The target of lines that say what the terminal is told anyway.
pub const TOLD: &str = "bucketdisk::told";
/// The target of lines that say what puts a disk at risk: they are seen also where nothing else is logged.
pub const BEWARE: &str = "bucketdisk::beware";
/// The socket of the system's log.
const SYSLOG: &str = "/dev/log";
/// The facility "system daemons" of RFC 3164, times eight.
const DAEMON_FACILITY: u8 = 3 << 3;

/// Where to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The standard error.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
    /// The system's log.
    Syslog,
}

impl Destination {
    /// What `--log` says; where it says nothing, the standard error in the foreground, and for a daemon `/var/log/bucketdisk.log`
    /// (root) or `bucketdisk/bucketdisk.log` below `$XDG_STATE_HOME` or `~/.local/state`.
    ///
    /// # Errors
    /// `Usage` where a daemon has no place for its log.
    pub fn choose(asked: Option<&Path>, foreground: bool) -> Result<Destination> {
        match asked {
            Some(name) if name == Path::new("syslog") => Ok(Destination::Syslog),
            Some(path) => Ok(Destination::File(path.to_owned())),
            None if foreground => Ok(Destination::Stderr),
            None => default_file().map(Destination::File).ok_or_else(|| {
                Error::new(
                    ErrorKind::Usage,
                    "there is no home directory to log in: say where with --log",
                )
            }),
        }
    }
}

fn default_file() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/log/bucketdisk.log"));
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("bucketdisk/bucketdisk.log"))
}

/// Begins to log. Call it once.
///
/// A daemon's warnings also go to the terminal it is started from, until it lets go of that.
///
/// # Errors
/// `System` or `Denied` where the place cannot be opened, `Usage` where [`VARIABLE`] is malformed.
pub fn start(destination: &Destination, verbose: u8) -> Result<()> {
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match destination {
        Destination::Stderr => Box::new(
            fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(io::stderr().is_terminal()),
        ),
        Destination::File(path) => Box::new(
            fmt::layer()
                .with_writer(Arc::new(open(path)?))
                .with_timer(TimeAndProcess)
                .with_ansi(false),
        ),
        Destination::Syslog => Box::new(
            fmt::layer()
                .with_writer(Syslog::connect()?)
                .with_ansi(false)
                .with_level(false)
                .without_time(),
        ),
    };
    let shown = (*destination != Destination::Stderr && io::stderr().is_terminal()).then(|| {
        fmt::layer()
            .with_writer(io::stderr)
            .without_time()
            .with_target(false)
            .with_filter(filter_fn(|event| {
                *event.level() <= Level::WARN && event.target() != TOLD
            }))
    });
    tracing_subscriber::registry()
        .with(layer.with_filter(filter(verbose, "info")?))
        .with(shown)
        .try_init()
        .map_err(cannot_start)
}

/// Begins to log for a verb that is done in one go: what [`BEWARE`] is for; on a terminal, all warnings; more where asked for.
///
/// # Errors
/// `Usage` where [`VARIABLE`] is malformed.
pub fn start_short(verbose: u8) -> Result<()> {
    let quiet = if io::stderr().is_terminal() {
        "warn"
    } else {
        "off"
    };
    let layer = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time();
    tracing_subscriber::registry()
        .with(layer.with_filter(filter(verbose, quiet)?))
        .try_init()
        .map_err(cannot_start)
}

/// Begins the lines of a file, which the daemons of several mounts may share.
struct TimeAndProcess;

impl FormatTime for TimeAndProcess {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        SystemTime.format_time(to)?;
        write!(to, " [{}]", std::process::id())
    }
}

fn cannot_start(cause: tracing_subscriber::util::TryInitError) -> Error {
    Error::new(ErrorKind::System, "cannot begin to log").with_source(cause)
}

fn filter(verbose: u8, quiet: &str) -> Result<EnvFilter> {
    let text = match (std::env::var(VARIABLE), verbose) {
        (Ok(text), _) if !text.is_empty() => text,
        (_, 0) => format!("warn,bucketdisk={quiet}"),
        (_, 1) => "warn,bucketdisk=debug".to_owned(),
        _ => "info,bucketdisk=trace".to_owned(),
    };
    let text = if text == "warn,bucketdisk=off" {
        format!("off,{BEWARE}=warn")
    } else {
        text
    };
    EnvFilter::try_new(&text).map_err(|e| {
        Error::new(
            ErrorKind::Usage,
            format!("{VARIABLE} is '{text}', which is not a filter: use one such as debug"),
        )
        .with_source(e)
    })
}

fn open(path: &Path) -> Result<std::fs::File> {
    let open = || -> io::Result<std::fs::File> {
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
    };
    open().map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::System,
        };
        let context = format!(
            "cannot open the log file {}: name another with --log, or use --log syslog",
            path.display()
        );
        Error::new(kind, context).with_source(e)
    })
}

/// Writes each event as one datagram of RFC 3164 to [`SYSLOG`]. The header has no time: the log daemon knows it, and the zone.
#[derive(Debug)]
struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Syslog {
    fn connect() -> Result<Syslog> {
        Syslog::at(Path::new(SYSLOG)).map_err(|e| {
            Error::new(
                ErrorKind::System,
                format!("there is no system log at {SYSLOG}: log to a file with --log FILE"),
            )
            .with_source(e)
        })
    }

    fn at(path: &Path) -> io::Result<Syslog> {
        let socket = UnixDatagram::unbound()?;
        // Only to see that it is there: sending by name survives a restart of the log daemon.
        UnixDatagram::unbound()?.connect(path)?;
        // Better a line lost than a daemon that waits for the log while it should serve a disk.
        socket.set_nonblocking(true)?;
        Ok(Syslog {
            socket,
            path: path.to_owned(),
        })
    }
}

/// One event on its way to the system's log.
struct Line<'a> {
    syslog: &'a Syslog,
    severity: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut datagram = format!(
            "<{}>bucketdisk[{}]: ",
            DAEMON_FACILITY | self.severity,
            std::process::id()
        )
        .into_bytes();
        datagram.extend_from_slice(text.trim_ascii_end());
        self.syslog.socket.send_to(&datagram, &self.syslog.path)?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            syslog: self,
            severity: 6,
        }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        let severity = match *event.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line {
            syslog: self,
            severity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_where_it_is_asked_to() {
        let file = Path::new("/x/y.log");
        assert_eq!(
            Destination::choose(Some(file), true).expect("file"),
            Destination::File(file.to_owned())
        );
        assert_eq!(
            Destination::choose(Some(Path::new("syslog")), false).expect("syslog"),
            Destination::Syslog
        );
        assert_eq!(
            Destination::choose(None, true).expect("foreground"),
            Destination::Stderr
        );
    }

    #[test]
    fn an_event_is_one_datagram_with_its_severity() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let daemon = UnixDatagram::bind(&path).expect("bind");
        let syslog = Syslog::at(&path).expect("connects");
        let layer = fmt::layer()
            .with_writer(syslog)
            .with_ansi(false)
            .with_level(false)
            .without_time()
            .with_target(false);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || tracing::warn!(block = 5, "is late"));
        let mut datagram = [0; 200];
        let length = daemon.recv(&mut datagram).expect("receives");
        assert_eq!(
            String::from_utf8_lossy(&datagram[..length]),
            format!("<28>bucketdisk[{}]: is late block=5", std::process::id())
        );
    }

    #[test]
    fn a_log_file_that_cannot_be_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().expect("directory");
        let error = open(directory.path()).expect_err("a directory");
        assert!(error.to_string().contains("--log"), "{error}");
    }
}
