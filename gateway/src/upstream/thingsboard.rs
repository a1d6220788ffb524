//! The ThingsBoard dialect: the MQTT gateway API, `v1/gateway/{connect,disconnect,telemetry,attributes,rpc}`.
//!
//! Source: ThingsBoard documentation, "MQTT Gateway API Reference" (thingsboard.io/docs/reference/gateway-mqtt-api).
//! `docs/dialects.md` says what becomes what.

use std::collections::BTreeMap;

use device_models::wire::WireError;
use device_models::{Body, Failure, Message, Order, Outcome, Quality, Sample, Value};
use serde_json::{Map, Value as Json, json};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station};
use super::down::{self, Change, Command, Malformed, PATIENCE};
use super::things::Known;
use crate::shadow::Patch;

const CONNECT: &str = "v1/gateway/connect";
const DISCONNECT: &str = "v1/gateway/disconnect";
const TELEMETRY: &str = "v1/gateway/telemetry";
const ATTRIBUTES: &str = "v1/gateway/attributes";
const RPC: &str = "v1/gateway/rpc";
/// The gateway is a device too; what is nobody's goes under its own name.
const OWN_TELEMETRY: &str = "v1/devices/me/telemetry";
/// Bytes of one payload: the platform's own limit (`NETTY_MAX_PAYLOAD_SIZE`) is 64 KiB, and it hangs up beyond.
const PAYLOAD_MAX: usize = 60_000;
/// Beside the values of one entry: `{"ts":1772352900250,"values":},`.
const ENTRY_BESIDE: usize = 40;

#[derive(Debug)]
pub(super) struct ThingsBoard;

impl Dialect for ThingsBoard {
    fn word(&self) -> &'static str {
        "thingsboard"
    }

    fn station(&self, _scope: Scope<'_>, _run: Run) -> Option<Station> {
        // The platform sees the gateway's own connection.
        None
    }

    fn filters(&self, _scope: Scope<'_>) -> Vec<String> {
        vec![RPC.to_owned(), ATTRIBUTES.to_owned()]
    }

    fn introduces(&self) -> bool {
        true
    }

    fn introduce(&mut self, _scope: Scope<'_>, _now_us: i64, thing: &Known) -> Said {
        if thing.online { vec![connect(&thing.id, thing.model.name())].into() } else { Said::default() }
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let mut said = Said::default();
        let mut telemetry = Telemetry::default();
        for (_, message) in parcel.messages {
            if let Some(values) = values(message, &mut said) {
                telemetry.add(message, values, &mut said);
                continue;
            }
            telemetry.close(&mut said);
            said.publications.extend(note(parcel.scope, message));
        }
        telemetry.close(&mut said);
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            said.publications.push(gap(parcel.now_us, parcel.class.topic(), hole.first, last, &hole.reason));
        }
        Ok(said)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], stamp: i64) -> Heard {
        let json = match down::json(payload) {
            Ok(json) => json,
            Err(why) => return Heard::Unreadable(why),
        };
        let (device, data) = (json.get("device").and_then(Json::as_str), json.get("data"));
        match (topic, device, data) {
            // A reply, ours or another's.
            (RPC, _, _) if json.get("id").is_some() => Heard::Nothing,
            (RPC, Some(device), Some(data)) => called(scope, device, data),
            (ATTRIBUTES, Some(device), Some(Json::Object(data))) => shared(scope, device, data, stamp),
            // What a client says of itself has devices for keys.
            (ATTRIBUTES, None, _) => Heard::Nothing,
            _ => Heard::Unreadable("it takes `device` and `data`".to_owned()),
        }
    }
}

// === up ===

fn connect(device: &str, model: &str) -> Publication {
    let body = if model.is_empty() { json!({ "device": device }) } else { json!({ "device": device, "type": model }) };
    Publication::json(CONNECT.to_owned(), &body)
}

/// What goes as telemetry; `None` for what does not.
fn values(message: &Message, said: &mut Said) -> Option<Map<String, Json>> {
    let mut values = Map::new();
    match &message.body {
        Body::Properties(samples) => {
            let mut bad = Map::new();
            for Sample { name, value, quality, .. } in samples {
                let value = Json::from(value);
                if value.is_null() {
                    // One null, and the platform refuses the whole message.
                    said.leave_out("null", 1);
                    continue;
                }
                if *quality != Quality::Good {
                    bad.insert(name.as_ref().to_owned(), word(quality));
                }
                values.insert(name.as_ref().to_owned(), value);
            }
            if !bad.is_empty() {
                values.insert("_quality".to_owned(), Json::Object(bad));
            }
        }
        Body::Event { name, level, data, quality } => {
            let mut event = json!({ "level": word(level), "data": Json::from(data) });
            if let (Json::Object(event), true) = (&mut event, *quality != Quality::Good) {
                event.insert("quality".to_owned(), word(quality));
            }
            values.insert(format!("event.{name}"), event);
        }
        _ => return None,
    }
    Some(values)
}

