//! What leaves a stream by rule and not because a viewer asked: relays and recordings.
//!
//! A supervisor follows the streams of the core; for each stream and each rule that chooses it one task runs
//! (`relay/`, `record/`), which asks its `Demand` when to work. Orders to the camera, events that are alarms, and
//! viewers arrive here and become demand. What the outlets do is said as properties of the camera, at most once a
//! second. Without a rule nothing of this is started. Must not be in here: what a relay or a recording does.

mod demand;
mod voice;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use device_models::{Body, Failure, Message, Outcome, Value};
use protocols::media::StreamName;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub(crate) use self::demand::{Demand, Reason};
pub(crate) use self::voice::Voice;
use crate::config;
use crate::metrics::{Figure, Metrics};
use crate::record::{Board as RecordBoard, RecordInfo, Recorder};
use crate::relay::{Board as RelayBoard, Relays};
use crate::stream::StreamCore;
use crate::threads::Tasks;

/// How often viewers are looked at and what changed is said.
const LOOK: Duration = Duration::from_secs(1);

/// Longest time an order may ask for.
const ASKED_MAX: Duration = Duration::from_secs(86_400);

/// What all outlets work with.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    pub streams: StreamCore,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub voice: Voice,
}

/// All outlets; clones share them.
#[derive(Debug, Clone)]
pub struct Outlets {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    means: Means,
    relays: Relays,
    recorder: Option<Recorder>,
    open: Mutex<BTreeMap<StreamName, Open>>,
}

/// The outlets of one stream.
#[derive(Debug)]
struct Open {
    stop: CancellationToken,
    relays: Vec<Outlet<RelayBoard>>,
    records: Vec<Outlet<RecordBoard>>,
    said: Vec<(&'static str, Value)>,
}

/// One outlet: when it should run, and what it says of itself.
#[derive(Debug)]
struct Outlet<B> {
    demand: Demand,
    alarms: Arc<[config::AlarmEvent]>,
    board: Arc<B>,
}

/// What the outlets of one stream do now.
#[derive(Debug, Clone, Default, Serialize)]
pub struct OutletsInfo {
    pub relays: Vec<crate::relay::RelayInfo>,
    pub records: Vec<RecordInfo>,
}

impl Outlets {
    /// Starts what the rules ask for; nothing without a rule. `events`: everything that happens to things.
    pub(crate) fn start(
        means: Means,
        relays: Relays,
        recorder: Option<Recorder>,
        events: broadcast::Receiver<Arc<Message>>,
    ) -> Self {
        let idle = relays.is_empty() && recorder.is_none();
        let tasks = means.tasks.clone();
        let outlets = Self { inner: Arc::new(Inner { means, relays, recorder, open: Mutex::default() }) };
        if !idle {
            tasks.spawn("outlets", outlets.clone().follow(events));
        }
        outlets
    }

    /// What the outlets of a stream do now.
    pub fn info(&self, stream: &str) -> OutletsInfo {
        let open = self.inner.open();
        let Some(open) = StreamName::parse(stream).and_then(|name| open.get(&name)) else {
            return OutletsInfo::default();
        };
        open.info()
    }

    /// The recordings on disk, if any rule keeps some.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.inner.recorder.as_ref()
    }

    /// Carries out an action of a camera.
    pub fn order(&self, stream: &str, action: &str, input: &Value) -> Outcome {
        let live = self.inner.means.streams.list().into_iter().any(|info| info.name == stream && info.live);
        let Some(name) = StreamName::parse(stream).filter(|_| live) else { return Err(Failure::Offline) };
        if action == "raiseAlarm" {
            let reason = member(input, "reason").and_then(Value::as_str).unwrap_or("asked for");
            self.inner.means.voice.event(stream, "alarm", &[("reason", reason)]);
            return Ok(Value::Null);
        }
        let span = member(input, "seconds").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
        let span = span.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(|span| span.min(ASKED_MAX));
        let open = self.inner.open();
        let (what, demands): (_, Vec<&Demand>) = match (action, open.get(&name)) {
            ("relayStart" | "relayStop", open) => ("relay", open.into_iter().flat_map(Open::relay_demands).collect()),
            ("recordStart" | "recordStop", open) => {
                ("record", open.into_iter().flat_map(Open::record_demands).collect())
            }
            _ => return Err(Failure::Unsupported(format!("the gateway cannot `{action}` a camera"))),
        };
        if demands.is_empty() {
            return Err(Failure::Refused(format!("no [[{what}]] is configured for this stream")));
        }
        let starts = action.ends_with("Start");
        for demand in demands {
            if starts { demand.start(span) } else { demand.stop() }
        }
        Ok(Value::Null)
    }

