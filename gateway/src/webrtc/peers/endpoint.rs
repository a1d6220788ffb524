//! The one UDP socket of all sessions, and whose datagram it is: by the sender's address, which a peer becomes known by
//! when it names its session in an ICE check (RFC 8445, 7.3). Must not be in here: what a datagram says beyond that.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::Refusal;
use protocols::media::StreamName;
use str0m::crypto::CryptoProvider;
use str0m::crypto::dtls::DtlsCert;
use str0m::ice::StunMessage;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{crypto, offer};
use crate::config;
use crate::hooks::{Silence, Stay};
use crate::metrics::{Figure, Metrics};
use crate::threads::Tasks;
use crate::transport::Services;
use crate::webrtc::Role;

/// Bytes of a datagram that is looked at: larger than any Ethernet brings unfragmented.
const DATAGRAM_LEN_MAX: usize = 2_048;
/// Datagrams waiting for one session: some hundred milliseconds of a publisher.
const INBOX_MAX: usize = 256;
/// Addresses one session is reached from: a peer's interfaces, old and new.
const ADDRESSES_MAX: usize = 8;
/// Sessions that are negotiated and not connected yet: they cost memory and have proved nothing.
const PENDING_MAX: usize = 32;
/// How often addresses of sessions that are gone are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Wait after a receive that failed for want of something.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(in crate::webrtc) struct Endpoint {
    pub(in crate::webrtc) address: SocketAddr,
    socket: UdpSocket,
    /// As configured: more ways to reach us.
    candidates: Vec<SocketAddr>,
    identity: OnceLock<Identity>,
    /// By our ICE user name.
    seats: Mutex<HashMap<String, Arc<Seat>>>,
    sessions_max: usize,
    sessions: Arc<Semaphore>,
    pending: Arc<Semaphore>,
    metrics: Metrics,
}

/// Who we are in every handshake. Made with the first offer: nobody pays for it who has no peers.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: Arc<DtlsCert>,
    pub(super) provider: Arc<CryptoProvider>,
}

/// What the rest of the gateway knows of a session.
#[derive(Debug)]
pub(in crate::webrtc) struct Seat {
    pub(super) id: String,
    pub(in crate::webrtc) etag: String,
    pub(in crate::webrtc) role: Role,
    pub(in crate::webrtc) stream: StreamName,
    pub(in crate::webrtc) stop: CancellationToken,
    /// Our ICE user name, and the peer's.
    ufrag: String,
    peer_ufrag: String,
    inbox: mpsc::Sender<Datagram>,
    addresses: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) at: Instant,
    pub(super) data: Bytes,
}

/// Room for one more session.
#[derive(Debug)]
pub(in crate::webrtc) struct Place {
    _session: OwnedSemaphorePermit,
    /// Given back when the session is connected.
    pub(super) pending: Option<OwnedSemaphorePermit>,
    stay: Option<Stay>,
}

impl Place {
    /// Whom to ask when the session's publisher falls silent.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.stay.as_ref().map(Stay::silence)
    }
}

/// A session's name at the endpoint; dropping it takes it off.
#[derive(Debug)]
pub(super) struct Seated {
    pub(super) seat: Arc<Seat>,
    pub(super) inbox: mpsc::Receiver<Datagram>,
    endpoint: Arc<Endpoint>,
}

// === impl Endpoint ===

impl Endpoint {
    pub(in crate::webrtc) async fn start(
        address: SocketAddr,
        config: &config::Webrtc,
        services: &Services,
    ) -> io::Result<Arc<Self>> {
        let socket = UdpSocket::bind(address).await?;
        let address = socket.local_addr()?;
        let candidates = config.candidates.iter().filter_map(|given| candidate(given, address.port())).collect();
        let endpoint = Arc::new(Self {
            address,
            socket,
            candidates,
            identity: OnceLock::new(),
            seats: Mutex::default(),
            sessions_max: config.sessions_max,
            sessions: Arc::new(Semaphore::new(config.sessions_max)),
            pending: Arc::new(Semaphore::new(PENDING_MAX)),
            metrics: services.metrics.clone(),
        });
        services.tasks.spawn("webrtc", Arc::clone(&endpoint).receive(services.tasks.clone()));
        Ok(endpoint)
    }

    pub(in crate::webrtc) fn place(&self, stay: Option<Stay>) -> Result<Place, Refusal> {
        let full = |what: usize, which: &str| Refusal::Limit(format!("{what} WebRTC sessions{which}"));
        let session = Arc::clone(&self.sessions).try_acquire_owned();
        let session = session.map_err(|_| full(self.sessions_max, ""))?;
        let pending = Arc::clone(&self.pending).try_acquire_owned();
        let pending = pending.map_err(|_| full(PENDING_MAX, " that are not connected yet"))?;
        Ok(Place { _session: session, pending: Some(pending), stay })
    }

