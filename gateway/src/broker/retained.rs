//! The last message of each topic that asked to be kept, bounded in bytes.
//!
//! A new subscriber walks through them at its own pace: the walk holds the topic it came to, so that any number of
//! retained messages costs no queue.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use protocols::exchange::Publication;
use protocols::mqtt::topic;

/// Topics one step of a walk looks at: bounds how long the exchange is held.
const STEP_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Retained {
    topics: BTreeMap<Arc<str>, Entry>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    publication: Publication,
    arrived: Instant,
}

/// A subscriber's way through the retained messages.
#[derive(Debug)]
pub(super) struct Walk {
    pub filter: Arc<str>,
    pub subscriber: super::topics::Subscriber,
    after: Option<Arc<str>>,
}

pub(super) enum Step {
    Found(Publication),
    /// Not yet through, nothing found in this step.
    More,
    Done,
}

/// What became of a message to be retained.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Stored,
    Cleared,
    /// There was none to clear.
    Nothing,
    /// It does not fit; the topic has no retained message now, for an old one would be wrong.
    TurnedAway,
}

impl Walk {
    pub(super) fn new(filter: Arc<str>, subscriber: super::topics::Subscriber) -> Self {
        Self { filter, subscriber, after: None }
    }
}

// === impl Retained ===

impl Retained {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { topics: BTreeMap::new(), bytes: 0, bytes_max }
    }

    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Stores the publication, or clears its topic when it has no payload.
    pub(super) fn set(&mut self, publication: &Publication, now: Instant) -> Kept {
        let old = self.topics.remove(&*publication.topic);
        if let Some(old) = &old {
            self.bytes -= size(&old.publication);
        }
        if publication.payload.is_empty() {
            return if old.is_some() { Kept::Cleared } else { Kept::Nothing };
        }
        let size = size(publication);
        if self.bytes + size > self.bytes_max {
            return Kept::TurnedAway;
        }
        self.bytes += size;
        let mut publication = publication.clone();
        // A slice would keep the whole read buffer it came in.
        publication.payload = Bytes::copy_from_slice(&publication.payload);
        publication.retain = true;
        self.topics.insert(Arc::clone(&publication.topic), Entry { publication, arrived: now });
        Kept::Stored
    }

    /// The next retained message of the walk.
    pub(super) fn step(&mut self, walk: &mut Walk, now: Instant) -> Step {
        let literal = literal(&walk.filter);
        let from = match &walk.after {
            Some(after) => Bound::Excluded(&**after),
            None => Bound::Included(literal),
        };
        let mut expired = None;
        let mut step = Step::More;
        let mut last = None;
        let mut looked_at = 0;
        for (name, entry) in self.topics.range::<str, _>((from, Bound::Unbounded)) {
            if !name.starts_with(literal) {
                return Step::Done;
            }
            looked_at += 1;
            last = Some(Arc::clone(name));
            if topic::matches(&walk.filter, name) {
                match remaining(&entry.publication, entry.arrived, now) {
                    Some(publication) => step = Step::Found(publication),
                    None => expired = Some(Arc::clone(name)),
                }
                break;
            }
            if looked_at == STEP_MAX {
                break;
            }
        }
        if looked_at == 0 {
            return Step::Done;
        }
        walk.after = last;
        if let Some(gone) = expired.and_then(|name| self.topics.remove(&name)) {
            self.bytes -= size(&gone.publication);
        }
        step
    }
}

/// Bytes a message takes, with its bookkeeping.
pub(super) fn size(publication: &Publication) -> usize {
    let properties = publication.properties.as_ref().map_or(0, |properties| {
        let user: usize = properties.user.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let correlation = properties.correlation_data.as_ref().map_or(0, Bytes::len);
        size_of_val(&**properties)
            + user
            + text(&properties.content_type)
            + text(&properties.response_topic)
            + correlation
    });
    publication.topic.len() + publication.payload.len() + properties + 128
}

/// The publication with what is left of its expiry; `None` when it has expired.
pub(super) fn remaining(publication: &Publication, arrived: Instant, now: Instant) -> Option<Publication> {
    let mut publication = publication.clone();
    if let Some(properties) = &publication.properties
        && let Some(expiry) = properties.expiry
    {
        let waited = now.saturating_duration_since(arrived);
        if waited >= expiry {
            return None;
        }
        if waited.as_secs() > 0 {
            let mut properties = protocols::exchange::Properties::clone(properties);
            properties.expiry = Some(expiry.saturating_sub(waited));
            publication.properties = Some(Arc::new(properties));
        }
    }
    Some(publication)
}

/// What all topics of a filter begin with.
fn literal(filter: &str) -> &str {
    let end = filter.find(['+', '#']).unwrap_or(filter.len());
    let literal = filter.get(..end).unwrap_or_default();
    // `a/#` takes `a` too.
    if end < filter.len() { literal.strip_suffix('/').unwrap_or(literal) } else { literal }
}
