//! Messages as bytes: the record on disk and the batch upstream, both protobuf (`proto/sluicegate.proto`), and the JSON
//! form people read.
//!
//! `message.rs` is the record, `recorder.rs` and `template.rs` its small form behind a template, `batch.rs` the native batch with `rows.rs` and `columns.rs` for its property
//! reports and `compression.rs` for its size, `catalog.rs` what aliases mean, `json.rs` the JSON form, `value.rs` the single value. `generated.rs` comes from the `.proto`; nothing outside
//! this folder names it. Must not be in here: when a batch is closed, where it is sent.

mod batch;
mod catalog;
mod columns;
mod compression;
mod json;
mod message;
mod recorder;
mod rows;
mod template;
mod value;

#[rustfmt::skip]
#[allow(
    clippy::pedantic,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    reason = "generated from proto/sluicegate.proto"
)]
mod generated;

#[cfg(test)]
mod tests;

pub use batch::{Batch, Clock, Decoded, Hole, Meta, encode_batch};
pub use catalog::{Catalog, PropertyName};
pub use compression::{BODY_MAX, Compression};
pub use json::{message_json, time_text};
pub use message::{decode_message, encode_message};
pub use recorder::Recorder;
pub use template::{Record, RecordReader, Template, decode_record};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the record is empty")]
    Empty,
    #[error("version {0} is not known here (this reads 1 and 2)")]
    Version(u32),
    #[error("not the protobuf it should be: {0}")]
    Protobuf(String),
    #[error("{what} has number {number}, which is not known")]
    Number { what: &'static str, number: u32 },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("the body's CRC-32C is {found:08x}, the batch says {said:08x}")]
    Crc { said: u32, found: u32 },
    #[error("compression {0} is not known here")]
    Codec(u32),
    #[error("the compressed body cannot be read: {0}")]
    Packed(&'static str),
    #[error("thing alias {alias} is not in catalog revision {rev}")]
    Thing { alias: u32, rev: u32 },
    #[error("property alias {alias} of model {model} is not in catalog revision {rev}")]
    Property { model: String, alias: u32, rev: u32 },
    #[error("the batch needs catalog revision {needed}, at hand is {have}")]
    Catalog { needed: u32, have: u32 },
    #[error("a frame's columns do not fit its rows: {0}")]
    Shape(&'static str),
    #[error("sequence number {0} stands twice, or outside of the batch")]
    Order(u64),
    #[error("the batch covers {said} sequence numbers, its frames {found}")]
    Count { said: u64, found: u64 },
}

impl From<prost::DecodeError> for WireError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Protobuf(error.to_string())
    }
}
