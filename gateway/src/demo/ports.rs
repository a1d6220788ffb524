//! Free ports for the demo: the usual ones, or where one is taken the next.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};

use crate::config::Config;

/// Ports tried beyond a taken one.
const TRIES: u16 = 100;

/// A port that was taken, and the one used instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    what: String,
    wanted: SocketAddr,
    used: SocketAddr,
}

/// Gives out addresses, none twice.
#[derive(Debug, Default)]
pub(super) struct Ports {
    given: HashSet<(bool, SocketAddr)>,
    pub(super) taken: Vec<Taken>,
}

impl Taken {
    pub(super) fn words(&self) -> String {
        format!("  ({}: port {} is taken, {} it is)\n", self.what, self.wanted.port(), self.used.port())
    }
}

impl Ports {
    /// Moves every listener of the configuration to a free port.
    pub(super) fn place(&mut self, config: &mut Config) -> anyhow::Result<()> {
        if !config.admin.listen.is_empty() {
            config.admin.listen = self.free("status page", false, &config.admin.listen)?.to_string();
        }
        if let Some(wanted) = config.webrtc.listen.strip_prefix("udp://") {
            config.webrtc.listen = format!("udp://{}", self.free("WebRTC", true, wanted)?);
        }
        for adapter in &mut config.adapters {
            let (scheme, rest) = adapter.listen.split_once("://").context("an adapter without a scheme")?;
            let free = self.free(&adapter.name, scheme == "udp", rest)?;
            adapter.listen = format!("{scheme}://{free}");
        }
        Ok(())
    }

    fn free(&mut self, what: &str, udp: bool, wanted: &str) -> anyhow::Result<SocketAddr> {
        let wanted: SocketAddr = wanted.parse().with_context(|| format!("`{wanted}` is no address"))?;
        for port in wanted.port()..=wanted.port().saturating_add(TRIES) {
            let address = SocketAddr::new(wanted.ip(), port);
            // Tried by binding: the listener that follows may still find it taken, and then says so.
            let free = if udp { UdpSocket::bind(address).is_ok() } else { TcpListener::bind(address).is_ok() };
            if free && self.given.insert((udp, address)) {
                if address != wanted {
                    self.taken.push(Taken { what: what.to_owned(), wanted, used: address });
                }
                return Ok(address);
            }
        }
        bail!("{what}: no free port from {} to {}", wanted.port(), wanted.port().saturating_add(TRIES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_gives_the_next_free_one_and_no_port_is_given_twice() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let held = holder.local_addr().unwrap();
        let mut ports = Ports::default();
        let first = ports.free("mqtt", false, &held.to_string()).unwrap();
        let second = ports.free("media", false, &held.to_string()).unwrap();
        assert!(first.port() > held.port() && second.port() > first.port());
        assert_eq!(ports.taken.len(), 2);
        assert!(ports.taken[0].words().contains(&first.port().to_string()));
        // The same number over UDP is another port.
        assert_eq!(ports.free("udp", true, &first.to_string()).unwrap(), first);
    }
}
