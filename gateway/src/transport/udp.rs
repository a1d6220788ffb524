//! UDP: one socket an adapter, one session a peer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocols::Peer;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info};

use super::drive::drive;
use super::wire::{Datagram, Datagrams, Wire};
use super::{Adapter, Bound, Language, Services, seed};

/// Packets of one peer that may wait for its session, at least; more are lost, as UDP may, and counted. A language of large
/// frames may leave as many as fill one in packets of 2 KiB, and never more bytes than those have, however long each is.
const PACKETS_MAX: usize = 32;
const PACKET_LEN: usize = 2_048;
/// What the kernel may hold for a language of large frames: several key frames.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// The largest UDP payload there is.
const PACKET_LEN_MAX: usize = 65_536;
/// What every waiting packet counts for besides its own bytes: its place in the queue and its allocation.
const PACKET_COST: usize = 64;
/// Departed peers are swept out of the table after this many packets.
const SWEEP_EVERY: u32 = 1_024;

pub(super) async fn start(address: SocketAddr, adapter: Arc<Adapter>, services: &Arc<Services>) -> io::Result<Bound> {
    let socket = Arc::new(UdpSocket::bind(address).await?);
    let bound = socket.local_addr()?;
    if adapter.languages.first().is_some_and(|language| packets_max(language) > PACKETS_MAX)
        && let Err(error) = SockRef::from(&*socket).set_recv_buffer_size(RECEIVE_BUFFER)
    {
        debug!(adapter = %adapter.info.name, %error, "the port keeps its buffer");
    }
    info!(adapter = %adapter.info.name, address = %bound, "listening");
    let services = Arc::clone(services);
    services.tasks.clone().spawn("udp-read", read(socket, adapter, services));
    Ok(Bound { address: Some(bound) })
}

/// The way to one peer's session.
struct Lane {
    packets: mpsc::Sender<Datagram>,
    /// Bytes that may still wait.
    room: Arc<Semaphore>,
}

/// Why a packet did not reach its session.
enum Undelivered {
    Full(&'static str),
    /// The session is over.
    Over,
}

impl Lane {
    fn send(&self, bytes: &[u8]) -> Result<(), Undelivered> {
        let cost = u32::try_from(bytes.len() + PACKET_COST).unwrap_or(u32::MAX);
        let Ok(held) = Arc::clone(&self.room).try_acquire_many_owned(cost) else {
            let over = self.packets.is_closed();
            return Err(if over { Undelivered::Over } else { Undelivered::Full("bytes_max") });
        };
        let sent = self.packets.try_send(Datagram { bytes: Bytes::copy_from_slice(bytes), held });
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Undelivered::Full("packets_max"),
            mpsc::error::TrySendError::Closed(_) => Undelivered::Over,
        })
    }
}

async fn read(socket: Arc<UdpSocket>, adapter: Arc<Adapter>, services: Arc<Services>) {
    let mut peers: HashMap<SocketAddr, Lane> = HashMap::new();
    let mut buffer = vec![0; PACKET_LEN_MAX];
    let mut since_sweep = 0_u32;
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = services.tasks.stopping() => return,
        };
        // An error here belongs to an earlier send (ICMP port unreachable): the socket itself is well.
        let (len, from) = match received {
            Ok(received) => received,
            Err(error) => {
                debug!(adapter = %adapter.info.name, %error, "UDP");
                continue;
            }
        };
        since_sweep += 1;
        if since_sweep >= SWEEP_EVERY || peers.len() >= adapter.connections_max {
            peers.retain(|_, lane| !lane.packets.is_closed());
            since_sweep = 0;
        }
        let packet = buffer.get(..len).unwrap_or_default();
        // Source port 0 cannot be answered.
        if from.port() == 0 {
            services.metrics.connection_refused(&adapter.info.name, "port_0");
            continue;
        }
        deliver(&mut peers, &socket, from, packet, &adapter, &services);
    }
}

fn deliver(
    peers: &mut HashMap<SocketAddr, Lane>,
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    packet: &[u8],
    adapter: &Arc<Adapter>,
    services: &Arc<Services>,
) {
    match peers.get(&from).map(|lane| lane.send(packet)) {
        Some(Ok(())) => return,
        Some(Err(Undelivered::Full(limit))) => return services.metrics.connection_refused(&adapter.info.name, limit),
        Some(Err(Undelivered::Over)) | None => {}
    }
    // UDP sources can be forged: a full table must not lock the next honest peer out, so somebody goes. Whoever it is
    // has a new session with its next packet.
    if peers.len() >= adapter.connections_max
        && !peers.contains_key(&from)
        && let Some(other) = peers.keys().next().copied()
    {
        peers.remove(&other);
        services.metrics.connection_refused(&adapter.info.name, "connections_max");
    }
    let Some(language) = adapter.languages.first() else { return };
    let (sender, packets) = mpsc::channel(packets_max(language));
    let lane = Lane { packets: sender, room: Arc::new(Semaphore::new(bytes_max(language))) };
    // It is new and has room.
    drop(lane.send(packet));
    peers.insert(from, lane);
    let wire = Wire::Datagram(Box::new(Datagrams { socket: Arc::clone(socket), peer: from, packets }));
    let peer = Peer { address: Some(from), adapter: Arc::clone(&adapter.info.name), seed: seed(), secure: false };
    services.tasks.spawn("udp-peer", drive(wire, BytesMut::new(), peer, language, adapter, services, None));
}

fn packets_max(language: &Language) -> usize {
    (language.limits.frame_max / PACKET_LEN).max(PACKETS_MAX)
}

fn bytes_max(language: &Language) -> usize {
    // One packet of any length always fits.
    packets_max(language) * PACKET_LEN + PACKET_LEN_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_session_is_bounded_in_packets_and_in_bytes() {
        let (packets, mut session) = mpsc::channel(3);
        let lane = Lane { packets, room: Arc::new(Semaphore::new(PACKET_LEN_MAX + 2 * PACKET_COST)) };
        let big = vec![7; PACKET_LEN_MAX - 1];
        assert!(lane.send(&big).is_ok());
        assert!(matches!(lane.send(&big), Err(Undelivered::Full("bytes_max"))));
        assert!(lane.send(b"1").is_ok(), "a small one still fits");
        drop(session.try_recv().unwrap());
        assert!(lane.send(b"2").is_ok() && lane.send(b"3").is_ok());
        assert!(matches!(lane.send(b"4"), Err(Undelivered::Full("packets_max"))));
        drop(session);
        assert!(matches!(lane.send(&big), Err(Undelivered::Over)));
    }
}