/// What does not go as telemetry of a thing.
fn note(scope: Scope<'_>, message: &Message) -> Option<Publication> {
    let thing = message.thing.as_ref();
    match &message.body {
        Body::Presence { online: true, .. } => Some(connect(thing, &message.model)),
        Body::Presence { online: false, .. } => {
            Some(Publication::json(DISCONNECT.to_owned(), &json!({ "device": thing })))
        }
        Body::Gap { class, first, last, reason } => Some(gap(message.time_us, class.topic(), *first, *last, reason)),
        // The platform takes the first reply to a call for its end.
        Body::Reply { outcome: Err(Failure::Waiting(_)), .. } => None,
        Body::Reply { id, outcome } => {
            let tag = scope.own(id)?;
            let outcome = outcome_json(outcome);
            if let ("rpc", id) = tag.split_once(':')? {
                let (_, id) = id.split_once(':')?;
                let id = id.parse::<i64>().map_or_else(|_| Json::from(id), Json::from);
                let body = json!({ "device": thing, "id": id, "data": outcome });
                return Some(Publication::json(RPC.to_owned(), &body));
            }
            // That the wish is kept; the whole shadow is more than the platform asked for.
            let kept = if outcome["success"] == true { json!({ "success": true }) } else { outcome };
            Some(Publication::json(ATTRIBUTES.to_owned(), &json!({ thing: { "lastWrite": kept } })))
        }
        Body::Properties(_) | Body::Event { .. } => None,
    }
}

fn outcome_json(outcome: &Outcome) -> Json {
    match outcome {
        Ok(Value::Null) => json!({ "success": true }),
        Ok(value) => json!({ "success": true, "value": Json::from(value) }),
        Err(failure) => json!({ "success": false, "error": failure.to_string() }),
    }
}

fn gap(time_us: i64, class: &str, first: u64, last: u64, reason: &str) -> Publication {
    let gap = json!({ "class": class, "first": first, "last": last, "reason": reason });
    let body = json!({ "ts": time_us.div_euclid(1000), "values": { "gap": gap } });
    Publication::json(OWN_TELEMETRY.to_owned(), &body)
}

fn word(word: &impl serde::Serialize) -> Json {
    serde_json::to_value(word).unwrap_or_default()
}

/// Entries of several things on their way into one payload.
#[derive(Default)]
struct Telemetry {
    things: BTreeMap<String, Vec<Json>>,
    bytes: usize,
}

impl Telemetry {
    fn add(&mut self, message: &Message, values: Map<String, Json>, said: &mut Said) {
        if values.is_empty() {
            return;
        }
        let values = Json::Object(values);
        let bytes = values.to_string().len() + message.thing.len() + ENTRY_BESIDE;
        if self.bytes + bytes > PAYLOAD_MAX {
            self.close(said);
        }
        self.bytes += bytes;
        let entry = json!({ "ts": message.time_us.div_euclid(1000), "values": values });
        self.things.entry(message.thing.as_ref().to_owned()).or_default().push(entry);
    }

    fn close(&mut self, said: &mut Said) {
        if !self.things.is_empty() {
            let things = std::mem::take(&mut self.things);
            said.publications.push(Publication::json(TELEMETRY.to_owned(), &json!(things)));
        }
        self.bytes = 0;
    }
}

// === down ===

