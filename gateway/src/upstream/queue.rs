//! Messages of one class between the bus and their batches: where a batch ends, and whether it is live or backlog.
//!
//! Pure: time is handed in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use device_models::Message;
use device_models::wire::{Hole, RecordReader};
use tokio::time::Instant;

use super::filter::{FILTERED, Filter};
use crate::bus::Entry;

/// Messages in one batch: a bound on what one lost packet sends again, and on memory.
pub(super) const RECORDS_MAX: usize = 1000;
/// What numbers that are not wanted take in a batch, bytes.
const SKIPPED_BYTES: usize = 16;
/// A message older than this is backlog.
pub(super) const LIVE_MAX_US: i64 = 10_000_000;

/// When a batch is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// At most [`RECORDS_MAX`]; fewer while a destination refuses batches, to find out which message it means.
    pub records: usize,
    pub bytes: usize,
    pub time: Duration,
}

/// One class's messages on their way.
#[derive(Debug)]
pub(super) struct Queue {
    filter: Arc<Filter>,
    /// How long numbers that nobody wants wait to be told together with others.
    skip_pause: Duration,
    records: RecordReader,
    items: VecDeque<Item>,
    bytes: usize,
    /// Before it only full batches go: set when one goes, so that a lone message after a quiet spell need not wait.
    quiet_until: Instant,
}

#[derive(Debug, Clone)]
enum Item {
    Message {
        seq: u64,
        message: Box<Message>,
        bytes: usize,
    },
    Hole(Hole),
    /// Not wanted; when the first of them came.
    Skipped {
        first: u64,
        count: u64,
        since: Instant,
    },
}

/// What became of records on their way into a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    pub unreadable: u64,
    pub filtered: u64,
}

/// A batch's worth, in order, without a number between.
#[derive(Debug, Clone, Default)]
pub(super) struct Cut {
    pub messages: Vec<(u64, Message)>,
    pub holes: Vec<Hole>,
    pub hist: bool,
}

