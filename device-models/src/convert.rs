//! A value made to fit a shape, without loss or not at all.
//!
//! What devices really do is understood: `21` for a float, `"21.5"` for a number, `0`, `"on"` or `"TRUE"` for a boolean,
//! `12345` for a text, base64 or an array of numbers for bytes. What would lose something (21.5 for an integer, NaN,
//! null) is left as it was and called [`Quality::WrongType`]; what fits the type but not the range is converted and called
//! [`Quality::OutOfRange`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::message::Quality;
use crate::model::{Choice, Field, Kind, Range, Shape};
use crate::value::Value;

/// Whole numbers up to this are exact in an `f64`.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// The value to deliver, and how far it can be trusted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Converted {
    pub(crate) value: Value,
    pub(crate) quality: Quality,
}

/// Holds a value against a shape.
pub(crate) fn convert(shape: &Shape, value: &Value) -> Converted {
    let converted = match &shape.kind {
        Kind::Bool => boolean(value).map(|v| good(Value::Bool(v))),
        Kind::Int(_) | Kind::TimeMs => whole(value).map(|v| ranged(shape, integer(v), v as f64)),
        Kind::F32 | Kind::F64 => float(value).map(|v| ranged(shape, Value::Float(v), v)),
        Kind::Text => text(value).map(|v| measured(shape, v.chars().count(), Value::Text(v))),
        Kind::Bytes => bytes(value).map(|v| measured(shape, v.len(), Value::Bytes(v))),
        Kind::Enum(choices) => enumerated(choices, value),
        Kind::Object(fields) => object(fields, value),
        Kind::Array(item) => array(shape, item, value),
    };
    converted.unwrap_or_else(|| Converted { value: value.clone(), quality: Quality::WrongType })
}

/// A number the way devices write it: whole numbers without a fraction.
pub(crate) fn shortest(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() <= EXACT_MAX { Value::Int(number as i64) } else { Value::Float(number) }
}

/// The worse of two.
pub(crate) fn worse(a: Quality, b: Quality) -> Quality {
    let rank = |quality| match quality {
        Quality::Good => 0,
        Quality::WrongTime => 1,
        Quality::OutOfRange => 2,
        Quality::UnknownProperty => 3,
        Quality::WrongType => 4,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn good(value: Value) -> Converted {
    Converted { value, quality: Quality::Good }
}

fn ranged(shape: &Shape, value: Value, number: f64) -> Converted {
    let inside = match (shape.range, &value) {
        (Range::Int { min, max }, Value::Int(v)) => (min..=max).contains(&i128::from(*v)),
        (Range::Int { min, max }, Value::UInt(v)) => (min..=max).contains(&i128::from(*v)),
        (Range::Float { min, max }, _) => (min..=max).contains(&number),
        _ => true,
    };
    Converted { value, quality: if inside { Quality::Good } else { Quality::OutOfRange } }
}

fn measured(shape: &Shape, length: usize, value: Value) -> Converted {
    let inside = match shape.range {
        Range::Length { min, max } => (min as usize..=max as usize).contains(&length),
        _ => true,
    };
    Converted { value, quality: if inside { Quality::Good } else { Quality::OutOfRange } }
}

// === scalars ===

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(v) => Some(*v),
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        Value::Float(v) if *v == 0.0 => Some(false),
        Value::Float(v) if (*v - 1.0).abs() < f64::EPSILON => Some(true),
        Value::Text(text) => {
            let is = |words: [&str; 3]| words.iter().any(|word| text.trim().eq_ignore_ascii_case(word));
            if is(["true", "on", "1"]) {
                Some(true)
            } else if is(["false", "off", "0"]) {
                Some(false)
            } else {
                None
            }
        }
        _ => None,
    }
}

/// A whole number, if the value is one without loss.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Int(v) => Some(i128::from(*v)),
        Value::UInt(v) => Some(i128::from(*v)),
        Value::Float(v) if v.fract() == 0.0 && v.abs() <= EXACT_MAX => Some(*v as i128),
        Value::Text(text) => {
            let text = text.trim();
            let parsed = text.parse::<i64>().map(i128::from).or_else(|_| text.parse::<u64>().map(i128::from));
            parsed.ok().or_else(|| whole(&Value::Float(text.parse().ok()?)))
        }
        _ => None,
    }
}

fn integer(v: i128) -> Value {
    i64::try_from(v).map(Value::Int).or_else(|_| u64::try_from(v).map(Value::UInt)).unwrap_or_default()
}

