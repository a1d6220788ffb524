//! The Alink dialect of Alibaba Cloud's IoT Platform: the gateway is a gateway device, every thing a sub-device of it.
//!
//! `identity.rs` has the names and the signatures. A thing is added to the gateway's topology and logged in before anything is said
//! of it; messages wait for the platform's answers. Source: Alibaba Cloud IoT Platform documentation, "Alink protocol" and
//! the pages under it. `docs/dialects.md` says what becomes what.

mod identity;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use device_models::model::{Kind, Model};
use device_models::wire::WireError;
use device_models::{Body, Class, Failure, Message, Order, Outcome, Value};
use serde_json::{Map, Value as Json, json};

use self::identity::{Identity, identities};
use super::dialect::{Around, Beginning, Dialect, Heard, Parcel, Publication, Run, Said, Scope, SignIn, Station, Wait};
use super::down::{self, Command, Malformed, PATIENCE};
use super::queue::Cut;
use super::things::Known;
use crate::config;

/// The platform answers within a second or two.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Reports of one thing in one message of history.
const HISTORY_MAX: usize = 50;
const SET: &str = "property/set";
const GET: &str = "property/get";

#[derive(Debug)]
pub(super) struct Alink {
    config: config::Alink,
    tls: bool,
    own: Identity,
    things: HashMap<Arc<str>, Thing>,
    /// Product key and device name, to the thing.
    names: HashMap<(String, String), Arc<str>>,
    /// What the platform has not answered yet: the request's id, and the thing.
    pending: HashMap<u32, Arc<str>>,
    request: u32,
    began_us: i64,
}

#[derive(Debug)]
struct Thing {
    identity: Identity,
    model: Option<Arc<Model>>,
    standing: Standing,
    online: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unknown,
    /// It belongs to the gateway.
    Added,
    LoggingIn,
    LoggedIn,
    /// The platform does not want it.
    Refused,
}

// === impl Alink ===

impl Alink {
    pub(super) fn new(config: &config::Upstream) -> Self {
        Self {
            config: config.alink.clone(),
            tls: config.url.starts_with("mqtts:") || config.url.starts_with("wss:"),
            own: Identity::new("", "", ""),
            things: HashMap::new(),
            names: HashMap::new(),
            pending: HashMap::new(),
            request: 0,
            began_us: 0,
        }
    }

    /// A request's id: a number that is unique for the device today.
    fn ask(&mut self, thing: &Arc<str>) -> u32 {
        self.request = self.request.wrapping_add(1);
        self.pending.insert(self.request, Arc::clone(thing));
        self.request
    }

    fn add(&mut self, thing: &Arc<str>, now_us: i64) -> Option<Publication> {
        let id = self.ask(thing);
        let shown = self.things.get(thing)?.identity.shown("signmethod", now_us);
        let body = request(id, Json::from(vec![Json::Object(shown)]), "thing.topo.add");
        Some(Publication::json(self.own.topic("sys", "thing/topo/add"), &body))
    }

    /// Logins and logouts go with QoS 0: the platform takes no other.
    fn login(&mut self, thing: &Arc<str>, now_us: i64) -> Option<Publication> {
        let id = self.ask(thing);
        let known = self.things.get_mut(thing)?;
        known.standing = Standing::LoggingIn;
        let mut shown = known.identity.shown("signMethod", now_us);
        shown.insert("cleanSession".to_owned(), Json::from("true"));
        let topic = self.own.topic("ext/session", "combine/login");
        Some(Publication::json(topic, &json!({ "id": id.to_string(), "params": shown })).at_most_once())
    }

    fn logout(&mut self, thing: &Arc<str>) -> Option<Publication> {
        let known = self.things.get_mut(thing)?;
        known.online = false;
        if !matches!(known.standing, Standing::LoggingIn | Standing::LoggedIn) {
            return None;
        }
        known.standing = Standing::Added;
        // Nobody waits for the answer to its login any more.
        self.pending.retain(|_, asked| asked != thing);
        self.request = self.request.wrapping_add(1);
        let body = json!({ "id": self.request.to_string(), "params": known.identity.named() });
        Some(Publication::json(self.own.topic("ext/session", "combine/logout"), &body).at_most_once())
    }

