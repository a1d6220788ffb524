//! Devices of every kind in, a real broker as the upstream out: what arrives is what was sent.

use std::io::BufRead;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_tests::{Child, Gateway, Mosquitto, Options, PATIENCE, Receiver, run, run_ok, shell};

/// A gateway with a native upstream, and the consumer behind it.
struct Chain {
    broker: Mosquitto,
    receiver: Receiver,
    gateway: Gateway,
}

impl Chain {
    fn start(options: Options) -> Self {
        let broker = Mosquitto::start();
        let receiver = Receiver::start(broker.port, &[]);
        let gateway = Gateway::start(options.upstream(broker.port, "native"));
        Self { broker, receiver, gateway }
    }

    fn properties(&mut self, thing: &str, property: &str) -> Value {
        let what = format!("{property} of {thing}");
        self.receiver.until(&what, PATIENCE, |m| m["thing"] == thing && !m["properties"][property].is_null())
    }

    /// Everything arrived once, in order, with no hole.
    fn finish(self) {
        self.gateway.stop();
        let (status, _) = self.receiver.finish();
        assert!(status.success(), "`receive` found a hole: {status}");
    }
}

fn device(id: &str, product: &str) -> String {
    format!("[[device]]\nid = \"{id}\"\nproduct = \"{product}\"\n")
}

#[test]
fn mosquitto_pub_of_every_version_and_qos_arrives() {
    let mut chain = Chain::start(Options::default());
    let port = chain.gateway.options.mqtt.to_string();
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let id = format!("m-{version}-{qos}");
            let topic = format!("/generic/{id}/properties/report");
            let time = 1_763_769_600_123_u64;
            let body = json!({"timestamp": time, "properties": {"level": 7, "text": "ü水", "ratio": 0.1}}).to_string();
            run_ok("mosquitto_pub", &["-p", &port, "-V", version, "-q", qos, "-i", &id, "-t", &topic, "-m", &body]);
            let message = chain.properties(&id, "level");
            assert_eq!(message["properties"]["level"], 7, "{message}");
            assert_eq!(message["properties"]["text"], "ü水", "{message}");
            assert_eq!(message["properties"]["ratio"], 0.1, "{message}");
            assert!(message["time"].as_str().is_some_and(|t| t.starts_with("2025-11-22T00:00:00.123")), "{message}");
        }
    }
    chain.finish();
}

