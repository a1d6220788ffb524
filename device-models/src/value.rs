//! One value, as devices send it and as models type it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A value without its unit: the unit belongs to the model.
///
/// Serialized untagged, so that JSON and CBOR look as a device author would write them. Bytes are base64 text in JSON
/// only where a model says so; a protocol that has real byte strings keeps them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    /// Only for numbers above `i64::MAX`; everything smaller is an `Int`.
    UInt(u64),
    Float(f64),
    Text(String),
    Array(Vec<Value>),
    Object(BTreeMap<String, Value>),
    #[serde(skip_deserializing)]
    Bytes(Vec<u8>),
}

impl Value {
    /// The value as a float, if it is a number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(v) => Some(*v as f64),
            Self::UInt(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// The value as a signed integer, if it is one (a float only when it has no fraction).
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(v) => Some(*v),
            Self::Float(v) if v.fract() == 0.0 && v.abs() < 9.0e15 => Some(*v as i64),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(v) => Some(v),
            _ => None,
        }
    }

    /// The kind of value in one word, for error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Int(_) | Self::UInt(_) => "integer",
            Self::Float(_) => "number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
        }
    }
}

// === conversions ===

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(v) => Self::Bool(v),
            serde_json::Value::Number(n) => {
                if let Some(v) = n.as_i64() {
                    Self::Int(v)
                } else if let Some(v) = n.as_u64() {
                    Self::UInt(v)
                } else {
                    Self::Float(n.as_f64().unwrap_or(f64::NAN))
                }
            }
            serde_json::Value::String(v) => Self::Text(v),
            serde_json::Value::Array(v) => Self::Array(v.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(v) => Self::Object(v.into_iter().map(|(k, v)| (k, Self::from(v))).collect()),
        }
    }
}

impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(v) => Self::Bool(*v),
            Value::Int(v) => Self::from(*v),
            Value::UInt(v) => Self::from(*v),
            // JSON has no NaN and no infinity: they become null, which a consumer can tell from a number.
            Value::Float(v) => serde_json::Number::from_f64(*v).map_or(Self::Null, Self::Number),
            Value::Text(v) => Self::String(v.clone()),
            Value::Bytes(v) => Self::Array(v.iter().map(|b| Self::from(*b)).collect()),
            Value::Array(v) => Self::Array(v.iter().map(Self::from).collect()),
            Value::Object(v) => Self::Object(v.iter().map(|(k, v)| (k.clone(), Self::from(v))).collect()),
        }
    }
}
