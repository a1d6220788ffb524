//! Who may push and watch: hooks, signed addresses, the lists of those who are there and how they are closed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate_tests::{
    Authority, Browser, Child, Gateway, HookReply, HookServer, Options, PATIENCE, binary, free_port, root, run, shell,
    wait_for,
};
use tempfile::TempDir;

use crate::rtsp::{Client, session};
use crate::webrtc;

fn ffmpeg(port: u16, name: &str) -> Child {
    ffmpeg_to(&format!("rtmp://127.0.0.1:{port}/{name}"))
}

fn ffmpeg_to(url: &str) -> Child {
    let clip = root().join("gateway/src/demo/clips");
    let clip =
        std::fs::read_dir(clip).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "flv"));
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "quiet", "-nostdin", "-re", "-stream_loop", "-1", "-i"]);
    command.arg(clip.expect("a clip")).args(["-c", "copy", "-f", "flv", url]);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

fn ffmpeg_over_udp(port: u16, name: &str) -> Child {
    let mut command = Command::new("ffmpeg");
    command.args([
        "-hide_banner",
        "-loglevel",
        "quiet",
        "-nostdin",
        "-re",
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=320x180:r=25",
    ]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-f", "rtsp", "-rtsp_transport", "udp"]);
    command.arg(format!("rtsp://127.0.0.1:{port}/{name}"));
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

fn streams(gateway: &Gateway) -> Vec<Value> {
    gateway.streams()
}

fn wait_live(gateway: &Gateway, name: &str) {
    gateway.wait_stream(name, |s| s["width"].as_u64() > Some(0));
}

/// A viewer over HTTP: what it gets to read.
struct Viewer(TcpStream);

impl Viewer {
    fn ask(port: u16, path: &str) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        Self(socket)
    }

    /// The status; nothing behind the head is read.
    fn status(&mut self) -> String {
        let mut head = [0; 12];
        self.0.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head[9..]).into_owned()
    }

    /// Everything until the gateway closes.
    fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Reads on for so long; the bytes that came.
    fn take(&mut self, time: Duration) -> usize {
        let (until, mut bytes) = (Instant::now() + time, 0);
        let mut buffer = [0; 16_384];
        while Instant::now() < until {
            bytes += self.0.read(&mut buffer).unwrap();
        }
        bytes
    }
}

const ASKED: [&str; 4] = ["on_publish", "on_publish_done", "on_play", "on_play_done"];

#[test]
fn hooks_are_asked_and_told_in_lkms_words() {
    let hooks = HookServer::start();
    let gateway = Gateway::start(Options::default().with(&hooks.toml(&ASKED)));
    let media = gateway.options.media;
    let push = ffmpeg(media, "live/x?token=a%20b");
    wait_live(&gateway, "live/x");
    let asked = hooks.until("on_publish", "live/x");
    assert_eq!(asked.target, "/on_publish?token=a%20b");
    assert_eq!(asked.body["protocol"], "rtmp");
    assert!(asked.body["remote_addr"].as_str().unwrap().starts_with("127.0.0.1:"), "{}", asked.body);
    let mut viewer = Viewer::ask(media, "/live/x.flv?who=7");
    assert_eq!(viewer.status(), "200");
    let asked = hooks.until("on_play", "live/x");
    assert_eq!((asked.target.as_str(), &asked.body["protocol"]), ("/on_play?who=7", &json!("flv")));
    assert_eq!(hooks.asked("on_play_done").len(), 0);
    let own = viewer.0.local_addr().unwrap().to_string();
    drop(viewer);
    let told = hooks.until("on_play_done", "live/x");
    assert_eq!((&told.body["sink"], &told.body["remote_addr"]), (&json!(own), &json!(own)));
    drop(push);
    assert_eq!(hooks.until("on_publish_done", "live/x").body["protocol"], "rtmp");
    assert_eq!((hooks.asked("on_publish").len(), hooks.asked("on_publish_done").len()), (1, 1));
    assert!(gateway.metric("sluicegate_hooks_total{event=\"on_play_done\",result=\"allowed\"}") >= 1.0);
    gateway.stop();
}

