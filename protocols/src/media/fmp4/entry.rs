//! What an init segment says of a track: its sample entry, and the codecs string (RFC 6381) that playlists and browsers
//! know it by.

use bytes::{BufMut, Bytes, BytesMut};

use super::{boxed, full};
use crate::media::aac::AudioSpecificConfig;
use crate::media::av1::Av1C;
use crate::media::h264::AvcC;
use crate::media::h265::HvcC;
use crate::media::opus::{self, OpusHead};
use crate::media::{Codec, Kind, Picture, Track, Unit};

/// The clock of video tracks: that of units, ticks a second.
const VIDEO_CLOCK: u32 = 90_000;

/// Samples a second of G.711.
const G711_RATE: u32 = 8_000;

/// Object types of MPEG-1 and MPEG-2 audio (14496-1, table 5).
const MPEG1_AUDIO: u8 = 0x6b;
const MPEG2_AUDIO: u8 = 0x69;
const MPEG4_AUDIO: u8 = 0x40;

/// One track of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its number in the file, from 1.
    pub id: u32,
    pub track: Track,
    pub codec: Codec,
    /// Ticks of its clock in a second: 90,000 for video, the sampling rate for audio.
    pub timescale: u32,
    /// Pixels; 0 where the configuration does not tell, and for audio.
    pub width: u16,
    pub height: u16,
    /// 0 for video.
    pub channels: u16,
    /// What the decoder is told, as its box or descriptor wants it.
    config: Bytes,
}

impl Description {
    /// The track that this unit begins: its codec configuration, or, of a codec that has none (MP3, G.711), any packet.
    /// `None` for a frame that tells nothing, a configuration that cannot be read, and what has no place in MP4.
    pub fn of(id: u32, unit: &Unit) -> Option<Self> {
        let config = (unit.kind == Kind::Config).then_some(&unit.data);
        let audio = |timescale, channels, config| Self {
            id,
            track: Track::Audio,
            codec: unit.codec,
            timescale,
            width: 0,
            height: 0,
            channels,
            config,
        };
        match unit.codec {
            Codec::H264 => {
                AvcC::parse(config?).ok()?;
                Some(Self::video(id, unit))
            }
            Codec::H265 => {
                HvcC::parse(config?).ok()?;
                Some(Self::video(id, unit))
            }
            Codec::Av1 => {
                Av1C::parse(config?).ok()?;
                Some(Self::video(id, unit))
            }
            Codec::Opus => {
                let head = OpusHead::parse(config?).ok()?;
                Some(audio(opus::RATE, u16::from(head.channels), unit.data.clone()))
            }
            Codec::Aac => {
                let aac = AudioSpecificConfig::parse(config?).ok()?;
                // Configuration 7 is 7.1; 0 leaves it to the stream, which is stereo as a rule.
                let channels = match aac.channels {
                    0 => 2,
                    7 => 8,
                    plain => u16::from(plain),
                };
                Some(audio(aac.rate, channels, unit.data.clone()))
            }
            Codec::Mp3 => {
                let head = Mp3Head::parse(&unit.data)?;
                let object_type = if head.mpeg1 { MPEG1_AUDIO } else { MPEG2_AUDIO };
                Some(audio(head.rate, head.channels, Bytes::copy_from_slice(&[object_type])))
            }
            Codec::G711A | Codec::G711U => Some(audio(G711_RATE, 1, Bytes::new())),
            Codec::Vp9 | Codec::Flac | Codec::Ac3 | Codec::Script => None,
        }
    }

    fn video(id: u32, config: &Unit) -> Self {
        let side = |pixels: u32| u16::try_from(pixels).unwrap_or(0);
        let picture = Picture::of(config);
        let (width, height) = picture.map_or((0, 0), |picture| (side(picture.width), side(picture.height)));
        let (codec, config) = (config.codec, config.data.clone());
        Self { id, track: Track::Video, codec, timescale: VIDEO_CLOCK, width, height, channels: 0, config }
    }

