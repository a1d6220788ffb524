//! Which things the platform has to be told of yet, for dialects that introduce things before their first message.
//!
//! Pure: time is handed in. One thing at a time comes out, so that ten thousand things need no room for all their
//! introductions at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::things::{Known, Things};

/// The list of things is looked through for new ones at most this often.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Introductions {
    begun: bool,
    rev: u32,
    looked: Option<Instant>,
    /// Id to model, of everything introduced on this connection or waiting for it.
    known: HashMap<Arc<str>, Arc<str>>,
    waiting: VecDeque<Known>,
}

// === impl Introductions ===

impl Introductions {
    /// A new connection, or the platform began anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether they begin now: once after each [`reset`](Self::reset).
    pub(super) const fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    /// Takes in what is new in the list of things.
    pub(super) fn look(&mut self, things: &dyn Things, now: Instant) {
        let rested = self.looked.is_none_or(|looked| now >= looked + LOOK_PAUSE);
        let rev = things.rev();
        if !rested || (rev == self.rev && self.looked.is_some()) {
            return;
        }
        (self.rev, self.looked) = (rev, Some(now));
        // What is not in the list any more is forgotten here too.
        let mut before = std::mem::take(&mut self.known);
        for thing in things.known() {
            let model = Arc::clone(thing.model.name());
            let new = before.remove(&thing.id).as_ref() != Some(&model);
            self.known.insert(Arc::clone(&thing.id), model);
            if new {
                self.waiting.push_back(thing);
            }
        }
        self.waiting.retain(|thing| self.known.contains_key(&thing.id));
    }

    /// When there is something to look at again, although nothing happens: a change that came too soon.
    pub(super) fn due(&self, things: &dyn Things) -> Option<Instant> {
        let looked = self.looked?;
        (things.rev() != self.rev).then_some(looked + LOOK_PAUSE)
    }

    pub(super) fn next(&mut self) -> Option<Known> {
        self.waiting.pop_front()
    }
}
