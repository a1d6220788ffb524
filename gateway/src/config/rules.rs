//! `[[rule]]` and `[[alarm]]`: what is asked of values on their way to the bus, for whom, beyond what the models say.

use device_models::edge::{self, Aggregate, Condition, Deadband, Exception, Part, Window};
use device_models::model::Models;
use device_models::{Level, Value};
use serde::Deserialize;

use super::Config;
use crate::edge::{Edge, Scope};

/// Longest interval, window or delay: a year, seconds. More is a slip of the pen.
const SECONDS_MAX: f64 = 366.0 * 86_400.0;

/// How a property is passed on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whose: ids of things, with `*` at the end for all that begin so. Empty: every thing of the product.
    #[serde(default)]
    pub things: Vec<String>,
    /// The model.
    pub product: String,
    /// By name or any spelling of the model.
    pub property: String,
    /// `by-exception`, `window`, or `everything` (whatever the model says).
    #[serde(default)]
    pub report: Reporting,
    /// By exception: a change of at least this much goes on, in the property's unit. Without it and without
    /// `deadband_percent`: the model's `sg:deadband`, or any change.
    pub deadband: Option<f64>,
    /// … or of at least this share of the last value that went on, percent.
    pub deadband_percent: Option<f64>,
    /// Not sooner after the last one, seconds; the newest value follows when the time is over.
    #[serde(default)]
    pub interval_min_seconds: f64,
    /// A value that comes this long after the last one goes on in any case, seconds. 0: not for that alone.
    #[serde(default)]
    pub interval_max_seconds: f64,
    /// Down-sampling: one value for so many seconds.
    #[serde(default)]
    pub window_seconds: f64,
    /// Which one: `min`, `max`, `mean`, `last`.
    #[serde(default)]
    pub take: Take,
    /// The property that gets it; absent: the property itself, whose single values then do not go on.
    pub into: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reporting {
    #[default]
    ByException,
    Window,
    Everything,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    Min,
    Max,
    #[default]
    Mean,
    Last,
}

/// A limit whose crossing is said as an event.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    /// Whose; as in a rule.
    #[serde(default)]
    pub things: Vec<String>,
    pub product: String,
    pub property: String,
    /// The event's name.
    pub event: String,
    /// `info`, `warn`, `error`, `urgent`.
    #[serde(default = "Alarm::level")]
    pub level: Level,
    /// Exactly one of the four.
    pub above: Option<f64>,
    pub below: Option<f64>,
    pub equals: Option<toml::Value>,
    pub differs: Option<toml::Value>,
    /// How far the value has to come back behind the limit, in its unit.
    #[serde(default)]
    pub hysteresis: f64,
    /// How long it has to stand on the other side before that is said, seconds.
    #[serde(default)]
    pub delay_seconds: f64,
}

/// The rules and alarms of a configuration, each held against its model; what is wrong goes to `problem` with its key.
pub(super) fn scopes(config: &Config, models: &Models, mut problem: impl FnMut(String, String)) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let rules = config.rules.iter().map(|rule| {
        let deadband = models.get(&rule.product).and_then(|model| model.property(&rule.property)?.deadband);
        (&rule.things, &rule.product, rule.compile(deadband))
    });
    let alarms = config.alarms.iter().map(|alarm| (&alarm.things, &alarm.product, alarm.compile()));
    let names = (0..config.rules.len()).map(|at| format!("rule[{at}]"));
    let names: Vec<_> = names.chain((0..config.alarms.len()).map(|at| format!("alarm[{at}]"))).collect();
    for (at, (key, (things, product, compiled))) in names.iter().zip(rules.chain(alarms)).enumerate() {
        match compiled {
            Err((wrong, what)) => problem(format!("{key}.{wrong}"), what),
            Ok(_) if models.get(product).is_none() => {
                let known = models.names().join(", ");
                problem(format!("{key}.product"), format!("there is no model `{product}`; there are {known}"));
            }
            Ok(rule) => scopes.push((at, Scope { things: things.clone(), product: product.clone(), rule })),
        }
    }
    for model in models.iter() {
        if let Err((at, error)) = Edge::check(model, &scopes) {
            problem(names.get(at).map_or_else(String::new, |key| format!("{key}.property")), error.to_string());
        }
    }
    scopes.into_iter().map(|(_, scope)| scope).collect()
}

