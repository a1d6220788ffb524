//! The way upstream under stress: what comes beside what waited, what a destination wants, and destinations that misbehave.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_tests::{
    Act, Gateway, Mosquitto, Options, PATIENCE, PostReceiver, Published, Receiver, Reply, StandIn, run_ok, shell,
    slow_line, wait_for,
};

fn upstream(name: &str, url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\nbatch_ms = 20\n{more}\n")
}

/// Reports of `generic` things, each one's `n` and whatever else, one connection for all.
fn report(gateway: &Gateway, device: &str, properties: impl Iterator<Item = Value>) {
    let lines: Vec<_> = properties.map(|properties| json!({ "properties": properties }).to_string()).collect();
    let file = gateway.folder.path().join("lines");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (port, file) = (gateway.options.mqtt, file.display());
    shell(&format!("mosquitto_pub -p {port} -q 1 -i {device} -t /generic/{device}/properties/report -l < {file}"));
}

fn counting(range: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = Value> {
    range.map(|n| json!({ "n": n }))
}

fn n(message: &Value) -> Option<u64> {
    message["properties"]["n"].as_u64()
}

fn posted(body: &[u8]) -> Vec<u64> {
    let array: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
    array.iter().filter_map(n).collect()
}

#[test]
fn live_messages_do_not_wait_for_the_backlog_on_a_slow_line() {
    let mut broker = Mosquitto::start();
    let line = slow_line(broker.port, 10_000_000);
    // The broker knows the receiver from now on, and keeps for it what comes before it is back.
    drop(Receiver::start(broker.port, &[]));
    broker.pause();
    let gateway = Gateway::start(Options::default().with(&upstream("up", &format!("mqtt://127.0.0.1:{line}"), "")));
    // About 12 s of the line: text that no batch makes smaller.
    let text =
        |n: u64| -> String { (0..4000).map(|at| char::from(b'a' + ((n * 31 + at * at * 7) % 26) as u8)).collect() };
    report(&gateway, "old", (1..=4000).map(|n| json!({ "n": n, "text": text(n) })));
    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    receiver.until("the backlog to begin", PATIENCE * 2, |m| m["thing"] == "old" && m["hist"] == true);
    let (mut waits, mut sent) = (Vec::new(), 0);
    let topic = "/generic/new/properties/report";
    while !receiver.seen.iter().any(|m| m["thing"] == "old" && n(m) == Some(4000)) {
        sent += 1;
        let (payload, started) = (json!({ "properties": { "n": sent } }).to_string(), Instant::now());
        let port = gateway.options.mqtt.to_string();
        run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", "new", "-t", topic, "-m", &payload]);
        receiver.until("a live message", PATIENCE, |m| m["thing"] == "new" && n(m) == Some(sent));
        waits.push(started.elapsed());
        assert!(sent < 500, "the backlog does not come");
    }
    waits.sort();
    let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    eprintln!("{} live messages beside the backlog: median {median:?}, worst {worst:?}", waits.len());
    assert!(waits.len() >= 5, "too quick to tell");
    // Behind the backlog it would be ten seconds. On a quiet machine the worst is below one.
    assert!(median < Duration::from_secs(1) && worst < Duration::from_secs(4), "{waits:?}");
    // Each in order, none missing.
    for (thing, last) in [("old", 4000), ("new", sent)] {
        let told: Vec<_> = receiver.seen.iter().filter(|m| m["thing"] == thing).filter_map(n).collect();
        assert_eq!(told, (1..=last).collect::<Vec<_>>(), "{thing}");
    }
    wait_for("an empty backlog", PATIENCE, || {
        (gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}") < 0.5).then_some(())
    });
    gateway.stop();
}

#[test]
fn what_went_before_the_backlog_is_not_sent_again_after_a_restart() {
    let gate = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&gate);
    // Backlog is never acknowledged until the gate opens; live always is.
    let broker = StandIn::start(move |published: &Published| {
        let body: Value = serde_json::from_slice(&published.payload).unwrap_or_default();
        if body["hist"] == true && !open.load(Ordering::SeqCst) { Act::Forget } else { Act::Acknowledge }
    });
    let options = Options::default();
    let mut gateway = Gateway::start(options);
    report(&gateway, "t-1", counting(1..=2000));
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    gateway.options = gateway.options.clone().with(&upstream("up", &url, "dialect = \"json\"\ninflight_max = 100"));
    gateway.kill_and_restart();
    wait_for("the connection", PATIENCE, || {
        (gateway.metric("sluicegate_link_up{upstream=\"up\"}") > 0.5).then_some(())
    });
    report(&gateway, "t-1", counting(2001..=2010));
    let mut live = BTreeSet::new();
    while live.len() < 10 {
        let body: Value = serde_json::from_slice(&broker.next().payload).unwrap();
        if body["hist"] != true {
            live.extend(n(&body));
        }
    }
    assert_eq!(live, (2001..=2010).collect());
    let backlog = "sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}";
    wait_for("the cursor over what was taken", PATIENCE, || {
        ((1999.5..2000.5).contains(&gateway.metric(backlog))).then_some(())
    });
    let oldest = gateway.metric("sluicegate_backlog_oldest_seconds{upstream=\"up\",class=\"live\"}");
    assert!(oldest > 0.0, "{oldest}");
    // Its end is waited for, so that the cursor is on disk.
    gateway.child.signal(rustix::process::Signal::TERM);
    gateway.child.wait(Duration::from_secs(10));
    let stat = run_ok(
        &gateway.options.binary.display().to_string(),
        &["store", "stat", "--path", &gateway.folder.path().join("state").display().to_string()],
    );
    assert!(stat.contains("upstream/up") && stat.contains("live 0 and 2001-2010"), "{stat}");
    broker.waiting();
    gate.store(true, Ordering::SeqCst);
    gateway.restart();
    let mut told = Vec::new();
    while told.last() != Some(&2000) {
        let body: Value = serde_json::from_slice(&broker.next().payload).unwrap();
        told.extend(n(&body));
    }
    assert_eq!(told, (1..=2000).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn in_order_means_in_order() {
    let mut broker = Mosquitto::start();
    drop(Receiver::start(broker.port, &[]));
    broker.pause();
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let gateway = Gateway::start(Options::default().with(&upstream("up", &url, "order = \"in-order\"")));
    report(&gateway, "t-1", counting(1..=2500));
    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    receiver.until("the backlog to begin", PATIENCE * 2, |m| n(m) == Some(1));
    report(&gateway, "t-1", counting(2501..=2510));
    receiver.until("the last", PATIENCE, |m| n(m) == Some(2510));
    let seqs: Vec<_> =
        receiver.seen.iter().filter(|m| m["class"] == "live").filter_map(|m| m["seq"].as_u64()).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    gateway.stop();
}

#[test]
fn the_backlog_keeps_to_its_rate() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let receiver = PostReceiver::start(move |post| {
        noted.lock().unwrap().push((Instant::now(), posted(&post.body).len()));
        Some(Reply(200, "", ""))
    });
    let mut gateway = Gateway::start(Options::default());
    report(&gateway, "t-1", counting(1..=1200));
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let more = "dialect = \"json\"\ndrain_messages_per_second = 300";
    gateway.options = gateway.options.clone().with(&upstream("up", &url, more));
    gateway.kill_and_restart();
    wait_for("all of it", PATIENCE, || {
        let sum: usize = times.lock().unwrap().iter().map(|(_, count)| count).sum();
        (sum >= 1200).then_some(())
    });
    let times = times.lock().unwrap();
    let told: Vec<_> = times.iter().filter(|(_, count)| *count > 0).collect();
    let took = told[told.len() - 1].0 - told[0].0;
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&took), "{took:?}");
    gateway.stop();
}

