//! One peer from its answer to its end: datagrams in, datagrams out, time, and the part it plays.
//!
//! Must not be in here: codecs (`viewer.rs`, `publisher.rs`), whose datagram it is (`endpoint.rs`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::net::{Protocol, Receive};
use str0m::{Event, Input, Output, Rtc};
use tracing::{debug, info};

use super::endpoint::{Datagram, Endpoint, Place, Seated};
use super::negotiation::{Negotiated, negotiate};
use super::publisher::Publisher;
use super::viewer::Viewer;
use crate::metrics::{Figure, Metrics};
use crate::threads::Tasks;
use crate::transport::Services;
use crate::webrtc::{Answer, Offer, OfferError, Role};

/// Time a peer has to connect.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// A connected peer says something every few seconds (RFC 7675); one that is silent for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// What is sent without a pause, and the pause: 64 Mb/s. A browser's socket holds some 64 KiB.
const BURST_BYTES: usize = 16 * 1024;
const BURST_EVERY: Duration = Duration::from_millis(2);
/// Datagrams taken in before anything else gets its turn.
const DATAGRAMS_AT_ONCE: usize = 32;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum End {
    #[error("the peer never connected")]
    Unconnected,
    #[error("the peer went without a word")]
    Silent,
    #[error("the peer hung up")]
    HungUp,
    #[error("it was ended over HTTP")]
    Deleted,
    #[error("{0}")]
    Stream(String),
    #[error("{0}")]
    Fault(String),
    #[error("the gateway stops")]
    Stopping,
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::Unconnected => "unconnected",
            Self::Silent => "silent",
            Self::HungUp => "hung-up",
            Self::Deleted => "deleted",
            Self::Stream(_) => "stream",
            Self::Fault(_) => "fault",
            Self::Stopping => "stopping",
        }
    }
}

/// Negotiates and starts a session.
pub(in crate::webrtc) async fn start(
    endpoint: &Arc<Endpoint>,
    place: Place,
    services: &Services,
    offer: Offer,
) -> Result<Answer, OfferError> {
    let (part, codecs) = match offer.role {
        Role::Watch => {
            let (viewer, codecs) = Viewer::prepare(services, &offer).await?;
            (Part::Viewer(Box::new(viewer)), codecs)
        }
        Role::Publish => {
            let (publisher, codecs) = Publisher::prepare(services, &offer, place.silence())?;
            (Part::Publisher(Box::new(publisher)), codecs)
        }
    };
    let Negotiated { rtc, sdp, local, ids, peer_ufrag } = negotiate(endpoint, &offer, codecs)?;
    let seated = endpoint.seat(offer.role, &offer.stream, ids, peer_ufrag);
    let answer = Answer { id: seated.seat.id.clone(), etag: seated.seat.etag.clone(), sdp };
    let session = Session {
        rtc,
        part,
        seated,
        place,
        endpoint: Arc::clone(endpoint),
        local,
        metrics: services.metrics.clone(),
        peer: offer.peer,
        began: Instant::now(),
        heard: None,
        pace: Pace { since: Instant::now(), sent: 0 },
    };
    services.tasks.spawn("webrtc session", session.run(services.tasks.clone()));
    Ok(answer)
}

enum Part {
    Viewer(Box<Viewer>),
    Publisher(Box<Publisher>),
}

impl Part {
    async fn event(&mut self, rtc: &mut Rtc, event: Event) -> Result<(), End> {
        match self {
            Self::Viewer(viewer) => viewer.event(rtc, event).await,
            Self::Publisher(publisher) => publisher.event(rtc, event).await,
        }
    }

    /// Does what there is to do beside the peer's datagrams; pending for ever where that is nothing. Cancel safe.
    async fn turn(&mut self, rtc: &mut Rtc) -> Result<(), End> {
        match self {
            Self::Viewer(viewer) => viewer.turn(rtc).await,
            Self::Publisher(publisher) => publisher.turn(rtc).await,
        }
    }
}

struct Session {
    rtc: Box<Rtc>,
    part: Part,
    seated: Seated,
    place: Place,
    endpoint: Arc<Endpoint>,
    local: SocketAddr,
    metrics: Metrics,
    /// Where the offer came from.
    peer: SocketAddr,
    began: Instant,
    /// When the peer last said something, once it is connected.
    heard: Option<Instant>,
    pace: Pace,
}

