//! FLV (Adobe, "Video File Format Specification" 10.1, annex E): tag bodies to units and back, and the file around them.
//! RTMP messages 8, 9 and 18 carry the same bodies. Video of Enhanced RTMP v1 (FourCC `hvc1`, `avc1`) is read as well.
//!
//! Must not be in here: HTTP, chunk streams.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::aac::AudioSpecificConfig;
use super::amf0;
use super::h264::{self, AvcC};
use super::metadata::{ON_META_DATA, SET_DATA_FRAME};
use super::read::{ByteReader, MediaError};
use super::{Codec, Hevc, Kind, Track, Unit};

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
}

impl Default for Demux {
    fn default() -> Self {
        Self { nal_length_size: h264::NAL_LENGTH_SIZE }
    }
}

impl Demux {
    /// `None` for what carries no media: an end of sequence, a seek marker, an empty body.
    pub fn unit(&mut self, tag: TagType, dts_ms: i64, body: Bytes) -> Result<Option<Unit>, MediaError> {
        if body.is_empty() {
            return Ok(None);
        }
        if body.len() > Unit::LEN_MAX {
            return Err(MediaError::Limit { part: "tag", what: "bytes", max: Unit::LEN_MAX });
        }
        match tag {
            TagType::Audio => audio(dts_ms, body),
            TagType::Video => self.video(dts_ms, body),
            TagType::Script => script(dts_ms, body).map(Some),
        }
    }

    /// E.4.3.1; Enhanced RTMP v1 where the first bit is set.
    fn video(&mut self, dts_ms: i64, body: Bytes) -> Result<Option<Unit>, MediaError> {
        const PART: &str = "video tag";
        let mut head = ByteReader::new(PART, &body);
        let first = head.u8()?;
        let frame_type = first >> 4 & 7;
        let (codec, packet) = if first & 0x80 == 0 {
            let codec = match first & 0x0f {
                7 => Codec::H264,
                12 => Codec::H265,
                other => return Err(MediaError::Unsupported { part: PART, what: "codec", value: other.into() }),
            };
            // 5 is a command for the player, not a frame.
            (codec, if frame_type == 5 { return Ok(None) } else { head.u8()? })
        } else {
            let codec = match head.u32()?.to_be_bytes() {
                four if &four == b"hvc1" => Codec::H265,
                four if &four == b"avc1" => Codec::H264,
                four => {
                    let value = u32::from_be_bytes(four);
                    return Err(MediaError::Unsupported { part: PART, what: "codec FourCC", value });
                }
            };
            (codec, first & 0x0f)
        };
        let composition_ms = match (packet, first & 0x80) {
            (0 | 1, 0) | (1, _) => head.i24()?,
            (0 | 3, _) => 0,
            _ => return Ok(None),
        };
        let at = head.position();
        let data = body.slice(at..);
        let kind = match (packet, frame_type) {
            (0, _) => Kind::Config,
            (_, 1 | 4) => Kind::Key,
            _ => Kind::Delta,
        };
        let data = if kind == Kind::Config { self.video_config(codec, data)? } else { self.frame(data)? };
        if data.is_empty() {
            return Ok(None);
        }
        let (dts_90k, composition) = (dts_ms.saturating_mul(90), i64::from(composition_ms) * 90);
        let pts_90k = if kind == Kind::Config { dts_90k } else { dts_90k.saturating_add(composition) };
        Ok(Some(Unit { track: Track::Video, codec, dts_90k, pts_90k, kind, data }))
    }

