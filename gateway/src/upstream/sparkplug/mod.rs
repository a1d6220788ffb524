//! The Sparkplug dialect: the gateway is an edge node, every thing a device of it.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | births, deaths, data, commands, the primary host; `seq` and `bdSeq` |
//! | `metrics.rs` | a thing's metrics: names, aliases, data types, values |
//! | `payload.rs` | the protobuf messages |
//!
//! Data goes with QoS 0, as Sparkplug demands. It counts as confirmed when it must have come (`destination/mqtt/flight.rs`); what
//! was under way when a connection broke goes again, as historical. `seq` is given to each payload as it is handed to the
//! connection, so that none is ever missing. Source: Eclipse Sparkplug 3.0.0. `docs/dialects.md` says what becomes what.

mod metrics;
mod payload;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use device_models::wire::WireError;
use device_models::{Body, Class, Failure, Message, Order, Outcome, Sample, Value};
use prost::Message as _;
use serde_json::{Value as Json, json};

use self::metrics::{BOOLEAN, Device, INT64, STRING, Target, datum, milliseconds, quality, value};
use self::payload::{Datum, Metric, Payload, numbered};
use super::dialect::{
    Around, Beginning, Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station, Wait, level, unlevel,
};
use super::down::{self, Command, Malformed, PATIENCE};
use super::queue::Cut;
use super::things::Known;
use crate::config;

const REBIRTH: &str = "Node Control/Rebirth";
/// The node's metric that says what is gone. Devices count from 1 << 16.
const GAP_ALIAS: u64 = 1;

#[derive(Debug)]
pub(super) struct Sparkplug {
    group: String,
    /// Empty: the gateway's id.
    node: String,
    /// Empty: none is waited for.
    primary_host: String,
    /// Whether the primary host has said that it is there, and when.
    host_online: bool,
    host_ms: i64,
    /// Of this connection's births and its will.
    bd_seq: u8,
    /// The next payload's.
    seq: u8,
    devices: HashMap<Arc<str>, Device>,
}

// === impl Sparkplug ===

impl Sparkplug {
    pub(super) fn new(options: &config::Sparkplug) -> Self {
        Self {
            group: options.group.clone(),
            node: options.node.clone(),
            primary_host: options.primary_host.clone(),
            host_online: false,
            host_ms: i64::MIN,
            bd_seq: 0,
            seq: 0,
            devices: HashMap::new(),
        }
    }

    fn node<'a>(&'a self, scope: Scope<'a>) -> &'a str {
        if self.node.is_empty() { scope.gateway } else { &self.node }
    }

    fn topic(&self, scope: Scope<'_>, kind: &str, device: Option<&str>) -> String {
        let node = format!("spBv1.0/{}/{kind}/{}", self.group, self.node(scope));
        device.map_or_else(|| node.clone(), |device| format!("{node}/{}", level(device)))
    }

    fn publication(&self, scope: Scope<'_>, kind: &str, device: Option<&str>, payload: &Payload) -> Publication {
        Publication::new(self.topic(scope, kind, device), payload.encode_to_vec()).at_most_once()
    }

    fn state_topic(&self) -> String {
        format!("spBv1.0/STATE/{}", self.primary_host)
    }

    fn death(&self, scope: Scope<'_>, now_us: i64) -> Publication {
        let payload = payload(now_us, vec![self.bd_seq_metric(now_us)]);
        Publication { at_most_once: false, ..self.publication(scope, "NDEATH", None, &payload) }
    }

    fn bd_seq_metric(&self, now_us: i64) -> Metric {
        named("bdSeq", INT64, now_us, Some(Datum::Long(self.bd_seq.into())))
    }

    fn device(&mut self, thing: &Arc<str>) -> &mut Device {
        let number = self.devices.len() as u64 + 1;
        self.devices.entry(Arc::clone(thing)).or_insert_with(|| Device::new(number))
    }

    fn device_birth(&mut self, scope: Scope<'_>, now_us: i64, thing: &Arc<str>, known: Option<&Known>) -> Publication {
        let device = self.device(thing);
        if let Some(known) = known {
            device.of(&known.model);
        }
        device.born = true;
        let metrics = device.metrics(known, milliseconds(now_us));
        self.publication(scope, "DBIRTH", Some(thing), &payload(now_us, metrics))
    }

    fn device_death(&self, scope: Scope<'_>, time_us: i64, thing: &str) -> Publication {
        self.publication(scope, "DDEATH", Some(thing), &payload(time_us, Vec::new()))
    }

