//! The seam between a protocol and the driver that runs it.
//!
//! A driver (the gateway's `drive.rs`, or a test) owns sockets and clock. It opens a [`Session`] per peer, feeds it
//! [`Input`]s and carries out its [`Output`]s. What needs an answer carries a [`Ticket`]; the answer comes back as an
//! input with the same ticket.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use device_models::{Command, Outcome, Report};

use crate::exchange;
use crate::hls;
use crate::media::{Container, StreamName, Tracks, Unit};
use crate::pass::Pass;

/// A row of [`PROTOCOLS`](crate::PROTOCOLS).
pub trait Protocol: Sync {
    /// Plain lower-case name, as configuration spells it.
    fn name(&self) -> &'static str;

    /// One line for help texts.
    fn summary(&self) -> &'static str;

    /// The kinds of wire it can run on.
    fn wires(&self) -> &'static [Wire];

    /// Whether a connection that begins with these bytes speaks this protocol. Never changes its mind: after `Yes` or
    /// `No` every longer prefix gets the same answer.
    fn sniff(&self, prefix: &[u8]) -> Sniff;

    /// Reads the adapter's `options` table. Unknown keys are refused.
    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError>;

    /// A commented `[[adapter]]` block; a law test parses it, `sluicegate check --example` prints it.
    fn example(&self) -> &'static str;

    /// Whether a device may answer a command by another connection than the one that brought it. If not, what it has not
    /// answered ends with the connection.
    fn answers_elsewhere(&self) -> bool {
        false
    }

    /// Bytes that peers really sent, for the laws, the fuzz corpus and the benchmarks.
    fn captures(&self) -> &'static [Capture];
}

/// A protocol with its options: opens sessions.
pub trait Endpoint: Send + Sync + fmt::Debug {
    fn limits(&self) -> Limits;
    fn open(&self, peer: &Peer) -> Box<dyn Session>;
}

/// The talk with one peer.
pub trait Session: Send {
    /// Takes one input. After a recoverable fault the session goes on with the next frame; after a fatal one the driver
    /// carries out what is in `out` and closes.
    ///
    /// Bytes may be left in a stream's buffer behind a recoverable fault, or because of [`paused`](Self::paused): the
    /// driver offers them again as long as the session takes some, and after every other input.
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault>;

    /// Called when [`deadline`](Self::deadline) has passed.
    fn tick(&mut self, now: Instant, out: &mut Outbox);

    /// When the session wants to be ticked next. Does not run backwards without input.
    fn deadline(&self) -> Option<Instant>;

    /// Whether the session takes no more bytes for now (it waits for an admission, or too much is not settled yet).
    /// The driver then stops reading, so that the peer feels it, and does not count the buffer against
    /// [`Limits::frame_max`]; when an input has ended the pause it hands the unread buffer in again.
    fn paused(&self) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Ordered bytes: TCP, TLS, serial.
    Stream,
    /// Packets: UDP.
    Datagram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    No,
    /// Undecided: more bytes are needed.
    More,
    Yes,
}

/// What the driver enforces for the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes the receive buffer may hold without the session taking a frame off it.
    pub frame_max: usize,
    /// A peer that sends nothing for this long is closed; `None` where the protocol keeps its own time (MQTT).
    pub silence_max: Option<Duration>,
    /// Time a new peer has to be admitted (CONNECT, handshake), from the first moment of the connection.
    pub admission_max: Duration,
}

/// Bytes of one side of a real talk.
#[derive(Debug, Clone, Copy)]
pub struct Capture {
    /// Named after the peer that sent it: `mosquitto_pub_311_qos1`.
    pub name: &'static str,
    pub wire: Wire,
    /// For datagrams: each packet preceded by its length as two bytes, big endian. Empty without the feature `captures`:
    /// a gateway carries no test data.
    pub bytes: &'static [u8],
}

impl Capture {
    pub const fn stream(name: &'static str, bytes: &'static [u8]) -> Self {
        Self::new(name, Wire::Stream, bytes)
    }

    pub const fn datagrams(name: &'static str, bytes: &'static [u8]) -> Self {
        Self::new(name, Wire::Datagram, bytes)
    }

    const fn new(name: &'static str, wire: Wire, bytes: &'static [u8]) -> Self {
        Self { name, wire, bytes: if cfg!(feature = "captures") { bytes } else { &[] } }
    }
}

/// Who is at the other end, as far as the wire tells.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// The adapter's name.
    pub adapter: Arc<str>,
    /// Randomness for handshakes, assigned ids and tokens: a pure crate has none of its own.
    pub seed: [u8; 32],
    /// The wire is encrypted.
    pub secure: bool,
}

