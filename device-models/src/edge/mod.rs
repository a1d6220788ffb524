//! What happens to a thing's values between model and bus, where somebody asked for it: report by exception,
//! down-sampling, alarms.
//!
//! [`Rules`] are compiled once for a model; a [`Watch`] is one thing's state under them. Values that are not
//! [`Quality::Good`] pass untouched: nobody computes with them, and nobody hides them. Without a rule nothing is held back.
//!
//! | part | holds back | says |
//! |---|---|---|
//! | `exception` | a value that changed too little, or too soon | the newest one when its time has come |
//! | `window` | the values of a span of time | their minimum, maximum, mean or last at its end |
//! | `alarm` | nothing | an event when a limit is passed long enough, and one when all is well again |
//!
//! Time comes in twice: `now_us` never jumps (microseconds since any moment) and is what spans are measured by;
//! `time_us` is the source's and travels with the value. Must not be in here: clocks, timers (the gateway asks
//! [`Watch::deadline`]), which thing has which rule.

mod alarm;
mod exception;
mod window;

use std::sync::Arc;

pub use alarm::{Alarm, Condition};
pub use exception::{Deadband, Exception};
pub use window::{Aggregate, Window};

use crate::message::{Level, Quality, Sample};
use crate::model::Model;
use crate::value::Value;

/// Rules one thing may have: each keeps a state of about 100 bytes for every thing.
pub const RULES_MAX: usize = 1024;

/// What is asked for one property; parts that are absent hold nothing back.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// By name or any spelling.
    pub property: Box<str>,
    pub part: Part,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The last one said of a property counts.
    Exception(Exception),
    /// Every value passes, whatever an earlier rule said.
    Everything,
    Window(Window),
    Alarm(Alarm),
}

/// Why a rule does not fit its model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("model `{model}` has no property `{property}`")]
    Unknown { model: Arc<str>, property: Box<str> },
    #[error("model `{model}`: property `{property}` is no number: there is no {what} of it")]
    NoNumber { model: Arc<str>, property: Arc<str>, what: &'static str },
    #[error("more than {RULES_MAX} rules for model `{model}`")]
    TooMany { model: Arc<str> },
}

/// The rules of one model, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    properties: Vec<PropertyRules>,
    /// Where the rules of each alias are.
    by_alias: Box<[Option<u16>]>,
}

/// What came of one step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Turn {
    /// Values that go on, each with its source time.
    pub samples: Vec<(i64, Sample)>,
    pub events: Vec<AlarmEvent>,
    /// Values held back; those that are said later in their own right are counted too.
    pub held: u32,
}

/// An alarm that came or went.
#[derive(Debug, Clone, PartialEq)]
pub struct AlarmEvent {
    pub name: Arc<str>,
    pub level: Level,
    /// `{state: "raised" | "cleared", property, value, limit}`.
    pub data: Value,
    pub time_us: i64,
}

/// One thing under its rules.
#[derive(Debug)]
pub struct Watch {
    rules: Arc<Rules>,
    states: Vec<State>,
}

// === impl Rules ===

impl Rules {
    /// Compiles the model's own rules (`sg:report`, `sg:alarms`) and `more`, which come after them. `None`: there are none.
    pub fn compile(model: &Model, more: &[Rule]) -> Result<Option<Self>, RuleError> {
        let own = model.properties().iter().flat_map(|property| property.rules.iter());
        let mut rules = Self { properties: Vec::new(), by_alias: Box::default() };
        let mut by_alias = Vec::new();
        for (count, rule) in own.chain(more).enumerate() {
            if count >= RULES_MAX {
                return Err(RuleError::TooMany { model: model.name().clone() });
            }
            rules.add(model, rule, &mut by_alias)?;
        }
        rules.by_alias = by_alias.into();
        Ok((!rules.properties.is_empty()).then_some(rules))
    }

    fn add(&mut self, model: &Model, rule: &Rule, by_alias: &mut Vec<Option<u16>>) -> Result<(), RuleError> {
        let find = |name: &str| {
            model
                .property(name)
                .ok_or_else(|| RuleError::Unknown { model: model.name().clone(), property: name.into() })
        };
        let property = find(&rule.property)?;
        if let Some(what) = rule.part.needs_number().filter(|_| !property.shape.is_number()) {
            return Err(RuleError::NoNumber { model: model.name().clone(), property: property.name.clone(), what });
        }
        let alias = property.alias as usize;
        if by_alias.len() <= alias {
            by_alias.resize(alias + 1, None);
        }
        let at = by_alias.get(alias).copied().flatten().map_or(self.properties.len(), usize::from);
        if at == self.properties.len() {
            self.properties.push(PropertyRules::new(property.name.clone()));
            if let Some(slot) = by_alias.get_mut(alias) {
                *slot = u16::try_from(at).ok();
            }
        }
        let Some(entry) = self.properties.get_mut(at) else { return Ok(()) };
        match &rule.part {
            Part::Exception(exception) => entry.exception = Some(*exception),
            Part::Everything => (entry.exception, entry.windows) = (None, Vec::new()),
            Part::Alarm(alarm) => entry.alarms.push(alarm.clone()),
            Part::Window(window) => {
                let target = window.into.as_deref().map_or(Ok(property), find)?;
                let replaces = target.alias == property.alias;
                let shape = target.shape.clone();
                entry.windows.push(window::Compiled {
                    window: window.clone(),
                    alias: target.alias,
                    name: target.name.clone(),
                    shape,
                    replaces,
                });
            }
        }
        Ok(())
    }

    fn of(&self, alias: u32) -> Option<usize> {
        self.by_alias.get(alias as usize).copied().flatten().map(usize::from)
    }
}

