//! WHAT a thing is: thing models, values, reports and the message they become.
//!
//! A protocol hears a [`Report`] (a device's own words), [`normalize()`] holds it against the
//! compiled [`Model`] of its thing, and the outcome is a [`Message`]: what travels on the bus, on disk
//! and upstream.
//!
//! Must not be in here: protocols, sockets, clocks, files, threads. The crate knows nobody.

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod command;
mod convert;
pub mod edge;
pub mod message;
pub mod model;
pub mod normalize;
pub mod report;
pub mod value;
pub mod wire;

pub use command::{Command, Failure, Order, Outcome};
pub use message::{Body, Class, Level, Message, Quality, Sample};
pub use model::{Mismatch, Model, ModelError, Models, Property};
pub use normalize::normalize;
pub use report::{Report, Word};
pub use value::Value;