    /// The supervisor: opens and closes outlets as streams come and go.
    async fn follow(self, mut events: broadcast::Receiver<Arc<Message>>) {
        let means = &self.inner.means;
        let mut changes = means.streams.changes();
        let alarms = self.inner.relays.have_alarms() || self.inner.recorder.as_ref().is_some_and(Recorder::has_alarms);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let idle = self.inner.open().is_empty();
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() { break }
                    self.look();
                }
                event = events.recv(), if alarms => match event {
                    Ok(event) => self.hear(&event),
                    Err(RecvError::Lagged(missed)) => means.metrics.add(Figure::AlarmsMissed, &[], missed),
                    Err(RecvError::Closed) => break,
                },
                _ = look.tick(), if !idle => self.look(),
                () = means.tasks.stopping() => break,
            }
        }
        for open in std::mem::take(&mut *self.inner.open()).into_values() {
            open.stop.cancel();
        }
    }

    /// Opens what is new, closes what is gone, looks for viewers, says what changed.
    fn look(&self) {
        let streams = self.inner.means.streams.list();
        let mut open = self.inner.open();
        open.retain(|name, open| {
            let there = streams.iter().any(|info| info.name == name.as_str());
            if !there {
                open.stop.cancel();
            }
            there
        });
        for info in &streams {
            let Some(name) = StreamName::parse(&info.name) else { continue };
            let open = open.entry(name).or_insert_with_key(|name| self.open(name));
            for demand in open.relay_demands().chain(open.record_demands()) {
                demand.watched(info.live && info.viewers > 0);
            }
            open.say(&info.name, &self.inner.means.voice);
        }
    }

    fn open(&self, name: &StreamName) -> Open {
        let stop = CancellationToken::new();
        let inner = &self.inner;
        let relays = inner.relays.open(name, &inner.means, &stop).into_iter();
        let records = inner.recorder.iter().flat_map(|recorder| recorder.open(name, &inner.means, &stop));
        Open {
            records: records.map(|(demand, alarms, board)| Outlet { demand, alarms, board }).collect(),
            relays: relays.map(|(demand, alarms, board)| Outlet { demand, alarms, board }).collect(),
            stop,
            said: Vec::new(),
        }
    }

    /// An event happened: for whom is it an alarm?
    fn hear(&self, message: &Message) {
        let Body::Event { name: event, .. } = &message.body else { return };
        for (stream, open) in &*self.inner.open() {
            let is_alarm = |alarm: &config::AlarmEvent| {
                *alarm.event == **event && *message.thing == *alarm.thing.as_deref().unwrap_or(stream.as_str())
            };
            let relays = open.relays.iter().map(|relay| (&relay.demand, &relay.alarms));
            let records = open.records.iter().map(|record| (&record.demand, &record.alarms));
            for (demand, _) in relays.chain(records).filter(|(_, alarms)| alarms.iter().any(is_alarm)) {
                debug!(%stream, thing = %message.thing, %event, "an alarm");
                demand.alarm(&format!("{event} of {}", message.thing));
            }
        }
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, BTreeMap<StreamName, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn relay_demands(&self) -> impl Iterator<Item = &Demand> {
        self.relays.iter().map(|relay| &relay.demand)
    }

    fn record_demands(&self) -> impl Iterator<Item = &Demand> {
        self.records.iter().map(|record| &record.demand)
    }

    fn info(&self) -> OutletsInfo {
        OutletsInfo {
            relays: self.relays.iter().map(|relay| relay.board.info()).collect(),
            records: self.records.iter().map(|record| record.board.info()).collect(),
        }
    }

    /// Says the properties that changed since they were said last.
    fn say(&mut self, stream: &str, voice: &Voice) {
        let info = self.info();
        let mut now = Vec::new();
        if !self.relays.is_empty() {
            now.push(("relays", Value::Array(info.relays.iter().map(voice::relay).collect())));
        }
        if !self.records.is_empty() {
            now.push(("records", Value::Array(info.records.iter().map(voice::record).collect())));
            now.push(("recording", Value::Bool(info.records.iter().any(RecordInfo::is_recording))));
        }
        if now == self.said {
            return;
        }
        let changed = now.iter().filter(|property| !self.said.contains(property)).cloned().collect();
        // What the intake had no room for is said again at the next look.
        if voice.properties(stream, changed) {
            self.said = now;
        }
    }
}

/// `live/gate-1`, `live/*` or `*`.
pub(crate) fn chosen(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let Value::Object(members) = value else { return None };
    members.iter().find(|(key, _)| **key == *name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_chosen_by_name_or_prefix() {
        assert!(chosen("live/gate", "live/gate"));
        assert!(chosen("live/*", "live/gate"));
        assert!(chosen("*", "gb/1/2"));
        assert!(!chosen("live/gate", "live/gate-2"));
        assert!(!chosen("live/*", "gb/1/2"));
    }
}
