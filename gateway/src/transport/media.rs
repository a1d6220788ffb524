//! What a session has open that carries a stream by itself, to its viewer or from its publisher: the stream's units, and UDP ports.
//!
//! Must not be in here: RTP. What goes into packets is the session's affair.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::media::{StreamName, Track, Tracks, Unit};
use protocols::{MediaEvent, Refusal, Ticket};
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tracing::debug;

use crate::hooks::{Silence, Stay};
use crate::stream::{Feed, Parted, StreamCore, Tap, TapKind, TapRules, Tapped};

/// Pairs of ports one session may have: a stream has two tracks.
const PORTS_MAX: usize = 2;
/// Streams one session may be the source of.
const CARRIED_MAX: usize = 64;
/// Pairs of ports that are tried: the first of a pair is even, as RTP wants it, and the second may be taken.
const TRIES_MAX: usize = 64;
/// What the kernel may hold of one socket, bytes: a key frame.
const SEND_BUFFER: usize = 512 * 1024;
/// Packets that wait for the kernel: the pieces of a large key frame. More are lost, as UDP may, and counted.
const UNSENT_MAX: usize = 1_024;
/// The same of a publisher's, which is read between other work.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;
/// A packet of a peer; a longer one is lost.
const RECEIVE_MAX: usize = 2_048;
/// What a tap may hold back for one viewer: a slow one goes on at a key frame, as everywhere.
const RULES: TapRules = TapRules { kind: TapKind::Rtsp, units_max: 512, bytes_max: 4 * 1024 * 1024 };
/// What is sent of the past at a join comes so many times faster than it happened: a receiver's buffer is small.
const CATCH_UP: i64 = 8;
/// How long it may take until a stream's tracks are known.
const DESCRIBE_MAX: Duration = Duration::from_secs(3);
/// A stream in which one track was seen for so long has no other, 1/90,000 s.
const TRACKS_WITHIN: i64 = 90_000 / 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Media {
    ports: Vec<Ports>,
    unsent: VecDeque<Unsent>,
    following: Option<Following>,
    feed: Option<Feed>,
    carried: Vec<Carried>,
}

/// One of several streams that the session is the source of.
#[derive(Debug)]
struct Carried {
    ticket: Ticket,
    feed: Feed,
    /// Held as long as it is.
    _stay: Option<Stay>,
}

#[derive(Debug)]
struct Ports {
    ticket: Ticket,
    sockets: [UdpSocket; 2],
}

#[derive(Debug)]
struct Unsent {
    ticket: Ticket,
    second: bool,
    packet: Bytes,
}

#[derive(Debug)]
struct Following {
    tap: Tap,
    /// A unit whose time has not come.
    early: Option<Unit>,
    /// When the first unit went, and its decode time.
    start: Option<(Instant, i64)>,
}

/// What became of a packet to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    Lost,
}

impl Media {
    /// Opens two neighbouring ports on our side of the connection, for that peer alone.
    pub(super) async fn open(
        &mut self,
        (local, peer): (IpAddr, IpAddr),
        ticket: Ticket,
        remote: [u16; 2],
    ) -> Result<[u16; 2], Refusal> {
        if self.ports.len() >= PORTS_MAX {
            return Err(Refusal::Limit(format!("{PORTS_MAX} pairs of ports")));
        }
        let unavailable = |error: io::Error| Refusal::Unavailable(format!("no UDP port: {error}"));
        let (sockets, first) = pair(local).await.map_err(unavailable)?;
        for (socket, port) in sockets.iter().zip(remote) {
            // From here on the kernel takes packets of nobody else, and sends to nobody else.
            socket.connect(SocketAddr::new(peer, port)).await.map_err(unavailable)?;
            SockRef::from(socket).set_send_buffer_size(SEND_BUFFER).map_err(unavailable)?;
        }
        self.ports.push(Ports { ticket, sockets });
        Ok([first, first + 1])
    }

