//! Commands that wait for their thing: taken in, looked at, taken back, done with.

use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use super::{RETRY_PAUSE, RETRY_PAUSE_MAX, State, TREE_WAITING, Told};
use crate::bus::{BusError, Keyed};
use crate::config;
use crate::devices::{Sign, Thing};
use crate::shadow::waiting::{Deferred, Waiting};
use crate::shadow::{ShadowError, WaitingView};

impl State {
    pub(in crate::shadow) fn has_waiting(&self, thing: &str) -> bool {
        self.entries.get(thing).is_some_and(|entry| !entry.queue.is_empty())
    }

    /// Takes a command in; it is told of once it is on disk.
    pub(in crate::shadow) fn accept(
        &mut self,
        keyed: &Keyed,
        config: &config::Shadow,
        thing: &Thing,
        command: Deferred,
    ) -> Result<(), ShadowError> {
        if self.ids.contains(&command.id) {
            let same = |waiting: &Waiting| waiting.command.id == command.id && waiting.command.order == command.order;
            let repeated = self.entries.get(&thing.id).is_some_and(|entry| entry.queue.iter().any(same));
            return Err(if repeated { ShadowError::Repeated(command.id) } else { ShadowError::Twice(command.id) });
        }
        let queued = self.entries.get(&thing.id).map_or(0, |entry| entry.queue.len());
        if queued >= config.commands_per_thing_max {
            let why = format!("{queued} commands wait for `{}`, the most (shadow.commands_per_thing_max)", thing.id);
            return Err(ShadowError::Full(why));
        }
        if self.commands >= config.commands_max {
            let why = format!("{} commands wait already, the most (shadow.commands_max)", self.commands);
            return Err(ShadowError::Full(why));
        }
        let number = self.number_last + 1;
        let told = Told { number, thing: Arc::clone(&thing.id), id: command.id.clone(), wait: command.wait };
        let mut waiting = Waiting::new(number, command, Instant::now());
        let record = waiting.record(&thing.id);
        waiting.bytes = Waiting::cost(record.len());
        self.room(config, waiting.bytes)?;
        keyed.put(TREE_WAITING, &number.to_be_bytes(), &record)?;
        self.number_last = number;
        self.push(thing, waiting);
        self.accepted.push(told);
        Ok(())
    }

    pub(super) fn room(&self, config: &config::Shadow, bytes: usize) -> Result<(), ShadowError> {
        let most = usize::try_from(config.memory_mib * 1024 * 1024).unwrap_or(usize::MAX);
        if self.bytes + bytes > most {
            let why = format!("shadows and waiting commands take {} bytes of {most} (shadow.memory_mib)", self.bytes);
            return Err(ShadowError::Full(why));
        }
        Ok(())
    }

    /// Those that were accepted since the last call and still wait.
    pub(in crate::shadow) fn take_accepted(&mut self) -> Vec<Told> {
        let mut accepted = std::mem::take(&mut self.accepted);
        accepted.retain(|told| self.ids.contains(&told.id));
        accepted
    }

    /// It was said of these that they wait: from now on they may go.
    pub(in crate::shadow) fn told(&mut self, accepted: &[Told]) {
        for Told { thing, number, .. } in accepted {
            if let Some(entry) = self.entries.get_mut(thing)
                && let Ok(at) = entry.queue.binary_search_by_key(number, |waiting| waiting.number)
                && let Some(waiting) = entry.queue.get_mut(at)
            {
                waiting.told = true;
            }
            // It may have come in between.
            self.wake(thing, Sign::Spoke);
        }
    }

    pub(in crate::shadow) fn waiting(&self, thing: &str) -> Vec<WaitingView> {
        let now = Instant::now();
        self.entries.get(thing).map(|e| e.queue.iter().map(|w| w.view(now)).collect()).unwrap_or_default()
    }

    /// Marks a command that is taken back, so that it is not sent whatever happens; its number. It has yet to be told and
    /// finished.
    pub(in crate::shadow) fn cancel(&mut self, keyed: &Keyed, thing: &Thing, id: &str) -> Result<u64, ShadowError> {
        let none = || ShadowError::NoCommand { thing: thing.id.to_string(), id: id.to_owned() };
        let entry = self.entries.get_mut(&thing.id).ok_or_else(none)?;
        let waiting = entry.queue.iter_mut().find(|waiting| waiting.command.id == id).ok_or_else(none)?;
        if waiting.sent {
            return Err(ShadowError::Sent(id.to_owned()));
        }
        mark(keyed, &thing.id, waiting)?;
        Ok(waiting.number)
    }

    /// The command has ended, and is forgotten here. What is kept of it goes by [`forget`] when its end is on disk.
    pub(in crate::shadow) fn finish(&mut self, thing: &Thing, number: u64) {
        let Some(entry) = self.entries.get_mut(&thing.id) else { return };
        let Ok(at) = entry.queue.binary_search_by_key(&number, |waiting| waiting.number) else { return };
        let Some(waiting) = entry.queue.remove(at) else { return };
        (entry.queue_tries, entry.queue_pause) = (0, None);
        self.ids.remove(&waiting.command.id);
        self.commands -= 1;
        self.bytes -= waiting.bytes;
        self.wake(&thing.id, Sign::Spoke);
        self.tidy(thing);
    }

    /// It was not handed over after all: it waits on.
    pub(in crate::shadow) fn unsent(&mut self, keyed: &Keyed, thing: &Thing, number: u64, why: String) {
        let Some(entry) = self.entries.get_mut(&thing.id) else { return };
        let pause = RETRY_PAUSE.saturating_mul(1 << entry.queue_tries.min(5)).min(RETRY_PAUSE_MAX);
        entry.queue_tries += 1;
        let at = Instant::now() + pause;
        entry.queue_pause = Some(at);
        let Some(waiting) = entry.queue.iter_mut().find(|waiting| waiting.number == number) else { return };
        (waiting.sent, waiting.error) = (false, Some(why));
        if let Err(error) = keyed.put(TREE_WAITING, &number.to_be_bytes(), &waiting.record(&thing.id)) {
            warn!(%error, "a waiting command stays marked as sent on disk: a restart will give it up");
        }
        self.due.insert((waiting.deadline, Arc::clone(&thing.id)));
        self.due.insert((at, Arc::clone(&thing.id)));
    }
}

/// Marks a command as sent, or as one that is not to be sent any more.
pub(super) fn mark(keyed: &Keyed, thing: &str, waiting: &mut Waiting) -> Result<(), BusError> {
    waiting.sent = true;
    let kept = keyed.put(TREE_WAITING, &waiting.number.to_be_bytes(), &waiting.record(thing));
    if let Err(error) = &kept {
        (waiting.sent, waiting.error) = (false, Some(error.to_string()));
    }
    kept.map(|_| ())
}

/// Nothing is kept of the command any more: its last reply is on disk.
pub(in crate::shadow) fn forget(keyed: &Keyed, number: u64) {
    if let Err(error) = keyed.remove(TREE_WAITING, &number.to_be_bytes()) {
        // After a restart it is told a second time, as given up; it is never sent again.
        warn!(%error, "the end of a waiting command could not be written down");
    }
}
