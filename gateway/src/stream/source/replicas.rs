//! A stream that other threads serve too: copies for them at home, what a copy is told elsewhere.
//!
//! Must not be in here: when a stream is hot enough (`spill.rs`).

use protocols::media::Tracks;
use tokio::sync::mpsc;

use super::{News, Role, Source};
use crate::stream::Order;
use crate::stream::fanout::Patience;
use crate::stream::spill::{Copied, Replica, Share};

impl Source {
    /// Is another thread's stream from here on.
    pub(in crate::stream) fn for_replica(mut self) -> Self {
        self.role = Role::Replica { idle_since: None };
        self
    }

    pub(in crate::stream) fn is_replica(&self) -> bool {
        matches!(self.role, Role::Replica { .. })
    }

    /// Lets another thread have the stream too, from the newest key frame on.
    pub(in crate::stream) fn copy_to(&mut self, thread: usize, orders: mpsc::Sender<Order>) {
        self.copy_enough(thread);
        let replica = Replica::new(thread, orders, self.keep, self.backlog().into_iter());
        self.replicas.push(replica);
        self.tell_replicas();
    }

    pub(in crate::stream) fn copy_enough(&mut self, thread: usize) {
        self.replicas.retain(|replica| replica.thread != thread);
    }

    pub(super) fn tell_replicas(&mut self) {
        self.replicas.retain_mut(|replica| replica.send(&self.name));
    }

    /// Takes what the stream's own thread took.
    pub(in crate::stream) fn copied(&mut self, copied: Copied, patience: &Patience, phases: usize) -> News {
        match copied {
            Copied::Published => {
                self.tracks = Tracks::default();
                self.recent.restart();
                News::default()
            }
            Copied::Unit(unit) => {
                self.figures.bytes(unit.data.len());
                self.tracks.note(&unit);
                let told = self.told.note(&unit);
                self.spread(unit, told, patience, phases)
            }
        }
    }

    /// What this replica adds to the stream's figures.
    pub(in crate::stream) fn share(&self, thread: usize) -> Share {
        Share { thread, viewers: self.viewers(), lag_ms: self.lag_ms(), counters: self.counters }
    }
}
