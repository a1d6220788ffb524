//! `raw`: JSON, one object a line, over TCP, UDP and serial lines. For devices that have no protocol of their own.
//!
//! A report is an object with the device's name, an optional time and the properties, either beside them or in an
//! object of their own; an event has a name and data; a line break ends each. Over UDP a packet holds one or more lines.
//!
//! ```text
//! {"device":"boiler","time":1764144000250,"temperature":61.5,"on":true}
//! {"device":"boiler","seq":7,"properties":{"temperature":61.5}}
//! {"device":"boiler","event":"overheat","data":{"temperature":97}}
//! ```
//!
//! On streams every line is answered, in order, once it is on disk: `{"ok":true}` or `{"ok":false,"error":"…"}`, with
//! the line's own `id` and `seq`. `id`, `seq` and the fields that the options name are never properties; a property of
//! such a name goes into `properties`. Commands go to the device as lines too, and it answers with `reply`:
//!
//! ```text
//! gateway: {"device":"boiler","id":"c1","write":{"target":60}}     or "read":["target"]   or "invoke":"vent","input":{…}
//! device:  {"reply":"c1","ok":true,"data":{"target":60}}           or {"reply":"c1","ok":false,"error":"busy"}
//! ```
//!
//! Must not be in here: other framings than a folder file can hold; each becomes a variant of [`frame::Framing`].

mod frame;
mod line;
mod session;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};
use frame::Framing;

/// The row of [`PROTOCOLS`](crate::PROTOCOLS).
pub(crate) static ROW: Raw = Raw;

#[derive(Debug)]
pub(crate) struct Raw;

/// The adapter's `options`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// How frames are told apart; `line` is the only way so far.
    framing: Framing,
    /// Field with the device's name.
    device_field: String,
    /// Field with the source time: RFC 3339 text, or a number of seconds (below 10^11), milliseconds (below 10^14) or
    /// microseconds since 1970 UTC.
    time_field: String,
    /// Field with an event's name.
    event_field: String,
    /// Field with the credential's secret.
    token_field: String,
    /// Every line is of this device, whatever it says.
    device: Option<String>,
    /// A line without a device is of the device named after the peer's IP address (the adapter's name where the wire
    /// has no addresses).
    peer: bool,
    /// Whether each line is answered. Absent: yes on streams, no on datagrams.
    ack: Option<bool>,
    /// Bytes of a line, KiB, 1 to 1024.
    line_kib: usize,
    /// A peer that sends nothing for this long is closed, seconds, 10 to 604800.
    silence_seconds: u64,
    /// A peer that has not sent a valid line this long after it connected is closed, seconds, 1 to 3600.
    admission_seconds: u64,
}

/// The protocol with its options.
#[derive(Debug)]
struct Door {
    options: Arc<Options>,
}

// === impl Raw ===

impl Protocol for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn summary(&self) -> &'static str {
        "JSON, one object a line, over TCP, UDP or a serial line"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream, Wire::Datagram]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        // Blank lines before the first object are allowed, but not for ever.
        const BLANK_MAX: usize = 64;
        let blank = prefix.iter().take_while(|b| b.is_ascii_whitespace()).count();
        match prefix.get(blank) {
            _ if blank > BLANK_MAX => Sniff::No,
            None => Sniff::More,
            Some(b'{') => Sniff::Yes,
            Some(_) => Sniff::No,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        options.check()?;
        Ok(Arc::new(Door { options: Arc::new(options) }))
    }

    fn example(&self) -> &'static str {
        r#"# JSON, one object a line: {"device":"boiler","time":1764144000250,"temperature":61.5}
[[adapter]]
name = "json-lines"
listen = "tcp://127.0.0.1:9000"     # or udp://127.0.0.1:9001, serial:///dev/ttyS1?baud=9600
protocol = "raw"
allow_anonymous = true

[adapter.options]
framing = "line"                    # frames end with a line break
device_field = "device"             # field with the device's name
time_field = "time"                 # s, ms or us since 1970, or RFC 3339
event_field = "event"               # field with an event's name
token_field = "token"               # field with the credential's secret
# device = "boiler"                 # every line is of this device
peer = false                        # lines without a device: named by the peer's IP address
# ack = true                        # answer every line; default: on streams yes, on datagrams no
line_kib = 64                       # longest line, 1 to 1024
silence_seconds = 3600              # a silent peer is closed after
admission_seconds = 60              # time a new peer has for its first valid line
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("printf_nc_reports", include_bytes!("testdata/printf_nc_reports.bin")),
    Capture::stream("printf_nc_mistakes", include_bytes!("testdata/printf_nc_mistakes.bin")),
    Capture::datagrams("socat_udp_lines", include_bytes!("testdata/socat_udp_lines.bin")),
];

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            framing: Framing::Line,
            device_field: "device".to_owned(),
            time_field: "time".to_owned(),
            event_field: "event".to_owned(),
            token_field: "token".to_owned(),
            device: None,
            peer: false,
            ack: None,
            line_kib: 64,
            silence_seconds: 3600,
            admission_seconds: 60,
        }
    }
}

impl Options {
    fn line_max(&self) -> usize {
        self.line_kib * 1024
    }

    fn check(&self) -> Result<(), OptionsError> {
        let wrong = |key: &str, why: String| Err(OptionsError { key: Some(key.to_owned()), why });
        if !(1..=1024).contains(&self.line_kib) {
            return wrong("line_kib", format!("{} is not 1 to 1024", self.line_kib));
        }
        if !(10..=604_800).contains(&self.silence_seconds) {
            return wrong("silence_seconds", format!("{} is not 10 to 604800", self.silence_seconds));
        }
        if !(1..=3600).contains(&self.admission_seconds) {
            return wrong("admission_seconds", format!("{} is not 1 to 3600", self.admission_seconds));
        }
        if self.device.as_deref().is_some_and(|name| !line::device_name_ok(name)) {
            return wrong("device", format!("a device's name has 1 to {} bytes", line::DEVICE_NAME_MAX));
        }
        let mut names = line::RESERVED.to_vec();
        let fields = [
            ("device_field", &self.device_field),
            ("time_field", &self.time_field),
            ("event_field", &self.event_field),
            ("token_field", &self.token_field),
        ];
        for (key, field) in fields {
            if field.is_empty() || names.contains(&field.as_str()) {
                return wrong(key, format!("`{field}` is empty or has another meaning already"));
            }
            names.push(field);
        }
        Ok(())
    }
}

// === impl Door ===

impl Endpoint for Door {
    fn limits(&self) -> Limits {
        Limits {
            // The line's end (CR LF) comes on top.
            frame_max: self.options.line_max() + 2,
            silence_max: Some(Duration::from_secs(self.options.silence_seconds)),
            admission_max: Duration::from_secs(self.options.admission_seconds),
        }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(session::Talk::new(Arc::clone(&self.options), peer))
    }
}
