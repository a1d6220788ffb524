//! Platforms' own dialects against a real broker: what arrives there, and commands that come back.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::{Value, json};
use sluicegate_tests::{Child, Gateway, Mosquitto, Options, PATIENCE, run_ok, shell, wait_for};

/// A `mosquitto_sub`: topic, whether it was kept for us, and payload of everything that arrives.
pub(crate) struct Ear {
    lines: mpsc::Receiver<String>,
    _child: Child,
}

impl Ear {
    /// Subscribed when it returns.
    fn open(port: u16, more: &[&str]) -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "mosquitto_sub", "-V", "mqttv5", "-p", &port.to_string(), "-q", "1", "-d"]);
        command.args(["-F", "HEARD %t %r %p"]).args(more).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = Child::start(&mut command);
        let stdout = child.inner.stdout.take().unwrap();
        let (sender, lines) = mpsc::sync_channel(100_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let ear = Self { lines, _child: child };
        ear.line("its subscription", |line| line.starts_with("Subscribed").then_some(()));
        ear
    }

    fn line<T>(&self, what: &str, fits: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if let Some(found) = fits(&line) {
                return found;
            }
            last = line;
        }
        panic!("waited {PATIENCE:?} for {what}; the last line: {last}");
    }

    /// The next payload on this topic.
    fn text(&self, topic: &str) -> String {
        let start = format!("HEARD {topic} ");
        self.line(topic, |line| Some(line.strip_prefix(&start)?.get(2..)?.to_owned()))
    }

    fn json(&self, topic: &str) -> Value {
        let text = self.text(topic);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{topic}: {text}: {error}"))
    }

    /// Waits until this is said on this topic.
    fn heard(&self, topic: &str, payload: &str) {
        while self.text(topic) != payload {}
    }

    /// Waits until a payload on this topic fits.
    fn until(&self, topic: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let json = self.json(topic);
            if fits(&json) {
                return json;
            }
        }
    }
}

fn send(port: u16, client: &str, topic: &str, payload: &str) {
    run_ok("mosquitto_pub", &["-p", &port.to_string(), "-q", "1", "-i", client, "-t", topic, "-m", payload]);
}

/// A relay as its firmware would be, waiting for commands. What it says goes out by another client, which takes the way to
/// the device over: after it has spoken, it connects anew for the next command.
pub(crate) struct Relay {
    pub(crate) ear: Ear,
    port: u16,
}

impl Relay {
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        let port = gateway.options.mqtt;
        let commands = [
            "-i",
            "relay-1",
            "-t",
            "/relay-switch/relay-1/properties/write",
            "-t",
            "/relay-switch/relay-1/function/invoke",
        ];
        Self { ear: Ear::open(port, &commands), port }
    }

    /// Takes the next write and answers it; the properties that were to be set.
    pub(crate) fn obeys(self) -> Value {
        let command = self.ear.json("/relay-switch/relay-1/properties/write");
        let reply = json!({ "messageId": command["messageId"], "success": true, "properties": command["properties"] });
        says(self.port, "properties/write/reply", &reply);
        command["properties"].clone()
    }
}

pub(crate) fn says(port: u16, way: &str, body: &Value) {
    send(port, "relay-1-b", &format!("/relay-switch/relay-1/{way}"), &body.to_string());
}

/// The power is out of its range.
pub(crate) fn report() -> Value {
    json!({ "timestamp": 1_763_769_600_123_u64, "properties": { "on": false, "power": -5 } })
}

const RELAY: &str = "[[device]]\nid = \"relay-1\"\nproduct = \"relay-switch\"\n";

fn start(broker: &Mosquitto, dialect: &str) -> Gateway {
    Gateway::start(Options::default().with(RELAY).upstream(broker.port, dialect))
}

