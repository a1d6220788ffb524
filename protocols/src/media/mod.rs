//! What the camera languages share: access units, codecs, and the containers viewers ask for.
//!
//! Inside: one file a codec or container, all pure: `h264.rs`, `h265.rs`, `av1.rs`, `aac.rs`, `opus.rs`, `g711.rs`, `g726.rs`, `adpcm.rs` (what a decoder is
//! told, and what we read off it), `amf0.rs` and `metadata.rs` (script data), `flv/` (tags to units), `mux/` (units to what
//! viewers get), `fmp4/` (units to fragmented MP4), `pictures.rs` (NAL units to access units), `annex_b.rs` (byte streams to
//! pictures), `ps/` (program streams to units), `read.rs` (bounded readers under all of them). Must not be in here: anything
//! one protocol alone needs.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub mod aac;
pub mod adpcm;
pub mod amf0;
mod annex_b;
pub mod av1;
pub mod flv;
pub mod fmp4;
pub mod g711;
pub mod g726;
pub mod h264;
pub mod h265;
pub mod metadata;
pub mod mux;
mod nal;
pub mod opus;
pub(crate) mod pictures;
pub mod ps;
mod read;
pub mod rtp;

pub use mux::{Change, Mux, Tracks, mux};
pub use read::MediaError;

/// `APP/NAME`, e.g. `live/gate-1`, `gb/DEVICE/CHANNEL`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

impl StreamName {
    /// Bytes a stream name may have.
    pub const LEN_MAX: usize = 200;

    /// Checks the name: 2 to 4 levels of letters, digits, `-`, `_`, `.`; no level is `.` or `..`.
    pub fn parse(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let level_ok = |l: &str| !l.is_empty() && l != "." && l != ".." && l.chars().all(plain);
        let levels = name.split('/').count();
        ((2..=4).contains(&levels) && name.len() <= Self::LEN_MAX && name.split('/').all(level_ok))
            .then(|| Self(Arc::from(name)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Track {
    Video,
    Audio,
    /// Script data (RTMP's onMetaData, which is a [`Kind::Config`]; cue points and texts are [`Kind::Delta`]).
    Data,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    H264,
    H265,
    Av1,
    Vp9,
    Aac,
    Opus,
    G711A,
    G711U,
    Mp3,
    Flac,
    Ac3,
    /// AMF0 script data.
    Script,
}

impl Codec {
    pub fn track(self) -> Track {
        match self {
            Self::H264 | Self::H265 | Self::Av1 | Self::Vp9 => Track::Video,
            Self::Aac | Self::Opus | Self::G711A | Self::G711U | Self::Mp3 | Self::Flac | Self::Ac3 => Track::Audio,
            Self::Script => Track::Data,
        }
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::H264 => "H264",
            Self::H265 => "H265",
            Self::Av1 => "AV1",
            Self::Vp9 => "VP9",
            Self::Aac => "AAC",
            Self::Opus => "Opus",
            Self::G711A => "G711A",
            Self::G711U => "G711U",
            Self::Mp3 => "MP3",
            Self::Flac => "FLAC",
            Self::Ac3 => "AC3",
            Self::Script => "script",
        }
    }
}

/// One access unit (a video frame, an audio packet) or one codec configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub track: Track,
    pub codec: Codec,
    /// Decode time in 1/90,000 s, never wraps.
    pub dts_90k: i64,
    /// Presentation time in 1/90,000 s.
    pub pts_90k: i64,
    pub kind: Kind,
    /// What stands here by codec, at most [`LEN_MAX`](Self::LEN_MAX) bytes; configurations are whole at each change.
    ///
    /// - H.264, H.265: 4-byte length-prefixed NAL units; configuration: avcC, hvcC record (ISO/IEC 14496-15).
    /// - AV1: a temporal unit in the low-overhead format, without its temporal delimiter; configuration: av1C record.
    /// - VP9: a frame or superframe; configuration: vpcC with its version and flags.
    /// - AAC: one raw frame; configuration: AudioSpecificConfig.
    /// - Opus: a packet as it is; configuration: OpusHead (RFC 7845, 5.1).
    /// - FLAC: a frame; configuration: `fLaC` and the STREAMINFO block.
    /// - MP3, AC-3, G.711: the packet as it is; there is no configuration.
    /// - Script: the AMF0 values, beginning with the name.
    pub data: Bytes,
}

impl Unit {
    /// Bytes a unit may have: FLV and RTMP count a body in 24 bits, the codec's head included.
    pub const LEN_MAX: usize = 0xff_ffff - 16;

    /// Whole milliseconds of decode time, as FLV and RTMP say it.
    pub fn dts_ms(&self) -> i64 {
        self.dts_90k.div_euclid(90)
    }

    /// Milliseconds from decode to presentation; negative where a source says so.
    pub fn composition_ms(&self) -> i64 {
        self.pts_90k.div_euclid(90).saturating_sub(self.dts_ms())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Codec configuration: what a decoder needs before the first frame.
    Config,
    /// A video frame from which decoding can start; every audio packet. Whether a viewer may join there is the
    /// stream's affair: at a video key where there is video, at any audio packet where there is none.
    Key,
    /// Any other frame.
    Delta,
}

/// What a codec configuration says about the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Picture {
    /// Pixels that are shown, cropping taken off.
    pub width: u32,
    pub height: u32,
    /// Frames a second, where the configuration tells its timing.
    pub fps: Option<f64>,
}

impl Picture {
    /// The picture of a video configuration, if it can be read.
    pub fn of(config: &Unit) -> Option<Self> {
        match config.codec {
            Codec::H264 => {
                let sps = h264::AvcC::parse(&config.data).ok()?.picture()?;
                Some(Self { width: sps.width, height: sps.height, fps: sps.fps })
            }
            Codec::H265 => h265::HvcC::parse(&config.data).ok()?.picture(),
            Codec::Av1 => av1::Av1C::parse(&config.data).ok()?.picture(),
            _ => None,
        }
    }
}

/// What an audio track sounds like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sound {
    /// Samples a second.
    pub rate: u32,
    pub channels: u8,
}

impl Sound {
    /// Of a codec with its configuration; `None` where that does not tell (MP3 and AC-3 say it in each packet).
    pub fn of(codec: Codec, config: Option<&Unit>) -> Option<Self> {
        let config = config.filter(|config| config.codec == codec).map(|config| &config.data);
        match codec {
            Codec::G711A | Codec::G711U => Some(Self { rate: g711::RATE, channels: 1 }),
            Codec::Aac => {
                let aac = aac::AudioSpecificConfig::parse(config?).ok()?;
                Some(Self { rate: aac.rate, channels: aac.channels })
            }
            Codec::Opus => {
                let channels = config.and_then(|head| opus::OpusHead::parse(head).ok()).map_or(2, |head| head.channels);
                Some(Self { rate: opus::RATE, channels })
            }
            Codec::Flac => {
                // STREAMINFO: 20 bits of rate, 3 of channels, ten bytes in (RFC 9639, 8.2).
                let [a, b, c] = *config?.get(18..)?.first_chunk()?;
                let bits = u32::from_be_bytes([0, a, b, c]);
                Some(Self { rate: bits >> 4, channels: (bits >> 1 & 7) as u8 + 1 })
            }
            _ => None,
        }
    }
}

/// How H.265 is said in FLV and RTMP, which had no word for it. (AV1 and the other newcomers have one word only.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Hevc {
    /// Enhanced RTMP: FourCC `hvc1`.
    #[default]
    Enhanced,
    /// Codec id 12: the older custom, of players that know no other.
    Legacy,
}

