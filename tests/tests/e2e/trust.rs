//! Destinations over TLS, with servers nobody here wrote: who is believed, and who is let in.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sluicegate_tests::{
    Authority, Certificate, Child, Gateway, Mosquitto, Options, PATIENCE, Receiver, free_port, run_ok, wait_for,
};

/// Python's server of POSTs: TLS, for those alone who have a certificate of the authority's. It writes each body as a line.
const PYTHON: &str = r#"
import http.server, ssl, sys
port, out, cert, key, authority = sys.argv[1:]
class Take(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(out, "ab") as file:
            file.write(body + b"\n")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Take)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"#;

fn to(url: &str, authority: &Path, more: &str) -> Options {
    let ca = authority.display();
    Options::default().with(&format!(
        "[[upstream]]\nname = \"up\"\nurl = \"{url}\"\ndialect = \"json\"\nbatch_ms = 20\nca_file = \"{ca}\"\n{more}"
    ))
}

fn report(gateway: &Gateway, n: u64) {
    let (port, topic) = (gateway.options.mqtt.to_string(), "/generic/t-1/properties/report");
    let payload = json!({ "properties": { "n": n } }).to_string();
    run_ok("mosquitto_pub", &["-p", &port, "-q", "1", "-i", "t-1", "-t", topic, "-m", &payload]);
}

/// Nobody who is not known takes anything; what waited then goes to who is known.
fn strangers_then_friends(url: &str, authority: &Authority, mut arrived: impl FnMut() -> Vec<u64>) {
    let stranger = Authority::new();
    let mutual = authority.certify("gate").toml();
    let mut gateway = Gateway::start(to(url, &stranger.file(), &mutual));
    for n in 1..=3 {
        report(&gateway, n);
    }
    let why = "invalid peer certificate";
    wait_for(why, PATIENCE, || gateway.get("/api/v1/upstreams").contains(why).then_some(()));
    // We believe the server, and it does not believe us.
    gateway.options.more = to(url, &authority.file(), "").more;
    gateway.kill_and_restart();
    let failures = "sluicegate_link_failures_total{upstream=\"up\"}";
    wait_for("that it is turned away", PATIENCE, || (gateway.metric(failures) > 1.5).then_some(()));
    assert_eq!(arrived(), [0; 0]);
    gateway.options.more = to(url, &authority.file(), &mutual).more;
    gateway.kill_and_restart();
    wait_for("what waited", PATIENCE, || (arrived() == [1, 2, 3]).then_some(()));
    gateway.stop();
}

#[test]
fn https_goes_both_ways_and_an_unknown_authority_is_refused() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let (port, out) = (free_port(), folder.path().join("bodies"));
    let Certificate { cert, key } = authority.certify("server");
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &port.to_string()]).args([&out, &cert, &key, &authority.file()]);
    let _server = Child::start(command.stdin(Stdio::null()).stderr(Stdio::null()));
    strangers_then_friends(&format!("https://localhost:{port}/in"), &authority, || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        let arrays = text.lines().filter_map(|line| serde_json::from_str::<Vec<Value>>(line).ok());
        arrays.flatten().filter_map(|one| one["properties"]["n"].as_u64()).collect()
    });
}

#[test]
fn wss_goes_both_ways_and_an_unknown_authority_is_refused() {
    let (authority, web) = (Authority::new(), free_port());
    let Certificate { cert, key } = authority.certify("server");
    let broker = Mosquitto::with(&format!(
        "listener {web} 127.0.0.1\nprotocol websockets\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        authority.file().display(),
        cert.display(),
        key.display()
    ));
    let mut receiver = Receiver::start(broker.port, &[]);
    strangers_then_friends(&format!("wss://localhost:{web}/mqtt"), &authority, || {
        receiver.drain();
        receiver.seen.iter().filter_map(|m| m["properties"]["n"].as_u64()).collect()
    });
}
