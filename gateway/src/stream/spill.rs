//! A stream that is hotter than one core: its units go on to other stream threads, where a replica muxes, keeps and
//! writes them to viewers of its own. Only handles go over: the media bytes are shared, not copied.
//!
//! A viewer is sent to another thread when its stream's own is busy and another one is not (`seat`). That thread then
//! asks for the stream ([`Order::CopyTo`]), gets what was published since the newest key frame and what comes
//! ([`Order::Copied`]), and says when its last viewer is gone ([`Order::CopyEnough`]). Without such viewers nothing of
//! this is there. Must not be in here: the writing to viewers.

use std::time::{Duration, Instant};

use protocols::media::{StreamName, Unit};
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::gop::{Keep, Mark};
use super::info::{StreamCounters, ThreadInfo};
use super::{Order, Rules};

/// A replica nobody watches is given up after this long.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(10);

/// Another thread is worth it when it is at most this busy, as a share of the stream's own.
const RELIEF: f64 = 0.8;

/// What a replica is told.
#[derive(Debug)]
pub(super) enum Copied {
    /// Another publisher has the stream: the tracks are told anew.
    Published,
    /// Placed in time, and worth being passed on.
    Unit(Unit),
}

/// What a replica adds to its stream's figures.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    pub thread: usize,
    pub viewers: usize,
    pub lag_ms: u64,
    pub counters: StreamCounters,
}

/// The thread for the next viewer of a stream that lives on `home`.
pub(super) fn seat(home: usize, threads: &[ThreadInfo], rules: &Rules) -> usize {
    let Some(own) =
        threads.get(home).filter(|own| rules.spill_percent < 100 && own.busy * 100.0 >= rules.spill_percent as f64)
    else {
        return home;
    };
    let others = threads.iter().enumerate().filter(|(index, other)| *index != home && other.busy <= own.busy * RELIEF);
    others.min_by(|(_, a), (_, b)| a.busy.total_cmp(&b.busy)).map_or(home, |(index, _)| index)
}

/// The home's end of a replica: what it has not been told yet.
#[derive(Debug)]
pub(super) struct Replica {
    pub thread: usize,
    orders: mpsc::Sender<Order>,
    pending: Vec<Copied>,
    bytes: u64,
    /// Too much was waiting: nothing more before the next key frame.
    behind: bool,
    keep: Keep,
}

impl Replica {
    pub(super) fn new(
        thread: usize,
        orders: mpsc::Sender<Order>,
        keep: Keep,
        backlog: impl Iterator<Item = Unit>,
    ) -> Self {
        let pending = std::iter::once(Copied::Published).chain(backlog.map(Copied::Unit)).collect();
        Self { thread, orders, pending, bytes: 0, behind: false, keep }
    }

    /// Another publisher.
    pub(super) fn published(&mut self) {
        self.pending.push(Copied::Published);
    }

    /// Notes one unit.
    pub(super) fn add(&mut self, mark: Mark, unit: &Unit) {
        self.behind &= !matches!(mark, Mark::Key | Mark::Config);
        if self.behind {
            return;
        }
        self.bytes += unit.data.len() as u64;
        if self.bytes > self.keep.bytes_max || self.pending.len() > self.keep.units_max {
            // The other thread hangs. Its viewers go on at a key frame, as slow viewers do.
            self.pending.clear();
            (self.bytes, self.behind) = (0, true);
            return;
        }
        self.pending.push(Copied::Unit(unit.clone()));
    }

    /// Sends what is to be told, in one message; `false` when the other thread is gone.
    pub(super) fn send(&mut self, stream: &StreamName) -> bool {
        if self.pending.is_empty() {
            return true;
        }
        let order = Order::Copied { stream: stream.clone(), copied: std::mem::take(&mut self.pending) };
        match self.orders.try_send(order) {
            Ok(()) => self.bytes = 0,
            Err(mpsc::error::TrySendError::Full(Order::Copied { copied, .. })) => self.pending = copied,
            Err(_) => return false,
        }
        true
    }

    /// The stream is over.
    pub(super) fn end(&self, stream: &StreamName) {
        // Should the order not get through, the replica's own look at the directory ends it.
        let _unsent = self.orders.try_send(Order::CopyEnded { stream: stream.clone() });
    }
}

/// What a thread does about replicas, its own and those of its streams.
impl super::hub::Hub {
    /// A stream of this thread is wanted on another.
    pub(super) fn copy_to(&self, stream: &StreamName, thread: usize) {
        let Some(orders) = self.seat(thread) else { return };
        let Some(source) = self.find(stream) else {
            // It ended while the order was on its way.
            let _unsent = orders.try_send(Order::CopyEnded { stream: stream.clone() });
            return;
        };
        info!(%stream, thread, "stream spills to another thread");
        source.borrow_mut().copy_to(thread, orders);
    }

    /// The other thread has no viewers of the stream any more.
    pub(super) fn copy_enough(&self, stream: &StreamName, thread: usize) {
        if let Some(source) = self.find(stream) {
            debug!(%stream, thread, "stream no longer spills");
            source.borrow_mut().copy_enough(thread);
        }
    }

    /// What was published at a stream's home.
    pub(super) fn copied(&self, stream: &StreamName, copied: Vec<Copied>) {
        let Some(source) = self.find(stream).filter(|source| source.borrow().is_replica()) else { return };
        for one in copied {
            let news = source.borrow_mut().copied(one, &self.rules.patience, self.phases());
            self.note(&source, news);
        }
    }

    /// The stream is over at its home.
    pub(super) fn copy_ended(&self, stream: &StreamName) {
        if let Some(source) = self.find(stream).filter(|source| source.borrow().is_replica()) {
            self.end(&source, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn threads(busy: &[f64]) -> Vec<ThreadInfo> {
        busy.iter().map(|busy| ThreadInfo { busy: *busy, ..ThreadInfo::default() }).collect()
    }

    #[test]
    fn a_viewer_goes_elsewhere_only_from_a_busy_thread_to_one_that_is_not() {
        let rules = Rules::new(&config::Stream::default());
        assert_eq!(seat(0, &threads(&[0.59, 0.0, 0.1]), &rules), 0);
        assert_eq!(seat(0, &threads(&[0.61, 0.2, 0.1]), &rules), 2);
        assert_eq!(seat(0, &threads(&[0.61, 0.6]), &rules), 0, "no relief there");
        assert_eq!(seat(0, &threads(&[1.0]), &rules), 0);
        let never = Rules::new(&config::Stream { spill_percent: 100, ..config::Stream::default() });
        assert_eq!(seat(0, &threads(&[1.0, 0.0]), &never), 0);
    }
}