#[test]
fn each_destination_gets_what_it_asked_for_and_knows_that_nothing_is_missing() {
    let broker = Mosquitto::start();
    let receiver = PostReceiver::start(|_| Some(Reply(200, "", "")));
    let meters = upstream(
        "meters",
        &format!("http://127.0.0.1:{}/", receiver.port),
        "dialect = \"json\"\nfilter = { things = [\"meter-*\"], classes = [\"live\"], properties = [\"n\"] }",
    );
    let lamps = upstream("lamps", &format!("mqtt://127.0.0.1:{}", broker.port), "filter = { things = [\"lamp-?\"] }");
    let mut native = Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(Options::default().with(&meters).with(&lamps));
    for (device, range) in
        [("meter-1", 1..=3), ("lamp-1", 4..=6), ("other", 7..=9), ("meter-2", 10..=10), ("lamp-2", 11..=11)]
    {
        report(&gateway, device, range.map(|n| json!({ "n": n, "secret": 1 })));
    }
    native.until("the last lamp", PATIENCE, |m| n(m) == Some(11));
    let told: Vec<_> = native.seen.iter().filter_map(n).collect();
    assert_eq!(told, [4, 5, 6, 11]);
    let mut told = Vec::new();
    while told.last() != Some(&10) {
        let post = receiver.next();
        let array: Vec<Value> = serde_json::from_slice(&post.body).unwrap();
        assert!(array.iter().all(|one| one["properties"]["secret"].is_null() && one["class"] == "live"), "{array:?}");
        told.extend(array.iter().filter_map(n));
    }
    assert_eq!(told, [1, 2, 3, 10]);
    for name in ["meters", "lamps"] {
        let backlog = format!("sluicegate_backlog_messages{{upstream=\"{name}\",class=\"live\"}}");
        wait_for("an empty backlog", PATIENCE, || (gateway.metric(&backlog) < 1.5).then_some(()));
    }
    assert!(gateway.metric("sluicegate_filtered_total{upstream=\"lamps\"}") > 3.5);
    gateway.stop();
}

