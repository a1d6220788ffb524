//! Things as resources: the paths and bodies that CoAP and HTTP share. What a request says about a device becomes reports,
//! what a device answers becomes the outcome of an order, and an order becomes a body.
//!
//! Must not be in here: methods, codes, options and fields of either language.

use std::collections::BTreeMap;

use bytes::Bytes;
use device_models::{Command, Failure, Order, Outcome, Report, Value, Word};

use crate::payload;
use crate::session::{Identity, Reach};

/// Bytes of a device's, property's or event's name.
const NAME_MAX: usize = 200;

/// Reports of one body.
const REPORTS_MAX: usize = 64;

/// Properties of one report.
const PROPERTIES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// `/.well-known/core`: what a CoAP client discovers by.
    Core,
    /// `/things`
    Things,
    /// `/things/DEVICE/properties`
    Properties { device: String },
    /// `/things/DEVICE/properties/NAME`
    Property { device: String, name: String },
    /// `/things/DEVICE/events/NAME`
    Event { device: String, name: String },
    /// `/things/DEVICE/commands`
    Commands { device: String },
    /// `/things/DEVICE/replies/ID`
    Reply { device: String, id: String },
    /// `/api/v1/TOKEN/telemetry` and `attributes`, as ThingsBoard spells them: the token says which device.
    Telemetry,
}

/// Why a request is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// There is nothing at this path.
    Path(&'static str),
    Body(String),
}

// === impl Target ===

impl Target {
    /// What the levels of a path name, and the secret that ThingsBoard's paths carry.
    pub(crate) fn read(path: &[&str]) -> Result<(Self, Option<Bytes>), Wrong> {
        let device = |device: &str| device.to_owned();
        let target = match *path {
            [".well-known", "core"] => Self::Core,
            ["things"] => Self::Things,
            ["things", d, "properties"] => Self::Properties { device: device(d) },
            ["things", d, "properties", name] => Self::Property { device: device(d), name: name.to_owned() },
            ["things", d, "events", name] => Self::Event { device: device(d), name: name.to_owned() },
            ["things", d, "commands"] => Self::Commands { device: device(d) },
            ["things", d, "replies", id] => Self::Reply { device: device(d), id: id.to_owned() },
            ["api", "v1", token, "telemetry" | "attributes"] if !token.is_empty() => {
                return Ok((Self::Telemetry, Some(Bytes::copy_from_slice(token.as_bytes()))));
            }
            _ => return Err(Wrong::Path("no such resource; /things is a short manual")),
        };
        let plain = |name: &&str| !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control);
        if path.iter().all(plain) {
            return Ok((target, None));
        }
        Err(bad(format!("a name in the path is empty, longer than {NAME_MAX} bytes or has control characters")))
    }

    /// Who a request is about; empty where the path does not say.
    pub(crate) fn device(&self) -> &str {
        match self {
            Self::Core | Self::Things | Self::Telemetry => "",
            Self::Properties { device }
            | Self::Property { device, .. }
            | Self::Event { device, .. }
            | Self::Commands { device }
            | Self::Reply { device, .. } => device,
        }
    }

    /// The device a request is about. ThingsBoard's paths do not name it: then it is the one its token belongs to.
    pub(crate) fn device_of(&self, by: &Identity) -> Option<String> {
        match (self, &by.reach) {
            (Self::Telemetry, Reach::Only(devices)) => match &devices[..] {
                [one] => Some(one.to_string()),
                _ => devices.iter().find(|device| ***device == *by.name).map(ToString::to_string),
            },
            (Self::Telemetry, Reach::Any) => (*by != Identity::anonymous()).then(|| by.name.to_string()),
            _ => Some(self.device().to_owned()),
        }
    }

    /// Whether a body is one value rather than an object.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self, Self::Property { .. })
    }

    /// What no body at all says; `None` where there has to be one.
    pub(crate) fn without_body(&self) -> Option<Value> {
        matches!(self, Self::Event { .. } | Self::Reply { .. }).then(|| Value::Object(BTreeMap::new()))
    }

    /// The reports in a body; `device` is who the sender was found to be where the path does not say, `time_us` the time
    /// of those that bring none.
    pub(crate) fn reports(&self, device: &str, time_us: Option<i64>, body: Value) -> Result<Vec<Report>, Wrong> {
        let bodies = match (self, body) {
            (Self::Properties { .. } | Self::Telemetry, Value::Array(bodies)) => bodies,
            (_, body) => vec![body],
        };
        if bodies.is_empty() || bodies.len() > REPORTS_MAX {
            return Err(bad(format!("{} reports, not 1 to {REPORTS_MAX}", bodies.len())));
        }
        bodies.into_iter().map(|body| self.report(device, time_us, body)).collect()
    }

    fn report(&self, device: &str, time_us: Option<i64>, body: Value) -> Result<Report, Wrong> {
        let (time, word) = match self {
            Self::Property { name, .. } => (None, Word::Properties(vec![(name.clone(), body)])),
            Self::Event { name, .. } => event(name, body),
            _ => properties(body)?,
        };
        let time_us = match time {
            Some(time) => Some(payload::time_us(&time).map_err(|error| bad(error.to_string()))?),
            None => time_us,
        };
        Ok(Report { device: device.to_owned(), product: None, time_us, word })
    }
}

