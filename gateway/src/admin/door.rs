//! The console's listener: so many connections at a time, and none that only takes up room.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::Accept;
use tokio_rustls::server::TlsStream;

use crate::metrics::Metrics;
use crate::threads::Tasks;
use crate::tls::ServerTls;

/// Connections at a time: a few people with a few tabs, a scraper, scripts. More wait in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time from a connection's begin to the first byte of an answer: who sends half a request is closed after it.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(25);
/// Time between two bytes of answers: who is idle, or does not take what it asked for, is closed after it. The live
/// feed says something every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Wait after an accept that failed for want of something (descriptors, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    secure: Option<Secure>,
    room: Arc<Semaphore>,
}

/// What a console over TLS needs.
#[derive(Debug, Clone)]
pub(super) struct Secure {
    pub(super) tls: ServerTls,
    pub(super) tasks: Tasks,
    pub(super) metrics: Metrics,
}

/// A connection's bytes. The handshake is part of the first read: it holds up nobody else, and the deadline is over it.
enum Line {
    Plain(TcpStream),
    Shaking(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection with its deadline: it must have been sent something lately.
#[derive(Debug)]
pub(super) struct Visit {
    line: Line,
    deadline: Pin<Box<Sleep>>,
    _room: OwnedSemaphorePermit,
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct From {
    pub(super) peer: SocketAddr,
    /// Our own address, as the peer reached it.
    pub(super) reached: Option<SocketAddr>,
}

impl Door {
    pub(super) fn new(listener: TcpListener, secure: Option<Secure>) -> Self {
        Self { listener, secure, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            let Ok(room) = Arc::clone(&self.room).acquire_owned().await else {
                // The semaphore is never closed; without room there is nothing to do but wait.
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let line = match &self.secure {
                        None => Line::Plain(stream),
                        Some(Secure { tls, tasks, metrics }) => {
                            Line::Shaking(Box::new(tls.accept(stream, tasks, metrics).await))
                        }
                    };
                    let deadline = Box::pin(sleep(FIRST_ANSWER_MAX));
                    return (Visit { line, deadline, _room: room }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "the console cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for From {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self { peer: *stream.remote_addr(), reached: stream.io().reached() }
    }
}

impl Visit {
    /// The address of ours that the connection came to.
    fn reached(&self) -> Option<SocketAddr> {
        match &self.line {
            Line::Plain(stream) => stream.local_addr().ok(),
            Line::Shaking(accept) => accept.get_ref().and_then(|stream| stream.local_addr().ok()),
            Line::Tls(stream) => stream.get_ref().0.local_addr().ok(),
        }
    }

    /// What a pending read or write says: wait, or too late.
    fn overdue<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn wrote(&mut self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if matches!(written, Ok(n) if n > 0) {
            self.deadline.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        Poll::Ready(written)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Shaking(_) => "Shaking",
            Self::Tls(_) => "Tls",
        })
    }
}

/// What bytes are read from and written to.
trait Bytes: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Bytes for T {}

impl Line {
    /// The bytes, once the handshake is done.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut dyn Bytes>> {
        if let Self::Shaking(accept) = self {
            let stream = ready!(Pin::new(accept.as_mut()).poll(context))?;
            *self = Self::Tls(Box::new(stream));
        }
        Poll::Ready(match self {
            Self::Plain(stream) => Ok(stream),
            Self::Tls(stream) => Ok(stream.as_mut()),
            // It was replaced above.
            Self::Shaking(_) => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for Visit {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match this.line.poll_bytes(context) {
            Poll::Ready(bytes) => Pin::new(bytes?).poll_read(context, into),
            Poll::Pending => Poll::Pending,
        };
        match read {
            Poll::Pending => this.overdue(context),
            read @ Poll::Ready(_) => read,
        }
    }
}

impl AsyncWrite for Visit {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match this.line.poll_bytes(context) {
            Poll::Ready(bytes) => Pin::new(bytes?).poll_write_vectored(context, slices),
            Poll::Pending => Poll::Pending,
        };
        match written {
            Poll::Pending => this.overdue(context),
            Poll::Ready(written) => this.wrote(written),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.get_mut().line.poll_bytes(context))?).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.get_mut().line.poll_bytes(context))?).poll_shutdown(context)
    }
}
