//! What a request asks for: its options understood, its path a resource of ours, its body reports.

use bytes::Bytes;
use device_models::{Outcome, Report, Value};

use super::blocks::Block;
use super::frame::{Code, Message, number, uint};
use crate::payload;
use crate::things::{self, Target, Wrong};

/// Content formats (RFC 7252 section 12.3, RFC 8949).
pub(super) const TEXT: u32 = 0;
pub(super) const LINK_FORMAT: u32 = 40;
pub(super) const JSON: u32 = 50;
pub(super) const CBOR: u32 = 60;

/// A request, its options read.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Code,
    pub(super) target: Target,
    pub(super) secret: Option<Bytes>,
    /// Source time from the query.
    pub(super) time_us: Option<i64>,
    pub(super) format: Option<u32>,
    pub(super) accept: Option<u32>,
    pub(super) observe: Option<u32>,
    pub(super) block1: Option<Block>,
    pub(super) block2: Option<Block>,
    /// Bytes of the whole body, as announced with its first block.
    pub(super) size1: Option<u32>,
    pub(super) payload: Bytes,
}

/// A request that is answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) why: String,
}

impl Refused {
    pub(super) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

impl From<Wrong> for Refused {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Path(why) => Self::new(Code::NOT_FOUND, why),
            Wrong::Body(why) => bad(why),
        }
    }
}

// === impl Ask ===

impl Ask {
    /// Understands the options, then the path, then whether method and format fit.
    pub(super) fn read(message: &Message, token_query: &str) -> Result<Self, Refused> {
        check_options(message)?;
        let path = texts(message, number::URI_PATH)?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let (target, path_secret) = Target::read(&path)?;
        let mut ask = Self {
            method: message.code,
            target,
            secret: path_secret,
            time_us: None,
            format: one_uint(message, number::CONTENT_FORMAT, 2),
            accept: one_uint(message, number::ACCEPT, 2),
            observe: one_uint(message, number::OBSERVE, 3),
            block1: Block::read(message, number::BLOCK1)?,
            block2: Block::read(message, number::BLOCK2)?,
            size1: one_uint(message, number::SIZE1, 4),
            payload: message.payload.clone(),
        };
        for query in texts(message, number::URI_QUERY)? {
            match query.split_once('=') {
                Some((key, secret)) if key == token_query => {
                    ask.secret = Some(Bytes::copy_from_slice(secret.as_bytes()));
                }
                Some(("t", time)) => ask.time_us = Some(things::query_time(time)?),
                // Other queries are not ours to judge; filters of /.well-known/core may be ignored (RFC 6690 4.1).
                _ => {}
            }
        }
        ask.check_method()?;
        ask.check_formats()?;
        Ok(ask)
    }

    pub(super) fn device(&self) -> &str {
        self.target.device()
    }

    /// The reports in a whole body; `device` is who the sender was found to be where the path does not say.
    pub(super) fn reports(&self, device: &str) -> Result<Vec<Report>, Refused> {
        Ok(self.target.reports(device, self.time_us, self.body()?)?)
    }

    /// The device's answer to a command.
    pub(super) fn outcome(&self) -> Result<Outcome, Refused> {
        Ok(things::outcome(self.body()?)?)
    }

    fn check_method(&self) -> Result<(), Refused> {
        let allowed: &[Code] = match self.target {
            Target::Core | Target::Things | Target::Commands { .. } => &[Code::GET],
            Target::Properties { .. } | Target::Property { .. } | Target::Reply { .. } => &[Code::POST, Code::PUT],
            Target::Event { .. } | Target::Telemetry => &[Code::POST],
        };
        if allowed.contains(&self.method) {
            return Ok(());
        }
        Err(Refused::new(Code::METHOD_NOT_ALLOWED, "this resource does not take this method"))
    }

    fn check_formats(&self) -> Result<(), Refused> {
        let sends: &[u32] = match self.target {
            Target::Core | Target::Things | Target::Commands { .. } => &[],
            Target::Property { .. } | Target::Event { .. } => &[TEXT, JSON, CBOR],
            Target::Properties { .. } | Target::Reply { .. } | Target::Telemetry => &[JSON, CBOR],
        };
        let answers: &[u32] = match self.target {
            Target::Core => &[LINK_FORMAT],
            Target::Things => &[TEXT],
            Target::Commands { .. } => &[JSON, CBOR],
            _ => &[],
        };
        if self.format.is_some_and(|format| !sends.contains(&format)) && !self.payload.is_empty() {
            let why = "send application/json (50) or application/cbor (60)";
            return Err(Refused::new(Code::UNSUPPORTED_CONTENT_FORMAT, why));
        }
        if self.accept.is_some_and(|accept| !answers.is_empty() && !answers.contains(&accept)) {
            return Err(Refused::new(Code::NOT_ACCEPTABLE, "no such representation"));
        }
        Ok(())
    }

    /// The body as a value. Without a content format (clients on the command line often send none) a single property is
    /// text, and anything else JSON, or CBOR if its first byte cannot begin JSON.
    fn body(&self) -> Result<Value, Refused> {
        let body = &self.payload[..];
        let single = self.target.is_single();
        if let Some(nothing) = self.target.without_body().filter(|_| body.is_empty()) {
            return Ok(nothing);
        }
        let looks_like_cbor = body.first().is_some_and(|first| *first >= 0x80);
        let value = match self.format {
            Some(CBOR) => payload::cbor(body),
            Some(TEXT) => return Ok(things::text(body)?),
            None if single => return Ok(things::text(body)?),
            None if looks_like_cbor => payload::cbor(body),
            _ => payload::json(body),
        };
        value.map_err(|error| bad(error.to_string()))
    }
}

// === private ===

fn bad(why: impl Into<String>) -> Refused {
    Refused::new(Code::BAD_REQUEST, why)
}

/// Critical options that we do not know, that come too often or are too long are refused; elective ones of that kind
/// are passed over (RFC 7252 sections 5.4.1, 5.4.3 and 5.4.5).
fn check_options(message: &Message) -> Result<(), Refused> {
    let mut before = None;
    for (number, value) in &message.options {
        let repeats = before.replace(*number) == Some(*number);
        let (fits, repeatable) = match *number {
            number::URI_HOST => ((1..=255).contains(&value.len()), false),
            number::URI_PORT | number::ACCEPT => (value.len() <= 2, false),
            number::BLOCK1 | number::BLOCK2 => (value.len() <= 3, false),
            number::URI_PATH | number::URI_QUERY => (value.len() <= 255, true),
            number::PROXY_URI | number::PROXY_SCHEME => {
                return Err(Refused::new(Code::PROXYING_NOT_SUPPORTED, "not a proxy"));
            }
            unknown => (unknown % 2 == 0, true),
        };
        if !fits || (repeats && !repeatable) {
            return Err(Refused::new(
                Code::BAD_OPTION,
                format!("critical option {number} is unknown, repeated or too long"),
            ));
        }
    }
    Ok(())
}

fn texts(message: &Message, number: u16) -> Result<Vec<String>, Refused> {
    let text = |value: &Bytes| String::from_utf8(value.to_vec());
    message
        .values(number)
        .map(|value| text(value).map_err(|_| Refused::new(Code::BAD_OPTION, format!("option {number} is not UTF-8"))))
        .collect()
}

fn one_uint(message: &Message, number: u16, len_max: usize) -> Option<u32> {
    message.values(number).next().and_then(|value| uint(value, len_max))
}
