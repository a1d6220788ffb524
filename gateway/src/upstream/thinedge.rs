//! The thin-edge dialect: the local topics of thin-edge.io, `te/device/THING///{m,e,a,twin,cmd}/…`. Every thing is a child
//! device, the gateway a service of the main device. The broker is thin-edge's own, on this box or beside it.
//!
//! Source: thin-edge.io documentation, "MQTT API" and "Command management" (thin-edge.github.io/thin-edge.io/references).
//! `docs/dialects.md` says what becomes what.

use std::collections::{BTreeSet, HashSet};

use device_models::model::Access;
use device_models::wire::{WireError, time_text};
use device_models::{Body, Class, Failure, Level, Message, Order, Outcome, Value};
use serde_json::{Map, Value as Json, json};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station, level, superseded, unlevel};
use super::down::{self, Command, Malformed, PATIENCE};
use super::things::Known;

#[derive(Debug)]
pub(super) struct ThinEdge;

/// A thing's entity; all its channels begin with it.
fn entity(thing: &str) -> String {
    format!("te/device/{}//", level(thing))
}

/// The gateway as a service of thin-edge's main device.
fn service(scope: Scope<'_>) -> String {
    format!("te/device/main/service/sluicegate-{}", scope.gateway)
}

/// An operation as a topic level; `:` parts it from the command's id on the bus.
fn operation(name: &str) -> String {
    level(name).replace(':', "%3a")
}

impl Dialect for ThinEdge {
    fn word(&self) -> &'static str {
        "thin-edge"
    }

    /// Twins and alarms are the last ones that came.
    fn tells_time(&self) -> bool {
        false
    }

    fn station(&self, scope: Scope<'_>, run: Run) -> Option<Station> {
        let up = json!({ "status": "up", "pid": std::process::id(), "time": time_text(run.since_us) });
        let down = || json!({ "status": "down" }).to_string();
        Some(Station::retained(&format!("{}/status/health", service(scope)), up.to_string(), down(), down()))
    }

    fn filters(&self, _scope: Scope<'_>) -> Vec<String> {
        vec!["te/device/+///cmd/+/+".to_owned()]
    }

    fn addressed(&self) -> bool {
        false
    }

    fn introduces(&self) -> bool {
        true
    }

    fn open(&mut self, scope: Scope<'_>, _now_us: i64) -> Said {
        let body = json!({ "@type": "service", "@parent": "device/main//", "name": "Sluicegate", "type": "service" });
        vec![Publication::json(service(scope), &body).retained()].into()
    }

    fn introduce(&mut self, _scope: Scope<'_>, _now_us: i64, thing: &Known) -> Said {
        let entity = entity(&thing.id);
        let model = &thing.model;
        let body = json!({ "@type": "child-device", "name": thing.id.as_ref(), "type": model.name().as_ref() });
        let any = |may: fn(Access) -> bool| model.properties().iter().any(|property| may(property.access));
        let read = any(Access::readable).then_some("read");
        let write = any(Access::writable).then_some("write");
        let actions = model.actions().iter().map(|action| action.name.as_ref());
        let operations: BTreeSet<&str> = read.into_iter().chain(write).chain(actions).collect();
        let mut said = vec![Publication::json(entity.clone(), &body).retained()];
        let offered = |name| Publication::json(format!("{entity}/cmd/{}", operation(name)), &json!({})).retained();
        said.extend(operations.into_iter().map(offered));
        said.push(presence(&thing.id, &json!({ "online": thing.online })));
        said.into()
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let mut said = Said::default();
        let superseded = if parcel.hist { superseded(parcel.messages, is_twin) } else { HashSet::new() };
        said.leave_out("superseded", superseded.len() as u64);
        for (seq, message) in parcel.messages {
            match &message.body {
                Body::Properties(_) => properties(*seq, message, &superseded, &mut said),
                _ => note(parcel.scope, message, &mut said),
            }
        }
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            said.publications.push(gap(parcel.scope, parcel.now_us, parcel.class, (hole.first, last), &hole.reason));
        }
        Ok(said)
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], _stamp: i64) -> Heard {
        let levels: Vec<&str> = topic.split('/').collect();
        let ["te", "device", thing, "", "", "cmd", name, tag] = levels[..] else { return Heard::Nothing };
        // An empty payload: whoever asked has taken the end in.
        let (Some(thing), Some(action), false) = (unlevel(thing), unlevel(name), payload.is_empty()) else {
            return Heard::Nothing;
        };
        if name.contains(':') {
            return Heard::Unreadable("a command's name has no `:`".to_owned());
        }
        let mut json = match down::json(payload) {
            Ok(json) => json,
            Err(why) => return Heard::Unreadable(why),
        };
        if json.get("status").and_then(Json::as_str) != Some("init") {
            return Heard::Nothing;
        }
        let id = scope.command_id(&format!("{name}:{tag}"));
        let order = order(action, &mut json);
        let command = match order {
            Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
            Err(reason) => Err(Malformed { id, reason: reason.to_owned() }),
        };
        // Said before it is done, so that the command, which is kept by the broker, is not carried out again.
        let executing = Publication::json(topic.to_owned(), &json!({ "status": "executing" })).retained();
        Heard::Command { thing, command, receipt: Some(Box::new(executing)) }
    }
}

