//! Where passphrases and keys come from: a file, the standard input, a command, systemd's credentials, or somebody at the terminal.
//!
//! They are read by the process that the user started, which has the terminal and the standard input; a daemon asks that one through
//! `daemon::Starter`. Never from the command line, and never from a variable of the environment: others can read both.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::key_args::{DiskArgs, KdfArgs, KeyArgs, NewKeyArgs, SlotArgs};
use super::log::BEWARE;
use crate::codec::slots::SlotKind;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{Access, KdfWish, Keyring, Secret, Target};
use crate::secret::{Passphrase, guard_process};

/// The longest passphrase and key file, in bytes.
const MOST_BYTES: usize = 1 << 20;
/// Where systemd has put what `LoadCredential=` and its kin name.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What was given on the command line.
#[derive(Debug, Clone)]
pub struct Given {
    source: Option<Source>,
    /// Look among systemd's credentials where nothing was given.
    credentials: bool,
    /// What is opened, for the prompt.
    what: String,
    /// The options that could have been given.
    options: &'static str,
}

#[derive(Debug, Clone)]
enum Source {
    PassphraseFile(PathBuf),
    KeyFile(PathBuf),
    Command(String),
}

fn source(
    passphrase_file: Option<&PathBuf>,
    key_file: Option<&PathBuf>,
    command: Option<&String>,
) -> Option<Source> {
    let passphrase_file = passphrase_file.cloned().map(Source::PassphraseFile);
    let key_file = key_file.cloned().map(Source::KeyFile);
    passphrase_file
        .or(key_file)
        .or(command.cloned().map(Source::Command))
}

impl KeyArgs {
    /// What opens the disk at a URL.
    pub fn given(&self, url: &str) -> Given {
        Given {
            source: source(
                self.passphrase_file.as_ref(),
                self.key_file.as_ref(),
                self.passphrase_command.as_ref(),
            ),
            credentials: true,
            what: format!("passphrase for {url}"),
            options: "--passphrase-file, --key-file or --passphrase-command",
        }
    }

    /// The same as a verb needs it that runs in one process.
    pub fn access(&self, url: &str, slot: &SlotArgs) -> Access {
        Access {
            keyring: Arc::new(self.given(url)),
            slot: slot.key_slot,
        }
    }

    /// Whether anything was given.
    pub fn is_empty(&self) -> bool {
        self.passphrase_file.is_none()
            && self.key_file.is_none()
            && self.passphrase_command.is_none()
    }
}

impl DiskArgs {
    /// The disk, and what opens it.
    ///
    /// # Errors
    /// `Usage`, of the target.
    pub fn target_and_access(&self) -> Result<(Target, Access)> {
        let target = self.target.target()?;
        let access = self.key.access(&target.url(), &self.slot);
        Ok((target, access))
    }
}

impl NewKeyArgs {
    /// What is going to open the disk at a URL.
    pub fn given(&self, url: &str) -> Given {
        Given {
            source: source(
                self.new_passphrase_file.as_ref(),
                self.new_key_file.as_ref(),
                self.new_passphrase_command.as_ref(),
            ),
            credentials: false,
            what: format!("new passphrase for {url}"),
            options: "--new-passphrase-file, --new-key-file or --new-passphrase-command",
        }
    }
}

impl KdfArgs {
    /// The same for `open`.
    pub fn wish(&self) -> KdfWish {
        KdfWish {
            time: self.kdf_time,
            memory_bytes: self.kdf_memory,
        }
    }
}

impl Given {
    /// Gets at what opens a disk. May wait for somebody to type.
    ///
    /// # Errors
    /// `NoKey` where nothing was given and there is no terminal, or it is empty; `System`, `Denied`, `NotFound` where what was given cannot
    /// be had.
    pub fn existing_now(&self, disk: Uuid, attempt: u32) -> Result<Secret> {
        guard_process();
        if let Some(secret) = self.without_asking(Some(disk))? {
            return Ok(secret);
        }
        let prompt = match attempt {
            0 => format!("{}: ", self.what),
            _ => format!("that does not open the disk; {}: ", self.what),
        };
        self.typed(&prompt)
    }

