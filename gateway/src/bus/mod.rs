//! The thing-model bus on disk: what was acknowledged is here, and what is gone from here is said.
//!
//! Two stores under one roof (`store.path`):
//!
//! | place | holds | made durable by |
//! |---|---|---|
//! | `log/` | the messages, by class, in numbered order: our own segment files | group commit, fdatasync |
//! | `sled/` | keyed state: cursors, registry, retained messages, latest values | flush and our own fdatasync, within 1 s; of cursors every 10 s or 1,000 numbers |
//! | `sled.export` | rescue copy of the keyed state | written whole and renamed, at stop and at most every 5 minutes |
//! | `lock` | nothing: one process holds it | |
//!
//! # What holds
//!
//! 1. A record's number is given at `append`, by class, from 1, without holes. After a restart it continues behind the
//!    highest number on disk, known to a reader, noted in the keyed state (every 10 s) or possibly torn off. A number is never given twice in an epoch.
//!    So that a start knows how far each class went, none is ever without a file.
//! 2. The epoch is a random number made with the store, kept in `log/epoch`, in sled and in each segment. When the log's
//!    files are lost, a new epoch starts.
//! 3. A record counts (is published by [`Bus::durable`], is shown to readers) only after fdatasync of its file. A new file
//!    has its header and its folder entry on disk before its first record can count.
//! 4. Every number is decided: on disk, or failed. A reader gets every number exactly once, in order, as a record or
//!    inside a gap.
//! 5. What went unread is named in the control class, also when a kill came between: which numbers are named on disk is
//!    noted in the keyed state, and a start names again what lies between cursors and log (twice rather than never).
//! 6. A start always goes on. Damage is stepped over, set aside, and told as [`Finding`].
//!
//! # Segment files, byte by byte
//!
//! `log/CLASS-EPOCH-FIRST.seg`: CLASS `ctl`, `event`, `live` or `hist`; EPOCH 16 hex digits; FIRST 20 decimal digits, the
//! first number the file may hold. All numbers little-endian. CRC is CRC-32C (Castagnoli, RFC 3720).
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0 | 8 | `SGLOGSEG` |
//! | 8 | 2 | version, 2; files of version 1, which have no templates, are read and not appended to |
//! | 10 | 1 | class, 0 to 3 |
//! | 11 | 1 | 0 |
//! | 12 | 8 | epoch |
//! | 20 | 8 | first number |
//! | 28 | 8 | when the file was begun, microseconds since 1970 by the box's clock; 0: unknown |
//! | 36 | 4 | CRC of bytes 0 to 35 |
//!
//! Then frames to the end of the file:
//!
//! | offset | bytes | frame |
//! |---|---|---|
//! | 0 | 4 | bits 0 to 28: length of the payload, at most 524,288; bit 29: record that leans on a template; 30: template; 31: gap marker |
//! | 4 | 4 | CRC over the epoch (8 bytes), the payload, then the length word and the number |
//! | 8 | 8 | number of the record; of a gap marker the first lost number; of a template the number of the first record behind it |
//! | 16 | | payload: the record; of a gap marker the last lost number (8 bytes) and the reason (UTF-8) |
//! | 16 | 8 | of a template its label; of a record that leans on one, that one's label |
//! | 24 | | template, or record |
//!
//! A template stands in a segment before the first record that leans on it: no segment needs another one. What records and
//! templates say is `device_models::wire`'s affair.
//!
//! Behind the last frame of a file that is appended to may be zeros, up to 128 KiB: they are written ahead of small batches,
//! so that these change no file's length. A clean stop and a full segment cut them off.
//!
//! `log/epoch`: `SGEPOCH1`, epoch (8), CRC of both (4).
//!
//! # Limits
//!
//! Records 512 KiB; 4 MiB waiting for the writer (then `append` waits); 8 MiB of keyed changes (then `put` refuses); 64
//! readers; segments `segment_mib` (at most an eighth of the cap); all segments together `cap_mib`; `free_min_mib` left
//! free. At the cap, below the free space and on a full disk whole segments go, the oldest first: of `hist`, then of `live`,
//! `event`, `ctl`, but as long as another has more than its share (`share_percent`) no class is brought below its own. What
//! is older than `ttl_hours` goes too. A gap record for each goes into `ctl`. Segments that every reader has durably passed
//! go at once.
//!
//! Must not be in here: what a record says (`device_models::wire`; gap records are the one exception), who reads it.

