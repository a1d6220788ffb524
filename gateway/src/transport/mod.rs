//! The wires: TCP, TLS, UDP, serial. Written once; every protocol runs on them through `drive.rs`.
//!
//! `drive.rs` runs one session over one wire, `conversation/` does what it wants, `unwritten.rs` holds what it says, `unsettled.rs` what it was promised, `line.rs` the devices it speaks
//! for; `tcp.rs`, `udp.rs` and `serial.rs` make wires; `sniff.rs` decides which
//! protocol a connection speaks. Must not be in here: anything that knows one protocol.

mod address;
mod conversation;
mod drive;
mod line;
mod media;
mod serial;
mod sniff;
mod tcp;
mod udp;
mod unsettled;
mod unwritten;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocols::{Endpoint, Limits, Protocol};

pub use address::{Listen, ListenError};

use crate::admission::Locks;
use crate::broker::Broker;
use crate::bus::Bus;
use crate::credentials::Gatekeeper;
use crate::devices::RouteId;
use crate::hls::Hls;
use crate::hooks::Hooks;
use crate::intake::{AdapterInfo, Intake};
use crate::metrics::Metrics;
use crate::stream::StreamCore;
use crate::threads::Tasks;
use crate::tls::ServerTls;

/// The parts that sessions reach through their driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    pub tasks: Tasks,
    pub bus: Bus,
    pub intake: Intake,
    pub broker: Broker,
    pub streams: StreamCore,
    pub hls: Hls,
    pub gatekeeper: Arc<Gatekeeper>,
    pub hooks: Hooks,
    pub metrics: Metrics,
}

impl Services {
    /// What decides who is let in to a stream.
    pub fn locks(&self) -> Locks<'_> {
        Locks { gatekeeper: &self.gatekeeper, hooks: &self.hooks, hls: &self.hls, streams: &self.streams }
    }
}

/// One adapter, ready to run: where it listens, what it speaks, whose devices these are.
#[derive(Debug)]
pub struct Adapter {
    pub info: Arc<AdapterInfo>,
    pub listen: Listen,
    pub languages: Vec<Arc<Language>>,
    pub connections_max: usize,
    pub tls: Option<ServerTls>,
}

/// A protocol with its options.
pub struct Language {
    pub row: &'static dyn Protocol,
    pub endpoint: Arc<dyn Endpoint>,
    limits: Limits,
}

impl Language {
    pub fn new(row: &'static dyn Protocol, endpoint: Arc<dyn Endpoint>) -> Self {
        Self { row, limits: endpoint.limits(), endpoint }
    }
}

impl std::fmt::Debug for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Language").field("protocol", &self.row.name()).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("adapter `{adapter}`: cannot listen on {listen}: {source}")]
pub struct BindError {
    pub adapter: String,
    pub listen: String,
    pub source: io::Error,
}

/// An adapter whose port is bound.
#[derive(Debug)]
pub struct Bound {
    /// The address really bound (a port 0 in the configuration is chosen by the kernel).
    pub address: Option<std::net::SocketAddr>,
}

/// Binds the adapter's wire and starts serving it.
pub async fn start(adapter: Adapter, services: &Services) -> Result<Bound, BindError> {
    let name = adapter.info.name.to_string();
    let listen = adapter.listen.to_string();
    let adapter = Arc::new(adapter);
    // Shared by all its connections, so that each holds one pointer.
    let services = &Arc::new(services.clone());
    let started = match &adapter.listen {
        Listen::Tcp(address) | Listen::Tls(address) => tcp::start(*address, Arc::clone(&adapter), services),
        Listen::Udp(address) => udp::start(*address, Arc::clone(&adapter), services).await,
        Listen::Serial { .. } => serial::start(Arc::clone(&adapter), services),
    };
    started.map_err(|source| BindError { adapter: name, listen, source })
}

/// A new name for a connection or UDP peer of this run.
pub fn next_route() -> RouteId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    RouteId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Randomness for a session; zeros if the kernel has none, which only makes ids guessable.
fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    if let Err(error) = getrandom::fill(&mut seed) {
        tracing::warn!(%error, "no randomness from the kernel");
    }
    seed
}
