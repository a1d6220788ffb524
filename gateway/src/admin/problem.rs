//! Errors of the API as problem details (RFC 9457).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use device_models::Failure;
use serde_json::json;

/// An answer that says what went wrong. `detail` is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    /// No address can be signed.
    pub(super) fn no_randomness() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway had no randomness at its start")
    }

    /// How a command's failure is told.
    pub(super) fn of(failure: &Failure) -> Self {
        let status = match failure {
            Failure::Offline => StatusCode::SERVICE_UNAVAILABLE,
            Failure::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
            Failure::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Failure::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Failure::Device(_) => StatusCode::BAD_GATEWAY,
            Failure::Busy => StatusCode::TOO_MANY_REQUESTS,
            Failure::Waiting(_) => StatusCode::ACCEPTED,
            Failure::Expired(_) => StatusCode::GATEWAY_TIMEOUT,
            Failure::GivenUp(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, failure.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