mod ages;
mod commit;
mod cursors;
mod disk;
mod durable;
mod evict;
mod export;
mod fetch;
mod figures;
mod guard;
mod keyed;
mod log;
mod passed;
mod reader;
mod recover;
mod repair;
mod segment;
mod survey;
mod table;
mod templates;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_models::Class;
use device_models::wire::Record;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

pub use durable::Durable;
pub use figures::{Happening, Stat};
pub use keyed::Keyed;
pub use reader::{Entry, Reader, Road};
pub use repair::{Checkup, Damage};
pub use segment::RECORD_MAX;
pub use survey::{ClassSurvey, CursorSurvey, Stored, Survey};

use crate::{config, threads};
use commit::{Buffer, Errand, Window, Writer};
use cursors::Cursors;
use disk::{Disk, RealDisk};
use log::{Files, Limits};
use table::Table;

const MIB: u64 = 1024 * 1024;
/// Reads of all readers that may wait for the reading thread; each reader has one at a time.
const JOBS_MAX: usize = 64;
/// How long a start waits for the process before it to let go of the store.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why the bus cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("cannot open the store in {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("another process holds the store in {}", path.display())]
    Locked { path: PathBuf },
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{bytes} bytes are too long for the store")]
    TooLong { bytes: usize },
    #[error("cannot mend {}: {error}", path.display())]
    Mend { path: PathBuf, error: io::Error },
    #[error("{} {seq} could not be written to disk", class.topic())]
    Failed { class: Class, seq: u64 },
    #[error("the bus is closed")]
    Closed,
    #[error("`{name}` is no name for a reader: 1 to 128 bytes")]
    ReaderName { name: String },
    #[error("more than {max} readers")]
    TooManyReaders { max: usize },
    #[error("keyed state: {0}")]
    Keyed(String),
    #[error("{bytes} bytes of keyed changes wait for the disk already")]
    Full { bytes: usize },
}

/// What a start repaired, set aside or lost. Worth a line in the log and an alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// Half a record at the end of a segment was cut off: a power cut's ordinary trace.
    TornTail,
    DamagedRecords,
    DamagedHeader,
    /// Numbers that readers know are gone from the disk.
    LostRecords,
    LostSegment,
    /// A file or folder was moved aside whole.
    Quarantined,
    KeyedRestored,
    NewEpoch,
    /// The disk refused a repair; the log is read, and written when the disk allows it.
    ReadOnly,
}

/// What a repair found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    pub checkup: Checkup,
    /// What the start that followed repaired.
    pub findings: Vec<Finding>,
    /// Numbers that gap records name to upstream: of those lost, what not every reader had.
    pub told: u64,
}

/// What the bus stands on: the box's own, or a simulated one.
struct Ground {
    disk: Arc<dyn Disk>,
    table: Box<dyn Table>,
    /// The keyed state was lost or is of a rescue copy.
    lossy: bool,
    /// How long changes of the keyed state are collected before they are made durable.
    collect: Duration,
}

/// The bus. Cheap to clone; the threads behind it end when the last clone is gone, or at [`close`](Self::close).
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

/// What clones and readers share.
#[derive(Debug)]
struct Inner {
    epoch: u64,
    buffer: Arc<Buffer>,
    durable: watch::Receiver<Durable>,
    files: Arc<Files>,
    cursors: Arc<Cursors>,
    keyed: Keyed,
    jobs: mpsc::Sender<fetch::Job>,
}

// === impl Bus ===

impl Bus {
    /// Opens or makes the store. Blocks; needs no runtime.
    pub fn open(config: &config::Store) -> Result<(Self, Vec<Finding>), BusError> {
        let path = &config.path;
        std::fs::create_dir_all(path).map_err(|error| BusError::Open { path: path.clone(), error })?;
        let lock = lock(path)?;
        let mut findings = Vec::new();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (table, lossy) = guard::open(&*disk, path, &mut findings)?;
        let ground = Ground { disk, table, lossy, collect: keyed::COLLECT };
        let bus = Self::assemble(config, ground, Some(lock), &mut findings)?;
        for finding in &findings {
            warn!(kind = ?finding.kind, "{}", finding.text);
        }
        Ok((bus, findings))
    }

