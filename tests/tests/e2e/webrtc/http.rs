//! WHEP and WHIP as HTTP has them: methods, fields, keys, sessions by their own names, floods.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use sluicegate_tests::{Gateway, PATIENCE, wait_for};
use tempfile::TempDir;

use super::{options, sessions, with_stream};

/// What Chromium offers for one picture to watch, shortened.
pub(crate) const OFFER: &str = "v=0\r\no=- 46117 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 96 103\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:Zx4q\r\n\
    a=ice-pwd:o1u6RmBNJUPa4YkS4xjuWZLc\r\na=ice-options:trickle\r\na=fingerprint:sha-256 \
    F3:CF:16:0F:E3:11:30:29:22:2E:86:FB:16:73:23:8D:97:C2:EA:C8:AB:8F:D2:37:19:20:76:9D:C3:13:A6:34\r\n\
    a=setup:actpass\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:103 H264/90000\r\n\
    a=rtcp-fb:103 nack\r\na=rtcp-fb:103 nack pli\r\n\
    a=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n";

/// A request to the console's port: status, head and body.
pub(crate) fn ask(gateway: &Gateway, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, String, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.options.admin)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = headers.iter().fold(String::new(), |all, line| all + line + "\r\n");
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: elsewhere.example\r\nOrigin: http://page.example\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    // A body that is refused unread ends the connection.
    drop(socket.write_all(body));
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0), head.to_lowercase(), body.to_owned())
}

const SDP: &str = "Content-Type: application/sdp";

#[test]
fn the_http_rules_of_whep_and_whip() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let (status, head, _) = ask(&gateway, "OPTIONS", "/whep/live/gate-1", &[], b"");
    assert!(status == 204 && head.contains("access-control-allow-methods: post, patch, delete, options"), "{head}");
    assert!(head.contains("access-control-allow-origin: *") && head.contains("accept-post: application/sdp"), "{head}");
    let (status, head, answer) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], OFFER.as_bytes());
    assert!(status == 201 && head.contains("content-type: application/sdp"), "{head}\n{answer}");
    assert!(answer.contains("a=ice-lite") && answer.contains("a=sendonly") && answer.contains("H264"), "{answer}");
    let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap().to_owned();
    // The head is in lower case here: the session's own name is not, and is asked for below.
    assert!(field("location:").starts_with("/whep/live/gate-1/"));
    assert!(field("etag:").starts_with('"') && head.contains("access-control-expose-headers: location, etag"));

    type Case = (&'static str, &'static str, &'static [&'static str], &'static [u8], u16);
    let cases: [Case; 11] = [
        ("GET", "/whep/live/gate-1", &[], b"", 405),
        ("PUT", "/whip/live/gate-1", &[SDP], OFFER.as_bytes(), 405),
        ("POST", "/whep/live/gate-1", &["Content-Type: application/json"], OFFER.as_bytes(), 415),
        ("POST", "/whep/live/nobody", &[SDP], OFFER.as_bytes(), 404),
        ("POST", "/whep/live", &[SDP], OFFER.as_bytes(), 404),
        ("POST", "/whep/live/../x", &[SDP], OFFER.as_bytes(), 404),
        ("DELETE", "/whep/live/gate-1/nothing", &[], b"", 404),
        ("PATCH", "/whep/live/gate-1/nothing", &["Content-Type: application/trickle-ice-sdpfrag"], b"a=x", 404),
        ("PATCH", "/whep/live/gate-1/nothing", &[SDP], b"a=x", 415),
        ("POST", "/whep/live/gate-1", &[SDP], b"v=0\r\n", 406),
        ("POST", "/whep/live/gate-1", &[SDP], &[0xff, 0xfe], 400),
    ];
    for (method, path, headers, body, expected) in cases {
        let (status, _, answer) = ask(&gateway, method, path, headers, body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    let only_vp8 = OFFER.replace("H264", "VP9");
    let (status, _, why) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], only_vp8.as_bytes());
    assert!(status == 406 && why.contains("is H264; the offer has VP8, VP9"), "{why}");
    gateway.stop();
}

#[test]
fn a_session_is_patched_and_deleted_by_its_own_name_alone() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.options.admin)).unwrap();
    write!(
        socket,
        "POST /whep/live/gate-1 HTTP/1.1\r\nHost: h\r\n{SDP}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{OFFER}",
        OFFER.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let field = |name: &str| answer.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap().to_owned();
    let (session, etag) = (field("location: "), format!("If-Match: {}", field("etag: ")));
    let kind = "Content-Type: application/trickle-ice-sdpfrag";
    let (same, other) = (b"a=ice-ufrag:Zx4q\r\na=end-of-candidates\r\n", b"a=ice-ufrag:else\r\n");
    let patch = |headers: &[&str], body: &[u8]| ask(&gateway, "PATCH", &session, headers, body).0;
    assert_eq!(patch(&[kind, &etag], same), 204);
    assert_eq!(patch(&[kind], same), 428);
    assert_eq!(patch(&[kind, "If-Match: \"other\""], same), 412);
    assert_eq!(patch(&[kind, &etag], other), 422);
    let elsewhere = session.replace("gate-1", "gate-2");
    assert_eq!(ask(&gateway, "DELETE", &elsewhere, &[], b"").0, 404);
    assert_eq!(ask(&gateway, "DELETE", &session.replace("whep", "whip"), &[], b"").0, 404);
    assert_eq!(ask(&gateway, "DELETE", &session, &[], b"").0, 200);
    wait_for("its end", PATIENCE, || (ask(&gateway, "DELETE", &session, &[], b"").0 == 404).then_some(()));
    gateway.stop();
}

