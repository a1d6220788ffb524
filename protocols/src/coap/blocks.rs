//! Bodies in blocks (RFC 7959): Block1 uploads put together, answers cut for Block2.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::frame::{Code, Message, uint};
use super::request::{Ask, Refused};
use crate::things::Target;

/// Uploads of one peer at a time; a further one takes the place of the oldest.
const UPLOADS_MAX: usize = 2;

/// An upload without a new block for this long is forgotten (EXCHANGE_LIFETIME, RFC 7252 section 4.8.2).
const AGE_MAX: Duration = Duration::from_secs(247);

/// The largest block there is: size exponent 6.
pub(super) const SIZE_MAX: usize = 1024;

/// The value of a Block1 or Block2 option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) number: u32,
    pub(super) more: bool,
    /// Size is 2^(exponent + 4): 0 to 6.
    pub(super) exponent: u8,
}

/// Bodies that are not whole yet.
#[derive(Debug)]
pub(super) struct Uploads {
    body_max: usize,
    uploads: VecDeque<Upload>,
}

#[derive(Debug)]
struct Upload {
    target: Target,
    format: Option<u32>,
    body: BytesMut,
    since: Instant,
}

/// What a block brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// 2.31: the next one, please.
    Continue,
    Whole(Bytes),
}

// === impl Block ===

impl Block {
    pub(super) const FIRST: Self = Self { number: 0, more: false, exponent: 6 };

    pub(super) fn read(message: &Message, number: u16) -> Result<Option<Self>, Refused> {
        let Some(value) = message.values(number).next().and_then(|value| uint(value, 3)) else { return Ok(None) };
        if value & 7 == 7 {
            return Err(Refused::new(Code::BAD_REQUEST, "block size exponent 7 is reserved"));
        }
        Ok(Some(Self { number: value >> 4, more: value & 8 != 0, exponent: (value & 7) as u8 }))
    }

    pub(super) fn value(self) -> u32 {
        self.number << 4 | u32::from(self.more) << 3 | u32::from(self.exponent)
    }

    pub(super) fn size(self) -> usize {
        16 << self.exponent
    }

    /// The piece of a body this block asks for, and the block to answer with.
    pub(super) fn of(self, body: &Bytes) -> Option<(Self, Bytes)> {
        let from = usize::try_from(self.number).ok()?.checked_mul(self.size())?;
        let to = body.len().min(from.checked_add(self.size())?);
        (from < body.len()).then(|| (Self { more: to < body.len(), ..self }, body.slice(from..to)))
    }
}

// === impl Uploads ===

impl Uploads {
    pub(super) fn new(body_max: usize) -> Self {
        Self { body_max, uploads: VecDeque::new() }
    }

    /// Takes a block. A block 0 begins anew, whatever was there; any other must follow the last one.
    pub(super) fn take(&mut self, now: Instant, ask: &Ask, block: Block) -> Result<Progress, Refused> {
        let Ask { target, format, size1, payload, .. } = ask;
        self.uploads.retain(|upload| now.saturating_duration_since(upload.since) < AGE_MAX);
        let at = self.uploads.iter().position(|upload| upload.target == *target);
        let upload = at.and_then(|at| self.uploads.remove(at));
        let too_large = || {
            let why = format!("a body has at most {} bytes", self.body_max);
            Err(Refused::new(Code::REQUEST_ENTITY_TOO_LARGE, why))
        };
        if size1.is_some_and(|size| size as usize > self.body_max) {
            return too_large();
        }
        if block.more && payload.len() != block.size() {
            return Err(Refused::new(Code::BAD_REQUEST, "a block that is not the last is not full"));
        }
        let mut upload = match (block.number, upload) {
            (0, _) => Upload { target: target.clone(), format: *format, body: BytesMut::new(), since: now },
            (number, Some(upload)) if upload.follows(number, block, *format) => upload,
            _ => return Err(Refused::new(Code::REQUEST_ENTITY_INCOMPLETE, "a block before this one is missing")),
        };
        if upload.body.len() + payload.len() > self.body_max {
            return too_large();
        }
        upload.body.extend_from_slice(payload);
        if !block.more {
            return Ok(Progress::Whole(upload.body.freeze()));
        }
        upload.since = now;
        if self.uploads.len() >= UPLOADS_MAX {
            self.uploads.pop_front();
        }
        self.uploads.push_back(upload);
        Ok(Progress::Continue)
    }
}