    fn gap(
        &self,
        scope: Scope<'_>,
        time_us: i64,
        class: Class,
        (first, last): (u64, u64),
        reason: &str,
    ) -> Publication {
        let gap = json!({ "class": class.topic(), "first": first, "last": last, "reason": reason });
        let metric = aliased(GAP_ALIAS, time_us, false, Some(Datum::Text(gap.to_string())));
        self.publication(scope, "NDATA", None, &payload(time_us, vec![metric]))
    }

    fn host(&mut self, payload: &[u8]) -> Heard {
        let json: Json = serde_json::from_slice(payload).unwrap_or_default();
        let (Some(online), Some(time_ms)) =
            (json.get("online").and_then(Json::as_bool), json.get("timestamp").and_then(Json::as_i64))
        else {
            return Heard::Unreadable("a state has `online` and `timestamp`".to_owned());
        };
        // An older word that comes late, of another connection of the host, counts nothing.
        if time_ms < self.host_ms {
            return Heard::Nothing;
        }
        self.host_ms = time_ms;
        match (std::mem::replace(&mut self.host_online, online), online) {
            (false, true) => Heard::Introduce,
            (true, false) => Heard::Leave(format!("the primary host `{}` is offline", self.primary_host)),
            _ => Heard::Nothing,
        }
    }

    fn told(&self, scope: Scope<'_>, device: &str, metrics: &[Metric], stamp: i64) -> Heard {
        let Some(thing) = unlevel(device) else { return Heard::Nothing };
        let known = self.devices.get(thing.as_str());
        let mut writes = Vec::new();
        let mut invoked = None;
        let mut wrong = None;
        let mut names = Vec::new();
        for metric in metrics {
            let Some((target, datatype)) = known.and_then(|known| known.target(metric)) else {
                wrong = Some("a metric is not one of this device's");
                continue;
            };
            match target {
                Target::Property(name) => {
                    let is_text = known.is_some_and(|known| known.is_text(&name));
                    names.push(name.clone());
                    writes.push((name, value(datatype, metric.value.as_ref(), is_text)));
                }
                Target::Action(action) => {
                    names.push(action.clone());
                    // `true` is how an action without an input is set off.
                    let input = match &metric.value {
                        Some(Datum::Boolean(true)) if datatype == BOOLEAN => Value::Null,
                        datum => value(datatype, datum.as_ref(), false),
                    };
                    invoked = Some((action, input));
                }
            }
        }
        let id = scope.command_id(&format!("{stamp}:{}", names.join(",")));
        let order = match (wrong, invoked, writes.is_empty()) {
            (Some(wrong), _, _) => Err(wrong),
            (None, Some((action, input)), true) => Ok(Order::Invoke { action, input }),
            (None, None, false) => Ok(Order::Write(writes)),
            _ => Err("a command sets properties, or names one action"),
        };
        let command = match order {
            Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
            Err(reason) => Err(Malformed { id, reason: reason.to_owned() }),
        };
        Heard::command(thing, command)
    }
}

