//! What a value may look like: exact type, range, length, unit.

use std::fmt;

use crate::value::Value;

/// The compiled data schema of a property, an input, an output or an event's data.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub kind: Kind,
    pub range: Range,
    /// UCUM code; free text where UCUM has none.
    pub unit: Option<Box<str>>,
    /// `multipleOf`: the resolution. Writes are held against it, reports are not.
    pub step: Option<f64>,
    /// Decimals that `step` needs (`0.1` has 1), when it is a decimal fraction of at most 9: a value times 10^decimals
    /// is then a whole number, which is how it travels small.
    pub decimals: Option<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Bool,
    Int(IntType),
    F32,
    F64,
    Text,
    Bytes,
    /// Milliseconds since 1970 UTC, an integer.
    TimeMs,
    /// One of these, and nothing else.
    Enum(Box<[Choice]>),
    Object(Box<[Field]>),
    Array(Box<Shape>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntType {
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

/// What is inside; what is outside is delivered as out of range, and refused when written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    Open,
    /// Both ends inside. Wide enough for every `i64` and `u64`.
    Int {
        min: i128,
        max: i128,
    },
    /// Both ends inside (an excluded end is the next float); infinite where there is none.
    Float {
        min: f64,
        max: f64,
    },
    /// Characters of a text, bytes of a byte string, items of an array.
    Length {
        min: u32,
        max: u32,
    },
}

/// One value of an enumeration: a whole number or a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub value: Value,
    pub title: Box<str>,
}

/// One member of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: Box<str>,
    pub required: bool,
    pub shape: Shape,
}

/// value = raw × scale + offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    scale: f64,
    offset: f64,
    /// 1 / scale where that is a whole number: 3 / 10 is 0.3, but 3 × 0.1 is 0.30000000000000004.
    divisor: Option<f64>,
}

// === impl Shape ===

impl Shape {
    /// A shape of this kind without limits beyond the kind's own.
    pub fn of(kind: Kind) -> Self {
        let range = kind.range();
        Self { kind, range, unit: None, step: None, decimals: None }
    }

    pub fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Int(_) | Kind::F32 | Kind::F64 | Kind::TimeMs)
    }
}

/// What is wanted, for error texts: `a number from -40 to 125 Cel`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match self.range {
            Range::Open => {}
            Range::Int { min, max } => write!(f, " from {min} to {max}")?,
            Range::Float { min, max } => match (min.is_finite(), max.is_finite()) {
                (true, true) => write!(f, " from {min} to {max}")?,
                (true, false) => write!(f, " from {min} up")?,
                (false, true) => write!(f, " up to {max}")?,
                (false, false) => {}
            },
            Range::Length { min: 0, max: u32::MAX } => {}
            Range::Length { min, max } => write!(f, " of length {min} to {max}")?,
        }
        if let Some(step) = self.step {
            write!(f, " in steps of {step}")?;
        }
        if let Some(unit) = &self.unit {
            write!(f, " {unit}")?;
        }
        Ok(())
    }
}

// === impl Kind ===

impl Kind {
    /// The name `sg:dataType` has for it.
    pub const fn data_type(&self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int(int) => int.name(),
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::TimeMs => "time-ms",
            Self::Enum(_) => "enum",
            Self::Object(_) => "object",
            Self::Array(_) => "array",
        }
    }

    /// WoT's `type`: boolean, integer, number, string, object, array.
    pub fn json_type(&self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int(_) | Self::TimeMs => "integer",
            Self::F32 | Self::F64 => "number",
            Self::Text | Self::Bytes => "string",
            Self::Enum(choices) if matches!(choices.first(), Some(Choice { value: Value::Int(_), .. })) => "integer",
            Self::Enum(_) => "string",
            Self::Object(_) => "object",
            Self::Array(_) => "array",
        }
    }

    /// What the type alone can hold.
    pub(super) fn range(&self) -> Range {
        match self {
            Self::Int(int) => {
                let (min, max) = int.limits();
                Range::Int { min, max }
            }
            Self::TimeMs => Range::Int { min: i128::from(i64::MIN), max: i128::from(i64::MAX) },
            Self::F32 => Range::Float { min: f64::from(f32::MIN), max: f64::from(f32::MAX) },
            Self::F64 => Range::Float { min: f64::NEG_INFINITY, max: f64::INFINITY },
            Self::Text | Self::Bytes | Self::Array(_) => Range::Length { min: 0, max: u32::MAX },
            Self::Bool | Self::Enum(_) | Self::Object(_) => Range::Open,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "a boolean",
            Self::Int(_) => "a whole number",
            Self::F32 | Self::F64 => "a number",
            Self::Text => "a text",
            Self::Bytes => "bytes",
            Self::TimeMs => "a time in milliseconds since 1970",
            Self::Object(_) => "an object",
            Self::Array(_) => "an array",
            Self::Enum(choices) => {
                f.write_str("one of ")?;
                for (index, choice) in choices.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    match &choice.value {
                        Value::Text(text) => write!(f, "\"{text}\"")?,
                        other => write!(f, "{}", serde_json::Value::from(other))?,
                    }
                }
                return Ok(());
            }
        })
    }
}

// === impl IntType ===

impl IntType {
    pub const ALL: [Self; 8] = [Self::I8, Self::I16, Self::I32, Self::I64, Self::U8, Self::U16, Self::U32, Self::U64];

    pub const fn name(self) -> &'static str {
        match self {
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
        }
    }

    /// Smallest and largest value.
    pub const fn limits(self) -> (i128, i128) {
        match self {
            Self::I8 => (i8::MIN as i128, i8::MAX as i128),
            Self::I16 => (i16::MIN as i128, i16::MAX as i128),
            Self::I32 => (i32::MIN as i128, i32::MAX as i128),
            Self::I64 => (i64::MIN as i128, i64::MAX as i128),
            Self::U8 => (0, u8::MAX as i128),
            Self::U16 => (0, u16::MAX as i128),
            Self::U32 => (0, u32::MAX as i128),
            Self::U64 => (0, u64::MAX as i128),
        }
    }
}

// === impl Linear ===

impl Linear {
    /// `None` when the scale cannot be undone (zero) or a number is not finite.
    pub fn new(scale: f64, offset: f64) -> Option<Self> {
        if !scale.is_finite() || !offset.is_finite() || !scale.is_normal() {
            return None;
        }
        let inverse = scale.recip();
        let whole = inverse.round();
        let divisor = (whole.abs() > 1.0 && (inverse - whole).abs() <= whole.abs() * 1e-12).then_some(whole);
        Some(Self { scale, offset, divisor })
    }

    pub const fn scale(&self) -> f64 {
        self.scale
    }

    pub const fn offset(&self) -> f64 {
        self.offset
    }

    pub fn value(&self, raw: f64) -> f64 {
        self.divisor.map_or(raw * self.scale, |divisor| raw / divisor) + self.offset
    }

    /// The raw number for a value. A result within rounding of a whole number is that number: registers hold those.
    pub fn raw(&self, value: f64) -> f64 {
        let moved = value - self.offset;
        let raw = self.divisor.map_or(moved / self.scale, |divisor| moved * divisor);
        let whole = raw.round();
        if (raw - whole).abs() <= whole.abs().max(1.0) * 1e-9 { whole } else { raw }
    }
}
