//! The parameter sets of H.264 and H.265.

use bytes::Bytes;

use crate::media::{Codec, h264, h265};

/// Parameter sets of one kind that are kept.
const SETS_MAX: usize = 16;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) vps: Vec<Bytes>,
    pub(super) sps: Vec<Bytes>,
    pub(super) pps: Vec<Bytes>,
}

impl Sets {
    /// Keeps the NAL unit if it is a parameter set.
    pub(super) fn put(&mut self, codec: Codec, nal: Bytes) -> bool {
        let Some(&first) = nal.first() else { return false };
        let sets = match (codec, first & 0x1f, first >> 1 & 0x3f) {
            (Codec::H264, h264::NAL_SPS, _) | (Codec::H265, _, h265::NAL_SPS) => &mut self.sps,
            (Codec::H264, h264::NAL_PPS, _) | (Codec::H265, _, h265::NAL_PPS) => &mut self.pps,
            (Codec::H265, _, h265::NAL_VPS) => &mut self.vps,
            _ => return false,
        };
        if sets.len() < SETS_MAX && !sets.contains(&nal) {
            sets.push(nal);
        }
        true
    }

    /// A new sequence parameter set begins anew; what came without one is added.
    pub(super) fn replace(&mut self, new: &Self) {
        for (own, new) in [(&mut self.vps, &new.vps), (&mut self.sps, &new.sps), (&mut self.pps, &new.pps)] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }

    pub(super) fn depth(&self, codec: Codec) -> Option<u32> {
        let sps = self.sps.first()?;
        match codec {
            Codec::H265 => h265::reorder_max(sps),
            _ => h264::reorder_max(sps),
        }
    }
}
