//! A byte stream of H.264 or H.265 (annex B of either) to access units, wherever it is cut.
//!
//! A picture begins where its NAL units say so (H.264, 7.4.1.2.3; H.265, 7.4.2.4.4). After a loss nothing goes out before the
//! next key frame, and no picture of which the beginning is missing. Must not be in here: containers and their clocks.

use bytes::{Buf, BytesMut};

use super::h264::{self, start_code};
use super::h265;
use super::nal::nal_type;
use super::pictures::{Access, Pictures};
use super::read::MediaError;
use super::{Codec, Unit};

/// Bytes of an access unit: several times a key frame of 4K.
const ACCESS_MAX: usize = 8 * 1024 * 1024;

/// Between pictures of which no time is known, as long as no two are: 25 a second.
const STEP: i64 = 3_600;

/// A longer time between two pictures, 1/90,000 s, says nothing about others.
const STEP_MAX: i64 = 90_000;

/// Marks that must have told the truth before they are believed.
const MARKS: u8 = 8;

/// When a picture is shown, and when decoded where that is said, 1/90,000 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub pts_90k: i64,
    pub dts_90k: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AnnexB {
    codec: Codec,
    pictures: Pictures,
    /// From behind the newest start code on; `scanned` bytes of it hold no other.
    raw: BytesMut,
    scanned: usize,
    /// There was a start code.
    in_nal: bool,
    /// It was seen what kind of NAL unit this is.
    judged: bool,
    nal_times: Option<Times>,
    /// Of the next picture that begins at this byte of `raw` or behind it.
    times: Option<Times>,
    times_at: usize,
    access: Option<Open>,
    last: Option<Times>,
    /// From picture to picture, as the newest times said.
    step: i64,
    /// When the newest picture with times of its own was decoded, and how many came since.
    timed: Option<(i64, i64)>,
    /// How many are missing since then is not known.
    uncertain: bool,
    marks: Marks,
    /// Where in `raw` the newest mark stands, as long as nothing followed it.
    marked_at: Option<usize>,
    configured: bool,
    left_out: u64,
}

/// The access unit under way.
#[derive(Debug, Default)]
struct Open {
    access: Access,
    times: Option<Times>,
    slices: bool,
}

/// Whether the sender's end-of-picture marks can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// So many were true.
    True(u8),
    /// The next NAL unit shows whether the newest was true.
    Open(u8),
    Lie,
}

impl AnnexB {
    pub(crate) fn new(codec: Codec) -> Self {
        let mut pictures = Pictures::new(codec, &[]);
        pictures.lose();
        Self {
            codec,
            pictures,
            raw: BytesMut::new(),
            scanned: 0,
            in_nal: false,
            judged: false,
            nal_times: None,
            times: None,
            times_at: 0,
            access: None,
            last: None,
            step: STEP,
            timed: None,
            uncertain: false,
            marks: Marks::True(0),
            marked_at: None,
            configured: false,
            left_out: 0,
        }
    }

    /// Pictures left out so far.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The first picture that begins in the bytes from here on has these times.
    pub(crate) fn time(&mut self, times: Option<Times>) {
        self.times = times;
        self.times_at = self.raw.len();
    }

    /// Takes bytes; finished pictures are appended to `units`.
    pub(crate) fn push(&mut self, bytes: &[u8], units: &mut Vec<Unit>) -> Result<(), MediaError> {
        self.raw.extend_from_slice(bytes);
        loop {
            self.judge(false, units);
            let rest = self.raw.get(self.scanned..).unwrap_or_default();
            let Some((begin, end)) = start_code(rest) else { break };
            let (begin, end) = (begin + self.scanned, end + self.scanned);
            self.complete(begin, units);
            // The zero byte ahead of a start code belongs to what begins.
            let zero = begin.checked_sub(1).filter(|at| self.raw.get(*at) == Some(&0));
            let first = zero.unwrap_or(begin);
            self.nal_times = self.times.filter(|_| first >= self.times_at);
            // A mark in the middle of a NAL unit.
            if self.marked_at.take().is_some_and(|at| at < first) {
                self.marks = Marks::Lie;
            }
            self.cut(end);
            (self.in_nal, self.judged) = (true, false);
        }
        self.scanned = self.raw.len().saturating_sub(2);
        if !self.in_nal {
            self.cut(self.scanned);
        }
        if self.raw.len() + self.access.as_ref().map_or(0, |open| open.access.data.len()) > ACCESS_MAX {
            self.lose();
            return Err(MediaError::Limit { part: "access unit", what: "bytes", max: ACCESS_MAX });
        }
        Ok(())
    }

