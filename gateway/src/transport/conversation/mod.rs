//! What a session wants done, carried out in order. What takes waiting for other parts is in `attend.rs`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use protocols::exchange::Request;
use protocols::hls::Body;
use protocols::{Identity, Input, Limits, Outbox, Output, Peer, Refusal, Ticket};
use tracing::debug;

use super::drive::{BoxedSession, Woken};
use super::line::Line;
use super::media::{Media, Sent};
use super::unsettled::Unsettled;
use super::unwritten::Unwritten;
use super::wire::Wire;
use super::{Adapter, Language, Services, seed};
use crate::broker::Attachment;
use crate::hooks::Stay;

mod attend;

/// Recoverable faults of one peer before it is closed: noise is not a conversation.
const FAULTS_MAX: u32 = 1_000;

/// Why a talk ended.
#[derive(Debug)]
pub(super) enum Ending {
    Closed(Cow<'static, str>),
    Stopping,
    /// The connection moves to a stream thread; the outbox begins with the output that asked for it.
    Moves(Outbox),
}

impl Ending {
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Closed(why) => why,
            Self::Stopping => "the gateway stops",
            Self::Moves(_) => "the connection moved to its stream",
        }
    }
}

/// How far the outputs that need no waiting went.
enum Plain {
    Done,
    Ending(Ending),
    Attend(Output),
}

/// The answer to [`Output::Fetch`].
pub(super) type Fetched = (Ticket, Result<Body, Refusal>);

/// What a session wants that takes waiting for other parts.
type Attending<'a> = Pin<Box<dyn Future<Output = Option<Ending>> + Send + 'a>>;

/// How far carrying out went.
pub(super) enum Step<'a> {
    Done,
    Ending(Ending),
    Waits(Attending<'a>),
}

/// One session and everything it has under way.
///
/// A fleet is ten thousand of these, and most of them silent: what only some connections need, or only while they talk,
/// is in boxes that are made for it and go again.
pub(super) struct Conversation {
    pub(super) session: BoxedSession,
    pub(super) language: Arc<Language>,
    pub(super) admitted: bool,
    pub(super) unwritten: Unwritten,
    unsettled: Unsettled,
    attachment: Option<Attachment>,
    /// A piece of a stream that is on its way or still has to come.
    fetching: Option<Pin<Box<dyn Future<Output = Fetched> + Send>>>,
    /// Of a session that carries a stream by itself.
    pub(super) media: Option<Box<Media>>,
    /// Of a session that speaks for devices.
    line: Option<Box<Line>>,
    pub(super) address: Option<SocketAddr>,
    secure: bool,
    outbox: Outbox,
    identity: Option<Identity>,
    /// Of a publisher or viewer.
    stay: Option<Stay>,
    faults: u32,
    fatal: Option<Box<Cow<'static, str>>>,
    /// Something other than bytes came in since the unread bytes were last offered.
    offer: bool,
    pub(super) adapter: Arc<Adapter>,
    pub(super) services: Arc<Services>,
}

impl Conversation {
    pub(super) fn new(peer: &Peer, language: Arc<Language>, adapter: Arc<Adapter>, services: Arc<Services>) -> Self {
        Self {
            session: language.endpoint.open(peer),
            language,
            admitted: false,
            unwritten: Unwritten::default(),
            unsettled: Unsettled::default(),
            attachment: None,
            fetching: None,
            media: None,
            line: None,
            address: peer.address,
            secure: peer.secure,
            outbox: Outbox::default(),
            identity: None,
            stay: None,
            faults: 0,
            fatal: None,
            offer: false,
            adapter,
            services,
        }
    }

    pub(super) fn heard(&self, bytes: usize) {
        self.services.metrics.bytes_in(&self.adapter.info.name, bytes as u64);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.services.metrics.bytes_out(&self.adapter.info.name, bytes as u64);
    }

