//! A device's report held against the model of its thing: what comes out is the message.
//!
//! Nothing is dropped here. A value that does not fit is delivered as sent, and its [`Quality`] says what is the matter; a
//! report that says nothing at all is refused with a [`Mismatch`]. The choices:
//!
//! | the report has | what happens |
//! |---|---|
//! | a value of the type, or one that converts without loss | converted, scaled if the model says so, `Good` |
//! | a value outside the range, or outside the exact type | converted, `OutOfRange` |
//! | a value of another type; NaN, infinity, null | as sent, `WrongType` |
//! | a property the model lacks | as sent under the device's spelling, alias 0, `UnknownProperty` (`Good` if the model is open) |
//! | an event the model lacks | as sent, level info, `UnknownProperty` (`Good` if the model is open) |
//! | a property twice | both, in order |
//! | no source time | the time of receipt |
//! | a source time before 2000, or more than 24 h ahead | the time of receipt, and `WrongTime` for what would be `Good` |
//! | no property; more than [`SAMPLES_MAX`]; an empty or endless name | refused |
//!
//! A gateway whose own clock stands before 2000 has no right to call a device's time too far ahead, and does not.

use std::sync::Arc;

use crate::convert::{self, Converted, convert, worse};
use crate::message::{Body, Level, Message, Quality, Sample};
use crate::model::{Mismatch, Model, NAME_MAX, Property};
use crate::report::{Report, Word};
use crate::value::Value;

/// Properties of one report. The largest devices (meters with harmonics) report some hundreds at once.
pub const SAMPLES_MAX: usize = 4096;

/// 2000-01-01T00:00:00Z: no device in the field is older; what says so has lost its clock.
pub const TIME_MIN_US: i64 = 946_684_800_000_000;
/// A device may be this far ahead: time zones confused with UTC reach 14 h.
pub const TIME_AHEAD_MAX_US: i64 = 24 * 3600 * 1_000_000;

/// Turns a report into the message of its thing. `received_us`: the gateway's clock, microseconds since 1970 UTC.
pub fn normalize(model: &Model, thing: &Arc<str>, report: &Report, received_us: i64) -> Result<Message, Mismatch> {
    let (time_us, timing) = source_time(report.time_us, received_us);
    let body = match &report.word {
        Word::Properties(sent) => Body::Properties(samples(model, sent, timing)?),
        Word::Event { name, data } => event(model, name, data, timing)?,
        Word::Reply { id, outcome } => Body::Reply { id: id.clone(), outcome: outcome.clone() },
        Word::Presence { online, reason } => Body::Presence { online: *online, reason: reason.clone() },
    };
    Ok(Message { thing: thing.clone(), model: model.name().clone(), time_us, received_us, body })
}

/// The time to go by, and whether the device's own was wrong.
fn source_time(sent_us: Option<i64>, received_us: i64) -> (i64, Quality) {
    let Some(sent_us) = sent_us else { return (received_us, Quality::Good) };
    let clock_set = received_us >= TIME_MIN_US;
    let ahead = clock_set && sent_us > received_us.saturating_add(TIME_AHEAD_MAX_US);
    if sent_us < TIME_MIN_US || ahead { (received_us, Quality::WrongTime) } else { (sent_us, Quality::Good) }
}

fn samples(model: &Model, sent: &[(String, Value)], timing: Quality) -> Result<Vec<Sample>, Mismatch> {
    match sent.len() {
        0 => return Err(Mismatch::Empty { model: model.name().clone() }),
        1..=SAMPLES_MAX => {}
        found => return Err(Mismatch::TooMany { model: model.name().clone(), found, max: SAMPLES_MAX }),
    }
    let mut samples = Vec::with_capacity(sent.len());
    for (spelling, value) in sent {
        let mut sample = match model.property(spelling) {
            Some(property) => known(property, value),
            None => unknown(model, spelling, value)?,
        };
        sample.quality = worse(sample.quality, timing);
        samples.push(sample);
    }
    Ok(samples)
}

fn known(property: &Property, value: &Value) -> Sample {
    let Converted { value, quality } = match &property.linear {
        None => convert(&property.shape, value),
        // The raw number has the device's type, not the property's: any number is one.
        Some(linear) => match convert::float(value) {
            None => Converted { value: value.clone(), quality: Quality::WrongType },
            Some(raw) => match convert(&property.shape, &Value::Float(linear.value(raw))) {
                Converted { quality: Quality::WrongType, .. } => {
                    Converted { value: value.clone(), quality: Quality::WrongType }
                }
                scaled => scaled,
            },
        },
    };
    Sample { alias: property.alias, name: property.name.clone(), value, quality }
}

fn unknown(model: &Model, spelling: &str, value: &Value) -> Result<Sample, Mismatch> {
    check_name(model, "property", spelling)?;
    let quality = match value {
        Value::Float(number) if !number.is_finite() => Quality::WrongType,
        _ if model.is_open() => Quality::Good,
        _ => Quality::UnknownProperty,
    };
    Ok(Sample { alias: 0, name: spelling.into(), value: value.clone(), quality })
}

