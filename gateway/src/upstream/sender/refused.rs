//! What becomes of messages that the destination refuses for good: found by halving the batch, set aside, said as a hole
//! in their place, and stepped over. A destination that refuses one after the other is taken to be wrong itself: then
//! everything waits.

use device_models::wire::{decode_record, message_json};
use serde_json::Value;
use tracing::warn;

use super::super::quarantine;
use super::super::window::Refused;
use super::{End, Sender};
use crate::bus::Entry;

/// Messages set aside one after the other with nothing taken between.
const IN_ROW_MAX: u32 = 10;

impl Sender {
    pub(super) async fn refused(&mut self, token: u64, reason: String) -> Option<End> {
        if token <= self.stale {
            return None;
        }
        let Some(Refused { class, messages, single }) = self.window.refused(token) else {
            // Without its catalog or introduction a batch would not be understood.
            return Some(End::lost(reason));
        };
        let Some(seq) = single else {
            if messages == 0 {
                warn!(
                    upstream = self.config.name,
                    reason, "the destination does not want to be told of what is missing"
                );
                self.metrics.left_out(&self.config.name, "refused", 1);
                if let Some(lane) = self.window.confirmed(token) {
                    self.settle(lane);
                }
                return None;
            }
            // Half as much from the place of the refusal on, until it is known which message is meant.
            self.limits.records = usize::try_from(messages / 2).unwrap_or(1).clamp(1, self.limits.records);
            self.back();
            return None;
        };
        self.refused_in_row += 1;
        if self.refused_in_row > IN_ROW_MAX {
            return Some(End::lost(format!("{IN_ROW_MAX} messages refused one after the other, the last: {reason}")));
        }
        self.limits.records = 1;
        self.back();
        if let Err(error) = self.set_aside(class, seq, &reason).await {
            // What cannot be kept aside stays where it is.
            return Some(End::lost(format!("{reason}; it cannot be set aside: {error}")));
        }
        warn!(upstream = self.config.name, class = class.topic(), seq, reason, "refused for good, set aside");
        self.metrics.upstream_dropped(&self.config.name, "refused", 1);
        self.status.send_modify(|status| status.dropped += 1);
        if let Some(refused) = self.refused.get_mut(usize::from(class.number())) {
            refused.push((seq, format!("refused: {reason}")));
        }
        None
    }

    /// Reads the message again and keeps it in the upstream's file.
    async fn set_aside(&self, class: device_models::Class, seq: u64, reason: &str) -> Result<(), String> {
        let message = match self.reader.one(class, seq).await.map_err(|error| error.to_string())? {
            Some(Entry::Record { template, bytes, .. }) => {
                decode_record(&bytes, template.as_ref()).map(|message| message_json(&message))
            }
            _ => Ok(Value::Null),
        };
        let message = message.unwrap_or_default();
        let line = serde_json::json!({
            "epoch": format!("{:016x}", self.epoch), "class": class.topic(), "seq": seq, "reason": reason, "message": message,
        });
        match quarantine::set_aside(&self.quarantine, &self.config.name, &line).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                warn!(upstream = self.config.name, seq, "the file of refused messages is full");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
