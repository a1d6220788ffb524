//! Bad input on every port: nothing panics, memory stays flat, a neighbour is undisturbed.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use sluicegate_tests::{Child, Counter, Gateway, Language, Options, PATIENCE, free_port, root, run, shell, wait_for};

/// A neighbour that reports all the while and must get its acknowledgements, and one that pushes a stream that another
/// watches.
struct Neighbour {
    counter: Counter,
    watched: Arc<AtomicU64>,
    _push: Child,
}

impl Neighbour {
    fn start(gateway: &Gateway) -> Self {
        let counter = Counter::start(Language::Mqtt, "neighbour", gateway.options.mqtt);
        wait_for("the neighbour", Duration::from_secs(10), || (counter.acknowledged() > 50).then_some(()));
        let media = gateway.options.media;
        let push = push(media, "live/neighbour");
        let watched = Arc::new(AtomicU64::new(0));
        let bytes = Arc::clone(&watched);
        std::thread::spawn(move || watch(media, "live/neighbour", &bytes));
        wait_for("the neighbour's viewer", PATIENCE, || (watched.load(Ordering::Acquire) > 50_000).then_some(()));
        Self { counter, watched, _push: push }
    }

    /// Still served.
    fn is_well(&self) {
        let now = self.counter.acknowledged();
        let bytes = self.watched.load(Ordering::Acquire);
        wait_for("the neighbour's next reports", Duration::from_secs(5), || {
            (self.counter.acknowledged() > now + 50).then_some(())
        });
        wait_for("the neighbour's next frames", Duration::from_secs(5), || {
            (self.watched.load(Ordering::Acquire) > bytes + 50_000).then_some(())
        });
    }
}

/// ffmpeg, pushing a demo clip for ever.
fn push(media: u16, stream: &str) -> Child {
    let clip = root().join("gateway/src/demo/clips/gate-1.flv");
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i"]).arg(clip);
    command.args(["-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/{stream}")]).stdin(Stdio::null());
    Child::start(&mut command)
}