/// Three platforms that let their commands wait: the broker of each has its own, all call the same relay.
#[test]
fn calls_of_platforms_wait_for_a_device_that_is_away_and_are_answered_under_their_own_ids() {
    let brokers = [(); 3].map(|()| Mosquitto::start());
    let [thingsboard, jetlinks, edge] = &brokers;
    let waits = |broker: &Mosquitto, dialect: &str, name: &str| {
        let url = format!("mqtt://127.0.0.1:{}", broker.port);
        format!(
            "[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\ndialect = \"{dialect}\"\nbatch_ms = 50\ncommands_wait_seconds = 600"
        )
    };
    let ears = [(thingsboard, "v1/#"), (jetlinks, "/+/+/#"), (edge, "te/#")]
        .map(|(broker, filter)| Ear::open(broker.port, &["-t", filter]));
    let gateway = Gateway::start(
        Options::default()
            .with(RELAY)
            .with(&waits(thingsboard, "thingsboard", "tb"))
            .with(&waits(jetlinks, "jetlinks", "jl"))
            .with(&waits(edge, "thin-edge", "te")),
    );
    wait_for("the upstreams", PATIENCE, || {
        let upstreams: Value = serde_json::from_str(&gateway.get("/api/v1/upstreams")).unwrap();
        upstreams.as_array().unwrap().iter().all(|upstream| upstream["connected"] == true).then_some(())
    });
    let waiting = |count: u32| {
        wait_for("the calls to wait", PATIENCE, || {
            (gateway.metric("sluicegate_commands_waiting{}") as u32 == count).then_some(())
        });
    };
    let call = json!({ "device": "relay-1", "data": { "id": 41, "method": "write", "params": { "on": true } } });
    send(thingsboard.port, "tb", "v1/gateway/rpc", &call.to_string());
    waiting(1);
    // Said again while it waits, it is the same one.
    send(thingsboard.port, "tb", "v1/gateway/rpc", &call.to_string());
    let write = json!({ "messageId": "m-9", "properties": { "on": false } });
    send(jetlinks.port, "jl", "/relay-switch/relay-1/properties/write", &write.to_string());
    let reply = ears[1].json("/relay-switch/relay-1/properties/write/reply");
    assert_eq!((&reply["messageId"], &reply["code"]), (&json!("m-9"), &json!("REQUEST_HANDLING")), "{reply}");
    let command = "te/device/relay-1///cmd/write/c-7";
    send(edge.port, "te", command, &json!({ "status": "init", "properties": { "on": true } }).to_string());
    ears[2].until(command, |body| body["status"] == "executing" && body["reason"].is_string());
    waiting(3);

    for on in [true, false, true] {
        assert_eq!(Relay::connect(&gateway).obeys(), json!({ "on": on }));
    }
    // The first reply to the call is its end.
    let reply = ears[0].until("v1/gateway/rpc", |body| body["id"] == 41);
    assert_eq!(reply["data"]["success"], true, "{reply}");
    let reply = ears[1].json("/relay-switch/relay-1/properties/write/reply");
    assert_eq!((&reply["messageId"], &reply["success"]), (&json!("m-9"), &json!(true)), "{reply}");
    ears[2].until(command, |body| body["status"] == "successful");
    assert_eq!(gateway.metric("sluicegate_commands_total{result=\"repeated\"}") as u32, 1);
    gateway.stop();
}

#[test]
fn thingsboard_gets_telemetry_and_calls_a_device() {
    let broker = Mosquitto::start();
    let ear = Ear::open(broker.port, &["-t", "v1/#"]);
    let gateway = start(&broker, "thingsboard");
    says(gateway.options.mqtt, "properties/report", &report());
    assert_eq!(ear.json("v1/gateway/connect"), json!({ "device": "relay-1", "type": "relay-switch" }));
    let telemetry = ear.json("v1/gateway/telemetry");
    let entry = &telemetry["relay-1"][0];
    assert_eq!((&entry["ts"], &entry["values"]["on"]), (&json!(1_763_769_600_123_u64), &json!(false)), "{telemetry}");
    assert_eq!(entry["values"]["_quality"], json!({ "power": "out-of-range" }), "{telemetry}");

    let relay = Relay::connect(&gateway);
    let call = json!({ "device": "relay-1", "data": { "id": 41, "method": "write", "params": { "on": true } } });
    send(broker.port, "tb", "v1/gateway/rpc", &call.to_string());
    assert_eq!(relay.obeys(), json!({ "on": true }));
    let reply = ear.until("v1/gateway/rpc", |body| body["id"] == 41);
    assert_eq!((&reply["device"], &reply["data"]["success"]), (&json!("relay-1"), &json!(true)), "{reply}");

    let refused = json!({ "device": "relay-1", "data": { "id": 42, "method": "write", "params": { "power": 3 } } });
    send(broker.port, "tb", "v1/gateway/rpc", &refused.to_string());
    let reply = ear.until("v1/gateway/rpc", |body| body["id"] == 42);
    assert!(reply["data"]["error"].as_str().is_some_and(|error| error.contains("read-only")), "{reply}");

    let relay = Relay::connect(&gateway);
    let wish = json!({ "device": "relay-1", "data": { "on": false } });
    send(broker.port, "tb", "v1/gateway/attributes", &wish.to_string());
    assert_eq!(relay.obeys(), json!({ "on": false }));
    ear.until("v1/gateway/attributes", |body| body["relay-1"]["lastWrite"]["success"] == true);
    assert_eq!(ear.json("v1/gateway/disconnect"), json!({ "device": "relay-1" }));
    gateway.stop();
}

