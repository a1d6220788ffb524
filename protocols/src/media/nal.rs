//! The head of a NAL unit, which H.264 and H.265 write differently. Must not be in here: what a type means to either.

use super::Codec;

/// What kind of NAL unit the first byte of its head says: `nal_unit_type`, 5 bits of one byte (H.264, 7.3.1), or 6 bits
/// of two behind the forbidden one (H.265, 7.3.1.2).
pub(crate) const fn nal_type(codec: Codec, head: u8) -> u8 {
    if matches!(codec, Codec::H265) { head >> 1 & 0x3f } else { head & 0x1f }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importance_and_layers_are_no_part_of_the_type() {
        assert_eq!([0x65, 0x25, 0x05].map(|head| nal_type(Codec::H264, head)), [5; 3]);
        assert_eq!([0x26, 0x27].map(|head| nal_type(Codec::H265, head)), [19; 2]);
    }
}
