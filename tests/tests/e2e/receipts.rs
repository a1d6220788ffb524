//! Acknowledgement end to end: what the consumer behind the broker has not acknowledged is not forgotten.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, binary, wait_for};

fn to(broker: &Mosquitto, seconds: u64) -> Options {
    let more = format!("acknowledge = \"receiver\"\nacknowledge_seconds = {seconds}\n");
    Options::default().upstream(broker.port, "native").with(&more)
}

fn backlog(gateway: &Gateway) -> f64 {
    gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}")
}

fn all_acknowledged(gateway: &Gateway) {
    wait_for("an empty backlog", PATIENCE, || (backlog(gateway) < 0.5).then_some(()));
}

fn n(message: &Value) -> Option<u64> {
    message["properties"]["n"].as_u64()
}

/// `receive` with its output in a file, for it is to be killed.
fn receive(broker: &Mosquitto, out: &std::path::Path, more: &[&str]) -> Child {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(out).unwrap();
    let mut command = Command::new(binary());
    // A clean session each time: the broker keeps nothing for a consumer that is away.
    command.args(["receive", "--json", "--expiry-seconds", "0", "--url", &format!("mqtt://127.0.0.1:{}", broker.port)]);
    command.args(more).stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().unwrap()
}

fn written(out: &std::path::Path) -> BTreeSet<u64> {
    let text = std::fs::read_to_string(out).unwrap_or_default();
    text.lines().filter_map(|line| n(&serde_json::from_str(line).ok()?)).collect()
}

#[test]
fn a_killed_receiver_loses_nothing_that_it_did_not_acknowledge() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(to(&broker, 1));
    let out = gateway.folder.path().join("received");
    for round in 0..6_u64 {
        let mut receiver = receive(&broker, &out, &["--acknowledge"]);
        gateway.count_up(round * 500 + 1..=round * 500 + 500);
        // In the middle of it, more or less.
        wait_for("some of it", PATIENCE * 2, || (written(&out).len() as u64 > round * 500).then_some(()));
        receiver.kill().unwrap();
        receiver.wait().unwrap();
    }
    let mut receiver = receive(&broker, &out, &["--acknowledge"]);
    wait_for("everything", PATIENCE * 2, || (written(&out) == (1..=3000).collect()).then_some(()));
    all_acknowledged(&gateway);
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    gateway.stop();
}

#[test]
fn without_receipts_everything_goes_again_and_a_restart_forgets_nothing() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(to(&broker, 2));
    // It prints, and says nothing.
    let mut silent = Receiver::start(broker.port, &["--client-id", "silent"]);
    gateway.count_up(1..=100);
    silent.until("the last", PATIENCE, |m| n(m) == Some(100));
    let unanswered = "sluicegate_unanswered_total{upstream=\"up\"}";
    wait_for("that it goes again", PATIENCE, || (gateway.metric(unanswered) > 1.5).then_some(()));
    assert!(gateway.get("/api/v1/upstreams").contains("has not acknowledged"));
    assert!(backlog(&gateway) > 99.5, "{}", backlog(&gateway));
    gateway.kill_and_restart();
    wait_for("the backlog of before", PATIENCE, || (backlog(&gateway) > 99.5).then_some(()));
    let mut speaking = Receiver::start(broker.port, &["--acknowledge", "--client-id", "speaking"]);
    speaking.until("the last, again", PATIENCE, |m| n(m) == Some(100));
    let told: BTreeSet<u64> = speaking.seen.iter().filter_map(n).collect();
    assert_eq!(told, (1..=100).collect());
    all_acknowledged(&gateway);
    // What is acknowledged is not sent again.
    gateway.count_up(101..=110);
    speaking.until("the last of the next", PATIENCE, |m| n(m) == Some(110));
    all_acknowledged(&gateway);
    gateway.stop();
}

#[test]
fn a_consumer_in_python_acknowledges() {
    let broker = Mosquitto::start();
    let mut theirs = Receiver::python_with(broker.port, &["--acknowledge"]);
    let gateway = Gateway::start(to(&broker, 20));
    gateway.count_up(1..=50);
    theirs.until("the last", PATIENCE, |m| n(m) == Some(50));
    all_acknowledged(&gateway);
    gateway.stop();
}