impl Hevc {
    /// As the `hevc` parameter of a URL says it.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "enhanced" => Some(Self::Enhanced),
            "legacy" => Some(Self::Legacy),
            _ => None,
        }
    }
}

/// How a viewer wants the stream packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Container {
    /// FLV file bytes as they are: HTTP/1.0 bodies, files.
    Flv,
    /// FLV where each piece is one chunk of HTTP/1.1 chunked coding.
    FlvChunked,
    /// FLV where each piece is one binary message of a WebSocket.
    FlvWebSocket,
    /// RTMP chunk stream: message stream 1, chunk size [`RTMP_CHUNK_SIZE`].
    Rtmp,
    /// RTP between RTSP's messages: video on channels 0 and 1, audio on 2 and 3; or one track alone on 0 and 1.
    Rtsp,
    RtspVideo,
    RtspAudio,
    /// The first four with H.265 said as [`Hevc::Legacy`]. Without H.265 their bytes are equal.
    FlvLegacy,
    FlvChunkedLegacy,
    FlvWebSocketLegacy,
    RtmpLegacy,
}

impl Container {
    pub fn hevc(self) -> Hevc {
        match self {
            Self::Flv | Self::FlvChunked | Self::FlvWebSocket | Self::Rtmp => Hevc::Enhanced,
            // RTP has one word for it.
            Self::Rtsp | Self::RtspVideo | Self::RtspAudio => Hevc::Enhanced,
            Self::FlvLegacy | Self::FlvChunkedLegacy | Self::FlvWebSocketLegacy | Self::RtmpLegacy => Hevc::Legacy,
        }
    }

    /// The same packing with H.265 said like this.
    #[must_use]
    pub fn with_hevc(self, hevc: Hevc) -> Self {
        let (enhanced, legacy) = match self {
            Self::Flv | Self::FlvLegacy => (Self::Flv, Self::FlvLegacy),
            Self::FlvChunked | Self::FlvChunkedLegacy => (Self::FlvChunked, Self::FlvChunkedLegacy),
            Self::FlvWebSocket | Self::FlvWebSocketLegacy => (Self::FlvWebSocket, Self::FlvWebSocketLegacy),
            Self::Rtmp | Self::RtmpLegacy => (Self::Rtmp, Self::RtmpLegacy),
            Self::Rtsp | Self::RtspVideo | Self::RtspAudio => (self, self),
        };
        match hevc {
            Hevc::Enhanced => enhanced,
            Hevc::Legacy => legacy,
        }
    }
}

/// The chunk size we announce and use towards RTMP viewers and upstreams, in bytes: large, so that a frame is one chunk
/// and the muxed bytes can be shared by all viewers.
pub const RTMP_CHUNK_SIZE: usize = 65_536;
