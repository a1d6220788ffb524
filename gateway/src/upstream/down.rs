//! Commands from upstream: JSON on `sg/v1/GATEWAY/down/THING`, an order to the thing, its reply on the bus.
//!
//! One of `{"id": "7", "write": {"on": true}}`, `{"id": "7", "read": ["power"]}`,
//! `{"id": "7", "invoke": "reset", "input": {}}`, each with `"timeout_ms"` if ten seconds are not right. The session at the
//! broker is a clean one, so nothing is delivered a second time: a command is carried out at most once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_models::{Body, Failure, Message, Order, Outcome, Value, wire};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tracing::warn;

use super::things::Things;
use crate::bus::Bus;
use crate::clock;
use crate::metrics::Metrics;
use crate::threads::Tasks;

/// Commands of one upstream under way at a time.
const COMMANDS_MAX: usize = 64;
/// Bytes of one command.
pub(super) const COMMAND_BYTES_MAX: usize = 64 << 10;
/// How long a thing has to answer: if nothing is said, and at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_MAX_MS: u64 = 600_000;

/// Takes commands and sees them through.
#[derive(Clone)]
pub(super) struct Down {
    pub things: Arc<dyn Things>,
    pub bus: Bus,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub slots: Arc<Semaphore>,
}

/// A command as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    id: String,
    write: Option<BTreeMap<String, Value>>,
    read: Option<Vec<String>>,
    invoke: Option<String>,
    input: Option<Value>,
    timeout_ms: Option<u64>,
}

/// An order to a thing.
#[derive(Debug, PartialEq)]
pub(super) struct Command {
    /// What the reply on the bus will carry.
    pub id: String,
    pub order: Order,
    pub patience: Duration,
}

/// What is wrong with a command, and its id if that much could be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub id: String,
    pub reason: String,
}

// === impl Down ===

impl Down {
    pub(super) fn new(things: Arc<dyn Things>, bus: Bus, tasks: Tasks, metrics: Metrics) -> Self {
        Self { things, bus, tasks, metrics, slots: Arc::new(Semaphore::new(COMMANDS_MAX)) }
    }

    /// Starts to carry out what arrived for `thing`. Never waits.
    pub(super) fn take(&self, thing: &str, command: Result<Command, Malformed>) {
        // The slot is for everything: also a refusal waits for the bus.
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.metrics.command(word(&Err(Failure::Busy)), Duration::ZERO);
            warn!(thing, "command turned away: {COMMANDS_MAX} are under way");
            return;
        };
        let (down, thing) = (self.clone(), thing.to_owned());
        self.tasks.spawn("upstream command", async move {
            let started = Instant::now();
            let outcome = match command {
                Ok(Command { id, order, patience }) => down.things.order(&thing, &id, order, patience).await,
                Err(Malformed { id, reason }) => {
                    let outcome = Err(Failure::Refused(reason));
                    down.reply(&thing, id, outcome.clone()).await;
                    outcome
                }
            };
            down.metrics.command(word(&outcome), started.elapsed());
            drop(slot);
        });
    }

    /// Puts a reply of our own on the bus.
    async fn reply(&self, thing: &str, id: String, outcome: Outcome) {
        let now = clock::now_us();
        let message = Message {
            thing: Arc::from(thing),
            model: self.things.model(thing),
            time_us: now,
            received_us: now,
            body: Body::Reply { id, outcome },
        };
        if let Err(error) = self.bus.append(message.class(), &wire::encode_message(&message)).await {
            warn!(thing, %error, "cannot keep the reply to a command");
        }
    }
}

/// A command in our own words; see above.
pub(super) fn parse(payload: &[u8]) -> Result<Command, Malformed> {
    let wrong = |id: &str, reason: String| Malformed { id: id.to_owned(), reason };
    if payload.len() > COMMAND_BYTES_MAX {
        return Err(wrong("", format!("a command has at most {COMMAND_BYTES_MAX} bytes, this has {}", payload.len())));
    }
    let wanted: Wanted = serde_json::from_slice(payload).map_err(|error| {
        let json: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        wrong(json.get("id").and_then(serde_json::Value::as_str).unwrap_or_default(), error.to_string())
    })?;
    let Wanted { id, write, read, invoke, input, timeout_ms } = wanted;
    if input.is_some() && invoke.is_none() {
        return Err(wrong(&id, "`input` belongs to `invoke`".to_owned()));
    }
    let order = match (write, read, invoke) {
        (Some(write), None, None) => Order::Write(write.into_iter().collect()),
        (None, Some(read), None) => Order::Read(read),
        (None, None, Some(action)) => Order::Invoke { action, input: input.unwrap_or_default() },
        _ => return Err(wrong(&id, "it takes one of `write`, `read` and `invoke`".to_owned())),
    };
    let patience = match timeout_ms {
        None => PATIENCE,
        Some(ms @ 1..=PATIENCE_MAX_MS) => Duration::from_millis(ms),
        Some(ms) => return Err(wrong(&id, format!("`timeout_ms` is 1 to {PATIENCE_MAX_MS}, not {ms}"))),
    };
    Ok(Command { id, order, patience })
}

const fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(Failure::Offline) => "offline",
        Err(Failure::Silent(_)) => "silent",
        Err(Failure::Unsupported(_)) => "unsupported",
        Err(Failure::Refused(_)) => "refused",
        Err(Failure::Device(_)) => "device",
        Err(Failure::Busy) => "busy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_documented() {
        let ok = |text: &str| parse(text.as_bytes()).unwrap();
        let write = ok(r#"{"id": "7", "write": {"on": true}}"#);
        assert_eq!(write.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        assert_eq!((write.id.as_str(), write.patience), ("7", PATIENCE));
        let read = ok(r#"{"id": "8", "read": ["power"], "timeout_ms": 500}"#);
        assert_eq!((read.order, read.patience), (Order::Read(vec!["power".to_owned()]), Duration::from_millis(500)));
        let invoke = ok(r#"{"id": "9", "invoke": "reset"}"#);
        assert_eq!(invoke.order, Order::Invoke { action: "reset".to_owned(), input: Value::Null });
    }

    #[test]
    fn what_is_no_command_says_why_under_its_id() {
        for (text, id, reason) in [
            ("noise", "", "expected"),
            ("{}", "", "missing field `id`"),
            (r#"{"id": "1"}"#, "1", "one of"),
            (r#"{"id": "1", "read": [], "invoke": "x"}"#, "1", "one of"),
            (r#"{"id": "1", "read": [], "input": 3}"#, "1", "belongs to"),
            (r#"{"id": "1", "read": [], "timeout_ms": 0}"#, "1", "timeout_ms"),
            (r#"{"id": "1", "raed": []}"#, "1", "unknown field"),
        ] {
            let malformed = parse(text.as_bytes()).unwrap_err();
            assert_eq!(malformed.id, id, "{text}");
            assert!(malformed.reason.contains(reason), "{text}: {}", malformed.reason);
        }
        assert!(parse(&vec![b' '; COMMAND_BYTES_MAX + 1]).is_err());
    }
}
