//! The peers themselves, on str0m.
//!
//! `negotiation.rs` turns an offer into an answer; `endpoint.rs` is the UDP socket and whose datagram it is; `session.rs`
//! runs one peer, as `viewer.rs` (units of a tap to RTP) or `publisher.rs` (RTP to units of a feed, with
//! `picture.rs`); `offer.rs` reads an
//! SDP; `crypto/` is what str0m encrypts with. Must not be in here: who may.

mod crypto;
mod endpoint;
mod negotiation;
mod offer;
mod picture;
mod publisher;
mod session;
mod viewer;

pub(super) use self::endpoint::{Endpoint, Seat};
pub(super) use self::session::start;

/// Whether this build has WebRTC.
pub const BUILT_IN: bool = true;