impl Part {
    fn needs_number(&self) -> Option<&'static str> {
        match self {
            Self::Exception(Exception { deadband: Deadband::Absolute(_) | Deadband::Percent(_), .. }) => {
                Some("deadband")
            }
            Self::Window(Window { take, .. }) if *take != Aggregate::Last => Some("minimum, maximum or mean"),
            Self::Alarm(Alarm { condition: Condition::Above(_) | Condition::Below(_), .. }) => Some("limit"),
            _ => None,
        }
    }
}

// === impl Watch ===

impl Watch {
    pub fn new(rules: Arc<Rules>) -> Self {
        let states = rules.properties.iter().map(State::new).collect();
        Self { rules, states }
    }

    /// Takes what the thing reported at `time_us`; what goes on is in the turn.
    pub fn take(&mut self, samples: Vec<Sample>, time_us: i64, now_us: i64) -> Turn {
        let mut turn = Turn::default();
        for sample in samples {
            let Some(at) = self.rules.of(sample.alias).filter(|_| sample.quality == Quality::Good) else {
                turn.samples.push((time_us, sample));
                continue;
            };
            if let (Some(rules), Some(state)) = (self.rules.properties.get(at), self.states.get_mut(at)) {
                state.take(rules, sample, time_us, now_us, &mut turn);
            }
        }
        turn
    }

    /// Says what has come due.
    pub fn tick(&mut self, now_us: i64) -> Turn {
        let mut turn = Turn::default();
        for (rules, state) in self.rules.properties.iter().zip(&mut self.states) {
            state.tick(rules, now_us, &mut turn);
        }
        turn
    }

    /// Says everything that waits: the gateway stops.
    pub fn finish(&mut self, now_us: i64) -> Turn {
        let mut turn = self.tick(now_us);
        for (rules, state) in self.rules.properties.iter().zip(&mut self.states) {
            state.finish(rules, now_us, &mut turn);
        }
        turn
    }

    /// When [`tick`](Self::tick) has something to say, in the time of `now_us`.
    pub fn deadline(&self) -> Option<i64> {
        self.rules.properties.iter().zip(&self.states).filter_map(|(rules, state)| state.deadline(rules)).min()
    }
}

// === private ===

#[derive(Debug, Clone, PartialEq)]
struct PropertyRules {
    name: Arc<str>,
    exception: Option<Exception>,
    windows: Vec<window::Compiled>,
    alarms: Vec<Alarm>,
}

impl PropertyRules {
    fn new(name: Arc<str>) -> Self {
        Self { name, exception: None, windows: Vec::new(), alarms: Vec::new() }
    }
}

#[derive(Debug, Default)]
struct State {
    exception: exception::State,
    windows: Vec<window::State>,
    alarms: Vec<alarm::State>,
}

impl State {
    fn new(rules: &PropertyRules) -> Self {
        Self {
            exception: exception::State::default(),
            windows: rules.windows.iter().map(|_| window::State::default()).collect(),
            alarms: rules.alarms.iter().map(|_| alarm::State::default()).collect(),
        }
    }

    fn take(&mut self, rules: &PropertyRules, sample: Sample, time_us: i64, now_us: i64, turn: &mut Turn) {
        for (alarm, state) in rules.alarms.iter().zip(&mut self.alarms) {
            turn.events.extend(state.take(alarm, &rules.name, &sample.value, time_us, now_us));
        }
        let mut replaced = false;
        for (window, state) in rules.windows.iter().zip(&mut self.windows) {
            replaced |= window.replaces;
            if let Some((time_us, closed)) = state.take(window, &sample, time_us, now_us) {
                turn.samples.push((time_us, closed));
            }
        }
        if replaced {
            turn.held += 1;
        } else {
            self.pass(rules, sample, time_us, now_us, turn);
        }
    }

    fn pass(&mut self, rules: &PropertyRules, sample: Sample, time_us: i64, now_us: i64, turn: &mut Turn) {
        let passed = match &rules.exception {
            None => Some((time_us, sample)),
            Some(exception) => self.exception.take(exception, sample, time_us, now_us),
        };
        turn.held += u32::from(passed.is_none());
        turn.samples.extend(passed);
    }

    fn tick(&mut self, rules: &PropertyRules, now_us: i64, turn: &mut Turn) {
        for (alarm, state) in rules.alarms.iter().zip(&mut self.alarms) {
            turn.events.extend(state.tick(alarm, &rules.name, now_us));
        }
        for (window, state) in rules.windows.iter().zip(&mut self.windows) {
            if state.deadline(window).is_some_and(|at| at <= now_us) {
                turn.samples.extend(state.close(window));
            }
        }
        if let Some(exception) = &rules.exception {
            turn.samples.extend(self.exception.tick(exception, now_us));
        }
    }

    fn finish(&mut self, rules: &PropertyRules, now_us: i64, turn: &mut Turn) {
        for (window, state) in rules.windows.iter().zip(&mut self.windows) {
            turn.samples.extend(state.close(window));
        }
        if rules.exception.is_some() {
            turn.samples.extend(self.exception.finish(now_us));
        }
    }

    fn deadline(&self, rules: &PropertyRules) -> Option<i64> {
        let alarms = rules.alarms.iter().zip(&self.alarms).filter_map(|(alarm, state)| state.deadline(alarm));
        let windows = rules.windows.iter().zip(&self.windows).filter_map(|(window, state)| state.deadline(window));
        let exception = rules.exception.as_ref().and_then(|exception| self.exception.deadline(exception));
        alarms.chain(windows).chain(exception).min()
    }
}

#[cfg(test)]
mod tests;
