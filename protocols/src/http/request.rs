//! Request heads of HTTP/1.1 (RFC 9112), read strictly, and their targets (RFC 3986).
//!
//! Strict, because whatever two parsers read differently is a way around a proxy's rules: no folded lines, no bare line
//! feeds, no blanks before colons, no body without its length.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::pass::{parameter, percent_decode};

/// Bytes of a request head.
pub const HEADER_MAX: usize = 8 * 1024;

/// Fields of a request head.
pub const FIELDS_MAX: usize = 64;

/// Blank lines that may stand before a request (2.2).
const BLANK_LINES_MAX: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Options,
    Post,
    Put,
    Other,
}

/// A request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// As it came: printable, without blanks.
    pub target: String,
    /// Percent-decoded, beginning with `/`.
    pub path: String,
    /// As it came.
    pub query: String,
    /// The minor version: 0 or 1.
    pub minor: u8,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    /// Bytes it had on the wire.
    pub len: usize,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("malformed request: {what}")]
    Malformed { what: &'static str, at: usize },
    #[error("request head of more than {HEADER_MAX} bytes or {FIELDS_MAX} fields")]
    TooLarge,
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken")]
    Version,
}

impl Request {
    /// Reads the head of a request without a body off the front; `None` when it is not all there.
    pub fn parse(buffer: &[u8]) -> Result<Option<Self>, RequestError> {
        let request = Self::parse_head(buffer)?;
        match &request {
            Some(request) if request.body_len()? > 0 => {
                Err(RequestError::Malformed { what: "a body where none is taken", at: request.len })
            }
            _ => Ok(request),
        }
    }

    /// Reads a head off the front; [`body_len`](Self::body_len) bytes follow it. `None` when it is not all there.
    pub fn parse_head(buffer: &[u8]) -> Result<Option<Self>, RequestError> {
        let begin = skip_blank_lines(buffer);
        let text = buffer.get(begin..).unwrap_or_default();
        let end = text.windows(4).take(HEADER_MAX).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            // A head that already breaks the rules need not be waited for.
            check_lines(text.get(..HEADER_MAX).unwrap_or(text), begin)?;
            return if text.len() > HEADER_MAX + 3 { Err(RequestError::TooLarge) } else { Ok(None) };
        };
        let head = text.get(..end).unwrap_or_default();
        check_lines(text.get(..end + 4).unwrap_or_default(), begin)?;
        let malformed = |what| RequestError::Malformed { what, at: begin };
        let head = std::str::from_utf8(head).map_err(|_| malformed("not text"))?;
        let mut lines = head.split("\r\n");
        if lines.clone().count() > 1 + FIELDS_MAX {
            return Err(RequestError::TooLarge);
        }
        let mut parts = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("the first line is not METHOD TARGET VERSION"));
        };
        let minor = match version {
            "HTTP/1.1" => 1,
            "HTTP/1.0" => 0,
            _ if version.starts_with("HTTP/") => return Err(RequestError::Version),
            _ => return Err(malformed("no HTTP version")),
        };
        let fields =
            lines.map(field).collect::<Option<Vec<_>>>().ok_or_else(|| malformed("a field is not NAME: VALUE"))?;
        let (path, query) = target_of(target).ok_or_else(|| malformed("target"))?;
        let (method, target) = (Method::of(method), target.to_owned());
        let request = Self { method, target, path, query, minor, fields, len: begin + end + 4 };
        request.check_framing().map(|()| Some(request))
    }

    /// Bytes of the body behind the head (RFC 9112, 6.2).
    pub fn body_len(&self) -> Result<usize, RequestError> {
        let malformed = RequestError::Malformed { what: "Content-Length is no number of bytes", at: 0 };
        match self.field("content-length") {
            None => Ok(0),
            // Only digits: `+5` is a number to some.
            Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().map_err(|_| malformed),
            Some(_) => Err(malformed),
        }
    }

    /// User, if any, and secret of an `Authorization`: Basic (RFC 7617) or Bearer (RFC 6750).
    pub fn credentials(&self) -> Option<(Option<String>, String)> {
        let (scheme, text) = self.field("authorization")?.split_once(' ')?;
        let text = text.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some((None, text.to_owned()));
        }
        let plain = BASE64.decode(text).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
        let plain = String::from_utf8(plain).ok()?;
        plain.split_once(':').map(|(user, secret)| (Some(user.to_owned()), secret.to_owned()))
    }

    /// The value of the first field with this (lower-case) name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The decoded value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        parameter(name, &self.query).map(Cow::into_owned)
    }

    /// Whether the connection stays open after the answer.
    pub fn keeps_alive(&self) -> bool {
        let says = |word| self.has_token("connection", word);
        if self.minor == 0 { says("keep-alive") } else { !says("close") }
    }

    /// Whether a field that is a list has this word in it.
    pub fn has_token(&self, name: &str, word: &str) -> bool {
        let fields = self.fields.iter().filter(|(field, _)| field == name);
        fields.flat_map(|(_, value)| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(word))
    }

    /// What two parsers could read differently (RFC 9112, 3.2 and 6.1).
    fn check_framing(&self) -> Result<(), RequestError> {
        let count = |field: &str| self.fields.iter().filter(|(name, _)| name == field).count();
        if count("transfer-encoding") > 0 || count("content-length") > 1 {
            return Err(RequestError::Malformed { what: "a body without one Content-Length", at: self.len });
        }
        let hosts = count("host");
        if hosts > 1 || hosts == 0 && self.minor == 1 {
            return Err(RequestError::Malformed { what: "not one Host field", at: 0 });
        }
        Ok(())
    }
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            _ => Self::Other,
        }
    }
}

