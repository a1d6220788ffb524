//! thin-edge.io: `te/device/{device}///…`, five levels of entity, then a channel.
//!
//! Times are RFC 3339 text or seconds under `time`. Nested measurements become `group.name`. A command is a retained
//! `…/cmd/{operation}/{id}` that goes from `init` to `successful` or `failed` and is cleared by who asked.

use device_models::{Failure, Order, Report, Value, Word};
use serde_json::{Map, Value as Json, json};

use super::body::{self, Unit};
use super::{Asked, Context, Dialect, Downward, Heard, is_level};

/// Objects inside objects of a measurement; deeper ones stay objects.
const DEPTH_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct ThinEdge;

impl Dialect for ThinEdge {
    fn name(&self) -> &'static str {
        "thin-edge"
    }

    fn read<'t>(&self, topic: &'t str, payload: &[u8], context: Context<'_>) -> Option<Result<Heard<'t>, String>> {
        let rest = topic.strip_prefix("te/device/")?;
        let (device, rest) = rest.split_once('/')?;
        let (part, rest) = rest.split_once('/')?;
        let (service, channel) = rest.split_once('/').unwrap_or((rest, ""));
        if device.is_empty() || !(part.is_empty() && service.is_empty() || part == "service" && is_level(service)) {
            return None;
        }
        let base = if channel.is_empty() { topic } else { topic.get(..topic.len() - channel.len() - 1)? };
        let read = if part.is_empty() { words(channel, payload) } else { service_words(service, channel, payload) }?;
        // `main` is the device that runs thin-edge: the client itself.
        let device = if device == "main" { context.own } else { device };
        Some(read.map(|words| {
            let report = |(time_us, word)| Report { device: device.to_owned(), product: None, time_us, word };
            Heard { reports: words.into_iter().map(report).collect(), base }
        }))
    }

    fn say(&self, asked: Asked<'_>, _: Context<'_>) -> Result<Downward, Failure> {
        let device = &asked.command.device;
        let base = match asked.base {
            Some(base) => base.to_owned(),
            None if is_level(device) => format!("te/device/{device}//"),
            None => return Err(Failure::Unsupported(format!("`{device}` cannot stand in a topic"))),
        };
        let verb = body::verb(asked.command);
        if !is_level(verb) {
            return Err(Failure::Unsupported(format!("`{verb}` cannot stand in a topic")));
        }
        let mut payload = match &asked.command.order {
            Order::Write(properties) => json!({ "properties": body::written(properties) }),
            Order::Read(names) => json!({ "properties": names }),
            Order::Invoke { input: input @ Value::Object(_), .. } => Json::from(input),
            Order::Invoke { input: Value::Null, .. } => json!({}),
            Order::Invoke { input, .. } => json!({ "value": Json::from(input) }),
        };
        if let Json::Object(map) = &mut payload {
            map.insert("status".to_owned(), Json::from("init"));
        }
        let topic = format!("{base}/cmd/{verb}/{}", asked.wire);
        Ok(Downward { topic, payload: body::bytes(&payload), retain: true, replies: true })
    }
}

type Words = Vec<(Option<i64>, Word)>;

fn words(channel: &str, payload: &[u8]) -> Option<Result<Words, String>> {
    let (kind, name) = channel.split_once('/').unwrap_or((channel, ""));
    let said =
        match (kind, name) {
            // The registration of the entity; its metadata is not a report.
            ("", "") => body::object(payload).map(|_| Vec::new()),
            ("m", _) if !name.contains('/') => body::object(payload).and_then(measurement),
            ("twin", name) if is_level(name) && !payload.is_empty() => body::json(payload)
                .map(|json| vec![(None, Word::Properties(vec![(name.to_owned(), Value::from(json))]))]),
            ("e" | "a", name) if is_level(name) => event(name, payload),
            ("status", "health") => health(payload)
                .map(|up| vec![(None, Word::Presence { online: up, reason: "said its health".to_owned() })]),
            ("cmd", name) => return command_state(name, payload),
            _ => return None,
        };
    Some(said)
}

/// A service of the device: its health is an event of the device.
fn service_words(service: &str, channel: &str, payload: &[u8]) -> Option<Result<Words, String>> {
    if channel != "status/health" {
        return None;
    }
    Some(health(payload).map(|up| {
        let data = Value::Object(
            [("service".to_owned(), Value::Text(service.to_owned())), ("up".to_owned(), Value::Bool(up))].into(),
        );
        vec![(None, Word::Event { name: "service-health".to_owned(), data })]
    }))
}

fn measurement(mut body: Map<String, Json>) -> Result<Words, String> {
    let time_us = body::take_time(&mut body, "time", Unit::Seconds)?;
    let mut properties = Vec::new();
    flatten(None, body, 1, &mut properties);
    Ok(vec![(time_us, Word::Properties(properties))])
}

fn flatten(group: Option<&str>, map: Map<String, Json>, depth: usize, out: &mut Vec<(String, Value)>) {
    for (name, value) in map {
        let name = group.map_or_else(|| name.clone(), |group| format!("{group}.{name}"));
        match value {
            Json::Object(inner) if depth < DEPTH_MAX => flatten(Some(&name), inner, depth + 1, out),
            value => out.push((name, Value::from(value))),
        }
    }
}

/// An event or an alarm; an empty payload clears an alarm.
fn event(name: &str, payload: &[u8]) -> Result<Words, String> {
    if payload.is_empty() {
        let data = Value::Object([("cleared".to_owned(), Value::Bool(true))].into());
        return Ok(vec![(None, Word::Event { name: name.to_owned(), data })]);
    }
    let mut body = body::object(payload)?;
    let time_us = body::take_time(&mut body, "time", Unit::Seconds)?;
    Ok(vec![(time_us, Word::Event { name: name.to_owned(), data: Value::from(Json::Object(body)) })])
}

fn health(payload: &[u8]) -> Result<bool, String> {
    match payload {
        // What mosquitto bridges send.
        b"1" => Ok(true),
        b"0" | b"" => Ok(false),
        _ => Ok(body::object(payload)?.get("status") == Some(&Json::from("up"))),
    }
}

/// `{operation}/{id}`; only a final state is a reply. `None` for what is not a command's state.
fn command_state(name: &str, payload: &[u8]) -> Option<Result<Words, String>> {
    let Some((_, id)) = name.split_once('/') else {
        // `cmd/{operation}` alone declares that the operation is supported.
        return is_level(name).then(|| Ok(Vec::new()));
    };
    if !is_level(id) {
        return None;
    }
    if payload.is_empty() {
        return Some(Ok(Vec::new()));
    }
    Some(body::object(payload).map(|mut body| {
        let failed = match body.get("status").and_then(Json::as_str) {
            Some("successful") => false,
            Some("failed") => true,
            _ => return Vec::new(),
        };
        body.remove("status");
        let reason = body.remove("reason");
        let outcome = body::outcome(failed, Some(Json::Object(body)), reason.as_ref());
        vec![(None, Word::Reply { id: id.to_owned(), outcome })]
    }))
}