#[test]
fn jetlinks_gets_reports_and_commands_a_device() {
    let broker = Mosquitto::start();
    let ear = Ear::open(broker.port, &["-t", "/relay-switch/#"]);
    let gateway = start(&broker, "jetlinks");
    let port = gateway.options.mqtt;
    let topic = |way: &str| format!("/relay-switch/relay-1/{way}");
    says(port, "properties/report", &report());
    assert_eq!(ear.json(&topic("online"))["deviceId"], "relay-1");
    let report = ear.json(&topic("properties/report"));
    let time = json!(1_763_769_600_123_u64);
    assert_eq!((&report["timestamp"], &report["properties"]["on"]), (&time, &json!(false)), "{report}");
    assert_eq!(report["propertyStates"], json!({ "power": "out-of-range" }), "{report}");

    let relay = Relay::connect(&gateway);
    let write = json!({ "messageId": "m-1", "properties": { "on": true } });
    send(broker.port, "jl", &topic("properties/write"), &write.to_string());
    assert_eq!(relay.obeys(), json!({ "on": true }));
    let reply = ear.json(&topic("properties/write/reply"));
    assert_eq!((&reply["messageId"], &reply["success"]), (&json!("m-1"), &json!(true)), "{reply}");

    let relay = Relay::connect(&gateway);
    let invoke = json!({ "messageId": "m-2", "functionId": "toggle", "inputs": [] });
    send(broker.port, "jl", &topic("function/invoke"), &invoke.to_string());
    let command = relay.ear.json(&topic("function/invoke"));
    let done = json!({ "messageId": command["messageId"], "success": true, "output": true });
    says(port, "function/invoke/reply", &done);
    let reply = ear.json(&topic("function/invoke/reply"));
    assert_eq!((&reply["messageId"], &reply["output"]), (&json!("m-2"), &json!(true)), "{reply}");

    // Another gateway's device on the same broker is not answered for; ours, which has gone, is.
    drop(relay);
    assert_eq!(ear.json(&topic("offline"))["deviceId"], "relay-1");
    send(broker.port, "jl", "/relay-switch/elsewhere/properties/write", &write.to_string());
    let unwritable = json!({ "messageId": "m-3", "properties": { "power": 1 } });
    send(broker.port, "jl", &topic("properties/write"), &unwritable.to_string());
    let reply = ear.json(&topic("properties/write/reply"));
    assert_eq!((&reply["messageId"], &reply["code"]), (&json!("m-3"), &json!("PARAMETER_ERROR")), "{reply}");
    let refused = gateway.metric("sluicegate_commands_total{result=\"refused\"}");
    assert!((0.5..1.5).contains(&refused), "{refused}");
    gateway.stop();
}

