//! Messages as bytes: the record on disk and the batch upstream, both protobuf (`proto/sluicegate.proto`), and the JSON
//! form people read.
//!
//! `message.rs` is the record, `json.rs` the JSON form, `value.rs` the single value. `generated.rs` comes from the `.proto`; nothing outside
//! this folder names it. Must not be in here: when a batch is closed, where it is sent.

mod json;
mod message;
mod value;

#[rustfmt::skip]
#[allow(
    clippy::pedantic,
    dead_code,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    reason = "generated from proto/sluicegate.proto"
)]
mod generated;

#[cfg(test)]
mod tests;

pub use json::{message_json, time_text};
pub use message::{decode_message, encode_message};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the record is empty")]
    Empty,
    #[error("version {0} is not known here (this reads version 1)")]
    Version(u32),
    #[error("not the protobuf it should be: {0}")]
    Protobuf(String),
    #[error("{what} has number {number}, which is not known")]
    Number { what: &'static str, number: u32 },
    #[error("{0} is missing")]
    Missing(&'static str),
}

impl From<prost::DecodeError> for WireError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Protobuf(error.to_string())
    }
}
