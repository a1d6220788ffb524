//! ThingsBoard: `v1/devices/me/…` for the client itself, `v1/gateway/…` for devices behind it; times in milliseconds.
//!
//! `me` is everybody's topic, but each client means itself: inside the gateway `v1/devices/me/X` is
//! `v1/devices/{own}/X` and `v1/gateway/X` is `v1/gateways/{own}/X`, so that no device sees another's commands.

use std::borrow::Cow;

use device_models::{Failure, Order, Report, Value, Word};
use serde_json::{Map, Value as Json, json};

use super::body::{self, Unit};
use super::{Asked, Context, Dialect, Downward, Heard, is_level};

#[derive(Debug)]
pub(super) struct ThingsBoard;

const DEVICE: (&str, &str) = ("v1/devices/me/", "v1/devices/");
const GATEWAY: (&str, &str) = ("v1/gateway/", "v1/gateways/");

/// A topic or filter as the client says it, as the exchange knows it.
pub fn inward<'t>(topic: &'t str, own: &str) -> Cow<'t, str> {
    for (outside, inside) in [DEVICE, GATEWAY] {
        if let Some(rest) = topic.strip_prefix(outside) {
            return Cow::Owned(format!("{inside}{own}/{rest}"));
        }
    }
    Cow::Borrowed(topic)
}

/// The reverse of [`inward`].
pub fn outward<'t>(topic: &'t str, own: &str) -> Cow<'t, str> {
    for (outside, inside) in [DEVICE, GATEWAY] {
        let rest = topic.strip_prefix(inside).and_then(|rest| rest.strip_prefix(own)?.strip_prefix('/'));
        if let Some(rest) = rest {
            return Cow::Owned(format!("{outside}{rest}"));
        }
    }
    Cow::Borrowed(topic)
}

impl Dialect for ThingsBoard {
    fn name(&self) -> &'static str {
        "thingsboard"
    }

    fn read<'t>(&self, topic: &'t str, payload: &[u8], context: Context<'_>) -> Option<Result<Heard<'t>, String>> {
        let (device, gateway) = (topic.strip_prefix(DEVICE.1), topic.strip_prefix(GATEWAY.1));
        let (tail, is_gateway) = match (device, gateway) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return None,
        };
        let tail = tail.strip_prefix(context.own)?.strip_prefix('/')?;
        let base = topic.get(..topic.len() - tail.len() - 1)?;
        let reports =
            if is_gateway { gateway_reports(tail, payload)? } else { own_reports(tail, payload, context.own)? };
        Some(reports.map(|reports| Heard { reports, base }))
    }

    fn say(&self, asked: Asked<'_>, context: Context<'_>) -> Result<Downward, Failure> {
        let own = context.own;
        let device = &asked.command.device;
        let behind = asked.base.is_some_and(|base| base.starts_with(GATEWAY.1)) || device.as_str() != own;
        let base = format!("{}{own}", if behind { GATEWAY.1 } else { DEVICE.1 });
        let (method, params) = match &asked.command.order {
            Order::Write(properties) => {
                let data = Json::Object(body::written(properties));
                let payload = if behind { json!({ "device": device, "data": data }) } else { data };
                let topic = format!("{base}/attributes");
                return Ok(Downward { topic, payload: body::bytes(&payload), retain: false, replies: false });
            }
            Order::Read(names) => ("read", json!(names)),
            Order::Invoke { action, input } => (action.as_str(), Json::from(input)),
        };
        let (topic, payload) = if behind {
            let id: u64 = asked.wire.parse().unwrap_or(0);
            let data = json!({ "id": id, "method": method, "params": params });
            (format!("{base}/rpc"), json!({ "device": device, "data": data }))
        } else {
            (format!("{base}/rpc/request/{}", asked.wire), json!({ "method": method, "params": params }))
        };
        Ok(Downward { topic, payload: body::bytes(&payload), retain: false, replies: true })
    }

    fn numbers_ids(&self) -> bool {
        true
    }
}

/// `None` for topics that are the client's own but say nothing (requests of attributes).
fn own_reports(tail: &str, payload: &[u8], own: &str) -> Option<Result<Vec<Report>, String>> {
    Some(match tail {
        "telemetry" => body::json(payload).and_then(|json| telemetry(own, json)),
        "attributes" => body::object(payload).map(|body| vec![Report::properties(own, body::values(body))]),
        _ => {
            let id = tail.strip_prefix("rpc/response/").filter(|id| is_level(id))?;
            body::json(payload).map(|json| vec![reply(own, id.to_owned(), json)])
        }
    })
}

fn gateway_reports(tail: &str, payload: &[u8]) -> Option<Result<Vec<Report>, String>> {
    Some(match tail {
        "telemetry" => body::object(payload).and_then(|body| {
            let mut reports = Vec::new();
            for (device, json) in body {
                reports.extend(telemetry(&device, json)?);
            }
            Ok(reports)
        }),
        "attributes" => body::object(payload).and_then(|body| {
            body.into_iter()
                .map(|(device, json)| match json {
                    Json::Object(map) => Ok(Report::properties(device, body::values(map))),
                    _ => Err(format!("attributes of `{device}` must be a JSON object")),
                })
                .collect()
        }),
        "connect" | "disconnect" => body::object(payload).and_then(|body| {
            let device = name(&body)?;
            let product = body.get("type").and_then(Json::as_str).map(str::to_owned);
            let word = Word::Presence { online: tail == "connect", reason: format!("its gateway said {tail}") };
            Ok(vec![Report { device, product, time_us: None, word }])
        }),
        "rpc" => body::object(payload).and_then(|mut body| {
            let device = name(&body)?;
            let id = body.get("id").map(Json::to_string).ok_or("`id` is missing")?;
            let data = body.remove("data").unwrap_or(Json::Null);
            Ok(vec![reply(&device, id.trim_matches('"').to_owned(), data)])
        }),
        _ => return None,
    })
}

fn name(body: &Map<String, Json>) -> Result<String, String> {
    body.get("device").and_then(Json::as_str).map(str::to_owned).ok_or_else(|| "`device` is missing".to_owned())
}

/// `{k: v}`, `{ts, values: {k: v}}`, or an array of either.
fn telemetry(device: &str, json: Json) -> Result<Vec<Report>, String> {
    match json {
        Json::Array(entries) => {
            let mut reports = Vec::with_capacity(entries.len());
            for entry in entries {
                match entry {
                    Json::Object(map) => reports.push(telemetry_entry(device, map)?),
                    _ => return Err("telemetry entries must be JSON objects".to_owned()),
                }
            }
            Ok(reports)
        }
        Json::Object(map) => Ok(vec![telemetry_entry(device, map)?]),
        _ => Err("telemetry must be a JSON object or an array of them".to_owned()),
    }
}

fn telemetry_entry(device: &str, mut map: Map<String, Json>) -> Result<Report, String> {
    let (time_us, values) = if map.contains_key("ts") && map.contains_key("values") {
        (body::take_time(&mut map, "ts", Unit::Millis)?, body::take_object(&mut map, "values")?)
    } else {
        (None, map)
    };
    Ok(Report { device: device.to_owned(), product: None, time_us, word: Word::Properties(body::values(values)) })
}

/// Devices say that a call failed by an `error` in an object; there is no other convention.
fn reply(device: &str, id: String, json: Json) -> Report {
    let error = json.as_object().and_then(|map| map.get("error")).cloned();
    let outcome = match error {
        Some(error) => body::outcome(true, None, Some(&error)),
        None => Ok(Value::from(json)),
    };
    Report { device: device.to_owned(), product: None, time_us: None, word: Word::Reply { id, outcome } }
}
