//! What an alarm finds recorded already: the stream's last seconds, kept in memory while nothing asks for a recording.
//!
//! The units are handles to what the stream's viewers get, not copies. Must not be in here: files.

use std::collections::VecDeque;
use std::time::Duration;

use protocols::media::{Kind, StreamName, Track, Tracks, Unit};

use super::{AGAIN, CLOCK_HZ, rules};
use crate::stream::{StreamCore, Tap, Tapped};

/// Bytes that are kept whatever the seconds: less than what may wait for the disk, through which they go all at once.
const BYTES_MAX: u64 = 6 * 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Preroll {
    /// 0: nothing is kept.
    span_90k: i64,
    tap: Option<Tap>,
    units: VecDeque<Unit>,
    bytes: u64,
    /// The configurations ahead of the first unit kept.
    tracks: Tracks,
}

impl Preroll {
    pub(super) fn new(seconds: u64) -> Self {
        Self { span_90k: seconds as i64 * CLOCK_HZ, ..Self::default() }
    }

    /// Keeps what the stream brings; never ends. Cancel safe.
    pub(super) async fn keep(&mut self, streams: &StreamCore, stream: &StreamName) {
        if self.span_90k == 0 {
            return std::future::pending().await;
        }
        loop {
            let Some(tap) = &mut self.tap else {
                self.tap = streams.tap(stream, rules()).await.ok();
                if self.tap.is_none() {
                    tokio::time::sleep(AGAIN).await;
                }
                continue;
            };
            match tap.next().await {
                Some(Tapped::Unit(unit)) => self.push(unit),
                // What is not whole is not kept.
                Some(Tapped::Skipped { .. } | Tapped::Unpublished) => self.clear(),
                Some(Tapped::Published) => {}
                None => *self = Self { span_90k: self.span_90k, ..Self::default() },
            }
        }
    }

    /// The tap, which goes on, and what came before; nothing where nothing was kept.
    pub(super) fn take(&mut self) -> Option<(Tap, Vec<Unit>)> {
        let tap = self.tap.take()?;
        let begins = self.units.front().map_or(0, |unit| unit.dts_90k);
        let head = self.tracks.head(begins, begins).filter(|unit| unit.kind == Kind::Config);
        let units = head.chain(self.units.drain(..)).collect();
        *self = Self { span_90k: self.span_90k, ..Self::default() };
        Some((tap, units))
    }

    fn push(&mut self, unit: Unit) {
        let newest_90k = unit.dts_90k;
        self.bytes += unit.data.len() as u64;
        self.units.push_back(unit);
        // From a key frame on, the newest that is old enough; or whatever the bytes leave.
        while let Some(next) = self.next_start() {
            let enough = self.units.get(next).is_some_and(|unit| newest_90k - unit.dts_90k >= self.span_90k);
            if !enough && self.bytes <= BYTES_MAX {
                break;
            }
            self.forget(next);
        }
        if self.bytes > BYTES_MAX {
            self.clear();
        }
    }

    /// The second place from which the recording could begin.
    fn next_start(&self) -> Option<usize> {
        let video = self.tracks.has_video() || self.units.iter().any(|unit| unit.track == Track::Video);
        let leading = if video { Track::Video } else { Track::Audio };
        let starts = |unit: &Unit| unit.kind == Kind::Key && unit.track == leading;
        self.units.iter().enumerate().skip(1).find(|(_, unit)| starts(unit)).map(|(at, _)| at)
    }

    fn clear(&mut self) {
        self.forget(self.units.len());
    }

    fn forget(&mut self, count: usize) {
        for unit in self.units.drain(..count) {
            self.bytes -= unit.data.len() as u64;
            self.tracks.note(&unit);
        }
    }
}

/// The seconds that may be configured.
pub(crate) const SECONDS_MAX: u64 = Duration::from_secs(30).as_secs();

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::Codec;

    use super::*;

    fn unit(kind: Kind, frame: i64, len: usize) -> Unit {
        let data = Bytes::from(vec![7; len]);
        Unit { track: Track::Video, codec: Codec::H264, dts_90k: frame * 3_600, pts_90k: frame * 3_600, kind, data }
    }

    /// Frames with a key frame every second; the number of the first that is kept.
    fn first_of(seconds: u64, frames: i64, len: usize) -> Option<i64> {
        let mut preroll = Preroll::new(seconds);
        preroll.push(unit(Kind::Config, 0, 40));
        for frame in 0..frames {
            preroll.push(unit(if frame % 25 == 0 { Kind::Key } else { Kind::Delta }, frame, len));
            assert!(preroll.bytes <= BYTES_MAX);
        }
        assert!(frames < 100 || preroll.tracks.video.is_some(), "the configuration is known");
        preroll.units.iter().find(|unit| unit.kind == Kind::Key).map(|unit| unit.dts_90k / 3_600)
    }

    #[test]
    fn the_last_seconds_are_kept_from_a_key_frame_on_within_the_bytes() {
        assert_eq!(first_of(5, 30, 100), Some(0));
        // Frame 260 is the newest: 5 s before it is frame 135, its key frame 125.
        assert_eq!(first_of(5, 261, 100), Some(125));
        // Some 250 frames fit: those of ten seconds.
        assert_eq!(first_of(30, 1_000, 25_000), Some(750));
        assert_eq!(first_of(30, 60, 7 << 20), None, "one frame is more than may be kept");
    }
}
