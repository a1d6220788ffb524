//! The talk: requests are answered one after another until one becomes a viewer.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::frame::stream_of;
use super::websocket::{self, Frame, UpgradeError};
use crate::hls;
use crate::http::{ANSWERS_MAX, Answer, Method, Request, RequestError, status_of};
use crate::media::{Container, Hevc, StreamName};
use crate::pass::Pass;
use crate::session::{Claim, Fault, Input, Outbox, Output, Refusal, Session, Ticket};

#[derive(Debug)]
pub(super) struct HttpFlvSession {
    allow_origin: Arc<str>,
    state: State,
    answered: u64,
}

#[derive(Debug)]
enum State {
    Open,
    /// The claim is made; the answer to the request depends on it.
    Waiting {
        ticket: Ticket,
        stream: StreamName,
        wish: Wish,
        hevc: Hevc,
        keeps_alive: bool,
    },
    Watching(Coding),
    Closed,
}

/// What is wanted of a stream.
#[derive(Debug)]
enum Wish {
    Head,
    Body {
        chunked: bool,
    },
    /// The value of `Sec-WebSocket-Accept`.
    WebSocket {
        accept: String,
    },
}

/// How the stream is coded on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Chunked,
    WebSocket,
}

// === impl Session ===

impl Session for HttpFlvSession {
    fn receive(&mut self, _now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => return self.requests(buffer, out),
            Input::Admission { ticket, outcome } => self.admission(ticket, outcome.map(drop), out),
            Input::Ended { reason } => self.farewell(reason, out),
            Input::Datagram(_)
            | Input::Settled { .. }
            | Input::Exchange(_)
            | Input::Command(_)
            | Input::Media(_)
            | Input::Piece { .. } => {}
        }
        Ok(())
    }

    fn tick(&mut self, _now: Instant, _out: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn paused(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }
}

impl HttpFlvSession {
    pub(super) fn new(allow_origin: Arc<str>) -> Self {
        Self { allow_origin, state: State::Open, answered: 0 }
    }

    fn requests(&mut self, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while matches!(self.state, State::Open) {
            match Request::parse(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => {
                    buffer.advance(request.len);
                    self.request(&request, out);
                }
                Err(error) => return Err(self.refuse_request(&error, out)),
            }
        }
        if matches!(self.state, State::Watching(Coding::WebSocket)) {
            return self.messages(buffer, out);
        }
        if !self.paused() {
            // A viewer has nothing more to say, and after a close nobody listens.
            buffer.clear();
        }
        Ok(())
    }

    /// What comes from a viewer on a WebSocket.
    fn messages(&mut self, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        loop {
            match websocket::take_frame(buffer) {
                Ok(None) => return Ok(()),
                Ok(Some(Frame::Data | Frame::Pong)) => {}
                Ok(Some(Frame::Ping(payload))) => out.send(websocket::pong(&payload)),
                Ok(Some(Frame::Close(code))) => {
                    buffer.clear();
                    out.send(websocket::close(code, ""));
                    self.state = State::Closed;
                    out.close("the viewer left");
                    return Ok(());
                }
                Err(error) => {
                    buffer.clear();
                    out.send(websocket::close(error.code, error.what));
                    self.state = State::Closed;
                    return Err(Fault::fatal(error.to_string()));
                }
            }
        }
    }

    fn refuse_request(&mut self, error: &RequestError, out: &mut Outbox) -> Fault {
        let at = if let RequestError::Malformed { at, .. } = error { Some(*at) } else { None };
        self.answered(Answer::malformed(&self.allow_origin, error), true, out);
        Fault { at, ..Fault::fatal(error.to_string()) }
    }

    fn request(&mut self, request: &Request, out: &mut Outbox) {
        let close = !request.keeps_alive() || self.answered + 1 >= ANSWERS_MAX;
        match (request.method, stream_of(&request.path)) {
            (Method::Options, _) => self.answered(Answer::preflight(&self.allow_origin, close), close, out),
            (Method::Post | Method::Put | Method::Other, _) => {
                self.answered(Answer::method_not_allowed(&self.allow_origin, close), close, out);
            }
            (Method::Get | Method::Head, None) if self.answered > 0 && hls::is_at(&request.path) => {
                self.answered(Answer::elsewhere(request, &self.allow_origin), true, out);
            }
            (Method::Get | Method::Head, None) => {
                let head_only = request.method == Method::Head;
                let answer = Answer::new("404 Not Found", &self.allow_origin);
                let text = answer.text("no such path: streams are at /APP/NAME.flv", head_only, close);
                self.answered(text, close, out);
            }
            (Method::Get | Method::Head, Some(stream)) => self.stream(request, stream, close, out),
        }
    }

