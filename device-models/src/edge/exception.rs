//! Report by exception: a value goes on when it differs enough from the last one that did.

use crate::message::Sample;
use crate::value::Value;

/// When a property's value goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exception {
    pub deadband: Deadband,
    /// Not sooner after the last one than this, microseconds; the newest value is said when the time is over. 0: at once.
    pub interval_min_us: i64,
    /// A value that comes this long after the last one goes on in any case, microseconds. 0: never for that alone.
    pub interval_max_us: i64,
}

/// What is change enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deadband {
    /// Any change.
    Any,
    /// A change of at least this much, in the property's unit.
    Absolute(f64),
    /// A change of at least this share of the last value that went on, percent.
    Percent(f64),
}

impl Exception {
    fn is_news(&self, last: &Value, value: &Value) -> bool {
        let (Some(before), Some(now)) = (last.as_f64(), value.as_f64()) else { return last != value };
        let step = (now - before).abs();
        match self.deadband {
            Deadband::Absolute(band) if band > 0.0 => step >= band,
            Deadband::Percent(share) if share > 0.0 => step > 0.0 && step >= before.abs() * share / 100.0,
            _ => last != value,
        }
    }
}

/// What went on last, and what waits.
#[derive(Debug, Default)]
pub(super) struct State {
    last: Option<(i64, Value)>,
    waiting: Option<(i64, Sample)>,
}

impl State {
    pub(super) fn take(
        &mut self,
        rule: &Exception,
        sample: Sample,
        time_us: i64,
        now_us: i64,
    ) -> Option<(i64, Sample)> {
        let Some((at, last)) = &self.last else { return Some(self.pass(sample, time_us, now_us)) };
        let since = now_us.saturating_sub(*at);
        if since < rule.interval_min_us {
            self.waiting = rule.is_news(last, &sample.value).then_some((time_us, sample));
            return None;
        }
        let overdue = rule.interval_max_us > 0 && since >= rule.interval_max_us;
        self.waiting = None;
        (overdue || rule.is_news(last, &sample.value)).then(|| self.pass(sample, time_us, now_us))
    }

    fn pass(&mut self, sample: Sample, time_us: i64, now_us: i64) -> (i64, Sample) {
        self.last = Some((now_us, sample.value.clone()));
        (time_us, sample)
    }

    pub(super) fn tick(&mut self, rule: &Exception, now_us: i64) -> Option<(i64, Sample)> {
        if self.deadline(rule).is_some_and(|at| at <= now_us) { self.finish(now_us) } else { None }
    }

    /// What waits, whether its time has come or not.
    pub(super) fn finish(&mut self, now_us: i64) -> Option<(i64, Sample)> {
        let (time_us, sample) = self.waiting.take()?;
        Some(self.pass(sample, time_us, now_us))
    }

    pub(super) fn deadline(&self, rule: &Exception) -> Option<i64> {
        let (at, _) = self.last.as_ref().filter(|_| self.waiting.is_some())?;
        Some(at.saturating_add(rule.interval_min_us))
    }
}
