//! A few viewers beside the crowd, on a thread of their own, that look at every frame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Container;
use super::viewers::Crowd;

/// Viewers that look at every frame, beside the crowd.
pub(crate) const PROBES: usize = 8;
/// Until they have joined.
const PATIENCE: Duration = Duration::from_secs(10);

const JOINING: u8 = 0;
const MEASURING: u8 = 1;
const ENDED: u8 = 2;

#[derive(Debug)]
pub(crate) struct Probes {
    phase: Arc<AtomicU8>,
    thread: Option<JoinHandle<anyhow::Result<Vec<f64>>>>,
}

impl Probes {
    pub(crate) fn start(address: SocketAddr, container: Container, epoch: Instant) -> Self {
        let phase = Arc::new(AtomicU8::new(JOINING));
        let told = Arc::clone(&phase);
        let thread = std::thread::spawn(move || look(address, container, epoch, &told));
        Self { phase, thread: Some(thread) }
    }

    /// From here on what they see counts.
    pub(crate) fn measure(&self) {
        self.phase.store(MEASURING, Ordering::Release);
    }

    /// How late each frame was since [`Self::measure`], s.
    pub(crate) fn end(mut self) -> anyhow::Result<Vec<f64>> {
        self.phase.store(ENDED, Ordering::Release);
        let thread = self.thread.take().context("probes end once")?;
        thread.join().map_err(|_| anyhow::anyhow!("the probes panicked"))?
    }
}

impl Drop for Probes {
    /// A run that fails before it ends its probes must not leave them behind.
    fn drop(&mut self) {
        self.phase.store(ENDED, Ordering::Release);
    }
}

fn look(address: SocketAddr, container: Container, epoch: Instant, phase: &AtomicU8) -> anyhow::Result<Vec<f64>> {
    let mut probes = Crowd::new(address, container, epoch, true)?;
    probes.join(PROBES, PATIENCE)?;
    while phase.load(Ordering::Acquire) == JOINING {
        probes.turn(Duration::from_millis(20))?;
    }
    probes.latencies.clear();
    while phase.load(Ordering::Acquire) == MEASURING {
        probes.turn(Duration::from_millis(20))?;
    }
    Ok(std::mem::take(&mut probes.latencies))
}
