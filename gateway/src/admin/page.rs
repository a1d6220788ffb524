//! The page's own files, inside the binary. No build step: what lies in `page/` is what the browser gets, a file whose
//! name ends in `.gz` as its content coding.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::guard::host_name;

/// One file.
#[derive(Debug)]
pub(super) struct Asset {
    pub(super) path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

/// Every gzip file begins so (RFC 1952, 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];

pub(super) const ASSETS: &[Asset] = &[
    Asset { path: "/", kind: "text/html; charset=utf-8", bytes: include_bytes!("page/index.html") },
    Asset { path: "/app.js", kind: "text/javascript; charset=utf-8", bytes: include_bytes!("page/app.js") },
    Asset { path: "/things.js", kind: "text/javascript; charset=utf-8", bytes: include_bytes!("page/things.js") },
    Asset { path: "/cameras.js", kind: "text/javascript; charset=utf-8", bytes: include_bytes!("page/cameras.js") },
    Asset { path: "/whep.js", kind: "text/javascript; charset=utf-8", bytes: include_bytes!("page/whep.js") },
    Asset {
        path: "/recordings.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("page/recordings.js"),
    },
    Asset { path: "/style.css", kind: "text/css; charset=utf-8", bytes: include_bytes!("page/style.css") },
    Asset { path: "/icon.svg", kind: "image/svg+xml", bytes: include_bytes!("page/icon.svg") },
    Asset {
        path: "/vendor/mpegts.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("page/vendor/mpegts.js.gz"),
    },
    Asset {
        path: "/vendor/mpegts.js.LICENSE",
        kind: "text/plain; charset=utf-8",
        bytes: include_bytes!("page/vendor/mpegts.js.LICENSE"),
    },
    Asset { path: "/openapi.json", kind: "application/json", bytes: include_bytes!("openapi.json") },
];

impl Asset {
    /// The file, or that the browser has it already.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let tag = format!("\"{:08x}\"", crc32c::crc32c(self.bytes));
        let known = request.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
        let mut response = if known.is_some_and(|known| known.split(',').any(|k| k.trim() == tag)) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, HeaderValue::from_static(self.kind))], self.bytes).into_response()
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        // Without asking: every browser takes it, and one who names no coding takes any (RFC 9110, 12.5.3).
        if self.bytes.starts_with(GZIP) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

/// What a browser may do with an answer: own files only; media from the same host's other ports.
pub(super) fn content_policy(request: &HeaderMap) -> HeaderValue {
    let host = request.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = host_name(host);
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':'));
    let media = match (plain, name.contains(':')) {
        (false, _) => String::new(),
        (true, false) => format!(" http://{name}:* ws://{name}:* https://{name}:* wss://{name}:*"),
        (true, true) => format!(" http://[{name}]:* ws://[{name}]:* https://[{name}]:* wss://[{name}]:*"),
    };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'{media}; \
         media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_host_asked_for_and_nothing_a_header_smuggles_in() {
        let policy = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            content_policy(&headers).to_str().unwrap().to_owned()
        };
        assert!(
            policy("127.0.0.1:8080").contains(
                "connect-src 'self' http://127.0.0.1:* ws://127.0.0.1:* https://127.0.0.1:* wss://127.0.0.1:*;"
            )
        );
        assert!(policy("[::1]:8080").contains("http://[::1]:*"));
        assert!(policy("x; script-src *").contains("connect-src 'self';"));
    }

    #[test]
    fn no_file_has_inline_script_or_style() {
        let html = include_str!("page/index.html");
        for line in html.lines() {
            let script = line.contains("<script") && !line.contains("src=");
            assert!(
                !script && !line.contains("<style") && !line.contains(" style=") && !line.contains(" onclick="),
                "{line}"
            );
        }
    }
}
