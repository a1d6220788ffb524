//! Keyed state: small slow things looked up by name (registry, sessions, retained messages, latest values, cursors).
//!
//! A change is taken into memory at once, seen by every read at once, and written by one thread, together with its
//! neighbours, at most a second later; [`Keyed::flush`] waits until it is durable. Not for queues: what a device says goes
//! to the log.
//!
//! Must not be in here: which engine keeps it (`table.rs`), how it is opened and rescued (`guard.rs`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{error, warn};

use super::disk::Disk;
use super::table::Table;
use super::{BusError, Lock, export};

/// Bytes of changes that may wait for the disk; beyond it a change is refused.
const PENDING_MAX: usize = 8 * 1024 * 1024;
/// Longest key with its tree's name, and longest value. A value is meant to be small; a retained message is the longest.
const KEY_MAX: usize = 64 * 1024;
const VALUE_MAX: usize = 1024 * 1024;
/// How long changes are collected.
pub(super) const COLLECT: Duration = Duration::from_secs(1);
/// The least time between exports, and how much a day they may write.
const EXPORT_EVERY: Duration = Duration::from_secs(300);
/// A wait without an end.
const LONG: Duration = Duration::from_secs(1 << 30);
const EXPORT_BYTES_A_DAY: u64 = 500 * 1024 * 1024;

/// State looked up by key, in named trees. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Gone once closed, so that the next start finds the engine's files free.
    table: Lock<Option<Arc<dyn Table>>>,
    changes: Lock<Changes>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
}

/// A changed value, or its removal.
type Change = Option<Bytes>;

#[derive(Debug, Default)]
struct Changes {
    pending: BTreeMap<Vec<u8>, Change>,
    /// What the thread is writing: still newer than the table.
    writing: BTreeMap<Vec<u8>, Change>,
    bytes: usize,
    /// Number of the newest change.
    newest: u64,
    since: Option<Instant>,
    urgent: bool,
    closing: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Changes up to this number are durable.
    through: u64,
    failures: u64,
    closed: bool,
}

// === impl Keyed ===

impl Keyed {
    /// The value of a key; a change not yet on disk is seen too.
    pub fn get(&self, tree: &str, key: &[u8]) -> Result<Option<Bytes>, BusError> {
        let full = full_key(tree, key)?;
        {
            let changes = self.shared.changes.lock();
            if let Some(change) = changes.pending.get(&full).or_else(|| changes.writing.get(&full)) {
                return Ok(change.clone());
            }
        }
        self.shared.table()?.get(&full).map_err(BusError::Keyed)
    }

    /// Sets a key. Returns the change's number, which [`through`](Self::through) reaches when it is durable.
    pub fn put(&self, tree: &str, key: &[u8], value: &[u8]) -> Result<u64, BusError> {
        if value.len() > VALUE_MAX {
            return Err(BusError::TooLong { bytes: value.len() });
        }
        self.change(full_key(tree, key)?, Some(Bytes::copy_from_slice(value)))
    }

    pub fn remove(&self, tree: &str, key: &[u8]) -> Result<u64, BusError> {
        self.change(full_key(tree, key)?, None)
    }

    /// All keys of a tree that start with `prefix`, in order, with their values. Reads them all into memory: for trees
    /// that their owner bounds.
    pub fn scan(&self, tree: &str, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Bytes)>, BusError> {
        let full = full_key(tree, prefix)?;
        let skip = full.len() - prefix.len();
        // What is changing is read before the table: a change written in between is then seen twice, not missed.
        let changes: Vec<(Vec<u8>, Change)> = {
            let changes = self.shared.changes.lock();
            let older = changes.writing.range(full.clone()..);
            let newer = changes.pending.range(full.clone()..);
            let starts = |entry: &(&Vec<u8>, &Change)| entry.0.starts_with(&full);
            let copy = |(key, change): (&Vec<u8>, &Change)| (key.clone(), change.clone());
            older.take_while(starts).map(copy).chain(newer.take_while(starts).map(copy)).collect()
        };
        let mut found = BTreeMap::new();
        let mut take = |key: &[u8], value: Bytes| {
            found.insert(key.to_vec(), value);
            Ok(())
        };
        self.shared.table()?.scan(&full, &mut take).map_err(BusError::Keyed)?;
        for (key, change) in changes {
            match change {
                Some(value) => found.insert(key, value),
                None => found.remove(&key),
            };
        }
        Ok(found.into_iter().map(|(key, value)| (key.get(skip..).unwrap_or_default().to_vec(), value)).collect())
    }