pub(crate) fn float(value: &Value) -> Option<f64> {
    let exact = |whole: i128| Some(whole as f64).filter(|v| *v as i128 == whole);
    match value {
        Value::Float(v) => Some(*v),
        Value::Int(v) => exact(i128::from(*v)),
        Value::UInt(v) => exact(i128::from(*v)),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|v| v.is_finite())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(v) => Some(v.to_string()),
        Value::UInt(v) => Some(v.to_string()),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::Text(text) => STANDARD.decode(text).ok(),
        Value::Array(items) => {
            let byte = |item: &Value| u8::try_from(item.as_i64()?).ok();
            items.iter().map(byte).collect()
        }
        _ => None,
    }
}

fn enumerated(choices: &[Choice], value: &Value) -> Option<Converted> {
    let value = match (choices.first().map(|choice| &choice.value), value) {
        (Some(Value::Int(_)), value) => integer(whole(value)?),
        (_, value) => Value::Text(text(value)?),
    };
    let listed = choices.iter().any(|choice| choice.value == value);
    Some(Converted { value, quality: if listed { Quality::Good } else { Quality::OutOfRange } })
}

// === composites: as deep as the shape is, which the model limits ===

fn object(fields: &[Field], value: &Value) -> Option<Converted> {
    let Value::Object(sent) = value else { return None };
    let mut quality = Quality::Good;
    let mut members = BTreeMap::new();
    for (name, value) in sent {
        let converted = match fields.iter().find(|field| *field.name == **name) {
            Some(field) => convert(&field.shape, value),
            None => Converted { value: value.clone(), quality: Quality::UnknownProperty },
        };
        quality = worse(quality, converted.quality);
        members.insert(name.clone(), converted.value);
    }
    let missing = fields.iter().any(|field| field.required && !sent.contains_key(&*field.name));
    // One wrong member makes the whole wrong, and what is wrong stays as sent.
    (!missing && quality != Quality::WrongType).then_some(Converted { value: Value::Object(members), quality })
}

