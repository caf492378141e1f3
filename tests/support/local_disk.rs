//! A local disk in memory that can lose power: what was not made durable is then there, or not, or in part, page by page.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bucketdisk::journal::{LocalFile, LocalFiles};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

type Page = [u8; PAGE as usize];

/// A disk.
#[derive(Debug)]
pub struct LocalDisk {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<Content>>>,
    /// Which names a loss of power leaves for sure.
    durable: BTreeMap<String, Arc<Mutex<Content>>>,
    random: StdRng,
    trouble: Trouble,
    /// So many calls until the power fails; `None`: not by itself.
    calls_left: Option<u32>,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// No more files than these.
    pub most_files: Option<usize>,
    /// Which of the next calls of `sync` fail: what was not durable never will be, though it can still be read.
    pub failing_syncs: Range<u32>,
    /// Which of the next writes fail.
    pub failing_writes: Range<u32>,
}

/// Whether a call fails, given which of the next ones do.
fn fails(which: &mut Range<u32>) -> bool {
    let now = which.contains(&0);
    *which = which.start.saturating_sub(1)..which.end.saturating_sub(1);
    now
}

#[derive(Debug, Default, Clone)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
    /// Of pages that were written since the last sync: all that they held since, the durable one first.
    versions: BTreeMap<u64, Vec<Page>>,
}

impl Content {
    fn page(&self, number: u64) -> Page {
        self.pages
            .get(&number)
            .copied()
            .unwrap_or([0; PAGE as usize])
    }
}

impl LocalDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Arc<LocalDisk> {
        Arc::new(LocalDisk {
            inner: Mutex::new(Inner {
                files: BTreeMap::new(),
                durable: BTreeMap::new(),
                random: StdRng::seed_from_u64(seed),
                trouble: Trouble::default(),
                calls_left: None,
            }),
        })
    }

    /// Has the power fail at a call: whoever makes it, or any after it, ends there. [`LocalDisk::lose_power`] is to follow.
    pub fn fail_power_after(&self, calls: u32) {
        self.inner.lock().calls_left = Some(calls);
    }

    /// Whether that has happened.
    pub fn is_without_power(&self) -> bool {
        self.inner.lock().calls_left == Some(0)
    }

    fn call(&self) {
        let left = &mut self.inner.lock().calls_left;
        *left = left.map(|n| n.saturating_sub(1));
        if *left == Some(0) {
            // Not a panic that would be told of: this is what is being tested.
            std::panic::resume_unwind(Box::new("there is no power"));
        }
    }

    /// The disk as a journal wants it. What is opened from it is cut off by a loss of power.
    pub fn files(self: &Arc<Self>) -> Arc<dyn LocalFiles> {
        Arc::new(Files(Arc::clone(self)))
    }

    /// Sets what goes wrong from now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.inner.lock().trouble = trouble;
    }

    /// Loses power: of every page that is not durable, any version that it had since it was may be there, or sectors of two of them.
    /// Files that are open have nothing to do with what is there afterwards.
    pub fn lose_power(&self) {
        let inner = &mut *self.inner.lock();
        inner.calls_left = None;
        let random = &mut inner.random;
        let mut survivors = inner.durable.clone();
        for (name, file) in &inner.files {
            if !survivors.contains_key(name) && random.random_bool(0.5) {
                survivors.insert(name.clone(), Arc::clone(file));
            }
        }
        // A file that was removed may be there or not.
        survivors.retain(|name, _| inner.files.contains_key(name) || random.random_bool(0.5));
        inner.files = survivors
            .into_iter()
            .map(|(name, file)| (name, Arc::new(Mutex::new(torn(&file.lock(), random)))))
            .collect();
        inner.durable = inner.files.clone();
    }

    /// Flips a bit of a file, durably. The byte has to be within it.
    pub fn flip(&self, name: &str, at: u64) {
        let inner = self.inner.lock();
        let mut file = inner.files[name].lock();
        let mut page = file.page(at / PAGE);
        page[(at % PAGE) as usize] ^= 0x10;
        file.pages.insert(at / PAGE, page);
    }

    /// Removes a file, durably.
    pub fn lose_file(&self, name: &str) {
        let inner = &mut *self.inner.lock();
        inner.files.remove(name);
        inner.durable.remove(name);
    }

    /// Bytes of a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let inner = self.inner.lock();
        let file = inner.files[name].lock();
        let pages = file.len.div_ceil(PAGE);
        (0..pages).flat_map(|number| file.page(number)).collect()
    }

    /// How many bytes of a file, in whole pages, were written and are durable.
    pub fn durable_bytes(&self, name: &str) -> u64 {
        let inner = self.inner.lock();
        let file = inner.files[name].lock();
        let durable = |page: &&u64| !file.versions.contains_key(page);
        PAGE * file.pages.keys().filter(durable).count() as u64
    }

    /// The names of the files, ascending.
    pub fn names(&self) -> Vec<String> {
        self.inner.lock().files.keys().cloned().collect()
    }
}

