//! WHEP (draft-ietf-wish-whep) and WHIP (RFC 9725): `/whep/APP/NAME`, `/whip/APP/NAME`, and the sessions below them.
//!
//! Not behind the console's token: a stream's own play and publish keys decide here, as for every other way to a stream.
//! Any web page may ask, for a key is never sent by a browser of its own accord. Must not be in here: SDP.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use protocols::media::StreamName;
use protocols::{Pass, Refusal};

use super::problem::Problem;
use super::{Console, door, guard};
use crate::webrtc::{Offer, OfferError, PatchError, Role};

const SDP: &str = "application/sdp";
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";
/// Who found no room may ask again after this long.
const RETRY_SECONDS: u32 = 5;

/// Both doors.
pub(super) fn routes() -> [(&'static str, MethodRouter<Console>); 2] {
    let whep = |console, from, method, path, query, headers, body| {
        answer(Role::Watch, Request { console, from, method, path, query, headers, body })
    };
    let whip = |console, from, method, path, query, headers, body| {
        answer(Role::Publish, Request { console, from, method, path, query, headers, body })
    };
    [("/whep/{*path}", any(whep)), ("/whip/{*path}", any(whip))]
}

/// Whether a path is a stream's affair and not the console's.
pub(super) fn owns(path: &str) -> bool {
    path.starts_with("/whep/") || path.starts_with("/whip/")
}

struct Request {
    console: State<Console>,
    from: ConnectInfo<door::From>,
    method: Method,
    path: Path<String>,
    query: RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
}

async fn answer(role: Role, request: Request) -> Response {
    let mut response = match request.method {
        Method::OPTIONS => allowed(),
        Method::POST => open(role, request).await.unwrap_or_else(Problem::into_response),
        Method::DELETE => close(role, &request).unwrap_or_else(Problem::into_response),
        Method::PATCH => trickle(role, request).unwrap_or_else(Problem::into_response),
        _ => Problem::new(StatusCode::METHOD_NOT_ALLOWED, "POST an offer; PATCH or DELETE a session").into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Location, ETag, Accept-Patch"));
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_SECONDS.into());
    }
    response
}

fn allowed() -> Response {
    let headers = [
        (header::ALLOW, "POST, PATCH, DELETE, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, PATCH, DELETE, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, If-Match"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
        (HeaderName::from_static("accept-post"), SDP),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

async fn open(role: Role, request: Request) -> Result<Response, Problem> {
    let webrtc = request.console.parts.webrtc.clone().ok_or_else(absent)?;
    is_of(&request.headers, SDP)?;
    let body = request.body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let sdp = String::from_utf8(body.into()).map_err(|_| bad("the offer is not UTF-8"))?;
    let mut pass = Pass::of_query(request.query.0.as_deref().unwrap_or_default());
    if let Some(key) = guard::bearer(&request.headers) {
        pass.key = Some(String::from_utf8_lossy(key).into_owned());
    }
    let stream = stream(&request.path)?;
    let door::From { peer, reached } = request.from.0;
    let path = format!("/{}/{stream}", if role == Role::Watch { "whep" } else { "whip" });
    let answer = webrtc.offer(Offer { role, stream, pass, sdp, peer, reached }).await.map_err(problem)?;
    let headers = [
        (header::CONTENT_TYPE, SDP.to_owned()),
        (header::LOCATION, format!("{path}/{}", answer.id)),
        (header::ETAG, answer.etag),
        (HeaderName::from_static("accept-patch"), FRAGMENT.to_owned()),
    ];
    Ok((StatusCode::CREATED, headers, answer.sdp).into_response())
}

fn close(role: Role, request: &Request) -> Result<Response, Problem> {
    let (stream, id) = session(&request.path)?;
    let webrtc = request.console.parts.webrtc.as_ref().ok_or_else(absent)?;
    if webrtc.close(role, &stream, id) { Ok(StatusCode::OK.into_response()) } else { Err(missing()) }
}

fn trickle(role: Role, request: Request) -> Result<Response, Problem> {
    let (stream, id) = session(&request.path)?;
    let webrtc = request.console.parts.webrtc.as_ref().ok_or_else(absent)?;
    is_of(&request.headers, FRAGMENT)?;
    let body = request.body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let fragment = std::str::from_utf8(&body).map_err(|_| bad("the fragment is not UTF-8"))?;
    let etag = request.headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok());
    webrtc.patch(role, &stream, id, etag, fragment).map_err(|error| {
        let status = match error {
            PatchError::Missing => StatusCode::NOT_FOUND,
            PatchError::Unconditional => StatusCode::PRECONDITION_REQUIRED,
            PatchError::Mismatch => StatusCode::PRECONDITION_FAILED,
            PatchError::Restart => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Problem::new(status, error.to_string())
    })?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn stream(path: &str) -> Result<StreamName, Problem> {
    StreamName::parse(path).ok_or_else(|| Problem::not_found(&format!("stream `{path}`: a name is APP/NAME")))
}

/// `APP/NAME/SESSION`.
fn session(path: &str) -> Result<(StreamName, &str), Problem> {
    let (name, id) = path.rsplit_once('/').ok_or_else(missing)?;
    Ok((StreamName::parse(name).ok_or_else(missing)?, id))
}

fn is_of(headers: &HeaderMap, wanted: &str) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("the content type must be {wanted}")))
}

fn problem(error: OfferError) -> Problem {
    let status = match &error {
        OfferError::Sdp(_) => StatusCode::BAD_REQUEST,
        OfferError::NoCodec(_) => StatusCode::NOT_ACCEPTABLE,
        OfferError::Refused(Refusal::Unauthorized) => StatusCode::UNAUTHORIZED,
        OfferError::Refused(Refusal::Forbidden(_)) => StatusCode::FORBIDDEN,
        OfferError::Refused(Refusal::NotFound(_)) => StatusCode::NOT_FOUND,
        // Another publishes: a conflict, not a want of room.
        OfferError::Refused(Refusal::Unavailable(_)) => StatusCode::CONFLICT,
        OfferError::Refused(_) | OfferError::Unable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, error.to_string())
}

fn absent() -> Problem {
    Problem::not_found("WebRTC here: set webrtc.listen, in a build for 64-bit targets")
}

fn missing() -> Problem {
    Problem::not_found("such session")
}

fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
