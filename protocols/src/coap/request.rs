//! What a request asks for: its options understood, its path a resource of ours, its body reports.

use std::collections::BTreeMap;

use bytes::Bytes;
use device_models::{Failure, Outcome, Report, Value, Word};

use super::blocks::Block;
use super::frame::{Code, Message, number, uint};
use crate::payload;

/// Content formats (RFC 7252 section 12.3, RFC 8949).
pub(super) const TEXT: u32 = 0;
pub(super) const LINK_FORMAT: u32 = 40;
pub(super) const JSON: u32 = 50;
pub(super) const CBOR: u32 = 60;

/// Bytes of a device's, property's or event's name.
const NAME_MAX: usize = 200;

/// Reports of one body.
const REPORTS_MAX: usize = 64;

/// Properties of one report.
const PROPERTIES_MAX: usize = 4096;

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

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// `/.well-known/core`
    Core,
    /// `/things`
    Things,
    /// `/things/DEVICE/properties`
    Properties { device: String },
    /// `/things/DEVICE/properties/NAME`
    Property { device: String, name: String },
    /// `/things/DEVICE/events/NAME`
    Event { device: String, name: String },
    /// `/things/DEVICE/commands`
    Commands { device: String },
    /// `/things/DEVICE/replies/ID`
    Reply { device: String, id: String },
    /// `/api/v1/TOKEN/telemetry` and `attributes`, as ThingsBoard spells them: the token says which device.
    Telemetry,
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

// === impl Ask ===

impl Ask {
    /// Understands the options, then the path, then whether method and format fit.
    pub(super) fn read(message: &Message, token_query: &str) -> Result<Self, Refused> {
        check_options(message)?;
        let path = texts(message, number::URI_PATH)?;
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
                Some(("t", time)) => ask.time_us = Some(query_time(time)?),
                // Other queries are not ours to judge; filters of /.well-known/core may be ignored (RFC 6690 4.1).
                _ => {}
            }
        }
        ask.check_method()?;
        ask.check_formats()?;
        Ok(ask)
    }

    pub(super) fn device(&self) -> &str {
        match &self.target {
            Target::Core | Target::Things | Target::Telemetry => "",
            Target::Properties { device }
            | Target::Property { device, .. }
            | Target::Event { device, .. }
            | Target::Commands { device }
            | Target::Reply { device, .. } => device,
        }
    }

    /// The reports in a whole body; `device` is who the sender was found to be where the path does not say.
    pub(super) fn reports(&self, device: &str) -> Result<Vec<Report>, Refused> {
        let body = self.body()?;
        let bodies = match (&self.target, body) {
            (Target::Properties { .. } | Target::Telemetry, Value::Array(bodies)) => bodies,
            (_, body) => vec![body],
        };
        if bodies.is_empty() || bodies.len() > REPORTS_MAX {
            return Err(bad(format!("{} reports, not 1 to {REPORTS_MAX}", bodies.len())));
        }
        bodies.into_iter().map(|body| self.report(device, body)).collect()
    }

    /// The device's answer to a command.
    pub(super) fn outcome(&self) -> Result<Outcome, Refused> {
        let Value::Object(mut fields) = self.body()? else { return Err(bad("a reply is an object")) };
        let error = fields.remove("error");
        match (fields.remove("ok"), error) {
            (Some(Value::Bool(true)) | None, None) => Ok(Ok(fields.remove("data").unwrap_or_default())),
            (Some(Value::Bool(_)) | None, Some(Value::Text(text))) => Ok(Err(Failure::Device(text))),
            (Some(Value::Bool(_)) | None, error) => {
                let text =
                    error.map_or_else(|| "no reason given".to_owned(), |e| serde_json::Value::from(&e).to_string());
                Ok(Err(Failure::Device(text)))
            }
            (Some(other), _) => Err(bad(format!("`ok` is {}, not boolean", other.kind()))),
        }
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
        let single = matches!(self.target, Target::Property { .. });
        let may_be_empty = matches!(self.target, Target::Event { .. } | Target::Reply { .. });
        if body.is_empty() && may_be_empty {
            return Ok(if single { Value::Null } else { Value::Object(BTreeMap::new()) });
        }
        let looks_like_cbor = body.first().is_some_and(|first| *first >= 0x80);
        let value = match self.format {
            Some(CBOR) => payload::cbor(body),
            Some(TEXT) => return text(body),
            None if single => return text(body),
            None if looks_like_cbor => payload::cbor(body),
            _ => payload::json(body),
        };
        value.map_err(|error| bad(error.to_string()))
    }

    fn report(&self, device: &str, body: Value) -> Result<Report, Refused> {
        let (time, word) = match &self.target {
            Target::Property { name, .. } => (None, Word::Properties(vec![(name.clone(), body)])),
            Target::Event { name, .. } => event(name, body),
            _ => properties(body)?,
        };
        let time_us = match time {
            Some(time) => Some(payload::time_us(&time).map_err(|error| bad(error.to_string()))?),
            None => self.time_us,
        };
        Ok(Report { device: device.to_owned(), product: None, time_us, word })
    }
}

