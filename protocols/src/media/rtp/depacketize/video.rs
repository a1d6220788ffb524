//! NAL units (RFC 6184, RFC 7798) and what OBUs were joined to, as pictures.

use bytes::{BufMut, Bytes};

use super::sets::Sets;
use super::{Depacketizer, PART};
use crate::media::av1::{self, Av1C};
use crate::media::h264::{self, AvcC};
use crate::media::h265::HvcC;
use crate::media::read::{ByteReader, MediaError};
use crate::media::rtp::obus;
use crate::media::{Codec, Kind, Track, Unit};

impl Depacketizer {
    pub(super) fn nals(&mut self, payload: &Bytes) -> Result<(), MediaError> {
        let reader = ByteReader::new(PART, payload);
        let hevc = self.described.codec == Codec::H265;
        let Some(&first) = payload.first() else { return Ok(()) };
        let (kind, head_len) = if hevc { (first >> 1 & 0x3f, 2) } else { (first & 0x1f, 1) };
        match (hevc, kind) {
            (false, 1..=23) | (true, 0..=47) => self.nal(payload.clone()),
            (false, 24) | (true, 48) => {
                let mut reader = reader;
                reader.take(head_len)?;
                while !reader.is_empty() {
                    let len = usize::from(reader.u16()?);
                    let nal = Bytes::copy_from_slice(reader.take(len)?);
                    self.nal(nal);
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
        let kind = |first: u8| if hevc { first >> 1 & 0x3f } else { first & 0x1f };
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
        let fragment = &mut self.access.fragment;
        if flags & 0x80 != 0 {
            fragment.clear();
            match *head {
                [a, b] => fragment.put_slice(&[a & 0x81 | (flags & 0x3f) << 1, b]),
                [a] => fragment.put_u8(a & 0xe0 | flags & 0x1f),
                _ => {}
            }
        } else if fragment.is_empty() {
            // Its beginning is lost.
            self.access.spoil();
            return Ok(());
        }
        if fragment.len() + self.access.data.len() + payload.len() > Unit::LEN_MAX {
            return Err(reader.limit("bytes in an access unit", Unit::LEN_MAX));
        }
        fragment.put_slice(reader.rest());
        if flags & 0x40 != 0 {
            let nal = self.access.fragment.split().freeze();
            self.nal(nal);
        }
        Ok(())
    }

    fn nal(&mut self, nal: Bytes) {
        if nal.is_empty() || self.access.data.len() + nal.len() + 4 > Unit::LEN_MAX {
            return;
        }
        let codec = self.described.codec;
        if self.access.sets.put(codec, nal.clone()) {
            return;
        }
        let first = nal.first().copied().unwrap_or(0);
        let (kind, delimiter) = if codec == Codec::H265 { (first >> 1 & 0x3f, 35) } else { (first & 0x1f, 9) };
        if kind == delimiter {
            return;
        }
        self.access.key |= if codec == Codec::H265 { (16..=21).contains(&kind) } else { kind == h264::NAL_IDR };
        self.access.data.put_u32(nal.len() as u32);
        self.access.data.put_slice(&nal);
    }

    pub(super) fn finish(&mut self, units: &mut Vec<Unit>) {
        let mut access = std::mem::take(&mut self.access);
        access.key |= self.described.codec == Codec::Av1 && av1::is_key(&access.data);
        self.waits_for_key |= access.spoiled;
        if access.spoiled || access.sets == Sets::default() && access.data.is_empty() {
            return;
        }
        self.sets.replace(&access.sets);
        let pts_90k = self.time_90k(access.ticks);
        if self.waits_for_key && !access.key {
            return;
        }
        self.waits_for_key = false;
        if access.data.is_empty() {
            return;
        }
        let config = self.config(&access.data).filter(|config| *config != self.told);
        if let Some(config) = &config {
            self.told = config.clone();
        }
        let dts_90k = self.order.place(pts_90k);
        let codec = self.described.codec;
        if let Some(data) = config {
            units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k: dts_90k, kind: Kind::Config, data });
        }
        let kind = if access.key { Kind::Key } else { Kind::Delta };
        units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k, kind, data: access.data.freeze() });
    }

    /// The configuration, where it is whole.
    fn config(&mut self, data: &[u8]) -> Option<Bytes> {
        if self.described.codec == Codec::Av1 {
            return Some(Av1C::of(av1::sequence_header(data)?).ok()?.build());
        }
        let Sets { vps, sps, pps } = &self.sets;
        let (sps, depth) = (sps.first()?, self.sets.depth(self.described.codec));
        let config = match self.described.codec {
            Codec::H265 => HvcC::of(vps.clone(), vec![sps.clone()], pps.clone())?,
            _ if pps.is_empty() => return None,
            _ => AvcC::of(sps.clone(), pps.clone())?.build(),
        };
        if let Some(depth) = depth {
            self.order.expect(depth);
        }
        Some(config)
    }
}
