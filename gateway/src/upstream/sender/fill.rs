//! Filling the window: what the bus has becomes batches, batches become publishes, and things are introduced before
//! them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use device_models::Class;
use device_models::wire::{Catalog, Clock};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::destination::{self, Connection};
use super::super::dialect::{Around, Parcel, Publication, Said, Scope};
use super::super::filter::FILTERED;
use super::super::lane::Lane;
use super::super::queue::{Cut, Now, Pushed};
use super::{CATALOG_PAUSE, Names, PACKET_BESIDE, STORE_PAUSE, Sender};
use crate::bus::BusError;
use crate::clock;
use crate::metrics::Figure;

/// One batch in so many is the backlog's if there is any.
const BACKLOG_EVERY: u64 = 8;

impl Sender {
    /// Hands the link as much as it may have.
    pub(super) async fn fill(&mut self, link: &mut dyn Connection) -> Result<(), String> {
        loop {
            while link.unconfirmed() < self.inflight_max() {
                let Some((mut publication, batch)) = self.outbox.pop_front() else { break };
                self.dialect.depart(&mut publication);
                if link.unconfirmed() == 0 {
                    self.progress = Instant::now();
                }
                let sent = link.send(publication);
                let token = sent.map_err(|error| error.to_string())?;
                self.last_token = token;
                if let Some(batch) = batch {
                    self.window.sent(token, batch);
                }
            }
            if !self.room(link) || self.store_rest.is_some() {
                return Ok(());
            }
            if self.introduce() {
                continue;
            }
            if self.dialect.waits().is_some() {
                return Ok(());
            }
            if let Err(error) = self.pull().await {
                warn!(upstream = self.config.name, %error, "cannot read the bus");
                self.store_rest = Some(Instant::now() + STORE_PAUSE);
                self.status.send_modify(|status| status.error = Some(error.to_string()));
                return Ok(());
            }
            self.corrections.look().await;
            let now = Now { instant: Instant::now(), us: clock::now_us(), connected_us: self.connected_us };
            self.split_what_is_late(now);
            let Some((lane, cut)) = self.cut(now, link.unconfirmed()) else { return Ok(()) };
            self.pack(lane, cut, now)?;
        }
    }

    /// The next batch, if one is full or due: of what comes before what waited, but now and then the other way round, so
    /// that live messages alone cannot keep the backlog for ever.
    fn cut(&mut self, now: Now, unconfirmed: usize) -> Option<(Lane, Cut)> {
        // A quarter of what may be under way is kept free of backlog.
        let max = self.inflight_max();
        let backlog_may = self.pace.may(now.instant) && unconfirmed < max - max / 4;
        let backlog_first = self.turn % BACKLOG_EVERY == BACKLOG_EVERY - 1;
        for asked_first in [true, false] {
            for lane in self.lanes {
                let backlog = self.is_backlog(*lane);
                let first = lane.class == Class::Control || backlog == backlog_first;
                if first != asked_first || (backlog && !backlog_may) {
                    continue;
                }
                let mut limits = self.limits;
                if backlog {
                    limits.records = self.pace.records_max(limits.records);
                    // Where a message is a publication of its own, a batch leaves room for what comes.
                    let alone = !self.dialect.accounts() && !self.dialect.at_most_once();
                    if alone && !destination::gathers(self.place.scheme) {
                        limits.records = limits.records.min((max / 2).max(1));
                    }
                }
                let Some(queue) = self.queues.get_mut(lane.index()) else { continue };
                // Where there are two roads the road decides, so that each is in order: what was taken in before the connection
                // but came to be on disk after it is on the live one.
                let hist = self.reader.is_split(lane.class).then_some(backlog);
                if let Some(cut) = queue.cut(limits, now, hist) {
                    self.turn += 1;
                    return Some((*lane, cut));
                }
            }
        }
        None
    }

