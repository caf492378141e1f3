//! A local disk in memory that can lose power: what was not made durable is then there, or not, or in part, page by page.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bucketdisk::journal::{LocalFile, LocalFiles};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// Shared with the copies of the disk that have it, too.
type Page = Arc<[u8; PAGE as usize]>;

/// Is told of every call that changes something, before it does and after it is durable.
pub type OnCall = Arc<dyn Fn() + Send + Sync>;

/// A disk.
#[derive(Debug)]
pub struct LocalDisk {
    inner: Mutex<Inner>,
}

/// Files by name.
type Named = BTreeMap<String, Arc<Mutex<Content>>>;

struct Inner {
    files: Named,
    /// Which names a loss of power leaves for sure.
    durable: Named,
    random: StdRng,
    trouble: Trouble,
    has_failed: bool,
    /// So many calls until the power fails; `None`: not by itself.
    calls_left: Option<u32>,
    on_call: Option<OnCall>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.files.keys())
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// No more files than these.
    pub most_files: Option<usize>,
    /// Which of the next calls of `sync` fail, as `fdatasync` does on Linux: of what was not durable any part may be, and stays so
    /// however often the file is synced again, unless it is written again. Until the power fails, it can be read.
    pub failing_syncs: Range<u32>,
    /// Which of the next writes fail.
    pub failing_writes: Range<u32>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
    /// Of pages that were written since the last sync: all that they held since, the durable one first.
    versions: BTreeMap<u64, Vec<Page>>,
    /// The same of pages that a sync has failed for, and that no sync looks at any more.
    adrift: BTreeMap<u64, Vec<Page>>,
}

impl Content {
    /// A sync has failed.
    fn lose_track(&mut self) {
        for (number, versions) in std::mem::take(&mut self.versions) {
            self.adrift.entry(number).or_default().extend(versions);
        }
    }

    /// What a page that is about to be written may be on the disk.
    fn versions(&mut self, number: u64) -> &mut Vec<Page> {
        let adrift = self.adrift.remove(&number);
        let versions = self.versions.entry(number).or_default();
        versions.extend(adrift.into_iter().flatten());
        versions
    }

    fn is_durable(&self, number: u64) -> bool {
        !self.versions.contains_key(&number) && !self.adrift.contains_key(&number)
    }

    fn page(&self, number: u64) -> Page {
        let page = self.pages.get(&number).cloned();
        page.unwrap_or_else(|| Arc::new([0; PAGE as usize]))
    }
}

impl LocalDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Arc<LocalDisk> {
        LocalDisk::of(Named::new(), Named::new(), seed)
    }

    fn of(files: Named, durable: Named, seed: u64) -> Arc<LocalDisk> {
        Arc::new(LocalDisk {
            inner: Mutex::new(Inner {
                files,
                durable,
                random: StdRng::seed_from_u64(seed),
                trouble: Trouble::default(),
                has_failed: false,
                calls_left: None,
                on_call: None,
            }),
        })
    }

    /// Another disk with the same files, as durable as they are here, and without trouble.
    pub fn fork(&self, seed: u64) -> Arc<LocalDisk> {
        let (files, durable) = self.inner.lock().copies();
        LocalDisk::of(files, durable, seed)
    }

    /// Has every such call told of, by whoever makes it.
    pub fn on_call(&self, told: OnCall) {
        self.inner.lock().on_call = Some(told);
    }

    /// The program is killed: what it has open has nothing to do with what is there afterwards, which is all that it wrote.
    pub fn kill(&self) {
        let inner = &mut *self.inner.lock();
        (inner.files, inner.durable) = inner.copies();
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
        let told = {
            let inner = &mut *self.inner.lock();
            let left = &mut inner.calls_left;
            *left = left.map(|n| n.saturating_sub(1));
            if *left == Some(0) {
                // Not a panic that would be told of: this is what is being tested.
                std::panic::resume_unwind(Box::new("there is no power"));
            }
            inner.on_call.clone()
        };
        if let Some(told) = told {
            told();
        }
    }

    /// The disk as a journal wants it. What is opened from it is cut off by a loss of power.
    pub fn files(self: &Arc<Self>) -> Arc<dyn LocalFiles> {
        Arc::new(Files(Arc::clone(self)))
    }

    /// Sets what goes wrong from now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        let inner = &mut *self.inner.lock();
        (inner.trouble, inner.has_failed) = (trouble, false);
    }

    /// Whether a call has failed since the trouble was set.
    pub fn has_failed(&self) -> bool {
        self.inner.lock().has_failed
    }

    /// Whether there is no space for another file.
    pub fn is_full(&self) -> bool {
        let inner = self.inner.lock();
        let most = inner.trouble.most_files;
        most.is_some_and(|most| inner.files.len() >= most)
    }

    /// Loses power: of every page that is not durable, any version that it had since it was may be there, or sectors of two of them, or
    /// one up to any byte and another from there on.
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
        Arc::make_mut(&mut page)[(at % PAGE) as usize] ^= 0x10;
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
        (0..pages).flat_map(|number| *file.page(number)).collect()
    }

    /// How many bytes of a file, in whole pages, were written and are durable.
    pub fn durable_bytes(&self, name: &str) -> u64 {
        let inner = self.inner.lock();
        let file = inner.files[name].lock();
        let durable = |page: &&u64| file.is_durable(**page);
        PAGE * file.pages.keys().filter(durable).count() as u64
    }

    /// The names of the files, ascending.
    pub fn names(&self) -> Vec<String> {
        self.inner.lock().files.keys().cloned().collect()
    }
}

