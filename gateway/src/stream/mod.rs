//! The streaming core's seam. The core itself replaces this file.

#![allow(clippy::unused_async, reason = "the seam is asynchronous")]

use bytes::BytesMut;
use protocols::media::StreamName;
use protocols::{Limits, Outbox, Peer, Refusal, Session};

/// The streaming core.
#[derive(Debug, Clone)]
pub struct StreamCore;

/// A connection on its way to the thread that owns its stream.
#[allow(missing_debug_implementations, reason = "holds a session")]
pub struct Handover {
    pub socket: std::net::TcpStream,
    pub session: Box<dyn Session>,
    pub outbox: Outbox,
    pub unread: BytesMut,
    pub limits: Limits,
    pub peer: Peer,
}

impl StreamCore {
    pub fn start(
        _config: &crate::config::Stream,
        _relays: &[crate::config::Relay],
        _reports: tokio::sync::mpsc::Sender<device_models::Report>,
        _tasks: &crate::threads::Tasks,
    ) -> std::io::Result<Self> {
        Ok(Self)
    }

    pub async fn available(&self, stream: &StreamName) -> Result<(), Refusal> {
        Err(Refusal::NotFound(stream.to_string()))
    }

    pub fn adopt(&self, handover: Handover) {
        drop(handover);
    }

    pub fn is_ticking(&self) -> bool {
        true
    }

    pub async fn close(&self) {}
}
