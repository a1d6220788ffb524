//! G.711 (ITU-T): A-law and µ-law to linear samples.

use super::Codec;

/// Samples a second; one byte each.
pub const RATE: u32 = 8_000;

/// The samples of a packet, 16 bits each; of any other codec none.
pub fn samples(codec: Codec, packet: &[u8]) -> impl Iterator<Item = i16> {
    let decode = match codec {
        Codec::G711A => Some(a_law as fn(u8) -> i16),
        Codec::G711U => Some(mu_law as fn(u8) -> i16),
        _ => None,
    };
    packet.iter().filter_map(move |byte| Some(decode?(*byte)))
}

/// Table 1a: even bits inverted, a sign, three bits of segment, four of step.
fn a_law(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let (segment, step) = (byte >> 4 & 7, i16::from(byte & 0x0f) << 4);
    let size = match segment {
        0 => step + 8,
        _ => (step + 0x108) << (segment - 1),
    };
    if byte & 0x80 == 0 { -size } else { size }
}

/// A linear sample as A-law: the step that is nearest to 0 of the two it lies between.
pub fn to_a_law(sample: i16) -> u8 {
    // 13 bits count; a negative step ends where the positive one begins, at the value below 0.
    let size = (if sample < 0 { !sample } else { sample }) >> 4;
    let segment = (12 - size.leading_zeros().min(12)) as u8;
    let step = if segment <= 1 { size } else { size >> (segment - 1) };
    let code = segment << 4 | (step & 0x0f) as u8;
    (if sample < 0 { code } else { code | 0x80 }) ^ 0x55
}

/// Table 2a: all bits inverted, a bias of 132.
fn mu_law(byte: u8) -> i16 {
    const BIAS: i16 = 0x84;
    let byte = !byte;
    let size = (((i16::from(byte & 0x0f) << 3) + BIAS) << (byte >> 4 & 7)) - BIAS;
    if byte & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said comes back, and everything else is said as a neighbour of it.
    #[test]
    fn a_law_is_written_as_it_is_read() {
        for byte in 0..=255 {
            assert_eq!(to_a_law(a_law(byte)), byte, "{byte:#x}");
        }
        for sample in i16::MIN..=i16::MAX {
            let (sample, said) = (i32::from(sample), i32::from(a_law(to_a_law(sample))));
            assert!((sample - said).abs() <= 8.max(sample.abs() / 32), "{sample} became {said}");
        }
    }

    /// Against ffmpeg 5.1: `-f alaw -i all256 -f s16le`, the ends and the middle of each half.
    #[test]
    fn both_laws_as_another_decoder_reads_them() {
        let read = |codec, bytes: &[u8]| samples(codec, bytes).collect::<Vec<_>>();
        let bytes = [0x00, 0x2a, 0x55, 0x7f, 0x80, 0xaa, 0xd5, 0xff];
        assert_eq!(read(Codec::G711A, &bytes), [-5504, -32256, -8, -848, 5504, 32256, 8, 848]);
        assert_eq!(read(Codec::G711U, &bytes), [-32124, -5372, -716, 0, 32124, 5372, 716, 0]);
        assert!(read(Codec::Aac, &bytes).is_empty());
    }
}
