//! JSON and CBOR bodies as values, and the source times in them: what the languages without a data format of their own
//! (raw, CoAP, plain MQTT topics) share.
//!
//! Must not be in here: framing, or what a field means to one protocol.

use std::borrow::Cow;
use std::collections::BTreeMap;

use device_models::Value;

/// Nesting a body may have; deeper is an attack, not a report.
pub const DEPTH_MAX: usize = 64;

/// A body that is not what it says it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}{}", .at.map(|at| format!(" at byte {at}")).unwrap_or_default())]
pub struct PayloadError {
    pub what: Cow<'static, str>,
    /// Offset into the body.
    pub at: Option<usize>,
}

impl PayloadError {
    fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), at: None }
    }
}

/// Reads one JSON value (RFC 8259) that fills the body.
pub fn json(body: &[u8]) -> Result<Value, PayloadError> {
    serde_json::from_slice::<serde_json::Value>(body).map(Value::from).map_err(|error| {
        let at = byte_offset(body, error.line(), error.column());
        let text = error.to_string();
        // The library ends its text with "at line L column C"; the offset says the same in the words of a capture.
        let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
        PayloadError { what: format!("not JSON: {what}").into(), at: Some(at) }
    })
}

/// Writes a value as JSON.
pub fn to_json(value: &Value) -> Vec<u8> {
    serde_json::Value::from(value).to_string().into_bytes()
}

/// Reads one CBOR item (RFC 8949) that fills the body. Integer map keys become text; tags other than big numbers are
/// passed over.
pub fn cbor(body: &[u8]) -> Result<Value, PayloadError> {
    let mut rest = body;
    let item: ciborium::Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX)
        .map_err(|error| cbor_error(&error, body.len() - rest.len()))?;
    if !rest.is_empty() {
        return Err(PayloadError { what: "bytes after the CBOR item".into(), at: Some(body.len() - rest.len()) });
    }
    from_cbor(item)
}

/// Writes a value as CBOR.
pub fn to_cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    match ciborium::into_writer(&into_cbor(value), &mut bytes) {
        // A vector takes every write and the tree holds nothing that CBOR cannot say.
        Ok(()) | Err(_) => bytes,
    }
}

/// A source time in microseconds since 1970 UTC: a number of seconds (below 10^11), milliseconds (below 10^14) or
/// microseconds, or RFC 3339 text.
pub fn time_us(value: &Value) -> Result<i64, PayloadError> {
    const MS_FROM: f64 = 1e11;
    const US_FROM: f64 = 1e14;
    const US_MAX: f64 = 9e18;
    match value {
        Value::Text(text) => rfc3339_us(text),
        Value::Int(_) | Value::UInt(_) | Value::Float(_) => {
            let number = value.as_f64().unwrap_or(f64::NAN);
            let size = number.abs();
            let scale = if size < MS_FROM {
                1_000_000
            } else if size < US_FROM {
                1_000
            } else {
                1
            };
            if !number.is_finite() || size * f64::from(scale) > US_MAX {
                return Err(PayloadError::new("time out of range"));
            }
            // Integers stay integers: a float has too few bits for microseconds of today times a thousand.
            match value {
                Value::Int(v) => Ok(v.saturating_mul(i64::from(scale))),
                _ => Ok((number * f64::from(scale)).round() as i64),
            }
        }
        other => Err(PayloadError::new(format!("time is {}, not a number or RFC 3339 text", other.kind()))),
    }
}

/// `2026-11-22T08:30:00.25+08:00` in microseconds since 1970 UTC (RFC 3339 section 5.6; a space may stand for the `T`).
pub fn rfc3339_us(text: &str) -> Result<i64, PayloadError> {
    parse_rfc3339(text).ok_or_else(|| PayloadError::new("time is not RFC 3339 (such as 2026-11-22T08:30:00Z)"))
}

// === private ===

