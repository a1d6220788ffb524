//! The thing model: W3C WoT Thing Model 1.1 as a strict JSON profile, compiled into flat tables.
//!
//! A model is a `NAME.tm.json` file. What WoT lacks is said with the prefix `sg:`; the terms are listed at
//! `document`. A file is read once, every flaw in it is told at once with its JSON pointer
//! ([`ModelError`]), and what comes out is a [`Model`]: properties found by a device's spelling or by alias in one step.
//!
//! Inside: reading (`json`, `fields`, `document`, `schema`), what may be said (`shape`), what may be asked
//! (`check`), the set of models (`shelf`). Not inside: holding reports against a model (`normalize`), files and
//! folders (the gateway reads them), JSON-LD processing (an `@context` with the TD 1.1 URI is enough).

mod check;
mod document;
mod fields;
mod json;
mod rules;
mod schema;
mod shape;
mod shelf;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

pub use fields::Flaw;
pub use shape::{Choice, Field, IntType, Kind, Linear, Range, Shape};
pub use shelf::Models;

use crate::edge::Rule;
use crate::message::Level;

/// The `@context` every model must name (WoT Thing Description 1.1, clause 5.3.1.1).
pub const CONTEXT_TD_1_1: &str = "https://www.w3.org/2022/wot/td/v1.1";

/// Bytes of one model file. The largest models in the field have a few hundred properties of about 300 bytes each.
pub const FILE_MAX: usize = 256 * 1024;
/// Properties of one model, actions likewise, events likewise: a person has to read it.
pub const AFFORDANCES_MAX: usize = 1024;
/// The largest `sg:alias`: tables are indexed by it, so it must stay near the number of properties.
pub const ALIAS_MAX: u32 = 4096;
/// Objects in arrays in objects ...: deeper data is not a property any more, and reading recurses.
pub const DEPTH_MAX: usize = 8;
/// Bytes of a model's, property's, action's or event's name: they become topic levels and column names.
pub const NAME_MAX: usize = 128;
/// Models on one shelf: a gateway serves tens of products; each takes some 10 KiB.
pub const MODELS_MAX: usize = 1024;

/// One product's things, compiled. Shared as `Arc<Model>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    name: Arc<str>,
    revision: Arc<str>,
    title: Titles,
    open: bool,
    stream: bool,
    properties: Table<Property>,
    actions: Table<Action>,
    events: Table<Event>,
    by_alias: Box<[Option<u16>]>,
}

/// A title in the default language, and in others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Titles {
    pub text: Box<str>,
    /// Language tag (BCP 47) and text, in the file's order.
    pub others: Box<[(Box<str>, Box<str>)]>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// Stable number within the model, from 1: what the bus, the disk and upstream carry.
    pub alias: u32,
    pub name: Arc<str>,
    /// How devices spell it; the first is what a write sends. Never empty: without `sg:name` it is the name.
    pub spellings: Box<[Box<str>]>,
    pub title: Titles,
    pub shape: Shape,
    pub access: Access,
    /// Between the device's raw number and the value; `None` when the device sends the value itself.
    pub linear: Option<Linear>,
    /// Changes smaller than this (in the property's unit) need not be reported.
    pub deadband: Option<f64>,
    /// What the model itself asks for: `sg:report` and `sg:alarms`.
    pub rules: Box<[Rule]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    ReadOnly,
    ReadWrite,
    WriteOnly,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    pub name: Arc<str>,
    pub spellings: Box<[Box<str>]>,
    pub title: Titles,
    pub input: Option<Shape>,
    pub output: Option<Shape>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub name: Arc<str>,
    pub spellings: Box<[Box<str>]>,
    pub title: Titles,
    pub level: Level,
    pub data: Option<Shape>,
}

/// Why a file is no model. Names the file and, for each flaw, the place in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("{file}: a model file is named NAME.tm.json, NAME of 1..={NAME_MAX} letters, digits, `-`, `_` and `.`")]
    FileName { file: String },
    #[error("{file}: {bytes} bytes; a model file has at most {FILE_MAX}")]
    TooLarge { file: String, bytes: usize },
    #[error("{file}:{line}:{column}: not JSON: {reason}")]
    Syntax { file: String, line: usize, column: usize, reason: String },
    #[error("{file}: {}", list(flaws))]
    Flawed { file: String, flaws: Vec<Flaw> },
    #[error("{file}: a model named `{name}` is already there; rename the file")]
    NameTaken { file: String, name: String },
    #[error("{file}: {MODELS_MAX} models are loaded already, which is the most")]
    TooMany { file: String },
}

