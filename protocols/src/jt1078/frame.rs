//! Packets of JT/T 1078-2016 (5.5.3, table 19; with the longer SIM number of terminals built to JT/T 808-2019): one to a
//! datagram, or one behind the other in a stream of bytes.
//!
//! A stream is cut by the packets' own lengths, for a body may hold the mark as well as any other bytes. Only where no packet
//! stands is the next mark looked for. Must not be in here: what the bodies mean.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::session::Fault;

/// What each packet begins with.
pub const MARK: [u8; 4] = *b"01cd";

/// Bytes of the longest packet: the standard allows bodies of 950 bytes, some terminals send what 16 bits can say.
pub const PACKET_MAX: usize = 34 + u16::MAX as usize;

/// Terminals on one connection whose numbers are remembered.
const SIMS_MAX: usize = 16;

/// Bytes without a packet after which the talk is given up: a terminal that connects anew begins with a whole packet.
const LOST_MAX: usize = 256 * 1024;

/// Where the SIM number begins.
const SIM_AT: usize = 8;
/// So much of a known header inside a body is one: a mark alone may stand there, hardly with digits of the number behind.
const TELLING_LEN: usize = SIM_AT + 2;

/// Bytes of a SIM number: nothing in a packet tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// JT/T 808-2013 and before.
    Six,
    /// JT/T 808-2019.
    Ten,
}

/// A terminal's number as it stands in the packet: BCD digits, as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sim {
    pub width: Width,
    /// The first 6 or all 10.
    pub bytes: [u8; 10],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// An I frame.
    Key,
    /// A P frame.
    Predicted,
    /// A B frame.
    Bidirectional,
    Audio,
    /// Whatever the terminal's maker likes; it has no time.
    Transparent,
}

/// Which piece of a frame a packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Last,
    Middle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Last packet of a frame.
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    pub sim: Sim,
    pub channel: u8,
    pub data_type: DataType,
    pub part: Part,
    /// Since any moment; 0 in transparent data.
    pub time_ms: u64,
    /// Since the key frame and the frame before, where it is video.
    pub since_key_ms: u16,
    pub since_frame_ms: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub body: Bytes,
}

/// What stands at the front of some bytes.
enum Front {
    /// More bytes are needed to tell.
    Short,
    /// No packet.
    Wrong,
    /// A header, its length, and that of the body.
    Head(Box<Header>, usize, usize),
}

/// Takes packets off a stream.
#[derive(Debug, Default)]
pub struct Reader {
    width: Option<Width>,
    sims: Vec<Sim>,
    /// Looks for the next mark.
    lost: bool,
    /// Bytes passed over since the last packet.
    skipped: usize,
    /// So much of the packet under way holds no beginning of another.
    clean: usize,
}

// === impl Width, Sim ===

impl Width {
    pub const ALL: [Self; 2] = [Self::Six, Self::Ten];

    fn len(self) -> usize {
        match self {
            Self::Six => 6,
            Self::Ten => 10,
        }
    }
}

impl Sim {
    fn digits(&self) -> &[u8] {
        self.bytes.get(..self.width.len()).unwrap_or_default()
    }
}

/// Two hexadecimal digits a byte: those of the number where it is BCD.
impl fmt::Display for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digits().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

// === impl Header ===

impl DataType {
    fn of(kind: u8) -> Option<Self> {
        Some(match kind {
            0 => Self::Key,
            1 => Self::Predicted,
            2 => Self::Bidirectional,
            3 => Self::Audio,
            4 => Self::Transparent,
            _ => return None,
        })
    }

    pub fn is_video(self) -> bool {
        matches!(self, Self::Key | Self::Predicted | Self::Bidirectional)
    }
}

impl Header {
    /// The packet with this body, of at most 65,535 bytes; what is longer is cut off.
    pub fn write(&self, body: &[u8], out: &mut BytesMut) {
        out.put_slice(&MARK);
        out.put_u8(0x81);
        out.put_u8(u8::from(self.marker) << 7 | self.payload_type & 0x7f);
        out.put_u16(self.sequence);
        out.put_slice(self.sim.digits());
        out.put_u8(self.channel);
        out.put_u8((self.data_type as u8) << 4 | self.part as u8);
        if self.data_type != DataType::Transparent {
            out.put_u64(self.time_ms);
        }
        if self.data_type.is_video() {
            out.put_u16(self.since_key_ms);
            out.put_u16(self.since_frame_ms);
        }
        let body = body.get(..usize::from(u16::MAX)).unwrap_or(body);
        out.put_u16(body.len() as u16);
        out.put_slice(body);
    }

