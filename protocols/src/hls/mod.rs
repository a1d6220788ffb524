//! HLS and low-latency HLS (RFC 8216; draft-pantos-hls-rfc8216bis for parts and blocking reload): a player asks for
//! playlists and pieces of fragmented MP4, one after another, over connections that stay.
//!
//! Inside: the row; `frame.rs` (what a path names), `session.rs` (the talk), `playlist.rs` (the text of playlists). Must
//! not be in here: requests, which are `http`'s, MP4, which is `media`'s, and where the pieces are kept: the gateway
//! answers [`Output::Fetch`](crate::Output::Fetch).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::http;
use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod frame;
mod playlist;
mod session;

pub(crate) use frame::is_at;
pub use frame::{Piece, Wait};
pub use playlist::{Listed, Media, Multivariant, Part};

/// The row.
pub static ROW: Hls = Hls;

#[derive(Debug)]
pub struct Hls;

/// The answer to [`Output::Fetch`](crate::Output::Fetch).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub content: Content,
    /// In order; shared with everybody who gets the same.
    pub chunks: Vec<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Playlist,
    Media,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// `Access-Control-Allow-Origin`: the web pages that may play, `*` for all (the default).
    allow_origin: Option<String>,
}

#[derive(Debug)]
struct HlsEndpoint {
    allow_origin: Arc<str>,
}

impl Protocol for Hls {
    fn name(&self) -> &'static str {
        "hls"
    }

    fn summary(&self) -> &'static str {
        "HLS and low-latency HLS: browsers, phones and televisions watch"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        match http::sniff(prefix) {
            Sniff::Yes => frame::sniff(prefix),
            undecided => undecided,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        Ok(Arc::new(HlsEndpoint { allow_origin: http::allow_origin(options.allow_origin)? }))
    }

    fn example(&self) -> &'static str {
        r#"# Players watch http://HOST:8001/APP/NAME/index.m3u8?key=KEY. On the port where cameras push RTMP as well:
# protocol = ["rtmp", "hls", "http-flv"], and options.hls = { … }. What is kept of a stream: [hls].
[[adapter]]
name = "watch-hls"
listen = "tcp://0.0.0.0:8001"
protocol = "hls"
options = { allow_origin = "*" }   # web pages that may play
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for HlsEndpoint {
    fn limits(&self) -> Limits {
        Limits {
            frame_max: 2 * http::HEADER_MAX,
            // A player asks again within a part or a segment; one that pauses opens a new connection.
            silence_max: Some(Duration::from_secs(60)),
            admission_max: Duration::from_secs(10),
        }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(session::HlsSession::new(Arc::clone(&self.allow_origin), peer))
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("ffmpeg_playlists", include_bytes!("testdata/ffmpeg_playlists.bin")),
    Capture::stream("ffmpeg_segment_init", include_bytes!("testdata/ffmpeg_segment_init.bin")),
    Capture::stream("chromium_hls_js_low_latency", include_bytes!("testdata/chromium_hls_js_low_latency.bin")),
    Capture::stream("curl_head_options", include_bytes!("testdata/curl_head_options.bin")),
];
