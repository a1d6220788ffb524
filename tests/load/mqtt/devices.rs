//! Many MQTT 3.1.1 devices on one thread: each keeps a window of reports at QoS 1 on their way, as fast as they are
//! acknowledged or at a given rate.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// What one device reports.
const TOPIC: &str = "v1/devices/me/telemetry";
/// Bytes that may wait for a socket before a device stops reporting.
const UNSENT_MAX: usize = 64 * 1024;

/// All devices.
#[derive(Debug)]
pub(crate) struct Devices {
    poll: OwnedFd,
    all: Vec<Device>,
    window: u16,
    /// Reports begun and acknowledged so far.
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    /// PUBLISH handed to the socket to PUBACK read, s.
    pub(crate) latencies: Vec<f64>,
}

#[derive(Debug)]
struct Device {
    socket: std::net::TcpStream,
    unsent: Vec<u8>,
    unread: Vec<u8>,
    /// When the report with this packet id (from 1) was sent; `None`: the id is free.
    sent_at: Vec<Option<Instant>>,
    waiting: u16,
    next_id: u16,
}

impl Devices {
    /// Connects them all; each is answered before the next comes.
    pub(crate) fn connect(address: SocketAddr, count: usize, window: u16) -> anyhow::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut devices = Vec::new();
        for index in 0..count {
            let mut socket = std::net::TcpStream::connect(address).with_context(|| format!("connection {index}"))?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            std::io::Write::write_all(&mut socket, &connect(&format!("load-{index}")))?;
            let mut answer = [0; 4];
            std::io::Read::read_exact(&mut socket, &mut answer).with_context(|| format!("CONNACK {index}"))?;
            ensure!(answer == [0x20, 2, 0, 0], "connection {index} is refused: {answer:02x?}");
            socket.set_nonblocking(true)?;
            epoll::add(&poll, &socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            let sent_at = vec![None; usize::from(window)];
            devices.push(Device { socket, unsent: Vec::new(), unread: Vec::new(), sent_at, waiting: 0, next_id: 1 });
        }
        Ok(Self { poll, all: devices, window, sent: 0, acknowledged: 0, latencies: Vec::new() })
    }

    /// Reports for so long, at most `rate` a second in all (0: as fast as it is acknowledged).
    pub(crate) fn report(&mut self, time: Duration, rate: u64) -> anyhow::Result<()> {
        let (started, before) = (Instant::now(), self.sent);
        let mut turn = 0;
        while started.elapsed() < time {
            let allowed = match rate {
                0 => u64::MAX,
                rate => (started.elapsed().as_secs_f64() * rate as f64) as u64,
            };
            // One report a device and round, so that a given rate is spread over all of them.
            let mut idle = 0;
            while self.sent - before < allowed && idle < self.all.len() {
                turn = (turn + 1) % self.all.len();
                idle = if self.begin(turn) { 0 } else { idle + 1 };
            }
            for device in &mut self.all {
                device.send()?;
            }
            self.turn(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// Waits for what is still on its way.
    pub(crate) fn finish(&mut self, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.acknowledged < self.sent && started.elapsed() < patience {
            for device in &mut self.all {
                device.send()?;
            }
            self.turn(Duration::from_millis(5))?;
        }
        Ok(())
    }

    fn begin(&mut self, index: usize) -> bool {
        let window = self.window;
        let Some(device) = self.all.get_mut(index) else { return false };
        let slot = usize::from(device.next_id - 1);
        let free = device.sent_at.get(slot).is_some_and(Option::is_none);
        if device.waiting >= window || !free || device.unsent.len() > UNSENT_MAX {
            return false;
        }
        let n = self.sent;
        let report = format!("{{\"temperature\":{}.{},\"humidity\":{},\"n\":{n}}}", 15 + n % 10, n % 7, 40 + n % 20);
        publish(&mut device.unsent, device.next_id, report.as_bytes());
        device.sent_at[slot] = Some(Instant::now());
        device.next_id = device.next_id % window + 1;
        device.waiting += 1;
        self.sent += 1;
        true
    }

    fn turn(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(256);
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        for event in &events {
            let Some(device) = self.all.get_mut(event.data.u64() as usize) else { continue };
            let before = self.latencies.len();
            device.receive(now, &mut self.latencies)?;
            self.acknowledged += (self.latencies.len() - before) as u64;
        }
        Ok(())
    }
}

impl Device {
    fn send(&mut self) -> anyhow::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
            Ok(count) => drop(self.unsent.drain(..count)),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn receive(&mut self, now: Instant, latencies: &mut Vec<f64>) -> anyhow::Result<()> {
        let mut bytes = [0; 16 * 1024];
        match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((_, 0)) => anyhow::bail!("the broker closed the connection"),
            Ok((_, len)) => self.unread.extend_from_slice(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut taken = 0;
        while let Some([first, len, high, low]) = self.unread.get(taken..).and_then(|u| u.first_chunk::<4>()) {
            ensure!((*first, *len) == (0x40, 2), "not a PUBACK: {first:02x} {len:02x}");
            let id = u16::from_be_bytes([*high, *low]);
            let slot = self.sent_at.get_mut(usize::from(id).wrapping_sub(1)).and_then(Option::take);
            latencies.push((now - slot.context("acknowledged what was not sent")?).as_secs_f64());
            self.waiting -= 1;
            taken += 4;
        }
        self.unread.drain(..taken);
        Ok(())
    }
}

/// A CONNECT with a clean session and no keep-alive.
fn connect(client: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    body.extend((client.len() as u16).to_be_bytes());
    body.extend(client.as_bytes());
    [vec![0x10, body.len() as u8], body].concat()
}

/// A PUBLISH at QoS 1 of fewer than 128 bytes.
fn publish(out: &mut Vec<u8>, id: u16, payload: &[u8]) {
    out.extend([0x32, (2 + TOPIC.len() + 2 + payload.len()) as u8]);
    out.extend((TOPIC.len() as u16).to_be_bytes());
    out.extend(TOPIC.as_bytes());
    out.extend(id.to_be_bytes());
    out.extend(payload);
}
