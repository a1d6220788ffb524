//! The one way a device's report becomes a message on the bus: who is it, what does its model say, keep it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use device_models::normalize::normalize;
use device_models::{Body, Class, Message, Report, Word, wire};
use protocols::{Identity, Refusal};
use tokio::sync::broadcast;
use tracing::{debug, info, warn};

use crate::bus::Bus;
use crate::clock;
use crate::corrections::Corrections;
use crate::devices::{Devices, Route, RouteId, Sign, Thing};
use crate::edge::{Edge, Passed};
use crate::metrics::{Figure, Metrics};
use crate::presence::Presence;

/// Messages the live view may lag behind before it misses some.
const LIVE_BACKLOG: usize = 1_024;
/// Events that those who act on them may lag behind.
const EVENTS_BACKLOG: usize = 256;

/// What intake must know of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    pub name: Arc<str>,
    pub product: Option<String>,
    pub auto_register: bool,
    pub allow_anonymous: bool,
    /// Streams that may be pushed without a key: patterns as a credential's.
    pub push_without_key: Vec<String>,
    /// How long its reports wait for others before they are made durable; `None`: as the store says.
    pub commit: Option<Duration>,
}

/// Where a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub class: Class,
    pub seq: u64,
}

/// Takes reports in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    devices: Devices,
    bus: Bus,
    metrics: Metrics,
    edge: Edge,
    corrections: Corrections,
    recorder: Arc<Mutex<wire::Recorder>>,
    presence: Arc<Presence>,
    live: broadcast::Sender<Arc<Message>>,
    events: broadcast::Sender<Arc<Message>>,
}

impl Intake {
    pub fn new(devices: Devices, bus: Bus, metrics: Metrics, edge: Edge, corrections: Corrections) -> Self {
        Self {
            devices,
            bus,
            metrics,
            edge,
            corrections,
            recorder: Arc::default(),
            presence: Arc::default(),
            live: broadcast::Sender::new(LIVE_BACKLOG),
            events: broadcast::Sender::new(EVENTS_BACKLOG),
        }
    }

    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Follows every message as it is taken in (not yet durable): for the status page.
    pub fn live(&self) -> broadcast::Receiver<Arc<Message>> {
        self.live.subscribe()
    }

    /// Follows the events of all things alone, as they are taken in: for what acts on them.
    pub fn events(&self) -> broadcast::Receiver<Arc<Message>> {
        self.events.subscribe()
    }

    /// Takes one report. `None`: it says nothing new (a device that is online says that it is online; a rule holds all its
    /// values back). The message is durable when the bus says so of the sequence number.
    pub async fn take(
        &self,
        adapter: &AdapterInfo,
        by: &Identity,
        report: Report,
        route: Option<&Route>,
    ) -> Result<Option<Appended>, Refusal> {
        let taken = self.try_take(adapter, by, report, route).await;
        if let Err(refusal) = &taken {
            self.metrics.refused(&adapter.name, reason(refusal));
            debug!(adapter = %adapter.name, by = %by.name, %refusal, "a report is refused");
        }
        taken
    }

    async fn try_take(
        &self,
        adapter: &AdapterInfo,
        by: &Identity,
        report: Report,
        route: Option<&Route>,
    ) -> Result<Option<Appended>, Refusal> {
        if !by.reaches(&report.device) {
            return Err(Refusal::Forbidden(format!("`{}` may not speak for `{}`", by.name, report.device)));
        }
        let thing = self.devices.resolve(adapter, &report.device, report.product.as_deref())?;
        self.corrections.look().await;
        let now = clock::now_us();
        self.metrics.received(&adapter.name);
        if let Word::Presence { online, .. } = &report.word {
            if let (true, Some(route)) = (*online, route) {
                thing.set_route(route);
            }
            let changed = thing.set_online(*online, now);
            if *online && route.is_some() {
                self.devices.sign(&thing, Sign::Came);
            }
            if !changed {
                return Ok(None);
            }
        } else if let Some(route) = route {
            self.arrive(&thing, route, now).await?;
        }
        let message = normalize(&thing.model, &thing.id, &report, now).map_err(|m| Refusal::Invalid(m.to_string()))?;
        thing.note(&message);
        let passed = self.edge.pass(&thing, message);
        self.metrics.held(&adapter.name, passed.held);
        let appended = self.append_all(passed, adapter.commit).await?;
        // Only now: who waits for the answer counts on it being on the bus.
        match report.word {
            Word::Reply { id, outcome } => {
                self.devices.answered(&thing.id, &id, outcome, appended.map(|a| a.seq));
            }
            _ => self.devices.sign(&thing, Sign::Spoke),
        }
        Ok(appended)
    }

    /// Makes room for a thing that is new on this adapter: of those that registered themselves there, at most `keep` are
    /// remembered while they are offline.
    pub async fn make_room(&self, adapter: &AdapterInfo, name: &str, keep: usize) {
        if self.devices.find(adapter, name).is_some() {
            return;
        }
        for thing in self.devices.make_room(&adapter.name, keep) {
            self.metrics.add(Figure::ThingsForgotten, &[&adapter.name], 1);
            info!(thing = %thing.id, "forgotten: others came since");
            self.say(self.edge.forget(&thing, clock::now_us())).await;
        }
    }