    pub(super) fn receive(&mut self, input: Input<'_>) {
        if self.fatal.is_some() {
            return;
        }
        self.offer = true;
        if let Err(fault) = self.session.receive(Instant::now(), input, &mut self.outbox) {
            self.services.metrics.fault(&self.adapter.info.name, self.language.row.name());
            self.faults += 1;
            debug!(peer = ?self.address, adapter = %self.adapter.info.name, protocol = self.language.row.name(), %fault, "fault");
            if fault.fatal {
                self.fatal = Some(Box::new(fault.to_string().into()));
            } else if self.faults >= FAULTS_MAX {
                self.fatal = Some(Box::new("too many faults".into()));
            }
        }
    }

    /// Hands the bytes to the session again and again while it takes some and stumbles over others.
    pub(super) fn receive_stream(&mut self, unread: &mut BytesMut) {
        while !unread.is_empty() && self.fatal.is_none() {
            let (before, faults) = (unread.len(), self.faults);
            self.receive(Input::Stream(unread));
            // Without a fault the session took what it could; with one it may go on with the next frame.
            if self.faults == faults || unread.len() == before {
                break;
            }
        }
        self.offer = false;
    }

    /// Offers the unread bytes again after other inputs; true when that led to something to carry out.
    pub(super) fn resume(&mut self, unread: &mut BytesMut) -> bool {
        if !self.offer || unread.is_empty() || self.fatal.is_some() || self.session.paused() {
            self.offer = false;
            return !self.outbox.is_empty() && self.fatal.is_none();
        }
        self.receive_stream(unread);
        !self.outbox.is_empty() && self.fatal.is_none()
    }

    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        if self.session.deadline().is_some_and(|at| at <= now) {
            self.session.tick(now, &mut self.outbox);
        }
    }

    /// Answers everything that has become durable (or failed to).
    pub(super) fn settle(&mut self) {
        let durable = self.services.bus.durable().borrow().clone();
        let kept = *self.services.broker.kept().borrow();
        while let Some((ticket, outcome)) = self.unsettled.pop(&durable, kept) {
            self.receive(Input::Settled { ticket, outcome });
        }
    }

    /// What other parts have for the session; rare things first, so that a flood of deliveries holds none of them up.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
        if self.unsettled.poll(cx, &self.services).is_ready() {
            return Poll::Ready(Woken::Durable);
        }
        if let Some(fetching) = &mut self.fetching
            && let Poll::Ready(fetched) = fetching.as_mut().poll(cx)
        {
            self.fetching = None;
            return Poll::Ready(Woken::Fetched(fetched));
        }
        if let Some(line) = &mut self.line
            && let Poll::Ready(command) = line.poll(cx)
        {
            return Poll::Ready(Woken::Command(command));
        }
        match &mut self.attachment {
            Some(attachment) => attachment.poll_next(cx).map(Woken::Exchange),
            None => Poll::Pending,
        }
    }

    /// Holds no room while nothing happens.
    pub(super) fn shrink(&mut self) {
        self.outbox.shrink();
        self.unwritten.shrink();
    }

    /// Whether the talk is over: a fatal fault, or a frame larger than allowed.
    pub(super) fn over(&mut self, unread: &BytesMut) -> Option<Ending> {
        if self.fatal.is_none() && unread.len() >= self.language.limits.frame_max && !self.session.paused() {
            self.services.metrics.fault(&self.adapter.info.name, self.language.row.name());
            let what = format!("a frame of more than {} bytes", self.language.limits.frame_max);
            self.fatal = Some(Box::new(what.into()));
        }
        // What the session wanted said before the fault (a CONNACK with a reason, a 400) is said by the goodbye.
        self.fatal.take().map(|why| Ending::Closed(*why))
    }

    /// Carries out what the session wants, in order.
    ///
    /// What has to wait for other parts lives in a box for as long as it takes: an idle connection holds no room for it.
    pub(super) fn carry_out<'a>(&'a mut self, wire: &'a Wire) -> Step<'a> {
        match self.carry_out_plain(wire) {
            Plain::Done => Step::Done,
            Plain::Ending(ending) => Step::Ending(ending),
            Plain::Attend(output) => Step::Waits(Box::pin(self.attend(wire, output))),
        }
    }

    /// Carries out what needs no waiting, up to the first output that does.
    fn carry_out_plain(&mut self, wire: &Wire) -> Plain {
        while let Some(output) = self.outbox.pop() {
            match output {
                Output::Send(bytes) => self.send(wire, bytes),
                Output::Packet { ticket, second, packet } => self.send_packet(ticket, second, packet),
                Output::Close { reason } => return Plain::Ending(Ending::Closed(reason)),
                Output::Source { .. } if self.media.as_ref().is_some_and(|media| media.has_ports()) => {
                    return Plain::Attend(output);
                }
                Output::Unit(_) if self.media.is_some() => return Plain::Attend(output),
                Output::Source { .. } | Output::Watch { .. } => {
                    let mut moving = Outbox::default();
                    moving.push(output);
                    while let Some(next) = self.outbox.pop() {
                        moving.push(next);
                    }
                    return Plain::Ending(Ending::Moves(moving));
                }
                Output::Fetch { ticket, stream, piece, carried, player } => {
                    let fetch = self.services.hls.clone().fetch(stream, piece, carried, (player, self.address));
                    self.fetch(ticket, fetch);
                }
                Output::Missing { packets } => {
                    self.services.metrics.packets_missing(&self.adapter.info.name, packets);
                }
                // A unit before its source: the session's fault, and nobody could be watching.
                Output::Unit(_) => self.services.metrics.fault(&self.adapter.info.name, self.language.row.name()),
                other => return Plain::Attend(other),
            }
        }
        Plain::Done
    }

    /// What a session still says when its talk is over: bytes, and what never left.
    pub(super) async fn last_words(&mut self, wire: &Wire) {
        while let Some(output) = self.outbox.pop() {
            match output {
                Output::Send(bytes) => self.send(wire, bytes),
                Output::Packet { ticket, second, packet } => self.send_packet(ticket, second, packet),
                Output::Exchange(request @ Request::Detach { .. }) => self.exchange(request).await,
                Output::Unsent { id } => self.services.intake.devices().session_unsent(&id),
                _ => {}
            }
        }
    }

    /// The end: every device this session spoke for is offline, unless another session took over.
    pub(super) async fn leave(&mut self, why: &str) {
        self.attachment = None;
        let Some(mut line) = self.line.take() else { return };
        let unanswered = !self.language.row.answers_elsewhere();
        for thing in line.things() {
            self.services.intake.depart(thing, line.route.id, why, unanswered).await;
        }
        // Nothing comes any more: no thing has this route.
        for command in line.rest() {
            self.services.intake.devices().session_unsent(&command.id);
        }
    }

    /// Takes the session out, for the stream thread.
    pub(super) async fn dismantle(mut self) -> (BoxedSession, Limits, Peer, Option<Stay>) {
        self.leave("moved to its stream").await;
        // The session has drawn on its seed when it was opened.
        let peer = Peer {
            address: self.address,
            adapter: Arc::clone(&self.adapter.info.name),
            seed: seed(),
            secure: self.secure,
        };
        (self.session, self.language.limits, peer, self.stay)
    }

    fn media(&mut self) -> &mut Media {
        self.media.get_or_insert_default()
    }

    fn send_packet(&mut self, ticket: Ticket, second: bool, packet: Bytes) {
        let len = packet.len();
        match self.media().send(ticket, second, packet) {
            Sent::Yes => self.wrote(len),
            Sent::Lost => self.services.metrics.packet_lost(&self.adapter.info.name),
        }
    }

    /// Whether everything that was asked is answered and written.
    pub(super) fn owes_nothing(&self) -> bool {
        let source = self.media.as_ref().is_some_and(|media| media.is_source());
        self.unsettled.is_empty() && self.unwritten.is_empty() && self.fetching.is_none() && !source
    }

    /// Starts to fetch; a session has one fetch at a time.
    fn fetch(&mut self, ticket: Ticket, fetch: impl Future<Output = Result<Body, Refusal>> + Send + 'static) {
        self.unwritten.share();
        self.fetching = Some(Box::pin(async move { (ticket, fetch.await) }));
    }

    fn send(&mut self, wire: &Wire, bytes: Bytes) {
        if wire.is_datagram() {
            match wire.send_packet(&bytes) {
                Ok(()) => self.wrote(bytes.len()),
                Err(error) => debug!(peer = ?self.address, %error, "a packet could not be sent"),
            }
        } else {
            self.unwritten.push(bytes);
        }
    }
}
