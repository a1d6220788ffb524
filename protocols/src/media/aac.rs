//! AAC (ISO/IEC 14496-3): the AudioSpecificConfig that goes ahead of raw frames, and the ADTS header that goes with each.

use bytes::Bytes;

use super::read::{BitReader, MediaError};

/// Samples a second by frequency index (table 1.18).
const RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

/// The head of an AudioSpecificConfig (1.6.2.1); what follows it is passed on unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioSpecificConfig {
    /// 2 is AAC-LC, 5 and 29 HE-AAC.
    pub object_type: u8,
    /// Samples a second of the core coder.
    pub rate: u32,
    /// Channel configuration, 0 to 15: 0 where the stream itself tells.
    pub channels: u8,
}

impl AudioSpecificConfig {
    pub fn parse(config: &[u8]) -> Result<Self, MediaError> {
        let mut bits = BitReader::new("AudioSpecificConfig", config);
        let object_type = match bits.bits(5)? {
            31 => 32 + bits.bits(6)?,
            plain => plain,
        } as u8;
        let rate = match bits.bits(4)? {
            15 => bits.bits(24)?,
            index => rate_of(index as u8).ok_or_else(|| bits.malformed("reserved frequency index"))?,
        };
        let channels = bits.bits(4)? as u8;
        if object_type == 0 || rate == 0 {
            return Err(bits.malformed("no object type or no rate"));
        }
        Ok(Self { object_type, rate, channels })
    }

    /// Two bytes, or five for a rate that has no index. Object types above 30 are not built: 30 comes out.
    pub fn build(&self) -> Bytes {
        let object_type = u64::from(self.object_type.min(30));
        let channels = u64::from(self.channels.min(15));
        if let Some(index) = RATES.iter().position(|&rate| rate == self.rate) {
            let bits = (object_type << 11 | (index as u64) << 7 | channels << 3) as u16;
            return Bytes::copy_from_slice(&bits.to_be_bytes());
        }
        let bits = object_type << 35 | 15 << 31 | u64::from(self.rate & 0xff_ffff) << 7 | channels << 3;
        Bytes::copy_from_slice(bits.to_be_bytes().get(3..).unwrap_or_default())
    }
}

/// An ADTS frame's header (1.A.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adts {
    pub config: AudioSpecificConfig,
    /// 7, or 9 with a checksum.
    pub header_len: usize,
    /// Header and payload, bytes.
    pub frame_len: usize,
}

impl Adts {
    pub const HEADER_LEN: usize = 7;

    pub fn parse(header: &[u8]) -> Result<Self, MediaError> {
        let mut bits = BitReader::new("ADTS header", header);
        if bits.bits(12)? != 0xfff {
            return Err(bits.malformed("no sync word"));
        }
        bits.skip(3)?;
        let header_len = if bits.bit()? { Self::HEADER_LEN } else { Self::HEADER_LEN + 2 };
        let object_type = bits.bits(2)? as u8 + 1;
        let rate = rate_of(bits.bits(4)? as u8).ok_or_else(|| bits.malformed("reserved frequency index"))?;
        bits.skip(1)?;
        let channels = bits.bits(3)? as u8;
        bits.skip(4)?;
        let frame_len = bits.bits(13)? as usize;
        bits.skip(13)?;
        if frame_len < header_len {
            return Err(bits.malformed("frame shorter than its header"));
        }
        Ok(Self { config: AudioSpecificConfig { object_type, rate, channels }, header_len, frame_len })
    }

    /// The header for a raw frame of `payload_len` bytes; `None` where ADTS cannot say it (object types above 4, rates
    /// without an index, frames above 8,184 bytes).
    pub fn header(config: &AudioSpecificConfig, payload_len: usize) -> Option<[u8; Self::HEADER_LEN]> {
        let index = RATES.iter().position(|&rate| rate == config.rate)? as u64;
        let len = payload_len.checked_add(Self::HEADER_LEN).filter(|&len| len < 1 << 13)? as u64;
        let profile = u64::from(config.object_type).checked_sub(1).filter(|&p| p < 4)?;
        let channels = Some(u64::from(config.channels)).filter(|&c| c < 8)?;
        // sync 12, MPEG-4 1, layer 2, no checksum 1, profile 2, rate 4, private 1, channels 3, 4 flags, length 13,
        // fullness 11 (0x7ff: variable), blocks 2
        let bits = 0xfff1u64 << 40 | profile << 38 | index << 34 | channels << 30 | len << 13 | 0x7ff << 2;
        let [_, header @ ..] = bits.to_be_bytes();
        Some(header)
    }
}

fn rate_of(index: u8) -> Option<u32> {
    RATES.get(usize::from(index)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn configs_as_encoders_send_them() {
        // ffmpeg's AAC-LC 44.1 kHz mono with its SBR hint, and 48 kHz stereo.
        let lc = |rate, channels| AudioSpecificConfig { object_type: 2, rate, channels };
        assert_eq!(AudioSpecificConfig::parse(&[0x12, 0x08, 0x56, 0xe5, 0x00]), Ok(lc(44_100, 1)));
        assert_eq!(AudioSpecificConfig::parse(&[0x11, 0x90]), Ok(lc(48_000, 2)));
        assert_eq!(lc(48_000, 2).build()[..], [0x11, 0x90]);
    }

    #[test]
    fn a_rate_without_an_index() {
        let odd = AudioSpecificConfig { object_type: 2, rate: 12_345, channels: 2 };
        assert_eq!(AudioSpecificConfig::parse(&odd.build()), Ok(odd));
    }

    #[test]
    fn an_adts_header_round_trips() {
        let config = AudioSpecificConfig { object_type: 2, rate: 44_100, channels: 2 };
        let header = Adts::header(&config, 300).unwrap();
        assert_eq!(header[..2], [0xff, 0xf1]);
        assert_eq!(Adts::parse(&header), Ok(Adts { config, header_len: 7, frame_len: 307 }));
        assert_eq!(Adts::header(&config, 9_000), None);
        assert!(Adts::parse(&header[..6]).is_err());
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _config = AudioSpecificConfig::parse(&noise);
            let _adts = Adts::parse(&noise);
        }
    }
}
