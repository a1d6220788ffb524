//! Orders whose outcome a session owes: each ends with the device's answer, when its time is over, or with the peer.
//!
//! Must not be in here: how an order is said, and which answer belongs to it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use device_models::{Command, Failure};

use crate::session::{Outbox, Output};

/// At most `MAX` orders, oldest first; `T` is what the language must know of each.
#[derive(Debug)]
pub(crate) struct Awaited<T, const MAX: usize> {
    all: VecDeque<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    id: String,
    device: String,
    known: T,
    until: Instant,
    patience: Duration,
}

impl<T, const MAX: usize> Awaited<T, MAX> {
    pub(crate) fn is_full(&self) -> bool {
        self.all.len() >= MAX
    }

    /// Owes the outcome of a command from now on; the caller has seen that there is room.
    pub(crate) fn add(&mut self, now: Instant, command: &Command, known: T) {
        let (id, device, patience) = (command.id.clone(), command.device.clone(), command.patience);
        self.all.push_back(Entry { id, device, known, until: now + patience, patience });
    }

    /// The oldest order to the device.
    pub(crate) fn oldest(&self, device: &str) -> Option<&T> {
        self.all.iter().find(|entry| entry.device == device).map(|entry| &entry.known)
    }

    /// Takes off the oldest order to the device.
    pub(crate) fn take_oldest(&mut self, device: &str) -> Option<T> {
        let at = self.all.iter().position(|entry| entry.device == device)?;
        self.all.remove(at).map(|entry| entry.known)
    }

    /// Takes off the order with this id, to this device where one is named. Says whether it was there.
    pub(crate) fn take(&mut self, id: &str, device: Option<&str>) -> bool {
        let is = |entry: &Entry<T>| entry.id == id && device.is_none_or(|device| entry.device == device);
        self.all.iter().position(is).and_then(|at| self.all.remove(at)).is_some()
    }

    /// Ends the orders whose time is over.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Outbox) {
        self.all.retain_mut(|entry| {
            let late = entry.until <= now;
            if late {
                let id = std::mem::take(&mut entry.id);
                out.push(Output::Answer { id, outcome: Err(Failure::Silent(entry.patience)) });
            }
            !late
        });
    }

    /// Ends all: the peer is gone.
    pub(crate) fn abandon(&mut self, out: &mut Outbox) {
        for entry in self.all.drain(..) {
            out.push(Output::Answer { id: entry.id, outcome: Err(Failure::Offline) });
        }
    }

    /// Gives all back: none of them left.
    pub(crate) fn unsent(&mut self, out: &mut Outbox) {
        for entry in self.all.drain(..) {
            out.push(Output::Unsent { id: entry.id });
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.all.iter().map(|entry| entry.until).min()
    }
}

impl<T, const MAX: usize> Default for Awaited<T, MAX> {
    fn default() -> Self {
        Self { all: VecDeque::new() }
    }
}
