//! The things of this box: who is declared, who registered itself, who is online, on which session; and how a command
//! finds its way to a device and its answer back.
//!
//! Must not be in here: protocol details (a session turns a command into bytes), sockets, the log's files.

mod catalog;
mod orders;
mod registry;
mod state;

pub use catalog::{Catalog, CatalogThing};
pub use registry::{Declared, Devices, DevicesError, Thing};
pub use state::{Latest, Route, RouteId, ThingState};
