//! Rules as a whole: what goes on, when, and that the last value is always known.

use proptest::prelude::*;

use super::*;
use crate::message::Body;
use crate::model::Models;
use crate::normalize::normalize;
use crate::report::{Report, Word};

const SECOND: i64 = 1_000_000;

fn meter() -> Arc<Model> {
    Models::shipped().expect("shipped").get("energy-meter").expect("there").clone()
}

fn watch(rules: &[(&str, Part)]) -> Watch {
    let rules: Vec<_> =
        rules.iter().map(|(property, part)| Rule { property: (*property).into(), part: part.clone() }).collect();
    Watch::new(Arc::new(Rules::compile(&meter(), &rules).expect("fits").expect("some")))
}

fn exception(deadband: Deadband, min_s: i64, max_s: i64) -> Part {
    Part::Exception(Exception { deadband, interval_min_us: min_s * SECOND, interval_max_us: max_s * SECOND })
}

fn window(take: Aggregate, into: Option<&str>) -> Part {
    Part::Window(Window { span_us: 10 * SECOND, take, into: into.map(Box::from) })
}

fn samples(sent: &[(&str, Value)]) -> Vec<Sample> {
    samples_of(&meter(), sent)
}

fn volts(v: f64) -> Vec<Sample> {
    samples(&[("voltage", Value::Float(v))])
}

/// The values that went on.
fn said(turn: &Turn) -> Vec<(&str, f64)> {
    turn.samples.iter().map(|(_, sample)| (&*sample.name, sample.value.as_f64().unwrap())).collect()
}

fn samples_of(model: &Model, sent: &[(&str, Value)]) -> Vec<Sample> {
    let word = Word::Properties(sent.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect());
    let report = Report { device: "m".to_owned(), product: None, time_us: None, word };
    let message = normalize(model, &"m".into(), &report, 1_790_000_000 * SECOND).unwrap();
    if let Body::Properties(samples) = message.body { samples } else { panic!("no properties") }
}

#[test]
fn a_property_that_an_open_model_does_not_name_has_rules_too() {
    let model = Models::shipped().unwrap().get("generic").unwrap().clone();
    let rule = |property: &str, part| Rule { property: property.into(), part };
    let limit = Alarm {
        event: "hot".into(),
        level: Level::Warn,
        condition: Condition::Above(90.0),
        hysteresis: 0.0,
        delay_us: 0,
    };
    let rules = [
        rule("oil", exception(Deadband::Absolute(0.5), 0, 0)),
        rule("oil", Part::Alarm(limit)),
        rule("flow", window(Aggregate::Mean, Some("flow-mean"))),
    ];
    let mut watch = Watch::new(Arc::new(Rules::compile(&model, &rules).unwrap().unwrap()));
    let mut take = |sent: &[(&str, Value)], now_s: i64| watch.take(samples_of(&model, sent), 0, now_s * SECOND);
    assert_eq!(said(&take(&[("oil", Value::Float(80.0)), ("other", Value::Float(1.0))], 0)).len(), 2);
    assert_eq!(take(&[("oil", Value::Float(80.1))], 1).held, 1, "too small a change");
    assert_eq!(take(&[("oil", Value::Float(95.0))], 2).events.len(), 1);
    let text = take(&[("oil", Value::Text("broken".into()))], 3);
    assert_eq!((text.samples.len(), text.events.len()), (1, 0), "what is no number passes");
    for (now_s, flow) in [(4, 1.0), (5, 4.0)] {
        assert_eq!(said(&take(&[("flow", Value::Float(flow))], now_s)), [("flow", flow)]);
    }
    assert_eq!(said(&watch.tick(20 * SECOND)), [("flow-mean", 2.5)]);
    let named = Rule { property: "volts".into(), part: Part::Everything };
    assert!(matches!(Rules::compile(&meter(), &[named]), Err(RuleError::Unknown { .. })), "a closed one names all");
}

#[test]
fn a_small_change_is_held_back_and_a_creeping_one_is_not() {
    let mut watch = watch(&[("voltage", exception(Deadband::Absolute(0.5), 0, 0))]);
    let mut went = Vec::new();
    for (n, v) in [230.0, 230.2, 230.4, 230.6, 230.3, 229.9, 230.1].into_iter().enumerate() {
        went.extend(said(&watch.take(volts(v), 0, n as i64)).iter().map(|(_, v)| *v));
    }
    assert_eq!(went, [230.0, 230.6, 229.9], "measured from the last value that went on");
    assert_eq!(watch.deadline(), None);
}

