//! Rules on values between model and bus: which thing has which, each thing's state, and the timer that says what waits.
//!
//! The rules themselves are `device_models::edge`. What a rule holds back is acknowledged and counted; what waits (the
//! newest value within a shortest interval, an open window, an alarm within its delay) is said in time, and when the
//! gateway stops. A crash loses what waits: at most one value a property, and one open window. Must not be in here:
//! the bus (`intake.rs` writes what comes out).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_models::edge::{Rule, RuleError, Rules, Turn, Watch};
use device_models::model::{Model, Models};
use device_models::{Body, Message, Quality, Sample};
use tokio::sync::Notify;

use crate::devices::Thing;

/// What waits is said at most this long after its time: one wake-up for many.
const GRAIN_US: i64 = 100_000;

/// Rules for some things of a product.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Ids, with `*` at the end for all that begin so. Empty: every thing of the product.
    pub things: Vec<String>,
    pub product: String,
    pub rule: Rule,
}

impl Scope {
    fn covers(&self, thing: &str, product: &str) -> bool {
        let named =
            |pattern: &String| pattern.strip_suffix('*').map_or(pattern == thing, |prefix| thing.starts_with(prefix));
        self.product == product && (self.things.is_empty() || self.things.iter().any(named))
    }
}

/// All rules and what they remember. Clones share it.
#[derive(Debug, Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    scopes: Vec<Scope>,
    /// There are no rules at all: nothing is looked up.
    idle: bool,
    began: Instant,
    watches: Mutex<Watches>,
    sooner: Notify,
}

/// One entry for each thing that has reported: as many as the registry allows.
#[derive(Debug, Default)]
struct Watches {
    by_alias: HashMap<u32, Option<Watched>>,
    /// When which thing has something to say.
    due: BTreeSet<(i64, u32)>,
}

#[derive(Debug)]
struct Watched {
    thing: Arc<Thing>,
    watch: Watch,
    due: Option<i64>,
}

/// What came of a report or of time.
#[derive(Debug, Default)]
pub struct Passed {
    /// Alarms first: they explain the values.
    pub messages: Vec<Message>,
    /// Values held back.
    pub held: u32,
}

// === impl Edge ===

impl Edge {
    pub fn new(models: &Models, scopes: Vec<Scope>) -> Self {
        let idle = scopes.is_empty() && models.iter().all(|model| !has_rules(model));
        let watches = Mutex::default();
        Self { shared: Arc::new(Shared { scopes, idle, began: Instant::now(), watches, sooner: Notify::new() }) }
    }

    /// Whether the rules fit the model; the first that does not is named by its place in `scopes`.
    pub fn check(model: &Model, scopes: &[(usize, Scope)]) -> Result<(), (usize, RuleError)> {
        let mut rules: Vec<Rule> = Vec::new();
        for (at, scope) in scopes.iter().filter(|(_, scope)| scope.product == **model.name()) {
            rules.push(scope.rule.clone());
            Rules::compile(model, &rules).map_err(|error| (*at, error))?;
        }
        Ok(())
    }

    /// Takes a message of properties through the thing's rules; any other passes.
    pub fn pass(&self, thing: &Arc<Thing>, message: Message) -> Passed {
        if self.shared.idle || !matches!(message.body, Body::Properties(_)) {
            return Passed { messages: vec![message], held: 0 };
        }
        let now_us = self.now_us();
        let mut watches = self.watches();
        let Watches { by_alias, due } = &mut *watches;
        let entry = by_alias.entry(thing.alias).or_insert_with(|| self.watched(thing));
        let (Some(watched), Body::Properties(samples)) = (entry, &message.body) else {
            return Passed { messages: vec![message], held: 0 };
        };
        let turn = watched.watch.take(samples.clone(), message.time_us, now_us);
        let sooner = watched.schedule(due);
        drop(watches);
        if sooner {
            self.shared.sooner.notify_one();
        }
        messages(thing, turn, message.received_us)
    }

    fn watched(&self, thing: &Arc<Thing>) -> Option<Watched> {
        let covering = self.shared.scopes.iter().filter(|scope| scope.covers(&thing.id, thing.model.name()));
        let more: Vec<Rule> = covering.map(|scope| scope.rule.clone()).collect();
        // They were checked together with the configuration.
        let rules = Rules::compile(&thing.model, &more).ok().flatten()?;
        Some(Watched { thing: Arc::clone(thing), watch: Watch::new(Arc::new(rules)), due: None })
    }

    /// Waits until something may be due. Never resolves without rules.
    pub async fn wait(&self) {
        if self.shared.idle {
            std::future::pending::<()>().await;
        }
        loop {
            let next = self.watches().due.first().map(|(at, _)| *at);
            let wait = next.map(|at| u64::try_from(at.saturating_sub(self.now_us())).unwrap_or(0));
            match wait {
                Some(0) => return,
                Some(wait) => tokio::select! {
                    () = tokio::time::sleep(Duration::from_micros(wait)) => {}
                    () = self.shared.sooner.notified() => {}
                },
                None => self.shared.sooner.notified().await,
            }
        }
    }

    /// What is due now.
    pub fn tick(&self, received_us: i64) -> Passed {
        let now_us = self.now_us();
        let mut passed = Passed::default();
        let mut watches = self.watches();
        let Watches { by_alias, due } = &mut *watches;
        while let Some((at, alias)) = due.first().copied().filter(|(at, _)| *at <= now_us) {
            due.remove(&(at, alias));
            if let Some(Some(watched)) = by_alias.get_mut(&alias) {
                watched.due = None;
                passed.messages.extend(messages(&watched.thing, watched.watch.tick(now_us), received_us).messages);
                watched.schedule(due);
            }
        }
        passed
    }

