//! What can be asked of a thing: read and write its properties, invoke its actions, change its shadow, look at the commands
//! that wait for it and take them back.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use device_models::{Failure, Order, Value};
use serde::Deserialize;
use serde_json::{Value as Json_, json};

use super::Console;
use super::api::{Route, bad, find};
use super::problem::Problem;
use crate::shadow::{Patch, ShadowError, ShadowView, Shadows, WAIT_MAX, WaitingView};

/// Time a device has to answer, seconds: what is used without `timeout_seconds`, and the most that may be asked.
const PATIENCE_SECONDS: u64 = 5;
const PATIENCE_SECONDS_MAX: u64 = 20;

pub(super) fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route("post", "/api/v1/things/{id}/properties", post(write)),
        route("get", "/api/v1/things/{id}/properties/{name}", get(property)),
        route("put", "/api/v1/things/{id}/properties/{name}", axum::routing::put(put)),
        route("post", "/api/v1/things/{id}/actions/{name}", post(invoke)),
        route("get", "/api/v1/things/{id}/shadow", get(shadow)),
        route("patch", "/api/v1/things/{id}/shadow", axum::routing::patch(change)),
        route("get", "/api/v1/things/{id}/commands", get(commands)),
        route("delete", "/api/v1/things/{id}/commands/{command}", delete(cancel)),
    ]
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Time the device has to answer.
    timeout_seconds: Option<u64>,
    /// Time the order waits for a device that is not connected; 0: not at all.
    wait_seconds: Option<u64>,
    /// The device is to say the value now.
    #[serde(default)]
    ask: bool,
}

type AskedQuery = Result<Query<Asked>, QueryRejection>;
type Body = Result<Bytes, BytesRejection>;

/// `POST …/properties` with `{"name": value, …}`.
async fn write(
    State(console): State<Console>,
    Path(id): Path<String>,
    asked: AskedQuery,
    body: Body,
) -> Result<Response, Problem> {
    let Json_::Object(values) = parse(body)? else {
        return Err(bad("the body must be an object of property names and values"));
    };
    if values.is_empty() {
        return Err(bad("the body names no property"));
    }
    let values = values.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    send(&console, &id, Order::Write(values), query(asked)?).await
}

/// `GET …/properties/NAME`: the newest value, or with `?ask=true` what the device answers now.
async fn property(
    State(console): State<Console>,
    Path((id, name)): Path<(String, String)>,
    asked: AskedQuery,
) -> Result<Response, Problem> {
    let view = find(&console, &id)?;
    has_property(&console, &id, &name)?;
    let asked = query(asked)?;
    if asked.ask {
        // Who asks for a value now has no use for it tomorrow.
        let asked = Asked { wait_seconds: Some(asked.wait_seconds.unwrap_or(0)), ..asked };
        return send(&console, &id, Order::Read(vec![name]), asked).await;
    }
    let property = view.properties.into_iter().find(|property| property.name == name && property.time_us.is_some());
    let property =
        property.ok_or_else(|| Problem::not_found(&format!("value of `{name}` yet: `{id}` has not said one")))?;
    Ok(Json(property).into_response())
}

/// `PUT …/properties/NAME` with the value.
async fn put(
    State(console): State<Console>,
    Path((id, name)): Path<(String, String)>,
    asked: AskedQuery,
    body: Body,
) -> Result<Response, Problem> {
    let value = Value::from(parse(body)?);
    has_property(&console, &id, &name)?;
    send(&console, &id, Order::Write(vec![(name, value)]), query(asked)?).await
}

/// `POST …/actions/NAME` with the action's input, or an empty body.
async fn invoke(
    State(console): State<Console>,
    Path((id, action)): Path<(String, String)>,
    asked: AskedQuery,
    body: Body,
) -> Result<Response, Problem> {
    let input = Value::from(parse(body)?);
    send(&console, &id, Order::Invoke { action, input }, query(asked)?).await
}

