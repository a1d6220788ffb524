//! Session descriptions (RFC 4566, RFC 2326 C): a stream's tracks in the words of each codec's RTP payload format, written for
//! viewers and read from publishers.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use crate::media::av1::Av1C;
use crate::media::h264::AvcC;
use crate::media::h265::HvcC;
use crate::media::opus::{self, OpusHead};
use crate::media::rtp::depacketize::Described;
use crate::media::rtp::{Format, VIDEO_CLOCK};
use crate::media::{Codec, StreamName, Track, Tracks, g711};

/// Tracks of a publisher that are looked at; one video and one audio track are carried.
const MEDIA_MAX: usize = 8;

/// Ticks a second that an `a=rtpmap` may say.
const CLOCK_MAX: u32 = 10_000_000;

/// A track of a publisher's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// What SETUP calls it, relative to the stream's address or whole.
    pub(super) control: String,
    pub(super) is_video: bool,
    /// `None`: left out, because it is the second of its kind or in a codec that is not carried.
    pub(super) described: Option<Described>,
}

/// The tracks that a publisher describes; `None` for what is no description.
pub(super) fn announced(description: &[u8]) -> Option<Vec<Announced>> {
    let text = std::str::from_utf8(description).ok()?;
    let mut parts = text.split("\nm=");
    parts.next().filter(|head| head.starts_with("v=0"))?;
    let mut all: Vec<Announced> = Vec::new();
    for media in parts.take(MEDIA_MAX) {
        let mut lines = media.lines().map(str::trim);
        // `video 0 RTP/AVP 96`
        let mut words = lines.next()?.split_ascii_whitespace();
        let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
        let payload_type = words.next().and_then(|word| word.parse().ok()).filter(|number| *number < 128);
        let attributes: Vec<(&str, &str)> = lines.filter_map(|line| line.strip_prefix("a=")?.split_once(':')).collect();
        let is_video = kind == "video";
        let control = attributes.iter().find(|(name, _)| *name == "control").map_or("", |(_, value)| value);
        let first = !all.iter().any(|other| other.is_video == is_video && other.described.is_some());
        let described = payload_type.filter(|_| first).and_then(|number| described(number, &attributes));
        let described = described.filter(|one| (one.codec.track() == Track::Video) == is_video);
        all.push(Announced { control: control.to_owned(), is_video, described });
    }
    Some(all)
}