#[test]
fn streams_want_their_key_over_webrtc_too() {
    let folder = TempDir::new().unwrap();
    for (name, key) in [("play", "watch-me"), ("push", "push-me")] {
        std::fs::write(folder.path().join(name), key).unwrap();
    }
    let place = folder.path().display();
    let keys = format!(
        "[[credential]]\nname = \"play\"\nsecret_file = \"{place}/play\"\nwatch = [\"live/gate-1\"]\n\
         [[credential]]\nname = \"push\"\nsecret_file = \"{place}/push\"\npush = [\"live/browser\"]"
    );
    let mut options = options(&keys);
    options.more = options.more.replace("allow_anonymous = true", "");
    let (gateway, _publisher) = with_stream(options, folder.path(), "");
    let publish = OFFER.replace("recvonly", "sendonly");
    let cases = [
        ("/whep/live/gate-1", "", OFFER, 401),
        ("/whep/live/gate-1?key=wrong", "", OFFER, 401),
        ("/whep/live/gate-1", "Authorization: Bearer wrong", OFFER, 401),
        ("/whep/live/gate-1", "Authorization: Bearer push-me", OFFER, 403),
        ("/whep/live/other?key=watch-me", "", OFFER, 403),
        ("/whep/live/gate-1?key=watch-me", "", OFFER, 201),
        ("/whep/live/gate-1", "Authorization: Bearer watch-me", OFFER, 201),
        ("/whip/live/browser", "", &publish, 401),
        ("/whip/live/gate-1?key=push-me", "", &publish, 403),
        ("/whip/live/browser", "Authorization: Bearer push-me", &publish, 201),
    ];
    for (path, authorization, offer, expected) in cases {
        let headers: Vec<&str> = [SDP, authorization].into_iter().filter(|line| !line.is_empty()).collect();
        let (status, head, answer) = ask(&gateway, "POST", path, &headers, offer.as_bytes());
        assert_eq!(status, expected, "{path} {authorization}: {answer}");
        assert!(status != 401 || head.contains("www-authenticate: bearer"), "{head}");
    }
    let refused =
        |reason: &str| gateway.metric(&format!("sluicegate_refused_total{{adapter=\"webrtc\",reason=\"{reason}\"}}"));
    assert!(refused("unauthorized") > 3.5 && refused("forbidden") > 2.5);
    // Nobody but those let in has a session, and not a byte of media left.
    assert!(
        sessions(&gateway, "watch") < 2.5 && gateway.metric("sluicegate_webrtc_bytes_total{direction=\"out\"}") < 1.0
    );
    gateway.stop();
}

#[test]
fn floods_of_offers_and_noise_have_limits() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let (status, _, _) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], &vec![b'a'; 1_000_000]);
    assert!(status == 413 || status == 0, "{status}");
    let before = gateway.rss_kib();
    let mut taken = 0;
    for _ in 0..100 {
        let (status, head, _) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], OFFER.as_bytes());
        assert!(status == 201 || (status == 503 && head.contains("retry-after: 5")), "{head}");
        taken += usize::from(status == 201);
    }
    assert!((32..100).contains(&taken), "{taken} offers taken");
    assert!(gateway.metric("sluicegate_refused_total{adapter=\"webrtc\",reason=\"limit\"}") > 0.5);
    // Halves of an offer, and an offer with one byte changed, at many places: never more than an error.
    for at in (0..OFFER.len()).step_by(29) {
        let mut near = OFFER.as_bytes().to_vec();
        near[at] = b'\xb5';
        for offer in [&OFFER.as_bytes()[..at], &near] {
            let (status, _, answer) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], offer);
            assert!([201, 400, 406, 503].contains(&status), "{at}: {status} {answer}");
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = gateway.options.more.split("udp://127.0.0.1:").nth(1).unwrap().split('"').next().unwrap();
    let mut noise = 88_172_645_463_325_252_u64;
    for n in 0..20_000_usize {
        let packet: Vec<u8> = (0..n % 1_500)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        drop(socket.send_to(&packet, format!("127.0.0.1:{port}")));
    }
    wait_for("the noise to be counted", PATIENCE, || {
        (gateway.metric("sluicegate_webrtc_datagrams_dropped_total{reason=\"unknown\"}") > 1_000.0).then_some(())
    });
    wait_for("offers that never connect to be given up", PATIENCE, || {
        (sessions(&gateway, "watch") < 0.5).then_some(())
    });
    let grown = gateway.rss_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more than before");
    gateway.stop();
}
