//! Units to parts and segments: when to cut, and what begins anew when codecs change. No I/O, no clock.

use bytes::Bytes;
use protocols::media::fmp4::{self, Description, Fragment, Fragmenter};
use protocols::media::{Codec, Kind, Picture, Track, Unit};

use super::Rules;

/// A group of pictures longer than this is cut where nothing can start, in 1/90,000 s: players wait for whole segments.
const LONGEST: i64 = 10 * 90_000;
/// The first segment need not be as long as the others, so that a player can begin: it ends at the first key frame after
/// this, in 1/90,000 s.
const FIRST_MIN: i64 = 45_000;
/// How long another track is waited for at the start, in 1/90,000 s of the track that is there.
const TRACKS_WAIT: i64 = 90_000;
/// What a part may be longer than planned, in 1/90,000 s: sources that tell milliseconds are that far off, and more.
const PART_SLACK: i64 = 450;
/// Frames without a place in HLS after which a stream has no other to offer.
const STRANGE_MAX: u32 = 150;

/// What came of a unit.
#[derive(Debug)]
pub(super) enum Step {
    /// The tracks are known, or others.
    Init {
        number: u64,
        data: Bytes,
        about: About,
    },
    /// A segment begins.
    Segment {
        number: u64,
        discontinuity: bool,
    },
    Part {
        number: u64,
        fragment: Fragment,
    },
    /// The segment that began is whole.
    Whole,
    /// None of the stream's codecs has a place in HLS.
    Unplayable,
}

/// What a multivariant playlist says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct About {
    pub codecs: String,
    pub resolution: Option<(u16, u16)>,
    pub frame_rate: Option<f64>,
    pub part_target_90k: i64,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Muxer {
    part_90k: i64,
    segment_90k: i64,
    /// Bytes a segment may have.
    pub segment_bytes_max: u64,
    /// Which of video and audio the stream is known to have.
    expected: (bool, bool),
    /// What describes each track: its newest configuration, or a packet of a codec without one.
    video: Option<Unit>,
    audio: Option<Unit>,
    state: State,
    next_segment: u64,
    next_part: u64,
    /// What no segment is longer than, 1/90,000 s; known with the first.
    limit_90k: Option<i64>,
    /// The next segment does not go on where the last one ended.
    broken: bool,
    strange: u32,
}

#[derive(Debug)]
enum State {
    /// Until the tracks are known.
    Gathering(Vec<Unit>),
    Running(Running),
}

#[derive(Debug)]
struct Running {
    tracks: Vec<Description>,
    fragmenter: Fragmenter,
    part_target_90k: i64,
    frame_90k: i64,
    /// Of the parts of the open segment.
    span_90k: i64,
    bytes: u64,
    first: bool,
    limit_90k: Option<i64>,
    /// The open segment began where nothing can start.
    adrift: bool,
    /// The newest unit of the leading track, which is held until the next tells how long it lasts: when it was, and whether
    /// decoding can start there.
    held: Option<(i64, bool)>,
}

impl Muxer {
    /// Numbers of segments and parts begin here.
    pub(super) fn new(rules: &Rules, expected: (bool, bool), segment: u64, part: u64) -> Self {
        Self {
            part_90k: rules.part_90k,
            segment_90k: rules.segment_90k,
            segment_bytes_max: rules.stream_bytes / 4,
            expected,
            video: None,
            audio: None,
            state: State::Gathering(Vec::new()),
            next_segment: segment,
            next_part: part,
            limit_90k: None,
            broken: false,
            strange: 0,
        }
    }

    pub(super) fn unit(&mut self, unit: Unit, out: &mut Vec<Step>) {
        if unit.track == Track::Data {
            return;
        }
        self.note(&unit, out);
        if unit.kind == Kind::Config {
            return;
        }
        match &mut self.state {
            State::Running(running) => {
                running.push(
                    &unit,
                    self.segment_90k,
                    self.segment_bytes_max,
                    &mut self.next_segment,
                    &mut self.next_part,
                    out,
                );
            }
            State::Gathering(units) => {
                let begins = match (&self.video, unit.track) {
                    (Some(_), Track::Video) => unit.kind == Kind::Key,
                    (None, Track::Audio) => self.audio.is_some(),
                    _ => false,
                };
                if has_place(unit.codec) && (begins || !units.is_empty()) {
                    units.push(unit);
                    self.start(out);
                } else if self.video.is_none() && self.audio.is_none() {
                    self.strange += 1;
                    if self.strange == STRANGE_MAX {
                        out.push(Step::Unplayable);
                    }
                }
            }
        }
    }

