//! What a peer shows to be let in to a stream: the query of its URL, and what of it is ours.

use std::borrow::Cow;
use std::fmt;

/// The query of a stream's URL: `key=KEY`, or `exp=UNIX&sig=HEX`, and whatever else stands there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// A stream key.
    pub key: Option<String>,
    pub signature: Option<Signature>,
    /// All of it as it came, for whoever is asked about the peer; empty above [`QUERY_MAX`](Self::QUERY_MAX) bytes.
    pub query: String,
}

/// The proof that whoever holds a signing key gave this URL away, until when.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    /// Seconds since 1970 UTC.
    pub expires_s: u64,
    /// HMAC-SHA256.
    pub mac: [u8; 32],
}

impl Pass {
    /// Bytes of a query that are passed on.
    pub const QUERY_MAX: usize = 2048;

    /// Reads a query: what stands behind the question mark. A signature that is none counts as a wrong one.
    pub fn of_query(query: &str) -> Self {
        let parameter = |name| parameter(name, query);
        let signature = parameter("sig").map(|sig| Signature {
            expires_s: parameter("exp").and_then(|exp| exp.parse().ok()).unwrap_or(0),
            mac: mac(&sig).unwrap_or_default(),
        });
        let passed_on = if query.len() <= Self::QUERY_MAX { query } else { "" };
        Self { key: parameter("key").map(Cow::into_owned), signature, query: passed_on.to_owned() }
    }

    /// Whether it shows anything of ours.
    pub fn is_blank(&self) -> bool {
        self.key.is_none() && self.signature.is_none()
    }
}

/// A key alone.
impl From<Option<String>> for Pass {
    fn from(key: Option<String>) -> Self {
        Self { key, ..Self::default() }
    }
}

/// Shows that there is a secret, never the secret: claims are logged.
impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = match (&self.key, &self.signature) {
            (None, None) => "none",
            (Some(_), None) => "given",
            (_, Some(_)) => "signed",
        };
        fmt::Debug::fmt(given, f)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature").field("expires_s", &self.expires_s).finish_non_exhaustive()
    }
}

/// The decoded value of a query's first parameter of this name; as it stands where it cannot be decoded.
pub fn parameter<'q>(name: &str, query: &'q str) -> Option<Cow<'q, str>> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(n, _)| *n == name)?;
    Some(percent_decode(value).unwrap_or(Cow::Borrowed(value)))
}

/// Decodes `%XX`; `None` for a broken escape, a NUL, or bytes that are no UTF-8 (overlong forms are none).
pub(crate) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let byte = hex(bytes.next(), bytes.next())?;
        if byte == 0 {
            return None;
        }
        plain.push(byte);
    }
    String::from_utf8(plain).ok().map(Cow::Owned)
}

fn mac(text: &str) -> Option<[u8; 32]> {
    let mut mac = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in mac.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = hex(pair.first().copied(), pair.get(1).copied())?;
    }
    Some(mac)
}

/// The byte that two hexadecimal digits stand for.
fn hex(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_found_among_the_rest() {
        let pass = Pass::of_query("a=1&key=s%20x&hevc=legacy");
        assert_eq!((pass.key.as_deref(), pass.signature.is_none()), (Some("s x"), true));
        assert_eq!(pass.query, "a=1&key=s%20x&hevc=legacy");
        let pass = Pass::of_query(&format!("exp=1767225600&sig={}", "0aF1".repeat(16)));
        let signature = pass.signature.unwrap();
        assert_eq!((signature.expires_s, &signature.mac[..4]), (1_767_225_600, &[0x0a, 0xf1, 0x0a, 0xf1][..]));
        assert!(Pass::of_query("token=1").is_blank() && Pass::of_query("exp=5").is_blank());
    }

    #[test]
    fn a_signature_that_is_none_does_not_go_unseen() {
        for query in ["sig=", "sig=zz&exp=9999999999", "sig=00", "exp=x&sig=00"] {
            let pass = Pass::of_query(query);
            assert!(pass.signature.is_some_and(|s| s.mac == [0; 32]) && !Pass::of_query(query).is_blank(), "{query}");
        }
    }

    #[test]
    fn a_pass_shows_no_secret_and_passes_on_no_flood() {
        let shown = format!("{:?}", Pass::of_query("key=sesame"));
        assert_eq!(shown, "\"given\"");
        assert!(Pass::of_query(&format!("key=a&x={}", "y".repeat(Pass::QUERY_MAX))).query.is_empty());
    }
}