// === up ===

fn presence(thing: &str, body: &Json) -> Publication {
    Publication::json(format!("{}/twin/presence", entity(thing)), body).retained()
}

/// What thin-edge takes as a measurement: a number, or a group of numbers.
fn measurable(value: &Value) -> bool {
    match value {
        Value::Int(_) | Value::UInt(_) => true,
        Value::Float(value) => value.is_finite(),
        Value::Object(fields) => {
            !fields.is_empty() && fields.values().all(|v| !matches!(v, Value::Object(_)) && measurable(v))
        }
        _ => false,
    }
}

/// Numbers go together as a measurement, everything else to the twin.
fn properties(seq: u64, message: &Message, superseded: &HashSet<(u64, usize)>, said: &mut Said) {
    let Body::Properties(samples) = &message.body else { return };
    let mut measurement = Map::new();
    let mut twins = Vec::new();
    for (at, sample) in samples.iter().enumerate() {
        let name = sample.name.as_ref().to_owned();
        match &sample.value {
            Value::Null => said.leave_out("null", 1),
            Value::Float(value) if !value.is_finite() => said.leave_out("null", 1),
            // A measurement has a time of its own.
            value if measurable(value) && name != "time" => {
                measurement.insert(name, Json::from(value));
            }
            _ if superseded.contains(&(seq, at)) => {}
            value => {
                let topic = format!("{}/twin/{}", entity(&message.thing), level(&name));
                twins.push(Publication::json(topic, &Json::from(value)).retained());
            }
        }
    }
    if !measurement.is_empty() {
        measurement.insert("time".to_owned(), Json::from(time_text(message.time_us)));
        let topic = format!("{}/m/{}", entity(&message.thing), level(&message.model));
        said.publications.push(Publication::json(topic, &Json::Object(measurement)));
    }
    said.publications.append(&mut twins);
}

/// What goes to the twin, which knows only the present.
fn is_twin(value: &Value) -> bool {
    !measurable(value) && *value != Value::Null
}

/// Everything but properties.
fn note(scope: Scope<'_>, message: &Message, said: &mut Said) {
    let thing = &message.thing;
    let time = time_text(message.time_us);
    match &message.body {
        Body::Event { name, level: loudness, data, .. } => {
            let cleared =
                matches!(data, Value::Object(fields) if fields.get("state").and_then(Value::as_str) == Some("cleared"));
            let topic = |kind: char| format!("{}/{kind}/{}", entity(thing), level(name));
            let mut body = json!({ "text": name.as_ref(), "time": time, "data": Json::from(data) });
            if let (Json::Object(fields), Some(severity)) = (&mut body, severity(*loudness)) {
                fields.insert("severity".to_owned(), Json::from(severity));
                return said.publications.push(Publication::json(topic('a'), &body).retained());
            }
            if cleared {
                said.publications.push(Publication::new(topic('a'), Vec::new()).retained());
            }
            said.publications.push(Publication::json(topic('e'), &body));
        }
        Body::Presence { online: true, .. } => {
            said.publications.push(presence(thing, &json!({ "online": true, "since": time })));
        }
        Body::Presence { online: false, reason } => {
            let body = json!({ "online": false, "since": time, "reason": reason });
            said.publications.push(presence(thing, &body));
        }
        Body::Reply { id, outcome } => said.publications.extend(ended(scope, thing, id, outcome)),
        Body::Gap { class, first, last, reason } => {
            said.publications.push(gap(scope, message.time_us, *class, (*first, *last), reason));
        }
        Body::Properties(_) => {}
    }
}

/// `None`: no alarm, an event.
const fn severity(level: Level) -> Option<&'static str> {
    match level {
        Level::Info => None,
        Level::Warn => Some("minor"),
        Level::Error => Some("major"),
        Level::Urgent => Some("critical"),
    }
}

