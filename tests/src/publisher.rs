//! A publisher of our own, over RTMP: it sends what it is told, when it is told.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::media::{Container, Kind, Mux, Track, Unit, mux};
use protocols::rtmp::client::{self, Target};

use crate::{Flv, PATIENCE};

/// What is added to the last frame's time for the next round of a clip, 1/90,000 s: a frame at 25 a second.
const FRAME: i64 = 90_000 / 25;

/// One publishing connection, accepted by the gateway.
pub struct Publisher {
    pub socket: TcpStream,
    mux: Box<dyn Mux>,
    out: BytesMut,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Publishes `live/NAME` at a media port.
    pub fn publish(port: u16, name: &str) -> Self {
        Self::publish_as(port, name, Container::Rtmp)
    }

    /// With H.265 said as the container has it.
    pub fn publish_as(port: u16, name: &str, container: Container) -> Self {
        Self::open(port, name, container).unwrap_or_else(|error| panic!("publishing live/{name}: {error}"))
    }

    /// An error is the gateway's refusal, or its silence.
    pub fn open(port: u16, name: &str, container: Container) -> io::Result<Self> {
        let target = Target::parse(&format!("rtmp://127.0.0.1:{port}/live/{name}")).expect("a target");
        let mut publisher = client::Publisher::new(target, &[7; 32]);
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut unread = BytesMut::new();
        while !publisher.is_ready() {
            socket.write_all(&publisher.take())?;
            let mut buffer = [0; 8192];
            let read = socket.read(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            unread.extend_from_slice(&buffer[..read]);
            while publisher.receive(&mut unread).map_err(io::Error::other)?.is_some() {}
        }
        Ok(Self { socket, mux: mux(container), out: BytesMut::from(&publisher.take()[..]) })
    }

    pub fn send(&mut self, unit: &Unit) -> io::Result<()> {
        self.mux.unit(unit, &mut self.out);
        self.socket.write_all(&self.out.split())
    }

    /// Sends each unit when its time has come, counted from the first.
    pub fn send_in_time(&mut self, units: impl IntoIterator<Item = Unit>) -> io::Result<()> {
        for unit in paced(units) {
            self.send(&unit)?;
        }
        Ok(())
    }
}

/// Gives each unit when its time has come, counted from the first.
pub fn paced(units: impl IntoIterator<Item = Unit>) -> impl Iterator<Item = Unit> {
    let mut began = None;
    units.into_iter().inspect(move |unit| {
        let (start, first) = *began.get_or_insert((Instant::now(), unit.dts_90k));
        let due = Duration::from_micros(u64::try_from((unit.dts_90k - first).max(0)).expect("a time") * 100 / 9);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    })
}

/// What a camera sends: configurations, and frames from a key frame on.
#[derive(Debug, Clone)]
pub struct Clip {
    pub configs: Vec<Unit>,
    pub frames: Vec<Unit>,
}

impl Clip {
    pub fn read(file: &Path) -> Self {
        let (configs, mut frames): (Vec<_>, Vec<_>) =
            Flv::read(file).units.into_iter().partition(|unit| unit.kind == Kind::Config || unit.track == Track::Data);
        let first = frames.iter().position(|unit| unit.track == Track::Video && unit.kind == Kind::Key);
        frames.drain(..first.expect("a key frame"));
        Self { configs, frames }
    }

    /// The configurations, then the frames again and again, the clock going on.
    pub fn endless(&self) -> impl Iterator<Item = Unit> {
        let video = self.frames.iter().filter(|unit| unit.track == Track::Video);
        let (first, last) = (self.frames[0].dts_90k, video.map(|unit| unit.dts_90k).max().expect("video"));
        let round = last - first + FRAME;
        let at = move |unit: &Unit, time: i64| Unit {
            dts_90k: unit.dts_90k - first + time,
            pts_90k: unit.pts_90k - first + time,
            ..unit.clone()
        };
        let frames = self.frames.clone();
        let configs: Vec<_> = self.configs.iter().map(|unit| Unit { dts_90k: 0, pts_90k: 0, ..unit.clone() }).collect();
        configs.into_iter().chain((0..).flat_map(move |n| {
            let again: Vec<_> = frames.iter().map(|unit| at(unit, n * round)).collect();
            again
        }))
    }
}