    /// Sends a packet, or keeps it until the kernel takes it.
    pub(super) fn send(&mut self, ticket: Ticket, second: bool, packet: Bytes) -> Sent {
        let Some(socket) = socket(&self.ports, ticket, second) else { return Sent::Lost };
        if self.unsent.is_empty() {
            match socket.try_send(&packet) {
                Ok(_) => return Sent::Yes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The answer to an earlier packet: nobody listens there (yet).
                Err(_) => return Sent::Lost,
            }
        }
        if self.unsent.len() >= UNSENT_MAX {
            return Sent::Lost;
        }
        self.unsent.push_back(Unsent { ticket, second, packet });
        Sent::Yes
    }

    /// Follows a stream from its newest key frame on.
    pub(super) async fn follow(&mut self, streams: &StreamCore, stream: &StreamName) -> Result<(), Refusal> {
        let tap = streams.tap(stream, RULES).await?;
        tap.set_viewers(1);
        self.following = Some(Following { tap, early: None, start: None });
        Ok(())
    }

    /// Whether packets come beside the connection, so that the session stays where its ports are.
    pub(super) fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Whether units come in here: the peer's last ones may come after it closed the connection.
    pub(super) fn is_source(&self) -> bool {
        self.feed.is_some()
    }

    /// Makes the session the stream's source.
    pub(super) async fn publish(
        &mut self,
        streams: &StreamCore,
        stream: &StreamName,
        origin: &str,
        silence: Option<Silence>,
    ) -> Result<(), Refusal> {
        for socket in self.ports.iter().flat_map(|ports| &ports.sockets) {
            if let Err(error) = SockRef::from(socket).set_recv_buffer_size(RECEIVE_BUFFER) {
                debug!(%error, "a publisher's port keeps its buffer");
            }
        }
        self.feed = Some(streams.feed(stream, origin, silence).await?);
        Ok(())
    }

    /// Hands on a unit of the stream that the session is the source of.
    pub(super) async fn push(&self, unit: Unit) -> Result<(), Parted> {
        match &self.feed {
            Some(feed) => feed.push(unit).await,
            None => Err(Parted("a unit without its stream".to_owned())),
        }
    }

    /// Makes the session the source of one more stream.
    pub(super) async fn carry(
        &mut self,
        streams: &StreamCore,
        ticket: Ticket,
        stream: &StreamName,
        origin: &str,
        stay: Option<Stay>,
    ) -> Result<(), Refusal> {
        if self.carried.len() >= CARRIED_MAX {
            return Err(Refusal::Limit(format!("{CARRIED_MAX} streams of one peer")));
        }
        let feed = streams.feed(stream, origin, stay.as_ref().map(Stay::silence)).await?;
        self.carried.push(Carried { ticket, feed, _stay: stay });
        Ok(())
    }

    /// Hands on a unit of one of several streams; an error ends it. What comes after its end is left out.
    pub(super) async fn push_to(&mut self, ticket: Ticket, unit: Unit) -> Result<(), Parted> {
        let Some(at) = self.carried.iter().position(|carried| carried.ticket == ticket) else { return Ok(()) };
        let Some(carried) = self.carried.get(at) else { return Ok(()) };
        let pushed = carried.feed.push(unit).await;
        if pushed.is_err() {
            self.carried.remove(at);
        }
        pushed
    }

    /// The next thing for the session; `None` when the stream has ended. Cancel safe. Units wait while packets do, and while
    /// the connection is not `ready` for more.
    pub(super) async fn next(&mut self, ready: bool) -> Option<MediaEvent> {
        let Self { ports, unsent, following, feed, carried: _ } = self;
        loop {
            let may_take = ready && unsent.is_empty();
            tokio::select! {
                biased;
                event = poll_fn(|cx| poll_ports(ports, unsent, cx)) => if event.is_some() {
                    return event;
                },
                _why = async { match feed { Some(feed) => feed.parted().await, None => pending().await } } => return None,
                unit = next_unit(following, may_take) => return unit.map(MediaEvent::Unit),
            }
        }
    }
}

fn socket(ports: &[Ports], ticket: Ticket, second: bool) -> Option<&UdpSocket> {
    let pair = ports.iter().find(|ports| ports.ticket == ticket)?;
    let [first, other] = &pair.sockets;
    Some(if second { other } else { first })
}

