//! Shadows and waiting commands of all things, in memory and in the keyed store alike, within their limits.
//!
//! Everything here is quick and waits for nothing: who needs to know that a change is on disk flushes the store.

mod commands;
mod deliveries;
mod shadows;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_models::{Order, Value};
use tracing::warn;

pub(super) use commands::forget;

use super::document::Document;
use super::waiting::{Kept, Waiting};
use crate::bus::{BusError, Keyed};
use crate::devices::{Devices, Thing};

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
