//! The values of equal reports, column by column: integers as differences, floats as scaled integers where that is
//! exact, 4 bytes where that is exact, else 8.

use super::WireError;
use super::generated as pb;
use super::value::{from_value, to_value};
use crate::value::Value;

/// Kinds of column on the wire; `SCALED + s` is a float written as an integer times 10^-s.
const NULL: u32 = 0;
const BOOLEAN: u32 = 1;
const INTEGER: u32 = 2;
const UNSIGNED: u32 = 3;
const F32: u32 = 4;
pub(super) const F64: u32 = 5;
const TEXT: u32 = 6;
const OTHER: u32 = 7;
pub(super) const SCALED: u32 = 16;

/// 10^s, exact in a double (it would be up to 22).
const SCALES: [f64; 10] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Integers up to here are exact in a double.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// What kind of column a value goes in. Two reports share a frame only where these agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Integer,
    Unsigned,
    Float,
    Text,
    Other,
}

impl Kind {
    pub(super) const fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Int(_) => Self::Integer,
            Value::UInt(_) => Self::Unsigned,
            Value::Float(_) => Self::Float,
            Value::Text(_) => Self::Text,
            Value::Bytes(_) | Value::Array(_) | Value::Object(_) => Self::Other,
        }
    }
}

// === writing ===

/// Appends one column of values of one kind to the frame and answers the column's number on the wire.
pub(super) fn write<'a>(kind: Kind, values: impl Iterator<Item = &'a Value> + Clone, rows: &mut pb::Rows) -> u32 {
    match kind {
        Kind::Null => rows.ints.extend(values.map(|_| 0)),
        Kind::Boolean => deltas(values.map(|value| i64::from(*value == Value::Bool(true))), &mut rows.ints),
        Kind::Integer => deltas(values.map(integer), &mut rows.ints),
        Kind::Unsigned => deltas(values.map(integer), &mut rows.ints),
        Kind::Float => return write_floats(values.map(float), rows),
        Kind::Text => rows.text.extend(values.map(|value| value.as_str().unwrap_or_default().to_owned())),
        Kind::Other => rows.other.extend(values.map(to_value)),
    }
    match kind {
        Kind::Null => NULL,
        Kind::Boolean => BOOLEAN,
        Kind::Integer => INTEGER,
        Kind::Unsigned => UNSIGNED,
        Kind::Float => F64,
        Kind::Text => TEXT,
        Kind::Other => OTHER,
    }
}

/// The integer of an integer column; an unsigned one keeps its bits.
const fn integer(value: &Value) -> i64 {
    match value {
        Value::Int(v) => *v,
        Value::UInt(v) => *v as i64,
        _ => 0,
    }
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn deltas(values: impl Iterator<Item = i64>, out: &mut Vec<i64>) {
    let mut before = 0i64;
    for value in values {
        out.push(value.wrapping_sub(before));
        before = value;
    }
}

/// The smallest of the exact ways.
fn write_floats(values: impl Iterator<Item = f64> + Clone, rows: &mut pb::Rows) -> u32 {
    let count = values.clone().count();
    let narrow = values.clone().all(|v| f64::from(v as f32).to_bits() == v.to_bits());
    let plain = count * if narrow { 4 } else { 8 };
    if let Some((scale, integers)) = scaled(values.clone()) {
        let start = rows.ints.len();
        deltas(integers.into_iter(), &mut rows.ints);
        if rows.ints.iter().skip(start).map(|v| varint_len(*v)).sum::<usize>() <= plain {
            return SCALED + scale;
        }
        rows.ints.truncate(start);
    }
    if narrow {
        rows.f32.extend(values.flat_map(|v| (v as f32).to_le_bytes()));
        F32
    } else {
        rows.f64.extend(values.flat_map(f64::to_le_bytes));
        F64
    }
}

/// The values as integers of one decimal scale, if every one comes back bit for bit.
fn scaled(values: impl Iterator<Item = f64> + Clone) -> Option<(u32, Vec<i64>)> {
    (0u32..).zip(SCALES).find_map(|(scale, factor)| {
        let integers: Option<Vec<i64>> = values.clone().map(|v| exact(v, factor)).collect();
        integers.map(|integers| (scale, integers))
    })
}

fn exact(v: f64, factor: f64) -> Option<i64> {
    let integer = (v * factor).round();
    // NaN and infinities fail the first comparison; -0.0, which no integer can be, fails the second.
    let back = integer as i64 as f64 / factor;
    (integer.abs() <= EXACT_MAX && back.to_bits() == v.to_bits()).then_some(integer as i64)
}

/// Bytes of a zigzag varint.
const fn varint_len(v: i64) -> usize {
    let zigzag = ((v << 1) ^ (v >> 63)) as u64;
    (70 - (zigzag | 1).leading_zeros() as usize) / 7
}

// === single values, for rows that lean on a template ===

/// The kind of column that is the smallest for this value alone.
pub(super) fn kind_of(value: &Value) -> u32 {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => BOOLEAN,
        Value::Int(_) => INTEGER,
        Value::UInt(_) => UNSIGNED,
        Value::Float(v) => {
            let narrow = f64::from(*v as f32).to_bits() == v.to_bits();
            let scaled = (0u32..).zip(SCALES).find_map(|(scale, factor)| Some((scale, exact(*v, factor)?)));
            match scaled {
                Some((scale, integer)) if varint_len(integer) <= if narrow { 4 } else { 8 } => SCALED + scale,
                _ if narrow => F32,
                _ => F64,
            }
        }
        Value::Text(_) => TEXT,
        Value::Bytes(_) | Value::Array(_) | Value::Object(_) => OTHER,
    }
}

