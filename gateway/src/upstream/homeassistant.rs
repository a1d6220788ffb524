//! The Home Assistant dialect: MQTT discovery. Every property is an entity with a state topic of its own, every thing a
//! device; states are retained, so that Home Assistant has them after its own restart.
//!
//! Source: Home Assistant documentation, "MQTT" (www.home-assistant.io/integrations/mqtt, section MQTT Discovery) and
//! the pages of its platforms. `docs/dialects.md` says what becomes what. The entities are in `entities.rs`.

use std::collections::HashSet;

use device_models::wire::{WireError, message_json};
use device_models::{Body, Message, Order, Quality, Sample, Value};
use serde_json::{Value as Json, json};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station, level, superseded, unlevel};
use super::down::{COMMAND_BYTES_MAX, Command, Malformed, PATIENCE};
use super::entities;
use super::things::Known;

const STATUS: &str = "homeassistant/status";
/// Characters of a state; Home Assistant takes no more.
const STATE_MAX: usize = 255;

#[derive(Debug)]
pub(super) struct HomeAssistant;

/// Where a thing's topics begin: `sg/v1/GATEWAY/ha/THING`.
pub(super) fn place(scope: Scope<'_>, thing: &str) -> String {
    format!("{}/{}", base(scope), level(thing))
}

fn base(scope: Scope<'_>) -> String {
    format!("sg/v1/{}/ha", scope.gateway)
}

/// The topic that tells whether the gateway is there.
pub(super) fn gateway_availability(scope: Scope<'_>) -> String {
    format!("{}/availability", base(scope))
}

impl Dialect for HomeAssistant {
    fn word(&self) -> &'static str {
        "homeassistant"
    }

    /// A state is the last one that came.
    fn tells_time(&self) -> bool {
        false
    }

    fn station(&self, scope: Scope<'_>, _run: Run) -> Option<Station> {
        let word = str::to_owned;
        Some(Station::retained(&gateway_availability(scope), word("online"), word("offline"), word("offline")))
    }

    fn filters(&self, scope: Scope<'_>) -> Vec<String> {
        let ways = ["set", "set-text", "invoke"].map(|way| format!("{}/+/{way}/+", base(scope)));
        ways.into_iter().chain([STATUS.to_owned()]).collect()
    }

    fn introduces(&self) -> bool {
        true
    }

    fn introduce(&mut self, scope: Scope<'_>, _now_us: i64, thing: &Known) -> Said {
        let mut said = entities::discovery(scope, thing);
        said.publications.push(availability(scope, &thing.id, thing.online));
        said
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let mut said = Said::default();
        let superseded = if parcel.hist { superseded(parcel.messages, |_| true) } else { HashSet::new() };
        said.leave_out("superseded", superseded.len() as u64);
        for (seq, message) in parcel.messages {
            match &message.body {
                Body::Properties(samples) => {
                    let newest = |at: &usize| !superseded.contains(&(*seq, *at));
                    for (_, sample) in samples.iter().enumerate().filter(|(at, _)| newest(at)) {
                        state(parcel.scope, message, sample, &mut said);
                    }
                }
                _ => note(parcel, message, &mut said),
            }
        }
        let gap = format!("{}/gap", base(parcel.scope));
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            let body = json!({ "gap": { "class": parcel.class.topic(), "first": hole.first, "last": last, "reason": hole.reason } });
            said.publications.push(Publication::json(gap.clone(), &body));
        }
        Ok(said)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], stamp: i64) -> Heard {
        if topic == STATUS {
            return if payload == b"online" { Heard::Introduce } else { Heard::Nothing };
        }
        let Some(rest) = topic.strip_prefix(&format!("{}/", base(scope))) else { return Heard::Nothing };
        let levels: Vec<&str> = rest.split('/').collect();
        let [thing, way, name] = levels[..] else { return Heard::Nothing };
        let (Some(thing), Some(name)) = (unlevel(thing), unlevel(name)) else { return Heard::Nothing };
        let id = scope.command_id(&format!("{way}:{stamp}"));
        let text = match std::str::from_utf8(payload) {
            Ok(text) if text.len() <= COMMAND_BYTES_MAX => text,
            _ => return Heard::Unreadable(format!("a command is text of at most {COMMAND_BYTES_MAX} bytes")),
        };
        let order = match way {
            "set-text" => Ok(Order::Write(vec![(name, Value::Text(text.to_owned()))])),
            "set" => serde_json::from_str::<Json>(text)
                .map(|value| Order::Write(vec![(name, Value::from(value))]))
                .map_err(|_| format!("`{text}` is no value")),
            _ => Ok(Order::Invoke { action: name, input: Value::Null }),
        };
        let command = match order {
            Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
            Err(reason) => Err(Malformed { id, reason }),
        };
        Heard::command(thing, command)
    }
}

