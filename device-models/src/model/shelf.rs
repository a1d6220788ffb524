//! The models a gateway knows: the shipped ones, and the operator's own beside them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MODELS_MAX, Model, ModelError};

/// The shipped models. A product is added by its file and its line here.
const SHIPPED: [(&str, &str); 6] = [
    ("energy-meter.tm.json", include_str!("../../models/energy-meter.tm.json")),
    ("generic.tm.json", include_str!("../../models/generic.tm.json")),
    ("gps-tracker.tm.json", include_str!("../../models/gps-tracker.tm.json")),
    ("ip-camera.tm.json", include_str!("../../models/ip-camera.tm.json")),
    ("relay-switch.tm.json", include_str!("../../models/relay-switch.tm.json")),
    ("temperature-humidity.tm.json", include_str!("../../models/temperature-humidity.tm.json")),
];

/// Models by name. Names are unique: an operator's model never replaces a shipped one in silence.
#[derive(Debug, Clone, Default)]
pub struct Models {
    by_name: BTreeMap<Arc<str>, Arc<Model>>,
}

impl Models {
    /// An empty shelf.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shelf with the shipped models. Fails only if a shipped file is flawed, which a test excludes.
    pub fn shipped() -> Result<Self, ModelError> {
        let mut models = Self::new();
        for (file, json) in SHIPPED {
            models.add(file, json)?;
        }
        Ok(models)
    }

    /// Reads one more model; `file` is its file's name, with or without folders before it.
    pub fn add(&mut self, file: &str, json: &str) -> Result<Arc<Model>, ModelError> {
        if self.by_name.len() >= MODELS_MAX {
            return Err(ModelError::TooMany { file: file.to_owned() });
        }
        let model = Arc::new(Model::parse(file, json)?);
        if self.by_name.contains_key(model.name()) {
            return Err(ModelError::NameTaken { file: file.to_owned(), name: model.name().to_string() });
        }
        self.by_name.insert(model.name().clone(), model.clone());
        Ok(model)
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Model>> {
        self.by_name.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.by_name.values()
    }

    /// All names, for texts that say what would be right.
    pub fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(|name| &**name).collect()
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}
