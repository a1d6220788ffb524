//! The things of this box: who is declared, who registered itself, who is online, on which session; and how a command
//! finds its way to a device and its answer back.
//!
//! Must not be in here: protocol details (a session turns a command into bytes), sockets, the log's files.

mod awaited;
mod catalog;
mod orders;
mod registry;
mod state;

pub use awaited::Sign;
pub use catalog::{Catalog, CatalogThing};
pub use orders::{Delivery, ID_LEN_MAX};
pub use registry::{Declared, Devices, DevicesError, Thing};
pub use state::{Latest, Route, RouteId, ThingState};
