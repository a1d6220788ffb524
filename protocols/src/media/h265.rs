//! H.265 (ITU-T H.265, ISO/IEC 14496-15): the hvcC record, and what a sequence parameter set says about the picture.
//! Must not be in here: slices; nothing is decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::Picture;
use super::h264::without_emulation_prevention;
use super::read::{BitReader, ByteReader, MediaError};

/// NAL unit types (table 7-1).
pub const NAL_VPS: u8 = 32;
pub const NAL_SPS: u8 = 33;
pub const NAL_PPS: u8 = 34;

/// Bytes of the record before its arrays; the length size is in the low bits of the last but one.
const FIXED_LEN: usize = 23;

/// HEVCDecoderConfigurationRecord (14496-15, 8.3.3.1), as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HvcC {
    /// 1, 2 or 4.
    pub nal_length_size: usize,
    pub vps: Vec<Bytes>,
    pub sps: Vec<Bytes>,
    pub pps: Vec<Bytes>,
}

impl HvcC {
    pub fn parse(record: &[u8]) -> Result<Self, MediaError> {
        let mut reader = ByteReader::new("hvcC", record);
        // Some encoders say version 0; the layout is the same.
        if reader.u8()? > 1 {
            return Err(reader.malformed("version is not 1"));
        }
        reader.take(FIXED_LEN - 3)?;
        let nal_length_size = usize::from(reader.u8()? & 3) + 1;
        if nal_length_size == 3 {
            return Err(reader.malformed("NAL length of 3 bytes"));
        }
        let arrays = reader.u8()?;
        let mut parsed = Self { nal_length_size, vps: Vec::new(), sps: Vec::new(), pps: Vec::new() };
        for _ in 0..arrays {
            let nal_type = reader.u8()? & 0x3f;
            for _ in 0..reader.u16()? {
                let len = reader.u16()?;
                let nal = reader.take(usize::from(len))?;
                let sets = match nal_type {
                    NAL_VPS => &mut parsed.vps,
                    NAL_SPS => &mut parsed.sps,
                    NAL_PPS => &mut parsed.pps,
                    _ => continue,
                };
                sets.push(Bytes::copy_from_slice(nal));
            }
        }
        Ok(parsed)
    }

    /// The record for parameter sets that came in band; `None` without a readable sequence parameter set.
    pub fn of(vps: Vec<Bytes>, sps: Vec<Bytes>, pps: Vec<Bytes>) -> Option<Bytes> {
        let plain = without_emulation_prevention(sps.first()?);
        let &[_, _, layers, ref general @ ..] = plain.as_slice() else { return None };
        let (chroma, luma_depth, chroma_depth) = colours(&plain).ok()?;
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(1);
        // Profile, tier and level are in both the same bytes.
        out.put_slice(general.get(..12)?);
        // No spatial segmentation, no parallelism, no rate said; lengths of 4 bytes.
        let (temporal_layers, nested) = ((layers >> 1 & 7) + 1, layers & 1);
        out.put_slice(&[0xf0, 0, 0xfc, 0xfc | chroma, 0xf8 | luma_depth, 0xf8 | chroma_depth, 0, 0]);
        out.put_u8(temporal_layers << 3 | nested << 2 | 3);
        let arrays = [(NAL_VPS, vps), (NAL_SPS, sps), (NAL_PPS, pps)];
        let fits = |set: &&Bytes| u16::try_from(set.len()).is_ok();
        out.put_u8(arrays.iter().filter(|(_, sets)| !sets.is_empty()).count() as u8);
        for (kind, sets) in arrays.iter().filter(|(_, sets)| !sets.is_empty()) {
            out.put_u8(0x80 | kind);
            out.put_u16(sets.iter().filter(fits).count() as u16);
            for set in sets.iter().filter(fits) {
                out.put_u16(set.len() as u16);
                out.put_slice(set);
            }
        }
        Some(out.freeze())
    }