    /// Checks the record and notes its length size; every unit leaves with lengths of 4 bytes.
    fn video_config(&mut self, codec: Codec, data: Bytes) -> Result<Bytes, MediaError> {
        if codec == Codec::H265 {
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
        let mut record = AvcC::parse(&data)?;
        if record.sps.is_empty() {
            return Err(MediaError::Malformed { part: "avcC", what: "no sequence parameter set", at: 5 });
        }
        self.nal_length_size = record.nal_length_size;
        if record.nal_length_size == h264::NAL_LENGTH_SIZE {
            // A copy: a configuration is kept for long and must not hold on to the buffer it came in.
            return Ok(Bytes::copy_from_slice(&data));
        }
        record.nal_length_size = h264::NAL_LENGTH_SIZE;
        Ok(record.build())
    }

    fn frame(&self, data: Bytes) -> Result<Bytes, MediaError> {
        if self.nal_length_size == h264::NAL_LENGTH_SIZE {
            return Ok(data);
        }
        let malformed = MediaError::Malformed { part: "video tag", what: "NAL lengths do not add up", at: 5 };
        let wide = h264::widen_lengths(&data, self.nal_length_size).ok_or(malformed)?;
        if wide.len() > Unit::LEN_MAX {
            return Err(MediaError::Limit { part: "video tag", what: "bytes", max: Unit::LEN_MAX });
        }
        Ok(wide)
    }
}

/// E.4.2.1
fn audio(dts_ms: i64, body: Bytes) -> Result<Option<Unit>, MediaError> {
    const PART: &str = "audio tag";
    let mut head = ByteReader::new(PART, &body);
    let codec = match head.u8()? >> 4 {
        2 | 14 => Codec::Mp3,
        7 => Codec::G711A,
        8 => Codec::G711U,
        10 => Codec::Aac,
        other => return Err(MediaError::Unsupported { part: PART, what: "codec", value: other.into() }),
    };
    let kind = match codec {
        Codec::Aac => match head.u8()? {
            0 => Kind::Config,
            1 => Kind::Key,
            _ => return Ok(None),
        },
        _ => Kind::Key,
    };
    let mut data = body.slice(head.position()..);
    if kind == Kind::Config {
        AudioSpecificConfig::parse(&data)?;
        data = Bytes::copy_from_slice(&data);
    }
    let time_90k = dts_ms.saturating_mul(90);
    let unit = Unit { track: Track::Audio, codec, dts_90k: time_90k, pts_90k: time_90k, kind, data };
    Ok(Some(unit).filter(|unit| !unit.data.is_empty()))
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
            Codec::H265 if config => Self::new(&[0x80 | frame, b'h', b'v', b'c', b'1']),
            Codec::H265 => Self::new(&[0x81 | frame, b'h', b'v', b'c', b'1', c0, c1, c2]),
            // AAC always says 44.1 kHz, 16 bit, stereo here; the configuration tells the truth.
            Codec::Aac => Self::new(&[0xaf, u8::from(!config)]),
            Codec::Mp3 => Self::new(&[mp3_head(&unit.data)]),
            Codec::G711A => Self::new(&[0x72]),
            Codec::G711U => Self::new(&[0x82]),
            Codec::Script => Self::new(&[]),
        }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// ffmpeg 5.1: 64x48 H.264 with B-frames, AAC mono.
    const CLIP: &[u8] = include_bytes!("testdata/ffmpeg_h264_aac.flv");

    fn tags(file: &[u8]) -> Vec<Tag> {
        let mut file = BytesMut::from(file);
        let tags = std::iter::from_fn(|| take_tag(&mut file).unwrap()).collect();
        assert!(file.is_empty());
        tags
    }

