//! H.264 (ITU-T H.264, ISO/IEC 14496-15): NAL units in both packings, the avcC record, and what a sequence parameter set
//! says about the picture. Must not be in here: slices; nothing is decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::read::{BitReader, ByteReader, MediaError};

/// Bytes of a NAL unit's length in every [`Unit`](super::Unit).
pub const NAL_LENGTH_SIZE: usize = 4;

/// NAL unit types (table 7-1).
pub const NAL_IDR: u8 = 5;
pub const NAL_SPS: u8 = 7;
pub const NAL_PPS: u8 = 8;

/// AVCDecoderConfigurationRecord (14496-15, 5.3.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvcC {
    pub profile: u8,
    pub compatibility: u8,
    pub level: u8,
    /// 1, 2 or 4.
    pub nal_length_size: usize,
    pub sps: Vec<Bytes>,
    pub pps: Vec<Bytes>,
    /// What the high profiles append, as it came.
    pub extension: Bytes,
}

impl AvcC {
    pub fn parse(record: &[u8]) -> Result<Self, MediaError> {
        let mut reader = ByteReader::new("avcC", record);
        if reader.u8()? != 1 {
            return Err(reader.malformed("version is not 1"));
        }
        let (profile, compatibility, level) = (reader.u8()?, reader.u8()?, reader.u8()?);
        let nal_length_size = usize::from(reader.u8()? & 3) + 1;
        if nal_length_size == 3 {
            return Err(reader.malformed("NAL length of 3 bytes"));
        }
        let sps_count = reader.u8()? & 0x1f;
        let sps = Self::sets(&mut reader, sps_count)?;
        let pps_count = reader.u8()?;
        let pps = Self::sets(&mut reader, pps_count)?;
        let extension = Bytes::copy_from_slice(reader.rest());
        Ok(Self { profile, compatibility, level, nal_length_size, sps, pps, extension })
    }

    fn sets(reader: &mut ByteReader<'_>, count: u8) -> Result<Vec<Bytes>, MediaError> {
        (0..count)
            .map(|_| {
                let len = reader.u16()?;
                reader.take(usize::from(len)).map(Bytes::copy_from_slice)
            })
            .collect()
    }

    /// The record for parameter sets that came in band; `None` without a sequence parameter set.
    pub fn of(sps: Bytes, pps: Vec<Bytes>) -> Option<Self> {
        let &[_, profile, compatibility, level, ..] = sps.as_ref() else { return None };
        let (sps, extension) = (vec![sps], Bytes::new());
        Some(Self { profile, compatibility, level, nal_length_size: NAL_LENGTH_SIZE, sps, pps, extension })
    }

    /// Sets beyond the record's counts (31 and 255) or of more than 65,535 bytes are left out.
    pub fn build(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        let length_bits = self.nal_length_size.clamp(1, 4) as u8 - 1;
        out.put_slice(&[1, self.profile, self.compatibility, self.level, 0xfc | length_bits]);
        let mut put = |sets: &[Bytes], max: usize, mark: u8| {
            let fits = || sets.iter().filter(|s| u16::try_from(s.len()).is_ok()).take(max);
            out.put_u8(mark | fits().count() as u8);
            for set in fits() {
                out.put_u16(set.len() as u16);
                out.put_slice(set);
            }
        };
        put(&self.sps, 31, 0xe0);
        put(&self.pps, 255, 0);
        out.put_slice(&self.extension);
        out.freeze()
    }

    /// The picture, if its first parameter set can be read.
    pub fn picture(&self) -> Option<Sps> {
        self.sps.first().and_then(|sps| Sps::parse(sps).ok())
    }
}

/// What a sequence parameter set (7.3.2.1) says about the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sps {
    pub profile: u8,
    pub level: u8,
    /// Pixels that are shown, cropping taken off.
    pub width: u32,
    pub height: u32,
    /// Frames a second, where the set tells its timing.
    pub fps: Option<f64>,
    /// Frames that may be decoded before one that is shown earlier, where the set tells.
    pub reorder_max: Option<u32>,
}

impl Sps {
    /// Sides beyond this many macroblocks are no picture (level 6.2 ends at 1,055; this is 16,384 pixels).
    const SIDE_MACROBLOCKS_MAX: u32 = 1_024;

