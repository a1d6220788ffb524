//! Commands from upstream: JSON on `sg/v1/GATEWAY/down/THING`, an order to the thing, its reply on the bus.
//!
//! One of `{"id": "7", "write": {"on": true}}`, `{"id": "7", "read": ["power"]}`,
//! `{"id": "7", "invoke": "reset", "input": {}}`, each with `"timeout_ms"` if ten seconds are not right, and `"wait_ms"` if
//! it is to wait for a thing that is not connected for longer or shorter than is usual. Or
//! `{"id": "7", "shadow": {"desired": {"on": true}, "version": 3}}`, answered with the shadow. The session at the broker is
//! a clean one, so nothing is delivered a second time: a command is carried out at most once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use device_models::{Body, Failure, Message, Order, Outcome, Value, wire};
use serde::Deserialize;
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::things::Things;
use super::turns::{Job, Turn, Turns};
use crate::bus::Bus;
use crate::clock;
use crate::metrics::Metrics;
use crate::shadow::{Patch, ShadowError, WAIT_MAX};
use crate::threads::Tasks;

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
    turns: Arc<Mutex<Turns>>,
    /// There is room for more.
    room: Arc<Notify>,
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
    shadow: Option<Patch>,
    timeout_ms: Option<u64>,
    wait_ms: Option<u64>,
}

/// What is wanted of a thing in our own words.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    /// An order, and how long it may wait for its thing, unless as usual.
    Order {
        command: Command,
        wait: Option<Duration>,
    },
    Shadow(Change),
}

