//! Destinations beside MQTT 5 over TCP: what arrives there, and what happens when they do not want it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sluicegate_tests::{
    Child, Gateway, Mosquitto, NatsServer, Options, PATIENCE, Post, PostReceiver, Receiver, Reply, free_port, run_ok,
    shell, wait_for,
};

/// An upstream named `up` at this URL.
fn to(url: &str, more: &str) -> Options {
    Options::default().with(&format!("[[upstream]]\nname = \"up\"\nurl = \"{url}\"\nbatch_ms = 20\n{more}"))
}

fn report(gateway: &Gateway, device: &str, n: u64) {
    let (port, topic) = (gateway.options.mqtt.to_string(), format!("/generic/{device}/properties/report"));
    let payload = json!({ "properties": { "n": n } }).to_string();
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", device, "-t", &topic, "-m", &payload]);
}

/// The values of `n` in a JSON array that was posted.
fn numbers(body: &[u8]) -> Vec<u64> {
    let array: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
    array.iter().filter_map(|one| one["properties"]["n"].as_u64()).collect()
}

/// The values of `n` posted until `last` is there.
fn until(receiver: &PostReceiver, last: u64) -> Vec<u64> {
    let mut all = Vec::new();
    while !all.contains(&last) {
        all.extend(numbers(&receiver.next().body));
    }
    all
}

#[test]
fn mqtt_3_1_1_and_web_sockets_carry_what_mqtt_5_does() {
    let web = free_port();
    let broker = Mosquitto::with(&format!("listener {web} 127.0.0.1\nprotocol websockets"));
    let port = broker.port;
    for (url, version) in [
        (format!("mqtt://127.0.0.1:{port}"), "3.1.1"),
        (format!("ws://127.0.0.1:{web}/mqtt"), "5"),
        (format!("ws://127.0.0.1:{web}/mqtt"), "3.1.1"),
    ] {
        let mut options = to(&url, &format!("mqtt_version = \"{version}\""));
        options.id = format!("gate-{}", free_port());
        let mut receiver =
            Receiver::start(port, &["--gateway", &options.id, "--client-id", &format!("r-{}", options.id)]);
        let gateway = Gateway::start(options);
        wait_for("the connection", PATIENCE, || {
            (gateway.metric("sluicegate_link_up{upstream=\"up\"}") > 0.5).then_some(())
        });
        for n in 1..=3 {
            report(&gateway, "m-1", n);
        }
        receiver.until("the last report", PATIENCE, |m| m["properties"]["n"] == 3);
        let told: Vec<_> = receiver.seen.iter().filter_map(|m| m["properties"]["n"].as_u64()).collect();
        assert_eq!(told, [1, 2, 3], "{url} {version}");
        let down = format!("sg/v1/{}/down/m-1", gateway.options.id);
        run_ok(
            "mosquitto_pub",
            &["-p", &port.to_string(), "-q", "1", "-t", &down, "-m", r#"{"id":"7","read":["n"],"timeout_ms":50}"#],
        );
        receiver.until("the reply to a command", PATIENCE, |m| m["reply"]["id"] == "7");
        gateway.stop();
    }
}

/// An HTTP server nobody here wrote: Python's. It writes each body as a line.
const PYTHON: &str = r#"
import http.server, sys
class Take(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[2], "ab") as out:
            out.write(self.headers["Authorization"].encode() + b" " + self.path.encode() + b" " + body + b"\n")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Take).serve_forever()
"#;

#[test]
fn an_http_server_gets_json_posts_with_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let (port, out) = (free_port(), folder.path().join("bodies"));
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &port.to_string()]).arg(&out).stdin(Stdio::null());
    let _server = Child::start(&mut command);
    let secret = folder.path().join("token");
    std::fs::write(&secret, "sesame\n").unwrap();
    let url = format!("http://127.0.0.1:{port}/in?site=a");
    let gateway = Gateway::start(to(&url, &format!("dialect = \"json\"\ntoken_file = \"{}\"", secret.display())));
    for n in 1..=3 {
        report(&gateway, "h-1", n);
    }
    let told = wait_for("three reports", PATIENCE, || {
        let text = std::fs::read_to_string(&out).ok()?;
        let bodies = text.lines().filter_map(|line| line.strip_prefix("Bearer sesame /in?site=a "));
        let told: Vec<u64> = bodies.flat_map(|body| numbers(body.as_bytes())).collect();
        told.contains(&3).then_some(told)
    });
    assert_eq!(told, [1, 2, 3]);
    wait_for("the link's figure", PATIENCE, || {
        (gateway.metric("sluicegate_link_up{upstream=\"up\"}") > 0.5).then_some(())
    });
    gateway.stop();
}

