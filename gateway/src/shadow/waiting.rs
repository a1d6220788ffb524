//! A command that waits for its thing, and what is kept of it.

use std::time::{Duration, Instant};

use device_models::{Order, Value};
use serde::{Deserialize, Serialize};

use crate::clock;

/// What a waiting command takes in memory beside its record.
const BESIDE_BYTES: usize = 256;

/// A command to be kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Deferred {
    pub id: String,
    pub order: Order,
    /// How long the thing has to answer once it has it.
    pub patience: Duration,
    /// How long it may wait for the thing.
    pub wait: Duration,
}

/// A kept command.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Its place among all: what came first goes first.
    pub number: u64,
    pub command: Deferred,
    pub since_us: i64,
    pub deadline: Instant,
    /// It was said that it waits; before that it does not go, so that replies come in order.
    pub told: bool,
    /// It was handed to a session, or is just about to be.
    pub sent: bool,
    pub bytes: usize,
    /// Why it could not be handed over when that was tried last.
    pub error: Option<String>,
}

/// The same on disk, JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub thing: String,
    pub id: String,
    #[serde(flatten)]
    order: KeptOrder,
    patience_ms: u64,
    wait_ms: u64,
    since_us: i64,
    pub sent: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KeptOrder {
    Write(Vec<(String, Value)>),
    Read(Vec<String>),
    Invoke(String, Value),
}

/// A waiting command, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct WaitingView {
    pub id: String,
    /// `write`, `read` or `invoke`, with what.
    pub order: serde_json::Value,
    /// When it was accepted, microseconds since 1970 UTC.
    pub since_us: i64,
    /// Time left until it expires.
    pub left_seconds: u64,
    /// `waiting`, or `sent` while the thing is to answer.
    pub state: &'static str,
    /// Why it could not be handed over when that was tried last.
    pub error: Option<String>,
}

// === impl Waiting ===

impl Waiting {
    pub(super) fn new(number: u64, command: Deferred, now: Instant) -> Self {
        let deadline = now + command.wait;
        Self { number, command, since_us: clock::now_us(), deadline, told: false, sent: false, bytes: 0, error: None }
    }

    /// What an earlier run kept. The time it waits from now on is never longer than it was given, whatever became of the
    /// clock.
    pub(super) fn of(number: u64, kept: Kept, bytes: usize, now: Instant) -> Self {
        let wait = Duration::from_millis(kept.wait_ms);
        let waited = Duration::from_micros(u64::try_from(clock::now_us() - kept.since_us).unwrap_or(0));
        // A box without a clock does not know how long it was off.
        let clocked = clock::now_s().is_some() && clock::is_plausible(kept.since_us);
        let left = if clocked { wait.saturating_sub(waited) } else { wait };
        let order = match kept.order {
            KeptOrder::Write(values) => Order::Write(values),
            KeptOrder::Read(names) => Order::Read(names),
            KeptOrder::Invoke(action, input) => Order::Invoke { action, input },
        };
        let patience = Duration::from_millis(kept.patience_ms);
        let command = Deferred { id: kept.id, order, patience, wait };
        let bytes = bytes + BESIDE_BYTES;
        let (since_us, deadline, sent) = (kept.since_us, now + left, kept.sent);
        Self { number, command, since_us, deadline, told: true, sent, bytes, error: None }
    }

    /// What is kept of it, JSON.
    pub(super) fn record(&self, thing: &str) -> Vec<u8> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let Deferred { id, order, patience, wait } = &self.command;
        let order = match order.clone() {
            Order::Write(values) => KeptOrder::Write(values),
            Order::Read(names) => KeptOrder::Read(names),
            Order::Invoke { action, input } => KeptOrder::Invoke(action, input),
        };
        let kept = Kept {
            thing: thing.to_owned(),
            id: id.clone(),
            order,
            patience_ms: millis(*patience),
            wait_ms: millis(*wait),
            since_us: self.since_us,
            sent: self.sent,
        };
        // Strings, numbers and values always are JSON.
        serde_json::to_vec(&kept).unwrap_or_default()
    }

    /// The bytes it counts with, for a record of so many.
    pub(super) const fn cost(record: usize) -> usize {
        record + BESIDE_BYTES
    }

    pub(super) fn view(&self, now: Instant) -> WaitingView {
        let order = match &self.command.order {
            Order::Write(values) => {
                let values = values.iter().map(|(name, value)| (name.clone(), value.into()));
                serde_json::json!({ "write": values.collect::<serde_json::Map<_, _>>() })
            }
            Order::Read(names) => serde_json::json!({ "read": names }),
            Order::Invoke { action, input } => {
                serde_json::json!({ "invoke": action, "input": serde_json::Value::from(input) })
            }
        };
        WaitingView {
            id: self.command.id.clone(),
            order,
            since_us: self.since_us,
            left_seconds: self.deadline.saturating_duration_since(now).as_secs(),
            state: if self.sent { "sent" } else { "waiting" },
            error: self.error.clone(),
        }
    }
}