    /// An answer to `add` or `login`.
    fn answered(&mut self, login: bool, json: &Json, stamp: i64) -> Heard {
        let id = json.get("id").and_then(|id| id.as_str().map_or_else(|| id.as_u64(), |id| id.parse().ok()));
        let Some(thing) = id.and_then(|id| self.pending.remove(&u32::try_from(id).ok()?)) else {
            return Heard::Nothing;
        };
        let Some(known) = self.things.get_mut(&thing) else { return Heard::Nothing };
        if let Err(reason) = taken(json) {
            known.standing = Standing::Refused;
            return Heard::Refused(format!("`{thing}`: {reason}"));
        }
        known.standing = if login { Standing::LoggedIn } else { Standing::Added };
        match (login, known.online) {
            (false, true) => self.login(&thing, stamp).map_or(Heard::Nothing, |login| Heard::Say(Box::new(login))),
            _ => Heard::Nothing,
        }
    }

    fn called(&self, scope: Scope<'_>, thing: &Arc<str>, way: &str, mut json: Json) -> Heard {
        let Some(id) = json.get("id").and_then(Json::as_str).map(str::to_owned) else {
            return Heard::Unreadable("a command has an `id`".to_owned());
        };
        let model = self.things.get(thing).and_then(|thing| thing.model.as_deref());
        let id = scope.command_id(&format!("{way}:{id}").replace('/', "."));
        let order = match (way, json.get_mut("params").map(Json::take).unwrap_or_default()) {
            (SET, Json::Object(params)) if !params.is_empty() => {
                let told = |(name, value): (String, Json)| {
                    let kind = model.and_then(|model| model.property(&name)).map(|property| &property.shape.kind);
                    let value = told(kind, value);
                    (name, value)
                };
                Ok(Order::Write(params.into_iter().map(told).collect()))
            }
            (SET, _) => Err("`params` is an object of names and values"),
            (GET, params) => serde_json::from_value(params).map(Order::Read).map_err(|_| "`params` lists names"),
            (action, params) => {
                let kind = model.and_then(|model| model.action(action)).and_then(|action| action.input.as_ref());
                let input = match params {
                    Json::Object(params) if params.is_empty() => Value::Null,
                    params => told(kind.map(|input| &input.kind), params),
                };
                Ok(Order::Invoke { action: action.to_owned(), input })
            }
        };
        let command = match order {
            Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
            Err(reason) => Err(Malformed { id, reason: reason.to_owned() }),
        };
        Heard::command(thing.to_string(), command)
    }

    /// Something of the gateway itself.
    fn gap(&self, id: u32, time_us: i64, class: Class, (first, last): (u64, u64), reason: &str) -> Publication {
        let gap = json!({ "class": class.topic(), "first": first, "last": last, "reason": reason });
        event(&self.own, id, "gap", gap, time_us)
    }
}

