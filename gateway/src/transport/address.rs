//! `listen` as configuration spells it: `tcp://HOST:PORT`, `tls://…`, `udp://…`, `serial:///dev/NAME?baud=N`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// Where an adapter listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Tls(SocketAddr),
    Udp(SocketAddr),
    Serial { path: PathBuf, baud: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}`: {why}; write tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT or serial:///dev/NAME?baud=N")]
pub struct ListenError {
    given: String,
    why: String,
}

/// Baud rates every UART knows; others are a typing error more often than a need.
const BAUD_RANGE: std::ops::RangeInclusive<u32> = 300..=4_000_000;

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(given: &str) -> Result<Self, ListenError> {
        let error = |why: &str| ListenError { given: given.to_owned(), why: why.to_owned() };
        let (scheme, rest) = given.split_once("://").ok_or_else(|| error("no scheme"))?;
        match scheme {
            "tcp" => Ok(Self::Tcp(socket_address(rest).map_err(|why| error(&why))?)),
            "tls" => Ok(Self::Tls(socket_address(rest).map_err(|why| error(&why))?)),
            "udp" => Ok(Self::Udp(socket_address(rest).map_err(|why| error(&why))?)),
            "serial" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, "baud=9600"));
                let baud =
                    query.strip_prefix("baud=").and_then(|b| b.parse().ok()).ok_or_else(|| error("no baud=N"))?;
                if !path.starts_with('/') {
                    return Err(error("the device's path must be absolute"));
                }
                if !BAUD_RANGE.contains(&baud) {
                    return Err(error("the baud rate is out of range"));
                }
                Ok(Self::Serial { path: PathBuf::from(path), baud })
            }
            _ => Err(error("unknown scheme")),
        }
    }
}

impl Listen {
    /// Whether only this box can reach it.
    pub fn is_on_the_box(&self) -> bool {
        match self {
            Self::Tcp(a) | Self::Tls(a) | Self::Udp(a) => a.ip().is_loopback(),
            Self::Serial { .. } => true,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(a) => write!(f, "tcp://{a}"),
            Self::Tls(a) => write!(f, "tls://{a}"),
            Self::Udp(a) => write!(f, "udp://{a}"),
            Self::Serial { path, baud } => write!(f, "serial://{}?baud={baud}", path.display()),
        }
    }
}

/// `HOST:PORT` with a literal address or a name; the name's first address counts.
fn socket_address(host_port: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = host_port.parse() {
        return Ok(address);
    }
    match host_port.to_socket_addrs() {
        Ok(mut addresses) => addresses.next().ok_or_else(|| "the name has no address".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_round_trip() {
        for text in ["tcp://0.0.0.0:1883", "tls://[::]:8883", "udp://127.0.0.1:5683", "serial:///dev/ttyS1?baud=115200"]
        {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        assert_eq!("serial:///dev/ttyS1".parse::<Listen>().unwrap().to_string(), "serial:///dev/ttyS1?baud=9600");
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for text in
            ["1883", "tcp://1.2.3.4", "tcp://1.2.3.4:99999", "http://a:1", "serial://ttyS1", "serial:///dev/x?baud=1"]
        {
            let error = text.parse::<Listen>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("tcp://HOST:PORT"), "{error}");
        }
    }
}
