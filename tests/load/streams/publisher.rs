//! An RTMP publisher that replays the clip in real time, stamping every frame as it leaves, and the few RTMP words that it
//! and the viewers need. Only what our own load needs: a trusted server on loopback.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::clip::{Clip, Tag};
use super::fleet;

/// The stream of a camera that is alone.
pub(crate) const NAME: &str = "load";
/// Bytes of a hello and its echo.
pub(crate) const HELLO_LEN: usize = 1 + 1536;
/// Bytes a server says before the talk proper.
pub(crate) const HANDSHAKE_LEN: usize = HELLO_LEN + 1536;
/// Our chunks; larger than any frame of the clip.
const CHUNK: usize = 1 << 20;

/// C0 and C1, the simple handshake.
pub(crate) fn hello() -> Vec<u8> {
    let mut hello = vec![0x5a; HELLO_LEN];
    hello[0] = 3;
    hello[1..9].fill(0);
    hello
}

/// C2 and everything up to the publish or play, without waiting for answers.
pub(crate) fn introduce(address: &str, verb: &str, app: &str, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 1536];
    let url = format!("rtmp://{address}/{app}");
    let mut chunk_size = Vec::new();
    message(&mut chunk_size, 2, 1, 0, 0, &(CHUNK as u32).to_be_bytes(), 128);
    bytes.extend(chunk_size);
    let mut connect = string("connect");
    connect.extend(number(1.0));
    connect.push(3);
    for (key, value) in [("app", app), ("tcUrl", &url), ("type", "nonprivate"), ("flashVer", "LNX 9,0,124,2")] {
        connect.extend((key.len() as u16).to_be_bytes());
        connect.extend(key.as_bytes());
        connect.extend(string(value));
    }
    connect.extend([0, 0, 9]);
    message(&mut bytes, 3, 20, 0, 0, &connect, CHUNK);
    let create: Vec<u8> = [string("createStream"), number(2.0), vec![5]].concat();
    message(&mut bytes, 3, 20, 0, 0, &create, CHUNK);
    let mut start = [string(verb), number(3.0), vec![5], string(name)].concat();
    if verb == "publish" {
        start.extend(string("live"));
    }
    message(&mut bytes, 8, 20, 1, 0, &start, CHUNK);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = vec![2];
    bytes.extend((text.len() as u16).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn number(value: f64) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(value.to_be_bytes());
    bytes
}

/// One message in chunks with full headers.
fn message(out: &mut Vec<u8>, chunk_stream: u8, kind: u8, stream: u32, time_ms: u32, body: &[u8], chunk: usize) {
    out.push(chunk_stream);
    out.extend(&time_ms.min(0xff_ffff).to_be_bytes()[1..]);
    out.extend(&(body.len() as u32).to_be_bytes()[1..]);
    out.push(kind);
    out.extend(stream.to_le_bytes());
    for (index, part) in body.chunks(chunk).enumerate() {
        if index > 0 {
            out.push(0xc0 | chunk_stream);
        }
        out.extend(part);
    }
}

/// The camera: a thread of its own, so that it stays on time.
#[derive(Debug)]
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Publisher {
    pub(crate) fn start(address: SocketAddr, clip: Arc<Clip>, epoch: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || publish(address, &clip, epoch, &told));
        Self { stop, thread: Some(thread) }
    }

    /// Fails with what ended it before its time.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("a publisher ends once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))?
    }
}

impl Drop for Publisher {
    /// A run that fails before it stops its camera must not leave it behind.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn publish(address: SocketAddr, clip: &Clip, epoch: Instant, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut socket = fleet::publish(address, NAME)?;
    // What the server says is not needed, but it must be taken, however seldom it comes.
    socket.set_read_timeout(None)?;
    let mut answers = socket.try_clone()?;
    std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    replay(clip, stop, |tag, time_ms| {
        let mut tag = tag.clone();
        tag.stamp(epoch);
        socket.write_all(&tag_message(&tag, time_ms)).context("sending a frame")
    })
}

/// One tag as a publisher says it.
pub(crate) fn tag_message(tag: &Tag, time_ms: u32) -> Vec<u8> {
    let frame = if tag.kind == 18 { string("@setDataFrame") } else { Vec::new() };
    let body = [&frame, tag.body.as_slice()].concat();
    let mut bytes = Vec::with_capacity(body.len() + 16);
    message(&mut bytes, 4 + u8::from(tag.kind == 9) * 2, tag.kind, 1, time_ms, &body, CHUNK);
    bytes
}

/// Gives the clip's tags in real time, again and again, until told to stop.
pub(crate) fn replay(
    clip: &Clip,
    stop: &AtomicBool,
    mut give: impl FnMut(&Tag, u32) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    for tag in &clip.head {
        give(tag, 0)?;
    }
    for round in 0_u32.. {
        for tag in &clip.frames {
            let time_ms = round * clip.length_ms + tag.time_ms;
            let due = started + Duration::from_millis(u64::from(time_ms));
            while let Some(early) = due.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
                std::thread::sleep(early);
            }
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            give(tag, time_ms)?;
        }
    }
    Ok(())
}