fn event(model: &Model, spelling: &str, data: &Value, timing: Quality) -> Result<Body, Mismatch> {
    let Some(event) = model.event(spelling) else {
        check_name(model, "event", spelling)?;
        let quality = if model.is_open() { Quality::Good } else { Quality::UnknownProperty };
        let (name, data) = (spelling.into(), data.clone());
        return Ok(Body::Event { name, level: Level::Info, data, quality: worse(quality, timing) });
    };
    let Converted { value: data, quality } = match (&event.data, data) {
        (Some(shape), data) => convert(shape, data),
        // An event without data in the model may still bring some: delivered, and marked.
        (None, Value::Null) => Converted { value: Value::Null, quality: Quality::Good },
        (None, data) => Converted { value: data.clone(), quality: Quality::UnknownProperty },
    };
    Ok(Body::Event { name: event.name.clone(), level: event.level, data, quality: worse(quality, timing) })
}

fn check_name(model: &Model, what: &'static str, name: &str) -> Result<(), Mismatch> {
    if (1..=NAME_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err(Mismatch::Name { model: model.name().clone(), what })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::convert::tests::any_value;
    use crate::model::Models;

    const NOW: i64 = 1_790_000_000_000_000;

    fn model(name: &str) -> Arc<Model> {
        Models::shipped().expect("shipped").get(name).expect("there").clone()
    }

    fn report(word: Word) -> Report {
        Report { device: "d".to_owned(), product: None, time_us: None, word }
    }

    fn properties(sent: &[(&str, Value)]) -> Report {
        report(Word::Properties(sent.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()))
    }

    fn samples_of(model: &Model, report: &Report) -> Vec<Sample> {
        let message = normalize(model, &"thing-1".into(), report, NOW).expect("a message");
        assert_eq!((&*message.thing, &message.model), ("thing-1", model.name()));
        let Body::Properties(samples) = message.body else { panic!("no properties") };
        samples
    }

    #[test]
    fn each_value_is_delivered_with_its_quality() {
        let model = model("temperature-humidity");
        let sent = [
            ("temp", Value::Int(21)),
            ("humidity", Value::Float(130.0)),
            ("battery", Value::Text("full".to_owned())),
            ("vendor", Value::Bool(true)),
        ];
        let samples = samples_of(&model, &properties(&sent));
        let seen: Vec<_> = samples.iter().map(|s| (s.alias, &*s.name, s.value.clone(), s.quality)).collect();
        let wanted = [
            (1, "temperature", Value::Float(21.0), Quality::Good),
            (2, "humidity", Value::Float(130.0), Quality::OutOfRange),
            (3, "battery", Value::Text("full".to_owned()), Quality::WrongType),
            (0, "vendor", Value::Bool(true), Quality::UnknownProperty),
        ];
        assert_eq!(seen, wanted);
        assert!(Arc::ptr_eq(&samples[0].name, &model.property("temperature").unwrap().name), "names are shared");
    }

    #[test]
    fn an_open_model_takes_everything() {
        let model = model("generic");
        let samples = samples_of(&model, &properties(&[("x", Value::Int(1)), ("y", Value::Float(f64::NAN))]));
        assert_eq!((samples[0].alias, samples[0].quality), (0, Quality::Good));
        assert_eq!(samples[1].quality, Quality::WrongType, "NaN is nobody's value");
    }

    #[test]
    fn raw_numbers_are_scaled() {
        let json = r#"{"@context":"https://www.w3.org/2022/wot/td/v1.1","@type":"tm:ThingModel","title":"t","properties":{
            "t":{"type":"number","minimum":-40,"maximum":125,"sg:scale":0.1,"sg:offset":-40},
            "n":{"type":"integer","sg:scale":10}}}"#;
        let model = Model::parse("t.tm.json", json).expect("a model");
        let sent = [("t", Value::Int(613)), ("t", Value::Int(9999)), ("t", Value::Bool(true)), ("n", Value::Int(7))];
        let samples = samples_of(&model, &properties(&sent));
        assert_eq!((&samples[0].value, samples[0].quality), (&Value::Float(61.3 - 40.0), Quality::Good));
        assert_eq!(samples[1].quality, Quality::OutOfRange);
        assert_eq!((&samples[2].value, samples[2].quality), (&Value::Bool(true), Quality::WrongType));
        assert_eq!(samples[3].value, Value::Int(70));
    }

    #[test]
    fn events_have_the_models_level() {
        let model = model("temperature-humidity");
        let event = |name: &str, data: Value| {
            let word = Word::Event { name: name.to_owned(), data };
            normalize(&model, &"t".into(), &report(word), NOW).map(|message| message.body)
        };
        let low = event("batteryLow", Value::Text("9".to_owned())).unwrap();
        let Body::Event { level, data, quality, .. } = low else { panic!("no event") };
        assert_eq!((level, data, quality), (Level::Warn, Value::Int(9), Quality::Good));
        let strange = event("fire", Value::Int(1)).unwrap();
        let Body::Event { name, level, data, quality } = strange else { panic!("no event") };
        assert_eq!((&*name, level, data), ("fire", Level::Info, Value::Int(1)));
        assert_eq!(quality, Quality::UnknownProperty);
        assert!(matches!(event("", Value::Null), Err(Mismatch::Name { what: "event", .. })));
    }

    #[test]
    fn an_empty_report_is_refused_with_a_reason() {
        let model = model("energy-meter");
        let refused = normalize(&model, &"t".into(), &properties(&[]), NOW).unwrap_err();
        assert_eq!(refused.to_string(), "model `energy-meter`: no property is named in it");
        let long = "x".repeat(NAME_MAX + 1);
        assert!(normalize(&model, &"t".into(), &properties(&[(&long, Value::Null)]), NOW).is_err());
        let many = vec![("u", Value::Int(230)); SAMPLES_MAX + 1];
        assert!(matches!(
            normalize(&model, &"t".into(), &properties(&many), NOW),
            Err(Mismatch::TooMany { found: 4097, .. })
        ));
    }

    #[test]
    fn a_wrong_clock_is_replaced_and_said() {
        let model = model("temperature-humidity");
        let at = |time_us, received_us| {
            let mut report = properties(&[("temp", Value::Int(20)), ("humidity", Value::Int(101))]);
            report.time_us = time_us;
            let message = normalize(&model, &"t".into(), &report, received_us).unwrap();
            let Body::Properties(samples) = message.body else { panic!("no properties") };
            (message.time_us, samples[0].quality, samples[1].quality)
        };
        let (good, range, time) = (Quality::Good, Quality::OutOfRange, Quality::WrongTime);
        assert_eq!(at(None, NOW), (NOW, good, range));
        assert_eq!(at(Some(NOW - 1), NOW), (NOW - 1, good, range));
        assert_eq!(at(Some(TIME_MIN_US - 1), NOW), (NOW, time, range));
        assert_eq!(at(Some(NOW + TIME_AHEAD_MAX_US), NOW), (NOW + TIME_AHEAD_MAX_US, good, range));
        assert_eq!(at(Some(NOW + TIME_AHEAD_MAX_US + 1), NOW), (NOW, time, range));
        assert_eq!(at(Some(NOW), 5_000_000), (NOW, good, range), "a gateway without a clock believes the device");
    }

    proptest! {
        /// Whatever a device says comes out again: as many samples as values, in order, none lost, no panic.
        #[test]
        fn nothing_is_dropped(
            product in prop::sample::select(vec!["energy-meter", "gps-tracker", "ip-camera", "generic"]),
            sent in proptest::collection::vec(("voltage|lat|codec|online|[a-z]{1,3}", any_value()), 1..6),
            time_us in proptest::option::of(any::<i64>()),
        ) {
            let model = model(product);
            let mut report = report(Word::Properties(sent.clone()));
            report.time_us = time_us;
            let message = normalize(&model, &"t".into(), &report, NOW).unwrap();
            prop_assert!(message.time_us >= TIME_MIN_US);
            let Body::Properties(samples) = message.body else { panic!("no properties") };
            prop_assert_eq!(samples.len(), sent.len());
            for (sample, (name, value)) in samples.iter().zip(&sent) {
                if sample.alias == 0 {
                    prop_assert_eq!(&*sample.name, name.as_str());
                    prop_assert_eq!(format!("{:?}", sample.value), format!("{value:?}"));
                }
            }
        }
    }

    /// Run alone, optimised: `cargo test --release -p device-models -- --ignored --nocapture cost`.
    #[test]
    #[ignore = "a measurement; it prints, and needs a quiet machine and an optimised build"]
    #[allow(clippy::disallowed_methods, reason = "a measurement needs the clock")]
    fn cost_of_a_value() {
        let model = model("energy-meter");
        let thing: Arc<str> = "meter-1".into();
        let sent = properties(&[
            ("voltage", Value::Float(230.1)),
            ("current", Value::Float(1.25)),
            ("power", Value::Int(287)),
            ("energy", Value::Float(12345.678)),
            ("powerFactor", Value::Float(0.98)),
            ("frequency", Value::Float(50.01)),
            ("relay", Value::Bool(true)),
        ]);
        let rounds = 500_000_u32;
        let began = std::time::Instant::now();
        let mut good = 0;
        for round in 0..rounds {
            let message = normalize(&model, &thing, &sent, NOW + i64::from(round)).unwrap();
            let Body::Properties(samples) = std::hint::black_box(message).body else { panic!("no properties") };
            good += samples.iter().filter(|sample| sample.quality == Quality::Good).count();
        }
        let values = rounds as usize * 7;
        println!("{:.1} ns a value", began.elapsed().as_nanos() as f64 / values as f64);
        assert_eq!(good, values);
    }
}
