//! What is known of a thing right now: online or not, the session that reaches it, its latest values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use device_models::{Body, Command, Message, Quality, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Names one connection (or UDP peer) of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u64);

/// The way to the session that speaks for a device.
#[derive(Debug, Clone)]
pub struct Route {
    pub id: RouteId,
    pub adapter: Arc<str>,
    /// Boxed: a channel makes room for 32 of what it carries at once, and every connection has one.
    pub commands: mpsc::Sender<Box<Command>>,
}

/// A property's newest value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latest {
    pub value: Value,
    #[serde(default)]
    pub quality: Quality,
    pub time_us: i64,
}

/// A copy of a thing's state, for the page and the API.
#[derive(Debug, Clone)]
pub struct ThingState {
    pub id: Arc<str>,
    pub model: Arc<device_models::model::Model>,
    pub adapter: Option<Arc<str>>,
    pub online: bool,
    /// When it went online or offline, microseconds since 1970 UTC; 0: not heard of since the start.
    pub since_us: i64,
    pub seen_us: i64,
    pub latest: BTreeMap<Arc<str>, Latest>,
}

/// The changing part of a thing.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) online: bool,
    pub(super) since_us: i64,
    pub(super) seen_us: i64,
    pub(super) route: Option<Route>,
    /// When the last way to it ended.
    pub(super) left: Option<Instant>,
    pub(super) latest: BTreeMap<Arc<str>, Latest>,
    /// The latest values differ from what the store holds.
    pub(super) unsaved: bool,
}

impl State {
    /// Names kept per thing: a device that makes up property names cannot fill the memory.
    const LATEST_MAX: usize = 1_000;

    /// Takes a message's values in.
    pub(super) fn note(&mut self, message: &Message) {
        self.seen_us = self.seen_us.max(message.received_us);
        let Body::Properties(samples) = &message.body else { return };
        for sample in samples {
            let latest = Latest { value: sample.value.clone(), quality: sample.quality, time_us: message.time_us };
            if let Some(known) = self.latest.get_mut(&sample.name) {
                // A late report of an older value does not replace a newer one.
                if known.time_us <= latest.time_us {
                    *known = latest;
                    self.unsaved = true;
                }
            } else if self.latest.len() < Self::LATEST_MAX {
                self.latest.insert(Arc::clone(&sample.name), latest);
                self.unsaved = true;
            }
        }
    }
}