    /// The picture, if its first sequence parameter set can be read.
    pub fn picture(&self) -> Option<Picture> {
        self.sps.first().and_then(|sps| picture_of(sps).ok())
    }
}

/// Sides beyond this many pixels are no picture (level 6.2 ends at 8,444 by 8,444 or 16,888 long).
const SIDE_MAX: u32 = 16_888;

/// Reads a sequence parameter set (7.3.2.2), a whole NAL unit with its header.
pub fn picture_of(sps: &[u8]) -> Result<Picture, MediaError> {
    let plain = without_emulation_prevention(sps);
    let mut bits = BitReader::new("sequence parameter set", &plain);
    if bits.bits(16)? >> 9 & 0x3f != u32::from(NAL_SPS) {
        return Err(bits.malformed("not a sequence parameter set"));
    }
    bits.skip(4)?;
    let sub_layers = bits.bits(3)?;
    bits.skip(1)?;
    profile_tier_level(&mut bits, sub_layers)?;
    bits.ue_max(15, "set id above 15")?;
    let chroma = bits.ue_max(3, "chroma format above 3")?;
    let planes = chroma == 3 && bits.bit()?;
    let wide = bits.ue_max(SIDE_MAX, "picture too wide")?;
    let high = bits.ue_max(SIDE_MAX, "picture too high")?;
    let (crop_x, crop_y) = if bits.bit()? { window(&mut bits)? } else { (0, 0) };
    let (unit_x, unit_y) = match (chroma, planes) {
        (1, _) => (2, 2),
        (2, _) => (2, 1),
        _ => (1, 1),
    };
    let (Some(width @ 1..), Some(height @ 1..)) =
        (wide.checked_sub(crop_x * unit_x), high.checked_sub(crop_y * unit_y))
    else {
        return Err(bits.malformed("cropped to nothing"));
    };
    // The rate is a courtesy: a set that ends before it is still a picture.
    let fps = rate(&mut bits, sub_layers, chroma).ok().flatten();
    Ok(Picture { width, height, fps })
}

/// Frames that may be decoded before one that is shown earlier.
pub fn reorder_max(sps: &[u8]) -> Option<u32> {
    let plain = without_emulation_prevention(sps);
    let mut bits = BitReader::new("sequence parameter set", &plain);
    let mut read = || {
        let (sub_layers, _) = up_to_colours(&mut bits)?;
        bits.ue_max(8, "luma of more than 16 bits")?;
        bits.ue_max(8, "chroma of more than 16 bits")?;
        bits.ue_max(12, "picture order count of more than 16 bits")?;
        let all_layers = bits.bit()?;
        // The highest layer's values hold for the whole; they come last.
        let mut reorder = 0;
        for _ in if all_layers { 0 } else { sub_layers }..=sub_layers {
            bits.ue()?;
            reorder = bits.ue_max(16, "more than 16 frames of reordering")?;
            bits.ue()?;
        }
        Ok::<_, MediaError>(reorder)
    };
    read().ok()
}

/// Chroma format and the bits above 8 of luma and chroma.
fn colours(plain: &[u8]) -> Result<(u8, u8, u8), MediaError> {
    let mut bits = BitReader::new("sequence parameter set", plain);
    let (_, chroma) = up_to_colours(&mut bits)?;
    let luma = bits.ue_max(8, "luma of more than 16 bits")?;
    Ok((chroma as u8, luma as u8, bits.ue_max(8, "chroma of more than 16 bits")? as u8))
}

/// Walks a set up to the depth of its colours: the sub-layers beyond the first, and the chroma format.
fn up_to_colours(bits: &mut BitReader<'_>) -> Result<(u32, u32), MediaError> {
    bits.skip(20)?;
    let sub_layers = bits.bits(3)?;
    bits.skip(1)?;
    profile_tier_level(bits, sub_layers)?;
    bits.ue_max(15, "set id above 15")?;
    let chroma = bits.ue_max(3, "chroma format above 3")?;
    bits.skip(u32::from(chroma == 3))?;
    skip_codes(bits, 2)?;
    if bits.bit()? {
        window(bits)?;
    }
    Ok((sub_layers, chroma))
}