fn byte_offset(body: &[u8], line: usize, column: usize) -> usize {
    let before: usize = body.split_inclusive(|b| *b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(body.len())
}

fn cbor_error(error: &ciborium::de::Error<std::io::Error>, read: usize) -> PayloadError {
    use ciborium::de::Error;
    let (what, at) = match error {
        Error::Io(_) => (Cow::from("not CBOR: it ends early"), Some(read)),
        Error::Syntax(at) => ("not CBOR".into(), Some(*at)),
        Error::Semantic(at, why) => (format!("not CBOR: {why}").into(), *at),
        Error::RecursionLimitExceeded => ("CBOR nested too deep".into(), Some(read)),
    };
    PayloadError { what, at }
}

fn from_cbor(item: ciborium::Value) -> Result<Value, PayloadError> {
    use ciborium::Value as Item;
    Ok(match item {
        Item::Null => Value::Null,
        Item::Bool(v) => Value::Bool(v),
        Item::Integer(v) => from_integer(i128::from(v)),
        Item::Float(v) => Value::Float(v),
        Item::Text(v) => Value::Text(v),
        Item::Bytes(v) => Value::Bytes(v),
        Item::Tag(_, inner) => from_cbor(*inner)?,
        Item::Array(items) => Value::Array(items.into_iter().map(from_cbor).collect::<Result<_, _>>()?),
        Item::Map(entries) => {
            let mut object = BTreeMap::new();
            for (key, value) in entries {
                let key = match key {
                    Item::Text(key) => key,
                    Item::Integer(key) => i128::from(key).to_string(),
                    _ => return Err(PayloadError::new("a CBOR map key is neither text nor integer")),
                };
                object.insert(key, from_cbor(value)?);
            }
            Value::Object(object)
        }
        _ => return Err(PayloadError::new("a CBOR item of an unknown kind")),
    })
}

fn from_integer(v: i128) -> Value {
    i64::try_from(v).map(Value::Int).or_else(|_| u64::try_from(v).map(Value::UInt)).unwrap_or(Value::Float(v as f64))
}

fn into_cbor(value: &Value) -> ciborium::Value {
    use ciborium::Value as Item;
    match value {
        Value::Null => Item::Null,
        Value::Bool(v) => Item::Bool(*v),
        Value::Int(v) => Item::from(*v),
        Value::UInt(v) => Item::from(*v),
        Value::Float(v) => Item::Float(*v),
        Value::Text(v) => Item::Text(v.clone()),
        Value::Bytes(v) => Item::Bytes(v.clone()),
        Value::Array(v) => Item::Array(v.iter().map(into_cbor).collect()),
        Value::Object(v) => Item::Map(v.iter().map(|(k, v)| (Item::Text(k.clone()), into_cbor(v))).collect()),
    }
}

fn parse_rfc3339(text: &str) -> Option<i64> {
    let (date, time) = text.split_at_checked(10)?;
    let time = time.strip_prefix(['T', 't', ' '])?;
    let mut parts = date.split('-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    if parts.next().is_some() || !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
        return None;
    }
    let (clock, zone) = time.split_at_checked(8)?;
    let mut parts = clock.split(':');
    let (hour, minute, second) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    // 60 is a leap second.
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_us, zone) = match zone.strip_prefix('.') {
        Some(rest) => {
            let len = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (fraction, zone) = rest.split_at_checked(len)?;
            (fraction_us(fraction)?, zone)
        }
        None => (0, zone),
    };
    let seconds = (days_since_1970(year, month, day) * 24 + hour) * 3600 + minute * 60 + second - zone_seconds(zone)?;
    seconds.checked_mul(1_000_000)?.checked_add(fraction_us)
}

fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The first six decimals; finer ones are cut off.
fn fraction_us(decimals: &str) -> Option<i64> {
    let six: String = decimals.chars().chain("000000".chars()).take(6).collect();
    (!decimals.is_empty()).then(|| six.parse().ok())?
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, clock) = match zone.split_at_checked(1)? {
        ("+", clock) => (1, clock),
        ("-", clock) => (-1, clock),
        _ => return None,
    };
    let (hours, minutes) = clock.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar, counted in years that begin with March so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const DAYS_BEFORE_1970: i64 = 719_468;
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - DAYS_BEFORE_1970
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_errors_name_the_byte() {
        assert_eq!(json(b"{\"a\":1,}").unwrap_err().at, Some(7));
        assert_eq!(json(b"{\n\"a\":x}").unwrap_err().at, Some(6));
        assert!(json(b"{\"a\":1} x").is_err());
        assert_eq!(json(b"{\"a\":[1,2.5,\"x\",null]}").unwrap().kind(), "object");
    }

    #[test]
    fn deep_nesting_is_refused_not_recursed() {
        assert!(json("[".repeat(100_000).as_bytes()).is_err());
        assert!(cbor(&vec![0x81; 100_000]).unwrap_err().what.contains("deep"));
    }

    #[test]
    fn cbor_items_become_values() {
        // {"t": 21.5, 1: -1, "b": h'00ff'} with a half-precision float, from RFC 8949's rules.
        let body = [0xa3, 0x61, b't', 0xf9, 0x4d, 0x60, 0x01, 0x20, 0x61, b'b', 0x42, 0x00, 0xff];
        let expected = BTreeMap::from([
            ("t".to_owned(), Value::Float(21.5)),
            ("1".to_owned(), Value::Int(-1)),
            ("b".to_owned(), Value::Bytes(vec![0, 255])),
        ]);
        assert_eq!(cbor(&body).unwrap(), Value::Object(expected));
        assert_eq!(cbor(&[0x01, 0x02]).unwrap_err().at, Some(1));
        assert!(cbor(&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(cbor(&[0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(cbor(&[]).is_err());
    }

    #[test]
    fn times_in_every_spelling() {
        let us = 1_764_144_000_250_000;
        assert_eq!(time_us(&Value::Int(1_764_144_000)).unwrap(), us - 250_000);
        assert_eq!(time_us(&Value::Float(1_764_144_000.25)).unwrap(), us);
        assert_eq!(time_us(&Value::Int(1_764_144_000_250)).unwrap(), us);
        assert_eq!(time_us(&Value::Int(us)).unwrap(), us);
        assert_eq!(rfc3339_us("2025-11-26T08:00:00.25Z").unwrap(), us);
        assert_eq!(rfc3339_us("2025-11-26 16:00:00.250000999+08:00").unwrap(), us);
        assert_eq!(rfc3339_us("1970-01-01T00:00:00Z").unwrap(), 0);
        assert_eq!(rfc3339_us("2000-02-29T00:00:00-01:00").unwrap(), 951_786_000_000_000);
        for wrong in ["", "2025-11-26", "2025-02-29T00:00:00Z", "2025-11-26T25:00:00Z", "2025-11-26T08:00:00", "ü"] {
            assert!(rfc3339_us(wrong).is_err(), "{wrong}");
        }
        assert!(time_us(&Value::Float(f64::NAN)).is_err());
        assert!(time_us(&Value::UInt(u64::MAX)).is_err());
        assert!(time_us(&Value::Bool(true)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = cbor(&body) {
                prop_assert_eq!(format!("{:?}", cbor(&to_cbor(&value)).unwrap()), format!("{:?}", value));
            }
            if let Ok(value) = json(&body) {
                prop_assert_eq!(json(&to_json(&value)).unwrap(), value);
            }
        }

        #[test]
        fn any_text_is_a_time_or_not(text in "\\PC{0,40}") {
            // A year has four digits, so no time lies further than that from 1970.
            const FURTHEST_US: i64 = 10_000 * 366 * 86_400_000_000;
            prop_assert!(rfc3339_us(&text).is_ok_and(|us| us.abs() < FURTHEST_US) || rfc3339_us(&text).is_err());
        }
    }
}
