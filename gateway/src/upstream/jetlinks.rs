//! The JetLinks dialect: `/{product}/{device}/…` of the platform's official protocol, product being the thing's model.
//!
//! Source: JetLinks documentation, "JetLinks 官方协议" (jetlinks-docs, basics-guide/jetlinks-protocol-support.md); topics,
//! `propertySourceTimes` and `propertyStates` as the message classes of jetlinks-core have them.
//! `docs/dialects.md` says what becomes what.

use device_models::wire::WireError;
use device_models::{Body, Failure, Message, Order, Outcome, Quality, Sample, Value};
use serde_json::{Map, Value as Json, json};

use super::dialect::{Dialect, Heard, Parcel, Publication, Run, Said, Scope, Station, level, unlevel};
use super::down::{self, Command, Malformed, PATIENCE};
use super::things::Known;

/// The product of the gateway itself, for what is nobody's.
const OWN_PRODUCT: &str = "sluicegate";
const WRITE: &str = "properties/write";
const READ: &str = "properties/read";
const INVOKE: &str = "function/invoke";

#[derive(Debug)]
pub(super) struct JetLinks;

impl Dialect for JetLinks {
    fn word(&self) -> &'static str {
        "jetlinks"
    }

    fn station(&self, _scope: Scope<'_>, _run: Run) -> Option<Station> {
        // The platform sees the gateway's own connection.
        None
    }

    fn filters(&self, _scope: Scope<'_>) -> Vec<String> {
        [WRITE, READ, INVOKE].map(|way| format!("/+/+/{way}")).into()
    }

    fn addressed(&self) -> bool {
        false
    }

    fn introduces(&self) -> bool {
        true
    }

    fn introduce(&mut self, _scope: Scope<'_>, _now_us: i64, thing: &Known) -> Said {
        if !thing.online {
            return Said::default();
        }
        let topic = topic(thing.model.name(), &thing.id, "online");
        vec![Publication::json(topic, &json!({ "deviceId": thing.id.as_ref() }))].into()
    }

    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError> {
        let mut said: Vec<(u64, Publication)> = Vec::new();
        for (seq, message) in parcel.messages {
            said.extend(publication(parcel, *seq, message).map(|publication| (*seq, publication)));
        }
        for hole in parcel.holes {
            let last = hole.first.saturating_add(hole.count.saturating_sub(1));
            let data =
                json!({ "class": parcel.class.topic(), "first": hole.first, "last": last, "reason": hole.reason });
            said.push((hole.first, gap(parcel, hole.first, parcel.now_us, data)));
        }
        said.sort_by_key(|(seq, _)| *seq);
        Ok(said.into_iter().map(|(_, publication)| publication).collect::<Vec<_>>().into())
    }

    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], _stamp: i64) -> Heard {
        let mut levels = topic.splitn(4, '/').skip(2);
        let (Some(thing), Some(way)) = (levels.next().and_then(unlevel), levels.next()) else {
            return Heard::Nothing;
        };
        let json = match down::json(payload) {
            Ok(json) => json,
            Err(why) => return Heard::Unreadable(why),
        };
        let Some(message_id) = json.get("messageId").and_then(Json::as_str) else {
            return Heard::Unreadable("a command has a `messageId`".to_owned());
        };
        let properties = json.get("properties");
        let (kind, order) = match way {
            WRITE => ("write", write(properties)),
            READ => ("read", read(properties)),
            INVOKE => ("invoke", invoke(&json)),
            _ => return Heard::Nothing,
        };
        let id = scope.command_id(&format!("{kind}:{message_id}"));
        let command = match order {
            Ok(order) => Ok(Command { id, order, patience: PATIENCE }),
            Err(reason) => Err(Malformed { id, reason: reason.to_owned() }),
        };
        Heard::command(thing, command)
    }
}

// === up ===

fn topic(product: &str, device: &str, way: &str) -> String {
    // A thing whose model is not known any more still has a place.
    let product = if product.is_empty() { "-" } else { product };
    format!("/{}/{}/{way}", level(product), level(device))
}