    fn stream(&mut self, request: &Request, stream: StreamName, close: bool, out: &mut Outbox) {
        let head_only = request.method == Method::Head;
        let answer = |status: &str| Answer::new(status, &self.allow_origin);
        let hevc = request.parameter("hevc");
        let Some(hevc) = hevc.map_or(Some(Hevc::default()), |word| Hevc::parse(&word)) else {
            let text = answer("400 Bad Request").text("hevc is enhanced or legacy", head_only, close);
            return self.answered(text, close, out);
        };
        let wish = match websocket::upgrade(request) {
            None if head_only => Wish::Head,
            None => Wish::Body { chunked: request.minor == 1 },
            Some(Err(error)) => {
                let answer = if error == UpgradeError::Version {
                    let answer = answer("426 Upgrade Required").field("Upgrade", "websocket");
                    answer.field("Sec-WebSocket-Version", "13")
                } else {
                    answer("400 Bad Request")
                };
                return self.answered(answer.text(&error.to_string(), head_only, close), close, out);
            }
            // A browser asks no leave before it opens a WebSocket to another site: that is for us to see to (10.2).
            Some(Ok(_)) if !self.may_open(request) => {
                let text = answer("403 Forbidden").text("pages of this origin may not play here", head_only, close);
                return self.answered(text, close, out);
            }
            Some(Ok(accept)) => Wish::WebSocket { accept },
        };
        let ticket = Ticket(self.answered);
        let pass = Pass::of_query(&request.query);
        out.push(Output::Admit { ticket, claim: Claim::Watch { stream: stream.clone(), pass } });
        self.state = State::Waiting { ticket, stream, wish, hevc, keeps_alive: !close };
    }

    fn may_open(&self, request: &Request) -> bool {
        &*self.allow_origin == "*" || request.field("origin").is_none_or(|origin| origin == &*self.allow_origin)
    }

    fn admission(&mut self, answered: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let (stream, wish, hevc, keeps_alive) = match std::mem::replace(&mut self.state, State::Open) {
            State::Waiting { ticket, stream, wish, hevc, keeps_alive } if ticket == answered => {
                (stream, wish, hevc, keeps_alive)
            }
            other => {
                self.state = other;
                return;
            }
        };
        if let Err(refusal) = outcome {
            let answer = Answer::new(status_of(&refusal), &self.allow_origin);
            let text = answer.text(&refusal.to_string(), matches!(wish, Wish::Head), !keeps_alive);
            return self.answered(text, !keeps_alive, out);
        }
        let flv = || Answer::new("200 OK", &self.allow_origin).field("Content-Type", "video/x-flv");
        let (coding, container) = match wish {
            Wish::Head => return self.answered(flv().head(!keeps_alive), !keeps_alive, out),
            Wish::Body { chunked: true } => {
                out.send(flv().field("Transfer-Encoding", "chunked").head(true));
                (Coding::Chunked, Container::FlvChunked)
            }
            Wish::Body { chunked: false } => {
                out.send(flv().head(true));
                (Coding::Plain, Container::Flv)
            }
            Wish::WebSocket { accept } => {
                let answer = Answer::new("101 Switching Protocols", &self.allow_origin).field("Upgrade", "websocket");
                out.send(answer.field("Sec-WebSocket-Accept", &accept).upgrade());
                (Coding::WebSocket, Container::FlvWebSocket)
            }
        };
        self.state = State::Watching(coding);
        out.push(Output::Watch { stream, container: container.with_hevc(hevc) });
    }

    fn farewell(&mut self, reason: &str, out: &mut Outbox) {
        match std::mem::replace(&mut self.state, State::Closed) {
            // The last chunk: the body is whole, nothing was cut off.
            State::Watching(Coding::Chunked) => out.send(&b"0\r\n\r\n"[..]),
            State::Watching(Coding::WebSocket) => out.send(websocket::close(1001, reason)),
            State::Waiting { wish, .. } => {
                let answer = Answer::new("503 Service Unavailable", &self.allow_origin);
                let text = answer.text("the gateway is stopping", matches!(wish, Wish::Head), true);
                self.answered(text, true, out);
            }
            _ => {}
        }
    }

