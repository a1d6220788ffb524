//! `coap`: RFC 7252 over UDP, with blocks (RFC 7959) and observation (RFC 7641).
//!
//! | request | does |
//! |---|---|
//! | `POST` or `PUT /things/DEVICE/properties` | reports properties: `{"temperature":21.5}`, `{"time":T,"properties":{…}}`, or an array of such objects |
//! | `PUT` or `POST /things/DEVICE/properties/NAME` | reports one: `21.5` as text, JSON or CBOR |
//! | `POST /things/DEVICE/events/NAME` | reports an event; the body is its data, or `{"time":T,"data":…}` |
//! | `GET /things/DEVICE/commands` with Observe | each notification is an order: `{"id":"c1","write":{…}}`, `"read":[…]`, `"invoke":"NAME","input":…` |
//! | `POST /things/DEVICE/replies/ID` | answers it: `{"ok":true,"data":…}` or `{"ok":false,"error":"…"}` |
//! | `POST /api/v1/TOKEN/telemetry` | ThingsBoard's way: the token says which device; `{"k":v}` or `{"ts":MS,"values":{…}}` |
//! | `GET /.well-known/core`, `GET /things` | links (RFC 6690), a short manual |
//!
//! Bodies are JSON (content format 50) or CBOR (60). `?token=SECRET` carries the credential, `?t=` or the body's `time`
//! the source time (seconds, ms or us since 1970, or RFC 3339). 2.04 means: it is on disk. When that takes longer than
//! `separate_ms` the request is acknowledged first and the response follows by itself, repeated until acknowledged.
//!
//! Must not be in here: DTLS and other wires; they are transports.

mod blocks;
mod delivery;
mod frame;
mod links;
mod orders;
mod request;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

/// The row of [`PROTOCOLS`](crate::PROTOCOLS).
pub(crate) static ROW: Coap = Coap;

#[derive(Debug)]
pub(crate) struct Coap;

/// The adapter's `options`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Query parameter with the credential's secret.
    token_query: String,
    /// Bytes of one message, 128 to 65507. A larger request is answered with 4.13, which makes clients send blocks.
    message_bytes: usize,
    /// Bytes of a body sent in blocks, KiB, 1 to 256. A peer may have two of them half sent at a time.
    body_kib: usize,
    /// A confirmable request that is not settled after this long is acknowledged, and its response sent separately,
    /// ms, 100 to 1900 (clients repeat their request after 2000).
    separate_ms: u64,
    /// A peer that sends nothing for this long is forgotten, and with it what it observes, seconds, 250 to 604800.
    silence_seconds: u64,
}

/// The protocol with its options.
#[derive(Debug)]
struct Door {
    options: Arc<Options>,
}

// === impl Coap ===

impl Protocol for Coap {
    fn name(&self) -> &'static str {
        "coap"
    }

    fn summary(&self) -> &'static str {
        "CoAP (RFC 7252) with blocks and observation, JSON and CBOR"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Datagram]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        match prefix.first() {
            None => Sniff::More,
            // Version 1 and a token of at most 8 bytes.
            Some(first) if first >> 6 == 1 && first & 0x0f <= 8 => Sniff::Yes,
            Some(_) => Sniff::No,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        options.check()?;
        Ok(Arc::new(Door { options: Arc::new(options) }))
    }

    fn example(&self) -> &'static str {
        r#"# CoAP: coap-client -m put -e 21.5 coap://HOST/things/boiler/properties/temperature?token=SECRET
[[adapter]]
name = "coap"
listen = "udp://127.0.0.1:5683"
protocol = "coap"
allow_anonymous = true

[adapter.options]
token_query = "token"       # query parameter with the credential's secret
message_bytes = 1152        # larger requests are answered with 4.13: send blocks
body_kib = 16               # longest body sent in blocks, 1 to 256
separate_ms = 1000          # a slower answer is announced with an empty acknowledgement, 100 to 1900
silence_seconds = 3600      # a silent peer (and what it observes) is forgotten after
"#
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

static CAPTURES: &[Capture] = &[
    Capture::datagrams("by_hand_requests", include_bytes!("testdata/by_hand_requests.bin")),
    Capture::datagrams("libcoap_client", include_bytes!("testdata/libcoap_client.bin")),
    Capture::datagrams("aiocoap_client", include_bytes!("testdata/aiocoap_client.bin")),
];

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            token_query: "token".to_owned(),
            message_bytes: 1152,
            body_kib: 16,
            separate_ms: 1000,
            silence_seconds: 3600,
        }
    }
}

impl Options {
    fn body_max(&self) -> usize {
        self.body_kib * 1024
    }

    fn check(&self) -> Result<(), OptionsError> {
        let wrong = |key: &str, why: String| Err(OptionsError { key: Some(key.to_owned()), why });
        if self.token_query.is_empty() || self.token_query == "t" {
            return wrong("token_query", "`t` is the time's, and a name has letters".to_owned());
        }
        if !(128..=65_507).contains(&self.message_bytes) {
            return wrong("message_bytes", format!("{} is not 128 to 65507", self.message_bytes));
        }
        if !(1..=256).contains(&self.body_kib) {
            return wrong("body_kib", format!("{} is not 1 to 256", self.body_kib));
        }
        if !(100..=1900).contains(&self.separate_ms) {
            return wrong("separate_ms", format!("{} is not 100 to 1900", self.separate_ms));
        }
        if !(250..=604_800).contains(&self.silence_seconds) {
            return wrong("silence_seconds", format!("{} is not 250 to 604800", self.silence_seconds));
        }
        Ok(())
    }
}

// === impl Door ===

impl Endpoint for Door {
    fn limits(&self) -> Limits {
        Limits {
            // Every packet may come in: what is larger than `message_bytes` is answered, not dropped.
            frame_max: 65_535,
            silence_max: Some(Duration::from_secs(self.options.silence_seconds)),
            // As long as its message ids mean something: a peer that only looked around is forgotten then.
            admission_max: Duration::from_secs(247),
        }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(session::Talk::new(Arc::clone(&self.options), peer))
    }
}
