//! Shadows and waiting commands of all things, in memory and in the keyed store alike, within their limits.
//!
//! Everything here is quick and waits for nothing: who needs to know that a change is on disk flushes the store.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_models::{Order, Value};
use tracing::warn;

use super::document::{Document, Patch};
use super::waiting::{Deferred, Kept, Waiting};
use super::{ShadowError, ShadowView, WaitingView};
use crate::bus::{BusError, Keyed};
use crate::devices::{Devices, Latest, Sign, Thing};
use crate::{clock, config};

const TREE_SHADOWS: &str = "shadow";
const TREE_WAITING: &str = "waiting";

/// Tries to send one delta while the thing stays as it is.
pub(super) const TRIES_MAX: u32 = 5;
/// Time between two writes of a delta: doubles with each try.
const DELTA_PAUSE: Duration = Duration::from_secs(10);
/// Time a thing that came has to say its values before its delta is sent.
const DELTA_GRACE: Duration = Duration::from_millis(250);
/// Time until a reachable thing that could not be handed a command is tried again; doubles with each try up to the longest.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);

/// What there is of all things that have any.
#[derive(Debug, Default)]
pub(super) struct State {
    entries: HashMap<Arc<str>, Entry>,
    /// Ids of the waiting commands.
    ids: HashSet<String>,
    /// When something is to be looked at although no thing gave a sign. An entry that is not due any more does no harm.
    due: BTreeSet<(Instant, Arc<str>)>,
    woken: VecDeque<Arc<str>>,
    number_last: u64,
    commands: usize,
    bytes: usize,
    /// Accepted, and not told yet.
    accepted: Vec<Told>,
}

/// What one thing has.
#[derive(Debug, Default)]
struct Entry {
    document: Document,
    document_bytes: usize,
    queue: VecDeque<Waiting>,
    /// A delivery is at work.
    busy: bool,
    /// It is among the woken, or to be looked at again after the delivery at work.
    woken: bool,
    /// Commands are not tried again before.
    queue_pause: Option<Instant>,
    queue_tries: u32,
    /// The delta is not sent again before.
    delta_pause: Option<Instant>,
    delta_tries: u32,
    delta_error: Option<String>,
    /// Desired values that are written once even where the thing seems to have them.
    insisted: BTreeSet<Arc<str>>,
}

/// A command that something is to be told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub number: u64,
    pub thing: Arc<str>,
    pub id: String,
    /// How long it waits, or did.
    pub wait: Duration,
}

/// A command of an earlier run whose end nobody knows.
#[derive(Debug)]
pub(super) struct Ended {
    pub number: u64,
    pub thing: String,
    pub id: String,
    pub why: &'static str,
}

/// What a delivery has to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Marked as sent; to be sent as soon as that is on disk.
    Command {
        number: u64,
        id: String,
        order: Order,
        patience: Duration,
    },
    Delta {
        version: u64,
        values: BTreeMap<Arc<str>, Value>,
    },
    Nothing,
}

/// Figures.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub commands: usize,
    pub shadows: usize,
    pub bytes: usize,
    /// How long the oldest command has waited.
    pub oldest: Duration,
}

const RESTORED: &str = "the gateway's store was restored from an older copy; whether it was sent is not known";
const RESTARTED: &str =
    "the gateway was stopped after the command was handed over; whether the device has it is not known";
const GONE: &str = "the thing is not on this gateway any more";

// === what was kept ===

impl State {
    /// What an earlier run kept, and the commands of it that end here. What belongs to things that are gone goes.
    pub(super) fn load(keyed: &Keyed, devices: &Devices, restored: bool) -> Result<(Self, Vec<Ended>), BusError> {
        let (mut state, mut ended) = (Self::default(), Vec::new());
        for (key, json) in keyed.scan(TREE_SHADOWS, b"")? {
            let thing = str::from_utf8(&key).ok().and_then(|id| devices.by_id(id));
            match (thing, serde_json::from_slice::<Document>(&json)) {
                (Some(thing), Ok(document)) => {
                    let bytes = document.bytes();
                    let entry = state.entry(&thing);
                    (entry.document, entry.document_bytes) = (document, bytes);
                    state.bytes += bytes;
                }
                (thing, read) => {
                    let name = String::from_utf8_lossy(&key).into_owned();
                    warn!(thing = name, known = thing.is_some(), readable = read.is_ok(), "a shadow is let go");
                    keyed.remove(TREE_SHADOWS, &key)?;
                }
            }
        }
        let now = Instant::now();
        for (key, json) in keyed.scan(TREE_WAITING, b"")? {
            let number = key.as_slice().try_into().map_or(0, u64::from_be_bytes);
            state.number_last = state.number_last.max(number);
            let Ok(kept) = serde_json::from_slice::<Kept>(&json) else {
                warn!(number, "a waiting command cannot be read: it is let go");
                keyed.remove(TREE_WAITING, &key)?;
                continue;
            };
            let thing = devices.by_id(&kept.thing);
            let why = match (&thing, restored, kept.sent) {
                (None, ..) => Some(GONE),
                (_, true, _) => Some(RESTORED),
                (_, _, true) => Some(RESTARTED),
                _ => None,
            };
            if let Some(why) = why {
                ended.push(Ended { number, thing: kept.thing, id: kept.id, why });
            } else if let Some(thing) = thing {
                let waiting = Waiting::of(number, kept, json.len(), now);
                state.push(&thing, waiting);
            }
        }
        Ok((state, ended))
    }

