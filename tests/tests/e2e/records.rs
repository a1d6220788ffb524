//! Streams kept on disk: what is kept equals what was published, whatever happens to power, disk and clock.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sluicegate_tests::camera;
use sluicegate_tests::{Browser, Child, Gateway, HookServer, Options, PATIENCE, run_ok, wait_for};
use tempfile::TempDir;

use crate::relays::{long_gops, order};
use crate::streams::{clip, ffmpeg, wait_live};

fn rule(name: &str, more: &str) -> String {
    format!(
        "[[record]]\nname = \"{name}\"\nstream = \"live/*\"\nsegment_seconds = 4\nflush_seconds = 1\nfree_min_mib = 0\n{more}\n"
    )
}

fn push(gateway: &Gateway, clip: &str, stream: &str, more: &[&str]) -> Child {
    let url = format!("rtmp://127.0.0.1:{}/{stream}", gateway.options.media);
    let child = ffmpeg(&[&["-re"][..], more, &["-i", clip, "-c", "copy", "-f", "flv", &url]].concat());
    wait_live(gateway, stream);
    child
}

fn recordings(gateway: &Gateway, query: &str) -> Vec<Value> {
    let list: Value = serde_json::from_str(&gateway.get(&format!("/api/v1/recordings{query}"))).unwrap();
    list.as_array().unwrap().clone()
}

/// The files of a folder, in order of their names, which is the order of recording.
fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Flags of the video packets: `K_` for a key frame. Fails for a file that is not whole.
fn frames(file: &Path) -> Vec<String> {
    let file = file.display().to_string();
    let probe = ["-v", "error", "-select_streams", "v", "-show_entries", "packet=flags", "-of", "csv=p=0", &file];
    run_ok("ffprobe", &probe).lines().map(str::to_owned).collect()
}

#[test]
fn recordings_hold_every_frame_that_was_published_and_can_be_fetched_in_ranges() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 12);
    let rules = rule("mp4", "") + &rule("flv", "format = \"flv\"");
    let hooks = HookServer::start();
    let options = Options::default().with("[stream]\ngrace_seconds = 1").with(&hooks.toml(&["on_record"])).with(&rules);
    let gateway = Gateway::start(options);
    let mut pushed = push(&gateway, &clip, "live/rec", &[]);
    assert!(pushed.wait(Duration::from_secs(60)).success());
    let told = hooks.until("on_record", "live/rec").body;
    assert!(Path::new(told["path"].as_str().unwrap()).is_file(), "{told}");
    let all = wait_for("all recordings to be complete", PATIENCE, || {
        let all = recordings(&gateway, "?stream=live/rec");
        (all.len() >= 6 && all.iter().all(|r| r["open"] == false)).then_some(all)
    });
    for kind in ["mp4", "flv"] {
        let files = files(&gateway.folder.path().join("state/recordings").join(kind).join("live/rec"));
        let frames: Vec<Vec<String>> = files.iter().map(|file| frames(file)).collect();
        assert!(frames.len() >= 3 && frames.iter().all(|file| file[0].starts_with('K')), "{kind}: {files:?}");
        assert_eq!(frames.iter().map(Vec::len).sum::<usize>(), 12 * 25, "{kind}: {files:?}");
        let duration: u64 = all.iter().filter(|r| r["rule"] == kind).map(|r| r["duration_ms"].as_u64().unwrap()).sum();
        assert!((11_500..=12_500).contains(&duration), "{kind}: {duration} ms");
    }
    let first = all.iter().find(|r| r["rule"] == "mp4").unwrap();
    let (id, bytes) = (&first["id"], first["bytes"].as_u64().unwrap());
    let url = format!("http://127.0.0.1:{}/api/v1/recordings/{id}", gateway.options.admin);
    let whole = folder.path().join("whole.mp4");
    run_ok("curl", &["-sf", "-o", whole.to_str().unwrap(), &url]);
    assert_eq!(std::fs::metadata(&whole).unwrap().len(), bytes);
    let part = folder.path().join("part");
    let head = run_ok("curl", &["-sf", "-r", "100-299", "-D", "-", "-o", part.to_str().unwrap(), &url]).to_lowercase();
    assert!(head.contains("206 partial") && head.contains(&format!("content-range: bytes 100-299/{bytes}")), "{head}");
    assert_eq!(std::fs::read(&part).unwrap(), std::fs::read(&whole).unwrap()[100..300]);
    let start = first["start_us"].as_i64().unwrap();
    assert!(recordings(&gateway, &format!("?to={}", start - 600_000_000)).is_empty());
    assert_eq!(gateway.request("DELETE", &format!("/api/v1/recordings/{id}"), "").0, 204);
    assert_eq!(gateway.request("GET", &format!("/api/v1/recordings/{id}"), "").0, 404);
    for nowhere in ["..%2f..%2fetc%2fpasswd", "1%2f..%2f2", "-1", "%00", "99999999999999999999"] {
        assert_eq!(gateway.request("GET", &format!("/api/v1/recordings/{nowhere}"), "").0, 404, "{nowhere}");
    }
    gateway.stop();
}

