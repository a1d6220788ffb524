//! Down-sampling: one value for a span of time.

use std::sync::Arc;

use crate::convert::convert;
use crate::message::{Quality, Sample};
use crate::model::Shape;
use crate::value::Value;

/// A span and what is said at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// From the first value in it, microseconds, above 0.
    pub span_us: i64,
    pub take: Aggregate,
    /// The property that gets the result; absent: the property itself, whose single values are then not passed on.
    pub into: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    Min,
    Max,
    Mean,
    Last,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Compiled {
    pub(super) window: Window,
    pub(super) alias: u32,
    pub(super) name: Arc<str>,
    /// `None`: it may hold anything.
    pub(super) shape: Option<Shape>,
    pub(super) replaces: bool,
}

/// An open span.
#[derive(Debug, Default)]
pub(super) struct State {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    since_us: i64,
    /// Source time of the newest value.
    time_us: i64,
    count: u32,
    sum: f64,
    /// Minimum, maximum or last so far.
    pick: Value,
}

impl State {
    /// Takes a value in; gives what the span before it came to, if that is over.
    pub(super) fn take(
        &mut self,
        rule: &Compiled,
        sample: &Sample,
        time_us: i64,
        now_us: i64,
    ) -> Option<(i64, Sample)> {
        let closed = if self.deadline(rule).is_some_and(|at| at <= now_us) { self.close(rule) } else { None };
        let number = sample.value.as_f64().unwrap_or(0.0);
        match &mut self.open {
            None => {
                let pick = sample.value.clone();
                self.open = Some(Open { since_us: now_us, time_us, count: 1, sum: number, pick });
            }
            Some(open) => {
                open.time_us = open.time_us.max(time_us);
                open.count = open.count.saturating_add(1);
                open.sum += number;
                let picked = open.pick.as_f64().unwrap_or(0.0);
                let better = match rule.window.take {
                    Aggregate::Min => number < picked,
                    Aggregate::Max => number > picked,
                    Aggregate::Mean => false,
                    Aggregate::Last => true,
                };
                if better {
                    open.pick = sample.value.clone();
                }
            }
        }
        closed
    }

    /// Ends the span.
    pub(super) fn close(&mut self, rule: &Compiled) -> Option<(i64, Sample)> {
        let open = self.open.take()?;
        let value = match rule.window.take {
            Aggregate::Mean => Value::Float(open.sum / f64::from(open.count)),
            _ => open.pick,
        };
        let (value, quality) = match &rule.shape {
            None => (value, Quality::Good),
            // The mean of whole numbers is none; the property's type decides.
            Some(shape) => {
                let fits = convert(shape, &value);
                let fits = match (&fits.quality, value.as_f64()) {
                    (Quality::WrongType, Some(number)) => convert(shape, &Value::Float(number.round())),
                    _ => fits,
                };
                (fits.value, fits.quality)
            }
        };
        Some((open.time_us, Sample { alias: rule.alias, name: rule.name.clone(), value, quality }))
    }

    pub(super) fn deadline(&self, rule: &Compiled) -> Option<i64> {
        self.open.as_ref().map(|open| open.since_us.saturating_add(rule.window.span_us))
    }
}
