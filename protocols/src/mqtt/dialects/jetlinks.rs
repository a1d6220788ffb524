//! JetLinks: `/{product}/{device}/…` with `messageId` in every body; times in milliseconds.
//!
//! Children of a device speak under `/{product}/{device}/child/{child}/…` (replies also under `child-reply`).

use std::collections::BTreeMap;

use device_models::{Command, Failure, Order, Report, Value, Word};
use serde_json::{Map, Value as Json, json};

use super::body::{self, Unit};
use super::{Asked, Context, Dialect, Downward, Heard, is_level};

#[derive(Debug)]
pub(super) struct JetLinks;

/// Where a topic of this dialect points.
struct Place<'t> {
    product: &'t str,
    device: &'t str,
    base: &'t str,
    /// What stands behind the device.
    tail: &'t str,
}

impl Dialect for JetLinks {
    fn name(&self) -> &'static str {
        "jetlinks"
    }

    fn read<'t>(&self, topic: &'t str, payload: &[u8], _: Context<'_>) -> Option<Result<Heard<'t>, String>> {
        let place = place(topic)?;
        let words = words(place.tail, payload)?;
        Some(words.map(|words| {
            let report = |(time_us, word)| Report {
                device: place.device.to_owned(),
                product: Some(place.product.to_owned()),
                time_us,
                word,
            };
            Heard { reports: words.into_iter().map(report).collect(), base: place.base }
        }))
    }

    fn say(&self, asked: Asked<'_>, _: Context<'_>) -> Result<Downward, Failure> {
        let Command { device, product, order, .. } = asked.command;
        let base = match asked.base {
            Some(base) => base.to_owned(),
            None if is_level(device) && is_level(product) => format!("/{product}/{device}"),
            None => return Err(Failure::Unsupported(format!("`{product}/{device}` cannot stand in a topic"))),
        };
        let (tail, mut payload) = match order {
            Order::Write(properties) => ("properties/write", json!({ "properties": body::written(properties) })),
            Order::Read(names) => ("properties/read", json!({ "properties": names })),
            Order::Invoke { action, input } => {
                ("function/invoke", json!({ "functionId": action, "inputs": inputs(input) }))
            }
        };
        if let Json::Object(map) = &mut payload {
            map.insert("messageId".to_owned(), Json::from(asked.wire));
            map.insert("deviceId".to_owned(), Json::from(device.as_str()));
        }
        Ok(Downward { topic: format!("{base}/{tail}"), payload: body::bytes(&payload), retain: false, replies: true })
    }
}

/// A function's inputs are a list of names and values.
fn inputs(input: &Value) -> Json {
    match input {
        Value::Null => json!([]),
        Value::Object(map) => {
            map.iter().map(|(name, value)| json!({ "name": name, "value": Json::from(value) })).collect()
        }
        other => json!([{ "name": "value", "value": Json::from(other) }]),
    }
}

fn place(topic: &str) -> Option<Place<'_>> {
    let rest = topic.strip_prefix('/')?;
    let (product, rest) = rest.split_once('/')?;
    let (device, tail) = rest.split_once('/')?;
    if product.is_empty() || device.is_empty() {
        return None;
    }
    let child = tail.strip_prefix("child/").or_else(|| tail.strip_prefix("child-reply/"));
    let (device, tail) = match child {
        Some(rest) => rest.split_once('/').filter(|(child, _)| !child.is_empty())?,
        None => (device, tail),
    };
    let base = topic.get(..topic.len() - tail.len() - 1)?;
    Some(Place { product, device, base, tail })
}

type Words = Vec<(Option<i64>, Word)>;

fn words(tail: &str, payload: &[u8]) -> Option<Result<Words, String>> {
    Some(match tail {
        "properties/report" => body::object(payload).and_then(properties),
        "properties/write/reply" | "properties/read/reply" => {
            body::object(payload).and_then(|body| reply(body, "properties"))
        }
        "function/invoke/reply" => body::object(payload).and_then(|body| reply(body, "output")),
        "online" | "offline" => {
            let word = Word::Presence { online: tail == "online", reason: format!("said {tail}") };
            Ok(vec![(None, word)])
        }
        _ => match tail.strip_prefix("event/") {
            Some(name) if is_level(name) => body::object(payload).and_then(|body| event(name, body)),
            _ => return None,
        },
    })
}

fn properties(mut body: Map<String, Json>) -> Result<Words, String> {
    let time_us = body::take_time(&mut body, "timestamp", Unit::Millis)?;
    let properties = body::take_object(&mut body, "properties")?;
    let Some(Json::Object(own_times)) = body.remove("propertySourceTimes") else {
        return Ok(vec![(time_us, Word::Properties(body::values(properties)))]);
    };
    let mut by_time: BTreeMap<Option<i64>, Vec<(String, Value)>> = BTreeMap::new();
    for (name, value) in properties {
        let own = own_times.get(&name).map(|json| body::time_us(json, Unit::Millis)).transpose()?;
        by_time.entry(own.or(time_us)).or_default().push((name, Value::from(value)));
    }
    Ok(by_time.into_iter().map(|(time_us, properties)| (time_us, Word::Properties(properties))).collect())
}

fn event(name: &str, mut body: Map<String, Json>) -> Result<Words, String> {
    let time_us = body::take_time(&mut body, "timestamp", Unit::Millis)?;
    let data = body.remove("data").map_or(Value::Null, Value::from);
    Ok(vec![(time_us, Word::Event { name: name.to_owned(), data })])
}

fn reply(mut body: Map<String, Json>, value: &str) -> Result<Words, String> {
    let time_us = body::take_time(&mut body, "timestamp", Unit::Millis)?;
    let id = match body.remove("messageId") {
        Some(Json::String(id)) => id,
        Some(Json::Number(id)) => id.to_string(),
        _ => return Err("`messageId` is missing".to_owned()),
    };
    let failed = body.get("success") == Some(&Json::Bool(false));
    let outcome = body::outcome(failed, body.remove(value), body.get("message").or(body.get("code")));
    Ok(vec![(time_us, Word::Reply { id, outcome })])
}
