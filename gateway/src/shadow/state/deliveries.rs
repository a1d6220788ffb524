//! When a thing is sent what waits for it, and what is next.

use std::sync::Arc;
use std::time::Instant;

use super::commands::mark;
use super::{Count, DELTA_GRACE, Next, RETRY_PAUSE, State, TRIES_MAX, Told};
use crate::bus::Keyed;
use crate::devices::{Sign, Thing};
use crate::shadow::waiting::{Deferred, Waiting};

impl State {
    /// The thing is to be looked at.
    pub(in crate::shadow) fn wake(&mut self, thing: &Arc<str>, sign: Sign) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(thing) else { return };
        if sign == Sign::Came {
            (entry.queue_tries, entry.queue_pause) = (0, None);
            (entry.delta_tries, entry.delta_pause) = (0, Some(now + DELTA_GRACE));
            self.due.insert((now + DELTA_GRACE, Arc::clone(thing)));
        }
        if !std::mem::replace(&mut entry.woken, true) && !entry.busy {
            self.woken.push_back(Arc::clone(thing));
        }
    }

    /// When the next thing is due.
    pub(in crate::shadow) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Wakes what is due. The commands whose time is over are marked, so that they are not sent whatever happens; they have yet
    /// to be told and finished.
    pub(in crate::shadow) fn expire(&mut self, keyed: &Keyed) -> Vec<Told> {
        let now = Instant::now();
        let mut expired = Vec::new();
        while let Some((at, id)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, id));
                break;
            }
            self.wake(&id, Sign::Spoke);
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            for waiting in entry.queue.iter_mut().filter(|waiting| waiting.deadline <= now && !waiting.sent) {
                match mark(keyed, &id, waiting) {
                    Ok(()) => expired.push(Told {
                        number: waiting.number,
                        thing: Arc::clone(&id),
                        id: waiting.command.id.clone(),
                        wait: waiting.command.wait,
                    }),
                    Err(_) => drop(self.due.insert((now + RETRY_PAUSE, Arc::clone(&id)))),
                }
            }
        }
        expired
    }

    /// The next woken thing; a delivery for it begins.
    pub(in crate::shadow) fn begin(&mut self) -> Option<Arc<str>> {
        while let Some(id) = self.woken.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.woken = false;
            entry.busy = true;
            return Some(id);
        }
        None
    }

    /// What the delivery for this thing has to do next.
    pub(in crate::shadow) fn next(&mut self, keyed: &Keyed, thing: &Thing) -> Next {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(&thing.id) else { return Next::Nothing };
        if !thing.is_reachable() {
            return Next::Nothing;
        }
        if let Some(waiting) = entry.queue.front_mut() {
            if !waiting.told
                || waiting.sent
                || waiting.deadline <= now
                || entry.queue_pause.is_some_and(|pause| pause > now)
            {
                return Next::Nothing;
            }
            if mark(keyed, &thing.id, waiting).is_err() {
                self.due.insert((now + RETRY_PAUSE, Arc::clone(&thing.id)));
                return Next::Nothing;
            }
            let Deferred { id, order, patience, .. } = waiting.command.clone();
            return Next::Command { number: waiting.number, id, order, patience };
        }
        let mut values = entry.document.delta(&thing.latest_of(entry.document.desired.keys()));
        for name in &entry.insisted {
            values.extend(entry.document.desired.get_key_value(name).map(|(n, d)| (Arc::clone(n), d.value.clone())));
        }
        if values.is_empty() {
            (entry.delta_tries, entry.delta_error) = (0, None);
            return Next::Nothing;
        }
        if entry.delta_tries >= TRIES_MAX || entry.delta_pause.is_some_and(|pause| pause > now) {
            return Next::Nothing;
        }
        Next::Delta { version: entry.document.version, values }
    }

    /// The delivery for this thing has ended.
    pub(in crate::shadow) fn end(&mut self, thing: &Thing) {
        if let Some(entry) = self.entries.get_mut(&thing.id) {
            entry.busy = false;
            if entry.woken {
                self.woken.push_back(Arc::clone(&thing.id));
            }
        }
        self.tidy(thing);
    }

    pub(in crate::shadow) fn count(&self, now: Instant) -> Count {
        let waited = |w: &Waiting| w.command.wait.saturating_sub(w.deadline.saturating_duration_since(now));
        let oldest = self.entries.values().filter_map(|entry| entry.queue.front()).map(waited).max();
        Count {
            commands: self.commands,
            shadows: self.entries.values().filter(|entry| !entry.document.desired.is_empty()).count(),
            bytes: self.bytes,
            oldest: oldest.unwrap_or_default(),
        }
    }
}
