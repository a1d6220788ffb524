//! `[store]`: the bus on disk, and what each class of messages may have of it.

use std::path::PathBuf;

use serde::Deserialize;

/// The bus on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// State folder.
    pub path: PathBuf,
    /// A batch of messages is made durable (fdatasync) at most this long after its first message, ms, 0 to 1000.
    /// Acknowledgements (PUBACK, CoAP ACK) go out after it. 0: every batch at once.
    pub commit_ms: u64,
    /// … or as soon as this much waits, KiB, 4 to 4096.
    pub commit_kib: u64,
    /// Bytes all segment files together may take, MiB, at least 8. The oldest of the lowest class that has more than
    /// its share goes first, and a gap record says so.
    pub cap_mib: u64,
    /// Size of one segment file, MiB, 1 to 64.
    pub segment_mib: u64,
    /// Free space that is left to the rest of the box, MiB: below it the log drops as at its cap.
    pub free_min_mib: u64,
    /// What of all bytes a class keeps while another has more than its own share, percent, together at most 100: a flood
    /// of one class must not cost the others all they have.
    pub share_percent: SharePercent,
    /// Messages older than this go, with a gap record, even where there is room, hours, up to 87600. 0: never.
    pub ttl_hours: TtlHours,
}

/// A share for each class of messages, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharePercent {
    pub control: u64,
    pub event: u64,
    pub live: u64,
    pub historical: u64,
}

/// A longest age for each class of messages, hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TtlHours {
    pub control: u64,
    pub event: u64,
    pub live: u64,
    pub historical: u64,
}

impl SharePercent {
    /// In the order of the classes' numbers.
    pub const fn by_class(self) -> [u64; 4] {
        [self.control, self.event, self.live, self.historical]
    }
}

impl TtlHours {
    /// In the order of the classes' numbers.
    pub const fn by_class(self) -> [u64; 4] {
        [self.control, self.event, self.live, self.historical]
    }
}

impl Default for SharePercent {
    fn default() -> Self {
        Self { control: 10, event: 20, live: 40, historical: 10 }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/sluicegate"),
            commit_ms: 100,
            commit_kib: 256,
            cap_mib: 512,
            segment_mib: 8,
            free_min_mib: 64,
            share_percent: SharePercent::default(),
            ttl_hours: TtlHours::default(),
        }
    }
}
