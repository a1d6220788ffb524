//! What str0m is given to encrypt with: ring, the one provider of this tree (docs/decisions/0003-one-tls-provider.md).
//!
//! `dtls.rs` the handshake's pieces, for dimpl; `certificate.rs` our own certificate, and the key in a peer's; `srtp.rs`
//! media. One cipher suite and the two key exchanges that RFC 8827, 6.5 obliges every peer to have are enough; a choice
//! of more would only be more code. Must not be in here: sessions, sockets.

mod certificate;
mod dtls;
mod srtp;

use std::sync::Arc;

use ring::{digest, hmac};
use str0m::crypto::{CryptoProvider, Sha1HmacProvider, Sha256Provider};

pub(super) use self::certificate::CertificateError;

/// Our certificate: new with every start; peers know it by the fingerprint in the answer.
pub(super) use self::certificate::generate as certificate;

/// The provider, for [`str0m::RtcConfig::set_crypto_provider`].
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        srtp_provider: &srtp::Srtp,
        sha1_hmac_provider: &Sha1Hmac,
        sha256_provider: &Sha256,
        dtls_provider: &dtls::Dtls,
    })
}

#[derive(Debug)]
struct Sha1Hmac;

impl Sha1HmacProvider for Sha1Hmac {
    fn sha1_hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
        let mut context = hmac::Context::with_key(&key);
        for payload in payloads {
            context.update(payload);
        }
        let mut tag = [0; 20];
        // SHA-1 gives 20 bytes: nothing is left over on either side.
        for (to, from) in tag.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        tag
    }
}

#[derive(Debug)]
struct Sha256;

impl Sha256Provider for Sha256 {
    fn sha256(&self, data: &[u8]) -> [u8; 32] {
        let mut sum = [0; 32];
        for (to, from) in sum.iter_mut().zip(digest::digest(&digest::SHA256, data).as_ref()) {
            *to = *from;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// RFC 2202, case 2, in one piece and in two.
    #[test]
    fn hmac_sha1_of_the_standard() {
        let expected = "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79";
        assert_eq!(hex(&Sha1Hmac.sha1_hmac(b"Jefe", &[b"what do ya want for nothing?"])), expected);
        assert_eq!(hex(&Sha1Hmac.sha1_hmac(b"Jefe", &[b"what do ya ", b"want for nothing?"])), expected);
    }

    #[test]
    fn sha256_of_abc() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&Sha256.sha256(b"abc")), expected);
    }
}