    /// Gets at what is going to open a disk.
    ///
    /// # Errors
    /// As for [`Given::existing_now`]; `Usage` where somebody has not typed the same twice.
    pub fn fresh_now(&self) -> Result<Secret> {
        guard_process();
        if let Some(secret) = self.without_asking(None)? {
            return Ok(secret);
        }
        let first = self.typed(&format!("{}: ", self.what))?;
        let second = self.typed("the same once more: ")?;
        if first.passphrase.bytes() != second.passphrase.bytes() {
            let text = "these are two different passphrases: nothing was changed";
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(first)
    }

    fn without_asking(&self, disk: Option<Uuid>) -> Result<Option<Secret>> {
        let secret = |passphrase, kind| Secret {
            passphrase,
            kind,
            typed: false,
        };
        let passphrase = match &self.source {
            Some(Source::KeyFile(path)) => {
                let content = content(path)?;
                not_empty(&content, "the key file", path)?;
                return Ok(Some(secret(content, SlotKind::KeyFile)));
            }
            Some(Source::PassphraseFile(path)) if path.as_os_str() == "-" => {
                let line = line_of_stdin()?;
                not_empty(&line, "the first line of", "the standard input".as_ref())?;
                line
            }
            Some(Source::PassphraseFile(path)) => first_line_of_file(path)?,
            Some(Source::Command(command)) => printed_by(command)?,
            None => match self.credential(disk) {
                Some(path) => first_line_of_file(&path)?,
                None => return Ok(None),
            },
        };
        Ok(Some(secret(passphrase, SlotKind::Passphrase)))
    }

    /// The credential for a disk, or else for any.
    fn credential(&self, disk: Option<Uuid>) -> Option<PathBuf> {
        let directory = std::env::var_os(CREDENTIALS).filter(|_| self.credentials)?;
        let of_disk = disk.map(|id| format!("bucketdisk.{id}.passphrase"));
        let names = of_disk
            .into_iter()
            .chain(["bucketdisk.passphrase".to_owned()]);
        names
            .map(|name| Path::new(&directory).join(name))
            .find(|path| path.exists())
    }

    /// Whether there is a credential for any disk.
    fn has_credentials(&self) -> bool {
        let directory = std::env::var_os(CREDENTIALS).filter(|_| self.credentials);
        let entries = directory.and_then(|directory| std::fs::read_dir(directory).ok());
        entries.into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("bucketdisk.") && name.ends_with(".passphrase")
        })
    }

    /// Asks on the terminal.
    fn typed(&self, prompt: &str) -> Result<Secret> {
        if !io::stdin().is_terminal() {
            let text = format!(
                "there is no terminal to ask for the {} on: give {}",
                self.what, self.options
            );
            return Err(Error::new(ErrorKind::NoKey, text));
        }
        let typed = rpassword::prompt_password(prompt).map_err(|e| {
            let text = "cannot ask for a passphrase on the terminal";
            Error::new(ErrorKind::NoKey, text).with_source(e)
        })?;
        let passphrase = Passphrase::new(typed.into_bytes());
        if passphrase.bytes().is_empty() {
            return Err(Error::new(ErrorKind::NoKey, "the passphrase is empty"));
        }
        Ok(Secret {
            passphrase,
            kind: SlotKind::Passphrase,
            typed: true,
        })
    }
}

#[async_trait]
impl Keyring for Given {
    fn is_given(&self, disk: Uuid) -> bool {
        self.source.is_some() || self.credential(Some(disk)).is_some()
    }

    fn expects_encryption(&self) -> bool {
        self.source.is_some() || self.has_credentials()
    }

    async fn existing(&self, disk: Uuid, attempt: u32) -> Result<Secret> {
        let given = self.clone();
        waited_for(move || given.existing_now(disk, attempt)).await
    }

    async fn fresh(&self) -> Result<Secret> {
        let given = self.clone();
        waited_for(move || given.fresh_now()).await
    }
}

/// Waits on a thread where nothing else has to go on.
async fn waited_for(get: impl FnOnce() -> Result<Secret> + Send + 'static) -> Result<Secret> {
    tokio::task::spawn_blocking(get).await.map_err(|e| {
        let text = "the thread that asks for a passphrase has failed";
        Error::new(ErrorKind::System, text).with_source(e)
    })?
}

/// All bytes of a file that others should not be able to read.
fn content(path: &Path) -> Result<Passphrase> {
    let failed = |e: io::Error| {
        let kind = match e.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::System,
        };
        Error::new(kind, format!("cannot read {}", path.display())).with_source(e)
    };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.is_file() && found.mode() & 0o077 != 0 {
        tracing::warn!(
            target: BEWARE,
            file = %path.display(),
            mode = format!("{:04o}", found.mode() & 0o7777),
            "others than its owner can read what opens the disk: chmod 600"
        );
    }
    let read = read_whole(file).map_err(failed)?;
    read.ok_or_else(|| too_long(&path.display().to_string()))
}

