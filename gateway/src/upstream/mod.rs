//! The way upstream: one task a destination reads the bus through a durable cursor of its own, says it in the
//! destination's dialect, and moves the cursor only when the broker has confirmed it.
//!
//! `link.rs` is the connection, `tls.rs` what it trusts, `dialect.rs` the table of dialects with one file each
//! (`native.rs`, `json.rs`). Must not be in here: what devices speak, how the bus keeps its records.

pub mod link;
pub mod tls;
