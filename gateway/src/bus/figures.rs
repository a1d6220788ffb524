//! What the bus counts: for the status page, the metrics, and whoever watches.
//!
//! Must not be in here: how the figures are named outside (`metrics/table.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use device_models::Class;

use super::{Inner, Lock, index};

/// Figures for the status page and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    pub epoch: u64,
    /// Bytes and number of segment files.
    pub bytes: u64,
    pub segments: usize,
    /// Bytes left on the disk to an unprivileged process, as last looked at.
    pub free_bytes: u64,
    /// By class: bytes of segment files.
    pub class_bytes: [u64; 4],
    /// By class: oldest number on disk, highest durable number.
    pub oldest: [u64; 4],
    pub through: [u64; 4],
    /// By class, since the start: numbers given, records that came to be on disk, records that could not be written.
    pub appended: [u64; 4],
    pub settled: [u64; 4],
    pub failed: [u64; 4],
    /// By class: the most seconds that the oldest record can be old which not every reader has passed; 0 without one.
    pub oldest_seconds: [u64; 4],
    /// Numbers given up before every reader had passed them, by reason, since the start.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Bytes waiting for the writer; how often an append waited for room; batches that could not be written.
    pub buffered_bytes: usize,
    pub waits: u64,
    pub failures: u64,
    /// Segments let go of unread; damaged numbers met on reading.
    pub evicted: u64,
    pub corrupt: u64,
    /// Bytes of keyed changes waiting for the disk; keyed writes that failed.
    pub keyed_bytes: usize,
    pub keyed_failures: u64,
    pub readers: Vec<String>,
}

/// Something that a figure is made of, told as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A batch was written and made durable (or failed) in this time.
    Committed(Duration),
    /// So many numbers were given up before every reader had passed them.
    Dropped { reason: &'static str, count: u64 },
}

type Observer = Box<dyn Fn(Happening) + Send + Sync>;

/// The counters behind [`Stat`], shared by the writer and everyone who asks.
#[derive(Default)]
pub(super) struct Figures {
    settled: [AtomicU64; 4],
    failed: [AtomicU64; 4],
    free: AtomicU64,
    dropped: Lock<BTreeMap<&'static str, u64>>,
    observer: Lock<Option<Observer>>,
}

// === impl Figures ===

impl Figures {
    pub(super) fn settled(&self, class: Class, records: u64) {
        self.settled[index(class)].fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, class: Class, records: u64) {
        self.failed[index(class)].fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn free(&self, bytes: u64) {
        self.free.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: &'static str, count: u64) {
        let observer = self.observer.lock();
        *self.dropped.lock().entry(reason).or_default() += count;
        if let Some(observer) = &*observer {
            observer(Happening::Dropped { reason, count });
        }
    }

    pub(super) fn committed(&self, took: Duration) {
        if let Some(observer) = &*self.observer.lock() {
            observer(Happening::Committed(took));
        }
    }

    /// What was dropped before somebody watched (at the start) is told now.
    pub(super) fn observe(&self, observer: Observer) {
        let mut slot = self.observer.lock();
        for (reason, count) in self.dropped.lock().iter() {
            observer(Happening::Dropped { reason, count: *count });
        }
        *slot = Some(observer);
    }
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

// === impl Stat ===

impl Stat {
    pub(super) fn of(inner: &Inner) -> Self {
        let (buffered_bytes, waits, appended) = inner.buffer.stat();
        let (keyed_bytes, keyed_failures) = inner.keyed.stat();
        let (through, failures) = {
            let durable = inner.durable.borrow();
            (durable.through, durable.failures)
        };
        let passed = inner.cursors.latest();
        let figures = &inner.files.figures;
        let read = |counters: &[AtomicU64; 4]| counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        let table = inner.files.table.lock();
        let oldest = Class::ALL.map(|class| table.oldest(class));
        let wanted = Class::ALL.map(|class| {
            let first = passed.map_or(0, |passed| passed[index(class)]) + 1;
            first.max(oldest[index(class)])
        });
        let oldest_seconds = Class::ALL.map(|class| {
            let seq = wanted[index(class)];
            if seq > through[index(class)] {
                return 0;
            }
            u64::try_from(table.ages.now() - table.ages.earliest(class, seq)).unwrap_or(0)
        });
        Self {
            epoch: inner.epoch,
            bytes: table.bytes(),
            segments: table.classes.iter().map(std::collections::VecDeque::len).sum(),
            free_bytes: figures.free.load(Ordering::Relaxed),
            class_bytes: Class::ALL.map(|class| table.class_bytes(class)),
            oldest,
            through,
            appended,
            settled: read(&figures.settled),
            failed: read(&figures.failed),
            oldest_seconds,
            dropped: figures.dropped.lock().clone(),
            buffered_bytes,
            waits,
            failures,
            evicted: inner.files.evicted.load(Ordering::Relaxed),
            corrupt: inner.files.corrupt.load(Ordering::Relaxed),
            keyed_bytes,
            keyed_failures,
            readers: inner.cursors.names(),
        }
    }
}
