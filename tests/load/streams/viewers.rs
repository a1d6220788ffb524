//! Thousands of viewers on one thread: epoll, and `MSG_TRUNC`, which takes bytes off a TCP socket without copying them.
//!
//! Until its first video frame a viewer reads for real, to know when that came; a probe goes on to, to know how late every
//! frame comes.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Socket, Type};

use super::Container;
use super::clip::{MARK, stamp_in};
use super::fleet::APP;
use super::publisher::{HANDSHAKE_LEN, NAME, hello, introduce};

/// Connections begun in one turn of the loop, so that reading goes on in between.
const CONNECTS_PER_TURN: usize = 16;
/// Bytes of a cut-off stamp that are kept for the next read.
const STAMP_LEN: usize = MARK.len() + 16;

/// Viewers of one stream.
#[derive(Debug)]
pub(crate) struct Crowd {
    poll: OwnedFd,
    address: SocketAddr,
    container: Container,
    /// Streams of the app; the viewers are spread over them.
    names: Vec<String>,
    /// Connections a second while they join.
    pace: f64,
    viewers: Vec<Viewer>,
    scratch: Vec<u8>,
    /// Moment that stamps count from.
    epoch: Instant,
    probing: bool,
    /// Closed by the server before they had seen video, and after it.
    pub(crate) refused: usize,
    pub(crate) cut: usize,
    /// Connect to first byte of video, s.
    pub(crate) joins: Vec<f64>,
    /// Frame sent to frame received, s; only of probes.
    pub(crate) latencies: Vec<f64>,
}

#[derive(Debug)]
struct Viewer {
    socket: Option<Socket>,
    begun: Instant,
    state: State,
    /// Read and not yet searched for a stamp.
    unread: Vec<u8>,
    bytes: u64,
    /// Of them, those before the last [`Crowd::mark`].
    marked: u64,
    stalled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Greeting,
    Joining,
    Watching,
}

