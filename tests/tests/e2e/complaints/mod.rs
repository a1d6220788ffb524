//! What users of other servers complain about, as tests of this one: `docs/complaints.md` says which test proves what.
//!
//! Here are those that no other file has already: `memory.rs` (what sessions and names leave behind), `viewers.rs` (slow
//! and stalled), `times.rs` (timestamps of every oddity), `publishers.rs` (half-open, replaced), `crowds.rs` (storms, and
//! nobody at all).
//!
//! The ordinary run takes loads that two busy processors carry in seconds; `SLUICEGATE_COMPLAINTS=full` takes those of the
//! complaints.

mod crowds;
mod memory;
mod publishers;
mod times;
mod viewers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::{Child, Clip, Gateway, camera, root, run, shell};

/// The size of a load: ordinary, or in full.
fn size(ordinary: usize, full: usize) -> usize {
    if std::env::var("SLUICEGATE_COMPLAINTS").is_ok_and(|size| size == "full") { full } else { ordinary }
}

/// The demo's camera: H.264 and AAC, a few seconds.
fn demo_clip() -> PathBuf {
    root().join("gateway/src/demo/clips/gate-1.flv")
}

/// A few units of it: configurations, a key frame, and what lies behind.
fn snippet(frames: usize) -> (Clip, Vec<protocols::media::Unit>) {
    let clip = Clip::read(&demo_clip());
    let units = clip.configs.iter().chain(clip.frames.iter().take(frames)).cloned().collect();
    (clip, units)
}

/// Makes a clip of a test pattern with noise in it, with a key frame each second and B-frames, and a tone.
fn make_clip(folder: &Path, size: &str, kbps: u32, seconds: u32) -> PathBuf {
    let file = folder.join(format!("{size}-{kbps}.flv"));
    shell(&format!(
        "ffmpeg -y -v error -f lavfi -i testsrc2=s={size}:r=25,noise=alls=20:allf=t,format=yuv420p \
         -f lavfi -i sine=440:r=44100 -t {seconds} -c:v libx264 -preset ultrafast -bf 2 -g 25 -keyint_min 25 \
         -sc_threshold 0 -b:v {kbps}k -maxrate {kbps}k -bufsize {kbps}k -c:a aac -b:a 64k -f flv {}",
        file.display()
    ));
    file
}

/// ffmpeg as a camera; `how` goes before the input.
fn push(file: &Path, media: u16, name: &str, how: &[&str]) -> Child {
    camera::push("ffmpeg", file, &format!("rtmp://127.0.0.1:{media}/live/{name}"), how)
}

/// The stream as the API tells of it.
fn stream(gateway: &Gateway, name: &str) -> Option<Value> {
    gateway.streams().into_iter().find(|stream| stream["name"] == format!("live/{name}"))
}

fn is_live(gateway: &Gateway, name: &str) -> Option<()> {
    (stream(gateway, name)?["live"] == true).then_some(())
}

/// ffmpeg decodes all of the file and has nothing to complain about.
fn decodes(file: &Path) {
    let file = file.display().to_string();
    let output = run("ffmpeg", &["-v", "error", "-xerror", "-i", &file, "-f", "null", "-"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{file}: {said}");
}

/// Looks again and again for so long; a test's own clock, where time itself is what is waited for.
fn throughout(time: Duration, mut look: impl FnMut()) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        look();
        std::thread::sleep(Duration::from_millis(100));
    }
}
