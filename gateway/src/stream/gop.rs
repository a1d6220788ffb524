//! What is kept of a stream: the index of its tags since the last key frame, and the rules that bound it.
//!
//! Inside: offsets, times and limits. Must not be in here: bytes (`log.rs`) and sockets.

use std::collections::VecDeque;

/// Ticks of the media clock in a second.
pub(super) const CLOCK_HZ: i64 = 90_000;

/// Units one log may index: 10 minutes of audio and video units at ordinary rates, 1.5 MiB of index at the most.
const UNITS_MAX: usize = 65_536;

/// A stream whose video stopped for this long is joined like an audio-only one, in media clock ticks.
const VIDEO_SILENCE: i64 = 5 * CLOCK_HZ;

/// Where a viewer of an audio-only stream starts: this far behind the newest unit, in media clock ticks. Enough for a
/// player to begin at once, not enough to be heard as delay.
const AUDIO_JOIN: i64 = CLOCK_HZ;

/// How much one log keeps.
#[allow(clippy::struct_field_names, reason = "units last, bounds last of all")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    /// Bytes; whole blocks of them are dropped.
    pub bytes_max: u64,
    /// Media clock ticks.
    pub span_max: i64,
    pub units_max: usize,
}

impl Keep {
    pub(super) fn new(kib: u64, seconds: u64) -> Self {
        Self {
            bytes_max: kib.max(64).saturating_mul(1024),
            span_max: i64::try_from(seconds.max(1)).unwrap_or(i64::MAX / CLOCK_HZ).saturating_mul(CLOCK_HZ),
            units_max: UNITS_MAX,
        }
    }
}

/// What a tag is to a viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A decoder can start here (a video key frame).
    Key,
    /// Any other video frame.
    Video,
    /// An audio unit: a viewer can start here if there is no video.
    Audio,
    /// Codec configuration or script data.
    Config,
}

/// One tag of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// Bytes since the log began.
    pub offset: u64,
    pub dts_90k: i64,
    pub mark: Mark,
}

/// The index of a log.
#[derive(Debug)]
pub(super) struct Gop {
    tags: VecDeque<Tag>,
    /// Tags forgotten so far: the number of the first one kept.
    forgotten: u64,
    head: u64,
    head_dts: i64,
    key: Option<u64>,
    video_dts: Option<i64>,
    /// The newest configuration tag before the newest key frame, and the newest of all.
    config_before_key: Option<u64>,
    config: Option<u64>,
    keep: Keep,
}

impl Gop {
    pub(super) fn new(keep: Keep) -> Self {
        Self {
            tags: VecDeque::new(),
            forgotten: 0,
            head: 0,
            head_dts: 0,
            key: None,
            video_dts: None,
            config_before_key: None,
            config: None,
            keep,
        }
    }

    /// Notes a tag of `len` bytes at the head.
    pub(super) fn push(&mut self, mark: Mark, dts_90k: i64, len: usize) {
        let offset = self.head;
        match mark {
            Mark::Key => {
                self.key = Some(offset);
                self.config_before_key = self.config;
                self.video_dts = Some(dts_90k);
            }
            Mark::Video => self.video_dts = Some(dts_90k),
            Mark::Config => self.config = Some(offset),
            Mark::Audio => {}
        }
        self.tags.push_back(Tag { offset, dts_90k, mark });
        self.head += len as u64;
        self.head_dts = dts_90k;
    }