    /// Units are missing: what comes next begins anew.
    pub(super) fn gap(&mut self, out: &mut Vec<Step>) {
        if let State::Running(running) = &mut self.state {
            running.finish(self.segment_90k, &mut self.next_segment, &mut self.next_part, out);
            running.settle(self.segment_90k);
            self.limit_90k = running.limit_90k;
            out.push(Step::Whole);
            self.broken = true;
        }
        self.state = State::Gathering(Vec::new());
    }

    /// The publisher went: nothing is held back for a frame that does not come.
    pub(super) fn flush(&mut self, out: &mut Vec<Step>) {
        if let State::Running(running) = &mut self.state {
            running.finish(self.segment_90k, &mut self.next_segment, &mut self.next_part, out);
        }
    }

    /// Remembers what describes a track; another description than the one that runs begins anew.
    fn note(&mut self, unit: &Unit, out: &mut Vec<Step>) {
        if !has_place(unit.codec) || (unit.kind != Kind::Config && unit.codec != Codec::Mp3) {
            return;
        }
        let known = if unit.track == Track::Video { &mut self.video } else { &mut self.audio };
        let same = known
            .as_ref()
            .is_some_and(|known| known.codec == unit.codec && (unit.kind != Kind::Config || known.data == unit.data));
        if same || Description::of(1, unit).is_none() {
            return;
        }
        *known = Some(unit.clone());
        if matches!(self.state, State::Running(_)) {
            self.gap(out);
        }
    }

    /// Begins when the tracks are known, or need not be waited for any longer.
    fn start(&mut self, out: &mut Vec<Step>) {
        let State::Gathering(units) = &mut self.state else { return };
        let leading = if self.video.is_some() { Track::Video } else { Track::Audio };
        let mut times = units.iter().filter(|unit| unit.track == leading).map(|unit| unit.dts_90k);
        let (Some(first), Some(last)) = (times.next(), times.next_back()) else { return };
        let frames = units.iter().filter(|unit| unit.track == leading).count() as i64;
        let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
        let (video, audio) = self.expected;
        let complete = (video || audio) && (!video || self.video.is_some()) && (!audio || self.audio.is_some())
            || self.video.is_some() && self.audio.is_some();
        if !complete && last - first < TRACKS_WAIT && (bytes as u64) < self.segment_bytes_max {
            return;
        }
        let frame_90k = ((last - first) / (frames - 1).max(1)).max(1);
        let units = std::mem::take(units);
        let tracks: Vec<Description> = [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .zip(1..)
            .filter_map(|(unit, id)| Description::of(id, unit))
            .collect();
        let frames_a_part = (self.part_90k + frame_90k - 1) / frame_90k;
        let part_target_90k = frames_a_part.max(1) * frame_90k + PART_SLACK;
        let number = self.next_segment;
        let about = about(&tracks, self.video.as_ref(), part_target_90k);
        out.push(Step::Init { number, data: fmp4::init(&tracks), about });
        out.push(Step::Segment { number, discontinuity: std::mem::take(&mut self.broken) });
        self.next_segment += 1;
        let fragmenter = Fragmenter::new(&tracks);
        self.state = State::Running(Running {
            tracks,
            fragmenter,
            part_target_90k,
            frame_90k,
            span_90k: 0,
            bytes: 0,
            first: true,
            limit_90k: self.limit_90k,
            adrift: false,
            held: None,
        });
        for unit in units {
            self.unit(unit, out);
        }
    }
}

impl Running {
    fn push(
        &mut self,
        unit: &Unit,
        segment_90k: i64,
        bytes_max: u64,
        next_segment: &mut u64,
        next_part: &mut u64,
        out: &mut Vec<Step>,
    ) {
        let has_video = self.tracks.iter().any(|track| track.track == Track::Video);
        let leads = !has_video || unit.track == Track::Video;
        let starts = leads && (!has_video || unit.kind == Kind::Key);
        if leads {
            self.make_room((unit.dts_90k, starts), segment_90k, next_segment, next_part, out);
        }
        if !self.fragmenter.push(unit) {
            return;
        }
        if leads {
            self.held = Some((unit.dts_90k, starts));
        }
        let ready = self.fragmenter.span_90k();
        let span = self.span_90k + ready;
        // Groups of pictures are not exactly as long as they were planned.
        let enough = if self.first { FIRST_MIN.min(segment_90k) } else { segment_90k - segment_90k / 10 };
        // The sound goes on where the picture stands still, which alone has been looked after.
        let too_long = !leads && span >= self.longest() - self.frame_90k.min(self.longest() / 2);
        let too_much = span > 0 && (too_long || self.bytes + self.fragmenter.bytes() as u64 >= bytes_max);
        if starts && (span >= enough || self.adrift) || too_much {
            self.part(next_part, out);
            self.adrift = !starts;
            self.next_segment(false, segment_90k, next_segment, out);
        } else if ready > 0 && ready + self.frame_90k > self.part_target_90k {
            self.part(next_part, out);
        }
    }