pub(super) const fn is_float(kind: u32) -> bool {
    matches!(kind, F32 | F64) || kind >= SCALED
}

/// The value as the integer that a column of this kind writes; `None` where it writes none, or the value does not fit.
pub(super) fn integer_of(kind: u32, value: &Value) -> Option<i64> {
    match (kind, value) {
        (NULL, Value::Null) => Some(0),
        (BOOLEAN, Value::Bool(v)) => Some(i64::from(*v)),
        (INTEGER, Value::Int(_)) | (UNSIGNED, Value::UInt(_)) => Some(integer(value)),
        (kind, Value::Float(v)) => exact(*v, scale_of(kind)?),
        _ => None,
    }
}

/// Appends one value as this kind, integers as the difference to `base`. False, and nothing is written, where it does not
/// fit the kind exactly.
pub(super) fn write_one(kind: u32, base: i64, value: &Value, row: &mut pb::Row) -> bool {
    match (kind, value) {
        (F32, Value::Float(v)) if f64::from(*v as f32).to_bits() == v.to_bits() => {
            row.f32.extend((*v as f32).to_le_bytes());
        }
        (F64, Value::Float(v)) => row.f64.extend(v.to_le_bytes()),
        (TEXT, Value::Text(text)) => row.text.push(text.clone()),
        (OTHER, Value::Bytes(_) | Value::Array(_) | Value::Object(_)) => row.other.push(to_value(value)),
        _ => match integer_of(kind, value) {
            Some(integer) => row.ints.push(integer.wrapping_sub(base)),
            None => return false,
        },
    }
    true
}

/// Values of a row, taken front to back.
#[derive(Debug)]
pub(super) struct Cells {
    ints: std::vec::IntoIter<i64>,
    f32: std::vec::IntoIter<u8>,
    f64: std::vec::IntoIter<u8>,
    text: std::vec::IntoIter<String>,
    other: std::vec::IntoIter<pb::Value>,
}