#[test]
fn changing_every_setting_of_an_upstream_neither_loses_nor_repeats_its_backlog() {
    let broker = Mosquitto::start();
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let options = Options::default().with(&upstream("up", &url, ""));
    let mut native = Receiver::start(broker.port, &[]);
    let mut gateway = Gateway::start(options);
    report(&gateway, "t-1", counting(1..=20));
    native.until("the first twenty", PATIENCE, |m| n(m) == Some(20));
    wait_for("the cursor", PATIENCE, || {
        (gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}") < 0.5).then_some(())
    });
    gateway.child.signal(rustix::process::Signal::TERM);
    gateway.child.wait(Duration::from_secs(10));
    // Nobody there, then another kind of destination, another dialect, another order, other batches.
    let nobody = upstream("up", "mqtt://127.0.0.1:1", "mqtt_version = \"3.1.1\"");
    gateway.options.more = nobody;
    gateway.restart();
    report(&gateway, "t-1", counting(21..=40));
    gateway.child.signal(rustix::process::Signal::TERM);
    gateway.child.wait(Duration::from_secs(10));
    let receiver = PostReceiver::start(|_| Some(Reply(200, "", "")));
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    gateway.options.more =
        upstream("up", &url, "dialect = \"json\"\norder = \"in-order\"\nbatch_kib = 1\ninflight_max = 3");
    gateway.restart();
    report(&gateway, "t-1", counting(41..=60));
    let mut told = Vec::new();
    while told.last() != Some(&60) {
        told.extend(posted(&receiver.next().body));
    }
    assert_eq!(told, (21..=60).collect::<Vec<_>>());
    gateway.stop();
}

#[test]
fn a_broker_that_acknowledges_late_twice_and_out_of_turn_loses_nothing() {
    let mut count = 0;
    let broker = StandIn::start(move |_| {
        count += 1;
        match count % 7 {
            // What rumqttc takes for a fault of the broker: a new connection.
            1 if count == 50 => Act::AcknowledgeTwice,
            2 | 3 => Act::Later,
            5 => Act::Slowly(Duration::from_millis(30)),
            _ => Act::Acknowledge,
        }
    });
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let gateway = Gateway::start(Options::default().with(&upstream("up", &url, "dialect = \"json\"")));
    report(&gateway, "t-1", counting(1..=200));
    let mut told = Vec::new();
    while told.last() != Some(&200) {
        let published = broker.next();
        let body: Value = serde_json::from_slice(&published.payload).unwrap();
        assert!(published.connection < 2, "it was given up again and again");
        told.extend(n(&body));
    }
    // In order from the first on each connection, and nothing left out.
    let known: BTreeSet<_> = told.iter().copied().collect();
    assert_eq!(known, (1..=200).collect());
    assert!(told.windows(2).filter(|pair| pair[0] >= pair[1]).count() <= 1, "{told:?}");
    wait_for("an empty backlog", PATIENCE, || {
        (gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}") < 6.5).then_some(())
    });
    gateway.stop();
}

