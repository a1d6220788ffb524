//! AV1 (AOM, "AV1 Bitstream & Decoding Process" 1.0; "AV1 Codec ISO Media File Format Binding" 1.3): the units of a
//! temporal unit, the av1C record, and what a sequence header says about the picture. Must not be in here: frames;
//! nothing is decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::Picture;
use super::read::{BitReader, ByteReader, MediaError};

/// OBU types (6.2.2).
pub const OBU_SEQUENCE_HEADER: u8 = 1;
pub const OBU_TEMPORAL_DELIMITER: u8 = 2;
pub const OBU_FRAME_HEADER: u8 = 3;
pub const OBU_TILE_LIST: u8 = 8;
pub const OBU_FRAME: u8 = 6;
pub const OBU_PADDING: u8 = 15;

/// One open bitstream unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obu<'a> {
    pub obu_type: u8,
    /// The extension byte (temporal and spatial layer), where there is one.
    pub extension: Option<u8>,
    /// What follows header and size.
    pub payload: &'a [u8],
    /// All of it, as it stands in the stream.
    pub whole: &'a [u8],
}

impl Obu<'_> {
    /// Without a size, as RTP carries it: the header with its size flag off, then the payload.
    pub fn write_unsized(&self, out: &mut BytesMut) {
        self.write_header(0, out);
        out.put_slice(self.payload);
    }

    /// With a size, as the low-overhead format has it.
    pub fn write_sized(&self, out: &mut BytesMut) {
        self.write_header(2, out);
        put_leb128(self.payload.len() as u32, out);
        out.put_slice(self.payload);
    }

    fn write_header(&self, size_flag: u8, out: &mut BytesMut) {
        out.put_u8(self.obu_type << 3 | u8::from(self.extension.is_some()) << 2 | size_flag);
        out.extend(self.extension);
    }
}

/// The units of a temporal unit in the low-overhead format (5.2); one without a size ends it. After an error: nothing.
#[derive(Debug, Clone)]
pub struct Obus<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Obus<'a> {
    pub fn new(unit: &'a [u8]) -> Self {
        Self { rest: unit, at: 0 }
    }

    fn take(&mut self) -> Result<Obu<'a>, MediaError> {
        const PART: &str = "OBU";
        let mut reader = ByteReader::new(PART, self.rest);
        let header = reader.u8()?;
        if header & 0x80 != 0 {
            return Err(MediaError::Malformed { part: PART, what: "forbidden bit set", at: self.at });
        }
        let extension = if header & 4 != 0 { Some(reader.u8()?) } else { None };
        let len = if header & 2 != 0 { leb128(&mut reader)? as usize } else { reader.rest().len() };
        let payload = reader.take(len).map_err(|_| MediaError::Truncated { part: PART, at: self.at })?;
        let (whole, rest) = self.rest.split_at_checked(reader.position()).unwrap_or((self.rest, &[]));
        self.rest = rest;
        self.at += whole.len();
        Ok(Obu { obu_type: header >> 3 & 0x0f, extension, payload, whole })
    }
}

impl<'a> Iterator for Obus<'a> {
    type Item = Result<Obu<'a>, MediaError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken = self.take();
        if taken.is_err() {
            self.rest = &[];
        }
        Some(taken)
    }
}

/// 4.10.5, at most 32 bits.
pub(super) fn leb128(reader: &mut ByteReader<'_>) -> Result<u32, MediaError> {
    let mut value = 0u64;
    for place in 0..8 {
        let byte = reader.u8()?;
        value |= u64::from(byte & 0x7f) << (place * 7);
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| reader.malformed("size of more than 32 bits"));
        }
    }
    Err(reader.malformed("size of more than 8 bytes"))
}