    /// One past the last byte.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    pub(super) fn head_dts(&self) -> i64 {
        self.head_dts
    }

    /// The first byte that is kept.
    pub(super) fn tail(&self) -> u64 {
        self.tags.front().map_or(self.head, |tag| tag.offset)
    }

    #[cfg(test)]
    pub(super) fn units(&self) -> usize {
        self.tags.len()
    }

    /// Where a new viewer starts: the newest key frame; without video a little behind the newest audio unit; `None`
    /// when the key frame is no longer (or not yet) kept.
    pub(super) fn join(&self) -> Option<u64> {
        let video = self.video_dts.is_some_and(|dts| self.head_dts - dts <= VIDEO_SILENCE);
        if video {
            return self.key.filter(|key| *key >= self.tail());
        }
        let from = self.tags.partition_point(|tag| tag.dts_90k < self.head_dts.saturating_sub(AUDIO_JOIN));
        self.tags.range(from..).find(|tag| tag.mark == Mark::Audio).map(|tag| tag.offset)
    }

    /// Whether going from `from` to the newest key frame would pass over a codec configuration.
    pub(super) fn passes_config(&self, from: u64) -> bool {
        self.config_before_key.is_some_and(|config| config >= from)
    }

    /// The end of the tag in which `offset` lies; `None` at a tag's beginning and outside of what is kept.
    pub(super) fn tag_end(&self, offset: u64) -> Option<u64> {
        if offset < self.tail() || offset >= self.head {
            return None;
        }
        let next = self.tags.partition_point(|tag| tag.offset < offset);
        match self.tags.get(next) {
            Some(tag) if tag.offset == offset => None,
            Some(tag) => Some(tag.offset),
            None => Some(self.head),
        }
    }

    /// The beginning of the tag in which `offset` lies.
    pub(super) fn tag_start(&self, offset: u64) -> u64 {
        let next = self.tags.partition_point(|tag| tag.offset <= offset);
        next.checked_sub(1).and_then(|at| self.tags.get(at)).map_or(offset, |tag| tag.offset)
    }

    /// Tags that begin before `offset`, counted from the log's beginning.
    pub(super) fn number(&self, offset: u64) -> u64 {
        self.forgotten + self.tags.partition_point(|tag| tag.offset < offset) as u64
    }

    /// How far the tag at (or around) `offset` is behind the newest one, in media clock ticks.
    pub(super) fn lag(&self, offset: u64) -> i64 {
        if offset >= self.head {
            return 0;
        }
        let next = self.tags.partition_point(|tag| tag.offset <= offset);
        let at = self.tags.get(next.saturating_sub(1)).map_or(self.head_dts, |tag| tag.dts_90k);
        self.head_dts.saturating_sub(at).max(0)
    }

    /// The first byte that must be kept although nobody reads it: where the next viewer joins.
    pub(super) fn floor(&self) -> u64 {
        match (self.join(), self.video_dts) {
            (Some(join), _) => join,
            // No audio unit to start at yet, or a GOP beyond the limits: only readers hold anything.
            (None, _) => self.head,
        }
    }

    /// The tail that the limits in time and units demand. It moves in steps, so that viewers are not looked at with
    /// every unit.
    pub(super) fn bound(&self) -> u64 {
        let Some(front) = self.tags.front() else { return self.head };
        let mut tail = front.offset;
        let slack = (self.keep.span_max / 8).min(CLOCK_HZ);
        if self.head_dts.saturating_sub(front.dts_90k) > self.keep.span_max.saturating_add(slack) {
            let from = self.tags.partition_point(|tag| tag.dts_90k < self.head_dts - self.keep.span_max);
            tail = self.tags.get(from).map_or(self.head, |tag| tag.offset);
        }
        if self.tags.len() > self.keep.units_max {
            let drop = self.tags.len() - self.keep.units_max + self.keep.units_max / 8;
            tail = tail.max(self.tags.get(drop).map_or(self.head, |tag| tag.offset));
        }
        tail
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.keep.bytes_max
    }

    /// Forgets the tags that begin before `tail`.
    pub(super) fn drop_before(&mut self, tail: u64) {
        let gone = self.tags.partition_point(|tag| tag.offset < tail);
        self.tags.drain(..gone);
        self.forgotten += gone as u64;
        if self.tags.capacity() > 1024 && self.tags.len() < self.tags.capacity() / 4 {
            self.tags.shrink_to(self.tags.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gop(seconds: u64) -> Gop {
        Gop::new(Keep::new(8192, seconds))
    }

    #[test]
    fn a_viewer_joins_at_the_newest_key_frame() {
        let mut gop = gop(10);
        gop.push(Mark::Config, 0, 10);
        assert_eq!(gop.join(), None, "a configuration is nothing to start at");
        gop.push(Mark::Key, 0, 100);
        gop.push(Mark::Audio, 10, 5);
        gop.push(Mark::Video, 3600, 50);
        assert_eq!(gop.join(), Some(10));
        gop.push(Mark::Key, 7200, 100);
        assert_eq!(gop.join(), Some(165));
        assert_eq!(gop.floor(), 165);
    }

    #[test]
    fn an_audio_only_stream_is_joined_a_second_behind_and_stays_bounded() {
        let mut gop = gop(3);
        for n in 0..3000 {
            gop.push(Mark::Audio, n * 2048, 200);
            gop.drop_before(gop.bound().min(gop.floor()));
        }
        let join = gop.join().unwrap();
        let behind = gop.lag(join);
        assert!((CLOCK_HZ - 2048..=CLOCK_HZ).contains(&behind), "{behind}");
        assert!(gop.units() < 4 * 44 + 44, "{}", gop.units());
    }

    #[test]
    fn audio_that_goes_on_without_video_can_be_joined() {
        let mut gop = gop(10);
        gop.push(Mark::Key, 0, 100);
        gop.push(Mark::Audio, VIDEO_SILENCE, 5);
        assert_eq!(gop.join(), Some(0));
        gop.push(Mark::Audio, VIDEO_SILENCE + 1, 5);
        assert_eq!(gop.join(), Some(100));
    }

    #[test]
    fn a_key_frame_beyond_the_limits_is_no_place_to_join() {
        let mut gop = gop(2);
        gop.push(Mark::Key, 0, 100);
        for n in 1..200 {
            gop.push(Mark::Video, n * 3600, 50);
            gop.drop_before(gop.bound());
        }
        assert_eq!(gop.join(), None);
        assert!(gop.units() < 80, "{}", gop.units());
    }

    #[test]
    fn boundaries_are_told_from_middles() {
        let mut gop = gop(10);
        gop.push(Mark::Key, 0, 100);
        gop.push(Mark::Video, 3600, 50);
        assert_eq!(gop.tag_end(0), None);
        assert_eq!(gop.tag_end(1), Some(100));
        assert_eq!(gop.tag_end(100), None);
        assert_eq!(gop.tag_end(149), Some(150));
        assert_eq!(gop.tag_end(150), None);
        assert_eq!((gop.number(0), gop.number(99), gop.number(100)), (0, 1, 1));
        assert_eq!(gop.lag(99), 3600);
        assert_eq!(gop.lag(150), 0);
    }

    #[test]
    fn a_jump_over_a_configuration_is_seen() {
        let mut gop = gop(10);
        gop.push(Mark::Key, 0, 100);
        gop.push(Mark::Config, 3600, 10);
        gop.push(Mark::Key, 3600, 100);
        assert!(gop.passes_config(50));
        assert!(gop.passes_config(100));
        assert!(!gop.passes_config(110));
    }
}
