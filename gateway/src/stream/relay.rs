//! Copies of chosen streams to RTMP servers. They come with the RTMP client; until then a configured one is warned of.

use std::rc::Rc;

use tracing::warn;

use super::hub::{Hub, SharedSource};
use crate::config;

pub(super) fn start(_hub: &Rc<Hub>, source: &SharedSource, relays: &[config::Relay]) {
    if !relays.is_empty() {
        warn!(stream = %source.borrow().name, "relays are not there yet");
    }
}