/// Appends a number as leb128.
pub fn put_leb128(mut value: u32, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 & 0x7f | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The unit without its temporal delimiters, which file formats and RTP leave out. Cheap when they stand in front, where
/// they should.
pub fn without_delimiters(unit: &Bytes) -> Bytes {
    let mut rest = unit.clone();
    while let Some(Ok(obu)) = Obus::new(&rest).next()
        && obu.obu_type == OBU_TEMPORAL_DELIMITER
    {
        let len = obu.whole.len();
        rest = rest.slice(len..);
    }
    rest
}

/// The first sequence header of a temporal unit, header and size included.
pub fn sequence_header(unit: &[u8]) -> Option<&[u8]> {
    let mut obus = Obus::new(unit).map_while(Result::ok);
    obus.find(|obu| obu.obu_type == OBU_SEQUENCE_HEADER).map(|obu| obu.whole)
}

/// Whether decoding can start at this temporal unit: it has a sequence header and its first frame is a key frame.
pub fn is_key(unit: &[u8]) -> bool {
    let mut sequence = false;
    for obu in Obus::new(unit).map_while(Result::ok) {
        match obu.obu_type {
            OBU_SEQUENCE_HEADER => sequence = true,
            // show_existing_frame 0, frame_type 0 (5.9.2); a reduced still picture is a key frame in any case.
            OBU_FRAME | OBU_FRAME_HEADER => return sequence && obu.payload.first().is_some_and(|byte| byte >> 5 == 0),
            _ => {}
        }
    }
    false
}

/// AV1CodecConfigurationRecord (binding, 2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Av1C {
    pub profile: u8,
    pub level: u8,
    /// Main is `false`.
    pub high_tier: bool,
    /// 8, 10 or 12.
    pub bit_depth: u8,
    pub monochrome: bool,
    pub subsampling_x: bool,
    pub subsampling_y: bool,
    pub chroma_position: u8,
    /// OBUs that go ahead of the first frame: the sequence header, as a rule. May be empty.
    pub obus: Bytes,
}

impl Av1C {
    pub fn parse(record: &[u8]) -> Result<Self, MediaError> {
        let mut reader = ByteReader::new("av1C", record);
        if reader.u8()? != 0x81 {
            return Err(reader.malformed("marker and version are not 0x81"));
        }
        let (profile_level, flags, _delay) = (reader.u8()?, reader.u8()?, reader.u8()?);
        let flag = |bit: u8| flags >> bit & 1 == 1;
        Ok(Self {
            profile: profile_level >> 5,
            level: profile_level & 0x1f,
            high_tier: flag(7),
            bit_depth: match (flag(6), flag(5)) {
                (false, _) => 8,
                (true, false) => 10,
                (true, true) => 12,
            },
            monochrome: flag(4),
            subsampling_x: flag(3),
            subsampling_y: flag(2),
            chroma_position: flags & 3,
            obus: Bytes::copy_from_slice(reader.rest()),
        })
    }

    /// The record of a sequence header OBU, header and size included.
    pub fn of(sequence_header: &[u8]) -> Result<Self, MediaError> {
        let obu = Obus::new(sequence_header).next();
        let obu = obu.unwrap_or(Err(MediaError::Truncated { part: "sequence header", at: 0 }))?;
        let header = SequenceHeader::parse(obu.payload)?;
        let mut obus = BytesMut::new();
        obu.write_sized(&mut obus);
        Ok(Self { obus: obus.freeze(), ..header.record })
    }

    pub fn build(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + self.obus.len());
        let (high, twelve) = (self.bit_depth > 8, self.bit_depth > 10);
        let flags = [self.high_tier, high, twelve, self.monochrome, self.subsampling_x, self.subsampling_y];
        let flags = flags.into_iter().fold(0u8, |bits, flag| bits << 1 | u8::from(flag));
        out.put_slice(&[0x81, self.profile << 5 | self.level & 0x1f, flags << 2 | self.chroma_position & 3, 0]);
        out.put_slice(&self.obus);
        out.freeze()
    }

    /// The picture, if the record holds a sequence header that can be read.
    pub fn picture(&self) -> Option<Picture> {
        let mut obus = Obus::new(&self.obus).map_while(Result::ok);
        let header = obus.find(|obu| obu.obu_type == OBU_SEQUENCE_HEADER)?;
        SequenceHeader::parse(header.payload).ok().map(|header| header.picture)
    }
}