/// A device's answer to an order: `{"ok":true,"data":…}` or `{"ok":false,"error":"…"}`.
pub(crate) fn outcome(body: Value) -> Result<Outcome, Wrong> {
    let Value::Object(mut fields) = body else { return Err(bad("a reply is an object")) };
    let error = fields.remove("error");
    match (fields.remove("ok"), error) {
        (Some(Value::Bool(true)) | None, None) => Ok(Ok(fields.remove("data").unwrap_or_default())),
        (Some(Value::Bool(_)) | None, Some(Value::Text(text))) => Ok(Err(Failure::Device(text))),
        (Some(Value::Bool(_)) | None, error) => {
            let text = error.map_or_else(|| "no reason given".to_owned(), |e| serde_json::Value::from(&e).to_string());
            Ok(Err(Failure::Device(text)))
        }
        (Some(other), _) => Err(bad(format!("`ok` is {}, not boolean", other.kind()))),
    }
}

/// An order as a device reads it: `{"id":"c1","write":{…}}`, `"read":[…]`, or `"invoke":"NAME","input":…`.
pub(crate) fn order(command: &Command) -> BTreeMap<String, Value> {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut fields = vec![("id", text(&command.id))];
    match &command.order {
        Order::Write(values) => fields.push(("write", Value::Object(values.iter().cloned().collect()))),
        Order::Read(names) => fields.push(("read", Value::Array(names.iter().map(|name| text(name)).collect()))),
        Order::Invoke { action, input } => fields.extend([("invoke", text(action)), ("input", input.clone())]),
    }
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A source time as it stands in a query.
pub(crate) fn query_time(time: &str) -> Result<i64, Wrong> {
    let value = match (time.parse::<i64>(), time.parse::<f64>()) {
        (Ok(number), _) => Value::Int(number),
        (_, Ok(number)) => Value::Float(number),
        _ => Value::Text(time.to_owned()),
    };
    payload::time_us(&value).map_err(|error| bad(format!("query `t`: {error}")))
}

/// A single value as text: a number, a truth value, or the text itself.
pub(crate) fn text(body: &[u8]) -> Result<Value, Wrong> {
    let text = std::str::from_utf8(body).map_err(|_| bad("the text is not UTF-8"))?;
    Ok(match payload::json(text.trim().as_bytes()) {
        Ok(scalar @ (Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Bool(_))) => scalar,
        _ => Value::Text(text.to_owned()),
    })
}

// === private ===

fn bad(why: impl Into<String>) -> Wrong {
    Wrong::Body(why.into())
}

/// `{"temperature":1,"time":T}`, `{"time":T,"properties":{…}}`, or ThingsBoard's `{"ts":T,"values":{…}}`.
fn properties(body: Value) -> Result<(Option<Value>, Word), Wrong> {
    let Value::Object(mut fields) = body else {
        return Err(bad(format!("a report is an object, not {}", body.kind())));
    };
    let things_board = fields.contains_key("ts") && matches!(fields.get("values"), Some(Value::Object(_)));
    let (time_field, inner_field) = if things_board { ("ts", "values") } else { ("time", "properties") };
    let time = fields.remove(time_field);
    let properties: Vec<(String, Value)> = match fields.remove(inner_field) {
        Some(Value::Object(inner)) => fields.into_iter().chain(inner).collect(),
        Some(other) => return Err(bad(format!("`{inner_field}` is {}, not object", other.kind()))),
        None => fields.into_iter().collect(),
    };
    match properties.len() {
        0 => Err(bad("no properties")),
        1..=PROPERTIES_MAX => Ok((time, Word::Properties(properties))),
        many => Err(bad(format!("{many} properties, at most {PROPERTIES_MAX}"))),
    }
}

/// The body is the event's data, or `{"time":T,"data":…}`.
fn event(name: &str, body: Value) -> (Option<Value>, Word) {
    let name = name.to_owned();
    match body {
        Value::Object(mut fields) if fields.contains_key("data") => {
            let (time, data) = (fields.remove("time"), fields.remove("data").unwrap_or_default());
            (time, Word::Event { name, data })
        }
        Value::Object(fields) if fields.is_empty() => (None, Word::Event { name, data: Value::Null }),
        data => (None, Word::Event { name, data }),
    }
}
