//! Where a destination is: its URL, taken apart.

use std::fmt;
use std::str::FromStr;

/// `SCHEME://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Empty, or from its `/` on, query included. Only WebSocket and HTTP have one.
    pub path: String,
}

/// How a destination is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Mqtt,
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    Wss,
    Http,
    Https,
    Nats,
    NatsTls,
}

/// The table of schemes: word, TLS or not, port if none is said, whether a path may follow.
const SCHEMES: &[(Scheme, &str, bool, u16, bool)] = &[
    (Scheme::Mqtt, "mqtt", false, 1883, false),
    (Scheme::Mqtts, "mqtts", true, 8883, false),
    (Scheme::Ws, "ws", false, 80, true),
    (Scheme::Wss, "wss", true, 443, true),
    (Scheme::Http, "http", false, 80, true),
    (Scheme::Https, "https", true, 443, true),
    (Scheme::Nats, "nats", false, 4222, false),
    (Scheme::NatsTls, "nats+tls", true, 4222, false),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{url}` is no destination: it reads SCHEME://HOST[:PORT], with /PATH for ws, wss, http and https; SCHEME is {}",
    words()
)]
pub struct PlaceError {
    pub url: String,
}

// === impl Place ===

impl Place {
    /// An MQTT broker over plain TCP.
    pub fn mqtt(host: impl Into<String>, port: u16) -> Self {
        Self { scheme: Scheme::Mqtt, host: host.into(), port, path: String::new() }
    }

    pub fn is_tls(&self) -> bool {
        self.scheme.row().2
    }

    /// Host and port as an authority: an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(url: &str) -> Result<Self, PlaceError> {
        let wrong = || PlaceError { url: url.to_owned() };
        let (word, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (scheme, _, _, default_port, has_path) =
            *SCHEMES.iter().find(|(_, known, ..)| *known == word).ok_or_else(wrong)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // A colon inside of brackets belongs to an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (authority, default_port),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let path = if path == "/" && !has_path { "" } else { path };
        let unfit = |c: char| c.is_whitespace() || c.is_control();
        if host.is_empty() || host.contains('@') || host.contains(unfit) || path.contains(unfit) || port == 0 {
            return Err(wrong());
        }
        if !path.is_empty() && !has_path {
            return Err(wrong());
        }
        Ok(Self { scheme, host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.row().1, self.authority(), self.path)
    }
}

// === impl Scheme ===

impl Scheme {
    fn row(self) -> (Self, &'static str, bool, u16, bool) {
        SCHEMES.iter().find(|(scheme, ..)| *scheme == self).copied().unwrap_or((self, "", false, 0, false))
    }

    /// Whether it is MQTT, on whatever wire.
    pub const fn is_mqtt(self) -> bool {
        matches!(self, Self::Mqtt | Self::Mqtts | Self::Ws | Self::Wss)
    }
}

fn words() -> String {
    SCHEMES.iter().map(|(_, word, ..)| *word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_documented() {
        let place =
            |scheme, host: &str, port, path: &str| Place { scheme, host: host.to_owned(), port, path: path.to_owned() };
        for (url, expected) in [
            ("mqtt://localhost", place(Scheme::Mqtt, "localhost", 1883, "")),
            ("mqtts://broker.example:9999", place(Scheme::Mqtts, "broker.example", 9999, "")),
            ("mqtts://broker.example/", place(Scheme::Mqtts, "broker.example", 8883, "")),
            ("mqtt://[::1]:1884", place(Scheme::Mqtt, "::1", 1884, "")),
            ("mqtt://[::1]", place(Scheme::Mqtt, "::1", 1883, "")),
            ("wss://b.example/mqtt?x=1", place(Scheme::Wss, "b.example", 443, "/mqtt?x=1")),
            ("https://p.example:8443/in", place(Scheme::Https, "p.example", 8443, "/in")),
            ("http://p.example", place(Scheme::Http, "p.example", 80, "")),
            ("nats+tls://n.example", place(Scheme::NatsTls, "n.example", 4222, "")),
        ] {
            assert_eq!(url.parse::<Place>().unwrap(), expected, "{url}");
        }
        for url in ["localhost", "ftp://x", "mqtt://", "mqtt://x:0", "mqtt://x:99999", "mqtt://u:p@x", "mqtt://x/y"] {
            assert!(url.parse::<Place>().is_err(), "{url}");
        }
        assert_eq!("mqtt://[::1]:1884".parse::<Place>().unwrap().to_string(), "mqtt://[::1]:1884");
    }
}
