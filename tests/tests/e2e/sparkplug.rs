//! Sparkplug B against mosquitto and a host application that nobody here wrote: births, numbers, commands, the primary
//! host, and what becomes of data when connections and processes break.

use super::dialects::{self, Relay, says};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, run_ok, swallowing_line, wait_for};

const DEVICE: &str =
    "[[device]]\nid = \"tank-1\"\nproduct = \"generic\"\n[[device]]\nid = \"relay-1\"\nproduct = \"relay-switch\"\n";

fn start(broker: &Mosquitto, more: &str) -> Gateway {
    // Five seconds are the least there is.
    let more = format!("keep_alive_seconds = 5\n{more}\n{DEVICE}");
    Gateway::start(Options::default().upstream(broker.port, "sparkplug").with(&more))
}

fn report(gateway: &Gateway, device: &str, body: &Value) {
    let (port, topic) = (gateway.options.mqtt.to_string(), format!("/any/{device}/properties/report"));
    let body = body.to_string();
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", device, "-t", &topic, "-m", &body]);
}

fn level(gateway: &Gateway, n: u64) {
    report(gateway, "tank-1", &json!({ "timestamp": 1_763_769_600_000_u64 + n, "properties": { "level": n } }));
}

fn metric<'a>(message: &'a Value, name: &str) -> Option<&'a Value> {
    message["metrics"].as_array()?.iter().find(|metric| metric["name"] == name)
}

fn is(message: &Value, kind: &str, device: Option<&str>) -> bool {
    message["kind"] == kind && message["device"] == json!(device)
}

/// Whether it is data of the tank that has this level.
fn has(level: f64, historical: Option<bool>) -> impl Fn(&Value) -> bool {
    move |message| {
        let fits = |metric: &Value| {
            let known = metric["name"] == "level" && metric["value"] == level;
            known && historical.is_none_or(|wanted| metric["historical"] == wanted)
        };
        is(message, "DDATA", Some("tank-1")) && message["metrics"].as_array().unwrap().iter().any(fits)
    }
}

/// The values of a metric in all data of a device, and whether each is historical.
fn values(seen: &[Value], device: &str, name: &str) -> Vec<(f64, bool)> {
    let data = seen.iter().filter(|message| is(message, "DDATA", Some(device)));
    let metrics = data.flat_map(|message| message["metrics"].as_array().unwrap());
    let named = metrics.filter(|metric| metric["name"] == name);
    named.map(|metric| (metric["value"].as_f64().unwrap(), metric["historical"] == true)).collect()
}

/// After every birth of the node numbers begin at 0, and none is missing.
fn numbered_without_a_hole(seen: &[Value]) {
    let mut next = None;
    for message in seen.iter().filter(|message| message["kind"] != "NDEATH") {
        let seq = message["seq"].as_u64().unwrap_or_else(|| panic!("no number: {message}"));
        let expected = if message["kind"] == "NBIRTH" { Some(0) } else { next };
        assert_eq!(Some(seq), expected, "{message}");
        assert_eq!((&message["qos"], &message["retained"]), (&json!(0), &json!(false)), "{message}");
        next = Some((seq + 1) % 256);
    }
}

/// Waits for the next birth of the node whose `bdSeq` is this.
fn born(host: &mut Receiver, bd_seq: u64) {
    let fits = |m: &Value| is(m, "NBIRTH", None) && metric(m, "bdSeq").is_some_and(|m| m["value"] == bd_seq);
    host.until(&format!("a birth with bdSeq {bd_seq}"), PATIENCE, fits);
}

fn died(host: &mut Receiver, bd_seq: u64) {
    let fits = |m: &Value| is(m, "NDEATH", None) && metric(m, "bdSeq").is_some_and(|m| m["value"] == bd_seq);
    host.until(&format!("the death with bdSeq {bd_seq}"), PATIENCE, fits);
}

#[test]
fn a_host_sees_births_data_by_alias_and_commands_a_device() {
    let broker = Mosquitto::start();
    let mut host = Receiver::sparkplug(broker.port, "sluicegate");
    let gateway = start(&broker, "");
    born(&mut host, 0);
    says(gateway.options.mqtt, "properties/report", &dialects::report());
    let data = host.until("data of the relay", PATIENCE, |m| is(m, "DDATA", Some("relay-1")));
    let on = metric(&data, "on").unwrap();
    assert_eq!(
        (&on["value"], &on["type"], &on["time"]),
        (&json!(false), &json!("BOOLEAN"), &json!(1_763_769_600_123_u64))
    );
    assert!(metric(&data, "power").is_some(), "out of its range, delivered: {data}");

    let relay = Relay::connect(&gateway);
    host.tell(&json!({ "node": "gate-t", "device": "relay-1", "set": { "on": ["BOOLEAN", true] } }));
    assert_eq!(relay.obeys(), json!({ "on": true }));
    let replied = |success: bool| {
        move |m: &Value| {
            let reply = metric(m, "Device Control/Reply").and_then(|m| m["value"].as_str()).unwrap_or_default();
            is(m, "DDATA", Some("relay-1")) && reply.contains(&format!("\"success\":{success}"))
        }
    };
    host.until("the reply", PATIENCE, replied(true));
    host.tell(&json!({ "node": "gate-t", "device": "relay-1", "set": { "power": ["FLOAT", 3.0] } }));
    let refused = host.until("the refusal", PATIENCE, replied(false));
    assert!(refused.to_string().contains("read-only"), "{refused}");

    // A rebirth: the same bdSeq, everything from the beginning, with present values of things that are there.
    let births = host.seen.iter().filter(|m| is(m, "NBIRTH", None)).count();
    host.tell(&json!({ "rebirth": "gate-t" }));
    wait_for("the rebirth", PATIENCE, || {
        host.drain();
        (host.seen.iter().filter(|m| is(m, "NBIRTH", None)).count() > births).then_some(())
    });
    gateway.stop();
    died(&mut host, 0);
    numbered_without_a_hole(&host.seen);
}

