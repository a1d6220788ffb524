//! Things that something waits for: who they are, and that one of them can be reached or has spoken.
//!
//! A thing nobody waits for costs one look at a flag a report. Must not be in here: what waits (`shadow/`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::registry::{Devices, Thing};

/// What an awaited thing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// It reported; its session may be the one of before, which could not take an order.
    Spoke,
    /// A session speaks for it from now on, or hears more than before.
    Came,
}

/// The signs of awaited things since they were last taken: one a thing, so never more than there are things.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    signs: Mutex<HashMap<Arc<str>, Sign>>,
    more: Notify,
}

/// Whether anybody waits for this thing.
#[derive(Debug, Default)]
pub(super) struct Flag(AtomicBool);

impl Thing {
    pub fn is_awaited(&self) -> bool {
        self.awaited.0.load(Ordering::Acquire)
    }

    /// Somebody waits for a sign of it from now on, or nobody does.
    pub fn set_awaited(&self, awaited: bool) {
        self.awaited.0.store(awaited, Ordering::Release);
    }
}

impl Devices {
    /// Tells whoever waits for this thing. Cheap for a thing that nobody waits for.
    pub fn sign(&self, thing: &Thing, sign: Sign) {
        if sign == Sign::Came {
            self.inner.orders.came.notify_waiters();
        }
        if !thing.is_awaited() {
            return;
        }
        let mut signs = self.signs();
        let known = signs.entry(Arc::clone(&thing.id)).or_insert(sign);
        *known = sign.max(*known);
        drop(signs);
        self.inner.awaited.more.notify_one();
    }

    /// The signs since the last call; waits for one. For one waiter.
    pub async fn awaited(&self) -> HashMap<Arc<str>, Sign> {
        loop {
            let signs = std::mem::take(&mut *self.signs());
            if !signs.is_empty() {
                return signs;
            }
            self.inner.awaited.more.notified().await;
        }
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<Arc<str>, Sign>> {
        self.inner.awaited.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
