//! X.509 as far as WebRTC needs it: one self-signed certificate of our own (RFC 8827, 6.5: P-256), and the public key
//! in a peer's. Nobody looks at a name or a date: the SDP names the fingerprint.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use str0m::crypto::dtls::DtlsCert;

/// Bytes of a certificate that is looked at; browsers' have some 300.
const CERTIFICATE_LEN_MAX: usize = 16 * 1024;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`, the version.
const VERSION: u8 = 0xa0;

/// id-ecPublicKey, prime256v1, secp384r1, ecdsa-with-SHA256, commonName: contents of the OBJECT IDENTIFIER.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Why there is no certificate of our own.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate: no randomness from the kernel")]
pub(in crate::webrtc) struct CertificateError;

/// A new key and its certificate.
pub(in crate::webrtc) fn generate() -> Result<DtlsCert, CertificateError> {
    let random = SystemRandom::new();
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
    let private_key = private.map_err(|_| CertificateError)?.as_ref().to_vec();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &private_key, &random);
    let pair = pair.map_err(|_| CertificateError)?;
    let mut serial = [0; 8];
    getrandom::fill(&mut serial).map_err(|_| CertificateError)?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x3f | 0x40;
    let body = body(&serial, pair.public_key().as_ref());
    let signature = pair.sign(&random, &body).map_err(|_| CertificateError)?;
    let algorithm = der(SEQUENCE, &[&der(OID, &[ECDSA_SHA256])]);
    let certificate = der(SEQUENCE, &[&body, &algorithm, &der(BIT_STRING, &[&[0], signature.as_ref()])]);
    Ok(DtlsCert { certificate, private_key })
}

/// TBSCertificate (RFC 5280, 4.1.2).
fn body(serial: &[u8], public_key: &[u8]) -> Vec<u8> {
    let name = der(SEQUENCE, &[&der(OID, &[COMMON_NAME]), &der(UTF8_STRING, &[b"sluicegate"])]);
    let name = der(SEQUENCE, &[&der(SET, &[&name])]);
    // From 2020 to 2049: a box without a clock has a valid certificate too.
    let validity = der(SEQUENCE, &[&der(UTC_TIME, &[b"200101000000Z"]), &der(UTC_TIME, &[b"491231235959Z"])]);
    let key_kind = der(SEQUENCE, &[&der(OID, &[EC_PUBLIC_KEY]), &der(OID, &[P256])]);
    let key = der(SEQUENCE, &[&key_kind, &der(BIT_STRING, &[&[0], public_key])]);
    let version = der(VERSION, &[&der(INTEGER, &[&[2]])]);
    let algorithm = der(SEQUENCE, &[&der(OID, &[ECDSA_SHA256])]);
    der(SEQUENCE, &[&version, &der(INTEGER, &[serial]), &algorithm, &name, &validity, &name, &key])
}

/// A tag, a length and the contents.
fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let len: usize = contents.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match len {
        0..=0x7f => out.push(len as u8),
        0x80..=0xff => out.extend([0x81, len as u8]),
        _ => out.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    for part in contents {
        out.extend_from_slice(part);
    }
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

/// The public key of a peer's certificate, an uncompressed point; `None` where it is not of one of the two curves.
pub(super) fn public_key(certificate: &[u8]) -> Option<(Curve, &[u8])> {
    if certificate.len() > CERTIFICATE_LEN_MAX {
        return None;
    }
    let (certificate, _) = read(certificate, SEQUENCE)?;
    let (body, _) = read(certificate, SEQUENCE)?;
    // The version may be left out; serial number, algorithm, issuer, validity and subject come before the key.
    let mut rest = if body.first() == Some(&VERSION) { read(body, VERSION)?.1 } else { body };
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE] {
        rest = read(rest, tag)?.1;
    }
    let (key, _) = read(rest, SEQUENCE)?;
    let (kind, key) = read(key, SEQUENCE)?;
    let (kind, curve) = read(kind, OID)?;
    if kind != EC_PUBLIC_KEY {
        return None;
    }
    let curve = match read(curve, OID)?.0 {
        P256 => Curve::P256,
        P384 => Curve::P384,
        _ => return None,
    };
    match read(key, BIT_STRING)?.0 {
        [0, point @ ..] => Some((curve, point)),
        _ => None,
    }
}

/// The contents of the first element, which must have this tag, and what follows it.
fn read(data: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (&tag, data) = data.split_first()?;
    let (&first, data) = data.split_first()?;
    let (len, data) = match first {
        0..=0x7f => (usize::from(first), data),
        0x81 | 0x82 => {
            let (bytes, data) = data.split_at_checked(usize::from(first & 3))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), data)
        }
        _ => return None,
    };
    if tag != wanted {
        return None;
    }
    data.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

    use super::*;

    #[test]
    fn our_certificate_is_signed_by_the_key_in_it() {
        let made = generate().unwrap();
        let (curve, key) = public_key(&made.certificate).unwrap();
        assert_eq!((curve, key.len(), key[0]), (Curve::P256, 65, 4));
        let (whole, _) = read(&made.certificate, SEQUENCE).unwrap();
        let (_, after_body) = read(whole, SEQUENCE).unwrap();
        let body = &whole[..whole.len() - after_body.len()];
        let (_, signature) = read(after_body, SEQUENCE).unwrap();
        let (signature, _) = read(signature, BIT_STRING).unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(body, &signature[1..]).unwrap();
        assert_ne!(generate().unwrap().certificate, made.certificate);
    }

    #[test]
    fn a_certificate_cut_anywhere_has_no_key_or_the_same() {
        let made = generate().unwrap().certificate;
        let whole = public_key(&made).unwrap();
        for len in 0..made.len() {
            assert!(public_key(&made[..len]).is_none_or(|key| key == whole), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>, at in 0usize..300, byte: u8) {
            let _key = public_key(&noise);
            let mut near = generate().unwrap().certificate;
            let at = at % near.len();
            near[at] = byte;
            let _key = public_key(&near);
        }
    }
}