/// Complaint: a denied publisher goes on, a denied viewer gets the first bytes.
#[test]
fn what_a_hook_denies_moves_no_byte_of_media() {
    let hooks = HookServer::start();
    hooks.reply("on_publish", "live/no", HookReply::Status(403));
    hooks.reply("on_play", "live/x", HookReply::Status(401));
    let gateway = Gateway::start(Options::default().with(&hooks.toml(&ASKED)));
    let media = gateway.options.media;
    let mut denied = ffmpeg(media, "live/no");
    assert!(!denied.wait(PATIENCE).success());
    assert!(streams(&gateway).is_empty());
    let push = ffmpeg(media, "live/x");
    wait_live(&gateway, "live/x");
    let answer = String::from_utf8_lossy(&Viewer::ask(media, "/live/x.flv").rest()).into_owned();
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("FLV\u{1}"), "{answer}");
    let played = run("ffmpeg", &["-v", "error", "-i", &format!("rtmp://127.0.0.1:{media}/live/x"), "-f", "null", "-"]);
    assert!(!played.status.success());
    assert!((streams(&gateway)[0]["bytes_out"].as_u64(), hooks.asked("on_play").len()) == (Some(0), 2));
    drop(push);
    // Who was never in does not leave.
    hooks.until("on_publish_done", "live/x");
    assert_eq!((hooks.asked("on_play_done").len(), hooks.asked("on_publish_done").len()), (0, 1));
    gateway.stop();
}

/// The same at the doors of RTSP, WebRTC and HLS: asked in LKM's words, told where the gateway sees them go, and a denial moves
/// no byte of media.
#[test]
fn hooks_stand_at_the_doors_of_rtsp_webrtc_and_hls() {
    let hooks = HookServer::start();
    hooks.reply("on_play", "live/no", HookReply::Status(403));
    let (rtsp, webrtc) = (free_port(), free_port());
    let gateway = Gateway::start(Options::default().with(&hooks.toml(&ASKED)).with(&format!(
        "[[adapter]]\nname = \"rtsp\"\nlisten = \"tcp://127.0.0.1:{rtsp}\"\nprotocol = \"rtsp\"\nallow_anonymous = true\n\
         [webrtc]\nlisten = \"udp://127.0.0.1:{webrtc}\"\nallow_anonymous = true"
    )));
    let media = gateway.options.media;
    let _pushes = ["live/x", "live/no"].map(|name| ffmpeg(media, name));
    for name in ["live/x", "live/no"] {
        wait_live(&gateway, name);
    }
    let whep = |name: &str| {
        webrtc::ask(
            &gateway,
            "POST",
            &format!("/whep/{name}?who=7"),
            &["Content-Type: application/sdp"],
            webrtc::OFFER.as_bytes(),
        )
    };
    // Denied at each.
    assert!(Client::connect(rtsp).ask("DESCRIBE", "/live/no?who=7", "").starts_with("RTSP/1.0 403 "));
    assert_eq!(Viewer::ask(media, "/live/no/index.m3u8?who=7").status(), "403");
    assert_eq!(whep("live/no").0, 403);
    let asked = hooks.asked("on_play");
    let words: Vec<&Value> = asked.iter().map(|asked| &asked.body["protocol"]).collect();
    assert_eq!(words, [&json!("rtsp"), &json!("hls"), &json!("rtc")]);
    assert!(asked.iter().all(|asked| asked.target == "/on_play?who=7"), "{asked:?}");
    let denied = streams(&gateway).into_iter().find(|s| s["name"] == "live/no").unwrap();
    assert_eq!((&denied["bytes_out"], &denied["viewers"]), (&json!(0), &json!(0)));
    assert_eq!(hooks.asked("on_play_done").len(), 0);
    // Let in at each; RTSP and WebRTC are seen to go, players of HLS are not.
    let mut client = Client::connect(rtsp);
    let answer = client.ask("SETUP", "/live/x/trackID=0", "Transport: RTP/AVP/TCP;interleaved=0-1\r\n");
    assert!(client.ask("PLAY", "/live/x", &session(&answer)).starts_with("RTSP/1.0 200 "));
    drop(client);
    assert_eq!(hooks.until("on_play_done", "live/x").body["protocol"], "rtsp");
    assert_eq!(Viewer::ask(media, "/live/x/index.m3u8").status(), "200");
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.options.admin)).unwrap();
    let (kind, offer) = ("Content-Type: application/sdp", webrtc::OFFER);
    let head = format!(
        "POST /whep/live/x HTTP/1.1\r\nHost: h\r\n{kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        offer.len()
    );
    socket.write_all((head + offer).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let location =
        answer.lines().find_map(|line| line.strip_prefix("location: ")).unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(webrtc::ask(&gateway, "DELETE", location, &[], b"").0, 200);
    let told = || hooks.asked("on_play_done").into_iter().any(|told| told.body["protocol"] == "rtc");
    wait_for("the end of the WebRTC viewer", PATIENCE, || told().then_some(()));
    assert_eq!((hooks.asked("on_play").len(), hooks.asked("on_play_done").len()), (6, 2));
    gateway.stop();
}