fn skip_blank_lines(buffer: &[u8]) -> usize {
    let pairs = buffer.chunks_exact(2).take(BLANK_LINES_MAX);
    2 * pairs.take_while(|pair| *pair == b"\r\n").count()
}

/// No control characters, each carriage return with its line feed and the other way round.
fn check_lines(text: &[u8], begin: usize) -> Result<(), RequestError> {
    let mut before = 0;
    let mut lines = 1;
    for (at, &byte) in text.iter().enumerate() {
        let what = match (before, byte) {
            (b'\r', b'\n') => {
                lines += 1;
                None
            }
            (b'\r', _) => Some("carriage return without line feed"),
            (_, b'\n') => Some("line feed without carriage return"),
            (_, b'\r' | b'\t') => None,
            (_, ..0x20 | 0x7f) => Some("control character"),
            _ => None,
        };
        if let Some(what) = what {
            return Err(RequestError::Malformed { what, at: begin + at });
        }
        // The request line, the fields, the empty line, and what is after it.
        if lines > FIELDS_MAX + 3 {
            return Err(RequestError::TooLarge);
        }
        before = byte;
    }
    Ok(())
}

/// RFC 9110, 5.1 and 5.5.
fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let plain = !name.is_empty() && name.bytes().all(token);
    plain.then(|| (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Path and query of a target in origin form, absolute form, or `*` (which is the path then).
fn target_of(target: &str) -> Option<(String, String)> {
    if target == "*" {
        return Some((target.to_owned(), String::new()));
    }
    let origin = match target.strip_prefix("http://") {
        Some(rest) => rest.get(rest.find('/')?..)?,
        None => target,
    };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    if !path.starts_with('/') || origin.contains('#') {
        return None;
    }
    let path = percent_decode(path)?;
    let level_ok = |level: &str| level != ".." && level != ".";
    (path.split('/').all(level_ok) && !path.contains(['\0', '\\'])).then(|| (path.into_owned(), query.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Request>, RequestError> {
        Request::parse(text.as_bytes())
    }

    fn path(target: &str) -> Option<String> {
        parse(&format!("GET {target} HTTP/1.0\r\n\r\n")).ok().flatten().map(|request| request.path)
    }

    #[test]
    fn a_players_request() {
        let text = "GET /live/gate-1.flv?key=a%2Bb&x=1 HTTP/1.1\r\nHost: h:1935\r\nX-Thing:  a b \r\n\r\nrest";
        let request = parse(text).unwrap().unwrap();
        assert_eq!((request.method, request.path.as_str(), request.minor), (Method::Get, "/live/gate-1.flv", 1));
        assert_eq!(request.parameter("key").as_deref(), Some("a+b"));
        assert_eq!((request.field("x-thing"), request.field("host")), (Some("a b"), Some("h:1935")));
        assert_eq!(request.len, text.len() - 4);
        for cut in 0..request.len {
            assert_eq!(parse(&text[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn paths_that_climb_or_hide_are_refused() {
        assert_eq!(path("/live/%E9%97%A8.flv").as_deref(), Some("/live/门.flv"));
        assert_eq!(path("http://host/live/x.flv").as_deref(), Some("/live/x.flv"));
        for bad in
            ["/../etc", "/a/%2e%2e/b", "/a/..", "/a%00b", "/a%c0%ae", "/a%zz", "/a%4", "a/b", "/a#b", "/a\\b", "/."]
        {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_parsers_could_read_differently_is_refused() {
        for bad in [
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /\r\n\r\n",
        ] {
            assert!(matches!(parse(bad), Err(RequestError::Malformed { .. })), "{bad:?}: {:?}", parse(bad));
        }
        assert_eq!(parse("GET / HTTP/2.0\r\n\r\n"), Err(RequestError::Version));
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(HEADER_MAX));
        assert_eq!(parse(&long), Err(RequestError::TooLarge));
        let head = |fields: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(fields - 1));
        assert!(parse(&head(FIELDS_MAX)).unwrap().is_some());
        assert_eq!(parse(&head(FIELDS_MAX + 1)), Err(RequestError::TooLarge));
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(noise in "(GET|HEAD|OPTIONS) [ -~\r\n]{0,80}(\r\n\r\n)?[ -~]{0,9}", cut in any::<prop::sample::Index>()) {
            let cut = cut.index(noise.len() + 1);
            match parse(&noise[..cut]) {
                Ok(None) => {}
                Ok(Some(request)) => prop_assert_eq!(parse(&noise), Ok(Some(request))),
                Err(error) => prop_assert_eq!(parse(&noise), Err(error)),
            }
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _request = Request::parse(&noise);
        }
    }
}
