//! The talk: each request is admitted, fetched and answered before the next is looked at.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::frame::Asked;
use super::{Body, Content};
use crate::admitted::Admitted;
use crate::http::{ANSWERS_MAX, Answer, Method, Request, RequestError, status_of};
use crate::http_flv;
use crate::pass::Pass;
use crate::session::{Claim, Fault, Identity, Input, Outbox, Output, Peer, Refusal, Session, Ticket};

/// What no cache may keep: the next reload has another.
const PLAYLIST_CACHE: &str = "no-cache";
/// What never changes, for as long as a live player can want it.
const MEDIA_CACHE: &str = "max-age=60";

/// An admission is remembered no longer: signed addresses expire, and the playlists that players come back for carry them.
const ADMITTED_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct HlsSession {
    allow_origin: Arc<str>,
    /// The name of a player that opens the multivariant playlist here.
    player: u64,
    /// A player that does not give the name it got: its address.
    stranger: u64,
    state: State,
    admitted: Admitted,
    asked: u64,
    /// Answers that were no piece.
    answered: u64,
}

#[derive(Debug)]
enum State {
    Open,
    /// Waits for the admission, then for the piece.
    Waiting(Box<Waiting>),
    Closed,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    asked: Asked,
    /// What it was let in for, in its query.
    shown: Option<Bytes>,
    head_only: bool,
    close: bool,
}

// === impl Session ===

impl Session for HlsSession {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => return self.requests(now, buffer, out),
            Input::Admission { ticket, outcome } => self.admission(now, ticket, outcome, out),
            Input::Piece { ticket, outcome } => self.piece(ticket, outcome, out),
            Input::Ended { .. } => {
                if let State::Waiting(waiting) = std::mem::replace(&mut self.state, State::Closed) {
                    let stopping = Refusal::Unavailable("the gateway is stopping".to_owned());
                    self.refuse(&stopping, waiting.head_only, true, out);
                }
            }
            Input::Datagram(_) | Input::Settled { .. } | Input::Exchange(_) | Input::Command(_) | Input::Media(_) => {}
        }
        Ok(())
    }

    fn tick(&mut self, _now: Instant, _out: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn paused(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }
}

impl HlsSession {
    pub(super) fn new(allow_origin: Arc<str>, peer: &Peer) -> Self {
        let player = peer.seed.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let stranger = match peer.address.map(|address| address.ip()) {
            None => player,
            Some(IpAddr::V4(address)) => u64::from(address.to_bits()),
            Some(IpAddr::V6(address)) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
        };
        Self {
            allow_origin,
            player,
            stranger,
            state: State::Open,
            admitted: Admitted::at_most(ADMITTED_MAX),
            asked: 0,
            answered: 0,
        }
    }

    fn requests(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while matches!(self.state, State::Open) {
            match Request::parse(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => {
                    buffer.advance(request.len);
                    self.request(now, &request, out);
                }
                Err(error) => {
                    self.answered(Answer::malformed(&self.allow_origin, &error), true, out);
                    let at = if let RequestError::Malformed { at, .. } = error { Some(at) } else { None };
                    return Err(Fault { at, ..Fault::fatal(error.to_string()) });
                }
            }
        }
        if matches!(self.state, State::Closed) {
            buffer.clear();
        }
        Ok(())
    }

    fn request(&mut self, now: Instant, request: &Request, out: &mut Outbox) {
        let close = !request.keeps_alive() || self.answered + 1 >= ANSWERS_MAX;
        let head_only = request.method == Method::Head;
        match request.method {
            Method::Options => return self.answered(Answer::preflight(&self.allow_origin, close), close, out),
            Method::Post | Method::Put | Method::Other => {
                return self.answered(Answer::method_not_allowed(&self.allow_origin, close), close, out);
            }
            Method::Get | Method::Head => {}
        }
        let asked = match Asked::of(request, self.stranger) {
            Ok(Some(asked)) => asked,
            Ok(None) if self.asked + self.answered > 0 && http_flv::is_at(&request.path) => {
                return self.answered(Answer::elsewhere(request, &self.allow_origin), true, out);
            }
            Ok(None) => {
                let nothing = Refusal::NotFound("streams are at /APP/NAME/index.m3u8".to_owned());
                return self.refuse(&nothing, head_only, close, out);
            }
            Err(what) => return self.refuse(&Refusal::Invalid(what.to_owned()), head_only, close, out),
        };
        let ticket = Ticket(self.asked);
        self.asked += 1;
        let pass = Pass::of_query(&request.query);
        let shown = (!pass.is_blank()).then(|| Bytes::from(asked.carried.clone()));
        let waiting = Waiting { ticket, asked, shown, head_only, close };
        let stream = waiting.asked.stream.clone();
        if self.admitted.get(now, stream.as_str(), waiting.shown.as_ref()).is_some() {
            self.fetch(&waiting, out);
        } else {
            out.push(Output::Admit { ticket, claim: Claim::Watch { stream, pass } });
        }
        self.state = State::Waiting(Box::new(waiting));
    }