/// The clocks a cut is made by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub instant: Instant,
    pub us: i64,
    /// When this connection came up: what is older is backlog.
    pub connected_us: i64,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(filter: Arc<Filter>, skip_pause: Duration, now: Instant) -> Self {
        let records = RecordReader::default();
        Self { filter, skip_pause, records, items: VecDeque::new(), bytes: 0, quiet_until: now }
    }

    /// Records and bytes that still go into the next batch.
    pub(super) fn room(&self, limits: Limits) -> (usize, usize) {
        let bytes = limits.bytes.saturating_sub(self.bytes);
        (if bytes == 0 { 0 } else { RECORDS_MAX.saturating_sub(self.items.len()) }, bytes)
    }

    /// Takes in what the bus gave. A record that cannot be read becomes a hole with its reason; answers how many did.
    /// What the destination has refused for good (number and reason) becomes a hole too.
    pub(super) fn push(&mut self, entries: Vec<Entry>, refused: &[(u64, String)], now: Instant) -> Pushed {
        let (mut pushed, open) = (Pushed::default(), self.filter.is_open());
        for entry in entries {
            let reason = refused.iter().find(|(seq, _)| *seq == entry.last()).map(|(_, reason)| reason.clone());
            let item = match entry {
                Entry::Record { seq, .. } if reason.is_some() => {
                    Item::Hole(Hole { first: seq, count: 1, reason: reason.unwrap_or_default() })
                }
                Entry::Gap { first, last, reason } => Item::Hole(Hole { first, count: last - first + 1, reason }),
                Entry::Record { seq, template, bytes } => match self.records.read(&bytes, template.as_ref()) {
                    Ok(message) => {
                        let wanted = if open { Some(message) } else { self.filter.wanted(message) };
                        let Some(message) = wanted else {
                            pushed.filtered += 1;
                            self.skip(seq, now);
                            continue;
                        };
                        // Names count too: in most dialects they are said again with every message.
                        let bytes = bytes.len() + template.as_ref().map_or(0, |template| template.bytes.len());
                        Item::Message { seq, message: Box::new(message), bytes }
                    }
                    Err(error) => {
                        pushed.unreadable += 1;
                        Item::Hole(Hole { first: seq, count: 1, reason: format!("unreadable: {error}") })
                    }
                },
            };
            self.bytes += item.bytes();
            self.items.push_back(item);
        }
        pushed
    }

    fn skip(&mut self, seq: u64, now: Instant) {
        match self.items.back_mut() {
            Some(Item::Skipped { first, count, .. }) if *first + *count == seq => *count += 1,
            _ => {
                self.bytes += SKIPPED_BYTES;
                self.items.push_back(Item::Skipped { first: seq, count: 1, since: now });
            }
        }
    }

    /// When a batch that is not full may go; `None` when there is nothing.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let only_skipped = match (self.items.front()?, self.items.len()) {
            (Item::Skipped { since, .. }, 1) => Some(*since + self.skip_pause),
            _ => None,
        };
        Some(only_skipped.unwrap_or(self.quiet_until).max(self.quiet_until))
    }

    /// Number of the first message, and when it was taken in.
    pub(super) fn head(&self) -> Option<(u64, i64)> {
        self.items.iter().find_map(|item| match item {
            Item::Message { message, .. } => Some((self.first()?, message.received_us)),
            _ => None,
        })
    }

    /// The first number.
    fn first(&self) -> Option<u64> {
        self.items.front().map(Item::first)
    }

    /// Lets go of everything: it will be read again.
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.bytes = 0;
    }

    /// The next batch, if one is full or due. `hist`: whether all of it is backlog; `None`: by its age.
    pub(super) fn cut(&mut self, limits: Limits, now: Now, hist: Option<bool>) -> Option<Cut> {
        let by_age = |item: &Item| if hist.is_some() { hist } else { item.hist(now) };
        let deadline = self.deadline()?;
        let hist = self.items.iter().find_map(by_age).unwrap_or_default();
        let (mut taken, mut bytes) = (0, 0);
        let mut next = self.first()?;
        let mut full = false;
        for item in &self.items {
            // Live and backlog never share a batch, and a batch has no number between that it says nothing of.
            full = taken >= limits.records
                || bytes >= limits.bytes
                || item.first() != next
                || by_age(item).is_some_and(|other| other != hist);
            if full {
                break;
            }
            taken += 1;
            bytes += item.bytes();
            next = item.first().saturating_add(item.count());
        }
        full = full || taken >= limits.records || bytes >= limits.bytes;
        if taken == 0 || !(full || now.instant >= deadline) {
            return None;
        }
        self.bytes -= bytes;
        self.quiet_until = now.instant + limits.time;
        let mut cut = Cut { hist, ..Cut::default() };
        for item in self.items.drain(..taken) {
            match item {
                Item::Message { seq, message, .. } => cut.messages.push((seq, *message)),
                Item::Hole(hole) => cut.holes.push(hole),
                Item::Skipped { first, count, .. } => {
                    cut.holes.push(Hole { first, count, reason: FILTERED.to_owned() });
                }
            }
        }
        Some(cut)
    }
}

// === impl Item ===

impl Item {
    const fn bytes(&self) -> usize {
        match self {
            Self::Message { bytes, .. } => *bytes,
            Self::Hole(_) => 64,
            Self::Skipped { .. } => SKIPPED_BYTES,
        }
    }

    const fn first(&self) -> u64 {
        match self {
            Self::Message { seq, .. } => *seq,
            Self::Hole(hole) => hole.first,
            Self::Skipped { first, .. } => *first,
        }
    }

    /// Numbers it covers.
    const fn count(&self) -> u64 {
        match self {
            Self::Message { .. } => 1,
            Self::Hole(hole) => hole.count,
            Self::Skipped { count, .. } => *count,
        }
    }

