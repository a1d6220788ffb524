//! The API under `/api/v1`, health and metrics: one table of routes, which `openapi.json` is checked against.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde_json::{Value as Json_, json};

use super::parts::ThingView;
use super::problem::Problem;
use super::{Console, orders, recordings, streams};
use crate::metrics;
use crate::shadow::Shadows;

/// Bytes of a request's body.
pub(super) const BODY_MAX: usize = 64 * 1024;

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
        route("get", "/api/v1/recordings", get(recordings::list)),
        route("get", "/api/v1/recordings/{id}", get(recordings::play)),
        route("delete", "/api/v1/recordings/{id}", delete(recordings::remove)),
        route("post", "/api/v1/recordings/{id}/link", post(recordings::link)),
        route("get", "/api/v1/upstreams", get(upstreams)),
        route("get", "/api/v1/store", get(store)),
        route("get", "/api/v1/live", get(live)),
        route("get", "/metrics", get(figures)),
        route("get", "/healthz", get(health)),
        route("get", "/readyz", get(ready)),
    ];
    all.extend(orders::routes());
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
    let mut things = (console.parts.things)();
    if let Some(shadows) = &console.parts.shadows {
        for thing in &mut things {
            mark(shadows, thing);
        }
    }
    Json(things)
}

async fn thing(State(console): State<Console>, Path(id): Path<String>) -> Result<Json<ThingView>, Problem> {
    let mut thing = find(&console, &id)?;
    if let Some(shadows) = &console.parts.shadows {
        mark(shadows, &mut thing);
    }
    Ok(Json(thing))
}

/// What waits for it, in two numbers.
fn mark(shadows: &Shadows, thing: &mut ThingView) {
    (thing.shadow_version, thing.commands_waiting) = shadows.mark(&thing.id);
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

pub(super) fn find(console: &Console, id: &str) -> Result<ThingView, Problem> {
    (console.parts.thing)(id).ok_or_else(|| Problem::not_found(&format!("thing `{id}`")))
}

pub(super) fn bad(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