    /// Reads the front of bytes that begin with the mark.
    fn front(bytes: &[u8], width: Width) -> Front {
        let Some((mut fixed, mut rest)) = bytes.split_at_checked(SIM_AT + width.len() + 2) else { return Front::Short };
        fixed.advance(MARK.len() + 1);
        let (second, sequence) = (fixed.get_u8(), fixed.get_u16());
        let mut sim = Sim { width, bytes: [0; 10] };
        for byte in sim.bytes.iter_mut().take(width.len()) {
            *byte = fixed.get_u8();
        }
        let (channel, types) = (fixed.get_u8(), fixed.get_u8());
        let part = match types & 0x0f {
            0 => Part::Whole,
            1 => Part::First,
            2 => Part::Last,
            3 => Part::Middle,
            _ => return Front::Wrong,
        };
        let Some(data_type) = DataType::of(types >> 4) else { return Front::Wrong };
        let (timed, video) = (data_type != DataType::Transparent, data_type.is_video());
        let more = 8 * usize::from(timed) + 4 * usize::from(video) + 2;
        if rest.len() < more {
            return Front::Short;
        }
        let time_ms = if timed { rest.get_u64() } else { 0 };
        let (since_key_ms, since_frame_ms) = if video { (rest.get_u16(), rest.get_u16()) } else { (0, 0) };
        let body = usize::from(rest.get_u16());
        let header = Self {
            marker: second & 0x80 != 0,
            payload_type: second & 0x7f,
            sequence,
            sim,
            channel,
            data_type,
            part,
            time_ms,
            since_key_ms,
            since_frame_ms,
        };
        Front::Head(Box::new(header), SIM_AT + width.len() + 2 + more, body)
    }
}

// === impl Packet ===

impl Packet {
    /// The one packet of a datagram: its length tells the width of the SIM number.
    pub fn of_datagram(datagram: &Bytes) -> Result<Self, Fault> {
        for width in Width::ALL.into_iter().filter(|_| datagram.starts_with(&MARK)) {
            if let Front::Head(header, head, body) = Header::front(datagram, width)
                && head + body == datagram.len()
            {
                return Ok(Self { header: *header, body: datagram.slice(head..) });
            }
        }
        Err(Fault::recoverable("a datagram that is no packet of JT/T 1078"))
    }
}

// === impl Reader ===

