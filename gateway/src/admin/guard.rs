//! Who may talk to the console: whoever has the token; without one, only this box itself.
//!
//! Without a token the peer's address must be a loopback one, and so must the name the browser was told to go to
//! (`Host`): a page elsewhere that points its own name at 127.0.0.1 (DNS rebinding) is turned away. A request from
//! another site (`Origin`) is turned away in both cases, and a request that changes something must be JSON, which a
//! browser does not send across sites without asking first.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode, header};

use super::problem::Problem;

/// Longest token, bytes.
pub(super) const TOKEN_LEN_MAX: usize = 512;

/// The rules, ready to be applied.
#[derive(Clone)]
pub(super) struct Guard {
    token: Option<Arc<[u8]>>,
}

/// What a path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Says nothing about the box: the page's own files, the health.
    Nothing,
    Token,
}

/// Why a request is turned away, as the metrics count it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turned {
    pub(super) reason: &'static str,
    pub(super) problem: Problem,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("token", &self.token.is_some()).finish()
    }
}

impl Guard {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(|t| Arc::from(t.as_bytes())) }
    }

    /// Whether this request may go on.
    pub(super) fn check(
        &self,
        peer: SocketAddr,
        method: &Method,
        headers: &HeaderMap,
        need: Need,
    ) -> Result<(), Turned> {
        let host = text(headers, &header::HOST).unwrap_or_default();
        if self.token.is_none() {
            if !peer.ip().to_canonical().is_loopback() {
                let detail = "without a token the console answers to this box alone; set admin.token_file";
                return Err(Turned::new("peer", StatusCode::FORBIDDEN, detail));
            }
            if !names_loopback(host) {
                let detail = "without a token the console answers to localhost, 127.0.0.1 and [::1] alone";
                return Err(Turned::new("host", StatusCode::MISDIRECTED_REQUEST, detail));
            }
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let authority = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
            if authority != Some(host) {
                return Err(Turned::new("origin", StatusCode::FORBIDDEN, "a page of another site may not ask this"));
            }
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let kind = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
            let essence = kind.split(';').next().unwrap_or_default().trim();
            if !essence.eq_ignore_ascii_case("application/json") {
                let detail = "the content type must be application/json";
                return Err(Turned::new("type", StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
            }
        }
        match (&self.token, need) {
            (Some(token), Need::Token) if !bearer(headers).is_some_and(|given| same(token, given)) => {
                Err(Turned::new("token", StatusCode::UNAUTHORIZED, "the token is missing or wrong"))
            }
            _ => Ok(()),
        }
    }
}

impl Turned {
    fn new(reason: &'static str, status: StatusCode, detail: &str) -> Self {
        Self { reason, problem: Problem::new(status, detail) }
    }
}

/// The name in a `Host` header without its port.
pub(super) fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(name, _)| name);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn names_loopback(host: &str) -> bool {
    let name = host_name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = text(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().as_bytes())
}

/// Equal, in a time that does not depend on where they differ.
fn same(token: &[u8], given: &[u8]) -> bool {
    let differing = (0..TOKEN_LEN_MAX).fold(token.len() ^ given.len(), |differing, at| {
        let a = token.get(at).copied().unwrap_or_default();
        let b = given.get(at).copied().unwrap_or_default();
        differing | usize::from(a ^ b)
    });
    std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(guard: &Guard, peer: &str, method: Method, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        guard.check(peer.parse().unwrap(), &method, &map, Need::Token).map_err(|turned| turned.reason)
    }

    #[test]
    fn without_a_token_only_this_box_may() {
        let guard = Guard::new(None);
        for host in ["localhost:8080", "127.0.0.1:8080", "127.3.2.1", "[::1]:8080", "LOCALHOST"] {
            assert_eq!(ask(&guard, "127.0.0.1:5", Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(ask(&guard, "[::ffff:127.0.0.1]:5", Method::GET, &[("host", "localhost")]), Ok(()));
        assert_eq!(ask(&guard, "192.168.1.7:5", Method::GET, &[("host", "localhost")]), Err("peer"));
        for host in ["evil.example:8080", "", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"] {
            assert_eq!(ask(&guard, "127.0.0.1:5", Method::GET, &[("host", host)]), Err("host"), "{host}");
        }
    }

    #[test]
    fn another_site_may_not_and_changes_must_be_json() {
        let guard = Guard::new(None);
        let host = ("host", "localhost:8080");
        let json = ("content-type", "application/json; charset=utf-8");
        let peer = "127.0.0.1:5";
        assert_eq!(ask(&guard, peer, Method::POST, &[host, json, ("origin", "http://localhost:8080")]), Ok(()));
        assert_eq!(ask(&guard, peer, Method::POST, &[host, json]), Ok(()));
        assert_eq!(ask(&guard, peer, Method::POST, &[host, json, ("origin", "http://evil.example")]), Err("origin"));
        assert_eq!(ask(&guard, peer, Method::POST, &[host, json, ("origin", "null")]), Err("origin"));
        assert_eq!(ask(&guard, peer, Method::POST, &[host, ("content-type", "text/plain")]), Err("type"));
        assert_eq!(ask(&guard, peer, Method::POST, &[host]), Err("type"));
    }

    #[test]
    fn with_a_token_whoever_has_it_may() {
        let guard = Guard::new(Some("s3cret"));
        let host = ("host", "box.example:8080");
        let peer = "192.168.1.7:5";
        assert_eq!(ask(&guard, peer, Method::GET, &[host, ("authorization", "Bearer s3cret")]), Ok(()));
        for wrong in ["Bearer s3cre", "Bearer s3crett", "Bearer ", "Basic s3cret", "s3cret"] {
            assert_eq!(ask(&guard, peer, Method::GET, &[host, ("authorization", wrong)]), Err("token"), "{wrong}");
        }
        assert_eq!(ask(&guard, "127.0.0.1:5", Method::GET, &[host]), Err("token"));
    }
}