/// Complaint: a slow hook about one idle stream holds up what is asked about the others.
#[test]
fn a_hook_that_hangs_about_an_idle_stream_holds_up_no_other() {
    let hooks = HookServer::start();
    hooks.reply("on_idle_timeout", "live/a", HookReply::Hang(Duration::from_secs(12)));
    let more = "timeout_ms = 12000\nidle_timeout_seconds = 1\n";
    let gateway = Gateway::start(Options::default().with(&hooks.toml(&["on_idle_timeout"])).with(more));
    let _first = ffmpeg(gateway.options.media, "live/a");
    hooks.until("on_idle_timeout", "live/a");
    let began = Instant::now();
    let _second = ffmpeg(gateway.options.media, "live/b");
    hooks.until("on_idle_timeout", "live/b");
    assert!(began.elapsed() < Duration::from_secs(10), "asked after {:?}", began.elapsed());
    gateway.stop();
}

/// Complaint: a slow hook stalls other streams, or lets in who was not decided on.
#[test]
fn a_hook_that_hangs_hurts_no_other_stream_and_lets_nobody_in() {
    let hooks = HookServer::start();
    let hang = HookReply::Hang(Duration::from_secs(10));
    for (event, stream) in [("on_play", "live/slow"), ("on_publish", "live/slow-too"), ("on_play_done", "live/x")] {
        hooks.reply(event, stream, hang);
    }
    let gateway = Gateway::start(Options::default().with(&hooks.toml(&ASKED)).with("timeout_ms = 1500\nretries = 1"));
    let media = gateway.options.media;
    let pushes = [ffmpeg(media, "live/x"), ffmpeg(media, "live/slow")];
    wait_live(&gateway, "live/x");
    wait_live(&gateway, "live/slow");
    let mut watching = Viewer::ask(media, "/live/x.flv");
    assert_eq!(watching.status(), "200");
    // Eight viewers and a publisher that nobody decides on, and viewers that leave while their hook hangs.
    let undecided: Vec<Viewer> = (0..8).map(|_| Viewer::ask(media, "/live/slow.flv")).collect();
    let mut waiting = ffmpeg(media, "live/slow-too");
    for _ in 0..8 {
        assert_eq!(Viewer::ask(media, "/live/x.flv").status(), "200");
    }
    let began = Instant::now();
    let mut late = Viewer::ask(media, "/live/x.flv");
    assert_eq!(late.status(), "200");
    assert!(began.elapsed() < Duration::from_secs(1), "a neighbour waited {:?}", began.elapsed());
    assert!(watching.take(Duration::from_secs(2)) > 20_000, "the neighbour's stream stands still");
    for viewer in undecided {
        let answer = viewer.rest();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 503 ") && !text.contains("FLV\u{1}"), "{text}");
    }
    assert!(!waiting.wait(PATIENCE).success());
    assert!(!streams(&gateway).iter().any(|s| s["name"] == "live/slow-too"));
    assert!(gateway.metric("sluicegate_hooks_total{event=\"on_play\",result=\"unreachable\"}") >= 8.0);
    drop(pushes);
    gateway.stop();
}

