//! Durable readers: each has a place in every class, reads only what is durable, and commits what it is done with.
//!
//! File reads are done by one thread for all readers (`fetch.rs`), so that a slow disk never holds up the runtime.

use std::sync::Arc;

use bytes::Bytes;
use device_models::Class;
use tokio::sync::oneshot;

use super::fetch::{Job, Place};
use super::{BusError, Inner, index};

/// What a reader is given, strictly in order inside a class: every number is in exactly one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Record {
        seq: u64,
        bytes: Bytes,
    },
    /// The numbers `first..=last` will never come. Reasons: `cap`, `ttl`, `free-space`, `disk-full`, `disk-error`, `torn` (cut off
    /// by a power cut, hence never acknowledged), `corrupt`.
    Gap {
        first: u64,
        last: u64,
        reason: String,
    },
}

/// A named reader with a durable cursor. One object a name at a time.
#[derive(Debug)]
pub struct Reader {
    inner: Arc<Inner>,
    name: String,
    committed: [u64; 4],
    places: [Place; 4],
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
        let mut reader = Self { inner, name: name.to_owned(), committed, places: Default::default() };
        reader.rewind();
        Ok(reader)
    }

    /// What is there now, maybe nothing: at most `records_max` entries, and records of about `bytes_max` together (one
    /// longer record comes alone). Cancel safe: what was not returned is read again.
    ///
    /// An error is one of the disk's that may pass; try again after a pause. What is damaged for good is a gap.
    pub async fn next(&mut self, class: Class, records_max: usize, bytes_max: usize) -> Result<Vec<Entry>, BusError> {
        let place = self.places[index(class)];
        let through = self.inner.durable.borrow().through[index(class)];
        if place.next > through || records_max == 0 {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { class, place, through, records_max, bytes_max, reply };
        self.inner.jobs.send(job).await.map_err(|_| BusError::Closed)?;
        let (entries, place) = answer.await.map_err(|_| BusError::Closed)??;
        self.places[index(class)] = place;
        Ok(entries)
    }

    /// Resolves when `next` of some class would return something. Cancel safe.
    pub async fn ready(&self) {
        self.wait(&Class::ALL).await;
    }

    /// As [`ready`](Self::ready), for one class.
    pub async fn ready_in(&self, class: Class) {
        self.wait(&[class]).await;
    }

    async fn wait(&self, classes: &[Class]) {
        let mut durable = self.inner.durable.clone();
        let more = |class: &Class| {
            let (class, next) = (index(*class), self.places[index(*class)].next);
            move |through: &[u64; 4]| next <= through[class]
        };
        let there = durable.wait_for(|durable| classes.iter().any(|class| more(class)(&durable.through))).await.is_ok();
        if !there {
            // The bus is closed: nothing will come any more.
            std::future::pending::<()>().await;
        }
    }

    /// Everything up to `seq` is done. Durable within about two seconds, and at close; after a crash some is read again.
    pub fn commit(&mut self, class: Class, seq: u64) {
        let slot = &mut self.committed[index(class)];
        if seq > *slot {
            *slot = seq;
            self.inner.cursors.commit(&self.name, class, seq);
        }
        let place = &mut self.places[index(class)];
        if place.next <= seq {
            place.next = seq + 1;
        }
    }

    /// Moves the reading place back to what is committed.
    pub fn rewind(&mut self) {
        self.places = self.committed.map(|seq| Place::at(seq + 1));
    }

    /// By class: the highest committed number.
    pub const fn committed(&self) -> [u64; 4] {
        self.committed
    }

    /// By class: durable numbers that are not committed.
    pub fn backlog(&self) -> [u64; 4] {
        let through = self.inner.durable.borrow().through;
        Class::ALL.map(|class| through[index(class)].saturating_sub(self.committed[index(class)]))
    }
}
