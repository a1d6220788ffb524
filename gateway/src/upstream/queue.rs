//! Messages of one class between the bus and their batches: where a batch ends, and whether it is live or backlog.
//!
//! Pure: time is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use device_models::Message;
use device_models::wire::{Hole, decode_message};
use tokio::time::Instant;

use crate::bus::Entry;

/// Messages in one batch: a bound on what one lost packet sends again, and on memory.
pub(super) const RECORDS_MAX: usize = 1000;
/// A message older than this is backlog.
const LIVE_MAX_US: i64 = 10_000_000;

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
    items: VecDeque<Item>,
    bytes: usize,
    /// Before it only full batches go: set when one goes, so that a lone message after a quiet spell need not wait.
    quiet_until: Instant,
}

#[derive(Debug, Clone)]
enum Item {
    Message { seq: u64, message: Box<Message>, bytes: usize },
    Hole(Hole),
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
    pub(super) fn new(now: Instant) -> Self {
        Self { items: VecDeque::new(), bytes: 0, quiet_until: now }
    }

    /// Records and bytes that still go into the next batch.
    pub(super) fn room(&self, limits: Limits) -> (usize, usize) {
        let bytes = limits.bytes.saturating_sub(self.bytes);
        (if bytes == 0 { 0 } else { RECORDS_MAX.saturating_sub(self.items.len()) }, bytes)
    }

    /// Takes in what the bus gave. A record that cannot be read becomes a hole with its reason; answers how many did.
    /// What the destination has refused for good (number and reason) becomes a hole too.
    pub(super) fn push(&mut self, entries: Vec<Entry>, refused: &[(u64, String)]) -> u64 {
        let mut unreadable = 0;
        for entry in entries {
            let reason = refused.iter().find(|(seq, _)| *seq == entry.last()).map(|(_, reason)| reason.clone());
            let item = match entry {
                Entry::Record { seq, .. } if reason.is_some() => {
                    Item::Hole(Hole { first: seq, count: 1, reason: reason.unwrap_or_default() })
                }
                Entry::Gap { first, last, reason } => Item::Hole(Hole { first, count: last - first + 1, reason }),
                Entry::Record { seq, bytes } => match decode_message(&bytes) {
                    Ok(message) => Item::Message { seq, message: Box::new(message), bytes: bytes.len() },
                    Err(error) => {
                        unreadable += 1;
                        Item::Hole(Hole { first: seq, count: 1, reason: format!("unreadable: {error}") })
                    }
                },
            };
            self.bytes += item.bytes();
            self.items.push_back(item);
        }
        unreadable
    }

    /// When a batch that is not full may go; `None` when there is nothing.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.items.is_empty()).then_some(self.quiet_until)
    }

    /// The next batch, if one is full or due.
    pub(super) fn cut(&mut self, limits: Limits, now: Now) -> Option<Cut> {
        let hist = self.items.iter().find_map(|item| item.hist(now)).unwrap_or_default();
        let (mut taken, mut bytes) = (0, 0);
        let mut full = false;
        for item in &self.items {
            // Live and backlog never share a batch.
            full =
                taken >= limits.records || bytes >= limits.bytes || item.hist(now).is_some_and(|other| other != hist);
            if full {
                break;
            }
            taken += 1;
            bytes += item.bytes();
        }
        full = full || taken >= limits.records || bytes >= limits.bytes;
        if taken == 0 || !(full || now.instant >= self.quiet_until) {
            return None;
        }
        self.bytes -= bytes;
        self.quiet_until = now.instant + limits.time;
        let mut cut = Cut { hist, ..Cut::default() };
        for item in self.items.drain(..taken) {
            match item {
                Item::Message { seq, message, .. } => cut.messages.push((seq, *message)),
                Item::Hole(hole) => cut.holes.push(hole),
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
        }
    }

    /// Whether it is backlog; a hole goes with either.
    const fn hist(&self, now: Now) -> Option<bool> {
        match self {
            Self::Message { message, .. } => {
                Some(message.received_us < now.connected_us || message.received_us < now.us.saturating_sub(LIVE_MAX_US))
            }
            Self::Hole(_) => None,
        }
    }
}

