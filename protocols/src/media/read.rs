//! Bounded readers of bytes and bits: no index, no panic, every error with its place.

/// What is wrong with a piece of media, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    #[error("{part} ends early, at byte {at}")]
    Truncated { part: &'static str, at: usize },
    #[error("{part}: {what} at byte {at}")]
    Malformed { part: &'static str, what: &'static str, at: usize },
    #[error("{part}: more than {max} {what}")]
    Limit { part: &'static str, what: &'static str, max: usize },
    #[error("{part}: {what} {value} is not supported")]
    Unsupported { part: &'static str, what: &'static str, value: u32 },
}

/// Reads big-endian numbers off a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteReader<'a> {
    part: &'static str,
    data: &'a [u8],
    at: usize,
}

impl<'a> ByteReader<'a> {
    /// `part` names the structure in errors.
    pub(crate) fn new(part: &'static str, data: &'a [u8]) -> Self {
        Self { part, data, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.data.get(self.at..).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], MediaError> {
        let taken = self.rest().get(..len).ok_or(MediaError::Truncated { part: self.part, at: self.data.len() })?;
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], MediaError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, MediaError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, MediaError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u24(&mut self) -> Result<u32, MediaError> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_be_bytes([0, a, b, c]))
    }

    /// A signed 24-bit number.
    pub(crate) fn i24(&mut self) -> Result<i32, MediaError> {
        let [a, b, c] = self.array()?;
        Ok(i32::from_be_bytes([a, b, c, 0]) >> 8)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, MediaError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, MediaError> {
        self.array().map(f64::from_be_bytes)
    }

    pub(crate) fn malformed(&self, what: &'static str) -> MediaError {
        MediaError::Malformed { part: self.part, what, at: self.at }
    }

    pub(crate) fn limit(&self, what: &'static str, max: usize) -> MediaError {
        MediaError::Limit { part: self.part, what, max }
    }
}

/// Reads bits, most significant first, and Exp-Golomb codes (H.264 9.1).
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    part: &'static str,
    data: &'a [u8],
    /// Bits taken so far.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(part: &'static str, data: &'a [u8]) -> Self {
        Self { part, data, at: 0 }
    }

    pub(crate) fn bit(&mut self) -> Result<bool, MediaError> {
        let byte = self.data.get(self.at / 8).ok_or(MediaError::Truncated { part: self.part, at: self.data.len() })?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit == 1)
    }

    /// At most 32 bits.
    pub(crate) fn bits(&mut self, count: u32) -> Result<u32, MediaError> {
        (0..count.min(32)).try_fold(0u32, |value, _| Ok(value << 1 | u32::from(self.bit()?)))
    }

    pub(crate) fn skip(&mut self, count: u32) -> Result<(), MediaError> {
        (0..count).try_for_each(|_| self.bit().map(drop))
    }

    /// ue(v), below 2^32 - 1.
    pub(crate) fn ue(&mut self) -> Result<u32, MediaError> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > 31 {
                return Err(self.malformed("Exp-Golomb code of more than 63 bits"));
            }
        }
        let low = self.bits(zeros)?;
        Ok((1u32 << zeros) - 1 + low)
    }

    /// se(v).
    pub(crate) fn se(&mut self) -> Result<i64, MediaError> {
        let code = i64::from(self.ue()?);
        Ok(if code % 2 == 0 { -(code / 2) } else { code / 2 + 1 })
    }

    /// ue(v) that must not exceed `max`.
    pub(crate) fn ue_max(&mut self, max: u32, what: &'static str) -> Result<u32, MediaError> {
        let value = self.ue()?;
        if value > max { Err(self.malformed(what)) } else { Ok(value) }
    }

    /// What H.264 (E.1.1) and H.265 (E.2.1) say alike at the head of a picture's usability information: sample aspect ratio,
    /// overscan, signal type and place of the chroma samples.
    pub(crate) fn skip_picture_use(&mut self) -> Result<(), MediaError> {
        const EXTENDED_RATIO: u32 = 255;
        if self.bit()? && self.bits(8)? == EXTENDED_RATIO {
            self.skip(32)?;
        }
        if self.bit()? {
            self.skip(1)?;
        }
        if self.bit()? {
            self.skip(4)?;
            if self.bit()? {
                self.skip(24)?;
            }
        }
        if self.bit()? {
            self.ue()?;
            self.ue()?;
        }
        Ok(())
    }

    pub(crate) fn malformed(&self, what: &'static str) -> MediaError {
        MediaError::Malformed { part: self.part, what, at: self.at / 8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_golomb_codes_of_the_standard() {
        // H.264 table 9-2: 1 010 011 00100 00101 00110 -> 0 1 2 3 4 5
        let mut bits = BitReader::new("t", &[0b1010_0110, 0b0100_0010, 0b1001_1000]);
        let codes: Vec<u32> = (0..6).map(|_| bits.ue().unwrap()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5]);
        let mut bits = BitReader::new("t", &[0b1010_0110, 0b0100_0010, 0b1001_1000]);
        let codes: Vec<i64> = (0..6).map(|_| bits.se().unwrap()).collect();
        assert_eq!(codes, [0, 1, -1, 2, -2, 3]);
    }

    #[test]
    fn a_code_without_end_is_refused() {
        assert!(BitReader::new("t", &[0; 16]).ue().is_err());
        assert_eq!(BitReader::new("t", &[0, 0]).ue(), Err(MediaError::Truncated { part: "t", at: 2 }));
    }

    #[test]
    fn signed_24_bits() {
        assert_eq!(ByteReader::new("t", &[0xff, 0xff, 0xd8]).i24(), Ok(-40));
        assert_eq!(ByteReader::new("t", &[0, 0, 40]).i24(), Ok(40));
    }
}
