//! What the end-to-end tests share: the gateway as a child process, its peers, and waiting for events.
//!
//! Every test starts its own gateway on free loopback ports with its own folder, so that tests run side by side. A peer
//! that is missing fails the test by name: nothing is skipped in silence.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::must_use_candidate,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod browser;
pub mod camera;
mod certificates;
mod device;
mod flv;
mod gateway;
mod hook;
mod kafka;
mod nats;
mod peer;
mod ports;
mod post;
mod publisher;
mod slow_line;
mod small_disk;
mod stand_in;
mod upstream;
mod viewer;

pub use browser::{Browser, mpegts_js};
pub use certificates::{Authority, Certificate};
pub use device::{Counter, Language};
pub use flv::{Flv, WebSocket, push_rtmp, push_rtmp_all};
pub use gateway::{Gateway, Options};
pub use hook::{Asked, HookReply, HookServer};
pub use kafka::{KafkaCluster, KafkaRecord};
pub use nats::NatsServer;
pub use peer::{Child, aiortc, newer_ffmpeg, python, run, run_ok, shell};
pub use ports::free_port;
pub use post::{Post, PostReceiver, Reply};
pub use publisher::{Clip, Publisher, paced};
pub use slow_line::{slow_line, slow_line_back, swallowing_line};
pub use small_disk::SmallDisk;
pub use stand_in::{Act, Published, StandIn};
pub use upstream::{Mosquitto, Receiver};
pub use viewer::{Door, Viewer, Viewing};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest any single wait of a test takes before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test: `$SLUICEGATE_BIN`, or the release build of this workspace.
pub fn binary() -> PathBuf {
    let binary =
        std::env::var_os("SLUICEGATE_BIN").map_or_else(|| root().join("target/release/sluicegate"), PathBuf::from);
    assert!(binary.is_file(), "{} is missing: run tests/run, or cargo build --release first", binary.display());
    binary
}

/// The workspace's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace's root")
}

/// A file of bytes that nobody here wrote, which lie beside the project: in `$SLUICEGATE_SAMPLES`, or `../shared/samples`.
/// Where they are not there, CI fails, and elsewhere it is said.
pub fn sample(name: &str) -> Option<Vec<u8>> {
    let beside = || root().join("../shared/samples");
    let folder = std::env::var_os("SLUICEGATE_SAMPLES").map_or_else(beside, PathBuf::from);
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            let said = format!("sample {}: {error}", folder.join(name).display());
            assert!(std::env::var_os("CI").is_none(), "{said}");
            eprintln!("not tested: {said}");
            None
        }
    }
}

/// Where screenshots and reports are kept.
pub fn artifacts() -> PathBuf {
    let folder = std::env::var_os("SLUICEGATE_ARTIFACTS").map_or_else(|| root().join("artifacts"), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("the artefacts' folder");
    folder
}

/// Asks again until the answer is there: for peers that offer no event to wait for. Panics with `what` when it is not.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < patience, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
