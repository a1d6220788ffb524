//! The values a thing is to have, and how they differ from what it reports. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use device_models::Value;
use device_models::model::Model;
use serde::{Deserialize, Serialize};

use super::ShadowError;
use crate::devices::Latest;

/// Desired properties of one thing: one write has to carry them all.
const PROPERTIES_MAX: usize = 256;
/// Bytes of one thing's desired values as JSON: a datagram must carry the write.
const BYTES_MAX: usize = 16 * 1024;
/// Two numbers closer than this part of the larger one are the same: devices keep 32-bit floats.
const CLOSE: f64 = 1e-6;

/// What is wanted of a shadow: values to have, null for one that is not wanted any more.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patch {
    pub desired: BTreeMap<String, Value>,
    /// The version this change is meant for; any without.
    pub version: Option<u64>,
}

/// A thing's desired values, as they are kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Document {
    pub version: u64,
    pub changed_us: i64,
    pub desired: BTreeMap<Arc<str>, Desired>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Desired {
    pub value: Value,
    /// The thing said yes to a write of a property that it never reports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken: bool,
}

// === impl Document ===

impl Document {
    /// The document with the change in it; `None`: the change changes nothing.
    pub(super) fn patched(
        &self,
        thing: &str,
        model: &Model,
        patch: &Patch,
        now_us: i64,
    ) -> Result<Option<Self>, ShadowError> {
        if let Some(expected) = patch.version.filter(|version| *version != self.version) {
            return Err(ShadowError::Version { thing: thing.to_owned(), expected, is: self.version });
        }
        let mut next = self.clone();
        let mut wanted = Vec::new();
        for (name, value) in &patch.desired {
            if *value == Value::Null {
                let name = model.property(name).map_or(name.as_str(), |property| &property.name);
                next.desired.remove(name);
            } else {
                wanted.push((name.clone(), value.clone()));
            }
        }
        if !wanted.is_empty() {
            let unfit = |mismatch: device_models::model::Mismatch| ShadowError::Unfit(mismatch.to_string());
            for (name, value) in model.check_desired(&wanted).map_err(unfit)? {
                if next.desired.get(&name).is_none_or(|old| old.value != value) {
                    next.desired.insert(name, Desired { value, taken: false });
                }
            }
        }
        if next.desired == self.desired {
            return Ok(None);
        }
        let (properties, bytes) = (next.desired.len(), next.bytes());
        if properties > PROPERTIES_MAX {
            let why = format!("a shadow has at most {PROPERTIES_MAX} desired properties, this would have {properties}");
            return Err(ShadowError::Unfit(why));
        }
        if bytes > BYTES_MAX {
            return Err(ShadowError::Unfit(format!("a shadow has at most {BYTES_MAX} bytes, this would have {bytes}")));
        }
        (next.version, next.changed_us) = (self.version + 1, now_us);
        Ok(Some(next))
    }

    /// What the thing does not have yet.
    pub(super) fn delta(&self, latest: &BTreeMap<Arc<str>, Latest>) -> BTreeMap<Arc<str>, Value> {
        let lacks = |(name, desired): &(&Arc<str>, &Desired)| {
            !desired.taken && !latest.get(*name).is_some_and(|latest| same(&desired.value, &latest.value))
        };
        self.desired.iter().filter(lacks).map(|(name, desired)| (Arc::clone(name), desired.value.clone())).collect()
    }

    /// The thing said yes to these; what it never reports counts as had from now on. True when that changes something.
    pub(super) fn take(&mut self, model: &Model, delta: &BTreeMap<Arc<str>, Value>) -> bool {
        let mut changed = false;
        for (name, value) in delta {
            let silent = model.property(name).is_some_and(|property| !property.access.readable());
            if silent
                && let Some(desired) = self.desired.get_mut(name)
                && desired.value == *value
            {
                changed |= !std::mem::replace(&mut desired.taken, true);
            }
        }
        changed
    }

    /// Bytes of the desired values as JSON.
    pub(super) fn bytes(&self) -> usize {
        serde_json::to_vec(&self.desired).map_or(0, |json| json.len())
    }
}

/// Whether what a device says is what it is to have.
fn same(desired: &Value, said: &Value) -> bool {
    match (desired, said) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((ka, a), (kb, b))| ka == kb && same(a, b))
        }
        _ => match (desired.as_f64(), said.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * CLOSE,
            _ => desired == said,
        },
    }
}

#[cfg(test)]
mod tests {
    use device_models::Quality;
    use device_models::model::Models;
    use proptest::prelude::*;

    use super::*;

    fn patch(json: &str) -> Patch {
        serde_json::from_str(json).unwrap()
    }

    fn model(name: &str) -> Arc<Model> {
        Arc::clone(Models::shipped().unwrap().get(name).unwrap())
    }