    /// Resolves when every change made before the call is durable. Cancel safe.
    pub async fn flush(&self) -> Result<(), BusError> {
        let mut progress = self.shared.progress.subscribe();
        let failures = progress.borrow_and_update().failures;
        let newest = {
            let mut changes = self.shared.changes.lock();
            changes.urgent = true;
            changes.newest
        };
        self.shared.wake.notify_one();
        let done = progress.wait_for(|p| p.through >= newest || p.failures > failures || p.closed).await;
        match done {
            Ok(progress) if progress.through >= newest => Ok(()),
            Ok(progress) if progress.closed => Err(BusError::Closed),
            _ => Err(BusError::Keyed("the keyed state could not be written".to_owned())),
        }
    }

    /// Changes up to this number are durable.
    pub fn through(&self) -> u64 {
        self.shared.progress.borrow().through
    }

    /// Bytes of changes waiting for the disk, and failed writes since the start.
    pub(super) fn stat(&self) -> (usize, u64) {
        (self.shared.changes.lock().bytes, self.shared.progress.borrow().failures)
    }

    pub(super) fn close(&self) {
        self.shared.changes.lock().closing = true;
        self.shared.wake.notify_all();
    }

    pub(super) async fn closed(&self) {
        // An error means that the sender is gone, and with it the thread.
        drop(self.shared.progress.subscribe().wait_for(|progress| progress.closed).await);
    }

    fn change(&self, key: Vec<u8>, change: Change) -> Result<u64, BusError> {
        let mut changes = self.shared.changes.lock();
        if changes.closing {
            return Err(BusError::Closed);
        }
        let size = size_of(&key, &change);
        if changes.bytes + size > PENDING_MAX {
            changes.urgent = true;
            self.shared.wake.notify_one();
            return Err(BusError::Full { bytes: changes.bytes });
        }
        changes.bytes += size;
        changes.newest += 1;
        let newest = changes.newest;
        let first = changes.since.is_none();
        changes.since.get_or_insert_with(Instant::now);
        if changes.bytes > PENDING_MAX / 2 {
            changes.urgent = true;
        }
        let key_len = key.len();
        if let Some(old) = changes.pending.insert(key, change) {
            changes.bytes -= key_len + old.map_or(0, |value| value.len());
        }
        if first || changes.urgent {
            self.shared.wake.notify_one();
        }
        Ok(newest)
    }
}

// === impl Shared ===

impl Shared {
    fn table(&self) -> Result<Arc<dyn Table>, BusError> {
        self.table.lock().clone().ok_or(BusError::Closed)
    }
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct KeyedWriter {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    export: PathBuf,
    collect: Duration,
    exported: Instant,
    export_pause: Duration,
    changed: bool,
}

/// A front for `table`, and the writer that has to be run in a thread of its own.
pub(super) fn open(
    table: Box<dyn Table>,
    disk: Arc<dyn Disk>,
    export: &Path,
    collect: Duration,
) -> (Keyed, KeyedWriter) {
    let shared = Arc::new(Shared {
        table: Lock::new(Some(Arc::from(table))),
        changes: Lock::new(Changes::default()),
        wake: Condvar::new(),
        progress: watch::Sender::new(Progress::default()),
    });
    let writer = KeyedWriter {
        shared: Arc::clone(&shared),
        disk,
        export: export.to_owned(),
        collect,
        exported: Instant::now(),
        export_pause: EXPORT_EVERY,
        changed: false,
    };
    (Keyed { shared }, writer)
}

// === impl KeyedWriter ===

impl KeyedWriter {
    /// Runs until [`Keyed::close`], then writes what is left and an export.
    pub(super) fn run(mut self) {
        while let Some(newest) = self.next() {
            match self.write() {
                Ok(()) => {
                    let mut changes = self.shared.changes.lock();
                    let gone: usize = changes.writing.iter().map(|(key, change)| size_of(key, change)).sum();
                    changes.bytes -= gone;
                    changes.writing.clear();
                    drop(changes);
                    self.changed = true;
                    self.shared.progress.send_modify(|progress| progress.through = newest);
                }
                Err(error) => {
                    error!(%error, "the keyed state could not be written");
                    self.take_back();
                    self.shared.progress.send_modify(|progress| progress.failures += 1);
                    if self.rest() {
                        break;
                    }
                }
            }
            if self.exported.elapsed() >= self.export_pause {
                self.write_export();
            }
        }
        if self.changed {
            self.write_export();
        }
        let table = self.shared.table.lock().take();
        drop(table);
        self.shared.progress.send_modify(|progress| progress.closed = true);
    }

