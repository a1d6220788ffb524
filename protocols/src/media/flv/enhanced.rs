//! Enhanced RTMP (Veovera, v1 and v2): the heads that name a codec by FourCC, with their extensions and several tracks.
//!
//! Must not be in here: what the bodies mean (`mod.rs`).

use std::ops::Range;

use super::super::Codec;
use super::super::read::{ByteReader, MediaError};

/// Packet types that audio and video share.
pub(super) const SEQUENCE_START: u8 = 0;
pub(super) const CODED_FRAMES: u8 = 1;
/// Video: coded frames without a composition time.
pub(super) const CODED_FRAMES_X: u8 = 3;
const METADATA: u8 = 4;
const MOD_EX: u8 = 7;

/// The sound format that says that a FourCC follows.
pub(super) const EX_AUDIO: u8 = 9;

/// A frame type of video: no frame, but a command to the player.
const COMMAND: u8 = 5;

/// Several tracks in one body, each with a codec of its own.
const MANY_CODECS: u8 = 2;

/// The FourCC of a codec in Enhanced RTMP.
pub(crate) fn four_cc(codec: Codec) -> Option<[u8; 4]> {
    FOUR_CCS.iter().find(|(known, _)| *known == codec).map(|(_, four_cc)| **four_cc)
}

pub(super) fn codec(four_cc: [u8; 4]) -> Option<Codec> {
    FOUR_CCS.iter().find(|(_, known)| **known == four_cc).map(|(codec, _)| *codec)
}

/// Every codec that can be said by FourCC.
pub(crate) static FOUR_CCS: &[(Codec, &[u8; 4])] = &[
    (Codec::H264, b"avc1"),
    (Codec::H265, b"hvc1"),
    (Codec::Av1, b"av01"),
    (Codec::Vp9, b"vp09"),
    (Codec::Aac, b"mp4a"),
    (Codec::Opus, b"Opus"),
    (Codec::Mp3, b".mp3"),
    (Codec::Flac, b"fLaC"),
    (Codec::Ac3, b"ac-3"),
];

/// One track's part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// 0 where the body has one track that is not numbered.
    pub(super) track: u8,
    pub(super) packet: u8,
    pub(super) four_cc: [u8; 4],
    /// Where in the body its data is.
    pub(super) data: Range<usize>,
}

/// The pieces of a body, read one after another.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    reader: ByteReader<'a>,
    packet: u8,
    four_cc: Option<[u8; 4]>,
    layout: Layout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The rest is one track's.
    Plain,
    /// One numbered track.
    One,
    /// Several, each with its length.
    Many,
    Done,
}

impl<'a> Pieces<'a> {
    /// A video body whose first bit is set (v2, ExVideoTagHeader).
    pub(super) fn video(part: &'static str, body: &'a [u8]) -> Result<Self, MediaError> {
        let mut reader = ByteReader::new(part, body);
        let first = reader.u8()?;
        let packet = past_extensions(&mut reader, first & 0x0f)?;
        if first >> 4 & 7 == COMMAND && packet != METADATA {
            return Ok(Self { reader, packet, four_cc: None, layout: Layout::Done });
        }
        const MULTITRACK: u8 = 6;
        Self::begin(reader, packet, MULTITRACK)
    }

    /// An audio body of sound format 9 (v2, ExAudioTagHeader).
    pub(super) fn audio(part: &'static str, body: &'a [u8]) -> Result<Self, MediaError> {
        const MULTITRACK: u8 = 5;
        let mut reader = ByteReader::new(part, body);
        let first = reader.u8()?;
        let packet = past_extensions(&mut reader, first & 0x0f)?;
        Self::begin(reader, packet, MULTITRACK)
    }

    fn begin(mut reader: ByteReader<'a>, packet: u8, multitrack: u8) -> Result<Self, MediaError> {
        if packet != multitrack {
            let four_cc = Some(reader.array()?);
            return Ok(Self { reader, packet, four_cc, layout: Layout::Plain });
        }
        let kinds = reader.u8()?;
        let (kind, packet) = (kinds >> 4, kinds & 0x0f);
        if kind > MANY_CODECS || packet == multitrack {
            return Err(reader.malformed("multitrack of an unknown kind"));
        }
        let four_cc = if kind == MANY_CODECS { None } else { Some(reader.array()?) };
        let layout = if kind == 0 { Layout::One } else { Layout::Many };
        Ok(Self { reader, packet, four_cc, layout })
    }

    pub(super) fn next(&mut self) -> Result<Option<Piece>, MediaError> {
        let layout = std::mem::replace(&mut self.layout, Layout::Done);
        if layout == Layout::Done {
            return Ok(None);
        }
        let (reader, packet) = (&mut self.reader, self.packet);
        let four_cc = match self.four_cc {
            Some(four_cc) => four_cc,
            None => reader.array()?,
        };
        let track = if layout == Layout::Plain { 0 } else { reader.u8()? };
        let len = if layout == Layout::Many { reader.u24()? as usize } else { reader.rest().len() };
        let at = reader.position();
        reader.take(len)?;
        if layout == Layout::Many && !reader.is_empty() {
            self.layout = Layout::Many;
        }
        Ok(Some(Piece { track, packet, four_cc, data: at..at + len }))
    }
}

/// Passes over ModEx packets, which say more about the packet that follows: nanoseconds, so far. Returns that one's type.
fn past_extensions(reader: &mut ByteReader<'_>, mut packet: u8) -> Result<u8, MediaError> {
    while packet == MOD_EX {
        let len = match usize::from(reader.u8()?) + 1 {
            256 => usize::from(reader.u16()?) + 1,
            short => short,
        };
        reader.take(len)?;
        packet = reader.u8()? & 0x0f;
    }
    Ok(packet)
}

/// Which of several tracks of a kind is carried: the lowest number that showed up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    track: Option<u8>,
}

impl Carried {
    pub(super) fn takes(&mut self, track: u8) -> bool {
        let lowest = self.track.map_or(track, |carried| carried.min(track));
        self.track = Some(lowest);
        lowest == track
    }
}
