//! Batches that were sent and not yet confirmed, and how far each class is done: a class's cursor moves over a batch only
//! when every publish of it, and every batch before it, is confirmed.

use std::collections::{HashMap, VecDeque};

use device_models::Class;

use super::queue::Cut;

/// Names one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchId {
    class: Class,
    number: u64,
}

#[derive(Debug)]
struct Sent {
    number: u64,
    through: u64,
    messages: u64,
    /// The message in it, if it is only one.
    single: Option<u64>,
    bytes: u64,
    /// Publishes not yet confirmed.
    open: usize,
}

/// How far a class is done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub class: Class,
    pub through: u64,
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
    sent: [VecDeque<Sent>; 4],
    tokens: HashMap<u64, BatchId>,
    next: u64,
}

// === impl Window ===

impl Window {
    /// A new batch of `publishes` publishes. One without any is done when everything before it is; see
    /// [`settled`](Self::settled).
    pub(super) fn begin(&mut self, class: Class, cut: &Cut, bytes: u64, publishes: usize) -> BatchId {
        let (through, messages) = (cut.through(), cut.messages.len() as u64);
        let single = match cut.messages.as_slice() {
            [(seq, _)] => Some(*seq),
            _ => None,
        };
        self.next += 1;
        let number = self.next;
        if let Some(sent) = self.sent.get_mut(usize::from(class.number())) {
            sent.push_back(Sent { number, through, messages, single, bytes, open: publishes });
        }
        BatchId { class, number }
    }

    /// One publish of the batch is under way.
    pub(super) fn sent(&mut self, token: u64, batch: BatchId) {
        self.tokens.insert(token, batch);
    }

    /// A publish is confirmed: how far its class is done now, if that moved.
    pub(super) fn confirmed(&mut self, token: u64) -> Option<Done> {
        let BatchId { class, number } = self.tokens.remove(&token)?;
        let sent = self.sent.get_mut(usize::from(class.number()))?;
        let batch = sent.iter_mut().find(|batch| batch.number == number)?;
        batch.open = batch.open.saturating_sub(1);
        self.settled(class)
    }

    /// A publish is refused for good: what its batch holds. `None`: it belongs to no batch.
    pub(super) fn refused(&self, token: u64) -> Option<Refused> {
        let BatchId { class, number } = self.tokens.get(&token)?;
        let sent = self.sent.get(usize::from(class.number()))?;
        let batch = sent.iter().find(|batch| batch.number == *number)?;
        Some(Refused { class: *class, messages: batch.messages, single: batch.single })
    }

    /// How far a class is done now, if that moved: takes the batches that wait for nothing off its front.
    pub(super) fn settled(&mut self, class: Class) -> Option<Done> {
        let sent = self.sent.get_mut(usize::from(class.number()))?;
        let mut done: Option<Done> = None;
        while sent.front().is_some_and(|batch| batch.open == 0) {
            let Some(batch) = sent.pop_front() else { break };
            let before = done.map_or((0, 0), |done| (done.messages, done.bytes));
            let (messages, bytes) = (before.0 + batch.messages, before.1 + batch.bytes);
            done = Some(Done { class, through: batch.through, messages, bytes });
        }
        done
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

    /// A batch of so many messages, whose last number is `through`.
    fn begin(window: &mut Window, class: Class, through: u64, messages: u64, bytes: u64, publishes: usize) -> BatchId {
        let body = Body::Presence { online: true, reason: String::new() };
        let message = Message { thing: "t".into(), model: "m".into(), time_us: 0, received_us: 0, body };
        let messages = (1..=messages).map(|seq| (seq, message.clone())).collect();
        let holes = vec![Hole { first: through, count: 1, reason: "cap".to_owned() }];
        window.begin(class, &Cut { messages, holes, hist: false }, bytes, publishes)
    }

    #[test]
    fn a_cursor_moves_only_over_what_is_confirmed_to_its_last_publish() {
        let mut window = Window::default();
        let first = begin(&mut window, Class::Live, 10, 3, 30, 2);
        let second = begin(&mut window, Class::Live, 20, 4, 40, 1);
        let other = begin(&mut window, Class::Event, 5, 1, 10, 1);
        for (token, batch) in [(1, first), (2, first), (3, second), (4, other)] {
            window.sent(token, batch);
        }
        assert_eq!(window.confirmed(3), None, "the first batch is not done");
        assert_eq!(window.confirmed(1), None);
        assert_eq!(window.confirmed(4), Some(Done { class: Class::Event, through: 5, messages: 1, bytes: 10 }));
        assert_eq!(window.confirmed(2), Some(Done { class: Class::Live, through: 20, messages: 7, bytes: 70 }));
        assert_eq!(window.confirmed(2), None, "confirmed twice");
    }

    #[test]
    fn a_batch_that_became_no_publish_is_done_when_those_before_it_are() {
        let mut window = Window::default();
        let first = begin(&mut window, Class::Live, 10, 3, 30, 1);
        window.sent(1, first);
        begin(&mut window, Class::Live, 20, 4, 0, 0);
        assert_eq!(window.settled(Class::Live), None, "the first batch is not done");
        assert_eq!(window.confirmed(1), Some(Done { class: Class::Live, through: 20, messages: 7, bytes: 30 }));
        begin(&mut window, Class::Live, 30, 2, 0, 0);
        assert_eq!(window.settled(Class::Live), Some(Done { class: Class::Live, through: 30, messages: 2, bytes: 0 }));
        assert_eq!(window.settled(Class::Live), None);
    }

    #[test]
    fn a_lost_connection_forgets_what_was_sent() {
        let mut window = Window::default();
        let batch = begin(&mut window, Class::Live, 10, 3, 30, 1);
        window.sent(1, batch);
        window.clear();
        assert_eq!(window.confirmed(1), None);
    }

    #[test]
    fn a_refusal_names_what_the_batch_holds() {
        let mut window = Window::default();
        let (many, one) = (begin(&mut window, Class::Live, 9, 5, 1, 1), begin(&mut window, Class::Event, 9, 1, 1, 1));
        window.sent(1, many);
        window.sent(2, one);
        assert_eq!(window.refused(1), Some(Refused { class: Class::Live, messages: 5, single: None }));
        assert_eq!(window.refused(2), Some(Refused { class: Class::Event, messages: 1, single: Some(1) }));
        assert_eq!(window.refused(3), None, "an introduction");
    }
}
