//! What we read off an SDP ourselves (RFC 8866); the rest of it is str0m's affair. Must not be in here: sessions.

use std::net::SocketAddr;

/// Payload formats looked at in one offer; browsers list some forty.
const FORMATS_MAX: usize = 128;

/// profile-level-id where an offer names none: Constrained Baseline, level 3.1, which every WebRTC peer has (RFC 7742,
/// 6.2).
const PROFILE_USUAL: u32 = 0x42_e01f;

/// The names of the codecs in the offer, each once, in the offer's order.
pub(super) fn codecs(sdp: &str) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (_, name) in formats(sdp) {
        if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            names.push(name);
        }
    }
    names
}

/// Of these codecs the one that the offer names first.
pub(super) fn first_of<'c>(sdp: &str, codecs: &[&'c str]) -> Option<&'c str> {
    formats(sdp).find_map(|(_, name)| codecs.iter().copied().find(|codec| name.eq_ignore_ascii_case(codec)))
}

pub(super) fn has_codec(sdp: &str, codec: &str) -> bool {
    formats(sdp).any(|(_, name)| name.eq_ignore_ascii_case(codec))
}

/// Of the H.264 formats offered the profile-level-id (RFC 6184, 8.1) that suits a stream of `profile`, with the stream's
/// own level in it; and whether it is really of that profile. `None`: no H.264 is offered that takes fragments.
pub(super) fn h264_profile(sdp: &str, profile: StreamProfile) -> Option<(u32, bool)> {
    let offered: Vec<u32> = formats(sdp)
        .filter(|(_, name)| name.eq_ignore_ascii_case("H264"))
        .filter_map(|(payload, _)| {
            let parameters = parameters(sdp, payload);
            let fragments = parameter(parameters, "packetization-mode").is_some_and(|mode| mode == "1");
            let id = parameter(parameters, "profile-level-id").and_then(|id| u32::from_str_radix(id, 16).ok());
            fragments.then_some(id.unwrap_or(PROFILE_USUAL) & 0xff_ffff)
        })
        .collect();
    // Exactly its profile; else one whose decoder has all of it; else any: most decoders look at the stream alone.
    let same = offered.iter().find(|id| Family::of(**id) == profile.family());
    let wider = || offered.iter().filter(|id| Family::of(**id) > profile.family()).min_by_key(|id| Family::of(**id));
    let (id, fits) = match same.or_else(wider) {
        Some(id) => (*id, true),
        None => (*offered.first()?, false),
    };
    Some((id & 0xff_ff00 | u32::from(profile.level), fits))
}

/// The first three bytes of a sequence parameter set after its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamProfile {
    pub(super) idc: u8,
    pub(super) constraints: u8,
    pub(super) level: u8,
}

impl StreamProfile {
    fn family(self) -> Family {
        Family::of(u32::from(self.idc) << 16 | u32::from(self.constraints) << 8)
    }
}

/// Profiles by what their decoders can do; each has all of the ones before it (but for Baseline's oddities, which
/// nobody uses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    ConstrainedBaseline,
    Baseline,
    Main,
    ConstrainedHigh,
    High,
    Other,
}

impl Family {
    fn of(profile_level_id: u32) -> Self {
        let (idc, constraints) = (profile_level_id >> 16 & 0xff, profile_level_id >> 8 & 0xff);
        match idc {
            66 if constraints & 0x40 != 0 => Self::ConstrainedBaseline,
            77 if constraints & 0x80 != 0 => Self::ConstrainedBaseline,
            66 => Self::Baseline,
            77 => Self::Main,
            100 if constraints & 0x0c == 0x0c => Self::ConstrainedHigh,
            100 => Self::High,
            _ => Self::Other,
        }
    }
}

/// The ICE user name of an offer, or of a fragment that trickles candidates (RFC 8840).
pub(super) fn ice_ufrag(sdp: &str) -> Option<&str> {
    sdp.lines().find_map(|line| line.trim_end().strip_prefix("a=ice-ufrag:"))
}

/// Payload type and encoding name of every `a=rtpmap`.
fn formats(sdp: &str) -> impl Iterator<Item = (&str, &str)> {
    let maps = sdp.lines().filter_map(|line| line.trim_end().strip_prefix("a=rtpmap:"));
    maps.take(FORMATS_MAX).filter_map(|map| {
        let (payload, encoding) = map.split_once(' ')?;
        Some((payload, encoding.split('/').next().unwrap_or(encoding)))
    })
}

/// What `a=fmtp` says of a payload type.
fn parameters<'s>(sdp: &'s str, payload: &str) -> &'s str {
    let found = sdp.lines().find_map(|line| {
        let (of, parameters) = line.trim_end().strip_prefix("a=fmtp:")?.split_once(' ')?;
        (of == payload).then_some(parameters)
    });
    found.unwrap_or_default()
}

fn parameter<'s>(parameters: &'s str, wanted: &str) -> Option<&'s str> {
    parameters.split(';').find_map(|one| {
        let (name, value) = one.trim().split_once('=')?;
        name.eq_ignore_ascii_case(wanted).then_some(value)
    })
}

