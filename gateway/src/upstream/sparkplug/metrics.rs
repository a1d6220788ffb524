//! A thing's metrics: names, aliases and data types from its model, and values to and fro (Sparkplug 3.0, clause 6.4.16).
//!
//! An alias is the thing's number on this connection, the kind of metric, and its place in the model: no table is needed, and
//! none is sent twice over the edge node.

use std::sync::Arc;

use device_models::model::{IntType, Kind, Model};
use device_models::{Body, Message, Quality, Sample, Value};
use serde_json::Value as Json;

use super::super::things::Known;
use super::payload::{Datum, Metric, PropertySet, PropertyValue};

/// Data types by number.
pub(super) const INT64: u32 = 4;
pub(super) const DOUBLE: u32 = 10;
pub(super) const BOOLEAN: u32 = 11;
pub(super) const STRING: u32 = 12;
const INT32: u32 = 3;
const UINT64: u32 = 8;
const DATE_TIME: u32 = 13;
const BYTES: u32 = 17;

/// What went wrong with commands, and what they brought.
pub(super) const REPLY: &str = "Device Control/Reply";
pub(super) const EVENTS: &str = "Events/";
pub(super) const ACTIONS: &str = "Actions/";

/// Metrics of one thing that its model does not name: a device that makes up names cannot fill the memory.
const EXTRAS_MAX: usize = 1_000;

const KIND_BITS: u32 = 13;
const THING_BITS: u32 = 16;

/// The kinds of metrics, in an alias between the thing's number and the place.
#[derive(Debug, Clone, Copy)]
enum Sort {
    Property = 0,
    Event = 1,
    Action = 2,
    Extra = 3,
    Reply = 4,
}

/// A device of the edge node.
#[derive(Debug)]
pub(super) struct Device {
    /// From 1, on this connection.
    number: u64,
    model: Option<Arc<Model>>,
    /// Metrics that the model does not name, as they came, with their data types.
    extras: Vec<(Arc<str>, u32)>,
    pub born: bool,
}

/// What a command names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Property(String),
    Action(String),
}

// === impl Device ===

impl Device {
    pub(super) const fn new(number: u64) -> Self {
        Self { number, model: None, extras: Vec::new(), born: false }
    }

    /// With another model, what was known beside the old one is known no more.
    pub(super) fn of(&mut self, model: &Arc<Model>) {
        if self.model.as_ref().is_none_or(|known| !Arc::ptr_eq(known, model)) {
            self.model = Some(Arc::clone(model));
            self.extras.clear();
        }
    }

    const fn alias(&self, sort: Sort, place: usize) -> u64 {
        (self.number << THING_BITS) | ((sort as u64) << KIND_BITS) | place as u64
    }

    /// Takes names in that were not in the last birth; whether there were any.
    pub(super) fn learn(&mut self, message: &Message) -> bool {
        let before = self.extras.len();
        match &message.body {
            Body::Properties(samples) => {
                for sample in samples.iter().filter(|sample| sample.value != Value::Null) {
                    if self.property(sample).is_none() && self.extras.len() < EXTRAS_MAX {
                        self.extras.push((Arc::clone(&sample.name), of_value(&sample.value)));
                    }
                }
            }
            Body::Event { name, .. } if self.event(name).is_none() && before < EXTRAS_MAX => {
                self.extras.push((Arc::from(format!("{EVENTS}{name}")), STRING));
            }
            _ => {}
        }
        self.extras.len() > before
    }

    /// Alias and data type of a sample's metric, if it was in the last birth.
    pub(super) fn property(&self, sample: &Sample) -> Option<(u64, u32)> {
        let known = self.model.as_ref().and_then(|model| model.property_by_alias(sample.alias));
        match known {
            Some(property) => {
                Some((self.alias(Sort::Property, property.alias as usize), of_kind(&property.shape.kind)))
            }
            None => self.extra(&sample.name),
        }
    }

    fn extra(&self, name: &str) -> Option<(u64, u32)> {
        let place = self.extras.iter().position(|(known, _)| &**known == name)?;
        Some((self.alias(Sort::Extra, place), self.extras.get(place)?.1))
    }

    pub(super) fn event(&self, name: &str) -> Option<u64> {
        let place = self.model.as_ref().and_then(|model| model.events().iter().position(|event| &*event.name == name));
        place
            .map(|place| self.alias(Sort::Event, place))
            .or_else(|| self.extra(&format!("{EVENTS}{name}")).map(|(alias, _)| alias))
    }

    pub(super) const fn reply(&self) -> u64 {
        self.alias(Sort::Reply, 0)
    }