fn torn(file: &Content, random: &mut StdRng) -> Content {
    let mut left = Content {
        len: file.len,
        pages: file.pages.clone(),
        versions: BTreeMap::new(),
    };
    for (number, versions) in &file.versions {
        let mut all = versions.clone();
        all.push(file.page(*number));
        let pick = |random: &mut StdRng| all[random.random_range(0..all.len())];
        let mut page = pick(random);
        if random.random_bool(0.3) {
            let other = pick(random);
            for sector in 0..PAGE as usize / SECTOR {
                if random.random_bool(0.5) {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    page[range.clone()].copy_from_slice(&other[range]);
                }
            }
        }
        left.pages.insert(*number, page);
    }
    left
}

#[derive(Debug)]
struct Files(Arc<LocalDisk>);

impl LocalFiles for Files {
    fn location(&self) -> String {
        "a disk in memory".to_owned()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.names())
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn LocalFile>>> {
        let inner = self.0.inner.lock();
        Ok(inner.files.get(name).map(|content| {
            Arc::new(OpenFile {
                disk: Arc::clone(&self.0),
                content: Arc::clone(content),
            }) as Arc<dyn LocalFile>
        }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn LocalFile>> {
        {
            let inner = &mut *self.0.inner.lock();
            if inner.files.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let most = inner.trouble.most_files;
            if most.is_some_and(|most| inner.files.len() >= most) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let content = Content {
                len,
                ..Content::default()
            };
            inner
                .files
                .insert(name.to_owned(), Arc::new(Mutex::new(content)));
        }
        Ok(self.open(name)?.expect("was just made"))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let inner = &mut *self.0.inner.lock();
        match inner.files.remove(name) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        self.0.call();
        let inner = &mut *self.0.inner.lock();
        if fails(&mut inner.trouble.failing_syncs) {
            return Err(io::Error::other("the disk has failed"));
        }
        inner.durable = inner.files.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct OpenFile {
    disk: Arc<LocalDisk>,
    content: Arc<Mutex<Content>>,
}

impl LocalFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.lock();
        if offset + buf.len() as u64 > content.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = 0;
        while at < buf.len() {
            let place = offset + at as u64;
            let within = (place % PAGE) as usize;
            let some = (buf.len() - at).min(PAGE as usize - within);
            let page = content.page(place / PAGE);
            buf[at..at + some].copy_from_slice(&page[within..within + some]);
            at += some;
        }
        Ok(())
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.disk.call();
        if fails(&mut self.disk.inner.lock().trouble.failing_writes) {
            return Err(io::Error::other("the disk has failed"));
        }
        let data = parts.concat();
        let content = &mut *self.content.lock();
        content.len = content.len.max(offset + data.len() as u64);
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (number, within) = (place / PAGE, (place % PAGE) as usize);
            let some = (data.len() - at).min(PAGE as usize - within);
            let mut page = content.page(number);
            content.versions.entry(number).or_default().push(page);
            page[within..within + some].copy_from_slice(&data[at..at + some]);
            content.pages.insert(number, page);
            at += some;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call();
        {
            let inner = &mut *self.disk.inner.lock();
            if fails(&mut inner.trouble.failing_syncs) {
                return Err(io::Error::other("the disk has failed"));
            }
            self.content.lock().versions.clear();
        }
        // Done, but nobody hears of it.
        self.disk.call();
        Ok(())
    }
}
