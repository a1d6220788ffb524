//! Who subscribed to what: a trie over the levels of topic filters.
//!
//! Costs a publication its own levels times the wildcards that apply, however many filters there are. An empty branch
//! is taken away with its last subscription. Must not be in here: what happens to a matched message.

use std::collections::{BTreeMap, HashMap};

use protocols::exchange::{Qos, Subscription};
use protocols::mqtt::topic::{Shared, shared};

/// A session's place among the sessions.
pub(super) type Slot = u32;

/// One subscription of one session, as far as routing needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscriber {
    pub slot: Slot,
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
    pub shared: bool,
}

#[derive(Debug, Default)]
pub(super) struct Topics {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// The child `+`.
    any: Option<Box<Node>>,
    here: Leaf,
    /// The child `#`, which also takes this very level.
    rest: Leaf,
}

#[derive(Debug, Default)]
struct Leaf {
    subscribers: Vec<Subscriber>,
    groups: BTreeMap<Box<str>, Group>,
}

/// The members of a shared subscription; they take turns.
#[derive(Debug, Default)]
struct Group {
    members: Vec<Subscriber>,
    turn: usize,
}

impl Subscriber {
    pub(super) fn new(slot: Slot, subscription: &Subscription) -> Self {
        Self {
            slot,
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            identifier: subscription.identifier,
            shared: subscription.filter.starts_with("$share/"),
        }
    }
}

// === impl Topics ===

impl Topics {
    /// Adds a subscription or replaces the session's earlier one with the same filter.
    pub(super) fn insert(&mut self, filter: &str, subscriber: Subscriber) {
        let (group, filter) = parts(filter);
        let mut node = &mut self.root;
        for level in filter.split('/') {
            match level {
                "#" => return node.rest.insert(group, subscriber),
                "+" => node = node.any.get_or_insert_default(),
                _ => {
                    if !node.children.contains_key(level) {
                        node.children.insert(level.into(), Node::default());
                    }
                    let Some(child) = node.children.get_mut(level) else { return };
                    node = child;
                }
            }
        }
        node.here.insert(group, subscriber);
    }

    pub(super) fn remove(&mut self, filter: &str, slot: Slot) {
        let (group, filter) = parts(filter);
        let levels: Vec<&str> = filter.split('/').collect();
        self.root.remove(&levels, group, slot);
    }

