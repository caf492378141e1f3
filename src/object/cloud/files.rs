//! A directory as a store: a local disk, a mounted NAS.
//!
//! Bodies are written by `object_store` to a staging file beside their place (`key#1`), synced, moved into place by a rename
//! (replace) or a hard link (create-if-absent), and the directory is synced: that is what makes a put whole, exclusive and
//! durable. Deletes are not synced: after a power cut a deleted object may be back, which the contract's callers expect of a late
//! delete anyway. A staging file that a crash left behind is no object, and is never listed.
//!
//! The directory itself is never made. It is opened when the client is made and kept open, which also keeps an ordinary `umount`
//! from taking it away. Before each call that lists, writes or deletes, and after it, its path must still lead to it: if a NAS is
//! gone, or another file system or an empty mount point is there instead, that is `Unreachable` (it may come back), never an empty
//! listing, and nothing is put beside the store.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::Root;
use super::errors::{Operation, of_io, of_system};
use crate::error::{Error, ErrorKind, Result};
use crate::object::{BATCH, ListPage, ObjectClient, ObjectEntry, PutOutcome};

/// Files that one call deletes at the same time: on a NAS each is a round trip.
const DELETES_AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct FileClient {
    store: LocalFileSystem,
    root: Root,
    directory: Arc<Directory>,
    location: String,
}

impl FileClient {
    /// Opens the directory.
    ///
    /// # Errors
    /// `NotFound` where it is not there or is no directory, `Denied` where it may not be read.
    pub(super) async fn connect(path: &Path, prefix: &str, location: String) -> Result<FileClient> {
        let owned = path.to_owned();
        let opened = blocking(move || {
            let path = std::fs::canonicalize(owned)?;
            let store = LocalFileSystem::new_with_prefix(&path).map_err(io::Error::other)?;
            Ok((Directory::open(path)?, store.with_fsync(true)))
        });
        let (directory, store) = opened.await.map_err(|error| cannot_open(path, &error))?;
        Ok(FileClient {
            store,
            root: Root::new(prefix),
            directory: Arc::new(directory),
            location,
        })
    }

    /// Whether the directory is still the one that was opened.
    async fn check(&self, operation: Operation<'_>) -> Result<()> {
        let directory = Arc::clone(&self.directory);
        match blocking(move || directory.is_there()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.gone(operation, "it is not the directory it was")),
            Err(error) => Err(self.gone(operation, &error.to_string())),
        }
    }

    fn gone(&self, operation: Operation<'_>, reason: &str) -> Error {
        let path = self.directory.path.display();
        operation.error(
            ErrorKind::Unreachable,
            format!("directory {path} is gone: {reason}; mount it again"),
        )
    }

    /// Stores a body, in the directory that was opened or not at all.
    async fn store(
        &self,
        operation: Operation<'_>,
        key: &str,
        body: Bytes,
        mode: PutMode,
    ) -> Result<PutOutcome> {
        let path = self.root.path(operation, key)?;
        self.check(operation).await?;
        let payload = PutPayload::from_bytes(body);
        let stored = self.store.put_opts(&path, payload, mode.into()).await;
        self.check(operation).await?;
        match stored {
            Ok(_) => Ok(PutOutcome::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutOutcome::Exists),
            Err(error) => Err(of_system(operation, error)),
        }
    }
}

#[async_trait]
impl ObjectClient for FileClient {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let operation = Operation::read(key);
        let path = self.root.path(operation, key)?;
        let body = async { self.store.get(&path).await?.bytes().await };
        match body.await {
            Ok(body) => Ok(body),
            Err(error) => {
                self.check(operation).await?;
                Err(of_system(operation, error))
            }
        }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.store(Operation::write(key), key, body, PutMode::Overwrite)
            .await
            .map(|_| ())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.store(Operation::create(key), key, body, PutMode::Create)
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        let Some(first) = keys.first() else {
            return Ok(());
        };
        let mut files = Vec::with_capacity(keys.len());
        for key in keys {
            let operation = Operation::delete(key);
            let path = self.root.path(operation, key)?;
            let file = self.store.path_to_filesystem(&path);
            files.push((
                key.clone(),
                file.map_err(|error| of_system(operation, error))?,
            ));
        }
        self.check(Operation::delete(first)).await?;
        let share = files.len().div_ceil(DELETES_AT_ONCE);
        let shares = files.chunks(share).map(|share| {
            let share = share.to_vec();
            blocking(move || Ok(delete_files(&share)))
        });
        let results = futures::future::join_all(shares).await;
        // what was not there counts as deleted only where the directory still is
        self.check(Operation::delete(first)).await?;
        for result in results {
            result.map_err(|error| of_io(Operation::delete(first), &error))??;
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let operation = Operation::list(folder);
        self.check(operation).await?;
        let top = self.directory.path.join(self.root.full(folder));
        let (within, after) = (folder.to_owned(), after.map(str::to_owned));
        let listed = blocking(move || {
            let mut walk = Walk {
                after,
                entries: Vec::new(),
            };
            walk.directory(&top, &within)?;
            Ok(walk.entries)
        });
        let listed = listed.await;
        self.check(operation).await?;
        let mut entries = listed.map_err(|error| of_io(operation, &error))?;
        let more = entries.len() > BATCH;
        entries.truncate(BATCH);
        Ok(ListPage { entries, more })
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}

/// The store's directory, held open.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    opened: File,
}

