//! Copies of streams to other servers: when they run, what they may take, and what becomes of them when the server is
//! slow, gone or of another opinion.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluicegate_tests::camera;
use sluicegate_tests::{Child, Gateway, Mosquitto, Options, PATIENCE, Receiver, free_port, run_ok, shell, wait_for};
use tempfile::TempDir;

use crate::streams::{clip, ffmpeg, is_piece_of, packets, wait_live};

/// Size and checksum of each packet: nginx writes timestamps of its own from zero, so the contents in order are what
/// counts here.
fn contents(packets: &[String]) -> Vec<String> {
    packets.iter().map(|p| p.split(' ').filter(|f| !f.is_empty()).skip(3).collect::<Vec<_>>().join(" ")).collect()
}

/// A clip with a key frame every 4 s.
pub(crate) fn long_gops(folder: &TempDir) -> String {
    let file = folder.path().join("gops.flv").display().to_string();
    shell(&format!(
        "ffmpeg -hide_banner -loglevel error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=44100 -t 60 \
         -c:v libx264 -preset ultrafast -g 100 -keyint_min 100 -sc_threshold 0 -pix_fmt yuv420p -c:a aac -f flv {file}"
    ));
    file
}

fn push(gateway: &Gateway, clip: &str, stream: &str) -> Child {
    let url = format!("rtmp://127.0.0.1:{}/{stream}", gateway.options.media);
    let child = ffmpeg(&["-re", "-i", clip, "-c", "copy", "-f", "flv", &url]);
    wait_live(gateway, stream);
    child
}

/// The one relay of the one stream.
fn relay(gateway: &Gateway) -> Option<Value> {
    let streams: Value = serde_json::from_str(&gateway.get("/api/v1/streams")).ok()?;
    streams[0]["relays"].get(0).cloned()
}

fn wait_relay(gateway: &Gateway, state: &str) -> Value {
    let begun = std::time::Instant::now();
    wait_for(&format!("a relay that is {state}"), PATIENCE * 2, || {
        let relay = relay(gateway);
        assert!(begun.elapsed() < PATIENCE, "not {state} but {relay:?}\n{}", gateway.log());
        relay.filter(|relay| relay["state"] == state)
    })
}

pub(crate) fn order(gateway: &Gateway, stream: &str, action: &str, input: &str) {
    let path = format!("/api/v1/things/{}/actions/{action}", stream.replace('/', "%2F"));
    // The thing is there once its first report is.
    let answer = wait_for("an answer to an order", PATIENCE, || {
        Some(gateway.request("POST", &path, input)).filter(|(status, _)| *status != 404 && *status != 503)
    });
    assert_eq!(answer.0, 200, "{action}: {}", answer.1);
}

fn grown(nginx: &Nginx, at: usize, bytes: u64) -> Option<String> {
    nginx.recordings().get(at).filter(|f| std::fs::metadata(f).is_ok_and(|m| m.len() > bytes)).cloned()
}

/// Debian's nginx with its RTMP module, recording what it gets.
pub(crate) struct Nginx {
    child: Option<Child>,
    folder: TempDir,
    pub(crate) port: u16,
}

impl Nginx {
    pub(crate) fn start() -> Self {
        let mut nginx = Self::stopped();
        nginx.resume();
        nginx
    }

    /// Not started yet.
    fn stopped() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("rec")).unwrap();
        Self { child: None, folder, port: free_port() }
    }

    fn resume(&mut self) {
        let folder = self.folder.path().display().to_string();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;\ndaemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 256; }}\nrtmp {{ server {{ listen 127.0.0.1:{}; application copy {{ live on; \
             record all; record_path {folder}/rec; record_unique on; }} }} }}\n",
            self.port
        );
        let file = self.folder.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(Child::start(&mut command));
        wait_for("nginx", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    fn pause(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(rustix::process::Signal::TERM);
            child.wait(Duration::from_secs(10));
        }
    }

    fn recordings(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.folder.path().join("rec")).unwrap();
        let mut files: Vec<String> = listed.map(|e| e.unwrap().path().display().to_string()).collect();
        files.sort();
        files
    }
}