/// 7.3.3, with general values and those of the sub-layers.
fn profile_tier_level(bits: &mut BitReader<'_>, sub_layers: u32) -> Result<(), MediaError> {
    bits.skip(88 + 8)?;
    if sub_layers == 0 {
        return Ok(());
    }
    let flags = bits.bits(16)?;
    for layer in 0..sub_layers {
        let says = |bit: u32| flags >> (15 - bit) & 1 == 1;
        bits.skip(if says(2 * layer) { 88 } else { 0 })?;
        bits.skip(if says(2 * layer + 1) { 8 } else { 0 })?;
    }
    Ok(())
}

/// A conformance or display window: chroma units off the width and the height.
fn window(bits: &mut BitReader<'_>) -> Result<(u32, u32), MediaError> {
    let mut side = || bits.ue_max(1 << 14, "cropping beyond the picture");
    Ok((side()? + side()?, side()? + side()?))
}

/// Walks the rest of the set up to the timing of its usability information.
fn rate(bits: &mut BitReader<'_>, sub_layers: u32, chroma: u32) -> Result<Option<f64>, MediaError> {
    bits.ue_max(8, "luma of more than 16 bits")?;
    bits.ue_max(8, "chroma of more than 16 bits")?;
    let order_bits = bits.ue_max(12, "picture order count of more than 16 bits")? + 4;
    let all_layers = bits.bit()?;
    for _ in if all_layers { 0 } else { sub_layers }..=sub_layers {
        skip_codes(bits, 3)?;
    }
    skip_codes(bits, 6)?;
    if bits.bit()? && bits.bit()? {
        skip_scaling_lists(bits, chroma)?;
    }
    bits.skip(2)?;
    if bits.bit()? {
        bits.skip(8)?;
        skip_codes(bits, 2)?;
        bits.skip(1)?;
    }
    let sets = bits.ue_max(64, "more than 64 reference picture sets")?;
    for set in 0..sets {
        // A set that is told by another's difference: encoders of cameras have one set, and ours not to work them out.
        if set > 0 && bits.bit()? {
            return Ok(None);
        }
        let pictures = bits.ue_max(16, "more than 16 references")? + bits.ue_max(16, "more than 16 references")?;
        for _ in 0..pictures {
            bits.ue()?;
            bits.skip(1)?;
        }
    }
    if bits.bit()? {
        let long_term = bits.ue_max(32, "more than 32 long-term references")?;
        bits.skip(long_term * (order_bits + 1))?;
    }
    bits.skip(2)?;
    if bits.bit()? { timing(bits) } else { Ok(None) }
}

fn skip_codes(bits: &mut BitReader<'_>, count: u32) -> Result<(), MediaError> {
    (0..count).try_for_each(|_| bits.ue().map(drop))
}

/// 7.3.4
fn skip_scaling_lists(bits: &mut BitReader<'_>, chroma: u32) -> Result<(), MediaError> {
    for size in 0..4u32 {
        // The largest size has two lists, six where the colours are of full size (range extensions).
        let step = if size == 3 && chroma != 3 { 3 } else { 1 };
        for _ in (0..6).step_by(step) {
            if !bits.bit()? {
                bits.ue()?;
                continue;
            }
            let coefficients = 64.min(1 << (4 + 2 * size)) + u32::from(size > 1);
            skip_codes(bits, coefficients)?;
        }
    }
    Ok(())
}