// === impl Cut ===

impl Cut {
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

    fn record(seq: u64, received_us: i64) -> Entry {
        let body = Body::Presence { online: true, reason: String::new() };
        let message = Message { thing: "t".into(), model: "m".into(), time_us: received_us, received_us, body };
        Entry::Record { seq, bytes: Bytes::from(encode_message(&message)) }
    }

    fn seqs(cut: &Cut) -> Vec<u64> {
        cut.messages.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn a_lone_message_goes_at_once_and_the_next_waits() {
        let start = Instant::now();
        let mut queue = Queue::new(start);
        let now = Now { instant: start, us: 100, connected_us: 0 };
        queue.push(vec![record(1, 50)], &[]);
        assert_eq!(seqs(&queue.cut(LIMITS, now).unwrap()), [1]);
        queue.push(vec![record(2, 60)], &[]);
        assert!(queue.cut(LIMITS, now).is_none());
        assert_eq!(queue.deadline(), Some(start + LIMITS.time));
        let later = Now { instant: start + LIMITS.time, ..now };
        assert_eq!(seqs(&queue.cut(LIMITS, later).unwrap()), [2]);
        assert_eq!(queue.deadline(), None);
    }

    #[test]
    fn backlog_and_live_never_share_a_batch() {
        let start = Instant::now();
        let mut queue = Queue::new(start);
        let now = Now { instant: start, us: 30_000_000, connected_us: 1_000 };
        let gap = Entry::Gap { first: 3, last: 4, reason: "cap".to_owned() };
        queue.push(vec![record(1, 10), record(2, 20_000), gap, record(5, 29_000_000)], &[]);
        let cut = queue.cut(LIMITS, now).unwrap();
        assert_eq!((seqs(&cut), cut.hist, cut.through()), (vec![1, 2], true, 4));
        let later = Now { instant: start + LIMITS.time, ..now };
        let cut = queue.cut(LIMITS, later).unwrap();
        assert_eq!((seqs(&cut), cut.hist), (vec![5], false));
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let start = Instant::now();
        let mut queue = Queue::new(start + Duration::from_secs(9));
        let now = Now { instant: start, us: 0, connected_us: 0 };
        queue.push((1..=RECORDS_MAX as u64 + 1).map(|seq| record(seq, 0)).collect(), &[]);
        assert_eq!(queue.cut(LIMITS, now).unwrap().messages.len(), RECORDS_MAX);
        assert!(queue.cut(LIMITS, now).is_none());
        assert_eq!(queue.room(LIMITS).0, RECORDS_MAX - 1);
    }

    #[test]
    fn an_unreadable_record_is_said() {
        let mut queue = Queue::new(Instant::now());
        assert_eq!(queue.push(vec![Entry::Record { seq: 7, bytes: Bytes::from_static(&[9]) }], &[]), 1);
        let cut = queue.cut(LIMITS, Now { instant: Instant::now(), us: 0, connected_us: 0 }).unwrap();
        assert_eq!((cut.holes[0].first, cut.holes[0].count), (7, 1));
        assert!(cut.holes[0].reason.starts_with("unreadable"));
    }

    #[test]
    fn a_cut_splits_where_its_numbers_do() {
        let mut queue = Queue::new(Instant::now());
        let gap = |first| Entry::Gap { first, last: first, reason: "cap".to_owned() };
        queue.push(vec![gap(1), record(2, 0), gap(3), record(4, 0), gap(5)], &[]);
        let cut = queue.cut(LIMITS, Now { instant: Instant::now(), us: 0, connected_us: 0 }).unwrap();
        let (first, second) = cut.split("oversize");
        let second = second.unwrap();
        assert_eq!((seqs(&first), first.through()), (vec![2], 3));
        assert_eq!((seqs(&second), second.through()), (vec![4], 5));
        let (hole, none) = second.split("oversize");
        assert!(none.is_none() && hole.messages.is_empty());
        assert_eq!(hole.holes.iter().map(|hole| hole.first).collect::<Vec<_>>(), [4, 5]);
    }
}