#[test]
fn a_relayed_copy_is_equal_also_after_its_server_restarted() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let mut nginx = Nginx::start();
    let relay = format!("[[relay]]\nstream = \"live/*\"\nurl = \"rtmp://127.0.0.1:{}/copy/{{name}}\"\n", nginx.port);
    let gateway = Gateway::start(Options::default().with(&relay));
    let media = gateway.options.media;
    let mut push =
        ffmpeg(&["-re", "-i", &clip, "-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/live/r")]);
    wait_for("the first recording to grow", PATIENCE, || {
        nginx.recordings().iter().any(|f| std::fs::metadata(f).is_ok_and(|m| m.len() > 200_000)).then_some(())
    });
    nginx.pause();
    nginx.resume();
    assert!(push.wait(Duration::from_secs(60)).success());
    let recorded = wait_for("the second recording to be complete", Duration::from_secs(60), || {
        let files = nginx.recordings();
        (files.len() >= 2 && std::fs::metadata(&files[1]).is_ok_and(|m| m.len() > 200_000)).then_some(files)
    });
    gateway.stop();
    nginx.pause();
    let sent = packets(&[], &clip);
    for file in recorded {
        let got = packets(&[], &file);
        is_piece_of(&contents(&got[0]), &contents(&sent[0]), 50);
        let video: Vec<i64> =
            got[0].iter().map(|p| p.split(' ').find(|f| !f.is_empty()).unwrap().parse().unwrap()).collect();
        assert!(video.windows(2).all(|w| w[1] > w[0]), "{file}: time runs backwards");
    }
}

/// The server is not even there when the alarm is raised: what was before the alarm waits.
#[test]
fn an_alarm_brings_the_key_frame_before_it_and_ends_after_its_time() {
    let folder = TempDir::new().unwrap();
    let clip = long_gops(&folder);
    let mut nginx = Nginx::stopped();
    let rule = format!(
        "[[relay]]\nstream = \"live/*\"\nurl = \"rtmp://127.0.0.1:{}/copy/{{name}}?key=secret\"\nwhen = \"alarm\"\n\
         alarms = [{{ event = \"alarm\" }}, {{ thing = \"door-1\", event = \"opened\" }}]\nhold_seconds = 14\n",
        nginx.port
    );
    let broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(Options::default().upstream(broker.port, "native").with(&rule));
    let _push = push(&gateway, &clip, "live/a");
    wait_relay(&gateway, "idle");
    let frames = || wait_live(&gateway, "live/a")["video_frames"].as_u64().unwrap();
    // In the middle of a GOP: the figure is up to a second old.
    wait_for("the middle of the second GOP", PATIENCE, || (130..170).contains(&frames()).then_some(()));
    order(&gateway, "live/a", "raiseAlarm", "{\"reason\": \"test\"}");
    let waiting = wait_relay(&gateway, "waiting");
    assert_eq!(waiting["reason"], "alarm: alarm of live/a");
    assert!(waiting["error"].as_str().unwrap().contains("refused"), "{waiting}");
    assert!(!waiting["url"].as_str().unwrap().contains("secret"), "{waiting}");
    wait_for("the third GOP", PATIENCE, || (frames() > 210).then_some(()));
    nginx.resume();
    wait_relay(&gateway, "sending");
    let sending = |m: &Value| m["thing"] == "live/a" && m["properties"]["relays"][0]["state"] == "sending";
    receiver.until("the relay as a property of the camera", PATIENCE, sending);
    wait_relay(&gateway, "idle");
    // The last alarm, of another thing, begins it anew.
    let door = format!("coap://127.0.0.1:{}/things/door-1/events/opened", gateway.options.coap);
    run_ok("coap-client-notls", &["-m", "post", "-t", "50", "-e", "{}", &door]);
    assert_eq!(wait_relay(&gateway, "sending")["reason"], "alarm: opened of door-1");
    gateway.stop();
    assert!(receiver.finish().0.success());
    nginx.pause();
    let video = |file: &str| -> Vec<String> {
        let text = run_ok("ffmpeg", &["-v", "error", "-i", file, "-map", "0:v", "-c", "copy", "-f", "framemd5", "-"]);
        let lines = text.lines().filter(|l| !l.starts_with('#'));
        lines.map(|l| l.split(',').skip(4).take(2).map(str::trim).collect::<Vec<_>>().join(" ")).collect()
    };
    let (sent, got) = (video(&clip), video(&nginx.recordings()[0]));
    is_piece_of(&got, &sent, 100);
    let first = sent.iter().position(|packet| *packet == got[0]);
    assert_eq!(first, Some(100), "the key frame before the alarm, not the one before the connection");
}

