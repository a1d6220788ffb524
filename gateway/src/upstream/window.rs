//! Batches that were sent and not yet confirmed, and how far each lane is done: a cursor moves over a batch only when every
//! publish of it, and every batch of its lane before it, is confirmed.

use std::collections::{HashMap, VecDeque};

use device_models::Class;
use tokio::time::Instant;

use super::lane::Lane;
use super::queue::Cut;
use crate::bus::Road;

/// Names one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchId {
    lane: Lane,
    number: u64,
}

#[derive(Debug)]
struct Sent {
    number: u64,
    first: u64,
    through: u64,
    messages: u64,
    at: Instant,
    /// When its oldest message was taken in.
    oldest_us: Option<i64>,
    /// The message in it, if it is only one.
    single: Option<u64>,
    bytes: u64,
    /// Publishes not yet confirmed.
    open: usize,
    /// The numbers that its receiver has not acknowledged.
    owed: Option<(u64, u64)>,
}

/// Consecutive numbers of a lane that are done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub lane: Lane,
    pub first: u64,
    pub through: u64,
    /// Batches, and when the last of them was sent.
    pub batches: u64,
    pub sent: Instant,
    pub messages: u64,
    pub bytes: u64,
}

/// A batch that the destination will not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub class: Class,
    pub messages: u64,
    /// The message in it, if it is only one.
    pub single: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Window {
    sent: [VecDeque<Sent>; Lane::COUNT],
    tokens: HashMap<u64, BatchId>,
    next: u64,
}

// === impl Sent ===

impl Sent {
    const fn is_done(&self) -> bool {
        self.open == 0 && self.owed.is_none()
    }
}

// === impl Window ===

impl Window {
    /// A new batch of `publishes` publishes that is done with the numbers `first..=through`. One without any is done when everything before it is; see
    /// [`settled`](Self::settled).
    pub(super) fn begin(
        &mut self,
        lane: Lane,
        (first, through): (u64, u64),
        cut: &Cut,
        bytes: u64,
        publishes: usize,
        now: Instant,
    ) -> BatchId {
        let single = match cut.messages.as_slice() {
            [(seq, _)] => Some(*seq),
            _ => None,
        };
        self.next += 1;
        let number = self.next;
        if let Some(sent) = self.sent.get_mut(lane.index()) {
            sent.push_back(Sent {
                number,
                first,
                through,
                messages: cut.messages.len() as u64,
                at: now,
                oldest_us: cut.messages.iter().map(|(_, message)| message.received_us).min(),
                single,
                bytes,
                open: publishes,
                owed: None,
            });
        }
        BatchId { lane, number }
    }

    /// The batch is not done before its receiver has acknowledged these numbers.
    pub(super) fn owes(&mut self, batch: BatchId, first: u64, last: u64) {
        let sent = self.sent.get_mut(batch.lane.index());
        if let Some(sent) = sent.and_then(|sent| sent.iter_mut().find(|sent| sent.number == batch.number)) {
            sent.owed = Some((first, last));
        }
    }

    /// A receiver has the numbers `first..=last` of a class. Whether a batch waited for that.
    pub(super) fn received(&mut self, class: Class, first: u64, last: u64) -> bool {
        let mut waited = false;
        for road in [Road::Main, Road::Newest] {
            for sent in self.sent.get_mut(Lane { class, road }.index()).into_iter().flatten() {
                if sent.owed.is_some_and(|owed| first <= owed.0 && owed.1 <= last) {
                    sent.owed = None;
                    waited = true;
                }
            }
        }
        waited
    }

    /// Batches that wait for their receiver.
    pub(super) fn owing(&self) -> usize {
        self.sent.iter().flatten().filter(|sent| sent.owed.is_some()).count()
    }

    /// When the oldest of them was sent.
    pub(super) fn owing_since(&self) -> Option<Instant> {
        self.sent.iter().flatten().filter(|sent| sent.owed.is_some()).map(|sent| sent.at).min()
    }

