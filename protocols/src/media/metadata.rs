//! onMetaData (FLV 10.1, annex E.5): what a source says about itself, and what we say where a source says nothing.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use super::amf0::{Reader, Value};
use super::read::MediaError;
use super::{Codec, Hevc, Kind, Picture, Sound, Track, Tracks, Unit, flv};

pub const ON_META_DATA: &str = "onMetaData";

/// RTMP publishers put this name in front of their metadata.
pub const SET_DATA_FRAME: &str = "@setDataFrame";

/// The fields the gateway reads. Absent and absurd (negative, not finite) ones are `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    pub width: Option<f64>,
    pub height: Option<f64>,
    /// Frames a second.
    pub fps: Option<f64>,
    /// Kilobits a second.
    pub video_kbps: Option<f64>,
    pub audio_kbps: Option<f64>,
    /// Samples a second.
    pub audio_rate: Option<f64>,
    pub stereo: Option<bool>,
    /// Program that made it.
    pub encoder: Option<String>,
}

impl Metadata {
    /// Reads script data; `None` when it is not onMetaData.
    pub fn parse(script: &[u8]) -> Result<Option<Self>, MediaError> {
        let mut reader = Reader::new(script);
        let mut name = reader.value()?;
        if name.as_str() == Some(SET_DATA_FRAME) {
            name = reader.value()?;
        }
        if name.as_str() != Some(ON_META_DATA) {
            return Ok(None);
        }
        let fields = if reader.is_empty() { Value::Null } else { reader.value()? };
        let number = |name: &str| fields.get(name).and_then(Value::as_number).filter(|n| n.is_finite() && *n >= 0.0);
        Ok(Some(Self {
            width: number("width"),
            height: number("height"),
            fps: number("framerate").or_else(|| number("fps")),
            video_kbps: number("videodatarate"),
            audio_kbps: number("audiodatarate"),
            audio_rate: number("audiosamplerate"),
            stereo: number("stereo").map(|n| n > 0.0),
            encoder: fields.get("encoder").and_then(Value::as_str).map(str::to_owned),
        }))
    }

    /// What the codec configurations alone tell.
    pub fn of(tracks: &Tracks) -> Self {
        let mut metadata = Self::default();
        if let Some(picture) = tracks.video.as_ref().and_then(Picture::of) {
            metadata.width = Some(f64::from(picture.width));
            metadata.height = Some(f64::from(picture.height));
            metadata.fps = picture.fps;
        }
        let sound = tracks.audio_codec.and_then(|codec| Sound::of(codec, tracks.audio.as_ref()));
        if let Some(sound) = sound {
            metadata.audio_rate = Some(f64::from(sound.rate));
            metadata.stereo = Some(sound.channels >= 2);
        }
        metadata
    }

    /// The script data: the name and an associative array. The codec ids are those of FLV (E.4.2.1, E.4.3.1).
    pub fn build(&self, video: Option<Codec>, audio: Option<Codec>) -> Bytes {
        let fields: [(&str, Option<Value>); 10] = [
            ("width", self.width.map(Value::Number)),
            ("height", self.height.map(Value::Number)),
            ("framerate", self.fps.map(Value::Number)),
            ("videocodecid", video.and_then(flv_codec_id).map(Value::Number)),
            ("videodatarate", self.video_kbps.map(Value::Number)),
            ("audiocodecid", audio.and_then(flv_codec_id).map(Value::Number)),
            ("audiodatarate", self.audio_kbps.map(Value::Number)),
            ("audiosamplerate", self.audio_rate.map(Value::Number)),
            ("stereo", self.stereo.map(Value::Boolean)),
            ("encoder", self.encoder.as_deref().map(Value::from)),
        ];
        let known = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        let mut out = BytesMut::new();
        Value::from(ON_META_DATA).write(&mut out);
        Value::EcmaArray(known).write(&mut out);
        out.freeze()
    }
}

