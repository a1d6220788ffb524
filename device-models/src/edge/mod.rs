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

use std::collections::BTreeMap;
use std::sync::Arc;

pub use alarm::{Alarm, Condition};
pub use exception::{Deadband, Exception};
pub use window::{Aggregate, Window};

use crate::message::{Level, Quality, Sample};
use crate::model::{Model, NAME_MAX, Shape};
use crate::value::Value;

/// Rules one thing may have: each keeps a state of about 100 bytes for every thing.
pub const RULES_MAX: usize = 1024;

/// What is asked for one property; parts that are absent hold nothing back.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// By name or any spelling; of an open model also one that the model does not name.
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
    /// Where those of properties are that an open model does not name.
    by_name: BTreeMap<Arc<str>, u16>,
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
        let mut rules = Self { properties: Vec::new(), by_alias: Box::default(), by_name: BTreeMap::new() };
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
        let property = Target::find(model, &rule.property)?;
        let needs_number = rule.part.needs_number();
        if let (Some(what), Some(shape)) = (needs_number, &property.shape)
            && !shape.is_number()
        {
            return Err(RuleError::NoNumber { model: model.name().clone(), property: property.name, what });
        }
        let at = self.place(&property, by_alias);
        let Some(entry) = self.properties.get_mut(at) else { return Ok(()) };
        entry.numbers |= needs_number.is_some() && property.shape.is_none();
        match &rule.part {
            Part::Exception(exception) => entry.exception = Some(*exception),
            Part::Everything => (entry.exception, entry.windows) = (None, Vec::new()),
            Part::Alarm(alarm) => entry.alarms.push(alarm.clone()),
            Part::Window(window) => {
                let window = window.clone();
                let target = window.into.as_deref().map_or(Ok(property.clone()), |into| Target::find(model, into))?;
                let replaces = target.name == property.name;
                let Target { alias, name, shape } = target;
                entry.windows.push(window::Compiled { window, alias, name, shape, replaces });
            }
        }
        Ok(())
    }

    /// Where the property's rules are; the first one makes their place.
    fn place(&mut self, property: &Target, by_alias: &mut Vec<Option<u16>>) -> usize {
        let Target { alias, name, .. } = property;
        let known = if *alias == 0 {
            self.by_name.get(name).copied()
        } else {
            by_alias.get(*alias as usize).copied().flatten()
        };
        let new = self.properties.len();
        // Not more of them than `RULES_MAX`.
        let Some(at) = u16::try_from(new).ok().filter(|_| known.is_none()) else {
            return known.map_or(new, usize::from);
        };
        self.properties.push(PropertyRules::new(Arc::clone(name)));
        if *alias == 0 {
            self.by_name.insert(Arc::clone(name), at);
            return new;
        }
        let slot = *alias as usize;
        if by_alias.len() <= slot {
            by_alias.resize(slot + 1, None);
        }
        if let Some(slot) = by_alias.get_mut(slot) {
            *slot = Some(at);
        }
        new
    }

    fn of(&self, sample: &Sample) -> Option<usize> {
        let at = match sample.alias {
            0 => self.by_name.get(&sample.name).copied(),
            alias => self.by_alias.get(alias as usize).copied().flatten(),
        };
        at.map(usize::from)
    }
}

/// A property that a rule names.
#[derive(Debug, Clone)]
struct Target {
    /// 0: the model, an open one, does not name it.
    alias: u32,
    name: Arc<str>,
    /// `None`: it may hold anything.
    shape: Option<Shape>,
}

impl Target {
    fn find(model: &Model, name: &str) -> Result<Self, RuleError> {
        if let Some(property) = model.property(name) {
            let shape = Some(property.shape.clone());
            return Ok(Self { alias: property.alias, name: Arc::clone(&property.name), shape });
        }
        if model.is_open() && (1..=NAME_MAX).contains(&name.len()) {
            return Ok(Self { alias: 0, name: name.into(), shape: None });
        }
        Err(RuleError::Unknown { model: model.name().clone(), property: name.into() })
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
            let at = self.rules.of(&sample).filter(|_| sample.quality == Quality::Good);
            let found = at.and_then(|at| Some((self.rules.properties.get(at)?, self.states.get_mut(at)?)));
            match found {
                Some((rules, state)) if !rules.numbers || sample.value.as_f64().is_some() => {
                    state.take(rules, sample, time_us, now_us, &mut turn);
                }
                _ => turn.samples.push((time_us, sample)),
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
    /// They need numbers, and the property may hold anything: what is none passes untouched.
    numbers: bool,
    exception: Option<Exception>,
    windows: Vec<window::Compiled>,
    alarms: Vec<Alarm>,
}

impl PropertyRules {
    fn new(name: Arc<str>) -> Self {
        Self { name, numbers: false, exception: None, windows: Vec::new(), alarms: Vec::new() }
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
