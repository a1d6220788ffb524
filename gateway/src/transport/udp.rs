//! UDP: one socket an adapter, one session a peer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocols::Peer;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::drive::drive;
use super::wire::{Datagrams, Wire};
use super::{Adapter, Bound, Language, Services, seed};

/// Packets of one peer that may wait for its session, at least; more are lost, as UDP may, and counted. A language of large
/// frames may leave as many as fill one in packets of 2 KiB.
const PACKETS_MAX: usize = 32;
const PACKET_LEN: usize = 2_048;
/// What the kernel may hold for a language of large frames: several key frames.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// The largest UDP payload there is.
const PACKET_LEN_MAX: usize = 65_536;
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

async fn read(socket: Arc<UdpSocket>, adapter: Arc<Adapter>, services: Arc<Services>) {
    let mut peers: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
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
            peers.retain(|_, packets| !packets.is_closed());
            since_sweep = 0;
        }
        let packet = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
        // Source port 0 cannot be answered.
        if from.port() == 0 {
            services.metrics.connection_refused(&adapter.info.name, "port_0");
            continue;
        }
        deliver(&mut peers, &socket, from, packet, &adapter, &services);
    }
}

fn deliver(
    peers: &mut HashMap<SocketAddr, mpsc::Sender<Bytes>>,
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    packet: Bytes,
    adapter: &Arc<Adapter>,
    services: &Arc<Services>,
) {
    let packet = match peers.get(&from).map(|known| known.try_send(packet.clone())) {
        Some(Ok(())) => return,
        Some(Err(mpsc::error::TrySendError::Full(_))) => {
            return services.metrics.connection_refused(&adapter.info.name, "packets_max");
        }
        Some(Err(mpsc::error::TrySendError::Closed(packet))) => packet,
        None => packet,
    };
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
    // The channel is new and has room.
    drop(sender.try_send(packet));
    peers.insert(from, sender);
    let wire = Wire::Datagram(Box::new(Datagrams { socket: Arc::clone(socket), peer: from, packets }));
    let peer = Peer { address: Some(from), adapter: Arc::clone(&adapter.info.name), seed: seed(), secure: false };
    services.tasks.spawn("udp-peer", drive(wire, BytesMut::new(), peer, language, adapter, services, None));
}

fn packets_max(language: &Language) -> usize {
    (language.limits.frame_max / PACKET_LEN).max(PACKETS_MAX)
}
