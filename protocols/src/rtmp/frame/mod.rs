//! The chunk stream (RTMP 1.0, 5.3): bytes to messages. The other way is [`crate::media::mux::write_message`].
//!
//! Takes payload off the buffer as it comes, so a peer's chunk size costs no memory; what is kept is bounded per message
//! and in all. Set Chunk Size and Abort are obeyed here, because they change what the next bytes mean.

use bytes::{Buf, Bytes, BytesMut};

/// Chunk streams a peer may use; encoders use fewer than ten.
pub const CHUNK_STREAMS_MAX: usize = 64;

/// Chunk sizes above this mean this: no message is longer (5.4.1).
pub const CHUNK_SIZE_MAX: u32 = 0xff_ffff;
/// Bytes set aside at a message's first chunk: a message's length is the peer's word, its bytes are not there yet.
const RESERVE_MAX: usize = 1 << 20;

/// What a peer's chunk size is before it says another.
pub const CHUNK_SIZE_START: u32 = 128;

/// Message types (5.4, 7.1).
pub mod kind {
    pub const SET_CHUNK_SIZE: u8 = 1;
    pub const ABORT: u8 = 2;
    pub const ACKNOWLEDGEMENT: u8 = 3;
    pub const USER_CONTROL: u8 = 4;
    pub const WINDOW_SIZE: u8 = 5;
    pub const PEER_BANDWIDTH: u8 = 6;
    pub const AUDIO: u8 = 8;
    pub const VIDEO: u8 = 9;
    pub const DATA_AMF3: u8 = 15;
    pub const COMMAND_AMF3: u8 = 17;
    pub const DATA: u8 = 18;
    pub const COMMAND: u8 = 20;
    pub const AGGREGATE: u8 = 22;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub type_id: u8,
    pub stream_id: u32,
    /// Milliseconds, wrapping.
    pub timestamp: u32,
    pub payload: Bytes,
}

/// What breaks a chunk stream for good: the bytes after it have no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("message of {len} bytes, at most {max} are taken")]
    MessageTooLong { len: usize, max: usize },
    #[error("more than {max} bytes of unfinished messages")]
    HeldTooMuch { max: usize },
    #[error("more than {CHUNK_STREAMS_MAX} chunk streams")]
    TooManyStreams,
    #[error("chunk stream {id} begins with a header of type {fmt}")]
    NoHeader { id: u32, fmt: u8 },
    #[error("chunk stream {id}: a new message before the last one was whole")]
    Unfinished { id: u32 },
    #[error("chunk size {size}")]
    ChunkSize { size: u32 },
}

/// Reads one peer's chunk stream.
#[derive(Debug)]
pub struct ChunkReader {
    chunk_size: u32,
    message_max: usize,
    streams: Vec<ChunkStream>,
    /// The chunk whose payload is being taken: its stream's place and the bytes left.
    current: Option<(usize, usize)>,
    /// Bytes of unfinished messages.
    held: usize,
    /// Bytes taken in all.
    taken: u64,
}

#[derive(Debug, Default)]
struct ChunkStream {
    id: u32,
    length: usize,
    type_id: u8,
    stream_id: u32,
    timestamp: u32,
    delta: u32,
    /// The extended timestamp of the last header that had one.
    extended: Option<u32>,
    partial: BytesMut,
    /// A message has begun and is not whole.
    begun: bool,
}

// === impl ChunkReader ===

impl ChunkReader {
    pub fn new(message_max: usize) -> Self {
        Self { chunk_size: CHUNK_SIZE_START, message_max, streams: Vec::new(), current: None, held: 0, taken: 0 }
    }

    /// Bytes taken so far: what acknowledgements count.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Gives back memory that a peer which only sends control messages from here on does not need.
    pub fn shrink(&mut self) {
        self.streams.shrink_to_fit();
    }

