//! A batch's body made smaller, and large again within bounds. The one owner of LZ4 and Zstandard.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::WireError;

/// Bytes a body may have once it is unpacked: a few times the largest batch a gateway makes. What claims more is a bomb.
pub const BODY_MAX: usize = 16 << 20;

/// How a body is packed; the number stands in `Batch.codec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    /// An LZ4 block (LZ4 Block Format 1.6) behind its unpacked length, 4 bytes, little endian: little work, a third off.
    Lz4,
    /// A Zstandard frame (RFC 8878): more work, smaller.
    Zstd,
}

impl Compression {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(super) fn from_number(number: u32) -> Result<Self, WireError> {
        match number {
            0 => Ok(Self::None),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            other => Err(WireError::Codec(other)),
        }
    }
}

/// Packs a body; one that does not become smaller stays as it is.
pub(super) fn pack(wanted: Compression, body: Vec<u8>) -> (Compression, Vec<u8>) {
    let packed = match wanted {
        Compression::None => return (Compression::None, body),
        Compression::Lz4 => lz4_flex::block::compress_prepend_size(&body),
        Compression::Zstd => compress_to_vec(body.as_slice(), CompressionLevel::Fastest),
    };
    if packed.len() < body.len() { (wanted, packed) } else { (Compression::None, body) }
}

/// The body as it was before it was packed.
pub(super) fn unpack(packing: Compression, body: Vec<u8>) -> Result<Vec<u8>, WireError> {
    match packing {
        Compression::None => Ok(body),
        Compression::Lz4 => {
            let (length, block) = body.split_first_chunk::<4>().ok_or(WireError::Packed("it has no length"))?;
            let length = u32::from_le_bytes(*length) as usize;
            if length > BODY_MAX {
                return Err(WireError::Packed("it claims to be too large"));
            }
            lz4_flex::block::decompress(block, length).map_err(|_| WireError::Packed("it is no LZ4 block"))
        }
        Compression::Zstd => {
            let broken = WireError::Packed("it is no Zstandard frame");
            let Ok(decoder) = StreamingDecoder::new(body.as_slice()) else { return Err(broken) };
            let mut unpacked = Vec::new();
            let read = decoder.take(BODY_MAX as u64 + 1).read_to_end(&mut unpacked).map_err(|_| broken)?;
            if read > BODY_MAX { Err(WireError::Packed("it is too large")) } else { Ok(unpacked) }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0; BODY_MAX + 1];
        for wanted in [Compression::Lz4, Compression::Zstd] {
            let (packing, packed) = pack(wanted, zeros.clone());
            assert!(packing == wanted && packed.len() < BODY_MAX / 100, "{} bytes", packed.len());
            assert!(matches!(unpack(packing, packed), Err(WireError::Packed(_))));
            let (packing, packed) = pack(wanted, zeros[1..].to_vec());
            assert_eq!(unpack(packing, packed).map(|body| body.len()), Ok(BODY_MAX));
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(body in prop::collection::vec(0_u8..4, 0..3000)) {
            for wanted in [Compression::None, Compression::Lz4, Compression::Zstd] {
                let (packing, packed) = pack(wanted, body.clone());
                prop_assert!(packed.len() <= body.len());
                prop_assert_eq!(unpack(packing, packed), Ok(body.clone()));
            }
        }

        #[test]
        fn noise_is_refused_or_read(noise in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            for packing in [Compression::Lz4, Compression::Zstd] {
                let _any = unpack(packing, noise.clone());
                let (packing, mut packed) = pack(packing, [&noise[..], &[7; 500]].concat());
                let at = at % packed.len();
                packed[at] ^= 0x55;
                let _any = unpack(packing, packed);
            }
        }
    }
}
