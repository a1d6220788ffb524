//! Bad lines between two local ports: of so many bits a second with little room in it, a token bucket over TCP; and one that
//! takes everything and delivers nothing while a switch is on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::viewer::narrow;

/// Bytes moved at a time.
const PIECE: usize = 4096;
/// What the kernel may hold in between, bytes.
const BUFFER: usize = 32 << 10;

/// Carries connections to `to` at `bits_per_second` there, and as fast as it goes back. Answers its port.
pub fn slow_line(to: u16, bits_per_second: u64) -> u16 {
    line(to, Some(bits_per_second), None, Arc::default())
}

/// The other way round: slow is what comes back.
pub fn slow_line_back(to: u16, bits_per_second: u64) -> u16 {
    line(to, None, Some(bits_per_second), Arc::default())
}

/// While the switch is on, whatever comes from either side is thrown away, and nobody hears of it.
pub fn swallowing_line(to: u16) -> (u16, Arc<AtomicBool>) {
    let swallows = Arc::new(AtomicBool::new(false));
    (line(to, None, None, Arc::clone(&swallows)), swallows)
}

fn line(to: u16, there: Option<u64>, back: Option<u64>, swallows: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // What the kernel would hold in between is no line's.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, BUFFER).expect("a small buffer");
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = if back.is_some() { narrow(to, BUFFER) } else { TcpStream::connect(("127.0.0.1", to)) };
            let Ok(far) = far else { continue };
            let (Ok(near_back), Ok(far_back)) = (near.try_clone(), far.try_clone()) else { continue };
            let (one, other) = (Arc::clone(&swallows), Arc::clone(&swallows));
            std::thread::spawn(move || carry(near, far, there, &one));
            std::thread::spawn(move || carry(far_back, near_back, back, &other));
        }
    });
    port
}

fn carry(mut from: TcpStream, mut to: TcpStream, bits_per_second: Option<u64>, swallows: &AtomicBool) {
    let (mut piece, mut free_at) = ([0; PIECE], Instant::now());
    while let Ok(read @ 1..) = from.read(&mut piece) {
        if swallows.load(Ordering::Relaxed) {
            continue;
        }
        if let Some(rate) = bits_per_second {
            let now = Instant::now();
            free_at = free_at.max(now) + Duration::from_secs_f64(read as f64 * 8.0 / rate as f64);
            std::thread::sleep(free_at - now);
        }
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    // The other side may have gone first.
    drop(to.shutdown(std::net::Shutdown::Both));
    drop(from.shutdown(std::net::Shutdown::Both));
}