    /// One publish of the batch is under way.
    pub(super) fn sent(&mut self, token: u64, batch: BatchId) {
        self.tokens.insert(token, batch);
    }

    /// A publish is confirmed: the lane whose batches may be done now.
    pub(super) fn confirmed(&mut self, token: u64) -> Option<Lane> {
        let BatchId { lane, number } = self.tokens.remove(&token)?;
        let batch = self.sent.get_mut(lane.index())?.iter_mut().find(|batch| batch.number == number)?;
        batch.open = batch.open.saturating_sub(1);
        Some(lane)
    }

    /// A publish is refused for good: what its batch holds. `None`: it belongs to no batch.
    pub(super) fn refused(&self, token: u64) -> Option<Refused> {
        let BatchId { lane, number } = self.tokens.get(&token)?;
        let batch = self.sent.get(lane.index())?.iter().find(|batch| batch.number == *number)?;
        Some(Refused { class: lane.class, messages: batch.messages, single: batch.single })
    }

    /// Takes the batches that wait for nothing off a lane's front, as far as their numbers follow each other. Ask until
    /// there is nothing more.
    pub(super) fn settled(&mut self, lane: Lane) -> Option<Done> {
        let sent = self.sent.get_mut(lane.index())?;
        let mut done: Option<Done> = None;
        while sent
            .front()
            .is_some_and(|batch| batch.is_done() && done.is_none_or(|done| done.through.wrapping_add(1) == batch.first))
        {
            let Some(batch) = sent.pop_front() else { break };
            let Sent { first, through, messages, bytes, at, .. } = batch;
            done = Some(match done {
                None => Done { lane, first, through, batches: 1, sent: at, messages, bytes },
                Some(before) => Done {
                    through,
                    batches: before.batches + 1,
                    sent: at,
                    messages: before.messages + messages,
                    bytes: before.bytes + bytes,
                    ..before
                },
            });
        }
        done
    }

    /// When the oldest message of a lane was taken in that is under way.
    pub(super) fn oldest_us(&self, lane: Lane) -> Option<i64> {
        self.sent.get(lane.index())?.iter().find_map(|batch| batch.oldest_us)
    }

    /// Forgets everything: the connection is gone, it will all be sent again.
    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use device_models::wire::Hole;
    use device_models::{Body, Message};

    use super::*;

    const LIVE: Lane = Lane { class: Class::Live, road: Road::Main };
    const EVENT: Lane = Lane { class: Class::Event, road: Road::Newest };

    /// A batch of the numbers `first..=last`, each a message.
    fn begin(window: &mut Window, lane: Lane, first: u64, last: u64, publishes: usize) -> BatchId {
        let body = Body::Presence { online: true, reason: String::new() };
        let message = Message { thing: "t".into(), model: "m".into(), time_us: 0, received_us: 7, body };
        let messages = (first..=last).map(|seq| (seq, message.clone())).collect();
        window.begin(lane, (first, last), &Cut { messages, ..Cut::default() }, 10, publishes, Instant::now())
    }

    fn settled(window: &mut Window, lane: Lane) -> Option<(u64, u64, u64, u64)> {
        window.settled(lane).map(|done| (done.first, done.through, done.messages, done.bytes))
    }

    #[test]
    fn a_cursor_moves_only_over_what_is_confirmed_to_its_last_publish() {
        let mut window = Window::default();
        let first = begin(&mut window, LIVE, 1, 10, 2);
        let second = begin(&mut window, LIVE, 11, 20, 1);
        let other = begin(&mut window, EVENT, 5, 5, 1);
        for (token, batch) in [(1, first), (2, first), (3, second), (4, other)] {
            window.sent(token, batch);
        }
        assert_eq!(
            (window.confirmed(3), settled(&mut window, LIVE)),
            (Some(LIVE), None),
            "the first batch is not done"
        );
        assert_eq!((window.confirmed(1), settled(&mut window, LIVE)), (Some(LIVE), None));
        assert_eq!((window.confirmed(4), settled(&mut window, EVENT)), (Some(EVENT), Some((5, 5, 1, 10))));
        assert_eq!(window.oldest_us(LIVE), Some(7));
        assert_eq!((window.confirmed(2), settled(&mut window, LIVE)), (Some(LIVE), Some((1, 20, 20, 20))));
        assert_eq!((window.confirmed(2), window.oldest_us(LIVE)), (None, None), "confirmed twice");
    }

