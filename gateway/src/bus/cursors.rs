//! Durable cursors: how far each named reader is done, kept in the keyed state. A segment may go once every cursor has
//! passed it *on disk*: a cursor that only memory knows would come back after a power cut and find its records gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use device_models::Class;

use super::keyed::Keyed;
use super::log::Loss;
use super::passed::{BEYOND_MAX, Passed};
use super::recover::Known;
use super::{BusError, Lock, index};

/// Named readers at a time; each costs a look at every commit.
const READERS_MAX: usize = 64;
pub(super) const TREE: &str = "cursor";
const BUS: &str = "bus";
/// How often cursors and the highest durable numbers are noted while little comes. Each note costs a write of the keyed
/// state, which is many times what one device's report takes.
pub(super) const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Numbers that a cursor's note may be behind before that time is over: a crash sends so many a second time.
const BEHIND_MAX: u64 = 1_000;

/// The cursors of all readers, present or not.
#[derive(Debug)]
pub(super) struct Cursors {
    keyed: Keyed,
    epoch: u64,
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    cursors: BTreeMap<String, Cursor>,
    marks: [u64; 4],
    /// Highest durable numbers: now, and as last noted.
    high: [u64; 4],
    noted: [u64; 4],
    /// When these and the cursors were last noted.
    at: Option<Instant>,
    /// By class the last number that went from the front of the log and is named in the control class.
    told: [u64; 4],
}

#[derive(Debug, Default)]
struct Cursor {
    latest: [Passed; 4],
    /// The write that will make these numbers durable.
    pending: Option<(u64, [u64; 4])>,
    durable: [u64; 4],
    /// Changed since `pending` was noted.
    dirty: bool,
}

/// What the keyed state tells about the log before the log is opened.
pub(super) fn known(keyed: &Keyed) -> Known {
    let epoch = keyed.get(BUS, b"epoch").ok().flatten().and_then(|v| Some(u64::from_le_bytes((*v).try_into().ok()?)));
    let Some(epoch) = epoch else { return Known::default() };
    let mut committed = [0; 4];
    for (_, value) in keyed.scan(TREE, b"").unwrap_or_default() {
        if let Some((of, passed)) = decode_cursor(&value) {
            for (most, passed) in committed.iter_mut().zip(passed) {
                *most = if of == epoch { passed.last().max(*most) } else { *most };
            }
        }
    }
    Known { epoch: Some(epoch), marks: noted(keyed, b"marks", epoch), high: noted(keyed, b"high", epoch), committed }
}

/// Four numbers noted in this epoch; 0: none.
fn noted(keyed: &Keyed, key: &[u8], epoch: u64) -> [u64; 4] {
    let found = keyed.get(BUS, key).ok().flatten().and_then(|value| decode(&value));
    found.filter(|(of, _)| *of == epoch).map_or([0; 4], |(_, numbers)| numbers)
}

// === impl Cursors ===

impl Cursors {
    /// Reads the cursors of this epoch.
    pub(super) fn open(keyed: Keyed, epoch: u64) -> Result<Self, BusError> {
        let mut cursors = BTreeMap::new();
        for (name, value) in keyed.scan(TREE, b"")? {
            let (Ok(name), Some((of, latest))) = (String::from_utf8(name), decode_cursor(&value)) else { continue };
            if of != epoch {
                continue;
            }
            let durable = through(&latest);
            cursors.insert(name, Cursor { latest, durable, ..Cursor::default() });
        }
        let (told, marks) = (noted(&keyed, b"told", epoch), noted(&keyed, b"marks", epoch));
        keyed.put(BUS, b"epoch", &epoch.to_le_bytes())?;
        Ok(Self { keyed, epoch, state: Lock::new(State { cursors, marks, told, ..State::default() }) })
    }

    /// By class the first and last number below `oldest` that some reader has not passed and no gap record is known to
    /// name: a kill came between the removal of a segment and its gap record, or the cursors are older than the log. With
    /// `lossy` keyed state no cursor at all means that they are lost.
    pub(super) fn untold(&self, oldest: [u64; 4], lossy: bool) -> [Option<(u64, u64)>; 4] {
        let state = self.state.lock();
        let Some(passed) = state.least().or(lossy.then_some([0; 4])) else { return [None; 4] };
        std::array::from_fn(|at| {
            let (first, last) = (passed[at].max(state.told[at]) + 1, oldest[at].saturating_sub(1));
            (first <= last).then_some((first, last))
        })
    }