    /// Reads a whole NAL unit with its header byte.
    pub fn parse(nal: &[u8]) -> Result<Self, MediaError> {
        const PART: &str = "sequence parameter set";
        let plain = without_emulation_prevention(nal);
        let mut bits = BitReader::new(PART, &plain);
        if bits.bits(8)? & 0x1f != u32::from(NAL_SPS) {
            return Err(bits.malformed("not a sequence parameter set"));
        }
        let profile = bits.bits(8)? as u8;
        bits.skip(8)?;
        let level = bits.bits(8)? as u8;
        bits.ue_max(31, "set id above 31")?;
        let chroma = if has_chroma(profile) { Self::chroma(&mut bits)? } else { Chroma { format: 1, planes: false } };
        bits.ue_max(12, "frame number of more than 16 bits")?;
        Self::picture_order(&mut bits)?;
        bits.ue_max(16, "more than 16 reference frames")?;
        bits.skip(1)?;
        let wide = bits.ue_max(Self::SIDE_MACROBLOCKS_MAX - 1, "picture too wide")? + 1;
        let high = bits.ue_max(Self::SIDE_MACROBLOCKS_MAX - 1, "picture too high")? + 1;
        let fields = if bits.bit()? { 1 } else { 2 };
        bits.skip(if fields == 2 { 2 } else { 1 })?;
        let (crop_x, crop_y) = if bits.bit()? { Self::cropping(&mut bits, chroma, fields)? } else { (0, 0) };
        let (width, height) = ((wide * 16).checked_sub(crop_x), (high * 16 * fields).checked_sub(crop_y));
        let (Some(width @ 1..), Some(height @ 1..)) = (width, height) else {
            return Err(bits.malformed("cropped to nothing"));
        };
        // The usability information is a courtesy: a set that ends in it is still a picture.
        let (mut fps, mut reorder_max) = (None, None);
        if bits.bit().unwrap_or(false)
            && let Ok(timing) = Self::timing(&mut bits)
        {
            fps = timing;
            reorder_max = Self::reordering(&mut bits).ok().flatten();
        }
        Ok(Self { profile, level, width, height, fps, reorder_max })
    }