    /// Everything a birth has to name, with the present values of `known`.
    pub(super) fn metrics(&self, known: Option<&Known>, now_ms: u64) -> Vec<Metric> {
        let mut metrics = Vec::new();
        let blank = |name: String, alias: u64, datatype: u32| Metric {
            name: Some(name),
            alias: Some(alias),
            datatype: Some(datatype),
            timestamp: Some(now_ms),
            is_null: Some(true),
            ..Metric::default()
        };
        let present = |name: &str, alias: u64, datatype: u32| {
            let metric = blank(name.to_owned(), alias, datatype);
            let Some(latest) = known.and_then(|known| known.latest.get(name)) else { return metric };
            let Some(value) = datum(datatype, &latest.value) else { return metric };
            let (timestamp, properties) = (Some(milliseconds(latest.time_us)), quality(latest.quality));
            Metric { value: Some(value), is_null: None, timestamp, properties, ..metric }
        };
        if let Some(model) = &self.model {
            for property in model.properties() {
                let alias = self.alias(Sort::Property, property.alias as usize);
                let mut metric = present(&property.name, alias, of_kind(&property.shape.kind));
                if let Some(unit) = property.unit() {
                    let unit =
                        PropertyValue { r#type: Some(STRING), text: Some(unit.to_owned()), ..Default::default() };
                    add(&mut metric.properties, "engUnit", unit);
                }
                metrics.push(metric);
            }
            for (place, event) in model.events().iter().enumerate() {
                metrics.push(blank(format!("{EVENTS}{}", event.name), self.alias(Sort::Event, place), STRING));
            }
            for (place, action) in model.actions().iter().enumerate() {
                // Without an input, `true` sets it off.
                let datatype = action.input.as_ref().map_or(BOOLEAN, |input| of_kind(&input.kind));
                metrics.push(blank(format!("{ACTIONS}{}", action.name), self.alias(Sort::Action, place), datatype));
            }
        }
        for (place, (name, datatype)) in self.extras.iter().enumerate() {
            metrics.push(present(name, self.alias(Sort::Extra, place), *datatype));
        }
        metrics.push(blank(REPLY.to_owned(), self.reply(), STRING));
        metrics
    }

    /// What a command's metric names, and the data type it has here.
    pub(super) fn target(&self, metric: &Metric) -> Option<(Target, u32)> {
        let model = self.model.as_deref();
        let (target, datatype) = if let Some(name) = metric.name.as_deref().filter(|name| !name.is_empty()) {
            if let Some(action) = name.strip_prefix(ACTIONS) {
                return Some((Target::Action(action.to_owned()), input(model, action)));
            }
            let known = model.and_then(|model| model.property(name)).map(|property| of_kind(&property.shape.kind));
            (name.to_owned(), known.or_else(|| self.extra(name).map(|(_, datatype)| datatype)))
        } else {
            let alias = metric.alias.filter(|alias| alias >> THING_BITS == self.number)?;
            let place = usize::try_from(alias & ((1 << KIND_BITS) - 1)).ok()?;
            match (alias >> KIND_BITS) & ((1 << (THING_BITS - KIND_BITS)) - 1) {
                0 => {
                    let property = model?.property_by_alias(u32::try_from(place).ok()?)?;
                    (property.name.to_string(), Some(of_kind(&property.shape.kind)))
                }
                2 => {
                    let action = &model?.actions().get(place)?.name;
                    return Some((Target::Action(action.to_string()), input(model, action)));
                }
                3 => self.extras.get(place).map(|(name, datatype)| (name.to_string(), Some(*datatype)))?,
                _ => return None,
            }
        };
        Some((Target::Property(target), datatype.or(metric.datatype).unwrap_or_default()))
    }
}

fn input(model: Option<&Model>, action: &str) -> u32 {
    let shape = model.and_then(|model| model.action(action)).and_then(|action| action.input.as_ref());
    shape.map_or(BOOLEAN, |input| of_kind(&input.kind))
}

// === values ===

fn of_kind(kind: &Kind) -> u32 {
    match kind {
        Kind::Enum(choices) if choices.iter().all(|choice| matches!(choice.value, Value::Int(_))) => INT64,
        Kind::Bool => BOOLEAN,
        Kind::Int(IntType::I8) => 1,
        Kind::Int(IntType::I16) => 2,
        Kind::Int(IntType::I32) => INT32,
        Kind::Int(IntType::I64) => INT64,
        Kind::Int(IntType::U8) => 5,
        Kind::Int(IntType::U16) => 6,
        Kind::Int(IntType::U32) => 7,
        Kind::Int(IntType::U64) => UINT64,
        Kind::F32 => 9,
        Kind::F64 => DOUBLE,
        Kind::TimeMs => DATE_TIME,
        Kind::Bytes => BYTES,
        Kind::Text | Kind::Enum(_) | Kind::Object(_) | Kind::Array(_) => STRING,
    }
}

/// For what no model names. All numbers alike: the next one may have a fraction.
const fn of_value(value: &Value) -> u32 {
    match value {
        Value::Bool(_) => BOOLEAN,
        Value::Int(_) | Value::UInt(_) | Value::Float(_) => DOUBLE,
        Value::Bytes(_) => BYTES,
        Value::Null | Value::Text(_) | Value::Array(_) | Value::Object(_) => STRING,
    }
}

/// The value as this data type has it; `None` when it is not one of its values. What Sparkplug has no simple type for goes as JSON text.
pub(super) fn datum(datatype: u32, value: &Value) -> Option<Datum> {
    let whole = || match value {
        Value::UInt(value) => Some(i128::from(*value)),
        value => value.as_i64().map(i128::from),
    };
    Some(match (datatype, value) {
        (_, Value::Null) => return None,
        // Two's complement in the width of the type.
        (1, _) => Datum::Int(i8::try_from(whole()?).ok()?.cast_unsigned().into()),
        (2, _) => Datum::Int(i16::try_from(whole()?).ok()?.cast_unsigned().into()),
        (INT32, _) => Datum::Int(i32::try_from(whole()?).ok()?.cast_unsigned()),
        (INT64, _) => Datum::Long(i64::try_from(whole()?).ok()?.cast_unsigned()),
        (5, _) => Datum::Int(u8::try_from(whole()?).ok()?.into()),
        (6, _) => Datum::Int(u16::try_from(whole()?).ok()?.into()),
        (7, _) => Datum::Int(u32::try_from(whole()?).ok()?),
        (UINT64 | DATE_TIME, _) => Datum::Long(u64::try_from(whole()?).ok()?),
        (9, _) => Datum::Float(value.as_f64()? as f32),
        (DOUBLE, _) => Datum::Double(value.as_f64()?),
        (BOOLEAN, Value::Bool(value)) => Datum::Boolean(*value),
        (BYTES, Value::Bytes(value)) => Datum::Bytes(value.clone()),
        (STRING, Value::Text(value)) => Datum::Text(value.clone()),
        (STRING, value) => Datum::Text(Json::from(value).to_string()),
        _ => return None,
    })
}

/// What a command says. Text for what is no text here is JSON.
pub(super) fn value(datatype: u32, datum: Option<&Datum>, is_text: bool) -> Value {
    match datum {
        None => Value::Null,
        Some(Datum::Int(value)) => Value::Int(match datatype {
            1 => i64::from((*value as u8).cast_signed()),
            2 => i64::from((*value as u16).cast_signed()),
            INT32 => i64::from(value.cast_signed()),
            _ => i64::from(*value),
        }),
        Some(Datum::Long(value)) if datatype == INT64 => Value::Int(value.cast_signed()),
        Some(Datum::Long(value)) => i64::try_from(*value).map_or(Value::UInt(*value), Value::Int),
        // The shortest text that is this number, not the digits that doubling it would add.
        Some(Datum::Float(value)) => Value::Float(value.to_string().parse().unwrap_or_else(|_| f64::from(*value))),
        Some(Datum::Double(value)) => Value::Float(*value),
        Some(Datum::Boolean(value)) => Value::Bool(*value),
        Some(Datum::Bytes(value)) => Value::Bytes(value.clone()),
        Some(Datum::Text(text)) if is_text => Value::Text(text.clone()),
        Some(Datum::Text(text)) => {
            serde_json::from_str::<Json>(text).map_or_else(|_| Value::Text(text.clone()), Value::from)
        }
    }
}

impl Device {
    /// Whether a property's texts are texts, not JSON.
    pub(super) fn is_text(&self, name: &str) -> bool {
        let property = self.model.as_ref().and_then(|model| model.property(name));
        property.is_none_or(|property| !matches!(property.shape.kind, Kind::Object(_) | Kind::Array(_)))
    }
}

pub(super) fn milliseconds(time_us: i64) -> u64 {
    u64::try_from(time_us.div_euclid(1000)).unwrap_or_default()
}

/// `Quality` of clause 6.4.17: 0 is bad, and absent is good. A value whose time is the gateway's is a good one.
pub(super) fn quality(quality: Quality) -> Option<PropertySet> {
    let mut properties = None;
    if !matches!(quality, Quality::Good | Quality::WrongTime) {
        let bad = PropertyValue { r#type: Some(INT32), int: Some(0), ..PropertyValue::default() };
        add(&mut properties, "Quality", bad);
    }
    properties
}

fn add(properties: &mut Option<PropertySet>, key: &str, value: PropertyValue) {
    let properties = properties.get_or_insert_default();
    properties.keys.push(key.to_owned());
    properties.values.push(value);
}