    /// Sends a whole answer.
    fn answered(&mut self, bytes: String, close: bool, out: &mut Outbox) {
        out.send(bytes);
        self.answered += 1;
        if close && !matches!(self.state, State::Closed) {
            self.state = State::Closed;
            out.close("answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Identity;

    #[allow(clippy::disallowed_methods, reason = "the session is handed a time and does not look at it")]
    fn now() -> Instant {
        Instant::now()
    }

    /// Feeds requests, answers each claim with `outcome`; what was sent and what else came out.
    fn talk(requests: &str, outcome: &Result<Identity, Refusal>) -> (String, Vec<String>) {
        let mut session = HttpFlvSession::new("*".into());
        let (mut buffer, mut out) = (BytesMut::from(requests), Outbox::default());
        let (mut sent, mut others) = (String::new(), Vec::new());
        let fault = session.receive(now(), Input::Stream(&mut buffer), &mut out).err();
        while let Some(output) = out.pop() {
            match output {
                Output::Send(bytes) => sent.push_str(std::str::from_utf8(&bytes).unwrap()),
                Output::Admit { ticket, claim } => {
                    let key = if let Claim::Watch { pass, .. } = &claim { pass.key.as_deref() } else { None };
                    others.push(format!("claim {}", key.unwrap_or("without a key")));
                    let input = Input::Admission { ticket, outcome: outcome.clone() };
                    session.receive(now(), input, &mut out).unwrap();
                    session.receive(now(), Input::Stream(&mut buffer), &mut out).unwrap();
                }
                Output::Watch { stream, container } => others.push(format!("watch {stream} {container:?}")),
                Output::Close { reason } => others.push(format!("close {reason}")),
                other => panic!("{other:?}"),
            }
        }
        others.extend(fault.map(|fault| format!("fault {fault}")));
        (sent, others)
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is handed on as an outcome")]
    fn yes() -> Result<Identity, Refusal> {
        Ok(Identity::anonymous())
    }

    #[test]
    fn old_and_new_versions_get_their_own_coding() {
        let (sent, others) = talk("GET /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", &yes());
        assert!(sent.contains("Transfer-Encoding: chunked\r\n") && sent.contains("video/x-flv"), "{sent}");
        assert_eq!(others[1], "watch live/x FlvChunked");
        let (sent, others) = talk("GET /live/x.flv HTTP/1.0\r\n\r\n", &yes());
        assert!(!sent.contains("Transfer-Encoding"), "{sent}");
        assert_eq!(others[1], "watch live/x Flv");
    }

    #[test]
    fn refusals_have_their_status_and_a_body_of_its_length() {
        for (refusal, status) in [
            (Refusal::Unauthorized, "401 Unauthorized"),
            (Refusal::Forbidden("no".into()), "403 Forbidden"),
            (Refusal::NotFound("live/x".into()), "404 Not Found"),
            (Refusal::Limit("viewers".into()), "503 Service Unavailable"),
        ] {
            let (sent, _) = talk("GET /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", &Err(refusal.clone()));
            let (head, body) = sent.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{sent}");
            assert_eq!(body, format!("{refusal}\n"));
            assert!(head.contains("Access-Control-Allow-Origin: *\r\n") && head.contains("Cache-Control: no-store"));
        }
    }

    #[test]
    fn what_is_answered_without_asking() {
        for (request, status, says) in [
            ("OPTIONS /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", "204 No Content", "Access-Control-Allow-Methods: GET"),
            ("DELETE /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", "405 Method Not Allowed", "Allow: GET, HEAD, OPTIONS"),
            ("GET /favicon.ico HTTP/1.1\r\nHost: h\r\n\r\n", "404 Not Found", "/APP/NAME.flv"),
            ("GET /live/a%20b.flv HTTP/1.1\r\nHost: h\r\n\r\n", "404 Not Found", "/APP/NAME.flv"),
            ("GET /live/%2e%2e/x.flv HTTP/1.1\r\nHost: h\r\n\r\n", "400 Bad Request", "target"),
            ("GET / HTTP/3.0\r\n\r\n", "505 HTTP Version Not Supported", "HTTP/1.1"),
        ] {
            let (sent, others) = talk(request, &yes());
            assert!(sent.starts_with(&format!("HTTP/1.1 {status}\r\n")) && sent.contains(says), "{request}: {sent}");
            assert!(!others.iter().any(|other| other.starts_with("watch")), "{others:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(64));
        assert!(talk(&many, &yes()).0.starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn a_connection_is_kept_for_the_next_request_but_not_for_ever() {
        let head = "HEAD /live/x.flv?key=a%2Fb HTTP/1.1\r\nHost: h\r\n\r\n";
        let (sent, others) = talk(&format!("{head}GET /live/x.flv HTTP/1.1\r\nHost: h\r\n\r\n"), &yes());
        assert_eq!(sent.matches("HTTP/1.1 200 OK").count(), 2);
        assert!(others[0].contains("a/b") && others[2].starts_with("watch"), "{others:?}");
        let (sent, others) = talk(&"GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(500), &yes());
        assert_eq!(sent.matches("404").count() as u64, ANSWERS_MAX);
        assert_eq!(others, ["close answered"]);
    }

    #[test]
    fn another_protocols_request_on_a_kept_connection_is_sent_to_one_of_its_own() {
        let playlist = "GET /live/x/index.m3u8?key=k HTTP/1.1\r\nHost: h\r\n\r\n";
        let (sent, others) = talk(&format!("GET / HTTP/1.1\r\nHost: h\r\n\r\n{playlist}"), &yes());
        assert!(sent.contains("HTTP/1.1 307 ") && sent.contains("Location: /live/x/index.m3u8?key=k\r\n"), "{sent}");
        assert_eq!(others, ["close answered"]);
        // The first request is answered here: nobody else on this port wants it.
        assert!(talk(playlist, &yes()).0.starts_with("HTTP/1.1 404 "));
    }

    const OPEN: &str = "GET /live/x.flv HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://a\r\n\r\n";

    #[test]
    fn a_web_socket_is_opened_and_closed() {
        let (sent, others) = talk(OPEN, &yes());
        assert!(sent.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{sent}");
        assert!(sent.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{sent}");
        assert_eq!(others[1], "watch live/x FlvWebSocket");
        let (sent, others) = talk(OPEN, &Err(Refusal::NotFound("live/x".into())));
        assert!(sent.starts_with("HTTP/1.1 404 ") && others.len() == 1, "{sent} {others:?}");
        let (sent, _) = talk(&OPEN.replace("13", "7"), &yes());
        assert!(sent.starts_with("HTTP/1.1 426 ") && sent.contains("Sec-WebSocket-Version: 13\r\n"), "{sent}");

        let mut session = HttpFlvSession::new("http://b".into());
        let mut out = Outbox::default();
        session.receive(now(), Input::Stream(&mut BytesMut::from(OPEN)), &mut out).unwrap();
        assert!(matches!(out.pop(), Some(Output::Send(bytes)) if bytes.starts_with(b"HTTP/1.1 403 ")));
        assert!(out.is_empty());
    }

    #[test]
    fn a_viewer_on_a_web_socket_is_answered() {
        let watching = || {
            let mut session = HttpFlvSession::new("*".into());
            session.state = State::Watching(Coding::WebSocket);
            session
        };
        let say = |session: &mut HttpFlvSession, bytes: &[u8]| {
            let (mut buffer, mut out) = (BytesMut::from(bytes), Outbox::default());
            let fault = session.receive(now(), Input::Stream(&mut buffer), &mut out).err();
            let sent = match out.pop() {
                Some(Output::Send(bytes)) => bytes.to_vec(),
                other => panic!("{other:?}"),
            };
            (sent, matches!(out.pop(), Some(Output::Close { .. })), fault.map(|fault| fault.fatal))
        };
        let mut session = watching();
        assert_eq!(say(&mut session, &[0x89, 0x81, 0, 0, 0, 0, 7]), (vec![0x8a, 1, 7], false, None));
        let close = say(&mut session, &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
        assert_eq!(close, (vec![0x88, 2, 3, 0xe8], true, None));
        let (sent, closed, fault) = say(&mut watching(), &[0x82, 0x05]);
        assert_eq!((&sent[2..4], closed, fault), (&1002u16.to_be_bytes()[..], false, Some(true)));
        let mut out = Outbox::default();
        watching().receive(now(), Input::Ended { reason: "the stream ended" }, &mut out).unwrap();
        assert!(matches!(out.pop(), Some(Output::Send(bytes)) if bytes[2..4] == 1001u16.to_be_bytes()));
    }

    #[test]
    fn the_dialect_of_h265_is_the_viewers_choice() {
        let ask = |query: &str| talk(&format!("GET /live/x.flv{query} HTTP/1.0\r\n\r\n"), &yes());
        assert_eq!(ask("?hevc=legacy").1[1], "watch live/x FlvLegacy");
        assert_eq!(ask("?hevc=enhanced").1[1], "watch live/x Flv");
        assert!(ask("?hevc=12").0.starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn a_chunked_body_gets_its_last_chunk() {
        let mut session = HttpFlvSession::new("*".into());
        session.state = State::Watching(Coding::Chunked);
        let mut out = Outbox::default();
        session.receive(now(), Input::Ended { reason: "the source left" }, &mut out).unwrap();
        assert!(matches!(out.pop(), Some(Output::Send(bytes)) if bytes[..] == b"0\r\n\r\n"[..]));
    }
}