/// The message in its envelope; `None` for a reply to somebody else's command.
fn publication(parcel: &Parcel<'_>, seq: u64, message: &Message) -> Option<Publication> {
    let (way, body) = match &message.body {
        Body::Properties(samples) => ("properties/report".to_owned(), report(message, samples, parcel.hist)),
        Body::Event { name, level: loudness, data, quality } => {
            let mut headers = Map::from_iter([("level".to_owned(), word(loudness))]);
            if *quality != Quality::Good {
                headers.insert("quality".to_owned(), word(quality));
            }
            let body = json!({ "event": name.as_ref(), "data": Json::from(data), "headers": headers });
            (format!("event/{}", level(name)), body)
        }
        Body::Presence { online: true, .. } => ("online".to_owned(), json!({})),
        Body::Presence { online: false, reason } => ("offline".to_owned(), json!({ "headers": { "reason": reason } })),
        Body::Reply { id, outcome } => return reply(parcel, message, id, outcome),
        Body::Gap { class, first, last, reason } => {
            let data = json!({ "class": class.topic(), "first": first, "last": last, "reason": reason });
            return Some(gap(parcel, seq, message.time_us, data));
        }
    };
    let topic = topic(&message.model, &message.thing, &way);
    Some(Publication::json(topic, &envelope(parcel, seq, &message.thing, message.time_us, body)))
}

/// Adds what every message has. The message id is the message's own name for ever, so that a repeated one is recognised.
fn envelope(parcel: &Parcel<'_>, seq: u64, device: &str, time_us: i64, mut body: Json) -> Json {
    if let Json::Object(fields) = &mut body {
        let id = format!("{:016x}-{}-{seq}", parcel.epoch, parcel.class.topic());
        fields.insert("messageId".to_owned(), Json::from(id));
        fields.insert("deviceId".to_owned(), Json::from(device));
        fields.insert("timestamp".to_owned(), Json::from(time_us.div_euclid(1000)));
    }
    body
}

fn report(message: &Message, samples: &[Sample], hist: bool) -> Json {
    let named = |name: &str, value: Json| (name.to_owned(), value);
    let properties: Map<_, _> = samples.iter().map(|s| named(&s.name, Json::from(&s.value))).collect();
    let states: Map<_, _> =
        samples.iter().filter(|s| s.quality != Quality::Good).map(|s| named(&s.name, word(&s.quality))).collect();
    let mut body = Map::from_iter([named("properties", Json::Object(properties))]);
    if !states.is_empty() {
        body.insert("propertyStates".to_owned(), Json::Object(states));
    }
    if hist {
        let time = Json::from(message.time_us.div_euclid(1000));
        let times: Map<_, _> = samples.iter().map(|s| named(&s.name, time.clone())).collect();
        body.insert("propertySourceTimes".to_owned(), Json::Object(times));
        body.insert("headers".to_owned(), json!({ "historical": true }));
    }
    Json::Object(body)
}

fn reply(parcel: &Parcel<'_>, message: &Message, id: &str, outcome: &Outcome) -> Option<Publication> {
    let (kind, message_id) = parcel.scope.own(id)?.split_once(':')?;
    let mut body = json!({
        "messageId": message_id, "deviceId": message.thing.as_ref(),
        "timestamp": message.time_us.div_euclid(1000), "success": outcome.is_ok(),
    });
    if let Json::Object(fields) = &mut body {
        match outcome {
            Ok(value) if kind == "invoke" => drop(fields.insert("output".to_owned(), Json::from(value))),
            Ok(value @ Value::Object(_)) => drop(fields.insert("properties".to_owned(), Json::from(value))),
            Ok(_) => {}
            Err(failure) => {
                fields.insert("code".to_owned(), Json::from(code(failure)));
                fields.insert("message".to_owned(), Json::from(failure.to_string()));
            }
        }
    }
    let way = match kind {
        "write" => WRITE,
        "read" => READ,
        _ => INVOKE,
    };
    Some(Publication::json(topic(&message.model, &message.thing, &format!("{way}/reply")), &body))
}

/// The platform's own word (`ErrorCode` of jetlinks-core).
const fn code(failure: &Failure) -> &'static str {
    match failure {
        Failure::Offline => "CLIENT_OFFLINE",
        Failure::Silent(_) => "TIME_OUT",
        Failure::Unsupported(_) => "UNSUPPORTED_MESSAGE",
        Failure::Refused(_) => "PARAMETER_ERROR",
        Failure::Device(_) => "UNKNOWN",
        Failure::Busy => "SYSTEM_ERROR",
        Failure::Waiting(_) => "REQUEST_HANDLING",
        Failure::Expired(_) => "CLIENT_OFFLINE",
        Failure::GivenUp(_) => "UNKNOWN",
    }
}

