//! NAL units (RFC 6184, RFC 7798) and what OBUs were joined to, as pictures.

use bytes::{BufMut, Bytes};

use super::{Depacketizer, PART};
use crate::media::nal::nal_type;
use crate::media::read::{ByteReader, MediaError};
use crate::media::rtp::obus;
use crate::media::{Codec, Unit};

impl Depacketizer {
    pub(super) fn nals(&mut self, payload: &Bytes) -> Result<(), MediaError> {
        let reader = ByteReader::new(PART, payload);
        let hevc = self.described.codec == Codec::H265;
        let Some(&first) = payload.first() else { return Ok(()) };
        let (kind, head_len) = (nal_type(self.described.codec, first), if hevc { 2 } else { 1 });
        match (hevc, kind) {
            (false, 1..=23) | (true, 0..=47) => self.nal(payload),
            (false, 24) | (true, 48) => {
                let mut reader = reader;
                reader.take(head_len)?;
                while !reader.is_empty() {
                    let len = usize::from(reader.u16()?);
                    self.nal(reader.take(len)?);
                }
            }
            (false, 28) | (true, 49) => return self.fragment(payload, head_len),
            _ => {
                return Err(MediaError::Unsupported { part: PART, what: "NAL unit type", value: u32::from(kind) });
            }
        }
        Ok(())
    }

    /// Whether a picture begins with this payload, so that what was lost before it was of another.
    pub(super) fn begins_picture(&self, payload: &[u8]) -> bool {
        if self.described.codec == Codec::Av1 {
            return obus::begins_sequence(payload);
        }
        let hevc = self.described.codec == Codec::H265;
        let kind = |first| nal_type(self.described.codec, first);
        // The first bit of a slice says that it is the first: of a code for address 0, or as a flag.
        let starts = |kind: u8, body: Option<&u8>| match (hevc, kind) {
            (false, 1..=5) | (true, 0..=31) => body.is_some_and(|byte| byte & 0x80 != 0),
            _ => true,
        };
        let fragment = |flags: u8| flags & if hevc { 0x3f } else { 0x1f };
        match (hevc, payload) {
            (false, [head, flags, body @ ..]) if kind(*head) == 28 => {
                flags & 0x80 != 0 && starts(fragment(*flags), body.first())
            }
            (true, [head, _, flags, body @ ..]) if kind(*head) == 49 => {
                flags & 0x80 != 0 && starts(fragment(*flags), body.first())
            }
            (false, [head, _, _, first, body @ ..]) if kind(*head) == 24 => starts(kind(*first), body.first()),
            (true, [head, _, _, _, first, _, body @ ..]) if kind(*head) == 48 => starts(kind(*first), body.first()),
            (false, [first, body @ ..]) | (true, [first, _, body @ ..]) => starts(kind(*first), body.first()),
            _ => false,
        }
    }

    fn fragment(&mut self, payload: &Bytes, head_len: usize) -> Result<(), MediaError> {
        let mut reader = ByteReader::new(PART, payload);
        let head = reader.take(head_len)?;
        let flags = reader.u8()?;
        let fragment = &mut self.fragment;
        if flags & 0x80 != 0 {
            fragment.clear();
            match *head {
                [a, b] => fragment.put_slice(&[a & 0x81 | (flags & 0x3f) << 1, b]),
                [a] => fragment.put_u8(a & 0xe0 | flags & 0x1f),
                _ => {}
            }
        } else if fragment.is_empty() {
            // Its beginning is lost.
            self.spoil();
            return Ok(());
        }
        if fragment.len() + self.access.data.len() + payload.len() > Unit::LEN_MAX {
            return Err(reader.limit("bytes in an access unit", Unit::LEN_MAX));
        }
        fragment.put_slice(reader.rest());
        if flags & 0x40 != 0 {
            let nal = self.fragment.split();
            self.nal(&nal);
        }
        Ok(())
    }

    fn nal(&mut self, nal: &[u8]) {
        self.access.nal(self.described.codec, nal);
    }

    pub(super) fn spoil(&mut self) {
        self.access.spoiled = true;
        self.fragment.clear();
    }

    pub(super) fn finish(&mut self, units: &mut Vec<Unit>) {
        self.fragment.clear();
        let ticks = std::mem::take(&mut self.access_ticks);
        let pts_90k = self.time_90k(ticks);
        self.pictures.finish(std::mem::take(&mut self.access), pts_90k, units);
    }
}
