//! Our side of the router, under the exchange's lock: what is in it, who owns which link, what must still come out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Instant;

use protocols::Refusal;
use protocols::exchange::Publication;
use tokio::sync::oneshot;

use super::{
    Copies, FILTERS_MAX, FLIGHT_BYTES_MAX, FLIGHTS_MAX, Fanout, Flight, LINK_FILTERS_MAX, LINKS_MAX, Lane, Link, Order,
    TOPICS_MAX, not_answering,
};
use crate::broker::sessions::Queued;
use crate::broker::topics::Slot;

impl Fanout {
    /// Whether a publisher must wait until the router has caught up.
    pub(in crate::broker) fn is_busy(&self, publication: &Publication) -> bool {
        let bytes = flight_bytes(publication);
        self.flights.len() >= FLIGHTS_MAX || self.bytes > 0 && self.bytes + bytes > FLIGHT_BYTES_MAX
    }

    /// A message about to go through the router; `None` when our own core must route it.
    pub(in crate::broker) fn flight(&mut self, publication: &Publication) -> Option<Flight> {
        if publication.topic.starts_with('$') || self.is_busy(publication) {
            return None;
        }
        if !self.topics.contains(&publication.topic) {
            if self.topics.len() >= TOPICS_MAX {
                return None;
            }
            self.topics.insert(Arc::clone(&publication.topic));
        }
        let (publication, bytes) = (publication.clone(), flight_bytes(publication));
        Some(Flight { publication, bytes, started: Instant::now(), copies: Vec::new() })
    }

    /// Notes what the router owes this session. Gives the message back when the session has no link.
    pub(in crate::broker) fn expect(
        &self,
        flight: &mut Flight,
        slot: Slot,
        copies: usize,
        message: Option<Queued>,
    ) -> Option<Queued> {
        let Some(lane) = self.lanes.get(&slot) else { return message };
        flight.copies.push(Copies { link: lane.link, slot, left: copies, message });
        None
    }

    /// The session's connection is gone.
    pub(in crate::broker) fn release(&mut self, slot: Slot) {
        let Some(lane) = self.lanes.remove(&slot) else { return };
        for flight in self.flights.values_mut() {
            flight.copies.retain(|copies| copies.link != lane.link);
        }
        self.land();
        self.clean(lane.link, lane.filters);
    }

    pub(super) fn clean(&mut self, link: Link, filters: BTreeSet<Arc<str>>) {
        if filters.is_empty() {
            self.free.push(link);
        } else if let Err(error) = self.orders.try_send(Order::Clean { link, filters })
            && let TrySendError::Full(Order::Clean { link, filters }) = error
        {
            self.unclean.push((link, filters));
        }
    }

    /// Takes flights off that owe nobody anything. True when there was one.
    pub(super) fn land(&mut self) -> bool {
        let before = self.flights.len();
        let bytes = &mut self.bytes;
        self.flights.retain(|_, flight| {
            let flying = !flight.copies.is_empty();
            *bytes -= if flying { 0 } else { flight.bytes };
            flying
        });
        self.flights.len() < before
    }

    pub(super) fn send(&mut self, flight: Flight) -> Result<(), Flight> {
        let (topic, payload) = (Arc::clone(&flight.publication.topic), flight.publication.payload.clone());
        if self.orders.try_send(Order::Publish { number: self.next, topic, payload }).is_err() {
            return Err(flight);
        }
        self.bytes += flight.bytes;
        self.flights.insert(self.next, flight);
        self.next += 1;
        Ok(())
    }

    /// Asks the router for a filter; `None` when it has it already.
    pub(super) fn subscribe(&mut self, slot: Slot, filter: &str) -> Result<Option<oneshot::Receiver<()>>, Refusal> {
        if !self.filters.contains(filter) && self.filters.len() >= FILTERS_MAX {
            return Err(Refusal::Limit(format!("{FILTERS_MAX} filters in this core")));
        }
        let link = match self.lanes.get(&slot) {
            Some(lane) if lane.filters.contains(filter) => return Ok(None),
            Some(lane) if lane.filters.len() >= LINK_FILTERS_MAX => {
                return Err(Refusal::Limit(format!("{LINK_FILTERS_MAX} filters of one connection in this core")));
            }
            Some(lane) => lane.link,
            None => {
                let link = self.link()?;
                self.lanes.insert(slot, Lane { link, filters: BTreeSet::new() });
                link
            }
        };
        let filter: Arc<str> = Arc::from(filter);
        let (done, answer) = oneshot::channel();
        if self.orders.try_send(Order::Subscribe { link, filter: Arc::clone(&filter), done }).is_err() {
            return Err(not_answering());
        }
        self.filters.insert(Arc::clone(&filter));
        if let Some(lane) = self.lanes.get_mut(&slot) {
            lane.filters.insert(filter);
        }
        Ok(Some(answer))
    }

    fn link(&mut self) -> Result<Link, Refusal> {
        if let Some(link) = self.free.pop() {
            return Ok(link);
        }
        if self.made >= LINKS_MAX {
            return Err(Refusal::Limit(format!("{LINKS_MAX} subscribing connections in this core")));
        }
        self.made += 1;
        Ok(self.made - 1)
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, filter: &str) -> Option<(Link, oneshot::Receiver<()>)> {
        let lane = self.lanes.get_mut(&slot)?;
        let filter = lane.filters.take(filter)?;
        let (done, answer) = oneshot::channel();
        let order = Order::Unsubscribe { link: lane.link, filter: Arc::clone(&filter), done };
        if self.orders.try_send(order).is_err() {
            // The link stays subscribed; what comes of it has no taker.
            lane.filters.insert(filter);
            return None;
        }
        Some((lane.link, answer))
    }
}

/// What the router's log counts of a message, and somewhat more.
fn flight_bytes(publication: &Publication) -> usize {
    publication.topic.len() + publication.payload.len() + 32
}
