//! Audio of a channel: codecs that viewers know pass, those of terminals alone (G.726, ADPCM) become G.711.

use bytes::{Buf, Bytes};

use crate::media::aac::Adts;
use crate::media::{Codec, Kind, Track, Unit, adpcm, g711, g726::G726};
use crate::session::Fault;

/// Payload types (table 12).
const G711A: u8 = 6;
const G711U: u8 = 7;
const G726_PT: u8 = 8;
const AAC: [u8; 3] = [19, 21, 24];
const ADPCM: u8 = 26;

/// Samples of an AAC frame.
const AAC_SAMPLES: i64 = 1_024;

/// See the module.
#[derive(Debug)]
pub(super) struct Sound {
    big_endian: bool,
    g726: Option<G726>,
    /// The AAC configuration that was said.
    told: Bytes,
    before_90k: Option<i64>,
    /// An audio codec we do not carry was said already.
    refused: bool,
}

impl Sound {
    pub(super) fn new(big_endian: bool) -> Self {
        Self { big_endian, g726: None, told: Bytes::new(), before_90k: None, refused: false }
    }

    /// Takes one frame, or several of AAC.
    pub(super) fn frame(
        &mut self,
        payload_type: u8,
        data: &Bytes,
        time_90k: i64,
        units: &mut Vec<Unit>,
    ) -> Result<(), Fault> {
        let since_ms = self.before_90k.replace(time_90k).map(|before| time_90k.saturating_sub(before) / 90);
        let (codec, data) = match payload_type {
            G711A => (Codec::G711A, bare(data)),
            G711U => (Codec::G711U, bare(data)),
            G726_PT => {
                let data = bare(data);
                let bits = bits_of(data.len(), since_ms);
                if self.g726.as_ref().is_none_or(|g726| g726.bits() != bits) {
                    self.g726 = Some(G726::new(bits, self.big_endian));
                }
                let Some(g726) = &mut self.g726 else { return Ok(()) };
                (Codec::G711A, g726.samples(&data).map(g711::to_a_law).collect())
            }
            ADPCM => (Codec::G711A, adpcm::samples(&bare(data)).map(g711::to_a_law).collect()),
            other if AAC.contains(&other) => return self.aac(data.clone(), time_90k, units),
            other => return self.refuse(format!("audio of payload type {other} is not carried")),
        };
        if !data.is_empty() {
            units.push(unit(codec, Kind::Key, data, time_90k));
        }
        Ok(())
    }

    /// Frames with ADTS headers (ISO/IEC 14496-3, 1.A.2.2).
    fn aac(&mut self, mut data: Bytes, mut time_90k: i64, units: &mut Vec<Unit>) -> Result<(), Fault> {
        while !data.is_empty() {
            let Ok(adts) = Adts::parse(&data) else {
                return self.refuse("AAC without ADTS headers is not carried".to_owned());
            };
            if adts.frame_len > data.len() || adts.frame_len <= adts.header_len {
                return Err(Fault::recoverable("an AAC frame that is cut off"));
            }
            let mut frame = data.split_to(adts.frame_len);
            frame.advance(adts.header_len);
            let config = adts.config.build();
            if config != self.told {
                self.told = config.clone();
                units.push(unit(Codec::Aac, Kind::Config, config, time_90k));
            }
            units.push(unit(Codec::Aac, Kind::Key, frame, time_90k));
            time_90k += AAC_SAMPLES * 90_000 / i64::from(adts.config.rate.max(1));
        }
        Ok(())
    }

    fn refuse(&mut self, what: String) -> Result<(), Fault> {
        if std::mem::replace(&mut self.refused, true) { Ok(()) } else { Err(Fault::recoverable(what).ours()) }
    }
}

fn unit(codec: Codec, kind: Kind, data: Bytes, time_90k: i64) -> Unit {
    Unit { track: Track::Audio, codec, dts_90k: time_90k, pts_90k: time_90k, kind, data }
}

/// Without the header that HiSilicon's chips put before each frame: 00 01, half the length of what follows, 00.
fn bare(data: &Bytes) -> Bytes {
    match data.first_chunk() {
        Some([0, 1, half, 0]) if usize::from(*half) * 2 + 4 == data.len() => data.slice(4..),
        _ => data.clone(),
    }
}

/// Bits of a G.726 sample, which nothing says: a packet holds 40 or 20 ms at 8,000 samples a second.
fn bits_of(len: usize, since_ms: Option<i64>) -> u32 {
    let fits = |ms: usize| (len.is_multiple_of(ms) && (2..=5).contains(&(len / ms))).then_some(len / ms);
    let bits = match (fits(40), fits(20)) {
        // 80 bytes are both.
        (Some(_), Some(short)) if since_ms.is_some_and(|ms| ms <= 25) => short,
        (Some(long), _) => long,
        (None, short) => short.unwrap_or(4),
    };
    bits as u32
}