/// At most [`MOST_BYTES`], in a buffer that never moves; `None` where there are more.
fn read_whole(mut from: impl Read) -> io::Result<Option<Passphrase>> {
    let mut buffer = Zeroizing::new(vec![0; MOST_BYTES + 1]);
    let mut length = 0;
    loop {
        let room = buffer.get_mut(length..).unwrap_or_default();
        match from.read(room) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let read = buffer.get(..length).unwrap_or_default();
    Ok((length <= MOST_BYTES).then(|| Passphrase::new(read.to_vec())))
}

/// The first line, without its end.
fn first_line(content: &Passphrase) -> Passphrase {
    let line = content.bytes().split(|byte| *byte == b'\n').next();
    Passphrase::new(line.unwrap_or_default().to_vec())
}

fn first_line_of_file(path: &Path) -> Result<Passphrase> {
    let line = first_line(&content(path)?);
    not_empty(&line, "the first line of", path)?;
    Ok(line)
}

/// One line of the standard input, and no byte more.
fn line_of_stdin() -> Result<Passphrase> {
    let failed = |e: io::Error| {
        Error::new(ErrorKind::System, "cannot read the standard input").with_source(e)
    };
    let mut line = Zeroizing::new(Vec::with_capacity(MOST_BYTES));
    let mut byte = [0];
    while line.len() < MOST_BYTES {
        // Unbuffered: what follows is not ours, and no copy stays behind.
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend(byte),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    byte.zeroize();
    Ok(Passphrase::new(line.to_vec()))
}

/// The first line that a shell command prints.
fn printed_by(command: &str) -> Result<Passphrase> {
    let failed = |e: io::Error| {
        Error::new(ErrorKind::System, "cannot run the passphrase command").with_source(e)
    };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let printed = child.stdout.take().map(read_whole);
    // Whoever prints more than is read is not waited for.
    let status = child.wait().map_err(failed)?;
    let printed = printed.transpose().map_err(failed)?.flatten();
    if !status.success() {
        let text = format!("the passphrase command has failed ({status})");
        return Err(Error::new(ErrorKind::NoKey, text));
    }
    let line = first_line(&printed.ok_or_else(|| too_long("what the passphrase command prints"))?);
    not_empty(
        &line,
        "the first line of",
        "what the passphrase command printed".as_ref(),
    )?;
    Ok(line)
}

fn not_empty(passphrase: &Passphrase, what: &str, place: &Path) -> Result<()> {
    if passphrase.bytes().is_empty() {
        let text = format!("{what} {} is empty", place.display());
        return Err(Error::new(ErrorKind::NoKey, text));
    }
    Ok(())
}

fn too_long(what: &str) -> Error {
    let text = format!("{what} is longer than {MOST_BYTES} bytes, the most that a key has");
    Error::new(ErrorKind::Usage, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_the_first_line_without_its_end() {
        for (content, line) in [
            (&b"secret"[..], &b"secret"[..]),
            (b"secret\n", b"secret"),
            (b"secret \r\nmore\n", b"secret \r"),
            (b"\nsecret", b""),
            (b"", b""),
        ] {
            let content = Passphrase::new(content.to_vec());
            assert_eq!(first_line(&content).bytes(), line);
        }
    }

    #[test]
    fn what_is_too_long_is_refused_and_what_just_fits_is_not() {
        let fits = read_whole(io::repeat(7).take(MOST_BYTES as u64)).expect("reads");
        assert_eq!(fits.expect("fits").bytes().len(), MOST_BYTES);
        let more = read_whole(io::repeat(7).take(MOST_BYTES as u64 + 1)).expect("reads");
        assert!(more.is_none());
    }

    #[test]
    fn a_command_s_exit_status_counts() {
        let line = printed_by("printf 'one\\ntwo'").expect("prints");
        assert_eq!(line.bytes(), b"one");
        for command in ["echo secret; exit 3", "true", "/nonexistent-program"] {
            let error = printed_by(command).expect_err(command);
            assert_eq!(error.kind(), ErrorKind::NoKey, "{command}");
            assert!(!error.chain().contains("secret"), "{error:?}");
        }
    }
}
