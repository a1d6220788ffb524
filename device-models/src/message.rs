//! A normalized message: what travels on the bus, on disk and upstream.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::Outcome;
use crate::value::Value;

/// What a thing said, in the words of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The thing's id on this gateway, unique: `meter-1`, `gb/34020000001320000001/1`.
    pub thing: Arc<str>,
    /// The model's name: `energy-meter`.
    pub model: Arc<str>,
    /// Source time, microseconds since 1970 UTC.
    pub time_us: i64,
    /// When the gateway took it in, microseconds since 1970 UTC.
    pub received_us: i64,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Properties(Vec<Sample>),
    Event {
        name: Arc<str>,
        level: Level,
        data: Value,
        /// `UnknownProperty` for an event that the model lacks; `WrongType` and `OutOfRange` speak of its data.
        quality: Quality,
    },
    Reply {
        id: String,
        outcome: Outcome,
    },
    Presence {
        online: bool,
        reason: String,
    },
    /// Says what was dropped and why: sequence numbers `first..=last` of `class`.
    Gap {
        class: Class,
        first: u64,
        last: u64,
        reason: String,
    },
}

/// One property's value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The model's dense number of the property; 0 when the model does not know it (then the quality says so).
    pub alias: u32,
    pub name: Arc<str>,
    pub value: Value,
    pub quality: Quality,
}

/// How far a value can be trusted. Absent on the wire means `Good`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quality {
    #[default]
    Good,
    /// The value lies outside the model's range; delivered as sent.
    OutOfRange,
    /// The model has no such property (or event); delivered as sent, under the device's own name.
    UnknownProperty,
    /// The value is not of the model's type and could not be converted without loss; delivered as sent.
    WrongType,
    /// The device's clock is wrong (see `normalize`): the value is good, its time is the gateway's.
    WrongTime,
}

/// How loud an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    #[default]
    Info,
    Warn,
    Error,
    Urgent,
}

/// The four ways through the bus, each strictly in order. The lower one goes first when something must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Replies, gaps, presence: what upstream must not miss.
    Control,
    Event,
    Live,
    Historical,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Control, Self::Event, Self::Live, Self::Historical];

    /// The class's number on disk and on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Control => 0,
            Self::Event => 1,
            Self::Live => 2,
            Self::Historical => 3,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The class's word in topics: `ctl`, `event`, `live`, `hist`.
    pub const fn topic(self) -> &'static str {
        match self {
            Self::Control => "ctl",
            Self::Event => "event",
            Self::Live => "live",
            Self::Historical => "hist",
        }
    }
}

impl Message {
    /// The class a message of this kind belongs to.
    pub const fn class(&self) -> Class {
        match self.body {
            Body::Properties(_) => Class::Live,
            Body::Event { .. } => Class::Event,
            Body::Reply { .. } | Body::Presence { .. } | Body::Gap { .. } => Class::Control,
        }
    }
}
