//! Segments and parts of one stream in memory, within bounds of bytes and time, and what playlists say of them.

use std::collections::VecDeque;

use bytes::Bytes;
use protocols::Refusal;
use protocols::hls::{Listed, Media, Multivariant, Part, Piece, Wait};

use super::Rules;
use super::channel::Verdict;
use super::muxer::{About, Step, target_seconds};

/// A playlist has at least so many segments, whatever the window: players start three from the end (RFC 8216, 6.3.3).
const LISTED_MIN: usize = 3;
/// Parts a player may ask for beyond those of any segment.
const PARTS_MAX: u64 = 10_000;
/// A date that is this far off is set right, microseconds: a source's clock is not ours.
const DATE_OFF_MAX: u64 = 500_000;

#[derive(Debug)]
pub(super) struct Ring {
    window_90k: i64,
    /// Bytes of everything kept.
    pub bytes_max: u64,
    inits: VecDeque<(u64, Bytes)>,
    about: Option<About>,
    /// Whole segments, the oldest first.
    segments: VecDeque<Segment>,
    open: Option<Segment>,
    next_part: u64,
    /// What a segment is planned to be.
    segment_90k: i64,
    target_seconds: i64,
    /// The target duration is known, and stays.
    settled: bool,
    /// Discontinuities of segments that are no longer kept.
    discontinuities: u64,
    bytes: u64,
    /// Microseconds since 1970 at the stream's time 0.
    anchor_us: Option<i64>,
    /// Bits a second of the fastest segment.
    peak: u64,
    over: Option<Over>,
    /// The newest media playlist, as those without a key get it.
    rendered: Option<Bytes>,
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Ended,
    Unplayable,
    /// The gateway stops, or nobody asked any longer.
    GivenUp,
}

#[derive(Debug)]
struct Segment {
    listed: Listed,
    chunks: Vec<Bytes>,
}

