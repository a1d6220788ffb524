//! Durable readers: each has a place in every class, reads only what is durable, and commits what it is done with.
//!
//! File reads are done by one thread for all readers (`fetch.rs`), so that a slow disk never holds up the runtime.

use std::sync::Arc;

use bytes::Bytes;
use device_models::Class;
use device_models::wire::Template;
use tokio::sync::oneshot;

use super::fetch::{Job, Place};
use super::passed::{BEYOND_MAX, Passed};
use super::{BusError, Inner, index};

/// What a reader is given, strictly in order inside a class: every number is in exactly one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Record {
        seq: u64,
        /// What it leans on: see [`device_models::wire::decode_record`].
        template: Option<Template>,
        bytes: Bytes,
    },
    /// The numbers `first..=last` will never come. Reasons: `cap`, `ttl`, `free-space`, `disk-full`, `disk-error`, `torn` (cut off
    /// by a power cut, hence never acknowledged), `corrupt`, `restored` (the cursor is of an older copy).
    Gap { first: u64, last: u64, reason: String },
}

/// Which of a class's records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Road {
    /// From the cursor on: everything, or what lay there at the last [`Reader::split`].
    Main,
    /// What came since the last [`Reader::split`]; nothing without one.
    Newest,
}

/// A named reader with a durable cursor. One object a name at a time.
#[derive(Debug)]
pub struct Reader {
    inner: Arc<Inner>,
    name: String,
    committed: [Passed; 4],
    places: [Place; 4],
    newest: [Option<Newest>; 4],
}

/// Where the newest records are read.
#[derive(Debug, Clone)]
struct Newest {
    place: Place,
    /// The main road ends here.
    split: u64,
    /// First number read on this road.
    start: u64,
    /// Given out on this road and not committed: the main road steps over it.
    given: Passed,
}

// === impl Entry ===

impl Entry {
    /// The highest number the entry covers: what to commit when it is done.
    pub const fn last(&self) -> u64 {
        match self {
            Self::Record { seq, .. } => *seq,
            Self::Gap { last, .. } => *last,
        }
    }
}

// === impl Reader ===

impl Reader {
    pub(super) fn open(inner: Arc<Inner>, name: &str) -> Result<Self, BusError> {
        let committed = inner.cursors.reader(name, inner.oldest())?;
        let mut reader =
            Self { inner, name: name.to_owned(), committed, places: Default::default(), newest: Default::default() };
        reader.rewind();
        Ok(reader)
    }

    /// What is there now, maybe nothing: at most `records_max` entries, and records of about `bytes_max` together (one
    /// longer record comes alone). Cancel safe: what was not returned is read again.
    ///
    /// An error is one of the disk's that may pass; try again after a pause. What is damaged for good is a gap.
    pub async fn next(&mut self, class: Class, records_max: usize, bytes_max: usize) -> Result<Vec<Entry>, BusError> {
        self.next_on(Road::Main, class, records_max, bytes_max).await
    }