#[test]
fn native_batches_are_posted_with_their_catalog_and_a_key_that_stays_the_same() {
    let failures = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failures);
    // Under `up/live`, or under `up/hist` if the report was there before the line was.
    let batch = |post: &Post| post.header("idempotency-key").ends_with("/live/1");
    let receiver = PostReceiver::start(move |post| {
        // The first batch is taken, but nobody hears of it: it comes again under the same key.
        (!batch(post) || count.fetch_add(1, Ordering::SeqCst) > 0).then_some(Reply(200, "", ""))
    });
    let gateway = Gateway::start(to(&format!("http://127.0.0.1:{}/in", receiver.port), ""));
    report(&gateway, "h-1", 1);
    let mut posts = Vec::new();
    while posts.iter().filter(|post| batch(post)).count() < 2 {
        posts.push(receiver.next());
    }
    let keys: BTreeSet<_> = posts.iter().filter(|p| batch(p)).map(|p| p.header("idempotency-key")).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("gate-t/")), "{keys:?}");
    let first = posts.iter().position(batch).unwrap();
    assert!(posts[..first].iter().any(|p| p.header("sluicegate-topic").contains("/model/")), "no catalog before it");
    assert!(posts.iter().all(|p| p.header("content-type") == "application/x-protobuf"));
    gateway.stop();
}

#[test]
fn a_receiver_that_is_busy_is_left_alone_as_long_as_it_asks() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    let receiver = PostReceiver::start(move |_| {
        let mut times = times.lock().unwrap();
        times.push(std::time::Instant::now());
        Some(match times.len() {
            1 => Reply(429, "retry-after: 3\r\n", "slow down"),
            2 => Reply(503, "", ""),
            3 => Reply(401, "", "who are you"),
            _ => Reply(200, "", ""),
        })
    });
    let gateway = Gateway::start(to(&format!("http://127.0.0.1:{}/", receiver.port), "dialect = \"json\""));
    report(&gateway, "h-1", 1);
    wait_for("what it says of itself", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("slow down").then_some(())
    });
    let all = until(&receiver, 1);
    assert!(all.iter().all(|n| *n == 1), "{all:?}");
    wait_for("the fourth answer", PATIENCE, || (asked.lock().unwrap().len() > 3).then_some(()));
    let times = asked.lock().unwrap();
    assert!(times[1] - times[0] >= Duration::from_secs(3), "{:?}", times[1] - times[0]);
    assert!(times[2] - times[1] >= Duration::from_secs(1), "{:?}", times[2] - times[1]);
    drop(times);
    assert!(gateway.metric("sluicegate_dropped_total{reason=\"refused\"}") < 0.5);
    gateway.stop();
}

#[test]
fn a_message_that_is_refused_for_good_is_set_aside_and_said_and_the_rest_goes_on() {
    let receiver = PostReceiver::start(|post| {
        let poison = numbers(&post.body).contains(&7);
        Some(if poison { Reply(422, "", "seven is not for us") } else { Reply(200, "", "") })
    });
    let gateway = Gateway::start(to(&format!("http://127.0.0.1:{}/", receiver.port), "dialect = \"json\""));
    for n in 1..=12 {
        report(&gateway, "h-1", n);
    }
    let (mut taken, mut holes) = (Vec::new(), Vec::new());
    while !taken.contains(&12) {
        let post = receiver.next();
        let numbers = numbers(&post.body);
        let array: Vec<Value> = serde_json::from_slice(&post.body).unwrap_or_default();
        if !numbers.contains(&7) {
            holes.extend(array.iter().filter(|one| one["gap"].is_object()).map(|one| one["gap"].clone()));
            taken.extend(numbers);
        }
    }
    taken.dedup();
    assert_eq!(taken, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]);
    let hole = holes.first().expect("a gap that names it");
    assert_eq!((&hole["class"], &hole["first"], &hole["last"]), (&json!("live"), &json!(7), &json!(7)), "{hole}");
    assert!(hole["reason"].as_str().is_some_and(|r| r.contains("422") && r.contains("seven")), "{hole}");
    let aside = std::fs::read_to_string(gateway.folder.path().join("state/refused/up.jsonl")).unwrap();
    let kept: Value = serde_json::from_str(aside.lines().next().unwrap()).unwrap();
    assert_eq!(kept["message"]["properties"]["n"], 7, "{kept}");
    assert_eq!(aside.lines().count(), 1, "{aside}");
    assert!((0.5..1.5).contains(&gateway.metric("sluicegate_dropped_total{reason=\"refused\"}")));
    gateway.stop();
}