impl Ring {
    pub(super) fn new(rules: &Rules, next_part: u64) -> Self {
        Self {
            window_90k: rules.window_90k,
            bytes_max: rules.stream_bytes,
            inits: VecDeque::new(),
            about: None,
            segments: VecDeque::new(),
            open: None,
            next_part,
            segment_90k: rules.segment_90k,
            target_seconds: (rules.segment_90k + 45_000) / 90_000,
            settled: false,
            discontinuities: 0,
            bytes: 0,
            anchor_us: None,
            peak: 0,
            over: None,
            rendered: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// There is no whole segment yet.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn over(&self) -> Option<Over> {
        self.over
    }

    pub(super) fn target_seconds(&self) -> i64 {
        self.target_seconds
    }

    /// Nothing more comes; what is kept stays.
    pub(super) fn end(&mut self, over: Over) {
        self.close_segment();
        self.over = self.over.or(Some(over));
        self.rendered = None;
    }

    /// `anchor_us`: microseconds since 1970 at the stream's time 0, as the newest unit has it.
    pub(super) fn apply(&mut self, step: Step, anchor_us: Option<i64>) {
        self.rendered = None;
        match step {
            Step::Init { number, data, about } => {
                self.bytes += data.len() as u64;
                self.inits.push_back((number, data));
                self.about = Some(about);
            }
            Step::Segment { number, discontinuity } => {
                let init = self.inits.back().map_or(number, |(number, _)| *number);
                let listed = Listed { number, duration_90k: 0, init, discontinuity, date_us: 0, parts: Vec::new() };
                self.open = Some(Segment { listed, chunks: Vec::new() });
            }
            Step::Part { number, fragment } => {
                let date_us = self.date(fragment.start_90k, anchor_us);
                self.next_part = number + 1;
                let Some(open) = &mut self.open else { return };
                if open.chunks.is_empty() {
                    open.listed.date_us = date_us;
                }
                let (duration_90k, independent) = (fragment.duration_90k, fragment.key);
                open.listed.duration_90k += duration_90k;
                open.listed.parts.push(Part { number, duration_90k, independent });
                self.bytes += fragment.data.len() as u64;
                open.chunks.push(fragment.data);
                self.evict();
            }
            Step::Whole => self.close_segment(),
            Step::Unplayable => self.end(Over::Unplayable),
        }
    }

    fn date(&mut self, start_90k: i64, anchor_us: Option<i64>) -> i64 {
        let near = |anchor: &i64| anchor_us.is_none_or(|new| anchor.abs_diff(new) <= DATE_OFF_MAX);
        self.anchor_us = self.anchor_us.filter(near).or(anchor_us);
        self.anchor_us.unwrap_or(0).saturating_add(start_90k.saturating_mul(100) / 9)
    }

    fn close_segment(&mut self) {
        let Some(segment) = self.open.take().filter(|segment| !segment.chunks.is_empty()) else { return };
        let duration = segment.listed.duration_90k.max(1);
        if !std::mem::replace(&mut self.settled, true) {
            self.target_seconds = target_seconds(duration, self.segment_90k);
        }
        self.peak = self.peak.max(segment.bytes() * 8 * 90_000 / duration as u64);
        self.segments.push_back(segment);
        self.evict();
    }

    /// Keeps twice the window, within the bytes; the newest segment stays.
    fn evict(&mut self) {
        let mut span: i64 = self.segments.iter().map(|segment| segment.listed.duration_90k).sum();
        while self.segments.len() > 1 {
            let Some(first) = self.segments.front() else { return };
            let duration = first.listed.duration_90k;
            let long = span - duration >= 2 * self.window_90k && self.segments.len() > 2 * LISTED_MIN;
            if !long && self.bytes <= self.bytes_max {
                return;
            }
            span -= duration;
            self.discontinuities += u64::from(first.listed.discontinuity);
            self.bytes -= first.bytes();
            self.segments.pop_front();
            let oldest = self.segments.front().map_or(0, |segment| segment.listed.init);
            while self.inits.front().is_some_and(|(number, _)| *number < oldest) {
                self.bytes -= self.inits.pop_front().map_or(0, |(_, data)| data.len() as u64);
            }
        }
    }

    /// How much of what is here comes after this segment or part, in 1/90,000 s.
    pub(super) fn behind_90k(&self, piece: Piece) -> i64 {
        let mut behind = 0;
        for segment in self.segments.iter().chain(&self.open).rev() {
            if piece == Piece::Segment(segment.listed.number) {
                return behind;
            }
            for part in segment.listed.parts.iter().rev() {
                if piece == Piece::Part(part.number) {
                    return behind;
                }
                behind += part.duration_90k;
            }
        }
        // It is no longer kept: all that is.
        behind
    }

    // === what players ask for ===

    pub(super) fn multivariant(&self, carried: &str, player: u64) -> Option<Bytes> {
        let about = self.about.as_ref()?;
        let all = || self.segments.iter().chain(&self.open);
        let bytes: u64 = all().map(Segment::bytes).sum();
        let span: i64 = all().map(|segment| segment.listed.duration_90k).sum();
        // Before the first part nothing is known of the rate.
        let average = (span > 0).then(|| bytes * 8 * 90_000 / span as u64)?;
        let multivariant = Multivariant {
            codecs: about.codecs.clone(),
            peak: self.peak.max(average),
            average,
            resolution: about.resolution,
            frame_rate: about.frame_rate,
        };
        Some(multivariant.render(carried, player).into())
    }

    pub(super) fn media(&mut self, carried: &str, wait: Option<Wait>) -> Verdict<Bytes> {
        let newest = self.segments.back().map(|segment| segment.listed.number);
        if let (Some(wait), None) = (wait, self.over) {
            // A player may be one segment ahead of what is open (rfc8216bis, 6.2.5.2).
            let ahead = newest.is_some_and(|newest| wait.segment > newest + 2);
            if ahead || wait.part.is_some_and(|part| part > PARTS_MAX) {
                return Verdict::Never(Refusal::Invalid("a segment or part that is too far ahead".to_owned()));
            }
            let parts = self.open.as_ref().map_or(0, |open| open.listed.parts.len() as u64);
            let open = self.open.as_ref().map(|open| open.listed.number);
            let there = newest.is_some_and(|newest| wait.segment <= newest)
                || (open == Some(wait.segment) && wait.part.is_some_and(|part| parts > part));
            if !there {
                return Verdict::NotYet;
            }
        }
        if self.segments.is_empty() {
            return Verdict::NotYet;
        }
        if let Some(rendered) = self.rendered.as_ref().filter(|_| carried.is_empty()) {
            return Verdict::Ready(rendered.clone());
        }
        let text: Bytes = self.listed().render(carried).into();
        if carried.is_empty() {
            self.rendered = Some(text.clone());
        }
        Verdict::Ready(text)
    }

    fn listed(&self) -> Media {
        let (mut span, mut from) = (0, self.segments.len());
        for (at, segment) in self.segments.iter().enumerate().rev() {
            if span >= self.window_90k && self.segments.len() - from >= LISTED_MIN {
                break;
            }
            span += segment.listed.duration_90k;
            from = at;
        }
        let hidden = self.segments.range(..from).filter(|segment| segment.listed.discontinuity).count() as u64;
        let segments: Vec<Listed> = self.segments.range(from..).map(|segment| segment.listed.clone()).collect();
        let open = self.open.as_ref().map(|open| open.listed.clone()).filter(|open| !open.parts.is_empty());
        let longest =
            segments.iter().chain(&open).flat_map(|segment| &segment.parts).map(|part| part.duration_90k).max();
        let planned = self.about.as_ref().map_or(0, |about| about.part_target_90k);
        Media {
            target_seconds: self.target_seconds.max(1),
            part_target_90k: planned.max(longest.unwrap_or(0)),
            discontinuities_before: self.discontinuities + hidden,
            segments,
            open,
            next_part: self.over.is_none().then_some(self.next_part),
        }
    }

    pub(super) fn init(&self, number: u64) -> Option<Bytes> {
        self.inits.iter().find(|(own, _)| *own == number).map(|(_, data)| data.clone())
    }

    pub(super) fn segment(&self, number: u64) -> Option<Vec<Bytes>> {
        let at = self.segments.binary_search_by_key(&number, |segment| segment.listed.number).ok()?;
        self.segments.get(at).map(|segment| segment.chunks.clone())
    }

    /// A part; the next one is waited for.
    pub(super) fn part(&self, number: u64) -> Verdict<Bytes> {
        if number == self.next_part && self.over.is_none() {
            return Verdict::NotYet;
        }
        let missing = || Verdict::Never(Refusal::NotFound(format!("part {number}")));
        self.segments
            .iter()
            .chain(&self.open)
            .find_map(|segment| segment.part(number))
            .map_or_else(missing, Verdict::Ready)
    }
}

impl Segment {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len() as u64).sum()
    }

    fn part(&self, number: u64) -> Option<Bytes> {
        let at = number.checked_sub(self.listed.parts.first()?.number)?;
        self.chunks.get(usize::try_from(at).ok()?).cloned()
    }
}