/// The codec of a payload type with what a decoder has to know; `None` where it is not carried.
fn described(payload_type: u8, attributes: &[(&str, &str)]) -> Option<Described> {
    // `96 H264/90000`
    let of = |wanted: &str| {
        attributes.iter().filter(|(name, _)| *name == wanted).find_map(|(_, value)| {
            let (number, rest) = value.split_once(' ')?;
            (number.parse() == Ok(payload_type)).then_some(rest.trim())
        })
    };
    let (name, rate) = match (of("rtpmap"), payload_type) {
        (Some(map), _) => {
            let mut parts = map.split('/');
            (parts.next()?.to_ascii_uppercase(), parts.next()?.trim().parse().ok()?)
        }
        (None, 0) => ("PCMU".to_owned(), g711::RATE),
        (None, 8) => ("PCMA".to_owned(), g711::RATE),
        (None, _) => return None,
    };
    let format = of("fmtp").unwrap_or_default();
    let parameter = |wanted: &str| {
        let all = format.split(';').filter_map(|one| one.split_once('='));
        all.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    let list = |names: &[&str]| -> Vec<Bytes> {
        let sets = names.iter().filter_map(|name| parameter(name)).flat_map(|(_, value)| value.split(','));
        sets.filter_map(|set| BASE64.decode(set).ok()).map(Bytes::from).collect()
    };
    let config = || parameter("config").and_then(|(_, value)| from_hex(value));
    let (codec, clock, sets) = match name.as_str() {
        "H264" => (Codec::H264, VIDEO_CLOCK, list(&["sprop-parameter-sets"])),
        "H265" => (Codec::H265, VIDEO_CLOCK, list(&["sprop-vps", "sprop-sps", "sprop-pps"])),
        "MPEG4-GENERIC" => {
            // Mode AAC-hbr (RFC 3640, 3.3.6), by its field widths.
            let width = |name: &str| parameter(name).map(|(_, value)| value);
            let widths = [width("sizelength"), width("indexlength"), width("indexdeltalength")];
            (Codec::Aac, rate, vec![config().filter(|_| widths == [Some("13"), Some("3"), Some("3")])?])
        }
        "MP4A-LATM" => (Codec::Aac, rate, vec![config().and_then(|config| audio_config(&config))?]),
        "OPUS" => {
            let stereo = parameter("sprop-stereo").is_some_and(|(_, value)| value == "1");
            (Codec::Opus, opus::RATE, vec![OpusHead::plain(if stereo { 2 } else { 1 }).build()])
        }
        "AV1" => (Codec::Av1, VIDEO_CLOCK, Vec::new()),
        "PCMA" => (Codec::G711A, rate, Vec::new()),
        "PCMU" => (Codec::G711U, rate, Vec::new()),
        _ => return None,
    };
    let right = rate == clock && (1..=CLOCK_MAX).contains(&clock);
    right.then_some(Described { codec, payload_type, clock, sets, latm: name == "MP4A-LATM" })
}

fn from_hex(text: &str) -> Option<Bytes> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    digits.map(|digits| {
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |all, one| all << 4 | *one as u8)).collect()
    })
}

/// The AudioSpecificConfig in a StreamMuxConfig (ISO/IEC 14496-3, 1.7.3) of one program with one layer: 15 bits in.
fn audio_config(mux: &[u8]) -> Option<Bytes> {
    let (&[0x40, mut carry @ 0..=1], rest) = mux.split_first_chunk()? else { return None };
    let shifted = rest.iter().map(|byte| std::mem::replace(&mut carry, *byte) << 7 | byte >> 1);
    Some(shifted.collect())
}

/// The tracks of a stream that RTP can carry, in the order of the description: a track's place is its `trackID`.
pub(super) fn formats(tracks: &Tracks) -> Vec<(Track, Format)> {
    let all = [Track::Video, Track::Audio].into_iter();
    all.filter_map(|track| Some((track, Format::of(tracks, track)?))).collect()
}

/// The description of a stream.
pub(super) fn describe(stream: &StreamName, tracks: &Tracks) -> String {
    let mut sdp = format!(
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns={stream}\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=tool:sluicegate\r\n\
         a=control:*\r\na=range:npt=now-\r\n"
    );
    for (at, (track, format)) in formats(tracks).into_iter().enumerate() {
        let Format { payload_type, name, clock, channels, .. } = format;
        let kind = if track == Track::Video { "video" } else { "audio" };
        let channels = if channels > 1 { format!("/{channels}") } else { String::new() };
        // Writing to a string does not fail.
        let _infallible =
            write!(sdp, "m={kind} 0 RTP/AVP {payload_type}\r\na=rtpmap:{payload_type} {name}/{clock}{channels}\r\n");
        if let Some(parameters) = parameters(tracks, format.codec) {
            let _infallible = write!(sdp, "a=fmtp:{payload_type} {parameters}\r\n");
        }
        let _infallible = write!(sdp, "a=control:trackID={at}\r\n");
    }
    sdp
}

