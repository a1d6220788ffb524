//! Free loopback ports.

use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket};
use std::sync::Mutex;

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port that is free for TCP and UDP on loopback, given to nobody else in this process.
pub fn free_port() -> u16 {
    let mut given = GIVEN.lock().expect("no test panics while it takes a port");
    let given = given.get_or_insert_with(HashSet::new);
    for _ in 0..1_000 {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = tcp.local_addr().expect("its address").port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() && given.insert(port) {
            return port;
        }
    }
    panic!("no free port");
}