impl Directory {
    fn open(path: PathBuf) -> io::Result<Directory> {
        let opened = File::open(&path)?;
        if !opened.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        // a directory that cannot be listed is no use as a store: better to know now
        drop(std::fs::read_dir(&path)?);
        Ok(Directory { path, opened })
    }

    /// Whether the path leads to the open directory. While it is open its number cannot be given to another.
    fn is_there(&self) -> io::Result<bool> {
        let (named, opened) = (std::fs::metadata(&self.path)?, self.opened.metadata()?);
        Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino()))
    }
}

/// Collects objects in ascending order of key, one more than a page at most, without looking into directories that lie wholly
/// before the page.
struct Walk {
    after: Option<String>,
    entries: Vec<ObjectEntry>,
}

impl Walk {
    /// Walks a directory whose keys begin with `folder`, which is empty or ends in `/`. What vanishes meanwhile is not there.
    fn directory(&mut self, path: &Path, folder: &str) -> io::Result<()> {
        let listing = match std::fs::read_dir(path) {
            Err(error) if is_absent(&error) => return Ok(()),
            listing => listing?,
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry?;
            // names that are not UTF-8 are nobody's keys
            let Ok(mut name) = entry.file_name().into_string() else {
                continue;
            };
            let kind = match entry.file_type()? {
                link if link.is_symlink() => match std::fs::metadata(entry.path()) {
                    Err(error) if is_absent(&error) => continue,
                    target => target?.file_type(),
                },
                kind => kind,
            };
            if kind.is_dir() {
                name.push('/');
            } else if !kind.is_file() || is_staging(&name) {
                continue;
            }
            names.push(name);
        }
        names.sort_unstable();
        for name in names {
            if self.entries.len() > BATCH {
                return Ok(());
            }
            let key = format!("{folder}{name}");
            let before = self.after.as_deref().is_some_and(|after| {
                key.as_str() <= after && !(key.ends_with('/') && after.starts_with(&key))
            });
            if before {
                continue;
            }
            if key.ends_with('/') {
                self.directory(&path.join(&name), &key)?;
                continue;
            }
            match std::fs::metadata(path.join(&name)) {
                Err(error) if is_absent(&error) => {}
                metadata => {
                    let metadata = metadata?;
                    self.entries.push(ObjectEntry {
                        key,
                        size_bytes: metadata.len(),
                        modified: metadata.modified()?,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a file is a body on its way: a name, `#` and digits.
fn is_staging(name: &str) -> bool {
    name.split_once('#')
        .is_some_and(|(_, tail)| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit()))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Deletes files, all of them even if some fail; answers the first failure.
fn delete_files(files: &[(String, PathBuf)]) -> Result<()> {
    let mut result = Ok(());
    for (key, path) in files {
        if let Err(error) = std::fs::remove_file(path)
            && !is_absent(&error)
        {
            result = result.and(Err(of_io(Operation::delete(key), &error)));
        }
    }
    result
}

fn cannot_open(path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            format!("no such directory {path}: check the URL, or make it"),
        ),
        io::ErrorKind::NotADirectory => Error::new(
            ErrorKind::NotFound,
            format!("{path} is not a directory: name one"),
        ),
        io::ErrorKind::PermissionDenied => Error::new(
            ErrorKind::Denied,
            format!("directory {path} may not be read: mend its permissions"),
        ),
        _ => Error::new(
            ErrorKind::System,
            format!("cannot open directory {path}: {error}"),
        ),
    }
}

/// Runs system calls where they may wait.
async fn blocking<T: Send + 'static>(
    calls: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(calls).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