/// A change of what a thing is to have.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    /// What the reply on the bus will carry.
    pub id: String,
    pub patch: Patch,
    /// Written once even where the thing seems to have it.
    pub insist: bool,
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
        Self { things, bus, tasks, metrics, turns: Arc::default(), room: Arc::default() }
    }

    /// Sees to what arrived for `thing`, when its turn comes. Never waits.
    pub(super) fn take(&self, thing: &str, job: Job) {
        if self.turns().join(thing, job, Instant::now()) {
            self.begin();
        } else {
            self.metrics.command(Failure::Busy.word(), Duration::ZERO);
            warn!(thing, "command turned away: too many wait for their turn");
        }
    }

    /// Whether the destination may send more.
    pub(super) fn has_room(&self) -> bool {
        self.turns().has_room()
    }

    /// Resolves when it may.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            self.room.notified().await;
        }
    }

    /// The gateway stops: what has not had its turn is answered so.
    pub(super) async fn close(&self) {
        let turns: Vec<Turn> = self.turns().give_up().collect();
        for Turn { thing, job, .. } in turns {
            let outcome = Err(Failure::GivenUp("the gateway stops, and it had not had its turn".to_owned()));
            self.reply(&thing, job.into_id(), outcome).await;
        }
    }

    fn begin(&self) {
        // The guard is gone before the turn is looked at: what ends at once lets the next one in.
        while let Some(turn) = { self.turns().next() } {
            self.begin_one(turn);
        }
    }

    fn begin_one(&self, Turn { thing, job, since, .. }: Turn) {
        let job = match job {
            Job::Order { command, .. } if since.elapsed() > command.patience => {
                return self.spawn(thing, move |down, thing| async move {
                    let outcome = Err(Failure::Busy);
                    down.reply(&thing, command.id, outcome.clone()).await;
                    outcome
                });
            }
            Job::Order { command, wait } => match self.keep(&thing, command, wait) {
                Some(job) => job,
                None => return self.turns().ended(&thing),
            },
            job => job,
        };
        self.spawn(thing, move |down, thing| async move {
            match job {
                Job::Order { command: Command { id, order, patience }, .. } => {
                    down.things.order(&thing, &id, order, patience).await
                }
                Job::Change(change) => down.change(&thing, change).await,
                Job::Refuse(Malformed { id, reason }) => down.refuse(&thing, id, reason).await,
            }
        });
    }

    /// Keeps an order for a thing that is away, if it may wait; what is to be done at once otherwise.
    fn keep(&self, thing: &str, command: Command, wait: Option<Duration>) -> Option<Job> {
        let Command { id, order, patience } = &command;
        match self.things.defer(thing, id, order, *patience, wait) {
            Ok(true) => None,
            // A thing that is not there is refused in the words of every order to it.
            Ok(false) | Err(ShadowError::NoThing(_)) => Some(Job::Order { command, wait }),
            // An answer under its id would be taken for its end.
            Err(ShadowError::Repeated(_)) => {
                self.metrics.command("repeated", Duration::ZERO);
                debug!(thing, id, "this command waits already");
                None
            }
            Err(error) => Some(Job::Refuse(Malformed { id: command.id, reason: error.to_string() })),
        }
    }

    /// Changes what the thing is to have.
    async fn change(&self, thing: &str, Change { id, patch, insist }: Change) -> Outcome {
        match self.things.change(thing, &patch, insist).await {
            Ok(shadow) => {
                let outcome = Ok(shadow);
                self.reply(thing, id, outcome.clone()).await;
                outcome
            }
            Err(error) => self.refuse(thing, id, error.to_string()).await,
        }
    }

    fn spawn<F: Future<Output = Outcome> + Send + 'static>(
        &self,
        thing: String,
        work: impl FnOnce(Self, String) -> F + Send + 'static,
    ) {
        let (down, started) = (self.clone(), Instant::now());
        let mut work = Box::pin(work(down.clone(), thing.clone()));
        // The thing is told now: tasks may begin in another order than they were spawned in, and off-on is not on-off.
        let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        self.tasks.spawn("upstream command", async move {
            let outcome = match first {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => work.await,
            };
            down.metrics.command(word(&outcome), started.elapsed());
            down.turns().ended(&thing);
            down.begin();
            if down.has_room() {
                down.room.notify_one();
            }
        });
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn refuse(&self, thing: &str, id: String, reason: String) -> Outcome {
        let outcome = Err(Failure::Refused(reason));
        self.reply(thing, id, outcome.clone()).await;
        outcome
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

/// What is wanted in our own words; see above.
pub(super) fn parse(payload: &[u8]) -> Result<Wish, Malformed> {
    let wrong = |id: &str, reason: String| Malformed { id: id.to_owned(), reason };
    if payload.len() > COMMAND_BYTES_MAX {
        return Err(wrong("", format!("a command has at most {COMMAND_BYTES_MAX} bytes, this has {}", payload.len())));
    }
    let wanted: Wanted = serde_json::from_slice(payload).map_err(|error| {
        let json: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
        wrong(json.get("id").and_then(serde_json::Value::as_str).unwrap_or_default(), error.to_string())
    })?;
    let Wanted { id, write, read, invoke, input, shadow, timeout_ms, wait_ms } = wanted;
    if input.is_some() && invoke.is_none() {
        return Err(wrong(&id, "`input` belongs to `invoke`".to_owned()));
    }
    if shadow.is_some() && (timeout_ms.is_some() || wait_ms.is_some()) {
        return Err(wrong(
            &id,
            "`shadow` takes no `timeout_ms` and no `wait_ms`: it holds until it is changed".to_owned(),
        ));
    }
    let order = match (write, read, invoke, shadow) {
        (Some(write), None, None, None) => Order::Write(write.into_iter().collect()),
        (None, Some(read), None, None) => Order::Read(read),
        (None, None, Some(action), None) => Order::Invoke { action, input: input.unwrap_or_default() },
        (None, None, None, Some(patch)) => return Ok(Wish::Shadow(Change { id, patch, insist: false })),
        _ => return Err(wrong(&id, "it takes one of `write`, `read`, `invoke` and `shadow`".to_owned())),
    };
    let patience = match timeout_ms {
        None => PATIENCE,
        Some(ms @ 1..=PATIENCE_MAX_MS) => Duration::from_millis(ms),
        Some(ms) => return Err(wrong(&id, format!("`timeout_ms` is 1 to {PATIENCE_MAX_MS}, not {ms}"))),
    };
    let wait_max_ms = u64::try_from(WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
    if let Some(ms) = wait_ms.filter(|ms| *ms > wait_max_ms) {
        return Err(wrong(&id, format!("`wait_ms` is 0 to {wait_max_ms}, not {ms}")));
    }
    Ok(Wish::Order { command: Command { id, order, patience }, wait: wait_ms.map(Duration::from_millis) })
}

fn word(outcome: &Outcome) -> &'static str {
    outcome.as_ref().map_or_else(Failure::word, |_| "ok")
}

/// What a platform sent, where its dialect speaks JSON; why it is none, or that it is too long.
pub(super) fn json(payload: &[u8]) -> Result<serde_json::Value, String> {
    fits(payload)?;
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

/// Why a command of any dialect is too long.
pub(super) fn fits(payload: &[u8]) -> Result<(), String> {
    if payload.len() > COMMAND_BYTES_MAX {
        return Err(format!("a command has at most {COMMAND_BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_documented() {
        let order = |text: &str| match parse(text.as_bytes()) {
            Ok(Wish::Order { command, wait }) => (command, wait),
            other => panic!("{text}: {other:?}"),
        };
        let ok = |text: &str| order(text).0;
        let write = ok(r#"{"id": "7", "write": {"on": true}}"#);
        assert_eq!(write.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        assert_eq!((write.id.as_str(), write.patience), ("7", PATIENCE));
        let read = ok(r#"{"id": "8", "read": ["power"], "timeout_ms": 500}"#);
        assert_eq!((read.order, read.patience), (Order::Read(vec!["power".to_owned()]), Duration::from_millis(500)));
        let invoke = ok(r#"{"id": "9", "invoke": "reset"}"#);
        assert_eq!(invoke.order, Order::Invoke { action: "reset".to_owned(), input: Value::Null });
        let wait = |text: &str| order(text).1;
        assert_eq!(wait(r#"{"id": "9", "read": ["power"]}"#), None);
        assert_eq!(wait(r#"{"id": "9", "read": ["power"], "wait_ms": 1500}"#), Some(Duration::from_millis(1500)));
        let Ok(Wish::Shadow(change)) = parse(br#"{"id": "10", "shadow": {"desired": {"on": null}, "version": 3}}"#)
        else {
            panic!("a shadow's change");
        };
        assert_eq!((change.id.as_str(), change.patch.version, change.patch.desired.len()), ("10", Some(3), 1));
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
            (r#"{"id": "1", "read": [], "wait_ms": 9000000000}"#, "1", "wait_ms"),
            (r#"{"id": "1", "shadow": {}, "wait_ms": 5}"#, "1", "holds until"),
            (r#"{"id": "1", "shadow": {}, "read": []}"#, "1", "one of"),
            (r#"{"id": "1", "shadow": {"desierd": {}}}"#, "1", "unknown field"),
        ] {
            let malformed = parse(text.as_bytes()).unwrap_err();
            assert_eq!(malformed.id, id, "{text}");
            assert!(malformed.reason.contains(reason), "{text}: {}", malformed.reason);
        }
        assert!(parse(&vec![b' '; COMMAND_BYTES_MAX + 1]).is_err());
    }
}
