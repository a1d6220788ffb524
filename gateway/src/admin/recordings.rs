//! `/api/v1/recordings`: what is on disk, listed, played (in ranges, as players ask for them) and removed. A recording is
//! named by its number: no request carries a path.

use std::io::SeekFrom;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_core::Stream;
use protocols::Pass;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::Console;
use super::problem::Problem;
use crate::record::{Recorder, Recording};

/// Recordings of one answer: without `count`, and at most.
const COUNT: usize = 200;
const COUNT_MAX: usize = 2_000;

/// Bytes of one read, and reads on their way to a client that is slow.
const READ_LEN: usize = 64 * 1024;
const READS_MAX: usize = 4;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    stream: Option<String>,
    /// Microseconds since 1970 UTC.
    from: Option<i64>,
    to: Option<i64>,
    count: Option<usize>,
}

pub(super) async fn list(
    State(console): State<Console>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Vec<Recording>>, Problem> {
    let Query(wanted) = wanted.map_err(|rejection| Problem::new(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let Some(recorder) = &console.parts.recorder else { return Ok(Json(Vec::new())) };
    let (from, to) = (wanted.from.unwrap_or(i64::MIN), wanted.to.unwrap_or(i64::MAX));
    let count = wanted.count.unwrap_or(COUNT).min(COUNT_MAX);
    Ok(Json(recorder.list(wanted.stream.as_deref(), from, to, count)))
}

pub(super) async fn remove(
    State(console): State<Console>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let (recorder, recording) = find(&console, id)?;
    if recording.open {
        return Err(Problem::new(StatusCode::CONFLICT, format!("recording {} is being written", recording.id)));
    }
    let id = recording.id;
    let removed = console.tasks.blocking(move || recorder.remove(id)).await.unwrap_or(false);
    if removed { Ok(StatusCode::NO_CONTENT) } else { Err(missing(id)) }
}

/// What stands behind the question mark of an address that lets a player in to this recording for some hours: a player
/// that asks for ranges by itself cannot show a token.
pub(super) async fn link(
    State(console): State<Console>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let (_, recording) = find(&console, id)?;
    let query = (console.parts.audience.recordings.link)(recording.id).ok_or_else(Problem::no_randomness)?;
    Ok(Json(json!({ "query": query })))
}

/// Whether the request is for a recording and its address was signed for that.
pub(super) fn is_signed(console: &Console, method: &Method, uri: &Uri) -> bool {
    let id = uri.path().strip_prefix("/api/v1/recordings/").and_then(|id| id.parse().ok());
    let signature = Pass::of_query(uri.query().unwrap_or_default()).signature;
    let reads = matches!(*method, Method::GET | Method::HEAD);
    id.zip(signature).is_some_and(|(id, signature)| reads && (console.parts.audience.recordings.opens)(id, &signature))
}

pub(super) async fn play(
    State(console): State<Console>,
    id: Result<Path<u64>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (_, recording) = find(&console, id)?;
    // What is being written is given as far as it is whole now.
    let len = recording.bytes;
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let (status, first, count) = match range.map_or(Ok(None), |range| wanted_range(range, len)) {
        Ok(None) => (StatusCode::OK, 0, len),
        Ok(Some((first, last))) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Err(()) => {
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the recording has {len} bytes"));
            return Ok(with(problem.into_response(), header::CONTENT_RANGE, &format!("bytes */{len}")));
        }
    };
    let mut file = tokio::fs::File::open(&recording.path).await.map_err(|_| missing(recording.id))?;
    file.seek(SeekFrom::Start(first)).await.map_err(|_| missing(recording.id))?;
    let (reads, body) = mpsc::channel(READS_MAX);
    console.tasks.spawn("playback", copy(file, count, reads, console.tasks.clone()));
    let mut response = (status, Body::from_stream(Reads(body))).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        response = with(response, header::CONTENT_RANGE, &format!("bytes {first}-{}/{len}", first + count - 1));
    }
    let kind = if recording.format == "mp4" { "video/mp4" } else { "video/x-flv" };
    let name = format!("{}-{}.{}", recording.stream.replace('/', "_"), recording.id, recording.format);
    let ascii: String = name.chars().map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' }).collect();
    let disposition = format!("inline; filename=\"{ascii}\"");
    let response = with(response, header::CONTENT_DISPOSITION, &disposition);
    let response = with(response, header::ACCEPT_RANGES, "bytes");
    let response = with(response, header::CONTENT_LENGTH, &count.to_string());
    Ok(with(response, header::CONTENT_TYPE, kind))
}

fn find(console: &Console, id: Result<Path<u64>, PathRejection>) -> Result<(Recorder, Recording), Problem> {
    let Path(id) = id.map_err(|_| Problem::not_found("such recording: its number is a whole number"))?;
    let recorder = console.parts.recorder.clone().ok_or_else(|| missing(id))?;
    let recording = recorder.find(id).ok_or_else(|| missing(id))?;
    Ok((recorder, recording))
}

fn missing(id: u64) -> Problem {
    Problem::not_found(&format!("recording {id}"))
}

fn with(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// First and last byte of a range (RFC 9110, 14.1.2): `None` for what is not one range of bytes, which may be ignored;
/// an error for one that lies behind the end.
fn wanted_range(range: &str, len: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(len.saturating_sub(1))),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, len.saturating_sub(1)),
        (Err(_), Ok(count)) if first.trim().is_empty() && count > 0 => {
            (len.saturating_sub(count), len.saturating_sub(1))
        }
        _ => return Ok(None),
    };
    if range.0 < len { Ok(Some(range)) } else { Err(()) }
}

/// Reads for one client until it has all or goes.
async fn copy(
    mut file: tokio::fs::File,
    mut left: u64,
    reads: mpsc::Sender<std::io::Result<Bytes>>,
    tasks: crate::threads::Tasks,
) {
    while left > 0 {
        let mut buffer = vec![0; READ_LEN.min(usize::try_from(left).unwrap_or(READ_LEN))];
        let read = match file.read(&mut buffer).await {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer.truncate(count);
                left -= count as u64;
                Ok(Bytes::from(buffer))
            }
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        tokio::select! {
            sent = reads.send(read) => if sent.is_err() || failed { return },
            () = tasks.stopping() => return,
        }
    }
}

/// The body of an answer.
struct Reads(mpsc::Receiver<std::io::Result<Bytes>>);

impl Stream for Reads {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_players_ask_for_them() {
        for (range, wanted) in [
            ("bytes=0-", Ok(Some((0, 99)))),
            ("bytes=10-19", Ok(Some((10, 19)))),
            ("bytes=90-200", Ok(Some((90, 99)))),
            ("bytes=-10", Ok(Some((90, 99)))),
            ("bytes=-1000", Ok(Some((0, 99)))),
            ("bytes=100-", Err(())),
            ("bytes=20-10", Ok(None)),
            ("bytes=0-1,5-6", Ok(None)),
            ("lines=1-2", Ok(None)),
            ("bytes=-0", Ok(None)),
        ] {
            assert_eq!(wanted_range(range, 100), wanted, "{range}");
        }
        assert_eq!(wanted_range("bytes=0-", 0), Err(()));
    }
}
