//! Units to the bytes viewers get: once per container, shared by all.
//!
//! The bytes of a unit stand alone: they depend on no earlier unit, so that a viewer can begin at any of them and skip
//! any of them. For RTMP that means full chunk headers with absolute timestamps, always.

use bytes::{BufMut, Bytes, BytesMut};

use super::flv::{self, BodyHead, TagType};
use super::{Codec, Container, Kind, RTMP_CHUNK_SIZE, Track, Unit, metadata};

/// Packs one stream for one container.
pub trait Mux: Send {
    /// What a viewer gets first: the container's head with the right audio and video flags, then metadata (in FLV at 0) and
    /// codec configurations timestamped like the unit at `dts_90k` that the viewer gets next.
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes;

    /// Appends the unit's bytes. A unit above [`Unit::LEN_MAX`] cannot be said in any container and appends nothing.
    fn unit(&mut self, unit: &Unit, out: &mut BytesMut);
}

/// The muxer of a container.
pub fn mux(container: Container) -> Box<dyn Mux> {
    match container {
        Container::Flv => Box::new(Flv),
        Container::FlvChunked => Box::new(FlvChunked),
        Container::Rtmp => Box::new(Rtmp),
    }
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
    fn head(&self, metadata_90k: i64, dts_90k: i64) -> impl Iterator<Item = Unit> {
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
struct Flv;

impl Mux for Flv {
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&flv::file_header(tracks.has_video(), tracks.has_audio()));
        // ffmpeg takes script data of any other time for a text track of its own.
        tracks.head(0, dts_90k).for_each(|unit| flv::write_tag(&unit, unit.dts_ms(), &mut out));
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        if unit.data.len() <= Unit::LEN_MAX {
            flv::write_tag(unit, unit.dts_ms(), out);
        }
    }
}

// === impl FlvChunked ===

#[derive(Debug)]
struct FlvChunked;