    pub(super) fn identity(&self) -> Result<Identity, crypto::CertificateError> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity.clone());
        }
        let made = Identity { certificate: Arc::new(crypto::certificate()?), provider: crypto::provider() };
        Ok(self.identity.get_or_init(|| made).clone())
    }

    /// Addresses of ours that a peer may reach; `reached` is one that it did reach.
    pub(super) fn addresses(&self, reached: Option<SocketAddr>) -> Vec<SocketAddr> {
        let port = self.address.port();
        let mut all = Vec::new();
        if self.address.ip().is_unspecified() {
            let both = self.address.is_ipv6();
            let reached = reached.map(|reached| reached.ip().to_canonical());
            let routed = [default_address(Ipv4Addr::UNSPECIFIED.into()), default_address(Ipv6Addr::UNSPECIFIED.into())];
            let found = reached.into_iter().chain(routed.into_iter().flatten()).filter(|ip| both || ip.is_ipv4());
            all.extend(found.map(|ip| SocketAddr::new(ip, port)));
        } else {
            all.push(self.address);
        }
        all.extend(&self.candidates);
        let mut known = Vec::new();
        all.retain(|address| {
            !known.contains(address) && {
                known.push(*address);
                true
            }
        });
        all
    }

    /// Gives a session its name.
    pub(super) fn seat(
        self: &Arc<Self>,
        role: Role,
        stream: &StreamName,
        ids: (String, String, String),
        peer_ufrag: String,
    ) -> Seated {
        let (id, etag, ufrag) = ids;
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let seat = Arc::new(Seat {
            id,
            etag,
            role,
            stream: stream.clone(),
            ufrag: ufrag.clone(),
            peer_ufrag,
            stop: CancellationToken::new(),
            inbox: sender,
            addresses: AtomicUsize::new(0),
        });
        self.seats().insert(ufrag, Arc::clone(&seat));
        self.metrics.change(Figure::WebrtcSessions, &[role.word()], 1.0);
        Seated { seat, inbox, endpoint: Arc::clone(self) }
    }

    pub(in crate::webrtc) fn find(&self, id: &str) -> Option<Arc<Seat>> {
        self.seats().values().find(|seat| seat.id == id).cloned()
    }

    /// Sends one datagram. What the network does not take is lost like any other.
    pub(super) async fn send(&self, to: SocketAddr, data: &[u8]) {
        let to = if self.address.is_ipv6() { mapped(to) } else { to };
        let sent = match self.socket.try_send_to(data, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.send_to(data, to).await,
            sent => sent,
        };
        match sent {
            Ok(len) => self.metrics.add(Figure::WebrtcBytes, &["out"], len as u64),
            Err(error) => {
                self.metrics.add(Figure::WebrtcDropped, &["unsendable"], 1);
                tracing::debug!(%to, %error, "a datagram could not be sent");
            }
        }
    }

    fn seats(&self) -> MutexGuard<'_, HashMap<String, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(self: Arc<Self>, tasks: Tasks) {
        let mut homes: HashMap<SocketAddr, Arc<Seat>> = HashMap::new();
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            let received = tokio::select! {
                received = self.socket.recv_from(&mut buffer) => received,
                _ = sweep.tick(), if !homes.is_empty() => {
                    homes.retain(|_, seat| !seat.inbox.is_closed());
                    continue;
                }
                () = tasks.stopping() => return,
            };
            match received {
                Ok((len, from)) => {
                    let data = buffer.get(..len).unwrap_or_default();
                    self.metrics.add(Figure::WebrtcBytes, &["in"], len as u64);
                    if let Err(reason) = self.deliver(&mut homes, canonical(from), data) {
                        self.metrics.add(Figure::WebrtcDropped, &[reason], 1);
                    }
                }
                // A peer's port that is closed by now is told to the socket, and is no fault of the others.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    warn!(%error, "the WebRTC socket cannot receive");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Hands a datagram to its session, or says why not.
    fn deliver(
        &self,
        homes: &mut HashMap<SocketAddr, Arc<Seat>>,
        from: SocketAddr,
        data: &[u8],
    ) -> Result<(), &'static str> {
        // A check names its session, wherever it comes from; everything else comes from where a check came from.
        let seat = match named(data) {
            Some(ufrag) => {
                let seat = self.seats().get(ufrag).cloned().ok_or("unknown")?;
                let free = homes.get(&from).is_none_or(|home| home.inbox.is_closed());
                if free && seat.addresses.fetch_add(1, Ordering::Relaxed) < ADDRESSES_MAX {
                    homes.insert(from, Arc::clone(&seat));
                }
                seat
            }
            None => homes.get(&from).cloned().ok_or("unknown")?,
        };
        let datagram = Datagram { from, at: Instant::now(), data: Bytes::copy_from_slice(data) };
        seat.inbox.try_send(datagram).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "full",
            mpsc::error::TrySendError::Closed(_) => "unknown",
        })
    }
}

impl Seat {
    /// Whether a fragment that trickles candidates is of another ICE session than ours.
    pub(in crate::webrtc) fn is_restarted_by(&self, fragment: &str) -> bool {
        offer::ice_ufrag(fragment).is_some_and(|ufrag| ufrag != self.peer_ufrag)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.endpoint.seats().remove(&self.seat.ufrag);
        self.endpoint.metrics.change(Figure::WebrtcSessions, &[self.seat.role.word()], -1.0);
    }
}

/// Our user name in a STUN request (RFC 8445, 7.2.2: ours comes first).
fn named(data: &[u8]) -> Option<&str> {
    // RFC 7983: 0 to 3 is STUN.
    if data.first()? > &3 {
        return None;
    }
    let message = StunMessage::parse(data).ok()?;
    let (ours, _) = message.split_username()?;
    // The name lies in the datagram, not in the message.
    let at = data.windows(ours.len()).position(|window| window == ours.as_bytes())?;
    std::str::from_utf8(data.get(at..at + ours.len())?).ok()
}

/// `IP` or `IP:PORT`, as configured; the endpoint's own port where none is given.
pub(super) fn candidate(given: &str, port: u16) -> Option<SocketAddr> {
    given.parse().ok().or_else(|| given.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port)))
}

/// The address that packets to the rest of the world leave from; none is sent to find out.
fn default_address(any: IpAddr) -> Option<IpAddr> {
    let (socket, somewhere) = match any {
        IpAddr::V4(_) => (std::net::UdpSocket::bind((any, 0)).ok()?, "192.0.2.1:9"),
        IpAddr::V6(_) => (std::net::UdpSocket::bind((any, 0)).ok()?, "[2001:db8::1]:9"),
    };
    socket.connect(somewhere).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