#[test]
fn an_unreachable_hook_lets_in_only_who_may_without_it() {
    let nobody = free_port();
    let url = format!("[hooks]\non_play = \"http://127.0.0.1:{nobody}/on_play\"\n");
    for (setting, status) in [("", "503"), ("allow_when_unreachable = true\n", "200")] {
        let gateway = Gateway::start(Options::default().with(&format!("{url}{setting}")));
        let push = ffmpeg(gateway.options.media, "live/x");
        wait_live(&gateway, "live/x");
        assert_eq!(Viewer::ask(gateway.options.media, "/live/x.flv").status(), status, "{setting}");
        drop(push);
        gateway.stop();
    }
}

#[test]
fn a_hook_decides_on_streams_nobody_watches_and_publishers_that_fall_silent() {
    let hooks = HookServer::start();
    hooks.reply("on_idle_timeout", "live/idle", HookReply::Status(404));
    let events = hooks.toml(&["on_idle_timeout", "on_receive_timeout", "on_publish_done"]);
    let rtsp = free_port();
    let more = format!(
        "idle_timeout_seconds = 1\n[stream]\nsilence_max_seconds = 1\ngrace_seconds = 1\n[[adapter]]\nname = \"rtsp\"\n\
         listen = \"tcp://127.0.0.1:{rtsp}\"\nprotocol = \"rtsp\"\nallow_anonymous = true\n"
    );
    let gateway = Gateway::start(Options::default().with(&events).with(&more));
    let media = gateway.options.media;
    let mut idle = ffmpeg(media, "live/idle");
    let watched = ffmpeg(media, "live/kept");
    let packets = ffmpeg_over_udp(rtsp, "live/udp");
    // Asked about both; one is closed, the other is kept.
    hooks.until("on_idle_timeout", "live/kept");
    hooks.until("on_idle_timeout", "live/idle");
    assert!(!idle.wait(PATIENCE).success());
    // Silent: kept while the hook says 200, closed when it does not; whatever the wire.
    for (name, publisher) in [("live/kept", watched), ("live/udp", packets)] {
        wait_live(&gateway, name);
        publisher.signal(rustix::process::Signal::STOP);
        hooks.until("on_receive_timeout", name);
        assert!(hooks.asked("on_publish_done").iter().all(|told| told.body["stream"] != name));
        hooks.reply("on_receive_timeout", name, HookReply::Status(410));
        hooks.until("on_publish_done", name);
    }
    gateway.stop();
}

