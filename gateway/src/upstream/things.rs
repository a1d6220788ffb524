//! What the way upstream needs of the things on this box: their names, and that an order finds its way.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use device_models::model::{Kind, Model};
use device_models::wire::{Catalog, PropertyName};
use device_models::{Order, Outcome, Value};

use crate::devices::{CatalogThing, Latest};
use crate::shadow::{Patch, ShadowError, Shadows};

/// A thing as it is introduced to a platform.
#[derive(Debug, Clone)]
pub struct Known {
    pub id: Arc<str>,
    pub model: Arc<Model>,
    pub online: bool,
    /// Its newest values by name; only of one that was asked for by its id.
    pub latest: BTreeMap<Arc<str>, Latest>,
}

/// The seam to the registry of things. Its replies to orders go onto the bus by themselves.
pub trait Things: Send + Sync {
    /// The number of the present list of things; grows with every change.
    fn rev(&self) -> u32;

    /// The present list, under the number [`rev`](Self::rev) gave or a later one.
    fn catalog(&self) -> Catalog;

    /// Every thing, with the same numbering as [`catalog`](Self::catalog).
    fn known(&self) -> Vec<Known>;

    /// One thing as it is now.
    fn find(&self, id: &str) -> Option<Known>;

    /// The model of a thing, empty if there is no such thing.
    fn model(&self, thing: &str) -> Arc<str>;

    /// Sends an order to a thing and waits for its end, which is on the bus by then.
    fn order<'a>(&'a self, thing: &'a str, id: &'a str, order: Order, patience: Duration) -> Later<'a, Outcome>;

    /// Keeps an order for a thing that cannot be reached now, `wait` at most or as long as is usual here; true when it is
    /// kept. Its replies go onto the bus by themselves.
    fn defer(
        &self,
        thing: &str,
        id: &str,
        order: &Order,
        patience: Duration,
        wait: Option<Duration>,
    ) -> Result<bool, ShadowError> {
        let _ = (thing, id, order, patience, wait);
        Ok(false)
    }

    /// Changes what a thing is to have; the shadow after it. `insist`: what changes is written once in any case.
    fn change<'a>(&'a self, thing: &'a str, patch: &'a Patch, insist: bool) -> Later<'a, Result<Value, ShadowError>> {
        let _ = (patch, insist);
        Box::pin(async move { Err(ShadowError::NoThing(thing.to_owned())) })
    }
}

/// What is ready later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

// === impl Things for Shadows ===

impl Things for Shadows {
    fn rev(&self) -> u32 {
        self.devices().catalog().borrow().rev
    }

    fn catalog(&self) -> Catalog {
        let list = Arc::clone(&self.devices().catalog().borrow());
        names(list.rev, list.things.iter().map(|thing| (thing.alias, &thing.id, &*thing.model)))
    }

    fn known(&self) -> Vec<Known> {
        let list = Arc::clone(&self.devices().catalog().borrow());
        let online = |id: &str| self.devices().by_id(id).is_some_and(|thing| thing.is_online());
        let known = |thing: &CatalogThing| Known {
            id: Arc::clone(&thing.id),
            model: Arc::clone(&thing.model),
            online: online(&thing.id),
            latest: BTreeMap::new(),
        };
        list.things.iter().map(known).collect()
    }

    fn find(&self, id: &str) -> Option<Known> {
        let thing = self.devices().by_id(id)?;
        let (id, model) = (Arc::clone(&thing.id), Arc::clone(&thing.model));
        Some(Known { id, model, online: thing.is_online(), latest: thing.latest() })
    }

    fn model(&self, thing: &str) -> Arc<str> {
        self.devices().by_id(thing).map_or_else(|| Arc::from(""), |thing| Arc::clone(thing.model.name()))
    }

    fn order<'a>(&'a self, thing: &'a str, id: &'a str, order: Order, patience: Duration) -> Later<'a, Outcome> {
        Box::pin(self.devices().order(thing, id, order, patience))
    }

    fn defer(
        &self,
        thing: &str,
        id: &str,
        order: &Order,
        patience: Duration,
        wait: Option<Duration>,
    ) -> Result<bool, ShadowError> {
        Ok(Self::defer(self, thing, id, order, patience, wait)?.is_some())
    }

    fn change<'a>(&'a self, thing: &'a str, patch: &'a Patch, insist: bool) -> Later<'a, Result<Value, ShadowError>> {
        Box::pin(async move {
            let view = Self::change(self, thing, patch, insist).await?;
            let json = serde_json::to_value(view).map_err(|error| ShadowError::Store(error.to_string()))?;
            Ok(Value::from(json))
        })
    }
}

/// The names behind a list of things: alias, id and model each.
pub fn names<'a>(rev: u32, things: impl Iterator<Item = (u32, &'a Arc<str>, &'a Model)>) -> Catalog {
    let mut catalog = Catalog::new(rev);
    for (alias, id, model) in things {
        catalog.add_thing(alias, Arc::clone(id), Arc::clone(model.name()));
        if catalog.has_model(model.name()) {
            continue;
        }
        for property in model.properties() {
            let name = PropertyName {
                name: Arc::clone(&property.name),
                kind: Arc::from(word(&property.shape.kind)),
                unit: Arc::from(property.unit().unwrap_or_default()),
            };
            catalog.add_property(model.name(), property.alias, name);
        }
    }
    catalog
}

/// The type's word in Thing Models.
const fn word(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "boolean",
        Kind::Int(_) | Kind::TimeMs => "integer",
        Kind::F32 | Kind::F64 => "number",
        Kind::Text | Kind::Bytes | Kind::Enum(_) => "string",
        Kind::Object(_) => "object",
        Kind::Array(_) => "array",
    }
}