/// Ties an answer to what was asked. Chosen by the session, unique within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Debug)]
pub enum Input<'a> {
    /// New bytes at the end of the buffer; the session takes whole frames off its front and leaves the rest.
    Stream(&'a mut BytesMut),
    /// One whole packet.
    Datagram(Bytes),
    /// The answer to [`Output::Admit`].
    Admission { ticket: Ticket, outcome: Result<Identity, Refusal> },
    /// The answer to a report or publication with a ticket: it is on disk, or it was refused.
    Settled { ticket: Ticket, outcome: Result<(), Refusal> },
    /// The answer to [`Output::Fetch`].
    Piece { ticket: Ticket, outcome: Result<hls::Body, Refusal> },
    /// Something from the exchange (MQTT's broker core) for this subscriber.
    Exchange(exchange::Event),
    /// An order for a device that this session speaks for; answered by [`Output::Answer`] or by a reply report.
    Command(Command),
    /// For sessions that asked for media.
    Media(MediaEvent),
    /// The peer closed its side, or the gateway stops: a last chance to say goodbye.
    Ended { reason: &'a str },
}

/// What comes back to a session that carries a stream to a viewer.
#[derive(Debug)]
pub enum MediaEvent {
    /// The answer to [`Output::Describe`].
    Described { ticket: Ticket, outcome: Result<Box<Tracks>, Refusal> },
    /// The answer to [`Output::Open`]: our two ports.
    Opened { ticket: Ticket, outcome: Result<[u16; 2], Refusal> },
    /// A packet to the first or second of the ports opened with this ticket.
    Packet { ticket: Ticket, second: bool, packet: Bytes },
    /// A unit of the stream asked for with [`Output::Follow`].
    Unit(Unit),
    /// A stream of [`Output::Carry`] is not this session's: it never was, another has it, it was closed or fell silent.
    Parted { ticket: Ticket },
    /// The first unit a viewer gets is known ([`Output::Watch`]): its decode time.
    Joined { dts_90k: i64 },
}

#[derive(Debug)]
pub enum Output {
    /// Bytes (or one packet) for the peer.
    Send(Bytes),
    /// May this peer do that? Answered by [`Input::Admission`].
    Admit {
        ticket: Ticket,
        claim: Claim,
    },
    /// This session speaks for the device from now on: it is online and its commands come here. A device that the
    /// gateway does not know is ignored here and refused when it reports.
    Speaks {
        by: Identity,
        device: String,
        product: Option<String>,
    },
    /// A device's report. With a ticket, [`Input::Settled`] follows once it is durable or refused.
    Report {
        ticket: Option<Ticket>,
        by: Identity,
        report: Report,
    },
    /// For the exchange.
    Exchange(exchange::Request),
    /// How the command with this id ended.
    Answer {
        id: String,
        outcome: Outcome,
    },
    /// The command with this id never left for the device: it may be tried another time.
    Unsent {
        id: String,
    },
    /// From here on this peer is the source of the stream, and [`Output::Unit`]s follow. The driver moves the
    /// connection to the thread that owns the stream.
    Source {
        stream: StreamName,
    },
    /// One access unit (or a changed codec configuration) of the stream this session is the source of.
    Unit(Unit),
    /// The same for a peer with several streams, which stays where it is: the ticket names the stream among them.
    /// [`MediaEvent::Parted`] ends it.
    Carry {
        ticket: Ticket,
        stream: StreamName,
    },
    /// One access unit of the stream carried under this ticket.
    Carried {
        ticket: Ticket,
        unit: Unit,
    },
    /// So many packets of a publisher did not come; what they belonged to is left out.
    Missing {
        packets: u64,
    },
    /// The peer is a viewer from here on: the driver hands its connection to the stream's fan-out.
    Watch {
        stream: StreamName,
        container: Container,
    },
    /// Which tracks has the stream, and in which codecs? Answered by [`MediaEvent::Described`] as soon as that is known.
    Describe {
        ticket: Ticket,
        stream: StreamName,
    },
    /// Two neighbouring UDP ports, for packets from and to these ports of the peer's own address and nobody else.
    /// Answered by [`MediaEvent::Opened`]; closed with the session.
    Open {
        ticket: Ticket,
        remote: [u16; 2],
    },
    /// A packet from the first or second of the ports opened with this ticket. A full socket loses it.
    Packet {
        ticket: Ticket,
        second: bool,
        packet: Bytes,
    },
    /// The session packs the stream for its viewer by itself: units come as [`MediaEvent::Unit`] at the stream's own pace.
    /// The talk ends with the stream.
    Follow {
        stream: StreamName,
    },
    /// A playlist or a piece of a stream, of a peer that was admitted to watch it. Answered by [`Input::Piece`], which a
    /// player may have to wait for.
    Fetch {
        ticket: Ticket,
        stream: StreamName,
        piece: hls::Piece,
        /// The query that a playlist's addresses carry.
        carried: String,
        /// What a player that opens the stream here is called.
        player: u64,
    },
    Close {
        reason: Cow<'static, str>,
    },
}

/// What a peer says it may do.
#[derive(Clone, PartialEq, Eq)]
pub enum Claim {
    /// To be this client. `name` may be empty (then the password or token alone decides).
    Device { name: String, user: Option<String>, secret: Option<Bytes> },
    /// To push this stream.
    Publish { stream: StreamName, pass: Pass },
    /// To watch this stream.
    Watch { stream: StreamName, pass: Pass },
}

/// Shows that there is a secret, never the secret: claims are logged.
impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |there: bool| if there { "given" } else { "none" };
        match self {
            Self::Device { name, user, secret } => f
                .debug_struct("Device")
                .field("name", name)
                .field("user", user)
                .field("secret", &hidden(secret.is_some()))
                .finish(),
            Self::Publish { stream, pass } => {
                f.debug_struct("Publish").field("stream", stream).field("key", pass).finish()
            }
            Self::Watch { stream, pass } => f.debug_struct("Watch").field("stream", stream).field("key", pass).finish(),
        }
    }
}

