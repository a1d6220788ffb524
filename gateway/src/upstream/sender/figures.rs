//! What of the way to one destination is shown outside: its backlog, how old that is, and how far it has come.

use device_models::Class;
use device_models::wire::decode_record;

use super::super::queue::Queue;
use super::Sender;
use crate::bus::Entry;
use crate::clock;
use crate::metrics::Figure;

impl Sender {
    pub(super) fn note(&self) {
        let (backlog, acked) = (self.reader.backlog(), self.reader.committed());
        let now_us = clock::now_us();
        for ((class, messages), acked) in Class::ALL.into_iter().zip(backlog).zip(acked) {
            self.metrics.backlog(&self.config.name, class, messages);
            self.metrics.acked(&self.config.name, class, acked);
            let oldest = if messages == 0 { None } else { self.oldest_us(class) };
            let seconds = oldest.map_or(0.0, |since| now_us.saturating_sub(since).max(0) as f64 / 1e6);
            self.metrics.set(Figure::BacklogOldest, &[&self.config.name, class.topic()], seconds);
        }
        self.status.send_if_modified(|status| {
            let changed = (status.backlog, status.acked) != (backlog, acked);
            (status.backlog, status.acked) = (backlog, acked);
            changed
        });
    }

    /// When the oldest message of a class was taken in that the destination does not have.
    fn oldest_us(&self, class: Class) -> Option<i64> {
        let at_hand = self.lanes.iter().filter(|lane| lane.class == class).filter_map(|lane| {
            let waiting = self.queues.get(lane.index()).and_then(Queue::head).map(|(_, received_us)| received_us);
            self.window.oldest_us(*lane).into_iter().chain(waiting).min()
        });
        at_hand.min().or_else(|| self.oldest_us.get(usize::from(class.number())).copied().flatten())
    }

    /// Looks on the disk how long the oldest message waits, while there is no connection to read for.
    pub(super) async fn look_at_oldest(&mut self) {
        for (class, waiting) in Class::ALL.into_iter().zip(self.reader.backlog()) {
            let at = usize::from(class.number());
            let seq = self.reader.committed().get(at).copied().unwrap_or_default() + 1;
            let oldest = match self.reader.one(class, seq).await {
                Ok(Some(Entry::Record { template, bytes, .. })) if waiting > 0 => {
                    decode_record(&bytes, template.as_ref()).ok()
                }
                _ => None,
            };
            if let Some(slot) = self.oldest_us.get_mut(at) {
                *slot = oldest.map(|message| message.received_us);
            }
        }
        self.note();
    }
}
