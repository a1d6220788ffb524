//! The console over real connections: who gets in, what it answers, what it refuses.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use device_models::{Body, Failure, Message, Order, Outcome, Quality, Sample, Value};
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;

use super::parts::{AdapterView, PropertyView, StoreView, ThingView};
use super::*;
use crate::metrics::Metrics;

type Sent = Arc<Mutex<Vec<(String, Order)>>>;

struct Running {
    address: SocketAddr,
    tasks: Tasks,
    metrics: Metrics,
    live: broadcast::Sender<Arc<Message>>,
    sent: Sent,
}

fn thing(id: &str) -> ThingView {
    ThingView {
        id: id.to_owned(),
        model: "relay-switch".to_owned(),
        title: "Relay switch".to_owned(),
        adapter: Some("mqtt".to_owned()),
        online: true,
        since_us: 1,
        seen_us: 2,
        stream: false,
        shadow_version: 0,
        commands_waiting: 0,
        properties: vec![PropertyView {
            name: "on".to_owned(),
            title: "On".to_owned(),
            unit: None,
            writable: true,
            kind: "boolean",
            value: Json::Bool(true),
            quality: Some(Quality::Good),
            time_us: Some(2),
        }],
        actions: Vec::new(),
    }
}

async fn start_console(token: Option<&str>) -> Running {
    let metrics = Metrics::new();
    let tasks = Tasks::new();
    let live = broadcast::Sender::new(8);
    let sent = Sent::default();
    let (feed, orders) = (live.clone(), Arc::clone(&sent));
    let parts = Parts {
        recorder: None,
        gateway: Arc::from("gate-a"),
        metrics: metrics.clone(),
        adapters: vec![AdapterView {
            name: "mqtt".to_owned(),
            protocols: vec!["mqtt".to_owned()],
            wire: "tcp".to_owned(),
            address: None,
        }],
        things: Box::new(|| vec![thing("relay-1")]),
        thing: Box::new(|id| (id == "relay-1" || id == "live/gate-1").then(|| thing(id))),
        streams: Box::new(Vec::new),
        audience: parts::Audience {
            viewers: Box::new(|_| Box::pin(async { Vec::new() })),
            close: Box::new(|_| Box::pin(async { false })),
            close_viewer: Box::new(|_, _| Box::pin(async { false })),
            link: Box::new(|_| None),
            recordings: parts::RecordingLinks { link: Box::new(|_| None), opens: Box::new(|_, _| false) },
        },
        upstreams: Box::new(Vec::new),
        store: Box::new(StoreView::default),
        live: Box::new(move || feed.subscribe()),
        order: Box::new(move |thing, _, order, _| -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
            let silent = thing == "live/gate-1";
            orders.lock().unwrap().push((thing, order));
            Box::pin(async move {
                if silent { Err(Failure::Silent(Duration::from_secs(1))) } else { Ok(Value::Bool(true)) }
            })
        }),
        shadows: None,
        webrtc: None,
        ready: Box::new(|| Ok(())),
    };
    let folder = tempfile::tempdir().unwrap();
    let token_file = token.map(|token| {
        let file = folder.path().join("token");
        std::fs::write(&file, format!("{token}\n")).unwrap();
        file
    });
    let config = config::Admin { listen: "127.0.0.1:0".to_owned(), token_file, ..config::Admin::default() };
    let address = start(&config, None, parts, &tasks).await.unwrap().unwrap();
    Running { address, tasks, metrics, live, sent }
}

