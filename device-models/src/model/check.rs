//! Orders held against a model before they go to a device: strict, where reports are merely marked.

use std::sync::Arc;

use super::{AFFORDANCES_MAX, Kind, Mismatch, Model, Property, Shape};
use crate::command::Order;
use crate::convert::{self, Converted};
use crate::message::Quality;
use crate::value::Value;

/// Bytes of a peer's own text that an error quotes.
const QUOTE_MAX: usize = 64;

impl Model {
    /// An order as the device will get it: its own spellings, raw numbers. Refused when the model does not allow it.
    pub fn check(&self, order: &Order) -> Result<Order, Mismatch> {
        match order {
            Order::Write(values) => self.check_write(values).map(Order::Write),
            Order::Read(names) => self.check_read(names).map(Order::Read),
            Order::Invoke { action, input } => {
                self.check_invoke(action, input).map(|(action, input)| Order::Invoke { action, input })
            }
        }
    }

    /// Values to write, by property name or spelling. Each must be writable, of its type, in range and on a step; the
    /// result has the device's spelling and its raw number.
    pub fn check_write(&self, values: &[(String, Value)]) -> Result<Vec<(String, Value)>, Mismatch> {
        self.check_count(values.len())?;
        let mut seen = Vec::with_capacity(values.len());
        let mut checked = Vec::with_capacity(values.len());
        for (name, value) in values {
            let Some(property) = self.property(name) else {
                checked.push((self.unlisted("property", name)?, value.clone()));
                continue;
            };
            if !property.access.writable() {
                return Err(Mismatch::ReadOnly { model: self.name().clone(), name: property.name.clone() });
            }
            if seen.contains(&property.alias) {
                return Err(Mismatch::Twice { model: self.name().clone(), name: property.name.clone() });
            }
            seen.push(property.alias);
            let value = self.fit(&property.shape, value, &format!("property `{}`", property.name))?;
            checked.push((property.spelling().to_owned(), raw(property, value)));
        }
        Ok(checked)
    }

    /// Values a thing is to have some day, by property name or spelling: held to the same as
    /// [`check_write`](Self::check_write), but the result has the model's names and values, not the device's.
    pub fn check_desired(&self, values: &[(String, Value)]) -> Result<Vec<(Arc<str>, Value)>, Mismatch> {
        self.check_write(values)?;
        let desired = |(name, value): &(String, Value)| match self.property(name) {
            None => Ok((Arc::from(name.as_str()), value.clone())),
            Some(property) => {
                let value = self.fit(&property.shape, value, &format!("property `{}`", property.name))?;
                Ok((Arc::clone(&property.name), value))
            }
        };
        values.iter().map(desired).collect()
    }

    /// Names of properties to read; the result has the device's spellings.
    pub fn check_read(&self, names: &[String]) -> Result<Vec<String>, Mismatch> {
        self.check_count(names.len())?;
        let read = |name: &String| match self.property(name) {
            None => self.unlisted("property", name),
            Some(property) if !property.access.readable() => {
                Err(Mismatch::WriteOnly { model: self.name().clone(), name: property.name.clone() })
            }
            Some(property) => Ok(property.spelling().to_owned()),
        };
        names.iter().map(read).collect()
    }

    /// An action and its input; the result has the device's spelling. Null stands for an input without any member.
    pub fn check_invoke(&self, action: &str, input: &Value) -> Result<(String, Value), Mismatch> {
        let Some(known) = self.action(action) else {
            return Ok((self.unlisted("action", action)?, input.clone()));
        };
        let spelling = known.spellings.first().map_or(&*known.name, |s| s).to_owned();
        let at = format!("the input of action `{}`", known.name);
        let empty = Value::Object(std::collections::BTreeMap::new());
        let input = match (&known.input, input) {
            (None, Value::Null) => Value::Null,
            (None, Value::Object(members)) if members.is_empty() => Value::Null,
            (None, other) => {
                return Err(self.wrong_type(at, "nothing".to_owned(), other));
            }
            (Some(shape), Value::Null) if matches!(shape.kind, Kind::Object(_)) => self.fit(shape, &empty, &at)?,
            (Some(shape), input) => self.fit(shape, input, &at)?,
        };
        Ok((spelling, input))
    }

    /// The name back if the model is open to names it does not list.
    fn unlisted(&self, what: &'static str, name: &str) -> Result<String, Mismatch> {
        if self.is_open() {
            return Ok(name.to_owned());
        }
        let known: Vec<&str> = if what == "action" {
            self.actions().iter().map(|action| &*action.name).collect()
        } else {
            self.properties().iter().map(|property| &*property.name).collect()
        };
        let known = quote(&known.join(", "), QUOTE_MAX * 8);
        Err(Mismatch::Unknown { model: self.name().clone(), what, name: quote(name, QUOTE_MAX), known })
    }

    fn check_count(&self, found: usize) -> Result<(), Mismatch> {
        let model = || self.name().clone();
        match found {
            0 => Err(Mismatch::Empty { model: model() }),
            1..=AFFORDANCES_MAX => Ok(()),
            _ => Err(Mismatch::TooMany { model: model(), found, max: AFFORDANCES_MAX }),
        }
    }

    fn fit(&self, shape: &Shape, value: &Value, at: &str) -> Result<Value, Mismatch> {
        let Converted { value: fitted, quality } = convert::convert(shape, value);
        match quality {
            Quality::Good if on_step(shape, &fitted) => Ok(fitted),
            Quality::Good | Quality::OutOfRange => Err(Mismatch::OutOfRange {
                model: self.name().clone(),
                at: at.to_owned(),
                wanted: shape.to_string(),
                found: quote(&serde_json::Value::from(value).to_string(), QUOTE_MAX),
            }),
            _ => Err(self.wrong_type(at.to_owned(), shape.to_string(), value)),
        }
    }

    fn wrong_type(&self, at: String, wanted: String, value: &Value) -> Mismatch {
        let text = quote(&serde_json::Value::from(value).to_string(), QUOTE_MAX);
        Mismatch::WrongType { model: Arc::clone(self.name()), at, wanted, found: format!("{} {text}", value.kind()) }
    }
}

/// The number the device holds for this value.
fn raw(property: &Property, value: Value) -> Value {
    let (Some(linear), Some(number)) = (&property.linear, value.as_f64()) else { return value };
    convert::shortest(linear.raw(number))
}

fn on_step(shape: &Shape, value: &Value) -> bool {
    let (Some(step), Some(number)) = (shape.step, value.as_f64()) else { return true };
    let steps = number / step;
    (steps - steps.round()).abs() <= steps.abs().max(1.0) * 1e-9
}

/// At most `max` bytes of a text that a peer chose.
fn quote(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}
