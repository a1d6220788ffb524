//! What one channel of a terminal sends, as units: packets to frames, frames to units, all on one clock.
//!
//! The marks that tell the pieces of a frame apart are wrong on some terminals: a frame also ends where its time or its kind
//! does. Terminals count the packets of all kinds together, or of each kind by itself, and do not say which: something is
//! lost where neither count goes on. Must not be in here: who may send what.

use bytes::{Bytes, BytesMut};

use super::frame::{DataType, Header, Packet, Part};
use super::sound::Sound;
use crate::media::pictures::{Access, Pictures};
use crate::media::{Codec, Unit, h264};
use crate::session::Fault;

/// Payload types (table 12).
const H264: u8 = 98;
const H265: u8 = 99;

/// The stream's time at the first packet, ms: the other track may begin a little earlier, and FLV has no word for times
/// before 0.
const BEGIN_MS: i64 = 1_000;

/// Times beyond this many ms (140,000 years) are noise.
const TIME_MAX_MS: u64 = 1 << 52;

/// A datagram that comes by so many too late is left out; one that is further off begins another count.
const LATE_MAX: u16 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    video: Assembly,
    audio: Assembly,
    pictures: Option<(u8, Pictures)>,
    sound: Sound,
    /// The newest sequence number of all packets.
    sequence: Option<u16>,
    /// The first packet's time.
    first_ms: Option<i64>,
    /// The time of the newest frame.
    picture_ms: Option<u64>,
    refused: Refused,
}

/// What was said once and need not be said again.
#[derive(Debug, Default)]
struct Refused {
    video: bool,
    transparent: bool,
}

/// The frame under way, of one class.
#[derive(Debug, Default)]
struct Assembly {
    first: Option<Header>,
    data: BytesMut,
    sequence: Option<u16>,
    /// Something was lost of this class since the last whole frame.
    lost: bool,
}

type Frames = Vec<(Header, Bytes)>;

impl Channel {
    pub(super) fn new(g726_big_endian: bool) -> Self {
        Self {
            video: Assembly::default(),
            audio: Assembly::default(),
            pictures: None,
            sound: Sound::new(g726_big_endian),
            sequence: None,
            first_ms: None,
            picture_ms: None,
            refused: Refused::default(),
        }
    }

    /// Bytes of frames under way.
    pub(super) fn held(&self) -> usize {
        self.video.data.len() + self.audio.data.len()
    }

    /// Takes the next packet; `others`: the newest sequence number of the whole connection. Frames may hold `room` more bytes
    /// than they do.
    pub(super) fn packet(
        &mut self,
        packet: Packet,
        others: Option<u16>,
        datagram: bool,
        room: usize,
        units: &mut Vec<Unit>,
    ) -> Result<(), Fault> {
        let header = packet.header;
        if header.data_type == DataType::Transparent {
            self.sequence = Some(header.sequence);
            let said = std::mem::replace(&mut self.refused.transparent, true);
            return once(said, || "transparent data is not carried".to_owned());
        }
        let assembly = if header.data_type.is_video() { &mut self.video } else { &mut self.audio };
        let behind = assembly.sequence.map_or(0, |before| before.wrapping_sub(header.sequence));
        if datagram && assembly.sequence.is_some() && behind <= LATE_MAX {
            return Ok(());
        }
        let follows = |before: Option<u16>| before.is_none_or(|before| header.sequence == before.wrapping_add(1));
        // Some do not count at all.
        let counts = follows(self.sequence) || follows(assembly.sequence) || assembly.sequence == Some(header.sequence);
        let gap = !counts && !others.is_some_and(|others| follows(Some(others)));
        assembly.sequence = Some(header.sequence);
        self.sequence = Some(header.sequence);
        let mut frames = Vec::new();
        let taken = assembly.take(packet, gap, room, &mut frames);
        let lost = std::mem::take(&mut assembly.lost);
        if header.data_type.is_video() {
            // Where the terminal says how long ago the frame before was, and that is the one we have, what is lost was sound.
            let whole = begins(&header) && self.picture_ms.is_some_and(|before| says_before(&header, before));
            if lost || gap && !whole {
                self.lose(header.payload_type);
            }
            self.picture_ms = Some(header.time_ms);
        }
        let mut outcome = taken;
        for (header, data) in frames {
            let frame = self.frame(&header, &data, units);
            outcome = outcome.and(frame);
        }
        outcome
    }

