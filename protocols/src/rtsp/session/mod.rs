//! The talk: requests are answered one after another; what an answer waits for pauses the talk.
//!
//! Inside: the state, requests that change none of it, and ends; `setup.rs` (the ways of the tracks), `play.rs` (viewers),
//! `own.rs` (viewers whose packets are made for them alone), `record.rs` (publishers).
//!
//! A viewer whose tracks are on the channels everybody uses is handed to the stream's fan-out; any other (UDP, channels of its
//! own choice) gets the stream's units and packets are made for it alone.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, BytesMut};
use rtsp_types::{Method, Version};

use self::own::Own;
use super::frame::{Answer, Frame, FrameError, Request, Status, Target};
use super::publishing::Publishing;
use super::sdp;
use crate::media::mux::interleaved::{SSRC_AUDIO, SSRC_VIDEO, put_frame_head};
use crate::media::rtp::reports;
use crate::media::{Container, StreamName, Track, Tracks};
use crate::pass::Pass;
use crate::session::{Claim, Fault, Input, MediaEvent, Outbox, Output, Refusal, Session, Ticket};

mod own;
mod play;
mod record;
mod setup;

/// A client over UDP that says nothing for this long, neither here nor in RTCP, is gone; one that does not come to the point too.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long what a publisher sent over UDP may take after it said goodbye over the connection.
const FAREWELL_MAX: Duration = Duration::from_millis(200);

/// How long the answer to PLAY waits for the first unit, whose time it tells.
const JOIN_MAX: Duration = Duration::from_secs(1);

/// Answers one connection may have before it watches: nobody needs more, and each is free work for a stranger.
const ANSWERS_MAX: u64 = 100;

const METHODS: &str = "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, TEARDOWN, GET_PARAMETER, SET_PARAMETER";

#[derive(Debug)]
pub(super) struct RtspSession {
    /// Our name for the session, given away with the first SETUP.
    id: String,
    seed: [u8; 32],
    udp: bool,
    heard: Option<Instant>,
    answered: u64,
    tickets: u64,
    waiting: Option<Waiting>,
    presentation: Option<Presentation>,
    /// What this peer announced and may push.
    publishing: Option<(StreamName, Box<Publishing>)>,
    setups: Vec<Setup>,
    state: State,
}

/// A request whose answer needs somebody else's.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    request: Box<Request>,
    /// For [`MediaEvent::Described`]: a claim that was granted.
    admitted: Option<StreamName>,
}

/// A stream this peer may watch.
#[derive(Debug)]
struct Presentation {
    stream: StreamName,
    tracks: Tracks,
}

/// A track as the client wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setup {
    track: Track,
    /// Its place in the description.
    place: usize,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Interleaved([u8; 2]),
    /// Through the ports opened with this ticket.
    Udp(Ticket),
}

#[derive(Debug)]
enum State {
    /// No stream flows.
    Still,
    /// The fan-out sends; PLAY is not answered yet.
    Joining {
        cseq: Option<u32>,
        since: Instant,
        container: Container,
    },
    Shared(Container),
    Own(Box<Own>),
    /// The peer is the stream's source.
    Recording,
    /// It said goodbye; packets may still be on their way.
    Leaving {
        until: Instant,
    },
    Closed,
}

// === impl Session ===

impl Session for RtspSession {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        self.heard.get_or_insert(now);
        match input {
            Input::Stream(buffer) => return self.frames(now, buffer, out),
            Input::Admission { ticket, outcome } => self.admission(ticket, outcome.map(drop), out),
            Input::Media(event) => return self.media(now, event, out),
            Input::Ended { .. } => self.farewell(out),
            Input::Datagram(_)
            | Input::Settled { .. }
            | Input::Exchange(_)
            | Input::Command(_)
            | Input::Piece { .. } => {}
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        if let State::Joining { .. } = self.state {
            self.joined(None, out);
        } else if let State::Leaving { .. } = self.state {
            self.close("the publisher left", out);
        } else {
            self.farewell(out);
            out.close("the client was silent for too long");
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Joining { since, .. } => Some(*since + JOIN_MAX),
            // What a viewer on the connection takes is watched by the stream, or the driver.
            State::Shared(_) | State::Closed => None,
            // A silent publisher is let go by its stream.
            State::Recording => None,
            State::Leaving { until } => Some(*until),
            State::Own(own) if !own.is_datagram() => None,
            State::Still | State::Own(_) => self.heard.map(|heard| heard + SILENCE_MAX),
        }
    }