// === impl Target ===

impl Target {
    fn read(path: &[String]) -> Result<(Self, Option<Bytes>), Refused> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let device = |device: &str| device.to_owned();
        let target = match path[..] {
            [".well-known", "core"] => Self::Core,
            ["things"] => Self::Things,
            ["things", d, "properties"] => Self::Properties { device: device(d) },
            ["things", d, "properties", name] => Self::Property { device: device(d), name: name.to_owned() },
            ["things", d, "events", name] => Self::Event { device: device(d), name: name.to_owned() },
            ["things", d, "commands"] => Self::Commands { device: device(d) },
            ["things", d, "replies", id] => Self::Reply { device: device(d), id: id.to_owned() },
            ["api", "v1", token, "telemetry" | "attributes"] if !token.is_empty() => {
                return Ok((Self::Telemetry, Some(Bytes::copy_from_slice(token.as_bytes()))));
            }
            _ => return Err(Refused::new(Code::NOT_FOUND, "no such resource; see /.well-known/core")),
        };
        let plain = |name: &&str| !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control);
        if path.iter().all(plain) {
            return Ok((target, None));
        }
        Err(bad(format!("a name in the path is empty, longer than {NAME_MAX} bytes or has control characters")))
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

fn query_time(time: &str) -> Result<i64, Refused> {
    let value = match (time.parse::<i64>(), time.parse::<f64>()) {
        (Ok(number), _) => Value::Int(number),
        (_, Ok(number)) => Value::Float(number),
        _ => Value::Text(time.to_owned()),
    };
    payload::time_us(&value).map_err(|error| bad(format!("query `t`: {error}")))
}

/// A single value as text: a number, a truth value, or the text itself.
fn text(body: &[u8]) -> Result<Value, Refused> {
    let text = std::str::from_utf8(body).map_err(|_| bad("the text is not UTF-8"))?;
    Ok(match payload::json(text.trim().as_bytes()) {
        Ok(scalar @ (Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Bool(_))) => scalar,
        _ => Value::Text(text.to_owned()),
    })
}

/// `{"temperature":1,"time":T}`, `{"time":T,"properties":{…}}`, or ThingsBoard's `{"ts":T,"values":{…}}`.
fn properties(body: Value) -> Result<(Option<Value>, Word), Refused> {
    let Value::Object(mut fields) = body else {
        return Err(bad(format!("a report is an object, not {}", body.kind())));
    };
    let things_board = fields.contains_key("ts") && matches!(fields.get("values"), Some(Value::Object(_)));
    let (time_field, inner_field) = if things_board { ("ts", "values") } else { ("time", "properties") };
    let time = fields.remove(time_field);
    let properties: Vec<(String, Value)> = match fields.remove(inner_field) {
        Some(Value::Object(inner)) => fields.into_iter().chain(inner).collect(),
        Some(other) => return Err(bad(format!("`{inner_field}` is {}, not object", other.kind()))),
        None => fields.into_iter().collect(),
    };
    match properties.len() {
        0 => Err(bad("no properties")),
        1..=PROPERTIES_MAX => Ok((time, Word::Properties(properties))),
        many => Err(bad(format!("{many} properties, at most {PROPERTIES_MAX}"))),
    }
}

/// The body is the event's data, or `{"time":T,"data":…}`.
fn event(name: &str, body: Value) -> (Option<Value>, Word) {
    let name = name.to_owned();
    match body {
        Value::Object(mut fields) if fields.contains_key("data") => {
            let (time, data) = (fields.remove("time"), fields.remove("data").unwrap_or_default());
            (time, Word::Event { name, data })
        }
        Value::Object(fields) if fields.is_empty() => (None, Word::Event { name, data: Value::Null }),
        data => (None, Word::Event { name, data }),
    }
}
