//! Settings of what leaves a stream by rule: `[[relay]]` and `[[record]]`, and when they run.

use std::path::PathBuf;

use serde::Deserialize;

/// A stream copied to an RTMP server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Stream name, or `live/*`.
    pub stream: String,
    /// `rtmp://HOST[:PORT]/APP/NAME`, or `rtmps://`; `{app}` and `{name}` stand for the stream's own.
    pub url: String,
    /// Certificate authorities of an `rtmps://` server, PEM; absent: the built-in web roots.
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub when: When,
    #[serde(default)]
    pub alarms: Vec<AlarmEvent>,
    #[serde(default = "hold_seconds")]
    pub hold_seconds: u64,
    /// What this relay may take, kbit/s; 0: no limit of its own. All relays together: `stream.relays_kbps_max`.
    #[serde(default)]
    pub kbps_max: u64,
    /// What becomes of a stream that would break a budget.
    #[serde(default)]
    pub over_budget: OverBudget,
}

/// A stream kept on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The rule's name, and its folder under `path`: letters, digits, `-`, `_`.
    pub name: String,
    /// Stream name, or `live/*`.
    pub stream: String,
    #[serde(default)]
    pub when: When,
    #[serde(default)]
    pub alarms: Vec<AlarmEvent>,
    #[serde(default = "hold_seconds")]
    pub hold_seconds: u64,
    /// How much of the stream before an alarm is kept, seconds, 0 to 30: from the key frame before it on, within 6 MiB of memory a
    /// stream. 0: from the key frame before the alarm.
    #[serde(default)]
    pub preroll_seconds: u64,
    #[serde(default)]
    pub format: Format,
    /// Folder of all recordings; absent: `recordings` in the store's folder.
    pub path: Option<PathBuf>,
    /// A new file begins at the first key frame after this time, seconds, 1 to 3600.
    #[serde(default = "Record::segment_seconds")]
    pub segment_seconds: u64,
    /// What was published is written in one piece after this time, seconds, 1 to 30: what a power cut can cost.
    #[serde(default = "Record::flush_seconds")]
    pub flush_seconds: u64,
    /// Whether each piece is made durable at once (fdatasync); false: when the kernel likes.
    #[serde(default = "Record::sync")]
    pub sync: bool,
    /// Bytes of all recordings of the rule, MiB: beyond it the oldest go.
    #[serde(default = "Record::cap_mib")]
    pub cap_mib: u64,
    /// Recordings older than this go, hours; 0: never.
    #[serde(default)]
    pub age_max_hours: u64,
    /// Free space that is left to the rest of the box, MiB: below it the oldest go, then the recording pauses.
    #[serde(default = "Record::free_min_mib")]
    pub free_min_mib: u64,
}

/// When a relay or a recording runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// While the stream has a publisher.
    #[default]
    Always,
    /// While an order (`relayStart`, `recordStart` of the camera) asks for it.
    OnDemand,
    /// While somebody watches the stream, and `hold_seconds` after.
    Watched,
    /// From the key frame before an alarm until `hold_seconds` after the last one.
    Alarm,
}

/// An event that is an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmEvent {
    /// The thing that says it; absent: the camera itself.
    pub thing: Option<String>,
    /// The event's name in the thing's model.
    pub event: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverBudget {
    /// It is not sent until it fits.
    #[default]
    Wait,
    /// Only its key frames are sent until it fits.
    KeyFrames,
}

/// The container of recordings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Fragmented MP4: plays in browsers and everywhere else.
    #[default]
    Fmp4,
    /// FLV: takes whatever comes over RTMP.
    Flv,
}

fn hold_seconds() -> u64 {
    30
}

impl Record {
    fn segment_seconds() -> u64 {
        60
    }

    fn flush_seconds() -> u64 {
        2
    }

    fn sync() -> bool {
        true
    }

    fn cap_mib() -> u64 {
        4_096
    }

    fn free_min_mib() -> u64 {
        256
    }
}