    fn units(tags: &[Tag]) -> Vec<Unit> {
        let mut demux = Demux::default();
        tags.iter().filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body.clone()).unwrap()).collect()
    }

    #[test]
    fn a_real_file_comes_out_byte_for_byte() {
        let mut demux = Demux::default();
        let (mut expected, mut out) = (BytesMut::new(), BytesMut::new());
        for tag in tags(CLIP) {
            // ffmpeg ends its video with an end-of-sequence packet, which carries no media.
            let Some(unit) = demux.unit(tag.tag, tag.dts_ms, tag.body.clone()).unwrap() else {
                assert_eq!(tag.body[..2], [0x17, 2]);
                continue;
            };
            out.clear();
            write_tag(&unit, Hevc::Enhanced, &mut out);
            assert_eq!(out.len(), tag_len(&unit, Hevc::Enhanced));
            assert_eq!(tags(&out), [tag]);
            expected.extend_from_slice(&out);
        }
        assert!(CLIP.windows(expected.len()).any(|window| window == &expected[..]), "the file holds these very bytes");
    }

    #[test]
    fn a_real_file_has_the_units_it_should() {
        let units = units(&tags(CLIP));
        let count = |track, kind| units.iter().filter(|u| u.track == track && u.kind == kind).count();
        assert_eq!((count(Track::Data, Kind::Config), count(Track::Video, Kind::Config)), (1, 1));
        assert_eq!(count(Track::Audio, Kind::Config), 1);
        assert_eq!(count(Track::Video, Kind::Key) + count(Track::Video, Kind::Delta), 13);
        let keys = units.iter().filter(|u| u.track == Track::Video && u.kind == Kind::Key);
        assert!(keys.into_iter().all(|u| h264::is_key(&u.data)));
        assert!(units.iter().any(|u| u.composition_ms() > 0), "the clip has B-frames");
        let config = units.iter().find(|u| u.track == Track::Video && u.kind == Kind::Config).unwrap();
        let picture = AvcC::parse(&config.data).unwrap().picture().unwrap();
        assert_eq!((picture.width, picture.height, picture.fps), (64, 48, Some(25.0)));
    }

    fn video(body: &[u8]) -> Result<Option<Unit>, MediaError> {
        Demux::default().unit(TagType::Video, 1_000, Bytes::copy_from_slice(body))
    }

    #[test]
    fn composition_times_may_be_negative() {
        let unit = video(&[0x27, 1, 0xff, 0xff, 0xd8, 0, 0, 0, 1, 0x41]).unwrap().unwrap();
        assert_eq!((unit.dts_90k, unit.pts_90k, unit.composition_ms()), (90_000, 86_400, -40));
        assert_eq!(BodyHead::of(&unit, Hevc::Enhanced).as_slice(), [0x27, 1, 0xff, 0xff, 0xd8]);
    }

    #[test]
    fn hevc_in_both_dialects() {
        let legacy = video(&[0x1c, 1, 0, 0, 40, 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
        let enhanced = video(&[0x91, b'h', b'v', b'c', b'1', 0, 0, 40, 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
        assert_eq!(legacy, enhanced);
        let no_composition = video(&[0x93, b'h', b'v', b'c', b'1', 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
        assert_eq!((no_composition.composition_ms(), &no_composition.data), (0, &enhanced.data));
        assert_eq!((enhanced.codec, enhanced.kind), (Codec::H265, Kind::Key));
    }

    #[test]
    fn what_carries_no_media_is_passed_over_and_what_we_cannot_do_is_said() {
        assert_eq!(video(&[0x17, 2, 0, 0, 0]), Ok(None));
        assert_eq!(video(&[0x57, 0]), Ok(None));
        assert_eq!(video(&[]), Ok(None));
        let sorenson = MediaError::Unsupported { part: "video tag", what: "codec", value: 2 };
        assert_eq!(video(&[0x22, 0, 0]), Err(sorenson));
        assert!(matches!(video(&[0x17, 0, 0, 0, 0, 1, 2]), Err(MediaError::Truncated { part: "avcC", .. })));
    }

    #[test]
    fn nal_lengths_of_two_bytes_leave_as_four() {
        let mut demux = Demux::default();
        let record = AvcC {
            nal_length_size: 2,
            ..AvcC::of(Bytes::from_static(&[0x67, 100, 0, 13, 1]), vec![Bytes::from_static(&[0x68])]).unwrap()
        };
        let mut config = BytesMut::from(&[0x17, 0, 0, 0, 0][..]);
        config.extend_from_slice(&record.build());
        let unit = demux.unit(TagType::Video, 0, config.freeze()).unwrap().unwrap();
        assert_eq!(AvcC::parse(&unit.data).unwrap().nal_length_size, 4);
        let frame = Bytes::from_static(&[0x17, 1, 0, 0, 0, 0, 2, 0x65, 9]);
        assert_eq!(demux.unit(TagType::Video, 0, frame).unwrap().unwrap().data[..], [0, 0, 0, 2, 0x65, 9]);
        let broken = Bytes::from_static(&[0x17, 1, 0, 0, 0, 0, 9, 0x65, 9]);
        assert!(demux.unit(TagType::Video, 0, broken).is_err());
    }

    proptest! {
        #[test]
        fn timestamps_keep_their_milliseconds(ms in 0i64..1 << 40, cts in -(1i32 << 23)..1 << 23) {
            let mut body = vec![0x27, 1];
            body.extend_from_slice(&cts.to_be_bytes()[1..]);
            body.push(0);
            let unit = Demux::default().unit(TagType::Video, ms, body.clone().into()).unwrap().unwrap();
            prop_assert_eq!(unit.dts_ms(), ms);
            let mut out = BytesMut::new();
            write_tag(&unit, Hevc::Enhanced, &mut out);
            let tag = take_tag(&mut out).unwrap().unwrap();
            prop_assert_eq!(tag.dts_ms, i64::from(ms as u32));
            prop_assert_eq!(&tag.body[..], &body[..]);
        }

        #[test]
        fn noise_is_never_a_panic(tag in prop::sample::select(vec![8u8, 9, 18]), noise: Vec<u8>) {
            let _unit = Demux::default().unit(TagType::of(tag).unwrap(), 0, noise.clone().into());
            let _tag = take_tag(&mut BytesMut::from(&noise[..]));
        }
    }
}
