//! Devices that speak plain HTTP, with curl: reports kept before they are acknowledged, orders fetched, mistakes told.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, free_port, run_ok, wait_for};

const DEVICES: &str = "[[device]]\nid = \"th-1\"\nproduct = \"temperature-humidity\"\n\
    [[device]]\nid = \"relay-1\"\nproduct = \"relay-switch\"\n";

/// A gateway with an HTTP door, and its port.
fn gateway(more: &str, adapter: &str) -> (Gateway, u16) {
    let port = free_port();
    let door = format!(
        "[[adapter]]\nname = \"http\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"http-things\"\n{adapter}\n{DEVICES}"
    );
    let environment = vec![("TH_1_SECRET".to_owned(), "sesame".to_owned())];
    (Gateway::start(Options { environment, ..Options::default() }.with(more).with(&door)), port)
}

/// Status and body of what curl was answered.
fn curl(arguments: &[&str]) -> (u16, String) {
    let all = [&["-s", "-m", "20", "-w", "\n%{http_code}"][..], arguments].concat();
    let said = run_ok("curl", &all);
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
fn curl_reports_and_is_answered_when_it_is_on_disk() {
    let broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let upstream = format!("[[upstream]]\nname = \"up\"\nurl = \"mqtt://127.0.0.1:{}\"\nbatch_ms = 50\n", broker.port);
    let (gateway, port) = gateway(&upstream, "allow_anonymous = true");
    let base = format!("http://127.0.0.1:{port}");
    let properties = format!("{base}/things/th-1/properties");
    assert_eq!(curl(&["-d", r#"{"temperature":21.25,"humidity":40}"#, &properties]), (204, String::new()));
    let message = receiver.until("the report", PATIENCE, |m| m["properties"]["temperature"] == 21.25);
    assert_eq!(message["properties"]["humidity"].as_f64(), Some(40.0), "{message}");
    let at = format!("{properties}/temperature?t=1763769600.123");
    assert_eq!(curl(&["-X", "PUT", "-d", "22.5", &at]).0, 204);
    let message = receiver.until("one property", PATIENCE, |m| m["properties"]["temperature"] == 22.5);
    assert!(message["time"].as_str().is_some_and(|t| t.starts_with("2025-11-22T00:00:00.123")), "{message}");
    let two = r#"[{"temperature":1.5},{"time":1763769601,"properties":{"temperature":2.5}}]"#;
    assert_eq!(
        curl(&["-H", "Content-Type: application/json", "-H", "Expect: 100-continue", "-d", two, &properties]).0,
        204
    );
    for value in [1.5, 2.5] {
        receiver.until("both reports", PATIENCE, |m| m["properties"]["temperature"] == value);
    }
    let cbor = gateway.folder.path().join("body.cbor");
    std::fs::write(&cbor, [&[0xa1, 0x6b][..], b"temperature", &[0xf9, 0x4d, 0xe0]].concat()).unwrap();
    let body = format!("@{}", cbor.display());
    assert_eq!(curl(&["-H", "Content-Type: application/cbor", "--data-binary", &body, &properties]).0, 204);
    receiver.until("CBOR", PATIENCE, |m| m["properties"]["temperature"] == 23.5);
    let (status, manual) = curl(&[&format!("{base}/things")]);
    assert!(status == 200 && manual.contains("/things/DEVICE/properties"), "{manual}");
    gateway.stop();
    let (status, _) = receiver.finish();
    assert!(status.success(), "`receive` found a hole: {status}");
}

/// Sends a request on a connection that stays open; gives what came until `enough` is there.
fn exchange(stream: &mut TcpStream, request: &str, enough: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let mut piece = [0; 4096];
    while !answer.contains(enough) {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&piece[..n]).unwrap());
    }
    answer
}

#[test]
fn an_order_is_fetched_by_a_device_that_waits_and_is_answered() {
    let (gateway, port) = gateway("", "allow_anonymous = true");
    let commands = format!("http://127.0.0.1:{port}/things/relay-1/commands");
    assert_eq!(curl(&[&commands]), (204, String::new()), "nothing to do");
    let mut device = TcpStream::connect(("127.0.0.1", port)).unwrap();
    device.set_read_timeout(Some(PATIENCE)).unwrap();
    let ordered = std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let poll = "GET /things/relay-1/commands?wait=30 HTTP/1.1\r\nHost: a\r\n\r\n";
            let answer = exchange(&mut device, poll, "}");
            let order: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!(order["invoke"], "toggle", "{order}");
            let (id, body) = (order["id"].as_str().unwrap(), r#"{"ok":true,"data":true}"#);
            let len = body.len();
            let reply =
                format!("POST /things/relay-1/replies/{id} HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{body}");
            assert!(exchange(&mut device, &reply, "\r\n\r\n").starts_with("HTTP/1.1 204 "));
        });
        wait_for("the device that waits", PATIENCE, || {
            let things: Value = serde_json::from_str(&gateway.get("/api/v1/things")).ok()?;
            things.as_array()?.iter().any(|thing| thing["id"] == "relay-1" && thing["online"] == true).then_some(())
        });
        let ordered = gateway.request("POST", "/api/v1/things/relay-1/actions/toggle?timeout_seconds=15", "");
        waits.join().unwrap();
        ordered
    });
    assert_eq!(ordered.0, 200, "{}", ordered.1);
    gateway.stop();
}