impl Reader {
    /// The next packet; `None` when more bytes are needed. A fault is said once for all that lies between two packets, and
    /// takes something off the buffer.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Packet>, Fault> {
        loop {
            if self.lost {
                self.skipped += skip_to_mark(buffer);
            }
            if self.skipped > LOST_MAX {
                return Err(Fault::fatal(format!("no packet within {LOST_MAX} bytes")));
            }
            if buffer.len() < MARK.len() && MARK.starts_with(buffer) {
                return Ok(None);
            }
            let front = if buffer.starts_with(&MARK) { self.front(buffer) } else { Front::Wrong };
            let (header, head, body) = match front {
                Front::Short => return Ok(None),
                Front::Head(header, head, body) if !self.lost || self.knows(&header.sim) => (header, head, body),
                Front::Head(..) | Front::Wrong => {
                    buffer.advance(1);
                    (self.skipped, self.clean) = (self.skipped + 1, 0);
                    if std::mem::replace(&mut self.lost, true) {
                        continue;
                    }
                    return Err(Fault::recoverable("bytes that are no packet"));
                }
            };
            match self.torn(buffer, head + body, &header.sim) {
                Torn::No if buffer.len() >= head + body => {}
                Torn::No | Torn::Unknown => return Ok(None),
                Torn::At(at) => {
                    buffer.advance(at);
                    self.clean = 0;
                    return Err(Fault::recoverable("a packet that ends before its length"));
                }
            }
            // Another number than those heard so far may be the rest of two packets: the next mark has to stand behind it.
            if !self.knows(&header.sim) {
                match buffer.get(head + body..).and_then(|after| after.first_chunk()) {
                    None => return Ok(None),
                    Some(&MARK) => {}
                    Some(_) => {
                        (self.lost, self.clean) = (true, 0);
                        buffer.advance(1);
                        return Err(Fault::recoverable("bytes that are no packet"));
                    }
                }
            }
            self.note(&header.sim);
            let mut packet = buffer.split_to(head + body).freeze();
            packet.advance(head);
            return Ok(Some(Packet { header: *header, body: packet }));
        }
    }

    fn note(&mut self, sim: &Sim) {
        (self.lost, self.skipped, self.clean, self.width) = (false, 0, 0, Some(sim.width));
        if self.sims.len() < SIMS_MAX && !self.sims.contains(sim) {
            self.sims.push(*sim);
        }
    }

    /// After damage only a terminal that was heard before is believed: the mark alone may stand anywhere.
    fn knows(&self, sim: &Sim) -> bool {
        self.sims.is_empty() || self.sims.contains(sim)
    }

    /// Reads the front by the width that is known, or by the one with which the next mark stands where it should.
    fn front(&self, bytes: &[u8]) -> Front {
        if let Some(width) = self.width {
            return Header::front(bytes, width);
        }
        match Width::ALL.map(|width| Header::front(bytes, width)) {
            // The longer one needs more bytes to be told wrong.
            [Front::Wrong, long] => long,
            [short @ Front::Head(..), Front::Wrong] => short,
            [Front::Head(short, short_head, short_body), Front::Head(long, long_head, long_body)] => {
                let ends = [short_head + short_body, long_head + long_body];
                let Some(next) = bytes.get(ends[0].min(ends[1])..).and_then(|rest| rest.first_chunk::<4>()) else {
                    return Front::Short;
                };
                if (ends[0] <= ends[1]) == (*next == MARK) {
                    Front::Head(short, short_head, short_body)
                } else {
                    Front::Head(long, long_head, long_body)
                }
            }
            [Front::Short, _] | [_, Front::Short] => Front::Short,
        }
    }

    /// Whether a packet of a terminal of this connection begins inside the one at the front, which ends at `end`: then this one
    /// was cut off. No body holds the mark and the number at their places by chance; where one ends in the middle of
    /// them, what follows decides.
    fn torn(&mut self, bytes: &[u8], end: usize, sim: &Sim) -> Torn {
        let matches = |wanted: &[u8], there: &[u8]| wanted.iter().zip(there).all(|(wanted, there)| wanted == there);
        let is_head = |rest: &[u8]| {
            let digits = rest.get(SIM_AT..rest.len().min(TELLING_LEN)).unwrap_or_default();
            let mut sims = self.sims.iter().chain([sim]);
            matches(&MARK, rest) && sims.any(|sim| matches(sim.digits(), digits))
        };
        let mut at = self.clean.max(1);
        let inside = bytes.get(..end).unwrap_or(bytes);
        while let Some(next) = inside.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == MARK[0])) {
            at += next;
            if inside.get(at..).is_some_and(is_head) {
                let after = bytes.get(end..).and_then(|after| after.first_chunk::<4>());
                match after {
                    _ if at + TELLING_LEN <= inside.len() => return Torn::At(at),
                    None => return Torn::Unknown,
                    Some(&MARK) => {}
                    Some(_) if bytes.len() < at + TELLING_LEN => return Torn::Unknown,
                    Some(_) if bytes.get(at..).is_some_and(is_head) => return Torn::At(at),
                    Some(_) => {}
                }
            }
            at += 1;
        }
        self.clean = inside.len().saturating_sub(TELLING_LEN);
        Torn::No
    }
}

/// Drops what stands before the next mark, or before what may become one; says how much.
fn skip_to_mark(buffer: &mut BytesMut) -> usize {
    let found = buffer.windows(MARK.len()).position(|four| four == MARK);
    let begun = |len: usize| buffer.len().checked_sub(len).filter(|at| buffer.get(*at..) == MARK.get(..len));
    let at = found.or_else(|| (1..MARK.len()).rev().find_map(begun)).unwrap_or(buffer.len());
    buffer.advance(at);
    at
}

enum Torn {
    No,
    /// The next packet has to be seen.
    Unknown,
    At(usize),
}
