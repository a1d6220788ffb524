//! Answers: the status line, the fields every answer has, and short texts.

use super::{Method, Request, RequestError};

/// An answer under way: the status, then the fields, then how it ends.
#[derive(Debug, Clone)]
pub struct Answer {
    head: String,
    cache_control: &'static str,
}

impl Answer {
    /// `status` is a code with its reason, `200 OK`.
    pub fn new(status: &str, allow_origin: &str) -> Self {
        let head =
            format!("HTTP/1.1 {status}\r\nServer: sluicegate\r\nAccess-Control-Allow-Origin: {allow_origin}\r\n");
        Self { head, cache_control: "no-store" }
    }

    /// What caches may do with it; `no-store` unless this is said.
    #[must_use]
    pub fn cache_control(self, cache_control: &'static str) -> Self {
        Self { cache_control, ..self }
    }

    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        for part in [name, ": ", value, "\r\n"] {
            self.head.push_str(part);
        }
        self
    }

    /// The head of an answer whose body follows.
    pub fn head(self, close: bool) -> String {
        self.ends(if close { "close" } else { "keep-alive" })
    }

    /// The head of an answer after which another protocol is spoken.
    pub fn upgrade(self) -> String {
        self.ends("Upgrade")
    }

    fn ends(self, connection: &str) -> String {
        let cache_control = self.cache_control;
        self.field("Cache-Control", cache_control).field("Connection", connection).head + "\r\n"
    }

    /// A whole answer with a line of text; without the line for HEAD.
    pub fn text(self, text: &str, head_only: bool, close: bool) -> String {
        let len = (text.len() + 1).to_string();
        let answer = self.field("Content-Type", "text/plain; charset=utf-8").field("Content-Length", &len);
        let mut bytes = answer.head(close);
        if !head_only {
            bytes.push_str(text);
            bytes.push('\n');
        }
        bytes
    }

    /// A browser asks whether a page of another site may ask (the Fetch standard, 3.2.2).
    pub fn preflight(allow_origin: &str, close: bool) -> String {
        Self::new("204 No Content", allow_origin)
            .field("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
            .field("Access-Control-Allow-Headers", "*")
            .field("Access-Control-Max-Age", "86400")
            .head(close)
    }

    /// The answer to another method than those.
    pub fn method_not_allowed(allow_origin: &str, close: bool) -> String {
        let answer = Self::new("405 Method Not Allowed", allow_origin).field("Allow", "GET, HEAD, OPTIONS");
        answer.text("only GET, HEAD and OPTIONS are answered here", false, close)
    }

    /// The answer to what is no request; the connection ends with it.
    pub fn malformed(allow_origin: &str, error: &RequestError) -> String {
        let status = match error {
            RequestError::Malformed { .. } => "400 Bad Request",
            RequestError::TooLarge => "431 Request Header Fields Too Large",
            RequestError::Version => "505 HTTP Version Not Supported",
        };
        Self::new(status, allow_origin).text(&error.to_string(), false, true)
    }

    /// Sends a request that another protocol of this port answers to a connection of its own, where the first bytes
    /// decide anew. A browser that keeps connections takes one for everything at the address.
    pub fn elsewhere(request: &Request, allow_origin: &str) -> String {
        let answer = Self::new("307 Temporary Redirect", allow_origin).field("Location", &request.target);
        answer.text("on a connection of its own", request.method == Method::Head, true)
    }
}