impl Dialect for Alink {
    fn word(&self) -> &'static str {
        "alink"
    }

    fn files(&self) -> Vec<PathBuf> {
        [&self.config.secret_file, &self.config.things_file].into_iter().flatten().cloned().collect()
    }

    fn begin(&mut self, beginning: Beginning<'_>) -> Result<(), String> {
        let [secret, things] = beginning.files else { return Err("alink: two files are needed".to_owned()) };
        self.own = Identity::new(&self.config.product_key, &self.config.device_name, secret);
        let thing = |identity| Thing { identity, model: None, standing: Standing::Unknown, online: false };
        self.things = identities(things)?.into_iter().map(|(id, identity)| (id, thing(identity))).collect();
        let named = |(id, thing): (&Arc<str>, &Thing)| {
            ((thing.identity.product_key.clone(), thing.identity.device_name.clone()), Arc::clone(id))
        };
        self.names = self.things.iter().map(named).collect();
        self.pending.clear();
        self.began_us = beginning.now_us;
        Ok(())
    }

    fn sign_in(&self) -> Option<SignIn> {
        Some(self.own.sign_in(self.began_us, self.tls))
    }

    fn station(&self, _scope: Scope<'_>, _run: Run) -> Option<Station> {
        // The platform sees the gateway's own connection.
        None
    }

    fn filters(&self, _scope: Scope<'_>) -> Vec<String> {
        let all = ["service/+", "service/property/set", "service/property/get", "event/+/post_reply"];
        let own = [("sys", "thing/event/property/history/post_reply"), ("sys", "thing/topo/add_reply")];
        let own = own.into_iter().chain([("ext/session", "combine/login_reply")]);
        let all = all.map(|way| format!("/sys/+/+/thing/{way}"));
        all.into_iter().chain(own.map(|(kind, way)| self.own.topic(kind, way))).collect()
    }

    fn waits(&self) -> Option<Wait> {
        let wait = || Wait { what: "the platform's answers to logins".to_owned(), most: Some(ANSWER_MAX) };
        (!self.pending.is_empty()).then(wait)
    }

    fn introduces(&self) -> bool {
        true
    }

    fn introduce(&mut self, _scope: Scope<'_>, now_us: i64, thing: &Known) -> Said {
        let Some(known) = self.things.get_mut(&thing.id) else {
            let mut said = Said::default();
            said.leave_out("no-identity", 1);
            return said;
        };
        known.model = Some(Arc::clone(&thing.model));
        known.online = thing.online;
        self.add(&thing.id, now_us).into_iter().collect::<Vec<_>>().into()
    }

    /// Logins of things that come, logouts of those that go.
    fn around(&mut self, _: Scope<'_>, now_us: i64, cut: &Cut, _: &dyn Fn(&str) -> Option<Known>) -> Around {
        let mut around = Around::default();
        for (_, message) in cut.messages.iter().filter(|_| !cut.hist) {
            let Body::Presence { online, .. } = message.body else { continue };
            let known = self.things.get_mut(&message.thing);
            let publication = match (known, online) {
                (Some(known), true) => {
                    known.online = true;
                    let comes = known.standing == Standing::Added;
                    if comes { self.login(&message.thing, now_us) } else { None }
                }
                _ => self.logout(&message.thing),
            };
            around.before.extend(publication);
        }
        around
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let mut said = Said::default();
        let mut history = History::default();
        for (seq, message) in parcel.messages {
            let id = message_id(parcel.class, *seq);
            if let Body::Gap { class, first, last, reason } = &message.body {
                said.publications.push(self.gap(id, message.time_us, *class, (*first, *last), reason));
                continue;
            }
            let thing = match self.things.get(&message.thing) {
                Some(thing) if thing.standing != Standing::Refused => thing,
                refused => {
                    let ours = !matches!(message.body, Body::Presence { .. } | Body::Reply { .. });
                    said.leave_out(if refused.is_some() { "refused" } else { "no-identity" }, u64::from(ours));
                    continue;
                }
            };
            // What is not logged in has only a past.
            let past = parcel.hist || thing.standing != Standing::LoggedIn;
            match &message.body {
                Body::Properties(_) => {
                    let Some(values) = values(thing, message, &mut said) else { continue };
                    if past {
                        history.add(&self.own, id, thing, "properties", Json::Object(values), &mut said);
                    } else {
                        let body = request(id, Json::Object(values), "thing.event.property.post");
                        let topic = thing.identity.topic("sys", "thing/event/property/post");
                        said.publications.push(Publication::json(topic, &body));
                    }
                }
                Body::Event { name, data, .. } if past => {
                    let value = json!({ "value": outputs(data), "time": message.time_us.div_euclid(1000) });
                    history.add(&self.own, id, thing, "events", json!({ name.as_ref(): value }), &mut said);
                }
                Body::Event { name, data, .. } => {
                    said.publications.push(event(&thing.identity, id, name, outputs(data), message.time_us));
                }
                // The platform takes the first reply for the end.
                Body::Reply { outcome: Err(Failure::Waiting(_)), .. } => {}
                Body::Reply { id, outcome } => said.publications.extend(reply(parcel.scope, thing, id, outcome)),
                // Said by logins and logouts.
                _ => {}
            }
        }
        history.close(&self.own, &mut said);
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            let id = message_id(parcel.class, hole.first);
            said.publications.push(self.gap(id, parcel.now_us, parcel.class, (hole.first, last), &hole.reason));
        }
        Ok(said)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], stamp: i64) -> Heard {
        let mut levels = topic.strip_prefix('/').unwrap_or_default().splitn(4, '/');
        let [Some(kind), Some(product), Some(device), Some(way)] = [(); 4].map(|()| levels.next()) else {
            return Heard::Nothing;
        };
        let json = match down::json(payload) {
            Ok(json) => json,
            Err(why) => return Heard::Unreadable(why),
        };
        if kind == "ext" {
            return if way.ends_with("/combine/login_reply") {
                self.answered(true, &json, stamp)
            } else {
                Heard::Nothing
            };
        }
        match (way, way.strip_prefix("thing/service/")) {
            ("thing/topo/add_reply", _) => self.answered(false, &json, stamp),
            (way, Some(_)) if way.ends_with("_reply") => Heard::Nothing,
            (_, Some(way)) => match self.names.get(&(product.to_owned(), device.to_owned())) {
                Some(thing) => self.called(scope, thing, way, json),
                None => Heard::Nothing,
            },
            (way, None) if way.ends_with("/post_reply") => {
                taken(&json).map_or_else(Heard::Refused, |()| Heard::Nothing)
            }
            _ => Heard::Nothing,
        }
    }
}

