//! What upstream needs to read aliases: every thing with its dense number and its model.

use std::sync::Arc;

use device_models::model::Model;

/// A revision of the list of things. A new thing makes a new revision; an alias is never given twice.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub rev: u32,
    pub things: Vec<CatalogThing>,
}

#[derive(Debug, Clone)]
pub struct CatalogThing {
    pub alias: u32,
    pub id: Arc<str>,
    pub model: Arc<Model>,
}
