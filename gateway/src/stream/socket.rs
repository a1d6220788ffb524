//! One connection of a stream thread: plain TCP, or TLS over it, behind the few calls that its publisher or viewer is
//! served with. None of them waits.
//!
//! A plain socket costs what it costs without this file. On a TLS one a write takes plain bytes only when everything
//! encrypted before is with the kernel, so that at most [`ENCRYPTED_MAX`] bytes wait in here and a slow viewer's lag
//! stays where it is bounded: in the shared log. Must not be in here: handshakes (`transport`), certificates (`tls`).

use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::task::{Context, Waker};

use rustix::net::{RecvFlags, recv};
use rustls::Connection;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Plain bytes encrypted ahead of the kernel, at most: two records. A stalled viewer holds this much beside its cursor.
const ENCRYPTED_MAX: usize = 32 * 1024;

/// A connection on its way from one runtime to another: registered with neither.
#[derive(Debug)]
pub enum Parked {
    Plain(std::net::TcpStream),
    /// The handshake is done, and every byte it decrypted has been read.
    Tls(std::net::TcpStream, Box<Connection>),
}

impl Parked {
    /// The TCP socket, for its options.
    pub fn tcp(&self) -> &std::net::TcpStream {
        match self {
            Self::Plain(tcp) | Self::Tls(tcp, _) => tcp,
        }
    }

    /// Registers with the runtime that this is called in.
    pub(super) fn register(self) -> io::Result<Socket> {
        match self {
            Self::Plain(tcp) => Ok(Socket::Plain(TcpStream::from_std(tcp)?)),
            Self::Tls(tcp, mut tls) => {
                tls.set_buffer_limit(Some(ENCRYPTED_MAX));
                Ok(Socket::Tls(Box::new(Tls { tcp: TcpStream::from_std(tcp)?, tls })))
            }
        }
    }

    /// Writes as far as the kernel takes it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tcp, tls) => {
                tls.writer().write_all(bytes)?;
                while tls.wants_write() {
                    tls.write_tls(tcp)?;
                }
                Ok(())
            }
        }
    }
}

/// A registered connection.
#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<Tls>),
    /// Plain, and the kernel does not announce what comes.
    Unwatched(std::net::TcpStream),
    /// Lost between the two.
    Gone,
}

#[derive(Debug)]
pub(super) struct Tls {
    tcp: TcpStream,
    tls: Box<Connection>,
}