    fn assemble(
        config: &config::Store,
        Ground { disk, table, lossy, collect }: Ground,
        lock: Option<File>,
        findings: &mut Vec<Finding>,
    ) -> Result<Self, BusError> {
        let open_error = |error| BusError::Open { path: config.path.clone(), error };
        let export = config.path.join("sled.export");
        let (keyed, keyed_writer) = keyed::open(table, Arc::clone(&disk), &export, collect);
        let lock = Arc::new(lock);
        let held = Arc::clone(&lock);
        threads::thread("bus-keyed", move || {
            keyed_writer.run();
            drop(held);
        })
        .map_err(open_error)?;

        let cap = config.cap_mib.max(8) * MIB;
        let limits = Limits {
            segment: (config.segment_mib.max(1) * MIB).min(cap / 8),
            cap,
            free_min: config.free_min_mib * MIB,
            share_percent: config.share_percent.by_class(),
            ttl_seconds: config.ttl_hours.by_class().map(|hours| hours * 3600),
        };
        let entropy = getrandom::u64().map_err(|error| open_error(io::Error::other(error)))?;
        let known =
            if lossy { recover::Known { marks: [0; 4], ..cursors::known(&keyed) } } else { cursors::known(&keyed) };
        let found = recover::open(Arc::clone(&disk), &config.path.join("log"), limits, known, entropy, findings)?;
        let mut log = found.log;
        let epoch = log.epoch;
        let files = Arc::clone(&log.files);
        let (oldest, through) = edges(&files);
        let cursors = Arc::new(Cursors::open(keyed.clone(), epoch)?);
        if !found.new_epoch {
            for (class, span) in Class::ALL.into_iter().zip(cursors.untold(oldest, lossy)) {
                if let Some((first, last)) = span {
                    log.tell_again(class, first, last, if lossy { "restored" } else { "cap" });
                }
            }
        }
        cursors.mark(log.marks());
        let window = Window { time: Duration::from_millis(config.commit_ms), bytes: config.commit_kib as usize * 1024 };
        let buffer = Arc::new(Buffer::new(epoch, found.next, limits.segment, window));
        let (sender, durable) = watch::channel(Durable::from_disk(through));
        let writer = Writer::new(log, Arc::clone(&buffer), sender, Arc::clone(&cursors));
        threads::thread("bus-log", move || {
            writer.run();
            drop(lock);
        })
        .map_err(open_error)?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let fetcher = fetch::Fetcher::new(Arc::clone(&files));
        threads::thread("bus-read", move || fetcher.run(queue)).map_err(open_error)?;
        Ok(Self { inner: Arc::new(Inner { epoch, buffer, durable, files, cursors, keyed, jobs }) })
    }

    /// Takes a record in and gives its number as soon as it is buffered; waits only while the buffer is full. Whoever
    /// acknowledges it waits for [`settled`](Self::settled) first.
    pub async fn append(&self, class: Class, record: &[u8]) -> Result<u64, BusError> {
        self.inner.buffer.append(class, None, record, None).await
    }

    /// As [`append`](Self::append), of a record that may lean on a template: that is kept with it. `within`: the longest
    /// that it waits for others before a batch is made durable; `None`: `store.commit_ms`. The shortest of those who wait
    /// counts for all of them.
    pub async fn append_record(
        &self,
        class: Class,
        record: &Record,
        within: Option<Duration>,
    ) -> Result<u64, BusError> {
        self.inner.buffer.append(class, record.template.as_ref(), &record.bytes, within).await
    }

    /// How far the log is durable; changes after each commit. Ask it with [`Durable::settled`], not by comparing: a
    /// number below `through` may have failed.
    pub fn durable(&self) -> watch::Receiver<Durable> {
        self.inner.durable.clone()
    }

    /// Resolves when the record is on disk, or with an error when it is lost. Cancel safe.
    pub async fn settled(&self, class: Class, seq: u64) -> Result<(), BusError> {
        let mut durable = self.durable();
        let done = durable.wait_for(|durable| durable.settled(class, seq).is_some()).await;
        match done.map(|durable| durable.settled(class, seq)) {
            Ok(Some(true)) => Ok(()),
            Ok(_) => Err(BusError::Failed { class, seq }),
            Err(_) => Err(BusError::Closed),
        }
    }

    /// The store's identity: with gateway, class and number it names a record for ever.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// A durable reader; a new name starts at the oldest record. Its cursor keeps segments from going (up to the cap),
    /// also while nobody reads, until [`forget`](Self::forget).
    pub fn reader(&self, name: &str) -> Result<Reader, BusError> {
        Reader::open(Arc::clone(&self.inner), name)
    }

