//! What a session wants done, carried out: admission, reports, the exchange, streams.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use device_models::{Class, Command, Report};
use protocols::exchange::{Publication, Request};
use protocols::hls::Body;
use protocols::{Claim, Identity, Input, Limits, MediaEvent, Outbox, Output, Peer, Refusal, Ticket};
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::drive::BoxedSession;
use super::media::{self, Media, Sent};
use super::unwritten::Unwritten;
use super::wire::Wire;
use super::{Adapter, Services, next_route};
use crate::admission::Admitted;
use crate::broker::{Attachment, Kept};
use crate::bus::Durable;
use crate::clock;
use crate::devices::{Devices, Route, Thing};
use crate::hooks::Stay;
use crate::intake::Appended;

/// Commands that may wait for one session.
const COMMANDS_MAX: usize = 16;
/// Recoverable faults of one peer before it is closed: noise is not a conversation.
const FAULTS_MAX: u32 = 1_000;
/// Reports and publications of one peer that may wait for the disk.
const UNSETTLED_MAX: usize = 4_096;

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

/// A report or publication whose acknowledgement waits for the disk.
#[derive(Debug)]
pub(super) struct Unsettled {
    ticket: Ticket,
    need: Need,
}

/// What must be durable before something is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Need {
    /// Highest sequence number per class of the bus.
    bus: [u64; 4],
    /// Change of the broker's state.
    broker: u64,
}

/// The answer to [`Output::Fetch`].
pub(super) type Fetched = (Ticket, Result<Body, Refusal>);

/// One session and everything it has under way.
pub(super) struct Conversation {
    pub(super) session: BoxedSession,
    pub(super) limits: Limits,
    pub(super) peer: Peer,
    pub(super) admitted: bool,
    pub(super) unwritten: Unwritten,
    pub(super) unsettled: VecDeque<Unsettled>,
    pub(super) durable: watch::Receiver<Durable>,
    pub(super) kept: watch::Receiver<Kept>,
    pub(super) attachment: Option<Attachment>,
    /// A piece of a stream that is on its way or still has to come.
    pub(super) fetching: Option<Pin<Box<dyn Future<Output = Fetched> + Send>>>,
    pub(super) commands: mpsc::Receiver<Box<Command>>,
    /// Of a session that carries a stream by itself.
    pub(super) media: Option<Box<Media>>,
    protocol: &'static str,
    route: Route,
    things: HashMap<Arc<str>, Arc<Thing>>,
    outbox: Outbox,
    identity: Option<Identity>,
    /// Of a publisher or viewer.
    stay: Option<Stay>,
    faults: u32,
    fatal: Option<Cow<'static, str>>,
    /// Something other than bytes came in since the unread bytes were last offered.
    offer: bool,
    adapter: Arc<Adapter>,
    services: Services,
}