impl Crowd {
    pub(crate) fn new(
        address: SocketAddr,
        container: Container,
        epoch: Instant,
        probing: bool,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            address,
            container,
            names: vec![NAME.to_owned()],
            pace: 1000.0,
            viewers: Vec::new(),
            scratch: vec![0; 1 << 20],
            epoch,
            probing,
            refused: 0,
            cut: 0,
            joins: Vec::new(),
            latencies: Vec::new(),
        })
    }

    /// Of these streams, the first viewer of the first one.
    pub(crate) fn of(mut self, names: &[String]) -> Self {
        names.clone_into(&mut self.names);
        self
    }

    /// So many connections a second while they join; 1000 otherwise.
    pub(crate) fn pace(mut self, per_second: usize) -> Self {
        self.pace = per_second as f64;
        self
    }

    /// Viewers that have seen video and are still there.
    pub(crate) fn playing(&self) -> usize {
        self.viewers.iter().filter(|viewer| viewer.socket.is_some() && viewer.state == State::Watching).count()
    }

    /// From the first connection's beginning to the last one's.
    pub(crate) fn begun_within(&self) -> Duration {
        let begun = self.viewers.iter().map(|viewer| viewer.begun);
        begun.clone().max().zip(begun.min()).map_or(Duration::ZERO, |(last, first)| last - first)
    }

    /// Lets so many in at their pace, and reads meanwhile. Ends when each has seen video or is refused, or after
    /// `patience`.
    pub(crate) fn join(&mut self, count: usize, patience: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.joins.len() + self.refused < count && started.elapsed() < patience {
            let due = count.min(1 + (started.elapsed().as_secs_f64() * self.pace) as usize);
            let room = due.saturating_sub(self.viewers.len()).min(CONNECTS_PER_TURN);
            for _ in 0..room {
                self.connect()?;
            }
            self.turn(Duration::from_millis(1))?;
        }
        Ok(())
    }

    pub(crate) fn watch(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// So many of them read no more, but stay.
    pub(crate) fn stall(&mut self, count: usize) -> anyhow::Result<()> {
        for viewer in self.viewers.iter_mut().filter(|v| v.socket.is_some()).take(count) {
            if let Some(socket) = &viewer.socket {
                epoll::delete(&self.poll, socket)?;
                viewer.stalled = true;
            }
        }
        Ok(())
    }

    /// What comes from here on counts for [`Self::silent`].
    pub(crate) fn mark(&mut self) {
        for viewer in &mut self.viewers {
            viewer.marked = viewer.bytes;
        }
    }

    /// Viewers that are there and read, and have got nothing since the mark.
    pub(crate) fn silent(&self) -> usize {
        let reading = self.viewers.iter().filter(|v| v.socket.is_some() && v.state == State::Watching && !v.stalled);
        reading.filter(|viewer| viewer.bytes == viewer.marked).count()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.viewers.iter().map(|v| v.bytes).sum()
    }

    fn connect(&mut self) -> anyhow::Result<()> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let begun = Instant::now();
        match socket.connect(&self.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error.into()),
        }
        let data = epoll::EventData::new_u64(self.viewers.len() as u64);
        epoll::add(&self.poll, &socket, data, epoll::EventFlags::OUT)?;
        self.viewers.push(Viewer {
            socket: Some(socket),
            begun,
            state: State::Connecting,
            unread: Vec::new(),
            bytes: 0,
            marked: 0,
            stalled: false,
        });
        Ok(())
    }

    /// One wait, and everything it brought.
    pub(crate) fn turn(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(1024);
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let index = event.data.u64() as usize;
            if self.serve(index).is_err()
                && let Some(viewer) = self.viewers.get_mut(index)
            {
                viewer.socket = None;
                match viewer.state {
                    State::Watching => self.cut += 1,
                    _ => self.refused += 1,
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(viewer) = self.viewers.get_mut(index) else { return Ok(()) };
        let Some(socket) = &viewer.socket else { return Ok(()) };
        if viewer.state == State::Connecting {
            if let Some(error) = socket.take_error()? {
                return Err(error.into());
            }
            let first = match self.container {
                Container::Rtmp => hello(),
                Container::HttpFlv => {
                    let name = name_of(&self.names, index);
                    format!("GET /{APP}/{name}.flv HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).into()
                }
            };
            send(socket, &first, SendFlags::NOSIGNAL)?;
            epoll::modify(&self.poll, socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            viewer.state = if self.container == Container::Rtmp { State::Greeting } else { State::Joining };
            return Ok(());
        }
        let discards = viewer.state == State::Watching && !self.probing;
        let flags = if discards { RecvFlags::TRUNC } else { RecvFlags::empty() };
        let (_, len) = match recv(socket, &mut self.scratch[..], flags) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(read) => read,
        };
        anyhow::ensure!(len > 0, "the server closed the connection");
        viewer.bytes += len as u64;
        if !discards {
            viewer.unread.extend_from_slice(&self.scratch[..len]);
            self.look(index)?;
        }
        Ok(())
    }

    /// Looks at what a viewer has read for real.
    fn look(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(viewer) = self.viewers.get_mut(index) else { return Ok(()) };
        if viewer.state == State::Greeting {
            if viewer.unread.len() < HANDSHAKE_LEN {
                return Ok(());
            }
            viewer.unread.drain(..HANDSHAKE_LEN);
            if let Some(socket) = &viewer.socket {
                let words = introduce(&self.address.to_string(), "play", APP, name_of(&self.names, index));
                send(socket, &words, SendFlags::NOSIGNAL)?;
            }
            viewer.state = State::Joining;
        }
        let now = Instant::now();
        while let Some((sent_us, end)) = stamp_in(&viewer.unread) {
            viewer.unread.drain(..end);
            if viewer.state == State::Joining {
                viewer.state = State::Watching;
                self.joins.push((now - viewer.begun).as_secs_f64());
                if !self.probing {
                    viewer.unread = Vec::new();
                    return Ok(());
                }
            }
            let age = now.saturating_duration_since(self.epoch).saturating_sub(Duration::from_micros(sent_us));
            self.latencies.push(age.as_secs_f64());
        }
        let kept = viewer.unread.len().saturating_sub(STAMP_LEN);
        viewer.unread.drain(..kept);
        Ok(())
    }
}

fn name_of(names: &[String], index: usize) -> &str {
    names.get(index % names.len().max(1)).map_or(NAME, String::as_str)
}
