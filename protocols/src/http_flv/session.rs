//! The talk: requests are answered one after another until one becomes a viewer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::frame::{Method, Request, RequestError};
use crate::media::{Container, StreamName};
use crate::session::{Claim, Fault, Input, Outbox, Output, Refusal, Session, Ticket};

/// Answers without a stream that one connection may have: nobody needs more, and each is free work for a stranger.
const ANSWERS_MAX: u64 = 100;

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
        head_only: bool,
        chunked: bool,
        keeps_alive: bool,
    },
    Watching {
        chunked: bool,
    },
    Closed,
}

// === impl Session ===

impl Session for HttpFlvSession {
    fn receive(&mut self, _now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => return self.requests(buffer, out),
            Input::Admission { ticket, outcome } => self.admission(ticket, outcome.map(drop), out),
            Input::Ended { .. } => self.farewell(out),
            Input::Datagram(_) | Input::Settled { .. } | Input::Exchange(_) | Input::Command(_) => {}
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
        if !self.paused() {
            // A viewer has nothing more to say, and after a close nobody listens.
            buffer.clear();
        }
        Ok(())
    }

    fn refuse_request(&mut self, error: &RequestError, out: &mut Outbox) -> Fault {
        let (status, at) = match error {
            RequestError::Malformed { at, .. } => ("400 Bad Request", Some(*at)),
            RequestError::TooLarge => ("431 Request Header Fields Too Large", None),
            RequestError::Version => ("505 HTTP Version Not Supported", None),
        };
        self.answer(status, &error.to_string(), Answer { close: true, ..Answer::default() }, out);
        Fault { at, ..Fault::fatal(error.to_string()) }
    }

    fn request(&mut self, request: &Request, out: &mut Outbox) {
        let close = !request.keeps_alive() || self.answered + 1 >= ANSWERS_MAX;
        let answer = Answer { close, head_only: request.method == Method::Head, ..Answer::default() };
        let stream = request.path.strip_suffix(".flv").and_then(|path| StreamName::parse(path.get(1..)?));
        match (request.method, stream) {
            (Method::Options, _) => self.answer("204 No Content", "", Answer { preflight: true, ..answer }, out),
            (Method::Other, _) => {
                let answer = Answer { allow: true, ..answer };
                self.answer("405 Method Not Allowed", "only GET, HEAD and OPTIONS are answered here", answer, out);
            }
            (Method::Get | Method::Head, None) => {
                self.answer("404 Not Found", "no such path: streams are at /APP/NAME.flv", answer, out);
            }
            (method, Some(stream)) => {
                let ticket = Ticket(self.answered);
                let key = request.parameter("key");
                out.push(Output::Admit { ticket, claim: Claim::Watch { stream: stream.clone(), key } });
                let (head_only, chunked) = (method == Method::Head, request.minor == 1);
                self.state = State::Waiting { ticket, stream, head_only, chunked, keeps_alive: !close };
            }
        }
    }

    fn admission(&mut self, answered: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let (stream, head_only, chunked, keeps_alive) = match std::mem::replace(&mut self.state, State::Open) {
            State::Waiting { ticket, stream, head_only, chunked, keeps_alive } if ticket == answered => {
                (stream, head_only, chunked, keeps_alive)
            }
            other => {
                self.state = other;
                return;
            }
        };
        if let Err(refusal) = outcome {
            let answer = Answer { head_only, close: !keeps_alive, ..Answer::default() };
            self.answer(status_of(&refusal), &refusal.to_string(), answer, out);
            return;
        }
        let mut head = self.head("200 OK");
        head.push_str("Content-Type: video/x-flv\r\n");
        if head_only {
            self.answered += 1;
            out.send(finish(head, !keeps_alive));
            if !keeps_alive {
                self.close(out);
            }
            return;
        }
        if chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        }
        out.send(finish(head, true));
        self.state = State::Watching { chunked };
        let container = if chunked { Container::FlvChunked } else { Container::Flv };
        out.push(Output::Watch { stream, container });
    }

    fn farewell(&mut self, out: &mut Outbox) {
        match std::mem::replace(&mut self.state, State::Closed) {
            // The last chunk: the body is whole, nothing was cut off.
            State::Watching { chunked: true } => out.send(&b"0\r\n\r\n"[..]),
            State::Waiting { head_only, .. } => {
                let answer = Answer { head_only, close: true, ..Answer::default() };
                self.answer("503 Service Unavailable", "the gateway is stopping", answer, out);
            }
            _ => {}
        }
    }

    fn answer(&mut self, status: &str, text: &str, answer: Answer, out: &mut Outbox) {
        let mut head = self.head(status);
        if answer.preflight {
            head.push_str("Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\n");
            head.push_str("Access-Control-Allow-Headers: *\r\nAccess-Control-Max-Age: 86400\r\n");
        } else {
            head.push_str("Content-Type: text/plain; charset=utf-8\r\n");
            let len = text.len() + 1;
            // Writing to a string does not fail.
            let _infallible = write!(head, "Content-Length: {len}\r\n");
        }
        if answer.allow {
            head.push_str("Allow: GET, HEAD, OPTIONS\r\n");
        }
        let mut bytes = finish(head, answer.close);
        if !answer.head_only && !answer.preflight {
            bytes.push_str(text);
            bytes.push('\n');
        }
        out.send(bytes);
        self.answered += 1;
        if answer.close {
            self.close(out);
        }
    }

    fn close(&mut self, out: &mut Outbox) {
        if !matches!(self.state, State::Closed) {
            self.state = State::Closed;
            out.close("answered");
        }
    }

    fn head(&self, status: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nServer: sluicegate\r\nCache-Control: no-store\r\nAccess-Control-Allow-Origin: {}\r\n",
            self.allow_origin
        )
    }
}

fn finish(mut head: String, close: bool) -> String {
    head.push_str(if close { "Connection: close\r\n\r\n" } else { "Connection: keep-alive\r\n\r\n" });
    head
}

/// How an answer differs from the plain one.
#[derive(Debug, Clone, Copy, Default)]
struct Answer {
    head_only: bool,
    close: bool,
    allow: bool,
    preflight: bool,
}

fn status_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unauthorized => "401 Unauthorized",
        Refusal::Forbidden(_) => "403 Forbidden",
        Refusal::NotFound(_) => "404 Not Found",
        Refusal::Invalid(_) => "400 Bad Request",
        Refusal::Limit(_) | Refusal::Unavailable(_) => "503 Service Unavailable",
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
                    others.push(format!("{claim:?}"));
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
    fn a_chunked_body_gets_its_last_chunk() {
        let mut session = HttpFlvSession::new("*".into());
        session.state = State::Watching { chunked: true };
        let mut out = Outbox::default();
        session.receive(now(), Input::Ended { reason: "the source left" }, &mut out).unwrap();
        assert!(matches!(out.pop(), Some(Output::Send(bytes)) if bytes[..] == b"0\r\n\r\n"[..]));
    }
}
