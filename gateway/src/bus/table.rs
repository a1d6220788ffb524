//! The engine under the keyed state: a trait of four verbs, and sled (`=0.34.7`) behind it, with what sled needs to be
//! trusted: values kept under 4 KiB, every call guarded against its panics, and our own fdatasync, because sled's flush
//! is none. This file and `guard.rs` alone name sled.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Lock;

/// Bytes of sled's page cache: the state is small, the box has 512 MB.
const CACHE: u64 = 8 * 1024 * 1024;
/// Longest value sled is given; longer ones are split. Larger values moved sled into its power-cut faults.
const PIECE: usize = 3584;
/// Bytes given to sled in one atomic batch.
const BATCH: usize = 256 * 1024;
/// Value tags: the value itself, or the length of a value that lies in pieces.
const INLINE: u8 = 0;
const SPLIT: u8 = 1;
/// Key spaces: values, and pieces of values.
const VALUES: u8 = 1;
const PIECES: u8 = 2;
/// The key under which each batch notes how many values there are: silent loss shows at the next start.
const COUNT: &[u8] = &[0];
/// How sled says that its file is held, and how long that may last.
pub(super) const LOCKED: &str = "could not acquire lock";
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Name of the file, beside sled's folder, that says that sled panicked and must be set aside at the next start.
pub(super) const BROKEN: &str = "sled.broken";

/// Takes each key and value; an error ends the walk.
pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> Result<(), String>;

/// An ordered map on disk. Errors are texts: they are told and counted, not told apart.
pub(super) trait Table: Send + Sync + Debug {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String>;
    fn scan(&self, prefix: &[u8], each: Each<'_>) -> Result<(), String>;
    /// Sets and removes; each change is applied whole or not at all.
    fn apply(&self, changes: &[(Vec<u8>, Option<Bytes>)]) -> Result<(), String>;
    /// Makes everything applied durable.
    fn sync(&self) -> Result<(), String>;
}

/// sled in a folder.
#[derive(Debug)]
pub(super) struct SledTable {
    db: sled::Db,
    /// Our own descriptor of sled's one data file.
    file: File,
    folder: PathBuf,
    /// sled has panicked: nothing it says can be trusted any more.
    broken: AtomicBool,
    /// Values in the database.
    count: AtomicU64,
}

// === impl SledTable ===

impl SledTable {
    /// Opens or makes the database, and reads it once from end to end, so that damage shows now. Says whether it holds as
    /// many values as it should. May panic or hang on a damaged one: `guard.rs` calls it.
    pub(super) fn open(folder: &Path) -> Result<(Self, bool), String> {
        let config = sled::Config::new().path(folder).cache_capacity(CACHE).mode(sled::Mode::LowSpace);
        let config = config.flush_every_ms(None);
        let started = Instant::now();
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                // sled's own threads let go of the file a moment after their database is dropped.
                Err(error) if is_locked(&error) && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.to_string()),
            }
        };
        let file = File::open(folder.join("db")).map_err(|error| error.to_string())?;
        let (broken, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let table = Self { db, file, folder: folder.to_owned(), broken, count };
        let mut found: u64 = 0;
        let mut each = |_: &[u8], _| {
            found += 1;
            Ok(())
        };
        table.scan(&[], &mut each)?;
        table.count.store(found, Ordering::Relaxed);
        let noted = table.db.get(COUNT).map_err(|error| error.to_string())?;
        let noted = noted.map_or(Some(0), |noted| Some(u64::from_le_bytes(noted.as_ref().try_into().ok()?)));
        Ok((table, noted == Some(found)))
    }

    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        if self.broken.load(Ordering::Relaxed) {
            return Err("sled has panicked; it is set aside at the next start".to_owned());
        }
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Relaxed);
            let note = self.folder.with_file_name(BROKEN);
            let noted = File::create(&note).and_then(|file| file.sync_all());
            Err(format!("sled panicked in {}; noted: {noted:?}", self.folder.display()))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Bytes, String> {
        match value.split_first() {
            Some((&INLINE, value)) => Ok(Bytes::copy_from_slice(value)),
            Some((&SPLIT, len)) => {
                let len = len.try_into().map(u32::from_le_bytes).map_err(|_| damaged(key))? as usize;
                let mut whole = Vec::new();
                for at in 0..len.div_ceil(PIECE) {
                    let piece = self.db.get(piece_key(key, at)).map_err(|error| error.to_string())?;
                    whole.extend_from_slice(&piece.ok_or_else(|| damaged(key))?);
                }
                if whole.len() == len { Ok(Bytes::from(whole)) } else { Err(damaged(key)) }
            }
            _ => Err(damaged(key)),
        }
    }

    fn submit(&self, mut batch: sled::Batch) -> Result<(), String> {
        batch.insert(COUNT, &self.count.load(Ordering::Relaxed).to_le_bytes());
        self.db.apply_batch(batch).map_err(|error| error.to_string())
    }

    /// Adds one change to a batch; returns about how many bytes it is.
    fn change(&self, batch: &mut sled::Batch, key: &[u8], value: Option<&Bytes>) -> Result<usize, String> {
        let main = value_key(key);
        let old = self.db.get(&main).map_err(|error| error.to_string())?;
        let old_pieces = match old.as_deref().and_then(<[u8]>::split_first) {
            Some((&SPLIT, len)) => len.try_into().map_or(0, |len| u32::from_le_bytes(len) as usize).div_ceil(PIECE),
            _ => 0,
        };
        let mut pieces = 0;
        match value {
            None => batch.remove(main),
            Some(value) if value.len() <= PIECE => {
                batch.insert(main, [&[INLINE], value.as_ref()].concat());
            }
            Some(value) => {
                let len = (value.len() as u32).to_le_bytes();
                batch.insert(main, [&[SPLIT], &len[..]].concat());
                for piece in value.chunks(PIECE) {
                    batch.insert(piece_key(key, pieces), piece);
                    pieces += 1;
                }
            }
        }
        match (old.is_some(), value.is_some()) {
            (false, true) => self.count.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.count.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        for at in pieces..old_pieces {
            batch.remove(piece_key(key, at));
        }
        Ok(key.len() + value.map_or(0, Bytes::len) + 64)
    }
}