fn array(shape: &Shape, item: &Shape, value: &Value) -> Option<Converted> {
    let Value::Array(sent) = value else { return None };
    let mut worst = Quality::Good;
    let mut items = Vec::with_capacity(sent.len());
    for value in sent {
        let converted = convert(item, value);
        worst = worse(worst, converted.quality);
        items.push(converted.value);
    }
    let Converted { value, quality } = measured(shape, items.len(), Value::Array(items));
    (worst != Quality::WrongType).then_some(Converted { value, quality: worse(worst, quality) })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::IntType;

    fn is(kind: &Kind, value: Value) -> (Value, Quality) {
        let Converted { value, quality } = convert(&Shape::of(kind.clone()), &value);
        (value, quality)
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn conversions_without_loss() {
        let i32 = Kind::Int(IntType::I32);
        let table: &[(&Kind, Value, Value)] = &[
            (&Kind::F64, Value::Int(21), Value::Float(21.0)),
            (&Kind::F64, text("21.5"), Value::Float(21.5)),
            (&Kind::F64, text(" -2e3 "), Value::Float(-2000.0)),
            (&Kind::F32, Value::Float(21.3), Value::Float(21.3)),
            (&i32, Value::Float(21.0), Value::Int(21)),
            (&i32, text("21"), Value::Int(21)),
            (&i32, text("21.0"), Value::Int(21)),
            (&Kind::Int(IntType::U64), Value::UInt(u64::MAX), Value::UInt(u64::MAX)),
            (&Kind::Int(IntType::U64), text("18446744073709551615"), Value::UInt(u64::MAX)),
            (&Kind::Bool, Value::Int(1), Value::Bool(true)),
            (&Kind::Bool, Value::Float(0.0), Value::Bool(false)),
            (&Kind::Bool, text("ON"), Value::Bool(true)),
            (&Kind::Bool, text("off"), Value::Bool(false)),
            (&Kind::Bool, text("True"), Value::Bool(true)),
            (&Kind::Text, Value::Int(-5), text("-5")),
            (&Kind::Bytes, text("AQID"), Value::Bytes(vec![1, 2, 3])),
            (&Kind::Bytes, Value::Array(vec![Value::Int(0), Value::Int(255)]), Value::Bytes(vec![0, 255])),
            (&Kind::TimeMs, Value::Int(1_700_000_000_000), Value::Int(1_700_000_000_000)),
        ];
        for (kind, sent, wanted) in table {
            assert_eq!(is(kind, sent.clone()), (wanted.clone(), Quality::Good), "{kind:?} from {sent:?}");
        }
    }

    #[test]
    fn what_would_lose_something_stays_as_sent() {
        let i64 = Kind::Int(IntType::I64);
        let table: &[(&Kind, Value)] = &[
            (&i64, Value::Float(21.5)),
            (&i64, Value::Bool(true)),
            (&i64, text("21 C")),
            (&i64, text("")),
            (&i64, Value::Float(1e300)),
            (&Kind::F64, text("NaN")),
            (&Kind::F64, text("inf")),
            (&Kind::F64, Value::Int(i64::MAX)),
            (&Kind::F64, Value::Null),
            (&Kind::F64, Value::Float(f64::INFINITY)),
            (&Kind::Bool, Value::Int(2)),
            (&Kind::Bool, text("yes?")),
            (&Kind::Text, Value::Float(1.5)),
            (&Kind::Bytes, text("not base64!")),
            (&Kind::Bytes, Value::Array(vec![Value::Int(256)])),
            (&Kind::Array(Box::new(Shape::of(Kind::F64))), Value::Int(1)),
            (&Kind::Object([].into()), Value::Array(Vec::new())),
        ];
        for (kind, sent) in table {
            assert_eq!(is(kind, sent.clone()), (sent.clone(), Quality::WrongType), "{kind:?} from {sent:?}");
        }
        assert_eq!(is(&Kind::F64, Value::Float(f64::NAN)).1, Quality::WrongType);
    }

    #[test]
    fn a_type_too_small_is_out_of_range() {
        assert_eq!(is(&Kind::Int(IntType::U8), Value::Int(256)), (Value::Int(256), Quality::OutOfRange));
        assert_eq!(is(&Kind::Int(IntType::U8), Value::Int(-1)), (Value::Int(-1), Quality::OutOfRange));
        assert_eq!(is(&Kind::Int(IntType::I64), Value::UInt(u64::MAX)).1, Quality::OutOfRange);
        assert_eq!(is(&Kind::F32, Value::Float(1e39)).1, Quality::OutOfRange);
    }

    #[test]
    fn objects_are_as_bad_as_their_worst_member() {
        let field = |name: &str, required| Field { name: name.into(), required, shape: Shape::of(Kind::F64) };
        let point = Kind::Object([field("x", true), field("y", false)].into());
        let sent = |members: &[(&str, Value)]| {
            Value::Object(members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        assert_eq!(is(&point, sent(&[("x", text("1"))])), (sent(&[("x", Value::Float(1.0))]), Quality::Good));
        assert_eq!(is(&point, sent(&[("y", Value::Int(1))])).1, Quality::WrongType, "x is required");
        let extra = is(&point, sent(&[("x", Value::Int(1)), ("z", Value::Int(2))]));
        assert_eq!(extra.1, Quality::UnknownProperty);
        assert_eq!(extra.0, sent(&[("x", Value::Float(1.0)), ("z", Value::Int(2))]), "nothing is dropped");
    }

    #[test]
    fn enumerations_take_their_values_only() {
        let choice = |value: Value| Choice { value, title: "".into() };
        let mode = Kind::Enum([choice(Value::Int(0)), choice(Value::Int(3))].into());
        assert_eq!(is(&mode, text("3")), (Value::Int(3), Quality::Good));
        assert_eq!(is(&mode, Value::Int(1)), (Value::Int(1), Quality::OutOfRange));
        assert_eq!(is(&mode, text("heat")), (text("heat"), Quality::WrongType));
    }

    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (i64::MAX as u64 + 1..=u64::MAX).prop_map(Value::UInt),
            any::<f64>().prop_map(Value::Float),
            Just(Value::Float(f64::NAN)),
            "[-+0-9a-z.]{0,8}|\\PC{0,8}".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..8).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map("[a-c]", inner, 0..4).prop_map(Value::Object),
            ]
        })
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        let leaf = prop_oneof![
            Just(Kind::Bool),
            (0..8_usize).prop_map(|n| Kind::Int(IntType::ALL[n])),
            Just(Kind::F32),
            Just(Kind::F64),
            Just(Kind::Text),
            Just(Kind::Bytes),
            Just(Kind::TimeMs),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let field = (any::<bool>(), inner.clone()).prop_map(|(required, kind)| Field {
                name: "a".into(),
                required,
                shape: Shape::of(kind),
            });
            prop_oneof![
                inner.prop_map(|kind| Kind::Array(Box::new(Shape::of(kind)))),
                proptest::collection::vec(field, 0..2).prop_map(|fields| Kind::Object(fields.into())),
            ]
        })
    }

    proptest! {
        /// Converting twice is converting once; a wrong type is untouched; nothing panics.
        #[test]
        fn conversion_is_stable(kind in any_kind(), value in any_value()) {
            let shape = Shape::of(kind);
            let once = convert(&shape, &value);
            let twice = convert(&shape, &once.value);
            if once.quality == Quality::WrongType {
                prop_assert_eq!(format!("{:?}", once.value), format!("{value:?}"));
            }
            prop_assert_eq!(format!("{once:?}"), format!("{twice:?}"));
        }
    }
}
