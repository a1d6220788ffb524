//! The way upstream: one task a destination reads the bus through a durable cursor of its own, says it in the
//! destination's dialect, and moves the cursor only when the destination has confirmed it.
//!
//! | file | what |
//! |---|---|
//! | `destination/` | the seam to what carries the messages, one file a kind: MQTT, HTTP, NATS, Kafka |
//! | `sender/` | the task: connect, fill the window, hear, try again |
//! | `queue.rs`, `window.rs` | where a batch ends; what is sent and not yet confirmed |
//! | `lane.rs`, `pace.rs` | live first: what comes now beside what waited, and how fast the latter goes |
//! | `filter.rs` | what a destination wants |
//! | `quarantine.rs` | what a destination will never take, set aside |
//! | `receipt.rs` | what a consumer behind the broker says it has |
//! | `dialect.rs` | the table of dialects, one file each: `native.rs`, `json.rs` (`own.rs`: the topics they share), `thingsboard.rs`, `jetlinks.rs`, `homeassistant.rs` (`entities.rs`: its discovery), `thinedge.rs`, `sparkplug/`, `alink/` |
//! | `introductions.rs` | which things a platform is to be told of yet |
//! | `down.rs`, `turns.rs`, `things.rs` | commands from upstream, whose turn it is, and the seam to the things |
//!
//! What holds: inside a class messages go in order; a class's cursor moves over a message only after all it was sent
//! in is confirmed; after any lost connection everything unconfirmed goes again, so upstream may see a message twice but misses
//! none, and tells the second by (gateway, epoch, class, number). Control goes before events, events before live.
//!
//! Must not be in here: what devices speak, how the bus keeps its records.

mod alink;
pub mod destination;
mod dialect;
mod down;
mod entities;
mod filter;
#[cfg(test)]
mod golden;
mod homeassistant;
mod introductions;
mod jetlinks;
mod json;
mod lane;
mod native;
mod own;
mod pace;
mod quarantine;
mod queue;
mod receipt;
mod sender;
mod sparkplug;
mod status;
mod thinedge;
mod things;
mod thingsboard;
mod turns;
mod window;

use std::path::PathBuf;
use std::sync::Arc;

pub use receipt::Receipt;
pub use status::Status;
pub use things::{Known, Later, Things, names};
use tokio::sync::watch;
use tracing::warn;

use crate::bus::{Bus, BusError};
use crate::config;
use crate::corrections::Corrections;
use crate::metrics::Metrics;
use crate::threads::Tasks;
use crate::tls::{TlsError, Trust};
use destination::place::{Place, PlaceError};
use sender::Sender;

/// What stands before an upstream's name in the name of its cursor.
const CURSORS: &str = "upstream/";

/// Everything of the box that the way upstream needs.
#[derive(Clone)]
pub struct Parts {
    /// The gateway's id: letters, digits, `-`, `_`.
    pub gateway: Arc<str>,
    pub bus: Bus,
    pub corrections: Corrections,
    pub things: Arc<dyn Things>,
    pub tasks: Tasks,
    pub metrics: Metrics,
    /// Folder for what a destination will never take.
    pub quarantine: PathBuf,
}

/// Why an upstream cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("upstream `{name}`: {error}")]
    Url { name: String, error: PlaceError },
    #[error("upstream `{name}`: {error}")]
    Tls { name: String, error: TlsError },
    #[error("upstream `{name}`: {error}")]
    Bus { name: String, error: BusError },
}

/// A destination at work. It stops with the tasks it was started on.
#[derive(Debug, Clone)]
pub struct Upstream {
    status: watch::Receiver<Status>,
}

// === impl Parts ===

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

// === impl Upstream ===

impl Upstream {
    /// Starts to send. A broker that is not there is no error: it is tried until it is.
    pub fn start(config: config::Upstream, parts: &Parts) -> Result<Self, UpstreamError> {
        let name = config.name.clone();
        let place: Place = config.url.parse().map_err(|error| UpstreamError::Url { name: name.clone(), error })?;
        let trust = place.is_tls().then(|| Trust {
            ca_file: config.ca_file.clone(),
            cert_file: config.cert_file.clone(),
            key_file: config.key_file.clone(),
        });
        if let Some(trust) = &trust {
            // Read once here, so that a wrong file is told at the start; each connection reads them again.
            trust.client_config().map_err(|error| UpstreamError::Tls { name: name.clone(), error })?;
        }
        let reader =
            parts.bus.reader(&cursor_name(&name)).map_err(|error| UpstreamError::Bus { name: name.clone(), error })?;
        let (sender, status) = Sender::new(config, place, trust, reader, parts);
        parts.tasks.spawn("upstream", sender.run());
        Ok(Self { status })
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// The name an upstream's cursor is kept under.
fn cursor_name(upstream: &str) -> String {
    format!("{CURSORS}{upstream}")
}

/// Forgets the cursors of upstreams that are not configured any more: a destination that was taken out must not hold the
/// disk for ever. Returns each one's name and how many messages it had not got, and says so in the log.
pub fn forget_removed(bus: &Bus, configured: &[config::Upstream]) -> Result<Vec<(String, u64)>, BusError> {
    let mut removed = Vec::new();
    for cursor in bus.stat().readers {
        let Some(name) = cursor.strip_prefix(CURSORS) else { continue };
        if configured.iter().any(|upstream| upstream.name == name) {
            continue;
        }
        let missing = bus.backlog(&cursor).iter().sum();
        bus.forget(&cursor)?;
        warn!(upstream = name, missing, "this upstream is not configured any more: what it had not got is let go");
        removed.push((name.to_owned(), missing));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use device_models::Class;

    use super::*;

    #[tokio::test]
    async fn a_removed_upstream_is_forgotten_with_what_it_had_not_got_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = config::Store { path: folder.path().to_owned(), commit_ms: 0, ..config::Store::default() };
        let (bus, _) = Bus::open(&store).unwrap();
        for name in ["upstream/old", "upstream/kept", "other"] {
            bus.reader(name).unwrap();
        }
        for class in [Class::Live, Class::Live, Class::Event] {
            let seq = bus.append(class, b"message").await.unwrap();
            bus.settled(class, seq).await.unwrap();
        }
        bus.reader("upstream/old").unwrap().commit(Class::Live, 1);
        let kept: config::Upstream = toml::from_str("name = \"kept\"\nurl = \"mqtt://127.0.0.1:1883\"").unwrap();
        assert_eq!(forget_removed(&bus, &[kept]).unwrap(), [("old".to_owned(), 2)]);
        assert_eq!(bus.stat().readers, ["other", "upstream/kept"]);
        bus.close().await;
        drop(bus);
        let (bus, _) = Bus::open(&store).unwrap();
        assert_eq!(bus.stat().readers, ["other", "upstream/kept"]);
        bus.close().await;
    }
}
