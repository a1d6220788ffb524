//! What a model asks of its values on their way: `sg:report` and `sg:alarms`, read.

use std::sync::Arc;

use super::fields::{Fields, Flaws, join};
use super::json::Json;
use crate::edge::{Aggregate, Alarm, Condition, Deadband, Exception, Part, Rule, Window};
use crate::message::Level;
use crate::value::Value;

/// Longest interval, window or delay: a year, seconds. More is a slip of the pen.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

/// Alarms of one property.
const ALARMS_MAX: usize = 16;

/// Reads both terms of a property.
pub(super) fn read(fields: &mut Fields<'_>, property: &Arc<str>, number: bool, flaws: &mut Flaws) -> Box<[Rule]> {
    let mut parts = Vec::new();
    let at = fields.at("sg:report");
    if let Some(mut report) = fields.get("sg:report").and_then(|json| Fields::open(json, at, flaws)) {
        parts.push(reporting(&mut report, number, flaws));
        report.finish(&[], flaws);
    }
    let alarms = fields.array("sg:alarms", flaws).unwrap_or_default();
    let at = fields.at("sg:alarms");
    if alarms.len() > ALARMS_MAX {
        flaws.add(&at, format!("has {} entries; the most is {ALARMS_MAX}", alarms.len()));
    }
    for (index, json) in alarms.iter().take(ALARMS_MAX).enumerate() {
        let Some(mut entry) = Fields::open(json, join(&at, &index.to_string()), flaws) else { continue };
        parts.extend(alarm(&mut entry, number, flaws).map(Part::Alarm));
        entry.finish(&[], flaws);
    }
    parts.into_iter().map(|part| Rule { property: (**property).into(), part }).collect()
}

/// One of the four levels; `info` when nothing is said.
pub(super) fn level(fields: &mut Fields<'_>, key: &'static str, flaws: &mut Flaws) -> Level {
    match fields.text(key, flaws) {
        None | Some("info") => Level::Info,
        Some("warn") => Level::Warn,
        Some("error") => Level::Error,
        Some("urgent") => Level::Urgent,
        Some(other) => {
            flaws.add(&fields.at(key), format!("no such level `{other}`; there are info, warn, error, urgent"));
            Level::Info
        }
    }
}

fn reporting(fields: &mut Fields<'_>, number: bool, flaws: &mut Flaws) -> Part {
    let absolute = positive(fields, "deadband", flaws);
    let percent = positive(fields, "deadbandPercent", flaws);
    let min = seconds(fields, "intervalMin", flaws);
    let max = seconds(fields, "intervalMax", flaws);
    let span = seconds(fields, "window", flaws);
    let take = aggregate(fields, flaws);
    if !number && (absolute.or(percent).is_some() || take.is_some_and(|take| take != Aggregate::Last)) {
        flaws.add(&fields.pointer, "only types integer and number have deadbands, and a min, max or mean");
    }
    if absolute.is_some() && percent.is_some() {
        flaws.add(&fields.at("deadbandPercent"), "contradicts `deadband`; keep one");
    }
    match (span, take) {
        (Some(span_us), Some(take)) if span_us > 0 => return Part::Window(Window { span_us, take, into: None }),
        (None, None) => {}
        _ => flaws.add(&fields.pointer, "`window` (seconds, above 0) and `take` go together"),
    }
    let deadband = match (absolute, percent) {
        (Some(band), _) => Deadband::Absolute(band),
        (None, Some(share)) => Deadband::Percent(share),
        (None, None) => Deadband::Any,
    };
    let (interval_min_us, interval_max_us) = (min.unwrap_or(0), max.unwrap_or(0));
    Part::Exception(Exception { deadband, interval_min_us, interval_max_us })
}

fn aggregate(fields: &mut Fields<'_>, flaws: &mut Flaws) -> Option<Aggregate> {
    match fields.text("take", flaws)? {
        "min" => Some(Aggregate::Min),
        "max" => Some(Aggregate::Max),
        "mean" => Some(Aggregate::Mean),
        "last" => Some(Aggregate::Last),
        other => {
            flaws.add(&fields.at("take"), format!("there is no `{other}`; there are min, max, mean, last"));
            None
        }
    }
}

fn alarm(fields: &mut Fields<'_>, number: bool, flaws: &mut Flaws) -> Option<Alarm> {
    let event = fields.text("event", flaws).filter(|event| !event.is_empty());
    let mut conditions = Vec::new();
    conditions.extend(fields.float("above", flaws).map(Condition::Above));
    conditions.extend(fields.float("below", flaws).map(Condition::Below));
    if !number && !conditions.is_empty() {
        flaws.add(&fields.pointer, "`above` and `below` are for types integer and number only");
    }
    conditions.extend(value(fields, "equals", flaws).map(Condition::Equals));
    conditions.extend(value(fields, "differs", flaws).map(Condition::Differs));
    let hysteresis = positive(fields, "hysteresis", flaws).unwrap_or(0.0);
    let delay_us = seconds(fields, "delay", flaws).unwrap_or(0);
    let level = level(fields, "level", flaws);
    let condition = conditions.pop();
    match (event, condition) {
        (Some(event), Some(condition)) if conditions.is_empty() => {
            Some(Alarm { event: event.into(), level, condition, hysteresis, delay_us })
        }
        _ => {
            flaws.add(&fields.pointer, "needs an `event` and exactly one of `above`, `below`, `equals`, `differs`");
            None
        }
    }
}

fn value(fields: &mut Fields<'_>, key: &'static str, flaws: &mut Flaws) -> Option<Value> {
    match fields.get(key)? {
        Json::Bool(flag) => Some(Value::Bool(*flag)),
        Json::Text(text) => Some(Value::Text(text.clone())),
        Json::Number(number) => number.as_i64().map(Value::Int).or_else(|| number.as_f64().map(Value::Float)),
        other => {
            flaws.add(&fields.at(key), format!("must be a number, a text or true or false, not {}", other.kind()));
            None
        }
    }
}

fn positive(fields: &mut Fields<'_>, key: &'static str, flaws: &mut Flaws) -> Option<f64> {
    let number = fields.float(key, flaws)?;
    if number < 0.0 {
        flaws.add(&fields.at(key), "must be 0 or more");
    }
    Some(number)
}

fn seconds(fields: &mut Fields<'_>, key: &'static str, flaws: &mut Flaws) -> Option<i64> {
    let seconds = fields.float(key, flaws)?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        flaws.add(&fields.at(key), format!("must be from 0 to {SECONDS_MAX} seconds"));
    }
    Some((seconds * 1e6) as i64)
}
