//! JSON bodies and their times.

use device_models::{Command, Failure, Order, Outcome, Value};
use serde_json::{Map, Value as Json};

/// Reads a body that must be a JSON object.
pub(super) fn object(payload: &[u8]) -> Result<Map<String, Json>, String> {
    match json(payload)? {
        Json::Object(map) => Ok(map),
        other => Err(format!("JSON object expected, found {}", kind(&other))),
    }
}

pub(super) fn json(payload: &[u8]) -> Result<Json, String> {
    serde_json::from_slice(payload).map_err(|e| format!("not JSON: {e}"))
}

/// Takes an object out of another one.
pub(super) fn take_object(body: &mut Map<String, Json>, key: &str) -> Result<Map<String, Json>, String> {
    match body.remove(key) {
        Some(Json::Object(map)) => Ok(map),
        Some(other) => Err(format!("`{key}` must be a JSON object, found {}", kind(&other))),
        None => Err(format!("`{key}` is missing")),
    }
}

pub(super) fn values(map: Map<String, Json>) -> Vec<(String, Value)> {
    map.into_iter().map(|(name, value)| (name, Value::from(value))).collect()
}

fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

pub(super) fn bytes(json: &Json) -> Vec<u8> {
    // A `Json` always serializes: it has no maps with other than text keys.
    serde_json::to_vec(json).unwrap_or_default()
}

/// The written properties as a JSON object.
pub(super) fn written(properties: &[(String, Value)]) -> Map<String, Json> {
    properties.iter().map(|(name, value)| (name.clone(), Json::from(value))).collect()
}

/// What a reply says: its value, or the device's error text.
pub(super) fn outcome(failed: bool, value: Option<Json>, error: Option<&Json>) -> Outcome {
    if failed {
        let text = match error {
            Some(Json::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "no reason given".to_owned(),
        };
        return Err(Failure::Device(text));
    }
    Ok(value.map_or(Value::Null, Value::from))
}

/// The order's verb, for dialects that have one topic a verb.
pub(super) fn verb(command: &Command) -> &str {
    match &command.order {
        Order::Write(_) => "write",
        Order::Read(_) => "read",
        Order::Invoke { action, .. } => action,
    }
}

// === time ===

/// What a number says in a dialect's time field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Seconds,
    Millis,
    /// By its size: seconds below 1e11, then milliseconds, microseconds, nanoseconds (good for 1973 to 5138).
    Size,
}

/// Microseconds since 1970, from a number or RFC 3339 text.
pub(super) fn time_us(json: &Json, unit: Unit) -> Result<i64, String> {
    let wrong = || format!("time {json} is not a time");
    match json {
        Json::String(text) => rfc3339_us(text).ok_or_else(wrong),
        Json::Number(number) => {
            let per_unit = match unit {
                Unit::Seconds => 1e6,
                Unit::Millis => 1e3,
                Unit::Size => match number.as_f64().unwrap_or(0.0).abs() {
                    size if size < 1e11 => 1e6,
                    size if size < 1e14 => 1e3,
                    size if size < 1e17 => 1.0,
                    _ => 1e-3,
                },
            };
            if let (Some(whole), true) = (number.as_i64(), per_unit >= 1.0) {
                return whole.checked_mul(per_unit as i64).ok_or_else(wrong);
            }
            match number.as_f64().map(|value| value * per_unit) {
                Some(us) if us.is_finite() && us.abs() < 9.0e18 => Ok(us as i64),
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

/// The time under `key`, if there is one.
pub(super) fn take_time(body: &mut Map<String, Json>, key: &str, unit: Unit) -> Result<Option<i64>, String> {
    match body.remove(key) {
        None | Some(Json::Null) => Ok(None),
        Some(json) => time_us(&json, unit).map(Some),
    }
}

/// `2020-10-15T05:30:47.123+02:00` (RFC 3339, 5.6).
fn rfc3339_us(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let mark = |at: usize, marks: &[u8]| text.as_bytes().get(at).is_some_and(|byte| marks.contains(byte));
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let digits = match rest.strip_prefix('.') {
        Some(rest) => rest.bytes().take_while(u8::is_ascii_digit).count(),
        None => 0,
    };
    let mut us = 0;
    for index in 0..digits.min(6) {
        us += i64::from(rest.as_bytes().get(index + 1)?.wrapping_sub(b'0')) * 10_i64.pow(5 - index as u32);
    }
    let zone = rest.get(if digits > 0 { digits + 1 } else { 0 }..)?;
    let offset_seconds = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = zone.get(1..3)?.parse::<i64>().ok()? * 3600 + zone.get(4..6)?.parse::<i64>().ok()? * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_seconds;
    Some(seconds * 1_000_000 + us)
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, counting years from March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit() {
        let us = |json: &str, unit| time_us(&serde_json::from_str(json).unwrap(), unit);
        assert_eq!(us("1700000000123", Unit::Millis), Ok(1_700_000_000_123_000));
        assert_eq!(us("1700000000.5", Unit::Seconds), Ok(1_700_000_000_500_000));
        for (text, unit) in [("1700000000", 6), ("1700000000000", 3), ("1700000000000000", 0)] {
            assert_eq!(us(text, Unit::Size), Ok(1_700_000_000_000_000), "{text} {unit}");
        }
        assert_eq!(us("1700000000000000000", Unit::Size), Ok(1_700_000_000_000_000));
        assert_eq!(us("\"2020-10-15T05:30:47+00:00\"", Unit::Seconds), Ok(1_602_739_847_000_000));
        assert_eq!(us("\"2020-10-15T07:30:47.25+02:00\"", Unit::Seconds), Ok(1_602_739_847_250_000));
        assert_eq!(us("\"2000-02-29T00:00:00Z\"", Unit::Seconds), Ok(951_782_400_000_000));
        assert_eq!(us("\"1969-12-31T23:59:59Z\"", Unit::Seconds), Ok(-1_000_000));
        for bad in ["\"yesterday\"", "\"2020-13-15T05:30:47Z\"", "true", "9e300", "\"2020-10-15T05:30:47\""] {
            assert!(us(bad, Unit::Millis).is_err(), "{bad}");
        }
        assert!(us("9223372036854775807", Unit::Millis).is_err());
    }
}
