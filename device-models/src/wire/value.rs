//! Single values, events, replies, gaps: between our types and the generated ones.

use std::sync::Arc;
use std::time::Duration;

use super::WireError;
use super::generated as pb;
use crate::command::{Failure, Outcome};
use crate::message::{Body, Class, Level, Quality, Sample};
use crate::value::Value;

/// Arrays and objects within each other that are written as such; what is deeper goes as JSON text. Protobuf decoders
/// stop at 100 messages within each other (prost and protobuf for Python alike), and an object's level takes three.
const DEPTH_MAX: usize = 24;

// === values ===

pub(super) fn to_value(value: &Value) -> pb::Value {
    to_value_at(value, 0)
}

fn to_value_at(value: &Value, depth: usize) -> pb::Value {
    use pb::value::Kind;
    let kind = match value {
        Value::Null => None,
        Value::Bool(v) => Some(Kind::Boolean(*v)),
        Value::Int(v) => Some(Kind::Integer(*v)),
        Value::UInt(v) => Some(Kind::Unsigned(*v)),
        Value::Float(v) => Some(Kind::Number(*v)),
        Value::Text(v) => Some(Kind::Text(v.clone())),
        Value::Bytes(v) => Some(Kind::Bytes(v.clone())),
        Value::Array(_) | Value::Object(_) if depth >= DEPTH_MAX => {
            Some(Kind::Json(serde_json::Value::from(value).to_string()))
        }
        Value::Array(items) => {
            Some(Kind::List(pb::List { item: items.iter().map(|item| to_value_at(item, depth + 1)).collect() }))
        }
        Value::Object(entries) => Some(Kind::Map(pb::Map {
            entry: entries
                .iter()
                .map(|(key, value)| pb::Entry { key: key.clone(), value: Some(to_value_at(value, depth + 1)) })
                .collect(),
        })),
    };
    pb::Value { kind }
}

pub(super) fn from_value(value: Option<pb::Value>) -> Value {
    use pb::value::Kind;
    match value.and_then(|value| value.kind) {
        None => Value::Null,
        Some(Kind::Boolean(v)) => Value::Bool(v),
        Some(Kind::Integer(v)) => Value::Int(v),
        Some(Kind::Unsigned(v)) => Value::UInt(v),
        Some(Kind::Number(v)) => Value::Float(v),
        Some(Kind::Text(v)) => Value::Text(v),
        Some(Kind::Bytes(v)) => Value::Bytes(v),
        Some(Kind::List(list)) => Value::Array(list.item.into_iter().map(|item| from_value(Some(item))).collect()),
        Some(Kind::Map(map)) => {
            Value::Object(map.entry.into_iter().map(|entry| (entry.key, from_value(entry.value))).collect())
        }
        // Text that does not parse (nested deeper than the parser goes) stays what it is: readable, not lost.
        Some(Kind::Json(text)) => {
            serde_json::from_str::<serde_json::Value>(&text).map_or_else(|_| Value::Text(text), Value::from)
        }
    }
}

// === samples ===

pub(super) fn to_samples(samples: &[Sample]) -> pb::Samples {
    pb::Samples {
        sample: samples
            .iter()
            .map(|sample| pb::Sample {
                alias: sample.alias,
                name: sample.name.as_ref().to_owned(),
                value: Some(to_value(&sample.value)),
                quality: to_quality(sample.quality),
            })
            .collect(),
    }
}

pub(super) fn from_samples(samples: pb::Samples) -> Result<Vec<Sample>, WireError> {
    samples
        .sample
        .into_iter()
        .map(|sample| {
            Ok(Sample {
                alias: sample.alias,
                name: Arc::from(sample.name),
                value: from_value(sample.value),
                quality: from_quality(sample.quality)?,
            })
        })
        .collect()
}

pub(super) const fn to_quality(quality: Quality) -> u32 {
    match quality {
        Quality::Good => 0,
        Quality::OutOfRange => 1,
        Quality::UnknownProperty => 2,
        Quality::WrongType => 3,
        Quality::WrongTime => 4,
    }
}

pub(super) const fn from_quality(number: u32) -> Result<Quality, WireError> {
    Ok(match number {
        0 => Quality::Good,
        1 => Quality::OutOfRange,
        2 => Quality::UnknownProperty,
        3 => Quality::WrongType,
        4 => Quality::WrongTime,
        number => return Err(WireError::Number { what: "quality", number }),
    })
}