    fn entry(&mut self, thing: &Thing) -> &mut Entry {
        thing.set_awaited(true);
        self.entries.entry(Arc::clone(&thing.id)).or_default()
    }

    fn push(&mut self, thing: &Thing, waiting: Waiting) {
        self.ids.insert(waiting.command.id.clone());
        self.due.insert((waiting.deadline, Arc::clone(&thing.id)));
        self.commands += 1;
        self.bytes += waiting.bytes;
        self.entry(thing).queue.push_back(waiting);
    }

    /// Forgets the thing if it has nothing any more.
    fn tidy(&mut self, thing: &Thing) {
        let empty = |entry: &Entry| entry.queue.is_empty() && entry.document == Document::default() && !entry.busy;
        if self.entries.get(&thing.id).is_some_and(empty) {
            self.entries.remove(&thing.id);
            thing.set_awaited(false);
        }
    }
}

// === commands ===

impl State {
    pub(super) fn has_waiting(&self, thing: &str) -> bool {
        self.entries.get(thing).is_some_and(|entry| !entry.queue.is_empty())
    }

    /// Takes a command in; it is told of once it is on disk.
    pub(super) fn accept(
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

    fn room(&self, config: &config::Shadow, bytes: usize) -> Result<(), ShadowError> {
        let most = usize::try_from(config.memory_mib * 1024 * 1024).unwrap_or(usize::MAX);
        if self.bytes + bytes > most {
            let why = format!("shadows and waiting commands take {} bytes of {most} (shadow.memory_mib)", self.bytes);
            return Err(ShadowError::Full(why));
        }
        Ok(())
    }

    /// Those that were accepted since the last call and still wait.
    pub(super) fn take_accepted(&mut self) -> Vec<Told> {
        let mut accepted = std::mem::take(&mut self.accepted);
        accepted.retain(|told| self.ids.contains(&told.id));
        accepted
    }

    /// It was said of these that they wait: from now on they may go.
    pub(super) fn told(&mut self, accepted: &[Told]) {
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

    pub(super) fn waiting(&self, thing: &str) -> Vec<WaitingView> {
        let now = Instant::now();
        self.entries.get(thing).map(|e| e.queue.iter().map(|w| w.view(now)).collect()).unwrap_or_default()
    }

    /// Marks a command that is taken back, so that it is not sent whatever happens; its number. It has yet to be told and
    /// finished.
    pub(super) fn cancel(&mut self, keyed: &Keyed, thing: &Thing, id: &str) -> Result<u64, ShadowError> {
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
    pub(super) fn finish(&mut self, thing: &Thing, number: u64) {
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
    pub(super) fn unsent(&mut self, keyed: &Keyed, thing: &Thing, number: u64, why: String) {
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
fn mark(keyed: &Keyed, thing: &str, waiting: &mut Waiting) -> Result<(), BusError> {
    waiting.sent = true;
    let kept = keyed.put(TREE_WAITING, &waiting.number.to_be_bytes(), &waiting.record(thing));
    if let Err(error) = &kept {
        (waiting.sent, waiting.error) = (false, Some(error.to_string()));
    }
    kept.map(|_| ())
}

/// Nothing is kept of the command any more: its last reply is on disk.
pub(super) fn forget(keyed: &Keyed, number: u64) {
    if let Err(error) = keyed.remove(TREE_WAITING, &number.to_be_bytes()) {
        // After a restart it is told a second time, as given up; it is never sent again.
        warn!(%error, "the end of a waiting command could not be written down");
    }
}

// === shadows ===

impl State {
    /// Changes what a thing is to have; false when that is what it was to have already.
    pub(super) fn change(
        &mut self,
        keyed: &Keyed,
        config: &config::Shadow,
        thing: &Thing,
        patch: &Patch,
        insist: bool,
    ) -> Result<bool, ShadowError> {
        let none = Document::default();
        let (before, old_bytes) =
            self.entries.get(&thing.id).map_or((&none, 0), |entry| (&entry.document, entry.document_bytes));
        let Some(next) = before.patched(&thing.id, &thing.model, patch, clock::now_us())? else { return Ok(false) };
        let bytes = next.bytes();
        if bytes > old_bytes {
            self.room(config, bytes - old_bytes)?;
        }
        keep_document(keyed, &thing.id, &next)?;
        self.bytes = self.bytes + bytes - old_bytes;
        let entry = self.entry(thing);
        if insist {
            let changed = next.desired.iter().filter(|(name, to)| entry.document.desired.get(*name) != Some(to));
            entry.insisted.extend(changed.map(|(name, _)| Arc::clone(name)));
        }
        (entry.document, entry.document_bytes) = (next, bytes);
        (entry.delta_tries, entry.delta_pause, entry.delta_error) = (0, None, None);
        self.wake(&thing.id, Sign::Spoke);
        Ok(true)
    }

    /// The thing answered a write of these.
    pub(super) fn written(
        &mut self,
        keyed: &Keyed,
        thing: &Thing,
        values: &BTreeMap<Arc<str>, Value>,
        handed_over: bool,
        error: Option<String>,
    ) {
        let Some(entry) = self.entries.get_mut(&thing.id) else { return };
        if handed_over {
            entry.insisted.retain(|name| !values.contains_key(name));
        }
        let pause = DELTA_PAUSE.saturating_mul(1 << entry.delta_tries.min(5));
        let at = Instant::now() + pause;
        entry.delta_tries += 1;
        entry.delta_pause = Some(at);
        if error.is_none() && entry.document.take(&thing.model, values) {
            // At worst the thing is told once more after a restart.
            drop(keep_document(keyed, &thing.id, &entry.document));
        }
        entry.delta_error = error;
        self.due.insert((at, Arc::clone(&thing.id)));
    }

    pub(super) fn mark(&self, thing: &str) -> (u64, usize) {
        self.entries.get(thing).map_or((0, 0), |entry| (entry.document.version, entry.queue.len()))
    }

    pub(super) fn view(
        &self,
        thing: &Thing,
        latest: &BTreeMap<Arc<str>, Latest>,
        reported: BTreeMap<Arc<str>, Value>,
    ) -> ShadowView {
        let entry = self.entries.get(&thing.id);
        let none = Document::default();
        let document = entry.map_or(&none, |entry| &entry.document);
        let delta = document.delta(latest);
        let tries = entry.map_or(0, |entry| entry.delta_tries);
        let state = match (delta.is_empty(), thing.is_reachable()) {
            (true, _) => "in-sync",
            (_, false) => "offline",
            _ if tries >= TRIES_MAX => "given-up",
            _ => "sending",
        };
        let error = entry.and_then(|entry| entry.delta_error.clone()).filter(|_| !delta.is_empty());
        ShadowView {
            thing: thing.id.to_string(),
            version: document.version,
            changed_us: document.changed_us,
            desired: document.desired.iter().map(|(name, d)| (Arc::clone(name), d.value.clone())).collect(),
            reported,
            delta,
            state,
            error,
            commands: entry.map_or(0, |entry| entry.queue.len()),
        }
    }
}

fn keep_document(keyed: &Keyed, thing: &str, document: &Document) -> Result<(), ShadowError> {
    let json = serde_json::to_vec(document).map_err(|error| ShadowError::Store(error.to_string()))?;
    keyed.put(TREE_SHADOWS, thing.as_bytes(), &json)?;
    Ok(())
}

// === deliveries ===

impl State {
    /// The thing is to be looked at.
    pub(super) fn wake(&mut self, thing: &Arc<str>, sign: Sign) {
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
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Wakes what is due. The commands whose time is over are marked, so that they are not sent whatever happens; they have yet
    /// to be told and finished.
    pub(super) fn expire(&mut self, keyed: &Keyed) -> Vec<Told> {
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
    pub(super) fn begin(&mut self) -> Option<Arc<str>> {
        while let Some(id) = self.woken.pop_front() {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.woken = false;
            entry.busy = true;
            return Some(id);
        }
        None
    }

    /// What the delivery for this thing has to do next.
    pub(super) fn next(&mut self, keyed: &Keyed, thing: &Thing) -> Next {
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
    pub(super) fn end(&mut self, thing: &Thing) {
        if let Some(entry) = self.entries.get_mut(&thing.id) {
            entry.busy = false;
            if entry.woken {
                self.woken.push_back(Arc::clone(&thing.id));
            }
        }
        self.tidy(thing);
    }

    pub(super) fn count(&self, now: Instant) -> Count {
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
