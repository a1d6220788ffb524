//! Packets of a program stream's audio to units: G.711 as it is, AAC out of its ADTS frames.

use bytes::{Buf, BytesMut};

use crate::media::aac::Adts;
use crate::media::{Codec, Kind, Track, Unit, g711};

/// Samples of an AAC frame.
const AAC_SAMPLES: i64 = 1_024;
const TICKS: i64 = 90_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sound {
    /// What is in it; `None`: nothing we carry, once its first packet was seen.
    codec: Option<Codec>,
    seen: bool,
    config: Option<bytes::Bytes>,
    /// The beginning of an AAC frame.
    carry: BytesMut,
    /// When the next frame is heard.
    next_90k: Option<i64>,
}

impl Sound {
    /// Bytes are missing here.
    pub(super) fn lose(&mut self) {
        self.carry.clear();
        self.next_90k = None;
    }

    /// Takes a packet's content. The first frame that begins in it is heard at `pts_90k`. `declared` is its type in the map; what
    /// the bytes themselves say goes before that. `false`: nothing we carry is in it.
    pub(super) fn packet(
        &mut self,
        declared: Option<u8>,
        content: &[u8],
        pts_90k: Option<i64>,
        units: &mut Vec<Unit>,
    ) -> bool {
        if !std::mem::replace(&mut self.seen, true) {
            self.codec = codec(declared, content);
        }
        match self.codec {
            Some(Codec::Aac) => self.aac(content, pts_90k, units),
            Some(codec) if !content.is_empty() => {
                let at_90k = pts_90k.or(self.next_90k).unwrap_or(0);
                let samples = i64::try_from(content.len()).unwrap_or(0);
                self.next_90k = Some(at_90k + samples * TICKS / i64::from(g711::RATE));
                units.push(unit(codec, Kind::Key, at_90k, bytes::Bytes::copy_from_slice(content)));
            }
            Some(_) => {}
            None => return false,
        }
        true
    }

    fn aac(&mut self, content: &[u8], pts_90k: Option<i64>, units: &mut Vec<Unit>) {
        let (mut begun, mut pts_90k) = (self.carry.len(), pts_90k);
        self.carry.extend_from_slice(content);
        while self.carry.len() >= Adts::HEADER_LEN {
            let Ok(adts) = Adts::parse(&self.carry) else {
                // On to the next frame.
                self.carry.advance(1);
                begun = begun.saturating_sub(1);
                continue;
            };
            if self.carry.len() < adts.frame_len {
                break;
            }
            if begun == 0 {
                self.next_90k = pts_90k.take().or(self.next_90k);
            }
            let frame = self.carry.split_to(adts.frame_len);
            begun = begun.saturating_sub(adts.frame_len);
            let at_90k = self.next_90k.unwrap_or(0);
            self.next_90k = Some(at_90k + AAC_SAMPLES * TICKS / i64::from(adts.config.rate.max(1)));
            let config = adts.config.build();
            if self.config.as_ref() != Some(&config) {
                self.config = Some(config.clone());
                units.push(unit(Codec::Aac, Kind::Config, at_90k, config));
            }
            let data = bytes::Bytes::copy_from_slice(frame.get(adts.header_len..).unwrap_or_default());
            if !data.is_empty() {
                units.push(unit(Codec::Aac, Kind::Key, at_90k, data));
            }
        }
        // The frame that has begun here already.
        if begun == 0 && pts_90k.is_some() && !self.carry.is_empty() {
            self.next_90k = pts_90k;
        }
    }
}

fn unit(codec: Codec, kind: Kind, at_90k: i64, data: bytes::Bytes) -> Unit {
    Unit { track: Track::Audio, codec, dts_90k: at_90k, pts_90k: at_90k, kind, data }
}

/// What an audio stream is in, by its type (H.222.0, table 2-34; GB/T 28181, C.2) and its first packet: some devices call AAC
/// G.711, and some say nothing.
fn codec(declared: Option<u8>, content: &[u8]) -> Option<Codec> {
    let mpeg = matches!(content, [0xff, second, ..] if second & 0xe0 == 0xe0 && second & 0x06 != 0);
    match declared {
        Some(0x0f) => Some(Codec::Aac),
        None | Some(0x90 | 0x91) if is_adts(content) => Some(Codec::Aac),
        Some(0x91) => Some(Codec::G711U),
        Some(0x90) => Some(Codec::G711A),
        None if !mpeg => Some(Codec::G711A),
        _ => None,
    }
}

/// Whether frames follow one another, up to the end.
fn is_adts(content: &[u8]) -> bool {
    let layer_is_0 = content.get(1).is_some_and(|second| second & 0x06 == 0);
    let next = Adts::parse(content).ok().filter(|_| layer_is_0).and_then(|adts| content.get(adts.frame_len..));
    next.is_some_and(|rest| rest.is_empty() || rest.starts_with(&[0xff]))
}
