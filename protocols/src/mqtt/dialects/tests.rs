//! The dialects by their documented topics and bodies, up and down.

use std::time::Duration;

use device_models::{Command, Failure, Order, Report, Value, Word};

use super::*;

const OWN: Context<'static> = Context { own: "dev-1", template: None };

fn read(topic: &str, payload: &str) -> Option<Result<Vec<Report>, String>> {
    read_with(topic, payload, OWN)
}

fn read_with(topic: &str, payload: &str, context: Context<'_>) -> Option<Result<Vec<Report>, String>> {
    let heard = DIALECTS.iter().find_map(|dialect| dialect.read(topic, payload.as_bytes(), context))?;
    Some(heard.map(|heard| heard.reports))
}

fn one(topic: &str, payload: &str) -> Report {
    let mut reports = read(topic, payload).expect("a dialect").expect("a good body");
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

fn command(device: &str, order: Order) -> Command {
    Command {
        id: "c-7".to_owned(),
        device: device.to_owned(),
        product: "meter".to_owned(),
        order,
        patience: Duration::from_secs(5),
    }
}

fn say(dialect: &str, command: &Command, wire: &str, base: Option<&str>) -> (String, serde_json::Value) {
    let row = DIALECTS.iter().find(|row| row.name() == dialect).expect("row");
    let down = row.say(Asked { command, wire, base }, OWN).expect("said");
    (down.topic, serde_json::from_slice(&down.payload).expect("JSON"))
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn jetlinks_reports_properties_with_their_times() {
    let report =
        one("/meter/m-1/properties/report", r#"{"messageId":"1","timestamp":1700000000000,"properties":{"u":230.5}}"#);
    assert_eq!(report.device, "m-1");
    assert_eq!(report.product.as_deref(), Some("meter"));
    assert_eq!(report.time_us, Some(1_700_000_000_000_000));
    assert_eq!(report.word, Word::Properties(vec![("u".to_owned(), Value::Float(230.5))]));

    let reports = read(
        "/meter/m-1/properties/report",
        r#"{"timestamp":2000,"properties":{"a":1,"b":2},"propertySourceTimes":{"b":1000}}"#,
    );
    let times: Vec<_> = reports.unwrap().unwrap().iter().map(|report| report.time_us).collect();
    assert_eq!(times, [Some(1_000_000), Some(2_000_000)]);
}

#[test]
fn jetlinks_events_presence_children_and_replies() {
    let report = one("/meter/m-1/event/overload", r#"{"timestamp":1,"data":{"i":99}}"#);
    assert!(matches!(report.word, Word::Event { ref name, .. } if name == "overload"));
    assert!(matches!(one("/meter/m-1/offline", "").word, Word::Presence { online: false, .. }));
    let child = one("/gw/g-1/child/c-9/properties/report", r#"{"properties":{"t":1}}"#);
    assert_eq!(child.device, "c-9");
    let ok = one("/meter/m-1/properties/write/reply", r#"{"messageId":"c-7","success":true,"properties":{"r":1}}"#);
    assert!(matches!(ok.word, Word::Reply { ref id, outcome: Ok(_) } if id == "c-7"));
    let no =
        one("/gw/g-1/child-reply/c-9/function/invoke/reply", r#"{"messageId":"x","success":false,"message":"hot"}"#);
    let Word::Reply { outcome, .. } = no.word else { panic!("reply expected") };
    assert_eq!(outcome, Err(Failure::Device("hot".to_owned())));
}

#[test]
fn thin_edge_flattens_and_tells_health() {
    let report = one("te/device/pump///m/env", r#"{"time":"2020-10-15T05:30:47Z","t":1,"phase":{"a":2,"b":3}}"#);
    assert_eq!(report.time_us, Some(1_602_739_847_000_000));
    let names = ["phase.a", "phase.b", "t"];
    let Word::Properties(properties) = report.word else { panic!("properties expected") };
    assert_eq!(properties.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    assert_eq!(one("te/device/main///m/", r#"{"t":1}"#).device, "dev-1");
    assert!(matches!(
        one("te/device/p///status/health", r#"{"status":"up"}"#).word,
        Word::Presence { online: true, .. }
    ));
    assert!(matches!(one("te/device/p///a/hot", "").word, Word::Event { .. }));
    let done = one("te/device/p///cmd/restart/c-7", r#"{"status":"successful"}"#);
    assert!(matches!(done.word, Word::Reply { outcome: Ok(_), .. }));
    let failed = one("te/device/p///cmd/restart/c-7", r#"{"status":"failed","reason":"no"}"#);
    assert!(matches!(failed.word, Word::Reply { outcome: Err(_), .. }));
    assert_eq!(read("te/device/p///cmd/restart/c-7", r#"{"status":"executing"}"#), Some(Ok(vec![])));
    assert_eq!(read("te/device/p//", r#"{"@type":"child-device"}"#), Some(Ok(vec![])));
}

#[test]
fn thingsboard_takes_every_shape_of_telemetry() {
    assert_eq!(inward("v1/devices/me/telemetry", "dev-1"), "v1/devices/dev-1/telemetry");
    assert_eq!(outward("v1/devices/dev-1/rpc/request/3", "dev-1"), "v1/devices/me/rpc/request/3");
    assert_eq!(outward("v1/devices/dev-11/rpc/request/3", "dev-1"), "v1/devices/dev-11/rpc/request/3");
    let topic = "v1/devices/dev-1/telemetry";
    assert_eq!(one(topic, r#"{"t":1}"#).time_us, None);
    assert_eq!(one(topic, r#"{"ts":1700000000000,"values":{"t":1}}"#).time_us, Some(1_700_000_000_000_000));
    assert_eq!(read(topic, r#"[{"t":1},{"ts":5,"values":{"t":2}}]"#).unwrap().unwrap().len(), 2);
    let both = read("v1/gateways/dev-1/telemetry", r#"{"A":[{"ts":1,"values":{"x":1}}],"B":[{"y":2}]}"#);
    let devices: Vec<_> = both.unwrap().unwrap().into_iter().map(|report| report.device).collect();
    assert_eq!(devices, ["A", "B"]);
    assert_eq!(read("v1/devices/other/telemetry", r#"{"t":1}"#), None, "not the client's own");
    assert!(matches!(one("v1/gateways/dev-1/connect", r#"{"device":"A"}"#).word, Word::Presence { online: true, .. }));
}

#[test]
fn malformed_bodies_are_errors_and_foreign_topics_are_not() {
    for (topic, payload) in [
        ("/meter/m-1/properties/report", "{"),
        ("/meter/m-1/properties/report", "{}"),
        ("/meter/m-1/properties/report", r#"{"properties":[1]}"#),
        ("/meter/m-1/properties/report", r#"{"properties":{},"timestamp":"soon"}"#),
        ("te/device/p///m/", "[]"),
        ("v1/devices/dev-1/telemetry", "7"),
    ] {
        assert!(matches!(read(topic, payload), Some(Err(_))), "{topic} {payload}");
    }
    for topic in ["设备/1", "/a/b", "/a/b/c", "te/x", "v1/devices", "//x/online/", "/p/d/child//online"] {
        assert_eq!(read(topic, "x"), None, "{topic}");
    }
}

#[test]
fn a_template_reads_and_says() {
    let options = TemplateOptions {
        telemetry: Some("up/{product}/{device}".to_owned()),
        event: Some("up/{device}/event/{event}".to_owned()),
        reply: Some("up/{device}/reply".to_owned()),
        write: Some("down/{device}/set".to_owned()),
        time: Some("ts".to_owned()),
        ..TemplateOptions::default()
    };
    let template = Template::compile(&options).expect("compiles");
    let context = Context { own: "dev-1", template: Some(&template) };
    let report = read_with("up/meter/m-1", r#"{"ts":1700000000,"t":1}"#, context).unwrap().unwrap().remove(0);
    assert_eq!((report.device.as_str(), report.time_us), ("m-1", Some(1_700_000_000_000_000)));
    let reply = read_with("up/m-1/reply", r#"{"id":"c-7","error":"no"}"#, context).unwrap().unwrap().remove(0);
    assert!(matches!(reply.word, Word::Reply { outcome: Err(_), .. }));
    let order = command("m-1", Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
    let down = TemplateRow::say(&order, context);
    assert_eq!((down.topic.as_str(), down.replies), ("down/m-1/set", true));
    for bad in ["a/#", "a/x{device}", ""] {
        let options = TemplateOptions { telemetry: Some(bad.to_owned()), ..TemplateOptions::default() };
        assert!(Template::compile(&options).is_err(), "{bad}");
    }
}

/// The row by its trait, as the session uses it.
struct TemplateRow;

impl TemplateRow {
    fn say(command: &Command, context: Context<'_>) -> Downward {
        let row = DIALECTS.iter().find(|row| row.name() == "template").expect("row");
        row.say(Asked { command, wire: "c-7", base: None }, context).expect("said")
    }
}

#[test]
fn every_dialect_says_its_commands() {
    let write = command("m-1", Order::Write(vec![("r".to_owned(), Value::Int(1))]));
    let (topic, payload) = say("jetlinks", &write, "c-7", None);
    assert_eq!(topic, "/meter/m-1/properties/write");
    assert_eq!((&payload["messageId"], &payload["properties"]["r"]), (&"c-7".into(), &1.into()));
    let (topic, _) = say("jetlinks", &write, "c-7", Some("/gw/g-1/child/m-1"));
    assert_eq!(topic, "/gw/g-1/child/m-1/properties/write");
    let invoke = command("dev-1", Order::Invoke { action: "reboot".to_owned(), input: text("now") });
    let (topic, payload) = say("thin-edge", &invoke, "c-7", None);
    assert_eq!((topic.as_str(), &payload["status"]), ("te/device/dev-1///cmd/reboot/c-7", &"init".into()));
    let (topic, payload) = say("thingsboard", &invoke, "3", None);
    assert_eq!((topic.as_str(), &payload["method"]), ("v1/devices/dev-1/rpc/request/3", &"reboot".into()));
    let behind = command("A", Order::Invoke { action: "reboot".to_owned(), input: Value::Null });
    let (topic, payload) = say("thingsboard", &behind, "3", Some("v1/gateways/dev-1"));
    assert_eq!((topic.as_str(), &payload["data"]["id"]), ("v1/gateways/dev-1/rpc", &3.into()));
}
