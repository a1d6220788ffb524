//! Who watches a stream, one by one: listed and closed on demand. Nothing in here runs while nobody asks.
//!
//! Must not be in here: the writing to viewers (`viewer.rs`, `fanout.rs`).

use std::net::SocketAddr;
use std::time::Instant;

use protocols::media::{Container, Hevc, StreamName};
use serde::Serialize;
use tokio::sync::oneshot;

use super::gop::CLOCK_HZ;
use super::log::Log;
use super::viewer::Viewer;
use super::{Order, StreamCore};
use crate::clock;

/// One viewer of a stream, as it is when asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViewerInfo {
    /// Unique since the gateway started.
    pub id: u64,
    pub peer: Option<SocketAddr>,
    /// `rtmp`, `http-flv`, `ws-flv`, `rtsp`, `hls`.
    pub container: &'static str,
    /// How it gets H.265 said: `enhanced` or `legacy`.
    pub hevc: &'static str,
    /// The stream thread that writes to it: `sg-stream-N`.
    pub thread: String,
    /// Since when, microseconds since 1970 UTC.
    pub since_us: i64,
    /// Bytes handed to the kernel; of `hls`, of playlists and pieces.
    pub bytes: u64,
    /// FLV tags or RTMP messages of the stream handed to the kernel, the one in flight included; of `hls`, segments and
    /// parts.
    pub tags: u64,
    /// How far the next byte it gets is behind the newest one, in media time; of `hls`, the last piece it asked for.
    pub lag_ms: u64,
    /// Times that it was moved ahead to a key frame.
    pub skips: u64,
    /// When the kernel last took something for it, microseconds since 1970 UTC; 0: not yet.
    pub written_us: i64,
}

impl StreamCore {
    /// The viewers of a stream, in order of arrival; empty when there is no such stream.
    pub async fn viewers(&self, stream: &StreamName) -> Vec<ViewerInfo> {
        let mut all = Vec::new();
        for seat in self.seats.iter() {
            let (reply, listed) = oneshot::channel();
            if seat.orders.send(Order::Viewers { stream: stream.clone(), reply }).await.is_ok() {
                all.append(&mut listed.await.unwrap_or_default());
            }
        }
        all.sort_by_key(|viewer: &ViewerInfo| viewer.id);
        all
    }

    /// Closes one viewer of a stream; `false` when there is none of this number.
    pub async fn close_viewer(&self, stream: &StreamName, id: u64) -> bool {
        for seat in self.seats.iter() {
            let (reply, closed) = oneshot::channel();
            let sent = seat.orders.send(Order::CloseViewer { stream: stream.clone(), id, reply }).await.is_ok();
            if sent && closed.await.unwrap_or(false) {
                return true;
            }
        }
        false
    }
}

/// What is known of a viewer, of the log it reads, and of the thread it is on.
pub(super) fn describe(viewer: &Viewer, container: Container, log: &Log, thread: &str) -> ViewerInfo {
    let account = &viewer.account;
    let written = account.written_at.map(|at| Instant::now().duration_since(at));
    let ago_us = |ago: std::time::Duration| i64::try_from(ago.as_micros()).unwrap_or(i64::MAX);
    ViewerInfo {
        id: account.id,
        peer: account.peer,
        container: match container.with_hevc(Hevc::Enhanced) {
            Container::FlvWebSocket => "ws-flv",
            Container::Rtmp => "rtmp",
            Container::Rtsp | Container::RtspVideo | Container::RtspAudio => "rtsp",
            _ => "http-flv",
        },
        hevc: if viewer.hevc == Hevc::Legacy { "legacy" } else { "enhanced" },
        thread: thread.to_owned(),
        since_us: account.since_us,
        bytes: account.bytes,
        tags: viewer.cursor.tags(log),
        lag_ms: u64::try_from(viewer.cursor.lag(log) / (CLOCK_HZ / 1000)).unwrap_or(0),
        skips: account.skips,
        written_us: written.map_or(0, |ago| clock::now_us().saturating_sub(ago_us(ago))),
    }
}
