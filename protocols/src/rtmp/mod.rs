//! RTMP (Adobe, "Real-Time Messaging Protocol" 1.0; Enhanced RTMP v1 and v2 for newer codecs): cameras and encoders push,
//! players watch.
//!
//! Inside: the row and its options; `handshake.rs`, `frame.rs` (chunks to messages), `command.rs` and `amf3.rs` (what
//! the messages say), `capabilities.rs` (which codecs a peer knows), `session.rs` (the server's side), `publishing.rs` (media to units), `client.rs` (a publisher of
//! our own, for relays). Must not be in here: FLV tags and AMF0, which are `media`'s.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod amf3;
mod capabilities;
pub mod client;
mod command;
pub mod frame;
mod handshake;
mod publishing;
mod session;

pub use client::Publisher;

/// The row.
pub static ROW: Rtmp = Rtmp;

#[derive(Debug)]
pub struct Rtmp;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Longest message (a video frame, as a rule), KiB, 64 to 16384.
    message_max_kib: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { message_max_kib: 4096 }
    }
}

#[derive(Debug)]
struct RtmpEndpoint {
    options: Options,
}

impl Protocol for Rtmp {
    fn name(&self) -> &'static str {
        "rtmp"
    }

    fn summary(&self) -> &'static str {
        "RTMP: cameras and encoders push, players watch (H.264, H.265, AV1; AAC, Opus, G.711)"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        match prefix.first() {
            None => Sniff::More,
            Some(&handshake::VERSION) => Sniff::Yes,
            Some(_) => Sniff::No,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        if !(64..=16_384).contains(&options.message_max_kib) {
            let why = format!("{} is not in 64 to 16384", options.message_max_kib);
            return Err(OptionsError { key: Some("message_max_kib".to_owned()), why });
        }
        Ok(Arc::new(RtmpEndpoint { options }))
    }

    fn example(&self) -> &'static str {
        r#"# Cameras push to rtmp://HOST:1935/APP/NAME?key=KEY, players watch the same address.
[[adapter]]
name = "live"
listen = "tcp://0.0.0.0:1935"
protocol = "rtmp"
options = { message_max_kib = 4096 }   # longest frame
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for RtmpEndpoint {
    fn limits(&self) -> Limits {
        Limits {
            // Payload is taken off the buffer as it comes: only C1 or C2 and chunk headers ever wait in it.
            frame_max: 16 * 1024,
            // A publisher's and a viewer's silence are the stream's to judge: viewers say nothing for minutes.
            silence_max: None,
            admission_max: Duration::from_secs(10),
        }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(session::RtmpSession::new(peer.seed, self.options.message_max_kib * 1024))
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("ffmpeg_publish", include_bytes!("testdata/ffmpeg_publish.bin")),
    Capture::stream("ffmpeg_play", include_bytes!("testdata/ffmpeg_play.bin")),
    // Enhanced RTMP, FourCC hvc1.
    Capture::stream("ffmpeg9_publish_hevc", include_bytes!("testdata/ffmpeg9_publish_hevc.bin")),
    // librtmp 2.3 inside curl; OBS carries the same library.
    Capture::stream("librtmp_publish", include_bytes!("testdata/librtmp_publish.bin")),
    Capture::stream("librtmp_play", include_bytes!("testdata/librtmp_play.bin")),
];
