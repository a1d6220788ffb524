//! Packets in a stream of bytes: COBS with a 0x00 delimiter, CRC-32C at the end.
//!
//! COBS (Cheshire and Baker, 1999) removes every zero from a packet for at most one byte in 254, so that a zero on the
//! wire is always a border: a receiver that starts anywhere, or has lost anything, is in step again at the next zero.
//! The CRC is Castagnoli's (RFC 3720, appendix B.4), 4 bytes, little endian, over the packet before COBS.

/// Bytes of one packet. Fits the RAM of a small microcontroller twice, and a 512-byte flash page with its envelope.
pub const PACKET_MAX: usize = 1024;

const CRC_LEN: usize = 4;
/// A packet with CRC as COBS writes it, without the delimiter.
const ENCODED_MAX: usize = PACKET_MAX + CRC_LEN + (PACKET_MAX + CRC_LEN) / 254 + 1;
/// The longest run of bytes other than zero that one code byte announces.
const RUN_MAX: usize = 254;

/// Why bytes between two delimiters were no packet. The next delimiter starts afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of more than {ENCODED_MAX} bytes without a delimiter")]
    TooLong,
    #[error("a frame of {0} bytes is too short for its checksum")]
    TooShort(usize),
    #[error("the COBS code at byte {0} points beyond the frame")]
    Cobs(usize),
    #[error("checksum {found:08x}, but the packet's is {right:08x}")]
    Checksum { found: u32, right: u32 },
    #[error("a packet of {0} bytes; the most is {PACKET_MAX}")]
    Oversize(usize),
}

/// Appends the packet as a frame with its delimiter.
pub fn encode(packet: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    if packet.len() > PACKET_MAX {
        return Err(FrameError::Oversize(packet.len()));
    }
    let crc = crc32c::crc32c(packet).to_le_bytes();
    let mut run = Vec::with_capacity(RUN_MAX);
    // Whether the run before ended with a zero (an announced full run stands for no zero).
    let mut open = true;
    for byte in packet.iter().chain(&crc) {
        if *byte == 0 {
            flush(&mut run, out);
            open = true;
            continue;
        }
        run.push(*byte);
        open = true;
        if run.len() == RUN_MAX {
            flush(&mut run, out);
            open = false;
        }
    }
    if open {
        flush(&mut run, out);
    }
    out.push(0);
    Ok(())
}

fn flush(run: &mut Vec<u8>, out: &mut Vec<u8>) {
    // At most 254, so the code fits a byte.
    out.push(run.len() as u8 + 1);
    out.append(run);
}