/// Counts the bytes of a stream over HTTP-FLV until it ends.
fn watch(media: u16, stream: &str, bytes: &AtomicU64) {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", media)) else { return };
    drop(write!(socket, "GET /{stream}.flv HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        bytes.fetch_add(count as u64, Ordering::AcqRel);
    }
}

fn noise(len: usize, mut state: u64) -> Vec<u8> {
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn tcp_ports(gateway: &Gateway) -> [u16; 4] {
    let o = &gateway.options;
    [o.mqtt, o.tcp, o.media, o.admin]
}

/// No thread panicked, and it ends well.
fn ends_well(gateway: Gateway) {
    let log = gateway.stop();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn noise_on_every_port() {
    let gateway = Gateway::start(Options::default());
    let neighbour = Neighbour::start(&gateway);
    let heads: [&[u8]; 6] = [b"", b"\x10", b"\x03", b"GET ", b"{\"device\":\"x\",", b"\x40\x02"];
    for round in 0..200_u64 {
        for port in tcp_ports(&gateway) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it still accepts");
            let mut bytes = heads[(round % 6) as usize].to_vec();
            bytes.extend(noise(1 + (round as usize * 37) % 4_000, round + u64::from(port)));
            // It may close at the first wrong byte.
            drop(stream.write_all(&bytes));
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [gateway.options.coap, gateway.options.udp] {
            udp.send_to(&noise(1 + (round as usize * 13) % 1_400, round + 1), ("127.0.0.1", port)).unwrap();
        }
    }
    neighbour.is_well();
    neighbour.counter.stop();
    ends_well(gateway);
}

#[test]
fn a_thousand_connections_without_a_word() {
    shell("test $(ulimit -n) -ge 4096");
    let gateway = Gateway::start(Options::default());
    let neighbour = Neighbour::start(&gateway);
    let before = gateway.rss_kib();
    let mut silent = Vec::new();
    for port in [gateway.options.mqtt, gateway.options.media, gateway.options.tcp] {
        for _ in 0..1_000 {
            silent.push(TcpStream::connect(("127.0.0.1", port)).expect("it still accepts"));
        }
    }
    neighbour.is_well();
    let grown = gateway.rss_kib().saturating_sub(before);
    assert!(grown < 24 * 1_024, "{grown} KiB for {} silent connections", silent.len());
    // Those that must introduce themselves are closed in time.
    let mut mqtt = &silent[0];
    mqtt.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let started = Instant::now();
    assert_eq!(mqtt.read(&mut [0; 16]).unwrap_or(0), 0);
    assert!(started.elapsed() < Duration::from_secs(25), "a silent connection stays for {:?}", started.elapsed());
    neighbour.is_well();
    neighbour.counter.stop();
    ends_well(gateway);
}

#[test]
fn oversize_is_refused_and_memory_stays_flat() {
    let gateway = Gateway::start(Options::default());
    let neighbour = Neighbour::start(&gateway);
    let before = gateway.rss_kib();
    for _ in 0..20 {
        // MQTT: a packet that announces 256 MB; raw: a line without an end; HTTP: a header without an end;
        // RTMP: a message of 16 MB.
        let cases: [(u16, Vec<u8>); 4] = [
            (gateway.options.mqtt, vec![0x30, 0xff, 0xff, 0xff, 0x7f]),
            (gateway.options.tcp, vec![b'{'; 4096]),
            (gateway.options.media, [b"GET /live/x.flv HTTP/1.1\r\n".to_vec(), vec![b'a'; 4096]].concat()),
            (gateway.options.media, [vec![3], vec![0; 1536]].concat()),
        ];
        for (port, head) in cases {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it still accepts");
            stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            drop(stream.write_all(&head));
            for _ in 0..512 {
                if stream.write_all(&[b'x'; 8192]).is_err() {
                    break;
                }
            }
        }
    }
    neighbour.is_well();
    let grown = gateway.rss_kib().saturating_sub(before);
    assert!(grown < 16 * 1_024, "{grown} KiB after oversize input");
    neighbour.counter.stop();
    ends_well(gateway);
}

#[test]
fn slow_peers_do_not_hold_the_door() {
    let gateway = Gateway::start(Options::default());
    let mut slow: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(("127.0.0.1", gateway.options.mqtt)).unwrap()).collect();
    for byte in [0x10_u8, 0x20, 0x00] {
        for stream in &mut slow {
            stream.write_all(&[byte]).unwrap();
        }
    }
    let neighbour = Neighbour::start(&gateway);
    neighbour.is_well();
    neighbour.counter.stop();
    ends_well(gateway);
}

#[test]
fn wrong_credentials_are_refused_and_counted() {
    let port = free_port();
    let secret = std::env::temp_dir().join(format!("sluicegate-secret-{port}"));
    std::fs::write(&secret, "right\n").unwrap();
    let door = format!(
        "[[adapter]]\nname = \"door\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"mqtt\"\n\
         [[credential]]\nname = \"meter\"\nsecret_file = \"{}\"\n\
         [[device]]\nid = \"meter\"\nproduct = \"energy-meter\"\n",
        secret.display()
    );
    let gateway = Gateway::start(Options::default().with(&door));
    let port = port.to_string();
    let publish = |version: &str, more: &[&str]| {
        let body = ["-p", &port, "-V", version, "-q", "1", "-t", "v1/devices/me/telemetry", "-m", "{\"voltage\":230}"];
        run("mosquitto_pub", &[&body[..], more].concat())
    };
    for version in ["mqttv311", "mqttv5"] {
        for wrong in [&["-u", "meter", "-P", "wrong"][..], &["-u", "who", "-P", "right"], &[]] {
            let output = publish(version, wrong);
            assert!(!output.status.success(), "{wrong:?}");
            let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
            assert!(said.contains("not authori") || said.contains("bad user name"), "{version} {wrong:?}: {said}");
        }
        assert!(publish(version, &["-u", "meter", "-P", "right"]).status.success());
    }
    assert!(gateway.metric("sluicegate_refused_total{adapter=\"door\",reason=\"unauthorized\"}") >= 6.0);
    // Nor may it speak for another.
    let other = [
        "-p",
        &port,
        "-V",
        "mqttv5",
        "-q",
        "1",
        "-u",
        "meter",
        "-P",
        "right",
        "-t",
        "/energy-meter/other/properties/report",
        "-m",
        "{\"properties\":{\"voltage\":1}}",
    ];
    let output = run("mosquitto_pub", &other);
    assert!(!gateway.get("/api/v1/things").contains("\"other\""), "{output:?}");
    std::fs::remove_file(secret).unwrap();
    ends_well(gateway);
}

/// A peer that is there but says nothing any more: frozen, or its cable pulled.
#[test]
fn half_open_peers_are_found() {
    let gateway = Gateway::start(Options::default().with("[stream]\nsilence_max_seconds = 2\ngrace_seconds = 1\n"));
    let mqtt = gateway.options.mqtt.to_string();
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-p", &mqtt, "-i", "frozen", "-k", "5", "-t", "v1/devices/me/rpc/request/+"]).stdout(Stdio::null());
    let sub = Child::start(&mut sub);
    let body = ["-p", &mqtt, "-i", "frozen-first", "-q", "1", "-t", "/generic/frozen/properties/report"];
    let output = run("mosquitto_pub", &[&body[..], &["-m", "{\"properties\":{\"a\":1}}"]].concat());
    assert!(output.status.success());
    let connections = || gateway.metric("sluicegate_connections{adapter=\"mqtt\"}") as u64;
    wait_for("the subscriber", PATIENCE, || (connections() == 1).then_some(()));
    let push = push(gateway.options.media, "live/frozen");
    let live = || {
        let streams: Value = serde_json::from_str(&gateway.get("/api/v1/streams")).unwrap_or_default();
        streams.as_array().is_some_and(|all| all.iter().any(|s| s["name"] == "live/frozen" && s["live"] == true))
    };
    wait_for("the stream", PATIENCE, || live().then_some(()));
    sub.signal(Signal::STOP);
    push.signal(Signal::STOP);
    wait_for("the stream's end", Duration::from_secs(10), || (!live()).then_some(()));
    wait_for("the subscriber's end", Duration::from_secs(15), || (connections() == 0).then_some(()));
    ends_well(gateway);
}

#[test]
fn streams_want_their_key() {
    let port = free_port();
    let secret = std::env::temp_dir().join(format!("sluicegate-key-{port}"));
    std::fs::write(&secret, "open-sesame\n").unwrap();
    let door = format!(
        "[[adapter]]\nname = \"guarded\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = [\"rtmp\", \"http-flv\"]\n\
         [[credential]]\nname = \"gate\"\nsecret_file = \"{}\"\npush = [\"live/gate\"]\nwatch = [\"live/*\"]\n",
        secret.display()
    );
    let gateway = Gateway::start(Options::default().with(&door).with("[stream]\nwait_max_seconds = 1"));
    for wrong in ["live/gate", "live/gate?key=wrong", "live/other?key=open-sesame"] {
        let mut push = push(port, wrong);
        assert!(!push.wait(PATIENCE).success(), "{wrong} was let in");
    }
    let status = |path: &str| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 12];
        socket.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head[9..]).into_owned()
    };
    assert_eq!(status("/live/gate.flv"), "401");
    assert_eq!(status("/live/gate.flv?key=wrong"), "401");
    assert_eq!(status("/live/gate.flv?key=open-sesame"), "404");
    let mut right = push(port, "live/gate?key=open-sesame");
    wait_for("the stream", PATIENCE, || (status("/live/gate.flv?key=open-sesame") == "200").then_some(()));
    assert!(right.is_running());
    std::fs::remove_file(secret).unwrap();
    drop(right);
    ends_well(gateway);
}
