//! What waits for a thing: the values it is to have (its shadow), and commands for when it comes.
//!
//! `document.rs` desired values and how they differ from what the thing reports; `waiting.rs` commands that wait, and
//! what is kept of them; `state.rs` both for all things, within limits; `courier.rs` the task that takes them to things.
//!
//! What holds:
//!
//! 1. What was accepted is on disk before anybody is told so, and survives a SIGKILL.
//! 2. A command is marked as sent, on disk, before the thing's session gets it, and is never sent again after that. One that
//!    was marked and whose end is not known after a restart is told as given up.
//! 3. Commands of one thing go in order, the next when the one before has ended.
//! 4. Every accepted command has one last reply on the bus: the thing's answer, expired, or given up with the reason.
//!
//! What a thing reports is not kept here: it is the latest values that `devices` has.
//!
//! Must not be in here: protocols (a session turns an order into bytes), what a platform calls it (`upstream/`).

mod courier;
mod document;
mod state;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_models::{Failure, Order, Outcome, Value};
use serde::Serialize;
use tokio::sync::Notify;

pub use self::document::Patch;
pub use self::waiting::WaitingView;

use self::state::State;
use self::waiting::Deferred;
use crate::bus::{BusError, Keyed};
use crate::config;
use crate::devices::{Devices, ID_LEN_MAX, Latest, Thing};
use crate::metrics::{Figure, Metrics, Sample};
use crate::threads::Tasks;

/// The longest a command may wait: nobody means what was said a month ago.
pub const WAIT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a shadow or a waiting command is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShadowError {
    #[error("there is no thing `{0}`")]
    NoThing(String),
    #[error("the shadow of `{thing}` has version {is}, not {expected}")]
    Version { thing: String, expected: u64, is: u64 },
    /// The model does not allow it, or it is too large for any shadow.
    #[error("{0}")]
    Unfit(String),
    #[error("another command with the id `{0}` waits already")]
    Twice(String),
    /// The same, said again.
    #[error("the command `{0}` waits already")]
    Repeated(String),
    /// A limit is reached; later there may be room.
    #[error("{0}")]
    Full(String),
    #[error("`{thing}` has no waiting command `{id}`")]
    NoCommand { thing: String, id: String },
    #[error("the command `{0}` is on its way to the thing already")]
    Sent(String),
    #[error("the store: {0}")]
    Store(String),
}

/// What waits for things. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shadows {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    devices: Devices,
    keyed: Keyed,
    metrics: Metrics,
    tasks: Tasks,
    config: config::Shadow,
    state: Mutex<State>,
    /// Something to do that no thing's sign tells.
    more: Notify,
}

/// A thing's shadow, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct ShadowView {
    pub thing: String,
    /// Rises by one with each change of `desired`; 0: nothing was ever desired.
    pub version: u64,
    /// When `desired` changed last, microseconds since 1970 UTC.
    pub changed_us: i64,
    pub desired: BTreeMap<Arc<str>, Value>,
    /// The newest values the thing has said.
    pub reported: BTreeMap<Arc<str>, Value>,
    /// What of `desired` the thing does not have yet.
    pub delta: BTreeMap<Arc<str>, Value>,
    /// `in-sync`, `offline` (the delta waits for the thing), `sending`, `given-up` (until the thing comes again, or
    /// `desired` changes).
    pub state: &'static str,
    /// How the last try to send the delta ended, unless well.
    pub error: Option<String>,
    /// Commands that wait for the thing.
    pub commands: usize,
}

// === impl ShadowError ===

