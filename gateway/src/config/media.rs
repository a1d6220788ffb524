//! What is said of streams: `[stream]`, `[hls]`, `[webrtc]` and `[[pull]]`. Where they go is in `outlet.rs`.

use std::path::PathBuf;

use serde::Deserialize;

/// The streaming core.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// Pinned threads; 0: one less than the CPUs, at least 1.
    pub threads: usize,
    /// Above this use of its thread a stream's new viewers are served by another thread, %, 0 to 100. 100: never.
    pub spill_percent: u64,
    /// Lower bound of the merge window, ms, 0 to 1000. 0: viewers get each frame at once while there is time to spare.
    pub window_min_ms: u64,
    /// Upper bound of the merge window, ms, 0 to 1000: how long bytes for viewers may be collected under load.
    pub window_max_ms: u64,
    /// Bytes kept of one stream in one container since its last key frame, KiB.
    pub gop_kib: u64,
    /// Seconds kept of one stream since its last key frame (also bounds audio-only streams).
    pub gop_seconds: u64,
    /// Streams at a time.
    pub sources_max: usize,
    /// Viewers at a time.
    pub viewers_max: usize,
    /// A viewer further behind than this jumps to the newest key frame, ms.
    pub lag_max_ms: u64,
    /// A viewer that takes no byte for this long is closed, seconds.
    pub stall_max_seconds: u64,
    /// A publisher that sends nothing for this long is closed, seconds.
    pub silence_max_seconds: u64,
    /// How long a viewer waits for a stream that is not there yet, seconds.
    pub wait_max_seconds: u64,
    /// How long viewers are kept when the publisher goes, seconds.
    pub grace_seconds: u64,
    /// Whether a new publisher of a live stream replaces the old one (else it is refused).
    pub takeover: bool,
    /// What all relays together may take, kbit/s; 0: no limit.
    pub relays_kbps_max: u64,
    /// What becomes of audio that browsers cannot play.
    pub unplayable_audio: UnplayableAudio,
    /// Streams with a choice of their own; the first that fits holds.
    pub audio_rules: Vec<AudioRule>,
}

/// What becomes of audio that browsers cannot play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnplayableAudio {
    /// It goes out as it came.
    Pass,
    /// G.711, AC-3 and FLAC are left out.
    Drop,
    /// G.711 becomes AAC, 32 kbit/s; the rest passes.
    #[default]
    Aac,
}

/// A choice for some streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioRule {
    /// Stream name, or `live/*`.
    pub stream: String,
    pub unplayable_audio: UnplayableAudio,
}

/// WebRTC: WHEP out and WHIP in, on the console's port; its media on a port of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webrtc {
    /// `udp://HOST:PORT` of the media; empty: no WebRTC.
    pub listen: String,
    /// More addresses at which peers reach that port, `IP` or `IP:PORT`: for a box behind a router that forwards it.
    pub candidates: Vec<String>,
    /// Whether peers without a key may watch and publish.
    pub allow_anonymous: bool,
    /// Sessions at a time, 1 to 10000.
    pub sessions_max: usize,
}

/// What is kept in memory for HLS players, while somebody asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hls {
    /// How long a part of low-latency HLS is planned to be, ms, 50 to 1000: whole frames, at least one.
    pub part_ms: u64,
    /// How long a segment is at least, ms, 500 to 10000: it ends with the next group of pictures.
    pub segment_ms: u64,
    /// What a playlist names, seconds, 2 to 60, at least three segments; as much again is kept.
    pub window_seconds: u64,
    /// Bytes kept of one stream, KiB, at least 1024; the oldest segments go first.
    pub stream_kib: u64,
    /// Bytes kept of all streams together, MiB: each gets an equal share of it, and no more streams are opened than have
    /// 1 MiB each.
    pub total_mib: u64,
    /// A stream that nobody asked for so long is given up, seconds, 2 to 300.
    pub idle_seconds: u64,
    /// Requests that may wait for a playlist or part that is still to come.
    pub waiting_max: usize,
}

/// A camera that is asked for its stream by RTSP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// The stream's name here.
    pub stream: String,
    /// `rtsp://HOST[:PORT]/PATH`, without name and password.
    pub url: String,
    /// The camera's user, and a file with its password (one line).
    #[serde(default)]
    pub user: String,
    pub password_file: Option<PathBuf>,
    #[serde(default)]
    pub transport: PullTransport,
    #[serde(default)]
    pub when: PullWhen,
    /// On demand: how long the camera is kept when nobody watches, seconds, 1 to 3600.
    #[serde(default = "Pull::idle_seconds")]
    pub idle_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullTransport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullWhen {
    #[default]
    Always,
    /// While somebody watches the stream, or waits for it.
    OnDemand,
}

impl Pull {
    fn idle_seconds() -> u64 {
        30
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            threads: 0,
            spill_percent: 60,
            window_min_ms: 0,
            window_max_ms: 350,
            gop_kib: 8 * 1024,
            gop_seconds: 10,
            sources_max: 256,
            viewers_max: 10_000,
            lag_max_ms: 3_000,
            stall_max_seconds: 10,
            silence_max_seconds: 15,
            wait_max_seconds: 5,
            grace_seconds: 15,
            takeover: true,
            relays_kbps_max: 0,
            unplayable_audio: UnplayableAudio::default(),
            audio_rules: Vec::new(),
        }
    }
}

impl Default for Webrtc {
    fn default() -> Self {
        Self { listen: String::new(), candidates: Vec::new(), allow_anonymous: false, sessions_max: 100 }
    }
}

impl Default for Hls {
    fn default() -> Self {
        Self {
            part_ms: 200,
            segment_ms: 2_000,
            window_seconds: 8,
            stream_kib: 12 * 1024,
            total_mib: 32,
            idle_seconds: 10,
            waiting_max: 4_096,
        }
    }
}
