//! RTSP 1.0 (RFC 2326): players and recorders watch, encoders push, over the connection itself or UDP.
//!
//! Inside: the row and its options; `frame.rs` (bytes to messages and packets), `transport.rs` (what a client offers), `sdp.rs`
//! (a stream's tracks described), `publishing.rs` (a publisher's packets as units), `session/` (the talk). Must not be in here: RTP, which is `media`'s.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

pub mod frame;
mod publishing;
mod sdp;
mod session;
mod transport;

/// The row.
pub static ROW: Rtsp = Rtsp;

#[derive(Debug)]
pub struct Rtsp;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Whether peers may ask for UDP; without, they are told to take the connection.
    udp: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { udp: true }
    }
}

#[derive(Debug)]
struct RtspEndpoint {
    options: Options,
}

impl Protocol for Rtsp {
    fn name(&self) -> &'static str {
        "rtsp"
    }

    fn summary(&self) -> &'static str {
        "RTSP: players and recorders watch, encoders push, over TCP and UDP"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        const BEGINNINGS: [&[u8]; 5] = [b"OPTIONS rtsp", b"OPTIONS * RTSP", b"DESCRIBE ", b"ANNOUNCE ", b"SETUP "];
        if BEGINNINGS.iter().any(|beginning| prefix.starts_with(beginning)) {
            Sniff::Yes
        } else if BEGINNINGS.iter().any(|beginning| beginning.starts_with(prefix)) {
            Sniff::More
        } else {
            Sniff::No
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        Ok(Arc::new(RtspEndpoint { options: OptionsError::parse(options)? }))
    }

    fn example(&self) -> &'static str {
        r#"# Players and recorders watch rtsp://HOST:8554/APP/NAME?key=KEY, or with the key as the password; encoders push there.
[[adapter]]
name = "rtsp"
listen = "tcp://0.0.0.0:8554"
protocol = "rtsp"
options = { udp = true }   # false: TCP alone
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for RtspEndpoint {
    fn limits(&self) -> Limits {
        Limits {
            frame_max: frame::PACKET_MAX + 1,
            // The session tells a client that watches over UDP from one that is gone.
            silence_max: None,
            admission_max: Duration::from_secs(30),
        }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(session::RtspSession::new(peer.seed, self.options.udp))
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("ffmpeg_play_tcp", include_bytes!("testdata/ffmpeg_play_tcp.bin")),
    Capture::stream("ffmpeg_play_udp", include_bytes!("testdata/ffmpeg_play_udp.bin")),
    // With its receiver reports between the requests.
    Capture::stream("gstreamer_play_tcp", include_bytes!("testdata/gstreamer_play_tcp.bin")),
    Capture::stream("ffmpeg_publish_tcp", include_bytes!("testdata/ffmpeg_publish_tcp.bin")),
    // Its AAC as LATM, and a query before the track.
    Capture::stream("gstreamer_publish_tcp", include_bytes!("testdata/gstreamer_publish_tcp.bin")),
];