/// Each request is a connection of its own, as of a device that sleeps in between.
#[test]
fn a_device_that_asks_now_and_then_gets_what_waited_once_and_answers_by_another_connection() {
    let (gateway, port) = gateway("", "allow_anonymous = true");
    let device = format!("http://127.0.0.1:{port}/things/relay-1");
    let commands = format!("{device}/commands");
    assert_eq!(curl(&[&commands]), (204, String::new()), "nothing to do");
    for action in ["toggle", "toggle"] {
        let away = || {
            let (status, body) = gateway.request("POST", &format!("/api/v1/things/relay-1/actions/{action}"), "");
            (status == 202).then(|| serde_json::from_str::<Value>(&body).unwrap())
        };
        let waiting = wait_for("the device to be away", PATIENCE, away);
        let order = wait_for("the order", PATIENCE, || {
            let (status, order) = curl(&[&commands]);
            (status == 200).then(|| serde_json::from_str::<Value>(&order).unwrap())
        });
        assert_eq!((&order["id"], &order["invoke"]), (&waiting["id"], &Value::from(action)));
        let reply = format!("{device}/replies/{}", order["id"].as_str().unwrap());
        assert_eq!(curl(&["-d", r#"{"ok":true,"data":7}"#, &reply]).0, 204);
        wait_for("its end", PATIENCE, || (gateway.get("/api/v1/things/relay-1/commands") == "[]").then_some(()));
        assert_eq!(curl(&[&commands]).0, 204, "once");
    }
    let delivered = gateway.metric("sluicegate_commands_waited_total{result=\"delivered\"}");
    let answered = gateway.metric("sluicegate_commands_total{result=\"ok\"}");
    assert_eq!((delivered, answered), (2.0, 2.0));
    gateway.stop();
}

#[test]
fn mistakes_are_told_in_their_own_status_and_counted() {
    let secret = "[[credential]]\nname = \"th-1\"\nsecret_env = \"TH_1_SECRET\"\n";
    let (gateway, port) = gateway(secret, "options = { body_kib = 1 }");
    let base = format!("http://127.0.0.1:{port}");
    let properties = format!("{base}/things/th-1/properties");
    let bearer = ["-H", "Authorization: Bearer sesame"];
    let good = |more: &[&str]| curl(&[&bearer[..], more].concat());
    assert_eq!(good(&["-d", r#"{"temperature":21}"#, &properties]).0, 204);
    assert_eq!(curl(&["-u", "th-1:sesame", "-d", r#"{"temperature":21}"#, &properties]).0, 204);
    assert_eq!(curl(&["-d", r#"{"temperature":21}"#, &format!("{properties}?token=sesame")]).0, 204);
    assert_eq!(curl(&["-d", r#"{"temperature":21}"#, &format!("{base}/api/v1/sesame/telemetry")]).0, 204);
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(2000));
    for (status, arguments) in [
        (401, vec!["-d", r#"{"temperature":21}"#, &properties]),
        (401, vec!["-H", "Authorization: Bearer wrong", "-d", r#"{"temperature":21}"#, &properties]),
        (403, vec![bearer[0], bearer[1], "-d", r#"{"on":true}"#, &*format!("{base}/things/relay-1/properties")]),
        (
            403,
            vec![bearer[0], bearer[1], "-H", "Origin: http://example.com", "-d", r#"{"temperature":21}"#, &properties],
        ),
        (400, vec![bearer[0], bearer[1], "-d", r#"{"temperature":"#, &properties]),
        (400, vec![bearer[0], bearer[1], "-d", "{}", &properties]),
        (404, vec![bearer[0], bearer[1], "-d", "{}", &*format!("{base}/nowhere")]),
        (405, vec![bearer[0], bearer[1], "-X", "DELETE", &properties]),
        (413, vec![bearer[0], bearer[1], "-d", &large, &properties]),
        (415, vec![bearer[0], bearer[1], "-F", "a=b", &properties]),
        (
            400,
            vec![bearer[0], bearer[1], "-H", "Transfer-Encoding: chunked", "-d", r#"{"temperature":21}"#, &properties],
        ),
    ] {
        let (answered, why) = curl(&arguments);
        assert_eq!(answered, status, "{arguments:?}: {why}");
        assert!(status == 400 || why.contains("\"error\""), "{arguments:?}: {why}");
    }
    let faults = gateway.metric("sluicegate_faults_total{adapter=\"http\",protocol=\"http-things\"}");
    assert!(faults >= 7.0, "{faults}");
    // Two requests in one packet, and half of one: each is answered in its turn, the half when it is whole.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "POST /things/th-1/properties?token=sesame HTTP/1.1\r\nHost: a\r\nContent-Length: 18\r\n\r\n{\"temperature\":20}";
    let (half, rest) = request.split_at(60);
    stream.write_all([request, request, half].concat().as_bytes()).unwrap();
    let mut answers = String::new();
    let mut piece = [0; 4096];
    let mut rest = Some(rest);
    while answers.matches("204 No Content").count() < 3 {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "{answers}");
        answers.push_str(std::str::from_utf8(&piece[..n]).unwrap());
        if answers.matches("204 No Content").count() == 2
            && let Some(rest) = rest.take()
        {
            stream.write_all(rest.as_bytes()).unwrap();
        }
    }
    gateway.stop();
}