impl Conversation {
    pub(super) fn new(
        peer: Peer,
        session: BoxedSession,
        limits: Limits,
        protocol: &'static str,
        adapter: Arc<Adapter>,
        services: Services,
    ) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let route = Route { id: next_route(), adapter: Arc::clone(&adapter.info.name), commands: sender };
        Self {
            session,
            limits,
            peer,
            admitted: false,
            unwritten: Unwritten::default(),
            unsettled: VecDeque::new(),
            durable: services.bus.durable(),
            kept: services.broker.kept(),
            attachment: None,
            fetching: None,
            commands,
            media: None,
            protocol,
            route,
            things: HashMap::new(),
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
            self.services.metrics.fault(&self.adapter.info.name, self.protocol);
            self.faults += 1;
            debug!(peer = ?self.peer.address, adapter = %self.adapter.info.name, protocol = self.protocol, %fault, "fault");
            if fault.fatal {
                self.fatal = Some(fault.to_string().into());
            } else if self.faults >= FAULTS_MAX {
                self.fatal = Some("too many faults".into());
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
        let durable = self.durable.borrow_and_update().clone();
        let kept = *self.kept.borrow_and_update();
        while let Some(first) = self.unsettled.front() {
            let outcome = match covered(&durable, kept, &first.need) {
                None => break,
                Some(true) => Ok(()),
                Some(false) => Err(Refusal::Unavailable("the store could not keep it".to_owned())),
            };
            let ticket = first.ticket;
            self.unsettled.pop_front();
            self.receive(Input::Settled { ticket, outcome });
        }
    }

    /// Whether the talk is over: a fatal fault, or a frame larger than allowed.
    pub(super) fn over(&mut self, unread: &BytesMut) -> Option<Ending> {
        if self.fatal.is_none() && unread.len() >= self.limits.frame_max && !self.session.paused() {
            self.services.metrics.fault(&self.adapter.info.name, self.protocol);
            self.fatal = Some(format!("a frame of more than {} bytes", self.limits.frame_max).into());
        }
        // What the session wanted said before the fault (a CONNACK with a reason, a 400) is said by the goodbye.
        self.fatal.take().map(Ending::Closed)
    }

    /// Carries out what the session wants, in order.
    ///
    /// What has to wait for other parts lives in a box for as long as it takes: an idle connection holds no room for it.
    pub(super) async fn carry_out(&mut self, wire: &Wire) -> Option<Ending> {
        match self.carry_out_plain(wire) {
            Plain::Done => None,
            Plain::Ending(ending) => Some(ending),
            Plain::Attend(output) => Box::pin(self.attend(wire, output)).await,
        }
    }

    /// Carries out what needs no waiting, up to the first output that does.
    fn carry_out_plain(&mut self, wire: &Wire) -> Plain {
        while let Some(output) = self.outbox.pop() {
            match output {
                Output::Send(bytes) => self.send(wire, bytes),
                Output::Packet { ticket, second, packet } => self.send_packet(ticket, second, packet),
                Output::Close { reason } => return Plain::Ending(Ending::Closed(reason)),
                Output::Source { .. } | Output::Watch { .. } => {
                    let mut moving = Outbox::default();
                    moving.push(output);
                    while let Some(next) = self.outbox.pop() {
                        moving.push(next);
                    }
                    return Plain::Ending(Ending::Moves(moving));
                }
                Output::Fetch { ticket, stream, piece, carried, player } => {
                    let fetch = self.services.hls.clone().fetch(stream, piece, carried, player);
                    self.fetch(ticket, fetch);
                }
                // A unit before its source: the session's fault, and nobody could be watching.
                Output::Unit(_) => self.services.metrics.fault(&self.adapter.info.name, self.protocol),
                other => return Plain::Attend(other),
            }
        }
        Plain::Done
    }

    /// Carries out this output and all behind it.
    async fn attend(&mut self, wire: &Wire, mut output: Output) -> Option<Ending> {
        let streams = self.services.streams.clone();
        loop {
            match output {
                Output::Admit { ticket, claim } => self.admit(ticket, claim).await,
                Output::Speaks { by, device, product } => self.speaks(&by, &device, product.as_deref()).await,
                Output::Report { ticket, by, report } => self.report(ticket, &by, report).await,
                Output::Answer { id, outcome } => self.services.intake.devices().session_answered(&id, outcome).await,
                Output::Exchange(request) => self.exchange(request).await,
                Output::Describe { ticket, stream } => {
                    let outcome = media::describe(&streams, &stream).await;
                    self.receive(Input::Media(MediaEvent::Described { ticket, outcome }));
                }
                Output::Open { ticket, remote } => {
                    let outcome = self.open_ports(wire, ticket, remote).await;
                    self.receive(Input::Media(MediaEvent::Opened { ticket, outcome }));
                }
                Output::Follow { stream } => {
                    if let Err(refusal) = self.media().follow(&streams, &stream).await {
                        return Some(Ending::Closed(refusal.to_string().into()));
                    }
                }
                // The plain ones never come here.
                _ => {}
            }
            match self.carry_out_plain(wire) {
                Plain::Done => return None,
                Plain::Ending(ending) => return Some(ending),
                Plain::Attend(next) => output = next,
            }
        }
    }

    /// Only the bytes: what a session still says when its talk is over.
    pub(super) async fn last_words(&mut self, wire: &Wire) {
        while let Some(output) = self.outbox.pop() {
            match output {
                Output::Send(bytes) => self.send(wire, bytes),
                Output::Packet { ticket, second, packet } => self.send_packet(ticket, second, packet),
                Output::Exchange(request @ Request::Detach { .. }) => self.exchange(request).await,
                _ => {}
            }
        }
    }

    /// The end: every device this session spoke for is offline, unless another session took over.
    pub(super) async fn leave(&mut self, why: &str) {
        self.attachment = None;
        for thing in self.things.values() {
            self.services.intake.depart(thing, self.route.id, why).await;
        }
    }

    /// Takes the session out, for the stream thread.
    pub(super) async fn dismantle(mut self) -> (BoxedSession, Limits, Peer, Option<Stay>) {
        self.leave("moved to its stream").await;
        (self.session, self.limits, self.peer, self.stay)
    }

    fn media(&mut self) -> &mut Media {
        self.media.get_or_insert_default()
    }

    async fn open_ports(&mut self, wire: &Wire, ticket: Ticket, remote: [u16; 2]) -> Result<[u16; 2], Refusal> {
        let peer = self.peer.address.map(|address| address.ip());
        let Some(ends) = wire.local_ip().zip(peer) else {
            return Err(Refusal::Unavailable("packets go beside TCP alone".to_owned()));
        };
        self.media().open(ends, ticket, remote).await
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
        self.unsettled.is_empty() && self.unwritten.is_empty() && self.fetching.is_none()
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
                Err(error) => debug!(peer = ?self.peer.address, %error, "a packet could not be sent"),
            }
        } else {
            self.unwritten.push(bytes);
        }
    }

    async fn admit(&mut self, ticket: Ticket, claim: Claim) {
        let locks = self.services.locks();
        let admitted = locks.admit(&self.adapter.info, self.protocol, self.peer.address, &claim).await;
        let outcome = admitted.map(|Admitted { identity, stay }| {
            self.stay = stay;
            identity
        });
        match &outcome {
            Ok(identity) => {
                self.admitted = true;
                self.identity = Some(identity.clone());
            }
            Err(refusal) => {
                self.services.metrics.refused(&self.adapter.info.name, crate::intake::reason(refusal));
                debug!(peer = ?self.peer.address, adapter = %self.adapter.info.name, %refusal, "not admitted");
            }
        }
        self.receive(Input::Admission { ticket, outcome });
    }

    async fn speaks(&mut self, by: &Identity, device: &str, product: Option<&str>) {
        if !by.reaches(device) {
            return;
        }
        let devices = self.services.intake.devices();
        // An ordinary client that is no device is no fault: only a declared thing, or a product named, makes a thing.
        let found = match product {
            Some(_) => devices.resolve(&self.adapter.info, device, product).ok(),
            None => devices.find(&self.adapter.info, device),
        };
        let Some(thing) = found else { return };
        self.note_thing(&thing);
        if let Err(refusal) = self.services.intake.arrive(&thing, &self.route, clock::now_us()).await {
            debug!(%device, %refusal, "could not say that a device came online");
        }
    }

    async fn report(&mut self, ticket: Option<Ticket>, by: &Identity, report: Report) {
        let mut need = Need::default();
        let outcome = self.take(by, report, &mut need.bus).await;
        self.promise(ticket, need, outcome);
    }

    async fn take(&mut self, by: &Identity, report: Report, need: &mut [u64; 4]) -> Result<(), Refusal> {
        let device = report.device.clone();
        let taken = self.services.intake.take(&self.adapter.info, by, report, Some(&self.route)).await?;
        if !self.things.contains_key(device.as_str())
            && let Some(thing) = self.services.intake.devices().find(&self.adapter.info, &device)
        {
            self.note_thing(&thing);
        }
        if let Some(Appended { class, seq }) = taken
            && let Some(need) = need.get_mut(usize::from(class.number()))
        {
            *need = (*need).max(seq);
        }
        Ok(())
    }

    fn note_thing(&mut self, thing: &Arc<Thing>) {
        if self.things.len() < Devices::per_route_max() {
            self.things.insert(Arc::clone(&thing.name), Arc::clone(thing));
        }
    }

    /// Answers the ticket now (refused, or nothing to wait for) or when the disk has it.
    fn promise(&mut self, ticket: Option<Ticket>, need: Need, outcome: Result<(), Refusal>) {
        let Some(ticket) = ticket else { return };
        if outcome.is_ok() && need != Need::default() && self.unsettled.len() >= UNSETTLED_MAX {
            // The session announced more room than it has: a defect, kept from growing without bound.
            self.receive(Input::Settled { ticket, outcome: Err(Refusal::Limit("too much at a time".to_owned())) });
        } else if outcome.is_ok() && (need != Need::default() || !self.unsettled.is_empty()) {
            self.unsettled.push_back(Unsettled { ticket, need });
            // The commit may have been quicker than we are: look again.
            self.durable.mark_changed();
        } else {
            self.receive(Input::Settled { ticket, outcome });
        }
    }

    async fn exchange(&mut self, request: Request) {
        match request {
            // Boxed: what it takes to get in is not carried along by a connection that is in.
            Request::Attach { .. } => match Box::pin(self.services.broker.attach(request, &self.adapter.info)).await {
                Ok((attachment, event)) => {
                    self.attachment = Some(attachment);
                    self.receive(Input::Exchange(event));
                }
                Err(event) => self.receive(Input::Exchange(event)),
            },
            Request::Publish { ticket, publication, reports, packet_id } => {
                self.publish(ticket, publication, reports, packet_id).await;
            }
            other => {
                let Some(attachment) = &mut self.attachment else { return };
                if let Some(event) = attachment.request(other).await {
                    self.receive(Input::Exchange(event));
                }
            }
        }
    }

    async fn publish(
        &mut self,
        ticket: Option<Ticket>,
        publication: Publication,
        reports: Vec<Report>,
        packet_id: Option<u16>,
    ) {
        let mut need = Need::default();
        let mut outcome = Ok(());
        let by = self.identity.clone().unwrap_or_else(Identity::anonymous);
        for report in reports {
            let taken = self.take(&by, report, &mut need.bus).await;
            outcome = outcome.and(taken);
        }
        // What is refused is not passed on either: its publisher may send it again.
        if outcome.is_ok()
            && let Some(attachment) = &mut self.attachment
        {
            match attachment.publish(publication, packet_id).await {
                Ok(published) => need.broker = published.kept,
                Err(refusal) => outcome = Err(refusal),
            }
        }
        self.promise(ticket, need, outcome);
    }
}

/// Whether everything needed is durable; `None` while that is not decided.
fn covered(durable: &Durable, kept: Kept, need: &Need) -> Option<bool> {
    let mut all = need.broker == 0 || kept.settled(need.broker)?;
    for (class, seq) in Class::ALL.into_iter().zip(&need.bus) {
        if *seq > 0 {
            all &= durable.settled(class, *seq)?;
        }
    }
    Some(all)
}
