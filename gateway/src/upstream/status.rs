//! How an upstream is doing, for the status page.

use serde::Serialize;

/// A copy of an upstream's state, about a second old at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    pub name: String,
    pub url: String,
    /// As in the configuration: `native`, `json`, ….
    pub dialect: &'static str,
    pub connected: bool,
    /// When it was connected or lost, microseconds since 1970 UTC; 0: never.
    pub since_us: i64,
    /// Why it is not connected, or what does not work although it is.
    pub error: Option<String>,
    /// Messages by class (control, event, live, historical) that the upstream does not have yet.
    pub backlog: [u64; 4],
    /// By class: everything up to here is confirmed.
    pub acked: [u64; 4],
    /// Messages, batches and payload bytes confirmed since the start.
    pub messages: u64,
    pub batches: u64,
    pub bytes: u64,
    /// Messages that went as a hole with its reason: too large for the broker, or not readable.
    pub dropped: u64,
}