#[test]
fn every_dialect_is_understood() {
    let template = "[[device]]\nid = \"t-1\"\nproduct = \"energy-meter\"\n";
    let mut chain = Chain::start(Options::default().with(template));
    let port = chain.gateway.options.mqtt.to_string();
    let cases = [
        (
            "j-1",
            "/temperature-humidity/j-1/properties/report",
            r#"{"properties":{"temperature":20.5}}"#,
            "temperature",
            json!(20.5),
        ),
        ("e-1", "te/device/e-1///m/environment", r#"{"temperature":19.5}"#, "temperature", json!(19.5)),
        ("b-1", "v1/devices/me/telemetry", r#"{"temperature":18.5}"#, "temperature", json!(18.5)),
    ];
    for (client, topic, body, property, value) in cases {
        run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", client, "-t", topic, "-m", body]);
        let message = chain.properties(client, property);
        assert_eq!(message["properties"][property], value, "{message}");
    }
    chain.finish();
}

#[test]
fn a_template_of_ones_own_is_understood() {
    let port = sluicegate_tests::free_port();
    let adapter = format!(
        "[[adapter]]\nname = \"own\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"mqtt\"\nallow_anonymous = true\n\
         auto_register = true\nproduct = \"generic\"\n\
         options = {{ template = {{ telemetry = \"plant/{{device}}/data\", event = \"plant/{{device}}/alarm/{{event}}\" }} }}\n"
    );
    let mut chain = Chain::start(Options::default().with(&adapter));
    let port = port.to_string();
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-t", "plant/pump-1/data", "-m", r#"{"pressure":2.5}"#]);
    assert_eq!(chain.properties("pump-1", "pressure")["properties"]["pressure"], 2.5);
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-t", "plant/pump-1/alarm/leak", "-m", r#"{"litres":3}"#]);
    let event = chain.receiver.until("the alarm", PATIENCE, |m| m["thing"] == "pump-1" && m["event"]["name"] == "leak");
    assert_eq!(event["event"]["data"]["litres"], 3, "{event}");
    chain.finish();
}

#[test]
fn a_device_may_have_a_chinese_topic() {
    let mut chain = Chain::start(Options::default());
    let port = chain.gateway.options.mqtt.to_string();
    let mut sub = line_by_line("mosquitto_sub");
    sub.args(["-p", &port, "-q", "1", "-t", "设备/#", "-C", "1", "-W", "20", "-d"]).stdout(Stdio::piped());
    let mut sub = Child::start(&mut sub);
    await_line(&mut sub, "Subscribed");
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-t", "设备/1", "-m", "x"]);
    assert!(sub.wait(PATIENCE).success(), "the message did not come back");
    // And the broker still serves.
    let topic = "/generic/after/properties/report";
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-t", topic, "-m", r#"{"properties":{"a":1}}"#]);
    chain.properties("after", "a");
    chain.finish();
}

/// A program whose lines come when they are written, although its output is a pipe.
fn line_by_line(program: &str) -> Command {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", program]);
    command
}

fn await_line(child: &mut Child, word: &str) {
    use std::io::BufReader;
    let stdout = child.inner.stdout.take().expect("piped");
    let mut lines = BufReader::new(stdout).lines();
    let found = lines.by_ref().map_while(Result::ok).any(|l| l.contains(word));
    assert!(found, "no line with {word}");
    // The rest is read so that the child does not block.
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn coap_client_arrives_in_json_and_cbor() {
    let mut chain = Chain::start(Options::default().with(&device("c-1", "temperature-humidity")));
    let port = chain.gateway.options.coap;
    let client = ["coap-client-notls", "coap-client"];
    let client = client.iter().find(|c| run("which", &[c]).status.success()).expect("coap-client");
    let base = format!("coap://127.0.0.1:{port}");
    let url = format!("{base}/things/c-1/properties");
    run_ok(client, &["-B", "10", "-m", "post", "-t", "json", "-e", r#"{"temperature":21.25,"humidity":40}"#, &url]);
    let message = chain.properties("c-1", "temperature");
    assert_eq!(message["properties"]["temperature"], 21.25, "{message}");
    assert_eq!(message["properties"]["humidity"].as_f64(), Some(40.0), "{message}");

    // {"temperature": 23.5} in CBOR, non-confirmable.
    let cbor = chain.gateway.folder.path().join("body.cbor");
    let bytes = [&[0xa1, 0x6b][..], b"temperature", &[0xf9, 0x4d, 0xe0]].concat();
    std::fs::write(&cbor, bytes).unwrap();
    run_ok(client, &["-B", "10", "-N", "-m", "post", "-t", "cbor", "-f", &cbor.display().to_string(), &url]);
    chain.receiver.until("23.5", PATIENCE, |m| m["properties"]["temperature"] == 23.5);

    let listed = run_ok(client, &["-B", "10", "-m", "get", &format!("{base}/.well-known/core")]);
    assert!(listed.contains("</things"), "{listed}");
    let missing = run(client, &["-B", "10", "-m", "get", &format!("{base}/nowhere")]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned() + &String::from_utf8_lossy(&missing.stdout);
    assert!(said.contains("4.04"), "{said}");
    chain.finish();
}

#[test]
fn netcat_and_socat_arrive_over_tcp_and_udp() {
    let mut chain = Chain::start(Options::default().with(&device("gps-1", "gps-tracker")));
    let (tcp, udp) = (chain.gateway.options.tcp, chain.gateway.options.udp);
    let line = r#"{"device":"gps-1","latitude":31.2,"longitude":121.5,"speed":12}"#;
    let answer = shell(&format!("printf '%s\\n' '{line}' | timeout 10 nc -q 5 127.0.0.1 {tcp} | head -n 1"));
    assert!(answer.contains("\"ok\":true"), "{answer}");
    let message = chain.properties("gps-1", "latitude");
    assert_eq!(message["properties"]["latitude"], 31.2, "{message}");
    shell(&format!("printf '%s\\n' '{{\"device\":\"u-1\",\"level\":3}}' | socat -t1 - UDP:127.0.0.1:{udp}"));
    assert_eq!(chain.properties("u-1", "level")["properties"]["level"], 3);
    chain.finish();
}

#[test]
fn nothing_unfitting_is_dropped_in_silence() {
    let mut chain = Chain::start(Options::default().with(&device("th-1", "temperature-humidity")));
    let port = chain.gateway.options.mqtt.to_string();
    let body = r#"{"temperature":900,"humidity":"wet","colour":"red"}"#;
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", "th-1", "-t", "v1/devices/me/telemetry", "-m", body]);
    let message = chain.properties("th-1", "temperature");
    assert_eq!(message["quality"]["temperature"], "out-of-range", "{message}");
    assert_eq!(message["quality"]["humidity"], "wrong-type", "{message}");
    assert_eq!(message["quality"]["colour"], "unknown-property", "{message}");
    chain.finish();
}

#[test]
fn an_unknown_device_is_refused_with_a_reason_and_counted() {
    let port = sluicegate_tests::free_port();
    let strict = format!(
        "[[adapter]]\nname = \"strict\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"raw\"\nallow_anonymous = true\n"
    );
    let chain = Chain::start(Options::default().with(&strict));
    let answer = shell(&format!(
        "printf '%s\\n' '{{\"device\":\"who\",\"a\":1}}' | timeout 10 nc -q 5 127.0.0.1 {port} | head -n 1"
    ));
    assert!(answer.contains("\"ok\":false") && answer.contains("who"), "{answer}");
    let counted = chain.gateway.metric("sluicegate_refused_total{adapter=\"strict\",reason=\"unknown\"}");
    assert!(counted >= 1.0, "{counted}");
    chain.finish();
}

/// A device as its firmware would be: it listens on one topic and hears commands.
struct Listener {
    _sub: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Listener {
    fn start(port: &str, client: &str, topic: &str) -> Self {
        let mut sub = line_by_line("mosquitto_sub");
        sub.args(["-p", port, "-i", client, "-q", "1", "-t", topic, "-W", "60", "-d", "-F", "COMMAND %p"]);
        let mut sub = Child::start(sub.stdout(Stdio::piped()));
        let (sender, lines) = std::sync::mpsc::sync_channel::<String>(100);
        let stdout = sub.inner.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        while !lines.recv_timeout(PATIENCE).expect("the device subscribes").contains("Subscribed") {}
        Self { _sub: sub, lines }
    }

    fn command(&self) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect("the command reaches the device");
            if let Some(json) = line.strip_prefix("COMMAND ") {
                return serde_json::from_str(json).expect("a JSON command");
            }
        }
    }
}

#[test]
fn a_command_from_upstream_reaches_an_mqtt_device_and_its_reply_comes_back() {
    let mut chain = Chain::start(Options::default().with(&device("relay-1", "relay-switch")));
    let up = chain.broker.port.to_string();
    let port = chain.gateway.options.mqtt.to_string();
    let orders = [
        ("c-1", r#"{"id":"c-1","write":{"on":true},"timeout_ms":20000}"#, "properties/write"),
        ("c-2", r#"{"id":"c-2","invoke":"toggle","timeout_ms":20000}"#, "function/invoke"),
    ];
    for (id, order, topic) in orders {
        let listener = Listener::start(&port, "relay-1", &format!("/relay-switch/relay-1/{topic}"));
        run_ok("mosquitto_pub", &["-p", &up, "-q", "1", "-t", "sg/v1/gate-t/down/relay-1", "-m", order]);
        let command = listener.command();
        let fits =
            command["properties"]["on"] == true || command["function"] == "toggle" || command["functionId"] == "toggle";
        assert!(fits, "{command}");
        let reply =
            json!({"messageId": command["messageId"], "success": true, "output": true, "properties": {"on": true}});
        let answer = format!("/relay-switch/relay-1/{topic}/reply");
        run_ok("mosquitto_pub", &["-p", &port, "-i", "other-1", "-q", "1", "-t", &answer, "-m", &reply.to_string()]);
        let message = chain.receiver.until("the reply", PATIENCE, |m| m["reply"]["id"] == id);
        assert!(message["reply"]["error"].is_null(), "{message}");
    }
    // What the model does not allow is refused with a reason, also upstream.
    let order = r#"{"id":"c-3","write":{"on":"perhaps"}}"#;
    run_ok("mosquitto_pub", &["-p", &up, "-q", "1", "-t", "sg/v1/gate-t/down/relay-1", "-m", order]);
    let message = chain.receiver.until("the refusal", PATIENCE, |m| m["reply"]["id"] == "c-3");
    assert!(message["reply"]["error"].as_str().is_some_and(|e| e.contains("on")), "{message}");
    chain.finish();
}

#[test]
fn a_serial_line_arrives_and_is_opened_again() {
    let folder = tempfile::TempDir::new().unwrap();
    let (ours, theirs) = (folder.path().join("gateway"), folder.path().join("device"));
    let cable = || {
        let end = |path: &std::path::Path| format!("pty,raw,echo=0,link={}", path.display());
        let cable = Child::start(Command::new("socat").args([end(&ours), end(&theirs)]));
        sluicegate_tests::wait_for("the line", PATIENCE, || (ours.exists() && theirs.exists()).then_some(()));
        cable
    };
    let line = cable();
    let adapter = format!(
        "[[adapter]]\nname = \"line\"\nlisten = \"serial://{}?baud=9600\"\nprotocol = \"raw\"\nallow_anonymous = true\n\
         auto_register = true\nproduct = \"generic\"\n",
        ours.display()
    );
    let mut chain = Chain::start(Options::default().with(&adapter));
    let say = |level: u32| {
        sluicegate_tests::wait_for("the line's answer", PATIENCE, || {
            let exchange = format!(
                "printf '%s\\n' '{{\"device\":\"s-1\",\"level\":{level}}}' | timeout 5 socat -t2 - FILE:{},raw,echo=0",
                theirs.display()
            );
            let output = run("sh", &["-c", &exchange]);
            String::from_utf8_lossy(&output.stdout).contains("\"ok\":true").then_some(())
        });
    };
    say(5);
    chain.receiver.until("the report", PATIENCE, |m| m["thing"] == "s-1" && m["properties"]["level"] == 5);
    // The cable is pulled and plugged again.
    drop(line);
    let _line = cable();
    say(6);
    chain.receiver.until("the next report", PATIENCE, |m| m["thing"] == "s-1" && m["properties"]["level"] == 6);
    chain.finish();
}

#[test]
fn presence_follows_connect_disconnect_and_loss() {
    let mut chain = Chain::start(Options::default().with(&device("p-1", "temperature-humidity")));
    let port = chain.gateway.options.mqtt.to_string();
    let topic = "v1/devices/me/telemetry";
    run_ok("mosquitto_pub", &["-p", &port, "-i", "p-1", "-t", topic, "-m", r#"{"temperature":1}"#]);
    let online = |online: bool| move |m: &Value| m["thing"] == "p-1" && m["presence"]["online"] == online;
    chain.receiver.until("online", PATIENCE, online(true));
    chain.receiver.until("offline after a goodbye", PATIENCE, online(false));
    let seen = chain.receiver.seen.len();
    // Killed without a goodbye.
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-p", &port, "-i", "p-1", "-t", "x"]).stdout(Stdio::null());
    let sub = Child::start(&mut sub);
    let after = |from: usize, seen: &[Value], online: bool| {
        seen.iter().skip(from).any(|m| m["thing"] == "p-1" && m["presence"]["online"] == online)
    };
    sluicegate_tests::wait_for("online again", PATIENCE, || {
        chain.receiver.drain();
        after(seen, &chain.receiver.seen, true).then_some(())
    });
    drop(sub);
    sluicegate_tests::wait_for("offline after the loss", Duration::from_secs(15), || {
        chain.receiver.drain();
        after(seen, &chain.receiver.seen, false).then_some(())
    });
    chain.finish();
}

#[test]
fn the_json_dialect_is_plain_json() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(Options::default().upstream(broker.port, "json"));
    let mut sub = line_by_line("mosquitto_sub");
    let port = broker.port.to_string();
    sub.args(["-p", &port, "-q", "1", "-t", "sg/v1/gate-t/#", "-W", "30", "-d", "-F", "%p"]).stdout(Stdio::piped());
    let mut sub = Child::start(&mut sub);
    let stdout = sub.inner.stdout.take().unwrap();
    let mut lines = std::io::BufReader::new(stdout).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Subscribed")), "the platform does not listen");
    let topic = "/generic/json-1/properties/report";
    let mqtt = gateway.options.mqtt.to_string();
    run_ok("mosquitto_pub", &["-p", &mqtt, "-q", "1", "-t", topic, "-m", r#"{"properties":{"a":1.5}}"#]);
    let found = lines.find_map(|line| {
        let json: Value = serde_json::from_str(&line).ok()?;
        (json["thing"] == "json-1" && json["properties"].is_object()).then_some(json)
    });
    let found = found.expect("the message as JSON");
    assert!(found.to_string().contains("1.5"), "{found}");
    gateway.stop();
}

#[test]
fn units_and_times_come_out_with_the_values() {
    let broker = Mosquitto::start();
    let options = Options::default().with(&device("th-2", "temperature-humidity"));
    let gateway = Gateway::start(options.upstream(broker.port, "native"));
    let mut receiver = Receiver::start(broker.port, &[]);
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let folder = gateway.folder.path().join("table").display().to_string();
    let mut table = Command::new("sh");
    let program = sluicegate_tests::binary().display().to_string();
    let line = format!(
        "{program} receive --url {url} --client-id second --count 3 --idle-seconds 20 > {folder} 2> {folder}.log"
    );
    table.args(["-c", &line]);
    let mut table = Child::start(&mut table);
    let log = format!("{folder}.log");
    sluicegate_tests::wait_for("the table's subscription", PATIENCE, || {
        std::fs::read_to_string(&log).ok().filter(|l| l.contains("subscribed"))
    });
    let port = gateway.options.mqtt.to_string();
    let body = r#"{"ts":1763769600500,"values":{"temperature":21.5}}"#;
    for _ in 0..3 {
        run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", "th-2", "-t", "v1/devices/me/telemetry", "-m", body]);
    }
    let is = |m: &Value| m["thing"] == "th-2" && m["properties"]["temperature"] == 21.5;
    let message = receiver.until("the value", PATIENCE, is);
    assert!(message["time"].as_str().is_some_and(|t| t.starts_with("2025-11-22T00:00:00.5")), "{message}");
    table.wait(PATIENCE);
    let shown = std::fs::read_to_string(&folder).unwrap();
    assert!(shown.contains("21.5 Cel") || shown.contains("21.5 °C"), "{shown}");
    gateway.stop();
}
