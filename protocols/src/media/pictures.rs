//! The pictures of one track, as they come off a wire that has no units: NAL units and OBUs to access units, each
//! configuration ahead of what needs it.
//!
//! A picture of which something is lost is left out, and all behind it up to the next key frame. Must not be in here: how
//! NAL units are told apart, and where a picture ends.

use bytes::{BufMut, Bytes, BytesMut};

use super::av1::{self, Av1C};
use super::h264::{self, AvcC};
use super::h265::{self, HvcC};
use super::nal::nal_type;
use super::rtp::DecodeOrder;
use super::{Codec, Kind, Track, Unit};

/// Parameter sets of one kind that are kept.
const SETS_MAX: usize = 16;

/// What is known of a track from picture to picture.
#[derive(Debug)]
pub(crate) struct Pictures {
    codec: Codec,
    /// Decode times are found by [`DecodeOrder`]; without it they are those of presentation.
    pub reorders: bool,
    order: DecodeOrder,
    sets: Sets,
    told: Bytes,
    /// After a loss: nothing before the next key frame.
    waits_for_key: bool,
}

/// The access unit under way.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Length-prefixed NAL units, OBUs, or the beginning of an AAC frame.
    pub data: BytesMut,
    pub key: bool,
    pub spoiled: bool,
    /// Parameter sets that came with it.
    sets: Sets,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Sets {
    vps: Vec<Bytes>,
    sps: Vec<Bytes>,
    pps: Vec<Bytes>,
}

impl Pictures {
    /// `sets`: parameter sets that are known beforehand.
    pub(crate) fn new(codec: Codec, sets: &[Bytes]) -> Self {
        let mut known = Sets::default();
        for set in sets {
            known.put(codec, set);
        }
        Self {
            codec,
            reorders: true,
            order: DecodeOrder::default(),
            sets: known,
            told: Bytes::new(),
            waits_for_key: false,
        }
    }

    /// Something is lost that later pictures may lean on.
    pub(crate) fn lose(&mut self) {
        self.waits_for_key = true;
    }

    /// Takes a whole picture, presented at this time; appends it to `units`, its configuration ahead of it where that changed.
    pub(crate) fn finish(&mut self, mut access: Access, pts_90k: i64, units: &mut Vec<Unit>) {
        access.key |= self.codec == Codec::Av1 && av1::is_key(&access.data);
        self.waits_for_key |= access.spoiled;
        if access.spoiled || access.sets == Sets::default() && access.data.is_empty() {
            return;
        }
        self.sets.replace(&access.sets);
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
        let dts_90k = if self.reorders { self.order.place(pts_90k) } else { pts_90k };
        let codec = self.codec;
        if let Some(data) = config {
            units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k: dts_90k, kind: Kind::Config, data });
        }
        let kind = if access.key { Kind::Key } else { Kind::Delta };
        units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k, kind, data: access.data.freeze() });
    }

    /// The configuration, where it is whole.
    fn config(&mut self, data: &[u8]) -> Option<Bytes> {
        if self.codec == Codec::Av1 {
            return Some(Av1C::of(av1::sequence_header(data)?).ok()?.build());
        }
        let Sets { vps, sps, pps } = &self.sets;
        let (sps, depth) = (sps.first()?, self.sets.depth(self.codec));
        let config = match self.codec {
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

impl Access {
    /// Adds a NAL unit; delimiters are left out, and so is what makes the unit too large.
    pub(crate) fn nal(&mut self, codec: Codec, nal: &[u8]) {
        let Some(&first) = nal.first() else { return };
        if self.data.len() + nal.len() + 4 > Unit::LEN_MAX || self.sets.put(codec, nal) {
            return;
        }
        let kind = nal_type(codec, first);
        if kind == if codec == Codec::H265 { 35 } else { 9 } {
            return;
        }
        self.key |= if codec == Codec::H265 { (16..=21).contains(&kind) } else { kind == h264::NAL_IDR };
        self.data.put_u32(nal.len() as u32);
        self.data.put_slice(nal);
    }

    /// Whether parameter sets came with it.
    pub(crate) fn has_sets(&self) -> bool {
        !self.sets.sps.is_empty()
    }
}

impl Sets {
    /// Keeps the NAL unit if it is a parameter set.
    fn put(&mut self, codec: Codec, nal: &[u8]) -> bool {
        let Some(&first) = nal.first() else { return false };
        let sets = match (codec, nal_type(codec, first)) {
            (Codec::H264, h264::NAL_SPS) | (Codec::H265, h265::NAL_SPS) => &mut self.sps,
            (Codec::H264, h264::NAL_PPS) | (Codec::H265, h265::NAL_PPS) => &mut self.pps,
            (Codec::H265, h265::NAL_VPS) => &mut self.vps,
            _ => return false,
        };
        if sets.len() < SETS_MAX && !sets.iter().any(|set| set == nal) {
            sets.push(Bytes::copy_from_slice(nal));
        }
        true
    }

    /// A new sequence parameter set begins anew; what came without one is added.
    fn replace(&mut self, new: &Self) {
        for (own, new) in [(&mut self.vps, &new.vps), (&mut self.sps, &new.sps), (&mut self.pps, &new.pps)] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }

    fn depth(&self, codec: Codec) -> Option<u32> {
        let sps = self.sps.first()?;
        match codec {
            Codec::H265 => h265::reorder_max(sps),
            _ => h264::reorder_max(sps),
        }
    }
}