/// Sends what waits, and gives what came in; `None` when the last that waited is gone.
fn poll_ports(ports: &[Ports], unsent: &mut VecDeque<Unsent>, cx: &mut Context<'_>) -> Poll<Option<MediaEvent>> {
    let waited = !unsent.is_empty();
    while let Some(Unsent { ticket, second, packet }) = unsent.front() {
        if let Some(socket) = socket(ports, *ticket, *second)
            && socket.poll_send(cx, packet).is_pending()
        {
            break;
        }
        // Sent, or refused for good.
        unsent.pop_front();
    }
    if waited && unsent.is_empty() {
        return Poll::Ready(None);
    }
    for Ports { ticket, sockets } in ports {
        // Reports first: a publisher's first tells the time of its first packet.
        for (socket, second) in sockets.iter().zip([false, true]).rev() {
            let mut buffer = [0; RECEIVE_MAX];
            let mut read = ReadBuf::new(&mut buffer);
            match socket.poll_recv(cx, &mut read) {
                Poll::Ready(Ok(())) if read.remaining() == 0 => {
                    debug!("a packet of more than {RECEIVE_MAX} bytes");
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Ok(())) => {
                    let packet = Bytes::copy_from_slice(read.filled());
                    return Poll::Ready(Some(MediaEvent::Packet { ticket: *ticket, second, packet }));
                }
                Poll::Ready(Err(error)) => {
                    // It belongs to an earlier packet of ours; the silence of a viewer that is gone ends it.
                    debug!(%error, "a viewer's port");
                    cx.waker().wake_by_ref();
                }
                Poll::Pending => {}
            }
        }
    }
    Poll::Pending
}

/// The next unit when its time has come; `None` at the stream's end.
async fn next_unit(following: &mut Option<Following>, may_take: bool) -> Option<Unit> {
    let Some(following) = following.as_mut().filter(|_| may_take) else { return pending().await };
    while following.early.is_none() {
        match following.tap.next().await? {
            Tapped::Unit(unit) => following.early = Some(unit),
            Tapped::Skipped { .. } | Tapped::Published | Tapped::Unpublished => {}
        }
    }
    let dts_90k = following.early.as_ref().map_or(0, |unit| unit.dts_90k);
    let (began, first_90k) = *following.start.get_or_insert_with(|| (Instant::now(), dts_90k));
    let after_ms = (dts_90k - first_90k).max(0) / 90 / CATCH_UP;
    let due = began + Duration::from_millis(u64::try_from(after_ms).unwrap_or(0));
    tokio::time::sleep_until(due.into()).await;
    following.early.take()
}

/// Two neighbouring ports, the first of them even.
async fn pair(local: IpAddr) -> io::Result<([UdpSocket; 2], u16)> {
    let mut last = io::Error::from(ErrorKind::AddrInUse);
    for _ in 0..TRIES_MAX {
        let first = UdpSocket::bind((local, 0)).await?;
        let port = first.local_addr()?.port();
        if port % 2 == 1 {
            continue;
        }
        match UdpSocket::bind((local, port + 1)).await {
            Ok(second) => return Ok(([first, second], port)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The stream's tracks, as soon as it is known which there are.
pub(super) async fn describe(streams: &StreamCore, stream: &StreamName) -> Result<Box<Tracks>, Refusal> {
    let mut tap = streams.tap(stream, RULES).await?;
    let mut tracks = Tracks::default();
    let mut first_90k = None;
    let known = async {
        while let Some(tapped) = tap.next().await {
            let Tapped::Unit(unit) = tapped else { continue };
            tracks.note(&unit);
            let span = unit.dts_90k - *first_90k.get_or_insert(unit.dts_90k);
            if (is_known(&tracks, Track::Video) && is_known(&tracks, Track::Audio)) || span >= TRACKS_WITHIN {
                return;
            }
        }
    };
    // What is known by then is what there is.
    let _late = tokio::time::timeout(DESCRIBE_MAX, known).await;
    let any = is_known(&tracks, Track::Video) || is_known(&tracks, Track::Audio);
    if any { Ok(Box::new(tracks)) } else { Err(Refusal::Unavailable(format!("stream {stream} has no media yet"))) }
}

fn is_known(tracks: &Tracks, track: Track) -> bool {
    protocols::media::rtp::Format::of(tracks, track).is_some()
}
