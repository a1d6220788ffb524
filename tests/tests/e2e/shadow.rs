//! Shadows, and commands for devices that are away: what waits is delivered once, in order, or is said to be given up,
//! whatever happens to the gateway meanwhile.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_tests::{Child, Gateway, Mosquitto, Options, PATIENCE, Receiver, run_ok, wait_for};

const RELAY: &str = "[[device]]\nid = \"relay-1\"\nproduct = \"relay-switch\"\n";

/// A gateway with a relay that is declared, a native upstream, and the consumer behind it.
struct Site {
    broker: Mosquitto,
    receiver: Receiver,
    gateway: Gateway,
}

impl Site {
    fn start(more: &str) -> Self {
        let broker = Mosquitto::start();
        let receiver = Receiver::start(broker.port, &[]);
        let gateway = Gateway::start(Options::default().with(RELAY).with(more).upstream(broker.port, "native"));
        let site = Self { broker, receiver, gateway };
        site.until_up();
        site
    }

    /// Commands reach the gateway from upstream.
    fn until_up(&self) {
        wait_for("the upstream", PATIENCE, || {
            let upstreams: Value = serde_json::from_str(&self.gateway.get("/api/v1/upstreams")).unwrap();
            (upstreams[0]["connected"] == true).then_some(())
        });
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        ask(&self.gateway, method, path, body)
    }

    fn order(&self, order: &Value) {
        let (port, order) = (self.broker.port.to_string(), order.to_string());
        run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-t", "sg/v1/gate-t/down/relay-1", "-m", &order]);
    }

    /// All of them as fast as the broker takes them.
    fn burst(&self, orders: impl Iterator<Item = Value>) {
        let file = self.gateway.folder.path().join("orders");
        let orders: Vec<String> = orders.map(|order| order.to_string()).collect();
        std::fs::write(&file, orders.join("\n")).unwrap();
        let (port, file) = (self.broker.port, file.display());
        sluicegate_tests::shell(&format!("mosquitto_pub -p {port} -q 1 -l -t sg/v1/gate-t/down/relay-1 < {file}"));
    }

    /// A reply with this id whose error has this in it.
    fn error(&mut self, id: &str, word: &str) -> Value {
        let fits = |m: &Value| m["reply"]["id"] == id && m["reply"]["error"].as_str().is_some_and(|e| e.contains(word));
        self.receiver.until(&format!("`{word}` for {id}"), PATIENCE, fits)
    }

    fn waiting(&self) -> Vec<String> {
        let (_, commands) = self.ask("GET", "commands", "");
        commands.as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap().to_owned()).collect()
    }

    fn counted(&self, figure: &str) -> u64 {
        self.gateway.metric(figure).round() as u64
    }

    fn until_empty(&self) {
        wait_for("an empty queue", PATIENCE, || self.waiting().is_empty().then_some(()));
    }
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, body) = gateway.request(method, &format!("/api/v1/things/relay-1/{path}"), body);
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// A relay as mosquitto_sub: hears commands, never answers.
struct Ear {
    _child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    /// Commands that came before the subscription was confirmed.
    early: Vec<String>,
}

