//! What a thing is to have and what it has: changed, reported, looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use device_models::Value;

use super::{DELTA_PAUSE, State, TREE_SHADOWS, TRIES_MAX};
use crate::bus::Keyed;
use crate::devices::{Latest, Sign, Thing};
use crate::shadow::document::{Document, Patch};
use crate::shadow::{ShadowError, ShadowView};
use crate::{clock, config};

impl State {
    /// Changes what a thing is to have; false when that is what it was to have already.
    pub(in crate::shadow) fn change(
        &mut self,
        keyed: &Keyed,
        config: &config::Shadow,
        thing: &Thing,
        patch: &Patch,
        insist: bool,
    ) -> Result<bool, ShadowError> {
        let none = Document::default();
        let (before, old_bytes) =
            self.entries.get(&thing.id).map_or((&none, 0), |entry| (&entry.document, entry.document_bytes));
        let Some(next) = before.patched(&thing.id, &thing.model, patch, clock::now_us())? else { return Ok(false) };
        let bytes = next.bytes();
        if bytes > old_bytes {
            self.room(config, bytes - old_bytes)?;
        }
        keep_document(keyed, &thing.id, &next)?;
        self.bytes = self.bytes + bytes - old_bytes;
        let entry = self.entry(thing);
        if insist {
            let changed = next.desired.iter().filter(|(name, to)| entry.document.desired.get(*name) != Some(to));
            entry.insisted.extend(changed.map(|(name, _)| Arc::clone(name)));
        }
        (entry.document, entry.document_bytes) = (next, bytes);
        (entry.delta_tries, entry.delta_pause, entry.delta_error) = (0, None, None);
        self.wake(&thing.id, Sign::Spoke);
        Ok(true)
    }

    /// The thing answered a write of these.
    pub(in crate::shadow) fn written(
        &mut self,
        keyed: &Keyed,
        thing: &Thing,
        values: &BTreeMap<Arc<str>, Value>,
        handed_over: bool,
        error: Option<String>,
    ) {
        let Some(entry) = self.entries.get_mut(&thing.id) else { return };
        if handed_over {
            entry.insisted.retain(|name| !values.contains_key(name));
        }
        let pause = DELTA_PAUSE.saturating_mul(1 << entry.delta_tries.min(5));
        let at = Instant::now() + pause;
        entry.delta_tries += 1;
        entry.delta_pause = Some(at);
        if error.is_none() && entry.document.take(&thing.model, values) {
            // At worst the thing is told once more after a restart.
            drop(keep_document(keyed, &thing.id, &entry.document));
        }
        entry.delta_error = error;
        self.due.insert((at, Arc::clone(&thing.id)));
    }

    pub(in crate::shadow) fn mark(&self, thing: &str) -> (u64, usize) {
        self.entries.get(thing).map_or((0, 0), |entry| (entry.document.version, entry.queue.len()))
    }

    pub(in crate::shadow) fn view(
        &self,
        thing: &Thing,
        latest: &BTreeMap<Arc<str>, Latest>,
        reported: BTreeMap<Arc<str>, Value>,
    ) -> ShadowView {
        let entry = self.entries.get(&thing.id);
        let none = Document::default();
        let document = entry.map_or(&none, |entry| &entry.document);
        let delta = document.delta(latest);
        let tries = entry.map_or(0, |entry| entry.delta_tries);
        let state = match (delta.is_empty(), thing.is_reachable()) {
            (true, _) => "in-sync",
            (_, false) => "offline",
            _ if tries >= TRIES_MAX => "given-up",
            _ => "sending",
        };
        let error = entry.and_then(|entry| entry.delta_error.clone()).filter(|_| !delta.is_empty());
        ShadowView {
            thing: thing.id.to_string(),
            version: document.version,
            changed_us: document.changed_us,
            desired: document.desired.iter().map(|(name, d)| (Arc::clone(name), d.value.clone())).collect(),
            reported,
            delta,
            state,
            error,
            commands: entry.map_or(0, |entry| entry.queue.len()),
        }
    }
}

fn keep_document(keyed: &Keyed, thing: &str, document: &Document) -> Result<(), ShadowError> {
    let json = serde_json::to_vec(document).map_err(|error| ShadowError::Store(error.to_string()))?;
    keyed.put(TREE_SHADOWS, thing.as_bytes(), &json)?;
    Ok(())
}
