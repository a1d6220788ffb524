//! An offer becomes an answer: codecs, addresses, credentials. Must not be in here: what is done with the media.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use str0m::change::SdpOffer;
use str0m::format::CodecConfig;
use str0m::{Candidate, IceCreds, Rtc};

use super::endpoint::Endpoint;
use super::offer;
use crate::webrtc::{Offer, OfferError};

/// Packets kept for a peer that misses some: three seconds of a camera of 4 Mb/s.
const RESEND_PACKETS_MAX: usize = 1_000;
/// How often the peer's view of its losses is looked at.
const STATS_EVERY: Duration = Duration::from_secs(1);

/// What came of an offer.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) rtc: Box<Rtc>,
    pub(super) sdp: String,
    /// The address of ours that the ICE agent knows.
    pub(super) local: SocketAddr,
    /// Session id, ETag, our ICE user name.
    pub(super) ids: (String, String, String),
    pub(super) peer_ufrag: String,
}

/// Answers an offer with these codecs.
pub(super) fn negotiate(endpoint: &Endpoint, offer: &Offer, codecs: CodecConfig) -> Result<Negotiated, OfferError> {
    let unable = |why: &dyn std::fmt::Display| OfferError::Unable(why.to_string());
    let identity = endpoint.identity().map_err(|error| unable(&error))?;
    let parsed = SdpOffer::from_sdp_string(&offer.sdp).map_err(|error| OfferError::Sdp(error.to_string()))?;
    let (id, etag, ufrag, pass) = (random(18)?, random(9)?, random(9)?, random(18)?);
    let certificate = identity.certificate;
    let mut config = Rtc::builder()
        .set_crypto_provider(identity.provider)
        .set_dtls_cert(str0m::config::DtlsCert {
            certificate: certificate.certificate.clone(),
            private_key: certificate.private_key.clone(),
        })
        .set_local_ice_credentials(IceCreds { ufrag: ufrag.clone(), pass })
        .set_ice_lite(true)
        .set_stats_interval(Some(STATS_EVERY))
        .set_send_buffer_video(RESEND_PACKETS_MAX);
    *config.codec_config() = codecs;
    let mut rtc = Box::new(config.build(Instant::now()));
    let addresses = endpoint.addresses(offer.reached);
    // One address stands for all: the socket is the same, and an ICE-lite agent only has to answer.
    let (local, more) = addresses.split_first().ok_or_else(|| unable(&"no address to be reached at"))?;
    rtc.add_local_candidate(Candidate::host(*local, "udp").map_err(|error| unable(&error))?);
    let answer = rtc.sdp_api().accept_offer(parsed).map_err(|error| OfferError::Sdp(error.to_string()))?;
    let sdp = offer::completed(&answer.to_sdp_string(), more);
    let peer_ufrag = offer::ice_ufrag(&offer.sdp).unwrap_or_default().to_owned();
    Ok(Negotiated { rtc, sdp, local: *local, ids: (id, format!("\"{etag}\""), ufrag), peer_ufrag })
}

/// So many random bytes in letters, digits, `-` and `_`. ICE wants none of the last two (RFC 8839, 5.4).
fn random(len: usize) -> Result<String, OfferError> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).map_err(|_| OfferError::Unable("no randomness from the kernel".to_owned()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes).replace(['-', '_'], "A"))
}