impl Cells {
    pub(super) fn new(row: &mut pb::Row) -> Self {
        Self {
            ints: std::mem::take(&mut row.ints).into_iter(),
            f32: std::mem::take(&mut row.f32).into_iter(),
            f64: std::mem::take(&mut row.f64).into_iter(),
            text: std::mem::take(&mut row.text).into_iter(),
            other: std::mem::take(&mut row.other).into_iter(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let bytes = self.f32.len() + self.f64.len();
        self.ints.len() + bytes + self.text.len() + self.other.len() == 0
    }

    /// The next value, of a column of this kind.
    pub(super) fn next(&mut self, kind: u32, base: i64) -> Result<Value, WireError> {
        let none = || WireError::Shape("fewer values than columns");
        Ok(match kind {
            F32 if self.f32.len() >= 4 => Value::Float(f64::from(f32::from_le_bytes(bytes(&mut self.f32)))),
            F64 if self.f64.len() >= 8 => Value::Float(f64::from_le_bytes(bytes(&mut self.f64))),
            F32 | F64 => return Err(none()),
            TEXT => Value::Text(self.text.next().ok_or_else(none)?),
            OTHER => from_value(Some(self.other.next().ok_or_else(none)?)),
            _ => {
                let integer = self.ints.next().ok_or_else(none)?.wrapping_add(base);
                match (kind, scale_of(kind)) {
                    (NULL, _) => Value::Null,
                    (BOOLEAN, _) => Value::Bool(integer != 0),
                    (INTEGER, _) => Value::Int(integer),
                    (UNSIGNED, _) => Value::UInt(integer as u64),
                    (_, Some(factor)) => Value::Float(integer as f64 / factor),
                    (number, None) => return Err(WireError::Number { what: "column kind", number }),
                }
            }
        })
    }
}

// === reading ===

/// Reads columns off a frame, front to back. `new` has checked that the frame holds exactly what its kinds ask for.
#[derive(Debug)]
pub(super) struct Columns {
    ints: std::vec::IntoIter<i64>,
    f32: std::vec::IntoIter<u8>,
    f64: std::vec::IntoIter<u8>,
    text: std::vec::IntoIter<String>,
    other: std::vec::IntoIter<pb::Value>,
}

impl Columns {
    /// Takes the values out of the frame. An error when there are more or fewer than `kinds` times `count`.
    pub(super) fn new(rows: &mut pb::Rows, kinds: &[u32], count: usize) -> Result<Self, WireError> {
        let (mut ints, mut f32, mut f64, mut text, mut other) = (0usize, 0usize, 0usize, 0usize, 0usize);
        for kind in kinds {
            let cells = match *kind {
                NULL | BOOLEAN | INTEGER | UNSIGNED => &mut ints,
                F32 => &mut f32,
                F64 => &mut f64,
                TEXT => &mut text,
                OTHER => &mut other,
                kind if scale_of(kind).is_some() => &mut ints,
                number => return Err(WireError::Number { what: "column kind", number }),
            };
            *cells = cells.saturating_add(count);
        }
        let fits = ints == rows.ints.len()
            && f32.checked_mul(4) == Some(rows.f32.len())
            && f64.checked_mul(8) == Some(rows.f64.len())
            && text == rows.text.len()
            && other == rows.other.len();
        if !fits {
            return Err(WireError::Shape("values"));
        }
        Ok(Self {
            ints: std::mem::take(&mut rows.ints).into_iter(),
            f32: std::mem::take(&mut rows.f32).into_iter(),
            f64: std::mem::take(&mut rows.f64).into_iter(),
            text: std::mem::take(&mut rows.text).into_iter(),
            other: std::mem::take(&mut rows.other).into_iter(),
        })
    }

    /// The next column, of the kind that `new` was given for it.
    pub(super) fn next(&mut self, kind: u32, count: usize) -> Vec<Value> {
        let mut before = 0i64;
        let mut integers = self.ints.by_ref().map(|delta| {
            before = before.wrapping_add(delta);
            before
        });
        match kind {
            NULL => integers.take(count).map(|_| Value::Null).collect(),
            BOOLEAN => integers.take(count).map(|v| Value::Bool(v != 0)).collect(),
            INTEGER => integers.take(count).map(Value::Int).collect(),
            UNSIGNED => integers.take(count).map(|v| Value::UInt(v as u64)).collect(),
            F32 => (0..count).map(|_| Value::Float(f64::from(f32::from_le_bytes(bytes(&mut self.f32))))).collect(),
            F64 => (0..count).map(|_| Value::Float(f64::from_le_bytes(bytes(&mut self.f64)))).collect(),
            TEXT => self.text.by_ref().take(count).map(Value::Text).collect(),
            OTHER => self.other.by_ref().take(count).map(|value| from_value(Some(value))).collect(),
            scaled => {
                let factor = scale_of(scaled).unwrap_or(1.0);
                integers.by_ref().take(count).map(|v| Value::Float(v as f64 / factor)).collect()
            }
        }
    }
}

fn scale_of(kind: u32) -> Option<f64> {
    SCALES.get(usize::try_from(kind.checked_sub(SCALED)?).ok()?).copied()
}

/// The next N bytes; zeros past the end, which `Columns::new` has ruled out.
fn bytes<const N: usize>(from: &mut std::vec::IntoIter<u8>) -> [u8; N] {
    std::array::from_fn(|_| from.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(values: &[f64]) -> (u32, usize) {
        let values: Vec<Value> = values.iter().map(|v| Value::Float(*v)).collect();
        let mut rows = pb::Rows::default();
        let kind = write(Kind::Float, values.iter(), &mut rows);
        let size = rows.ints.iter().map(|v| varint_len(*v)).sum::<usize>() + rows.f32.len() + rows.f64.len();
        let mut columns = Columns::new(&mut rows, &[kind], values.len()).unwrap();
        let back = columns.next(kind, values.len());
        let bits = |values: &[Value]| values.iter().filter_map(Value::as_f64).map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&values));
        (kind, size)
    }

    #[test]
    fn floats_take_the_smallest_exact_way() {
        assert_eq!(written(&[23.4, 23.5, 23.4]), (SCALED + 1, 2 + 1 + 1));
        assert_eq!(written(&[5.0]), (SCALED, 1));
        assert_eq!(written(&[std::f32::consts::PI.into()]), (F32, 4));
        assert_eq!(written(&[std::f64::consts::PI]), (F64, 8));
        assert_eq!(written(&[-0.0]), (F32, 4));
        assert_eq!(written(&[f64::NAN, 1.0]).1, 8);
        assert_eq!(written(&[f64::MAX]), (F64, 8));
    }

    #[test]
    fn varints_are_counted_as_they_are_written() {
        for (v, len) in [(0, 1), (-1, 1), (63, 1), (64, 2), (-64, 1), (-65, 2), (i64::MAX, 10), (i64::MIN, 10)] {
            assert_eq!(varint_len(v), len, "{v}");
        }
    }
}
