//! Which things the platform has to be told of yet, for dialects that introduce things before their first message.
//!
//! Pure: time is handed in. One thing at a time comes out, so that ten thousand things need no room for all their
//! introductions at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::things::{Known, Things};

/// The list of things is looked through for new ones at most this often.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Introductions {
    begun: bool,
    rev: u32,
    looked: Option<Instant>,
    /// Id to model, of everything introduced on this connection or waiting for it.
    known: HashMap<Arc<str>, Arc<str>>,
    waiting: VecDeque<Known>,
}

// === impl Introductions ===

impl Introductions {
    /// A new connection, or the platform began anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether they begin now: once after each [`reset`](Self::reset).
    pub(super) const fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    /// Takes in what is new in the list of things.
    pub(super) fn look(&mut self, things: &dyn Things, now: Instant) {
        let rested = self.looked.is_none_or(|looked| now >= looked + LOOK_PAUSE);
        let rev = things.rev();
        if !rested || (rev == self.rev && self.looked.is_some()) {
            return;
        }
        (self.rev, self.looked) = (rev, Some(now));
        // What is not in the list any more is forgotten here too.
        let mut before = std::mem::take(&mut self.known);
        for thing in things.known() {
            let model = Arc::clone(thing.model.name());
            let new = before.remove(&thing.id).as_ref() != Some(&model);
            self.known.insert(Arc::clone(&thing.id), model);
            if new {
                self.waiting.push_back(thing);
            }
        }
        self.waiting.retain(|thing| self.known.contains_key(&thing.id));
    }

    /// When there is something to look at again, although nothing happens: a change that came too soon.
    pub(super) fn due(&self, things: &dyn Things) -> Option<Instant> {
        let looked = self.looked?;
        (things.rev() != self.rev).then_some(looked + LOOK_PAUSE)
    }

    pub(super) fn next(&mut self) -> Option<Known> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use device_models::wire::Catalog;
    use device_models::{Models, Order, Outcome};

    use super::super::things::Later;
    use super::*;

    /// A list of things that a test changes: its number, and ids with their models.
    #[derive(Default)]
    struct List(Mutex<(u32, Vec<(&'static str, &'static str)>)>);

    impl List {
        fn set(&self, things: &[(&'static str, &'static str)]) {
            let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *list = (list.0 + 1, things.to_vec());
        }
    }

    impl Things for List {
        fn rev(&self) -> u32 {
            self.0.lock().unwrap().0
        }

        fn catalog(&self) -> Catalog {
            Catalog::new(self.rev())
        }

        fn known(&self) -> Vec<Known> {
            let models = Models::shipped().unwrap();
            let known = |(id, model): &(&str, &str)| Known {
                id: (*id).into(),
                model: Arc::clone(models.get(model).unwrap()),
                online: true,
                latest: BTreeMap::default(),
            };
            self.0.lock().unwrap().1.iter().map(known).collect()
        }

        fn find(&self, id: &str) -> Option<Known> {
            self.known().into_iter().find(|thing| &*thing.id == id)
        }

        fn model(&self, _: &str) -> Arc<str> {
            "".into()
        }

        fn order<'a>(&'a self, _: &'a str, _: &'a str, _: Order, _: Duration) -> Later<'a, Outcome> {
            Box::pin(std::future::pending())
        }
    }

    fn taken(introductions: &mut Introductions) -> Vec<String> {
        std::iter::from_fn(|| introductions.next()).map(|thing| thing.id.to_string()).collect()
    }

    #[test]
    fn each_thing_is_introduced_once_a_connection_and_again_with_another_model() {
        let (list, start, mut new) = (List::default(), Instant::now(), Introductions::default());
        let later = |looks: u32| start + LOOK_PAUSE * looks;
        list.set(&[("a", "generic"), ("b", "generic")]);
        assert!(new.begin() && !new.begin());
        new.look(&list, start);
        assert_eq!(taken(&mut new), ["a", "b"]);
        // Too soon after the last look; then it is due, and only what is new comes.
        list.set(&[("a", "generic"), ("b", "energy-meter"), ("c", "generic")]);
        new.look(&list, start + LOOK_PAUSE / 2);
        assert_eq!(taken(&mut new), [""; 0]);
        assert_eq!(new.due(&list), Some(later(1)));
        new.look(&list, later(1));
        assert_eq!((taken(&mut new), new.due(&list)), (vec!["b".to_owned(), "c".to_owned()], None));
        // One that goes while it waits is not introduced; one that comes back is.
        list.set(&[("b", "energy-meter"), ("d", "generic")]);
        new.look(&list, later(2));
        list.set(&[("a", "generic"), ("b", "energy-meter")]);
        new.look(&list, later(3));
        assert_eq!(taken(&mut new), ["a"]);
        assert_eq!(new.known.len(), 2, "what is gone is forgotten");
        new.reset();
        assert!(new.begin());
        new.look(&list, later(3));
        assert_eq!(taken(&mut new), ["a", "b"]);
    }
}