/// A call: `write` and `read` are ours, every other method is an action of the thing.
fn called(scope: Scope<'_>, device: &str, data: &Json) -> Heard {
    let id = match data.get("id") {
        Some(Json::String(id)) => id.clone(),
        Some(Json::Number(id)) => id.to_string(),
        _ => return Heard::Unreadable("a call has an `id`".to_owned()),
    };
    // The platform counts calls for each device.
    let id = scope.command_id(&format!("rpc:{:08x}:{id}", hash(device)));
    let params = data.get("params").cloned().unwrap_or_default();
    let order = match (data.get("method").and_then(Json::as_str), params) {
        (Some("write"), Json::Object(params)) if !params.is_empty() => Ok(write(params)),
        (Some("write"), _) => Err("`write` takes an object of properties and values"),
        (Some("read"), Json::String(name)) => Ok(Order::Read(vec![name])),
        (Some("read"), params) => {
            serde_json::from_value(params).map(Order::Read).map_err(|_| "`read` takes a list of properties")
        }
        (Some(action), input) => Ok(Order::Invoke { action: action.to_owned(), input: Value::from(input) }),
        (None, _) => Err("a call has a `method`"),
    };
    let command = match order {
        Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
        Err(reason) => Err(Malformed { id, reason: reason.to_owned() }),
    };
    Heard::command(device.to_owned(), command)
}

/// Shared attributes are the platform's wishes for a device: what its properties of their names are to be.
fn shared(scope: Scope<'_>, device: &str, data: &Map<String, Json>, stamp: i64) -> Heard {
    let desired: BTreeMap<String, Value> = match data.get("deleted") {
        Some(Json::Array(names)) => {
            names.iter().filter_map(|name| Some((name.as_str()?.to_owned(), Value::Null))).collect()
        }
        Some(_) => return Heard::Nothing,
        None => data.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect(),
    };
    if desired.is_empty() {
        return Heard::Nothing;
    }
    let id = scope.command_id(&format!("attributes:{stamp}"));
    // A device need not report what it was told by a call: what changes is written in any case.
    let change = Change { id, patch: Patch { desired, version: None }, insist: true };
    Heard::Shadow { thing: device.to_owned(), change }
}

