//! FLV (Adobe, "Video File Format Specification" 10.1, annex E): tag bodies to units and back, and the file around them.
//! RTMP messages 8, 9 and 18 carry the same bodies. `enhanced.rs` reads the heads of Enhanced RTMP, which names codecs by
//! FourCC.
//!
//! Must not be in here: HTTP, chunk streams.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use enhanced::{CODED_FRAMES, CODED_FRAMES_X, Carried, EX_AUDIO, Pieces, SEQUENCE_START};

use super::aac::AudioSpecificConfig;
use super::av1::{self, Av1C};
use super::h264::{self, AvcC};
use super::metadata::{ON_META_DATA, SET_DATA_FRAME};
use super::opus::OpusHead;
use super::read::{ByteReader, MediaError};
use super::{Codec, Hevc, Kind, Track, Unit, amf0};

mod enhanced;

pub(crate) use enhanced::{FOUR_CCS, four_cc};

/// What a tag (or an RTMP message) carries; the numbers are the types on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagType {
    Audio = 8,
    Video = 9,
    Script = 18,
}

impl TagType {
    pub fn of(number: u8) -> Option<Self> {
        match number {
            8 => Some(Self::Audio),
            9 => Some(Self::Video),
            18 => Some(Self::Script),
            _ => None,
        }
    }
}

impl From<Track> for TagType {
    fn from(track: Track) -> Self {
        match track {
            Track::Audio => Self::Audio,
            Track::Video => Self::Video,
            Track::Data => Self::Script,
        }
    }
}

/// `FLV`, version 1, flags, header length, and the size of the tag before the first.
pub fn file_header(has_video: bool, has_audio: bool) -> [u8; FILE_HEADER_LEN] {
    let flags = u8::from(has_video) | u8::from(has_audio) << 2;
    [b'F', b'L', b'V', 1, flags, 0, 0, 0, 9, 0, 0, 0, 0]
}

pub const FILE_HEADER_LEN: usize = 13;

/// Bytes of a tag's head (type, length, timestamp, stream id).
pub const TAG_HEADER_LEN: usize = 11;

/// Tag bodies of one source to units. Remembers how its H.264 and H.265 lengths are packed.
#[derive(Debug, Clone)]
pub struct Demux {
    nal_length_size: usize,
    video: Carried,
    audio: Carried,
    left_out: u64,
}

impl Default for Demux {
    fn default() -> Self {
        let (video, audio) = (Carried::default(), Carried::default());
        Self { nal_length_size: h264::NAL_LENGTH_SIZE, video, audio, left_out: 0 }
    }
}

/// What the head of an audio or video body says, and its data.
struct Body {
    codec: Codec,
    kind: Kind,
    composition_ms: i32,
    data: Bytes,
}

impl Demux {
    /// `None` for what carries no media: an end of sequence, a seek marker, an empty body, a track beside the one of its
    /// kind that is carried (of several the lowest number).
    pub fn unit(&mut self, tag: TagType, dts_ms: i64, body: Bytes) -> Result<Option<Unit>, MediaError> {
        if body.is_empty() {
            return Ok(None);
        }
        if body.len() > Unit::LEN_MAX {
            return Err(MediaError::Limit { part: "tag", what: "bytes", max: Unit::LEN_MAX });
        }
        let (track, body) = match tag {
            TagType::Audio => (Track::Audio, self.audio(body)?),
            TagType::Video => (Track::Video, self.video(body)?),
            TagType::Script => return script(dts_ms, body).map(Some),
        };
        let Some(Body { codec, kind, composition_ms, data }) = body else { return Ok(None) };
        let data = if kind == Kind::Config { self.config(codec, data)? } else { self.frame(codec, data)? };
        if data.is_empty() {
            return Ok(None);
        }
        let (dts_90k, composition) = (dts_ms.saturating_mul(90), i64::from(composition_ms) * 90);
        let pts_90k = if kind == Kind::Config { dts_90k } else { dts_90k.saturating_add(composition) };
        Ok(Some(Unit { track, codec, dts_90k, pts_90k, kind, data }))
    }

