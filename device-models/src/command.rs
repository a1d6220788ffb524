//! What upstream (or the local API) wants of a thing, and how it ended.

use std::time::Duration;

use crate::value::Value;

/// One order to one thing, on its way down.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Chosen by whoever asks; the reply carries it. Unique among the commands in flight.
    pub id: String,
    /// The device's name in its own protocol (not necessarily the thing's id).
    pub device: String,
    /// The product's name, for protocols whose topics carry it.
    pub product: String,
    pub order: Order,
    /// How long the device has to answer.
    pub patience: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Property names as the device spells them, with the values to set.
    Write(Vec<(String, Value)>),
    Read(Vec<String>),
    Invoke {
        action: String,
        input: Value,
    },
}

/// How a command ended: the device's answer, or why there is none.
pub type Outcome = Result<Value, Failure>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the device is not connected")]
    Offline,
    #[error("the device did not answer within {0:?}")]
    Silent(Duration),
    #[error("the device's protocol cannot carry this: {0}")]
    Unsupported(String),
    #[error("refused: {0}")]
    Refused(String),
    #[error("the device answered with an error: {0}")]
    Device(String),
    #[error("too many commands are waiting for this device")]
    Busy,
    /// Not an end: the command is kept, and another reply follows.
    #[error("the device is not connected; the command waits for it, at most {0:?}")]
    Waiting(Duration),
    #[error("the device did not come within {0:?}: the command is given up and was never sent")]
    Expired(Duration),
    /// Nobody will ever know more of it, or nobody wants to.
    #[error("given up: {0}")]
    GivenUp(String),
}

// === impl Failure ===

impl Failure {
    /// In one word, as figures label it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Silent(_) => "silent",
            Self::Unsupported(_) => "unsupported",
            Self::Refused(_) => "refused",
            Self::Device(_) => "device",
            Self::Busy => "busy",
            Self::Waiting(_) => "waiting",
            Self::Expired(_) => "expired",
            Self::GivenUp(_) => "given-up",
        }
    }
}
