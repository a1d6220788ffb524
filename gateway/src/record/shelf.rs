//! What is on disk: recordings by number, read off the names of the files. There is no index to tear.
//!
//! A file is `RULE/STREAM/NUMBER-STARTms-DURATIONms.EXT` under the rule's path; one that is being written has `open` for its
//! duration. Numbers only grow, whatever the clock does: the oldest is the one with the lowest number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocols::media::StreamName;
use serde::Serialize;

use crate::clock;
use crate::config::Format;

/// Recordings in the list: a limit of memory, about 150 bytes each.
pub(super) const RECORDINGS_MAX: usize = 100_000;

/// Before this the clock of the box was not set: 2020-01-01, microseconds since 1970 UTC.
const CLOCK_SET_US: i64 = 1_577_836_800_000_000;

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recording {
    /// Its number; unique on this box, and rising.
    pub id: u64,
    pub rule: Arc<str>,
    pub stream: Arc<str>,
    /// Microseconds since 1970 UTC.
    pub start_us: i64,
    pub duration_ms: u64,
    pub bytes: u64,
    /// `mp4` or `flv`.
    pub format: &'static str,
    /// It is being written.
    pub open: bool,
    #[serde(skip)]
    pub path: PathBuf,
    /// When this run came to know it.
    #[serde(skip)]
    pub(super) known: Instant,
}

/// All recordings; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf {
    all: Arc<Mutex<BTreeMap<u64, Recording>>>,
}

impl Shelf {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Recording>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_id(&self) -> u64 {
        self.lock().last_key_value().map_or(1, |(id, _)| id + 1)
    }

    /// Bytes of a rule's recordings.
    pub(super) fn bytes(&self, rule: &str) -> u64 {
        self.lock().values().filter(|r| *r.rule == *rule).map(|r| r.bytes).sum()
    }

    /// The rule's oldest recording that is not being written.
    pub(super) fn oldest(&self, rule: &str) -> Option<Recording> {
        self.lock().values().find(|r| *r.rule == *rule && !r.open).cloned()
    }
}

impl Recording {
    /// How old it is. The clock is believed only where it was set both times, and only as far as this run knows no better:
    /// a clock that jumps must not remove what was recorded a minute ago.
    pub(super) fn age(&self, wall: Wall) -> Duration {
        let here = self.known.elapsed();
        let end_us = self.start_us.saturating_add(i64::try_from(self.duration_ms).unwrap_or(0).saturating_mul(1000));
        if self.start_us < CLOCK_SET_US || self.known > wall.begun {
            return here;
        }
        let since = wall.now_us().and_then(|now| u64::try_from(now - end_us).ok()).map_or(here, Duration::from_micros);
        since.max(here)
    }
}

/// Wall time as it was when this run first had a set clock, and monotonic from then on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wall {
    pub begun: Instant,
    set: Option<(i64, Instant)>,
}

impl Wall {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), set: None }
    }

    /// Looks at the clock while it is not set.
    pub(super) fn look(&mut self) {
        if self.set.is_none() {
            self.set = Some((clock::now_us(), Instant::now())).filter(|(now, _)| *now >= CLOCK_SET_US);
        }
    }

    fn now_us(self) -> Option<i64> {
        let (then, at) = self.set?;
        Some(then.saturating_add(i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX)))
    }
}

pub(super) fn extension(format: Format) -> &'static str {
    match format {
        Format::Flv => "flv",
        Format::Fmp4 => "mp4",
    }
}

/// The folder of a stream. A [`StreamName`] has no level that leads out of it.
pub(super) fn folder(root: &Path, rule: &str, stream: &StreamName) -> PathBuf {
    stream.as_str().split('/').fold(root.join(rule), |path, level| path.join(level))
}

/// The file's name; `duration_ms` only when it is complete.
pub(super) fn file_name(id: u64, start_us: i64, duration_ms: Option<u64>, format: Format) -> String {
    let duration = duration_ms.map_or_else(|| "open".to_owned(), |ms| ms.to_string());
    format!("{id:012}-{}-{duration}.{}", start_us / 1000, extension(format))
}

/// What a name says: number, start, duration unless it is open, format. `None`: it is none of ours.
pub(super) fn read_name(name: &str) -> Option<(u64, i64, Option<u64>, Format)> {
    let (stem, extension) = name.split_once('.')?;
    let format = match extension {
        "flv" => Format::Flv,
        "mp4" => Format::Fmp4,
        _ => return None,
    };
    let mut parts = stem.split('-');
    let (id, start, duration) = (parts.next()?.parse().ok()?, parts.next()?.parse::<i64>().ok()?, parts.next()?);
    let duration = if duration == "open" { None } else { Some(duration.parse().ok()?) };
    parts.next().is_none().then_some((id, start.saturating_mul(1000), duration, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_all_there_is_to_know() {
        for (duration, format) in [(Some(60_010), Format::Fmp4), (None, Format::Flv)] {
            let name = file_name(7, 1_795_321_388_123_000, duration, format);
            assert_eq!(read_name(&name), Some((7, 1_795_321_388_123_000, duration, format)), "{name}");
        }
        for other in ["x.mp4", "1-2-3.txt", "1-2.flv", "1-2-3-4.flv", "000000000007-1-open.flv.bak", "-1-2-3.flv"] {
            assert_eq!(read_name(other), None, "{other}");
        }
    }

    /// Complaint 19: whatever a stream is called, its recordings stay in the rule's folder.
    #[test]
    fn a_stream_name_leads_nowhere_else() {
        for name in [
            "live/../../etc",
            "live/..",
            "../x/y",
            "live/a\0b",
            "live/%2e%2e%2f",
            "/etc/passwd",
            "live/a\\b",
            "live//x",
        ] {
            assert_eq!(StreamName::parse(name), None, "{name:?}");
        }
        for name in ["live/...", "live/.hidden", "live/-rf", "live/CON"] {
            let path = folder(Path::new("/r"), "rule", &StreamName::parse(name).unwrap());
            assert!(path.starts_with("/r/rule/live") && path.components().count() == 5, "{path:?}");
        }
    }

    #[test]
    fn a_jump_of_the_clock_ages_nothing_that_this_run_recorded() {
        let begun = Instant::now();
        let mut wall = Wall { begun, set: Some((4_102_444_800_000_000, begun)) };
        wall.look();
        let recording = |start_us, known| Recording {
            id: 1,
            rule: "r".into(),
            stream: "live/x".into(),
            start_us,
            duration_ms: 1000,
            bytes: 1,
            format: "flv",
            open: false,
            path: PathBuf::new(),
            known,
        };
        let before = begun;
        let hour = Duration::from_secs(3600);
        assert!(recording(1_700_000_000_000_000, before).age(wall) > hour, "of an earlier run, by the clock");
        assert!(
            recording(1_700_000_000_000_000, Instant::now()).age(wall) < hour,
            "of this run, whatever the clock says"
        );
        assert!(recording(5_000_000, before).age(wall) < hour, "made while the clock was not set");
    }
}
