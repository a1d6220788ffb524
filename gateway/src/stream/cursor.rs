//! A viewer's place in a log. What it gives to be written is always a run of whole tags, whatever was evicted, skipped
//! or written in part: the rest of a tag in flight, then what waits for a tag boundary, then the log.
//!
//! Must not be in here: sockets and clocks.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use super::log::{Log, SLICES_MAX};

/// Bytes that may wait for a tag boundary: the preamble and answers to a viewer that does not read its pings.
const PENDING_MAX: usize = 256 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The next byte of the log.
    offset: u64,
    /// There is no key frame to go on from: the next one decides.
    waiting: bool,
    /// End of a tag begun before the cursor was moved; then `offset` is at a tag's beginning.
    rest: Bytes,
    /// Whole things to be sent between tags.
    pending: VecDeque<Bytes>,
    /// Tags sent before it was last moved, and the number of the tag it was moved to.
    tags: u64,
    tags_from: u64,
}

impl Cursor {
    /// Starts where a new viewer starts.
    pub(super) fn start(&mut self, log: &Log) {
        let gop = log.gop();
        self.waiting = gop.join().is_none();
        self.offset = gop.join().unwrap_or(gop.head());
        self.tags_from = gop.number(self.offset);
    }

    /// Something to be sent at the next tag boundary; `false` when too much waits there already.
    pub(super) fn interject(&mut self, bytes: Bytes) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let waits: usize = self.pending.iter().map(Bytes::len).sum();
        // The first piece is let through whatever its size: a preamble holds the codec configuration.
        if waits > 0 && waits + bytes.len() > PENDING_MAX {
            return false;
        }
        self.pending.push_back(bytes);
        true
    }

    /// Ends a wait when there is a key frame. `true` when a configuration lies between the last byte sent and there.
    pub(super) fn settle(&mut self, log: &Log) -> bool {
        let Some(join) = log.gop().join().filter(|join| self.waiting && *join >= self.offset) else { return false };
        let passed = join > self.offset && log.gop().passes_config(self.offset);
        self.land(log, join);
        self.waiting = false;
        passed
    }

    /// The first byte of the log it needs; `None` while it needs none.
    pub(super) fn needs(&self) -> Option<u64> {
        (!self.waiting).then_some(self.offset)
    }

    pub(super) fn waiting(&self) -> bool {
        self.waiting
    }

    /// Nothing more of the log: only the tag in flight and what waits for its end.
    pub(super) fn retire(&mut self, log: &Log) {
        if !self.waiting && self.rest.is_empty() {
            self.take_off(log);
        }
        self.waiting = true;
    }

    /// Whether something is to be written that is not of the log.
    pub(super) fn speaks(&self) -> bool {
        !self.rest.is_empty() || !self.pending.is_empty()
    }

    /// Whether there is something to write.
    pub(super) fn behind(&self, log: &Log) -> bool {
        !self.rest.is_empty() || !self.pending.is_empty() || (!self.waiting && self.offset < log.gop().head())
    }

    /// How far behind it is, media clock ticks.
    pub(super) fn lag(&self, log: &Log) -> i64 {
        if self.waiting { 0 } else { log.gop().lag(self.offset) }
    }

    /// Goes on at the newest key frame, if that is ahead. `Some(true)` when it passes over a configuration.
    pub(super) fn jump(&mut self, log: &Log) -> Option<bool> {
        let key = log.gop().join().filter(|key| !self.waiting && *key > self.offset)?;
        self.take_off(log);
        let passed = log.gop().passes_config(self.offset);
        self.land(log, key);
        Some(passed)
    }

    /// The log is about to let go of everything before `tail`; `None` when that does not concern the cursor, else
    /// whether a configuration is passed over.
    pub(super) fn displace(&mut self, log: &Log, tail: u64) -> Option<bool> {
        if self.waiting || self.offset >= tail {
            return None;
        }
        self.take_off(log);
        let Some(key) = log.gop().join().filter(|key| *key >= tail) else {
            self.waiting = true;
            return Some(false);
        };
        let passed = log.gop().passes_config(self.offset);
        self.land(log, key);
        Some(passed)
    }

    /// Tags of the log given to be written so far, the one in flight included.
    pub(super) fn tags(&self, log: &Log) -> u64 {
        if self.waiting { self.tags } else { self.tags + log.gop().number(self.offset).saturating_sub(self.tags_from) }
    }

    /// Is about to be moved: finishes the tag in flight for itself.
    fn take_off(&mut self, log: &Log) {
        self.keep_rest(log);
        self.tags = self.tags(log);
    }

    /// Goes on at `offset`.
    fn land(&mut self, log: &Log, offset: u64) {
        self.offset = offset;
        self.tags_from = log.gop().number(offset);
    }

    fn keep_rest(&mut self, log: &Log) {
        if let Some(end) = log.gop().tag_end(self.offset) {
            self.rest = log.pin(self.offset, end);
            self.offset = end;
        }
    }

    /// Fills `slices` with what comes next and gives their number.
    pub(super) fn fill<'a>(&'a self, log: &'a Log, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut filled = 0;
        let mut from = self.offset;
        if !self.rest.is_empty() {
            filled = put(slices, filled, &self.rest);
        } else if let Some(end) = self.cut(log) {
            filled = log.slices(from, end, slices, filled);
            from = end;
        }
        for piece in &self.pending {
            filled = put(slices, filled, piece);
        }
        if self.waiting { filled } else { log.slices(from, log.gop().head(), slices, filled) }
    }

    /// The end of the tag in flight, when something waits for it.
    fn cut(&self, log: &Log) -> Option<u64> {
        if self.pending.is_empty() || self.waiting { None } else { log.gop().tag_end(self.offset) }
    }

    /// `written` bytes of what [`fill`](Self::fill) gave are gone.
    pub(super) fn advance(&mut self, log: &Log, written: usize) {
        let mut written = written;
        let from_rest = written.min(self.rest.len());
        let cut = if self.rest.is_empty() { self.cut(log) } else { None };
        self.rest.advance(from_rest);
        if self.rest.is_empty() {
            // An empty `Bytes` may still hold its block.
            self.rest = Bytes::new();
        }
        written -= from_rest;
        if let Some(end) = cut {
            let step = written.min((end - self.offset) as usize);
            self.offset += step as u64;
            written -= step;
        }
        while written > 0
            && let Some(piece) = self.pending.front_mut()
        {
            let step = written.min(piece.len());
            piece.advance(step);
            written -= step;
            if piece.is_empty() {
                self.pending.pop_front();
            } else if written == 0 && step > 0 {
                // A piece begun is a tag in flight: nothing may come between.
                self.rest = self.pending.pop_front().unwrap_or_default();
            }
        }
        if self.pending.is_empty() && self.pending.capacity() > 0 {
            self.pending = VecDeque::new();
        }
        self.offset += written as u64;
    }
}

