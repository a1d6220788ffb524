//! Units to the bytes viewers get: once per container, shared by all.
//!
//! The bytes of a unit stand alone: they depend on no earlier unit, so that a viewer can begin at any of them and skip
//! any of them. For RTMP that means full chunk headers with absolute timestamps, always.
//!
//! Inside: what a later viewer must be told first, FLV and RTMP; `interleaved.rs` (RTSP). Must not be in here: who watches,
//! what is kept for them, and fragmented MP4 (`media/fmp4`), which has no unit that stands alone.

use bytes::{BufMut, Bytes, BytesMut};

use self::interleaved::Interleaved;
use super::flv::{self, BodyHead, TagType};
use super::{Codec, Container, Hevc, Kind, RTMP_CHUNK_SIZE, Track, Unit, metadata};

pub mod interleaved;

/// Packs one stream for one container.
pub trait Mux: Send {
    /// Told of what the source sent before the first unit that is packed.
    fn prime(&mut self, _tracks: &Tracks) {}

    /// What a viewer gets first: the container's head with the right audio and video flags, then metadata (in FLV at 0) and
    /// codec configurations timestamped like the unit at `dts_90k` that the viewer gets next.
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes;

    /// Appends the unit's bytes. A unit above [`Unit::LEN_MAX`] cannot be said in any container and appends nothing.
    fn unit(&mut self, unit: &Unit, out: &mut BytesMut);
}

/// The muxer of a container.
pub fn mux(container: Container) -> Box<dyn Mux> {
    let hevc = container.hevc();
    let framing = match container.with_hevc(Hevc::Enhanced) {
        Container::FlvChunked => Framing::Chunk,
        Container::FlvWebSocket => Framing::Message,
        Container::Rtmp => return Box::new(Rtmp { hevc }),
        Container::Rtsp | Container::RtspVideo | Container::RtspAudio => return Box::new(Interleaved::new(container)),
        _ => Framing::None,
    };
    Box::new(Flv { framing, hevc })
}

/// What a source sent that a later viewer needs before its first frame.
#[derive(Debug, Clone, Default)]
pub struct Tracks {
    /// The newest onMetaData.
    pub metadata: Option<Unit>,
    /// The newest codec configurations.
    pub video: Option<Unit>,
    pub audio: Option<Unit>,
    /// The codecs seen, also of tracks that need no configuration (G.711, MP3).
    pub video_codec: Option<Codec>,
    pub audio_codec: Option<Codec>,
}

/// What a unit did to the [`Tracks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: a frame, or a configuration equal to the one known. Such a configuration need not go to viewers:
    /// encoders repeat it with each key frame, and decoders reset on it.
    None,
    /// The first of its track.
    New,
    /// It replaces another.
    Replaced,
}

impl Tracks {
    /// Bytes a kept configuration may have; real ones have less than 1 KiB.
    pub const CONFIG_MAX: usize = 64 * 1024;

    /// Remembers what the unit says about its track. Configurations above [`CONFIG_MAX`](Self::CONFIG_MAX) are not kept.
    pub fn note(&mut self, unit: &Unit) -> Change {
        let codec = match unit.track {
            Track::Video => &mut self.video_codec,
            Track::Audio => &mut self.audio_codec,
            Track::Data => &mut None,
        };
        let first = codec.replace(unit.codec).is_none();
        let kept = match unit.track {
            Track::Video => &mut self.video,
            Track::Audio => &mut self.audio,
            Track::Data => &mut self.metadata,
        };
        if unit.kind != Kind::Config || unit.data.len() > Self::CONFIG_MAX {
            let frames_of_another = kept.as_ref().is_some_and(|config| config.codec != unit.codec);
            if frames_of_another {
                *kept = None;
            }
            return if first && unit.track != Track::Data { Change::New } else { Change::None };
        }
        match kept.replace(unit.clone()) {
            None => Change::New,
            Some(before) if before.codec == unit.codec && before.data == unit.data => Change::None,
            Some(_) => Change::Replaced,
        }
    }

    pub fn has_video(&self) -> bool {
        self.video_codec.is_some()
    }

    pub fn has_audio(&self) -> bool {
        self.audio_codec.is_some()
    }

    /// Metadata (made up from the configurations where the source sent none) at `metadata_90k`, and configurations at
    /// `dts_90k`.
    pub fn head(&self, metadata_90k: i64, dts_90k: i64) -> impl Iterator<Item = Unit> {
        let metadata = self.metadata.clone().unwrap_or_else(|| metadata::unit_of(self));
        let configs = [self.video.clone(), self.audio.clone()].into_iter().flatten();
        let at = move |mut unit: Unit, time: i64| {
            (unit.dts_90k, unit.pts_90k) = (time, time);
            unit
        };
        std::iter::once(at(metadata, metadata_90k)).chain(configs.map(move |unit| at(unit, dts_90k)))
    }
}

// === impl Flv ===

#[derive(Debug)]
struct Flv {
    framing: Framing,
    hevc: Hevc,
}