    /// Tops the queues up from the bus.
    async fn pull(&mut self) -> Result<(), BusError> {
        for lane in self.lanes {
            let Some(queue) = self.queues.get_mut(lane.index()) else { continue };
            let (records, bytes) = queue.room(self.limits);
            if records == 0 {
                continue;
            }
            let entries = self.reader.next_on(lane.road, lane.class, records, bytes).await?;
            let refused = self.refused.get(usize::from(lane.class.number())).map_or(&[][..], Vec::as_slice);
            let Pushed { unreadable, filtered } = queue.push(entries, refused, Instant::now());
            if unreadable > 0 {
                self.metrics.upstream_dropped(&self.config.name, "unreadable", unreadable);
                self.status.send_modify(|status| status.dropped += unreadable);
            }
            if filtered > 0 {
                self.metrics.add(Figure::Filtered, &[&self.config.name], filtered);
            }
        }
        Ok(())
    }

    /// Turns a cut into publishes in the outbox; what is too large for the broker is split, and said when it cannot be.
    fn pack(&mut self, lane: Lane, mut cut: Cut, now: Now) -> Result<(), String> {
        let span = (cut.first(), cut.through());
        if !self.dialect.accounts() {
            cut.holes.retain(|hole| hole.reason != FILTERED);
        }
        if cut.messages.is_empty() && cut.holes.is_empty() {
            // Nothing of it is wanted, and nobody asks: only the cursor goes on.
            self.window.begin(lane, span, &cut, 0, 0, now.instant);
            self.settle(lane);
            return Ok(());
        }
        let clock = self.corrected(lane.class, &mut cut);
        self.adopt_catalog(now);
        let after = self.around(&cut, now);
        let mut first = span.0;
        let mut parts = VecDeque::from([cut]);
        while let Some(cut) = parts.pop_front() {
            let parcel = Parcel {
                scope: self.scope(),
                epoch: self.epoch,
                class: lane.class,
                hist: cut.hist,
                now_us: now.us,
                clock,
                compression: self.config.compression.into(),
                messages: &cut.messages,
                holes: &cut.holes,
                catalog: &self.names.catalog,
            };
            let said = self.dialect.encode(&parcel).map_err(|error| format!("cannot encode: {error}"))?;
            let Said { mut publications, left_out } = said;
            if destination::gathers(self.place.scheme) && self.dialect.content_type() == "application/json" {
                publications = gathered(&parcel, &publications).into_iter().collect();
            }
            let largest = publications.iter().map(size).max().unwrap_or_default();
            if largest > self.packet_max && !cut.messages.is_empty() {
                if cut.messages.len() == 1 {
                    self.metrics.upstream_dropped(&self.config.name, "oversize", 1);
                    self.status.send_modify(|status| status.dropped += 1);
                }
                let reason = format!("oversize: {largest} bytes, the broker takes {}", self.packet_max);
                let (first, second) = cut.split(&reason);
                if let Some(second) = second {
                    parts.push_front(second);
                }
                parts.push_front(first);
                continue;
            }
            self.count_left_out(&left_out);
            let bytes = publications.iter().map(|publication| publication.payload.len() as u64).sum();
            // What was left out before, between and after them goes with them.
            let through = if parts.is_empty() { span.1 } else { cut.through() };
            let batch = self.window.begin(lane, (first, through), &cut, bytes, publications.len(), now.instant);
            if let Some(origin) = publications.first().and_then(|one| one.origin.as_ref()) {
                self.owe(batch, origin.first, origin.last);
            }
            first = through.saturating_add(1);
            if self.is_backlog(lane) {
                self.pace.sent(cut.messages.len() as u64, bytes);
                if self.dialect.at_most_once() {
                    // Nobody will say when it came: what is not written yet holds the next one back.
                    self.pace.confirmed(now.instant, Duration::ZERO);
                }
            }
            self.outbox.extend(publications.into_iter().map(|publication| (publication, Some(batch))));
        }
        self.outbox.extend(after.into_iter().map(|publication| (publication, None)));
        // What became no publish at all is done as soon as everything before it is.
        self.settle(lane);
        Ok(())
    }

