//! The API under `/api/v1`, health and metrics: one table of routes, which `openapi.json` is checked against.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use device_models::{Order, Value};
use serde::Deserialize;
use serde_json::{Value as Json_, json};

use super::parts::ThingView;
use super::problem::Problem;
use super::{Console, recordings, streams};
use crate::metrics;

/// Bytes of a request's body.
pub(super) const BODY_MAX: usize = 64 * 1024;
/// Time a device has to answer, seconds: what is used without `timeout_seconds`, and the most that may be asked.
const PATIENCE_SECONDS: u64 = 5;
const PATIENCE_SECONDS_MAX: u64 = 20;

/// One path of the API.
pub(super) struct Route {
    /// In lower case, as OpenAPI spells it; the handler answers this one alone.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test that holds the table against openapi.json"))]
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) handler: MethodRouter<Console>,
}

/// Every path but the page's own files.
pub(super) fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    let mut all = vec![
        route("get", "/api/v1/gateway", get(gateway)),
        route("get", "/api/v1/things", get(things)),
        route("get", "/api/v1/things/{id}", get(thing)),
        route("post", "/api/v1/things/{id}/properties", post(write)),
        route("post", "/api/v1/things/{id}/actions/{name}", post(invoke)),
        route("get", "/api/v1/recordings", get(recordings::list)),
        route("get", "/api/v1/recordings/{id}", get(recordings::play)),
        route("delete", "/api/v1/recordings/{id}", delete(recordings::remove)),
        route("get", "/api/v1/upstreams", get(upstreams)),
        route("get", "/api/v1/store", get(store)),
        route("get", "/api/v1/live", get(live)),
        route("get", "/metrics", get(figures)),
        route("get", "/healthz", get(health)),
        route("get", "/readyz", get(ready)),
    ];
    all.extend(streams::routes());
    all
}

/// Paths that say nothing about the box and need no token.
pub(super) const OPEN: &[&str] = &["/healthz", "/readyz"];

async fn gateway(State(console): State<Console>) -> Json<Json_> {
    let parts = &console.parts;
    Json(json!({
        "id": &*parts.gateway,
        "version": env!("CARGO_PKG_VERSION"),
        "started_us": console.started_us,
        "uptime_seconds": console.started.elapsed().as_secs(),
        "adapters": parts.adapters,
        // Where WebRTC's media goes; null: this gateway speaks none.
        "webrtc": parts.webrtc.as_ref().map(crate::webrtc::Webrtc::address),
        // What a reference consumer in the same process has (the demo's has one): null otherwise.
        "consumer": parts.metrics.consumer().map(|c| json!({
            "messages": c.messages, "missing": c.missing, "duplicates": c.duplicates,
        })),
    }))
}

async fn things(State(console): State<Console>) -> Json<Vec<ThingView>> {
    Json((console.parts.things)())
}

async fn thing(State(console): State<Console>, Path(id): Path<String>) -> Result<Json<ThingView>, Problem> {
    find(&console, &id).map(Json)
}

async fn upstreams(State(console): State<Console>) -> Response {
    Json((console.parts.upstreams)()).into_response()
}

async fn store(State(console): State<Console>) -> Response {
    Json((console.parts.store)()).into_response()
}

async fn live(State(console): State<Console>) -> Response {
    console.feed.open(|| (console.parts.live)())
}

async fn figures(State(console): State<Console>) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))];
    (kind, console.parts.metrics.encode()).into_response()
}

async fn health() -> &'static str {
    "ok\n"
}

async fn ready(State(console): State<Console>) -> Result<&'static str, Problem> {
    match (console.parts.ready)() {
        Ok(()) => Ok("ready\n"),
        Err(why) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

// === orders ===

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    timeout_seconds: Option<u64>,
}

type PatienceQuery = Result<Query<Patience>, QueryRejection>;
type Body = Result<Bytes, BytesRejection>;

/// `POST …/properties` with `{"name": value, …}`.
async fn write(
    State(console): State<Console>,
    Path(id): Path<String>,
    patience: PatienceQuery,
    body: Body,
) -> Result<Json<Json_>, Problem> {
    let Json_::Object(values) = parse(body)? else {
        return Err(bad("the body must be an object of property names and values"));
    };
    if values.is_empty() {
        return Err(bad("the body names no property"));
    }
    let values = values.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    send(&console, &id, Order::Write(values), patience).await
}

/// `POST …/actions/NAME` with the action's input, or an empty body.
async fn invoke(
    State(console): State<Console>,
    Path((id, action)): Path<(String, String)>,
    patience: PatienceQuery,
    body: Body,
) -> Result<Json<Json_>, Problem> {
    let input = Value::from(parse(body)?);
    send(&console, &id, Order::Invoke { action, input }, patience).await
}

async fn send(console: &Console, thing: &str, order: Order, patience: PatienceQuery) -> Result<Json<Json_>, Problem> {
    let Query(patience) = patience.map_err(|rejection| bad(&rejection.body_text()))?;
    let seconds = patience.timeout_seconds.unwrap_or(PATIENCE_SECONDS);
    if !(1..=PATIENCE_SECONDS_MAX).contains(&seconds) {
        return Err(bad(&format!("timeout_seconds is {seconds}; 1 to {PATIENCE_SECONDS_MAX} is right")));
    }
    find(console, thing)?;
    let id = console.next_order();
    let began = std::time::Instant::now();
    let patience = Duration::from_secs(seconds);
    let outcome = (console.parts.order)(thing.to_owned(), id.clone(), order, patience).await;
    console.parts.metrics.command(result(&outcome), began.elapsed());
    let value = outcome.map_err(|failure| Problem::of(&failure))?;
    Ok(Json(json!({ "id": id, "result": Json_::from(&value), "took_ms": began.elapsed().as_millis() as u64 })))
}

fn find(console: &Console, id: &str) -> Result<ThingView, Problem> {
    (console.parts.thing)(id).ok_or_else(|| Problem::not_found(&format!("thing `{id}`")))
}

fn parse(body: Body) -> Result<Json_, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    if body.is_empty() {
        return Ok(Json_::Null);
    }
    serde_json::from_slice(&body).map_err(|error| bad(&format!("the body is not JSON: {error}")))
}

fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

fn result(outcome: &device_models::Outcome) -> &'static str {
    use device_models::Failure;
    match outcome {
        Ok(_) => "ok",
        Err(Failure::Offline) => "offline",
        Err(Failure::Silent(_)) => "silent",
        Err(Failure::Unsupported(_)) => "unsupported",
        Err(Failure::Refused(_)) => "refused",
        Err(Failure::Device(_)) => "device",
        Err(Failure::Busy) => "busy",
    }
}