    /// Bytes it holds beside itself.
    pub fn memory(&self) -> usize {
        self.streams.capacity() * size_of::<ChunkStream>()
            + self.streams.iter().map(|s| s.partial.capacity()).sum::<usize>()
    }

    /// The next whole message; `None` when more bytes are needed.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, FrameError> {
        loop {
            if self.current.is_none() && !self.header(buffer)? {
                return Ok(None);
            }
            let Some(message) = self.payload(buffer)? else {
                if self.current.is_some() {
                    return Ok(None);
                }
                continue;
            };
            if !self.obey(&message)? {
                return Ok(Some(message));
            }
        }
    }

    /// Takes a chunk header off the buffer if it is all there.
    fn header(&mut self, buffer: &mut BytesMut) -> Result<bool, FrameError> {
        let Some(head) = Head::parse(buffer) else { return Ok(false) };
        let known = self.streams.iter().position(|stream| stream.id == head.id);
        let place = match known {
            Some(place) => place,
            // librtmp begins its control stream with a type 1 header.
            None if head.fmt > 1 => return Err(FrameError::NoHeader { id: head.id, fmt: head.fmt }),
            None if self.streams.len() == CHUNK_STREAMS_MAX => return Err(FrameError::TooManyStreams),
            None => {
                self.streams.push(ChunkStream { id: head.id, ..ChunkStream::default() });
                self.streams.len() - 1
            }
        };
        let Some(stream) = self.streams.get_mut(place) else { return Ok(false) };
        let Some(extended_len) = stream.extended_len(&head, buffer) else { return Ok(false) };
        stream.begin_chunk(&head, self.message_max)?;
        let left = stream.length.saturating_sub(stream.partial.len()).min(self.chunk_size as usize);
        let header_len = head.len + extended_len;
        buffer.advance(header_len);
        self.taken += header_len as u64;
        self.current = Some((place, left));
        Ok(true)
    }

    /// Takes what there is of the current chunk's payload; a message when it is whole.
    fn payload(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, FrameError> {
        let Some((place, left)) = self.current else { return Ok(None) };
        let Some(stream) = self.streams.get_mut(place) else { return Ok(None) };
        let now = left.min(buffer.len());
        let Some(piece) = buffer.get(..now) else { return Ok(None) };
        self.taken += now as u64;
        self.current = (now < left).then_some((place, left - now));
        if stream.partial.is_empty() {
            // A buffer of its own and of its size: a frame is kept until the next key frame, and would keep the driver's
            // whole buffer with it.
            stream.partial.reserve(stream.length.min(RESERVE_MAX));
        }
        self.held += now;
        let held_max = self.message_max.saturating_mul(2);
        if self.held > held_max {
            return Err(FrameError::HeldTooMuch { max: held_max });
        }
        stream.partial.extend_from_slice(piece);
        buffer.advance(now);
        if stream.partial.len() < stream.length {
            return Ok(None);
        }
        self.held -= stream.partial.len();
        let whole = std::mem::take(&mut stream.partial).freeze();
        Ok(Some(stream.message(whole)))
    }

    /// Carries out what changes the framing. True for such a message.
    fn obey(&mut self, message: &Message) -> Result<bool, FrameError> {
        let number = || message.payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        match message.type_id {
            kind::SET_CHUNK_SIZE => match number() {
                Some(size @ 1..0x8000_0000) => self.chunk_size = size.min(CHUNK_SIZE_MAX),
                other => return Err(FrameError::ChunkSize { size: other.unwrap_or(0) }),
            },
            kind::ABORT => {
                if let Some(stream) = self.streams.iter_mut().find(|stream| Some(stream.id) == number()) {
                    self.held -= stream.partial.len();
                    stream.partial = BytesMut::new();
                    stream.begun = false;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

// === impl ChunkStream ===

impl ChunkStream {
    /// Bytes of extended timestamp after this header; `None` when that cannot be told yet.
    ///
    /// In type 3 chunks some encoders repeat it (as delta or as time), others leave it out: it is there if it is equal.
    fn extended_len(&mut self, head: &Head, buffer: &[u8]) -> Option<usize> {
        let word = || buffer.get(head.len..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes));
        match (head.time, self.extended) {
            (Some(0xff_ffff), _) => {
                self.extended = Some(word()?);
                Some(4)
            }
            (Some(_), _) => {
                self.extended = None;
                Some(0)
            }
            (None, Some(before)) => Some(if [before, self.timestamp].contains(&word()?) { 4 } else { 0 }),
            (None, None) => Some(0),
        }
    }

    fn begin_chunk(&mut self, head: &Head, message_max: usize) -> Result<(), FrameError> {
        if self.begun {
            // Types 1 and 2 are taken as "goes on", as long as they tell no other length.
            let other_length = head.message.is_some_and(|(length, _)| length != self.length);
            return if head.fmt == 0 || other_length { Err(FrameError::Unfinished { id: self.id }) } else { Ok(()) };
        }
        let time = head.time.map(|time| if time == 0xff_ffff { self.extended.unwrap_or(time) } else { time });
        match (head.fmt, time) {
            (0, Some(time)) => {
                self.timestamp = time;
                // 5.3.1.2.4: a type 3 that begins a message after a type 0 uses that time as its delta; ffmpeg counts
                // on it. Nobody means it with an extended time.
                self.delta = if self.extended.is_some() { 0 } else { time };
            }
            (_, Some(delta)) => {
                self.delta = delta;
                self.timestamp = self.timestamp.wrapping_add(delta);
            }
            (_, None) => self.timestamp = self.timestamp.wrapping_add(self.delta),
        }
        if let Some((length, type_id)) = head.message {
            (self.length, self.type_id) = (length, type_id);
        }
        if let Some(stream_id) = head.stream_id {
            self.stream_id = stream_id;
        }
        if self.length > message_max {
            return Err(FrameError::MessageTooLong { len: self.length, max: message_max });
        }
        self.begun = true;
        Ok(())
    }

    fn message(&mut self, payload: Bytes) -> Message {
        self.begun = false;
        Message { type_id: self.type_id, stream_id: self.stream_id, timestamp: self.timestamp, payload }
    }
}

/// A chunk header as it stands in the bytes.
#[derive(Debug)]
struct Head {
    fmt: u8,
    id: u32,
    /// Types 0 to 2: the 24-bit time field.
    time: Option<u32>,
    /// Types 0 and 1: length and type.
    message: Option<(usize, u8)>,
    /// Type 0.
    stream_id: Option<u32>,
    /// Bytes without the extended timestamp.
    len: usize,
}

impl Head {
    /// 5.3.1.1 and 5.3.1.2; `None` when bytes are missing.
    fn parse(buffer: &[u8]) -> Option<Self> {
        let &first = buffer.first()?;
        let fmt = first >> 6;
        let (id, basic_len) = match first & 0x3f {
            0 => (64 + u32::from(*buffer.get(1)?), 2),
            1 => (64 + u32::from(*buffer.get(1)?) + 256 * u32::from(*buffer.get(2)?), 3),
            small => (u32::from(small), 1),
        };
        let message_len = match fmt {
            0 => 11,
            1 => 7,
            2 => 3,
            _ => 0,
        };
        let fields = buffer.get(basic_len..basic_len + message_len)?;
        let u24 = |bytes: &[u8]| bytes.iter().fold(0u32, |number, &byte| number << 8 | u32::from(byte));
        let message = fields.get(3..6).zip(fields.get(6)).map(|(length, &type_id)| (u24(length) as usize, type_id));
        Some(Self {
            fmt,
            id,
            time: fields.get(..3).map(u24),
            message,
            stream_id: fields.get(7..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_le_bytes(*bytes)),
            len: basic_len + message_len,
        })
    }
}

#[cfg(test)]
mod tests;
