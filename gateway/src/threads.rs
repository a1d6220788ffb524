//! Every thread and task of the process: the one place that spawns.
//!
//! The control plane is one ordinary tokio runtime; its tasks are spawned through [`Tasks`], named and joined at stop.
//! The streaming core is K OS threads made by [`pinned`], each bound to one CPU and running its own `current_thread`
//! runtime with a `LocalSet`.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, warn};

/// The tasks of the control plane. Cheap to clone; all clones share one stop signal and one join.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Spawns a task on the control runtime. It should end soon after [`stopping`](Self::stopping) resolves.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, name: &'static str, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task.instrument(tracing::debug_span!(parent: None, "task", name)))
    }

    /// The same for one who stands on another runtime: a stream thread.
    pub fn spawn_on<F>(&self, runtime: &tokio::runtime::Handle, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn_on(task.instrument(tracing::debug_span!(parent: None, "task", name)), runtime);
    }

    /// Runs blocking work off the runtime's workers.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.tracker.spawn_blocking(work).await.map_err(io::Error::other)
    }

    /// Resolves when the process is asked to stop.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// The same for one who keeps it: a connection, which has no room for a reference to this beside it.
    pub fn stopped(&self) -> WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Asks every task to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Asks every task to stop and waits for them, at most `patience`. Says how many did not make it.
    pub async fn join(&self, patience: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            warn!(left = self.tracker.len(), "tasks still running after {patience:?}");
        }
    }
}

/// A thread of our own for blocking work that lives as long as the process (the log writer, sled's owner).
///
/// The name shows in `/proc`; Linux keeps 15 bytes of it.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// A stream thread: bound to `cpu`, with a `current_thread` runtime and a `LocalSet` on which `main` runs to its end.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn pinned<M, F>(name: &str, cpu: usize, main: M) -> io::Result<JoinHandle<()>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let thread_name = name.to_owned();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut cpus = rustix::thread::CpuSet::new();
        cpus.set(cpu);
        // A container may forbid it: the stream then runs wherever the kernel puts it, which costs speed, not safety.
        if let Err(error) = rustix::thread::sched_setaffinity(None, &cpus) {
            warn!(thread = %thread_name, cpu, %error, "cannot pin the stream thread");
        }
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let local = tokio::task::LocalSet::new();
                // A task of its own: what `run_until` is given is polled with every wake-up of any other.
                let ended = runtime.block_on(local.run_until(async move { tokio::task::spawn_local(main()).await }));
                if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
                    std::panic::resume_unwind(panic);
                }
                debug!(thread = %thread_name, "stream thread ended");
            }
            Err(error) => warn!(thread = %thread_name, %error, "cannot start the stream thread's runtime"),
        }
    })
}

/// A task on the stream thread that calls it. Must be called inside [`pinned`]'s `main`.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
pub fn spawn_local<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    tokio::task::spawn_local(task)
}

/// The CPUs this process may run on, in order.
pub fn cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| {
        let mut first = rustix::thread::CpuSet::new();
        first.set(0);
        first
    });
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
}