/// FNV-1a: tells the devices' calls apart, whose names may be too long for an id.
fn hash(device: &str) -> u32 {
    device.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn write(values: Map<String, Json>) -> Order {
    Order::Write(values.into_iter().map(|(name, value)| (name, Value::from(value))).collect())
}

#[cfg(test)]
mod tests {
    use device_models::Class;
    use device_models::wire::Hole;

    use super::super::golden::{
        self, SCOPE, documented, event, gap, hear, lines, message, order, presence, reply, report, said, sample,
        silent, waiting,
    };
    use super::*;

    /// Each line as the platform's documentation shows it, with our values.
    #[test]
    fn thingsboard_hears_it_as_its_documentation_says() {
        let live = said(&ThingsBoard, Class::Live, false, vec![report(), report()], &[]);
        let values = r#"{"_quality":{"voltage":"out-of-range"},"power":230.5,"voltage":900}"#;
        let entry = format!(r#"{{"ts":1772352900250,"values":{values}}}"#);
        assert_eq!(lines(&live.publications), [(TELEMETRY.to_owned(), format!(r#"{{"meter-1":[{entry},{entry}]}}"#))]);
        let control = vec![
            presence(true),
            reply("platform:rpc:469cc984:7", Ok(Value::Bool(true))),
            reply("platform:rpc:469cc984:8", silent()),
            reply("platform:rpc:469cc984:9", waiting()),
            reply("platform:attributes:99", Ok(Value::Null)),
            reply("native-id", Ok(Value::Null)),
            reply("other:rpc:469cc984:7", Ok(Value::Null)),
            presence(false),
        ];
        let expected = [
            (CONNECT, r#"{"device":"meter-1","type":"energy-meter"}"#),
            (RPC, r#"{"data":{"success":true,"value":true},"device":"meter-1","id":7}"#),
            (
                RPC,
                r#"{"data":{"error":"the device did not answer within 10s","success":false},"device":"meter-1","id":8}"#,
            ),
            (ATTRIBUTES, r#"{"meter-1":{"lastWrite":{"success":true}}}"#),
            (DISCONNECT, r#"{"device":"meter-1"}"#),
        ];
        let control = said(&ThingsBoard, Class::Control, false, control, &[]);
        assert_eq!(lines(&control.publications), expected.map(|(topic, body)| (topic.to_owned(), body.to_owned())));
    }

    #[test]
    fn what_is_gone_is_the_gateways_own_telemetry() {
        let hole = Hole { first: 4, count: 2, reason: "torn".to_owned() };
        let said = said(&ThingsBoard, Class::Control, false, vec![gap()], &[hole]);
        let body =
            |gap: &str| (OWN_TELEMETRY.to_owned(), format!(r#"{{"ts":1772352900250,"values":{{"gap":{gap}}}}}"#));
        assert_eq!(
            lines(&said.publications),
            [
                body(r#"{"class":"live","first":3,"last":9,"reason":"cap"}"#),
                body(r#"{"class":"ctl","first":4,"last":5,"reason":"torn"}"#),
            ]
        );
    }

    #[test]
    fn a_null_is_left_out_and_counted_and_a_payload_stays_under_the_platforms_limit() {
        let nulls = message(Body::Properties(vec![
            sample(1, "a", Value::Float(f64::NAN), Quality::Good),
            sample(2, "b", Value::Null, Quality::Good),
        ]));
        let said_nulls = said(&ThingsBoard, Class::Live, false, vec![nulls], &[]);
        assert_eq!(said_nulls, Said { publications: Vec::new(), left_out: vec![("null", 2)] });
        let long = |_| message(Body::Properties(vec![sample(1, "a", Value::Text("x".repeat(20_000)), Quality::Good)]));
        let said = said(&ThingsBoard, Class::Live, true, (0..7).map(long).collect(), &[]);
        let sizes: Vec<usize> = said.publications.iter().map(|publication| publication.payload.len()).collect();
        assert_eq!(sizes.len(), 4, "two fit into one: {sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 65_536), "{sizes:?}");
    }

    #[test]
    fn calls_become_orders() {
        let call = |method: &str, params: &str| {
            let data = format!(r#"{{"id":7,"method":"{method}","params":{params}}}"#);
            order(&mut ThingsBoard, RPC, &format!(r#"{{"device":"meter-1","data":{data}}}"#))
        };
        let (thing, command) = call("write", r#"{"on":true}"#);
        assert_eq!((thing.as_str(), command.id.as_str()), ("meter-1", "platform:rpc:469cc984:7"));
        assert_eq!(command.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        assert_eq!(call("read", r#"["power"]"#).1.order, Order::Read(vec!["power".to_owned()]));
        assert_eq!(call("read", r#""power""#).1.order, Order::Read(vec!["power".to_owned()]));
        assert_eq!(call("reset", "null").1.order, Order::Invoke { action: "reset".to_owned(), input: Value::Null });
    }

    #[test]
    fn shared_attributes_are_what_a_thing_is_to_have() {
        for (data, wanted) in [(r#"{"limit":5}"#, Value::Int(5)), (r#"{"deleted":["limit"]}"#, Value::Null)] {
            let payload = format!(r#"{{"device":"meter-1","data":{data}}}"#);
            let Heard::Shadow { thing, change } = hear(&mut ThingsBoard, ATTRIBUTES, &payload) else {
                panic!("{payload} is a wish");
            };
            assert_eq!((thing.as_str(), change.id.as_str()), ("meter-1", "platform:attributes:7"));
            assert_eq!(change.patch.desired, [("limit".to_owned(), wanted)].into());
        }
    }

    #[test]
    fn echoes_say_nothing_and_noise_is_told() {
        for (topic, payload) in [
            (RPC, r#"{"device":"meter-1","id":7,"data":{"success":true}}"#),
            (ATTRIBUTES, r#"{"meter-1":{"lastWrite":{"success":true}}}"#),
        ] {
            assert_eq!(hear(&mut ThingsBoard, topic, payload), Heard::Nothing, "{payload}");
        }
        for payload in ["noise", "7", "{}", r#"{"device":"a","data":{"method":"x"}}"#] {
            assert!(matches!(hear(&mut ThingsBoard, RPC, payload), Heard::Unreadable(_)), "{payload}");
        }
        let payload = r#"{"device":"meter-1","data":{"id":7,"method":"write","params":3}}"#;
        let Heard::Command { command: Err(malformed), .. } = hear(&mut ThingsBoard, RPC, payload) else {
            panic!("it can be answered");
        };
        assert_eq!(malformed.id, "platform:rpc:469cc984:7");
    }

    #[test]
    fn thingsboard_is_documented() {
        let mut all = ThingsBoard.introduce(SCOPE, 0, &golden::meter()).publications;
        all.extend(said(&ThingsBoard, Class::Live, false, vec![report()], &[]).publications);
        all.extend(said(&ThingsBoard, Class::Event, false, vec![event()], &[]).publications);
        let control = vec![reply("platform:rpc:469cc984:7", Ok(Value::Bool(true))), presence(false), gap()];
        all.extend(said(&ThingsBoard, Class::Control, false, control, &[]).publications);
        documented(&ThingsBoard, &all);
    }
}
