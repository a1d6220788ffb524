//! Presence that is not on disk yet. A device says but once that it comes or goes: what the disk refuses is said again as soon
//! as it takes something, if it still holds.
//!
//! Must not be in here: who is online (`devices`), how it is written (`intake.rs`).

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use device_models::{Body, Message};

use crate::bus::Durable;

/// Words waited for: about 200 bytes each. Beyond it the oldest are not looked after any more.
const WAITING_MAX: usize = 16 * 1024;

/// What was said of who is there, until it is durable.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// Number in its class (`None`: the bus did not take it), and what it says.
    waiting: Mutex<VecDeque<(Option<u64>, Message)>>,
}

// === impl Presence ===

impl Presence {
    /// Notes a message that was given to the bus; any other than presence is none of its business.
    pub(crate) fn note(&self, seq: Option<u64>, message: &Message) {
        if matches!(message.body, Body::Presence { .. }) {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= WAITING_MAX {
                waiting.pop_front();
            }
            waiting.push_back((seq, message.clone()));
        }
    }

    /// What could not be written; what could is forgotten.
    pub(crate) fn failed(&self, durable: &Durable) -> Vec<Message> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Vec::new();
        waiting.retain(|(seq, message)| match seq.map_or(Some(false), |seq| durable.settled(message.class(), seq)) {
            None => true,
            Some(true) => false,
            Some(false) => {
                failed.push(message.clone());
                false
            }
        });
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(online: bool) -> Message {
        let body = Body::Presence { online, reason: String::new() };
        Message { thing: "t".into(), model: "m".into(), time_us: 1, received_us: 1, body }
    }

    #[test]
    fn what_is_on_disk_is_forgotten_and_what_failed_is_given_back_once() {
        let waiting = Presence::default();
        waiting.note(Some(3), &presence(true));
        waiting.note(Some(4), &presence(false));
        waiting.note(None, &presence(true));
        let none = Durable::default();
        assert_eq!(waiting.failed(&none), [presence(true)], "the bus did not take it");
        assert!(waiting.failed(&none).is_empty());
        assert!(waiting.failed(&Durable::from_disk([9; 4])).is_empty());
        assert!(waiting.waiting.lock().unwrap().is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_is_waited_for() {
        let waiting = Presence::default();
        for seq in 0..=WAITING_MAX as u64 {
            waiting.note(Some(seq + 1), &presence(true));
        }
        assert_eq!(waiting.waiting.lock().unwrap().len(), WAITING_MAX);
    }
}