impl Mux for FlvChunked {
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes {
        let flv = Flv.preamble(tracks, dts_90k);
        let mut out = BytesMut::with_capacity(flv.len() + 16);
        put_chunk_size(flv.len(), &mut out);
        out.put_slice(&flv);
        out.put_slice(b"\r\n");
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        if unit.data.len() <= Unit::LEN_MAX {
            put_chunk_size(flv::tag_len(unit), out);
            flv::write_tag(unit, unit.dts_ms(), out);
            out.put_slice(b"\r\n");
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
struct Rtmp;

impl Mux for Rtmp {
    fn preamble(&self, tracks: &Tracks, dts_90k: i64) -> Bytes {
        let mut out = BytesMut::new();
        tracks.head(dts_90k, dts_90k).for_each(|unit| Self::message(&unit, &mut out));
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        if unit.data.len() <= Unit::LEN_MAX {
            Self::message(unit, out);
        }
    }
}

impl Rtmp {
    fn message(unit: &Unit, out: &mut BytesMut) {
        let tag = TagType::from(unit.track);
        // Chunk streams as the common servers number them; 2 and 3 are control and commands.
        let chunk_stream = match tag {
            TagType::Audio => 4,
            TagType::Script => 5,
            TagType::Video => 6,
        };
        let head = BodyHead::of(unit);
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
mod tests {
    use super::*;
    use crate::media::flv::{Demux, take_tag};

    const CLIP: &[u8] = include_bytes!("testdata/ffmpeg_h264_aac.flv");

    fn units() -> Vec<Unit> {
        let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
        std::iter::from_fn(|| take_tag(&mut file).unwrap())
            .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
            .collect()
    }

    fn tracks(units: &[Unit]) -> Tracks {
        let mut tracks = Tracks::default();
        for unit in units {
            tracks.note(unit);
        }
        tracks
    }

    fn demux(mut file: BytesMut) -> Vec<Unit> {
        let mut demux = Demux::default();
        let units = std::iter::from_fn(|| take_tag(&mut file).unwrap())
            .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
            .collect();
        assert!(file.is_empty());
        units
    }

    /// Takes the chunks of HTTP's chunked coding apart.
    fn unchunk(mut bytes: &[u8]) -> BytesMut {
        let mut plain = BytesMut::new();
        while !bytes.is_empty() {
            let line = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
            let len = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
            plain.extend_from_slice(&bytes[line + 2..line + 2 + len]);
            assert_eq!(&bytes[line + 2 + len..line + 4 + len], b"\r\n");
            bytes = &bytes[line + 4 + len..];
        }
        plain
    }

    #[test]
    fn a_viewer_that_joins_late_gets_the_head_at_its_first_units_time() {
        let units = units();
        let tracks = tracks(&units);
        let from = units.iter().rposition(|u| u.track == Track::Video && u.kind == Kind::Key).unwrap();
        let start = units[from].dts_90k;
        for container in [Container::Flv, Container::FlvChunked] {
            let mut mux = mux(container);
            let mut out = BytesMut::from(&mux.preamble(&tracks, start)[..]);
            for unit in &units[from..] {
                mux.unit(unit, &mut out);
            }
            let out = if container == Container::FlvChunked { unchunk(&out) } else { out };
            assert_eq!(out[4], 5, "audio and video");
            let got = demux(out);
            assert_eq!(&got[3..], &units[from..]);
            assert!(got[..3].iter().all(|unit| unit.kind == Kind::Config));
            assert_eq!([got[0].dts_90k, got[1].dts_90k, got[2].dts_90k], [0, start, start]);
        }
    }

    #[test]
    fn flags_say_what_there_is() {
        let audio: Vec<Unit> = units().into_iter().filter(|u| u.track == Track::Audio).collect();
        assert_eq!(mux(Container::Flv).preamble(&tracks(&audio), 0)[4], 4);
        let g711 = Unit { codec: Codec::G711A, kind: Kind::Key, ..audio[0].clone() };
        assert_eq!(mux(Container::Flv).preamble(&tracks(&[g711]), 0)[4], 4, "G.711 has no configuration");
        let video: Vec<Unit> = units().into_iter().filter(|u| u.track == Track::Video).collect();
        assert_eq!(mux(Container::Flv).preamble(&tracks(&video), 0)[4], 1);
    }

    #[test]
    fn metadata_is_made_up_where_there_is_none() {
        let bare: Vec<Unit> = units().into_iter().filter(|u| u.track != Track::Data).collect();
        let preamble = mux(Container::Flv).preamble(&tracks(&bare), 0);
        let first = &demux(BytesMut::from(&preamble[..]))[0];
        let metadata = metadata::Metadata::parse(&first.data).unwrap().unwrap();
        assert_eq!((metadata.width, metadata.height, metadata.fps), (Some(64.0), Some(48.0), Some(25.0)));
        assert_eq!(metadata.audio_rate, Some(44_100.0));
    }

    #[test]
    fn a_repeated_configuration_is_no_change() {
        let units = units();
        let config = units.iter().find(|u| u.track == Track::Video && u.kind == Kind::Config).unwrap();
        let mut tracks = Tracks::default();
        assert_eq!(tracks.note(config), Change::New);
        assert_eq!(tracks.note(&Unit { dts_90k: 90_000, ..config.clone() }), Change::None);
        let other = Unit { data: Bytes::from_static(b"other"), ..config.clone() };
        assert_eq!(tracks.note(&other), Change::Replaced);
        let huge = Unit { data: vec![0; Tracks::CONFIG_MAX + 1].into(), ..config.clone() };
        assert_eq!((tracks.note(&huge), tracks.video.unwrap().data), (Change::None, Bytes::from_static(b"other")));
    }

    #[test]
    fn a_unit_that_no_container_can_say_appends_nothing() {
        let unit = Unit { data: vec![0; Unit::LEN_MAX + 1].into(), ..units().remove(5) };
        for container in [Container::Flv, Container::FlvChunked, Container::Rtmp] {
            let mut out = BytesMut::new();
            mux(container).unit(&unit, &mut out);
            assert!(out.is_empty(), "{container:?}");
        }
    }

    #[test]
    fn a_chunk_size_is_hexadecimal_without_leading_zeros() {
        for len in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 1 << 20] {
            let mut out = BytesMut::new();
            put_chunk_size(len, &mut out);
            assert_eq!(out, format!("{len:x}\r\n").as_bytes());
        }
    }

    #[test]
    fn an_extended_timestamp_is_in_every_chunk() {
        let header = MessageHeader { chunk_stream: 6, timestamp: 0x0100_0000, type_id: 9, stream_id: 1 };
        let mut out = BytesMut::new();
        write_message(&header, &[&[1, 2, 3], &[4, 5]], 2, &mut out);
        let time = [1, 0, 0, 0];
        let mut expected = vec![6, 0xff, 0xff, 0xff, 0, 0, 5, 9, 1, 0, 0, 0];
        for piece in [&[1u8, 2][..], &[0xc6], &time, &[3, 4], &[0xc6], &time, &[5]] {
            if expected.len() == 12 {
                expected.extend_from_slice(&time);
            }
            expected.extend_from_slice(piece);
        }
        assert_eq!(out, expected);
        out.clear();
        write_message(&MessageHeader { timestamp: 0xff_fffe, ..header }, &[&[1]], 2, &mut out);
        assert_eq!(out[..4], [6, 0xff, 0xff, 0xfe]);
        out.clear();
        write_message(&MessageHeader { timestamp: 0xff_ffff, ..header }, &[&[1]], 2, &mut out);
        assert_eq!(out[12..16], [0, 0xff, 0xff, 0xff]);
    }
}
