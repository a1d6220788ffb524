//! The backlog of an upstream is kept under its name: no other setting of it touches what waits.

use std::collections::BTreeSet;

use serde_json::Value;
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, PostReceiver, Receiver, Reply, root, shell, wait_for};

const NOBODY: &str = "mqtt://127.0.0.1:1";
const BACKLOG: &str = "sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}";

fn upstream(url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"up\"\nurl = \"{url}\"\n{more}\n")
}

/// Every setting there is, by the source.
fn every_setting() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("gateway/src/config/upstream.rs")).unwrap();
    let (_, rest) = text.split_once("pub struct Upstream {").unwrap();
    let (fields, _) = rest.split_once("\n}").unwrap();
    let field = |line: &str| Some(line.trim().strip_prefix("pub ")?.split_once(':')?.0.to_owned());
    fields.lines().filter_map(field).collect()
}

#[test]
fn walking_over_every_setting_of_an_upstream_neither_loses_nor_repeats_its_backlog() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "sesame").unwrap();
    let file = file.display();
    // Where two belong together they change together.
    let changes = [
        ("url", upstream("ws://127.0.0.1:1/mqtt", "")),
        ("url", upstream("http://127.0.0.1:1/in", "dialect = \"json\"")),
        ("mqtt_version", upstream(NOBODY, "mqtt_version = \"3.1.1\"")),
        ("dialect", upstream(NOBODY, "dialect = \"json\"")),
        ("dialect", upstream(NOBODY, "dialect = \"thingsboard\"")),
        ("username password_file", upstream(NOBODY, &format!("username = \"u\"\npassword_file = \"{file}\""))),
        ("password_env", upstream(NOBODY, "username = \"u\"\npassword_env = \"PATH\"")),
        ("token_file", upstream("http://127.0.0.1:1/", &format!("dialect = \"json\"\ntoken_file = \"{file}\""))),
        ("sasl", upstream("kafka://127.0.0.1:1", "dialect = \"json\"\nsasl = \"scram-sha-256\"")),
        ("ca_file cert_file key_file", {
            let authority = sluicegate_tests::Authority::new();
            let keep = |from: std::path::PathBuf, name: &str| {
                let to = folder.path().join(name);
                std::fs::copy(from, &to).unwrap();
                to.display().to_string()
            };
            let own = authority.certify("gate");
            let files = [keep(authority.file(), "ca"), keep(own.cert, "cert"), keep(own.key, "key")];
            let lines =
                format!("ca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"", files[0], files[1], files[2]);
            upstream("mqtts://127.0.0.1:1", &lines)
        }),
        ("compression", upstream(NOBODY, "compression = \"zstd\"")),
        ("batch_kib", upstream(NOBODY, "batch_kib = 1")),
        ("batch_ms", upstream(NOBODY, "batch_ms = 0")),
        ("inflight_max", upstream(NOBODY, "inflight_max = 1")),
        ("acknowledge acknowledge_seconds", upstream(NOBODY, "acknowledge = \"receiver\"\nacknowledge_seconds = 5")),
        ("commands_wait_seconds", upstream(NOBODY, "commands_wait_seconds = 60")),
        ("keep_alive_seconds", upstream(NOBODY, "keep_alive_seconds = 5")),
        ("order", upstream(NOBODY, "order = \"in-order\"")),
        ("drain_messages_per_second drain_kib_per_second", {
            upstream(NOBODY, "drain_messages_per_second = 10\ndrain_kib_per_second = 10")
        }),
        ("sparkplug", upstream(NOBODY, "dialect = \"sparkplug\"\nsparkplug = { group = \"g\", node = \"n\" }")),
        ("alink", upstream(NOBODY, "alink = { product_key = \"p\", device_name = \"d\" }")),
        ("filter", upstream(NOBODY, "filter = { things = [\"somebody-else\"], classes = [\"event\"] }")),
    ];
    let mut walked: BTreeSet<String> =
        changes.iter().flat_map(|(keys, _)| keys.split(' ')).map(str::to_owned).collect();
    walked.insert("name".to_owned());
    assert_eq!(walked, every_setting(), "a setting that this test does not change");

    let mut gateway = Gateway::start(Options::default().with(&upstream(NOBODY, "")));
    gateway.count_up(1..=20);
    let mut last = 20;
    for (keys, more) in changes {
        gateway.options.more = more;
        gateway.kill_and_restart();
        last += 1;
        gateway.count_up(last..=last);
        wait_for(keys, PATIENCE, || (gateway.metric(BACKLOG) > last as f64 - 0.5).then_some(()));
        assert!(gateway.metric(BACKLOG) < last as f64 + 0.5, "{keys}");
    }
    let receiver = PostReceiver::start(|_| Some(Reply(200, "", "")));
    gateway.options.more = upstream(&format!("http://127.0.0.1:{}/", receiver.port), "dialect = \"json\"");
    gateway.kill_and_restart();
    let mut told = Vec::new();
    while told.last() != Some(&last) {
        let array: Vec<Value> = serde_json::from_slice(&receiver.next().body).unwrap();
        told.extend(array.iter().filter_map(|one| one["properties"]["n"].as_u64()));
    }
    assert_eq!(told, (1..=last).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn a_broker_that_refuses_us_is_told_of_and_a_new_password_needs_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (known, own) = (folder.path().join("known"), folder.path().join("own"));
    shell(&format!("mosquitto_passwd -c -b {} gate new", known.display()));
    std::fs::write(&own, "old").unwrap();
    let broker = Mosquitto::with(&format!("password_file {}", known.display()));
    let mut receiver = Receiver::start(broker.port, &[]);
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let credentials = format!("username = \"gate\"\npassword_file = \"{}\"", own.display());
    let gateway = Gateway::start(Options::default().with(&upstream(&url, &credentials)));
    gateway.count_up(1..=10);
    wait_for("that it says so", PATIENCE, || {
        let said: Value = serde_json::from_str(&gateway.get("/api/v1/upstreams")).ok()?;
        (said[0]["connected"] == false && said[0]["error"].is_string()).then_some(())
    });
    std::fs::write(&own, "new").unwrap();
    receiver.until("the last", PATIENCE * 2, |m| m["properties"]["n"] == 10);
    let told: Vec<_> = receiver.seen.iter().filter_map(|m| m["properties"]["n"].as_u64()).collect();
    assert_eq!(told, (1..=10).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn a_broker_that_comes_and_goes_gets_everything_in_order() {
    let mut broker = Mosquitto::start();
    let options =
        Options::default().with(&upstream(&format!("mqtt://127.0.0.1:{}", broker.port), "order = \"in-order\""));
    let mut receiver = Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(options);
    for round in 0..6 {
        gateway.count_up(round * 50 + 1..=round * 50 + 25);
        broker.pause();
        gateway.count_up(round * 50 + 26..=round * 50 + 50);
        broker.resume();
    }
    receiver.until("the last", PATIENCE * 2, |m| m["properties"]["n"] == 300);
    let told: Vec<_> = receiver.seen.iter().filter_map(|m| m["properties"]["n"].as_u64()).collect();
    assert_eq!(told, (1..=300).collect::<Vec<_>>());
    gateway.stop();
    let (status, _) = receiver.finish();
    assert!(status.success(), "`receive` found a hole: {status}");
}