#[test]
fn nothing_goes_before_the_primary_host_is_there_and_nothing_is_lost_while_it_is_gone() {
    let broker = Mosquitto::start();
    let mut host = Receiver::sparkplug(broker.port, "plant");
    let state = |host: &mut Receiver, online: bool, time: u64| {
        host.tell(&json!({ "online": online, "time": time, "host": "scada" }));
    };
    state(&mut host, false, 100);
    let gateway = start(&broker, "sparkplug = { group = \"plant\", node = \"edge-7\", primary_host = \"scada\" }");
    (0..3).for_each(|n| level(&gateway, n));
    wait_for("it to say what it waits for", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("waits for the primary host `scada`").then_some(())
    });
    host.drain();
    assert!(host.seen.is_empty(), "{:?}", host.seen);
    state(&mut host, true, 200);
    host.until("what waited", PATIENCE, has(2.0, None));
    // A host's older connection is found dead late: that is no reason to go.
    state(&mut host, false, 150);
    level(&gateway, 3);
    host.until("what came", PATIENCE, has(3.0, None));
    state(&mut host, false, 300);
    died(&mut host, 0);
    (4..7).for_each(|n| level(&gateway, n));
    wait_for("the next connection", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("waits for the primary host").then_some(())
    });
    state(&mut host, true, 400);
    born(&mut host, 1);
    host.until("what came meanwhile", PATIENCE, has(6.0, None));
    gateway.stop();
    died(&mut host, 1);
    numbered_without_a_hole(&host.seen);
    assert!(host.seen.iter().all(|m| m["node"] == "edge-7"));
    let values = values(&host.seen, "tank-1", "level");
    assert_eq!(values.iter().map(|(value, _)| *value).collect::<Vec<_>>(), (0..7).map(f64::from).collect::<Vec<_>>());
    assert!(values[4..].iter().all(|(_, historical)| *historical), "{values:?}");
}

#[test]
fn what_a_broken_connection_may_have_swallowed_comes_again_as_historical() {
    let mut broker = Mosquitto::start();
    let mut host = Receiver::sparkplug(broker.port, "sluicegate");
    let mut gateway = start(&broker, "");
    (0..5).for_each(|n| level(&gateway, n));
    host.until("live", PATIENCE, has(4.0, Some(false)));
    let before = host.seen.len();
    gateway.kill_and_restart();
    died(&mut host, 0);
    born(&mut host, 1);
    host.until("again", PATIENCE, has(4.0, Some(true)));
    let again = values(&host.seen[before..], "tank-1", "level");
    assert_eq!(again, (0..5).map(|n| (f64::from(n), true)).collect::<Vec<_>>(), "all, and in order");

    // An orderly end proves that everything came: nothing of it goes again.
    gateway.terminate();
    died(&mut host, 1);
    let before = host.seen.len();
    gateway.restart();
    born(&mut host, 2);
    level(&gateway, 5);
    host.until("what is new", PATIENCE, |m| metric(m, "level").is_some_and(|m| m["value"] == 5.0));
    let values_since = values(&host.seen[before..], "tank-1", "level");
    assert!(values_since.iter().all(|(value, _)| *value > 4.5), "{values_since:?}");
    numbered_without_a_hole(&host.seen);

    // A broker that goes away takes the last of it along; its next life gets it.
    drop(host);
    broker.pause();
    level(&gateway, 6);
    // Held until the host listens: it has to see the births.
    gateway.child.signal(rustix::process::Signal::STOP);
    broker.resume();
    let mut host = Receiver::sparkplug(broker.port, "sluicegate");
    gateway.child.signal(rustix::process::Signal::CONT);
    host.until("what came while nobody was there", PATIENCE, has(6.0, Some(true)));
    host.until("what was not sure", PATIENCE, has(5.0, Some(true)));
    gateway.stop();
    numbered_without_a_hole(&host.seen);
}

#[test]
fn what_a_line_swallowed_before_anybody_noticed_is_not_lost() {
    let broker = Mosquitto::start();
    let (port, swallows) = swallowing_line(broker.port);
    let mut host = Receiver::sparkplug(broker.port, "sluicegate");
    let more = format!("keep_alive_seconds = 5\n{DEVICE}");
    let gateway = Gateway::start(Options::default().upstream(port, "sparkplug").with(&more));
    born(&mut host, 0);
    level(&gateway, 0);
    host.until("the first", PATIENCE, has(0.0, None));
    swallows.store(true, Ordering::Relaxed);
    // All of it is written well, into nothing.
    (1..5).for_each(|n| level(&gateway, n));
    let connected = || gateway.get("/api/v1/upstreams").contains("\"connected\":true");
    assert!(connected(), "nobody has noticed yet");
    wait_for("the loss to be noticed", PATIENCE, || (!connected()).then_some(()));
    swallows.store(false, Ordering::Relaxed);
    died(&mut host, 0);
    born(&mut host, 1);
    host.until("the last", PATIENCE, has(4.0, Some(true)));
    gateway.stop();
    numbered_without_a_hole(&host.seen);
    let mut all: Vec<f64> = values(&host.seen, "tank-1", "level").iter().map(|(value, _)| *value).collect();
    all.dedup();
    assert!(all.ends_with(&[1.0, 2.0, 3.0, 4.0]), "{all:?}");
}
