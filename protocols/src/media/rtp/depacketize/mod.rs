//! RTP packets of one track, in order, to access units.
//!
//! A gap in the sequence numbers loses the access unit it falls into and, in video, all up to the next key frame; what was
//! lost is counted.
//!
//! Inside: the order of packets and their times; `video.rs` (NAL units and OBUs to pictures),
//! `audio.rs` (frames of a packet, AAC in pieces). Must not be in here: putting packets of a datagram wire back in order.

use bytes::{Bytes, BytesMut};

use super::{Header, VIDEO_CLOCK, obus, scale};
use crate::media::pictures::{Access, Pictures};
use crate::media::read::MediaError;
use crate::media::{Codec, Track, Unit};

mod audio;
#[cfg(test)]
mod tests;
mod video;

const PART: &str = "RTP payload";

/// What a peer said about a track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub codec: Codec,
    pub payload_type: u8,
    /// Ticks a second of its timestamps.
    pub clock: u32,
    /// H.264, H.265: parameter sets, each a NAL unit. AAC: one AudioSpecificConfig. Opus: one OpusHead.
    pub sets: Vec<Bytes>,
    /// AAC as RFC 6416 has it (LATM, its configuration told apart), not as RFC 3640.
    pub latm: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Depacketizer {
    described: Described,
    pictures: Pictures,
    /// Ticks at the stream's time 0, and the newest ticks; they do not wrap.
    origin: Option<i64>,
    ticks: i64,
    expected: Option<u16>,
    access: Access,
    /// Of the access unit under way.
    access_ticks: i64,
    /// A fragmented NAL unit.
    fragment: BytesMut,
    /// The configuration of audio that was said.
    told: Bytes,
    lost: u64,
}

impl Depacketizer {
    pub fn new(described: Described) -> Self {
        Self {
            pictures: Pictures::new(described.codec, &described.sets),
            described,
            origin: None,
            ticks: 0,
            expected: None,
            access: Access::default(),
            access_ticks: 0,
            fragment: BytesMut::new(),
            told: Bytes::new(),
            lost: 0,
        }
    }

    /// Packets missing so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The RTP timestamp that is time 0 of the stream; the first packet's, if nobody says.
    pub fn align(&mut self, timestamp: u32) {
        if self.origin.is_none() {
            self.ticks = i64::from(timestamp);
            self.origin = Some(self.ticks);
        }
    }

    pub fn is_aligned(&self) -> bool {
        self.origin.is_some()
    }

    pub fn clock(&self) -> u32 {
        self.described.clock
    }

    /// The stream's time at a timestamp near the newest packet's, 1/90,000 s; `None` before the first.
    pub fn time_at(&self, timestamp: u32) -> Option<i64> {
        self.origin?;
        let ahead = timestamp.wrapping_sub(self.ticks as u32) as i32;
        Some(self.time_90k(self.ticks + i64::from(ahead)))
    }

    /// Takes the next packet; finished units are appended to `units`, each configuration ahead of what needs it.
    pub fn packet(&mut self, packet: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        let (header, payload) = Header::parse(packet)?;
        if header.payload_type != self.described.payload_type {
            return Err(MediaError::Unsupported {
                part: PART,
                what: "payload type",
                value: u32::from(header.payload_type),
            });
        }
        self.align(header.timestamp);
        let missing = self.expected.map_or(0, |expected| header.sequence.wrapping_sub(expected));
        if missing > u16::MAX / 2 {
            // Older than what was taken already.
            return Ok(());
        }
        if missing > 0 {
            self.lost += u64::from(missing);
            self.spoil();
        }
        self.expected = Some(header.sequence.wrapping_add(1));
        let step = header.timestamp.wrapping_sub(self.ticks as u32) as i32;
        self.ticks += i64::from(step);
        if self.described.latm {
            return self.latm(header.marker, &payload, units);
        }
        if self.described.codec == Codec::Aac {
            return self.aac(header.marker, &payload, units);
        }
        if self.described.codec.track() == Track::Audio {
            if !payload.is_empty() {
                self.tell(units);
                let unit = self.audio(payload, 0);
                units.push(unit);
            }
            return Ok(());
        }
        if self.access_ticks != self.ticks {
            self.finish(units);
            self.access_ticks = self.ticks;
            self.access.spoiled = missing > 0 && !self.begins_picture(&payload);
        }
        let taken = if self.described.codec == Codec::Av1 {
            obus::join(&payload, &mut self.fragment, &mut self.access.data)
        } else {
            self.nals(&payload)
        };
        if taken.is_err() {
            self.spoil();
        }
        if header.marker {
            self.finish(units);
        }
        taken
    }

    fn time_90k(&self, ticks: i64) -> i64 {
        scale(ticks - self.origin.unwrap_or(ticks), VIDEO_CLOCK, self.described.clock)
    }
}