#[test]
fn signed_addresses_open_one_stream_until_they_expire() {
    let folder = TempDir::new().unwrap();
    let (port, key) = (free_port(), "a-signing-key-of-some-length");
    let file = folder.path().join("portal.sign");
    std::fs::write(&file, format!("{key}\n")).unwrap();
    let door = format!(
        "[stream]\nwait_max_seconds = 1\n[[adapter]]\nname = \"guarded\"\nlisten = \"tcp://127.0.0.1:{port}\"\n\
         protocol = [\"rtmp\", \"http-flv\"]\n[[credential]]\nname = \"portal\"\nsign_file = \"{}\"\n\
         push = [\"live/gate-1\"]\nwatch = [\"live/gate-1\"]\n",
        file.display()
    );
    let gateway = Gateway::start(Options::default().with(&door));
    let sign = |kind: &str, stream: &str, expires: &str| {
        let line = format!(
            "exp=$(({expires})); sig=$(printf '{kind}:{stream}:%s' \"$exp\" | openssl dgst -sha256 -hmac {key} -r | \
             cut -d' ' -f1); echo \"exp=$exp&sig=$sig\""
        );
        shell(&line).trim().to_owned()
    };
    let hour = "$(date +%s) + 3600";
    let push = ffmpeg(port, &format!("live/gate-1?{}", sign("publish", "live/gate-1", hour)));
    wait_live(&gateway, "live/gate-1");
    // The lines of the documentation, as they stand there.
    let text = std::fs::read_to_string(root().join("docs/access.md")).unwrap();
    let lines = text.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the lines in a shell");
    let url = shell(&format!("KEY={key}\n{lines}"));
    let path = url.trim().strip_prefix("http://HOST:1935").expect("an address").to_owned();
    assert_eq!(Viewer::ask(port, &path).status(), "200");
    for (query, status) in [
        (sign("play", "live/gate-1", "$(date +%s) - 1"), "403"),
        (sign("publish", "live/gate-1", hour), "401"),
        (sign("play", "live/gate-2", hour), "401"),
        (sign("play", "live/gate-1", hour).replace("exp=", "exp=1"), "401"),
        (format!("{}0", sign("play", "live/gate-1", hour)), "401"),
        (String::new(), "401"),
    ] {
        assert_eq!(Viewer::ask(port, &format!("/live/gate-1.flv?{query}")).status(), status, "{query}");
    }
    let mut wrong = ffmpeg(port, &format!("live/gate-1?{}", sign("play", "live/gate-1", hour)));
    assert!(!wrong.wait(PATIENCE).success());
    assert!(!gateway.log().contains(key) && !gateway.log().contains("sig="));
    drop(push);
    gateway.stop();
}

/// Complaint: names that climb out, hide, or have no end.
#[test]
fn names_that_climb_hide_or_have_no_end_are_refused() {
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let long = format!("live/{}", "x".repeat(201));
    for name in ["live/..", "../live/x", "live/a%00b", "live/a%2f..%2fb", "live/%2e%2e", "live//x", "live/a%5cb", &long]
    {
        let mut viewer = Viewer::ask(media, &format!("/{name}.flv"));
        let status = viewer.status();
        assert!(status == "404" || status == "400", "{name}: {status}");
    }
    for name in ["live/..", "live/a;b", "live/\u{1}", &long] {
        let mut push = ffmpeg(media, name);
        assert!(!push.wait(PATIENCE).success(), "{name}");
    }
    assert!(streams(&gateway).is_empty());
    for path in ["/api/v1/streams/..%2f..%2fetc", "/api/v1/streams/live%2f%00", "/..%2f..%2fetc%2fpasswd"] {
        let (status, body) = gateway.request("GET", path, "");
        assert!(status == 404 || status == 400, "{path}: {status} {body}");
    }
    gateway.stop();
}

/// Complaint: a management port open to all, a password that ships with the product.
#[test]
fn nothing_opens_to_the_network_without_a_secret_of_its_own() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("box.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = run(&binary().display().to_string(), &["check", "--config", &file.display().to_string()]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = check("[admin]\nlisten = \"0.0.0.0:8080\"\n");
    assert!(code == Some(2) && said.contains("box.toml:2: admin.listen") && said.contains("token_file"), "{said}");
    for listen in ["tcp://0.0.0.0:1935", "tcp://[::]:1935"] {
        let adapter =
            format!("[[adapter]]\nname = \"live\"\nlisten = \"{listen}\"\nprotocol = [\"rtmp\", \"http-flv\"]\n");
        let (code, said) = check(&adapter);
        assert!(code == Some(2) && said.contains("adapter[0].listen") && said.contains("[[credential]]"), "{said}");
        // Said in so many words, it may.
        assert_eq!(check(&format!("{adapter}allow_anonymous = true\n")).0, Some(0));
    }
    // Nothing said: on this box alone, and no credential.
    assert_eq!(check("").0, Some(0));
    let gateway = Gateway::start(Options::default());
    let admin = gateway.options.admin;
    let sockets = shell(&format!("ss -Hltn 'sport = :{admin}'"));
    assert!(sockets.contains(&format!("127.0.0.1:{admin}")) && sockets.lines().count() == 1, "{sockets}");
    gateway.stop();
}

