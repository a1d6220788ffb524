//! WebRTC: viewers by WHEP (draft-ietf-wish-whep) and publishers by WHIP (RFC 9725), on str0m, the one owner of it here.
//!
//! Inside: who may come in and which session is meant. `peers/` does the rest; builds without the feature `webrtc`, and
//! those for 32-bit targets, have `without.rs` in its place. The routes are in `admin/webrtc.rs`. Must not be in here:
//! HTTP.

#[cfg(all(feature = "webrtc", target_pointer_width = "64"))]
mod peers;
#[cfg(not(all(feature = "webrtc", target_pointer_width = "64")))]
#[path = "without.rs"]
mod peers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use protocols::media::StreamName;
use protocols::{Claim, Pass, Refusal};

pub use self::peers::BUILT_IN;
use self::peers::{Endpoint, Seat};
use crate::config;
use crate::intake::AdapterInfo;
use crate::transport::{Listen, Services};

/// What a peer wants of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// WHEP.
    Watch,
    /// WHIP.
    Publish,
}

impl Role {
    pub fn word(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Publish => "publish",
        }
    }
}

/// An SDP offer that came by HTTP.
#[derive(Debug)]
pub struct Offer {
    pub role: Role,
    pub stream: StreamName,
    /// What it shows to be let in: a play or publish key, or a signature.
    pub pass: Pass,
    pub sdp: String,
    pub peer: SocketAddr,
    /// Where the peer's HTTP connection arrived: an address of ours that it can reach.
    pub reached: Option<SocketAddr>,
}

/// The session an offer led to.
#[derive(Debug)]
pub struct Answer {
    /// Unguessable: it is all that is needed to end the session.
    pub id: String,
    /// Names the ICE session (RFC 9725, 4.3.1).
    pub etag: String,
    pub sdp: String,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    #[error("the offer cannot be read: {0}")]
    Sdp(String),
    /// Nothing in the offer suits the stream, or us.
    #[error("{0}")]
    NoCodec(String),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Unable(String),
}

/// Why a session was not changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("there is no such session")]
    Missing,
    #[error("If-Match must name the session's ETag")]
    Unconditional,
    #[error("If-Match names another ICE session")]
    Mismatch,
    #[error("an ICE restart is not offered here: make a new session")]
    Restart,
}

/// Why WebRTC cannot start.
#[derive(Debug, thiserror::Error)]
#[error("webrtc.listen = \"{listen}\": cannot listen there: {source}")]
pub struct StartError {
    listen: String,
    source: io::Error,
}

/// WebRTC's door. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webrtc {
    endpoint: Arc<Endpoint>,
    services: Services,
    /// The rules of admission, as an adapter has them.
    adapter: Arc<AdapterInfo>,
}

impl Webrtc {
    /// Binds the port; `None` where the configuration names none.
    pub async fn start(config: &config::Webrtc, services: &Services) -> Result<Option<Self>, StartError> {
        if config.listen.is_empty() {
            return Ok(None);
        }
        if !BUILT_IN {
            tracing::warn!(listen = %config.listen, "this build has no WebRTC: it is for 64-bit targets, with the feature `webrtc`");
            return Ok(None);
        }
        let failed = |source| StartError { listen: config.listen.clone(), source };
        let Ok(Listen::Udp(address)) = config.listen.parse() else {
            return Err(failed(io::Error::other("not udp://HOST:PORT")));
        };
        let endpoint = Endpoint::start(address, config, services).await.map_err(failed)?;
        let adapter = AdapterInfo {
            name: Arc::from("webrtc"),
            product: None,
            auto_register: false,
            allow_anonymous: config.allow_anonymous,
            push_without_key: Vec::new(),
            commit: None,
        };
        Ok(Some(Self { endpoint, services: services.clone(), adapter: Arc::new(adapter) }))
    }

    /// Where media comes in.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Admits, negotiates and starts a session.
    pub async fn offer(&self, offer: Offer) -> Result<Answer, OfferError> {
        let answer = self.take(offer).await;
        if let Err(error) = &answer {
            let reason = match error {
                OfferError::Sdp(_) => "sdp",
                OfferError::NoCodec(_) => "codec",
                OfferError::Refused(refusal) => crate::intake::reason(refusal),
                OfferError::Unable(_) => "unable",
            };
            self.services.metrics.refused(&self.adapter.name, reason);
            tracing::debug!(%error, "an offer is refused");
        }
        answer
    }

    async fn take(&self, offer: Offer) -> Result<Answer, OfferError> {
        let (stream, pass) = (offer.stream.clone(), offer.pass.clone());
        let claim = match offer.role {
            Role::Watch => Claim::Watch { stream, pass },
            Role::Publish => Claim::Publish { stream, pass },
        };
        let admitted = self.services.locks().admit(&self.adapter, "webrtc", Some(offer.peer), &claim).await?;
        let place = self.endpoint.place(admitted.stay)?;
        peers::start(&self.endpoint, place, &self.services, offer).await
    }

    /// Ends a session; `false` where there is none of that name.
    pub fn close(&self, role: Role, stream: &StreamName, id: &str) -> bool {
        let seat = self.seat(role, stream, id);
        seat.inspect(|seat| seat.stop.cancel()).is_some()
    }

    /// Takes candidates that trickle in. As an ICE-lite peer (RFC 8445, 2.5) we need none of them: a peer's address is
    /// learnt from its own checks.
    pub fn patch(
        &self,
        role: Role,
        stream: &StreamName,
        id: &str,
        etag: Option<&str>,
        fragment: &str,
    ) -> Result<(), PatchError> {
        let seat = self.seat(role, stream, id).ok_or(PatchError::Missing)?;
        match etag {
            None => return Err(PatchError::Unconditional),
            Some("*") => {}
            Some(etag) if etag == seat.etag => {}
            Some(_) => return Err(PatchError::Mismatch),
        }
        if seat.is_restarted_by(fragment) { Err(PatchError::Restart) } else { Ok(()) }
    }

    fn seat(&self, role: Role, stream: &StreamName, id: &str) -> Option<Arc<Seat>> {
        self.endpoint.find(id).filter(|seat| seat.role == role && seat.stream == *stream)
    }
}