    /// Notes what gap records name that are on disk: of each class only what follows on what was named or passed before.
    pub(super) fn tell(&self, losses: &[Loss]) {
        let mut state = self.state.lock();
        let passed = state.least();
        let mut told = state.told;
        for loss in losses {
            let at = index(loss.class);
            if loss.first <= told[at].max(passed.map_or(0, |passed| passed[at])) + 1 {
                told[at] = loss.last.max(told[at]);
            }
        }
        if state.told != told && self.keyed.put(BUS, b"told", &encode(self.epoch, told)).is_ok() {
            state.told = told;
        }
    }

    /// The committed numbers of a reader; a new one is done with everything before `oldest`.
    pub(super) fn reader(&self, name: &str, oldest: [u64; 4]) -> Result<[Passed; 4], BusError> {
        if name.is_empty() || name.len() > 128 {
            return Err(BusError::ReaderName { name: name.chars().take(128).collect() });
        }
        let mut state = self.state.lock();
        if let Some(cursor) = state.cursors.get(name) {
            return Ok(cursor.latest.clone());
        }
        if state.cursors.len() >= READERS_MAX {
            return Err(BusError::TooManyReaders { max: READERS_MAX });
        }
        let latest = oldest.map(|seq| Passed::new(seq.saturating_sub(1)));
        self.keyed.put(TREE, name.as_bytes(), &encode_cursor(self.epoch, &latest))?;
        let cursor = Cursor { latest: latest.clone(), dirty: true, ..Cursor::default() };
        state.cursors.insert(name.to_owned(), cursor);
        Ok(latest)
    }

    pub(super) fn forget(&self, name: &str) -> Result<(), BusError> {
        self.state.lock().cursors.remove(name);
        self.keyed.remove(TREE, name.as_bytes()).map(drop)
    }

    pub(super) fn of(&self, name: &str) -> Option<[Passed; 4]> {
        self.state.lock().cursors.get(name).map(|cursor| cursor.latest.clone())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state.lock().cursors.keys().cloned().collect()
    }

    /// By class the number every reader has passed, durably or not; `None` without readers.
    pub(super) fn latest(&self) -> Option<[u64; 4]> {
        self.state.lock().latest()
    }

    /// `first..=last` is done.
    pub(super) fn commit(&self, name: &str, class: Class, first: u64, last: u64) {
        let mut state = self.state.lock();
        let Some(cursor) = state.cursors.get_mut(name) else { return };
        let at = index(class);
        cursor.dirty |= cursor.latest[at].pass(first, last);
    }

    /// Notes the first number of each class's newest segment; 0, of a class without one: what was noted stays.
    pub(super) fn mark(&self, marks: [u64; 4]) {
        let mut state = self.state.lock();
        let marks = std::array::from_fn(|at| marks[at].max(state.marks[at]));
        if state.marks != marks && self.keyed.put(BUS, b"marks", &encode(self.epoch, marks)).is_ok() {
            state.marks = marks;
        }
    }

    /// The highest durable numbers: a start that finds less on disk must not give them again.
    pub(super) fn reached(&self, through: [u64; 4]) {
        self.state.lock().high = through;
    }

    /// Notes cursors and numbers at the end: also cursors whose write before is not known to be durable yet.
    pub(super) fn save_last(&self) {
        self.note(&mut self.state.lock(), |_| true);
    }

    /// Hands what has changed to the keyed state, which makes it durable within its second.
    fn note(&self, state: &mut State, which: impl Fn(&Cursor) -> bool) {
        state.at = Some(Instant::now());
        if state.high != state.noted && self.keyed.put(BUS, b"high", &encode(self.epoch, state.high)).is_ok() {
            state.noted = state.high;
        }
        for (name, cursor) in state.cursors.iter_mut().filter(|(_, cursor)| cursor.dirty && which(cursor)) {
            if let Ok(write) = self.keyed.put(TREE, name.as_bytes(), &encode_cursor(self.epoch, &cursor.latest)) {
                cursor.pending = Some((write, through(&cursor.latest)));
                cursor.dirty = false;
            }
        }
    }

