//! What the destination says: what it has, which moves the cursor, and what it asks for.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::destination::{Connection, Event};
use super::super::dialect::{Heard, Scope};
use super::super::lane::Lane;
use super::super::queue::RECORDS_MAX;
use super::super::turns::Job;
use super::super::window::Done;
use super::{End, Sender};
use crate::clock;

/// Arrivals that the destination is not told of at a time, and their bytes. Brokers have less than that under way.
const UNACKNOWLEDGED_MAX: usize = 1_000;
const UNACKNOWLEDGED_BYTES_MAX: usize = 1 << 20;

impl Sender {
    pub(super) async fn hear(&mut self, link: &mut dyn Connection, event: Event) -> Option<End> {
        match event {
            Event::Confirmed(token) => self.confirmed(token),
            Event::Refused { token, reason } => return self.refused(token, reason).await,
            Event::Arrived(arrival) => {
                let end = self.arrived(&arrival.topic, &arrival.payload);
                self.unacknowledged.push_back(arrival);
                let bytes: usize = self.unacknowledged.iter().map(|arrival| arrival.payload.len()).sum();
                // What has QoS 0 is not held back anyway.
                let too_much = self.unacknowledged.len() > UNACKNOWLEDGED_MAX || bytes > UNACKNOWLEDGED_BYTES_MAX;
                return if self.down.has_room() || too_much { self.acknowledge(link).or(end) } else { end };
            }
            Event::Subscribed => debug!(upstream = self.config.name, "commands may come"),
            Event::NotSubscribed(reason) => {
                warn!(
                    upstream = self.config.name,
                    reason, "the broker refuses the subscription: no commands from there"
                );
                let error = format!("no commands: the broker refuses the subscription ({reason})");
                self.status.send_modify(|status| status.error = Some(error));
            }
            Event::Down { reason, rest } => return Some(End::Lost { reason, rest }),
            // With QoS 0 that is all the progress there is.
            Event::Sent => self.progress = Instant::now(),
            Event::Up { .. } => {}
        }
        None
    }

    /// Tells the destination that everything that arrived is taken. While the commands find no room it is not told, so
    /// that it holds back the next ones.
    pub(super) fn acknowledge(&mut self, link: &mut dyn Connection) -> Option<End> {
        while let Some(arrival) = self.unacknowledged.pop_front() {
            if let Err(error) = link.acknowledge(arrival) {
                return Some(End::lost(error.to_string()));
            }
        }
        None
    }

    /// How long this upstream's commands wait for a thing that is away, if it says so.
    fn command_wait(&self) -> Option<Duration> {
        self.config.commands_wait_seconds.map(Duration::from_secs)
    }

    fn arrived(&mut self, topic: &str, payload: &[u8]) -> Option<End> {
        self.stamp = clock::now_us().max(self.stamp + 1);
        let scope = Scope { gateway: &self.gateway, upstream: &self.config.name };
        match self.dialect.hear(scope, topic, payload, self.stamp) {
            Heard::Command { thing, .. } if !self.dialect.addressed() && self.things.model(&thing).is_empty() => {}
            Heard::Command { thing, command, receipt } => {
                self.outbox.extend(receipt.map(|receipt| (*receipt, None)));
                // Their platforms give commands up by themselves, unless it is said that they do not.
                let wait = Some(self.command_wait().unwrap_or_default());
                let job = command.map_or_else(Job::Refuse, |command| Job::Order { command, wait });
                self.down.take(&thing, job);
            }
            Heard::Received(receipt) => self.received(receipt),
            Heard::Introduce => {
                self.introductions.reset();
                self.later.append(&mut self.outbox);
            }
            Heard::Say(publication) => self.outbox.push_back((*publication, None)),
            Heard::Refused(reason) => {
                self.metrics.left_out(&self.config.name, "refused", 1);
                warn!(upstream = self.config.name, topic, reason, "the platform does not take it");
            }
            Heard::Leave(reason) => return Some(End::Left(reason)),
            Heard::Patient { thing, command, wait } => {
                self.down.take(&thing, Job::Order { command, wait: wait.or(self.command_wait()) });
            }
            Heard::Shadow { thing, change } => self.down.take(&thing, Job::Change(change)),
            Heard::Nothing => {}
            Heard::Unreadable(reason) => {
                self.metrics.command("unreadable", Duration::ZERO);
                warn!(upstream = self.config.name, topic, reason, "nobody can tell what is wanted");
            }
        }
        None
    }

    /// Before a stop: receipts alone count.
    pub(super) fn last_arrived(&mut self, topic: &str, payload: &[u8]) {
        if self.receipts.patience.is_none() {
            return;
        }
        let scope = Scope { gateway: &self.gateway, upstream: &self.config.name };
        if let Heard::Received(receipt) = self.dialect.hear(scope, topic, payload, self.stamp) {
            self.received(receipt);
        }
    }

    pub(super) fn confirmed(&mut self, token: u64) {
        self.progress = Instant::now();
        self.useful = true;
        self.refused_in_row = 0;
        self.limits.records = (self.limits.records * 2).min(RECORDS_MAX);
        if let Some(lane) = self.window.confirmed(token) {
            self.settle(lane);
        }
    }

    /// Moves the cursor over everything of a lane that waits for nothing.
    pub(super) fn settle(&mut self, lane: Lane) {
        while let Some(done) = self.window.settled(lane) {
            self.done(done);
        }
    }

    fn done(&mut self, done: Done) {
        let class = done.lane.class;
        self.reader.commit_span(class, done.first, done.through);
        if let Some(refused) = self.refused.get_mut(usize::from(class.number())) {
            refused.retain(|(seq, _)| *seq < done.first || *seq > done.through);
        }
        if self.is_backlog(done.lane) && !self.dialect.at_most_once() {
            let now = Instant::now();
            for _ in 0..done.batches {
                self.pace.confirmed(now, now - done.sent);
            }
        }
        self.metrics.sent(&self.config.name, done.messages, done.bytes);
        self.status.send_modify(|status| {
            status.messages += done.messages;
            status.bytes += done.bytes;
            status.batches += done.batches;
        });
    }
}