#[test]
fn viewers_are_listed_and_closed_one_by_one_also_in_lkms_words() {
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut push = ffmpeg(media, "live/x");
    wait_live(&gateway, "live/x");
    let mut watching: Vec<Viewer> = (0..3).map(|_| Viewer::ask(media, "/live/x.flv")).collect();
    for viewer in &mut watching {
        assert_eq!(viewer.status(), "200");
    }
    let address = |viewer: &Viewer| viewer.0.local_addr().unwrap().to_string();
    let path = "/api/v1/streams/live%2Fx/viewers";
    let list = || serde_json::from_str::<Vec<Value>>(&gateway.get(path)).unwrap();
    let listed = wait_for("three viewers", PATIENCE, || Some(list()).filter(|all| all.len() == 3));
    let id = |viewer: &Viewer| {
        let own = address(viewer);
        listed.iter().find(|v| v["peer"] == own.as_str()).map(|v| v["id"].as_u64().unwrap()).expect("it is listed")
    };
    let (first, second, mut third) = (watching.remove(0), watching.remove(0), watching.remove(0));
    let (status, _) = gateway.request("DELETE", &format!("{path}/{}", id(&first)), "");
    assert_eq!(status, 204);
    // It gets the end of what it was sent, and only it.
    first.rest();
    assert_eq!(gateway.request("DELETE", &format!("{path}/{}", id(&second) + 1_000), "").0, 404);
    assert_eq!(gateway.request("DELETE", "/api/v1/streams/live%2Fnone", "").0, 404);
    let lkm = |path: &str, body: Value| -> Value {
        let (status, answer) = gateway.request("POST", path, &body.to_string());
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["code"], &answer["msg"]), (200, &json!(200), &json!("ok")), "{path}");
        answer["data"].clone()
    };
    let sources = lkm("/api/v1/source/list", json!({}));
    let source = &sources[0];
    assert_eq!(
        (&source["id"], &source["protocol"], &source["tracks"][0]),
        (&json!("live/x"), &json!("rtmp"), &json!("H264"))
    );
    let url = format!("http://127.0.0.1:{media}/live/x.flv");
    assert!(source["urls"].as_array().unwrap().contains(&json!(url)), "{source}");
    let sinks = lkm("/api/v1/sink/list", json!({"source": "live/x"}));
    let mut sinks: Vec<&str> = sinks.as_array().unwrap().iter().map(|sink| sink["id"].as_str().unwrap()).collect();
    let mut left = [address(&second), address(&third)];
    sinks.sort_unstable();
    left.sort();
    assert_eq!(sinks, left);
    lkm("/api/v1/sink/close", json!({"source": "live/x", "sink": address(&second)}));
    second.rest();
    assert!(third.take(Duration::from_secs(1)) > 1_000, "the one that was not closed gets nothing");
    let (status, answer) = gateway.request("POST", "/api/v1/sink/close", "no JSON");
    assert!(status == 200 && answer.contains("\"code\":400"), "{answer}");
    lkm("/api/v1/source/close", json!({"source": "live/x"}));
    third.rest();
    assert!(!push.wait(PATIENCE).success());
    assert!(streams(&gateway).is_empty());
    gateway.stop();
}

