//! What a line says: report, event or reply. Knows the fields, not the talk.

use std::collections::BTreeMap;

use bytes::Bytes;
use device_models::{Command, Failure, Outcome, Report, Value, Word};

use super::Options;
use crate::payload;
use crate::things;

/// Bytes of a device's name.
pub(super) const DEVICE_NAME_MAX: usize = 200;

/// Bytes of an `id` or `seq` that is echoed: enough for a UUID with braces, and twice that.
const ECHO_MAX: usize = 80;

/// Properties of one report.
const PROPERTIES_MAX: usize = 4096;

/// Fields with a fixed meaning.
pub(super) const RESERVED: &[&str] = &["id", "seq", "properties", "data", "reply", "ok", "error"];

/// A line that was understood.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) echo: Echo,
    pub(super) said: Said,
}

#[derive(Debug)]
pub(super) enum Said {
    Report {
        report: Report,
        token: Option<Bytes>,
    },
    /// The answer to the command with this id.
    Reply {
        id: String,
        outcome: Outcome,
    },
}

/// The line's `id` and `seq`, which its answer repeats.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Echo(Vec<(&'static str, Value)>);

/// A line that was not understood.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) echo: Echo,
    pub(super) what: String,
    /// Offset into the line.
    pub(super) at: Option<usize>,
}

pub(super) fn device_name_ok(name: &str) -> bool {
    !name.is_empty() && name.len() <= DEVICE_NAME_MAX && !name.chars().any(char::is_control)
}

/// Reads a line. `peer` is the device's name when neither the options nor the line give one.
pub(super) fn read(options: &Options, peer: Option<&str>, line: &[u8]) -> Result<Line, Wrong> {
    let value =
        payload::json(line).map_err(|e| Wrong { echo: Echo::default(), what: e.what.into_owned(), at: e.at })?;
    let Value::Object(mut fields) = value else {
        let what = format!("a line is a JSON object, not {}", value.kind());
        return Err(Wrong { echo: Echo::default(), what, at: Some(0) });
    };
    let echo = Echo::take(&mut fields);
    match understand(options, peer, fields) {
        Ok(said) => Ok(Line { echo, said }),
        Err(what) => Err(Wrong { echo, what, at: None }),
    }
}

/// The answer to a line.
pub(super) fn answer(echo: &Echo, outcome: Result<(), &str>) -> Vec<u8> {
    let mut object: BTreeMap<String, Value> = echo.0.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    object.insert("ok".to_owned(), Value::Bool(outcome.is_ok()));
    if let Err(error) = outcome {
        object.insert("error".to_owned(), Value::Text(error.to_owned()));
    }
    finish(object)
}

/// The line that tells a device to do something.
pub(super) fn order(options: &Options, command: &Command) -> Vec<u8> {
    let mut object = things::order(command);
    object.insert(options.device_field.clone(), Value::Text(command.device.clone()));
    finish(object)
}

// === private ===

fn understand(options: &Options, peer: Option<&str>, mut fields: BTreeMap<String, Value>) -> Result<Said, String> {
    if let Some(id) = fields.remove("reply") {
        return reply(id, fields);
    }
    let token = match fields.remove(&options.token_field) {
        None | Some(Value::Null) => None,
        Some(Value::Text(token)) => Some(Bytes::from(token)),
        Some(other) => return Err(format!("`{}` is {}, not text", options.token_field, other.kind())),
    };
    let named = fields.remove(&options.device_field);
    let device = match (&options.device, named) {
        (Some(fixed), _) => fixed.clone(),
        (None, Some(Value::Text(name))) => name,
        (None, Some(Value::Int(number))) => number.to_string(),
        (None, Some(other)) => return Err(format!("`{}` is {}, not text", options.device_field, other.kind())),
        (None, None) => peer.ok_or_else(|| format!("no `{}`", options.device_field))?.to_owned(),
    };
    if !device_name_ok(&device) {
        return Err(format!("`{}` is not a name of 1 to {DEVICE_NAME_MAX} bytes", options.device_field));
    }
    let time_us = match fields.remove(&options.time_field) {
        None | Some(Value::Null) => None,
        Some(time) => Some(payload::time_us(&time).map_err(|e| format!("`{}`: {e}", options.time_field))?),
    };
    let word = match fields.remove(&options.event_field) {
        None => Word::Properties(properties(fields)?),
        Some(Value::Text(name)) if !name.is_empty() => event(name, fields),
        Some(other) => return Err(format!("`{}` is {}, not a name", options.event_field, other.kind())),
    };
    Ok(Said::Report { report: Report { device, product: None, time_us, word }, token })
}

fn properties(mut fields: BTreeMap<String, Value>) -> Result<Vec<(String, Value)>, String> {
    let properties: Vec<(String, Value)> = match fields.remove("properties") {
        Some(Value::Object(inner)) => fields.into_iter().chain(inner).collect(),
        Some(other) => return Err(format!("`properties` is {}, not object", other.kind())),
        None => fields.into_iter().collect(),
    };
    match properties.len() {
        0 => Err("no properties and no event".to_owned()),
        1..=PROPERTIES_MAX => Ok(properties),
        many => Err(format!("{many} properties, at most {PROPERTIES_MAX}")),
    }
}

fn event(name: String, mut fields: BTreeMap<String, Value>) -> Word {
    let data = match fields.remove("data") {
        Some(data) => data,
        None if fields.is_empty() => Value::Null,
        None => Value::Object(fields),
    };
    Word::Event { name, data }
}

fn reply(id: Value, mut fields: BTreeMap<String, Value>) -> Result<Said, String> {
    let Value::Text(id) = id else { return Err(format!("`reply` is {}, not text", id.kind())) };
    let outcome = match fields.remove("ok") {
        Some(Value::Bool(true)) | None if !fields.contains_key("error") => {
            Ok(fields.remove("data").unwrap_or_default())
        }
        Some(Value::Bool(_)) | None => Err(Failure::Device(match fields.remove("error") {
            Some(Value::Text(text)) => text,
            Some(other) => serde_json::Value::from(&other).to_string(),
            None => "no reason given".to_owned(),
        })),
        Some(other) => return Err(format!("`ok` is {}, not boolean", other.kind())),
    };
    Ok(Said::Reply { id, outcome })
}

fn finish(object: BTreeMap<String, Value>) -> Vec<u8> {
    let mut line = payload::to_json(&Value::Object(object));
    line.push(b'\n');
    line
}

// === impl Echo ===

impl Echo {
    /// Takes both fields out of the line. What is too long or no scalar is not echoed.
    fn take(fields: &mut BTreeMap<String, Value>) -> Self {
        let short = |value: &Value| match value {
            Value::Int(_) | Value::UInt(_) => true,
            Value::Text(text) => text.len() <= ECHO_MAX,
            _ => false,
        };
        let taken = ["id", "seq"].into_iter().filter_map(|name| Some((name, fields.remove(name)?)));
        Self(taken.filter(|(_, value)| short(value)).collect())
    }
}