    /// By class the number every reader has durably passed; `None` without readers. Cursors are noted when it is time, or
    /// at once when a full segment, of these last numbers (`u64::MAX`: none), can go with it.
    pub(super) fn passed(&self, sealed: [u64; 4]) -> Option<[u64; 4]> {
        let durable = self.keyed.through();
        let mut state = self.state.lock();
        let waits = |latest: [u64; 4]| latest.iter().zip(sealed).any(|(latest, last)| *latest >= last);
        let due = state.at.is_none_or(|at| at.elapsed() >= NOTE_EVERY);
        for cursor in state.cursors.values_mut() {
            if let Some((_, seqs)) = cursor.pending.take_if(|(write, _)| *write <= durable) {
                cursor.durable = seqs;
            }
        }
        if due || state.is_behind() || state.latest().is_some_and(waits) {
            self.note(&mut state, |cursor| cursor.pending.is_none());
        }
        state.least()
    }
}

impl State {
    fn is_behind(&self) -> bool {
        let behind = |cursor: &Cursor| {
            let latest = through(&cursor.latest);
            latest.iter().zip(cursor.durable).any(|(latest, durable)| latest.saturating_sub(durable) >= BEHIND_MAX)
        };
        self.cursors.values().any(behind)
    }

    fn latest(&self) -> Option<[u64; 4]> {
        let all = self.cursors.values().map(|cursor| through(&cursor.latest));
        all.reduce(|least, seqs| std::array::from_fn(|at| least[at].min(seqs[at])))
    }

    /// By class the number every reader has durably passed; `None` without readers.
    fn least(&self) -> Option<[u64; 4]> {
        let all = self.cursors.values().map(|cursor| cursor.durable);
        all.reduce(|least, seqs| std::array::from_fn(|at| least[at].min(seqs[at])))
    }
}

/// By class the number up to which everything is done.
fn through(passed: &[Passed; 4]) -> [u64; 4] {
    std::array::from_fn(|at| passed[at].through)
}

/// Epoch and four numbers, then by class the count of spans beyond and first and last of each, little-endian. Without
/// spans the end is left out.
fn encode_cursor(epoch: u64, passed: &[Passed; 4]) -> Vec<u8> {
    let mut bytes = encode(epoch, through(passed));
    if passed.iter().any(|passed| !passed.spans().is_empty()) {
        for passed in passed {
            bytes.extend_from_slice(&(passed.spans().len() as u64).to_le_bytes());
            for (first, last) in passed.spans() {
                bytes.extend_from_slice(&first.to_le_bytes());
                bytes.extend_from_slice(&last.to_le_bytes());
            }
        }
    }
    bytes
}

pub(super) fn decode_cursor(bytes: &[u8]) -> Option<(u64, [Passed; 4])> {
    let (head, mut rest) = bytes.split_at_checked(40)?;
    let (epoch, through) = decode(head)?;
    let mut passed = through.map(Passed::new);
    if rest.is_empty() {
        return Some((epoch, passed));
    }
    let mut word = || {
        let (word, tail) = rest.split_first_chunk::<8>()?;
        rest = tail;
        Some(u64::from_le_bytes(*word))
    };
    for passed in &mut passed {
        for _ in 0..word()?.min(BEYOND_MAX as u64) {
            passed.pass(word()?, word()?);
        }
    }
    Some((epoch, passed))
}

/// Epoch and four numbers, little-endian.
fn encode(epoch: u64, seqs: [u64; 4]) -> Vec<u8> {
    std::iter::once(epoch).chain(seqs).flat_map(u64::to_le_bytes).collect()
}

fn decode(bytes: &[u8]) -> Option<(u64, [u64; 4])> {
    let words: Vec<u64> =
        bytes.chunks(8).map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect::<Option<_>>()?;
    let (epoch, seqs) = words.split_first()?;
    Some((*epoch, seqs.try_into().ok()?))
}
