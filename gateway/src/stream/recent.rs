//! The units since the last key frame, so that the first viewer in a container starts at once too: nothing is muxed
//! before somebody asks. Bounded like a log, in bytes, time and number.
//!
//! Once a container is in use its log holds the same bytes; the units then point into the log's sealed blocks instead of
//! keeping bytes of their own, so that a watched stream is in memory once and not twice.

use std::collections::VecDeque;

use bytes::Bytes;
use protocols::media::Unit;

use super::gop::{CLOCK_HZ, Keep, Mark};
use super::log::Log;

#[derive(Debug)]
struct Kept {
    mark: Mark,
    unit: Unit,
    /// Where in the followed log the unit's bytes lie, until they are shared with it.
    place: Option<u64>,
    shared: bool,
}

#[derive(Debug)]
pub(super) struct Recent {
    units: VecDeque<Kept>,
    bytes: u64,
    /// Of these, in blocks of a log.
    shared: u64,
    /// The log that is followed was looked at up to here.
    seen: u64,
    /// The stream has shown a video key frame.
    video: bool,
    /// This GOP went over the limits; nothing is kept before the next key frame.
    over: bool,
    keep: Keep,
}

/// How much of an audio-only stream is kept, media clock ticks: more than where viewers join.
const AUDIO_SPAN: i64 = 2 * CLOCK_HZ;

impl Recent {
    pub(super) fn new(keep: Keep) -> Self {
        Self { units: VecDeque::new(), bytes: 0, shared: 0, seen: 0, video: false, over: false, keep }
    }

    /// Takes the next unit in; `true` when the GOP just went over the limits.
    pub(super) fn push(&mut self, mark: Mark, unit: Unit) -> bool {
        if mark == Mark::Key {
            self.clear();
            self.video = true;
        }
        if self.over {
            return false;
        }
        let dts_90k = unit.dts_90k;
        self.bytes += unit.data.len() as u64;
        self.units.push_back(Kept { mark, unit, place: None, shared: false });
        if self.video {
            self.over = self.beyond(dts_90k, self.keep.span_max);
            if self.over {
                self.units = VecDeque::new();
                (self.bytes, self.shared) = (0, 0);
            }
            return self.over;
        }
        while self.beyond(dts_90k, AUDIO_SPAN.min(self.keep.span_max)) {
            self.drop_first();
        }
        false
    }

    fn beyond(&self, newest_90k: i64, span_max: i64) -> bool {
        let span = self.units.front().map_or(0, |first| newest_90k - first.unit.dts_90k);
        !self.units.is_empty()
            && (self.bytes > self.keep.bytes_max || self.units.len() > self.keep.units_max || span > span_max)
    }

    fn drop_first(&mut self) {
        if let Some(gone) = self.units.pop_front() {
            self.bytes -= gone.unit.data.len() as u64;
            self.shared -= if gone.shared { gone.unit.data.len() as u64 } else { 0 };
        }
    }

    /// Forgets everything: a key frame begins anew, or the publisher changed.
    pub(super) fn clear(&mut self) {
        self.units.clear();
        (self.bytes, self.shared) = (0, 0);
        self.over = false;
    }

    /// The publisher changed: whether there is video is to be seen.
    pub(super) fn restart(&mut self) {
        self.video = false;
    }

    pub(super) fn units(&self) -> impl Iterator<Item = (Mark, &Unit)> {
        self.units.iter().map(|kept| (kept.mark, &kept.unit))
    }

    pub(super) fn len(&self) -> usize {
        self.units.len()
    }

    pub(super) fn get(&self, at: usize) -> Option<(Mark, Unit)> {
        self.units.get(at).map(|kept| (kept.mark, kept.unit.clone()))
    }

    /// Bytes of its own, beside those in blocks of a log.
    pub(super) fn own_bytes(&self) -> u64 {
        self.bytes - self.shared
    }

    // --- sharing with a log ---

    /// Another log is followed from now on, or none.
    pub(super) fn follow_anew(&mut self) {
        self.seen = 0;
        self.units.iter_mut().for_each(|kept| kept.place = None);
    }

    /// The unit at `at` (from the front) was appended to the followed log, its bytes at `place`.
    pub(super) fn follow(&mut self, log: &Log, at: usize, place: Option<u64>) {
        if let Some(kept) = self.units.get_mut(at).filter(|kept| !kept.shared) {
            kept.place = place;
        }
        if log.sealed_to() > self.seen {
            log.sealed_since(self.seen).for_each(|(base, block)| self.share(base, block));
            self.seen = log.sealed_to();
        }
    }

    /// A block of the followed log will not change any more: its units need no bytes of their own.
    fn share(&mut self, base: u64, block: &Bytes) {
        for kept in &mut self.units {
            let Some(start) = kept.place.and_then(|place| place.checked_sub(base)) else { continue };
            let (start, len) = (start as usize, kept.unit.data.len());
            if len > 0 && start.saturating_add(len) <= block.len() {
                kept.unit.data = block.slice(start..start + len);
                (kept.place, kept.shared) = (None, true);
                self.shared += len as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use protocols::media::{Codec, Kind, Track};

    use super::*;

    fn unit(dts_90k: i64, data: &'static [u8]) -> Unit {
        let data = Bytes::copy_from_slice(data);
        Unit { track: Track::Video, codec: Codec::H264, dts_90k, pts_90k: dts_90k, kind: Kind::Delta, data }
    }

    fn place(recent: &mut Recent, places: &[u64]) {
        let log = Log::new(Keep::new(1024, 10));
        places.iter().enumerate().for_each(|(at, place)| recent.follow(&log, at, Some(*place)));
    }

    #[test]
    fn units_point_into_a_sealed_block() {
        let mut recent = Recent::new(Keep::new(1024, 10));
        recent.push(Mark::Key, unit(0, b"key"));
        recent.push(Mark::Video, unit(1, b"delta"));
        place(&mut recent, &[102, 110]);
        assert_eq!(recent.own_bytes(), 8);
        let block = Bytes::from_static(b"..key.....delta.");
        recent.share(100, &block);
        assert_eq!(recent.own_bytes(), 0);
        let datas: Vec<_> = recent.units().map(|(_, unit)| unit.data.clone()).collect();
        assert_eq!(datas, [&b"key"[..], b"delta"]);
        assert_eq!(datas[1].as_ptr(), block[10..].as_ptr(), "the same bytes, not equal ones");
    }

    #[test]
    fn a_unit_of_another_block_keeps_its_own() {
        let mut recent = Recent::new(Keep::new(1024, 10));
        recent.push(Mark::Key, unit(0, b"key"));
        place(&mut recent, &[90]);
        recent.share(100, &Bytes::from_static(b"0123456789"));
        assert_eq!(recent.own_bytes(), 3);
        recent.follow_anew();
        recent.share(80, &Bytes::from_static(b"0123456789abc"));
        assert_eq!(recent.own_bytes(), 3, "it follows that log no longer");
    }
}