/// What stands around each piece.
#[derive(Debug, Clone, Copy)]
enum Framing {
    None,
    Chunk,
    Message,
}

impl Mux for Flv {
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes {
        let mut flv = BytesMut::new();
        flv.put_slice(&flv::file_header(tracks.has_video(), tracks.has_audio()));
        // ffmpeg takes script data of any other time for a text track of its own.
        for unit in tracks.head(0, dts_90k) {
            flv::write_tag(&metadata::for_viewers(&unit, self.hevc), self.hevc, &mut flv);
        }
        let mut out = BytesMut::with_capacity(flv.len() + 16);
        self.framing.open(flv.len(), &mut out);
        out.put_slice(&flv);
        self.framing.close(&mut out);
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        if unit.data.len() <= Unit::LEN_MAX {
            let unit = metadata::for_viewers(unit, self.hevc);
            self.framing.open(flv::tag_len(&unit, self.hevc), out);
            flv::write_tag(&unit, self.hevc, out);
            self.framing.close(out);
        }
    }
}

impl Framing {
    fn open(self, len: usize, out: &mut BytesMut) {
        match self {
            Self::None => {}
            Self::Chunk => put_chunk_size(len, out),
            Self::Message => put_message_head(len, out),
        }
    }

    fn close(self, out: &mut BytesMut) {
        if let Self::Chunk = self {
            out.put_slice(b"\r\n");
        }
    }
}

/// RFC 6455, 5.2: a whole binary message in one frame, not masked.
fn put_message_head(len: usize, out: &mut BytesMut) {
    out.put_u8(0x82);
    match len {
        0..=125 => out.put_u8(len as u8),
        126..=0xffff => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
}

/// RFC 9112, 7.1: hexadecimal, no leading zeros.
fn put_chunk_size(len: usize, out: &mut BytesMut) {
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (len >> (place * 4) & 0xf) as u8;
        out.put_u8(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
    out.put_slice(b"\r\n");
}

// === impl Rtmp ===

#[derive(Debug)]
struct Rtmp {
    hevc: Hevc,
}

impl Mux for Rtmp {
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes {
        let mut out = BytesMut::new();
        tracks.head(dts_90k, dts_90k).for_each(|unit| self.message(&unit, &mut out));
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        if unit.data.len() <= Unit::LEN_MAX {
            self.message(unit, out);
        }
    }
}

impl Rtmp {
    fn message(&self, unit: &Unit, out: &mut BytesMut) {
        let unit = metadata::for_viewers(unit, self.hevc);
        let tag = TagType::from(unit.track);
        // Chunk streams as the common servers number them; 2 and 3 are control and commands.
        let chunk_stream = match tag {
            TagType::Audio => 4,
            TagType::Script => 5,
            TagType::Video => 6,
        };
        let head = BodyHead::of(&unit, self.hevc);
        let header = MessageHeader {
            chunk_stream,
            timestamp: unit.dts_ms() as u32,
            type_id: tag as u8,
            stream_id: MESSAGE_STREAM,
        };
        write_message(&header, &[head.as_slice(), &unit.data], RTMP_CHUNK_SIZE, out);
    }
}

/// The message stream all media goes on: what `createStream` is answered with, and what relays ask of an upstream.
pub const MESSAGE_STREAM: u32 = 1;

/// What stands in a full (type 0) chunk header beside the length.
#[derive(Debug, Clone, Copy)]
pub struct MessageHeader {
    /// 2 to 63.
    pub chunk_stream: u8,
    pub timestamp: u32,
    pub type_id: u8,
    pub stream_id: u32,
}

/// Appends an RTMP message (1.0, 5.3.1): a type 0 chunk, the rest as type 3. An extended timestamp is repeated in each,
/// as the encoders of record do.
pub fn write_message(header: &MessageHeader, payload: &[&[u8]], chunk_size: usize, out: &mut BytesMut) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let extended = (header.timestamp >= 0xff_ffff).then_some(header.timestamp);
    let [_, time @ ..] = header.timestamp.min(0xff_ffff).to_be_bytes();
    let [_, len_low @ ..] = (len as u32).to_be_bytes();
    out.reserve(len + 18 + (len / chunk_size.max(1)) * 5);
    out.put_u8(header.chunk_stream & 0x3f);
    out.put_slice(&time);
    out.put_slice(&len_low);
    out.put_u8(header.type_id);
    out.put_u32_le(header.stream_id);
    if let Some(time) = extended {
        out.put_u32(time);
    }
    let mut room = chunk_size.max(1);
    for part in payload {
        let mut part = *part;
        while !part.is_empty() {
            if room == 0 {
                out.put_u8(0xc0 | header.chunk_stream & 0x3f);
                if let Some(time) = extended {
                    out.put_u32(time);
                }
                room = chunk_size.max(1);
            }
            let (now, later) = part.split_at(room.min(part.len()));
            out.put_slice(now);
            room -= now.len();
            part = later;
        }
    }
}

#[cfg(test)]
mod tests;