// === up ===

/// A message's id is its own for ever, as far as 32 bits go, so that a repeated one is recognised.
const fn message_id(class: Class, seq: u64) -> u32 {
    (seq as u32).wrapping_mul(4).wrapping_add(class.number() as u32)
}

fn request(id: u32, params: Json, method: &str) -> Json {
    json!({ "id": id.to_string(), "version": "1.0", "sys": { "ack": 1 }, "params": params, "method": method })
}

fn event(of: &Identity, id: u32, name: &str, value: Json, time_us: i64) -> Publication {
    let params = json!({ "value": value, "time": time_us.div_euclid(1000) });
    let topic = of.topic("sys", &format!("thing/event/{name}/post"));
    Publication::json(topic, &request(id, params, &format!("thing.event.{name}.post")))
}

/// Outputs are an object.
fn outputs(data: &Value) -> Json {
    match data {
        Value::Object(_) => said_value(None, data),
        Value::Null => json!({}),
        value => json!({ "value": said_value(None, value) }),
    }
}

/// Values with their time; `None` when nothing is left.
fn values(thing: &Thing, message: &Message, said: &mut Said) -> Option<Map<String, Json>> {
    let Body::Properties(samples) = &message.body else { return None };
    let mut values = Map::new();
    for sample in samples {
        let property = thing.model.as_ref().and_then(|model| model.property_by_alias(sample.alias));
        let value = said_value(property.map(|property| &property.shape.kind), &sample.value);
        if value.is_null() {
            said.leave_out("null", 1);
            continue;
        }
        let value = json!({ "value": value, "time": message.time_us.div_euclid(1000) });
        values.insert(sample.name.as_ref().to_owned(), value);
    }
    (!values.is_empty()).then_some(values)
}

/// As the platform's types want it: 0 and 1 for a bool, a fraction for every float, a date as text.
fn said_value(kind: Option<&Kind>, value: &Value) -> Json {
    match (kind, value) {
        (_, Value::Bool(value)) => Json::from(u8::from(*value)),
        (Some(Kind::F32 | Kind::F64), Value::Int(_) | Value::UInt(_)) => Json::from(value.as_f64()),
        (Some(Kind::TimeMs), Value::Int(time)) => Json::from(time.to_string()),
        (Some(Kind::Object(fields)), Value::Object(values)) => {
            let kind = |name: &str| fields.iter().find(|field| *field.name == *name).map(|field| &field.shape.kind);
            values.iter().map(|(name, value)| (name.clone(), said_value(kind(name), value))).collect()
        }
        (_, Value::Object(values)) => {
            values.iter().map(|(name, value)| (name.clone(), said_value(None, value))).collect()
        }
        (Some(Kind::Array(item)), Value::Array(values)) => {
            values.iter().map(|value| said_value(Some(&item.kind), value)).collect()
        }
        (_, Value::Array(values)) => values.iter().map(|value| said_value(None, value)).collect(),
        _ => Json::from(value),
    }
}

