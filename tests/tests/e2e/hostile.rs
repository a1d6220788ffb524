//! Bad input on every port: nothing panics, memory stays flat, a neighbour is undisturbed.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use sluicegate_tests::{Counter, Gateway, Language, Options, free_port, run, shell, wait_for};

/// A neighbour that reports all the while, and must get its acknowledgements.
struct Neighbour {
    counter: Counter,
}

impl Neighbour {
    fn start(gateway: &Gateway) -> Self {
        let counter = Counter::start(Language::Mqtt, "neighbour", gateway.options.mqtt);
        wait_for("the neighbour", Duration::from_secs(10), || (counter.acknowledged() > 50).then_some(()));
        Self { counter }
    }

    /// Still served.
    fn is_well(&self) {
        let now = self.counter.acknowledged();
        wait_for("the neighbour's next reports", Duration::from_secs(5), || {
            (self.counter.acknowledged() > now + 50).then_some(())
        });
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