fn put<'a>(slices: &mut [IoSlice<'a>; SLICES_MAX], filled: usize, bytes: &'a [u8]) -> usize {
    match slices.get_mut(filled) {
        Some(slot) => {
            *slot = IoSlice::new(bytes);
            filled + 1
        }
        None => filled,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gop::{Keep, Mark};
    use super::*;

    /// A tag that can be checked: number, length, mark, and a filling made of the number.
    fn tag(number: u32, mark: u8, len: usize) -> Vec<u8> {
        let mut tag = Vec::from(number.to_be_bytes());
        tag.extend_from_slice(&(len as u32).to_be_bytes());
        tag.push(mark);
        tag.extend((0..len).map(|n| (number as usize + n) as u8));
        tag
    }

    const INTERJECTED: u8 = 9;

    /// Reads whole tags off the front; gives (number, mark).
    fn take(read: &mut Vec<u8>) -> Vec<(u32, u8)> {
        let mut taken = Vec::new();
        while read.len() >= 9 {
            let number = u32::from_be_bytes(read[..4].try_into().unwrap());
            let len = u32::from_be_bytes(read[4..8].try_into().unwrap()) as usize;
            assert!(len < 300_000, "not a tag boundary");
            if read.len() < 9 + len {
                break;
            }
            let mark = read[8];
            assert_eq!(read[..9 + len], tag(number, mark, len), "the tag is whole");
            taken.push((number, mark));
            read.drain(..9 + len);
        }
        taken
    }

    #[derive(Default)]
    struct Model {
        cursor: Cursor,
        unread: Vec<u8>,
        last: Option<u32>,
        interjected: u32,
        heard: u32,
    }

    impl Model {
        fn write(&mut self, log: &Log, mut len: usize) {
            self.cursor.settle(log);
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = self.cursor.fill(log, &mut slices);
            let mut written = 0;
            for slice in &slices[..filled] {
                let part = &slice[..len.min(slice.len())];
                self.unread.extend_from_slice(part);
                written += part.len();
                len -= part.len();
            }
            self.cursor.advance(log, written);
            for (number, mark) in take(&mut self.unread) {
                if mark == INTERJECTED {
                    assert_eq!(number, self.heard, "in order, none lost");
                    self.heard += 1;
                    continue;
                }
                let next = self.last.is_some_and(|last| number == last + 1);
                let later = self.last.is_none_or(|last| number > last);
                assert!(later, "{number} after {:?}", self.last);
                assert!(next || mark == 0, "a gap ends at a key frame, not at {number}");
                self.last = Some(number);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append { mark: u8, len: usize },
        Join,
        Write { viewer: usize, len: usize },
        Jump { viewer: usize },
        Interject { viewer: usize, len: usize },
        Evict { share: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (prop_oneof![1 => Just(0_u8), 5 => Just(1), 3 => Just(2), 1 => Just(3)], prop_oneof![8 => 0..4000_usize, 1 => 0..120_000_usize])
                .prop_map(|(mark, len)| Step::Append { mark, len }),
            1 => Just(Step::Join),
            8 => (0..6_usize, prop_oneof![0..20_usize, 0..5000_usize, 0..300_000_usize])
                .prop_map(|(viewer, len)| Step::Write { viewer, len }),
            1 => (0..6_usize).prop_map(|viewer| Step::Jump { viewer }),
            1 => (0..6_usize, 0..50_usize).prop_map(|(viewer, len)| Step::Interject { viewer, len }),
            1 => any::<u8>().prop_map(|share| Step::Evict { share }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever happens, a viewer reads whole tags in order, and after a gap the first is a key frame.
        #[test]
        fn every_viewer_reads_whole_tags(steps in prop::collection::vec(step(), 1..300)) {
            let mut log = Log::new(Keep::new(256, 10));
            let mut viewers: Vec<Model> = Vec::new();
            let (mut number, mut boundaries) = (0, vec![0]);
            for step in steps {
                match step {
                    Step::Append { mark, len } => {
                        let kind = [Mark::Key, Mark::Video, Mark::Audio, Mark::Config][usize::from(mark)];
                        // Without video audio is a place to join; the model knows key frames only.
                        let kind = if number == 0 { Mark::Key } else { kind };
                        let bytes = tag(number, if number == 0 { 0 } else { mark }, len);
                        log.append(kind, i64::from(number) * 3600, &bytes);
                        number += 1;
                        boundaries.push(log.gop().head());
                        evict(&mut log, &mut viewers, 0);
                    }
                    Step::Join if viewers.len() < 6 => {
                        let mut model = Model::default();
                        model.cursor.start(&log);
                        viewers.push(model);
                    }
                    Step::Join => {}
                    Step::Write { viewer, len } => {
                        if let Some(model) = viewers.get_mut(viewer) { model.write(&log, len); }
                    }
                    Step::Jump { viewer } => {
                        if let Some(model) = viewers.get_mut(viewer) { model.cursor.jump(&log); }
                    }
                    Step::Interject { viewer, len } => {
                        if let Some(model) = viewers.get_mut(viewer) {
                            model.cursor.interject(tag(model.interjected, INTERJECTED, len).into());
                            model.interjected += 1;
                        }
                    }
                    Step::Evict { share } => {
                        let at = boundaries.len() * usize::from(share) / 256;
                        evict(&mut log, &mut viewers, boundaries[at]);
                    }
                }
                prop_assert!(log.bytes() <= 256 * 1024 + 130_000, "{} bytes kept", log.bytes());
            }
            for model in &mut viewers {
                for _ in 0..100 { model.write(&log, usize::MAX); }
                prop_assert!(model.unread.is_empty(), "half a tag at the end");
                prop_assert_eq!(model.heard, model.interjected);
                prop_assert!(!model.cursor.behind(&log));
            }
        }
    }

    fn evict(log: &mut Log, viewers: &mut [Model], tail: u64) {
        let tail = tail.max(log.bound());
        if tail > log.gop().tail() {
            for model in viewers {
                model.cursor.displace(log, tail);
            }
            log.evict(tail);
        }
    }

    #[test]
    fn a_viewer_that_takes_nothing_is_not_given_memory() {
        let mut cursor = Cursor::default();
        let mut taken = 0;
        while cursor.interject(Bytes::from_static(&[0; 1000])) {
            taken += 1000;
            assert!(taken <= PENDING_MAX);
        }
    }

    #[test]
    fn a_jump_waits_for_the_end_of_the_tag_in_flight() {
        let mut log = Log::new(Keep::new(256, 10));
        log.append(Mark::Key, 0, b"KKKK");
        log.append(Mark::Video, 1, b"vvvv");
        let mut cursor = Cursor::default();
        cursor.start(&log);
        cursor.advance(&log, 6);
        log.append(Mark::Config, 2, b"cc");
        log.append(Mark::Key, 2, b"NNNN");
        assert_eq!(cursor.jump(&log), Some(true));
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = cursor.fill(&log, &mut slices);
        let next: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(next, b"vvNNNN");
        assert_eq!(cursor.jump(&log), None);
    }
}
