//! One peer's bytes, whatever they travel on.

use std::future::poll_fn;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_serial::SerialStream;

use crate::stream::Parked;

/// Bytes read at a time. One buffer per thread serves all connections, so an idle one holds none.
const SCRATCH: usize = 32 * 1024;

/// The wire of one peer. As small as the commonest, TCP.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Tls(Box<Secured>),
    Serial(Box<SerialStream>),
    Datagram(Box<Datagrams>),
}

/// A connection under TLS, which keeps written bytes in a buffer of its own until it is flushed.
#[derive(Debug)]
pub(super) struct Secured {
    stream: TlsStream<TcpStream>,
    unflushed: bool,
}

impl Secured {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &mut impl Buf) -> Poll<io::Result<usize>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        if !bytes.has_remaining() {
            return Poll::Ready(Ok(0));
        }
        let written = ready!(poll_write_some(&mut self.stream, cx, bytes))?;
        self.unflushed = Pin::new(&mut self.stream).poll_flush(cx)?.is_pending();
        Poll::Ready(Ok(written))
    }
}

/// One packet, and its share of what may wait for its peer's session.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) bytes: Bytes,
    pub(super) held: OwnedSemaphorePermit,
}

/// One peer of a UDP socket: its packets come through the socket's reader.
#[derive(Debug)]
pub(super) struct Datagrams {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) peer: SocketAddr,
    pub(super) packets: mpsc::Receiver<Datagram>,
}

/// What a read brought.
#[derive(Debug)]
pub(super) enum Arrived {
    /// This many bytes were added to the buffer.
    Bytes(usize),
    Packet(Bytes),
    End,
}

impl Wire {
    pub(super) fn secured(stream: TlsStream<TcpStream>) -> Self {
        Self::Tls(Box::new(Secured { stream, unflushed: false }))
    }

    /// Reads what is there, at most 32 KiB. Cancel safe.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<Arrived> {
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<Arrived>> {
        match self {
            Self::Tcp(io) => poll_read_scratch(Pin::new(io), cx, buffer),
            Self::Tls(io) => poll_read_scratch(Pin::new(&mut io.stream), cx, buffer),
            Self::Serial(io) => poll_read_scratch(Pin::new(io.as_mut()), cx, buffer),
            Self::Datagram(io) => io.packets.poll_recv(cx).map(|next| {
                let taken = next.map(|Datagram { bytes, held }| {
                    drop(held);
                    bytes
                });
                Ok(taken.map_or(Arrived::End, Arrived::Packet))
            }),
        }
    }

    /// Writes some of the bytes and takes them off the front. Cancel safe.
    pub(super) async fn write(&mut self, bytes: &mut impl Buf) -> io::Result<usize> {
        poll_fn(|cx| self.poll_write(cx, bytes)).await
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &mut impl Buf) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(io) => poll_write_some(io, cx, bytes),
            Self::Tls(io) => io.poll_write(cx, bytes),
            Self::Serial(io) => poll_write_some(io.as_mut(), cx, bytes),
            // Datagrams are sent one by one as the session says; see `send_packet`.
            Self::Datagram(_) => Poll::Ready(Ok(0)),
        }
    }

    /// Whether written bytes still wait for a write, be it of nothing.
    pub(super) fn is_unflushed(&self) -> bool {
        matches!(self, Self::Tls(io) if io.unflushed)
    }

    /// Closes our side of a stream.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(io) => io.shutdown().await,
            Self::Tls(io) => io.stream.shutdown().await,
            Self::Serial(_) | Self::Datagram(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Takes the connection from this runtime, for a stream thread. What TLS has decrypted already is added to `unread`.
    pub(super) fn park(self, unread: &mut BytesMut) -> io::Result<Parked> {
        match self {
            Self::Tcp(socket) => Ok(Parked::Plain(socket.into_std()?)),
            Self::Tls(io) => {
                let (socket, mut tls) = io.stream.into_inner();
                let mut decrypted = Vec::new();
                match tls.reader().read_to_end(&mut decrypted) {
                    // No more for now, or no more at all: the stream thread finds that out anew.
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::UnexpectedEof) => {}
                    Err(error) => return Err(error),
                }
                unread.extend_from_slice(&decrypted);
                Ok(Parked::Tls(socket.into_std()?, Box::new(tls.into())))
            }
            Self::Serial(_) | Self::Datagram(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Sends one packet. A full socket buffer loses it, as UDP may; protocols that care send again.
    pub(super) fn send_packet(&self, packet: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagram(io) => match io.socket.try_send_to(packet, io.peer) {
                Ok(_) => Ok(()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
                Err(e) => Err(e),
            },
            _ => Err(io::Error::other("not a packet wire")),
        }
    }

    /// Our side's address.
    pub(super) fn local_ip(&self) -> Option<IpAddr> {
        let local = match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Tls(io) => io.stream.get_ref().0.local_addr(),
            Self::Serial(_) | Self::Datagram(_) => return None,
        };
        local.ok().map(|address| address.ip())
    }

    pub(super) const fn is_datagram(&self) -> bool {
        matches!(self, Self::Datagram(_))
    }
}

fn poll_read_scratch(
    io: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<Arrived>> {
    thread_local! {
        static BYTES: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; SCRATCH]);
    }
    BYTES.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(io.poll_read(cx, &mut read))?;
        let filled = read.filled();
        if filled.is_empty() {
            return Poll::Ready(Ok(Arrived::End));
        }
        buffer.extend_from_slice(filled);
        Poll::Ready(Ok(Arrived::Bytes(filled.len())))
    })
}

fn poll_write_some(
    io: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
    bytes: &mut impl Buf,
) -> Poll<io::Result<usize>> {
    let written = ready!(Pin::new(io).poll_write(cx, bytes.chunk()))?;
    if written == 0 {
        return Poll::Ready(Err(ErrorKind::WriteZero.into()));
    }
    bytes.advance(written);
    Poll::Ready(Ok(written))
}
