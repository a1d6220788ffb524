//! A device's own words, before any model has looked at them.

use crate::command::Outcome;
use crate::value::Value;

/// What a protocol heard one device say.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The device's name in its own protocol: a client id, a topic level, a SIM number.
    pub device: String,
    /// The product the device says it is, where its protocol carries one (JetLinks topics do).
    pub product: Option<String>,
    /// Source time in microseconds since 1970 UTC; `None` when the device sent none and the gateway's clock decides.
    pub time_us: Option<i64>,
    pub word: Word,
}

/// The kinds of thing a device can say.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// Property names as the device spells them, with their values.
    Properties(Vec<(String, Value)>),
    Event {
        name: String,
        data: Value,
    },
    /// The answer to the command with this id.
    Reply {
        id: String,
        outcome: Outcome,
    },
    /// The device itself says that it is there (or not): births, wills, `online` topics.
    Presence {
        online: bool,
        reason: String,
    },
}

impl Report {
    /// A property report without a source time.
    pub fn properties(device: impl Into<String>, properties: Vec<(String, Value)>) -> Self {
        Self { device: device.into(), product: None, time_us: None, word: Word::Properties(properties) }
    }
}
