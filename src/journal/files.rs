//! What a journal needs of the machine's disk. A trait, so that tests can lose power.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// The files of one journal.
pub trait LocalFiles: Debug + Send + Sync {
    /// Where they are, for people.
    fn location(&self) -> String;

    /// Their names, in no order.
    ///
    /// # Errors
    /// Those of the file system.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Opens a file for reading and writing; `None` where there is none.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn LocalFile>>>;

    /// Makes a file of `len` zero bytes for which there is space, so that writing to it cannot fail for the want of it. Its name is
    /// durable after [`LocalFiles::sync_names`].
    ///
    /// # Errors
    /// `StorageFull`, `QuotaExceeded` or `FileTooLarge` where there is no space: then there is no file. `AlreadyExists`.
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn LocalFile>>;

    /// Removes a file. Who has it open keeps it.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which files there are.
    ///
    /// # Errors
    /// Those of the file system. What was not durable may never be then.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file.
pub trait LocalFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Those of the file system; `UnexpectedEof` beyond the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes the parts one after the other from `offset`. Durable, in whatever order, at the latest after [`LocalFile::sync`].
    ///
    /// # Errors
    /// Those of the file system; some of it may be written then.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Makes everything durable that was written before the call.
    ///
    /// # Errors
    /// Those of the file system. What was not durable may never be then, though a later call succeeds.
    fn sync(&self) -> io::Result<()>;
}
