//! Builds without WebRTC: its seam, and nothing that could be behind it.

#![allow(clippy::unused_async, reason = "the same seam as with the feature")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use protocols::Refusal;
use protocols::media::StreamName;
use tokio_util::sync::CancellationToken;

use super::{Answer, Offer, OfferError, Role};
use crate::config;
use crate::hooks::Stay;
use crate::transport::Services;

/// Whether this build has WebRTC.
pub const BUILT_IN: bool = false;

/// Never made.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    none: Never,
}

/// Never made.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) etag: String,
    pub(super) role: Role,
    pub(super) stream: StreamName,
    pub(super) stop: CancellationToken,
    none: Never,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Never {}

impl Endpoint {
    pub(super) async fn start(
        _address: SocketAddr,
        _config: &config::Webrtc,
        _services: &Services,
    ) -> io::Result<Arc<Self>> {
        Err(io::Error::other("this build has no WebRTC"))
    }

    pub(super) fn place(&self, _stay: Option<Stay>) -> Result<Never, Refusal> {
        match self.none {}
    }

    pub(super) fn find(&self, _id: &str) -> Option<Arc<Seat>> {
        match self.none {}
    }
}

impl Seat {
    pub(super) fn is_restarted_by(&self, _fragment: &str) -> bool {
        match self.none {}
    }
}

pub(super) async fn start(
    endpoint: &Arc<Endpoint>,
    _place: Never,
    _services: &Services,
    _offer: Offer,
) -> Result<Answer, OfferError> {
    match endpoint.none {}
}
