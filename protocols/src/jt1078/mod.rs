//! JT/T 1078-2016: cameras in vehicles push their channels, over TCP or UDP, to the port that a platform named to them.
//!
//! Inside: the row and its options; `frame.rs` (bytes to packets), `channel.rs` (packets of a channel to units), `sound.rs`
//! (its audio), `session.rs` (who sends what). Must not be in here: how a terminal is asked for its stream, which is
//! JT/T 808's.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::media::StreamName;
use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod channel;
pub mod frame;
mod session;
mod sound;
#[cfg(test)]
mod tests;

/// The row.
pub static ROW: Jt1078 = Jt1078;

#[derive(Debug)]
pub struct Jt1078;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The first level of the streams' names: `jt/SIM/CHANNEL`. A port for playback wants another than the one for live.
    app: Arc<str>,
    /// Channels one connection may carry, 1 to 64.
    channels_max: usize,
    /// What the frames under way of one connection may hold together, KiB, 64 to 16384.
    frame_max_kib: usize,
    /// A terminal that sends nothing for this long is closed, seconds, 1 to 600.
    silence_seconds: u64,
    /// G.726 has the first code of a byte in its high bits: as few terminals do.
    g726_big_endian: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            app: Arc::from("jt"),
            channels_max: 16,
            frame_max_kib: 2048,
            silence_seconds: 15,
            g726_big_endian: false,
        }
    }
}

#[derive(Debug)]
struct Jt1078Endpoint {
    options: Options,
}

impl Protocol for Jt1078 {
    fn name(&self) -> &'static str {
        "jt1078"
    }

    fn summary(&self) -> &'static str {
        "JT/T 1078: cameras in vehicles push (H.264, H.265; AAC, G.711, G.726, ADPCM)"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream, Wire::Datagram]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        let len = prefix.len().min(frame::MARK.len());
        match (prefix.get(..len) == frame::MARK.get(..len), len == frame::MARK.len()) {
            (true, true) => Sniff::Yes,
            (true, false) => Sniff::More,
            (false, _) => Sniff::No,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        let wrong = |key: &str, why: String| OptionsError { key: Some(key.to_owned()), why };
        let ranges = [
            ("channels_max", options.channels_max as u64, 1, 64),
            ("frame_max_kib", options.frame_max_kib as u64, 64, 16_384),
            ("silence_seconds", options.silence_seconds, 1, 600),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(wrong(key, format!("{value} is not in {least} to {most}")));
            }
        }
        if options.app.contains('/') || StreamName::parse(&format!("{}/1/1", options.app)).is_none() {
            return Err(wrong(
                "app",
                format!("`{}` is not one level of letters, digits, '-', '_' and '.'", options.app),
            ));
        }
        Ok(Arc::new(Jt1078Endpoint { options }))
    }

    fn example(&self) -> &'static str {
        r#"# Cameras in vehicles (JT/T 1078) push to this port, over TCP or, with udp://, UDP; each channel is a stream jt/SIM/CHANNEL.
# A terminal has no key to give: name the numbers that may push, or write allow_anonymous = true.
[[adapter]]
name = "vehicles"
listen = "tcp://0.0.0.0:1078"
protocol = "jt1078"
push_without_key = ["jt/0123*"]        # streams that may be pushed without a key, `*` at the end for all that begin so
options = { app = "jt", channels_max = 16, frame_max_kib = 2048, silence_seconds = 15, g726_big_endian = false }
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for Jt1078Endpoint {
    fn limits(&self) -> Limits {
        Limits {
            // A packet and the head of the next.
            frame_max: frame::PACKET_MAX + 2 * 1024,
            silence_max: Some(Duration::from_secs(self.options.silence_seconds)),
            admission_max: Duration::from_secs(10),
        }
    }

    fn open(&self, _peer: &Peer) -> Box<dyn Session> {
        Box::new(session::Jt1078Session::new(self.options.clone()))
    }
}

static CAPTURES: &[Capture] = &[
    // H.264 and G.711A on two channels, a SIM number of 6 bytes.
    Capture::stream("two_channels_2013", include_bytes!("testdata/two_channels_2013.bin")),
    // H.265 and AAC, a SIM number of 10 bytes.
    Capture::stream("hevc_aac_2019", include_bytes!("testdata/hevc_aac_2019.bin")),
    // H.264 and G.726, a datagram each.
    Capture::datagrams("datagrams", include_bytes!("testdata/datagrams.bin")),
];
