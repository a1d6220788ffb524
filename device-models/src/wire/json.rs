//! A message as JSON: for people, the JSON dialect and the API.

use serde_json::{Map, Value as Json, json};

use crate::message::{Body, Message, Quality, Sample};

/// The message as one JSON object.
///
/// `thing`, `model`, `time` (RFC 3339 UTC with microseconds), `received` only where it differs from `time`, and one of
/// `properties` (name to value), `event`, `reply`, `presence`, `gap`. `quality` (name to word) holds only the properties
/// that are not good; for an event it is the word itself. JSON has no NaN, no infinity: they become null. Bytes become an array of numbers.
pub fn message_json(message: &Message) -> Json {
    let mut object = Map::new();
    object.insert("thing".to_owned(), Json::from(message.thing.as_ref()));
    object.insert("model".to_owned(), Json::from(message.model.as_ref()));
    object.insert("time".to_owned(), Json::from(time_text(message.time_us)));
    if message.received_us != message.time_us {
        object.insert("received".to_owned(), Json::from(time_text(message.received_us)));
    }
    let (key, body) = match &message.body {
        Body::Properties(samples) => {
            let bad: Map<String, Json> = samples.iter().filter_map(quality).collect();
            if !bad.is_empty() {
                object.insert("quality".to_owned(), Json::Object(bad));
            }
            let values = samples.iter().map(|sample| (sample.name.as_ref().to_owned(), Json::from(&sample.value)));
            ("properties", Json::Object(values.collect()))
        }
        Body::Event { name, level, data, quality } => {
            if *quality != Quality::Good {
                object.insert("quality".to_owned(), word(quality));
            }
            ("event", json!({ "name": name.as_ref(), "level": word(level), "data": Json::from(data) }))
        }
        Body::Reply { id, outcome: Ok(value) } => ("reply", json!({ "id": id, "value": Json::from(value) })),
        Body::Reply { id, outcome: Err(failure) } => {
            ("reply", json!({ "id": id, "error": failure.to_string(), "failure": failure.word() }))
        }
        Body::Presence { online, reason } => ("presence", json!({ "online": online, "reason": reason })),
        Body::Gap { class, first, last, reason } => {
            ("gap", json!({ "class": class.topic(), "first": first, "last": last, "reason": reason }))
        }
    };
    object.insert(key.to_owned(), body);
    Json::Object(object)
}

fn quality(sample: &Sample) -> Option<(String, Json)> {
    (sample.quality != Quality::Good).then(|| (sample.name.as_ref().to_owned(), word(&sample.quality)))
}

fn word(word: &impl serde::Serialize) -> Json {
    serde_json::to_value(word).unwrap_or_default()
}

/// Microseconds since 1970 UTC as RFC 3339: `2026-03-01T08:15:00.250000Z`.
///
/// Years outside 0 to 9999, which RFC 3339 cannot say, come as the bare number of microseconds.
pub fn time_text(time_us: i64) -> String {
    let seconds = time_us.div_euclid(1_000_000);
    let micros = time_us.rem_euclid(1_000_000);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    if !(0..=9999).contains(&year) {
        return time_us.to_string();
    }
    let second = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month, day of a day counted from 1970-01-01, Gregorian. Counted in eras of 400 years that begin in March, so
/// that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Value;

    #[test]
    fn times_read_as_rfc_3339() {
        // Checked with `date -u -d @N`.
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time_text(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(time_text(1_772_352_900_250_000), "2026-03-01T08:15:00.250000Z");
        assert_eq!(time_text(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(time_text(i64::MAX), i64::MAX.to_string());
        assert_eq!(time_text(i64::MIN), i64::MIN.to_string());
    }

    #[test]
    fn a_report_reads_as_its_author_would_write_it() {
        let sample = |name: &str, value, quality| Sample { alias: 1, name: name.into(), value, quality };
        let message = Message {
            thing: "meter-1".into(),
            model: "energy-meter".into(),
            time_us: 0,
            received_us: 1_500_000,
            body: Body::Properties(vec![
                sample("power", Value::Float(1.5), Quality::Good),
                sample("voltage", Value::Int(900), Quality::OutOfRange),
            ]),
        };
        assert_eq!(
            message_json(&message),
            json!({
                "thing": "meter-1", "model": "energy-meter",
                "time": "1970-01-01T00:00:00.000000Z", "received": "1970-01-01T00:00:01.500000Z",
                "properties": { "power": 1.5, "voltage": 900 }, "quality": { "voltage": "out-of-range" },
            })
        );
    }
}
