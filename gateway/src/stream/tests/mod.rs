//! The core as a whole, over loopback sockets: publishers that speak FLV tags, viewers that say nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::Bytes;
use device_models::{Value, Word};
use protocols::media::flv::{Demux, take_tag};
use protocols::media::{Codec, Kind, Track, Unit, mux};
use protocols::{Fault, Input};

use super::*;

mod publishers;
mod viewers;

/// Publishes what it receives as FLV tags.
struct FlvSource(Demux);

impl Session for FlvSource {
    fn receive(&mut self, _: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        if let Input::Stream(buffer) = input {
            while let Some(tag) = take_tag(buffer).map_err(|_| Fault::fatal("not FLV"))? {
                let unit = self.0.unit(tag.tag, tag.dts_ms, tag.body).map_err(|_| Fault::fatal("not FLV"))?;
                if let Some(unit) = unit {
                    out.push(Output::Unit(unit));
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// Answers each byte with a script tag: something that has to find its way between the tags of the stream.
struct Echo;

impl Session for Echo {
    fn receive(&mut self, _: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        if let Input::Stream(buffer) = input {
            for _ in buffer.split() {
                out.send(tag(&unit(Track::Data, Kind::Delta, 0, &[2, 0, 1, b'!'])));
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

fn tag(unit: &Unit) -> Bytes {
    let mut out = BytesMut::new();
    mux(Container::Flv).unit(unit, &mut out);
    out.freeze()
}

fn unit(track: Track, kind: Kind, dts_ms: i64, data: &[u8]) -> Unit {
    let codec = match track {
        Track::Video => Codec::H264,
        Track::Audio => Codec::Aac,
        Track::Data => Codec::Script,
    };
    let dts_90k = dts_ms * 90;
    Unit { track, codec, dts_90k, pts_90k: dts_90k, kind, data: Bytes::copy_from_slice(data) }
}

/// 64x48, of ffmpeg 5.1.
const CLIP: &[u8] = include_bytes!("../../../../protocols/src/media/testdata/ffmpeg_h264_aac.flv");

fn avcc() -> Vec<u8> {
    let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
    let units = std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap());
    let config = units.into_iter().find(|unit| unit.track == Track::Video && unit.kind == Kind::Config);
    config.unwrap().data.to_vec()
}

const ASC: [u8; 2] = [0x12, 0x10];

fn frame(kind: Kind, dts_ms: i64, len: usize) -> Unit {
    let mut nal = Vec::from((len as u32).to_be_bytes());
    nal.push(if kind == Kind::Key { 0x65 } else { 0x41 });
    nal.resize(4 + len, dts_ms as u8);
    unit(Track::Video, kind, dts_ms, &nal)
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (ours, theirs)
}

struct Rig {
    core: StreamCore,
    reports: mpsc::Receiver<Report>,
    tasks: Tasks,
}

impl Rig {
    fn new(change: impl FnOnce(&mut config::Stream)) -> Self {
        let mut config = config::Stream { threads: 2, wait_max_seconds: 1, ..config::Stream::default() };
        change(&mut config);
        let tasks = Tasks::new();
        let (send, reports) = mpsc::channel(256);
        let core = StreamCore::start(&config, send, &tasks).unwrap();
        Self { core, reports, tasks }
    }

    fn name() -> StreamName {
        StreamName::parse("live/gate").unwrap()
    }

    fn hand(&self, socket: TcpStream, session: Box<dyn Session>, first: Output) {
        let mut outbox = Outbox::default();
        outbox.push(first);
        let address = socket.peer_addr().ok();
        let peer = Peer { address, adapter: Arc::from("test"), seed: [0; 32], secure: false };
        let limits = Limits { frame_max: 1 << 20, silence_max: None, admission_max: Duration::from_secs(5) };
        let socket = Parked::Plain(socket);
        self.core.adopt(Handover { socket, session, outbox, unread: BytesMut::new(), limits, peer, stay: None });
    }

    async fn publish(&self) -> Push {
        let (ours, theirs) = pair();
        let before = self.publishers();
        self.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: Self::name() });
        self.until(|info| info.counters.publishers > before).await;
        Push(ours)
    }

    /// A publisher whose first key frame, of so many bytes, is in.
    async fn publish_key(&self, len: usize) -> Push {
        let mut push = self.publish().await;
        push.begin();
        push.send(&[frame(Kind::Key, 0, len)]);
        self.until(|info| info.counters.video_frames == 1).await;
        push
    }

    fn publishers(&self) -> u64 {
        self.core.list().first().map_or(0, |info| info.counters.publishers)
    }

    fn watch(&self, container: Container) -> Watcher {
        let (ours, theirs) = pair();
        self.hand(theirs, Box::new(Echo), Output::Watch { stream: Self::name(), container });
        Watcher { socket: ours, unread: BytesMut::new(), demux: Demux::default() }
    }

    /// Waits until the stream is as wanted: what the core tells about itself changes within a second.
    async fn until(&self, wanted: impl Fn(&StreamInfo) -> bool) {
        let patience = Instant::now() + Duration::from_secs(10);
        while !self.core.list().first().is_some_and(&wanted) {
            assert!(Instant::now() < patience, "{:#?}", self.core.list());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn close(self) {
        self.core.close().await;
        self.tasks.join(Duration::from_secs(2)).await;
    }
}

struct Push(TcpStream);

impl Push {
    fn send(&mut self, units: &[Unit]) {
        for unit in units {
            self.0.write_all(&tag(unit)).unwrap();
        }
    }

    fn begin(&mut self) {
        self.send(&[unit(Track::Video, Kind::Config, 0, &avcc()), unit(Track::Audio, Kind::Config, 0, &ASC)]);
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 64]), Ok(0) | Err(_))
    }
}

struct Watcher {
    socket: TcpStream,
    unread: BytesMut,
    demux: Demux,
}

impl Watcher {
    /// The next unit; `None` at the end of the stream.
    fn next(&mut self) -> Option<Unit> {
        loop {
            if let Some(tag) = take_tag(&mut self.unread).unwrap() {
                if let Some(unit) = self.demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap() {
                    return Some(unit);
                }
                continue;
            }
            let mut buffer = [0; 16384];
            match self.socket.read(&mut buffer).unwrap() {
                0 => return None,
                read => self.unread.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn next_frame(&mut self) -> Option<Unit> {
        loop {
            let unit = self.next()?;
            if unit.kind != Kind::Config && unit.track != Track::Data {
                return Some(unit);
            }
        }
    }

    fn frames(&mut self, count: usize) -> Vec<Unit> {
        (0..count).map(|_| self.next_frame().unwrap()).collect()
    }
}
