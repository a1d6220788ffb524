//! The devices that a session speaks for, and where their commands come in: made with the first of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use device_models::Command;
use tokio::sync::mpsc;

use super::next_route;
use crate::devices::{Devices, Route, Thing};

/// Commands that may wait for one session.
const COMMANDS_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) route: Route,
    commands: mpsc::Receiver<Box<Command>>,
    things: HashMap<Arc<str>, Arc<Thing>>,
}

impl Line {
    pub(super) fn new(adapter: &Arc<str>) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let route = Route { id: next_route(), adapter: Arc::clone(adapter), commands: sender };
        Self { route, commands, things: HashMap::new() }
    }

    pub(super) fn knows(&self, device: &str) -> bool {
        self.things.contains_key(device)
    }

    pub(super) fn note(&mut self, thing: Arc<Thing>) {
        if self.things.len() < Devices::per_route_max() {
            self.things.insert(Arc::clone(&thing.name), thing);
        }
    }

    pub(super) fn things(&self) -> impl Iterator<Item = &Arc<Thing>> {
        self.things.values()
    }

    /// What the session did not get any more.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Box<Command>> {
        std::iter::from_fn(|| self.commands.try_recv().ok())
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Box<Command>> {
        match self.commands.poll_recv(cx) {
            Poll::Ready(Some(command)) => Poll::Ready(command),
            // It never closes: the route holds a sender.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