    /// The sender says that the picture ends here. Believed once that was true often enough; it spares a frame's delay.
    pub(crate) fn mark(&mut self, units: &mut Vec<Unit>) {
        match self.marks {
            _ if self.access.is_none() => return,
            Marks::Lie => return,
            Marks::True(count) | Marks::Open(count) => {
                if count >= MARKS {
                    self.flush(units);
                }
                self.marks = Marks::Open(count);
            }
        }
        self.marked_at = Some(self.raw.len());
    }

    /// The byte stream ends here, or begins anew.
    pub(crate) fn flush(&mut self, units: &mut Vec<Unit>) {
        self.judge(true, units);
        self.complete(self.raw.len(), units);
        self.cut(self.raw.len());
        self.in_nal = false;
        self.finish(units);
    }

    /// Bytes are missing here.
    pub(crate) fn lose(&mut self) {
        self.cut(self.raw.len());
        self.in_nal = false;
        self.times = None;
        self.uncertain = true;
        self.marked_at = None;
        self.left_out += u64::from(self.access.take().is_some());
        self.pictures.lose();
        if let Marks::Open(count) = self.marks {
            self.marks = Marks::True(count);
        }
    }

    fn cut(&mut self, len: usize) {
        self.raw.advance(len.min(self.raw.len()));
        self.scanned = 0;
        self.times_at = self.times_at.saturating_sub(len);
        self.marked_at = self.marked_at.map(|at| at.saturating_sub(len));
    }

    /// Looks at the beginning of a NAL unit as soon as that is there.
    fn judge(&mut self, last: bool, units: &mut Vec<Unit>) {
        if !self.in_nal || self.judged || self.raw.len() < 3 && !last {
            return;
        }
        self.judged = true;
        let head: [u8; 3] = std::array::from_fn(|at| self.raw.get(at).copied().unwrap_or(0));
        self.correct(head);
        let role = Role::of(self.codec, head);
        let begins = match (role, &self.access) {
            (Role::Slice { first: false }, None) => {
                // The rest of a picture whose beginning is missing.
                self.in_nal = false;
                self.pictures.lose();
                self.marked(false);
                return;
            }
            (Role::None, None) => return,
            (_, None) => true,
            (Role::Slice { first: true } | Role::Ahead, Some(open)) => open.slices,
            _ => false,
        };
        if role != Role::None {
            self.marked(begins);
        }
        if begins {
            self.finish(units);
        }
        let open = self.access.get_or_insert_default();
        open.slices |= matches!(role, Role::Slice { .. });
        if open.times.is_none() && self.nal_times.is_some() {
            open.times = self.nal_times;
            self.times = self.times.filter(|times| Some(*times) != open.times);
        }
    }

    /// Whether the newest mark was true.
    fn marked(&mut self, begins: bool) {
        if let Marks::Open(count) = self.marks {
            self.marks = if begins { Marks::True((count + 1).min(MARKS)) } else { Marks::Lie };
        }
    }

    /// What a NAL unit of one codec alone says about a codec that was said, or guessed, wrong.
    fn correct(&mut self, head: [u8; 3]) {
        let codec = match head {
            // VPS and SPS of the base layer; in H.264 these are no NAL units that anybody sends.
            [0x40 | 0x42, 1, _] => Codec::H265,
            // SPS of a profile there is.
            [0x67 | 0x47 | 0x27, 66 | 77 | 88 | 100 | 110 | 122, _] => Codec::H264,
            _ => return,
        };
        if codec != self.codec {
            self.codec = codec;
            self.pictures = Pictures::new(codec, &[]);
            self.pictures.lose();
            (self.access, self.configured) = (None, false);
        }
    }

