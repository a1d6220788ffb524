//! What the streaming core tells about itself: to the admin page, the metrics and the camera's thing.

use std::net::SocketAddr;

use serde::Serialize;

use super::tap::TapKind;

/// One stream, as of its last look at itself (once a second, and when it comes or goes).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StreamInfo {
    /// `APP/NAME`.
    pub name: String,
    /// It has a publisher now. Without one its viewers are kept for the grace time.
    pub live: bool,
    /// When the present publisher began, microseconds since 1970 UTC.
    pub since_us: i64,
    pub publisher: Option<SocketAddr>,
    /// Where the units of a publisher without a connection of its own come from: the URL that is pulled.
    pub origin: Option<String>,
    /// The stream thread that owns it: `sg-stream-N`.
    pub thread: String,
    pub video: Option<VideoInfo>,
    pub audio: Option<AudioInfo>,
    /// Video frames a second, over the last 4 seconds.
    pub fps: f64,
    /// Media bits a second from the publisher, over the last 4 seconds.
    pub bits_per_second: u64,
    /// Time between the last two key frames, ms.
    pub key_interval_ms: u64,
    pub viewers: usize,
    /// Of these, served by other stream threads than the stream's own.
    pub viewers_elsewhere: usize,
    /// How far the viewer that is furthest behind is, media time.
    pub lag_ms: u64,
    /// Bytes kept since the last key frame, in units and in every container in use.
    pub kept_bytes: u64,
    pub counters: StreamCounters,
    pub taps: Vec<TapInfo>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VideoInfo {
    /// `H264`, `H265`, `AV1`, …
    pub codec: String,
    pub width: u32,
    pub height: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AudioInfo {
    /// `AAC`, `Opus`, `G711A`, …
    pub codec: String,
    /// Samples a second.
    pub rate: u32,
    pub channels: u32,
}

/// Since the stream began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StreamCounters {
    pub video_frames: u64,
    pub audio_frames: u64,
    /// Audio packets that browsers could not play and that were left out: by choice, or because the transcoder was busy.
    pub audio_left_out: u64,
    /// Media bytes from publishers.
    pub bytes_in: u64,
    /// Bytes to viewers.
    pub bytes_out: u64,
    /// Publishers, the present one included.
    pub publishers: u64,
    /// Publishers that were replaced by another.
    pub takeovers: u64,
    /// Video frames before a publisher's first key frame: nobody could decode them.
    pub keyless_frames: u64,
    /// Configurations equal to the one known: not passed on.
    pub repeated_configs: u64,
    /// Broken messages, and tracks beside the one of their kind that is carried.
    pub faults: u64,
    /// Times that were corrected.
    pub times_fixed: u64,
    /// GOPs beyond the limits, from which no viewer could start.
    pub gops_over_limit: u64,
    /// Times that a viewer was moved ahead to a key frame.
    pub skips: u64,
    pub viewers_left: u64,
    pub viewers_stalled: u64,
    pub viewers_slow: u64,
    pub viewers_fault: u64,
    pub viewers_ended: u64,
    /// Viewers closed on request.
    pub viewers_dismissed: u64,
}

impl StreamCounters {
    /// Adds what was done for viewers, in a pass or elsewhere.
    pub(super) fn add_viewers(&mut self, other: &Self) {
        self.bytes_out += other.bytes_out;
        self.skips += other.skips;
        self.viewers_left += other.viewers_left;
        self.viewers_stalled += other.viewers_stalled;
        self.viewers_slow += other.viewers_slow;
        self.viewers_fault += other.viewers_fault;
        self.viewers_ended += other.viewers_ended;
        self.viewers_dismissed += other.viewers_dismissed;
    }
}

/// A reader of the stream's units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TapInfo {
    pub kind: TapKind,
    /// People who watch through it.
    pub viewers: usize,
    /// Waiting for the reader.
    pub queued_bytes: u64,
    /// Left out because the reader was too slow.
    pub skipped_units: u64,
}

/// One stream thread.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ThreadInfo {
    pub name: String,
    pub cpu: usize,
    /// Share of its CPU in use, 0 to 1.
    pub busy: f64,
    /// The merge window, ms.
    pub window_ms: u64,
    /// The latest a flush phase began after its time within the last second, ms.
    pub lag_ms: f64,
    pub streams: usize,
    pub viewers: usize,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What the whole core turned away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Publishers above `sources_max`, and of live streams without takeover.
    pub publishers: u64,
    /// Viewers above `viewers_max`.
    pub viewers: u64,
    /// Viewers of a stream that was gone when they arrived.
    pub orphans: u64,
    /// Connections that found a thread's queue full.
    pub busy: u64,
    /// Words of cameras that gave way to newer ones of theirs while the intake was full.
    pub words: u64,
}
