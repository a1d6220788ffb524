//! GB/T 28181, the media alone (C.2, annex C): cameras send MPEG program streams in RTP to a port they were told, over TCP or UDP.
//!
//! Inside: the row and its options; `frame.rs` (packets on a connection), `session.rs` (the talk). Must not be in here: program
//! streams and RTP, which are `media`'s, and the signalling (SIP), which this gateway does not have: whoever invites the
//! camera tells it this port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::media::StreamName;
use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod frame;
mod session;

/// The row.
pub static ROW: Gb28181 = Gb28181;

#[derive(Debug)]
pub struct Gb28181;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Every camera of this port is this stream.
    stream: Option<String>,
    /// The stream of each SSRC, which is a decimal number.
    streams: BTreeMap<String, String>,
    /// A camera that sends nothing for this long is gone: it sends pictures, or it is not there; seconds, 1 to 600.
    silence_seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { stream: None, streams: BTreeMap::new(), silence_seconds: 15 }
    }
}

/// What a camera's stream is called.
#[derive(Debug)]
struct Names {
    all: Option<StreamName>,
    by_ssrc: BTreeMap<u32, StreamName>,
}

impl Names {
    /// `gb/SSRC`, ten digits, where nobody said otherwise.
    fn of(&self, ssrc: u32) -> Option<StreamName> {
        let said = self.by_ssrc.get(&ssrc).or(self.all.as_ref());
        said.cloned().or_else(|| StreamName::parse(&format!("gb/{ssrc:010}")))
    }

    fn parse(options: &Options) -> Result<Self, OptionsError> {
        let wrong = |key: &str, why: String| OptionsError { key: Some(key.to_owned()), why };
        let name = |key: &str, text: &String| {
            StreamName::parse(text).ok_or_else(|| wrong(key, format!("`{text}` is no stream: say APP/NAME")))
        };
        let all = options.stream.as_ref().map(|text| name("stream", text)).transpose()?;
        let entry = |(ssrc, text): (&String, &String)| {
            let number = ssrc.parse().map_err(|_| wrong("streams", format!("`{ssrc}` is no SSRC: say 10 digits")))?;
            Ok((number, name("streams", text)?))
        };
        Ok(Self { all, by_ssrc: options.streams.iter().map(entry).collect::<Result<_, _>>()? })
    }
}

#[derive(Debug)]
struct GbEndpoint {
    names: Arc<Names>,
    silence_max: Duration,
}

impl Protocol for Gb28181 {
    fn name(&self) -> &'static str {
        "gb28181"
    }

    fn summary(&self) -> &'static str {
        "GB/T 28181 media: cameras send MPEG-PS in RTP, over TCP (RFC 4571) and UDP"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream, Wire::Datagram]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        match frame::begins(prefix) {
            None => Sniff::More,
            Some(true) => Sniff::Yes,
            Some(false) => Sniff::No,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        let seconds = options.silence_seconds;
        if !(1..=600).contains(&seconds) {
            let why = format!("{seconds} is not in 1 to 600");
            return Err(OptionsError { key: Some("silence_seconds".to_owned()), why });
        }
        let names = Arc::new(Names::parse(&options)?);
        Ok(Arc::new(GbEndpoint { names, silence_max: Duration::from_secs(seconds) }))
    }

    fn example(&self) -> &'static str {
        r#"# Cameras of GB/T 28181 send MPEG-PS in RTP to this port, as your SIP server tells them: over TCP (the camera connects) or,
# with udp://, UDP. The stream is gb/SSRC, ten digits, unless said here.
# A camera has no key to give: name the streams that may be pushed, or write allow_anonymous = true.
[[adapter]]
name = "gb-media"
listen = "tcp://0.0.0.0:30000"
protocol = "gb28181"
push_without_key = ["gb/34020*", "live/gate-1"]   # streams that may be pushed without a key, `*` at the end for all that begin so
# stream = "live/gate-1": every camera of this port is this stream, whatever its SSRC
options = { streams = { "0100000001" = "live/gate-1" }, silence_seconds = 15 }
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Endpoint for GbEndpoint {
    fn limits(&self) -> Limits {
        Limits {
            // Of packets, several key frames.
            frame_max: 1024 * 1024,
            silence_max: Some(self.silence_max),
            admission_max: Duration::from_secs(10),
        }
    }

    fn open(&self, _peer: &Peer) -> Box<dyn Session> {
        Box::new(session::GbSession::new(Arc::clone(&self.names)))
    }
}

static CAPTURES: &[Capture] = &[
    // ffmpeg's own program streams, cut into packets: of MPEG-2 and of MPEG-1.
    Capture::stream("ffmpeg_vob_tcp", include_bytes!("testdata/ffmpeg_vob_tcp.bin")),
    Capture::stream("ffmpeg_mpeg_dollar", include_bytes!("testdata/ffmpeg_mpeg_dollar.bin")),
    Capture::datagrams("ffmpeg_vob_udp", include_bytes!("testdata/ffmpeg_vob_udp.bin")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_called_as_the_options_say() {
        let names = |text: &str| Names::parse(&OptionsError::parse(&toml::from_str(text).unwrap()).unwrap());
        let of = |text: &str, ssrc| names(text).unwrap().of(ssrc).unwrap().as_str().to_owned();
        assert_eq!(of("", 100_000_001), "gb/0100000001");
        let both = "stream = 'live/all'\nstreams = { '0100000001' = 'live/gate' }";
        assert_eq!((of(both, 100_000_001), of(both, 7)), ("live/gate".to_owned(), "live/all".to_owned()));
        for wrong in ["stream = 'nothing'", "streams = { 'x' = 'live/a' }", "streams = { '1' = '../a' }"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
        for wrong in ["silence_seconds = 0", "silence_seconds = 601"] {
            assert!(ROW.configure(&toml::from_str(wrong).unwrap()).is_err(), "{wrong}");
        }
    }
}