/// An event of the gateway itself.
fn gap(parcel: &Parcel<'_>, seq: u64, time_us: i64, data: Json) -> Publication {
    let gateway = parcel.scope.gateway;
    let body = envelope(parcel, seq, gateway, time_us, json!({ "event": "gap", "data": data }));
    Publication::json(topic(OWN_PRODUCT, gateway, "event/gap"), &body)
}

fn word(word: &impl serde::Serialize) -> Json {
    serde_json::to_value(word).unwrap_or_default()
}

// === down ===

fn write(properties: Option<&Json>) -> Result<Order, &'static str> {
    match properties {
        Some(Json::Object(values)) if !values.is_empty() => {
            Ok(Order::Write(values.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect()))
        }
        _ => Err("`properties` is an object of names and values"),
    }
}

fn read(properties: Option<&Json>) -> Result<Order, &'static str> {
    let names = properties.and_then(|names| serde_json::from_value(names.clone()).ok());
    names.map(Order::Read).ok_or("`properties` is a list of names")
}

/// Inputs come as a list of `{name, value}`, from newer platforms also as an object.
fn invoke(json: &Json) -> Result<Order, &'static str> {
    let function = json.get("functionId").or_else(|| json.get("function")).and_then(Json::as_str);
    let action = function.ok_or("`functionId` names the function")?.to_owned();
    let input = match json.get("inputs") {
        None | Some(Json::Null) => Value::Null,
        Some(Json::Object(inputs)) if inputs.is_empty() => Value::Null,
        Some(Json::Object(inputs)) => Value::from(Json::Object(inputs.clone())),
        Some(Json::Array(inputs)) if inputs.is_empty() => Value::Null,
        Some(Json::Array(inputs)) => {
            let named = |input: &Json| Some((input.get("name")?.as_str()?.to_owned(), input.get("value")?.clone()));
            let inputs: Option<Map<String, Json>> = inputs.iter().map(named).collect();
            Value::from(Json::Object(inputs.ok_or("an input has a `name` and a `value`")?))
        }
        Some(_) => return Err("`inputs` is a list of names and values"),
    };
    Ok(Order::Invoke { action, input })
}

#[cfg(test)]
mod tests {
    use device_models::Class;
    use device_models::wire::Hole;

    use super::super::golden::{
        self, SCOPE, documented, event, gap, hear, lines, order, presence, reply, report, said, silent,
    };
    use super::*;

    fn jsons(said: &Said) -> Vec<(String, Json)> {
        lines(&said.publications)
            .into_iter()
            .map(|(topic, body)| (topic, serde_json::from_str(&body).unwrap()))
            .collect()
    }

    /// Topics and fields as the platform's documentation shows them.
    #[test]
    fn jetlinks_hears_it_as_its_documentation_says() {
        let live = jsons(&said(&JetLinks, Class::Live, false, vec![report()], &[]));
        let expected = json!({
            "messageId": "1a2b3c4d5e6f7081-live-1", "deviceId": "meter-1", "timestamp": 1_772_352_900_250_u64,
            "properties": { "power": 230.5, "voltage": 900 }, "propertyStates": { "voltage": "out-of-range" },
        });
        assert_eq!(live, [("/energy-meter/meter-1/properties/report".to_owned(), expected)]);
        let backlog = jsons(&said(&JetLinks, Class::Live, true, vec![report()], &[]));
        assert_eq!(
            backlog[0].1["propertySourceTimes"],
            json!({ "power": 1_772_352_900_250_u64, "voltage": 1_772_352_900_250_u64 })
        );
        assert_eq!(backlog[0].1["headers"]["historical"], true);
        let events = jsons(&said(&JetLinks, Class::Event, false, vec![event()], &[]));
        assert_eq!(events[0].0, "/energy-meter/meter-1/event/overload");
        assert_eq!((&events[0].1["data"]["limit"], &events[0].1["headers"]["level"]), (&json!(5000), &json!("warn")));
    }

