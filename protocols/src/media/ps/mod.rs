//! MPEG program streams (ITU-T H.222.0, 2.5) as cameras of GB/T 28181 send them, to units.
//!
//! Packets are walked by their lengths; start codes are searched for after an error, and where a length is missing. What
//! is in a stream, its own bytes say rather than the map: `header.rs` (headers), `sound.rs` (audio); pictures are
//! `annex_b.rs`'s. Must not be in here: RTP.

use bytes::{Buf, Bytes, BytesMut};

use super::annex_b::{AnnexB, Times};
use super::read::MediaError;
use super::{Codec, Unit};
use header::{Front, RawTimes};
use sound::Sound;

mod header;
mod sound;

/// Bytes of a map of streams (2.5.4.2), generously.
const MAP_MAX: usize = 4_096;

/// Bytes of an audio packet.
const SOUND_MAX: usize = 65_536;

/// The stream's time at the first of its clock's times: what turns out to be earlier is not before 0, 1/90,000 s.
const BEGIN: i64 = 90_000;

/// See the module. Holds at most a header and the access units under way.
#[derive(Debug, Default)]
pub struct Demuxer {
    buffer: BytesMut,
    state: State,
    map: Map,
    clock: Clock,
    video: Option<(u8, AnnexB)>,
    audio: Option<(u8, Sound)>,
    /// Content of an audio packet under way, and when it is heard.
    sound: BytesMut,
    sound_90k: Option<i64>,
    /// Bytes passed over since the last header.
    searched: usize,
    /// Packets of streams that are not carried.
    left_out: u64,
    /// The types of streams that are not carried, video and audio, and whether that was told.
    refused: [Option<(u8, bool)>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Where a header may stand is not known.
    #[default]
    Lost,
    /// A header stands here.
    Head,
    /// Content: so many bytes, or up to the next header.
    Content { to: To, len: Option<usize> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Video,
    Audio,
    Nobody,
}

/// The type of each audio and video stream, by its id from 0xc0 on.
#[derive(Debug)]
struct Map {
    types: [Option<u8>; 48],
    seen: bool,
}

impl Default for Map {
    fn default() -> Self {
        Self { types: [None; 48], seen: false }
    }
}

impl Map {
    fn of(&self, id: u8) -> Option<u8> {
        self.types.get(usize::from(id.wrapping_sub(0xc0))).copied().flatten()
    }
}

impl Demuxer {
    /// Takes the next bytes, cut anywhere; finished units are appended to `units`. After an error it goes on at the next header,
    /// and pictures at the next key frame.
    pub fn push(&mut self, bytes: &[u8], units: &mut Vec<Unit>) -> Result<(), MediaError> {
        self.buffer.extend_from_slice(bytes);
        let mut outcome = Ok(());
        loop {
            match self.step(units) {
                Ok(true) => {}
                Ok(false) => return outcome,
                Err(error) => {
                    self.resume_later();
                    outcome = outcome.and(Err(error));
                }
            }
        }
    }

    /// Bytes are missing here.
    pub fn lose(&mut self) {
        self.buffer.clear();
        self.resume_later();
    }

    fn resume_later(&mut self) {
        self.state = State::Lost;
        self.sound.clear();
        if let Some((_, video)) = &mut self.video {
            video.lose();
        }
        if let Some((_, audio)) = &mut self.audio {
            audio.lose();
        }
    }

    /// The sender says that a picture ends here.
    pub fn mark(&mut self, units: &mut Vec<Unit>) {
        if let Some((_, video)) = self.video.as_mut().filter(|_| self.state == State::Head && self.buffer.is_empty()) {
            video.mark(units);
        }
    }

    /// Bytes passed over since the last header.
    pub fn searched(&self) -> usize {
        self.searched
    }

    /// Pictures and packets left out so far: broken, in a codec or of a stream that is not carried.
    pub fn left_out(&self) -> u64 {
        let pictures = self.video.as_ref().map_or(0, |(_, video)| video.left_out());
        self.left_out + pictures
    }

    /// The type of a stream that is not carried (H.222.0, table 2-34), once; 0 where there is no map.
    pub fn take_refused(&mut self) -> Option<u8> {
        let (kind, told) = self.refused.iter_mut().flatten().find(|(_, told)| !told)?;
        *told = true;
        Some(*kind)
    }

    fn refuse(&mut self, to: To, kind: Option<u8>) {
        self.left_out += 1;
        let [video, audio] = &mut self.refused;
        let place = if to == To::Video { video } else { audio };
        place.get_or_insert((kind.unwrap_or(0), false));
    }

    /// Whether there is no picture, as far as is known.
    pub fn is_sound_alone(&self) -> bool {
        let pictures = self.map.types.iter().skip(32).any(Option::is_some);
        self.video.is_none() && !(self.map.seen && pictures)
    }

    /// Goes one step; `false` when more bytes are needed.
    fn step(&mut self, units: &mut Vec<Unit>) -> Result<bool, MediaError> {
        match self.state {
            State::Lost => Ok(self.search()),
            State::Head => self.head(units),
            State::Content { to, len } => self.content(to, len, units),
        }
    }

    /// Goes on to the next code that begins a header.
    fn search(&mut self) -> bool {
        let (at, found) = header_code(&self.buffer, |id| matches!(id, 0xba..=0xbc | 0xe0..=0xef));
        self.buffer.advance(at);
        self.searched = self.searched.saturating_add(at);
        if found {
            self.state = State::Head;
        }
        found
    }

    fn head(&mut self, units: &mut Vec<Unit>) -> Result<bool, MediaError> {
        if self.buffer.is_empty() {
            return Ok(false);
        }
        // A zero byte too many ahead of a code.
        while self.buffer.starts_with(&[0, 0, 0]) {
            self.buffer.advance(1);
            self.searched = self.searched.saturating_add(1);
        }
        let front = match header::front(&self.buffer) {
            Ok(front) => front,
            Err(error) => {
                self.buffer.advance(1);
                return Err(error);
            }
        };
        match front {
            Front::More if self.buffer.len() > MAP_MAX => {
                self.buffer.advance(1);
                return Err(MediaError::Limit { part: "program stream map", what: "bytes", max: MAP_MAX });
            }
            Front::More => return Ok(false),
            Front::Skip(len) => self.state = State::Content { to: To::Nobody, len: Some(len) },
            Front::Map(len) => {
                let map = self.buffer.split_to(len.min(self.buffer.len())).freeze();
                self.learn(&map, units);
            }
            Front::End => {
                self.buffer.advance(4);
                if let Some((_, video)) = &mut self.video {
                    video.flush(units);
                }
            }
            Front::Unknown => {
                self.buffer.advance(4);
                self.state = State::Content { to: To::Nobody, len: None };
            }
            Front::Packet { id, head, len, times } => {
                self.buffer.advance(head);
                let to = self.begin(id, times);
                if to == To::Audio && len.is_none_or(|len| len > SOUND_MAX) {
                    return Err(MediaError::Limit { part: "audio packet", what: "bytes", max: SOUND_MAX });
                }
                self.state = State::Content { to, len };
            }
        }
        self.searched = 0;
        Ok(true)
    }

    /// A map of streams: one that says otherwise than the last begins them anew.
    fn learn(&mut self, map: &Bytes, units: &mut Vec<Unit>) {
        let mut types = [None; 48];
        header::map(map, |id, kind| {
            if let Some(place) = types.get_mut(usize::from(id.wrapping_sub(0xc0))) {
                *place = Some(kind);
            }
        });
        if types.iter().all(Option::is_none) || types == self.map.types {
            return;
        }
        let before = std::mem::replace(&mut self.map, Map { types, seen: true });
        if let Some((id, video)) = &mut self.video
            && before.of(*id) != self.map.of(*id)
        {
            video.flush(units);
            self.video = None;
        }
        if self.audio.as_ref().is_some_and(|(id, _)| before.of(*id) != self.map.of(*id)) {
            self.audio = None;
        }
    }

    /// A packet begins.
    fn begin(&mut self, id: u8, times: RawTimes) -> To {
        let declared = self.map.of(id);
        if id < 0xe0 {
            let (carried, _) = self.audio.get_or_insert_with(|| (id, Sound::default()));
            if *carried != id {
                self.left_out += 1;
                return To::Nobody;
            }
            self.sound_90k = times.pts.map(|pts| self.clock.at(pts));
            return To::Audio;
        }
        let codec = match declared {
            Some(0x1b) | None => Codec::H264,
            Some(0x24) => Codec::H265,
            Some(_) => {
                self.refuse(To::Video, declared);
                return To::Nobody;
            }
        };
        let (carried, video) = self.video.get_or_insert_with(|| (id, AnnexB::new(codec)));
        if *carried != id {
            self.left_out += 1;
            return To::Nobody;
        }
        // Decode times first: they go on evenly.
        let dts_90k = times.dts.map(|dts| self.clock.at(dts));
        let pts_90k = times.pts.map(|pts| self.clock.at(pts));
        video.time(pts_90k.map(|pts_90k| Times { pts_90k, dts_90k }));
        To::Video
    }

    fn content(&mut self, to: To, len: Option<usize>, units: &mut Vec<Unit>) -> Result<bool, MediaError> {
        if self.buffer.is_empty() && len != Some(0) {
            return Ok(false);
        }
        let (take, ends) = match len {
            Some(len) => (len.min(self.buffer.len()), len <= self.buffer.len()),
            None => header_code(&self.buffer, |id| id >= 0xb9),
        };
        let content = self.buffer.split_to(take);
        self.state = match len {
            _ if ends => State::Head,
            len => State::Content { to, len: len.map(|len| len - take) },
        };
        match to {
            To::Nobody => {}
            To::Video => {
                if let Some((_, video)) = &mut self.video {
                    video.push(&content, units)?;
                }
            }
            To::Audio => {
                self.sound.extend_from_slice(&content);
                if let Some((id, audio)) = self.audio.as_mut().filter(|_| ends) {
                    let declared = self.map.of(*id);
                    let carried = audio.packet(declared, &self.sound, self.sound_90k, units);
                    self.sound.clear();
                    if !carried {
                        self.refuse(To::Audio, declared);
                    }
                }
            }
        }
        Ok(ends || take > 0)
    }
}

/// Where the next start code stands whose last byte is wanted, and `true`; else the bytes that are certainly ahead of it.
fn header_code(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> (usize, bool) {
    let mut from = 0;
    while let Some((begin, end)) = bytes.get(from..).and_then(super::h264::start_code) {
        match bytes.get(from + end) {
            Some(id) if wanted(*id) => return (from + begin, true),
            Some(_) => from += end,
            None => return (from + begin, false),
        }
    }
    (bytes.len().saturating_sub(2).max(from.min(bytes.len())), false)
}

/// Times of 33 bits to ones that do not wrap, of all streams together.
#[derive(Debug, Default)]
struct Clock {
    last: Option<(u64, i64)>,
}

impl Clock {
    /// A step of less than 2^32 (13 hours) either way is a step, not a wrap.
    fn at(&mut self, time: u64) -> i64 {
        let unwrapped = self.last.map_or(BEGIN, |(last, unwrapped)| {
            let ahead = (time.wrapping_sub(last) << 31) as i64 >> 31;
            unwrapped.saturating_add(ahead)
        });
        self.last = Some((time, unwrapped));
        unwrapped
    }
}

#[cfg(test)]
mod tests;