    /// Drops a reader's cursor: for an upstream that was taken out of the configuration for good.
    pub fn forget(&self, name: &str) -> Result<(), BusError> {
        self.inner.cursors.forget(name)
    }

    /// By class: how many durable messages this reader has not passed. 0 of a name that has no cursor.
    pub fn backlog(&self, name: &str) -> [u64; 4] {
        let inner = &self.inner;
        let through = inner.durable.borrow().through;
        let Some(passed) = inner.cursors.of(name) else { return [0; 4] };
        let oldest = inner.oldest();
        Class::ALL.map(|class| {
            let mut passed = passed[index(class)].clone();
            passed.pass(1, oldest[index(class)].saturating_sub(1));
            passed.left(through[index(class)])
        })
    }

    /// Gives up every record of these classes, read or not; gap records of reason `purge` name what not every reader had
    /// passed. Returns how many numbers went.
    pub async fn purge(&self, classes: &[Class]) -> Result<u64, BusError> {
        let (reply, done) = oneshot::channel();
        self.inner.buffer.send(Errand::Purge { classes: classes.to_vec(), reply });
        done.await.map_err(|_| BusError::Closed)
    }

    /// Checks the whole store and mends it: files that are damaged are kept aside and written anew with what is whole, the
    /// keyed state is checked and restored as a start does it, and gap records of reason `corrupt` name what not every
    /// reader had. `done` is told the bytes of each file that is read. The store must not be in use.
    pub async fn repair(config: &config::Store, done: &mut dyn FnMut(u64)) -> Result<Repaired, BusError> {
        let held = lock(&config.path)?;
        let checkup = Survey::open(&config.path)?.check(done)?;
        let losses = checkup.mend()?;
        drop(held);
        let (bus, findings) = Self::open(config)?;
        let (reply, told) = oneshot::channel();
        bus.inner.buffer.send(Errand::Tell { losses, reply });
        let told = told.await;
        bus.close().await;
        Ok(Repaired { checkup, findings, told: told.map_err(|_| BusError::Closed)? })
    }

    pub fn keyed(&self) -> Keyed {
        self.inner.keyed.clone()
    }

    pub fn stat(&self) -> Stat {
        Stat::of(&self.inner)
    }

    /// Has each commit and each loss told as it happens, from the writing thread: `observer` must be quick. There is one;
    /// losses found at the start are told at once.
    pub fn observe(&self, observer: impl Fn(Happening) + Send + Sync + 'static) {
        self.inner.files.figures.observe(Box::new(observer));
    }

    /// Writes everything that waits, cursors and export included, and ends the threads. Later calls answer `Closed`.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.buffer.close();
        let mut durable = inner.durable.clone();
        // The writer owns the sender: an error says that it is done.
        while durable.changed().await.is_ok() {}
        inner.cursors.save_last();
        inner.keyed.close();
        inner.keyed.closed().await;
    }
}

// === impl Inner ===

impl Inner {
    fn oldest(&self) -> [u64; 4] {
        edges(&self.files).0
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cursors.save_last();
        self.buffer.close();
        self.keyed.close();
    }
}

/// By class: the oldest number on disk and the highest.
fn edges(files: &Files) -> ([u64; 4], [u64; 4]) {
    let table = files.table.lock();
    let through = Class::ALL.map(|class| table.class(class).back().map_or(0, |segment| segment.last));
    (Class::ALL.map(|class| table.oldest(class)), through)
}

/// Keeps a second process out: two writers would be the end of the store.
fn lock(path: &Path) -> Result<File, BusError> {
    let open_error = |error| BusError::Open { path: path.to_owned(), error };
    let name = path.join("lock");
    // On a read-only disk the file that is there can still be locked.
    let file = File::options().create(true).truncate(false).write(true).open(&name).or_else(|_| File::open(&name));
    let file = file.map_err(open_error)?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(_) if started.elapsed() < LOCK_PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return Err(BusError::Locked { path: path.to_owned() }),
        }
    }
}

fn index(class: Class) -> usize {
    usize::from(class.number())
}

/// A mutex whose poison is ignored: what it guards is whole after each statement, and a panic elsewhere must not stop the
/// bus.
#[derive(Debug, Default)]
struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