#[test]
fn home_assistant_discovers_a_device_and_switches_it() {
    let broker = Mosquitto::start();
    let gateway = start(&broker, "homeassistant");
    let port = gateway.options.mqtt;
    says(port, "properties/report", &json!({ "properties": { "on": false } }));
    let relay = Relay::connect(&gateway);
    // Subscribed late: everything that is needed was kept.
    let ear = Ear::open(broker.port, &["-t", "homeassistant/#", "-t", "sg/v1/gate-t/ha/#"]);
    let config = ear.json("homeassistant/switch/gate-t_relay-1/on/config");
    let (state, command) = (config["state_topic"].as_str().unwrap(), config["command_topic"].as_str().unwrap());
    Ear::open(broker.port, &["-t", state]).heard(state, "false");
    ear.heard("sg/v1/gate-t/ha/relay-1/availability", "online");
    send(broker.port, "ha", command, config["payload_on"].as_str().unwrap());
    assert_eq!(relay.obeys(), json!({ "on": true }));
    let reply = ear.json("sg/v1/gate-t/ha/relay-1/reply");
    assert!(reply["reply"]["error"].is_null(), "{reply}");
    says(port, "properties/report", &json!({ "properties": { "on": true } }));
    ear.heard(state, "true");

    // A birth of Home Assistant asks for everything again; a new thing introduces itself.
    send(broker.port, "ha", "homeassistant/status", "online");
    ear.json("homeassistant/switch/gate-t_relay-1/on/config");
    // Somebody new, and somebody whose model names no property: the one is introduced, the other counted.
    send(port, "g-1", "/generic/g-1/properties/report", r#"{"properties":{"level":1}}"#);
    let counted = "sluicegate_left_out_total{upstream=\"up\",reason=\"no-entity\"}";
    wait_for("the count", PATIENCE, || (gateway.metric(counted) >= 1.0).then_some(()));
    ear.heard("sg/v1/gate-t/ha/g-1/availability", "offline");
    gateway.stop();
    ear.heard("sg/v1/gate-t/ha/availability", "offline");
}

#[test]
fn thin_edge_gets_measurements_and_commands_a_device() {
    let broker = Mosquitto::start();
    let ear = Ear::open(broker.port, &["-t", "te/#"]);
    let gateway = start(&broker, "thin-edge");
    let port = gateway.options.mqtt;
    let topic = |way: &str| format!("te/device/relay-1///{way}");
    let health = "te/device/main/service/sluicegate-gate-t/status/health";
    assert_eq!(ear.json(health)["status"], "up");
    assert_eq!(ear.json("te/device/main/service/sluicegate-gate-t")["@type"], "service");
    let thing = ear.json("te/device/relay-1//");
    assert_eq!((&thing["@type"], &thing["type"]), (&json!("child-device"), &json!("relay-switch")), "{thing}");
    says(port, "properties/report", &report());
    let measurement = ear.json(&topic("m/relay-switch"));
    assert_eq!(measurement, json!({ "power": -5.0, "time": "2025-11-22T00:00:00.123000Z" }));
    assert_eq!(ear.json(&topic("twin/on")), json!(false));

    // As thin-edge's own agents see it: what a thing can be told is kept, a command goes through its states on one topic.
    let offered = Ear::open(broker.port, &["-t", &topic("cmd/toggle")]);
    assert_eq!(offered.json(&topic("cmd/toggle")), json!({}));
    let relay = Relay::connect(&gateway);
    let command = topic("cmd/toggle/c-1");
    let keep = |payload: &str| {
        let port = broker.port.to_string();
        run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-r", "-t", &command, "-m", payload]);
    };
    keep(r#"{"status":"init"}"#);
    let invoked = relay.ear.json("/relay-switch/relay-1/function/invoke");
    ear.until(&command, |state| state["status"] == "executing");
    let done = json!({ "messageId": invoked["messageId"], "success": true, "output": true });
    says(port, "function/invoke/reply", &done);
    let end = ear.until(&command, |state| state["status"] == "successful");
    assert_eq!(end["result"], true, "{end}");
    let written = topic("cmd/write/c-2");
    send(broker.port, "c8y", &written, r#"{"status":"init","properties":{"power":1}}"#);
    let end = ear.until(&written, |state| state["status"] == "failed");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.contains("read-only")), "{end}");
    drop(relay);
    gateway.stop();
    ear.until(health, |state| state["status"] == "down");
}

/// What openssl makes of what Alink signs.
fn signed(params: &Value, secret: &str) -> Value {
    let content: String = ["clientId", "deviceName", "productKey", "timestamp"]
        .map(|key| format!("{key}{}", params[key].as_str().unwrap()))
        .concat();
    let line = format!("printf %s '{content}' | openssl dgst -sha256 -hmac {secret}");
    json!(shell(&line).trim().rsplit(' ').next().unwrap())
}

#[test]
fn alink_logs_a_thing_in_before_it_speaks_and_sets_its_properties() {
    let broker = Mosquitto::start();
    let ear = Ear::open(broker.port, &["-t", "/sys/#", "-t", "/ext/#"]);
    let folder = tempfile::tempdir().unwrap();
    let (secret, things) = (folder.path().join("secret"), folder.path().join("things.json"));
    std::fs::write(&secret, "deep\n").unwrap();
    let thing = json!({ "relay-1": { "productKey": "a1Relay", "deviceName": "r-1", "deviceSecret": "deeper" } });
    std::fs::write(&things, thing.to_string()).unwrap();
    let alink = format!(
        "alink = {{ product_key = \"a1Gate\", device_name = \"g-1\", secret_file = {secret:?}, things_file = {things:?} }}"
    );
    let options = Options::default().upstream(broker.port, "alink").with(&alink).with(RELAY);
    let gateway = Gateway::start(options);
    let port = gateway.options.mqtt;
    let answer = |topic: &str, asked: &Value| {
        let body = json!({ "id": asked["id"], "code": 200, "message": "success", "data": {} });
        send(broker.port, "platform", topic, &body.to_string());
    };
    let add = ear.json("/sys/a1Gate/g-1/thing/topo/add");
    assert_eq!(add["params"][0]["sign"], signed(&add["params"][0], "deeper"), "{add}");
    // Nothing is said of a thing before the platform knows it, and lets it in.
    let mut device = Command::new("mosquitto_pub");
    device.args([
        "-p",
        &port.to_string(),
        "-q",
        "1",
        "-i",
        "relay-1",
        "-l",
        "-t",
        "/relay-switch/relay-1/properties/report",
    ]);
    let mut device = Child::start(device.stdin(Stdio::piped()));
    writeln!(device.inner.stdin.as_mut().unwrap(), "{}", report()).unwrap();
    let heard = ear.lines.recv_timeout(std::time::Duration::from_millis(700));
    assert!(heard.is_err(), "{heard:?}");
    answer("/sys/a1Gate/g-1/thing/topo/add_reply", &add);
    let login = ear.json("/ext/session/a1Gate/g-1/combine/login");
    assert_eq!(login["params"]["sign"], signed(&login["params"], "deeper"), "{login}");
    answer("/ext/session/a1Gate/g-1/combine/login_reply", &login);
    let post = ear.json("/sys/a1Relay/r-1/thing/event/property/post");
    let time = 1_763_769_600_123_u64;
    assert_eq!(post["params"]["on"], json!({ "value": 0, "time": time }), "a bool is a number: {post}");
    assert_eq!(post["params"]["power"], json!({ "value": -5.0, "time": time }), "{post}");

    // It goes, and comes again to be told something.
    drop(device);
    let logout = ear.json("/ext/session/a1Gate/g-1/combine/logout");
    assert_eq!(logout["params"], json!({ "productKey": "a1Relay", "deviceName": "r-1" }));
    let relay = Relay::connect(&gateway);
    answer("/ext/session/a1Gate/g-1/combine/login_reply", &ear.json("/ext/session/a1Gate/g-1/combine/login"));
    let set = json!({ "id": "901", "version": "1.0", "params": { "on": 1 }, "method": "thing.service.property.set" });
    send(broker.port, "platform", "/sys/a1Relay/r-1/thing/service/property/set", &set.to_string());
    assert_eq!(relay.obeys(), json!({ "on": true }));
    let reply = ear.json("/sys/a1Relay/r-1/thing/service/property/set_reply");
    assert_eq!((&reply["id"], &reply["code"]), (&json!("901"), &json!(200)), "{reply}");

    // The platform takes a message from the broker and then does not want it: that is counted.
    let refused = json!({ "id": "1", "code": 6451, "message": "source data is not found" });
    send(broker.port, "platform", "/sys/a1Relay/r-1/thing/event/property/post_reply", &refused.to_string());
    let counted = "sluicegate_left_out_total{upstream=\"up\",reason=\"refused\"}";
    wait_for("the count", PATIENCE, || (gateway.metric(counted) >= 1.0).then_some(()));
    gateway.stop();
}

#[test]
fn a_platforms_backlog_is_kept_while_its_broker_is_away() {
    let mut broker = Mosquitto::start();
    let gateway = start(&broker, "thingsboard");
    // Its session outlives the broker: what the gateway says before it is back is kept for it.
    let ear = Ear::open(broker.port, &["-i", "ear", "-c", "-x", "600", "-t", "v1/gateway/telemetry"]);
    broker.pause();
    let ts = |n: u64| 1_763_769_600_000 + n;
    for n in 0..20 {
        let body = json!({ "timestamp": ts(n), "properties": { "n": n } }).to_string();
        send(gateway.options.mqtt, "b-1", "/generic/b-1/properties/report", &body);
    }
    broker.resume();
    let mut heard = Vec::new();
    while heard.len() < 20 {
        let telemetry = ear.json("v1/gateway/telemetry");
        for entry in telemetry["b-1"].as_array().into_iter().flatten() {
            heard.push((entry["ts"].as_u64().unwrap(), entry["values"]["n"].as_u64().unwrap()));
        }
    }
    assert_eq!(heard, (0..20).map(|n| (ts(n), n)).collect::<Vec<_>>());
    gateway.stop();
}
