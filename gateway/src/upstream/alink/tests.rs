//! The platform's documented messages with our values, and the way in of a gateway and its sub-devices.

use std::collections::BTreeMap;

use device_models::Quality;
use device_models::wire::Hole;

use super::super::golden::{
    self, SCOPE, TIME_US, documented, event, gap, lines, message, presence, report, sample, silent,
};
use super::*;

const THINGS: &str = r#"{
    "meter-1": {"productKey": "a1Meter", "deviceName": "m-1", "deviceSecret": "s1"},
    "relay-1": {"productKey": "a1Relay", "deviceName": "r-1", "deviceSecret": "s2"}
}"#;

fn gateway() -> Alink {
    let text = "name = \"up\"\nurl = \"mqtts://a1Gate.iot.example\"\n\
                alink = { product_key = \"a1Gate\", device_name = \"g-1\", secret_file = \"s\", things_file = \"t\" }";
    let mut alink = Alink::new(&toml::from_str(text).unwrap());
    assert_eq!(alink.files().len(), 2);
    begin(&mut alink);
    alink
}

fn begin(alink: &mut Alink) {
    let files = ["secret".to_owned(), THINGS.to_owned()];
    alink.begin(Beginning { session: 0, now_us: TIME_US, files: &files }).unwrap();
}

fn answer(alink: &mut Alink, topic: &str, id: u32, code: u32) -> Heard {
    let body = json!({ "id": id.to_string(), "code": code, "message": "m", "data": {} }).to_string();
    alink.hear(SCOPE, topic, body.as_bytes(), TIME_US)
}

const ADDED: &str = "/sys/a1Gate/g-1/thing/topo/add_reply";
const LOGGED_IN: &str = "/ext/session/a1Gate/g-1/combine/login_reply";

/// Both things introduced and logged in: what was published for it.
fn logged_in(alink: &mut Alink) -> Vec<Publication> {
    let mut all = Vec::new();
    for thing in [golden::meter(), golden::relay()] {
        all.extend(alink.introduce(SCOPE, TIME_US, &thing).publications);
        let Heard::Say(login) = answer(alink, ADDED, alink.request, 200) else { panic!("no login") };
        all.push(*login);
        assert_eq!(answer(alink, LOGGED_IN, alink.request, 200), Heard::Nothing);
    }
    all
}

fn json_of(publication: &Publication) -> Json {
    serde_json::from_slice(&publication.payload).unwrap()
}

fn around(alink: &mut Alink, messages: Vec<Message>, hist: bool) -> Vec<Publication> {
    let cut = Cut { messages: (1..).zip(messages).collect(), holes: Vec::new(), hist };
    alink.around(SCOPE, TIME_US, &cut, &|_| None).before
}

#[test]
fn a_thing_is_added_then_logged_in_and_messages_wait_for_it() {
    let mut alink = gateway();
    assert!(alink.waits().is_none());
    let add = alink.introduce(SCOPE, TIME_US, &golden::meter()).publications;
    assert_eq!(add[0].topic, "/sys/a1Gate/g-1/thing/topo/add");
    let params = &json_of(&add[0])["params"][0];
    assert_eq!((&params["productKey"], &params["signmethod"]), (&json!("a1Meter"), &json!("hmacSha256")));
    assert_eq!(alink.waits().and_then(|wait| wait.most), Some(ANSWER_MAX));
    assert_eq!(answer(&mut alink, ADDED, 77, 200), Heard::Nothing, "an answer to somebody else");
    let Heard::Say(login) = answer(&mut alink, ADDED, 1, 200) else { panic!("no login") };
    assert_eq!((login.topic.as_str(), login.at_most_once), ("/ext/session/a1Gate/g-1/combine/login", true));
    let params = &json_of(&login)["params"];
    assert_eq!((&params["signMethod"], &params["cleanSession"]), (&json!("hmacSha256"), &json!("true")));
    assert!(alink.waits().is_some());
    assert_eq!(answer(&mut alink, LOGGED_IN, 2, 200), Heard::Nothing);
    assert!(alink.waits().is_none());
    // One that is not there is added alone.
    let relay = Known { online: false, ..golden::relay() };
    alink.introduce(SCOPE, TIME_US, &relay);
    assert_eq!(answer(&mut alink, ADDED, 3, 200), Heard::Nothing);
    // A new connection begins anew.
    begin(&mut alink);
    assert!(alink.things.values().all(|thing| thing.standing == Standing::Unknown));
}

