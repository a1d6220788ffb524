//! Commands and control messages (RTMP 1.0, 5.4 and 7): parsed from messages, and written for the peer.

use bytes::{BufMut, Bytes, BytesMut};

use super::amf3;
use super::frame::{Message, kind};
use crate::media::MediaError;
use crate::media::amf0::Value;
use crate::media::mux::{MessageHeader, write_message};

/// Bytes a command may have; real ones have less than 1 KiB.
pub(super) const COMMAND_MAX: usize = 64 * 1024;

/// User control events (7.1.7).
pub(super) mod event {
    pub(in crate::rtmp) const STREAM_BEGIN: u16 = 0;
    pub(in crate::rtmp) const STREAM_EOF: u16 = 1;
    pub(in crate::rtmp) const PING_REQUEST: u16 = 6;
    pub(in crate::rtmp) const PING_RESPONSE: u16 = 7;
}

/// The chunk stream of control messages (5.4) and the one we put commands on.
const CONTROL_CHUNKS: u8 = 2;
const COMMAND_CHUNKS: u8 = 3;

/// A command: name, transaction, command object, arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    pub(super) name: String,
    /// 0: no answer is wanted.
    pub(super) transaction: f64,
    /// Command object first.
    pub(super) arguments: Vec<Value>,
    pub(super) stream_id: u32,
}

impl Command {
    /// Reads a message of type 20 or 17.
    pub(super) fn parse(message: &Message) -> Result<Self, MediaError> {
        if message.payload.len() > COMMAND_MAX {
            return Err(MediaError::Limit { part: "command", what: "bytes", max: COMMAND_MAX });
        }
        let mut payload = &message.payload[..];
        if let (kind::COMMAND_AMF3, Some((0, rest))) = (message.type_id, payload.split_first()) {
            payload = rest;
        }
        let mut values = amf3::arguments(payload)?.into_iter();
        let Some(Value::String(name)) = values.next() else {
            return Err(MediaError::Malformed { part: "command", what: "no name", at: 0 });
        };
        let transaction = values.next().and_then(|value| value.as_number()).filter(|n| n.is_finite()).unwrap_or(0.0);
        Ok(Self { name, transaction, arguments: values.collect(), stream_id: message.stream_id })
    }

    pub(super) fn object(&self) -> Option<&Value> {
        self.arguments.first()
    }

    /// The text argument after the command object.
    pub(super) fn text(&self) -> Option<&str> {
        self.arguments.get(1).and_then(Value::as_str)
    }
}

/// Writes messages for the peer.
#[derive(Debug)]
pub(super) struct Writer {
    chunk_size: usize,
}

impl Writer {
    /// Before [`set_chunk_size`](Self::set_chunk_size).
    const CHUNK_SIZE_START: usize = 128;

    pub(super) fn new() -> Self {
        Self { chunk_size: Self::CHUNK_SIZE_START }
    }

    pub(super) fn set_chunk_size(&mut self, size: usize, out: &mut BytesMut) {
        self.control(kind::SET_CHUNK_SIZE, &(size as u32).to_be_bytes(), out);
        self.chunk_size = size;
    }

    pub(super) fn window_size(&self, bytes: u32, out: &mut BytesMut) {
        self.control(kind::WINDOW_SIZE, &bytes.to_be_bytes(), out);
    }

    /// With the dynamic limit type.
    pub(super) fn peer_bandwidth(&self, bytes: u32, out: &mut BytesMut) {
        let [a, b, c, d] = bytes.to_be_bytes();
        self.control(kind::PEER_BANDWIDTH, &[a, b, c, d, 2], out);
    }

    pub(super) fn acknowledgement(&self, taken: u32, out: &mut BytesMut) {
        self.control(kind::ACKNOWLEDGEMENT, &taken.to_be_bytes(), out);
    }

    pub(super) fn user_control(&self, event: u16, data: u32, out: &mut BytesMut) {
        let mut payload = BytesMut::with_capacity(6);
        payload.put_u16(event);
        payload.put_u32(data);
        self.control(kind::USER_CONTROL, &payload, out);
    }

    fn control(&self, type_id: u8, payload: &[u8], out: &mut BytesMut) {
        let header = MessageHeader { chunk_stream: CONTROL_CHUNKS, timestamp: 0, type_id, stream_id: 0 };
        write_message(&header, &[payload], self.chunk_size, out);
    }

    /// A command, or with [`kind::DATA`] script data.
    pub(super) fn values(&self, type_id: u8, stream_id: u32, values: &[Value], out: &mut BytesMut) {
        let mut payload = BytesMut::with_capacity(256);
        for value in values {
            value.write(&mut payload);
        }
        let header = MessageHeader { chunk_stream: COMMAND_CHUNKS, timestamp: 0, type_id, stream_id };
        write_message(&header, &[&payload], self.chunk_size, out);
    }

    pub(super) fn command(
        &self,
        name: &str,
        transaction: f64,
        arguments: &[Value],
        stream_id: u32,
        out: &mut BytesMut,
    ) {
        let head = [name.into(), transaction.into()];
        self.values(kind::COMMAND, stream_id, &[&head, arguments].concat(), out);
    }

    /// 7.2.2: what a stream does, or why it does not.
    pub(super) fn on_status(&self, stream_id: u32, level: &str, code: &str, description: &str, out: &mut BytesMut) {
        let arguments = [Value::Null, info(level, code, description)];
        self.command("onStatus", 0.0, &arguments, stream_id, out);
    }
}

/// The information object of answers.
pub(super) fn info(level: &str, code: &str, description: &str) -> Value {
    Value::object([("level", level.into()), ("code", code.into()), ("description", description.into())])
}

/// A user control message: event and its first number.
pub(super) fn user_control(payload: &Bytes) -> Option<(u16, u32)> {
    let event = payload.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    let data = payload.get(2..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes));
    Some((event, data?))
}