    /// The unit that is held lasts until `next_90k`, where decoding can start if it `starts`. Where that is more than the
    /// open segment may take, a new one begins with it; where it is more than any may (nothing came for so long), or than
    /// any may once the first ends here, it is shown as long as those before it, and what comes then does not go on where
    /// that ended: the target duration was said and stays (RFC 8216, 4.3.3.1 and 6.2.1).
    fn make_room(
        &mut self,
        (next_90k, starts): (i64, bool),
        segment_90k: i64,
        next_segment: &mut u64,
        next_part: &mut u64,
        out: &mut Vec<Step>,
    ) {
        let Some((since_90k, key)) = self.held else { return };
        let lasts = next_90k.saturating_sub(since_90k);
        let span = self.span_90k + self.fragmenter.span_90k();
        let full = span + lasts > self.longest();
        if full && lasts > self.limit_90k.unwrap_or(limit(span, segment_90k)) {
            self.finish(segment_90k, next_segment, next_part, out);
            self.adrift = !starts;
            self.next_segment(true, segment_90k, next_segment, out);
        } else if full {
            self.part(next_part, out);
            self.adrift = !key;
            self.next_segment(false, segment_90k, next_segment, out);
        }
    }

    /// What no segment is longer than, 1/90,000 s.
    fn longest(&self) -> i64 {
        self.limit_90k.unwrap_or(LONGEST)
    }

    fn next_segment(&mut self, discontinuity: bool, segment_90k: i64, number: &mut u64, out: &mut Vec<Step>) {
        self.settle(segment_90k);
        out.push(Step::Whole);
        out.push(Step::Segment { number: *number, discontinuity });
        *number += 1;
        (self.span_90k, self.bytes, self.first) = (0, 0, false);
    }

    /// With the first segment it is known how long the others may be.
    fn settle(&mut self, segment_90k: i64) {
        if self.span_90k > 0 && self.limit_90k.is_none() {
            self.limit_90k = Some(limit(self.span_90k, segment_90k));
        }
    }

    fn part(&mut self, next_part: &mut u64, out: &mut Vec<Step>) {
        let fragment = self.fragmenter.cut();
        self.put(fragment, next_part, out);
    }

    /// Lets go of all, also of what is held: it lasts as long as what came before it, for which there must be room.
    fn finish(&mut self, segment_90k: i64, next_segment: &mut u64, next_part: &mut u64, out: &mut Vec<Step>) {
        self.part(next_part, out);
        let fragment = self.fragmenter.finish();
        let held = self.held.take();
        if fragment.as_ref().is_some_and(|last| self.span_90k + last.duration_90k > self.longest()) {
            self.adrift = held.is_none_or(|(_, key)| !key);
            self.next_segment(false, segment_90k, next_segment, out);
        }
        self.put(fragment, next_part, out);
    }

    fn put(&mut self, fragment: Option<Fragment>, next_part: &mut u64, out: &mut Vec<Step>) {
        let Some(fragment) = fragment else { return };
        self.span_90k += fragment.duration_90k;
        self.bytes += fragment.data.len() as u64;
        out.push(Step::Part { number: *next_part, fragment });
        *next_part += 1;
    }
}

/// The target duration, by the first segment: room for as many groups of pictures as a segment is to have, and up to a
/// second more; it is never another (RFC 8216, 4.3.3.1). Longer ones are cut where nothing can start.
pub(super) fn target_seconds(first_90k: i64, segment_90k: i64) -> i64 {
    let groups = (segment_90k - segment_90k / 10 + first_90k - 1) / first_90k.max(1);
    ((first_90k * groups.max(1)).max(segment_90k).min(LONGEST) + 89_999) / 90_000
}

/// What no segment is longer than behind such a first one, so that its length rounds to the target duration at most.
fn limit(first_90k: i64, segment_90k: i64) -> i64 {
    target_seconds(first_90k, segment_90k) * 90_000 + 44_999
}

/// What players of HLS can be given. G.711 they cannot play: a stream goes out without it.
fn has_place(codec: Codec) -> bool {
    matches!(codec, Codec::H264 | Codec::H265 | Codec::Av1 | Codec::Aac | Codec::Opus | Codec::Mp3)
}

fn about(tracks: &[Description], video: Option<&Unit>, part_target_90k: i64) -> About {
    let codecs: Vec<String> = tracks.iter().map(Description::codecs).collect();
    let picture = tracks.iter().find(|track| track.width > 0 && track.height > 0);
    About {
        codecs: codecs.join(","),
        resolution: picture.map(|track| (track.width, track.height)),
        frame_rate: video.and_then(Picture::of).and_then(|picture| picture.fps),
        part_target_90k,
    }
}