    fn latest(values: &[(&str, Value)]) -> BTreeMap<Arc<str>, Latest> {
        let latest = |value: &Value| Latest { value: value.clone(), quality: Quality::Good, time_us: 1 };
        values.iter().map(|(name, value)| (Arc::from(*name), latest(value))).collect()
    }

    #[test]
    fn a_change_raises_the_version_by_one_and_none_leaves_it() {
        let relay = model("relay-switch");
        let empty = Document::default();
        let one = empty.patched("r", &relay, &patch(r#"{"desired":{"relay":true}}"#), 7).unwrap().unwrap();
        assert_eq!((one.version, one.changed_us, one.desired.len()), (1, 7, 1));
        assert!(one.desired.contains_key("on"), "under the model's name");
        assert_eq!(one.patched("r", &relay, &patch(r#"{"desired":{"on":true},"version":1}"#), 8).unwrap(), None);
        let stale = one.patched("r", &relay, &patch(r#"{"desired":{"on":false},"version":0}"#), 8);
        assert_eq!(stale.unwrap_err(), ShadowError::Version { thing: "r".to_owned(), expected: 0, is: 1 });
        let gone = one.patched("r", &relay, &patch(r#"{"desired":{"state":null}}"#), 8).unwrap().unwrap();
        assert_eq!((gone.version, gone.desired.len()), (2, 0));
    }

    #[test]
    fn what_the_model_does_not_allow_is_refused_with_the_reason() {
        let relay = model("relay-switch");
        for (json, reason) in [
            (r#"{"desired":{"power":3}}"#, "read-only"),
            (r#"{"desired":{"on":"perhaps"}}"#, "wants"),
            (r#"{"desired":{"colour":"red"}}"#, "has no property `colour`"),
        ] {
            let error = Document::default().patched("r", &relay, &patch(json), 1).unwrap_err();
            assert!(matches!(&error, ShadowError::Unfit(why) if why.contains(reason)), "{json}: {error}");
        }
        assert!(serde_json::from_str::<Patch>(r#"{"desierd":{}}"#).is_err());
    }

    #[test]
    fn there_is_an_end_to_properties_and_bytes() {
        let generic = model("generic");
        let many: BTreeMap<String, Value> = (0..=PROPERTIES_MAX).map(|n| (format!("p{n}"), Value::Int(1))).collect();
        let long = [("t".to_owned(), Value::Text("x".repeat(BYTES_MAX)))].into();
        for desired in [many, long] {
            let error = Document::default().patched("g", &generic, &Patch { desired, version: None }, 1).unwrap_err();
            assert!(error.to_string().contains("at most"), "{error}");
        }
    }

    #[test]
    fn the_delta_is_what_the_thing_lacks() {
        let relay = model("relay-switch");
        let wish = patch(r#"{"desired":{"on":true}}"#);
        let document = Document::default().patched("r", &relay, &wish, 1).unwrap().unwrap();
        assert_eq!(document.delta(&latest(&[])).len(), 1, "nothing said yet");
        assert_eq!(document.delta(&latest(&[("on", Value::Bool(false))])).len(), 1);
        assert!(document.delta(&latest(&[("on", Value::Bool(true)), ("power", Value::Int(1))])).is_empty());
    }

    proptest! {
        /// The version counts the changes that changed something, whatever the changes; the delta of a thing that has what
        /// it is to have is empty.
        #[test]
        fn versions_count_changes(steps in proptest::collection::vec((0_u8..4, proptest::option::of(-3_i64..3)), 0..30)) {
            let generic = model("generic");
            let mut document = Document::default();
            let mut wanted: BTreeMap<Arc<str>, Value> = BTreeMap::new();
            let mut changes = 0;
            for (name, value) in steps {
                let (name, value) = (format!("p{name}"), value.map_or(Value::Null, Value::Int));
                let before = wanted.clone();
                match &value {
                    Value::Null => drop(wanted.remove(name.as_str())),
                    value => drop(wanted.insert(Arc::from(name.as_str()), value.clone())),
                }
                let patch = Patch { desired: [(name, value)].into(), version: Some(document.version) };
                let next = document.patched("g", &generic, &patch, 1).unwrap();
                prop_assert_eq!(next.is_some(), before != wanted);
                changes += u64::from(next.is_some());
                document = next.unwrap_or(document);
            }
            prop_assert_eq!(document.version, changes);
            prop_assert_eq!(document.delta(&BTreeMap::new()), wanted.clone());
            let said: Vec<(&str, Value)> = wanted
                .iter()
                .map(|(name, value)| (&**name, Value::Float(value.as_f64().unwrap_or_default())))
                .collect();
            prop_assert!(document.delta(&latest(&said)).is_empty());
        }
    }
}
