//! The task that takes what waits to things that can be reached: it tells what was accepted and what expired, and starts a
//! delivery for each thing that gave a sign.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_models::{Failure, Order, Outcome, Value};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::Shadows;
use super::state::{Ended, Next};
use crate::clock;
use crate::devices::{Delivery, Thing};
use crate::metrics::Figure;

/// Deliveries at a time: a fleet that comes back at once is served in turns.
const DELIVERIES_MAX: usize = 256;
/// How long a thing has to answer the write of a delta.
const DELTA_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until the gateway stops. `ended`: commands of an earlier run that are to be told of first.
pub(super) async fn run(shadows: Shadows, ended: Vec<Ended>) {
    for Ended { number, thing, id, why } in ended {
        shadows.ended(&thing, number, &id, "unknown", &Err(Failure::GivenUp(why.to_owned()))).await;
    }
    let slots = Arc::new(Semaphore::new(DELIVERIES_MAX));
    loop {
        let due = shadows.state().next_due();
        tokio::select! {
            signs = shadows.inner.devices.awaited() => {
                let mut state = shadows.state();
                for (thing, sign) in signs {
                    state.wake(&thing, sign);
                }
            }
            () = shadows.inner.more.notified() => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            () = shadows.inner.tasks.stopping() => return,
        }
        tell_accepted(&shadows).await;
        tell_expired(&shadows).await;
        begin(&shadows, &slots);
    }
}

/// Says of each accepted command that it waits, once it is on disk.
async fn tell_accepted(shadows: &Shadows) {
    let accepted = shadows.state().take_accepted();
    if accepted.is_empty() {
        return;
    }
    match shadows.kept().await {
        Ok(()) => {
            for told in &accepted {
                shadows.inner.devices.tell(&told.thing, &told.id, &Err(Failure::Waiting(told.wait))).await;
            }
        }
        // The store tries on by itself. Nobody is told what does not hold yet: who waits for it asks again.
        Err(error) => warn!(%error, commands = accepted.len(), "waiting commands could not be made durable yet"),
    }
    shadows.state().told(&accepted);
}

/// Says of each command whose time is over that it is. That it will not be sent is on disk before.
async fn tell_expired(shadows: &Shadows) {
    let expired = shadows.state().expire(&shadows.inner.keyed);
    if expired.is_empty() {
        return;
    }
    if let Err(error) = shadows.kept().await {
        warn!(%error, commands = expired.len(), "commands whose time is over could not be marked as such on disk");
    }
    for told in expired {
        if let Some(thing) = shadows.inner.devices.by_id(&told.thing) {
            shadows.state().finish(&thing, told.number);
        }
        let outcome = Err(Failure::Expired(told.wait));
        shadows.ended(&told.thing, told.number, &told.id, "expired", &outcome).await;
    }
}

fn begin(shadows: &Shadows, slots: &Arc<Semaphore>) {
    while let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        let Some(id) = shadows.state().begin() else { return };
        let Some(thing) = shadows.inner.devices.by_id(&id) else { continue };
        let shadows = shadows.clone();
        shadows.inner.tasks.clone().spawn("delivery", async move {
            deliver(&shadows, &thing).await;
            shadows.state().end(&thing);
            drop(slot);
            shadows.inner.more.notify_one();
        });
    }
}

/// Hands the thing one after the other what waits for it, then its delta.
async fn deliver(shadows: &Shadows, thing: &Arc<Thing>) {
    loop {
        let next = shadows.state().next(&shadows.inner.keyed, thing);
        let went_on = match next {
            Next::Command { number, id, order, patience } => {
                command(shadows, thing, number, &id, order, patience).await
            }
            Next::Delta { version, values } => return delta(shadows, thing, version, values).await,
            Next::Nothing => false,
        };
        if !went_on {
            return;
        }
    }
}

/// Sends one command; whether it was handed over.
async fn command(
    shadows: &Shadows,
    thing: &Arc<Thing>,
    number: u64,
    id: &str,
    order: Order,
    patience: Duration,
) -> bool {
    let inner = &shadows.inner;
    if let Err(error) = shadows.kept().await {
        // Without the mark on disk it could be sent a second time after a restart.
        shadows.state().unsent(&inner.keyed, thing, number, error.to_string());
        return false;
    }
    let began = Instant::now();
    let outcome = match inner.devices.deliver(thing, id, order, patience).await {
        Delivery::Ended(outcome, seq) => {
            inner.metrics.add(Figure::CommandsWaited, &["delivered"], 1);
            shadows.forget(number, seq);
            outcome
        }
        // What the model refuses, or an id that is under way already, is refused for good.
        Delivery::NotSent(failure @ Failure::Refused(_)) => {
            let outcome = Err(failure);
            shadows.ended(&thing.id, number, id, "refused", &outcome).await;
            outcome
        }
        Delivery::NotSent(failure) => {
            debug!(thing = %thing.id, id, %failure, "a waiting command could not be handed over yet");
            shadows.state().unsent(&inner.keyed, thing, number, failure.to_string());
            return false;
        }
    };
    inner.metrics.command(word(&outcome), began.elapsed());
    shadows.state().finish(thing, number);
    true
}

/// Writes what the thing is to have and has not.
async fn delta(shadows: &Shadows, thing: &Arc<Thing>, version: u64, values: BTreeMap<Arc<str>, Value>) {
    let inner = &shadows.inner;
    let began = Instant::now();
    let id = format!("shadow-{version}-{:x}", clock::now_us());
    let order = Order::Write(values.iter().map(|(name, value)| (name.to_string(), value.clone())).collect());
    let (outcome, handed_over) = match inner.devices.deliver(thing, &id, order, DELTA_PATIENCE).await {
        Delivery::Ended(outcome, _) => (outcome, true),
        Delivery::NotSent(failure) => (Err(failure), false),
    };
    inner.metrics.command(word(&outcome), began.elapsed());
    let error = outcome.err().map(|failure| failure.to_string());
    shadows.state().written(&inner.keyed, thing, &values, handed_over, error);
}

fn word(outcome: &Outcome) -> &'static str {
    outcome.as_ref().map_or_else(Failure::word, |_| "ok")
}
