//! `[shadow]`: desired values and commands that wait for their thing.

use serde::Deserialize;

/// What may wait for things, and how long.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shadow {
    /// How long a command waits for a thing that is not connected, unless it says so itself, seconds, up to 2592000.
    /// 0: it does not wait, and is answered at once.
    pub command_expiry_seconds: u64,
    /// Commands that wait for all things together, 1 to 100000.
    pub commands_max: usize,
    /// Commands that wait for one thing, 1 to 100000.
    pub commands_per_thing_max: usize,
    /// Bytes of all desired values and waiting commands, MiB, 1 to 256.
    pub memory_mib: u64,
}

impl Default for Shadow {
    fn default() -> Self {
        Self { command_expiry_seconds: 3_600, commands_max: 10_000, commands_per_thing_max: 100, memory_mib: 8 }
    }
}
