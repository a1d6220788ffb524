//! Where a destination is: its URL, taken apart.

use std::fmt;
use std::str::FromStr;

/// `SCHEME://HOST[:PORT][/PATH]`; of Kafka, several `HOST[:PORT]` with commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Further places to begin with, each as host and port. Only Kafka has them.
    pub beside: Vec<(String, u16)>,
    /// Empty, or from its `/` on, query included. Only WebSocket, HTTP and Kafka have one.
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
    Kafka,
    KafkaTls,
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
    (Scheme::Kafka, "kafka", false, 9092, true),
    (Scheme::KafkaTls, "kafka+tls", true, 9093, true),
];

/// Of Kafka: the topic when none is said, and the longest one.
const TOPIC: &str = "sluicegate";
const TOPIC_LEN_MAX: usize = 249 - ".model".len();

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{url}` is no destination: it reads SCHEME://HOST[:PORT], with /PATH for ws, wss, http and https and /TOPIC for kafka; SCHEME is {}",
    words()
)]
pub struct PlaceError {
    pub url: String,
}

// === impl Place ===

impl Place {
    /// An MQTT broker over plain TCP.
    pub fn mqtt(host: impl Into<String>, port: u16) -> Self {
        Self { scheme: Scheme::Mqtt, host: host.into(), port, beside: Vec::new(), path: String::new() }
    }

    pub fn is_tls(&self) -> bool {
        self.scheme.row().2
    }

    /// Host and port as an authority: an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// All the places to begin with, as [`authority`](Self::authority) says them.
    pub fn authorities(&self) -> Vec<String> {
        let beside = self.beside.iter().map(|(host, port)| authority(host, *port));
        std::iter::once(self.authority()).chain(beside).collect()
    }

    /// Of Kafka: the topic. `None`: the path is none; a topic has letters, digits, `.`, `_` and `-`.
    pub fn topic(&self) -> Option<&str> {
        let name = match self.path.strip_prefix('/').unwrap_or(&self.path) {
            "" => TOPIC,
            name => name,
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        (name.len() <= TOPIC_LEN_MAX && name.chars().all(fits) && name != "." && name != "..").then_some(name)
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
        let mut places = Vec::new();
        for authority in authority.splitn(if scheme.is_kafka() { usize::MAX } else { 1 }, ',') {
            places.push(host_and_port(authority, default_port).ok_or_else(wrong)?);
        }
        let path = if path == "/" && !has_path { "" } else { path };
        if places.is_empty() || path.contains(unfit) || (!path.is_empty() && !has_path) {
            return Err(wrong());
        }
        let (host, port) = places.remove(0);
        Ok(Self { scheme, host, port, beside: places, path: path.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.row().1, self.authorities().join(","), self.path)
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

    pub const fn is_kafka(self) -> bool {
        matches!(self, Self::Kafka | Self::KafkaTls)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn host_and_port(authority: &str, default_port: u16) -> Option<(String, u16)> {
    // A colon inside of brackets belongs to an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, default_port),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let wrong = host.is_empty() || host.contains(['@', ',']) || host.contains(unfit) || port == 0;
    (!wrong).then(|| (host.to_owned(), port))
}

fn unfit(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn words() -> String {
    SCHEMES.iter().map(|(_, word, ..)| *word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_documented() {
        let place = |scheme, host: &str, port, path: &str| Place {
            scheme,
            host: host.to_owned(),
            port,
            beside: Vec::new(),
            path: path.to_owned(),
        };
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
            ("kafka://k.example/fleet", place(Scheme::Kafka, "k.example", 9092, "/fleet")),
        ] {
            assert_eq!(url.parse::<Place>().unwrap(), expected, "{url}");
        }
        for url in [
            "localhost",
            "ftp://x",
            "mqtt://",
            "mqtt://x:0",
            "mqtt://x:99999",
            "mqtt://u:p@x",
            "mqtt://x/y",
            "mqtt://x,y",
        ] {
            assert!(url.parse::<Place>().is_err(), "{url}");
        }
        assert_eq!("mqtt://[::1]:1884".parse::<Place>().unwrap().to_string(), "mqtt://[::1]:1884");
    }

    #[test]
    fn kafka_has_several_places_and_a_topic() {
        let place: Place = "kafka+tls://a,[::1]:9999,c:1/fleet.a".parse().unwrap();
        assert_eq!(place.authorities(), ["a:9093", "[::1]:9999", "c:1"]);
        assert_eq!(place.topic(), Some("fleet.a"));
        assert_eq!(place.to_string(), "kafka+tls://a:9093,[::1]:9999,c:1/fleet.a");
        for (url, topic) in
            [("kafka://a", Some("sluicegate")), ("kafka://a/", Some("sluicegate")), ("kafka://a/b/c", None)]
        {
            assert_eq!(url.parse::<Place>().unwrap().topic(), topic, "{url}");
        }
        for url in ["kafka://a,", "kafka://,a", "kafka://a:0,b"] {
            assert!(url.parse::<Place>().is_err(), "{url}");
        }
    }
}
