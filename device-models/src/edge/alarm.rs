//! Alarms: a limit with a way back and a delay, said as events.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::AlarmEvent;
use crate::message::Level;
use crate::value::Value;

/// A limit on a property.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// The event's name.
    pub event: Arc<str>,
    pub level: Level,
    pub condition: Condition,
    /// How far the value has to come back behind the limit before all is well, in the property's unit.
    pub hysteresis: f64,
    /// How long the value has to stand on the other side, microseconds, before that is said: when the alarm comes and when
    /// it goes.
    pub delay_us: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    Above(f64),
    Below(f64),
    Equals(Value),
    Differs(Value),
}

impl Alarm {
    /// Whether the alarm should stand at this value, given that it stands or not.
    fn holds(&self, value: &Value, raised: bool) -> bool {
        let back = if raised { self.hysteresis } else { 0.0 };
        match (&self.condition, value.as_f64()) {
            (Condition::Above(limit), Some(number)) => number > limit - back,
            (Condition::Below(limit), Some(number)) => number < limit + back,
            (Condition::Equals(wanted), _) => same(wanted, value),
            (Condition::Differs(wanted), _) => !same(wanted, value),
            // No number: nothing can be said, so nothing changes.
            _ => raised,
        }
    }

    fn limit(&self) -> Value {
        match &self.condition {
            Condition::Above(limit) | Condition::Below(limit) => Value::Float(*limit),
            Condition::Equals(value) | Condition::Differs(value) => value.clone(),
        }
    }

    fn event(&self, property: &Arc<str>, raised: bool, value: &Value, time_us: i64) -> AlarmEvent {
        let state = if raised { "raised" } else { "cleared" };
        let data = BTreeMap::from([
            ("state".to_owned(), Value::Text(state.to_owned())),
            ("property".to_owned(), Value::Text(property.to_string())),
            ("value".to_owned(), value.clone()),
            ("limit".to_owned(), self.limit()),
        ]);
        let level = if raised { self.level } else { Level::Info };
        AlarmEvent { name: self.event.clone(), level, data: Value::Object(data), time_us }
    }
}

/// Equal as numbers, or equal.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() < f64::EPSILON,
        _ => a == b,
    }
}

/// Whether it stands, and what is about to change.
#[derive(Debug, Default)]
pub(super) struct State {
    raised: bool,
    /// Since when the value is on the other side, the value, and its source time.
    changing: Option<(i64, Value, i64)>,
}

impl State {
    pub(super) fn take(
        &mut self,
        alarm: &Alarm,
        property: &Arc<str>,
        value: &Value,
        time_us: i64,
        now_us: i64,
    ) -> Option<AlarmEvent> {
        if alarm.holds(value, self.raised) == self.raised {
            self.changing = None;
            return None;
        }
        let since = self.changing.as_ref().map_or(now_us, |(since, ..)| *since);
        self.changing = Some((since, value.clone(), time_us));
        self.tick(alarm, property, now_us)
    }

    /// Says the change when it has stood long enough: silence of the thing does not undo it.
    pub(super) fn tick(&mut self, alarm: &Alarm, property: &Arc<str>, now_us: i64) -> Option<AlarmEvent> {
        if self.deadline(alarm).is_none_or(|at| at > now_us) {
            return None;
        }
        let (_, value, time_us) = self.changing.take()?;
        self.raised = !self.raised;
        Some(alarm.event(property, self.raised, &value, time_us))
    }

    pub(super) fn deadline(&self, alarm: &Alarm) -> Option<i64> {
        self.changing.as_ref().map(|(since, ..)| since.saturating_add(alarm.delay_us))
    }
}