#[test]
fn a_share_of_the_value_is_a_deadband_too() {
    let mut watch = watch(&[("power", exception(Deadband::Percent(10.0), 0, 0))]);
    let mut went = Vec::new();
    for power in [0.0, 0.0, 1.0, 1.05, 100.0, 109.0, 110.0] {
        let turn = watch.take(samples(&[("power", Value::Float(power))]), 0, 0);
        went.extend(said(&turn).iter().map(|(_, v)| *v));
    }
    assert_eq!(went, [0.0, 1.0, 100.0, 110.0]);
}

#[test]
fn the_newest_value_is_said_when_its_time_has_come() {
    let mut watch = watch(&[("voltage", exception(Deadband::Any, 5, 60))]);
    assert_eq!(said(&watch.take(volts(230.0), 1, 0)), [("voltage", 230.0)]);
    assert_eq!(watch.take(volts(231.0), 2, SECOND).held, 1);
    assert_eq!(watch.take(volts(232.0), 3, 2 * SECOND).held, 1);
    assert_eq!(watch.deadline(), Some(5 * SECOND));
    assert_eq!(watch.tick(4 * SECOND), Turn::default());
    let turn = watch.tick(5 * SECOND);
    assert_eq!((said(&turn), turn.samples[0].0), (vec![("voltage", 232.0)], 3));
    assert_eq!(watch.deadline(), None);
    // Back to what is known already: nothing has to be said.
    watch.take(volts(233.0), 4, 6 * SECOND);
    watch.take(volts(232.0), 5, 7 * SECOND);
    assert_eq!(watch.deadline(), None);
    assert_eq!(said(&watch.take(volts(232.0), 6, 66 * SECOND)), [("voltage", 232.0)], "a sign of life");
}

#[test]
fn a_window_says_one_value_for_its_span() {
    let rules = [
        ("voltage", window(Aggregate::Mean, None)),
        ("power", window(Aggregate::Max, Some("current"))),
        ("relay", window(Aggregate::Last, None)),
    ];
    let mut watch = watch(&rules);
    for (n, v) in [230.0, 232.0, 231.0].into_iter().enumerate() {
        let sent = [("voltage", Value::Float(v)), ("power", Value::Float(v - 200.0)), ("relay", Value::Bool(n == 1))];
        let turn = watch.take(samples(&sent), n as i64, n as i64 * SECOND);
        assert_eq!(said(&turn), [("power", v - 200.0)], "the others wait for the end");
    }
    assert_eq!(watch.deadline(), Some(10 * SECOND));
    let turn = watch.tick(10 * SECOND);
    let seen: Vec<_> = turn.samples.iter().map(|(at, s)| (&*s.name, s.value.clone(), *at)).collect();
    let wanted =
        [("voltage", Value::Float(231.0), 2), ("current", Value::Float(32.0), 2), ("relay", Value::Bool(false), 2)];
    assert_eq!(seen, wanted);
    // A value after the end closes the span too, and opens the next.
    watch.take(volts(100.0), 9, 20 * SECOND);
    assert_eq!(said(&watch.take(volts(200.0), 10, 31 * SECOND)), [("voltage", 100.0)]);
    assert_eq!(said(&watch.finish(32 * SECOND)), [("voltage", 200.0)], "the gateway stops: nothing is forgotten");
}