/// The console over https, with a token; its player gets in where a key is wanted, and its viewers can be closed.
#[test]
fn the_console_plays_what_wants_a_key_and_closes_viewers_over_https() {
    let (folder, authority, port) = (TempDir::new().unwrap(), Authority::new(), free_port());
    let certificate = authority.certify("one");
    let (key, token) = (folder.path().join("key"), folder.path().join("token"));
    std::fs::write(&key, "open-sesame\n").unwrap();
    std::fs::write(&token, "a-token-for-the-console\n").unwrap();
    let door = format!(
        "[[adapter]]\nname = \"guarded\"\nlisten = \"tls://127.0.0.1:{port}\"\nprotocol = [\"rtmp\", \"http-flv\"]\n{}\
         [[credential]]\nname = \"gate\"\nsecret_file = \"{}\"\npush = [\"live/gate\"]\n\
         [[record]]\nname = \"all\"\nstream = \"live/*\"\nsegment_seconds = 2\nfree_min_mib = 0\n",
        certificate.toml(),
        key.display()
    );
    let mut options = Options::default().with(&door);
    for (name, value) in [("CERT", &certificate.cert), ("KEY", &certificate.key), ("TOKEN", &token)] {
        options.environment.push((format!("SLUICEGATE_ADMIN_{name}_FILE"), value.display().to_string()));
    }
    let gateway = Gateway::start(options);
    let page = format!("https://localhost:{}", gateway.options.admin);
    let ca = authority.file().display().to_string();
    let get = |path: &str, more: &[&str]| {
        let url = format!("{page}{path}");
        run("curl", &[&["-sS", "--cacert", &ca, "-o", "-", "-w", " %{http_code}", &url], more].concat())
    };
    let said = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said(get("/api/v1/streams", &[])).ends_with(" 401"));
    let bearer = "Authorization: Bearer a-token-for-the-console";
    // Plain HTTP has no answer on this port.
    assert!(!run("curl", &["-sS", &format!("http://localhost:{}/", gateway.options.admin)]).status.success());
    let push = ffmpeg_to(&format!("rtmps://localhost:{port}/live/gate?key=open-sesame"));
    wait_for("the stream", PATIENCE, || said(get("/api/v1/streams", &["-H", bearer])).contains("H264").then_some(()));
    let browser = Browser::start_with(&["--ignore-certificate-errors"]);
    browser.open(&page);
    browser.until("the question for the token", PATIENCE, "return document.getElementById('ask').open");
    browser.run(
        "document.getElementById('token').value = 'a-token-for-the-console'; \
         document.querySelector('#ask button').click()",
    );
    let playing = "const v = document.querySelector('#cameras video'); \
                   return v && v.currentTime > 0.5 && v.getVideoPlaybackQuality().totalVideoFrames > 10";
    browser.until("a playing video", PATIENCE * 2, playing);
    let open = "const all = document.querySelector('details.audience'); if (all) all.open = true; return Boolean(all)";
    browser.until("the list of viewers", PATIENCE, open);
    // Looked at and pressed at once: the page draws its rows anew.
    let send_away = "const row = document.querySelector('tr[data-viewer]'); row?.querySelector('button')?.click(); \
                     return row && row.dataset.viewer";
    let first = browser.until("its viewer", PATIENCE, send_away);
    // The player comes again by itself, as another viewer.
    let other =
        format!("const row = document.querySelector('tr[data-viewer]'); return row && row.dataset.viewer !== {first}");
    browser.until("another viewer", PATIENCE, &other);
    // A recording: the video element fetches it in ranges by itself, by an address that is signed for it.
    let play = "const last = document.querySelector('[aria-label^=\"Download recording\"]'); \
                last?.previousSibling.click(); return Boolean(last)";
    browser.until("a complete recording", PATIENCE, play);
    let playing = "const v = document.getElementById('recording-player'); \
                   return v.currentTime > 0.3 && v.videoWidth > 0 && v.currentSrc";
    let source = browser.until("a playing recording", PATIENCE, playing);
    let signed = source.as_str().unwrap().strip_prefix(&page).expect("an address of the gateway's").to_owned();
    let (path, _) = signed.split_once("?exp=").expect("a signed address");
    assert!(said(get(&signed, &["-r", "0-99"])).ends_with(" 206"), "{signed}");
    let remove = ["-X", "DELETE", "-H", "Content-Type: application/json"];
    assert!(said(get(path, &[])).ends_with(" 401") && said(get(&signed, &remove)).ends_with(" 401"));
    let other = signed.replacen(path, "/api/v1/recordings/1000000", 1);
    assert!(said(get(&other, &[])).ends_with(" 401") && said(get(&format!("{signed}0"), &[])).ends_with(" 401"));
    drop((browser, push));
    gateway.stop();
}