    fn fetch(&self, waiting: &Waiting, out: &mut Outbox) {
        let Asked { stream, piece, carried } = waiting.asked.clone();
        out.push(Output::Fetch { ticket: waiting.ticket, stream, piece, carried, player: self.player });
    }

    fn admission(&mut self, now: Instant, ticket: Ticket, outcome: Result<Identity, Refusal>, out: &mut Outbox) {
        let Some(waiting) = self.waited(ticket) else { return };
        match outcome {
            Ok(identity) => {
                let stream = waiting.asked.stream.as_str();
                self.admitted.insert(now, stream, waiting.shown.clone(), identity);
                self.fetch(&waiting, out);
                self.state = State::Waiting(waiting);
            }
            Err(refusal) => self.refuse(&refusal, waiting.head_only, waiting.close, out),
        }
    }

    fn piece(&mut self, ticket: Ticket, outcome: Result<Body, Refusal>, out: &mut Outbox) {
        let Some(waiting) = self.waited(ticket) else { return };
        let body = match outcome {
            Ok(body) => body,
            Err(refusal) => return self.refuse(&refusal, waiting.head_only, waiting.close, out),
        };
        let (kind, cache) = match body.content {
            Content::Playlist => ("application/vnd.apple.mpegurl", PLAYLIST_CACHE),
            Content::Media => ("video/mp4", MEDIA_CACHE),
        };
        let len: usize = body.chunks.iter().map(Bytes::len).sum();
        let answer = Answer::new("200 OK", &self.allow_origin).cache_control(cache).field("Content-Type", kind);
        out.send(answer.field("Content-Length", &len.to_string()).head(waiting.close));
        if !waiting.head_only {
            body.chunks.into_iter().for_each(|chunk| out.send(chunk));
        }
        if waiting.close {
            self.close(out);
        }
    }

    /// What the ticket belongs to; the session is open again.
    fn waited(&mut self, ticket: Ticket) -> Option<Box<Waiting>> {
        match std::mem::replace(&mut self.state, State::Open) {
            State::Waiting(waiting) if waiting.ticket == ticket => Some(waiting),
            other => {
                self.state = other;
                None
            }
        }
    }

    fn refuse(&mut self, refusal: &Refusal, head_only: bool, close: bool, out: &mut Outbox) {
        let answer = Answer::new(status_of(refusal), &self.allow_origin);
        self.answered(answer.text(&refusal.to_string(), head_only, close), close, out);
    }

    /// Sends a whole answer that is no piece.
    fn answered(&mut self, bytes: String, close: bool, out: &mut Outbox) {
        out.send(bytes);
        self.answered += 1;
        if close {
            self.close(out);
        }
    }

