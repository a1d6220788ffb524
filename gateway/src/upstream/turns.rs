//! Commands of one upstream in the order they came: so many are under way at a time, of one thing fewer, and the others
//! wait for their turn. A thing that is slow holds up nobody's commands but its own.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use device_models::{Order, Value};

use super::down::{Change, Command, Malformed};

/// Commands under way at a time, and of one thing: it takes 16, and others want some of them.
const UNDER_WAY_MAX: usize = 64;
const OF_ONE_THING_MAX: usize = 8;
/// What may wait before the destination is told to hold back, which MQTT can: commands, and their bytes.
const LINE_MAX: usize = 1_000;
const LINE_BYTES_MAX: usize = 1 << 20;
/// What is on its way while it holds back still finds a place.
const LINE_LAST: usize = LINE_MAX + 1_000;
const LINE_BYTES_LAST: usize = 8 << 20;
/// What a command takes beside its texts.
const BESIDE_BYTES: usize = 128;

/// What is to be done for one command.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// As [`Wish::Order`](super::down::Wish::Order).
    Order {
        command: Command,
        wait: Option<std::time::Duration>,
    },
    Change(Change),
    /// It is answered with what is wrong with it.
    Refuse(Malformed),
}

/// A command that has its turn.
#[derive(Debug)]
pub(super) struct Turn {
    pub thing: String,
    pub job: Job,
    pub since: Instant,
    bytes: usize,
}

/// Who waits, and who is under way.
#[derive(Debug, Default)]
pub(super) struct Turns {
    line: VecDeque<Turn>,
    bytes: usize,
    under_way: usize,
    /// By thing, of those that have any.
    of: HashMap<String, usize>,
}

// === impl Job ===

impl Job {
    pub(super) fn into_id(self) -> String {
        match self {
            Self::Order { command, .. } => command.id,
            Self::Change(change) => change.id,
            Self::Refuse(malformed) => malformed.id,
        }
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let named = |name: &String, value: &Value| name.len() + size(value);
        BESIDE_BYTES
            + match self {
                Self::Order { command, .. } => {
                    command.id.len()
                        + match &command.order {
                            Order::Write(values) => values.iter().map(|(name, value)| named(name, value)).sum(),
                            Order::Read(names) => names.iter().map(|name| name.len() + size_of::<String>()).sum(),
                            Order::Invoke { action, input } => action.len() + size(input),
                        }
                }
                Self::Change(Change { id, patch, .. }) => {
                    id.len() + patch.desired.iter().map(|(name, value)| named(name, value)).sum::<usize>()
                }
                Self::Refuse(Malformed { id, reason }) => id.len() + reason.len(),
            }
    }
}

/// About what a value takes in memory.
fn size(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::Array(values) => values.iter().map(size).sum(),
            Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
            _ => 0,
        }
}

// === impl Turns ===

impl Turns {
    /// Takes its place at the end; false when there is none.
    pub(super) fn join(&mut self, thing: &str, job: Job, now: Instant) -> bool {
        let bytes = job.bytes() + thing.len();
        if self.line.len() >= LINE_LAST || self.bytes + bytes > LINE_BYTES_LAST {
            return false;
        }
        self.bytes += bytes;
        self.line.push_back(Turn { thing: thing.to_owned(), job, since: now, bytes });
        true
    }

    /// The first whose turn it is, under way from now on.
    pub(super) fn next(&mut self) -> Option<Turn> {
        if self.under_way >= UNDER_WAY_MAX {
            return None;
        }
        let free = |turn: &Turn| self.of.get(&turn.thing).is_none_or(|count| *count < OF_ONE_THING_MAX);
        let at = self.line.iter().position(free)?;
        let turn = self.line.remove(at)?;
        self.bytes = self.bytes.saturating_sub(turn.bytes);
        self.under_way += 1;
        *self.of.entry(turn.thing.clone()).or_default() += 1;
        Some(turn)
    }

    /// One of this thing has ended.
    pub(super) fn ended(&mut self, thing: &str) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(count) = self.of.get_mut(thing) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of.remove(thing);
            }
        }
    }

    /// Whether more may be asked for.
    pub(super) fn has_room(&self) -> bool {
        self.line.len() < LINE_MAX && self.bytes < LINE_BYTES_MAX
    }

    /// All that wait, which never have their turn.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = Turn> {
        self.bytes = 0;
        std::mem::take(&mut self.line).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(bytes: usize) -> Job {
        Job::Refuse(Malformed { id: String::new(), reason: "x".repeat(bytes) })
    }

    fn started(turns: &mut Turns) -> Vec<String> {
        std::iter::from_fn(|| turns.next()).map(|turn| turn.thing).collect()
    }

    #[test]
    fn a_slow_thing_holds_up_its_own_commands_alone_and_nobody_is_forgotten() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        for n in 0..1_000 {
            assert!(turns.join(if n % 2 == 0 { "slow" } else { "quick" }, job(1), now));
        }
        assert!(!turns.has_room(), "what comes now waits where it is");
        assert!(turns.join("late", job(1), now), "but for what was on its way");
        let first = started(&mut turns);
        assert_eq!(first.iter().filter(|thing| *thing == "slow").count(), OF_ONE_THING_MAX);
        assert_eq!(first.iter().filter(|thing| *thing == "quick").count(), OF_ONE_THING_MAX);
        assert_eq!(first.last().unwrap(), "late");
        turns.ended("late");
        let mut quick = OF_ONE_THING_MAX;
        while quick < 500 {
            turns.ended("quick");
            assert_eq!(started(&mut turns), ["quick"]);
            quick += 1;
        }
        assert!(turns.has_room());
        for _ in 0..OF_ONE_THING_MAX {
            turns.ended("quick");
        }
        for _ in OF_ONE_THING_MAX..500 {
            assert_eq!(started(&mut turns), Vec::<String>::new());
            turns.ended("slow");
            assert_eq!(started(&mut turns), ["slow"]);
        }
        assert_eq!((turns.line.len(), turns.bytes), (0, 0));
    }

    #[test]
    fn the_line_has_an_end_in_commands_and_in_bytes_and_the_whole_in_what_is_under_way() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert_eq!((0..3_000).filter(|n| turns.join(&format!("{n}"), job(1), now)).count(), LINE_LAST);
        assert_eq!(started(&mut turns).len(), UNDER_WAY_MAX);
        let mut turns = Turns::default();
        assert_eq!((0..2_000).filter(|n| turns.join(&format!("{n}"), job(64 << 10), now)).count(), 127);
        assert_eq!(turns.give_up().count(), 127);
        assert!(turns.has_room());
    }
}