impl Session {
    async fn run(mut self, tasks: Tasks) {
        let seat = Arc::clone(&self.seated.seat);
        let end = loop {
            match self.turn(&tasks).await {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        self.metrics.add(Figure::WebrtcEnded, &[end.word()], 1);
        info!(stream = %seat.stream, role = seat.role.word(), peer = %self.peer, took = ?self.began.elapsed(), reason = %end, "a WebRTC session ended");
        self.goodbye().await;
    }

    /// Says goodbye: the browser then knows at once.
    async fn goodbye(&mut self) {
        if self.heard.is_none() || self.rtc.close().is_err() {
            return;
        }
        while let Ok(Output::Transmit(transmit)) = self.rtc.poll_output() {
            self.endpoint.send(transmit.destination, &transmit.contents).await;
        }
    }

    /// Says what there is to say, then waits for whatever comes first.
    async fn turn(&mut self, tasks: &Tasks) -> Result<(), End> {
        let due = self.drain().await?;
        if !self.rtc.is_alive() {
            return Err(End::HungUp);
        }
        let too_late = match self.heard {
            Some(heard) => heard + SILENCE_MAX,
            None => self.began + CONNECT_MAX,
        };
        tokio::select! {
            biased;
            () = self.seated.seat.stop.cancelled() => Err(End::Deleted),
            () = tasks.stopping() => Err(End::Stopping),
            datagram = self.seated.inbox.recv() => match datagram {
                Some(datagram) => self.receive(datagram),
                None => Err(End::Stopping),
            },
            () = tokio::time::sleep_until(due.min(too_late).into()) => {
                let now = Instant::now();
                if now >= too_late {
                    return Err(if self.heard.is_some() { End::Silent } else { End::Unconnected });
                }
                self.rtc.handle_input(Input::Timeout(now)).map_err(|error| End::Fault(error.to_string()))
            }
            turned = self.part.turn(&mut self.rtc) => turned,
        }
    }

    /// Takes what has come in. Each datagram is polled for before the next.
    fn receive(&mut self, datagram: Datagram) -> Result<(), End> {
        let Datagram { from, at, data } = datagram;
        let Ok(received) = Receive::new(Protocol::Udp, from, self.local, &data) else {
            self.metrics.add(Figure::WebrtcDropped, &["malformed"], 1);
            return Ok(());
        };
        let received = Input::Receive(at, received);
        if !self.rtc.accepts(&received) {
            self.metrics.add(Figure::WebrtcDropped, &["unaccepted"], 1);
            return Ok(());
        }
        if let Some(heard) = &mut self.heard {
            *heard = at;
        }
        self.rtc.handle_input(received).map_err(|error| End::Fault(error.to_string()))
    }

    /// Sends and acts on everything until there is nothing left but to wait: until when.
    async fn drain(&mut self) -> Result<Instant, End> {
        let mut taken = 0;
        loop {
            match self.rtc.poll_output().map_err(|error| End::Fault(error.to_string()))? {
                Output::Transmit(transmit) => {
                    self.pace.spend(transmit.contents.len()).await;
                    self.endpoint.send(transmit.destination, &transmit.contents).await;
                }
                Output::Event(event) => self.event(event).await?,
                Output::Timeout(due) => {
                    // What waits for us while we send is taken first, up to a point.
                    match (taken < DATAGRAMS_AT_ONCE).then(|| self.seated.inbox.try_recv()) {
                        Some(Ok(datagram)) => self.receive(datagram)?,
                        _ => return Ok(due),
                    }
                    taken += 1;
                }
            }
        }
    }

    async fn event(&mut self, event: Event) -> Result<(), End> {
        match &event {
            Event::Connected => {
                self.heard = Some(Instant::now());
                self.place.pending = None;
                debug!(stream = %self.seated.seat.stream, peer = %self.peer, took = ?self.began.elapsed(), "a WebRTC peer connected");
            }
            Event::Closed => return Err(End::HungUp),
            _ => {}
        }
        self.part.event(&mut self.rtc, event).await
    }
}

/// Keeps bursts (a key frame, the stream since the last one) from overrunning the peer's socket.
struct Pace {
    since: Instant,
    sent: usize,
}

impl Pace {
    async fn spend(&mut self, len: usize) {
        let now = Instant::now();
        if now.duration_since(self.since) >= BURST_EVERY {
            (self.since, self.sent) = (now, 0);
        }
        if self.sent + len > BURST_BYTES {
            tokio::time::sleep_until((self.since + BURST_EVERY).into()).await;
            (self.since, self.sent) = (Instant::now(), 0);
        }
        self.sent += len;
    }
}
