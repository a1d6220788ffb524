//! Session descriptions (RFC 4566, RFC 2326 C): a stream's tracks in the words of each codec's RTP payload format.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use crate::media::h264::AvcC;
use crate::media::h265::HvcC;
use crate::media::rtp::Format;
use crate::media::{Codec, StreamName, Track, Tracks};

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
        _ => None,
    }
}