impl From<BusError> for ShadowError {
    fn from(error: BusError) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<ShadowError> for Failure {
    fn from(error: ShadowError) -> Self {
        Self::Refused(error.to_string())
    }
}

// === impl Shadows ===

impl Shadows {
    /// Takes up what an earlier run left, and starts the courier. `restored`: the keyed state is older than what was
    /// written last, so that what waits by its word may have been sent.
    pub fn start(
        config: &config::Shadow,
        devices: &Devices,
        keyed: Keyed,
        restored: bool,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Result<Self, BusError> {
        let (state, ended) = State::load(&keyed, devices, restored)?;
        let inner = Inner {
            devices: devices.clone(),
            keyed,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            config: config.clone(),
            state: Mutex::new(state),
            more: Notify::new(),
        };
        let shadows = Self { inner: Arc::new(inner) };
        let figures = shadows.clone();
        metrics.sample(move || figures.figures());
        tasks.spawn("shadow", courier::run(shadows.clone(), ended));
        Ok(shadows)
    }

    pub fn devices(&self) -> &Devices {
        &self.inner.devices
    }

    /// Keeps a command for a thing that cannot be reached now. `wait`: at most so long; what the configuration says without.
    /// `Ok(None)`: it is not to wait, or the thing can be reached and nothing waits before it. The time it waits otherwise:
    /// that it is on disk is told by a reply on the bus, [`Failure::Waiting`].
    pub fn defer(
        &self,
        thing: &str,
        id: &str,
        order: &Order,
        patience: Duration,
        wait: Option<Duration>,
    ) -> Result<Option<Duration>, ShadowError> {
        let wait = wait.unwrap_or(Duration::from_secs(self.inner.config.command_expiry_seconds)).min(WAIT_MAX);
        let found = self.find(thing)?;
        let mut state = self.state();
        if wait.is_zero() || (found.is_reachable() && !state.has_waiting(&found.id)) {
            return Ok(None);
        }
        if id.is_empty() || id.len() > ID_LEN_MAX {
            return Err(ShadowError::Unfit(format!("a command's id has 1 to {ID_LEN_MAX} bytes")));
        }
        found.model.check(order).map_err(|mismatch| ShadowError::Unfit(mismatch.to_string()))?;
        let deferred = Deferred { id: id.to_owned(), order: order.clone(), patience, wait };
        let accepted = state.accept(&self.inner.keyed, &self.inner.config, &found, deferred);
        drop(state);
        if let Err(error) = accepted {
            // The same command once more is not another one that was turned away.
            if !matches!(error, ShadowError::Repeated(_)) {
                self.inner.metrics.add(Figure::CommandsWaited, &["refused"], 1);
            }
            return Err(error);
        }
        self.inner.more.notify_one();
        Ok(Some(wait))
    }

    /// Resolves when everything accepted before is on disk.
    pub async fn kept(&self) -> Result<(), ShadowError> {
        Ok(self.inner.keyed.flush().await?)
    }

    /// The commands that wait for a thing, in order.
    pub fn waiting(&self, thing: &str) -> Result<Vec<WaitingView>, ShadowError> {
        let found = self.find(thing)?;
        Ok(self.state().waiting(&found.id))
    }

    /// Takes a waiting command back.
    pub async fn cancel(&self, thing: &str, id: &str) -> Result<(), ShadowError> {
        let found = self.find(thing)?;
        let number = self.state().cancel(&self.inner.keyed, &found, id)?;
        self.kept().await?;
        self.state().finish(&found, number);
        self.ended(&found.id, number, id, "cancelled", &Err(Failure::GivenUp("taken back".to_owned()))).await;
        Ok(())
    }

    /// Changes what a thing is to have; what the shadow is then. Durable when it returns. `insist`: what changes is written
    /// once even where the thing seems to have it.
    pub async fn change(&self, thing: &str, patch: &Patch, insist: bool) -> Result<ShadowView, ShadowError> {
        let found = self.find(thing)?;
        let changed = self.state().change(&self.inner.keyed, &self.inner.config, &found, patch, insist)?;
        if changed {
            self.kept().await?;
            self.inner.more.notify_one();
        }
        Ok(self.view_of(&found))
    }

    pub fn view(&self, thing: &str) -> Result<ShadowView, ShadowError> {
        Ok(self.view_of(&*self.find(thing)?))
    }

    /// The version of a thing's shadow and the number of commands that wait for it, both 0 for one that has neither.
    pub fn mark(&self, thing: &str) -> (u64, usize) {
        self.state().mark(thing)
    }

    fn view_of(&self, thing: &Thing) -> ShadowView {
        let latest = thing.latest();
        let reported = |(name, latest): (&Arc<str>, &Latest)| (Arc::clone(name), latest.value.clone());
        let reported = latest.iter().map(reported).collect();
        self.state().view(thing, &latest, reported)
    }

    fn find(&self, thing: &str) -> Result<Arc<Thing>, ShadowError> {
        self.inner.devices.by_id(thing).ok_or_else(|| ShadowError::NoThing(thing.to_owned()))
    }

    /// Counts the end of a waiting command, puts the reply on the bus, and forgets it when that is on disk.
    async fn ended(&self, thing: &str, number: u64, id: &str, how: &str, outcome: &Outcome) {
        self.inner.metrics.add(Figure::CommandsWaited, &[how], 1);
        let seq = self.inner.devices.tell(thing, id, outcome).await;
        self.forget(number, seq);
    }

    /// Forgets a command when its last reply, which has this number, is on disk: a kill in between leaves it marked as sent,
    /// and it is told once more.
    fn forget(&self, number: u64, seq: Option<u64>) {
        let shadows = self.clone();
        self.inner.tasks.spawn("command end", async move {
            if let Some(seq) = seq {
                shadows.inner.devices.told(seq).await;
            }
            state::forget(&shadows.inner.keyed, number);
        });
    }

    fn figures(&self) -> Vec<Sample> {
        let count = self.state().count(Instant::now());
        vec![
            Sample::new(Figure::CommandsWaiting, &[], count.commands as f64),
            Sample::new(Figure::CommandsWaitingMax, &[], self.inner.config.commands_max as f64),
            Sample::new(Figure::CommandsWaitingOldest, &[], count.oldest.as_secs_f64()),
            Sample::new(Figure::Shadows, &[], count.shadows as f64),
            Sample::new(Figure::ShadowBytes, &[], count.bytes as f64),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
