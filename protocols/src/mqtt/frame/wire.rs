//! The data types of MQTT (1.5): integers, strings, binary data, variable length numbers.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Malformed, Reason};

/// Reads the body of one packet from front to back.
#[derive(Debug)]
pub(super) struct Reader {
    body: Bytes,
    /// Offset of the body's front in the packet.
    at: usize,
}

impl Reader {
    pub(super) fn new(body: Bytes, at: usize) -> Self {
        Self { body, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    pub(super) fn malformed(&self, what: impl Into<std::borrow::Cow<'static, str>>) -> Malformed {
        Malformed::new(Reason::MALFORMED, what, self.at)
    }

    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if self.body.len() < len {
            return Err(self.malformed(format!("packet ends inside its {what}")));
        }
        self.at += len;
        Ok(self.body.split_to(len))
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        self.at += self.body.len();
        std::mem::take(&mut self.body)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, what)?.first().copied().unwrap_or(0))
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(self.take(2, what)?.iter().fold(0, |sum, byte| (sum << 8) | u16::from(*byte)))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(self.take(4, what)?.iter().fold(0, |sum, byte| (sum << 8) | u32::from(*byte)))
    }

    pub(super) fn binary(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        let len = self.u16(what)?;
        self.take(usize::from(len), what)
    }

    /// UTF-8 without U+0000 (1.5.4).
    pub(super) fn text(&mut self, what: &'static str) -> Result<Arc<str>, Malformed> {
        let at = self.at;
        let bytes = self.binary(what)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| Malformed::new(Reason::MALFORMED, format!("{what} is not UTF-8"), at + 2 + e.valid_up_to()))?;
        if let Some(nul) = text.find('\0') {
            return Err(Malformed::new(Reason::MALFORMED, format!("{what} holds U+0000"), at + 2 + nul));
        }
        Ok(Arc::from(text))
    }

    /// A variable byte integer (1.5.5) in its shortest form.
    pub(super) fn varint(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let mut value = 0_u32;
        for index in 0..4 {
            let byte = self.u8(what)?;
            value |= u32::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(self.malformed(format!("{what} is not in its shortest form")));
                }
                return Ok(value);
            }
        }
        Err(self.malformed(format!("{what} of more than four bytes")))
    }

    /// A part of known length as a reader of its own.
    pub(super) fn part(&mut self, len: usize, what: &'static str) -> Result<Self, Malformed> {
        let at = self.at;
        Ok(Self { body: self.take(len, what)?, at })
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.body.is_empty() { Ok(()) } else { Err(self.malformed("bytes after the end of the packet's content")) }
    }
}

/// Bytes a variable byte integer takes.
pub(super) const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x001f_ffff => 3,
        _ => 4,
    }
}

pub(super) fn put_varint(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

/// Binary data or text; what does not fit the 16-bit length is cut, which no caller lets happen: every text comes from a
/// packet that had the same limit, or is short and ours.
pub(super) fn put_binary(out: &mut BytesMut, bytes: &[u8]) {
    let len = bytes.len().min(usize::from(u16::MAX));
    out.put_u16(len as u16);
    out.put_slice(bytes.get(..len).unwrap_or_default());
}
