//! OUR contract with firmware: frames on a raw wire, a link that loses nothing, firmware update.
//!
//! For devices whose firmware is written for this gateway (over UART, RS-485, TCP or any other byte pipe). [`frame`]
//! finds packets in bytes, [`link`] numbers, acknowledges and repeats them, [`update`] moves an image and proves it;
//! [`message`] is what is said, from `proto/firmware.proto`. Both ends are here, so firmware authors can use it alone.
//!
//! Must not be in here: sockets, serial ports, clocks, threads, flash drivers, and anything of the gateway or its models.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod frame;
pub mod link;
#[rustfmt::skip]
#[allow(
    clippy::pedantic,
    clippy::module_inception,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    reason = "generated from proto/firmware.proto"
)]
pub mod message;
pub mod update;