/// What a sequence header (5.5) says.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceHeader {
    /// Without [`obus`](Av1C::obus).
    pub record: Av1C,
    pub picture: Picture,
}

impl SequenceHeader {
    /// Reads the payload of a sequence header OBU.
    pub fn parse(payload: &[u8]) -> Result<Self, MediaError> {
        let mut bits = BitReader::new("sequence header", payload);
        let profile = bits.bits(3)? as u8;
        if profile > 2 {
            return Err(bits.malformed("profile above 2"));
        }
        bits.skip(1)?;
        let reduced = bits.bit()?;
        let (fps, level, high_tier) = if reduced { (None, bits.bits(5)?, false) } else { operating_points(&mut bits)? };
        let (wide_bits, high_bits) = (bits.bits(4)? + 1, bits.bits(4)? + 1);
        let (width, height) = (bits.bits(wide_bits)? + 1, bits.bits(high_bits)? + 1);
        skip_tools(&mut bits, reduced)?;
        let record = Av1C { level: level as u8, high_tier, ..color(&mut bits, profile)? };
        Ok(Self { record, picture: Picture { width, height, fps } })
    }
}

/// Timing and operating points: frames a second where told, level and tier of the first.
fn operating_points(bits: &mut BitReader<'_>) -> Result<(Option<f64>, u32, bool), MediaError> {
    let (mut fps, mut delay_bits) = (None, None);
    if bits.bit()? {
        let (ticks, scale) = (bits.bits(32)?, bits.bits(32)?);
        if bits.bit()? {
            let per_picture = f64::from(bits.ue()?) + 1.0;
            let rate = f64::from(scale) / f64::from(ticks.max(1)) / per_picture;
            fps = Some(rate).filter(|rate| (0.1..=1000.0).contains(rate));
        }
        if bits.bit()? {
            delay_bits = Some(bits.bits(5)? + 1);
            bits.skip(32 + 5 + 5)?;
        }
    }
    let display_delay = bits.bit()?;
    let mut first = None;
    for _ in 0..=bits.bits(5)? {
        bits.skip(12)?;
        let level = bits.bits(5)?;
        let tier = level > 7 && bits.bit()?;
        first.get_or_insert((level, tier));
        if let Some(len) = delay_bits
            && bits.bit()?
        {
            bits.skip(2 * len + 1)?;
        }
        if display_delay && bits.bit()? {
            bits.skip(4)?;
        }
    }
    let (level, tier) = first.unwrap_or_default();
    Ok((fps, level, tier))
}

/// From the frame ids to the restoration flag.
fn skip_tools(bits: &mut BitReader<'_>, reduced: bool) -> Result<(), MediaError> {
    if !reduced && bits.bit()? {
        bits.skip(7)?;
    }
    bits.skip(3)?;
    if !reduced {
        bits.skip(4)?;
        let order_hint = bits.bit()?;
        bits.skip(if order_hint { 2 } else { 0 })?;
        let screen_content = bits.bit()? || bits.bit()?;
        if screen_content && !bits.bit()? {
            bits.skip(1)?;
        }
        bits.skip(if order_hint { 3 } else { 0 })?;
    }
    bits.skip(3)
}

