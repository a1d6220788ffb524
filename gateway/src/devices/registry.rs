//! The list of things and how a device's own name leads to one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use device_models::Message;
use device_models::model::{Model, Models};
use protocols::Refusal;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::awaited::{Awaited, Flag};
use super::catalog::{Catalog, CatalogThing};
use super::orders::Orders;
use super::state::{Latest, Route, RouteId, State, ThingState};
use crate::bus::{Bus, BusError, Keyed};
use crate::intake::AdapterInfo;

/// Things on one box: a limit of memory (about 1 KiB each without values) and of the catalog sent upstream.
const THINGS_MAX: usize = 10_000;
/// Bytes of a device's name: longer ones do not fit topics and tables.
const NAME_LEN_MAX: usize = 128;
/// Devices one connection may speak for: a gateway behind the gateway, not a flood.
const PER_ROUTE_MAX: usize = 4_096;

/// A thing as configuration declares it.
#[derive(Debug, Clone)]
pub struct Declared {
    pub id: String,
    pub product: String,
    /// Its name in its own protocol.
    pub name: String,
    pub adapter: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    #[error("device `{id}`: there is no model `{product}`; known are {known}")]
    NoModel { id: String, product: String, known: String },
    #[error("device `{id}` is declared twice")]
    Twice { id: String },
    #[error("more than {THINGS_MAX} devices")]
    TooMany,
    #[error("the store: {0}")]
    Store(#[from] BusError),
}

/// One thing.
#[derive(Debug)]
pub struct Thing {
    pub id: Arc<str>,
    /// Its name in its own protocol.
    pub name: Arc<str>,
    pub model: Arc<Model>,
    /// The adapter it must come through; any if absent.
    pub adapter: Option<Arc<str>>,
    pub alias: u32,
    registered_itself: bool,
    pub(super) awaited: Flag,
    state: Mutex<State>,
}

impl Thing {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message's values in as the latest ones.
    pub fn note(&self, message: &Message) {
        self.state().note(message);
    }

    /// Marks the thing online or offline; true when that is a change.
    pub fn set_online(&self, online: bool, now_us: i64) -> bool {
        let mut state = self.state();
        let changed = state.online != online;
        if changed {
            state.online = online;
            state.since_us = now_us;
        }
        changed
    }

    pub fn is_online(&self) -> bool {
        self.state().online
    }

    /// Its newest values by name.
    pub fn latest(&self) -> BTreeMap<Arc<str>, Latest> {
        self.state().latest.clone()
    }

    /// Commands go this way from now on; true when the thing had another way (or none) before.
    pub fn set_route(&self, route: &Route) -> bool {
        let mut state = self.state();
        if state.route.as_ref().is_some_and(|r| r.id == route.id) {
            return false;
        }
        state.route = Some(route.clone());
        true
    }

    /// Forgets the way if it is still this one; true when it was.
    pub fn clear_route(&self, id: RouteId) -> bool {
        let mut state = self.state();
        let ours = state.route.as_ref().is_some_and(|r| r.id == id);
        if ours {
            state.route = None;
            state.left = Some(Instant::now());
        }
        ours
    }

    /// Whether it can be reached, or could within this time.
    pub(super) fn was_there(&self, within: Duration) -> bool {
        let state = self.state();
        state.route.is_some() || state.left.is_some_and(|left| left.elapsed() < within)
    }

    /// Whether an order could be sent to it now.
    pub fn is_reachable(&self) -> bool {
        self.state().route.is_some()
    }

    /// The newest values of these properties, as far as it has said any.
    pub fn latest_of<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>) -> BTreeMap<Arc<str>, Latest> {
        let state = self.state();
        names.filter_map(|name| Some((Arc::clone(name), state.latest.get(name)?.clone()))).collect()
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.state().route.clone()
    }
}

/// All things. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Devices {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    models: Arc<Models>,
    index: RwLock<Index>,
    catalog: watch::Sender<Arc<Catalog>>,
    keyed: Keyed,
    pub(super) bus: Bus,
    pub(super) orders: Orders,
    pub(super) awaited: Awaited,
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<Arc<str>, Arc<Thing>>,
    by_name: HashMap<Arc<str>, Vec<Arc<Thing>>>,
    alias_last: u32,
}

