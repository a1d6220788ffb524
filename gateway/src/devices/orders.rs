//! Commands in flight: each waits for its answer, at most as long as it is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use device_models::{Body, Class, Command, Failure, Message, Order, Outcome, wire};
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use super::registry::{Devices, Thing};
use super::state::RouteId;
use crate::clock;

/// Commands in flight on the whole box, and for one thing: a slow device must not use up everybody's.
const IN_FLIGHT_MAX: usize = 1_000;
const PER_THING_MAX: usize = 16;
/// How long a thing may be away between two times that it asks for orders, or comes back after a broken connection: no
/// longer, because who gives an order to a thing that is away wants to know.
const RETURN_MAX: Duration = Duration::from_secs(2);
/// Bytes of a command's id.
pub const ID_LEN_MAX: usize = 128;

/// What became of an order that may be tried again.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// It was handed to the device's session; the reply is on the bus, under this number of the control class if it could
    /// be kept.
    Ended(Outcome, Option<u64>),
    /// It was not sent, and the device has heard nothing of it. Nothing is on the bus.
    NotSent(Failure),
}

#[derive(Debug, Default)]
pub(super) struct Orders {
    waiting: Mutex<HashMap<String, Waiting>>,
    /// A session speaks for some thing from now on.
    pub(super) came: Notify,
}

#[derive(Debug)]
struct Waiting {
    thing: Arc<str>,
    answer: oneshot::Sender<Delivery>,
    /// A session that cannot say it leaves it to the one who asked: it may be tried again.
    again: bool,
}

impl Devices {
    /// Sends an order to a thing and waits for the answer; one that was there a moment ago may come back first. However it
    /// ends, the reply is on the bus afterwards: a device's own answer through the intake, any other from here.
    pub async fn order(&self, thing: &str, id: &str, order: Order, patience: Duration) -> Outcome {
        let Some(found) = self.by_id(thing) else {
            let outcome = Err(Failure::Refused(format!("there is no thing `{thing}`")));
            self.record(thing, "", id, &outcome).await;
            return outcome;
        };
        let began = Instant::now();
        loop {
            let way = found.route().map(|route| route.id);
            let left = patience.saturating_sub(began.elapsed());
            match self.hand_over(&found, id, order.clone(), left, false).await {
                Delivery::Ended(outcome, _) => return outcome,
                Delivery::NotSent(Failure::Offline) if self.returns(&found, way, began, patience).await => {}
                Delivery::NotSent(failure) => {
                    let outcome = Err(failure);
                    self.record(&found.id, found.model.name(), id, &outcome).await;
                    return outcome;
                }
            }
        }
    }

    /// Waits for a thing that left just now to come back by another way; whether it did.
    async fn returns(&self, thing: &Thing, way: Option<RouteId>, began: Instant, patience: Duration) -> bool {
        let back = async {
            loop {
                let came = self.inner.orders.came.notified();
                tokio::pin!(came);
                // Registered before looking, so that none is missed that comes in between.
                came.as_mut().enable();
                if thing.route().is_some_and(|route| Some(route.id) != way) {
                    return;
                }
                came.await;
            }
        };
        let until = began + RETURN_MAX.min(patience);
        thing.was_there(RETURN_MAX) && tokio::time::timeout_at(until.into(), back).await.is_ok()
    }

    /// The same for an order that can be tried another time: what was not sent is not told.
    pub async fn deliver(&self, thing: &Arc<Thing>, id: &str, order: Order, patience: Duration) -> Delivery {
        self.hand_over(thing, id, order, patience, true).await
    }