    /// Whether it is backlog; a hole goes with either.
    const fn hist(&self, now: Now) -> Option<bool> {
        match self {
            Self::Message { message, .. } => {
                Some(message.received_us < now.connected_us || message.received_us < now.us.saturating_sub(LIVE_MAX_US))
            }
            Self::Hole(_) | Self::Skipped { .. } => None,
        }
    }
}

// === impl Cut ===

impl Cut {
    /// The lowest number in it.
    pub(super) fn first(&self) -> u64 {
        let message = self.messages.first().map(|(seq, _)| *seq);
        let hole = self.holes.first().map(|hole| hole.first);
        message.into_iter().chain(hole).min().unwrap_or_default()
    }

    /// The highest number in it.
    pub(super) fn through(&self) -> u64 {
        let message = self.messages.last().map(|(seq, _)| *seq);
        let hole = self.holes.last().map(|hole| hole.first.saturating_add(hole.count - 1));
        message.max(hole).unwrap_or_default()
    }

    /// Two halves, or the one message that cannot be halved as a hole with `reason`.
    pub(super) fn split(mut self, reason: &str) -> (Self, Option<Self>) {
        if self.messages.len() <= 1 {
            if let Some((seq, _)) = self.messages.pop() {
                self.holes.push(Hole { first: seq, count: 1, reason: reason.to_owned() });
                self.holes.sort_by_key(|hole| hole.first);
            }
            return (self, None);
        }
        let messages = self.messages.split_off(self.messages.len() / 2);
        let border = messages.first().map_or(u64::MAX, |(seq, _)| *seq);
        let at = self.holes.partition_point(|hole| hole.first < border);
        let holes = self.holes.split_off(at);
        let second = Self { messages, holes, hist: self.hist };
        (self, Some(second))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use device_models::Body;
    use device_models::wire::encode_message;

    use super::*;

    const LIMITS: Limits = Limits { records: RECORDS_MAX, bytes: 1 << 20, time: Duration::from_millis(200) };

    fn queue(now: Instant) -> Queue {
        Queue::new(Arc::default(), Duration::ZERO, now)
    }

    fn record(seq: u64, received_us: i64) -> Entry {
        let body = Body::Presence { online: true, reason: String::new() };
        let message = Message { thing: "t".into(), model: "m".into(), time_us: received_us, received_us, body };
        Entry::Record { seq, template: None, bytes: Bytes::from(encode_message(&message)) }
    }

    fn seqs(cut: &Cut) -> Vec<u64> {
        cut.messages.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn a_lone_message_goes_at_once_and_the_next_waits() {
        let start = Instant::now();
        let mut queue = queue(start);
        let now = Now { instant: start, us: 100, connected_us: 0 };
        queue.push(vec![record(1, 50)], &[], Instant::now());
        assert_eq!(seqs(&queue.cut(LIMITS, now, None).unwrap()), [1]);
        queue.push(vec![record(2, 60)], &[], Instant::now());
        assert!(queue.cut(LIMITS, now, None).is_none());
        assert_eq!(queue.deadline(), Some(start + LIMITS.time));
        let later = Now { instant: start + LIMITS.time, ..now };
        assert_eq!(seqs(&queue.cut(LIMITS, later, None).unwrap()), [2]);
        assert_eq!(queue.deadline(), None);
    }

    #[test]
    fn backlog_and_live_never_share_a_batch() {
        let start = Instant::now();
        let mut queue = queue(start);
        let now = Now { instant: start, us: 30_000_000, connected_us: 1_000 };
        let gap = Entry::Gap { first: 3, last: 4, reason: "cap".to_owned() };
        queue.push(vec![record(1, 10), record(2, 20_000), gap, record(5, 29_000_000)], &[], Instant::now());
        let cut = queue.cut(LIMITS, now, None).unwrap();
        assert_eq!((seqs(&cut), cut.hist, cut.through()), (vec![1, 2], true, 4));
        let later = Now { instant: start + LIMITS.time, ..now };
        let cut = queue.cut(LIMITS, later, None).unwrap();
        assert_eq!((seqs(&cut), cut.hist), (vec![5], false));
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let start = Instant::now();
        let mut queue = queue(start + Duration::from_secs(9));
        let now = Now { instant: start, us: 0, connected_us: 0 };
        queue.push((1..=RECORDS_MAX as u64 + 1).map(|seq| record(seq, 0)).collect(), &[], Instant::now());
        assert_eq!(queue.cut(LIMITS, now, None).unwrap().messages.len(), RECORDS_MAX);
        assert!(queue.cut(LIMITS, now, None).is_none());
        assert_eq!(queue.room(LIMITS).0, RECORDS_MAX - 1);
    }

    #[test]
    fn an_unreadable_record_is_said() {
        let mut queue = queue(Instant::now());
        assert_eq!(
            queue
                .push(
                    vec![Entry::Record { seq: 7, template: None, bytes: Bytes::from_static(&[9]) }],
                    &[],
                    Instant::now()
                )
                .unreadable,
            1
        );
        let cut = queue.cut(LIMITS, Now { instant: Instant::now(), us: 0, connected_us: 0 }, None).unwrap();
        assert_eq!((cut.holes[0].first, cut.holes[0].count), (7, 1));
        assert!(cut.holes[0].reason.starts_with("unreadable"));
    }

    #[test]
    fn a_cut_splits_where_its_numbers_do() {
        let mut queue = queue(Instant::now());
        let gap = |first| Entry::Gap { first, last: first, reason: "cap".to_owned() };
        queue.push(vec![gap(1), record(2, 0), gap(3), record(4, 0), gap(5)], &[], Instant::now());
        let cut = queue.cut(LIMITS, Now { instant: Instant::now(), us: 0, connected_us: 0 }, None).unwrap();
        let (first, second) = cut.split("oversize");
        let second = second.unwrap();
        assert_eq!((seqs(&first), first.through()), (vec![2], 3));
        assert_eq!((seqs(&second), second.through()), (vec![4], 5));
        let (hole, none) = second.split("oversize");
        assert!(none.is_none() && hole.messages.is_empty());
        assert_eq!(hole.holes.iter().map(|hole| hole.first).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn what_is_not_wanted_goes_with_the_next_that_is_or_after_a_pause() {
        let start = Instant::now();
        let filter = Filter::new(&toml::from_str("things = [\"wanted\"]").unwrap());
        let mut queue = Queue::new(Arc::new(filter), Duration::from_secs(60), start);
        let now = Now { instant: start + LIMITS.time, us: 100, connected_us: 0 };
        let pushed = queue.push((1..=5000).map(|seq| record(seq, 50)).collect(), &[], start);
        assert_eq!((pushed.filtered, queue.room(LIMITS).0), (5000, RECORDS_MAX - 1));
        assert!(queue.cut(LIMITS, now, None).is_none());
        assert_eq!(queue.deadline(), Some(start + Duration::from_secs(60)));
        queue.push(vec![Entry::Gap { first: 5001, last: 5002, reason: "cap".to_owned() }], &[], start);
        let cut = queue.cut(LIMITS, now, None).unwrap();
        let holes: Vec<_> = cut.holes.iter().map(|hole| (hole.first, hole.count, hole.reason.as_str())).collect();
        assert_eq!(holes, [(1, 5000, FILTERED), (5001, 2, "cap")]);
        assert_eq!((cut.first(), cut.through()), (1, 5002));
    }

    #[test]
    fn a_batch_ends_where_numbers_are_stepped_over() {
        let start = Instant::now();
        let mut queue = queue(start);
        let now = Now { instant: start + LIMITS.time, us: 100, connected_us: 0 };
        queue.push(vec![record(1, 50), record(2, 50), record(9, 50)], &[], start);
        let cut = queue.cut(LIMITS, now, Some(true)).unwrap();
        assert_eq!((seqs(&cut), cut.hist), (vec![1, 2], true));
        assert_eq!(
            seqs(&queue.cut(LIMITS, Now { instant: now.instant + LIMITS.time, ..now }, Some(true)).unwrap()),
            [9]
        );
    }
}