fn parameters(tracks: &Tracks, codec: Codec) -> Option<String> {
    let list = |sets: &[Bytes]| sets.iter().map(|set| BASE64.encode(set)).collect::<Vec<_>>().join(",");
    match codec {
        Codec::H264 => {
            let record = AvcC::parse(&tracks.video.as_ref()?.data).ok()?;
            let AvcC { profile, compatibility, level, .. } = record;
            let sets = list(&[record.sps, record.pps].concat());
            Some(format!(
                "packetization-mode=1;profile-level-id={profile:02X}{compatibility:02X}{level:02X};sprop-parameter-sets={sets}"
            ))
        }
        Codec::H265 => {
            let record = HvcC::parse(&tracks.video.as_ref()?.data).ok()?;
            let (vps, sps, pps) = (list(&record.vps), list(&record.sps), list(&record.pps));
            Some(format!("sprop-vps={vps};sprop-sps={sps};sprop-pps={pps}"))
        }
        Codec::Aac => {
            let config = &tracks.audio.as_ref()?.data;
            let mut text =
                "streamtype=5;profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config="
                    .to_owned();
            for byte in config {
                let _infallible = write!(text, "{byte:02X}");
            }
            Some(text)
        }
        Codec::Opus => {
            let head = tracks.audio.as_ref().and_then(|config| OpusHead::parse(&config.data).ok());
            head.filter(|head| head.channels == 2).map(|_| "sprop-stereo=1".to_owned())
        }
        Codec::Av1 => {
            let Av1C { profile, level, high_tier, .. } = Av1C::parse(&tracks.video.as_ref()?.data).ok()?;
            Some(format!("profile={profile};level-idx={level};tier={}", u8::from(high_tier)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Codec, clock and the lengths of the sets of each track.
    fn read(media: &str) -> Vec<Option<(Codec, u32, Vec<usize>)>> {
        let all = announced(format!("v=0\r\ns=x\r\n{media}").as_bytes()).unwrap();
        let short = |one: Described| (one.codec, one.clock, one.sets.iter().map(Bytes::len).collect());
        all.into_iter().map(|track| track.described.map(short)).collect()
    }

    #[test]
    fn what_encoders_announce() {
        let ffmpeg = "m=video 0 RTP/AVP 96\r\nb=AS:60\r\na=rtpmap:96 H264/90000\r\n\
            a=fmtp:96 packetization-mode=1; sprop-parameter-sets=Z0LAC9oKEflwEQAAAwABAAADADIPFCqg,aM48gA==; profile-level-id=42C00B\r\n\
            m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/44100/1\r\n\
            a=fmtp:97 profile-level-id=1;mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3; config=120856E500\r\n";
        assert_eq!(read(ffmpeg), [Some((Codec::H264, 90_000, vec![24, 4])), Some((Codec::Aac, 44_100, vec![5]))]);
        let gstreamer = "m=audio 0 RTP/AVP 96\r\na=rtpmap:96 MP4A-LATM/44100\r\na=fmtp:96 cpresent=0;config=40002410adca00\r\n\
            m=audio 0 RTP/AVP 8\r\n";
        assert_eq!(read(gstreamer), [Some((Codec::Aac, 44_100, vec![5])), None], "one track of a kind");
        let config = announced(format!("v=0\r\n{gstreamer}").as_bytes()).unwrap()[0].described.clone().unwrap();
        assert_eq!((&config.sets[0][..], config.latm), (&[0x12, 0x08, 0x56, 0xe5, 0][..], true));
        for left_out in [
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 VP8/90000\r\n",
            "m=video 0 RTP/AVP 8\r\n",
            "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/44100\r\na=fmtp:97 config=1208;sizelength=6\r\n",
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/8000\r\n",
            "m=audio 0 RTP/AVP 8\r\na=rtpmap:8 PCMA/4294967295\r\n",
        ] {
            assert_eq!(read(left_out), [None], "{left_out}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise in "v=0\n(m=(audio|video) 0 RTP/AVP [0-9]{1,3}\n(a=(rtpmap|fmtp|control):[ -~]{0,40}\n){0,4}){0,12}") {
            let read = announced(noise.as_bytes());
            prop_assert!(read.is_none_or(|tracks| tracks.len() <= MEDIA_MAX));
        }
    }
}