    /// Its name in the `codecs` parameter (RFC 6381, 3.3 and 3.4; 14496-15, annex E).
    pub fn codecs(&self) -> String {
        match (self.codec, self.config.as_ref()) {
            (Codec::H264, [_, profile, compatibility, level, ..]) => {
                format!("avc1.{profile:02x}{compatibility:02x}{level:02x}")
            }
            (Codec::H265, record) => hevc_codecs(record),
            (Codec::Aac, config) => {
                let object_type = AudioSpecificConfig::parse(config).map_or(2, |aac| aac.object_type);
                format!("mp4a.40.{object_type}")
            }
            (Codec::Av1, record) => Av1C::parse(record).map(|record| av1_codecs(&record)).unwrap_or_default(),
            (Codec::Opus, _) => "opus".to_owned(),
            (Codec::Mp3, [object_type, ..]) => format!("mp4a.{object_type:02X}"),
            (Codec::G711A, _) => "alaw".to_owned(),
            (Codec::G711U, _) => "ulaw".to_owned(),
            _ => String::new(),
        }
    }

    /// How many ticks of the track's clock this packet lasts, where the codec tells.
    pub(super) fn ticks_of(&self, data: &[u8]) -> Option<u32> {
        match self.codec {
            Codec::Aac => {
                // 14496-3, 4.4.1: frames of 960 are said in the bit after the channels, in AAC-LC's configuration.
                let short = matches!(self.config.as_ref(), [first, second, ..] if first >> 3 == 2 && second & 4 != 0);
                Some(if short { 960 } else { 1_024 })
            }
            Codec::Opus => opus::samples(data),
            Codec::Mp3 => Mp3Head::parse(data).map(|head| head.samples),
            Codec::G711A | Codec::G711U => u32::try_from(data.len()).ok(),
            _ => None,
        }
    }

    /// The sample entry (14496-12, 8.5.2).
    pub(super) fn write_entry(&self, out: &mut BytesMut) {
        match self.codec {
            Codec::H264 => self.visual(*b"avc1", *b"avcC", out),
            Codec::H265 => self.visual(*b"hvc1", *b"hvcC", out),
            Codec::Av1 => self.visual(*b"av01", *b"av1C", out),
            Codec::Opus => self.sound(*b"Opus", out, |out| opus_box(&self.config, out)),
            Codec::Aac => self.sound(*b"mp4a", out, |out| elementary_stream(MPEG4_AUDIO, &self.config, out)),
            Codec::Mp3 => {
                let object_type = self.config.first().copied().unwrap_or(MPEG1_AUDIO);
                self.sound(*b"mp4a", out, |out| elementary_stream(object_type, &[], out));
            }
            Codec::G711A => self.sound(*b"alaw", out, |_| {}),
            Codec::G711U => self.sound(*b"ulaw", out, |_| {}),
            Codec::Vp9 | Codec::Flac | Codec::Ac3 | Codec::Script => {}
        }
    }

    /// VisualSampleEntry (14496-12, 12.1.3) with its configuration box (14496-15, 5.4.2 and 8.4.1).
    fn visual(&self, name: [u8; 4], config_name: [u8; 4], out: &mut BytesMut) {
        boxed(out, name, |out| {
            out.put_bytes(0, 6);
            out.put_u16(1);
            out.put_bytes(0, 16);
            out.put_u16(self.width);
            out.put_u16(self.height);
            // 72 dots an inch, one frame a sample, no compressor's name, colours without alpha
            out.put_u32(0x0048_0000);
            out.put_u32(0x0048_0000);
            out.put_u32(0);
            out.put_u16(1);
            out.put_bytes(0, 32);
            out.put_u16(0x18);
            out.put_i16(-1);
            boxed(out, config_name, |out| out.put_slice(&self.config));
        });
    }

    /// AudioSampleEntry (14496-12, 12.2.3).
    fn sound(&self, name: [u8; 4], out: &mut BytesMut, config: impl FnOnce(&mut BytesMut)) {
        boxed(out, name, |out| {
            out.put_bytes(0, 6);
            out.put_u16(1);
            out.put_bytes(0, 8);
            out.put_u16(self.channels);
            out.put_u16(16);
            out.put_u32(0);
            // 16.16: a rate beyond 65,535 is said by the clock alone
            out.put_u32(u16::try_from(self.timescale).map_or(0, |rate| u32::from(rate) << 16));
            config(out);
        });
    }
}