    fn paused(&self) -> bool {
        self.waiting.is_some() || matches!(self.state, State::Joining { .. })
    }
}

impl RtspSession {
    pub(super) fn new(seed: [u8; 32], udp: bool) -> Self {
        let mut id = String::with_capacity(16);
        for byte in seed.iter().take(8) {
            // Writing to a string does not fail.
            let _infallible = write!(id, "{byte:02X}");
        }
        Self {
            id,
            seed,
            udp,
            heard: None,
            answered: 0,
            tickets: 0,
            waiting: None,
            presentation: None,
            publishing: None,
            setups: Vec::new(),
            state: State::Still,
        }
    }

    fn media(&mut self, now: Instant, event: MediaEvent, out: &mut Outbox) -> Result<(), Fault> {
        match event {
            MediaEvent::Described { ticket, outcome } => self.described(now, ticket, outcome, out),
            MediaEvent::Opened { ticket, outcome } => self.opened(ticket, outcome, out),
            MediaEvent::Packet { ticket, packet, .. } => {
                self.heard = Some(now);
                return self.recorded(now, |way| way == Way::Udp(ticket), packet, out);
            }
            MediaEvent::Unit(unit) => {
                if let State::Own(own) = &mut self.state {
                    own.unit(&unit, out);
                }
            }
            MediaEvent::Joined { dts_90k } => self.joined(Some(dts_90k), out),
            // A session of RTSP has one stream.
            MediaEvent::Parted { .. } => {}
        }
        Ok(())
    }