/// Complaint 20. Kills of the process; a cut at every byte is tried beside the code.
#[test]
fn a_killed_gateway_leaves_recordings_that_play() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let rules = rule("mp4", "") + &rule("flv", "format = \"flv\"");
    let mut gateway = Gateway::start(Options::default().with(&rules));
    for kill in 1..=3 {
        let _pushed = push(&gateway, &clip, "live/k", &[]);
        let wanted = 2 * kill + 1;
        wait_for("some recordings", PATIENCE, || {
            let all = recordings(&gateway, "");
            (all.len() > wanted && all.iter().any(|r| r["open"] == true && r["duration_ms"].as_u64() > Some(1500)))
                .then_some(())
        });
        gateway.kill_and_restart();
        let of = |kind: &str| files(&gateway.folder.path().join("state/recordings").join(kind).join("live/k"));
        let open = |file: &PathBuf| file.display().to_string().contains("open");
        wait_for("all to be complete", PATIENCE, || {
            let left = of("mp4").iter().chain(&of("flv")).filter(|file| open(file)).count();
            (left == 0).then_some(())
        });
        for kind in ["mp4", "flv"] {
            for file in &of(kind) {
                assert!(frames(file).len() >= 25, "{}", file.display());
            }
        }
    }
    gateway.stop();
}

#[test]
fn a_full_disk_pauses_the_recording_and_the_live_stream_goes_on() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let disk = TempDir::new().unwrap();
    let mount = format!("mount -t tmpfs -o size=8m none {} && exec \"$0\" \"$@\"", disk.path().display());
    let mut options = Options::default().with(&rule("small", &format!("path = \"{}\"", disk.path().display())));
    options.under = ["unshare", "--mount", "sh", "-c", &mount].map(str::to_owned).to_vec();
    let gateway = Gateway::start(options);
    let inside = Path::new("/proc").join(gateway.child.pid().to_string()).join("root");
    let inside = inside.join(disk.path().strip_prefix("/").unwrap());
    let filler = inside.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let _pushed = push(&gateway, &clip, "live/f", &["-stream_loop", "-1"]);
    let state = |state: &'static str| {
        wait_for(state, PATIENCE, || {
            let record = wait_live(&gateway, "live/f")["records"][0].clone();
            (record["state"] == state && (state == "paused" || record["bytes"].as_u64() > Some(0))).then_some(record)
        })
    };
    let paused = state("paused");
    assert!(paused["error"].as_str().is_some_and(|e| e.contains("left") || e.contains("space")), "{paused}");
    let url = format!("http://127.0.0.1:{}/live/f.flv", gateway.options.media);
    assert!(camera::video_packets(&url, 2) >= 25);
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    state("recording");
    wait_for("a recording", PATIENCE, || recordings(&gateway, "").iter().any(|r| r["open"] == false).then_some(()));
    let recorded = files(&inside.join("small/live/f"));
    assert!(frames(&recorded[0]).len() >= 25);
    let things = gateway.get("/api/v1/things/live%2Ff");
    assert!(things.contains("\"recording\""), "{things}");
    gateway.stop();
}