/// AV1-ISOBMFF 5: profile, level and tier, depth; the rest has its defaults.
fn av1_codecs(record: &Av1C) -> String {
    let tier = if record.high_tier { 'H' } else { 'M' };
    format!("av01.{}.{:02}{tier}.{:02}", record.profile, record.level, record.bit_depth)
}

/// `dOps` ("Encapsulation of Opus in ISO Base Media File Format", 4.3.2): OpusHead without its name, version 0, big endian.
fn opus_box(head: &[u8], out: &mut BytesMut) {
    let Ok(head) = OpusHead::parse(head) else { return };
    boxed(out, *b"dOps", |out| {
        out.put_slice(&[0, head.channels]);
        out.put_u16(head.pre_skip);
        out.put_u32(head.input_rate);
        out.put_i16(head.gain);
        out.put_u8(head.family);
        out.put_slice(&head.mapping);
    });
}

/// 14496-15, E.3: profile, compatibility in reverse, tier and level, constraints up to the last that is set.
fn hevc_codecs(record: &[u8]) -> String {
    let Some(&[_, profile, c0, c1, c2, c3, ref constraints @ .., level]) = record.get(..13) else {
        return String::new();
    };
    let space = match profile >> 6 {
        1 => "A",
        2 => "B",
        3 => "C",
        _ => "",
    };
    let compatibility = u32::from_be_bytes([c0, c1, c2, c3]).reverse_bits();
    let tier = if profile & 0x20 == 0 { 'L' } else { 'H' };
    let said = constraints.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let constraints = constraints.iter().take(said).fold(String::new(), |said, byte| said + &format!(".{byte:X}"));
    format!("hvc1.{space}{}.{compatibility:X}.{tier}{level}{constraints}", profile & 0x1f)
}

/// `esds` (14496-14, 5.6): an ES descriptor with the decoder's configuration (14496-1, 7.2.6.5).
fn elementary_stream(object_type: u8, config: &[u8], out: &mut BytesMut) {
    const AUDIO_STREAM: u8 = 5 << 2 | 1;
    /// A tag and a length of four bytes.
    const HEAD: usize = 5;
    let specific = if config.is_empty() { 0 } else { HEAD + config.len() };
    full(out, *b"esds", 0, 0, |out| {
        descriptor(3, 3 + HEAD + 13 + specific + HEAD + 1, out);
        out.put_u16(0);
        out.put_u8(0);
        descriptor(4, 13 + specific, out);
        out.put_slice(&[object_type, AUDIO_STREAM]);
        // size of the decoder's buffer, greatest and mean bit rate: not known
        out.put_bytes(0, 11);
        if !config.is_empty() {
            descriptor(5, config.len(), out);
            out.put_slice(config);
        }
        descriptor(6, 1, out);
        out.put_u8(2);
    });
}

/// A tag and the length, seven bits a byte (14496-1, 8.3.3).
fn descriptor(tag: u8, len: usize, out: &mut BytesMut) {
    out.put_u8(tag);
    for shift in [21, 14, 7] {
        out.put_u8((len >> shift) as u8 & 0x7f | 0x80);
    }
    out.put_u8(len as u8 & 0x7f);
}

/// The header of an MPEG audio frame, layer III (11172-3, 2.4.1.3; 13818-3).
struct Mp3Head {
    mpeg1: bool,
    rate: u32,
    channels: u16,
    samples: u32,
}

impl Mp3Head {
    fn parse(frame: &[u8]) -> Option<Self> {
        let &[0xff, second, third, fourth, ..] = frame else { return None };
        if second & 0xe0 != 0xe0 {
            return None;
        }
        let rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3)).copied()?;
        let (mpeg1, rate) = match second >> 3 & 3 {
            3 => (true, rate),
            2 => (false, rate / 2),
            0 => (false, rate / 4),
            _ => return None,
        };
        let channels = if fourth >> 6 == 3 { 1 } else { 2 };
        Some(Self { mpeg1, rate, channels, samples: if mpeg1 { 1_152 } else { 576 } })
    }
}
