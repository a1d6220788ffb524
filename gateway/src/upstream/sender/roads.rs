//! Live first: what comes goes on a road of its own, beside what waited.

use super::Sender;
use crate::bus::Road;
use crate::upstream::lane::Lane;
use crate::upstream::queue::{LIVE_MAX_US, Now, RECORDS_MAX};

impl Sender {
    /// From here on, live first, what comes does not wait for what is there, if that is more than a batch.
    pub(super) fn split(&mut self) {
        let waiting = self.reader.backlog();
        for class in Lane::SPLIT {
            let waiting = waiting.get(usize::from(class.number())).copied().unwrap_or_default();
            if self.live_first() && waiting > RECORDS_MAX as u64 {
                self.reader.split(class, None);
            }
        }
    }

    pub(super) fn live_first(&self) -> bool {
        self.lanes.len() > Lane::IN_ORDER.len()
    }

    /// Whether a lane is of what waited, beside one of what comes.
    pub(super) fn is_backlog(&self, lane: Lane) -> bool {
        lane.road == Road::Main && self.reader.is_split(lane.class)
    }

    /// A lane of what comes that has fallen behind becomes backlog, and a new one begins.
    pub(super) fn split_what_is_late(&mut self, now: Now) {
        if !self.live_first() {
            return;
        }
        for class in Lane::SPLIT {
            let road = if self.reader.is_split(class) { Road::Newest } else { Road::Main };
            let lane = Lane { class, road };
            let Some(queue) = self.queues.get_mut(lane.index()) else { continue };
            let late = queue.head().filter(|(_, received_us)| *received_us < now.us.saturating_sub(LIVE_MAX_US));
            if let Some((seq, _)) = late
                && self.reader.split(class, Some(seq))
            {
                queue.clear();
            }
        }
    }
}
