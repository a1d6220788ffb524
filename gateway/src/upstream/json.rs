//! The JSON dialect: one object a message on `sg/v1/GATEWAY/json/THING/{properties,event,reply,presence,gap}`.
//!
//! An object is [`message_json`] with `epoch` (16 hex digits: it would not fit a JSON number everywhere), `class`, `seq`
//! and, for backlog, `hist`. Numbers that no longer exist are said on `sg/v1/GATEWAY/json/-/gap`.

use device_models::wire::{WireError, message_json};
use device_models::{Body, Message};
use serde_json::{Value, json};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station};
use super::own;

#[derive(Debug)]
pub(super) struct Json;

impl Dialect for Json {
    fn word(&self) -> &'static str {
        "json"
    }

    fn station(&self, scope: Scope<'_>, run: Run) -> Option<Station> {
        Some(own::station(scope, run))
    }

    fn filters(&self, scope: Scope<'_>) -> Vec<String> {
        own::filters(scope)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], _stamp: i64) -> Heard {
        own::hear(scope, topic, payload)
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let messages = parcel.messages.iter().map(|(seq, message)| {
            let object = identified(message_json(message), parcel, Some(*seq));
            let topic =
                format!("sg/v1/{}/json/{}/{}", parcel.scope.gateway, topic_levels(&message.thing), kind(message));
            let origin = Some(parcel.origin(*seq, *seq, Some(&message.thing)));
            (*seq, Publication { origin, ..Publication::json(topic, &object) })
        });
        let holes = parcel.holes.iter().map(|hole| {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            let gap = json!({
                "class": parcel.class.topic(), "first": hole.first, "last": last, "reason": hole.reason,
            });
            let topic = format!("sg/v1/{}/json/-/gap", parcel.scope.gateway);
            let origin = Some(parcel.origin(hole.first, last, None));
            let object = identified(json!({ "gap": gap }), parcel, None);
            (hole.first, Publication { origin, ..Publication::json(topic, &object) })
        });
        let mut all: Vec<(u64, Publication)> = messages.chain(holes).collect();
        all.sort_by_key(|(seq, _)| *seq);
        Ok(all.into_iter().map(|(_, publication)| publication).collect::<Vec<_>>().into())
    }
}

fn identified(mut object: Value, parcel: &Parcel<'_>, seq: Option<u64>) -> Value {
    if let Value::Object(fields) = &mut object {
        fields.insert("epoch".to_owned(), Value::from(format!("{:016x}", parcel.epoch)));
        fields.insert("class".to_owned(), Value::from(parcel.class.topic()));
        if let Some(seq) = seq {
            fields.insert("seq".to_owned(), Value::from(seq));
        }
        if parcel.hist {
            fields.insert("hist".to_owned(), Value::from(true));
        }
    }
    object
}

/// A thing's id as topic levels. What a topic must not hold becomes `_`; the object has the true id.
fn topic_levels(thing: &str) -> String {
    thing.replace(['+', '#', '\0'], "_")
}

const fn kind(message: &Message) -> &'static str {
    match message.body {
        Body::Properties(_) => "properties",
        Body::Event { .. } => "event",
        Body::Reply { .. } => "reply",
        Body::Presence { .. } => "presence",
        Body::Gap { .. } => "gap",
    }
}
