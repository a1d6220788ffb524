//! The floor: what HTTP-FLV to many viewers costs when nothing but the writing is done. One thread, one epoll, one buffer;
//! every window each viewer is written what it has not had. No ingest, no format but FLV, no limits, no statistics.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::epoll;

use super::clip::{Clip, Tag};

/// What the buffer holds at most before its older half is let go of.
const LOG_MAX: usize = 8 << 20;
/// The listener among the events.
const LISTENER: u64 = u64::MAX;

/// `load floor`.
#[derive(Debug, Args)]
pub(crate) struct FloorPlan {
    #[arg(long)]
    port: u16,
    /// Time bytes are collected before a write, ms; 0: every frame.
    #[arg(long)]
    window_ms: u64,
    #[arg(long)]
    clip: PathBuf,
    /// Moment that stamps count from, ns of the monotonic clock.
    #[arg(long)]
    epoch_ns: u64,
}

struct Floor {
    poll: std::os::fd::OwnedFd,
    log: Vec<u8>,
    /// Offset in the stream of the log's first byte.
    base: u64,
    key_at: u64,
    head: Vec<u8>,
    viewers: HashMap<u64, Viewer>,
}

struct Viewer {
    socket: TcpStream,
    cursor: u64,
    watching: bool,
}

/// Serves until it is killed.
pub(crate) fn floor(plan: &FloorPlan) -> anyhow::Result<()> {
    let clip = Clip::read(&plan.clip)?;
    let epoch = since_boot(plan.epoch_ns);
    let listener = TcpListener::bind(("127.0.0.1", plan.port))?;
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut head = b"FLV\x01\x05\0\0\0\x09\0\0\0\0".to_vec();
    clip.head.iter().for_each(|tag| write_tag(&mut head, tag, 0));
    let mut floor = Floor { poll, log: Vec::new(), base: 0, key_at: 0, head, viewers: HashMap::new() };
    let started = Instant::now();
    let window = Duration::from_millis(plan.window_ms);
    let (mut next_frame, mut round) = (0, 0_u32);
    let mut flush_at = started + window;
    loop {
        let Some(frame) = clip.frames.get(next_frame) else {
            (next_frame, round) = (0, round + 1);
            continue;
        };
        let time_ms = round * clip.length_ms + frame.time_ms;
        let due = started + Duration::from_millis(u64::from(time_ms));
        let now = Instant::now();
        if due <= now {
            let mut tag = frame.clone();
            tag.stamp(epoch);
            floor.take(&tag, time_ms);
            next_frame += 1;
            if window.is_zero() {
                floor.flush();
            }
        } else if !window.is_zero() && flush_at <= now {
            floor.flush();
            flush_at += window;
        } else {
            let until = if window.is_zero() { due } else { due.min(flush_at) };
            floor.wait(&listener, until.saturating_duration_since(now))?;
        }
    }
}

impl Floor {
    fn take(&mut self, tag: &Tag, time_ms: u32) {
        if self.log.len() > LOG_MAX {
            self.log.drain(..LOG_MAX / 2);
            self.base += LOG_MAX as u64 / 2;
        }
        if tag.is_key() {
            self.key_at = self.base + self.log.len() as u64;
        }
        write_tag(&mut self.log, tag, time_ms);
    }

    fn flush(&mut self) {
        let (log, base) = (&self.log, self.base);
        self.viewers.retain(|_, viewer| !viewer.watching || viewer.flush(log, base));
    }

    fn wait(&mut self, listener: &TcpListener, patience: Duration) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(256);
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().max(1).into() };
        epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        for event in &events {
            let id = event.data.u64();
            if id == LISTENER {
                self.accept(listener)?;
            } else if let Some(viewer) = self.viewers.get_mut(&id) {
                let mut request = [0; 1024];
                match viewer.socket.read(&mut request) {
                    Ok(0) => drop(self.viewers.remove(&id)),
                    Ok(_) if !viewer.watching => {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\nConnection: close\r\n\r\n";
                        viewer.socket.write_all(answer)?;
                        viewer.socket.write_all(&self.head)?;
                        viewer.cursor = self.key_at;
                        viewer.watching = true;
                        viewer.flush(&self.log, self.base);
                    }
                    Err(error) if error.kind() != ErrorKind::WouldBlock => drop(self.viewers.remove(&id)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        while let Ok((socket, from)) = listener.accept() {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let id = u64::from(from.port());
            epoll::add(&self.poll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN)?;
            self.viewers.insert(id, Viewer { socket, cursor: 0, watching: false });
        }
        Ok(())
    }
}

impl Viewer {
    /// False: it is gone.
    fn flush(&mut self, log: &[u8], base: u64) -> bool {
        self.cursor = self.cursor.max(base);
        let Some(rest) = log.get((self.cursor - base) as usize..).filter(|r| !r.is_empty()) else { return true };
        match self.socket.write(rest) {
            Ok(count) => self.cursor += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        true
    }
}

fn write_tag(out: &mut Vec<u8>, tag: &Tag, time_ms: u32) {
    let [t3, t2, t1, t0] = time_ms.to_be_bytes();
    out.push(tag.kind);
    out.extend(&(tag.body.len() as u32).to_be_bytes()[1..]);
    out.extend([t2, t1, t0, t3, 0, 0, 0]);
    out.extend(&tag.body);
    out.extend((tag.body.len() as u32 + 11).to_be_bytes());
}

/// The monotonic clock, ns: the one clock that two processes share.
pub(crate) fn clock_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn since_boot(epoch_ns: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_nanos(clock_ns().saturating_sub(epoch_ns))).unwrap_or(now)
}
