//! Socket options of stream connections: what finds a vanished peer and what bounds the kernel's share of a viewer.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tracing::debug;

/// A peer that acknowledges nothing for this long is gone, even while we send. Also the sum of the keepalive times.
const VANISHED_MAX: Duration = Duration::from_secs(15);

/// First probe after 15 s of silence, then every 5 s, 3 in all: a silent dead peer is found within 30 s.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Bytes the kernel may hold for one viewer. Its own default would grow to 4 MiB for a stalled one.
const SEND_BUFFER: (u64, u64) = (128 * 1024, 512 * 1024);

/// Unsent bytes above which a socket does not count as writable, so that a slow viewer's bytes wait in the shared log.
const NOT_SENT_MAX: u32 = 128 * 1024;

/// Sets up a publisher's connection.
pub(super) fn prepare(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    let (time, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    let outcomes = [
        ("TCP_NODELAY", socket.set_tcp_nodelay(true)),
        ("SO_KEEPALIVE", socket.set_tcp_keepalive(&keepalive)),
        ("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(VANISHED_MAX))),
    ];
    note(&outcomes);
}

/// Sets up a viewer's connection: the above, and the kernel's buffer cut to two merge windows of the stream.
pub(super) fn prepare_viewer(socket: &TcpStream, bits_per_second: u64, window: Duration) {
    prepare(socket);
    let socket = SockRef::from(socket);
    let outcomes = [
        ("SO_SNDBUF", socket.set_send_buffer_size(send_buffer(bits_per_second, window))),
        ("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(NOT_SENT_MAX)),
    ];
    note(&outcomes);
}

fn send_buffer(bits_per_second: u64, window: Duration) -> usize {
    let windows = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).saturating_mul(2);
    let bytes = (bits_per_second / 8).saturating_mul(windows) / 1000;
    bytes.clamp(SEND_BUFFER.0, SEND_BUFFER.1) as usize
}

/// An option the kernel refuses costs speed or patience, not safety.
fn note(outcomes: &[(&str, io::Result<()>)]) {
    for (option, outcome) in outcomes {
        if let Err(error) = outcome {
            debug!(option, %error, "socket option refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_buffer_is_clamped() {
        let window = Duration::from_millis(350);
        assert_eq!(send_buffer(0, window), 128 * 1024);
        assert_eq!(send_buffer(4_000_000, window), 350_000);
        assert_eq!(send_buffer(u64::MAX, window), 512 * 1024);
    }

    #[test]
    fn options_take_hold_on_a_real_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        prepare_viewer(&socket, 1_000_000, Duration::from_millis(350));
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED_MAX));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOT_SENT_MAX);
        // Linux doubles what is asked for.
        assert!(socket.send_buffer_size().unwrap() <= 2 * SEND_BUFFER.1 as usize);
    }
}