    /// Appends every subscriber whose filter takes the topic; of a shared subscription the next member in turn that is
    /// connected, else the next one that is kept.
    pub(super) fn matches(&mut self, topic: &str, connected: &dyn Fn(Slot) -> bool, found: &mut Vec<Subscriber>) {
        let levels: Vec<&str> = topic.split('/').collect();
        let hidden = topic.starts_with('$');
        self.root.matches(&levels, hidden, connected, found);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

fn parts(filter: &str) -> (Option<&str>, &str) {
    match shared(filter) {
        Shared::Yes { group, filter } => (Some(group), filter),
        _ => (None, filter),
    }
}

impl Node {
    fn matches(
        &mut self,
        levels: &[&str],
        hidden: bool,
        connected: &dyn Fn(Slot) -> bool,
        found: &mut Vec<Subscriber>,
    ) {
        if !hidden {
            self.rest.take(connected, found);
        }
        let Some((level, below)) = levels.split_first() else {
            self.here.take(connected, found);
            return;
        };
        // Topics that begin with `$` are hidden from leading wildcards only.
        if let Some(child) = self.children.get_mut(*level) {
            child.matches(below, false, connected, found);
        }
        if let (Some(child), false) = (&mut self.any, hidden) {
            child.matches(below, false, connected, found);
        }
    }

    fn remove(&mut self, levels: &[&str], group: Option<&str>, slot: Slot) {
        match levels.split_first() {
            None => self.here.remove(group, slot),
            Some((&"#", _)) => self.rest.remove(group, slot),
            Some((&"+", below)) => {
                if let Some(child) = &mut self.any {
                    child.remove(below, group, slot);
                    if child.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some((level, below)) => {
                if let Some(child) = self.children.get_mut(*level) {
                    child.remove(below, group, slot);
                    if child.is_empty() {
                        self.children.remove(*level);
                    }
                }
                if self.children.is_empty() {
                    self.children = HashMap::new();
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

impl Leaf {
    fn insert(&mut self, group: Option<&str>, subscriber: Subscriber) {
        let list = match group {
            None => &mut self.subscribers,
            Some(group) => &mut self.groups.entry(group.into()).or_default().members,
        };
        match list.iter_mut().find(|known| known.slot == subscriber.slot) {
            Some(known) => *known = subscriber,
            None => list.push(subscriber),
        }
    }

    fn remove(&mut self, group: Option<&str>, slot: Slot) {
        let Some(group) = group else {
            self.subscribers.retain(|known| known.slot != slot);
            return;
        };
        if let Some(found) = self.groups.get_mut(group) {
            found.members.retain(|known| known.slot != slot);
            if found.members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    fn take(&mut self, connected: &dyn Fn(Slot) -> bool, found: &mut Vec<Subscriber>) {
        found.extend_from_slice(&self.subscribers);
        found.extend(self.groups.values_mut().filter_map(|group| group.next(connected)));
    }

    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty()
    }
}

impl Group {
    fn next(&mut self, connected: &dyn Fn(Slot) -> bool) -> Option<Subscriber> {
        let count = self.members.len();
        if count == 0 {
            return None;
        }
        let first = self.turn % count;
        let turns = || (0..count).map(|n| (first + n) % count);
        let is_connected = |index: &usize| self.members.get(*index).is_some_and(|member| connected(member.slot));
        let index = turns().find(is_connected).unwrap_or(first);
        self.turn = index + 1;
        self.members.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn subscriber(slot: Slot, filter: &str) -> Subscriber {
        let subscription = Subscription {
            filter: Arc::from(filter),
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
            identifier: None,
        };
        Subscriber::new(slot, &subscription)
    }

    fn slots(topics: &mut Topics, topic: &str) -> Vec<Slot> {
        let mut found = Vec::new();
        topics.matches(topic, &|_| true, &mut found);
        let mut slots: Vec<_> = found.iter().map(|subscriber| subscriber.slot).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn agrees_with_the_rule_of_one_filter() {
        let filters =
            ["#", "+", "+/+", "a/#", "a/+", "a/b", "+/b/#", "a/b/#", "/+", "/", "$SYS/#", "$SYS/+", "设备/#", "a//b"];
        let topics = ["a", "a/b", "a/c", "a/b/c", "/", "/x", "$SYS", "$SYS/x", "设备/1", "a//b", "b"];
        let mut trie = Topics::default();
        for (slot, filter) in filters.iter().enumerate() {
            trie.insert(filter, subscriber(slot as Slot, filter));
        }
        for topic in topics {
            let expected: Vec<Slot> = (0..filters.len() as Slot)
                .filter(|slot| protocols::mqtt::topic::matches(filters[*slot as usize], topic))
                .collect();
            assert_eq!(slots(&mut trie, topic), expected, "{topic}");
        }
        for (slot, filter) in filters.iter().enumerate() {
            trie.remove(filter, slot as Slot);
        }
        assert!(trie.is_empty(), "nothing is left of filters that are gone");
    }

    #[test]
    fn shared_members_take_turns_and_the_absent_are_passed_over() {
        let mut trie = Topics::default();
        for slot in 0..3 {
            trie.insert("$share/g/a/#", subscriber(slot, "$share/g/a/#"));
        }
        trie.insert("$share/h/a/+", subscriber(9, "$share/h/a/+"));
        let mut counts = [0; 10];
        for _ in 0..9 {
            for slot in slots(&mut trie, "a/x") {
                counts[slot as usize] += 1;
            }
        }
        assert_eq!(counts, [3, 3, 3, 0, 0, 0, 0, 0, 0, 9]);
        let mut found = Vec::new();
        for _ in 0..4 {
            trie.matches("a", &|slot| slot == 2, &mut found);
        }
        assert!(found.iter().all(|subscriber| subscriber.slot == 2) && found.len() == 4);
    }
}
