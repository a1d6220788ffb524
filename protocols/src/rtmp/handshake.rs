//! The RTMP handshake (1.0, 5.2), simple and with digests.
//!
//! Flash Player and its kin sign their hello with HMAC-SHA256 and play H.264 only from a server that signs back. The
//! digest hides at an offset that the hello itself tells, in one of two places (scheme 0: the first half, scheme 1: the
//! second). Must not be in here: anything after C2.

use bytes::{BufMut, Bytes, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The only version there is; 6 and 8 announce encryption (RTMPE), which nobody should use any more.
pub(super) const VERSION: u8 = 3;

/// Bytes of C1, C2, S1 and S2 each.
pub(super) const PACKET_LEN: usize = 1536;

const DIGEST_LEN: usize = 32;

/// Offsets run below this: a half is 764 bytes, less 4 of offset and 32 of digest.
const OFFSETS: usize = 728;

const PLAYER_KEY: &[u8] = b"Genuine Adobe Flash Player 001";
const SERVER_KEY: &[u8] = b"Genuine Adobe Flash Media Server 001";

/// What both keys go on with where the second packet is signed.
const KEY_TAIL: [u8; 32] = [
    0xf0, 0xee, 0xc2, 0x4a, 0x80, 0x68, 0xbe, 0xe8, 0x2e, 0x00, 0xd0, 0xd1, 0x02, 0x9e, 0x7e, 0x57, 0x6e, 0xec, 0x5d,
    0x2d, 0x29, 0x80, 0x6f, 0xab, 0x93, 0xb8, 0xe6, 0x36, 0xcf, 0xeb, 0x31, 0xae,
];

/// The version that servers which sign put into S1.
const SERVER_VERSION: [u8; 4] = [4, 5, 0, 1];

/// Where the digest hides in a first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    FirstHalf,
    SecondHalf,
}

impl Scheme {
    /// Where the digest of this packet is.
    fn digest_at(self, packet: &[u8]) -> usize {
        let offset_at = match self {
            Self::FirstHalf => 8,
            Self::SecondHalf => 772,
        };
        let told = packet.get(offset_at..offset_at + 4).unwrap_or_default();
        let offset: usize = told.iter().map(|&byte| usize::from(byte)).sum();
        offset % OFFSETS + offset_at + 4
    }

    /// The digest in the packet and the one that belongs there.
    fn digests<'a>(self, packet: &'a [u8], key: &[u8]) -> Option<(&'a [u8], [u8; DIGEST_LEN])> {
        let at = self.digest_at(packet);
        let (before, from) = packet.split_at_checked(at)?;
        let (digest, after) = from.split_at_checked(DIGEST_LEN)?;
        Some((digest, hmac(key, &[before, after])))
    }
}

/// S0, S1 and S2 for a C1 of [`PACKET_LEN`] bytes: signed if the peer signed, else simple with an echo of C1.
pub(super) fn answer(c1: &[u8], seed: &[u8; 32]) -> Bytes {
    let signed = [Scheme::FirstHalf, Scheme::SecondHalf].into_iter().find_map(|scheme| {
        let (digest, right) = scheme.digests(c1, PLAYER_KEY)?;
        (digest == right).then_some((scheme, right))
    });
    let mut s1 = [0; PACKET_LEN];
    random(seed, b"S1", s1.get_mut(8..).unwrap_or_default());
    let mut out = BytesMut::with_capacity(1 + 2 * PACKET_LEN);
    out.put_u8(VERSION);
    let Some((scheme, c1_digest)) = signed else {
        out.put_slice(&s1);
        out.put_slice(c1);
        return out.freeze();
    };
    put(&mut s1, 4, &SERVER_VERSION);
    sign(&mut s1, scheme, SERVER_KEY);
    out.put_slice(&s1);
    let mut s2 = [0; PACKET_LEN - DIGEST_LEN];
    random(seed, b"S2", &mut s2);
    let key = hmac(&[SERVER_KEY, &KEY_TAIL].concat(), &[&c1_digest]);
    out.put_slice(&s2);
    out.put_slice(&hmac(&key, &[&s2]));
    out.freeze()
}