    #[test]
    fn replies_carry_the_platforms_message_id_and_words() {
        let object = Value::Object([("power".to_owned(), Value::Float(1.5))].into());
        let control = vec![
            presence(true),
            reply("platform:read:m/1", Ok(object)),
            reply("platform:write:m-2", Ok(Value::Null)),
            reply("platform:invoke:m-3", Ok(Value::Int(3))),
            reply("platform:invoke:m-4", silent()),
            reply("other:invoke:m-5", Ok(Value::Null)),
            presence(false),
        ];
        let control = jsons(&said(&JetLinks, Class::Control, false, control, &[]));
        let topics: Vec<&str> = control.iter().map(|(topic, _)| topic.as_str()).collect();
        let ways = [
            "online",
            "properties/read/reply",
            "properties/write/reply",
            "function/invoke/reply",
            "function/invoke/reply",
            "offline",
        ];
        assert_eq!(topics, ways.map(|way| format!("/energy-meter/meter-1/{way}")));
        assert_eq!((&control[1].1["messageId"], &control[1].1["properties"]["power"]), (&json!("m/1"), &json!(1.5)));
        assert_eq!((&control[2].1["messageId"], &control[2].1["success"]), (&json!("m-2"), &json!(true)));
        assert_eq!(control[3].1["output"], 3);
        assert_eq!((&control[4].1["success"], &control[4].1["code"]), (&json!(false), &json!("TIME_OUT")));
    }

    #[test]
    fn what_is_gone_is_an_event_of_the_gateway() {
        let hole = Hole { first: 2, count: 3, reason: "torn".to_owned() };
        let said = jsons(&said(&JetLinks, Class::Control, false, vec![gap()], &[hole]));
        assert_eq!(said[0].0, "/sluicegate/box-1/event/gap");
        assert_eq!(said[0].1["data"], json!({ "class": "live", "first": 3, "last": 9, "reason": "cap" }));
        assert_eq!(said[1].1["data"], json!({ "class": "ctl", "first": 2, "last": 4, "reason": "torn" }));
    }

    #[test]
    fn what_the_platform_sends_becomes_orders() {
        let topic = |way: &str| format!("/gb-camera/gb%2f34%2f1/{way}");
        let (thing, command) = order(&mut JetLinks, &topic(WRITE), r#"{"messageId":"m-1","properties":{"on":true}}"#);
        assert_eq!((thing.as_str(), command.id.as_str()), ("gb/34/1", "platform:write:m-1"));
        assert_eq!(command.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
        let (_, command) = order(&mut JetLinks, &topic(READ), r#"{"messageId":"m-2","properties":["on"]}"#);
        assert_eq!(command.order, Order::Read(vec!["on".to_owned()]));
        let input = Value::Object([("ms".to_owned(), Value::Int(5))].into());
        for inputs in [r#"[{"name":"ms","value":5}]"#, r#"{"ms":5}"#] {
            let body = format!(r#"{{"messageId":"m-3","functionId":"pulse","inputs":{inputs}}}"#);
            let (_, command) = order(&mut JetLinks, &topic(INVOKE), &body);
            assert_eq!(command.order, Order::Invoke { action: "pulse".to_owned(), input: input.clone() });
        }
        for (payload, answered) in [("noise", false), ("{}", false), (r#"{"messageId":"m"}"#, true)] {
            let heard = hear(&mut JetLinks, &topic(WRITE), payload);
            assert_eq!(matches!(heard, Heard::Command { command: Err(_), .. }), answered, "{payload}");
        }
    }

    #[test]
    fn jetlinks_is_documented() {
        let mut all = JetLinks.introduce(SCOPE, 0, &golden::meter()).publications;
        all.extend(said(&JetLinks, Class::Live, true, vec![report()], &[]).publications);
        all.extend(said(&JetLinks, Class::Event, false, vec![event()], &[]).publications);
        let control = vec![
            reply("platform:write:m-1", Ok(Value::Null)),
            reply("platform:invoke:m-2", silent()),
            presence(false),
            gap(),
        ];
        all.extend(said(&JetLinks, Class::Control, false, control, &[]).publications);
        documented(&JetLinks, &all);
    }
}