/// A key that is wrong, and how.
type Wrong = (&'static str, String);

// === impl Rule ===

impl Rule {
    /// As the edge wants it. `deadband`: the model's own for the property.
    pub fn compile(&self, deadband: Option<f64>) -> Result<edge::Rule, Wrong> {
        let part = match self.report {
            Reporting::Everything => Part::Everything,
            Reporting::ByException => {
                let deadband = match (self.deadband, self.deadband_percent, deadband) {
                    (Some(_), Some(_), _) => {
                        return Err(("deadband_percent", "contradicts `deadband`; keep one".to_owned()));
                    }
                    (Some(band), None, _) | (None, None, Some(band)) => Deadband::Absolute(positive("deadband", band)?),
                    (None, Some(share), _) => Deadband::Percent(positive("deadband_percent", share)?),
                    (None, None, None) => Deadband::Any,
                };
                let interval_min_us = micros("interval_min_seconds", self.interval_min_seconds)?;
                let interval_max_us = micros("interval_max_seconds", self.interval_max_seconds)?;
                Part::Exception(Exception { deadband, interval_min_us, interval_max_us })
            }
            Reporting::Window => {
                let span_us = micros("window_seconds", self.window_seconds)?;
                if span_us == 0 {
                    return Err(("window_seconds", "a window needs its length".to_owned()));
                }
                let take = match self.take {
                    Take::Min => Aggregate::Min,
                    Take::Max => Aggregate::Max,
                    Take::Mean => Aggregate::Mean,
                    Take::Last => Aggregate::Last,
                };
                Part::Window(Window { span_us, take, into: self.into.as_deref().map(Box::from) })
            }
        };
        Ok(edge::Rule { property: self.property.as_str().into(), part })
    }
}

// === impl Alarm ===

impl Alarm {
    fn level() -> Level {
        Level::Warn
    }

    /// As the edge wants it.
    pub fn compile(&self) -> Result<edge::Rule, Wrong> {
        let value = |key: &'static str, value: &toml::Value| match value {
            toml::Value::Boolean(flag) => Ok(Value::Bool(*flag)),
            toml::Value::Integer(number) => Ok(Value::Int(*number)),
            toml::Value::Float(number) => Ok(Value::Float(*number)),
            toml::Value::String(text) => Ok(Value::Text(text.clone())),
            _ => Err((key, "must be a number, a text or true or false".to_owned())),
        };
        let condition = match (self.above, self.below, &self.equals, &self.differs) {
            (Some(limit), None, None, None) => Condition::Above(limit),
            (None, Some(limit), None, None) => Condition::Below(limit),
            (None, None, Some(wanted), None) => Condition::Equals(value("equals", wanted)?),
            (None, None, None, Some(wanted)) => Condition::Differs(value("differs", wanted)?),
            _ => return Err(("above", "give exactly one of above, below, equals and differs".to_owned())),
        };
        if self.event.is_empty() {
            return Err(("event", "an event needs a name".to_owned()));
        }
        let alarm = edge::Alarm {
            event: self.event.as_str().into(),
            level: self.level,
            condition,
            hysteresis: positive("hysteresis", self.hysteresis)?,
            delay_us: micros("delay_seconds", self.delay_seconds)?,
        };
        Ok(edge::Rule { property: self.property.as_str().into(), part: Part::Alarm(alarm) })
    }
}

fn positive(key: &'static str, number: f64) -> Result<f64, Wrong> {
    if number >= 0.0 && number.is_finite() { Ok(number) } else { Err((key, format!("{number} must be 0 or more"))) }
}

fn micros(key: &'static str, seconds: f64) -> Result<i64, Wrong> {
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        Ok((seconds * 1e6) as i64)
    } else {
        Err((key, format!("{seconds} is out of range: 0 to {SECONDS_MAX} seconds")))
    }
}