impl Ear {
    /// `more`: `-c` for a session that outlives the connection.
    fn open(port: u16, more: &[&str]) -> Self {
        let port = port.to_string();
        let mut sub = Command::new("stdbuf");
        sub.args(["-oL", "mosquitto_sub", "-p", &port, "-i", "relay-1", "-q", "1", "-d", "-F", "COMMAND %p"]);
        sub.args(["-t", "/relay-switch/relay-1/function/invoke"]).args(more).stdout(Stdio::piped());
        let mut child = Child::start(&mut sub);
        let stdout = child.inner.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::sync_channel(1_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let mut ear = Self { _child: child, lines, early: Vec::new() };
        loop {
            let line = ear.line();
            if line.contains("Subscribed") {
                return ear;
            }
            ear.early.extend(line.strip_prefix("COMMAND ").map(str::to_owned));
        }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the device hears something")
    }

    fn command(&mut self) -> Value {
        let early = (!self.early.is_empty()).then(|| self.early.remove(0));
        let command = early.unwrap_or_else(|| {
            std::iter::repeat_with(|| self.line())
                .find_map(|line| line.strip_prefix("COMMAND ").map(str::to_owned))
                .expect("it goes on until there is one")
        });
        serde_json::from_str(&command).expect("a JSON command")
    }

    /// What was heard and not asked for yet.
    fn commands(&self) -> usize {
        self.early.len() + self.lines.try_iter().filter(|line| line.starts_with("COMMAND ")).count()
    }
}

/// A relay that speaks JSON lines: says its state, hears commands, answers them if it is told to.
struct Lines {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Lines {
    fn connect(port: u16, on: bool) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut relay = Self { stream, lines };
        relay.say(&json!({ "device": "relay-1", "on": on }))?;
        Ok(relay)
    }

    fn say(&mut self, line: &Value) -> std::io::Result<()> {
        writeln!(self.stream, "{line}")
    }

    /// The next command; lines that acknowledge are passed over.
    fn command(&mut self) -> std::io::Result<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let json: Value = serde_json::from_str(&line).map_err(std::io::Error::other)?;
            if json.get("id").is_some() {
                return Ok(json);
            }
        }
    }
}

#[test]
fn a_command_for_a_device_that_is_away_waits_through_a_kill_and_is_delivered_once() {
    let mut site = Site::start("");
    for (id, more) in [("clean", &[][..]), ("kept", &["-c"][..])] {
        // A session that is kept has its subscription from before.
        drop((!more.is_empty()).then(|| Ear::open(site.gateway.options.mqtt, more)));
        wait_for("the device to be away", PATIENCE, || {
            site.gateway.get("/api/v1/things/relay-1").contains("\"online\":false").then_some(())
        });
        site.order(&json!({ "id": id, "invoke": "toggle", "timeout_ms": 500 }));
        site.error(id, "waits for it");
        site.gateway.kill_and_restart();
        assert_eq!(site.waiting(), [id]);
        let mut ear = Ear::open(site.gateway.options.mqtt, more);
        assert_eq!(ear.command()["functionId"], "toggle");
        site.error(id, "did not answer");
        drop(ear);
        // Nothing is left for the next time.
        let mut ear = Ear::open(site.gateway.options.mqtt, &[]);
        site.order(&json!({ "id": format!("after-{id}"), "invoke": "toggle", "timeout_ms": 500 }));
        assert_eq!(ear.command()["messageId"], format!("after-{id}"));
        assert_eq!(ear.commands(), 0);
        site.until_up();
    }
    assert_eq!(site.counted("sluicegate_commands_waiting{}"), 0);
    site.gateway.stop();
}

