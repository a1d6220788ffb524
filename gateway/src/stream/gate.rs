//! When the kernel takes more for a viewer that it took no more for: told by the runtime's poll, so that a viewer which
//! stalls costs nothing until it does, and a thousand of them cost the others nothing.
//!
//! Must not be in here: sockets; what is done when a gate opens (`fanout.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use tokio::sync::Notify;

/// One a thread: says that some gate opened.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    wake: Notify,
}

impl Bell {
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Before those behind open gates are visited: whatever opens from now on rings again.
    pub(super) fn reset(&self) {
        self.rung.store(false, Ordering::Release);
    }

    pub(super) async fn heard(&self) {
        self.wake.notified().await;
    }
}

/// One a viewer. As a waker it opens.
#[derive(Debug)]
pub(super) struct Gate {
    open: AtomicBool,
    bell: Arc<Bell>,
}

impl Gate {
    pub(super) fn new(bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new(Self { open: AtomicBool::new(true), bell: bell.clone() })
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn shut(&self) {
        self.open.store(false, Ordering::Release);
    }

    /// Opens, and has those behind open gates visited.
    pub(super) fn open(&self) {
        self.stay_open();
        self.bell.ring();
    }

    /// It is being visited.
    pub(super) fn stay_open(&self) {
        self.open.store(true, Ordering::Release);
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.open();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.open();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test]
    async fn a_gate_that_opens_is_heard_once_and_stays_open() {
        let bell = Arc::new(Bell::default());
        let (first, second) = (Gate::new(&bell), Gate::new(&bell));
        first.shut();
        second.shut();
        Waker::from(first.clone()).wake();
        Waker::from(first.clone()).wake();
        assert!(bell.is_rung() && first.is_open() && !second.is_open());
        bell.heard().await;
        bell.reset();
        assert!(first.is_open());
        Waker::from(second).wake_by_ref();
        bell.heard().await;
        assert!(bell.is_rung());
    }
}