impl Index {
    fn forget(&mut self, thing: &Arc<Thing>) {
        self.by_id.remove(&thing.id);
        if let Some(named) = self.by_name.get_mut(&thing.name) {
            named.retain(|other| !Arc::ptr_eq(other, thing));
            if named.is_empty() {
                self.by_name.remove(&thing.name);
            }
        }
    }
}

/// What the store keeps of a thing: its alias for ever, the rest for those that registered themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    alias: u32,
    product: String,
    name: String,
    adapter: Option<String>,
    registered_itself: bool,
}

const TREE_THINGS: &str = "things";
const TREE_LATEST: &str = "latest";

impl Devices {
    /// Loads what the store knows and takes the declared things in.
    pub fn open(models: Arc<Models>, declared: Vec<Declared>, bus: Bus) -> Result<Self, DevicesError> {
        let keyed = bus.keyed();
        let kept: HashMap<String, Kept> = keyed
            .scan(TREE_THINGS, b"")?
            .into_iter()
            .filter_map(|(id, json)| Some((String::from_utf8(id).ok()?, serde_json::from_slice(&json).ok()?)))
            .collect();
        let index = Index { alias_last: kept.values().map(|k| k.alias).max().unwrap_or(0), ..Index::default() };
        let devices = Self {
            inner: Arc::new(Inner {
                models,
                index: RwLock::new(index),
                catalog: watch::Sender::new(Arc::default()),
                keyed,
                bus,
                orders: Orders::default(),
                awaited: Awaited::default(),
            }),
        };
        for declared in declared {
            let alias = kept.get(&declared.id).map(|k| k.alias);
            devices.declare(declared, alias)?;
        }
        for (id, kept) in kept {
            if kept.registered_itself && devices.by_id(&id).is_none() {
                devices.restore(id, kept);
            }
        }
        devices.publish_catalog();
        Ok(devices)
    }

    fn declare(&self, declared: Declared, alias: Option<u32>) -> Result<(), DevicesError> {
        let Declared { id, product, name, adapter } = declared;
        let Some(model) = self.inner.models.get(&product).cloned() else {
            let known = self.inner.models.names().join(", ");
            return Err(DevicesError::NoModel { id, product, known });
        };
        if self.by_id(&id).is_some() {
            return Err(DevicesError::Twice { id });
        }
        let made = self.insert(&id, &name, model, adapter.as_deref(), alias, false);
        made.map(|_| ()).map_err(|_| DevicesError::TooMany)
    }

    /// A thing that registered itself in an earlier run.
    fn restore(&self, id: String, kept: Kept) {
        let Some(model) = self.inner.models.get(&kept.product).cloned() else {
            return warn!(thing = %id, product = %kept.product, "a registered device's model is gone: it is left out");
        };
        let made = self.insert(&id, &kept.name, model, kept.adapter.as_deref(), Some(kept.alias), true);
        if let Err(refusal) = made {
            warn!(thing = %id, %refusal, "a registered device is left out");
        }
    }

    fn insert(
        &self,
        id: &str,
        name: &str,
        model: Arc<Model>,
        adapter: Option<&str>,
        alias: Option<u32>,
        registered_itself: bool,
    ) -> Result<Arc<Thing>, Refusal> {
        let mut index = self.inner.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(thing) = index.by_id.get(id) {
            return Ok(Arc::clone(thing));
        }
        if index.by_id.len() >= THINGS_MAX {
            return Err(Refusal::Limit(format!("this gateway keeps at most {THINGS_MAX} devices")));
        }
        let alias = alias.unwrap_or(index.alias_last + 1);
        index.alias_last = index.alias_last.max(alias);
        let mut state = State::default();
        // Values that cannot be read are not worth a start: the next report brings new ones.
        if let Ok(Some(json)) = self.inner.keyed.get(TREE_LATEST, id.as_bytes()) {
            state.latest = serde_json::from_slice::<BTreeMap<Arc<str>, Latest>>(&json).unwrap_or_default();
        }
        let thing = Arc::new(Thing {
            id: Arc::from(id),
            name: Arc::from(name),
            model: Arc::clone(&model),
            adapter: adapter.map(Arc::from),
            alias,
            registered_itself,
            awaited: Flag::default(),
            state: Mutex::new(state),
        });
        index.by_id.insert(Arc::clone(&thing.id), Arc::clone(&thing));
        index.by_name.entry(Arc::clone(&thing.name)).or_default().push(Arc::clone(&thing));
        let kept = Kept {
            alias,
            product: model.name().to_string(),
            name: name.to_owned(),
            adapter: adapter.map(str::to_owned),
            registered_itself,
        };
        if let Ok(json) = serde_json::to_vec(&kept)
            && let Err(error) = self.inner.keyed.put(TREE_THINGS, id.as_bytes(), &json)
        {
            warn!(thing = %id, %error, "a device could not be written down: it registers anew after a restart");
        }
        Ok(thing)
    }

