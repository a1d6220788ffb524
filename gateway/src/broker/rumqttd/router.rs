//! The router and its thread: the only place that may block in it, and the tasks that empty its links.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError, Weak};

use bytes::{BufMut, BytesMut};
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::{Notification, Router, RouterConfig};
use tracing::warn;

use super::{LINKS_MAX, Link, Order, PREFIX, READ_MAX, SEGMENT_BYTES, SEGMENTS, Waiter, Waiters};
use crate::broker::Shared;
use crate::threads::Tasks;

/// Carries out orders until the exchange is gone. The only place that may block in the router.
pub(super) fn carry(orders: &Receiver<Order>, shared: &Weak<Shared>, tasks: &Tasks) -> Result<(), Box<LinkError>> {
    let config = RouterConfig {
        max_connections: LINKS_MAX + 1,
        max_outgoing_packet_count: READ_MAX,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    let router = Router::new(0, config).spawn();
    let (mut publisher, _acknowledgements, _) = LinkBuilder::new("publisher", router.clone()).build()?;
    let mut links: HashMap<Link, (LinkTx, Waiters)> = HashMap::new();
    while let Ok(order) = orders.recv() {
        let link = match &order {
            Order::Publish { number, topic, payload } => {
                let mut numbered = BytesMut::with_capacity(8 + payload.len());
                numbered.put_u64(*number);
                numbered.put_slice(payload);
                publisher.publish(name(topic), numbered.freeze())?;
                continue;
            }
            Order::Subscribe { link, .. } | Order::Unsubscribe { link, .. } | Order::Clean { link, .. } => *link,
        };
        if let Entry::Vacant(entry) = links.entry(link) {
            let (sender, receiver, _) = LinkBuilder::new(&format!("subscriber-{link}"), router.clone()).build()?;
            let waiters = Waiters::default();
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            tasks.spawn("broker-rumqttd", pump(shared, link, receiver, Arc::clone(&waiters), tasks.clone()));
            entry.insert((sender, waiters));
        }
        let Some((sender, waiters)) = links.get_mut(&link) else { continue };
        let wait = |waiter| waiters.lock().unwrap_or_else(PoisonError::into_inner).push_back(waiter);
        match order {
            Order::Publish { .. } => {}
            Order::Subscribe { filter, done, .. } => {
                wait(Waiter::Asked(done));
                sender.subscribe(name(&filter))?;
            }
            Order::Unsubscribe { filter, done, .. } => {
                wait(Waiter::Asked(done));
                sender.unsubscribe(name(&filter))?;
            }
            Order::Clean { filters, .. } => {
                let last = filters.len().saturating_sub(1);
                for (index, filter) in filters.iter().enumerate() {
                    wait(if index == last { Waiter::Clean } else { Waiter::Cleaning });
                    sender.unsubscribe(name(filter))?;
                }
            }
        }
    }
    Ok(())
}

/// Empties a link as fast as the router fills it: how slow its subscriber is shows in the subscriber's own queue.
async fn pump(shared: Arc<Shared>, link: Link, mut receiver: LinkRx, waiters: Waiters, tasks: Tasks) {
    loop {
        let next = tokio::select! {
            next = receiver.next() => next,
            () = tasks.stopping() => return,
        };
        let went_on = match next {
            Ok(Some(Notification::Forward(forward))) => {
                shared.lock().arrived(link, forward.publish.payload);
                Ok(())
            }
            Ok(Some(Notification::DeviceAck(_))) => {
                match waiters.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                    // Who asked may have left since.
                    Some(Waiter::Asked(done)) => drop(done.send(())),
                    Some(Waiter::Clean) => {
                        if let Some(fanout) = &mut shared.lock().fanout {
                            fanout.free.push(link);
                        }
                    }
                    Some(Waiter::Cleaning) | None => {}
                }
                Ok(())
            }
            Ok(Some(Notification::Unschedule)) => receiver.wake().await,
            Ok(Some(Notification::Disconnect(..))) => Err(LinkError::ConnectionAck("a link was closed".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = went_on {
            warn!(%error, link, "a link to rumqttd's router is gone");
            return shared.lock().do_without(&error.to_string());
        }
    }
}

/// A topic or filter as the router can take it: it cuts after the first byte, in the middle of a character that is not
/// ASCII. Wildcards match it as before.
fn name(name: &str) -> String {
    match name.bytes().next() {
        Some(first) if !first.is_ascii() || first == PREFIX => format!("{}{name}", char::from(PREFIX)),
        _ => name.to_owned(),
    }
}
