//! Who was let in, remembered for languages that carry their credentials in every message.
//!
//! Must not be in here: the decision itself; the gateway answers [`Output::Admit`](crate::Output::Admit).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::session::Identity;

/// Pairs of device and secret one session remembers; the oldest goes first and is asked for again.
const ENTRIES_MAX: usize = 512;

/// After this long the gateway is asked again, so that a withdrawn credential ends; where nobody says otherwise.
const AGE_MAX: Duration = Duration::from_secs(600);

type Key = (String, Option<Bytes>);

/// Bounded cache of admissions.
#[derive(Debug)]
pub(crate) struct Admitted {
    age_max: Duration,
    by_key: BTreeMap<Key, (Identity, Instant)>,
    oldest_first: VecDeque<Key>,
}

impl Default for Admitted {
    fn default() -> Self {
        Self::at_most(AGE_MAX)
    }
}

impl Admitted {
    /// The gateway is asked again after so long.
    pub(crate) fn at_most(age_max: Duration) -> Self {
        Self { age_max, by_key: BTreeMap::new(), oldest_first: VecDeque::new() }
    }

    pub(crate) fn get(&self, now: Instant, device: &str, secret: Option<&Bytes>) -> Option<&Identity> {
        let (identity, since) = self.by_key.get(&(device.to_owned(), secret.cloned()))?;
        (now.saturating_duration_since(*since) < self.age_max).then_some(identity)
    }

    /// Remembers an admission; says whether the pair was unknown or forgotten.
    pub(crate) fn insert(&mut self, now: Instant, device: &str, secret: Option<Bytes>, identity: Identity) -> bool {
        let key = (device.to_owned(), secret);
        if self.by_key.insert(key.clone(), (identity, now)).is_some() {
            return false;
        }
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > ENTRIES_MAX {
            self.oldest_first.pop_front().and_then(|oldest| self.by_key.remove(&oldest));
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn remembers_a_bounded_number_for_a_bounded_time() {
        let now = Instant::now();
        let mut admitted = Admitted::default();
        for n in 0..=ENTRIES_MAX {
            assert!(admitted.insert(now, &format!("d{n}"), None, Identity::anonymous()));
        }
        assert!(admitted.get(now, "d0", None).is_none(), "the oldest went");
        assert!(admitted.get(now, "d1", None).is_some());
        assert!(admitted.get(now, "d1", Some(&Bytes::from_static(b"x"))).is_none());
        assert!(admitted.get(now + AGE_MAX, "d1", None).is_none());
        assert!(!admitted.insert(now + AGE_MAX, "d1", None, Identity::anonymous()));
        assert_eq!(admitted.by_key.len(), admitted.oldest_first.len());
    }
}