    fn lose(&mut self, payload_type: u8) {
        if let Some((of, pictures)) = &mut self.pictures
            && *of == payload_type
        {
            pictures.lose();
        }
    }

    fn frame(&mut self, header: &Header, data: &Bytes, units: &mut Vec<Unit>) -> Result<(), Fault> {
        let ms = header.time_ms.min(TIME_MAX_MS) as i64;
        let time_90k = (ms - *self.first_ms.get_or_insert(ms) + BEGIN_MS) * 90;
        if header.data_type == DataType::Audio {
            return self.sound.frame(header.payload_type, data, time_90k, units);
        }
        let codec = match header.payload_type {
            H264 => Codec::H264,
            H265 => Codec::H265,
            other => {
                let said = std::mem::replace(&mut self.refused.video, true);
                return once(said, || format!("video of payload type {other} is not carried: send H.264 or H.265"));
            }
        };
        if self.pictures.as_ref().is_none_or(|(of, _)| *of != header.payload_type) {
            let mut pictures = Pictures::new(codec, &[]);
            pictures.reorders = false;
            self.pictures = Some((header.payload_type, pictures));
        }
        let Some((_, pictures)) = &mut self.pictures else { return Ok(()) };
        // Without B-frames times are those of decoding, and may stand still.
        pictures.reorders |= header.data_type == DataType::Bidirectional;
        let mut access = Access::default();
        for nal in h264::annex_b_nals(data) {
            access.nal(codec, nal);
        }
        // Some terminals' I frames have no IDR slices, but their parameter sets.
        access.key |= header.data_type == DataType::Key && access.has_sets();
        pictures.finish(access, time_90k, units);
        Ok(())
    }
}

/// A fault of ours, unless it was said before.
fn once(said: bool, what: impl FnOnce() -> String) -> Result<(), Fault> {
    if said { Ok(()) } else { Err(Fault::recoverable(what()).ours()) }
}

fn begins(header: &Header) -> bool {
    matches!(header.part, Part::Whole | Part::First)
}

/// Whether the frame before this one was that of this time, by the header's own word.
fn says_before(header: &Header, before_ms: u64) -> bool {
    let since = header.time_ms.wrapping_sub(before_ms);
    since != 0 && since == u64::from(header.since_frame_ms)
}

// === impl Assembly ===

impl Assembly {
    /// Adds a packet; what is complete is appended to `frames`.
    fn take(&mut self, packet: Packet, gap: bool, room: usize, frames: &mut Frames) -> Result<(), Fault> {
        let Packet { header, body } = packet;
        if gap && self.first.take().is_some() {
            self.data.clear();
            self.lost = true;
        }
        let same = |first: &Header| {
            let kind = |header: &Header| (header.time_ms, header.payload_type, header.data_type);
            kind(first) == kind(&header)
        };
        if let Some(first) = self.first.take_if(|first| begins(&header) || !same(first)) {
            // Its last piece bears another mark, for nothing is missing.
            frames.push((first, self.data.split().freeze()));
            if header.part != Part::Whole {
                self.first = Some(header);
            }
        }
        if header.part == Part::Whole {
            frames.push((header, body));
            return Ok(());
        }
        if header.part == Part::First {
            self.first = Some(header);
        }
        if self.first.is_none() {
            // Its beginning is not there.
            self.lost = true;
            return Ok(());
        }
        if body.len() > room {
            (self.first, self.lost) = (None, true);
            self.data = BytesMut::new();
            return Err(Fault::recoverable("a frame larger than `frame_max_kib`"));
        }
        self.data.extend_from_slice(&body);
        if header.part == Part::Last {
            frames.extend(self.first.take().map(|first| (first, self.data.split().freeze())));
        }
        Ok(())
    }
}