#[test]
fn a_relay_on_demand_runs_while_it_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let nginx = Nginx::start();
    let rule = |stream: &str, when: &str| {
        let port = nginx.port;
        format!(
            "[[relay]]\nstream = \"{stream}\"\nurl = \"rtmp://127.0.0.1:{port}/copy/{{name}}\"\nwhen = \"{when}\"\nhold_seconds = 1\n"
        )
    };
    let gateway = Gateway::start(Options::default().with(&rule("live/asked", "on-demand")));
    let pushed = push(&gateway, &clip, "live/asked");
    wait_relay(&gateway, "idle");
    order(&gateway, "live/asked", "relayStart", "{\"seconds\": 3}");
    assert_eq!(wait_relay(&gateway, "sending")["reason"], "asked for");
    wait_relay(&gateway, "idle");
    order(&gateway, "live/asked", "relayStart", "{}");
    wait_relay(&gateway, "sending");
    order(&gateway, "live/asked", "relayStop", "");
    wait_relay(&gateway, "idle");
    assert_eq!(relay(&gateway).unwrap()["connections"], 2);
    drop(pushed);
    gateway.stop();
    let gateway = Gateway::start(Options::default().with(&rule("live/watched", "watched")));
    let _pushed = push(&gateway, &clip, "live/watched");
    wait_relay(&gateway, "idle");
    let viewer =
        ffmpeg(&["-i", &format!("http://127.0.0.1:{}/live/watched.flv", gateway.options.media), "-f", "null", "-"]);
    assert_eq!(wait_relay(&gateway, "sending")["reason"], "watched");
    drop(viewer);
    wait_relay(&gateway, "idle");
    gateway.stop();
}

#[test]
fn a_stream_over_the_budget_waits_or_sends_its_key_frames_alone() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let mut nginx = Nginx::start();
    let rule = |more: &str| {
        format!("[[relay]]\nstream = \"live/*\"\nurl = \"rtmp://127.0.0.1:{}/copy/{{name}}\"\n{more}\n", nginx.port)
    };
    let gateway = Gateway::start(Options::default().with(&rule("kbps_max = 50")));
    let pushed = push(&gateway, &clip, "live/b");
    let waits = wait_relay(&gateway, "over-budget");
    let why = waits["error"].as_str().unwrap();
    assert!(why.starts_with("over the budget: the stream has ") && why.ends_with("this relay may take 50"), "{why}");
    assert_eq!(waits["connections"], 0);
    drop(pushed);
    gateway.stop();
    let all = "[stream]\nrelays_kbps_max = 60\n";
    let narrow = rule("over_budget = \"key-frames\"");
    let gateway = Gateway::start(Options::default().with(all).with(&narrow));
    let pushed = push(&gateway, &clip, "live/b");
    wait_relay(&gateway, "key-frames");
    wait_for("units left out", PATIENCE, || (relay(&gateway)?["skipped"].as_u64()? > 300).then_some(()));
    assert!(gateway.metric("sluicegate_relay_skipped_units_total{") > 0.0);
    drop(pushed);
    gateway.stop();
    nginx.pause();
    let flags = run_ok(
        "ffprobe",
        &[
            "-v",
            "error",
            "-select_streams",
            "v",
            "-show_entries",
            "packet=flags",
            "-of",
            "csv=p=0",
            &nginx.recordings()[0],
        ],
    );
    assert!(flags.lines().count() >= 3 && flags.lines().all(|line| line.starts_with('K')), "{flags}");
}