    /// Pieces of further tracks that were left out so far: one video and one audio track are carried.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// E.4.3.1; Enhanced RTMP where the first bit is set.
    fn video(&mut self, body: Bytes) -> Result<Option<Body>, MediaError> {
        const PART: &str = "video tag";
        let mut head = ByteReader::new(PART, &body);
        let first = head.u8()?;
        let frame_type = first >> 4 & 7;
        let (codec, packet, at) = if first & 0x80 == 0 {
            let codec = match first & 0x0f {
                7 => Codec::H264,
                12 => Codec::H265,
                other => return Err(MediaError::Unsupported { part: PART, what: "codec", value: other.into() }),
            };
            // 5 is a command for the player, not a frame.
            if frame_type == 5 || !self.takes(Track::Video, 0) {
                return Ok(None);
            }
            match head.u8()? {
                SEQUENCE_START => {
                    head.take(3)?;
                    (codec, SEQUENCE_START, head.position()..body.len())
                }
                CODED_FRAMES => (codec, CODED_FRAMES, head.position()..body.len()),
                _ => return Ok(None),
            }
        } else {
            match self.piece(Track::Video, Pieces::video(PART, &body)?)? {
                Some((codec, packet, at)) => (codec, packet, at),
                None => return Ok(None),
            }
        };
        let mut data = part(body, at);
        let composed = packet == CODED_FRAMES && matches!(codec, Codec::H264 | Codec::H265);
        let composition_ms = if composed { ByteReader::new(PART, &data).i24()? } else { 0 };
        data.advance(if composed { 3 } else { 0 });
        let kind = match (packet, frame_type) {
            (SEQUENCE_START, _) => Kind::Config,
            (CODED_FRAMES | CODED_FRAMES_X, 1 | 4) => Kind::Key,
            (CODED_FRAMES | CODED_FRAMES_X, _) => Kind::Delta,
            _ => return Ok(None),
        };
        Ok(Some(Body { codec, kind, composition_ms, data }))
    }

    /// E.4.2.1; Enhanced RTMP where the sound format says so.
    fn audio(&mut self, body: Bytes) -> Result<Option<Body>, MediaError> {
        const PART: &str = "audio tag";
        let mut head = ByteReader::new(PART, &body);
        let (codec, packet, at) = match head.u8()? >> 4 {
            EX_AUDIO => match self.piece(Track::Audio, Pieces::audio(PART, &body)?)? {
                Some(piece) => piece,
                None => return Ok(None),
            },
            _ if !self.takes(Track::Audio, 0) => return Ok(None),
            2 | 14 => (Codec::Mp3, CODED_FRAMES, 1..body.len()),
            7 => (Codec::G711A, CODED_FRAMES, 1..body.len()),
            8 => (Codec::G711U, CODED_FRAMES, 1..body.len()),
            10 => (Codec::Aac, head.u8()?, 2..body.len()),
            other => return Err(MediaError::Unsupported { part: PART, what: "codec", value: other.into() }),
        };
        let kind = match packet {
            SEQUENCE_START => Kind::Config,
            CODED_FRAMES => Kind::Key,
            _ => return Ok(None),
        };
        Ok(Some(Body { codec, kind, composition_ms: 0, data: part(body, at) }))
    }

    /// The piece of the track that is carried: codec, packet type, place in the body.
    fn piece(
        &mut self,
        kind: Track,
        mut pieces: Pieces<'_>,
    ) -> Result<Option<(Codec, u8, std::ops::Range<usize>)>, MediaError> {
        let mut carried = None;
        while let Some(piece) = pieces.next()? {
            if self.takes(kind, piece.track) {
                carried = Some(piece);
            }
        }
        let Some(piece) = carried else { return Ok(None) };
        let part = if kind == Track::Video { "video tag" } else { "audio tag" };
        let codec = enhanced::codec(piece.four_cc).filter(|codec| codec.track() == kind);
        let value = u32::from_be_bytes(piece.four_cc);
        let codec = codec.ok_or(MediaError::Unsupported { part, what: "codec FourCC", value })?;
        Ok(Some((codec, piece.packet, piece.data)))
    }

    /// Whether the track with this number is the one of its kind that is carried; counts those that are not.
    fn takes(&mut self, kind: Track, number: u8) -> bool {
        let carried = if kind == Track::Video { &mut self.video } else { &mut self.audio };
        let takes = carried.takes(number);
        self.left_out += u64::from(!takes);
        takes
    }