    /// Puts the times right that were taken before the clock was set. How far they can all be trusted: one that stays
    /// wrong makes the batch one of unknown times.
    fn corrected(&self, class: Class, cut: &mut Cut) -> Clock {
        let mut right = true;
        for (seq, message) in &mut cut.messages {
            right &= self.corrections.correct(class, *seq, message);
        }
        if right { clock::quality() } else { Clock::Unknown }
    }

    /// Lets the dialect say what has to go before a cut, and hands back what has to go after it.
    fn around(&mut self, cut: &Cut, now: Now) -> Vec<Publication> {
        let things = &*self.things;
        let scope = Scope { gateway: &self.gateway, upstream: &self.config.name };
        let Around { before, after } = self.dialect.around(scope, now.us, cut, &|id| things.find(id));
        self.outbox.extend(before.into_iter().map(|publication| (publication, None)));
        after
    }

    /// Puts the next thing's introduction into the outbox, if one is to be made.
    fn introduce(&mut self) -> bool {
        if !self.dialect.introduces() {
            return false;
        }
        let scope = Scope { gateway: &self.gateway, upstream: &self.config.name };
        let said = if self.introductions.begin() {
            self.dialect.open(scope, clock::now_us())
        } else {
            self.introductions.look(&*self.things, Instant::now());
            let Some(thing) = self.introductions.next() else {
                self.outbox.append(&mut self.later);
                return !self.outbox.is_empty();
            };
            self.dialect.introduce(scope, clock::now_us(), &self.things.find(&thing.id).unwrap_or(thing))
        };
        let Said { publications, mut left_out } = said;
        for publication in publications {
            if size(&publication) > self.packet_max {
                left_out.push(("oversize", 1));
            } else {
                self.outbox.push_back((publication, None));
            }
        }
        self.count_left_out(&left_out);
        true
    }

    fn count_left_out(&self, left_out: &[(&'static str, u64)]) {
        for (reason, count) in left_out {
            self.metrics.left_out(&self.config.name, reason, *count);
            debug!(upstream = self.config.name, reason, count, "left out: the dialect has no words for it");
        }
    }

    /// Sees that the catalog in use has been published on this connection, and takes a newer one now and then.
    fn adopt_catalog(&mut self, now: Now) {
        if !self.dialect.aliases() {
            return;
        }
        let rested = self.names.adopted.is_none_or(|adopted| now.instant >= adopted + CATALOG_PAUSE);
        if rested && self.things.rev() != self.names.catalog.rev() {
            self.names =
                Names { catalog: Arc::new(self.things.catalog()), published: false, adopted: Some(now.instant) };
        }
        if self.names.published || self.names.catalog.rev() == 0 {
            return;
        }
        let topic = format!("sg/v1/{}/model/{}", self.gateway, self.names.catalog.rev());
        let catalog = Publication::new(topic, self.names.catalog.encode()).retained();
        if size(&catalog) > self.packet_max {
            // Everything goes by name then: larger, but it goes.
            self.names.catalog = Arc::new(Catalog::new(0));
        } else {
            self.outbox.push_back((catalog, None));
        }
        self.names.published = true;
    }
}

/// All that a parcel became as one JSON array, in the order of its numbers.
fn gathered(parcel: &Parcel<'_>, publications: &[Publication]) -> Option<Publication> {
    let topic = publications.first().map(|_| format!("sg/v1/{}/json", parcel.scope.gateway))?;
    let mut payload = Vec::with_capacity(publications.iter().map(|one| one.payload.len() + 1).sum::<usize>() + 1);
    for publication in publications {
        payload.push(if payload.is_empty() { b'[' } else { b',' });
        payload.extend_from_slice(&publication.payload);
    }
    payload.push(b']');
    let (first, last) = parcel.span();
    Some(Publication { origin: Some(parcel.origin(first, last, None)), ..Publication::new(topic, payload) })
}

fn size(publication: &Publication) -> usize {
    publication.topic.len() + publication.payload.len() + PACKET_BESIDE
}
