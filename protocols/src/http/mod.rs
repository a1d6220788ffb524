//! HTTP/1.1 as its languages here share it (HTTP-FLV, HLS, http-things): request heads in, answer heads out.
//!
//! Inside: `request.rs` and `answer.rs`. Must not be in here: what is asked for and who may have it.

mod answer;
mod request;

pub use answer::Answer;
pub use request::{FIELDS_MAX, HEADER_MAX, Method, Request, RequestError};

use crate::session::{Refusal, Sniff};

/// The beginnings of requests that are taken; RTSP has an OPTIONS of its own.
const BEGINNINGS: [&[u8]; 5] = [b"GET /", b"HEAD /", b"OPTIONS /", b"OPTIONS http", b"OPTIONS * HTTP"];

/// Answers without a stream that one connection may have: nobody needs more, and each is free work for a stranger.
pub(crate) const ANSWERS_MAX: u64 = 100;

/// Whether a connection begins with a request.
pub(crate) fn sniff(prefix: &[u8]) -> Sniff {
    begins(prefix, &BEGINNINGS)
}

/// Whether a connection begins with one of these.
pub(crate) fn begins(prefix: &[u8], beginnings: &[&[u8]]) -> Sniff {
    if beginnings.iter().any(|beginning| prefix.starts_with(beginning)) {
        Sniff::Yes
    } else if beginnings.iter().any(|beginning| beginning.starts_with(prefix)) {
        Sniff::More
    } else {
        Sniff::No
    }
}

/// The status line's words for a refusal.
pub(crate) fn status_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unauthorized => "401 Unauthorized",
        Refusal::Forbidden(_) => "403 Forbidden",
        Refusal::NotFound(_) => "404 Not Found",
        Refusal::Invalid(_) => "400 Bad Request",
        Refusal::Limit(_) | Refusal::Unavailable(_) => "503 Service Unavailable",
    }
}

/// The value of `Access-Control-Allow-Origin` that an adapter's options name; `None` when it is no origin.
pub(crate) fn allow_origin(option: Option<String>) -> Result<std::sync::Arc<str>, crate::OptionsError> {
    let origin = option.unwrap_or_else(|| "*".to_owned());
    if origin.is_empty() || !origin.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = format!("{origin:?} is no origin: write * or https://HOST");
        return Err(crate::OptionsError { key: Some("allow_origin".to_owned()), why });
    }
    Ok(origin.into())
}