impl Upload {
    fn follows(&self, number: u32, block: Block, format: Option<u32>) -> bool {
        let from = u64::from(number) * block.size() as u64;
        from == self.body.len() as u64 && format == self.format
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::super::frame::{Kind, number};
    use super::*;

    fn ask(device: &str, payload: &Bytes) -> Ask {
        let mut message = Message::new(Kind::Confirmable, Code::POST, 1);
        let path =
            ["things", device, "properties"].map(|name| (number::URI_PATH, Bytes::copy_from_slice(name.as_bytes())));
        message.options = path.to_vec();
        Ask { payload: payload.clone(), ..Ask::read(&message, "token").unwrap() }
    }

    fn block(number: u32, more: bool) -> Block {
        Block { number, more, exponent: 0 }
    }

    #[test]
    fn blocks_in_order_make_a_body_and_a_gap_does_not() {
        let now = Instant::now();
        let (full, rest) = (Bytes::from_static(b"0123456789abcdef"), Bytes::from_static(b"xyz"));
        let mut uploads = Uploads::new(40);
        let mut take = |number, more, payload: &Bytes| uploads.take(now, &ask("d", payload), block(number, more));
        assert_eq!(take(0, true, &full), Ok(Progress::Continue));
        assert_eq!(take(1, true, &full), Ok(Progress::Continue));
        assert_eq!(
            take(2, false, &rest),
            Ok(Progress::Whole(Bytes::from_static(b"0123456789abcdef0123456789abcdefxyz")))
        );
        assert_eq!(take(1, true, &full).unwrap_err().code, Code::REQUEST_ENTITY_INCOMPLETE);
        assert_eq!(take(0, true, &full), Ok(Progress::Continue));
        assert_eq!(take(2, false, &rest).unwrap_err().code, Code::REQUEST_ENTITY_INCOMPLETE, "a gap");
        assert_eq!(take(0, true, &full), Ok(Progress::Continue));
        assert_eq!(take(0, false, &rest), Ok(Progress::Whole(rest.clone())), "block 0 begins anew");
        assert_eq!(take(0, true, &rest).unwrap_err().code, Code::BAD_REQUEST);
        let announced = Ask { size1: Some(41), ..ask("d", &full) };
        assert_eq!(uploads.take(now, &announced, block(0, true)).unwrap_err().code, Code::REQUEST_ENTITY_TOO_LARGE);
    }

    #[test]
    fn uploads_are_bounded_in_bytes_number_and_time() {
        let now = Instant::now();
        let full = Bytes::from_static(b"0123456789abcdef");
        let mut uploads = Uploads::new(20);
        for device in ["a", "b", "c"] {
            assert_eq!(uploads.take(now, &ask(device, &full), block(0, true)), Ok(Progress::Continue));
        }
        assert_eq!(uploads.uploads.len(), UPLOADS_MAX);
        let mut take = |now, device| uploads.take(now, &ask(device, &full), block(1, true)).unwrap_err().code;
        assert_eq!(take(now, "a"), Code::REQUEST_ENTITY_INCOMPLETE, "the oldest went");
        assert_eq!(take(now, "b"), Code::REQUEST_ENTITY_TOO_LARGE);
        assert_eq!(take(now + AGE_MAX, "c"), Code::REQUEST_ENTITY_INCOMPLETE, "too old");
    }

    #[test]
    fn a_body_is_cut_into_blocks() {
        let body = Bytes::from_static(b"0123456789abcdefXYZ");
        let (first, bytes) = block(0, false).of(&body).unwrap();
        assert_eq!((first.value(), &bytes[..]), (0x08, &b"0123456789abcdef"[..]));
        let (second, bytes) = block(1, false).of(&body).unwrap();
        assert_eq!((second.value(), &bytes[..]), (0x10, &b"XYZ"[..]));
        assert_eq!(block(2, false).of(&body), None);
        assert_eq!(Block { number: u32::MAX, more: false, exponent: 6 }.of(&body), None);
    }
}