/// The end of a command, or that it waits for its thing, on its own topic; `None` for somebody else's.
fn ended(scope: Scope<'_>, thing: &str, id: &str, outcome: &Outcome) -> Option<Publication> {
    let (name, tag) = scope.own(id)?.split_once(':')?;
    let body = match outcome {
        Ok(Value::Null) => json!({ "status": "successful" }),
        Ok(value) => json!({ "status": "successful", "result": Json::from(value) }),
        Err(failure @ Failure::Waiting(_)) => json!({ "status": "executing", "reason": failure.to_string() }),
        Err(failure) => json!({ "status": "failed", "reason": failure.to_string() }),
    };
    Some(Publication::json(format!("{}/cmd/{name}/{tag}", entity(thing)), &body).retained())
}

/// An event of the gateway's service.
fn gap(scope: Scope<'_>, time_us: i64, class: Class, (first, last): (u64, u64), reason: &str) -> Publication {
    let class = class.topic();
    let body = json!({
        "text": format!("{class} {first} to {last} are gone: {reason}"), "time": time_text(time_us),
        "class": class, "first": first, "last": last, "reason": reason,
    });
    Publication::json(format!("{}/e/gap", service(scope)), &body)
}

// === down ===

/// `write` and `read` are ours, every other operation is an action of the thing.
fn order(name: String, json: &mut Json) -> Result<Order, &'static str> {
    let mut take = |key: &str| json.get_mut(key).map(Json::take).unwrap_or_default();
    match name.as_str() {
        "write" => match take("properties") {
            Json::Object(values) if !values.is_empty() => {
                Ok(Order::Write(values.into_iter().map(|(name, value)| (name, Value::from(value))).collect()))
            }
            _ => Err("`properties` is an object of names and values"),
        },
        "read" => serde_json::from_value(take("properties")).map(Order::Read).map_err(|_| "`properties` lists names"),
        _ => Ok(Order::Invoke { action: name, input: Value::from(take("input")) }),
    }
}

#[cfg(test)]
mod tests {
    use device_models::Quality;
    use device_models::wire::Hole;

    use super::super::golden::{
        self, SCOPE, documented, event, gap, hear, lines, message, order, presence, reply, report, said, sample,
        silent, waiting,
    };
    use super::*;

    const TIME: &str = "2026-03-01T08:15:00.250000Z";

    fn line(topic: &str, payload: &str) -> (String, String) {
        (topic.to_owned(), payload.to_owned())
    }