    /// Waits for changes that are due and moves them to `writing`; returns the newest's number. `None` to stop.
    fn next(&mut self) -> Option<u64> {
        let shared = Arc::clone(&self.shared);
        let mut changes = shared.changes.lock();
        loop {
            let due = changes.since.map(|since| since + self.collect);
            match due {
                Some(due) if changes.urgent || changes.closing || Instant::now() >= due => {
                    changes.writing = std::mem::take(&mut changes.pending);
                    changes.since = None;
                    changes.urgent = false;
                    return Some(changes.newest);
                }
                None if changes.closing => return None,
                Some(due) => {
                    let pause = due.saturating_duration_since(Instant::now());
                    changes = shared.wake.wait_timeout(changes, pause).unwrap_or_else(PoisonError::into_inner).0;
                }
                None => {
                    // A flush with nothing to write is answered by what is durable already.
                    changes.urgent = false;
                    let pause = if self.changed { self.export_pause } else { LONG };
                    let pause = pause.saturating_sub(self.exported.elapsed()).max(self.collect);
                    changes = shared.wake.wait_timeout(changes, pause).unwrap_or_else(PoisonError::into_inner).0;
                    if self.changed && changes.since.is_none() && self.exported.elapsed() >= self.export_pause {
                        drop(changes);
                        self.write_export();
                        changes = shared.changes.lock();
                    }
                }
            }
        }
    }

    fn write(&self) -> Result<(), String> {
        // The map is only read here and only changed by this thread: its copy is of references to the values.
        let writing: Vec<(Vec<u8>, Change)> = {
            let changes = self.shared.changes.lock();
            changes.writing.iter().map(|(key, change)| (key.clone(), change.clone())).collect()
        };
        let table = self.shared.table().map_err(|error| error.to_string())?;
        table.apply(&writing)?;
        table.sync()
    }

    /// Puts what could not be written back among the changes, below newer ones.
    fn take_back(&self) {
        let mut changes = self.shared.changes.lock();
        for (key, change) in std::mem::take(&mut changes.writing) {
            let size = size_of(&key, &change);
            match changes.pending.entry(key) {
                Entry::Vacant(slot) => drop(slot.insert(change)),
                Entry::Occupied(_) => changes.bytes -= size,
            }
        }
        changes.since.get_or_insert_with(Instant::now);
    }

    /// Sits out the pause after a failure. True when it is time to stop.
    fn rest(&self) -> bool {
        let changes = self.shared.changes.lock();
        let rested = self.shared.wake.wait_timeout_while(changes, self.collect, |changes| !changes.closing);
        rested.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    fn write_export(&mut self) {
        self.exported = Instant::now();
        let Ok(table) = self.shared.table() else { return };
        match export::write(&*self.disk, &self.export, &*table) {
            Ok(bytes) => {
                self.changed = false;
                let pause = Duration::from_secs(bytes.saturating_mul(24 * 3600) / EXPORT_BYTES_A_DAY);
                self.export_pause = pause.max(EXPORT_EVERY);
            }
            Err(error) => warn!(%error, "the keyed state could not be exported"),
        }
    }
}

fn size_of(key: &[u8], change: &Change) -> usize {
    key.len() + change.as_ref().map_or(0, Bytes::len)
}

/// One byte of the tree's length, the tree, the key: trees cannot run into each other.
pub(super) fn full_key(tree: &str, key: &[u8]) -> Result<Vec<u8>, BusError> {
    let (Ok(len), true) = (u8::try_from(tree.len()), tree.len() + key.len() < KEY_MAX) else {
        return Err(BusError::TooLong { bytes: tree.len() + key.len() });
    };
    let mut full = Vec::with_capacity(1 + tree.len() + key.len());
    full.push(len);
    full.extend_from_slice(tree.as_bytes());
    full.extend_from_slice(key);
    Ok(full)
}
