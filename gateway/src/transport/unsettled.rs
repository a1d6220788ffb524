//! What a session was promised an answer to as soon as the disk has it.
//!
//! Holds nothing while nothing waits: most connections are silent most of the time.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::task::{Context, Poll};

use device_models::Class;
use protocols::{Refusal, Ticket};
use tokio::sync::watch;

use super::Services;
use crate::broker::Kept;
use crate::bus::Durable;

/// Reports and publications of one peer that may wait for the disk.
const UNSETTLED_MAX: usize = 4_096;

/// What must be durable before something is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Highest sequence number per class of the bus.
    pub(super) bus: [u64; 4],
    /// Change of the broker's state.
    pub(super) broker: u64,
}

/// See the module. Answers come in the order of the promises.
#[derive(Default)]
pub(super) struct Unsettled(Option<Box<Waiting>>);

#[derive(Default)]
struct Waiting {
    promises: VecDeque<(Ticket, Need)>,
    /// Resolves with the next commit. Kept from wait to wait: it is registered once, not for every packet.
    commit: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Unsettled {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(|waiting| waiting.promises.len() >= UNSETTLED_MAX)
    }

    pub(super) fn push(&mut self, ticket: Ticket, need: Need) {
        self.0.get_or_insert_default().promises.push_back((ticket, need));
    }

    /// The first promise, if its fate is decided.
    pub(super) fn pop(&mut self, durable: &Durable, kept: Kept) -> Option<(Ticket, Result<(), Refusal>)> {
        let promises = &mut self.0.as_mut()?.promises;
        let (ticket, need) = promises.front()?;
        let refusal = || Refusal::Unavailable("the store could not keep it".to_owned());
        let outcome = covered(durable, kept, need)?.then_some(()).ok_or_else(refusal);
        let ticket = *ticket;
        promises.pop_front();
        if promises.is_empty() {
            self.0 = None;
        }
        Some((ticket, outcome))
    }

    /// Ready when the first promise is decided, or may be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, services: &Services) -> Poll<()> {
        let Some(waiting) = &mut self.0 else { return Poll::Pending };
        let Some((_, need)) = waiting.promises.front() else { return Poll::Pending };
        let commit = waiting.commit.get_or_insert_with(|| {
            // Subscribed first, then looked: no commit between the two is missed.
            let (mut durable, mut kept) = (services.bus.durable(), services.broker.kept());
            let decided = covered(&durable.borrow_and_update(), *kept.borrow_and_update(), need).is_some();
            if decided { Box::pin(std::future::ready(())) } else { Box::pin(changed(durable, kept)) }
        });
        let ready = commit.as_mut().poll(cx);
        if ready.is_ready() {
            waiting.commit = None;
        }
        ready
    }
}

async fn changed(mut durable: watch::Receiver<Durable>, mut kept: watch::Receiver<Kept>) {
    let gone = tokio::select! {
        changed = durable.changed() => changed.is_err(),
        changed = kept.changed() => changed.is_err(),
    };
    if gone {
        // Nobody is left to decide anything.
        pending::<()>().await;
    }
}

/// Whether everything needed is durable; `None` while that is not decided.
fn covered(durable: &Durable, kept: Kept, need: &Need) -> Option<bool> {
    let mut all = need.broker == 0 || kept.settled(need.broker)?;
    for (class, seq) in Class::ALL.into_iter().zip(&need.bus) {
        if *seq > 0 {
            all &= durable.settled(class, *seq)?;
        }
    }
    Some(all)
}