    /// The thing a device's own name means on this adapter; registers it where the adapter allows that.
    pub fn resolve(&self, adapter: &AdapterInfo, name: &str, product: Option<&str>) -> Result<Arc<Thing>, Refusal> {
        if let Some(thing) = self.find(adapter, name) {
            return Ok(thing);
        }
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(|c| c.is_control() || "+#".contains(c)) {
            return Err(Refusal::Invalid(format!(
                "a device name has 1 to {NAME_LEN_MAX} bytes and no `+`, `#` or control characters"
            )));
        }
        if !adapter.auto_register {
            return Err(Refusal::NotFound(format!(
                "no device `{name}` is declared, and adapter `{}` does not register devices by itself",
                adapter.name
            )));
        }
        let hinted = product.and_then(|p| self.inner.models.get(p));
        let model = hinted.or_else(|| adapter.product.as_deref().and_then(|p| self.inner.models.get(p)));
        let Some(model) = model.cloned() else {
            return Err(Refusal::NotFound(format!(
                "device `{name}`: there is no model `{}`, and adapter `{}` names no product",
                product.unwrap_or_default(),
                adapter.name
            )));
        };
        // Two adapters may know different devices by one name: the second gets the adapter's name in front.
        let id = match self.by_id(name) {
            None => name.to_owned(),
            Some(_) => format!("{}/{name}", adapter.name),
        };
        let thing = self.insert(&id, name, model, Some(&adapter.name), None, true)?;
        info!(thing = %thing.id, model = %thing.model.name(), adapter = %adapter.name, "registered a new device");
        self.publish_catalog();
        Ok(thing)
    }

    /// Forgets things that registered themselves through this adapter until fewer than `keep` are left of them: those first
    /// that have been offline longest; what is online stays. Told of in the catalog with its next change.
    pub fn make_room(&self, adapter: &str, keep: usize) -> Vec<Arc<Thing>> {
        let mut index = self.inner.index.write().unwrap_or_else(PoisonError::into_inner);
        let own = |thing: &&Arc<Thing>| thing.registered_itself && thing.adapter.as_deref() == Some(adapter);
        let count = index.by_id.values().filter(own).count();
        let Some(excess) = (count + 1).checked_sub(keep).filter(|excess| *excess > 0) else { return Vec::new() };
        let mut offline: Vec<_> = index
            .by_id
            .values()
            .filter(own)
            .filter_map(|thing| {
                let state = thing.state();
                (!state.online).then(|| (state.since_us, Arc::clone(thing)))
            })
            .collect();
        offline.sort_unstable_by_key(|(since_us, thing)| (*since_us, thing.alias));
        let forgotten: Vec<_> = offline.into_iter().take(excess).map(|(_, thing)| thing).collect();
        for thing in &forgotten {
            index.forget(thing);
            for tree in [TREE_THINGS, TREE_LATEST] {
                if let Err(error) = self.inner.keyed.remove(tree, thing.id.as_bytes()) {
                    warn!(thing = %thing.id, %error, "a forgotten device comes back with the next start");
                }
            }
        }
        forgotten
    }

    /// The known thing a device's own name means on this adapter.
    pub fn find(&self, adapter: &AdapterInfo, name: &str) -> Option<Arc<Thing>> {
        let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
        let named = index.by_name.get(name)?;
        let own = named.iter().find(|t| t.adapter.as_deref() == Some(&*adapter.name));
        own.or_else(|| named.iter().find(|t| t.adapter.is_none())).cloned()
    }

    pub fn by_id(&self, id: &str) -> Option<Arc<Thing>> {
        self.inner.index.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    /// Follows the list of things.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.inner.catalog.subscribe()
    }