/// Finds packets in bytes that come in any pieces. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Decoder {
    encoded: Vec<u8>,
    /// The frame was too long already: its rest is passed over.
    skipping: bool,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` up to and with the next delimiter. `None`: all is taken, no border was in it.
    /// Empty frames (idle delimiters) are passed over.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Vec<u8>, FrameError>> {
        while let Some((first, rest)) = input.split_first() {
            *input = rest;
            if *first != 0 {
                if self.encoded.len() < ENCODED_MAX {
                    self.encoded.push(*first);
                } else {
                    self.skipping = true;
                }
                continue;
            }
            let encoded = std::mem::take(&mut self.encoded);
            if std::mem::take(&mut self.skipping) {
                return Some(Err(FrameError::TooLong));
            }
            if !encoded.is_empty() {
                return Some(decode(&encoded));
            }
        }
        None
    }
}

fn decode(encoded: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut packet = uncobs(encoded)?;
    let Some(split) = packet.len().checked_sub(CRC_LEN) else { return Err(FrameError::TooShort(packet.len())) };
    let crc = packet.split_off(split);
    if packet.len() > PACKET_MAX {
        return Err(FrameError::Oversize(packet.len()));
    }
    let found = crc.iter().rev().fold(0, |crc, byte| crc << 8 | u32::from(*byte));
    let right = crc32c::crc32c(&packet);
    if found == right { Ok(packet) } else { Err(FrameError::Checksum { found, right }) }
}

fn uncobs(encoded: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((code, after)) = rest.split_first() {
        let length = usize::from(*code).saturating_sub(1);
        let Some((run, after)) = after.split_at_checked(length) else {
            return Err(FrameError::Cobs(encoded.len() - rest.len()));
        };
        out.extend_from_slice(run);
        if length < RUN_MAX && !after.is_empty() {
            out.push(0);
        }
        rest = after;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(packet: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(packet, &mut out).expect("short enough");
        out
    }

    fn all(decoder: &mut Decoder, mut input: &[u8]) -> Vec<Result<Vec<u8>, FrameError>> {
        std::iter::from_fn(|| decoder.next(&mut input)).collect()
    }

    #[test]
    fn known_bytes() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720's own check value).
        let mut wanted = b"\x0e123456789".to_vec();
        wanted.extend([0x83, 0x92, 0x06, 0xe3, 0]);
        assert_eq!(frame(b"123456789"), wanted);
        // The CRC of nothing is 0: four zeros, each a code of 1, and the last run's code.
        assert_eq!(frame(b""), [1, 1, 1, 1, 1, 0]);
        let at = |length: usize| frame(&vec![7; length]).len();
        assert!(at(PACKET_MAX) <= ENCODED_MAX + 1);
        assert_eq!(encode(&[0; PACKET_MAX + 1], &mut Vec::new()), Err(FrameError::Oversize(PACKET_MAX + 1)));
    }

    #[test]
    fn every_fault_has_its_error_and_the_next_frame_is_read() {
        let good = frame(b"good");
        let table: &[(&[u8], FrameError)] = &[
            (&[1, 0], FrameError::TooShort(0)),
            (&[2, 9, 200, 1, 0], FrameError::Cobs(2)),
            (&[9; ENCODED_MAX + 9], FrameError::TooLong),
        ];
        for (bad, wanted) in table {
            let mut bytes = bad.to_vec();
            bytes.push(0);
            bytes.extend_from_slice(&good);
            let seen = all(&mut Decoder::new(), &bytes);
            assert_eq!(seen, [Err(*wanted), Ok(b"good".to_vec())]);
        }
        let mut flipped = good.clone();
        flipped[2] ^= 1;
        assert!(matches!(all(&mut Decoder::new(), &flipped)[..], [Err(FrameError::Checksum { .. })]));
    }

    #[test]
    fn endless_noise_is_held_in_one_frame() {
        let mut decoder = Decoder::new();
        for _ in 0..100 {
            assert!(all(&mut decoder, &[0xff; 4096]).is_empty());
            assert!(decoder.encoded.capacity() <= 2 * ENCODED_MAX);
        }
    }

    proptest! {
        #[test]
        fn packets_come_back_however_cut(
            packets in proptest::collection::vec(proptest::collection::vec(0..3_u8, 0..PACKET_MAX), 1..4),
            ones in 250..260_usize,
            cut in 1..64_usize,
        ) {
            let mut packets = packets;
            packets.push(vec![1; ones]);
            let bytes: Vec<u8> = packets.iter().flat_map(|packet| frame(packet)).collect();
            let mut decoder = Decoder::new();
            let seen: Vec<_> = bytes.chunks(cut).flat_map(|piece| all(&mut decoder, piece)).collect();
            prop_assert_eq!(seen, packets.into_iter().map(Ok).collect::<Vec<_>>());
        }

        /// Noise before a frame costs at most the frame it runs into; noise never panics.
        #[test]
        fn in_step_after_a_delimiter(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut bytes = noise;
            bytes.push(0);
            bytes.extend(frame(b"good"));
            let seen = all(&mut Decoder::new(), &bytes);
            prop_assert_eq!(seen.last(), Some(&Ok(b"good".to_vec())));
        }
    }
}
