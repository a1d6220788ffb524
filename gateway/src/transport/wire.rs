//! One peer's bytes, whatever they travel on.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_serial::SerialStream;

use crate::stream::Parked;

/// Bytes read at a time. One buffer per thread serves all connections, so an idle one holds none.
const SCRATCH: usize = 32 * 1024;

/// The wire of one peer.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Serial(SerialStream),
    /// One peer of a UDP socket: its packets come through the socket's reader.
    Datagram {
        socket: Arc<UdpSocket>,
        peer: SocketAddr,
        packets: mpsc::Receiver<Bytes>,
    },
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
    /// Reads what is there, at most 32 KiB. Cancel safe.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<Arrived> {
        match self {
            Self::Tcp(io) => read_stream(io, buffer).await,
            Self::Tls(io) => read_stream(io.as_mut(), buffer).await,
            Self::Serial(io) => read_stream(io, buffer).await,
            Self::Datagram { packets, .. } => Ok(packets.recv().await.map_or(Arrived::End, Arrived::Packet)),
        }
    }

    /// Writes some of the bytes and takes them off the front. Cancel safe.
    pub(super) async fn write(&mut self, bytes: &mut impl Buf) -> io::Result<usize> {
        match self {
            Self::Tcp(io) => write_stream(io, bytes).await,
            Self::Tls(io) => write_stream(io.as_mut(), bytes).await,
            Self::Serial(io) => write_stream(io, bytes).await,
            // Datagrams are sent one by one as the session says; see `send_packet`.
            Self::Datagram { .. } => Ok(0),
        }
    }

    /// Closes our side of a stream.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(io) => io.shutdown().await,
            Self::Tls(io) => io.shutdown().await,
            Self::Serial(_) | Self::Datagram { .. } => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Takes the connection from this runtime, for a stream thread. What TLS has decrypted already is added to `unread`.
    pub(super) fn park(self, unread: &mut BytesMut) -> io::Result<Parked> {
        match self {
            Self::Tcp(socket) => Ok(Parked::Plain(socket.into_std()?)),
            Self::Tls(stream) => {
                let (socket, mut tls) = stream.into_inner();
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
            Self::Serial(_) | Self::Datagram { .. } => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Sends one packet. A full socket buffer loses it, as UDP may; protocols that care send again.
    pub(super) fn send_packet(&self, packet: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagram { socket, peer, .. } => match socket.try_send_to(packet, *peer) {
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
            Self::Tls(stream) => stream.get_ref().0.local_addr(),
            Self::Serial(_) | Self::Datagram { .. } => return None,
        };
        local.ok().map(|address| address.ip())
    }

    pub(super) const fn is_datagram(&self) -> bool {
        matches!(self, Self::Datagram { .. })
    }
}

async fn read_stream(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Arrived> {
    std::future::poll_fn(|cx| poll_read_scratch(Pin::new(&mut *io), cx, buffer)).await
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

async fn write_stream(io: &mut (impl AsyncWrite + Unpin), bytes: &mut impl Buf) -> io::Result<usize> {
    let written = std::future::poll_fn(|cx| Pin::new(&mut *io).poll_write(cx, bytes.chunk())).await?;
    if written == 0 {
        return Err(ErrorKind::WriteZero.into());
    }
    bytes.advance(written);
    // TLS keeps written bytes in a buffer of its own until it is flushed.
    std::future::poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await?;
    Ok(written)
}