#[test]
fn an_alarm_comes_after_its_delay_and_goes_with_hysteresis() {
    let alarm = Alarm {
        event: "overVoltage".into(),
        level: Level::Error,
        condition: Condition::Above(253.0),
        hysteresis: 3.0,
        delay_us: 5 * SECOND,
    };
    let mut watch = watch(&[("voltage", Part::Alarm(alarm))]);
    let mut told = Vec::new();
    let values = [(0, 250.0), (1, 254.0), (2, 252.0), (3, 255.0), (8, 256.0), (9, 251.0), (20, 249.0), (24, 249.5)];
    for (second, v) in values {
        let turn = watch.take(volts(v), second, second * SECOND);
        assert_eq!(said(&turn), [("voltage", v)], "an alarm holds nothing back");
        told.extend(turn.events.into_iter().map(|event| (second, event.level, event.data)));
    }
    assert_eq!(watch.deadline(), Some(25 * SECOND));
    told.extend(watch.tick(25 * SECOND).events.into_iter().map(|event| (25, event.level, event.data)));
    let states: Vec<_> = told
        .iter()
        .map(|(at, level, data)| {
            let Value::Object(data) = data else { panic!("{data:?}") };
            (*at, *level, data["state"].as_str().unwrap(), data["value"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(states, [(8, Level::Error, "raised", 256.0), (25, Level::Info, "cleared", 249.5)]);
}

#[test]
fn values_that_are_not_good_pass_untouched() {
    let mut watch =
        watch(&[("voltage", exception(Deadband::Absolute(1e9), 100, 0)), ("power", window(Aggregate::Mean, None))]);
    for n in 0..3 {
        let sent = [("voltage", Value::Float(-5.0)), ("power", Value::Text("?".to_owned())), ("other", Value::Int(1))];
        assert_eq!(watch.take(samples(&sent), n, n).samples.len(), 3);
    }
}

#[test]
fn a_rule_that_cannot_be_is_refused_with_a_reason() {
    let refused = |property: &str, part: Part| {
        let rule = Rule { property: property.into(), part };
        Rules::compile(&meter(), &[rule]).unwrap_err().to_string()
    };
    assert_eq!(refused("volts", Part::Everything), "model `energy-meter` has no property `volts`");
    let mean = refused("relay", window(Aggregate::Mean, None));
    assert_eq!(mean, "model `energy-meter`: property `relay` is no number: there is no minimum, maximum or mean of it");
    assert!(refused("voltage", window(Aggregate::Last, Some("volts"))).contains("`volts`"));
    assert_eq!(Rules::compile(&meter(), &[]), Ok(None), "without rules nothing is held back");
}

proptest! {
    /// After a quiet time what was said last is within the deadband of what the thing said last, whatever came between.
    #[test]
    fn the_last_value_is_always_known(
        values in proptest::collection::vec((0_i64..3 * SECOND, 200.0_f64..260.0), 1..60),
        band in 0.0_f64..5.0,
        min_s in 0_i64..5,
    ) {
        let mut watch = watch(&[("voltage", exception(Deadband::Absolute(band), min_s, 0))]);
        let (mut now, mut known) = (0, f64::NAN);
        for (step, v) in &values {
            now += step;
            if let Some(at) = watch.deadline().filter(|at| *at <= now) {
                for (_, v) in said(&watch.tick(at)) {
                    known = v;
                }
            }
            for (_, v) in said(&watch.take(volts(*v), now, now)) {
                known = v;
            }
        }
        for (_, v) in said(&watch.tick(now + 10 * SECOND)) {
            known = v;
        }
        let last = values.last().unwrap().1;
        prop_assert!((known - last).abs() <= band.max(1e-9), "{known} {last}");
        prop_assert_eq!(watch.deadline(), None);
    }
}

/// Run alone, optimised: `cargo test --release -p device-models -- --ignored --nocapture cost_of_a_rule`.
#[test]
#[ignore = "a measurement; it prints, and needs a quiet machine and an optimised build"]
#[allow(clippy::disallowed_methods, reason = "a measurement needs the clock")]
fn cost_of_a_rule() {
    let alarm = Alarm {
        event: "overVoltage".into(),
        level: Level::Warn,
        condition: Condition::Above(253.0),
        hysteresis: 3.0,
        delay_us: SECOND,
    };
    let mut watch = watch(&[
        ("voltage", exception(Deadband::Absolute(0.5), 1, 60)),
        ("voltage", Part::Alarm(alarm)),
        ("power", window(Aggregate::Mean, None)),
    ]);
    let sent = samples(&[("voltage", Value::Float(230.1)), ("power", Value::Float(10.0))]);
    let rounds = 1_000_000_i64;
    let began = std::time::Instant::now();
    let mut held = 0;
    for n in 0..rounds {
        held += watch.take(std::hint::black_box(sent.clone()), n, n * 1000).held;
    }
    println!("{:.1} ns a value, the copy of it included", began.elapsed().as_nanos() as f64 / (2 * rounds) as f64);
    assert!(held > 0);
}
