//! Builds without the feature `rumqttd`: the second core's seam, and nothing that could be behind it.

#![allow(clippy::unused_self, clippy::unused_async, reason = "the same seam as with the feature")]

use std::io;
use std::sync::Arc;

use protocols::Refusal;
use protocols::exchange::Publication;

use super::Shared;
use super::core::Core;
use super::sessions::Queued;
use super::topics::Slot;
use crate::threads::Tasks;

/// Never made.
#[derive(Debug)]
pub(super) enum Fanout {}

#[derive(Debug)]
pub(super) enum Flight {}

pub(super) fn start(_shared: &Arc<Shared>, _tasks: &Tasks) -> io::Result<()> {
    Err(io::Error::other("`broker.core = \"rumqttd\"` needs a build with the feature `rumqttd`"))
}

impl Fanout {
    pub(super) fn is_busy(&self, _publication: &Publication) -> bool {
        match *self {}
    }

    pub(super) fn flight(&mut self, _publication: &Publication) -> Option<Flight> {
        match *self {}
    }

    pub(super) fn expect(
        &self,
        flight: &mut Flight,
        _slot: Slot,
        _copies: usize,
        _message: Option<Queued>,
    ) -> Option<Queued> {
        match *flight {}
    }

    pub(super) fn release(&mut self, _slot: Slot) {
        match *self {}
    }
}

impl Core {
    pub(super) fn launch(&mut self, flight: Flight) {
        match flight {}
    }
}

impl Shared {
    pub(super) async fn link(&self, _slot: Slot, _connection: u64, _filter: &str) -> Result<(), Refusal> {
        Ok(())
    }

    pub(super) async fn unlink(&self, _slot: Slot, _connection: u64, _filter: &str) {}
}