fn availability(scope: Scope<'_>, thing: &str, online: bool) -> Publication {
    let payload = if online { "online" } else { "offline" };
    let topic = format!("{}/availability", place(scope, thing));
    Publication::new(topic, payload.as_bytes().to_vec()).retained()
}

fn state(scope: Scope<'_>, message: &Message, sample: &Sample, said: &mut Said) {
    // An entity exists for what the model knows, and takes what is of the model's type.
    match sample.quality {
        Quality::UnknownProperty => return said.leave_out("unknown-property", 1),
        Quality::WrongType => return said.leave_out("wrong-type", 1),
        Quality::Good | Quality::OutOfRange | Quality::WrongTime if sample.alias == 0 => {
            return said.leave_out("no-entity", 1);
        }
        Quality::Good | Quality::OutOfRange | Quality::WrongTime => {}
    }
    let payload = match &sample.value {
        Value::Null => "None".to_owned(),
        Value::Float(value) if !value.is_finite() => "None".to_owned(),
        Value::Text(text) if text.chars().count() > STATE_MAX => return said.leave_out("too-long", 1),
        Value::Text(text) => text.clone(),
        Value::Bytes(_) | Value::Array(_) | Value::Object(_) => return said.leave_out("unsupported", 1),
        value => Json::from(value).to_string(),
    };
    let topic = format!("{}/state/{}", place(scope, &message.thing), level(&sample.name));
    said.publications.push(Publication::new(topic, payload.into_bytes()).retained());
}

/// Everything but properties.
fn note(parcel: &Parcel<'_>, message: &Message, said: &mut Said) {
    let scope = parcel.scope;
    let publication = match &message.body {
        Body::Event { quality: Quality::UnknownProperty, .. } => return said.leave_out("no-entity", 1),
        Body::Event { name, .. } => {
            let mut body = message_json(message);
            let event = body.get_mut("event").map(Json::take).unwrap_or_default();
            let mut body = json!({
                "event_type": name.as_ref(), "time": body["time"], "level": event["level"], "data": event["data"],
            });
            if let (Json::Object(fields), true) = (&mut body, parcel.hist) {
                fields.insert("historical".to_owned(), Json::from(true));
            }
            Publication::json(format!("{}/event/{}", place(scope, &message.thing), level(name)), &body)
        }
        Body::Presence { online, .. } => availability(scope, &message.thing, *online),
        Body::Reply { id, .. } if scope.own(id).is_none() => return,
        Body::Reply { .. } => {
            Publication::json(format!("{}/reply", place(scope, &message.thing)), &message_json(message))
        }
        Body::Gap { .. } => Publication::json(format!("{}/gap", base(scope)), &message_json(message)),
        Body::Properties(_) => return,
    };
    said.publications.push(publication);
}

#[cfg(test)]
mod tests {
    use device_models::Class;

    use super::super::golden::{
        self, SCOPE, documented, event, gap, hear, lines, message, order, presence, reply, report, said, sample,
    };
    use super::*;

    fn config(said: &Said, topic: &str) -> Json {
        let lines = lines(&said.publications);
        let found = lines.iter().find(|(known, _)| known == &format!("{topic}/config (retained)"));
        serde_json::from_str(&found.unwrap_or_else(|| panic!("{topic} is not in {lines:#?}")).1).unwrap()
    }

    /// Required and used keys as the pages of the platforms name them.
    #[test]
    fn every_property_is_an_entity_of_its_kind() {
        let said = HomeAssistant.introduce(SCOPE, 0, &golden::meter());
        let energy = config(&said, "homeassistant/sensor/box-1_meter-1/energy");
        assert_eq!(energy["unit_of_measurement"], "kWh");
        assert_eq!((&energy["device_class"], &energy["state_class"]), (&json!("energy"), &json!("total_increasing")));
        assert_eq!(energy["state_topic"], "sg/v1/box-1/ha/meter-1/state/energy");
        assert_eq!(energy["unique_id"], "sluicegate/box-1/meter-1/energy");
        assert_eq!(energy["device"]["identifiers"], json!(["sluicegate/box-1/meter-1"]));
        assert_eq!(
            energy["availability"],
            json!([{ "topic": "sg/v1/box-1/ha/availability" }, { "topic": "sg/v1/box-1/ha/meter-1/availability" }])
        );
        assert!(energy.get("command_topic").is_none(), "{energy}");
        let last = lines(&said.publications).pop();
        let availability = ("sg/v1/box-1/ha/meter-1/availability (retained)".to_owned(), "online".to_owned());
        assert_eq!(last, Some(availability));
        let switch =
            config(&HomeAssistant.introduce(SCOPE, 0, &golden::relay()), "homeassistant/switch/box-1_relay-1/on");
        assert_eq!(switch["command_topic"], "sg/v1/box-1/ha/relay-1/set/on");
        assert_eq!((&switch["payload_on"], &switch["payload_off"]), (&json!("true"), &json!("false")));
    }

