//! The API's streams: one, its viewers, closing either, a link for the console's player; and the same in LKM's words.
//!
//! LKM's answers are always 200 with `{"code", "msg", "data"}`; a stream or viewer that is not there is no error to it.
//! Viewers of HLS are sessions, as their playlists tell; those of RTSP over UDP and of WebRTC are counted in the stream, not listed
//! here.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use device_models::wire::time_text;
use protocols::media::StreamName;
use serde::Deserialize;
use serde_json::{Value as Json_, json};

use super::Console;
use super::api::Route;
use super::guard::host_name;
use super::parts::StreamView;
use super::problem::Problem;
use crate::stream::ViewerInfo;

/// The paths of this file.
pub(super) fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route("get", "/api/v1/streams", get(list)),
        route("get", "/api/v1/streams/{name}", get(one)),
        route("delete", "/api/v1/streams/{name}", delete(close)),
        route("get", "/api/v1/streams/{name}/viewers", get(viewers)),
        route("delete", "/api/v1/streams/{name}/viewers/{id}", delete(close_viewer)),
        route("post", "/api/v1/streams/{name}/link", post(link)),
        route("get", "/api/v1/source/list", get(source_list)),
        route("post", "/api/v1/source/list", post(source_list)),
        route("post", "/api/v1/source/close", post(source_close)),
        route("post", "/api/v1/sink/list", post(sink_list)),
        route("post", "/api/v1/sink/close", post(sink_close)),
    ]
}

async fn list(State(console): State<Console>) -> Response {
    Json((console.parts.streams)()).into_response()
}

async fn one(State(console): State<Console>, Path(name): Path<String>) -> Result<Json<StreamView>, Problem> {
    find(&console, &name).map(|(_, view)| Json(view))
}

/// The publisher and all viewers go.
async fn close(State(console): State<Console>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let (stream, _) = find(&console, &name)?;
    let closed = (console.parts.audience.close)(stream).await;
    if closed { Ok(StatusCode::NO_CONTENT) } else { Err(no_stream(&name)) }
}

async fn viewers(State(console): State<Console>, Path(name): Path<String>) -> Result<Json<Vec<ViewerInfo>>, Problem> {
    let (stream, _) = find(&console, &name)?;
    Ok(Json((console.parts.audience.viewers)(stream).await))
}

async fn close_viewer(
    State(console): State<Console>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (stream, _) = find(&console, &name)?;
    let closed = match id.parse() {
        Ok(id) => (console.parts.audience.close_viewer)(stream, id).await,
        Err(_) => false,
    };
    if closed { Ok(StatusCode::NO_CONTENT) } else { Err(Problem::not_found(&format!("viewer `{id}` of `{name}`"))) }
}

/// What stands behind the question mark of an address that lets a player in for some minutes.
async fn link(State(console): State<Console>, Path(name): Path<String>) -> Result<Json<Json_>, Problem> {
    let (stream, _) = find(&console, &name)?;
    let query = (console.parts.audience.link)(stream.as_str());
    Ok(Json(json!({ "query": query.ok_or_else(Problem::no_randomness)? })))
}

fn find(console: &Console, name: &str) -> Result<(StreamName, StreamView), Problem> {
    let view = (console.parts.streams)().into_iter().find(|stream| stream.name == name);
    StreamName::parse(name).zip(view).ok_or_else(|| no_stream(name))
}

fn no_stream(name: &str) -> Problem {
    Problem::not_found(&format!("stream `{name}`"))
}

// === in LKM's words ===

/// What LKM's requests name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    source: String,
    sink: String,
}

async fn source_list(State(console): State<Console>, headers: HeaderMap) -> Json<Json_> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map_or("localhost", host_name);
    let source = |stream: StreamView| {
        let tracks: Vec<_> = [stream.video, stream.audio].into_iter().flatten().collect();
        json!({
            "id": stream.name,
            "protocol": "rtmp",
            "time": time_text(stream.since_us),
            "sink_count": stream.viewers,
            "bitrate": format!("{}KBS", stream.bits_per_second / 8 / 1024),
            "tracks": tracks,
            "urls": urls(&console, host, &stream.name),
        })
    };
    well((console.parts.streams)().into_iter().filter(|stream| stream.live).map(source).collect())
}

async fn source_close(State(console): State<Console>, body: Result<Bytes, BytesRejection>) -> Json<Json_> {
    let named = match named(body) {
        Ok(named) => named,
        Err(answer) => return answer,
    };
    if let Some(stream) = StreamName::parse(&named.source) {
        (console.parts.audience.close)(stream).await;
    }
    well(Json_::Null)
}

async fn sink_list(State(console): State<Console>, body: Result<Bytes, BytesRejection>) -> Json<Json_> {
    let stream = match named(body) {
        Ok(named) => StreamName::parse(&named.source),
        Err(answer) => return answer,
    };
    let Some(stream) = stream else { return well(Json_::Null) };
    let sink = |viewer: ViewerInfo| {
        json!({
            "id": sink_id(&viewer),
            "protocol": if viewer.container.ends_with("flv") { "flv" } else { viewer.container },
            "time": time_text(viewer.since_us),
            "bitrate": "",
            "tracks": null,
        })
    };
    well((console.parts.audience.viewers)(stream).await.into_iter().map(sink).collect())
}

async fn sink_close(State(console): State<Console>, body: Result<Bytes, BytesRejection>) -> Json<Json_> {
    let named = match named(body) {
        Ok(named) => named,
        Err(answer) => return answer,
    };
    if let Some(stream) = StreamName::parse(&named.source) {
        let viewers = (console.parts.audience.viewers)(stream.clone()).await;
        let is_meant = |viewer: &&ViewerInfo| sink_id(viewer) == named.sink || viewer.id.to_string() == named.sink;
        if let Some(viewer) = viewers.iter().find(is_meant) {
            (console.parts.audience.close_viewer)(stream, viewer.id).await;
        }
    }
    well(Json_::Null)
}

/// The viewer's address, as the hooks name it.
fn sink_id(viewer: &ViewerInfo) -> String {
    viewer.peer.map_or_else(|| viewer.id.to_string(), |peer| peer.to_string())
}

fn well(data: Json_) -> Json<Json_> {
    Json(json!({ "code": 200, "msg": "ok", "data": data }))
}

fn named(body: Result<Bytes, BytesRejection>) -> Result<Named, Json<Json_>> {
    let wrong = |why: String| Json(json!({ "code": 400, "msg": why, "data": null }));
    let body = body.map_err(|rejection| wrong(rejection.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| wrong(format!("the body is not {{\"source\", \"sink\"}}: {error}")))
}

/// Where players find the stream.
fn urls(console: &Console, host: &str, stream: &str) -> Vec<String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut urls = Vec::new();
    for adapter in &console.parts.adapters {
        let Some(port) = adapter.address.map(|address| address.port()) else { continue };
        let secure = if adapter.wire == "tls" { "s" } else { "" };
        for protocol in &adapter.protocols {
            match protocol.as_str() {
                "rtmp" => urls.push(format!("rtmp{secure}://{host}:{port}/{stream}")),
                "http-flv" => {
                    urls.push(format!("http{secure}://{host}:{port}/{stream}.flv"));
                    urls.push(format!("ws{secure}://{host}:{port}/{stream}.flv"));
                }
                "rtsp" => urls.push(format!("rtsp{secure}://{host}:{port}/{stream}")),
                _ => {}
            }
        }
    }
    urls
}