// === everything beside properties ===

/// The four bodies a record and a note share.
pub(super) enum Said {
    Event(pb::Event),
    Reply(pb::Reply),
    Presence(pb::Presence),
    Gap(pb::Gap),
    Samples(pb::Samples),
}

pub(super) fn to_said(body: &Body) -> Said {
    match body {
        Body::Properties(samples) => Said::Samples(to_samples(samples)),
        Body::Event { name, level, data, quality } => Said::Event(pb::Event {
            name: name.as_ref().to_owned(),
            level: to_level(*level),
            data: Some(to_value(data)),
            quality: to_quality(*quality),
        }),
        Body::Reply { id, outcome } => Said::Reply(to_reply(id, outcome)),
        Body::Presence { online, reason } => Said::Presence(pb::Presence { online: *online, reason: reason.clone() }),
        Body::Gap { class, first, last, reason } => {
            Said::Gap(pb::Gap { cls: u32::from(class.number()), first: *first, last: *last, reason: reason.clone() })
        }
    }
}

pub(super) fn from_said(said: Said) -> Result<Body, WireError> {
    Ok(match said {
        Said::Samples(samples) => Body::Properties(from_samples(samples)?),
        Said::Event(event) => Body::Event {
            name: Arc::from(event.name),
            level: from_level(event.level)?,
            data: from_value(event.data),
            quality: from_quality(event.quality)?,
        },
        Said::Reply(reply) => {
            let outcome = match reply.failure {
                None => Ok(from_value(reply.value)),
                Some(failure) => Err(from_failure(failure)?),
            };
            Body::Reply { id: reply.id, outcome }
        }
        Said::Presence(presence) => Body::Presence { online: presence.online, reason: presence.reason },
        Said::Gap(gap) => {
            Body::Gap { class: from_class(gap.cls)?, first: gap.first, last: gap.last, reason: gap.reason }
        }
    })
}

pub(super) fn from_class(number: u32) -> Result<Class, WireError> {
    u8::try_from(number).ok().and_then(Class::from_number).ok_or(WireError::Number { what: "class", number })
}

const fn to_level(level: Level) -> u32 {
    match level {
        Level::Info => 0,
        Level::Warn => 1,
        Level::Error => 2,
        Level::Urgent => 3,
    }
}

const fn from_level(number: u32) -> Result<Level, WireError> {
    Ok(match number {
        0 => Level::Info,
        1 => Level::Warn,
        2 => Level::Error,
        3 => Level::Urgent,
        number => return Err(WireError::Number { what: "level", number }),
    })
}

fn to_reply(id: &str, outcome: &Outcome) -> pb::Reply {
    let (value, failure) = match outcome {
        Ok(value) => (Some(to_value(value)), None),
        Err(failure) => (None, Some(to_failure(failure))),
    };
    pb::Reply { id: id.to_owned(), value, failure }
}

fn to_failure(failure: &Failure) -> pb::Failure {
    let (kind, text, waited) = match failure {
        Failure::Offline => (1, "", Duration::ZERO),
        Failure::Silent(waited) => (2, "", *waited),
        Failure::Unsupported(text) => (3, text.as_str(), Duration::ZERO),
        Failure::Refused(text) => (4, text.as_str(), Duration::ZERO),
        Failure::Device(text) => (5, text.as_str(), Duration::ZERO),
        Failure::Busy => (6, "", Duration::ZERO),
        Failure::Waiting(most) => (7, "", *most),
        Failure::Expired(most) => (8, "", *most),
        Failure::GivenUp(text) => (9, text.as_str(), Duration::ZERO),
    };
    pb::Failure { kind, text: text.to_owned(), waited_ns: u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX) }
}

fn from_failure(failure: pb::Failure) -> Result<Failure, WireError> {
    Ok(match failure.kind {
        1 => Failure::Offline,
        2 => Failure::Silent(Duration::from_nanos(failure.waited_ns)),
        3 => Failure::Unsupported(failure.text),
        4 => Failure::Refused(failure.text),
        5 => Failure::Device(failure.text),
        6 => Failure::Busy,
        7 => Failure::Waiting(Duration::from_nanos(failure.waited_ns)),
        8 => Failure::Expired(Duration::from_nanos(failure.waited_ns)),
        9 => Failure::GivenUp(failure.text),
        number => return Err(WireError::Number { what: "failure", number }),
    })
}
