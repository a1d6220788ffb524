//! TCP and TLS listeners.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use protocols::Peer;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::drive::drive;
use super::sniff::decide;
use super::wire::Wire;
use super::{Adapter, Bound, Services, seed};

/// Connections the kernel may hold before we accept them: a whole site coming back after a power cut.
const ACCEPT_BACKLOG: i32 = 1_024;
/// A TLS handshake that takes longer is an attack or a dead peer.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no descriptors left): others must be able to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Half-open peers are found within 15 s: probes after 15 s of silence, and written bytes must be taken in as long.
const KEEPALIVE: Duration = Duration::from_secs(15);

pub(super) fn start(address: SocketAddr, adapter: Arc<Adapter>, services: &Arc<Services>) -> io::Result<Bound> {
    let listener = bind(address)?;
    let bound = listener.local_addr()?;
    info!(adapter = %adapter.info.name, address = %bound, tls = adapter.tls.is_some(), "listening");
    services.tasks.spawn("tcp-accept", accept(listener, adapter, Arc::clone(services)));
    Ok(Bound { address: Some(bound) })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, adapter: Arc<Adapter>, services: Arc<Services>) {
    let room = Arc::new(Semaphore::new(adapter.connections_max));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = services.tasks.stopping() => return,
        };
        match accepted {
            Ok((socket, from)) => {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    services.metrics.connection_refused(&adapter.info.name, "connections_max");
                    continue;
                };
                let (adapter, services) = (Arc::clone(&adapter), Arc::clone(&services));
                services.tasks.clone().spawn("tcp-open", open(socket, from, adapter, services, permit));
            }
            Err(error) => {
                warn!(adapter = %adapter.info.name, %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Finds out what the connection speaks, then drives it in a task of its own: the room that took is not held for the
/// connection's life.
async fn open(
    socket: TcpStream,
    from: SocketAddr,
    adapter: Arc<Adapter>,
    services: Arc<Services>,
    permit: OwnedSemaphorePermit,
) {
    if let Err(error) = prepare(&socket) {
        debug!(%from, %error, "cannot set socket options");
    }
    let mut wire = match &adapter.tls {
        None => Wire::Tcp(socket),
        Some(tls) => {
            let shake = async { tls.accept(socket, &services.tasks, &services.metrics).await.await };
            match tokio::time::timeout(HANDSHAKE_TIME_MAX, shake).await {
                Ok(Ok(stream)) => Wire::secured(stream),
                Ok(Err(error)) => {
                    debug!(%from, %error, "TLS handshake failed");
                    return services.metrics.connection_refused(&adapter.info.name, "tls");
                }
                Err(_) => return services.metrics.connection_refused(&adapter.info.name, "tls"),
            }
        }
    };
    let mut unread = BytesMut::new();
    let decided = tokio::select! {
        decided = decide(&mut wire, &mut unread, &adapter.languages) => decided,
        () = services.tasks.stopping() => return,
    };
    match decided {
        Ok(language) => {
            let secure = adapter.tls.is_some();
            let peer = Peer { address: Some(from), adapter: Arc::clone(&adapter.info.name), seed: seed(), secure };
            services.tasks.spawn("tcp-peer", drive(wire, unread, peer, language, &adapter, &services, Some(permit)));
        }
        Err(error) => {
            debug!(%from, adapter = %adapter.info.name, %error, "closed");
            services.metrics.connection_refused(&adapter.info.name, "sniff");
        }
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(5)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE))
}