    fn chroma(bits: &mut BitReader<'_>) -> Result<Chroma, MediaError> {
        let format = bits.ue_max(3, "chroma format above 3")?;
        let planes = format == 3 && bits.bit()?;
        bits.ue_max(6, "luma of more than 14 bits")?;
        bits.ue_max(6, "chroma of more than 14 bits")?;
        bits.skip(1)?;
        if bits.bit()? {
            for list in 0..if format == 3 { 12 } else { 8 } {
                if bits.bit()? {
                    Self::skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
        Ok(Chroma { format, planes })
    }

    /// 7.3.2.1.1.1
    fn skip_scaling_list(bits: &mut BitReader<'_>, len: u32) -> Result<(), MediaError> {
        let (mut last, mut next) = (8i64, 8i64);
        for _ in 0..len {
            if next != 0 {
                let delta = bits.se()?;
                if !(-128..=127).contains(&delta) {
                    return Err(bits.malformed("scaling list step out of range"));
                }
                next = (last + delta).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
        Ok(())
    }

    fn picture_order(bits: &mut BitReader<'_>) -> Result<(), MediaError> {
        match bits.ue_max(2, "picture order count type above 2")? {
            0 => bits.ue_max(12, "picture order count of more than 16 bits").map(drop),
            1 => {
                bits.skip(1)?;
                bits.se()?;
                bits.se()?;
                let cycle = bits.ue_max(255, "picture order cycle above 255")?;
                (0..cycle).try_for_each(|_| bits.se().map(drop))
            }
            _ => Ok(()),
        }
    }

    /// Pixels cut off the width and the height (equations 7-19 to 7-22).
    fn cropping(bits: &mut BitReader<'_>, chroma: Chroma, fields: u32) -> Result<(u32, u32), MediaError> {
        const WHAT: &str = "cropping beyond the picture";
        let mut side = || bits.ue_max(1 << 16, WHAT);
        let (x, y) = (side()? + side()?, side()? + side()?);
        let (unit_x, unit_y) = match (chroma.format, chroma.planes) {
            (1, _) => (2, 2),
            (2, _) => (2, 1),
            _ => (1, 1),
        };
        Ok((x * unit_x, y * unit_y * fields))
    }

    /// Walks the usability information (E.1.1) up to its timing.
    fn timing(bits: &mut BitReader<'_>) -> Result<Option<f64>, MediaError> {
        bits.skip_picture_use()?;
        if !bits.bit()? {
            return Ok(None);
        }
        let (units, scale) = (bits.bits(32)?, bits.bits(32)?);
        bits.skip(1)?;
        let fps = f64::from(scale) / (2.0 * f64::from(units));
        Ok((units > 0 && fps > 0.0 && fps <= 1_000.0).then_some(fps))
    }

    /// The rest of the usability information.
    fn reordering(bits: &mut BitReader<'_>) -> Result<Option<u32>, MediaError> {
        let mut buffers = false;
        for _ in 0..2 {
            if bits.bit()? {
                buffers = true;
                let count = bits.ue_max(31, "more than 32 coded picture buffers")?;
                bits.skip(8)?;
                for _ in 0..=count {
                    bits.ue()?;
                    bits.ue()?;
                    bits.skip(1)?;
                }
                bits.skip(20)?;
            }
        }
        bits.skip(if buffers { 2 } else { 1 })?;
        if !bits.bit()? {
            return Ok(None);
        }
        bits.skip(1)?;
        for _ in 0..4 {
            bits.ue()?;
        }
        bits.ue_max(16, "more than 16 frames of reordering").map(Some)
    }
}

/// Frames that may be decoded before one that is shown earlier, where the parameter set tells.
pub fn reorder_max(sps: &[u8]) -> Option<u32> {
    Sps::parse(sps).ok()?.reorder_max
}

#[derive(Debug, Clone, Copy)]
struct Chroma {
    format: u32,
    /// The colours are coded as three separate planes.
    planes: bool,
}

/// Profiles whose parameter sets say their chroma format.
fn has_chroma(profile: u8) -> bool {
    matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135)
}

/// The bytes of a NAL unit with each 0x000003 back to 0x0000 (7.4.1).
pub(super) fn without_emulation_prevention(nal: &[u8]) -> Vec<u8> {
    let mut zeros = 0;
    let mut plain = Vec::with_capacity(nal.len());
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        plain.push(byte);
    }
    plain
}

/// The NAL units of an access unit with length prefixes of `length_size` bytes; ends at the first that does not fit.
pub fn nals(data: &[u8], length_size: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let prefix = rest.get(..length_size)?;
        let len = prefix.iter().fold(0usize, |len, &byte| len << 8 | usize::from(byte));
        let nal = rest.get(length_size..length_size.checked_add(len)?)?;
        rest = rest.get(length_size + len..)?;
        Some(nal)
    })
}

/// Whether decoding can start at this access unit (4-byte lengths): it has a slice of an IDR picture.
pub fn is_key(data: &[u8]) -> bool {
    nals(data, NAL_LENGTH_SIZE).any(|nal| nal.first().is_some_and(|header| header & 0x1f == NAL_IDR))
}

/// Length prefixes of another size to 4 bytes; `None` when the lengths do not add up.
pub fn widen_lengths(data: &[u8], length_size: usize) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(data.len() + 64);
    let mut taken = 0;
    for nal in nals(data, length_size) {
        taken += length_size + nal.len();
        out.put_u32(nal.len() as u32);
        out.put_slice(nal);
    }
    (taken == data.len()).then(|| out.freeze())
}

/// The NAL units of a byte stream (annex B): between start codes, trailing zeros taken off.
pub fn annex_b_nals(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = start_code(data).and_then(|(_, after)| data.get(after..));
    std::iter::from_fn(move || {
        let current = rest?;
        let (end, next) = match start_code(current) {
            Some((begin, after)) => (begin, current.get(after..)),
            None => (current.len(), None),
        };
        rest = next;
        let nal = current.get(..end)?;
        let len = nal.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        nal.get(..len)
    })
    .filter(|nal| !nal.is_empty())
}