    fn frames(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while !self.paused() {
            if let State::Closed = self.state {
                buffer.clear();
                return Ok(());
            }
            match Frame::take(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(Frame::Request(request))) => {
                    self.heard = Some(now);
                    self.request(now, request, out);
                }
                // A publisher's media, or a viewer's receiver reports.
                Ok(Some(Frame::Packet { channel, packet })) => {
                    self.heard = Some(now);
                    let own = |way| matches!(way, Way::Interleaved(channels) if channels.contains(&channel));
                    self.recorded(now, own, packet, out)?;
                }
                // An answer to nothing: a sign of life.
                Ok(Some(Frame::Response)) => self.heard = Some(now),
                Err(error) => {
                    buffer.clear();
                    return Err(self.refuse(error, out));
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, error: FrameError, out: &mut Outbox) -> Fault {
        let status = match error {
            FrameError::Malformed => Status::BAD_REQUEST,
            FrameError::TooLarge => Status::TOO_LARGE,
            FrameError::Version => Status::VERSION,
        };
        self.farewell(out);
        out.send(Answer::new(status, None).field("Connection", "close").bytes());
        Fault::fatal(error.to_string())
    }

    // --- requests ---

    fn request(&mut self, now: Instant, request: Box<Request>, out: &mut Outbox) {
        let cseq = cseq_of(&request);
        if let Some(status) = self.objection(&request) {
            let mut answer = Answer::new(status, cseq);
            if let (Status::OPTION, Some(options)) = (status, request.field("require")) {
                answer = answer.field("Unsupported", options);
            }
            self.answer(answer, out);
            return;
        }
        match request.method {
            Method::Options => self.answer(Answer::new(Status::OK, cseq).field("Public", METHODS), out),
            Method::Describe => self.describe(request, out),
            Method::Announce => self.announce(request, out),
            Method::Record => self.record(&request, out),
            Method::Setup => self.setup(request, out),
            Method::Play => self.play(now, &request, out),
            Method::GetParameter | Method::SetParameter => {
                // Without parameters it is a sign of life, with them it asks for what we do not have.
                let status = if request.body.is_empty() { Status::OK } else { Status::PARAMETER };
                let answer = self.in_session(Answer::new(status, cseq));
                self.answer(answer, out);
            }
            Method::Teardown => {
                self.farewell_tracks(out);
                out.send(self.in_session(Answer::new(Status::OK, cseq)).bytes());
                if matches!(self.state, State::Recording)
                    && self.setups.iter().any(|setup| matches!(setup.way, Way::Udp(_)))
                {
                    self.state = State::Leaving { until: now + FAREWELL_MAX };
                } else {
                    self.close("the client left", out);
                }
            }
            Method::Pause => {
                let text = "a live stream cannot be paused: TEARDOWN and PLAY again\r\n".to_owned();
                let answer = Answer::new(Status::METHOD_NOT_ALLOWED, cseq).field("Allow", METHODS);
                self.answer(answer.body("text/plain", text), out);
            }
            _ => self.answer(Answer::new(Status::NOT_IMPLEMENTED, cseq).field("Public", METHODS), out),
        }
    }

    /// What is wrong with a request before it is looked at.
    fn objection(&self, request: &Request) -> Option<Status> {
        let session = request.field("session").map(|field| field.split(';').next().unwrap_or_default().trim());
        let in_session = !self.setups.is_empty();
        if request.version != Version::V1_0 {
            return Some(Status::VERSION);
        }
        if cseq_of(request).is_none() {
            return Some(Status::BAD_REQUEST);
        }
        if request.field("require").is_some() {
            return Some(Status::OPTION);
        }
        if session.is_some_and(|id| !in_session || id != self.id) {
            return Some(Status::SESSION_NOT_FOUND);
        }
        match request.method {
            Method::Play | Method::Record | Method::Pause | Method::Teardown if !in_session => {
                Some(Status::NOT_IN_THIS_STATE)
            }
            Method::Play | Method::Record | Method::Teardown if session.is_none() => Some(Status::SESSION_NOT_FOUND),
            Method::Setup | Method::Describe | Method::Announce if !matches!(self.state, State::Still) => {
                Some(Status::NOT_IN_THIS_STATE)
            }
            // One session either plays or records.
            Method::Play | Method::Describe | Method::Announce if self.publishing.is_some() => {
                Some(Status::NOT_IN_THIS_STATE)
            }
            _ => None,
        }
    }

    fn describe(&mut self, request: Box<Request>, out: &mut Outbox) {
        let cseq = cseq_of(&request);
        let takes = |accept: &str| ["application/sdp", "application/*", "*/*"].iter().any(|kind| accept.contains(kind));
        if !request.field("accept").is_none_or(takes) {
            self.answer(Answer::new(Status::NOT_ACCEPTABLE, cseq), out);
            return;
        }
        let Some((target, presentation)) = self.presented(&request) else { return self.prepare(request, out) };
        let base = format!("{}/", target.base);
        let description = sdp::describe(&presentation.stream, &presentation.tracks);
        let answer = Answer::new(Status::OK, cseq).field("Content-Base", base).field("Cache-Control", "no-store");
        self.answer(answer.body("application/sdp", description), out);
    }

    /// The presentation a request is about, if it is known already.
    fn presented<'a>(&'a self, request: &'a Request) -> Option<(&'a Target, &'a Presentation)> {
        let (target, presentation) = (request.target.as_ref()?, self.presentation.as_ref()?);
        (target.path == presentation.stream.as_str()).then_some((target, presentation))
    }

    /// Asks for what a request needs first; it is looked at again then.
    fn prepare(&mut self, request: Box<Request>, out: &mut Outbox) {
        let stream = request.target.as_ref().and_then(|target| StreamName::parse(&target.path));
        let Some(stream) = stream else {
            self.answer(Answer::new(Status::NOT_FOUND, cseq_of(&request)), out);
            return;
        };
        if !self.setups.is_empty() {
            // One session, one stream (RFC 2326 calls it an aggregate).
            self.answer(Answer::new(Status::NOT_IN_THIS_STATE, cseq_of(&request)), out);
            return;
        }
        let mut pass = request.target.as_ref().map_or_else(Pass::default, |target| Pass::of_query(&target.query));
        if pass.is_blank() {
            pass.key = password(&request);
        }
        let ticket = self.ticket();
        let announces = request.method == Method::Announce;
        let claim = if announces { Claim::Publish { stream, pass } } else { Claim::Watch { stream, pass } };
        self.waiting = Some(Waiting { ticket, request, admitted: None });
        out.push(Output::Admit { ticket, claim });
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn admission(&mut self, ticket: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let Some(mut waiting) = self.waiting.take_if(|waiting| waiting.ticket == ticket) else { return };
        let stream = waiting.request.target.as_ref().and_then(|target| StreamName::parse(&target.path));
        match (outcome, stream) {
            (Ok(()), Some(stream)) if waiting.request.method == Method::Announce => {
                self.announced(stream, &waiting.request, out);
            }
            (Ok(()), Some(stream)) => {
                waiting.ticket = self.ticket();
                out.push(Output::Describe { ticket: waiting.ticket, stream: stream.clone() });
                waiting.admitted = Some(stream);
                self.waiting = Some(waiting);
            }
            (Err(refusal), _) => self.refused(&waiting.request, &refusal, out),
            (Ok(()), None) => {}
        }
    }

    fn refused(&mut self, request: &Request, refusal: &Refusal, out: &mut Outbox) {
        let status = match refusal {
            Refusal::Unauthorized => Status::UNAUTHORIZED,
            Refusal::Forbidden(_) => Status::FORBIDDEN,
            Refusal::NotFound(_) => Status::NOT_FOUND,
            Refusal::Invalid(_) => Status::BAD_REQUEST,
            Refusal::Limit(_) | Refusal::Unavailable(_) => Status::UNAVAILABLE,
        };
        let mut answer = Answer::new(status, cseq_of(request));
        if status == Status::UNAUTHORIZED {
            // Keys are kept hashed: a digest of one cannot be checked, the key itself can.
            answer = answer.field("WWW-Authenticate", "Basic realm=\"sluicegate\"");
        }
        self.answer(answer.body("text/plain", format!("{refusal}\r\n")), out);
    }

    fn described(&mut self, now: Instant, ticket: Ticket, outcome: Result<Box<Tracks>, Refusal>, out: &mut Outbox) {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.ticket == ticket) else { return };
        match (outcome, waiting.admitted) {
            (Ok(tracks), Some(_)) if sdp::formats(&tracks).is_empty() => {
                self.answer(Answer::new(Status::UNSUPPORTED_MEDIA, cseq_of(&waiting.request)), out);
            }
            (Ok(tracks), Some(stream)) => {
                self.presentation = Some(Presentation { stream, tracks: *tracks });
                self.request(now, waiting.request, out);
            }
            (Err(refusal), _) => self.refused(&waiting.request, &refusal, out),
            (Ok(_), None) => {}
        }
    }

    // --- ends ---

    /// Each track is told to have ended, where packets can still be sent.
    fn farewell_tracks(&mut self, out: &mut Outbox) {
        match std::mem::replace(&mut self.state, State::Still) {
            State::Shared(container) | State::Joining { container, .. } => {
                let mut bytes = BytesMut::new();
                for (track, ssrc) in [(Track::Video, SSRC_VIDEO), (Track::Audio, SSRC_AUDIO)] {
                    if let Some(channel) = container.rtp_channel(track) {
                        let bye = reports::bye(ssrc);
                        put_frame_head(channel + 1, bye.len(), &mut bytes);
                        bytes.put_slice(&bye);
                    }
                }
                out.send(bytes);
            }
            State::Own(own) => own.bye(out),
            other @ (State::Still | State::Recording | State::Leaving { .. } | State::Closed) => self.state = other,
        }
    }

    fn farewell(&mut self, out: &mut Outbox) {
        if let Some(waiting) = self.waiting.take() {
            out.send(Answer::new(Status::UNAVAILABLE, cseq_of(&waiting.request)).bytes());
        }
        self.farewell_tracks(out);
        self.state = State::Closed;
    }

    fn answer(&mut self, answer: Answer, out: &mut Outbox) {
        self.answered += 1;
        let still = matches!(self.state, State::Still);
        if still && self.answered >= ANSWERS_MAX {
            out.send(answer.field("Connection", "close").bytes());
            self.close("too many requests without a stream", out);
        } else {
            out.send(answer.bytes());
        }
    }

    fn close(&mut self, why: &'static str, out: &mut Outbox) {
        self.state = State::Closed;
        out.close(why);
    }

    fn in_session(&self, answer: Answer) -> Answer {
        if self.setups.is_empty() {
            return answer;
        }
        answer.field("Session", format_args!("{};timeout={}", self.id, SILENCE_MAX.as_secs()))
    }
}

fn cseq_of(request: &Request) -> Option<u32> {
    request.field("cseq").and_then(|field| field.trim().parse().ok())
}

/// The password of a Basic `Authorization`.
fn password(request: &Request) -> Option<String> {
    let (scheme, credentials) = request.field("authorization")?.trim().split_once(' ')?;
    let plain = BASE64.decode(credentials.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    String::from_utf8(plain).ok()?.split_once(':').map(|(_, password)| password.to_owned())
}
