//! What a path and its query name.

use crate::http::Request;
use crate::media::StreamName;
use crate::session::Sniff;

/// Endings of the paths that are HLS.
const ENDINGS: [&str; 3] = [".m3u8", ".m4s", ".mp4"];

/// Bytes in which the path of a request must end for its protocol to be known: a stream's name with every byte escaped.
const SNIFF_MAX: usize = 3 * StreamName::LEN_MAX + 64;

/// Bytes of a query that are carried over into a playlist; more is no key of ours.
const CARRIED_MAX: usize = 1_024;

/// What is asked for of a stream. Numbers rise over the gateway's life and are never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// `index.m3u8`: codecs, size, bit rate (a multivariant playlist of one).
    Multivariant,
    /// `media.m3u8`, as soon as it has what is waited for. `viewer` is the same in all requests of one player.
    Media { viewer: u64, wait: Option<Wait> },
    /// `init-N.mp4`
    Init(u64),
    /// `segment-N.m4s`
    Segment(u64),
    /// `part-N.m4s`; the one that a playlist hints at is waited for.
    Part(u64),
}

/// A blocking reload (rfc8216bis, 6.2.5.2): until there is this segment, or this part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub segment: u64,
    pub part: Option<u64>,
}

/// A request for a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub stream: StreamName,
    pub piece: Piece,
    /// The query that addresses in a playlist carry as well: keys and signatures.
    pub carried: String,
}

/// Whether a path is one of ours, by its ending.
pub(crate) fn is_at(path: &str) -> bool {
    ENDINGS.iter().any(|ending| path.ends_with(ending))
}

/// Decides by the path, once it is all there; `prefix` begins like a request.
pub(super) fn sniff(prefix: &[u8]) -> Sniff {
    let after_method = prefix.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
    let end = after_method.iter().take(SNIFF_MAX).position(|byte| matches!(byte, b' ' | b'?' | b'\r' | b'\n'));
    match end {
        Some(end) => {
            let path = after_method.get(..end).unwrap_or_default();
            if ENDINGS.iter().any(|ending| path.ends_with(ending.as_bytes())) { Sniff::Yes } else { Sniff::No }
        }
        None if after_method.len() >= SNIFF_MAX => Sniff::No,
        None => Sniff::More,
    }
}

impl Asked {
    /// `Ok(None)` for a path that names nothing of ours, `Err` for a query that makes no sense. A viewer that its query
    /// does not name is `stranger`.
    pub(super) fn of(request: &Request, stranger: u64) -> Result<Option<Self>, &'static str> {
        let Some((stream, name)) = request.path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
            return Ok(None);
        };
        let Some(stream) = StreamName::parse(stream) else { return Ok(None) };
        let number = |begin: &str, end: &str| name.strip_prefix(begin)?.strip_suffix(end)?.parse().ok();
        let piece = match name {
            "index.m3u8" => Piece::Multivariant,
            "media.m3u8" => {
                let named = request.parameter("viewer").and_then(|name| u64::from_str_radix(&name, 16).ok());
                Piece::Media { viewer: named.unwrap_or(stranger), wait: wait(request)? }
            }
            _ => {
                let piece = number("init-", ".mp4").map(Piece::Init);
                let piece = piece.or_else(|| number("segment-", ".m4s").map(Piece::Segment));
                match piece.or_else(|| number("part-", ".m4s").map(Piece::Part)) {
                    Some(piece) => piece,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Self { stream, piece, carried: carried(&request.query)? }))
    }
}

/// The delivery directives (rfc8216bis, 6.2.5).
fn wait(request: &Request) -> Result<Option<Wait>, &'static str> {
    let number = |name| request.parameter(name).map(|text| text.parse::<u64>()).transpose();
    match (number("_HLS_msn"), number("_HLS_part")) {
        (Ok(Some(segment)), Ok(part)) => Ok(Some(Wait { segment, part })),
        (Ok(None), Ok(None)) => Ok(None),
        _ => Err("_HLS_msn is a number, and _HLS_part one beside it"),
    }
}

/// The query without the directives and the viewer, fit to stand in a quoted string of a playlist.
fn carried(query: &str) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
    if !query.bytes().all(plain) {
        return Err("the query has characters that belong escaped");
    }
    let own = |pair: &&str| !pair.is_empty() && !pair.starts_with("_HLS_") && !pair.starts_with("viewer=");
    let kept: Vec<&str> = query.split('&').filter(own).collect();
    let kept = kept.join("&");
    if kept.len() > CARRIED_MAX { Err("a query of more than 1024 bytes") } else { Ok(kept) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str) -> Result<Option<Asked>, &'static str> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        Asked::of(&Request::parse(request.as_bytes()).unwrap().unwrap(), 7)
    }

    #[test]
    fn paths_name_pieces() {
        let wait = Wait { segment: 12, part: Some(3) };
        for (target, piece) in [
            ("/live/x/index.m3u8", Piece::Multivariant),
            ("/live/x/media.m3u8", Piece::Media { viewer: 7, wait: None }),
            ("/live/x/media.m3u8?viewer=ff&_HLS_msn=12&_HLS_part=3", Piece::Media { viewer: 255, wait: Some(wait) }),
            ("/live/x/init-5.mp4", Piece::Init(5)),
            ("/live/x/segment-18446744073709551615.m4s", Piece::Segment(u64::MAX)),
            ("/live/x/part-0.m4s", Piece::Part(0)),
        ] {
            let asked = asked(target).unwrap().unwrap();
            assert_eq!((asked.stream.as_str(), asked.piece), ("live/x", piece), "{target}");
        }
        assert_eq!(asked("/gb/d/c/index.m3u8").unwrap().unwrap().stream.as_str(), "gb/d/c");
    }

    #[test]
    fn other_paths_name_nothing() {
        for target in [
            "/",
            "/index.m3u8",
            "/live/index.m3u8",
            "/live/x.flv",
            "/live/x/segment-.m4s",
            "/live/x/segment--1.m4s",
            "/live/x/part-18446744073709551616.m4s",
            "/live/x/other.m3u8",
            "/live//index.m3u8",
        ] {
            assert_eq!(asked(target), Ok(None), "{target}");
        }
    }

    #[test]
    fn keys_are_carried_over_and_directives_are_not() {
        let carried = |query| asked(&format!("/live/x/media.m3u8?{query}")).map(|asked| asked.unwrap().carried);
        assert_eq!(carried("key=a%2Fb&_HLS_msn=1&viewer=3&exp=9"), Ok("key=a%2Fb&exp=9".to_owned()));
        assert_eq!(carried("_HLS_msn=1"), Ok(String::new()));
        assert!(carried("key=\"").is_err() && carried("_HLS_msn=x").is_err() && carried("_HLS_part=1").is_err());
        assert!(carried(&"k".repeat(CARRIED_MAX + 1)).is_err());
    }

    #[test]
    fn the_first_bytes_decide_when_the_path_is_there() {
        let sniff = |text: &str| sniff(text.as_bytes());
        assert_eq!(sniff("GET /live/x/index.m3u8"), Sniff::More);
        assert_eq!(sniff("GET /live/x/index.m3u8?key"), Sniff::Yes);
        assert_eq!(sniff("OPTIONS /live/x/part-1.m4s HTTP"), Sniff::Yes);
        assert_eq!(sniff("GET /live/x.flv?a=.m3u8 "), Sniff::No);
        assert_eq!(sniff(&format!("GET /{}", "a".repeat(SNIFF_MAX))), Sniff::No);
    }
}
