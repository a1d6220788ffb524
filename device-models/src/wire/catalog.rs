//! What aliases mean: things, and the properties of their models, in one numbered revision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prost::Message as _;

use super::WireError;
use super::generated as pb;

/// Names behind the aliases. Batches name the revision that they were written with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    rev: u32,
    things: BTreeMap<u32, (Arc<str>, Arc<str>)>,
    aliases: HashMap<Arc<str>, u32>,
    models: BTreeMap<Arc<str>, BTreeMap<u32, PropertyName>>,
}

/// One property of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyName {
    pub name: Arc<str>,
    /// As in thing models: `boolean`, `integer`, `number`, `string`, `object`, `array`.
    pub kind: Arc<str>,
    /// Symbol such as `°C`; empty: none.
    pub unit: Arc<str>,
}

impl Catalog {
    /// An empty catalog: everything goes by name. `rev` 0 is for catalogs that stay empty.
    pub fn new(rev: u32) -> Self {
        Self { rev, ..Self::default() }
    }

    pub const fn rev(&self) -> u32 {
        self.rev
    }

    /// Names a thing. Alias 0 means "no alias" on the wire and is not taken.
    pub fn add_thing(&mut self, alias: u32, id: Arc<str>, model: Arc<str>) {
        if alias != 0 {
            self.aliases.insert(Arc::clone(&id), alias);
            self.things.insert(alias, (id, model));
        }
    }

    /// Names a property of a model. Alias 0 means "not in the model" and is not taken.
    pub fn add_property(&mut self, model: &Arc<str>, alias: u32, property: PropertyName) {
        if alias != 0 {
            self.models.entry(Arc::clone(model)).or_default().insert(alias, property);
        }
    }

    /// Whether the model's properties are in here already.
    pub fn has_model(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Id and model of the thing with this alias.
    pub fn thing(&self, alias: u32) -> Option<(&Arc<str>, &Arc<str>)> {
        self.things.get(&alias).map(|(id, model)| (id, model))
    }

    /// The alias of a thing, if it is known with this model.
    pub fn alias(&self, id: &str, model: &str) -> Option<u32> {
        let alias = *self.aliases.get(id)?;
        self.things.get(&alias).is_some_and(|(_, known)| known.as_ref() == model).then_some(alias)
    }

    pub fn property(&self, model: &str, alias: u32) -> Option<&PropertyName> {
        self.models.get(model)?.get(&alias)
    }

    /// A property by its name, with linear effort: for showing units, not for decoding.
    pub fn property_named(&self, model: &str, name: &str) -> Option<&PropertyName> {
        self.models.get(model)?.values().find(|property| property.name.as_ref() == name)
    }

    /// The retained message of topic `…/model/REV`.
    pub fn encode(&self) -> Vec<u8> {
        let thing = self.things.iter().map(|(alias, (id, model))| pb::Thing {
            alias: *alias,
            id: id.as_ref().to_owned(),
            model: model.as_ref().to_owned(),
        });
        let model = self.models.iter().map(|(name, properties)| pb::Model {
            name: name.as_ref().to_owned(),
            property: properties
                .iter()
                .map(|(alias, property)| pb::Property {
                    alias: *alias,
                    name: property.name.as_ref().to_owned(),
                    r#type: property.kind.as_ref().to_owned(),
                    unit: property.unit.as_ref().to_owned(),
                })
                .collect(),
        });
        pb::Catalog { rev: self.rev, thing: thing.collect(), model: model.collect() }.encode_to_vec()
    }

    /// What [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let read = pb::Catalog::decode(bytes)?;
        let mut catalog = Self::new(read.rev);
        for thing in read.thing {
            catalog.add_thing(thing.alias, Arc::from(thing.id), Arc::from(thing.model));
        }
        for model in read.model {
            let name = Arc::from(model.name);
            for property in model.property {
                let named = PropertyName {
                    name: Arc::from(property.name),
                    kind: Arc::from(property.r#type),
                    unit: Arc::from(property.unit),
                };
                catalog.add_property(&name, property.alias, named);
            }
        }
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_comes_back() {
        let mut catalog = Catalog::new(7);
        catalog.add_thing(1, "meter-1".into(), "energy-meter".into());
        let watt = PropertyName { name: "power".into(), kind: "number".into(), unit: "W".into() };
        catalog.add_property(&"energy-meter".into(), 3, watt.clone());
        let back = Catalog::decode(&catalog.encode()).unwrap();
        assert_eq!(back, catalog);
        assert_eq!(back.alias("meter-1", "energy-meter"), Some(1));
        assert_eq!(back.alias("meter-1", "relay"), None);
        assert_eq!(back.property("energy-meter", 3), Some(&watt));
        assert_eq!(back.property_named("energy-meter", "power"), Some(&watt));
    }
}
