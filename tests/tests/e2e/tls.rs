//! Everything that streams, over TLS: pushed and played with ffmpeg, curl, mosquitto and Chromium.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sluicegate_tests::camera::{self, AAC, H264_REORDERED};
use sluicegate_tests::{
    Authority, Browser, Child, Flv, Gateway, Options, PATIENCE, binary, free_port, mpegts_js, run, run_ok, wait_for,
};
use tempfile::TempDir;

fn clip(folder: &Path) -> String {
    camera::clip(folder, "ffmpeg", 12, &format!("{H264_REORDERED} {AAC}")).display().to_string()
}

fn push(more: &[&str], clip: &str, url: &str) -> Child {
    camera::push("ffmpeg", Path::new(clip), url, more)
}

fn door(port: u16, certificate: &str) -> String {
    format!(
        "[[adapter]]\nname = \"secure\"\nlisten = \"tls://127.0.0.1:{port}\"\nprotocol = [\"rtmp\", \"http-flv\"]\n\
         allow_anonymous = true\n{certificate}"
    )
}

fn wait_live(gateway: &Gateway) {
    gateway.wait_stream("live/x", |s| s["width"].as_u64() > Some(0));
}

/// Size and digest of the packets of a file or URL: ffmpeg counts times from where it joined.
fn packets(arguments: &[&str]) -> Vec<String> {
    let tail = ["-map", "0:v", "-c", "copy", "-f", "framemd5", "-"];
    let text = run_ok("ffmpeg", &[&["-v", "error"], arguments, &tail[..]].concat());
    let line = |l: &str| l.split(',').map(str::trim).skip(4).collect::<Vec<_>>().join(" ");
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

#[test]
fn rtmps_in_and_rtmps_and_https_out_give_what_was_pushed() {
    let folder = TempDir::new().unwrap();
    let (clip, authority, port) = (clip(folder.path()), Authority::new(), free_port());
    let door = door(port, &authority.certify("one").toml());
    let gateway = Gateway::start(Options::default().with(&door).with("[stream]\ngrace_seconds = 1"));
    let mut publisher = push(&[], &clip, &format!("rtmps://localhost:{port}/live/x"));
    wait_live(&gateway);
    let ca = authority.file().display().to_string();
    let file = folder.path().join("played.flv").display().to_string();
    let url = format!("https://localhost:{port}/live/x.flv");
    let mut curl = Command::new("curl");
    let mut curl = Child::start(curl.args(["-sS", "--fail", "--cacert", &ca, "-o", &file, &url]));
    let rtmps = format!("rtmps://localhost:{port}/live/x");
    let played = packets(&["-tls_verify", "1", "-ca_file", &ca, "-i", &rtmps]);
    assert!(curl.wait(PATIENCE).success(), "curl did not get a whole body");
    assert!(publisher.wait(PATIENCE).success());
    let (pushed, fetched) = (packets(&["-i", &clip]), Flv::read(Path::new(&file)));
    assert!(played.len() > 150, "only {} packets over RTMPS", played.len());
    let at = pushed.iter().position(|p| *p == played[0]).expect("the first packet is of the clip");
    assert_eq!(played[..], pushed[at..at + played.len()], "over RTMPS");
    let (whole, frames) = (Flv::read(Path::new(&clip)).frames(), fetched.frames());
    assert!(frames.len() > 300, "only {} units over HTTPS", frames.len());
    let at = whole.iter().position(|unit| *unit == frames[0]).expect("the first unit is of the clip");
    assert_eq!(frames[..], whole[at..at + frames.len()], "over HTTPS");
    // Another authority's word is not enough.
    let other = Authority::new().file().display().to_string();
    let refused = run("curl", &["-sS", "--cacert", &other, &url]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("certificate"));
    gateway.stop();
}

#[test]
fn a_browser_plays_over_a_secure_web_socket() {
    let folder = TempDir::new().unwrap();
    let (clip, authority, port) = (clip(folder.path()), Authority::new(), free_port());
    mpegts_js(folder.path());
    let gateway = Gateway::start(Options::default().with(&door(port, &authority.certify("one").toml())));
    let publisher = push(&["-stream_loop", "-1"], &clip, &format!("rtmps://localhost:{port}/live/x"));
    wait_live(&gateway);
    let page = format!(
        "<!doctype html><title>x</title><video muted></video><script src=\"mpegts.js\"></script><script>\
         const player = mpegts.createPlayer({{type: 'flv', isLive: true, url: 'wss://localhost:{port}/live/x.flv'}});\
         player.attachMediaElement(document.querySelector('video')); player.load(); player.play();</script>"
    );
    let file = folder.path().join("page.html");
    std::fs::write(&file, page).unwrap();
    let browser = Browser::start_with(&["--ignore-certificate-errors"]);
    browser.open(&format!("file://{}", file.display()));
    let playing = "const v = document.querySelector('video'); \
                   return v && v.currentTime > 1 && v.getVideoPlaybackQuality().totalVideoFrames > 20";
    browser.until("a playing video", PATIENCE, playing);
    drop((browser, publisher));
    gateway.stop();
}

#[test]
fn mqtt_over_tls_arrives() {
    let (authority, port) = (Authority::new(), free_port());
    let door = format!(
        "[[adapter]]\nname = \"mqtts\"\nlisten = \"tls://127.0.0.1:{port}\"\nprotocol = \"mqtt\"\n\
         allow_anonymous = true\nauto_register = true\nproduct = \"generic\"\n{}",
        authority.certify("one").toml()
    );
    let gateway = Gateway::start(Options::default().with(&door));
    let (ca, port) = (authority.file().display().to_string(), port.to_string());
    let topic = "/generic/vault/properties/report";
    let secure = ["-h", "localhost", "-p", &port, "--cafile", &ca, "-q", "1", "-t", topic, "-m"];
    run_ok("mosquitto_pub", &[&secure[..], &["{\"properties\":{\"lock\":1}}"]].concat());
    assert!(gateway.get("/api/v1/things").contains("\"vault\""));
    gateway.stop();
}

#[test]
fn certificates_are_read_again_and_a_broken_one_is_not_taken() {
    let (first, second, port) = (Authority::new(), Authority::new(), free_port());
    let certificate = first.certify("one");
    let gateway = Gateway::start(Options::default().with(&door(port, &certificate.toml())));
    let url = format!("https://localhost:{port}/");
    let believed_by = |authority: &Authority| {
        let ca = authority.file().display().to_string();
        run("curl", &["-sS", "-o", "/dev/null", "--cacert", &ca, &url]).status.success()
    };
    assert!(believed_by(&first) && !believed_by(&second));
    // The files change, and the next handshakes see it.
    second.certify("two").replace(&certificate);
    wait_for("the new certificate", PATIENCE, || believed_by(&second).then_some(()));
    // At SIGHUP at once. A broken file is said, and what was in use stays.
    std::fs::write(&certificate.cert, "no certificate\n").unwrap();
    gateway.child.signal(rustix::process::Signal::HUP);
    let failed = || gateway.metric("sluicegate_tls_reloads_total{result=\"failed\"}");
    wait_for("the failure", PATIENCE, || (failed() >= 1.0).then_some(()));
    assert!(believed_by(&second));
    first.certify("three").replace(&certificate);
    gateway.child.signal(rustix::process::Signal::HUP);
    wait_for("the first authority again", PATIENCE, || believed_by(&first).then_some(()));
    gateway.stop();
}

#[test]
fn half_a_handshake_is_closed_in_time() {
    let (authority, port) = (Authority::new(), free_port());
    let gateway = Gateway::start(Options::default().with(&door(port, &authority.certify("one").toml())));
    let mut peers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let began = Instant::now();
    for (at, peer) in peers.iter_mut().enumerate() {
        // Nothing at all, a record's head, and the begin of a hello.
        peer.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..[0, 5, 11][at % 3]]).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for peer in &mut peers {
        let mut rest = Vec::new();
        assert!(peer.read_to_end(&mut rest).is_ok(), "not closed");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let refused = "sluicegate_connections_refused_total{adapter=\"secure\",reason=\"tls\"}";
    wait_for("all of them counted", PATIENCE, || (gateway.metric(refused) >= 20.0).then_some(()));
    gateway.stop();
}

#[test]
fn wrong_certificate_files_are_named() {
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    let (one, two) = (authority.certify("one"), authority.certify("two"));
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let (missing, empty) = (folder.path().join("missing.pem").display().to_string(), empty.display().to_string());
    let (cert, key) = (one.cert.display().to_string(), one.key.display().to_string());
    let other_key = two.key.display().to_string();
    for (cert, key, line, file, why) in [
        (&missing, &key, "adapter[0].cert_file", &missing, "no such file"),
        (&cert, &missing, "adapter[0].key_file", &missing, "no such file"),
        (&empty, &key, "adapter[0].cert_file", &empty, "no certificate"),
        (&cert, &empty, "adapter[0].key_file", &empty, "no key"),
        (&cert, &other_key, "adapter[0].cert_file", &other_key, "do not belong together"),
    ] {
        let config = folder.path().join("box.toml");
        let files = format!("cert_file = \"{cert}\"\nkey_file = \"{key}\"\n");
        std::fs::write(&config, door(1936, &files)).unwrap();
        let config = config.display().to_string();
        let output = run(&binary().display().to_string(), &["check", "--config", &config]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(line) && said.contains(file.as_str()) && said.contains(why), "{why}: {said}");
    }
}