/// Reports and events of one thing on their way into one message of its past.
#[derive(Default)]
struct History {
    open: Option<(u32, Json)>,
    items: Map<String, Json>,
    count: usize,
}

impl History {
    fn add(&mut self, own: &Identity, id: u32, thing: &Thing, kind: &str, item: Json, said: &mut Said) {
        let named = thing.identity.named();
        if self.count >= HISTORY_MAX || self.open.as_ref().is_some_and(|(_, open)| *open != named) {
            self.close(own, said);
        }
        self.open.get_or_insert((id, named));
        self.count += 1;
        if let Json::Array(items) = self.items.entry(kind).or_insert_with(|| json!([])) {
            items.push(item);
        }
    }

    fn close(&mut self, own: &Identity, said: &mut Said) {
        let (Some((id, named)), mut one) = (self.open.take(), std::mem::take(&mut self.items)) else { return };
        self.count = 0;
        one.insert("identity".to_owned(), named);
        let body = request(id, Json::from(vec![Json::Object(one)]), "thing.event.property.history.post");
        said.publications.push(Publication::json(own.topic("sys", "thing/event/property/history/post"), &body));
    }
}

/// `None` for a reply to somebody else's command.
fn reply(scope: Scope<'_>, thing: &Thing, id: &str, outcome: &Outcome) -> Option<Publication> {
    let (way, id) = scope.own(id)?.rsplit_once(':')?;
    let way = match way {
        "property.set" => SET,
        "property.get" => GET,
        way => way,
    };
    let (code, message, data) = match outcome {
        Ok(value) => (200, "success".to_owned(), outputs(value)),
        Err(failure) => (code(failure), failure.to_string(), json!({})),
    };
    let data = if way == SET { json!({}) } else { data };
    let body = json!({ "id": id, "code": code, "message": message, "data": data, "version": "1.0" });
    Some(Publication::json(thing.identity.topic("sys", &format!("thing/service/{way}_reply")), &body))
}

/// The platform's own codes, and from 100000 on a device's.
const fn code(failure: &Failure) -> u32 {
    match failure {
        Failure::Refused(_) => 460,
        Failure::Busy => 429,
        Failure::Unsupported(_) => 400,
        Failure::Offline | Failure::Waiting(_) | Failure::Expired(_) => 100_001,
        Failure::Silent(_) => 100_002,
        Failure::Device(_) => 100_003,
        Failure::GivenUp(_) => 100_004,
    }
}

// === down ===

/// What the platform answered, if it is a refusal.
fn taken(json: &Json) -> Result<(), String> {
    match json.get("code").and_then(Json::as_i64) {
        Some(200) => Ok(()),
        code => {
            let message = json.get("message").and_then(Json::as_str).unwrap_or_default();
            Err(format!("the platform answers {} {message}", code.unwrap_or_default()))
        }
    }
}

/// The other way round of [`said_value`].
fn told(kind: Option<&Kind>, value: Json) -> Value {
    match (kind, value) {
        (Some(Kind::Bool), Json::Number(number)) => Value::Bool(number.as_i64() != Some(0)),
        (Some(Kind::TimeMs), Json::String(text)) => text.parse().map_or(Value::Text(text), Value::Int),
        (Some(Kind::Object(fields)), Json::Object(values)) => {
            let kind = |name: &str| fields.iter().find(|field| *field.name == *name).map(|field| &field.shape.kind);
            let value = |(name, value): (String, Json)| {
                let value = told(kind(&name), value);
                (name, value)
            };
            Value::Object(values.into_iter().map(value).collect())
        }
        (_, value) => Value::from(value),
    }
}

#[cfg(test)]
mod tests;
