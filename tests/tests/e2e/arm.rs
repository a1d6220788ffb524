//! The binaries for boxes: built, of the right size, and working under emulation.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sluicegate_tests::{Child, Gateway, Mosquitto, Options, Receiver, root, run_ok, wait_for};

/// Emulation is some twenty times slower than the box itself.
const PATIENCE: Duration = Duration::from_secs(120);

fn target(name: &str) -> toml::Table {
    std::fs::read_to_string(root().join(format!("cross/{name}.toml"))).unwrap().parse().unwrap()
}

/// `cross/build NAME`; it fails by itself when the binary is larger than its budget.
fn build(name: &str) -> PathBuf {
    let mut command = Command::new(root().join("cross/build"));
    command.arg(name).stdin(Stdio::null()).stdout(Stdio::piped());
    let output = command.output().expect("cross/build runs");
    assert!(output.status.success(), "cross/build {name}: {}", output.status);
    let said = String::from_utf8(output.stdout).unwrap();
    root().join(said.lines().last().expect("the binary's path"))
}

fn works_under_emulation(name: &str) {
    let target = target(name);
    let binary = build(name);
    let size_max = target["size_max_mib"].as_integer().unwrap() as u64 * 1_048_576;
    assert!(std::fs::metadata(&binary).unwrap().len() <= size_max);

    needs_the_c_library_alone(&binary);

    let broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &["--gateway", name]);
    let emulator = target["emulator"].as_str().unwrap().split(' ').map(str::to_owned).collect();
    let options = Options { id: name.to_owned(), under: emulator, binary, ..Options::default() };
    let gateway = Gateway::start(options.upstream(broker.port, "native"));

    // A report goes in and comes out upstream.
    let (mqtt, media) = (gateway.options.mqtt.to_string(), gateway.options.media);
    let body = r#"{"temperature":21.5}"#;
    run_ok("mosquitto_pub", &["-p", &mqtt, "-i", "probe-1", "-q", "1", "-t", "v1/devices/me/telemetry", "-m", body]);
    let message = receiver.until("the report", PATIENCE, |m| m["thing"] == "probe-1" && m["properties"].is_object());
    assert_eq!(message["properties"]["temperature"], 21.5, "{message}");

    // A stream goes in and comes out.
    let clip = root().join("gateway/src/demo/clips");
    let clip =
        std::fs::read_dir(clip).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "flv"));
    let mut push = Command::new("ffmpeg");
    push.args(["-hide_banner", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i"])
        .arg(clip.expect("a demo clip"));
    push.args(["-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/live/probe")]).stdin(Stdio::null());
    let mut push = Child::start(&mut push);
    let url = format!("http://127.0.0.1:{media}/live/probe.flv");
    let frames = wait_for("frames", PATIENCE, || {
        assert!(push.is_running(), "ffmpeg lost the gateway");
        let count = ["-v", "error", "-count_packets", "-select_streams", "v", "-read_intervals", "%+#25"];
        let show = ["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", &url];
        let output = sluicegate_tests::run("ffprobe", &[&count[..], &show[..]].concat());
        String::from_utf8_lossy(&output.stdout).trim().trim_end_matches(',').parse::<u32>().ok().filter(|n| *n >= 25)
    });
    assert!(frames >= 25);
    drop(push);
    gateway.stop();
}

/// What a box has to have: parts of glibc, of no later version than decision 11 says.
fn needs_the_c_library_alone(binary: &Path) {
    let said = run_ok("readelf", &["-dVW", binary.to_str().unwrap()]);
    let libraries: Vec<&str> =
        said.lines().filter_map(|line| line.split_once("Shared library: [")?.1.strip_suffix(']')).collect();
    assert!(!libraries.is_empty(), "{said}");
    for library in libraries {
        let known = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1", "ld-linux-armhf.so.3"];
        assert!(known.contains(&library), "{library}");
    }
    let versions = said.split("Name: GLIBC_2.").skip(1);
    let newest = versions.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap());
    assert!(newest.max().is_some_and(|newest| newest <= 34), "{said}");
}

#[test]
fn aarch64_works_under_emulation() {
    works_under_emulation("aarch64");
}

#[test]
fn armv7_works_under_emulation() {
    works_under_emulation("armv7");
}