/// Who a peer was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name its credentials belong to; `anonymous` without.
    pub name: Arc<str>,
    pub reach: Reach,
}

/// The devices an identity may speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Any,
    Only(Arc<[Box<str>]>),
}

impl Identity {
    pub fn anonymous() -> Self {
        Self { name: Arc::from("anonymous"), reach: Reach::Any }
    }

    /// Whether it may speak for the device.
    pub fn reaches(&self, device: &str) -> bool {
        match &self.reach {
            Reach::Any => true,
            Reach::Only(devices) => devices.iter().any(|d| **d == *device),
        }
    }
}

/// Why the gateway said no; each protocol has its own code for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("wrong or missing credentials")]
    Unauthorized,
    #[error("not allowed: {0}")]
    Forbidden(String),
    #[error("not found: {0}")]
    NotFound(String),
    #[error("not valid: {0}")]
    Invalid(String),
    #[error("too much: {0}")]
    Limit(String),
    #[error("not now: {0}")]
    Unavailable(String),
}

/// A departure from the protocol: what, where in the bytes, whose, and whether the talk can go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}{}", .at.map(|at| format!(" at byte {at}")).unwrap_or_default())]
pub struct Fault {
    pub what: Cow<'static, str>,
    /// Offset into the frame or buffer in which it was seen.
    pub at: Option<usize>,
    pub whose: Whose,
    /// The talk cannot go on.
    pub fatal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The peer broke the rules.
    Peer,
    /// The peer is right, but we do not (or may not) do it.
    Ours,
}

impl Fault {
    /// The peer broke the rules and the talk is over.
    pub fn fatal(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), at: None, whose: Whose::Peer, fatal: true }
    }

    /// The peer broke the rules; the next frame may be good.
    pub fn recoverable(what: impl Into<Cow<'static, str>>) -> Self {
        Self { what: what.into(), at: None, whose: Whose::Peer, fatal: false }
    }

    pub fn at(mut self, at: usize) -> Self {
        self.at = Some(at);
        self
    }

    pub fn ours(mut self) -> Self {
        self.whose = Whose::Ours;
        self
    }
}

/// An adapter's `options` table that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("options{}: {why}", .key.as_deref().map(|k| format!(".{k}")).unwrap_or_default())]
pub struct OptionsError {
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub why: String,
}

impl OptionsError {
    /// Deserializes a protocol's options; the struct should `deny_unknown_fields`.
    pub fn parse<T: serde::de::DeserializeOwned>(options: &toml::Table) -> Result<T, Self> {
        options.clone().try_into().map_err(|e: toml::de::Error| Self { key: None, why: e.message().to_owned() })
    }
}

/// What a session wants done, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    outputs: VecDeque<Output>,
}

impl Outbox {
    pub fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub fn send(&mut self, bytes: impl Into<Bytes>) {
        self.push(Output::Send(bytes.into()));
    }

    pub fn close(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.push(Output::Close { reason: reason.into() });
    }

    pub fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn len(&self) -> usize {
        self.outputs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// Holds no room while there is nothing to do.
    pub fn shrink(&mut self) {
        if self.outputs.is_empty() {
            self.outputs = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_shows_no_secret() {
        let stream = StreamName::parse("live/gate").unwrap();
        let (secret, pass) = (Some(Bytes::from_static(b"sesame")), Pass::of_query("key=sesame"));
        let claims = [
            Claim::Device { name: "meter".to_owned(), user: Some("meter".to_owned()), secret },
            Claim::Publish { stream: stream.clone(), pass: pass.clone() },
            Claim::Watch { stream, pass },
        ];
        for claim in claims {
            let shown = format!("{claim:?}");
            assert!(!shown.contains("sesame") && shown.contains("given"), "{shown}");
        }
    }
}
