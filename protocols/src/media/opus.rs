//! Opus (RFC 6716, RFC 7845): the identification header, and how long a packet lasts.

use bytes::{BufMut, Bytes, BytesMut};

use super::read::{ByteReader, MediaError};

/// Opus counts its time in samples of 48 kHz, whatever goes in or comes out.
pub const RATE: u32 = 48_000;

/// The identification header (RFC 7845, 5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpusHead {
    /// 1 to 255.
    pub channels: u8,
    /// Samples of 48 kHz that a decoder throws away at the start.
    pub pre_skip: u16,
    /// Samples a second before encoding; 0 where not told. Says nothing about decoding.
    pub input_rate: u32,
    /// Gain in 1/256 dB.
    pub gain: i16,
    /// 0: mono or stereo; otherwise `mapping` follows.
    pub family: u8,
    /// Streams, coupled streams, and a place for each channel.
    pub mapping: Bytes,
}

impl OpusHead {
    /// Mono or stereo.
    pub fn plain(channels: u8) -> Self {
        Self {
            channels: channels.clamp(1, 2),
            pre_skip: 312,
            input_rate: RATE,
            gain: 0,
            family: 0,
            mapping: Bytes::new(),
        }
    }

    pub fn parse(head: &[u8]) -> Result<Self, MediaError> {
        let mut reader = ByteReader::new("OpusHead", head);
        if reader.take(8)? != b"OpusHead" {
            return Err(reader.malformed("no magic signature"));
        }
        if reader.u8()? > 15 {
            return Err(reader.malformed("version above 15"));
        }
        let channels = reader.u8()?;
        let pre_skip = reader.u16()?.swap_bytes();
        let input_rate = reader.u32()?.swap_bytes();
        let gain = reader.u16()?.swap_bytes() as i16;
        let family = reader.u8()?;
        let mapping = if family == 0 { &[][..] } else { reader.take(2 + usize::from(channels))? };
        if channels == 0 || (family == 0 && channels > 2) {
            return Err(reader.malformed("channels that its mapping family has not"));
        }
        Ok(Self { channels, pre_skip, input_rate, gain, family, mapping: Bytes::copy_from_slice(mapping) })
    }

    pub fn build(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(19 + self.mapping.len());
        out.put_slice(b"OpusHead\x01");
        out.put_u8(self.channels);
        out.put_u16_le(self.pre_skip);
        out.put_u32_le(self.input_rate);
        out.put_i16_le(self.gain);
        out.put_u8(self.family);
        out.put_slice(&self.mapping);
        out.freeze()
    }
}

/// Samples of 48 kHz that a packet lasts (RFC 6716, 3.1 and 3.2); `None` when it is broken.
pub fn samples(packet: &[u8]) -> Option<u32> {
    let toc = *packet.first()?;
    let frame = match toc >> 3 {
        silk @ 0..=11 => [480, 960, 1920, 2880].get(usize::from(silk & 3)).copied()?,
        hybrid @ 12..=15 => 480 << (hybrid & 1),
        celt => 120 << (celt & 3),
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3f),
    };
    Some(frame * frames).filter(|samples| (1..=5760).contains(samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_as_an_encoder_sends_it() {
        // libopus in ffmpeg 9, mono.
        let sent = b"OpusHead\x01\x01\x38\x01\x80\xbb\0\0\0\0\0";
        let head = OpusHead::parse(sent).unwrap();
        assert_eq!(head, OpusHead::plain(1));
        assert_eq!(head.build()[..], sent[..]);
    }

    #[test]
    fn packets_last_as_long_as_they_say() {
        // 20 ms CELT, two of 20 ms SILK, three of 2.5 ms, none, more than 120 ms
        let all = [&[0xf8][..], &[0x09], &[0xe3, 3], &[0xe3, 0], &[0x1b, 3]];
        assert_eq!(all.map(samples), [Some(960), Some(1920), Some(360), None, None]);
    }

    proptest! {
        #[test]
        fn heads_round_trip_and_noise_is_never_a_panic(noise: Vec<u8>, gain: i16, family in 0u8..3) {
            let mapping = if family == 0 { Bytes::new() } else { Bytes::from_static(&[1, 1, 0, 1]) };
            let head = OpusHead { gain, family, mapping, ..OpusHead::plain(2) };
            prop_assert_eq!(OpusHead::parse(&head.build()), Ok(head));
            let _head = OpusHead::parse(&noise);
            samples(&noise);
        }
    }
}