    fn publish_catalog(&self) {
        let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut things: Vec<_> = index
            .by_id
            .values()
            .map(|t| CatalogThing { alias: t.alias, id: Arc::clone(&t.id), model: Arc::clone(&t.model) })
            .collect();
        things.sort_unstable_by_key(|t| t.alias);
        // Aliases only ever grow, so their last one together with the count names the revision, also after a restart.
        let rev = index.alias_last.wrapping_mul(2).wrapping_add(u32::try_from(things.len()).unwrap_or(u32::MAX));
        self.inner.catalog.send_replace(Arc::new(Catalog { rev, things }));
    }

    /// The state of every thing, by id.
    pub fn snapshot(&self) -> Vec<ThingState> {
        let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut states: Vec<_> = index
            .by_id
            .values()
            .map(|thing| {
                let state = thing.state();
                ThingState {
                    id: Arc::clone(&thing.id),
                    model: Arc::clone(&thing.model),
                    adapter: thing.adapter.clone(),
                    online: state.online,
                    since_us: state.since_us,
                    seen_us: state.seen_us,
                    latest: state.latest.clone(),
                }
            })
            .collect();
        states.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        states
    }

    /// Writes the latest values that changed to the store: one value a thing, however often it changed.
    pub fn save_latest(&self) {
        let things: Vec<_> = {
            let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
            index.by_id.values().cloned().collect()
        };
        for thing in things {
            let json = {
                let mut state = thing.state();
                if !std::mem::take(&mut state.unsaved) {
                    continue;
                }
                serde_json::to_vec(&state.latest)
            };
            if let Ok(json) = json
                && let Err(error) = self.inner.keyed.put(TREE_LATEST, thing.id.as_bytes(), &json)
            {
                debug!(thing = %thing.id, %error, "latest values could not be written down");
                thing.state().unsaved = true;
            }
        }
    }

    /// Things one connection may speak for.
    pub const fn per_route_max() -> usize {
        PER_ROUTE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::config;

    fn adapter(name: &str) -> AdapterInfo {
        let (name, product) = (name.into(), Some("generic".to_owned()));
        AdapterInfo {
            name,
            product,
            auto_register: true,
            allow_anonymous: true,
            push_without_key: Vec::new(),
            commit: None,
        }
    }

    fn open(folder: &std::path::Path) -> (Devices, Bus) {
        let store = config::Store { path: folder.to_owned(), commit_ms: 0, ..config::Store::default() };
        let (bus, _) = Bus::open(&store).unwrap();
        let (id, product, name) = ("declared".to_owned(), "generic".to_owned(), "declared".to_owned());
        let declared = vec![Declared { id, product, name, adapter: Some("here".into()) }];
        (Devices::open(Arc::new(Models::shipped().unwrap()), declared, bus.clone()).unwrap(), bus)
    }

    #[tokio::test]
    async fn room_is_made_by_those_that_have_been_offline_longest() {
        let folder = tempfile::tempdir().unwrap();
        let (devices, bus) = open(folder.path());
        let here = adapter("here");
        for (name, since_us) in [("d1", 30), ("d2", 10), ("d3", 20), ("d4", 40), ("d5", 5)] {
            let thing = devices.resolve(&here, name, None).unwrap();
            assert!(thing.set_online(true, 0) && thing.set_online(false, since_us));
        }
        devices.resolve(&adapter("there"), "other", None).unwrap();
        devices.by_id("d5").unwrap().set_online(true, 50);
        let names = |things: Vec<Arc<Thing>>| things.iter().map(|thing| thing.id.to_string()).collect::<Vec<_>>();
        assert_eq!(names(devices.make_room("here", 6)), [""; 0], "one more fits");
        assert_eq!(names(devices.make_room("here", 4)), ["d2", "d3"]);
        assert_eq!(names(devices.make_room("here", 1)), ["d1", "d4"], "who is online stays");
        assert_eq!(names(devices.make_room("here", 0)), [""; 0]);
        let known = |devices: &Devices| {
            ["d1", "d2", "d3", "d4", "d5", "other", "declared"].map(|id| devices.by_id(id).is_some())
        };
        assert_eq!(known(&devices), [false, false, false, false, true, true, true]);
        assert!(devices.find(&here, "d2").is_none());
        bus.close().await;
        drop((devices, bus));
        let (devices, bus) = open(folder.path());
        assert_eq!(known(&devices), [false, false, false, false, true, true, true], "nor do they come back");
        bus.close().await;
    }
}
