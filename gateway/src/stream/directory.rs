//! What the threads share: which stream is on which of them, who waits for one that is not there, and what was turned
//! away. Nothing in here is touched for a unit or a write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use protocols::media::StreamName;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::info::{StreamCounters, StreamInfo, ThreadInfo};
use super::rules::Rules;
use super::spill::Share;
use super::{Seat, lock};
use crate::threads::Tasks;

/// Where a stream lives.
pub(super) struct Home {
    pub(super) thread: usize,
    /// Connections on their way to the thread: while there are any, the name stays where it is.
    pub(super) arrivals: usize,
    pub(super) info: Option<StreamInfo>,
    /// What its replicas on other threads did.
    pub(super) shares: Vec<Share>,
    /// The same of replicas that are no more.
    pub(super) spilled: StreamCounters,
}

impl Home {
    pub(super) fn new(thread: usize) -> Self {
        Self { thread, arrivals: 0, info: None, shares: Vec::new(), spilled: StreamCounters::default() }
    }

    pub(super) fn live(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.live)
    }
}

#[derive(Default)]
pub(super) struct RefusedCounts {
    pub(super) publishers: AtomicU64,
    pub(super) viewers: AtomicU64,
    pub(super) orphans: AtomicU64,
    pub(super) busy: AtomicU64,
}

/// A viewer that waits for a stream; over when dropped.
pub(super) struct Want<'a> {
    pub(super) shared: &'a Shared,
    pub(super) stream: &'a StreamName,
}

impl<'a> Want<'a> {
    pub(super) fn new(shared: &'a Shared, stream: &'a StreamName) -> Self {
        *lock(&shared.wanted).entry(stream.clone()).or_default() += 1;
        shared.wants.send_replace(());
        Self { shared, stream }
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        let mut wanted = lock(&self.shared.wanted);
        if let Some(count) = wanted.get_mut(self.stream) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(self.stream);
            }
        }
    }
}

pub(super) struct Shared {
    /// Streams that are not there and how many wait for each.
    pub(super) wanted: Mutex<HashMap<StreamName, usize>>,
    pub(super) wants: watch::Sender<()>,
    pub(super) rules: Rules,
    pub(super) tasks: Tasks,
    /// The control plane's runtime, where the core was started on one.
    pub(super) control: Option<Handle>,
    pub(super) directory: Mutex<HashMap<StreamName, Home>>,
    pub(super) threads: Mutex<Vec<ThreadInfo>>,
    pub(super) changes: watch::Sender<()>,
    pub(super) viewers: AtomicUsize,
    pub(super) viewer_ids: AtomicU64,
    /// The ways from thread to thread.
    pub(super) seats: OnceLock<Weak<[Seat]>>,
    pub(super) refused: RefusedCounts,
    pub(super) words_lost: Arc<AtomicU64>,
}

impl Shared {
    pub(super) fn new(rules: Rules, threads: usize, tasks: &Tasks) -> Self {
        Self {
            rules,
            tasks: tasks.clone(),
            control: Handle::try_current().ok(),
            directory: Mutex::default(),
            threads: Mutex::new(vec![ThreadInfo::default(); threads]),
            changes: watch::channel(()).0,
            wanted: Mutex::default(),
            wants: watch::channel(()).0,
            viewers: AtomicUsize::new(0),
            viewer_ids: AtomicU64::new(1),
            seats: OnceLock::new(),
            refused: RefusedCounts::default(),
            words_lost: Arc::default(),
        }
    }

    pub(super) fn directory(&self) -> MutexGuard<'_, HashMap<StreamName, Home>> {
        lock(&self.directory)
    }

    pub(super) fn is_there(&self, stream: &StreamName) -> bool {
        self.directory().get(stream).is_some_and(|home| home.info.is_some())
    }

    /// By use of the CPU in steps of 10 %, then by streams.
    pub(super) fn least_loaded(&self) -> usize {
        let mut streams: HashMap<usize, usize> = HashMap::new();
        for home in self.directory().values() {
            *streams.entry(home.thread).or_default() += 1;
        }
        let threads = lock(&self.threads);
        let load = |(index, info): &(usize, &ThreadInfo)| {
            ((info.busy * 10.0) as u64, streams.get(index).copied().unwrap_or(0))
        };
        threads.iter().enumerate().min_by_key(load).map_or(0, |(index, _)| index)
    }

    /// An order reached its thread (or never will).
    pub(super) fn arrived(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if let Some(home) = directory.get_mut(stream) {
            home.arrivals = home.arrivals.saturating_sub(1);
        }
    }

    pub(super) fn publish_info(&self, thread: usize, stream: &StreamName, info: StreamInfo) {
        self.directory().entry(stream.clone()).or_insert_with(|| Home::new(thread)).info = Some(info);
    }

    pub(super) fn publish_thread(&self, thread: usize, info: ThreadInfo) {
        if let Some(slot) = lock(&self.threads).get_mut(thread) {
            *slot = info;
        }
    }

    pub(super) fn changed(&self) {
        self.changes.send_replace(());
    }

    /// The thread of a stream that is there.
    pub(super) fn home(&self, stream: &StreamName) -> Option<usize> {
        self.directory().get(stream).filter(|home| home.info.is_some()).map(|home| home.thread)
    }

    /// A replica's figures, for its stream's.
    pub(super) fn publish_share(&self, stream: &StreamName, share: Share) {
        if let Some(home) = self.directory().get_mut(stream) {
            home.shares.retain(|other| other.thread != share.thread);
            home.shares.push(share);
        }
    }

    pub(super) fn forget_share(&self, stream: &StreamName, thread: usize) {
        if let Some(home) = self.directory().get_mut(stream) {
            home.shares
                .iter()
                .filter(|share| share.thread == thread)
                .for_each(|share| home.spilled.add_viewers(&share.counters));
            home.shares.retain(|share| share.thread != thread);
        }
    }

    /// Adds what replicas did.
    pub(super) fn add_shares(&self, stream: &StreamName, info: &mut StreamInfo) {
        let directory = self.directory();
        let Some(home) = directory.get(stream) else { return };
        info.counters.add_viewers(&home.spilled);
        for share in &home.shares {
            info.viewers += share.viewers;
            info.lag_ms = info.lag_ms.max(share.lag_ms);
            info.viewers_elsewhere += share.viewers;
            info.counters.add_viewers(&share.counters);
        }
    }

    /// The stream is no more, unless somebody is on the way to it.
    pub(super) fn forget(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if let Some(home) = directory.get_mut(stream) {
            home.info = None;
        }
        drop(directory);
        self.settle(stream);
    }

    /// Removes the name if there is neither a stream nor anybody on the way to it.
    pub(super) fn settle(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if directory.get(stream).is_some_and(|home| home.arrivals == 0 && home.info.is_none()) {
            directory.remove(stream);
        }
    }
}