#[test]
fn a_receiver_that_refuses_everything_costs_ten_messages_at_most() {
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let receiver = PostReceiver::start(move |_| {
        Some(if gate.load(Ordering::SeqCst) { Reply(200, "", "") } else { Reply(400, "", "no") })
    });
    let gateway = Gateway::start(to(&format!("http://127.0.0.1:{}/", receiver.port), "dialect = \"json\""));
    let topic = "/generic/h-1/properties/report";
    let lines: Vec<String> = (1..=40).map(|n| json!({ "properties": { "n": n } }).to_string()).collect();
    let port = gateway.options.mqtt;
    let file = gateway.folder.path().join("lines");
    std::fs::write(&file, lines.join("\n")).unwrap();
    shell(&format!("mosquitto_pub -p {port} -q 1 -i h-1 -t {topic} -l < {}", file.display()));
    wait_for("that it says so", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("refused one after the other").then_some(())
    });
    open.store(true, Ordering::SeqCst);
    let told = until(&receiver, 40);
    let missing = (1..=40).filter(|n| !told.contains(n)).count();
    assert!(missing == 0, "they were all posted at least once: {missing}");
    let dropped = gateway.metric("sluicegate_dropped_total{reason=\"refused\"}");
    assert!((1.0..10.5).contains(&dropped), "{dropped}");
    gateway.stop();
}

/// Everything a stream keeps: subject, headers, body.
fn kept(server: &NatsServer, stream: &str) -> Vec<(String, String, Value)> {
    let state = server.request(&format!("$JS.API.STREAM.INFO.{stream}"), "");
    let last = state["state"]["last_seq"].as_u64().unwrap_or(0);
    let one = |seq| {
        let ask = json!({ "seq": seq }).to_string();
        let message = server.request(&format!("$JS.API.STREAM.MSG.GET.{stream}"), &ask)["message"].clone();
        let text = |key: &str| run_ok("sh", &["-c", &format!("echo {} | base64 -d", message[key].as_str().unwrap())]);
        (message["subject"].as_str().unwrap().to_owned(), text("hdrs"), serde_json::from_str(&text("data")).unwrap())
    };
    (1..=last).map(one).collect()
}