/// Sends one request and returns status, head and body.
async fn ask(running: &Running, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let extra = headers.iter().fold(String::new(), |all, header| all + header + "\r\n");
    let host = if headers.iter().any(|h| h.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\n{host}{extra}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may close before it has read a body it does not want.
    drop(stream.read_to_end(&mut answer).await);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

const JSON: &str = "Content-Type: application/json";

#[tokio::test]
async fn orders_reach_things_and_failures_are_told_as_problems() {
    let running = start_console(None).await;
    let (status, _, body) =
        ask(&running, "POST", "/api/v1/things/relay-1/properties", &[JSON], r#"{"on":false}"#).await;
    assert_eq!(status, 200, "{body}");
    let body: Json = serde_json::from_str(&body).unwrap();
    assert_eq!(body["result"], Json::Bool(true));
    let (status, head, body) = ask(&running, "POST", "/api/v1/things/live%2Fgate-1/actions/snap", &[JSON], "").await;
    assert_eq!(status, 504, "{body}");
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    assert!(body.contains("did not answer"), "{body}");
    assert_eq!(
        *running.sent.lock().unwrap(),
        vec![
            ("relay-1".to_owned(), Order::Write(vec![("on".to_owned(), Value::Bool(false))])),
            ("live/gate-1".to_owned(), Order::Invoke { action: "snap".to_owned(), input: Value::Null }),
        ]
    );
    let cases = [
        ("/api/v1/things/relay-2/properties", r#"{"on":true}"#, 404),
        ("/api/v1/things/relay-1/properties", r#"{"on":"#, 400),
        ("/api/v1/things/relay-1/properties", "[]", 400),
        ("/api/v1/things/relay-1/properties", "{}", 400),
        ("/api/v1/things/relay-1/properties?timeout_seconds=60", r#"{"on":true}"#, 400),
        ("/api/v1/things/relay-1/properties?timeout=6", r#"{"on":true}"#, 400),
    ];
    for (path, body, expected) in cases {
        let (status, head, answer) = ask(&running, "POST", path, &[JSON], body).await;
        assert_eq!(status, expected, "{path} {body}: {answer}");
        assert!(head.contains("application/problem+json"), "{path} {body}: {head}");
    }
    let huge = " ".repeat(api::BODY_MAX + 1);
    let (status, _, _) = ask(&running, "POST", "/api/v1/things/relay-1/properties", &[JSON], &huge).await;
    assert_eq!(status, 413);
    assert_eq!(running.sent.lock().unwrap().len(), 2, "a refused request sent an order");
    assert!(running.metrics.encode().contains("sluicegate_commands_total{result=\"silent\"} 1"));
    running.tasks.join(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn other_hosts_and_sites_are_turned_away_and_counted() {
    let running = start_console(None).await;
    let (status, _, _) = ask(&running, "GET", "/api/v1/things", &["Host: evil.example"], "").await;
    assert_eq!(status, 421);
    let (status, _, _) = ask(&running, "GET", "/", &["Host: evil.example"], "").await;
    assert_eq!(status, 421);
    let (status, _, _) = ask(&running, "GET", "/api/v1/things", &["Origin: http://evil.example"], "").await;
    assert_eq!(status, 403);
    let (status, _, body) = ask(&running, "GET", "/api/v1/things", &[], "").await;
    assert_eq!(status, 200, "{body}");
    let text = running.metrics.encode();
    assert!(text.contains("sluicegate_admin_refused_total{reason=\"host\"} 2"), "{text}");
    running.tasks.join(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn with_a_token_the_page_opens_and_the_api_asks_for_it() {
    let running = start_console(Some("0123456789abcdef")).await;
    for (path, expected) in [
        ("/", 200),
        ("/app.js", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/api/v1/things", 401),
        ("/metrics", 401),
        ("/no", 401),
    ] {
        let (status, head, _) = ask(&running, "GET", path, &["Host: box.example"], "").await;
        assert_eq!(status, expected, "{path}");
        assert_eq!(status == 401, head.contains("www-authenticate: bearer"), "{path}");
    }
    let bearer = "Authorization: Bearer 0123456789abcdef";
    let (status, _, _) = ask(&running, "GET", "/api/v1/things", &["Host: box.example", bearer], "").await;
    assert_eq!(status, 200);
    let (status, _, _) = ask(&running, "GET", "/no", &["Host: box.example", bearer], "").await;
    assert_eq!(status, 404);
    running.tasks.join(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn files_come_with_a_policy_and_are_not_sent_twice() {
    let running = start_console(None).await;
    for asset in page::ASSETS {
        let (status, head, _) = ask(&running, "HEAD", asset.path, &[], "").await;
        assert_eq!(status, 200, "{}", asset.path);
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        let tag = head.lines().find_map(|l| l.strip_prefix("etag: ")).unwrap().to_owned();
        let (status, _, body) = ask(&running, "GET", asset.path, &[&format!("If-None-Match: {tag}")], "").await;
        assert_eq!((status, body.as_str()), (304, ""), "{}", asset.path);
    }
    running.tasks.join(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_live_feed_carries_messages_says_what_it_missed_and_ends_with_the_gateway() {
    let running = start_console(None).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut text = String::new();
    read_until(&mut stream, &mut text, "text/event-stream").await;
    let message = |n: i64| {
        let sample = Sample { alias: 1, name: "power".into(), value: Value::Int(n), quality: Quality::Good };
        Arc::new(Message {
            thing: "meter-1".into(),
            model: "energy-meter".into(),
            time_us: n,
            received_us: n,
            body: Body::Properties(vec![sample]),
        })
    };
    running.live.send(message(41)).unwrap();
    read_until(&mut stream, &mut text, "event: messages").await;
    read_until(&mut stream, &mut text, r#""properties":{"power":41}"#).await;
    // Far more than the buffer between: sent without a pause, so that the feed cannot take them in between.
    for n in 0..100 {
        running.live.send(message(n)).unwrap();
    }
    read_until(&mut stream, &mut text, r#"{"power":99}"#).await;
    assert!(text.contains("event: missed\ndata: 92\n"), "{text}");
    assert!(running.metrics.encode().contains("sluicegate_admin_live_dropped_total{} 92"));
    assert!(running.metrics.encode().contains("sluicegate_admin_live_clients{} 1.0"));
    running.tasks.stop();
    stream.read_to_string(&mut text).await.unwrap();
    running.tasks.join(Duration::from_secs(5)).await;
    assert!(running.metrics.encode().contains("sluicegate_admin_live_clients{} 0.0"));
}

async fn read_until(stream: &mut TcpStream, text: &mut String, wanted: &str) {
    let mut buffer = [0; 4096];
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !text.contains(wanted) {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the feed ended before {wanted}: {text}");
            text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    });
    assert!(waited.await.is_ok(), "no {wanted} in {text}");
}

#[test]
fn every_route_is_in_the_description_and_the_other_way_round() {
    let described: Json = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let paths = described["paths"].as_object().unwrap();
    let mut expected: Vec<_> = api::routes().iter().map(|r| format!("{} {}", r.method, r.path)).collect();
    for door in ["/whep", "/whip"] {
        let session = format!("{door}/{{app}}/{{name}}/{{session}}");
        expected.push(format!("post {door}/{{app}}/{{name}}"));
        expected.extend([format!("delete {session}"), format!("patch {session}")]);
    }
    let mut found: Vec<_> = paths
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |m| format!("{m} {path}")))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    // What needs no token says so.
    for route in api::routes() {
        let open = described["paths"][route.path][route.method].get("security").is_some();
        assert_eq!(open, api::OPEN.contains(&route.path), "{}", route.path);
    }
}

#[test]
fn views_have_the_members_the_description_names() {
    let described: Json = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let names = |schema: &str| -> Vec<String> {
        let properties = &described["components"]["schemas"][schema]["properties"];
        properties.as_object().unwrap().keys().cloned().collect()
    };
    let members = |view: Json| -> Vec<String> { view.as_object().unwrap().keys().cloned().collect() };
    let mut thing_names = names("Thing");
    thing_names.sort();
    assert_eq!(members(serde_json::to_value(thing("a")).unwrap()), thing_names);
    let mut store_names = names("Store");
    store_names.sort();
    assert_eq!(members(serde_json::to_value(StoreView::default()).unwrap()), store_names);
}