#[test]
fn what_the_platform_refuses_is_told_and_counted() {
    let mut alink = gateway();
    alink.introduce(SCOPE, TIME_US, &golden::meter());
    let heard = answer(&mut alink, ADDED, 1, 6402);
    assert!(
        matches!(&heard, Heard::Refused(reason) if reason.contains("6402") && reason.contains("meter-1")),
        "{heard:?}"
    );
    assert!(alink.waits().is_none(), "the others need not wait");
    let said = golden::said(&alink, Class::Live, false, vec![report()], &[]);
    assert_eq!((said.publications.len(), said.left_out), (0, vec![("refused", 1)]));
    let stranger = Message { thing: "x".into(), ..report() };
    let said = golden::said(&alink, Class::Live, false, vec![stranger], &[]);
    assert_eq!(said.left_out, [("no-identity", 1)]);
    assert_eq!(
        alink.introduce(SCOPE, TIME_US, &Known { id: "x".into(), ..golden::meter() }).left_out,
        [("no-identity", 1)]
    );
    let refused = answer(&mut alink, "/sys/a1Meter/m-1/thing/event/property/post_reply", 9, 5092);
    assert!(matches!(refused, Heard::Refused(_)));
    assert_eq!(answer(&mut alink, "/sys/a1Meter/m-1/thing/event/property/post_reply", 9, 200), Heard::Nothing);
}

#[test]
fn things_come_and_go_and_what_is_past_goes_as_history() {
    let mut alink = gateway();
    logged_in(&mut alink);
    assert!(around(&mut alink, vec![presence(false)], true).is_empty(), "the introductions knew it");
    let gone = around(&mut alink, vec![presence(false)], false);
    assert_eq!(gone[0].topic, "/ext/session/a1Gate/g-1/combine/logout");
    assert_eq!(json_of(&gone[0])["params"], json!({ "productKey": "a1Meter", "deviceName": "m-1" }));
    // Of two things, in order, each with its own.
    let other = Message { thing: "relay-1".into(), ..event() };
    let said = golden::said(&alink, Class::Live, true, vec![report(), report(), event(), other], &[]);
    assert!(said.publications.iter().all(|one| one.topic == "/sys/a1Gate/g-1/thing/event/property/history/post"));
    let bodies: Vec<Json> = said.publications.iter().map(json_of).collect();
    assert_eq!(bodies.len(), 2);
    let first = &bodies[0]["params"][0];
    assert_eq!((first["properties"].as_array().unwrap().len(), first["events"].as_array().unwrap().len()), (2, 1));
    assert_eq!(bodies[1]["params"][0]["identity"]["deviceName"], "r-1");
    // Live values of one that is not logged in are its past too.
    let said = golden::said(&alink, Class::Live, false, vec![report()], &[]);
    assert!(said.publications[0].topic.ends_with("history/post"));
    let come = around(&mut alink, vec![presence(true)], false);
    assert_eq!(come[0].topic, "/ext/session/a1Gate/g-1/combine/login");
    assert!(alink.waits().is_some());
    let many = golden::said(&alink, Class::Live, true, vec![report(); HISTORY_MAX + 1], &[]);
    assert_eq!(many.publications.len(), 2);
}