/// Pressed in the console: Chromium plays the file, and gets to any place of it by asking for ranges.
#[test]
fn a_browser_plays_a_recording_from_the_console_and_seeks_in_it() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 12);
    let gateway = Gateway::start(Options::default().with(&rule("mp4", "").replace("= 4", "= 8")));
    let _pushed = push(&gateway, &clip, "live/rec", &["-stream_loop", "-1"]);
    let whole = |r: &Value| r["open"] == false && r["duration_ms"].as_u64() > Some(7_000);
    let recording =
        wait_for("a recording that is complete", PATIENCE, || recordings(&gateway, "").into_iter().find(whole));
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{}/", gateway.options.admin));
    let play = format!("document.querySelector('[aria-label=\"Play recording {}\"]')", recording["id"]);
    browser.until("the recording in the list", PATIENCE, &format!("{play}?.click(); return Boolean({play})"));
    let video = "const v = document.getElementById('recording-player');";
    let played = browser.until("a picture", PATIENCE, &format!("{video} return v.currentTime > 0.5 && v.videoWidth"));
    assert!(played.as_u64() > Some(0), "{played}");
    let length = browser.run(&format!("{video} v.currentTime = 6; return v.duration"));
    assert!(
        (length.as_f64().unwrap() * 1_000.0 - recording["duration_ms"].as_f64().unwrap()).abs() < 200.0,
        "{length}"
    );
    browser.until("another place", PATIENCE, &format!("{video} return !v.seeking && v.currentTime > 6.2"));
    browser.run(&format!("{video} v.currentTime = 2; v.play()"));
    let back = format!("{video} return !v.seeking && v.currentTime > 2.2 && v.currentTime < 6");
    browser.until("and back", PATIENCE, &back);
    let errors: Vec<String> = browser.console().into_iter().filter(|line| line.starts_with("SEVERE")).collect();
    assert!(errors.iter().all(|line| line.contains("favicon")), "{errors:?}");
    gateway.stop();
}

#[test]
fn the_oldest_recordings_make_room_and_an_alarm_is_kept_from_the_key_frame_before_it() {
    let folder = TempDir::new().unwrap();
    let clip = long_gops(&folder);
    let alarm = rule("alarm", "when = \"alarm\"\nalarms = [{ event = \"alarm\" }]\nhold_seconds = 2");
    let early =
        rule("early", "when = \"alarm\"\nalarms = [{ event = \"alarm\" }]\nhold_seconds = 2\npreroll_seconds = 5");
    let ring = rule("ring", "cap_mib = 1\nformat = \"flv\"");
    let gateway = Gateway::start(Options::default().with(&alarm).with(&early).with(&ring));
    let _pushed = push(&gateway, &clip, "live/r", &[]);
    let frames_now = || wait_live(&gateway, "live/r")["video_frames"].as_u64().unwrap();
    wait_for("the middle of the second GOP", PATIENCE, || (130..170).contains(&frames_now()).then_some(()));
    order(&gateway, "live/r", "raiseAlarm", "{}");
    for name in ["alarm", "early"] {
        wait_for("the alarm's recording", PATIENCE, || {
            recordings(&gateway, "").iter().any(|r| r["rule"] == name && r["open"] == false).then_some(())
        });
    }
    let root = gateway.folder.path().join("state/recordings");
    let kept = files(&root.join("alarm/live/r"));
    // From frame 100 on, at about frame 150, for 2 s more.
    let count: usize = kept.iter().map(|file| frames(file).len()).sum();
    assert!(frames(&kept[0])[0].starts_with('K') && (65..=150).contains(&count), "{count} frames");
    // With five seconds more: from the key frame before those, the stream's first.
    let early = files(&root.join("early/live/r"));
    let longer: usize = early.iter().map(|file| frames(file).len()).sum();
    assert!(frames(&early[0])[0].starts_with('K') && (count + 95..=count + 105).contains(&longer), "{longer} frames");
    wait_for("recordings removed", Duration::from_secs(60), || {
        (gateway.metric("sluicegate_record_removed_total{stream=\"live/r\",rule=\"ring\"}") >= 2.0).then_some(())
    });
    let bytes: u64 =
        files(&root.join("ring/live/r")).iter().filter_map(|f| Some(std::fs::metadata(f).ok()?.len())).sum();
    assert!(bytes <= 1024 * 1024, "{bytes} bytes");
    assert!(kept[0].exists(), "one rule's room is not made of another's recordings");
    gateway.stop();
}
