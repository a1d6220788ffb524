//! The way to a server that takes the stream: its address, a connection (TLS for `rtmps://`), the RTMP greeting.
//!
//! Names are looked up on threads of their own, a few at a time, and never longer waited for than the whole greeting: a name server that does not answer holds up no stream and no other relay's thread.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use protocols::rtmp::client::{Publisher, Target};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::TlsConnector;

use super::RelayError;
use crate::threads::{self, Tasks};
use crate::tls::Trust;

/// Time for name, connection and greeting.
pub(super) const ESTABLISH_MAX: Duration = Duration::from_secs(10);

/// Names looked up at a time; each takes a thread for as long as the resolver likes.
const LOOKUPS_MAX: usize = 4;

/// Unacknowledged bytes this old mean that the server is gone.
const HALF_OPEN_MAX: Duration = Duration::from_secs(15);

/// Bytes of one read of what the server says; it says little.
const READ_LEN: usize = 4 * 1024;

/// Both ways of a connection.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<W: AsyncRead + AsyncWrite + Unpin + Send> Wire for W {}

/// A server that takes the stream from here on.
pub(super) struct Link {
    pub wire: Box<dyn Wire>,
    pub publisher: Publisher,
    /// What the server said and the publisher has not taken.
    pub unread: BytesMut,
}

/// What all relays connect through.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    lookups: Arc<Semaphore>,
}

impl Default for Connector {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

impl Connector {
    /// Connects and greets until the server says that it takes the stream.
    pub(super) async fn establish(
        &self,
        target: &Target,
        ca_file: Option<PathBuf>,
        tasks: &Tasks,
    ) -> Result<Link, RelayError> {
        let greeted = tokio::time::timeout(ESTABLISH_MAX, async {
            let socket = connect(self.addresses(target).await?).await?;
            let wire: Box<dyn Wire> = if target.secure {
                let trust = Trust { ca_file, ..Trust::default() };
                let config = tasks.blocking(move || trust.client_config()).await??;
                let name = ServerName::try_from(target.host.clone())
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                Box::new(TlsConnector::from(config).connect(name, socket).await?)
            } else {
                Box::new(socket)
            };
            greet(wire, target).await
        });
        greeted.await.unwrap_or(Err(RelayError::Patience))
    }

    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, RelayError> {
        if let Ok(ip) = target.host.parse() {
            return Ok(vec![SocketAddr::new(ip, target.port)]);
        }
        let unknown = |error| RelayError::Name { host: target.host.clone(), error };
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(|e| unknown(io::Error::other(e)))?;
        let asked = (target.host.clone(), target.port);
        let (reply, found) = oneshot::channel();
        // A thread of its own: the runtime would wait for a resolver at its end.
        threads::thread("sg-resolver", move || {
            // The place is given back when the resolver is done, not when the asker has lost patience.
            let _place = permit;
            let found = std::net::ToSocketAddrs::to_socket_addrs(&asked).map(Iterator::collect);
            let _unheard = reply.send(found);
        })
        .map_err(unknown)?;
        let found = found.await.map_err(io::Error::other).and_then(std::convert::identity);
        let found: Vec<SocketAddr> = found.map_err(unknown)?;
        if found.is_empty() { Err(unknown(io::ErrorKind::NotFound.into())) } else { Ok(found) }
    }
}

/// The first address that takes a connection.
async fn connect(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                SockRef::from(&socket).set_tcp_user_timeout(Some(HALF_OPEN_MAX))?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn greet(mut wire: Box<dyn Wire>, target: &Target) -> Result<Link, RelayError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(RelayError::Seed)?;
    let mut publisher = Publisher::new(target.clone(), &seed);
    let mut unread = BytesMut::new();
    loop {
        wire.write_all(&publisher.take()).await?;
        // TLS holds back what is not flushed.
        wire.flush().await?;
        if publisher.is_ready() {
            return Ok(Link { wire, publisher, unread });
        }
        unread.reserve(READ_LEN);
        if wire.read_buf(&mut unread).await? == 0 {
            return Err(RelayError::Closed);
        }
        publisher.receive(&mut unread)?;
    }
}