impl Dialect for Sparkplug {
    fn word(&self) -> &'static str {
        "sparkplug"
    }

    fn at_most_once(&self) -> bool {
        true
    }

    fn counts(&self) -> bool {
        true
    }

    fn content_type(&self) -> &'static str {
        "application/x-protobuf"
    }

    fn begin(&mut self, beginning: Beginning<'_>) -> Result<(), String> {
        self.bd_seq = (beginning.session % 256) as u8;
        self.seq = 0;
        self.host_online = false;
        self.host_ms = i64::MIN;
        self.devices.clear();
        Ok(())
    }

    fn station(&self, scope: Scope<'_>, run: Run) -> Option<Station> {
        let death = self.death(scope, run.now_us);
        Some(Station { online: None, offline: death.clone(), stopped: death })
    }

    fn filters(&self, scope: Scope<'_>) -> Vec<String> {
        let commands = [self.topic(scope, "NCMD", None), format!("{}/+", self.topic(scope, "DCMD", None))];
        let state = (!self.primary_host.is_empty()).then(|| self.state_topic());
        commands.into_iter().chain(state).collect()
    }

    fn waits(&self) -> Option<Wait> {
        let waits = !self.primary_host.is_empty() && !self.host_online;
        waits.then(|| Wait { what: format!("the primary host `{}`", self.primary_host), most: None })
    }

    /// What names no device of ours asks for nothing.
    fn addressed(&self) -> bool {
        false
    }

    fn introduces(&self) -> bool {
        self.waits().is_none()
    }

    /// The node's birth; after it all devices are to be born again.
    fn open(&mut self, scope: Scope<'_>, now_us: i64) -> Said {
        for device in self.devices.values_mut() {
            device.born = false;
        }
        let metrics = vec![
            self.bd_seq_metric(now_us),
            // The one metric that must have no alias.
            named(REBIRTH, BOOLEAN, now_us, Some(Datum::Boolean(false))),
            Metric { alias: Some(GAP_ALIAS), ..named("Gap", STRING, now_us, None) },
        ];
        vec![self.publication(scope, "NBIRTH", None, &payload(now_us, metrics))].into()
    }

    fn introduce(&mut self, scope: Scope<'_>, now_us: i64, thing: &Known) -> Said {
        let device = self.device(&thing.id);
        device.of(&thing.model);
        // A device that is not there is born when it comes, or when there is something to say of its past.
        if !thing.online {
            return Said::default();
        }
        vec![self.device_birth(scope, now_us, &thing.id, Some(thing))].into()
    }

    /// Births of devices that come, or that have something to say in a metric not named before; deaths of those that go.
    fn around(&mut self, scope: Scope<'_>, now_us: i64, cut: &Cut, find: &dyn Fn(&str) -> Option<Known>) -> Around {
        let mut around = Around::default();
        let mut passing = Vec::new();
        let mut fresh = HashSet::new();
        for (_, message) in &cut.messages {
            let thing = &message.thing;
            match &message.body {
                // What came before this connection is in the births already.
                Body::Presence { .. } if cut.hist => continue,
                Body::Presence { online: false, .. } => {
                    let device = self.device(thing);
                    if std::mem::take(&mut device.born) {
                        around.before.push(self.device_death(scope, message.time_us, thing));
                    }
                    continue;
                }
                Body::Gap { .. } => continue,
                Body::Reply { id, .. } if scope.own(id).is_none() => continue,
                _ => {}
            }
            let device = self.device(thing);
            let born = device.born;
            // All names of a cut are learned before the birth is made.
            if (device.learn(message) || !born) && fresh.insert(Arc::clone(thing)) {
                passing.push((Arc::clone(thing), born));
            }
        }
        for (thing, born) in passing {
            let known = find(&thing);
            let online = known.as_ref().is_some_and(|known| known.online);
            if let Some(known) = &known {
                let device = self.device(&thing);
                device.of(&known.model);
                for (_, message) in cut.messages.iter().filter(|(_, message)| message.thing == thing) {
                    device.learn(message);
                }
            }
            let presence = |message: &Message| matches!(message.body, Body::Presence { .. });
            let only_presence = !cut.messages.iter().any(|(_, one)| one.thing == thing && !presence(one));
            if only_presence && !online {
                continue;
            }
            around.before.push(self.device_birth(scope, now_us, &thing, known.as_ref()));
            if !online && !born {
                self.device(&thing).born = false;
                around.after.push(self.device_death(scope, now_us, &thing));
            }
        }
        around
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let (mut said, scope) = (Said::default(), parcel.scope);
        let mut data = Data::default();
        for (_, message) in parcel.messages {
            let thing = &message.thing;
            let device = self.devices.get(thing);
            match &message.body {
                Body::Properties(samples) => {
                    for sample in samples {
                        match device.ok_or("no-metric").and_then(|device| sampled(device, message, sample, parcel.hist))
                        {
                            Ok(metric) => data.add(thing, metric),
                            Err(reason) => said.leave_out(reason, 1),
                        }
                    }
                }
                Body::Event { name, level, data: details, .. } => {
                    let Some(alias) = device.and_then(|device| device.event(name)) else {
                        said.leave_out("no-metric", 1);
                        continue;
                    };
                    let event = json!({ "level": level, "data": Json::from(details) }).to_string();
                    data.add(thing, aliased(alias, message.time_us, parcel.hist, Some(Datum::Text(event))));
                }
                Body::Reply { id, outcome } => {
                    let (Some(tag), Some(device)) = (scope.own(id), device) else { continue };
                    let reply = Some(Datum::Text(reply(tag, outcome).to_string()));
                    data.add(thing, aliased(device.reply(), message.time_us, parcel.hist, reply));
                }
                Body::Gap { class, first, last, reason } => {
                    said.publications.push(self.gap(scope, message.time_us, *class, (*first, *last), reason));
                }
                // Said by births and deaths.
                Body::Presence { .. } if parcel.hist => said.leave_out("superseded", 1),
                Body::Presence { .. } => {}
            }
        }
        for (thing, metrics) in data.things {
            said.publications.push(self.publication(scope, "DDATA", Some(thing), &payload(parcel.now_us, metrics)));
        }
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            said.publications.push(self.gap(scope, parcel.now_us, parcel.class, (hole.first, last), &hole.reason));
        }
        Ok(said)
    }

    fn depart(&mut self, publication: &mut Publication) {
        match publication.topic.split('/').nth(2) {
            Some("NBIRTH") => self.seq = 0,
            Some("NDATA" | "DBIRTH" | "DDATA" | "DDEATH") => {}
            _ => return,
        }
        numbered(&mut publication.payload, self.seq);
        self.seq = self.seq.wrapping_add(1);
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], stamp: i64) -> Heard {
        if !self.primary_host.is_empty() && topic == self.state_topic() {
            return self.host(payload);
        }
        if let Err(why) = down::fits(payload) {
            return Heard::Unreadable(why);
        }
        let metrics = match Payload::decode(payload) {
            Ok(payload) => payload.metrics,
            Err(error) => return Heard::Unreadable(error.to_string()),
        };
        let device = topic.strip_prefix(&self.topic(scope, "DCMD", None)).and_then(|rest| rest.strip_prefix('/'));
        if let Some(device) = device {
            return self.told(scope, device, &metrics, stamp);
        }
        let rebirth =
            |metric: &Metric| metric.name.as_deref() == Some(REBIRTH) && metric.value == Some(Datum::Boolean(true));
        match topic == self.topic(scope, "NCMD", None) {
            true if metrics.iter().any(rebirth) => Heard::Introduce,
            true => Heard::Unreadable(format!("the node knows `{REBIRTH}` alone")),
            false => Heard::Nothing,
        }
    }
}