    #[test]
    fn what_a_receiver_owes_is_done_when_it_has_said_so_and_the_broker_has_it() {
        let mut window = Window::default();
        let (first, second) = (begin(&mut window, LIVE, 1, 10, 1), begin(&mut window, LIVE, 11, 20, 1));
        window.sent(1, first);
        window.sent(2, second);
        window.owes(first, 1, 10);
        window.owes(second, 11, 18);
        assert!(window.received(Class::Live, 11, 18) && !window.received(Class::Live, 11, 18));
        assert!(!window.received(Class::Event, 1, 10) && !window.received(Class::Live, 2, 30), "not all of it");
        window.confirmed(1);
        window.confirmed(2);
        assert_eq!((settled(&mut window, LIVE), window.owing()), (None, 1));
        assert!(window.owing_since().is_some() && window.received(Class::Live, 1, 30));
        assert_eq!((settled(&mut window, LIVE), window.owing_since()), (Some((1, 20, 20, 20)), None));
    }

    #[test]
    fn numbers_that_do_not_follow_each_other_are_done_apart() {
        let mut window = Window::default();
        for (token, (first, last)) in [(1, (1, 10)), (2, (31, 40))] {
            let batch = begin(&mut window, LIVE, first, last, 1);
            window.sent(token, batch);
            window.confirmed(token);
        }
        assert_eq!(settled(&mut window, LIVE), Some((1, 10, 10, 10)));
        assert_eq!(settled(&mut window, LIVE), Some((31, 40, 10, 10)));
        assert_eq!(settled(&mut window, LIVE), None);
    }

    #[test]
    fn a_batch_that_became_no_publish_is_done_when_those_before_it_are() {
        let mut window = Window::default();
        let first = begin(&mut window, LIVE, 1, 10, 1);
        window.sent(1, first);
        begin(&mut window, LIVE, 11, 20, 0);
        assert_eq!(settled(&mut window, LIVE), None, "the first batch is not done");
        window.confirmed(1);
        assert_eq!(settled(&mut window, LIVE), Some((1, 20, 20, 20)));
        begin(&mut window, LIVE, 21, 30, 0);
        assert_eq!(settled(&mut window, LIVE), Some((21, 30, 10, 10)));
    }

    #[test]
    fn a_lost_connection_forgets_what_was_sent() {
        let mut window = Window::default();
        let batch = begin(&mut window, LIVE, 1, 10, 1);
        window.sent(1, batch);
        window.clear();
        assert_eq!(window.confirmed(1), None);
    }

    #[test]
    fn a_refusal_names_what_the_batch_holds() {
        let mut window = Window::default();
        let (many, one) = (begin(&mut window, LIVE, 1, 5, 1), begin(&mut window, EVENT, 9, 9, 1));
        window.sent(1, many);
        window.sent(2, one);
        let holes = vec![Hole { first: 6, count: 1, reason: "cap".to_owned() }];
        let hole = window.begin(LIVE, (6, 6), &Cut { holes, ..Cut::default() }, 0, 1, Instant::now());
        window.sent(3, hole);
        assert_eq!(window.refused(1), Some(Refused { class: Class::Live, messages: 5, single: None }));
        assert_eq!(window.refused(2), Some(Refused { class: Class::Event, messages: 1, single: Some(9) }));
        assert_eq!(window.refused(3), Some(Refused { class: Class::Live, messages: 0, single: None }));
        assert_eq!(window.refused(4), None, "an introduction");
    }
}
