//! Many cameras on one thread: each replays the clip over RTMP, one step of the clip later than the one before it, so
//! that frames and key frames of all of them do not come at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::clip::Clip;
use super::publisher::{HANDSHAKE_LEN, hello, introduce, tag_message};

/// The app of all streams.
pub(crate) const APP: &str = "live";

/// A server that takes nothing for this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest sleep, so that a stop is heard.
const NAP: Duration = Duration::from_millis(50);

/// What the cameras send.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    pub(crate) address: SocketAddr,
    /// One camera for each name.
    pub(crate) names: Vec<String>,
    pub(crate) clip: Arc<Clip>,
    /// Between the starts of two cameras.
    pub(crate) stagger: Duration,
    /// Moment that stamps count from.
    pub(crate) epoch: Instant,
}

/// What they did.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// How late each unit left, s: above some ms the cameras themselves are what is slow.
    pub(crate) late: Vec<f64>,
    /// Cameras whose server closed on them.
    pub(crate) lost: usize,
}

/// Cameras that send until they are stopped.
#[derive(Debug)]
pub(crate) struct Fleet {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<Sent>>>,
}

struct Camera {
    socket: TcpStream,
    began: Instant,
    next: usize,
    round: u32,
}

impl Fleet {
    /// Connects all of them, and lets them send.
    pub(crate) fn start(orders: Orders) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(AtomicU64::new(0));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&bytes));
        let thread = std::thread::spawn(move || send(&orders, &told, &counted));
        Self { stop, bytes, thread: Some(thread) }
    }

    /// Sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("a fleet ends once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the cameras panicked"))?
    }
}

fn send(orders: &Orders, stop: &AtomicBool, bytes: &AtomicU64) -> anyhow::Result<Sent> {
    let started = Instant::now();
    let mut cameras = Vec::new();
    // Moments at which a camera has something to send, or is to be connected.
    let mut due: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    for at in 0..orders.names.len() {
        due.push(Reverse((started + orders.stagger * at as u32, at)));
        cameras.push(None);
    }
    let mut sent = Sent::default();
    while let Some(Reverse((at, index))) = due.pop() {
        while let Some(early) = at.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
            if stop.load(Ordering::Acquire) {
                return Ok(sent);
            }
            std::thread::sleep(early.min(NAP));
        }
        if stop.load(Ordering::Acquire) {
            break;
        }
        let Some(slot) = cameras.get_mut(index) else { continue };
        let Some(camera) = slot else {
            *slot = Some(Camera::connect(orders, index)?);
            due.push(Reverse((Instant::now(), index)));
            continue;
        };
        sent.late.push(at.elapsed().as_secs_f64());
        let Ok(len) = camera.send(orders) else {
            sent.lost += 1;
            continue;
        };
        bytes.fetch_add(len, Ordering::Relaxed);
        due.push(Reverse((camera.due(&orders.clip), index)));
    }
    Ok(sent)
}

impl Camera {
    fn connect(orders: &Orders, index: usize) -> anyhow::Result<Self> {
        let name = orders.names.get(index).context("a name")?;
        let mut socket = publish(orders.address, name)?;
        for tag in &orders.clip.head {
            socket.write_all(&tag_message(tag, 0))?;
        }
        Ok(Self { socket, began: Instant::now(), next: 0, round: 0 })
    }

    /// When its next unit leaves.
    fn due(&self, clip: &Clip) -> Instant {
        let time_ms = clip.frames.get(self.next).map_or(0, |tag| tag.time_ms);
        self.began + Duration::from_millis(u64::from(self.round * clip.length_ms + time_ms))
    }

    /// Sends the next unit; how many bytes that took.
    fn send(&mut self, orders: &Orders) -> anyhow::Result<u64> {
        let clip = &orders.clip;
        let mut tag = clip.frames.get(self.next).context("a frame")?.clone();
        tag.stamp(orders.epoch);
        let bytes = tag_message(&tag, self.round * clip.length_ms + tag.time_ms);
        self.socket.write_all(&bytes)?;
        self.next += 1;
        if self.next == clip.frames.len() {
            (self.next, self.round) = (0, self.round + 1);
        }
        Ok(bytes.len() as u64)
    }
}

/// A connection that has said that it publishes `live/NAME`.
pub(crate) fn publish(address: SocketAddr, name: &str) -> anyhow::Result<TcpStream> {
    open(address, "publish", name)
}

/// A connection that has said what it does with `live/NAME`.
pub(crate) fn open(address: SocketAddr, verb: &str, name: &str) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&hello())?;
    socket.read_exact(&mut [0; HANDSHAKE_LEN]).context("the handshake")?;
    socket.write_all(&introduce(&address.to_string(), verb, APP, name))?;
    Ok(socket)
}