/// Why a device's words or an order do not fit the model. Counted and told, never swallowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("model `{model}`: no property is named in it")]
    Empty { model: Arc<str> },
    #[error("model `{model}`: {found} properties at once; the most is {max}")]
    TooMany { model: Arc<str>, found: usize, max: usize },
    #[error("model `{model}`: the {what} has no name, or one of more than {NAME_MAX} bytes")]
    Name { model: Arc<str>, what: &'static str },
    #[error("model `{model}` has no {what} `{name}`{}", suggestion(known))]
    Unknown { model: Arc<str>, what: &'static str, name: String, known: String },
    #[error("model `{model}`: property `{name}` is read-only")]
    ReadOnly { model: Arc<str>, name: Arc<str> },
    #[error("model `{model}`: property `{name}` is write-only")]
    WriteOnly { model: Arc<str>, name: Arc<str> },
    #[error("model `{model}`: property `{name}` is named twice")]
    Twice { model: Arc<str>, name: Arc<str> },
    #[error("model `{model}`: {at} wants {wanted}, not {found}")]
    WrongType { model: Arc<str>, at: String, wanted: String, found: String },
    #[error("model `{model}`: {at} wants {wanted}; {found} is outside")]
    OutOfRange { model: Arc<str>, at: String, wanted: String, found: String },
}

// === impl Model ===

impl Model {
    /// Reads and compiles one model. `file` is named in errors, and without `.tm.json` it is the model's name.
    pub fn parse(file: &str, json: &str) -> Result<Self, ModelError> {
        document::parse(file, json)
    }

    /// The product: the file's name without `.tm.json`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// `version.model` of the file; empty when it has none.
    pub fn revision(&self) -> &Arc<str> {
        &self.revision
    }

    pub fn title(&self) -> &Titles {
        &self.title
    }

    /// `sg:open`: properties, actions and events beyond the model's own are good too.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// `sg:stream`: a thing of this model has a live stream of its own name.
    pub fn has_stream(&self) -> bool {
        self.stream
    }

    /// In the file's order.
    pub fn properties(&self) -> &[Property] {
        &self.properties.entries
    }

    /// By its name or any of a device's spellings.
    pub fn property(&self, spelling: &str) -> Option<&Property> {
        self.properties.find(spelling)
    }

    pub fn property_by_alias(&self, alias: u32) -> Option<&Property> {
        let index = (*self.by_alias.get(alias as usize)?)?;
        self.properties.entries.get(usize::from(index))
    }

    pub fn actions(&self) -> &[Action] {
        &self.actions.entries
    }

    pub fn action(&self, spelling: &str) -> Option<&Action> {
        self.actions.find(spelling)
    }

    pub fn events(&self) -> &[Event] {
        &self.events.entries
    }

    pub fn event(&self, spelling: &str) -> Option<&Event> {
        self.events.find(spelling)
    }
}

// === impl Property ===

impl Property {
    /// The unit as a UCUM code (`Cel`, `kW.h`); `None` for what has none.
    pub fn unit(&self) -> Option<&str> {
        self.shape.unit.as_deref()
    }

    /// The spelling a write or read sends to the device.
    pub fn spelling(&self) -> &str {
        self.spellings.first().map_or(&*self.name, |s| s)
    }
}

impl Access {
    pub const fn readable(self) -> bool {
        !matches!(self, Self::WriteOnly)
    }

    pub const fn writable(self) -> bool {
        !matches!(self, Self::ReadOnly)
    }
}

// === private ===

/// Entries in the file's order, and where each spelling of them is.
#[derive(Debug, Clone, PartialEq)]
struct Table<T> {
    entries: Box<[T]>,
    /// Keys come from the model's file alone, so nobody outside can choose colliding ones.
    by_spelling: HashMap<Box<str>, u16>,
}

impl<T> Table<T> {
    fn find(&self, spelling: &str) -> Option<&T> {
        self.entries.get(usize::from(*self.by_spelling.get(spelling)?))
    }
}

/// All flaws, one a line when there are several.
fn list(flaws: &[Flaw]) -> String {
    if let [flaw] = flaws {
        return flaw.to_string();
    }
    let mut text = format!("{} flaws", flaws.len());
    for flaw in flaws {
        text.push_str("\n    ");
        text.push_str(&flaw.to_string());
    }
    text
}

fn suggestion(known: &str) -> String {
    if known.is_empty() { String::new() } else { format!("; it has {known}") }
}

impl fmt::Display for Titles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
