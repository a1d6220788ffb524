//! Frames of audio: one a packet, or AAC as RFC 3640 and RFC 6416 pack it.

use bytes::{BufMut, Bytes};

use super::{Depacketizer, PART};
use crate::media::read::{ByteReader, MediaError};
use crate::media::{Kind, Track, Unit};

/// Bytes of AAC frames in pieces: far more than a frame has.
const PIECES_MAX: usize = 64 * 1024;

/// Samples of an AAC frame.
const AAC_SAMPLES: i64 = 1_024;

impl Depacketizer {
    pub(super) fn audio(&self, data: Bytes, samples: i64) -> Unit {
        let time = self.time_90k(self.ticks + samples);
        let codec = self.described.codec;
        Unit { track: Track::Audio, codec, dts_90k: time, pts_90k: time, kind: Kind::Key, data }
    }

    /// RFC 3640, 3.2 and 3.3.6: lengths of 13 bits, indices of 3.
    pub(super) fn aac(&mut self, marker: bool, payload: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        let mut reader = ByteReader::new(PART, payload);
        let heads = usize::from(reader.u16()?) / 16;
        let mut lengths = Vec::with_capacity(heads.min(64));
        for _ in 0..heads {
            lengths.push(usize::from(reader.u16()? >> 3));
        }
        if std::mem::take(&mut self.access.spoiled) {
            self.access.data.clear();
        }
        self.tell(units);
        if let &[len] = lengths.as_slice()
            && (len > reader.rest().len() || !self.access.data.is_empty())
        {
            self.access.data.put_slice(reader.rest());
            if self.access.data.len() >= len || marker {
                let frame = self.access.data.split().freeze();
                if frame.len() == len {
                    units.push(self.audio(frame, 0));
                }
            }
            return Ok(());
        }
        for (at, len) in lengths.into_iter().enumerate() {
            let frame = Bytes::copy_from_slice(reader.take(len)?);
            if !frame.is_empty() {
                units.push(self.audio(frame, at as i64 * AAC_SAMPLES));
            }
        }
        Ok(())
    }

    /// RFC 6416, 6: frames, each behind its length, in one packet or in pieces up to the marker.
    pub(super) fn latm(&mut self, marker: bool, payload: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        self.access.data.put_slice(payload);
        let pieces = std::mem::take(&mut self.access.data);
        if self.access.spoiled {
            // What is left of a frame whose beginning is lost.
            self.access.spoiled = !marker;
            return Ok(());
        }
        let mut reader = ByteReader::new(PART, &pieces);
        if !marker {
            if pieces.len() > PIECES_MAX {
                return Err(reader.limit("bytes in an AAC frame", PIECES_MAX));
            }
            self.access.data = pieces;
            return Ok(());
        }
        self.tell(units);
        let mut samples = 0;
        while !reader.is_empty() {
            let mut len = 0;
            loop {
                let part = reader.u8()?;
                len += usize::from(part);
                if part < u8::MAX {
                    break;
                }
            }
            let frame = Bytes::copy_from_slice(reader.take(len)?);
            if !frame.is_empty() {
                units.push(self.audio(frame, samples));
                samples += AAC_SAMPLES;
            }
        }
        Ok(())
    }

    /// Says the configuration of audio, if that was not done.
    pub(super) fn tell(&mut self, units: &mut Vec<Unit>) {
        if let Some(config) = self.described.sets.first().filter(|config| **config != self.told).cloned() {
            self.told = config.clone();
            units.push(Unit { kind: Kind::Config, ..self.audio(config, 0) });
        }
    }
}
