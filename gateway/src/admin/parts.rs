//! What the console is given of the gateway: read-only views, and the one way to send an order.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use device_models::{Message, Order, Outcome};
use protocols::Signature;
use protocols::media::StreamName;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::metrics::Metrics;
use crate::record::{RecordInfo, Recorder};
use crate::shadow::Shadows;
use crate::stream::ViewerInfo;
use crate::webrtc::Webrtc;

/// Reads a view; must be quick and must not block.
pub type Read<T> = Box<dyn Fn() -> T + Send + Sync>;
/// Finds one thing by its id.
pub type Find = Box<dyn Fn(&str) -> Option<ThingView> + Send + Sync>;
/// Sends an order to a thing: thing, id of the order, order, time the device has.
pub type SendOrder =
    Box<dyn Fn(String, String, Order, Duration) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// What is ready later.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Makes the query of a link to a stream.
pub type Link = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Judges the signature of a link to a recording.
pub type Opens = Box<dyn Fn(u64, &Signature) -> bool + Send + Sync>;

/// Who watches, and what can be done about it.
pub struct Audience {
    pub viewers: Box<dyn Fn(StreamName) -> Later<Vec<ViewerInfo>> + Send + Sync>,
    /// Ends a stream; whether there was one.
    pub close: Box<dyn Fn(StreamName) -> Later<bool> + Send + Sync>,
    /// Closes one viewer by its number; whether there was one.
    pub close_viewer: Box<dyn Fn(StreamName, u64) -> Later<bool> + Send + Sync>,
    /// The query of an address that lets a player in for some minutes.
    pub link: Link,
    pub recordings: RecordingLinks,
}

/// Addresses that let a player in to a recording for a time.
pub struct RecordingLinks {
    /// The query of one.
    pub link: Box<dyn Fn(u64) -> Option<String> + Send + Sync>,
    /// Whether this signature belongs to it.
    pub opens: Opens,
}

/// Everything the console shows and can do.
pub struct Parts {
    pub gateway: Arc<str>,
    pub metrics: Metrics,
    pub adapters: Vec<AdapterView>,
    pub things: Read<Vec<ThingView>>,
    pub thing: Find,
    pub streams: Read<Vec<StreamView>>,
    pub audience: Audience,
    pub upstreams: Read<Vec<UpstreamView>>,
    pub store: Read<StoreView>,
    pub live: Read<broadcast::Receiver<Arc<Message>>>,
    pub order: SendOrder,
    /// What waits for things.
    pub shadows: Option<Shadows>,
    /// What is kept of streams on disk, if any rule keeps some.
    pub recorder: Option<Recorder>,
    /// Where browsers' offers go; `None`: no WebRTC here.
    pub webrtc: Option<Webrtc>,
    /// An error says why the gateway cannot do its work now.
    pub ready: Read<Result<(), String>>,
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Audience")
    }
}

impl fmt::Debug for RecordingLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordingLinks")
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// A door devices and cameras come in by.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterView {
    pub name: String,
    pub protocols: Vec<String>,
    /// `tcp`, `udp`, `tls`, `serial`.
    pub wire: String,
    pub address: Option<SocketAddr>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ThingView {
    pub id: String,
    pub model: String,
    pub title: String,
    pub adapter: Option<String>,
    pub online: bool,
    /// When it went online or offline, microseconds since 1970 UTC; 0: not heard of since the start.
    pub since_us: i64,
    pub seen_us: i64,
    /// It has a live stream of its own name.
    pub stream: bool,
    /// The version of its shadow; 0: nothing was ever desired of it.
    pub shadow_version: u64,
    /// Commands that wait for it.
    pub commands_waiting: usize,
    pub properties: Vec<PropertyView>,
    pub actions: Vec<ActionView>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PropertyView {
    pub name: String,
    pub title: String,
    /// UCUM code.
    pub unit: Option<String>,
    pub writable: bool,
    /// `boolean`, `integer`, `number`, `text`, ….
    pub kind: &'static str,
    /// The newest value; null when there is none yet.
    pub value: serde_json::Value,
    pub quality: Option<device_models::Quality>,
    pub time_us: Option<i64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ActionView {
    pub name: String,
    pub title: String,
    /// The action wants an input.
    pub input: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct StreamView {
    pub name: String,
    pub live: bool,
    pub since_us: i64,
    pub video: Option<String>,
    pub width: u32,
    pub height: u32,
    pub audio: Option<String>,
    pub fps: f64,
    pub bits_per_second: u64,
    pub viewers: usize,
    /// Of these, served by other stream threads than the stream's own.
    pub viewers_elsewhere: usize,
    /// How far the viewer that is furthest behind is, media time.
    pub lag_ms: u64,
    /// Media time between the last two key frames.
    pub key_interval_ms: u64,
    /// Bytes kept since the last key frame, in every container in use.
    pub kept_bytes: u64,
    pub thread: String,
    pub video_frames: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub skips: u64,
    /// Broken messages of the publisher, and tracks that are not carried.
    pub faults: u64,
    /// Timestamps of the publisher that were corrected.
    pub times_fixed: u64,
    pub relays: Vec<RelayView>,
    /// Each rule that keeps it on disk.
    pub records: Vec<RecordInfo>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RelayView {
    /// Without user, password and query.
    pub url: String,
    /// `idle`, `connecting`, `sending`, `key-frames`, `over-budget`, `waiting`.
    pub state: &'static str,
    /// Why it runs.
    pub reason: Option<String>,
    /// Why the last connection ended, or which budget is in the way.
    pub error: Option<String>,
    pub connections: u64,
    pub bytes: u64,
    pub skipped: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct UpstreamView {
    pub name: String,
    pub url: String,
    pub dialect: String,
    pub connected: bool,
    pub error: Option<String>,
    /// By class: control, event, live, historical.
    pub backlog: [u64; 4],
    pub acked: [u64; 4],
    /// Messages the upstream acknowledged since the start.
    pub sent: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct StoreView {
    /// Hexadecimal: the number of this store, new when the old one was lost.
    pub epoch: String,
    pub bytes: u64,
    pub bytes_max: u64,
    pub segments: u64,
    /// Oldest sequence number still there, by class: control, event, live, historical.
    pub oldest: [u64; 4],
    /// Through which they are on disk.
    pub durable: [u64; 4],
    /// Bytes on their way to the disk.
    pub buffered_bytes: u64,
    /// Segment files let go of before every upstream had them.
    pub evicted: u64,
    /// Damaged records met on reading.
    pub corrupt: u64,
    /// Batches that could not be written.
    pub failures: u64,
}
