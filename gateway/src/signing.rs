//! Signed, expiring stream URLs: `?exp=UNIX&sig=HEX`. Whoever holds a signing key gives an address away for a time, without
//! giving the key away and without asking the gateway.
//!
//! `sig` is the HMAC-SHA256, in hexadecimal, of the text `KIND:STREAM:EXP`: KIND is `publish` or `play`, STREAM the name
//! without a suffix, EXP the same digits as in the URL. With the key `open-sesame`, `play:live/gate-1:1893456000` has
//! `f8864731d87421f4edb83092d09588f45876bcfcf81be837a19988bd977bb747`. Must not be in here: whose keys there are.

use std::fmt::{self, Write};

use protocols::Signature;
use ring::hmac;

/// What a signed URL is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Publish,
    Play,
}

/// Why a signature does not open the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is not of this key, or for something else.
    Mac,
    /// It was right until then.
    Expired,
}

/// A key that signs and verifies. Never printed.
#[derive(Clone)]
pub struct SigningKey(hmac::Key);

impl SigningKey {
    pub fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The query of an address that is good until then, seconds since 1970 UTC.
    pub fn query(&self, kind: Kind, stream: &str, expires_s: u64) -> String {
        self.query_of(&text(kind, stream, expires_s), expires_s)
    }

    /// The same of a recording on disk.
    pub fn recording_query(&self, id: u64, expires_s: u64) -> String {
        self.query_of(&recording_text(id, expires_s), expires_s)
    }

    fn query_of(&self, text: &str, expires_s: u64) -> String {
        let mut query = format!("exp={expires_s}&sig=");
        for byte in hmac::sign(&self.0, text.as_bytes()).as_ref() {
            // Writing to a string does not fail.
            let _infallible = write!(query, "{byte:02x}");
        }
        query
    }

    /// Compares in constant time; `now_s` in seconds since 1970 UTC.
    pub fn verify(&self, kind: Kind, stream: &str, signature: &Signature, now_s: u64) -> Result<(), Wrong> {
        self.verify_text(&text(kind, stream, signature.expires_s), signature, now_s)
    }

    /// The same of a recording on disk.
    pub fn verify_recording(&self, id: u64, signature: &Signature, now_s: u64) -> Result<(), Wrong> {
        self.verify_text(&recording_text(id, signature.expires_s), signature, now_s)
    }

    fn verify_text(&self, text: &str, signature: &Signature, now_s: u64) -> Result<(), Wrong> {
        hmac::verify(&self.0, text.as_bytes(), &signature.mac).map_err(|_| Wrong::Mac)?;
        if signature.expires_s > now_s { Ok(()) } else { Err(Wrong::Expired) }
    }
}

/// What is signed.
fn text(kind: Kind, stream: &str, expires_s: u64) -> String {
    format!("{}:{stream}:{expires_s}", kind.as_str())
}

/// The same of a recording: none of the kinds, so that no stream's address opens one.
fn recording_text(id: u64, expires_s: u64) -> String {
    format!("recording:{id}:{expires_s}")
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "play",
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocols::Pass;

    fn signature(query: &str) -> Signature {
        Pass::of_query(query).signature.unwrap()
    }

    #[test]
    fn a_signature_is_good_for_one_thing_and_for_a_time() {
        let key = SigningKey::new(b"open-sesame");
        let given = signature(&key.query(Kind::Play, "live/gate-1", 1_000));
        assert_eq!(key.verify(Kind::Play, "live/gate-1", &given, 999), Ok(()));
        assert_eq!(key.verify(Kind::Play, "live/gate-1", &given, 1_000), Err(Wrong::Expired));
        assert_eq!(key.verify(Kind::Publish, "live/gate-1", &given, 999), Err(Wrong::Mac));
        assert_eq!(key.verify(Kind::Play, "live/gate-2", &given, 999), Err(Wrong::Mac));
        let later = Signature { expires_s: 2_000, ..given.clone() };
        assert_eq!(key.verify(Kind::Play, "live/gate-1", &later, 999), Err(Wrong::Mac));
        assert_eq!(SigningKey::new(b"other").verify(Kind::Play, "live/gate-1", &given, 999), Err(Wrong::Mac));
    }

    #[test]
    fn a_recording_is_opened_by_its_own_address_alone() {
        let key = SigningKey::new(b"open-sesame");
        let given = signature(&key.recording_query(7, 1_000));
        assert_eq!(key.verify_recording(7, &given, 999), Ok(()));
        assert_eq!(key.verify_recording(7, &given, 1_000), Err(Wrong::Expired));
        assert_eq!(key.verify_recording(8, &given, 999), Err(Wrong::Mac));
        let stream = signature(&key.query(Kind::Play, "7", 1_000));
        assert_eq!(key.verify_recording(7, &stream, 999), Err(Wrong::Mac));
    }

    /// The example of the documentation, made by openssl.
    #[test]
    fn the_documented_example_is_true() {
        let query = SigningKey::new(b"open-sesame").query(Kind::Play, "live/gate-1", 1_893_456_000);
        let (_, mac) = query.rsplit_once('=').unwrap();
        assert!(include_str!("signing.rs").contains(&format!("`{mac}`")), "{query}");
        assert!(include_str!("../../docs/access.md").contains(mac), "{query}");
    }
}
