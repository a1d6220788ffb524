//! A stream thread's `main`: takes what the core sends it, one order after the other. Must not be in here: what an order
//! does to a stream (`hub.rs`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_models::Report;
use tokio::sync::mpsc;

use super::directory::Shared;
use super::hub::Hub;
use super::{Order, fanout, feed, ingest};
use crate::threads;

/// How long cameras' last words may wait for the intake when the gateway stops.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// A thread's `main`: takes what the core sends it until it is told to stop.
pub(super) async fn run(
    index: usize,
    name: String,
    cpu: usize,
    shared: Arc<Shared>,
    reports: mpsc::Sender<Report>,
    mut orders: mpsc::Receiver<Order>,
) {
    let hub = Rc::new(Hub::new(index, name, cpu, shared, reports));
    hub.tell();
    let flushing = threads::spawn_local(fanout::run(hub.clone()));
    let saying = threads::spawn_local(hub.unsaid.clone().run());
    while let Some(order) = orders.recv().await {
        match order {
            Order::Publish { stream, handover } => {
                hub.shared.arrived(&stream);
                threads::spawn_local(ingest::run(hub.clone(), stream, *handover));
            }
            Order::Watch { stream, container, handover } => {
                hub.shared.arrived(&stream);
                hub.watch(&stream, container, *handover);
            }
            Order::Feed { stream, origin, silence, reply } => {
                hub.shared.arrived(&stream);
                threads::spawn_local(feed::run(hub.clone(), stream, origin, silence, reply));
            }
            Order::Tap { stream, rules, reply } => {
                let tap = hub.find(&stream).map(|source| source.borrow_mut().tap(rules));
                // The asker may have lost patience.
                let _unheard = reply.send(tap);
            }
            Order::CopyTo { stream, thread } => hub.copy_to(&stream, thread),
            Order::CopyEnough { stream, thread } => hub.copy_enough(&stream, thread),
            Order::Copied { stream, copied } => hub.copied(&stream, copied),
            Order::CopyEnded { stream } => hub.copy_ended(&stream),
            Order::Close { stream, reply } => {
                let source = hub.find(&stream);
                if let Some(source) = &source {
                    hub.end(source, Instant::now());
                }
                // The asker may have lost patience.
                let _unheard = reply.send(source.is_some());
            }
            // The askers may have lost patience.
            Order::Viewers { stream, reply } => {
                let _unheard = reply.send(hub.audience(&stream));
            }
            Order::CloseViewer { stream, id, reply } => {
                let _unheard = reply.send(hub.dismiss(&stream, id));
            }
            Order::Probe(reply) => {
                let _unheard = reply.send(());
            }
            Order::Stop(reply) => {
                stop(&hub).await;
                let _unheard = reply.send(());
                break;
            }
        }
    }
    flushing.abort();
    saying.abort();
}

/// Ends all streams and lets the publishers' tasks say goodbye.
async fn stop(hub: &Rc<Hub>) {
    let sources = hub.sources.borrow().clone();
    for source in &sources {
        let live = source.borrow().is_live();
        if live {
            source.borrow_mut().camera.offline("the gateway stops");
        }
        hub.end(source, Instant::now());
    }
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    hub.unsaid.empty(LAST_WORDS_MAX).await;
}