impl Table for SledTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        self.guarded(|| {
            let value = self.db.get(value_key(key)).map_err(|error| error.to_string())?;
            value.map(|value| self.read(key, &value)).transpose()
        })
    }

    fn scan(&self, prefix: &[u8], each: Each<'_>) -> Result<(), String> {
        self.guarded(|| {
            for entry in self.db.scan_prefix(value_key(prefix)) {
                let (key, value) = entry.map_err(|error| error.to_string())?;
                let key = key.get(1..).unwrap_or_default();
                each(key, self.read(key, &value)?)?;
            }
            Ok(())
        })
    }

    fn apply(&self, changes: &[(Vec<u8>, Option<Bytes>)]) -> Result<(), String> {
        self.guarded(|| {
            let mut batch = sled::Batch::default();
            let mut bytes = 0;
            for (key, value) in changes {
                bytes += self.change(&mut batch, key, value.as_ref())?;
                if bytes > BATCH {
                    self.submit(std::mem::take(&mut batch))?;
                    bytes = 0;
                }
            }
            self.submit(batch)
        })
    }

    fn sync(&self) -> Result<(), String> {
        self.guarded(|| {
            self.db.flush().map_err(|error| error.to_string())?;
            // sled's flush leaves the bytes in the kernel's cache: this makes them durable.
            self.file.sync_data().map_err(|error| error.to_string())
        })
    }
}

/// Whether the database is held by another process (or by this one, still): that is no damage.
fn is_locked(error: &sled::Error) -> bool {
    error.to_string().contains(LOCKED)
}

/// What is left when the disk can hold no database (a read-only disk): state in memory, which is never called durable.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    values: Lock<BTreeMap<Vec<u8>, Bytes>>,
}

// === impl MemoryTable ===

impl Table for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        Ok(self.values.lock().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], each: Each<'_>) -> Result<(), String> {
        let values = self.values.lock().clone();
        values
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .try_for_each(|(key, value)| each(key, value.clone()))
    }

    fn apply(&self, changes: &[(Vec<u8>, Option<Bytes>)]) -> Result<(), String> {
        let mut values = self.values.lock();
        for (key, value) in changes {
            match value {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        Err("the keyed state is in memory only: its disk cannot be written".to_owned())
    }
}

fn value_key(key: &[u8]) -> Vec<u8> {
    [&[VALUES], key].concat()
}

fn piece_key(key: &[u8], at: usize) -> Vec<u8> {
    let len = (key.len() as u32).to_be_bytes();
    [&[PIECES], &len[..], key, &(at as u32).to_be_bytes()[..]].concat()
}

fn damaged(key: &[u8]) -> String {
    format!("the value of key {} is damaged", key.escape_ascii())
}