#[test]
fn waiting_commands_go_in_order_expire_and_are_taken_back() {
    let mut site = Site::start("");
    let mut ids = Vec::new();
    for n in 0..4 {
        let wait = if n == 1 { 1 } else { 600 };
        let (status, body) =
            site.ask("POST", &format!("actions/pulse?wait_seconds={wait}"), &json!({ "duration": 10 + n }).to_string());
        assert_eq!((status, &body["state"]), (202, &json!("waiting")), "{body}");
        ids.push(body["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(site.waiting(), ids);
    assert_eq!(site.ask("DELETE", &format!("commands/{}", ids[2]), "").0, 204);
    assert_eq!(site.ask("DELETE", &format!("commands/{}", ids[2]), "").0, 404);
    site.error(&ids[1], "never sent");
    site.error(&ids[2], "taken back");
    // It does not have to wait.
    assert_eq!(site.ask("POST", "actions/toggle?wait_seconds=0", "").0, 503);
    assert_eq!(site.ask("POST", "actions/jump", "").0, 422);
    let mut relay = Lines::connect(site.gateway.options.tcp, false).unwrap();
    for n in [0, 3] {
        let command = relay.command().unwrap();
        assert_eq!((&command["id"], &command["input"]["duration"]), (&json!(ids[n]), &json!(10 + n)), "{command}");
        relay.say(&json!({ "reply": ids[n], "ok": true })).unwrap();
    }
    site.until_empty();
    assert_eq!(site.counted("sluicegate_commands_waited_total{result=\"delivered\"}"), 2);
    assert_eq!(site.counted("sluicegate_commands_waited_total{result=\"expired\"}"), 1);
    site.gateway.stop();
}

#[test]
fn a_coap_device_that_observes_gets_what_waited() {
    let site = Site::start("");
    let (status, body) = site.ask("PUT", "properties/on", "true");
    assert_eq!(status, 202, "{body}");
    let url = format!("coap://127.0.0.1:{}/things/relay-1/commands", site.gateway.options.coap);
    let mut client = Command::new("stdbuf");
    client.args(["-oL", "coap-client-notls", "-s", "20", "-m", "get", &url]).stdout(Stdio::piped());
    let mut client = Child::start(&mut client);
    let stdout = client.inner.stdout.take().unwrap();
    let (sender, heard) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let mut stdout = BufReader::new(stdout);
        // Notifications come without an end of line between them.
        while let Ok(bytes) = stdout.fill_buf().map(<[u8]>::to_vec) {
            if bytes.is_empty() {
                break;
            }
            stdout.consume(bytes.len());
            text.push_str(&String::from_utf8_lossy(&bytes));
            if text.contains(r#""write":{"on":true}"#) {
                drop(sender.send(text.clone()));
                break;
            }
        }
    });
    let text = heard.recv_timeout(PATIENCE).expect("the command reaches the device");
    assert_eq!(text.matches("write").count(), 1, "{text}");
    assert!(text.contains(body["id"].as_str().unwrap()), "{text}");
    site.gateway.stop();
}

#[test]
fn a_device_that_comes_gets_what_it_is_to_have_until_it_reports_it() {
    let mut site = Site::start("");
    let shadow = |site: &Site| site.ask("GET", "shadow", "").1;
    assert_eq!(shadow(&site)["version"], 0);
    let (status, body) = site.ask("PATCH", "shadow", r#"{"desired":{"on":true},"version":0}"#);
    assert_eq!((status, &body["version"], &body["state"]), (200, &json!(1), &json!("offline")), "{body}");
    for (patch, expected, word) in [
        (r#"{"desired":{"on":false},"version":0}"#, 409, "version 1, not 0"),
        (r#"{"desired":{"power":1}}"#, 422, "read-only"),
        (r#"{"desired":{"on":"perhaps"}}"#, 422, "wants"),
        (r#"{"desired":{"colour":"red"}}"#, 422, "no property `colour`"),
        (r#"{"desierd":{}}"#, 400, "unknown field"),
    ] {
        let (status, body) = site.ask("PATCH", "shadow", patch);
        assert_eq!(status, expected, "{patch}: {body}");
        assert!(body["detail"].as_str().is_some_and(|d| d.contains(word)), "{patch}: {body}");
    }
    assert_eq!(site.ask("PUT", "properties/colour", "1").0, 404);
    assert_eq!(site.ask("GET", "properties/on", "").0, 404, "nothing said yet");
    assert_eq!(site.gateway.request("GET", "/api/v1/things/nobody/shadow", "").0, 404);
    site.gateway.kill_and_restart();
    assert_eq!(shadow(&site)["delta"], json!({ "on": true }));

    let mut relay = Lines::connect(site.gateway.options.tcp, false).unwrap();
    let command = relay.command().unwrap();
    assert_eq!(command["write"], json!({ "on": true }));
    relay.say(&json!({ "reply": command["id"], "ok": true })).unwrap();
    relay.say(&json!({ "device": "relay-1", "on": true })).unwrap();
    wait_for("in sync", PATIENCE, || (shadow(&site)["state"] == "in-sync").then_some(()));
    let body = shadow(&site);
    assert_eq!((&body["reported"]["on"], &body["delta"]), (&json!(true), &json!({})), "{body}");
    assert_eq!(site.ask("GET", "properties/on", "").1["value"], true);

    // From upstream the same, with the shadow as the answer.
    site.until_up();
    site.order(&json!({ "id": "s-1", "shadow": { "desired": { "on": false }, "version": 1 } }));
    let reply = site.receiver.until("the shadow", PATIENCE, |m| m["reply"]["id"] == "s-1");
    assert_eq!(reply["reply"]["value"]["version"], 2, "{reply}");
    assert_eq!(relay.command().unwrap()["write"], json!({ "on": false }));
    site.order(&json!({ "id": "s-2", "shadow": { "desired": { "on": true }, "version": 1 } }));
    site.error("s-2", "version 2, not 1");
    site.gateway.stop();
}

#[test]
fn a_device_is_read_written_and_invoked_with_answers_and_time_outs() {
    let site = Site::start("");
    let mut relay = Lines::connect(site.gateway.options.tcp, false).unwrap();
    wait_for("its value", PATIENCE, || (site.ask("GET", "properties/on", "").0 == 200).then_some(()));
    let gateway = &site.gateway;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            [
                ask(gateway, "GET", "properties/on?ask=true", ""),
                ask(gateway, "PUT", "properties/on", "true"),
                ask(gateway, "POST", "actions/toggle", ""),
                ask(gateway, "PUT", "properties/on?timeout_seconds=1", "false"),
            ]
        });
        for (word, answer) in
            [("read", json!({ "on": false })), ("write", json!(null)), ("invoke", json!({ "on": false }))]
        {
            let command = relay.command().unwrap();
            assert!(command.get(word).is_some(), "{command}");
            relay.say(&json!({ "reply": command["id"], "ok": true, "data": answer })).unwrap();
        }
        relay.command().unwrap();
        let [read, write, invoke, silent] = asked.join().unwrap();
        assert_eq!((read.0, &read.1["result"]), (200, &json!({ "on": false })), "{read:?}");
        assert_eq!((write.0, invoke.0), (200, 200), "{write:?} {invoke:?}");
        assert_eq!(silent.0, 504, "{silent:?}");
    });
    site.gateway.stop();
}

#[test]
fn one_waiting_command_too_many_is_refused_with_a_reason() {
    const MOST: u32 = 200;
    let mut site = Site::start(&format!("[shadow]\ncommands_max = {MOST}\ncommands_per_thing_max = 1000\n"));
    let waiting = "sluicegate_commands_waiting{}";
    site.burst((1..=MOST).map(|n| json!({ "id": format!("c-{n}"), "invoke": "toggle" })));
    wait_for("the commands", PATIENCE, || (site.counted(waiting) == u64::from(MOST)).then_some(()));
    let (status, body) = site.ask("POST", "actions/toggle", "");
    let why = body["detail"].as_str().unwrap_or_default();
    assert_eq!((status, why), (429, "200 commands wait already, the most (shadow.commands_max)"));
    assert_eq!(site.counted("sluicegate_commands_waited_total{result=\"refused\"}"), 1);
    // What is confirmed later is on disk after what was accepted before.
    assert_eq!(site.ask("PATCH", "shadow", r#"{"desired":{"on":true}}"#).0, 200);
    site.gateway.kill_and_restart();
    assert_eq!(site.counted(waiting), u64::from(MOST));
    assert_eq!(site.ask("DELETE", "commands/c-1", "").0, 204);
    assert_eq!(site.ask("POST", "actions/toggle", "").0, 202, "there is room again");
    site.gateway.stop();
}

/// More than the gateway takes from the broker at once: the broker keeps the rest meanwhile.
#[test]
fn a_burst_of_commands_for_one_slow_device_is_answered_to_the_last() {
    const COMMANDS: usize = 1_500;
    let mut site = Site::start("");
    let mut relay = Lines::connect(site.gateway.options.tcp, false).unwrap();
    wait_for("the relay", PATIENCE, || (site.ask("GET", "properties/on", "").0 == 200).then_some(()));
    let order = |n| json!({ "id": format!("b-{n}"), "invoke": "toggle", "timeout_ms": 120_000 });
    site.burst((0..COMMANDS).map(order));
    // None is answered before the last one has been sent.
    for n in 0..COMMANDS {
        let command = relay.command().unwrap();
        assert_eq!(command["id"], format!("b-{n}"), "not in the order they were sent");
        relay.say(&json!({ "reply": command["id"], "ok": true, "data": n })).unwrap();
    }
    let mut left: std::collections::BTreeSet<String> = (0..COMMANDS).map(|n| format!("b-{n}")).collect();
    while !left.is_empty() {
        let reply = site.receiver.next(PATIENCE).unwrap();
        if !reply["reply"]["id"].is_string() {
            continue;
        }
        assert!(reply["reply"]["error"].is_null(), "{reply}");
        assert!(left.remove(reply["reply"]["id"].as_str().unwrap()), "twice: {reply}");
    }
    assert_eq!(site.counted("sluicegate_commands_total{result=\"ok\"}"), COMMANDS as u64);
    site.gateway.stop();
}

/// The gateway is killed again and again while a device takes its commands: none twice, none without a last word upstream.
#[test]
fn whatever_is_killed_no_command_is_delivered_twice_or_lost_in_silence() {
    const COMMANDS: usize = 60;
    let mut site = Site::start("");
    for n in 0..COMMANDS {
        let order =
            json!({ "id": format!("k-{n}"), "invoke": "pulse", "input": { "duration": 10 + n }, "timeout_ms": 2000 });
        site.order(&order);
    }
    site.error(&format!("k-{}", COMMANDS - 1), "waits for it");
    let heard = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let (port, counts, ends) = (site.gateway.options.tcp, Arc::clone(&heard), Arc::clone(&stop));
    let device = std::thread::spawn(move || {
        while !ends.load(Ordering::Acquire) {
            let talk = || -> std::io::Result<()> {
                let mut relay = Lines::connect(port, false)?;
                relay.stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                loop {
                    let command = relay.command()?;
                    let id = command["id"].as_str().unwrap().to_owned();
                    *counts.lock().unwrap().entry(id.clone()).or_default() += 1;
                    relay.say(&json!({ "reply": id, "ok": true }))?;
                }
            };
            if talk().is_err() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    for round in 1..=8 {
        // In the middle of it: some were delivered since the kill before.
        let enough = round * COMMANDS / 12;
        wait_for("some deliveries", PATIENCE, || {
            (heard.lock().unwrap().len() >= enough || site.waiting().is_empty()).then_some(())
        });
        site.gateway.kill_and_restart();
    }
    site.until_empty();
    stop.store(true, Ordering::Release);
    device.join().unwrap();
    let heard = heard.lock().unwrap().clone();
    assert!(heard.values().all(|count| *count == 1), "a command was delivered twice: {heard:?}");
    for n in 0..COMMANDS {
        let id = format!("k-{n}");
        let last = |m: &Value| m["reply"]["id"] == id.as_str() && m["reply"]["failure"] != "waiting";
        let reply = site.receiver.until(&format!("the end of {id}"), PATIENCE, last);
        let done = reply["reply"]["error"].is_null();
        assert!(!done || heard.contains_key(&id), "{id} was answered but never heard: {reply}");
        // What went into a connection that was just breaking may also find no answer.
        let given_up = reply["reply"]["failure"] == "given-up" || reply["reply"]["failure"] == "silent";
        assert!(done || given_up, "{reply}");
    }
    site.gateway.stop();
}