    /// The thing is no more: what waits of it comes out, and nothing is remembered.
    pub fn forget(&self, thing: &Thing, received_us: i64) -> Passed {
        let mut watches = self.watches();
        let Some(Some(mut watched)) = watches.by_alias.remove(&thing.alias) else { return Passed::default() };
        if let Some(at) = watched.due {
            watches.due.remove(&(at, thing.alias));
        }
        messages(&watched.thing, watched.watch.finish(self.now_us()), received_us)
    }

    /// Everything that waits: the gateway stops.
    pub fn finish(&self, received_us: i64) -> Passed {
        let now_us = self.now_us();
        let mut watches = self.watches();
        let mut passed = Passed::default();
        for watched in watches.by_alias.values_mut().flatten() {
            passed.messages.extend(messages(&watched.thing, watched.watch.finish(now_us), received_us).messages);
        }
        watches.due.clear();
        passed
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A time that never jumps.
    fn now_us(&self) -> i64 {
        i64::try_from(self.shared.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

// === impl Watched ===

impl Watched {
    /// Notes when the thing has something to say next; whether that is sooner than anything else.
    fn schedule(&mut self, due: &mut BTreeSet<(i64, u32)>) -> bool {
        let alias = self.thing.alias;
        let round = |at: i64| at.saturating_add(GRAIN_US - 1) / GRAIN_US * GRAIN_US;
        let next = self.watch.deadline().map(round);
        if next == self.due {
            return false;
        }
        if let Some(before) = self.due {
            due.remove(&(before, alias));
        }
        self.due = next;
        let Some(next) = next else { return false };
        due.insert((next, alias));
        due.first() == Some(&(next, alias))
    }
}

fn has_rules(model: &Model) -> bool {
    model.properties().iter().any(|property| !property.rules.is_empty())
}

/// A turn in the bus's words: alarms, then values of one source time together.
fn messages(thing: &Thing, turn: Turn, received_us: i64) -> Passed {
    let message = |time_us: i64, body: Body| Message {
        thing: Arc::clone(&thing.id),
        model: Arc::clone(thing.model.name()),
        time_us,
        received_us,
        body,
    };
    let mut messages: Vec<Message> = Vec::new();
    for event in turn.events {
        let body = Body::Event { name: event.name, level: event.level, data: event.data, quality: Quality::Good };
        messages.push(message(event.time_us, body));
    }
    let mut group: Option<(i64, Vec<Sample>)> = None;
    for (time_us, sample) in turn.samples {
        match &mut group {
            Some((at, samples)) if *at == time_us => samples.push(sample),
            _ => {
                let done = group.replace((time_us, vec![sample]));
                messages.extend(done.map(|(at, samples)| message(at, Body::Properties(samples))));
            }
        }
    }
    messages.extend(group.map(|(at, samples)| message(at, Body::Properties(samples))));
    Passed { messages, held: turn.held }
}

#[cfg(test)]
mod tests {
    use device_models::Value;
    use device_models::edge::{Aggregate, Part, Window};

    use super::*;
    use crate::bus::Bus;
    use crate::config;
    use crate::devices::Devices;
    use crate::intake::AdapterInfo;

    fn report(thing: &Thing, value: f64) -> Message {
        let (id, model) = (Arc::clone(&thing.id), Arc::clone(thing.model.name()));
        let property = thing.model.properties().iter().find(|property| &*property.name == "temperature").unwrap();
        let (alias, name) = (property.alias, Arc::clone(&property.name));
        let body = Body::Properties(vec![Sample { alias, name, value: Value::Float(value), quality: Quality::Good }]);
        Message { thing: id, model, time_us: 1, received_us: 1, body }
    }

    #[tokio::test]
    async fn a_thing_that_is_forgotten_says_what_waits_of_it_and_is_due_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = config::Store { path: folder.path().to_owned(), commit_ms: 0, ..config::Store::default() };
        let (bus, _) = Bus::open(&store).unwrap();
        let models = Arc::new(Models::shipped().unwrap());
        let devices = Devices::open(Arc::clone(&models), Vec::new(), bus.clone()).unwrap();
        let (name, product) = ("a".into(), "temperature-humidity".to_owned());
        let part = Part::Window(Window { span_us: 3_600_000_000, take: Aggregate::Max, into: None });
        let rule = Rule { property: "temperature".into(), part };
        let edge = Edge::new(&models, vec![Scope { things: Vec::new(), product: product.clone(), rule }]);
        let adapter = AdapterInfo {
            name,
            product: Some(product),
            auto_register: true,
            allow_anonymous: true,
            push_without_key: Vec::new(),
            commit: None,
        };
        let [one, other] = ["one", "other"].map(|name| devices.resolve(&adapter, name, None).unwrap());
        for (thing, value) in [(&one, 20.5), (&one, 21.5), (&one, 19.0), (&other, 7.0)] {
            let passed = edge.pass(thing, report(thing, value));
            assert_eq!((passed.messages.len(), passed.held), (0, 1));
        }
        assert_eq!(edge.watches().due.len(), 2);
        let said = edge.forget(&one, 5).messages;
        let [Message { thing, received_us: 5, body: Body::Properties(samples), .. }] = &said[..] else {
            panic!("{said:?}")
        };
        assert_eq!((&**thing, &samples[0].value), ("one", &Value::Float(21.5)));
        assert_eq!(edge.watches().due.len(), 1);
        assert_eq!(edge.watches().by_alias.len(), 1);
        assert!(edge.forget(&one, 6).messages.is_empty(), "once");
        assert_eq!(edge.finish(7).messages.len(), 1, "the other one is as before");
        bus.close().await;
    }
}