/// The metadata unit for viewers of a source that sent none.
pub(crate) fn unit_of(tracks: &Tracks) -> Unit {
    let data = Metadata::of(tracks).build(tracks.video_codec, tracks.audio_codec);
    Unit { track: Track::Data, codec: Codec::Script, dts_90k: 0, pts_90k: 0, kind: Kind::Config, data }
}

/// `videocodecid` of H.265.
fn hevc_id(hevc: Hevc) -> f64 {
    match hevc {
        Hevc::Enhanced => four_cc_id(Codec::H265).unwrap_or_default(),
        Hevc::Legacy => 12.0,
    }
}

/// Enhanced RTMP has the FourCC as a number.
fn four_cc_id(codec: Codec) -> Option<f64> {
    flv::four_cc(codec).map(|four_cc| f64::from(u32::from_be_bytes(four_cc)))
}

/// Metadata as viewers get it: H.265 is named in their dialect, and what a source says of having audio or video is left
/// out. The container's own flags tell what there is; players wait for ever for a track that was only announced.
pub(crate) fn for_viewers(unit: &Unit, hevc: Hevc) -> Cow<'_, Unit> {
    const KEY: &str = "videocodecid";
    let other = hevc_id(if hevc == Hevc::Legacy { Hevc::Enhanced } else { Hevc::Legacy });
    let as_is = Cow::Borrowed(unit);
    if unit.track != Track::Data || unit.kind != Kind::Config || unit.data.len() > Tracks::CONFIG_MAX {
        return as_is;
    }
    let mut reader = Reader::new(&unit.data);
    let (Ok(name), Ok(Value::EcmaArray(mut fields) | Value::Object(mut fields))) = (reader.value(), reader.value())
    else {
        return as_is;
    };
    let said = fields.len();
    fields.retain(|(key, _)| !["hasAudio", "hasVideo"].contains(&key.as_str()));
    let mut changed = fields.len() < said;
    for (_, value) in fields.iter_mut().filter(|(key, _)| key == KEY) {
        if value.as_number() == Some(other) {
            *value = Value::Number(hevc_id(hevc));
            changed = true;
        }
    }
    if !changed {
        return as_is;
    }
    let mut data = BytesMut::with_capacity(unit.data.len());
    name.write(&mut data);
    Value::EcmaArray(fields).write(&mut data);
    Cow::Owned(Unit { data: data.freeze(), ..unit.clone() })
}

fn flv_codec_id(codec: Codec) -> Option<f64> {
    match codec {
        Codec::H264 => Some(7.0),
        Codec::H265 | Codec::Av1 | Codec::Vp9 | Codec::Opus | Codec::Flac | Codec::Ac3 => four_cc_id(codec),
        Codec::Aac => Some(10.0),
        Codec::G711A => Some(7.0),
        Codec::G711U => Some(8.0),
        Codec::Mp3 => Some(2.0),
        Codec::Script => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_metadata_reads_back() {
        let metadata = Metadata {
            width: Some(1920.0),
            height: Some(1080.0),
            fps: Some(25.0),
            video_kbps: Some(2000.0),
            audio_rate: Some(48_000.0),
            stereo: Some(true),
            encoder: Some("x".into()),
            ..Metadata::default()
        };
        let script = metadata.build(Some(Codec::H264), Some(Codec::Aac));
        assert_eq!(Metadata::parse(&script), Ok(Some(metadata)));
    }

    #[test]
    fn publishers_put_a_name_in_front() {
        let mut script = BytesMut::new();
        Value::from(SET_DATA_FRAME).write(&mut script);
        script.extend_from_slice(&Metadata { width: Some(640.0), ..Metadata::default() }.build(None, None));
        assert_eq!(Metadata::parse(&script).unwrap().unwrap().width, Some(640.0));
    }

    #[test]
    fn other_script_data_and_absurd_numbers() {
        let mut script = BytesMut::new();
        Value::from("onTextData").write(&mut script);
        assert_eq!(Metadata::parse(&script), Ok(None));
        let absurd = Metadata { width: Some(f64::NAN), fps: Some(-1.0), ..Metadata::default() }.build(None, None);
        assert_eq!(Metadata::parse(&absurd), Ok(Some(Metadata::default())));
    }
}
