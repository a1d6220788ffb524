//! `http-things`: devices report by plain HTTP/1.1, with the paths and bodies of CoAP.
//!
//! | request | does |
//! |---|---|
//! | `POST` or `PUT /things/DEVICE/properties` | reports properties: `{"temperature":21.5}`, `{"time":T,"properties":{…}}`, or an array of such objects |
//! | `PUT` or `POST /things/DEVICE/properties/NAME` | reports one: `21.5` |
//! | `POST /things/DEVICE/events/NAME` | reports an event; the body is its data, or `{"time":T,"data":…}` |
//! | `GET /things/DEVICE/commands?wait=SECONDS` | waits for an order: `{"id":"c1","write":{…}}`, `"read":[…]`, `"invoke":"NAME","input":…`; 204 when none came. The device is connected as long as this connection is; an order that waited for it comes with the next poll, however short |
//! | `POST /things/DEVICE/replies/ID` | answers it: `{"ok":true,"data":…}` or `{"ok":false,"error":"…"}` |
//! | `POST /api/v1/TOKEN/telemetry` | ThingsBoard's way: the token says which device; `{"k":v}` or `{"ts":MS,"values":{…}}` |
//! | `GET /things` | a short manual |
//!
//! Bodies are JSON, or CBOR (`application/cbor`). Credentials come as `Authorization: Bearer SECRET`, as Basic user and
//! password, or as `?token=SECRET`; the source time as `?t=` or in the body. 204 means: it is on disk. A refusal has a
//! status of its own and says why as `{"error":"…"}`.
//!
//! Inside: the row; `frame.rs` (a request with its body, understood), `session.rs` (the talk), `orders.rs` (orders that
//! wait for a device to ask). Must not be in here: heads of HTTP, which are `http`'s, and what paths and bodies mean,
//! which is `things`'.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::http;
use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};

mod frame;
mod orders;
mod session;

/// The row.
pub(crate) static ROW: HttpThings = HttpThings;

#[derive(Debug)]
pub(crate) struct HttpThings;

/// The adapter's `options`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Query parameter with the credential's secret.
    token_query: String,
    /// Bytes of a body, KiB, 1 to 1024.
    body_kib: usize,
    /// A connection without a request for this long is closed, seconds, 61 to 3600: longer than the longest `wait`.
    silence_seconds: u64,
    /// The origin whose web pages may report here, `*` for all. Absent: a request that a web page sent is refused.
    allow_origin: Option<String>,
}

/// The protocol with its options.
#[derive(Debug)]
struct Door {
    options: Arc<Options>,
}

// === impl HttpThings ===

impl Protocol for HttpThings {
    fn name(&self) -> &'static str {
        "http-things"
    }

    fn summary(&self) -> &'static str {
        "devices report by HTTP/1.1, JSON and CBOR"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    fn sniff(&self, prefix: &[u8]) -> Sniff {
        const BEGINNINGS: [&[u8]; 4] = [b"POST /", b"PUT /", b"GET /things", b"HEAD /things"];
        http::begins(prefix, &BEGINNINGS)
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        let options: Options = OptionsError::parse(options)?;
        options.check()?;
        Ok(Arc::new(Door { options: Arc::new(options) }))
    }

    fn example(&self) -> &'static str {
        r#"# HTTP: curl -d '{"temperature":21.5}' -H 'Authorization: Bearer SECRET' http://HOST:8090/things/boiler/properties
[[adapter]]
name = "http"
listen = "tcp://127.0.0.1:8090"     # or tls://0.0.0.0:8443 with cert_file and key_file
protocol = "http-things"
allow_anonymous = true

[adapter.options]
token_query = "token"               # query parameter with the credential's secret, where no Authorization is sent
body_kib = 64                       # longest body, 1 to 1024
silence_seconds = 75                # a connection without a request is closed after, 61 to 3600
# allow_origin = "https://HOST"     # web pages that may report here; default: none
"#
    }

    fn answers_elsewhere(&self) -> bool {
        true
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self { token_query: "token".to_owned(), body_kib: 64, silence_seconds: 75, allow_origin: None }
    }
}

impl Options {
    fn body_max(&self) -> usize {
        self.body_kib * 1024
    }

    fn check(&self) -> Result<(), OptionsError> {
        let wrong = |key: &str, why: String| Err(OptionsError { key: Some(key.to_owned()), why });
        if self.token_query.is_empty() || ["t", "wait"].contains(&self.token_query.as_str()) {
            return wrong("token_query", format!("`{}` is empty or has another meaning", self.token_query));
        }
        if !(1..=1024).contains(&self.body_kib) {
            return wrong("body_kib", format!("{} is not 1 to 1024", self.body_kib));
        }
        if !(61..=3600).contains(&self.silence_seconds) {
            return wrong("silence_seconds", format!("{} is not 61 to 3600", self.silence_seconds));
        }
        if self.allow_origin.is_some() {
            http::allow_origin(self.allow_origin.clone())?;
        }
        Ok(())
    }
}

// === impl Door ===

impl Endpoint for Door {
    fn limits(&self) -> Limits {
        Limits {
            frame_max: 2 * http::HEADER_MAX + self.options.body_max(),
            silence_max: Some(Duration::from_secs(self.options.silence_seconds)),
            admission_max: Duration::from_secs(30),
        }
    }

    fn open(&self, _peer: &Peer) -> Box<dyn Session> {
        Box::new(session::Talk::new(Arc::clone(&self.options)))
    }
}

static CAPTURES: &[Capture] = &[
    Capture::stream("curl_reports", include_bytes!("testdata/curl_reports.bin")),
    Capture::stream("python_requests_reports", include_bytes!("testdata/python_requests_reports.bin")),
    Capture::stream("curl_mistakes", include_bytes!("testdata/curl_mistakes.bin")),
];