    /// Checks the record and notes its length size; every unit leaves with lengths of 4 bytes. What comes out is a copy:
    /// a configuration is kept for long and must not hold on to the buffer it came in.
    fn config(&mut self, codec: Codec, data: Bytes) -> Result<Bytes, MediaError> {
        match codec {
            Codec::H264 => return self.avcc(&data),
            Codec::H265 => {
                // hvcC (14496-15, 8.3.3.1): the length size is in the low bits of byte 21.
                let mut record = ByteReader::new("hvcC", &data);
                record.take(21)?;
                self.nal_length_size = usize::from(record.u8()? & 3) + 1;
                let mut record = BytesMut::from(&data[..]);
                if let Some(byte) = record.get_mut(21) {
                    *byte |= 3;
                }
                return Ok(record.freeze());
            }
            Codec::Av1 => drop(Av1C::parse(&data)?),
            Codec::Aac => drop(AudioSpecificConfig::parse(&data)?),
            // An empty one is allowed: mono or stereo, then.
            Codec::Opus if !data.is_empty() => drop(OpusHead::parse(&data)?),
            _ => {}
        }
        Ok(Bytes::copy_from_slice(&data))
    }

    fn avcc(&mut self, data: &Bytes) -> Result<Bytes, MediaError> {
        let mut record = AvcC::parse(data)?;
        if record.sps.is_empty() {
            return Err(MediaError::Malformed { part: "avcC", what: "no sequence parameter set", at: 5 });
        }
        self.nal_length_size = record.nal_length_size;
        if record.nal_length_size == h264::NAL_LENGTH_SIZE {
            return Ok(Bytes::copy_from_slice(data));
        }
        record.nal_length_size = h264::NAL_LENGTH_SIZE;
        Ok(record.build())
    }

    fn frame(&self, codec: Codec, data: Bytes) -> Result<Bytes, MediaError> {
        match codec {
            Codec::Av1 => return Ok(av1::without_delimiters(&data)),
            Codec::H264 | Codec::H265 if self.nal_length_size != h264::NAL_LENGTH_SIZE => {}
            _ => return Ok(data),
        }
        let malformed = MediaError::Malformed { part: "video tag", what: "NAL lengths do not add up", at: 5 };
        let wide = h264::widen_lengths(&data, self.nal_length_size).ok_or(malformed)?;
        if wide.len() > Unit::LEN_MAX {
            return Err(MediaError::Limit { part: "video tag", what: "bytes", max: Unit::LEN_MAX });
        }
        Ok(wide)
    }
}

/// A part of a body, which is only shared where something follows: to share costs an allocation.
fn part(mut body: Bytes, at: std::ops::Range<usize>) -> Bytes {
    body.truncate(at.end);
    body.advance(at.start.min(body.len()));
    body
}

/// E.4.4; the publisher's `@setDataFrame` is taken off.
fn script(dts_ms: i64, mut body: Bytes) -> Result<Unit, MediaError> {
    let mut reader = amf0::Reader::new(&body);
    let mut name = reader.value()?;
    if name.as_str() == Some(SET_DATA_FRAME) {
        let prefix = reader.position();
        name = reader.value()?;
        body.advance(prefix);
    }
    let metadata = name.as_str() == Some(ON_META_DATA);
    let kind = if metadata { Kind::Config } else { Kind::Delta };
    let data = if metadata { Bytes::copy_from_slice(&body) } else { body };
    let time_90k = dts_ms.saturating_mul(90);
    Ok(Unit { track: Track::Data, codec: Codec::Script, dts_90k: time_90k, pts_90k: time_90k, kind, data })
}

/// Bytes that stand before the unit's data in a tag body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyHead {
    bytes: [u8; 8],
    len: usize,
}

impl BodyHead {
    pub(crate) fn of(unit: &Unit, hevc: Hevc) -> Self {
        let config = unit.kind == Kind::Config;
        let [_, cts @ ..] = (if config { 0 } else { unit.composition_ms() as i32 }).to_be_bytes();
        let [c0, c1, c2] = cts;
        let frame: u8 = if unit.kind == Kind::Delta { 0x20 } else { 0x10 };
        match unit.codec {
            Codec::H264 => Self::new(&[frame | 7, u8::from(!config), c0, c1, c2]),
            Codec::H265 if hevc == Hevc::Legacy => Self::new(&[frame | 0x0c, u8::from(!config), c0, c1, c2]),
            Codec::H265 if !config => Self::new(&[0x81 | frame, b'h', b'v', b'c', b'1', c0, c1, c2]),
            Codec::H265 | Codec::Av1 | Codec::Vp9 => Self::enhanced(0x80 | frame | u8::from(!config), unit.codec),
            Codec::Opus | Codec::Flac | Codec::Ac3 => Self::enhanced(EX_AUDIO << 4 | u8::from(!config), unit.codec),
            // AAC always says 44.1 kHz, 16 bit, stereo here; the configuration tells the truth.
            Codec::Aac => Self::new(&[0xaf, u8::from(!config)]),
            Codec::Mp3 => Self::new(&[mp3_head(&unit.data)]),
            Codec::G711A => Self::new(&[0x72]),
            Codec::G711U => Self::new(&[0x82]),
            Codec::Script => Self::new(&[]),
        }
    }

