//! The console's listener: so many connections at a time, and none that only takes up room.

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
    room: Arc<Semaphore>,
}

/// A connection with its deadline: it must have been sent something lately.
#[derive(Debug)]
pub(super) struct Visit {
    stream: TcpStream,
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
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
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
                    let deadline = Box::pin(sleep(FIRST_ANSWER_MAX));
                    return (Visit { stream, deadline, _room: room }, peer);
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
        Self { peer: *stream.remote_addr(), reached: stream.io().stream.local_addr().ok() }
    }
}

impl Visit {
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

impl AsyncRead for Visit {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_read(context, into) {
            Poll::Pending => this.overdue(context),
            read @ Poll::Ready(_) => read,
        }
    }
}

impl AsyncWrite for Visit {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_write(context, bytes) {
            Poll::Pending => this.overdue(context),
            Poll::Ready(written) => this.wrote(written),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_write_vectored(context, slices) {
            Poll::Pending => this.overdue(context),
            Poll::Ready(written) => this.wrote(written),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