    fn close(&mut self, out: &mut Outbox) {
        self.state = State::Closed;
        out.close("answered");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Piece;
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "the session is handed a time and does not look at it")]
    fn now() -> Instant {
        Instant::now()
    }

    fn session() -> HlsSession {
        let address = Some("192.0.2.7:40000".parse().unwrap());
        HlsSession::new("*".into(), &Peer { address, adapter: "a".into(), seed: [7; 32], secure: false })
    }

    /// Feeds requests, answers each claim and each fetch; what was sent and what else came out.
    fn talk(requests: &str, door: Option<&Refusal>, piece: Option<&Refusal>) -> (String, Vec<String>) {
        let outcome_of = |refusal: Option<&Refusal>| refusal.cloned().map_or(Ok(()), Err);
        let (mut session, mut out) = (session(), Outbox::default());
        let mut buffer = BytesMut::from(requests);
        let (mut sent, mut others) = (String::new(), Vec::new());
        loop {
            let before = buffer.len();
            let fault = session.receive(now(), Input::Stream(&mut buffer), &mut out).err();
            let quiet = out.is_empty();
            while let Some(output) = out.pop() {
                let answer = match output {
                    Output::Send(bytes) => {
                        sent.push_str(std::str::from_utf8(&bytes).unwrap());
                        continue;
                    }
                    Output::Admit { ticket, .. } => {
                        others.push("admit".to_owned());
                        Input::Admission { ticket, outcome: outcome_of(door).map(|()| Identity::anonymous()) }
                    }
                    Output::Fetch { ticket, stream, piece: wanted, carried, .. } => {
                        others.push(format!("fetch {stream} {wanted:?} {carried}"));
                        Input::Piece { ticket, outcome: outcome_of(piece).map(|()| body()) }
                    }
                    Output::Close { reason } => {
                        others.push(format!("close {reason}"));
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                session.receive(now(), answer, &mut out).unwrap();
            }
            others.extend(fault.map(|fault| format!("fault {fault}")));
            if quiet && buffer.len() == before {
                return (sent, others);
            }
        }
    }

    fn body() -> Body {
        let chunks = vec![Bytes::from_static(b"one "), Bytes::from_static(b"two")];
        Body { content: Content::Media, chunks }
    }

    const GET: &str = "GET /live/x/segment-9.m4s?key=k HTTP/1.1\r\nHost: h\r\n\r\n";

    #[test]
    fn pieces_are_given_over_one_connection_and_admitted_once() {
        let (sent, others) = talk(&GET.repeat(3), None, None);
        let answer = "HTTP/1.1 200 OK\r\nServer: sluicegate\r\nAccess-Control-Allow-Origin: *\r\n\
            Content-Type: video/mp4\r\nContent-Length: 7\r\nCache-Control: max-age=60\r\nConnection: keep-alive\r\n\r\none two";
        assert_eq!(sent, answer.repeat(3));
        let fetch = format!("fetch live/x {:?} key=k", Piece::Segment(9));
        assert_eq!(others, ["admit", &fetch, &fetch, &fetch]);
        let (sent, others) = talk(&GET.replace("GET", "HEAD").replace("Host", "Connection: close\r\nHost"), None, None);
        assert!(sent.contains("Content-Length: 7\r\n") && sent.ends_with("Connection: close\r\n\r\n"), "{sent}");
        assert_eq!(others.last().unwrap(), "close answered");
        let other_key = GET.to_owned() + &GET.replace("key=k", "key=other");
        assert_eq!(talk(&other_key, None, None).1.iter().filter(|other| *other == "admit").count(), 2);
    }

    #[test]
    fn an_admission_is_not_remembered_beyond_its_expiry() {
        let (mut session, mut out, began) = (session(), Outbox::default(), now());
        let mut asked = |after: Duration| {
            session.receive(began + after, Input::Stream(&mut BytesMut::from(GET)), &mut out).unwrap();
            let mut admits = 0;
            while let Some(output) = out.pop() {
                let answer = match output {
                    Output::Admit { ticket, .. } => {
                        admits += 1;
                        Input::Admission { ticket, outcome: Ok(Identity::anonymous()) }
                    }
                    Output::Fetch { ticket, .. } => Input::Piece { ticket, outcome: Ok(body()) },
                    _ => continue,
                };
                session.receive(began + after, answer, &mut out).unwrap();
            }
            admits
        };
        assert_eq!([0, 4, 6, 10, 12].map(|seconds| asked(Duration::from_secs(seconds))), [1, 0, 1, 0, 1]);
    }

    #[test]
    fn refusals_have_their_status() {
        for (refusal, status) in [
            (Refusal::Unauthorized, "401 Unauthorized"),
            (Refusal::Forbidden("x".into()), "403 Forbidden"),
            (Refusal::NotFound("x".into()), "404 Not Found"),
            (Refusal::Limit("x".into()), "503 Service Unavailable"),
        ] {
            let begin = format!("HTTP/1.1 {status}\r\n");
            assert!(talk(GET, Some(&refusal), None).0.starts_with(&begin));
            assert!(talk(GET, None, Some(&refusal)).0.starts_with(&begin));
        }
    }

    #[test]
    fn what_is_answered_without_asking() {
        for (request, status) in [
            ("OPTIONS /live/x/index.m3u8 HTTP/1.1\r\nHost: h\r\n\r\n", "204 No Content"),
            ("DELETE /live/x/index.m3u8 HTTP/1.1\r\nHost: h\r\n\r\n", "405 Method Not Allowed"),
            ("GET /live/x/index.html HTTP/1.1\r\nHost: h\r\n\r\n", "404 Not Found"),
            ("GET /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", "404 Not Found"),
            ("GET /live/x/media.m3u8?_HLS_part=1 HTTP/1.1\r\nHost: h\r\n\r\n", "400 Bad Request"),
            ("GET /live/%2e%2e/x/index.m3u8 HTTP/1.1\r\nHost: h\r\n\r\n", "400 Bad Request"),
            ("GET /live/x/index.m3u8 HTTP/2.0\r\n\r\n", "505 HTTP Version Not Supported"),
        ] {
            let (sent, others) = talk(request, None, None);
            assert!(sent.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {sent}");
            assert!(!others.iter().any(|other| other.starts_with("fetch")), "{others:?}");
        }
        let (sent, others) = talk(&"GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(300), None, None);
        assert_eq!(sent.matches("404").count() as u64, ANSWERS_MAX);
        assert_eq!(others, ["close answered"]);
    }

    #[test]
    fn another_protocols_request_on_a_kept_connection_is_sent_to_one_of_its_own() {
        let (sent, others) = talk(&format!("{GET}GET /live/x.flv?key=k HTTP/1.1\r\nHost: h\r\n\r\n"), None, None);
        assert!(
            sent.contains("HTTP/1.1 307 Temporary Redirect\r\n") && sent.contains("Location: /live/x.flv?key=k\r\n")
        );
        assert_eq!(others.last().unwrap(), "close answered");
    }

    #[test]
    fn a_player_that_waits_is_told_when_the_gateway_stops() {
        let (mut session, mut out) = (session(), Outbox::default());
        session.receive(now(), Input::Stream(&mut BytesMut::from(GET)), &mut out).unwrap();
        assert!(session.paused() && matches!(out.pop(), Some(Output::Admit { .. })));
        session.receive(now(), Input::Ended { reason: "" }, &mut out).unwrap();
        assert!(matches!(out.pop(), Some(Output::Send(bytes)) if bytes.starts_with(b"HTTP/1.1 503 ")));
    }
}