#[test]
fn a_broker_that_takes_and_vanishes_gets_everything_again() {
    let mut vanished = 0;
    let broker = StandIn::start(move |published: &Published| {
        let body: Value = serde_json::from_slice(&published.payload).unwrap_or_default();
        let vanishes = vanished < 3 && n(&body).is_some_and(|n| n == 5 + 10 * vanished);
        vanished += u64::from(vanishes);
        if vanishes { Act::Vanish } else { Act::Acknowledge }
    });
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let gateway = Gateway::start(Options::default().with(&upstream("up", &url, "dialect = \"json\"")));
    report(&gateway, "t-1", counting(1..=40));
    let mut told = BTreeSet::new();
    let (mut connections, mut last) = (0, (0, 0));
    while told.len() < 40 {
        let published = broker.next();
        let body: Value = serde_json::from_slice(&published.payload).unwrap();
        let Some(n) = n(&body) else { continue };
        connections = connections.max(published.connection + 1);
        assert!(published.connection > last.0 || n > last.1, "out of order: {n} after {}", last.1);
        last = (published.connection, n);
        told.insert(n);
    }
    assert_eq!(told, (1..=40).collect());
    assert_eq!(connections, 4);
    assert!(gateway.metric("sluicegate_link_failures_total{upstream=\"up\"}") > 2.5);
    gateway.stop();
}

#[test]
fn expired_credentials_are_said_and_new_ones_need_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "old").unwrap();
    let receiver = PostReceiver::start(|post| {
        let known = post.header("authorization") == "Bearer new";
        Some(if known { Reply(200, "", "") } else { Reply(401, "", "token expired") })
    });
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let more = format!("dialect = \"json\"\ntoken_file = \"{}\"", token.display());
    let gateway = Gateway::start(Options::default().with(&upstream("up", &url, &more)));
    report(&gateway, "t-1", counting(1..=3));
    wait_for("that it says so", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("401 token expired").then_some(())
    });
    assert!(gateway.metric("sluicegate_link_up{upstream=\"up\"}") < 0.5);
    std::fs::write(&token, "new").unwrap();
    let mut told = Vec::new();
    while !told.ends_with(&[1, 2, 3]) {
        let post = receiver.next();
        if post.header("authorization") == "Bearer new" {
            told.extend(posted(&post.body));
        }
    }
    gateway.stop();
}

#[test]
fn a_destination_without_a_name_server_holds_up_no_other() {
    let broker = Mosquitto::start();
    let lost = upstream("lost", "mqtt://no-such-host.invalid:1883", "");
    let lost_too = upstream("lost-too", "http://no-such-host.invalid/", "dialect = \"json\"");
    let there = upstream("there", &format!("mqtt://127.0.0.1:{}", broker.port), "");
    let mut receiver = Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(Options::default().with(&lost).with(&lost_too).with(&there));
    report(&gateway, "t-1", counting(1..=100));
    receiver.until("the last", PATIENCE, |m| n(m) == Some(100));
    let told: Value = serde_json::from_str(&gateway.get("/api/v1/upstreams")).unwrap();
    for name in ["lost", "lost-too"] {
        let view = told.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        assert!(view["connected"] == false && view["error"].is_string(), "{view}");
        let backlog = format!("sluicegate_backlog_messages{{upstream=\"{name}\",class=\"live\"}}");
        wait_for("its backlog", PATIENCE, || (gateway.metric(&backlog) > 99.5).then_some(()));
    }
    gateway.stop();
}
