//! What Enhanced RTMP (v1 and v2) makes peers say about themselves in `connect`: which codecs by FourCC, which extensions.

use crate::media::amf0::Value;
use crate::media::flv::FOUR_CCS;
use crate::media::{Codec, Hevc, Track};

/// `FourCcInfoMask`: we neither decode nor encode, we pass on.
const CAN_FORWARD: f64 = 4.0;

/// `CapsExMask`: ModEx packets are read. Of several tracks one is carried, so that multitrack (2) is not claimed.
const CAPS_EX: f64 = 4.0;

/// ffmpeg's player, of every version up to 9. It does not announce what it can read; versions that know H.265 in FLV at all
/// (6.1 and later) know it as FourCC, and none as codec id 12.
const FFMPEG_PLAYER: &str = "LNX 9,0,124,2";

/// What we say, as server and as publisher.
pub(super) fn ours() -> Vec<(String, Value)> {
    let names = |track: Option<Track>| {
        let ours = FOUR_CCS.iter().filter(move |(codec, _)| track.is_none_or(|track| codec.track() == track));
        ours.map(|(_, four_cc)| String::from_utf8_lossy(&four_cc[..]).into_owned())
    };
    let map = |track| Value::Object(names(Some(track)).map(|name| (name, CAN_FORWARD.into())).collect());
    let list = names(None).map(|name| Value::from(name.as_str())).collect();
    vec![
        ("fourCcList".to_owned(), Value::StrictArray(list)),
        ("videoFourCcInfoMap".to_owned(), map(Track::Video)),
        ("audioFourCcInfoMap".to_owned(), map(Track::Audio)),
        ("capsEx".to_owned(), CAPS_EX.into()),
    ]
}

/// Whether a peer said anything of Enhanced RTMP.
pub(super) fn announced(object: &Value) -> bool {
    ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap", "capsEx"].iter().any(|name| object.get(name).is_some())
}

/// Whether a peer announced the codec: in the list of version 1 or the maps of version 2; `*` is any.
pub(super) fn knows(object: &Value, codec: Codec) -> bool {
    let known = FOUR_CCS.iter().find(|(of, _)| *of == codec).map(|(_, four_cc)| &four_cc[..]);
    let is = |name: &str| name == "*" || Some(name.as_bytes()) == known;
    let listed = match object.get("fourCcList") {
        Some(Value::StrictArray(names)) => names.iter().filter_map(Value::as_str).any(is),
        _ => false,
    };
    let map = if codec.track() == Track::Video { "videoFourCcInfoMap" } else { "audioFourCcInfoMap" };
    let mapped = match object.get(map) {
        Some(Value::Object(fields) | Value::EcmaArray(fields)) => fields.iter().any(|(name, _)| is(name)),
        _ => false,
    };
    listed || mapped
}

/// How a player that connects like this wants H.265, unless it asks otherwise.
pub(super) fn hevc_for(connect: &Value) -> Hevc {
    let ffmpeg = connect.get("flashVer").and_then(Value::as_str).is_some_and(|version| version == FFMPEG_PLAYER);
    if ffmpeg || knows(connect, Codec::H265) { Hevc::Enhanced } else { Hevc::Legacy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_say_we_understand() {
        let object = Value::Object(ours());
        assert!(announced(&object) && !announced(&Value::object([("app", "live".into())])));
        for codec in [Codec::H264, Codec::H265, Codec::Av1, Codec::Vp9, Codec::Aac, Codec::Opus, Codec::Ac3] {
            assert!(knows(&object, codec), "{codec:?}");
        }
        assert!(!knows(&object, Codec::G711A));
    }

    #[test]
    fn players_get_h265_as_they_say_or_as_they_are_known_to_want() {
        let list = |names: &[&str]| {
            let names = names.iter().map(|name| Value::from(*name)).collect();
            Value::object([("fourCcList", Value::StrictArray(names))])
        };
        let map = |name| Value::object([("videoFourCcInfoMap", Value::object([(name, 1.0.into())]))]);
        let player = |version: &str| Value::object([("flashVer", version.into())]);
        for enhanced in [list(&["av01", "hvc1"]), list(&["*"]), map("hvc1"), map("*"), player(FFMPEG_PLAYER)] {
            assert_eq!(hevc_for(&enhanced), Hevc::Enhanced, "{enhanced:?}");
        }
        // librtmp, and what announces other codecs only.
        for legacy in [list(&["av01"]), map("vp09"), player("LNX 10,0,32,18"), Value::Null] {
            assert_eq!(hevc_for(&legacy), Hevc::Legacy, "{legacy:?}");
        }
    }
}
