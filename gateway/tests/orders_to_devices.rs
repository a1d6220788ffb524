//! Orders on their way down, over real sockets: a CoAP device that observes its commands, and one that speaks JSON
//! lines. The devices are written here byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects")]

use std::net::SocketAddr;
use std::time::Duration;

use device_models::{Order, Value};
use gateway::app::App;
use gateway::config::load::load_text;
use gateway::config::plan::Plan;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};

/// How long anything may take on a busy machine before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

async fn start(listen: &str, protocol: &str, state: &std::path::Path) -> (App, SocketAddr) {
    let text = format!(
        "[gateway]\nid = \"test\"\n[store]\npath = \"{}\"\n[admin]\nlisten = \"\"\n[[adapter]]\nname = \"a\"\n\
         listen = \"{listen}\"\nprotocol = \"{protocol}\"\nproduct = \"relay-switch\"\nauto_register = true\n\
         allow_anonymous = true\n",
        state.display()
    );
    let plan = Plan::make(load_text("test.toml", &text).unwrap()).unwrap();
    let app = App::start(plan).await.unwrap();
    let address = app.bound[0].1.unwrap();
    (app, address)
}

fn on() -> Order {
    Order::Write(vec![("on".to_owned(), Value::Bool(true))])
}

/// A CoAP packet: `kind` 0 CON, 1 NON, 2 ACK; options as (delta, value), all shorter than 13.
fn packet(kind: u8, code: u8, id: u16, token: &[u8], options: &[(u8, &str)], payload: &str) -> Vec<u8> {
    let mut bytes = vec![0x40 | kind << 4 | token.len() as u8, code];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(token);
    for (delta, value) in options {
        bytes.push(delta << 4 | value.len() as u8);
        bytes.extend_from_slice(value.as_bytes());
    }
    if !payload.is_empty() {
        bytes.push(0xff);
        bytes.extend_from_slice(payload.as_bytes());
    }
    bytes
}

async fn heard(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 2048];
    let len = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(len);
    buffer
}

#[tokio::test]
async fn a_coap_device_that_observes_its_commands_is_told_and_answers() {
    let state = tempfile::tempdir().unwrap();
    let (app, gateway) = start("udp://127.0.0.1:0", "coap", state.path()).await;
    let device = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    device.connect(gateway).await.unwrap();

    let report = packet(0, 2, 1, b"r", &[(11, "things"), (0, "fan"), (0, "properties")], "{\"on\":false}");
    device.send(&report).await.unwrap();
    assert_eq!(heard(&device).await, [0x61, 0x44, 0, 1, b'r'], "2.04 Changed");

    let observe = packet(0, 1, 2, b"o", &[(6, ""), (5, "things"), (0, "fan"), (0, "commands")], "");
    device.send(&observe).await.unwrap();
    let answer = heard(&device).await;
    assert_eq!(answer[..5], [0x61, 0x45, 0, 2, b'o'], "2.05 Content");
    assert!(answer.ends_with(b"null"));

    let devices = app.services.intake.devices().clone();
    let order = devices.order("fan", "c1", on(), PATIENCE);
    let obey = async {
        let notification = heard(&device).await;
        assert_eq!((notification[0], notification[1], notification[4]), (0x41, 0x45, b'o'), "a confirmable 2.05");
        let text = String::from_utf8_lossy(&notification).into_owned();
        assert!(text.ends_with("{\"id\":\"c1\",\"write\":{\"on\":true}}"), "{text}");
        device.send(&[0x60, 0, notification[2], notification[3]]).await.unwrap();
        let reply = packet(0, 2, 3, b"", &[(11, "things"), (0, "fan"), (0, "replies"), (0, "c1")], "{\"data\":7}");
        device.send(&reply).await.unwrap();
        assert_eq!(heard(&device).await, [0x60, 0x44, 0, 3]);
    };
    let (outcome, ()) = tokio::join!(order, obey);
    assert_eq!(outcome, Ok(Value::Int(7)));
    app.stop().await;
}

#[tokio::test]
async fn a_device_that_speaks_json_lines_is_told_and_answers() {
    let state = tempfile::tempdir().unwrap();
    let (app, gateway) = start("tcp://127.0.0.1:0", "raw", state.path()).await;
    let (lines, mut device) = TcpStream::connect(gateway).await.unwrap().into_split();
    let mut lines = BufReader::new(lines).lines();

    device.write_all(b"{\"device\":\"fan\",\"on\":false,\"seq\":1}\n").await.unwrap();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "{\"ok\":true,\"seq\":1}");

    let devices = app.services.intake.devices().clone();
    let order = devices.order("fan", "c1", on(), PATIENCE);
    let obey = async {
        let line = lines.next_line().await.unwrap().unwrap();
        assert_eq!(line, "{\"device\":\"fan\",\"id\":\"c1\",\"write\":{\"on\":true}}");
        device.write_all(b"{\"reply\":\"c1\",\"ok\":false,\"error\":\"stuck\"}\n").await.unwrap();
    };
    let (outcome, ()) = tokio::join!(order, obey);
    assert_eq!(outcome.unwrap_err().to_string(), "the device answered with an error: stuck");
    app.stop().await;
}