/// Metrics by thing, in the order the things came.
#[derive(Default)]
struct Data<'a> {
    things: Vec<(&'a Arc<str>, Vec<Metric>)>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Data<'a> {
    fn add(&mut self, thing: &'a Arc<str>, metric: Metric) {
        let place = *self.places.entry(thing).or_insert_with(|| {
            self.things.push((thing, Vec::new()));
            self.things.len() - 1
        });
        if let Some((_, metrics)) = self.things.get_mut(place) {
            metrics.push(metric);
        }
    }
}

/// A value as its metric has it, or why it has none.
fn sampled(device: &Device, message: &Message, sample: &Sample, hist: bool) -> Result<Metric, &'static str> {
    let (alias, datatype) = device.property(sample).ok_or("no-metric")?;
    let value = match &sample.value {
        Value::Null => None,
        value => Some(datum(datatype, value).ok_or("wrong-type")?),
    };
    Ok(Metric { properties: quality(sample.quality), ..aliased(alias, message.time_us, hist, value) })
}

fn reply(tag: &str, outcome: &Outcome) -> Json {
    let command = tag.split_once(':').map_or(tag, |(_, names)| names);
    match outcome {
        Ok(value) => json!({ "command": command, "success": true, "value": Json::from(value) }),
        // Not its end: another follows.
        Err(Failure::Waiting(most)) => json!({ "command": command, "waits_seconds": most.as_secs() }),
        Err(failure) => json!({ "command": command, "success": false, "error": failure.to_string() }),
    }
}

fn payload(now_us: i64, metrics: Vec<Metric>) -> Payload {
    Payload { timestamp: Some(milliseconds(now_us)), metrics, seq: None }
}

/// As births have it.
fn named(name: &str, datatype: u32, time_us: i64, value: Option<Datum>) -> Metric {
    Metric { name: Some(name.to_owned()), alias: None, datatype: Some(datatype), ..aliased(0, time_us, false, value) }
}

/// As data has it.
fn aliased(alias: u64, time_us: i64, hist: bool, value: Option<Datum>) -> Metric {
    Metric {
        alias: Some(alias),
        timestamp: Some(milliseconds(time_us)),
        is_historical: hist.then_some(true),
        is_null: value.is_none().then_some(true),
        value,
        ..Metric::default()
    }
}

#[cfg(test)]
mod tests;