    #[test]
    fn states_are_plain_and_what_no_entity_holds_is_counted() {
        let live = said(&HomeAssistant, Class::Live, false, vec![report()], &[]);
        let state =
            |name: &str, value: &str| (format!("sg/v1/box-1/ha/meter-1/state/{name} (retained)"), value.to_owned());
        assert_eq!(lines(&live.publications), [state("power", "230.5"), state("voltage", "900")]);
        let odd = message(Body::Properties(vec![
            sample(1, "a", Value::Text("wet".to_owned()), Quality::WrongType),
            sample(0, "b", Value::Int(1), Quality::UnknownProperty),
            sample(0, "c", Value::Int(1), Quality::Good),
            sample(2, "d", Value::Float(f64::NAN), Quality::Good),
            sample(3, "e", Value::Text("x".repeat(256)), Quality::Good),
            sample(4, "f", Value::Array(vec![]), Quality::Good),
        ]));
        let said = said(&HomeAssistant, Class::Live, false, vec![odd], &[]);
        assert_eq!(lines(&said.publications), [state("d", "None")]);
        let reasons = ["wrong-type", "unknown-property", "no-entity", "too-long", "unsupported"];
        assert_eq!(said.left_out, reasons.map(|reason| (reason, 1)));
    }

    #[test]
    fn of_backlog_only_the_newest_value_goes() {
        let value = |value| message(Body::Properties(vec![sample(1, "power", Value::Int(value), Quality::Good)]));
        let backlog = said(&HomeAssistant, Class::Live, true, vec![value(1), value(2), value(3)], &[]);
        assert_eq!(lines(&backlog.publications).iter().map(|(_, payload)| payload.as_str()).collect::<Vec<_>>(), ["3"]);
        assert_eq!(backlog.left_out, [("superseded", 2)]);
        let live = said(&HomeAssistant, Class::Live, false, vec![value(1), value(2)], &[]);
        assert_eq!((live.publications.len(), live.left_out.len()), (2, 0));
    }

    #[test]
    fn settings_and_buttons_become_orders_and_a_birth_asks_for_introductions() {
        let way = |way: &str| format!("sg/v1/box-1/ha/relay-1/{way}");
        let (thing, command) = order(&mut HomeAssistant, &way("set/on"), "true");
        assert_eq!((thing.as_str(), command.id.as_str()), ("relay-1", "platform:set:7"));
        assert_eq!(command.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        let (_, command) = order(&mut HomeAssistant, &way("set-text/label"), "12");
        assert_eq!(command.order, Order::Write(vec![("label".to_owned(), Value::Text("12".to_owned()))]));
        let (_, command) = order(&mut HomeAssistant, &way("invoke/toggle"), "PRESS");
        assert_eq!(command.order, Order::Invoke { action: "toggle".to_owned(), input: Value::Null });
        assert_eq!(hear(&mut HomeAssistant, STATUS, "online"), Heard::Introduce);
        assert_eq!(hear(&mut HomeAssistant, STATUS, "offline"), Heard::Nothing);
        let heard = hear(&mut HomeAssistant, &way("set/on"), "maybe");
        assert!(matches!(heard, Heard::Command { command: Err(_), .. }), "{heard:?}");
    }

    #[test]
    fn homeassistant_is_documented() {
        let mut all = HomeAssistant.introduce(SCOPE, 0, &golden::relay()).publications;
        all.extend(said(&HomeAssistant, Class::Live, false, vec![report()], &[]).publications);
        all.extend(said(&HomeAssistant, Class::Event, false, vec![event()], &[]).publications);
        let control = vec![reply("platform:set:7", Ok(Value::Null)), presence(false), gap()];
        all.extend(said(&HomeAssistant, Class::Control, false, control, &[]).publications);
        documented(&HomeAssistant, &all);
    }
}
