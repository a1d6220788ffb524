//! How a platform wants it said: the seam between the messages and the topics and payloads they become, and the table of
//! all dialects. A new dialect is one file beside this one and one row here.

use device_models::wire::{Catalog, Clock, Hole, WireError};
use device_models::{Class, Message};

use super::json::Json;
use super::native::Native;
use crate::config;

/// Consecutive messages of one class, on their way out.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    pub gateway: &'a str,
    pub epoch: u64,
    pub class: Class,
    /// Backlog, not live.
    pub hist: bool,
    pub now_us: i64,
    pub clock: Clock,
    pub messages: &'a [(u64, Message)],
    /// Sequence numbers that no longer exist, between the messages.
    pub holes: &'a [Hole],
    pub catalog: &'a Catalog,
}

/// One MQTT publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publication {
    pub topic: String,
    pub payload: Vec<u8>,
}

pub(super) trait Dialect: Send + Sync + std::fmt::Debug {
    /// Whether payloads use the catalog's aliases, so that the catalog must be published first.
    fn aliases(&self) -> bool;

    /// The publishes that carry the parcel, in order. Pure: no clock, no state.
    fn encode(&self, parcel: &Parcel<'_>) -> Result<Vec<Publication>, WireError>;
}

/// Every dialect by its word in the configuration.
pub(super) fn dialect(word: config::Dialect) -> &'static dyn Dialect {
    match word {
        config::Dialect::Native => &Native,
        config::Dialect::Json => &Json,
    }
}