/// C0 and C1 of a client: the simple kind, which every server takes from a publisher.
pub(super) fn hello(seed: &[u8; 32]) -> Bytes {
    let mut c1 = [0; PACKET_LEN];
    random(seed, b"C1", c1.get_mut(8..).unwrap_or_default());
    let mut out = BytesMut::with_capacity(1 + PACKET_LEN);
    out.put_u8(VERSION);
    out.put_slice(&c1);
    out.freeze()
}

fn sign(packet: &mut [u8], scheme: Scheme, key: &[u8]) {
    let at = scheme.digest_at(packet);
    if let Some((_, right)) = scheme.digests(packet, key) {
        put(packet, at, &right);
    }
}

fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = packet.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; DIGEST_LEN] {
    // HMAC takes keys of any length: there is no error to have.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; DIGEST_LEN] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Bytes that look random to who does not know the seed.
fn random(seed: &[u8; 32], label: &[u8], out: &mut [u8]) {
    for (n, piece) in out.chunks_mut(DIGEST_LEN).enumerate() {
        let block = hmac(seed, &[label, &n.to_be_bytes()]);
        piece.iter_mut().zip(block).for_each(|(to, from)| *to = from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed_hello(scheme: Scheme, seed: u8) -> Vec<u8> {
        let mut c1 = vec![0; PACKET_LEN];
        random(&[seed; 32], b"test", &mut c1[8..]);
        c1[4..8].copy_from_slice(&[128, 0, 7, 2]);
        sign(&mut c1, scheme, PLAYER_KEY);
        c1
    }

    #[test]
    fn a_simple_hello_is_echoed() {
        let c1 = hello(&[1; 32]);
        assert_eq!(c1[..9], [3, 0, 0, 0, 0, 0, 0, 0, 0]);
        let answer = answer(&c1[1..], &[2; 32]);
        assert_eq!(answer.len(), 1 + 2 * PACKET_LEN);
        assert_eq!(answer[1 + PACKET_LEN..], c1[1..]);
        assert_eq!(answer[5..9], [0; 4], "a simple server is of version 0");
    }

    #[test]
    fn a_signed_hello_is_signed_back_in_its_own_scheme() {
        for scheme in [Scheme::FirstHalf, Scheme::SecondHalf] {
            for seed in 0..50 {
                let c1 = signed_hello(scheme, seed);
                let answer = answer(&c1, &[9; 32]);
                let (s1, s2) = (&answer[1..=PACKET_LEN], &answer[1 + PACKET_LEN..]);
                let (digest, right) = scheme.digests(s1, SERVER_KEY).unwrap();
                assert_eq!(digest, right);
                let c1_digest = &c1[scheme.digest_at(&c1)..][..DIGEST_LEN];
                let key = hmac(&[SERVER_KEY, &KEY_TAIL].concat(), &[c1_digest]);
                assert_eq!(s2[PACKET_LEN - DIGEST_LEN..], hmac(&key, &[&s2[..PACKET_LEN - DIGEST_LEN]]));
            }
        }
    }

    #[test]
    fn a_spoiled_signature_is_a_simple_hello() {
        let mut c1 = signed_hello(Scheme::FirstHalf, 1);
        c1[1500] ^= 1;
        assert_eq!(answer(&c1, &[9; 32])[1 + PACKET_LEN..], c1[..]);
    }

    #[test]
    fn the_largest_offset_stays_inside() {
        let mut c1 = vec![0xff; PACKET_LEN];
        for scheme in [Scheme::FirstHalf, Scheme::SecondHalf] {
            assert!(scheme.digests(&c1, PLAYER_KEY).is_some());
        }
        // 727 is the largest remainder.
        c1[772..776].copy_from_slice(&[255, 255, 217, 0]);
        assert_eq!(Scheme::SecondHalf.digest_at(&c1), 776 + 727);
        assert!(Scheme::SecondHalf.digests(&c1, PLAYER_KEY).is_some());
    }

    #[test]
    fn what_ffmpeg_signed_is_known_as_signed() {
        let capture: &[u8] = include_bytes!("testdata/ffmpeg_publish.bin");
        let c1 = &capture[1..=PACKET_LEN];
        assert_ne!(c1[4..8], [0; 4]);
        assert_ne!(answer(c1, &[9; 32])[1 + PACKET_LEN..], *c1, "an echo means the digest was not found");
    }
}