    /// Takes the NAL unit that ends at this byte.
    fn complete(&mut self, end: usize, units: &mut Vec<Unit>) {
        if !self.in_nal {
            return;
        }
        self.judge(true, units);
        let nal = self.raw.get(..end).unwrap_or_default();
        let len = nal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let nal = nal.get(..len).unwrap_or_default();
        let kind = nal.first().map_or(0, |head| nal_type(self.codec, *head));
        // Filler and what the standards leave to others.
        let wanted =
            if self.codec == Codec::H265 { kind < 41 && kind != 38 } else { (1..24).contains(&kind) && kind != 12 };
        if let Some(open) = self.access.as_mut().filter(|_| self.in_nal && wanted) {
            open.access.nal(self.codec, nal);
        }
    }

    /// The access unit is whole.
    fn finish(&mut self, units: &mut Vec<Unit>) {
        let Some(Open { access, times, .. }) = self.access.take() else { return };
        self.configured |= access.has_sets();
        if access.key && !self.configured {
            self.pictures.lose();
            self.left_out += 1;
            return;
        }
        let (has_picture, before) = (!access.data.is_empty(), units.len());
        let times = self.reckon(times);
        // Whoever tells decode times leaves out those that are the same (H.222.0, 2.7.5).
        self.pictures.reorders &= times.dts_90k.is_none();
        self.pictures.finish(access, times.pts_90k, units);
        for unit in units.iter_mut().skip(before) {
            let Some(dts_90k) = times.dts_90k else { break };
            if unit.pts_90k == unit.dts_90k && unit.kind == super::Kind::Config {
                unit.pts_90k = dts_90k;
            }
            unit.dts_90k = dts_90k;
        }
        self.left_out += u64::from(has_picture && units.len() == before);
    }

    /// The times of the next picture: its own, or (where a packet holds several) as far on as the pictures before.
    fn reckon(&mut self, own: Option<Times>) -> Times {
        let since = self.timed.map_or(1, |(_, since)| since + 1);
        let times = match (own, self.last) {
            (Some(own), _) => {
                let at_90k = own.dts_90k.unwrap_or(own.pts_90k);
                let step = self.timed.map_or(0, |(before, _)| at_90k.saturating_sub(before) / since);
                if !std::mem::take(&mut self.uncertain) && (1..=STEP_MAX).contains(&step) {
                    self.step = step;
                }
                self.timed = Some((at_90k, 0));
                own
            }
            (None, Some(Times { pts_90k, dts_90k })) => {
                // Not ahead of one whose time will be known.
                let step = if self.uncertain && self.timed.is_some() { 1 } else { self.step };
                let next = |at: i64| at.saturating_add(step);
                self.timed = self.timed.map(|(at, _)| (at, since));
                Times { pts_90k: next(pts_90k), dts_90k: dts_90k.map(next) }
            }
            (None, None) => Times { pts_90k: 0, dts_90k: None },
        };
        self.last = Some(times);
        times
    }
}

/// What a NAL unit is to its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Slice {
        first: bool,
    },
    /// Stands ahead of a picture's slices.
    Ahead,
    None,
}

impl Role {
    /// By a NAL unit's first bytes: the first bit behind the header of a slice says that it is the first, of a code for address
    /// 0 or as a flag.
    fn of(codec: Codec, [head, second, third]: [u8; 3]) -> Self {
        let kind = nal_type(codec, head);
        if codec == Codec::H265 {
            return match kind {
                0..=31 => Self::Slice { first: third & 0x80 != 0 },
                h265::NAL_VPS | h265::NAL_SPS | h265::NAL_PPS | 35 | 39 => Self::Ahead,
                _ => Self::None,
            };
        }
        match kind {
            1 | 2 | h264::NAL_IDR => Self::Slice { first: second & 0x80 != 0 },
            3 | 4 => Self::Slice { first: false },
            6 | h264::NAL_SPS | h264::NAL_PPS | 9 | 14..=18 => Self::Ahead,
            _ => Self::None,
        }
    }
}