/// Where the next 0x000001 begins and ends.
pub(super) fn start_code(data: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(&[a, b, c]) = data.get(at..).and_then(|rest| rest.first_chunk()) {
        match c {
            1 if a == 0 && b == 0 => return Some((at, at + 3)),
            0 => at += 1,
            // The third byte is none of a code's first two.
            _ => at += 3,
        }
    }
    None
}

/// A byte stream's access unit with 4-byte length prefixes.
pub fn from_annex_b(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 16);
    for nal in annex_b_nals(data) {
        out.put_u32(nal.len() as u32);
        out.put_slice(nal);
    }
    out.freeze()
}

/// An access unit with 4-byte length prefixes as a byte stream.
pub fn to_annex_b(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 16);
    for nal in nals(data, NAL_LENGTH_SIZE) {
        out.put_slice(&[0, 0, 0, 1]);
        out.put_slice(nal);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // x264, 320x180 at 25/s, high profile, as ffmpeg's testsrc2 gives it.
    const SPS_320X180: &[u8] = &[
        0x67, 0x64, 0x00, 0x0c, 0xac, 0xd9, 0x41, 0x41, 0x9f, 0x9f, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00,
        0x00, 0x03, 0x03, 0x20, 0xf1, 0x42, 0x99, 0x60,
    ];

    #[test]
    fn an_x264_parameter_set() {
        let sps = Sps::parse(SPS_320X180).unwrap();
        assert_eq!((sps.profile, sps.level, sps.width, sps.height, sps.fps), (100, 12, 320, 180, Some(25.0)));
        assert_eq!(sps.reorder_max, Some(2), "{sps:?}");
    }

    #[test]
    fn a_parameter_set_cut_anywhere_is_an_error_or_the_same_picture() {
        for len in 0..SPS_320X180.len() {
            if let Ok(sps) = Sps::parse(&SPS_320X180[..len]) {
                assert_eq!((sps.width, sps.height), (320, 180), "cut at {len}");
            }
        }
    }

    #[test]
    fn the_record_round_trips() {
        let record = AvcC::of(Bytes::from_static(SPS_320X180), vec![Bytes::from_static(&[0x68, 0xeb, 0xe3])]).unwrap();
        let built = record.build();
        assert_eq!(AvcC::parse(&built), Ok(record));
        for len in 0..built.len() {
            assert!(AvcC::parse(&built[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_key_frame_is_known_by_its_idr_slice() {
        assert!(is_key(&[0, 0, 0, 2, 0x09, 0xf0, 0, 0, 0, 2, 0x65, 0x88]));
        assert!(!is_key(&[0, 0, 0, 2, 0x41, 0x9a]));
        assert!(!is_key(&[0xff, 0xff, 0xff, 0xff, 0x65]));
    }

    #[test]
    fn annex_b_with_both_start_codes() {
        let packed = from_annex_b(&[0, 0, 0, 1, 9, 0xf0, 0, 0, 1, 0x65, 1, 2, 0, 0, 0, 1, 0x41, 3, 0, 0]);
        assert_eq!(&packed[..], [0, 0, 0, 2, 9, 0xf0, 0, 0, 0, 3, 0x65, 1, 2, 0, 0, 0, 2, 0x41, 3]);
        assert_eq!(from_annex_b(&to_annex_b(&packed)), packed);
    }

    #[test]
    fn lengths_of_two_bytes_become_four() {
        assert_eq!(
            widen_lengths(&[0, 2, 0x65, 1, 0, 1, 0x41], 2).unwrap()[..],
            [0, 0, 0, 2, 0x65, 1, 0, 0, 0, 1, 0x41]
        );
        assert_eq!(widen_lengths(&[0, 9, 0x65, 1], 2), None);
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _sps = Sps::parse(&noise);
            let _record = AvcC::parse(&noise);
            let _walked = nals(&noise, 4).count() + annex_b_nals(&noise).count();
            let mut set = vec![0x67];
            set.extend(&noise);
            if let Ok(sps) = Sps::parse(&set) {
                prop_assert!(sps.width <= 16_384 && sps.height <= 32_768);
            }
        }
    }
}