    /// Says what rules held back until its time came, until the gateway stops.
    pub async fn run_rules(&self, stopping: impl Future<Output = ()>) {
        let ticks = async {
            loop {
                self.edge.wait().await;
                let due = self.edge.tick(clock::now_us());
                self.say(due).await;
            }
        };
        tokio::select! {
            () = ticks => {}
            () = stopping => {}
        }
    }

    /// Says again who came or went when the disk refused it, until the gateway stops.
    pub async fn run_presence(&self, stopping: impl Future<Output = ()>) {
        let mut durable = self.bus.durable();
        let again = async {
            while durable.changed().await.is_ok() {
                let failed = self.presence.failed(&durable.borrow_and_update());
                for message in failed {
                    let thing = self.devices.by_id(&message.thing);
                    if let (Some(thing), Body::Presence { online, .. }) = (thing, &message.body)
                        && thing.is_online() == *online
                        && let Err(refusal) = self.append(message, None).await
                    {
                        debug!(thing = %thing.id, %refusal, "could not say again that a device came or went");
                    }
                }
            }
        };
        tokio::select! {
            () = again => {}
            () = stopping => {}
        }
    }

    /// Says what still waits for its time: the gateway stops.
    pub async fn finish(&self) {
        let rest = self.edge.finish(clock::now_us());
        self.say(rest).await;
    }

    async fn say(&self, passed: Passed) {
        if let Err(refusal) = self.append_all(passed, None).await {
            warn!(%refusal, "values that waited for their time could not be kept");
        }
    }

    /// Appends all of them; gives where the last one went.
    async fn append_all(&self, passed: Passed, within: Option<Duration>) -> Result<Option<Appended>, Refusal> {
        let mut last = None;
        for message in passed.messages {
            last = Some(self.append(message, within).await?);
        }
        Ok(last)
    }

    /// A session speaks for the thing from now on; says so on the bus when the thing was offline.
    pub async fn arrive(&self, thing: &Arc<Thing>, route: &Route, now_us: i64) -> Result<(), Refusal> {
        if !thing.set_route(route) {
            return Ok(());
        }
        self.devices.sign(thing, Sign::Came);
        if thing.set_online(true, now_us) {
            self.presence(thing, true, "connected", now_us).await?;
        }
        Ok(())
    }

    /// A session that speaks for the thing came, or hears more than before: what waits for the thing may get through.
    pub fn came(&self, thing: &Thing) {
        self.devices.sign(thing, Sign::Came);
    }

    /// The session that spoke for the thing is gone; says so on the bus unless another took over. `unanswered`: what the
    /// thing has not answered will not be answered any more.
    pub async fn depart(&self, thing: &Arc<Thing>, route: RouteId, why: &str, unanswered: bool) {
        let now = clock::now_us();
        if !thing.clear_route(route) {
            return;
        }
        if unanswered {
            self.devices.lost(&thing.id);
        }
        if thing.set_online(false, now)
            && let Err(refusal) = self.presence(thing, false, why, now).await
        {
            debug!(thing = %thing.id, %refusal, "could not say that a device went offline");
        }
    }

    async fn presence(&self, thing: &Thing, online: bool, why: &str, now_us: i64) -> Result<(), Refusal> {
        let body = Body::Presence { online, reason: why.to_owned() };
        let message = Message {
            thing: Arc::clone(&thing.id),
            model: Arc::clone(thing.model.name()),
            time_us: now_us,
            received_us: now_us,
            body,
        };
        self.append(message, None).await.map(|_| ())
    }

    async fn append(&self, message: Message, within: Option<Duration>) -> Result<Appended, Refusal> {
        let class = message.class();
        // One for all: reports of a product share their template, whatever adapter they come by.
        let record = self.recorder.lock().unwrap_or_else(PoisonError::into_inner).record(&message);
        let taken = self.bus.append_record(class, &record, within).await;
        self.presence.note(taken.as_ref().ok().copied(), &message);
        let seq = taken.map_err(|e| Refusal::Unavailable(e.to_string()))?;
        let lives = self.live.receiver_count() > 0;
        let happens = matches!(message.body, Body::Event { .. }) && self.events.receiver_count() > 0;
        if lives || happens {
            let message = Arc::new(message);
            if happens {
                drop(self.events.send(Arc::clone(&message)));
            }
            if lives {
                drop(self.live.send(message));
            }
        }
        Ok(Appended { class, seq })
    }
}

/// A refusal's kind, as metrics label it.
pub fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unauthorized => "unauthorized",
        Refusal::Forbidden(_) => "forbidden",
        Refusal::NotFound(_) => "unknown",
        Refusal::Invalid(_) => "invalid",
        Refusal::Limit(_) => "limit",
        Refusal::Unavailable(_) => "unavailable",
    }
}