impl Inner {
    /// Whether a call fails, given which of the next ones do.
    fn fails(&mut self, which: fn(&mut Trouble) -> &mut Range<u32>) -> io::Result<()> {
        let next = which(&mut self.trouble);
        let now = next.contains(&0);
        *next = next.start.saturating_sub(1)..next.end.saturating_sub(1);
        if !now {
            return Ok(());
        }
        self.has_failed = true;
        Err(io::Error::other("the disk has failed"))
    }

    /// Copies of all files, those that are durable under their names the same ones.
    fn copies(&self) -> (Named, Named) {
        let copy = |file: &Arc<Mutex<Content>>| Arc::new(Mutex::new(file.lock().clone()));
        let files = self.files.iter();
        let files: Named = files
            .map(|(name, file)| (name.clone(), copy(file)))
            .collect();
        let durable = self.durable.iter();
        let durable = durable.map(|(name, file)| {
            let same = self.files.get(name).is_some_and(|f| Arc::ptr_eq(f, file));
            let copied = if same {
                Arc::clone(&files[name])
            } else {
                copy(file)
            };
            (name.clone(), copied)
        });
        let durable = durable.collect();
        (files, durable)
    }
}

fn torn(file: &Content, random: &mut StdRng) -> Content {
    let mut left = Content {
        len: file.len,
        pages: file.pages.clone(),
        ..Content::default()
    };
    for (number, versions) in file.versions.iter().chain(&file.adrift) {
        let mut all = versions.clone();
        all.push(file.page(*number));
        let pick = |random: &mut StdRng| all[random.random_range(0..all.len())].clone();
        let (mut page, other) = (pick(random), pick(random));
        let bytes = Arc::make_mut(&mut page);
        match random.random_range(0..10) {
            0..3 => {
                for sector in 0..PAGE as usize / SECTOR {
                    if random.random_bool(0.5) {
                        let range = sector * SECTOR..(sector + 1) * SECTOR;
                        bytes[range.clone()].copy_from_slice(&other[range]);
                    }
                }
            }
            3 => {
                let from = random.random_range(0..PAGE as usize);
                bytes[from..].copy_from_slice(&other[from..]);
            }
            _ => {}
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
        inner.fails(|trouble| &mut trouble.failing_syncs)?;
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
        self.disk
            .inner
            .lock()
            .fails(|trouble| &mut trouble.failing_writes)?;
        let data = parts.concat();
        let content = &mut *self.content.lock();
        content.len = content.len.max(offset + data.len() as u64);
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (number, within) = (place / PAGE, (place % PAGE) as usize);
            let some = (data.len() - at).min(PAGE as usize - within);
            let mut page = content.page(number);
            content.versions(number).push(Arc::clone(&page));
            Arc::make_mut(&mut page)[within..within + some].copy_from_slice(&data[at..at + some]);
            content.pages.insert(number, page);
            at += some;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call();
        {
            let inner = &mut *self.disk.inner.lock();
            let content = &mut *self.content.lock();
            inner
                .fails(|trouble| &mut trouble.failing_syncs)
                .inspect_err(|_| content.lose_track())?;
            content.versions.clear();
        }
        // Done, but nobody hears of it.
        self.disk.call();
        Ok(())
    }
}
