//! Settings of what leaves a stream by rule: `[[relay]]`, and when it runs.

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

/// When a relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// While the stream has a publisher.
    #[default]
    Always,
    /// While an order (`relayStart` of the camera) asks for it.
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

fn hold_seconds() -> u64 {
    30
}