    /// As the platform's documentation shows it, with our values.
    #[test]
    fn numbers_are_measurements_and_the_rest_is_the_twins() {
        let mixed = message(Body::Properties(vec![
            sample(1, "temperature", Value::Float(20.5), Quality::Good),
            sample(2, "on", Value::Bool(true), Quality::Good),
            sample(3, "at", Value::Object([("x".to_owned(), Value::Int(1))].into()), Quality::Good),
            sample(4, "label", Value::Text("wet".to_owned()), Quality::Good),
            sample(5, "gone", Value::Null, Quality::Good),
            sample(6, "odd", Value::Float(f64::NAN), Quality::Good),
        ]));
        let said = said(&ThinEdge, Class::Live, false, vec![mixed], &[]);
        assert_eq!(
            lines(&said.publications),
            [
                line(
                    "te/device/meter-1///m/energy-meter",
                    &format!(r#"{{"at":{{"x":1}},"temperature":20.5,"time":"{TIME}"}}"#)
                ),
                line("te/device/meter-1///twin/on (retained)", "true"),
                line("te/device/meter-1///twin/label (retained)", "\"wet\""),
            ]
        );
        assert_eq!(said.left_out, [("null", 2)]);
    }

    #[test]
    fn of_a_backlog_every_measurement_goes_and_the_newest_of_a_twin() {
        let at = |n: i64| {
            let on = sample(2, "on", Value::Bool(n % 2 == 0), Quality::Good);
            message(Body::Properties(vec![sample(1, "n", Value::Int(n), Quality::Good), on]))
        };
        let said = said(&ThinEdge, Class::Live, true, vec![at(1), at(2), at(3)], &[]);
        let topics: Vec<_> = lines(&said.publications).into_iter().map(|(topic, _)| topic).collect();
        let (number, twin) = ("te/device/meter-1///m/energy-meter", "te/device/meter-1///twin/on (retained)");
        assert_eq!(topics, [number, number, number, twin]);
        assert_eq!(said.left_out, [("superseded", 2)]);
    }

    #[test]
    fn loud_events_are_alarms_that_an_empty_payload_clears() {
        let at = |level, state: &str| {
            let data = Value::Object([("state".to_owned(), Value::Text(state.to_owned()))].into());
            message(Body::Event { name: "hot".into(), level, data, quality: Quality::Good })
        };
        let said =
            said(&ThinEdge, Class::Event, false, vec![at(Level::Error, "raised"), at(Level::Info, "cleared")], &[]);
        let body =
            |more: &str, state: &str| format!(r#"{{"data":{{"state":"{state}"}},{more}"text":"hot","time":"{TIME}"}}"#);
        assert_eq!(
            lines(&said.publications),
            [
                line("te/device/meter-1///a/hot (retained)", &body(r#""severity":"major","#, "raised")),
                line("te/device/meter-1///a/hot (retained)", ""),
                line("te/device/meter-1///e/hot", &body("", "cleared")),
            ]
        );
    }

    #[test]
    fn what_is_gone_is_an_event_of_the_service() {
        let hole = Hole { first: 4, count: 2, reason: "torn".to_owned() };
        let said = said(&ThinEdge, Class::Control, false, vec![gap()], &[hole]);
        let bodies: Vec<Json> =
            said.publications.iter().map(|one| serde_json::from_slice(&one.payload).unwrap()).collect();
        assert_eq!((&bodies[0]["first"], &bodies[0]["reason"]), (&json!(3), &json!("cap")));
        assert_eq!((&bodies[1]["last"], &bodies[1]["class"]), (&json!(5), &json!("ctl")));
        assert!(said.publications.iter().all(|one| one.topic == "te/device/main/service/sluicegate-box-1/e/gap"));
    }

    #[test]
    fn commands_go_through_their_states() {
        let topic = |name: &str| format!("te/device/relay-1///cmd/{name}/c-7");
        let (thing, command) = order(&mut ThinEdge, &topic("toggle"), r#"{"status":"init","input":3}"#);
        assert_eq!((thing.as_str(), command.id.as_str()), ("relay-1", "platform:toggle:c-7"));
        assert_eq!(command.order, Order::Invoke { action: "toggle".to_owned(), input: Value::Int(3) });
        let (_, command) = order(&mut ThinEdge, &topic("write"), r#"{"status":"init","properties":{"on":true}}"#);
        assert_eq!(command.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        let (_, command) = order(&mut ThinEdge, &topic("read"), r#"{"status":"init","properties":["on"]}"#);
        assert_eq!(command.order, Order::Read(vec!["on".to_owned()]));
        let heard = hear(&mut ThinEdge, &topic("write"), r#"{"status":"init","properties":{}}"#);
        let Heard::Command { command: Err(malformed), receipt: Some(receipt), .. } = heard else { panic!("{heard:?}") };
        assert_eq!(malformed.id, "platform:write:c-7");
        assert_eq!(lines(&[*receipt]), [line(&format!("{} (retained)", topic("write")), r#"{"status":"executing"}"#)]);
        for (topic, payload) in [
            (topic("toggle").as_str(), ""),
            (topic("toggle").as_str(), r#"{"status":"executing"}"#),
            (topic("toggle").as_str(), r#"{"status":"successful"}"#),
            ("te/device/main/service/x/cmd/restart/1", r#"{"status":"init"}"#),
            ("te/device/relay-1///m/x", r#"{"status":"init"}"#),
        ] {
            assert_eq!(hear(&mut ThinEdge, topic, payload), Heard::Nothing, "{topic} {payload}");
        }
        assert!(matches!(hear(&mut ThinEdge, &topic("toggle"), "noise"), Heard::Unreadable(_)));
    }

    #[test]
    fn a_command_that_waits_for_its_thing_is_still_executing() {
        let said = said(&ThinEdge, Class::Control, false, vec![reply("platform:toggle:c-7", waiting())], &[]);
        let body =
            r#"{"reason":"the device is not connected; the command waits for it, at most 60s","status":"executing"}"#;
        assert_eq!(lines(&said.publications), [line("te/device/meter-1///cmd/toggle/c-7 (retained)", body)]);
    }

    #[test]
    fn thin_edge_is_documented() {
        let mut all = ThinEdge.open(SCOPE, 0).publications;
        all.extend(ThinEdge.introduce(SCOPE, 0, &golden::relay()).publications);
        all.extend(said(&ThinEdge, Class::Live, false, vec![report()], &[]).publications);
        all.extend(said(&ThinEdge, Class::Event, false, vec![event()], &[]).publications);
        let control = vec![
            reply("platform:toggle:c-7", Ok(Value::Bool(true))),
            reply("platform:write:c-8", silent()),
            reply("other:write:c-8", silent()),
            presence(false),
            gap(),
        ];
        all.extend(said(&ThinEdge, Class::Control, false, control, &[]).publications);
        documented(&ThinEdge, &all);
    }
}
