//! The native format read by somebody who knows its documentation alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, run_ok};

const ALARM: &str = r#"
[[device]]
id = "m-1"
product = "energy-meter"

[[alarm]]
product = "energy-meter"
property = "voltage"
event = "overVoltage"
above = 253
"#;

/// What is said of each message, by its name; times are said in other words.
fn by_name(messages: &[Value]) -> BTreeMap<(String, u64), Value> {
    let mut named = BTreeMap::new();
    for message in messages.iter().filter(|m| m["seq"].is_u64()) {
        let mut said = message.clone();
        for key in ["time", "time_us", "received", "received_us", "hist", "epoch"] {
            said.as_object_mut().expect("an object").remove(key);
        }
        named
            .insert((message["class"].as_str().unwrap_or_default().to_owned(), message["seq"].as_u64().unwrap()), said);
    }
    named
}

#[test]
fn a_consumer_in_python_reads_every_compression() {
    let broker = Mosquitto::start();
    for compression in ["none", "lz4", "zstd"] {
        let id = format!("gate-{compression}");
        let mut ours = Receiver::start(broker.port, &["--gateway", &id]);
        let mut theirs = Receiver::python(broker.port);
        let upstream = format!("compression = \"{compression}\"\n{ALARM}");
        let options = Options { id: id.clone(), ..Options::default() };
        let gateway = Gateway::start(options.upstream(broker.port, "native").with(&upstream));
        let port = gateway.options.mqtt.to_string();
        let report = |device: &str, body: &str| {
            let topic = format!("/any/{device}/properties/report");
            run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", device, "-t", &topic, "-m", body]);
        };
        report("m-1", &json!({ "properties": { "voltage": 260, "u": 900_000, "current": "much" } }).to_string());
        for n in 0..40 {
            let properties = json!({
                "level": n % 10, "ratio": f64::from(n) / 8.0, "third": f64::from(n) / 3.0, "text": format!("Pegel {n} 水位"),
                "on": n % 3 == 0, "list": [n, "a", null], "map": {"deep": {"er": n}}, "nothing": null,
                "large": 18_446_744_073_709_551_000_u64, "small": -n,
            });
            report(&format!("d-{}", n % 2), &json!({ "properties": properties }).to_string());
        }
        let last = |m: &Value| m["gateway"] == id.as_str() && m["properties"]["small"] == -39;
        ours.until("the last report", PATIENCE, last);
        theirs.until("the last report, in Python", PATIENCE, last);
        gateway.stop();
        let (status, ours) = ours.finish();
        assert!(status.success(), "`receive` found a hole: {status}");
        let (status, theirs) = theirs.finish();
        assert!(status.success(), "{status}");
        let total = theirs.last().expect("the sum");
        assert_eq!((&total["missing"], &total["duplicates"]), (&json!(0), &json!(0)), "{total}");
        let theirs: Vec<Value> = theirs.into_iter().filter(|m| m["gateway"] == id.as_str()).collect();
        let (ours, theirs) = (by_name(&ours), by_name(&theirs));
        assert!(ours.keys().any(|(class, _)| class == "event"), "{:?}", ours.keys());
        for (name, said) in &ours {
            // What came while the one or the other was ending is not compared.
            if let Some(other) = theirs.get(name) {
                assert_eq!(said, other, "{name:?}");
            }
        }
        let both = ours.keys().filter(|name| theirs.contains_key(*name)).count();
        assert!(both >= 44, "{both} of {} and {}", ours.len(), theirs.len());
    }
}
