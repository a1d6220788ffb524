//! Filling the window: what the bus has becomes batches, batches become publishes, and things are introduced before
//! them.

use std::collections::VecDeque;
use std::sync::Arc;

use device_models::Class;
use device_models::wire::Catalog;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::destination::{self, Connection};
use super::super::dialect::{Parcel, Publication, Said};
use super::super::queue::{Cut, Now};
use super::{CATALOG_PAUSE, Names, PACKET_BESIDE, STORE_PAUSE, Sender};
use crate::bus::BusError;
use crate::clock;

impl Sender {
    /// Hands the link as much as it may have.
    pub(super) async fn fill(&mut self, link: &mut dyn Connection) -> Result<(), String> {
        loop {
            while link.unconfirmed() < self.inflight_max() {
                let Some((publication, batch)) = self.outbox.pop_front() else { break };
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
            if let Err(error) = self.pull().await {
                warn!(upstream = self.config.name, %error, "cannot read the bus");
                self.store_rest = Some(Instant::now() + STORE_PAUSE);
                self.status.send_modify(|status| status.error = Some(error.to_string()));
                return Ok(());
            }
            let now = Now { instant: Instant::now(), us: clock::now_us(), connected_us: self.connected_us };
            let limits = self.limits;
            let cut = Class::ALL
                .into_iter()
                .zip(&mut self.queues)
                .find_map(|(class, queue)| queue.cut(limits, now).map(|cut| (class, cut)));
            let Some((class, cut)) = cut else { return Ok(()) };
            self.pack(class, cut, now)?;
        }
    }

    /// Tops the queues up from the bus.
    async fn pull(&mut self) -> Result<(), BusError> {
        for ((class, queue), refused) in Class::ALL.into_iter().zip(&mut self.queues).zip(&self.refused) {
            let (records, bytes) = queue.room(self.limits);
            if records > 0 {
                let unreadable = queue.push(self.reader.next(class, records, bytes).await?, refused);
                if unreadable > 0 {
                    self.metrics.dropped("unreadable", unreadable);
                    self.status.send_modify(|status| status.dropped += unreadable);
                }
            }
        }
        Ok(())
    }

    /// Turns a cut into publishes in the outbox; what is too large for the broker is split, and said when it cannot be.
    fn pack(&mut self, class: Class, cut: Cut, now: Now) -> Result<(), String> {
        self.adopt_catalog(now);
        let mut parts = VecDeque::from([cut]);
        while let Some(cut) = parts.pop_front() {
            let parcel = Parcel {
                scope: self.scope(),
                epoch: self.epoch,
                class,
                hist: cut.hist,
                now_us: now.us,
                clock: self.clock,
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
                    self.metrics.dropped("oversize", 1);
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
            let batch = self.window.begin(class, &cut, bytes, publications.len());
            self.outbox.extend(publications.into_iter().map(|publication| (publication, Some(batch))));
        }
        // What became no publish at all is done as soon as everything before it is.
        for class in Class::ALL {
            if let Some(done) = self.window.settled(class) {
                self.done(done);
            }
        }
        Ok(())
    }

    /// Puts the next thing's introduction into the outbox, if one is to be made.
    fn introduce(&mut self) -> bool {
        if !self.dialect.introduces() {
            return false;
        }
        self.introductions.look(&*self.things, Instant::now());
        let Some(thing) = self.introductions.next() else { return false };
        let Said { publications, mut left_out } = self.dialect.introduce(self.scope(), &thing);
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