#[test]
fn values_are_as_the_platforms_types_want_them() {
    let mut alink = gateway();
    logged_in(&mut alink);
    let odd = message(Body::Properties(vec![
        sample(3, "power", Value::Int(10), Quality::Good),
        sample(8, "relay", Value::Bool(true), Quality::Good),
        sample(0, "gone", Value::Null, Quality::UnknownProperty),
        sample(0, "odd", Value::Float(f64::NAN), Quality::UnknownProperty),
    ]));
    let said = golden::said(&alink, Class::Live, false, vec![odd], &[]);
    let text = &lines(&said.publications)[0].1;
    assert!(text.contains(r#""power":{"time":1772352900250,"value":10.0}"#), "a float has a fraction: {text}");
    assert!(text.contains(r#""relay":{"time":1772352900250,"value":1}"#), "{text}");
    assert_eq!(said.left_out, [("null", 2)]);
    assert_eq!(said_value(Some(&Kind::TimeMs), &Value::Int(7)), json!("7"));
    assert_eq!(told(Some(&Kind::TimeMs), json!("7")), Value::Int(7));
    assert_eq!(told(Some(&Kind::Bool), json!(0)), Value::Bool(false));
    let nested = Value::Object(BTreeMap::from([("on".to_owned(), Value::Array(vec![Value::Bool(true)]))]));
    assert_eq!(said_value(None, &nested), json!({ "on": [1] }));
}

#[test]
fn commands_become_orders_and_are_answered_under_their_id() {
    let mut alink = gateway();
    logged_in(&mut alink);
    let hear = |alink: &mut Alink, way: &str, params: Json| {
        let body = json!({ "id": "123", "version": "1.0", "params": params, "method": "m" }).to_string();
        match alink.hear(SCOPE, &format!("/sys/a1Relay/r-1/thing/service/{way}"), body.as_bytes(), 7) {
            Heard::Command { thing, command, .. } if thing == "relay-1" => command,
            other => panic!("{way}: {other:?}"),
        }
    };
    let write = hear(&mut alink, "property/set", json!({ "on": 1 })).unwrap();
    assert_eq!(
        (write.id.as_str(), write.order),
        ("platform:property.set:123", Order::Write(vec![("on".to_owned(), Value::Bool(true))]))
    );
    assert_eq!(hear(&mut alink, "property/get", json!(["on"])).unwrap().order, Order::Read(vec!["on".to_owned()]));
    let invoke = hear(&mut alink, "toggle", json!({})).unwrap();
    assert_eq!(invoke.order, Order::Invoke { action: "toggle".to_owned(), input: Value::Null });
    assert!(hear(&mut alink, "property/set", json!({})).is_err());
    for (topic, payload) in [
        ("/sys/a1Relay/elsewhere/thing/service/toggle", r#"{"id":"1"}"#),
        ("/sys/a1Relay/r-1/thing/service/property/set_reply", r#"{"id":"1","code":200}"#),
        ("/sys/a1Relay/r-1/thing/model/up_raw", "{}"),
        ("nothing", "{}"),
    ] {
        assert_eq!(alink.hear(SCOPE, topic, payload.as_bytes(), 7), Heard::Nothing, "{topic}");
    }
    let unreadable = alink.hear(SCOPE, "/sys/a1Relay/r-1/thing/service/toggle", b"{}", 7);
    assert!(matches!(unreadable, Heard::Unreadable(_)), "no id");
    let reply = |id: &str, outcome: Outcome| Message { thing: "relay-1".into(), ..golden::reply(id, outcome) };
    let replies = vec![
        reply("platform:property.set:123", Ok(Value::Bool(true))),
        reply("platform:toggle:124", Ok(Value::Bool(true))),
        reply("platform:property.get:125", silent()),
        reply("platform:toggle:126", golden::waiting()),
        reply("other:toggle:124", silent()),
    ];
    let said = golden::said(&alink, Class::Control, false, replies, &[]);
    let body = |code: u32, data: &str, id: u32, message: &str| {
        format!(r#"{{"code":{code},"data":{data},"id":"{id}","message":"{message}","version":"1.0"}}"#)
    };
    let line = |way: &str, body: String| (format!("/sys/a1Relay/r-1/thing/service/{way}"), body);
    assert_eq!(
        lines(&said.publications),
        [
            line("property/set_reply", body(200, "{}", 123, "success")),
            line("toggle_reply", body(200, r#"{"value":1}"#, 124, "success")),
            line("property/get_reply", body(100_002, "{}", 125, "the device did not answer within 10s")),
        ]
    );
}

#[test]
fn alink_is_documented() {
    let mut alink = gateway();
    let mut all = logged_in(&mut alink);
    all.truncate(2);
    all.extend(golden::said(&alink, Class::Live, false, vec![report()], &[]).publications);
    all.extend(golden::said(&alink, Class::Event, false, vec![event()], &[]).publications);
    all.extend(golden::said(&alink, Class::Live, true, vec![report(), event()], &[]).publications);
    all.extend(
        golden::said(
            &alink,
            Class::Control,
            false,
            vec![golden::reply("platform:property.set:123", Ok(Value::Null))],
            &[],
        )
        .publications,
    );
    let hole = Hole { first: 4, count: 2, reason: "torn".to_owned() };
    all.extend(golden::said(&alink, Class::Control, false, vec![gap()], &[hole]).publications);
    all.extend(around(&mut alink, vec![presence(false)], false));
    documented(&alink, &all);
}