    /// As [`next`](Self::next), on one of the roads.
    pub async fn next_on(
        &mut self,
        road: Road,
        class: Class,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, BusError> {
        let durable = self.inner.durable.borrow().through[index(class)];
        let Some((place, through)) = self.stretch(road, class, durable) else { return Ok(Vec::new()) };
        if records_max == 0 {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { class, place, through, records_max, bytes_max, reply };
        self.inner.jobs.send(job).await.map_err(|_| BusError::Closed)?;
        let (entries, place) = answer.await.map_err(|_| BusError::Closed)??;
        match (road, &mut self.newest[index(class)]) {
            (Road::Newest, Some(newest)) => newest.place = place,
            _ => self.places[index(class)] = place,
        }
        Ok(entries)
    }

    /// What there is of one number; `None` when it is not durable. Moves no place.
    pub async fn one(&self, class: Class, seq: u64) -> Result<Option<Entry>, BusError> {
        if seq > self.inner.durable.borrow().through[index(class)] {
            return Ok(None);
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { class, place: Place::at(seq), through: seq, records_max: 1, bytes_max: 1, reply };
        self.inner.jobs.send(job).await.map_err(|_| BusError::Closed)?;
        let (entries, _) = answer.await.map_err(|_| BusError::Closed)??;
        Ok(entries.into_iter().next())
    }

    /// From where, and through which number, there is something to read on a road.
    fn stretch(&self, road: Road, class: Class, durable: u64) -> Option<(Place, u64)> {
        let newest = self.newest[index(class)].as_ref();
        let (place, through) = match road {
            Road::Newest => (newest?.place, durable),
            Road::Main => {
                let mut place = self.places[index(class)];
                let passed = &self.committed[index(class)];
                let step = |seq| newest.map_or(passed.next(seq), |newest| newest.given.next(passed.next(seq)));
                let mut next = place.next;
                while step(next) != next {
                    next = step(next);
                }
                if next != place.next {
                    place = Place::at(next);
                }
                let end = newest.map_or(u64::MAX, |newest| newest.split.min(newest.given.end(next)));
                (place, durable.min(end).min(passed.end(next)))
            }
        };
        (place.next <= through).then_some((place, through))
    }

    /// From here on what comes goes by [`Road::Newest`], and what is there and not given out yet by [`Road::Main`]. `kept`:
    /// the first number that was given out (on the newest road, or on the main one if there is no other) and is to be read
    /// again on the main one. False when there are too many pieces already: then nothing changes.
    pub fn split(&mut self, class: Class, kept: Option<u64>) -> bool {
        let at = index(class);
        let through = self.inner.durable.borrow().through[at];
        let mut given = Passed::default();
        if let Some(newest) = &self.newest[at] {
            given = newest.given.clone();
            given.pass(newest.start, kept.unwrap_or(newest.place.next) - 1);
        }
        if given.spans().len() + self.committed[at].spans().len() >= BEYOND_MAX {
            return false;
        }
        if let (None, Some(kept)) = (&self.newest[at], kept) {
            self.places[at] = Place::at(kept);
        }
        self.newest[at] = Some(Newest { place: Place::at(through + 1), split: through, start: through + 1, given });
        true
    }

    /// Resolves when `next` of some class would return something. Cancel safe.
    pub async fn ready(&self) {
        self.ready_on(&Class::ALL.map(|class| (Road::Main, class))).await;
    }

    /// Whether a class is on two roads.
    pub fn is_split(&self, class: Class) -> bool {
        self.newest[index(class)].is_some()
    }

    /// As [`ready`](Self::ready), for one class.
    pub async fn ready_in(&self, class: Class) {
        self.ready_on(&[(Road::Main, class)]).await;
    }

    /// Resolves when `next_on` of some of these would return something. Cancel safe.
    pub async fn ready_on(&self, wanted: &[(Road, Class)]) {
        let mut durable = self.inner.durable.clone();
        let more = |through: &[u64; 4]| {
            wanted.iter().any(|(road, class)| self.stretch(*road, *class, through[index(*class)]).is_some())
        };
        if durable.wait_for(|durable| more(&durable.through)).await.is_err() {
            // The bus is closed: nothing will come any more.
            std::future::pending::<()>().await;
        }
    }

    /// Everything up to `seq` is done. Durable within about two seconds, and at close; after a crash some is read again.
    pub fn commit(&mut self, class: Class, seq: u64) {
        self.commit_span(class, 1, seq);
        let place = &mut self.places[index(class)];
        if place.next <= seq {
            *place = Place::at(seq + 1);
        }
    }

    /// `first..=last` is done, whatever lies before.
    pub fn commit_span(&mut self, class: Class, first: u64, last: u64) {
        if self.committed[index(class)].pass(first, last) {
            self.inner.cursors.commit(&self.name, class, first, last);
        }
    }

    /// Makes the cursor durable now. Until a new reader's is, a crash would make it new again: it would begin at the oldest
    /// record then, and what had to go before would never be said to it.
    pub async fn settle(&self) -> Result<(), BusError> {
        self.inner.keyed.flush().await
    }

    /// Moves the reading place back to what is committed, and makes one road of both.
    pub fn rewind(&mut self) {
        self.places = std::array::from_fn(|at| Place::at(self.committed[at].through + 1));
        self.newest = Default::default();
    }

    /// By class: everything up to here is committed.
    pub fn committed(&self) -> [u64; 4] {
        std::array::from_fn(|at| self.committed[at].through)
    }

    /// By class: durable numbers that are not committed.
    pub fn backlog(&self) -> [u64; 4] {
        let through = self.inner.durable.borrow().through;
        Class::ALL.map(|class| self.committed[index(class)].left(through[index(class)]))
    }
}
