//! Messages of every kind for the tests of this folder.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::command::{Failure, Outcome};
use crate::message::{Body, Class, Level, Message, Quality, Sample};
use crate::value::Value;

/// Equal bit for bit: NaN equals itself here, 0.0 and -0.0 differ.
pub(super) fn same(a: &Message, b: &Message) -> bool {
    format!("{a:?}") == format!("{b:?}") && bits(&a.body) == bits(&b.body)
}

fn bits(body: &Body) -> Vec<u64> {
    fn walk(value: &Value, out: &mut Vec<u64>) {
        match value {
            Value::Float(v) => out.push(v.to_bits()),
            Value::Array(items) => items.iter().for_each(|item| walk(item, out)),
            Value::Object(entries) => entries.values().for_each(|item| walk(item, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    match body {
        Body::Properties(samples) => samples.iter().for_each(|sample| walk(&sample.value, &mut out)),
        Body::Event { data, .. } => walk(data, &mut out),
        Body::Reply { outcome: Ok(value), .. } => walk(value, &mut out),
        _ => {}
    }
    out
}

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        any::<u64>().prop_map(f64::from_bits),
        any::<f32>().prop_map(f64::from),
        (-100_000i64..100_000, 0i32..5).prop_map(|(v, s)| v as f64 / 10f64.powi(s)),
        prop::sample::select(vec![0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 9_007_199_254_740_993.0]),
    ]
}

pub(super) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-50i64..50).prop_map(Value::Int),
        any::<u64>().prop_map(Value::UInt),
        float().prop_map(Value::Float),
        ".{0,8}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..8).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(Value::Object),
        ]
    })
}

fn quality() -> impl Strategy<Value = Quality> {
    prop::sample::select(vec![
        Quality::Good,
        Quality::OutOfRange,
        Quality::UnknownProperty,
        Quality::WrongType,
        Quality::WrongTime,
    ])
}

fn sample() -> impl Strategy<Value = Sample> {
    (0u32..5, prop::option::weighted(0.2, ".{0,6}"), value(), quality()).prop_map(|(alias, odd, value, quality)| {
        let name: Arc<str> = odd.map_or_else(|| Arc::from(format!("p{alias}")), Arc::from);
        Sample { alias, name, value, quality }
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        value().prop_map(Ok),
        Just(Err(Failure::Offline)),
        Just(Err(Failure::Busy)),
        (0u64..1 << 40).prop_map(|ns| Err(Failure::Silent(Duration::from_nanos(ns)))),
        ".{0,6}".prop_map(|text| Err(Failure::Unsupported(text))),
        ".{0,6}".prop_map(|text| Err(Failure::Refused(text))),
        ".{0,6}".prop_map(|text| Err(Failure::Device(text))),
        ".{0,6}".prop_map(|text| Err(Failure::GivenUp(text))),
        (0u64..1 << 40).prop_map(|ns| Err(Failure::Waiting(Duration::from_nanos(ns)))),
        (0u64..1 << 40).prop_map(|ns| Err(Failure::Expired(Duration::from_nanos(ns)))),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let level = prop::sample::select(vec![Level::Info, Level::Warn, Level::Error, Level::Urgent]);
    let class = prop::sample::select(Class::ALL.to_vec());
    prop_oneof![
        4 => prop::collection::vec(sample(), 0..6).prop_map(Body::Properties),
        1 => (".{0,6}", level, value(), quality())
            .prop_map(|(name, level, data, quality)| Body::Event { name: name.into(), level, data, quality }),
        1 => (".{0,6}", outcome()).prop_map(|(id, outcome)| Body::Reply { id, outcome }),
        1 => (any::<bool>(), ".{0,6}").prop_map(|(online, reason)| Body::Presence { online, reason }),
        1 => (class, any::<u64>(), any::<u64>(), ".{0,6}")
            .prop_map(|(class, first, last, reason)| Body::Gap { class, first, last, reason }),
    ]
}

/// Any message: things `t0` to `t3`, models `m0` to `m2`, so that a catalog knows some of them.
pub(super) fn message() -> impl Strategy<Value = Message> {
    let time = prop_oneof![any::<i64>(), 1_700_000_000_000_000i64..1_700_000_100_000_000];
    (0u32..4, 0u32..3, time, prop_oneof![Just(0i64), any::<i64>()], body()).prop_map(
        |(thing, model, time_us, late, body)| Message {
            thing: Arc::from(format!("t{thing}")),
            model: Arc::from(format!("m{model}")),
            time_us,
            received_us: time_us.wrapping_add(late),
            body,
        },
    )
}