#[test]
fn a_nats_stream_keeps_every_message_once_and_commands_come_back() {
    let mut server = NatsServer::start();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "sesame\n").unwrap();
    let url = format!("nats://127.0.0.1:{}", server.port);
    let credentials = format!("username = \"gate\"\npassword_file = \"{}\"", secret.display());
    let gateway = Gateway::start(to(&url, &format!("dialect = \"json\"\n{credentials}")));
    report(&gateway, "n-1", 1);
    wait_for("that it says what is missing", PATIENCE, || {
        gateway.get("/api/v1/upstreams").contains("no stream takes").then_some(())
    });
    let stream = json!({ "name": "SG", "subjects": ["sg.v1.gate-t.json.>"], "storage": "file", "duplicate_window": 600_000_000_000_u64 });
    let made = server.request("$JS.API.STREAM.CREATE.SG", &stream.to_string());
    assert!(made["error"].is_null(), "{made}");
    let mine = |all: Vec<(String, String, Value)>| -> Vec<(String, String, Value)> {
        all.into_iter().filter(|(subject, ..)| subject.ends_with("json.n-1.properties")).collect()
    };
    wait_for("the first report", PATIENCE, || (mine(kept(&server, "SG")).len() == 1).then_some(()));
    server.pause();
    for n in 2..=4 {
        report(&gateway, "n-1", n);
    }
    server.resume();
    let kept = wait_for("four reports", PATIENCE * 2, || {
        let kept = mine(kept(&server, "SG"));
        (kept.len() >= 4).then_some(kept)
    });
    let told: Vec<_> = kept.iter().filter_map(|(.., body)| body["properties"]["n"].as_u64()).collect();
    assert_eq!(told, [1, 2, 3, 4]);
    for (_, headers, body) in &kept {
        let id = format!("Nats-Msg-Id: gate-t/{}/live/{}", body["epoch"].as_str().unwrap(), body["seq"]);
        assert!(headers.contains(&id), "{id}: {headers}");
    }
    let before = gateway.metric("sluicegate_commands_total{result=\"");
    server.request("$JS.API.INFO", "");
    let command = r#"{"id":"c-1","read":["n"],"timeout_ms":50}"#;
    nats_publish(&server, "sg.v1.gate-t.down.n-1", command);
    wait_for("the reply to a command", PATIENCE, || {
        let all = kept_replies(&server);
        all.iter().any(|body| body["reply"]["id"] == "c-1").then_some(())
    });
    assert!(before < 0.5);
    gateway.stop();
}

#[test]
fn behind_nats_too_what_the_consumer_acknowledges_is_forgotten_and_commands_come_meanwhile() {
    let server = NatsServer::start();
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    std::fs::write(&secret, "sesame\n").unwrap();
    let stream = json!({ "name": "SG", "subjects": ["sg.v1.*.up.>", "sg.v1.*.model.*"], "storage": "file" });
    let made = server.request("$JS.API.STREAM.CREATE.SG", &stream.to_string());
    assert!(made["error"].is_null(), "{made}");
    let url = format!("nats://127.0.0.1:{}", server.port);
    let more = format!("acknowledge = \"receiver\"\nusername = \"gate\"\npassword_file = \"{}\"", secret.display());
    let gateway = Gateway::start(to(&url, &more));
    for n in 1..=3 {
        report(&gateway, "n-1", n);
    }
    let backlog = || gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}");
    let live = json!({ "subjects_filter": "sg.v1.gate-t.up.live" }).to_string();
    wait_for("the stream to have it", PATIENCE, || {
        let info = server.request("$JS.API.STREAM.INFO.SG", &live);
        info["state"]["subjects"]["sg.v1.gate-t.up.live"].as_u64().filter(|count| *count > 0)
    });
    // The figure is a second old at most; the stream's word is not enough to forget.
    wait_for("all three in the backlog", PATIENCE, || (backlog() > 2.5).then_some(()));
    let store: Value = serde_json::from_str(&gateway.get("/api/v1/store")).unwrap();
    let receipt = json!({ "epoch": store["epoch"], "class": "live", "first": 1, "last": 3 }).to_string();
    wait_for("an empty backlog", PATIENCE, || {
        nats_publish(&server, "sg.v1.gate-t.ack", &receipt);
        (backlog() < 0.5).then_some(())
    });
    // The device is away: what is heard waits.
    nats_publish(&server, "sg.v1.gate-t.down.n-1", r#"{"id":"c-1","read":["n"]}"#);
    let waiting = || gateway.metric("sluicegate_commands_waiting{}") > 0.5;
    wait_for("the command", PATIENCE, || waiting().then_some(()));
    gateway.stop();
}

/// Publishes without asking for an answer: the request's own goes to nobody.
fn nats_publish(server: &NatsServer, subject: &str, body: &str) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let len = body.len();
    write!(stream, "CONNECT {{\"user\":\"gate\",\"pass\":\"sesame\",\"verbose\":false}}\r\nPUB {subject} {len}\r\n{body}\r\nPING\r\n").unwrap();
    let (mut heard, mut chunk) = (String::new(), [0; 1024]);
    while !heard.contains("PONG") {
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&chunk[..read]));
    }
}

fn kept_replies(server: &NatsServer) -> Vec<Value> {
    kept(server, "SG")
        .into_iter()
        .filter(|(subject, ..)| subject.rsplit('.').next() == Some("reply"))
        .map(|(.., body)| body)
        .collect()
}