    async fn hand_over(&self, thing: &Arc<Thing>, id: &str, order: Order, patience: Duration, again: bool) -> Delivery {
        let answer = match self.send(thing, id, order, patience, again) {
            Ok(answer) => answer,
            Err(failure) => return Delivery::NotSent(failure),
        };
        let outcome = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(delivery)) => return delivery,
            Ok(Err(_)) if again => Err(Failure::GivenUp(CUT_OFF.to_owned())),
            Ok(Err(_)) => Err(Failure::Offline),
            Err(_) => Err(Failure::Silent(patience)),
        };
        self.forget(id, &thing.id);
        let seq = self.record(&thing.id, thing.model.name(), id, &outcome).await;
        Delivery::Ended(outcome, seq)
    }

    /// Puts a reply on the bus for a command whose way ends (or pauses) here; its number in the control class.
    pub async fn tell(&self, thing: &str, id: &str, outcome: &Outcome) -> Option<u64> {
        let model = self.by_id(thing).map(|t| t.model.name().to_string()).unwrap_or_default();
        self.record(thing, &model, id, outcome).await
    }

    /// Hands a device's answer, on the bus under this number, to whoever waits for it; false when nobody does (any more).
    pub fn answered(&self, thing: &str, id: &str, outcome: Outcome, seq: Option<u64>) -> bool {
        let waiting = {
            let mut waiting = self.waiting();
            match waiting.get(id) {
                Some(w) if *w.thing == *thing => waiting.remove(id),
                _ => None,
            }
        };
        waiting.is_some_and(|w| w.answer.send(Delivery::Ended(outcome, seq)).is_ok())
    }

    /// A session's own answer to a command (not a device's report): delivered, and put on the bus.
    pub async fn session_answered(&self, id: &str, outcome: Outcome) {
        let Some(waiting) = self.waiting().remove(id) else { return };
        if let (true, Err(failure)) = (waiting.again, &outcome)
            && is_unsent(failure)
        {
            drop(waiting.answer.send(Delivery::NotSent(failure.clone())));
            return;
        }
        let model = self.by_id(&waiting.thing).map(|t| t.model.name().to_string()).unwrap_or_default();
        let seq = self.record(&waiting.thing, &model, id, &outcome).await;
        drop(waiting.answer.send(Delivery::Ended(outcome, seq)));
    }

    /// A session has not sent a command and will not: nothing is told of it here.
    pub fn session_unsent(&self, id: &str) {
        let Some(waiting) = self.waiting().remove(id) else { return };
        drop(waiting.answer.send(Delivery::NotSent(Failure::Offline)));
    }

    /// Every command that waits for this thing ends: its session is gone.
    pub fn lost(&self, thing: &str) {
        self.waiting().retain(|_, w| *w.thing != *thing);
    }

    fn send(
        &self,
        thing: &Arc<Thing>,
        id: &str,
        order: Order,
        patience: Duration,
        again: bool,
    ) -> Result<oneshot::Receiver<Delivery>, Failure> {
        if id.is_empty() || id.len() > ID_LEN_MAX {
            return Err(Failure::Refused(format!("a command's id has 1 to {ID_LEN_MAX} bytes")));
        }
        let order = thing.model.check(&order).map_err(|mismatch| Failure::Refused(mismatch.to_string()))?;
        let route = thing.route().ok_or(Failure::Offline)?;
        let command = Command {
            id: id.to_owned(),
            device: thing.name.to_string(),
            product: thing.model.name().to_string(),
            order,
            patience,
        };
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.contains_key(id) {
                return Err(Failure::Refused(format!("a command with the id `{id}` is already on its way")));
            }
            let for_thing = waiting.values().filter(|w| w.thing == thing.id).count();
            if waiting.len() >= IN_FLIGHT_MAX || for_thing >= PER_THING_MAX {
                return Err(Failure::Busy);
            }
            waiting.insert(id.to_owned(), Waiting { thing: Arc::clone(&thing.id), answer: sender, again });
        }
        if let Err(error) = route.commands.try_send(Box::new(command)) {
            self.waiting().remove(id);
            return Err(match error {
                tokio::sync::mpsc::error::TrySendError::Full(_) => Failure::Busy,
                tokio::sync::mpsc::error::TrySendError::Closed(_) => Failure::Offline,
            });
        }
        Ok(receiver)
    }

    async fn record(&self, thing: &str, model: &str, id: &str, outcome: &Outcome) -> Option<u64> {
        let now = clock::now_us();
        let message = Message {
            thing: Arc::from(thing),
            model: Arc::from(model),
            time_us: now,
            received_us: now,
            body: Body::Reply { id: id.to_owned(), outcome: outcome.clone() },
        };
        let appended = self.inner.bus.append(Class::Control, &wire::encode_message(&message)).await;
        appended.inspect_err(|error| warn!(thing, id, %error, "a reply could not be stored")).ok()
    }

    /// Resolves when the control class is on disk up to this number.
    pub async fn told(&self, seq: u64) {
        // One that could not be written is named by a gap: it is as said as it can be.
        drop(self.inner.bus.settled(Class::Control, seq).await);
    }

    fn forget(&self, id: &str, thing: &Arc<str>) {
        let mut waiting = self.waiting();
        if waiting.get(id).is_some_and(|w| w.thing == *thing && w.answer.is_closed()) {
            waiting.remove(id);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, Waiting>> {
        self.inner.orders.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nobody knows how a command ended whose connection went with it.
const CUT_OFF: &str = "the connection ended after the command was handed to it; whether the device has it is not known";

/// Whether a session's own answer says that nothing went out: it could not say it, or had no room.
const fn is_unsent(failure: &Failure) -> bool {
    matches!(failure, Failure::Unsupported(_) | Failure::Busy)
}

#[cfg(test)]
mod tests {
    use device_models::model::Models;
    use device_models::{Command, Value};
    use tokio::sync::mpsc;

    use super::*;
    use crate::bus::Bus;
    use crate::config;
    use crate::devices::{Declared, Route, Sign};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn route(id: u64) -> (Route, mpsc::Receiver<Box<Command>>) {
        let (commands, orders) = mpsc::channel(1);
        (Route { id: RouteId(id), adapter: "http".into(), commands }, orders)
    }

    #[tokio::test]
    async fn an_order_waits_for_a_thing_that_left_just_now_and_for_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = config::Store { path: folder.path().to_owned(), commit_ms: 0, ..config::Store::default() };
        let (bus, _) = Bus::open(&store).unwrap();
        let declared = ["polls", "away"].map(|name| Declared {
            id: name.to_owned(),
            product: "relay-switch".to_owned(),
            name: name.to_owned(),
            adapter: None,
        });
        let models = Arc::new(Models::shipped().unwrap());
        let devices = Devices::open(models, declared.to_vec(), bus.clone()).unwrap();
        let toggle = || Order::Invoke { action: "toggle".to_owned(), input: Value::Null };
        let began = Instant::now();
        assert_eq!(devices.order("away", "c-1", toggle(), PATIENCE).await, Err(Failure::Offline));
        assert!(began.elapsed() < RETURN_MAX, "it was never there: nothing is waited for");

        let thing = devices.by_id("polls").unwrap();
        let (first, _) = route(1);
        assert!(thing.set_route(&first) && thing.clear_route(first.id));
        let back = async {
            let (second, mut orders) = route(2);
            assert!(thing.set_route(&second));
            devices.sign(&thing, Sign::Came);
            assert_eq!(orders.recv().await.unwrap().id, "c-2");
            assert!(devices.answered("polls", "c-2", Ok(Value::Int(7)), None));
        };
        // In their order: it finds nobody, and waits.
        let (outcome, ()) = tokio::join!(biased; devices.order("polls", "c-2", toggle(), PATIENCE), back);
        assert_eq!(outcome, Ok(Value::Int(7)));
        bus.close().await;
    }
}