/// 200 with the answer, or 202: it waits for the thing.
async fn send(console: &Console, thing: &str, order: Order, asked: Asked) -> Result<Response, Problem> {
    let seconds = asked.timeout_seconds.unwrap_or(PATIENCE_SECONDS);
    if !(1..=PATIENCE_SECONDS_MAX).contains(&seconds) {
        return Err(bad(&format!("timeout_seconds is {seconds}; 1 to {PATIENCE_SECONDS_MAX} is right")));
    }
    if let Some(wait) = asked.wait_seconds.filter(|wait| *wait > WAIT_MAX.as_secs()) {
        return Err(bad(&format!("wait_seconds is {wait}; 0 to {} is right", WAIT_MAX.as_secs())));
    }
    find(console, thing)?;
    let id = console.next_order();
    let patience = Duration::from_secs(seconds);
    if let Some(shadows) = &console.parts.shadows {
        let wait = asked.wait_seconds.map(Duration::from_secs);
        if let Some(wait) = shadows.defer(thing, &id, &order, patience, wait).map_err(problem)? {
            shadows.kept().await.map_err(problem)?;
            let body = json!({ "id": id, "state": "waiting", "wait_seconds": wait.as_secs() });
            return Ok((StatusCode::ACCEPTED, Json(body)).into_response());
        }
    }
    let began = Instant::now();
    let outcome = (console.parts.order)(thing.to_owned(), id.clone(), order, patience).await;
    let word = outcome.as_ref().map_or_else(Failure::word, |_| "ok");
    console.parts.metrics.command(word, began.elapsed());
    let value = outcome.map_err(|failure| Problem::of(&failure))?;
    let body = json!({ "id": id, "result": Json_::from(&value), "took_ms": began.elapsed().as_millis() as u64 });
    Ok(Json(body).into_response())
}

// === shadow and waiting commands ===

async fn shadow(State(console): State<Console>, Path(id): Path<String>) -> Result<Json<ShadowView>, Problem> {
    shadows(&console)?.view(&id).map(Json).map_err(problem)
}

/// `PATCH …/shadow` with `{"desired": {"name": value or null, …}, "version": N}`.
async fn change(
    State(console): State<Console>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<ShadowView>, Problem> {
    let patch: Patch = serde_json::from_value(parse(body)?).map_err(|error| bad(&error.to_string()))?;
    shadows(&console)?.change(&id, &patch, false).await.map(Json).map_err(problem)
}

async fn commands(State(console): State<Console>, Path(id): Path<String>) -> Result<Json<Vec<WaitingView>>, Problem> {
    shadows(&console)?.waiting(&id).map(Json).map_err(problem)
}

async fn cancel(
    State(console): State<Console>,
    Path((id, command)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    shadows(&console)?.cancel(&id, &command).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

// === private ===

fn shadows(console: &Console) -> Result<&Shadows, Problem> {
    console.parts.shadows.as_ref().ok_or_else(|| Problem::not_found("shadow here"))
}

fn problem(error: ShadowError) -> Problem {
    let status = match &error {
        ShadowError::NoThing(_) | ShadowError::NoCommand { .. } => StatusCode::NOT_FOUND,
        ShadowError::Version { .. } | ShadowError::Twice(_) | ShadowError::Repeated(_) | ShadowError::Sent(_) => {
            StatusCode::CONFLICT
        }
        ShadowError::Unfit(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ShadowError::Full(_) => StatusCode::TOO_MANY_REQUESTS,
        ShadowError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, error.to_string())
}

/// A path that names a property its model does not know leads nowhere.
fn has_property(console: &Console, id: &str, name: &str) -> Result<(), Problem> {
    let thing = console.parts.shadows.as_ref().and_then(|shadows| shadows.devices().by_id(id));
    match thing {
        Some(thing) if thing.model.property(name).is_none() && !thing.model.is_open() => {
            Err(Problem::not_found(&format!("property `{name}` of `{id}`")))
        }
        _ => Ok(()),
    }
}

fn query(asked: AskedQuery) -> Result<Asked, Problem> {
    let Query(asked) = asked.map_err(|rejection| bad(&rejection.body_text()))?;
    Ok(asked)
}

fn parse(body: Body) -> Result<Json_, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    if body.is_empty() {
        return Ok(Json_::Null);
    }
    serde_json::from_slice(&body).map_err(|error| bad(&format!("the body is not JSON: {error}")))
}