#[test]
fn a_server_that_stalls_is_given_up_and_hurts_no_viewer() {
    let folder = TempDir::new().unwrap();
    let clip = folder.path().join("heavy.flv").display().to_string();
    shell(&format!(
        "ffmpeg -hide_banner -loglevel error -f lavfi -i \"nullsrc=s=640x360:r=25,geq=random(1)*255:128:128\" -t 4 -c:v libx264 \
         -preset ultrafast -b:v 8M -minrate 8M -maxrate 8M -bufsize 8M -g 25 -pix_fmt yuv420p -f flv {clip}"
    ));
    let nginx = Nginx::start();
    let rule = format!("[[relay]]\nstream = \"live/*\"\nurl = \"rtmp://127.0.0.1:{}/copy/{{name}}\"\n", nginx.port);
    let gateway = Gateway::start(Options::default().with(&rule));
    let url = format!("rtmp://127.0.0.1:{}/live/s", gateway.options.media);
    let _push = ffmpeg(&["-re", "-stream_loop", "-1", "-i", &clip, "-c", "copy", "-f", "flv", &url]);
    wait_live(&gateway, "live/s");
    wait_relay(&gateway, "sending");
    nginx.child.as_ref().unwrap().signal(rustix::process::Signal::STOP);
    let stalled = wait_for("the stall to be said", PATIENCE, || {
        relay(&gateway).filter(|relay| relay["error"].as_str().is_some_and(|e| e.contains("took no byte for 10 s")))
    });
    assert!(stalled["skipped"].as_u64().is_some(), "{stalled}");
    assert!(camera::video_packets(&url, 2) >= 25);
    nginx.child.as_ref().unwrap().signal(rustix::process::Signal::CONT);
    wait_relay(&gateway, "sending");
    gateway.stop();
}

/// socat ends the TLS in front of nginx.
#[test]
fn a_relay_goes_over_tls_and_believes_only_who_it_knows() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let nginx = Nginx::start();
    let (cert, port) = (folder.path().join("ca.pem").display().to_string(), free_port());
    shell(&format!(
        "cd {0} && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca && \
         openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=localhost && \
         echo subjectAltName=DNS:localhost > names && openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key \
         -CAcreateserial -days 2 -extfile names -out cert.pem && cat key.pem cert.pem > both.pem",
        folder.path().display()
    ));
    let listen = format!("OPENSSL-LISTEN:{port},cert={}/both.pem,verify=0,reuseaddr,fork", folder.path().display());
    let mut command = Command::new("socat");
    command.args([listen, format!("TCP:127.0.0.1:{}", nginx.port)]).stdin(Stdio::null()).stderr(Stdio::null());
    let _tls = Child::start(&mut command);
    wait_for("socat", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let rule = |more: &str| {
        format!("[[relay]]\nstream = \"live/*\"\nurl = \"rtmps://localhost:{port}/copy/{{name}}\"\n{more}\n")
    };
    let gateway = Gateway::start(Options::default().with(&rule("")));
    let pushed = push(&gateway, &clip, "live/t");
    let why = wait_relay(&gateway, "waiting")["error"].to_string();
    assert!(why.contains("UnknownIssuer") || why.contains("invalid peer certificate"), "{why}");
    drop(pushed);
    gateway.stop();
    let gateway = Gateway::start(Options::default().with(&rule(&format!("ca_file = \"{cert}\""))));
    let _pushed = push(&gateway, &clip, "live/t");
    wait_relay(&gateway, "sending");
    wait_for("a recording to grow", PATIENCE, || grown(&nginx, 0, 100_000));
    gateway.stop();
}

#[test]
fn a_name_that_leads_nowhere_is_said_and_holds_up_no_other_relay() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let nginx = Nginx::start();
    let rules = format!(
        "[[relay]]\nstream = \"live/*\"\nurl = \"rtmp://nowhere.invalid/copy/{{name}}\"\n\
         [[relay]]\nstream = \"live/*\"\nurl = \"rtmp://127.0.0.1:{}/copy/{{name}}\"\n",
        nginx.port
    );
    let gateway = Gateway::start(Options::default().with(&rules));
    let _pushed = push(&gateway, &clip, "live/n");
    let waiting = wait_relay(&gateway, "waiting");
    assert!(waiting["error"].as_str().unwrap().starts_with("the name `nowhere.invalid` has no address"), "{waiting}");
    wait_for("the other relay", PATIENCE, || grown(&nginx, 0, 100_000));
    gateway.stop();
}