/// E.2.1, up to the timing.
fn timing(bits: &mut BitReader<'_>) -> Result<Option<f64>, MediaError> {
    bits.skip_picture_use()?;
    bits.skip(3)?;
    if bits.bit()? {
        window(bits)?;
    }
    if !bits.bit()? {
        return Ok(None);
    }
    let (units, scale) = (bits.bits(32)?, bits.bits(32)?);
    let fps = f64::from(scale) / f64::from(units);
    Ok((units > 0 && fps > 0.0 && fps <= 1_000.0).then_some(fps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// x265 3.5, 640x360 at 25 frames a second.
    const SPS: &[u8] = &[
        0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3f,
        0xa0, 0x05, 0x02, 0x01, 0x69, 0x65, 0xba, 0x92, 0x4c, 0xaf, 0x01, 0x68, 0x08, 0x00, 0x00, 0x03, 0x00, 0x08,
        0x00, 0x00, 0x03, 0x00, 0xc8, 0x40,
    ];

    /// The same with B-frames that are referred to.
    const SPS_REORDERED: &[u8] = &[
        0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3f,
        0xa0, 0x05, 0x02, 0x01, 0x69, 0x65, 0x95, 0x9a, 0x49, 0x32, 0xbc, 0x05, 0xa0, 0x20, 0x00, 0x00, 0x03, 0x00,
        0x20, 0x00, 0x00, 0x03, 0x03, 0x21,
    ];

    fn record(sps: &[u8]) -> Vec<u8> {
        let mut record = vec![0; FIXED_LEN];
        (record[0], record[21], record[22]) = (1, 0x0f, 3);
        for (nal_type, nal) in [(NAL_VPS, &[0x40, 1][..]), (NAL_SPS, sps), (NAL_PPS, &[0x44, 1, 9])] {
            record.extend([0x80 | nal_type, 0, 1]);
            record.extend((nal.len() as u16).to_be_bytes());
            record.extend(nal);
        }
        record
    }

    #[test]
    fn a_real_parameter_set() {
        assert_eq!(picture_of(SPS), Ok(Picture { width: 640, height: 360, fps: Some(25.0) }));
        // What ends in the usability information is a picture without a rate.
        assert_eq!(picture_of(&SPS[..30]), Ok(Picture { width: 640, height: 360, fps: None }));
        assert!(picture_of(&SPS[..20]).is_err());
        assert!(picture_of(&[0x40, 1, 1, 1]).is_err(), "that is a video parameter set");
    }

    #[test]
    fn a_record_and_its_arrays() {
        let record = record(SPS);
        let parsed = HvcC::parse(&record).unwrap();
        assert_eq!((parsed.nal_length_size, parsed.vps.len(), parsed.pps[0].as_ref()), (4, 1, &[0x44, 1, 9][..]));
        assert_eq!(parsed.picture().map(|picture| picture.width), Some(640));
        for cut in 0..record.len() {
            assert!(HvcC::parse(&record[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_record_is_made_of_sets_that_came_in_band() {
        let (vps, pps) = (Bytes::from_static(&[0x40, 1, 7]), Bytes::from_static(&[0x44, 1, 9]));
        let record = HvcC::of(vec![vps.clone()], vec![Bytes::from_static(SPS)], vec![pps.clone()]).unwrap();
        let parsed = HvcC::parse(&record).unwrap();
        assert_eq!((parsed.nal_length_size, parsed.vps, parsed.pps), (4, vec![vps], vec![pps]));
        assert_eq!(parsed.sps, [SPS]);
        // Main profile, level 2.1, 4:2:0 of 8 bits.
        assert_eq!((record[1] & 0x1f, record[12], record[16], record[17], record[18]), (1, 63, 0xfd, 0xf8, 0xf8));
        assert_eq!((reorder_max(SPS), reorder_max(SPS_REORDERED)), (Some(0), Some(2)));
        assert_eq!(HvcC::of(Vec::new(), vec![Bytes::from_static(&SPS[..9])], Vec::new()), None);
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>, at in 0usize..42, byte: u8) {
            let _record = HvcC::parse(&noise);
            let _made = HvcC::of(Vec::new(), vec![noise.clone().into()], Vec::new());
            let _order = reorder_max(&noise);
            let _sps = picture_of(&noise);
            let mut bent = SPS.to_vec();
            bent[at] = byte;
            let _bent = picture_of(&bent);
        }
    }
}