/// str0m's answer as peers take it: with more host candidates (RFC 8839, 5.1), and with a format on lines that are
/// rejected, which must have one although it means nothing (RFC 8866, 5.14). aiortc wants to know that format too, or it takes
/// nothing of the answer.
pub(super) fn completed(answer: &str, addresses: &[SocketAddr]) -> String {
    let mut out = String::with_capacity(answer.len() + 64 * addresses.len());
    let mut unsaid = Some(addresses);
    let mut unmapped = None;
    for line in answer.lines() {
        out.push_str(line);
        if line.starts_with("m=") && line.split_whitespace().count() == 3 {
            let (format, map) =
                if line.starts_with("m=video") { (" 96", "96 VP8/90000") } else { (" 0", "0 PCMU/8000") };
            out.truncate(out.trim_end().len());
            out.push_str(format);
            unmapped = Some(map);
        }
        out.push_str("\r\n");
        if let Some(map) = unmapped.take_if(|_| line.starts_with("c=")) {
            out.extend(["a=rtpmap:", map, "\r\n"]);
        }
        // Behind the first candidate: that is in the media section all others are bundled with.
        if line.starts_with("a=candidate:") {
            for (at, address) in unsaid.take().unwrap_or_default().iter().enumerate() {
                out.push_str(&host_candidate(at, *address));
            }
        }
    }
    out
}

/// Each a little below the one before (RFC 8445, 5.1.2.1).
fn host_candidate(at: usize, address: SocketAddr) -> String {
    let priority = (126_u32 << 24) | (65_000_u32.saturating_sub(at as u32) << 8) | 255;
    format!("a=candidate:{} 1 udp {priority} {} {} typ host\r\n", at + 100, address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHROMIUM: &str = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96 103 109 117\r\na=ice-ufrag:Zx4q\r\n\
        a=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\n\
        a=rtpmap:103 H264/90000\r\na=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f\r\n\
        a=rtpmap:107 H264/90000\r\na=fmtp:107 level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=64001f\r\n\
        a=rtpmap:109 H264/90000\r\na=fmtp:109 level-asymmetry-allowed=1; packetization-mode=1; profile-level-id=42e01f\r\n\
        a=rtpmap:117 h264/90000\r\na=fmtp:117 packetization-mode=1;profile-level-id=4d001f\r\n\
        a=rtpmap:119 opus/48000/2\r\n";

    fn profile(idc: u8, constraints: u8) -> StreamProfile {
        StreamProfile { idc, constraints, level: 40 }
    }

    #[test]
    fn the_offered_profile_that_suits_the_stream_with_the_level_of_the_stream() {
        let cases = [
            ((66, 0xc0), Some((0x42_e028, true))),
            ((66, 0), Some((0x42_0028, true))),
            ((77, 0x40), Some((0x4d_0028, true))),
            // High is not offered with fragments here: the first is taken, and it is known that it does not fit.
            ((100, 0), Some((0x42_0028, false))),
        ];
        for ((idc, constraints), expected) in cases {
            assert_eq!(h264_profile(CHROMIUM, profile(idc, constraints)), expected, "{idc} {constraints}");
        }
        assert_eq!(h264_profile("a=rtpmap:96 VP8/90000\r\n", profile(66, 0)), None);
        let bare = "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n";
        assert_eq!(h264_profile(bare, profile(66, 0xe0)), Some((0x42_e028, true)));
        let high = "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;profile-level-id=64001f\r\n";
        assert_eq!(h264_profile(high, profile(77, 0)), Some((0x64_0028, true)), "High has all of Main");
    }

    #[test]
    fn codecs_and_credentials() {
        assert_eq!(codecs(CHROMIUM), ["VP8", "rtx", "H264", "opus"]);
        assert!(has_codec(CHROMIUM, "OPUS") && !has_codec(CHROMIUM, "PCMA"));
        assert_eq!(ice_ufrag(CHROMIUM), Some("Zx4q"));
        assert_eq!(ice_ufrag("v=0\r\n"), None);
    }

    #[test]
    fn addresses_are_said_once_behind_the_first_candidate() {
        let answer = "m=audio 9 UDP/TLS/RTP/SAVPF 8\r\na=candidate:1 1 udp 5 10.0.0.2 8189 typ host\r\na=mid:0\r\n\
                      m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=candidate:1 1 udp 5 10.0.0.2 8189 typ host\r\n";
        let more = ["203.0.113.7:4000".parse().unwrap(), "[2001:db8::7]:8189".parse().unwrap()];
        let said = completed(answer, &more);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 7);
        assert!(lines[2].contains(" udp 2130569471 203.0.113.7 4000 typ host"), "{said}");
        assert!(lines[3].contains(" 2001:db8::7 8189 typ host") && lines[4] == "a=mid:0");
        assert_eq!(completed(answer, &[]), answer);
        let rejected = completed("m=audio 0 UDP/TLS/RTP/SAVPF \r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\n", &[]);
        let whole = "m=audio 0 UDP/TLS/RTP/SAVPF 0\r\nc=IN IP4 0.0.0.0\r\na=rtpmap:0 PCMU/8000\r\na=mid:1\r\n";
        assert_eq!(rejected, whole);
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise in "(?s).{0,400}", at in 0usize..600) {
            let mut near = CHROMIUM.to_owned();
            let at = (0..=at.min(near.len())).rev().find(|at| near.is_char_boundary(*at)).unwrap_or(0);
            near.insert_str(at, &noise);
            for text in [&noise, &near] {
                let _profile = h264_profile(text, profile(100, 0));
                let _seen = (codecs(text).len(), ice_ufrag(text), completed(text, &[]));
            }
        }
    }
}
