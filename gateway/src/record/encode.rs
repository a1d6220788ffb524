//! Units to the bytes of one file, in pieces that each leave the file whole: FLV tags, or fragments of MP4.
//!
//! Every file stands alone: it begins with what a decoder needs, at time 0. Must not be in here: files and clocks.

use bytes::{Bytes, BytesMut};
use protocols::media::fmp4::{self, Description, Fragmenter};
use protocols::media::{Container, Kind, Mux, Tracks, Unit, mux};

use crate::config::Format;

pub(super) struct Encoder {
    /// The stream's time at which the file begins.
    base_90k: i64,
    last_90k: i64,
    packing: Packing,
}

enum Packing {
    Flv { mux: Box<dyn Mux>, out: BytesMut },
    Fmp4 { head: Bytes, fragmenter: Fragmenter },
}

impl Encoder {
    /// A file that begins with this unit; `None` when the format has no place for any of the tracks.
    pub(super) fn begin(format: Format, tracks: &Tracks, first: &Unit) -> Option<Self> {
        let base_90k = first.dts_90k;
        let packing = match format {
            Format::Flv => {
                let mux = mux(Container::Flv);
                let out = BytesMut::from(&mux.preamble(tracks, 0)[..]);
                Packing::Flv { mux, out }
            }
            Format::Fmp4 => {
                let told = [tracks.video.as_ref(), tracks.audio.as_ref()].into_iter().flatten();
                let told: Vec<_> = (1..).zip(told).filter_map(|(id, unit)| Description::of(id, unit)).collect();
                // A codec that needs no configuration tells itself by its first packet.
                let told = if told.is_empty() { Description::of(1, first).into_iter().collect() } else { told };
                if told.is_empty() {
                    return None;
                }
                Packing::Fmp4 { head: fmp4::init(&told), fragmenter: Fragmenter::new(&told) }
            }
        };
        Some(Self { base_90k, last_90k: 0, packing })
    }

    /// Takes a unit; configurations are in the head already.
    pub(super) fn push(&mut self, unit: &Unit) {
        if unit.kind == Kind::Config {
            return;
        }
        let mut unit = unit.clone();
        let reorder = unit.pts_90k.saturating_sub(unit.dts_90k);
        // Audio may be a little older than the key frame that the file begins with.
        unit.dts_90k = unit.dts_90k.saturating_sub(self.base_90k).max(0);
        unit.pts_90k = unit.dts_90k.saturating_add(reorder);
        self.last_90k = self.last_90k.max(unit.dts_90k);
        match &mut self.packing {
            Packing::Flv { mux, out } => mux.unit(&unit, out),
            Packing::Fmp4 { fragmenter, .. } => {
                fragmenter.push(&unit);
            }
        }
    }

    /// How much of the stream the file holds, 1/90,000 s.
    pub(super) fn span_90k(&self) -> i64 {
        self.last_90k
    }

    /// What can be written now, in one piece; empty: nothing.
    pub(super) fn piece(&mut self, last: bool) -> Bytes {
        match &mut self.packing {
            Packing::Flv { out, .. } => out.split().freeze(),
            Packing::Fmp4 { head, fragmenter } => {
                let fragment = if last { fragmenter.finish() } else { fragmenter.cut() };
                let Some(fragment) = fragment else { return Bytes::new() };
                let head = std::mem::take(head);
                if head.is_empty() { fragment.data } else { [head, fragment.data].concat().into() }
            }
        }
    }
}
