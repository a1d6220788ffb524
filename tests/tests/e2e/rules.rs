//! What is asked of values at the edge, from the device to the consumer: report by exception, windows, alarms.

use serde_json::{Value, json};
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, binary, run, run_ok};
use tempfile::TempDir;

const RULES: &str = r#"
[[device]]
id = "m-1"
product = "energy-meter"

[[device]]
id = "other"
product = "energy-meter"

[[rule]]
things = ["m-*"]
product = "energy-meter"
property = "u"
deadband = 0.5

[[rule]]
things = ["m-*"]
product = "energy-meter"
property = "power"
report = "window"
window_seconds = 1
take = "mean"

[[alarm]]
product = "energy-meter"
property = "voltage"
event = "overVoltage"
level = "error"
above = 253.0
hysteresis = 3.0
"#;

fn report(gateway: &Gateway, thing: &str, properties: &Value) {
    let port = gateway.options.mqtt.to_string();
    let topic = format!("/energy-meter/{thing}/properties/report");
    let body = json!({ "properties": properties }).to_string();
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", thing, "-t", &topic, "-m", &body]);
}

/// Values of one property of `m-1`, in order.
fn values(messages: &[Value], property: &str) -> Vec<f64> {
    let own = messages.iter().filter(|message| message["thing"] == "m-1");
    own.filter_map(|message| message["properties"][property].as_f64()).collect()
}

/// Waits for this value of `m-1`.
fn wait(receiver: &mut Receiver, property: &str, value: f64) {
    let what = format!("{property} {value}");
    receiver.until(&what, PATIENCE, |m| m["thing"] == "m-1" && m["properties"][property].as_f64() == Some(value));
}

#[test]
fn what_a_rule_holds_back_is_counted_and_what_it_lets_through_arrives() {
    let broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(Options::default().upstream(broker.port, "native").with(RULES));
    for (voltage, power) in [(230.0, 10.0), (230.2, 20.0), (230.4, 60.0)] {
        report(&gateway, "m-1", &json!({ "voltage": voltage, "power": power }));
    }
    report(&gateway, "other", &json!({ "voltage": 230.1 }));
    report(&gateway, "m-1", &json!({ "voltage": 254.5 }));
    let raised = receiver.until("the alarm", PATIENCE, |m| m["event"]["name"] == "overVoltage");
    let data = &raised["event"]["data"];
    assert_eq!((&data["state"], &data["value"]), (&json!("raised"), &json!(254.5)), "{raised}");
    assert_eq!(raised["event"]["level"], "error", "{raised}");
    // Three reports were enough to hold two voltages and three powers back; the others say everything.
    let held = gateway.metric("sluicegate_held_values_total{adapter=\"mqtt\"}");
    assert!((held - 5.0).abs() < 0.5, "{held}");
    report(&gateway, "m-1", &json!({ "voltage": 249.0 }));
    receiver.until("all well again", PATIENCE, |m| m["event"]["data"]["state"] == "cleared");
    wait(&mut receiver, "power", 30.0);
    gateway.stop();
    let (status, messages) = receiver.finish();
    assert!(status.success(), "`receive` found a hole: {status}");
    assert_eq!(values(&messages, "voltage"), [230.0, 254.5, 249.0]);
    assert!(messages.iter().any(|m| m["thing"] == "other" && m["properties"]["voltage"] == 230.1), "not in the rule");
}

#[test]
fn a_window_says_its_mean_in_time_and_what_is_open_is_said_at_the_stop() {
    let broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let rules = RULES.replace("window_seconds = 1\n", "window_seconds = 5\n");
    let mut gateway = Gateway::start(Options::default().upstream(broker.port, "native").with(&rules));
    for power in [10.0, 20.0, 60.0] {
        report(&gateway, "m-1", &json!({ "power": power, "voltage": 230.0 }));
    }
    // Nobody reports any more: time alone closes it.
    wait(&mut receiver, "power", 30.0);
    for power in [1.0, 3.0] {
        report(&gateway, "m-1", &json!({ "power": power }));
    }
    gateway.terminate();
    gateway.restart();
    wait(&mut receiver, "power", 2.0);
    gateway.stop();
    assert_eq!(values(&receiver.finish().1, "power"), [30.0, 2.0]);
}

#[test]
fn a_rule_that_fits_no_model_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sluicegate.toml");
    let text = "[[rule]]\nproduct = \"energy-meter\"\nproperty = \"volts\"\n\n[[rule]]\nproduct = \"toaster\"\nproperty = \"x\"\n\n\
                [[rule]]\nproduct = \"energy-meter\"\nproperty = \"relay\"\nreport = \"window\"\nwindow_seconds = 5\n\n\
                [[alarm]]\nproduct = \"energy-meter\"\nproperty = \"voltage\"\nevent = \"e\"\nabove = 1\nbelow = 2\n";
    std::fs::write(&file, text).unwrap();
    let output = run(&binary().display().to_string(), &["check", "--config", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for wanted in [
        "sluicegate.toml:3: rule[0].property: model `energy-meter` has no property `volts`",
        "sluicegate.toml:6: rule[1].product: there is no model `toaster`",
        "alarm[0].above: give exactly one of above, below, equals and differs",
    ] {
        assert!(said.contains(wanted), "{said}");
    }
}
