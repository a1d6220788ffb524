//! What well-known topics say about devices, and how each family of firmware wants its commands.
//!
//! One file a dialect, one row in [`DIALECTS`]. A topic belongs to at most one dialect; a topic of none is an ordinary
//! publication that only the exchange sees. A payload that does not fit its topic is an error text: nothing of it is
//! reported or routed. Must not be in here: packets, who may publish what, and what the model says of a value.

mod body;
mod jetlinks;
mod template;
mod thin_edge;
mod thingsboard;

use device_models::{Command, Failure, Report};

pub use template::{Template, TemplateOptions};

/// What a publication said.
#[derive(Debug, PartialEq)]
pub struct Heard<'t> {
    pub reports: Vec<Report>,
    /// The part of the topic under which the device takes its commands.
    pub base: &'t str,
}

/// Who is speaking, and what the adapter knows.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The device that the client itself is.
    pub own: &'a str,
    pub template: Option<&'a Template>,
}

/// A command as a publication.
#[derive(Debug, PartialEq)]
pub struct Downward {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    /// The firmware answers on a reply topic; else its acknowledgement of the delivery is the answer.
    pub replies: bool,
}

/// The dialect's way to say a command.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub command: &'a Command,
    /// What stands for the command's id on the wire.
    pub wire: &'a str,
    /// Where the device last spoke; `None` when it has not yet.
    pub base: Option<&'a str>,
}

pub trait Dialect: Sync {
    fn name(&self) -> &'static str;

    /// `None` when the topic is not of this dialect.
    fn read<'t>(&self, topic: &'t str, payload: &[u8], context: Context<'_>) -> Option<Result<Heard<'t>, String>>;

    fn say(&self, asked: Asked<'_>, context: Context<'_>) -> Result<Downward, Failure>;

    /// Whether ids on the wire are plain numbers.
    fn numbers_ids(&self) -> bool {
        false
    }
}

/// Every dialect, in the order in which topics are held against them.
pub static DIALECTS: &[&dyn Dialect] =
    &[&jetlinks::JetLinks, &thin_edge::ThinEdge, &thingsboard::ThingsBoard, &template::TemplateDialect];

pub use thingsboard::{inward, outward};

/// Whether the text can stand as one level of a topic.
pub fn is_level(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && !text.contains(['/', '+', '#', '\0'])
}

#[cfg(test)]
mod tests;