/// 5.5.2.
fn color(bits: &mut BitReader<'_>, profile: u8) -> Result<Av1C, MediaError> {
    const BT_709: u32 = 1;
    const SRGB: u32 = 13;
    let high = bits.bit()?;
    let twelve = profile == 2 && high && bits.bit()?;
    let monochrome = profile != 1 && bits.bit()?;
    let description = if bits.bit()? { (bits.bits(8)?, bits.bits(8)?, bits.bits(8)?) } else { (2, 2, 2) };
    let mut record = Av1C {
        profile,
        level: 0,
        high_tier: false,
        bit_depth: if twelve { 12 } else { 8 + 2 * u8::from(high) },
        monochrome,
        subsampling_x: true,
        subsampling_y: true,
        chroma_position: 0,
        obus: Bytes::new(),
    };
    if monochrome {
        return Ok(record);
    }
    if description == (BT_709, SRGB, 0) {
        (record.subsampling_x, record.subsampling_y) = (false, false);
        return Ok(record);
    }
    bits.skip(1)?;
    (record.subsampling_x, record.subsampling_y) = match (profile, twelve) {
        (0, _) => (true, true),
        (1, _) => (false, false),
        (_, true) => {
            let x = bits.bit()?;
            (x, x && bits.bit()?)
        }
        (_, false) => (true, false),
    };
    if record.subsampling_x && record.subsampling_y {
        record.chroma_position = bits.bits(2)? as u8;
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SVT-AV1 4.2 in ffmpeg 9: 320x180 at 25 frames a second, 8 bits, 4:2:0.
    const RECORD: [u8; 17] =
        [0x81, 0x00, 0x0c, 0x00, 0x0a, 0x0b, 0x02, 0x00, 0x00, 0x05, 0x21, 0xe7, 0xf6, 0x60, 0x17, 0xc0, 0x02];

    #[test]
    fn a_record_as_an_encoder_sends_it() {
        let record = Av1C::parse(&RECORD).unwrap();
        assert_eq!((record.profile, record.level, record.bit_depth, record.high_tier), (0, 0, 8, false));
        assert_eq!(record.picture(), Some(Picture { width: 320, height: 180, fps: None }));
        assert_eq!(record.build()[..], RECORD);
        assert_eq!(Av1C::of(&record.obus), Ok(record));
    }

    #[test]
    fn delimiters_are_taken_off_and_units_told_apart() {
        let unit = Bytes::from_static(&[0x12, 0, 0x12, 0, 0x0a, 1, 7, 0x32, 2, 0x10, 9]);
        let plain = without_delimiters(&unit);
        assert_eq!(plain[..], unit[4..]);
        let types: Vec<u8> = Obus::new(&plain).map(|obu| obu.unwrap().obu_type).collect();
        assert_eq!(types, [OBU_SEQUENCE_HEADER, OBU_FRAME]);
        assert!(is_key(&plain) && !is_key(&plain[3..]));
        assert_eq!(sequence_header(&plain), Some(&plain[..3]));
        // show_existing_frame
        assert!(!is_key(&[0x0a, 1, 7, 0x1a, 1, 0x80]));
    }

    #[test]
    fn a_unit_with_and_without_its_size() {
        let unit = [0x36, 0x28, 0x81, 0x01, 5, 6];
        let long = [&unit[..2], &[0x81, 0x01], &[9; 129]].concat();
        assert!(Obus::new(&unit).next().unwrap().is_err(), "shorter than its size");
        let obu = Obus::new(&long).next().unwrap().unwrap();
        assert_eq!((obu.obu_type, obu.extension, obu.payload.len()), (OBU_FRAME, Some(0x28), 129));
        let mut out = BytesMut::new();
        obu.write_unsized(&mut out);
        assert_eq!(out[..3], [0x34, 0x28, 9]);
        let again = Obus::new(&out).next().unwrap().unwrap();
        assert_eq!(again.payload, obu.payload);
        out.clear();
        Obus::new(&long).next().unwrap().unwrap().write_sized(&mut out);
        assert_eq!(out[..], long[..]);
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _record = Av1C::parse(&noise).map(|record| record.picture());
            let _header = SequenceHeader::parse(&noise);
            let _plain = without_delimiters(&Bytes::from(noise.clone()));
            let taken: usize = Obus::new(&noise).map_while(Result::ok).map(|obu| obu.whole.len()).sum();
            prop_assert!(taken <= noise.len());
            is_key(&noise);
        }
    }
}
