//! A request with its body, taken off the wire and understood as far as nobody needs to be asked.

use bytes::{Buf, Bytes, BytesMut};
use device_models::Value;

use super::Options;
use crate::http::{Method, Request, RequestError};
use crate::payload;
use crate::things::{self, Target, Wrong};

/// What stands at the front of a connection's bytes.
#[derive(Debug)]
pub(super) enum Frame {
    /// A head whose body may not come: its status and why. The talk ends with it.
    Unwanted {
        status: &'static str,
        why: String,
    },
    /// A head whose sender waits to be told to go on (RFC 9110, 10.1.1).
    Expecting,
    Whole {
        request: Box<Request>,
        body: Bytes,
    },
}

impl Frame {
    /// Takes the next frame off the front; `None` while it is not all there. `told`: the sender was told to go on.
    pub(super) fn take(buffer: &mut BytesMut, body_max: usize, told: bool) -> Result<Option<Self>, RequestError> {
        let Some(request) = Request::parse_head(buffer)? else { return Ok(None) };
        let len = request.body_len()?;
        if len > body_max {
            buffer.clear();
            let why = format!("a body of {len} bytes, at most {body_max}");
            return Ok(Some(Self::Unwanted { status: "413 Content Too Large", why }));
        }
        if !told && request.minor == 1 && request.has_token("expect", "100-continue") {
            return Ok(Some(Self::Expecting));
        }
        if buffer.len() < request.len + len {
            return Ok(None);
        }
        buffer.advance(request.len);
        let body = buffer.split_to(len).freeze();
        Ok(Some(Self::Whole { request: Box::new(request), body }))
    }
}

/// A request for a resource of a thing.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) target: Target,
    pub(super) user: Option<String>,
    pub(super) secret: Option<Bytes>,
    /// Source time from the query.
    time_us: Option<i64>,
    /// Seconds an order is waited for.
    pub(super) wait_s: u64,
    format: Format,
    body: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Cbor,
    Text,
}

/// A request that is answered with an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// A code with its reason.
    pub(super) status: &'static str,
    pub(super) why: String,
    /// The methods that the resource takes, where it was another.
    pub(super) allow: Option<&'static str>,
}

impl Refused {
    pub(super) fn new(status: &'static str, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), allow: None }
    }

    fn method(target: &Target) -> Self {
        let allow = match target {
            Target::Core | Target::Things => "GET, HEAD",
            Target::Commands { .. } => "GET",
            Target::Properties { .. } | Target::Property { .. } | Target::Reply { .. } => "POST, PUT",
            Target::Event { .. } | Target::Telemetry => "POST",
        };
        Self { allow: Some(allow), ..Self::new("405 Method Not Allowed", format!("only {allow} here")) }
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Path(why) => Self::new("404 Not Found", why),
            Wrong::Body(why) => Self::new("400 Bad Request", why),
        }
    }
}

impl Ask {
    /// The longest wait for an order, seconds: what lies between keeps connections that are silent for longer from living.
    const WAIT_MAX_S: u64 = 60;

    pub(super) fn read(request: &Request, body: Bytes, options: &Options) -> Result<Self, Refused> {
        let path: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let (target, path_secret) = Target::read(&path)?;
        if target == Target::Core {
            return Err(Refused::new("404 Not Found", "no such resource; /things is a short manual"));
        }
        let allowed = match target {
            Target::Core | Target::Things => [Method::Get, Method::Head],
            Target::Commands { .. } => [Method::Get; 2],
            Target::Properties { .. } | Target::Property { .. } | Target::Reply { .. } => [Method::Post, Method::Put],
            Target::Event { .. } | Target::Telemetry => [Method::Post; 2],
        };
        if !allowed.contains(&request.method) {
            return Err(Refused::method(&target));
        }
        let in_query = request.parameter(&options.token_query).map(|secret| (None, secret));
        let (user, secret) = request.credentials().or(in_query).unzip();
        let secret = secret.map(Bytes::from).or(path_secret);
        let time_us = request.parameter("t").map(|time| things::query_time(&time)).transpose()?;
        let wait = request.parameter("wait").map(|text| text.parse::<u64>());
        let Ok(wait_s) = wait.unwrap_or(Ok(0)) else {
            return Err(Refused::new("400 Bad Request", "`wait` is not a number of seconds"));
        };
        let format = Format::of(request, &target)?;
        Ok(Self { target, user: user.flatten(), secret, time_us, wait_s: wait_s.min(Self::WAIT_MAX_S), format, body })
    }

    /// The body as a value.
    pub(super) fn value(&self) -> Result<Value, Refused> {
        if let Some(nothing) = self.target.without_body().filter(|_| self.body.is_empty()) {
            return Ok(nothing);
        }
        let value = match self.format {
            Format::Json => payload::json(&self.body),
            Format::Cbor => payload::cbor(&self.body),
            Format::Text => return Ok(things::text(&self.body)?),
        };
        value.map_err(|error| Refused::new("400 Bad Request", error.to_string()))
    }

    /// The reports in the body of a request by this device.
    pub(super) fn reports(&self, device: &str) -> Result<Vec<device_models::Report>, Refused> {
        Ok(self.target.reports(device, self.time_us, self.value()?)?)
    }
}

impl Format {
    /// What a body is. Clients on the command line often say `application/x-www-form-urlencoded`, or nothing: then a single
    /// property is text and anything else JSON.
    fn of(request: &Request, target: &Target) -> Result<Self, Refused> {
        let said = request.field("content-type").unwrap_or_default();
        let kind = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "application/json" => Ok(Self::Json),
            "application/cbor" => Ok(Self::Cbor),
            "" | "application/x-www-form-urlencoded" | "text/plain" => {
                Ok(if target.is_single() { Self::Text } else { Self::Json })
            }
            _ => Err(Refused::new("415 Unsupported Media Type", "send application/json or application/cbor")),
        }
    }
}
