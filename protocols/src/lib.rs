//! HOW a thing speaks: every protocol as a pure state machine. Bytes and time come in, outputs go out.
//!
//! [`PROTOCOLS`] is the one table. To add a protocol: make a folder with `mod.rs` (the row: name, options, example),
//! `frame.rs` (bytes to frames and back), `session.rs` (the talk) and `testdata/` (captures), add its `mod` line and
//! its row here. The laws in `tests/laws.rs`, the fuzz target and `sluicegate check --example` find it by themselves.
//!
//! Must not be in here: sockets, clocks, threads, files, tokio (clippy.toml bans them).

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod admitted;
mod awaited;
mod coap;
pub mod exchange;
pub mod gb28181;
pub mod hls;
pub mod http;
pub mod http_flv;
mod http_things;
pub mod jt1078;
pub mod media;
pub mod mqtt;
mod pass;
pub mod payload;
mod raw;
pub mod rtmp;
pub mod rtsp;
pub mod session;
mod things;

pub use pass::{Pass, Signature, parameter};
pub use session::{
    Capture, Claim, Endpoint, Fault, Identity, Input, Limits, MediaEvent, OptionsError, Outbox, Output, Peer, Protocol,
    Reach, Refusal, Session, Sniff, Ticket, Whose, Wire,
};

/// Every protocol the gateway speaks, in the order in which sniffing asks them.
pub static PROTOCOLS: &[&dyn Protocol] = &[
    &mqtt::ROW,
    &rtmp::ROW,
    &rtsp::ROW,
    &jt1078::ROW,
    &http_things::ROW,
    &hls::ROW,
    &http_flv::ROW,
    &coap::ROW,
    &gb28181::ROW,
    &raw::ROW,
];

/// Whether arithmetic in this crate stops at an overflow, as it must in every build: a length that wrapped is worse than a
/// connection that is lost.
pub fn checks_overflow() -> bool {
    std::panic::catch_unwind(|| std::hint::black_box(u8::MAX) + std::hint::black_box(1)).is_err()
}

/// The row with this name.
pub fn protocol(name: &str) -> Option<&'static dyn Protocol> {
    PROTOCOLS.iter().copied().find(|row| row.name() == name)
}