    fn enhanced(first: u8, codec: Codec) -> Self {
        let [a, b, c, d] = four_cc(codec).unwrap_or_default();
        Self::new(&[first, a, b, c, d])
    }

    fn new(head: &[u8]) -> Self {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        Self { bytes, len: head.len() }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Rate and channels for the tag, off the MPEG audio frame's own header.
fn mp3_head(frame: &[u8]) -> u8 {
    let &[0xff, version, rate, mode, ..] = frame else { return 0x2f };
    // MPEG-1 44.1 kHz is 3, MPEG-2 22.05 kHz 2, MPEG-2.5 11.025 kHz 1; FLV has no more.
    let rate_code = match (version >> 3 & 3, rate >> 2 & 3) {
        (2, 0) => 2,
        (0, 0) => 1,
        (2 | 0, 2) => return 0xe0 | 2 | u8::from(mode >> 6 != 3),
        _ => 3,
    };
    0x20 | rate_code << 2 | 2 | u8::from(mode >> 6 != 3)
}

/// Appends a whole tag with the size that follows it. Timestamps wrap at 32 bits, as the format does.
pub(crate) fn write_tag(unit: &Unit, hevc: Hevc, out: &mut BytesMut) {
    let head = BodyHead::of(unit, hevc);
    let len = head.as_slice().len() + unit.data.len();
    let [time_high, time_low @ ..] = (unit.dts_ms() as u32).to_be_bytes();
    let [_, len_low @ ..] = (len as u32).to_be_bytes();
    out.reserve(tag_len(unit, hevc));
    out.put_u8(TagType::from(unit.track) as u8);
    out.put_slice(&len_low);
    out.put_slice(&time_low);
    out.put_slice(&[time_high, 0, 0, 0]);
    out.put_slice(head.as_slice());
    out.put_slice(&unit.data);
    out.put_u32((len + TAG_HEADER_LEN) as u32);
}

/// Bytes [`write_tag`] appends.
pub(crate) fn tag_len(unit: &Unit, hevc: Hevc) -> usize {
    TAG_HEADER_LEN + BodyHead::of(unit, hevc).as_slice().len() + unit.data.len() + 4
}

/// One tag of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub tag: TagType,
    pub dts_ms: i64,
    pub body: Bytes,
}

/// Takes the next tag off the front of FLV file bytes, the file header too; `None` when it is not all there. Tags of
/// unknown types are passed over.
pub fn take_tag(file: &mut BytesMut) -> Result<Option<Tag>, MediaError> {
    if file.starts_with(b"FLV") {
        let mut head = ByteReader::new("FLV header", file);
        let Ok(_) = head.take(5) else { return Ok(None) };
        let Ok(header_len) = head.u32() else { return Ok(None) };
        let header_len = header_len as usize;
        if !(9..=64).contains(&header_len) {
            return Err(head.malformed("header length"));
        }
        if file.len() < header_len + 4 {
            return Ok(None);
        }
        file.advance(header_len + 4);
    }
    loop {
        let mut head = ByteReader::new("FLV tag", file);
        let (Ok(first), Ok(len), Ok(low), Ok(high)) = (head.u8(), head.u24(), head.u24(), head.u8()) else {
            return Ok(None);
        };
        let whole = TAG_HEADER_LEN + len as usize + 4;
        if file.len() < whole {
            return Ok(None);
        }
        let mut taken = file.split_to(whole).freeze();
        let Some(tag) = TagType::of(first & 0x1f) else { continue };
        let dts_ms = i64::from(u32::from(high) << 24 | low);
        taken.advance(TAG_HEADER_LEN);
        taken.truncate(len as usize);
        return Ok(Some(Tag { tag, dts_ms, body: taken }));
    }
}

#[cfg(test)]
mod tests;