impl Socket {
    /// Has the kernel announce what comes, or not: then what comes wakes nobody, and who wants it reads when its time has
    /// come. A TLS connection is always watched. After an error the connection is lost.
    pub(super) fn watch(&mut self, watched: bool) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Plain(tcp) if !watched => Self::Unwatched(tcp.into_std()?),
            Self::Unwatched(tcp) if watched => Self::Plain(TcpStream::from_std(tcp)?),
            same => same,
        };
        Ok(())
    }

    pub(super) fn is_watched(&self) -> bool {
        matches!(self, Self::Plain(_) | Self::Tls(_))
    }

    /// Resolves when a read or write may get on. Decrypted bytes that were not read count: their socket is readable. Never
    /// resolves while nobody watches.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<()> {
        let Some(tcp) = self.tcp() else { return pending().await };
        if interest == Interest::READABLE {
            // Nobody else waits for this one: the one reader's place costs less than one among any number.
            return poll_fn(|context| tcp.poll_read_ready(context)).await;
        }
        tcp.ready(interest).await.map(drop)
    }

    /// 0: the peer closed its side.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => read_dry(tcp, buffer),
            Self::Tls(tls) => tls.read(buffer),
            Self::Unwatched(tcp) => tcp.read(buffer),
            Self::Gone => Ok(0),
        }
    }

    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.write(&[IoSlice::new(bytes)], false),
            Self::Unwatched(tcp) => tcp.write(bytes),
            Self::Gone => Ok(0),
        }
    }

    /// `direct`: past the runtime, which knows a new socket as writable only after its next poll.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>], direct: bool) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) if direct => SockRef::from(&*tcp).send_vectored(slices),
            // One slice is what most writes are, and what the kernel takes in with fewer steps.
            Self::Plain(tcp) => match slices {
                [slice] => tcp.try_write(slice),
                _ => tcp.try_write_vectored(slices),
            },
            Self::Tls(tls) => tls.write(slices, direct),
            Self::Unwatched(tcp) => tcp.write_vectored(slices),
            Self::Gone => Ok(0),
        }
    }

    /// Whether the kernel takes no more for now, after a write that took all (or not all) of what it was offered.
    pub(super) fn is_full(&self, took_all: bool) -> bool {
        match self {
            Self::Tls(tls) => tls.tls.wants_write(),
            Self::Plain(_) | Self::Unwatched(_) | Self::Gone => !took_all,
        }
    }

    /// Has the waker told when the kernel takes more, after it took no more or not all; `true` when it does already.
    pub(super) fn wake_when_writable(&self, waker: &Waker) -> bool {
        let Some(tcp) = self.tcp() else { return true };
        // To the runtime a write that was taken in part says nothing; to the kernel it says that an edge is wanted.
        let told = tcp.try_io(Interest::WRITABLE, || Err::<(), _>(ErrorKind::WouldBlock.into()));
        debug_assert!(told.is_err(), "the kernel is full");
        tcp.poll_write_ready(&mut Context::from_waker(waker)).is_ready()
    }

    /// Hands the kernel what was encrypted and not yet taken; `WouldBlock` while it does not take all.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(tls) => tls.flush(false),
            Self::Plain(_) | Self::Unwatched(_) | Self::Gone => Ok(()),
        }
    }

    /// Says that nothing more comes, as far as the kernel takes it.
    pub(super) fn say_goodbye(&mut self) {
        if let Self::Tls(tls) = self {
            tls.tls.send_close_notify();
            // The connection ends in any case.
            let _unsent = tls.flush(false);
        }
    }

    /// The connection as the runtime watches it.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(tls) => Some(&tls.tcp),
            Self::Unwatched(_) | Self::Gone => None,
        }
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.fill()?,
                // TCP's end without TLS's: nothing was cut off that the protocol above would not notice.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
        }
    }

    /// Reads records off the socket. Called only when everything decrypted was read: `WouldBlock` then means that the
    /// runtime will say when there is more.
    fn fill(&mut self) -> io::Result<()> {
        self.tls.read_tls(&mut Tcp { tcp: &self.tcp, direct: false })?;
        let outcome = self.tls.process_new_packets();
        if self.tls.wants_write() {
            // An alert, or the answer to new keys; what does not fit now goes with the next write.
            let _unsent = self.flush(false);
        }
        outcome.map(drop).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn write(&mut self, slices: &[IoSlice<'_>], direct: bool) -> io::Result<usize> {
        self.flush(direct)?;
        let taken = self.tls.writer().write_vectored(slices)?;
        match self.flush(direct) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self, direct: bool) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut Tcp { tcp: &self.tcp, direct })? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Reads; a read that does not fill the buffer has emptied the socket, and the runtime is told so, which saves the read
/// that would only find that out.
fn read_dry(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = None;
    let outcome = tcp.try_io(Interest::READABLE, || {
        let (read, _) = recv(tcp, &mut *buffer, RecvFlags::empty())?;
        if (1..buffer.len()).contains(&read) {
            got = Some(read);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(read)
    });
    got.map_or(outcome, Ok)
}

/// The TCP socket as rustls wants it.
struct Tcp<'a> {
    tcp: &'a TcpStream,
    direct: bool,
}

impl Read for Tcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.try_read(buffer)
    }
}

impl Write for Tcp<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.direct { SockRef::from(self.tcp).send_vectored(slices) } else { self.tcp.try_write_vectored(slices) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn pair() -> (Socket, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Parked::Plain(ours).register().unwrap(), theirs)
    }

    /// Reads until something is there: loopback delivers at once, but not before the write returns.
    async fn read(socket: &mut Socket) -> Vec<u8> {
        let mut buffer = [0; 16];
        loop {
            match socket.try_read(&mut buffer) {
                Ok(read) => return buffer[..read].to_vec(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_nobody_watches_wakes_nobody_and_is_read_when_asked() {
        let (mut socket, mut peer) = pair();
        socket.watch(false).unwrap();
        assert!(!socket.is_watched());
        peer.write_all(b"one").unwrap();
        assert_eq!(read(&mut socket).await, b"one");
        peer.write_all(b"two").unwrap();
        assert!(timeout(Duration::from_millis(20), socket.ready(Interest::READABLE)).await.is_err());
        // What came meanwhile is announced when it is watched again.
        socket.watch(true).unwrap();
        timeout(Duration::from_secs(5), socket.ready(Interest::READABLE)).await.unwrap().unwrap();
        assert_eq!(read(&mut socket).await, b"two");
        socket.watch(false).unwrap();
        assert_eq!(socket.try_write(b"answer").unwrap(), 6);
        peer.read_exact(&mut [0; 6]).unwrap();
        drop(peer);
        assert_eq!(timeout(Duration::from_secs(5), read(&mut socket)).await.unwrap(), b"", "its end is seen");
    }
}
