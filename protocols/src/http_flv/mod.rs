//! HTTP-FLV: `GET /APP/NAME.flv` gives the stream as one endless body, which players and browsers (mpegts.js) take. The
//! same address as a WebSocket gives it as binary messages.
//!
//! Inside: the row; `frame.rs` (what a path names), `websocket.rs` (its handshake and frames), `session.rs` (the talk).
//! Must not be in here: FLV itself, which is `media`'s, and requests, which are `http`'s.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::http;
use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod frame;
mod session;
pub mod websocket;

pub(crate) use frame::is_at;

/// The row.
pub static ROW: HttpFlv = HttpFlv;

#[derive(Debug)]
pub struct HttpFlv;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// `Access-Control-Allow-Origin`: the web pages that may play, `*` for all (the default).
    allow_origin: Option<String>,
}

#[derive(Debug)]
struct HttpFlvEndpoint {
    allow_origin: Arc<str>,
}

impl Protocol for HttpFlv {
    fn name(&self) -> &'static str {
        "http-flv"
    }

    fn summary(&self) -> &'static str {
        "HTTP-FLV and WS-FLV: players and browsers watch"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        http::sniff(prefix)
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        let allow_origin = http::allow_origin(options.allow_origin)?;
        Ok(Arc::new(HttpFlvEndpoint { allow_origin }))
    }

    fn example(&self) -> &'static str {
        r#"# Players watch http://HOST:8000/APP/NAME.flv?key=KEY, or ws:// the same; &hevc=legacy for old H.265 players. On the port where cameras push RTMP as well:
# protocol = ["rtmp", "http-flv"], and options.http-flv = { … }.
[[adapter]]
name = "watch"
listen = "tcp://0.0.0.0:8000"
protocol = "http-flv"
options = { allow_origin = "*" }   # web pages that may play
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for HttpFlvEndpoint {
    fn limits(&self) -> Limits {
        Limits {
            frame_max: 2 * http::HEADER_MAX,
            // A viewer says nothing after its request; what it takes is watched by the stream.
            silence_max: None,
            admission_max: Duration::from_secs(10),
        }
    }

    fn open(&self, _peer: &Peer) -> Box<dyn Session> {
        Box::new(session::HttpFlvSession::new(Arc::clone(&self.allow_origin)))
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("ffmpeg_get", include_bytes!("testdata/ffmpeg_get.bin")),
    Capture::stream("curl_get_head", include_bytes!("testdata/curl_get_head.bin")),
    Capture::stream("chromium_get", include_bytes!("testdata/chromium_get.bin")),
    Capture::stream("chromium_websocket", include_bytes!("testdata/chromium_websocket.bin")),
    Capture::stream("python_websockets_ping_close", include_bytes!("testdata/python_websockets_ping_close.bin")),
];
