//! Simulated devices and cameras: ordinary clients on ordinary sockets, told nothing that a device would not know.
//!
//! `mqtt.rs` a client of 3.1.1, `devices.rs` what speaks MQTT, `plain.rs` what speaks CoAP, TCP and UDP, `camera.rs` an
//! RTMP publisher, `course.rs` the values. Each device is a task that connects, reports, and connects again when its
//! connection is lost. Must not be in here: a short cut into the gateway.

mod camera;
mod course;
mod devices;
mod mqtt;
mod plain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::threads::Tasks;

/// Wait after a lost connection.
const AGAIN: Duration = Duration::from_secs(1);
/// Time a peer has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Where the simulated devices go; those without an address stay at home.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    pub mqtt: Option<SocketAddr>,
    pub coap: Option<SocketAddr>,
    pub tcp: Option<SocketAddr>,
    pub udp: Option<SocketAddr>,
    pub rtmp: Option<SocketAddr>,
    /// Stream name without its app, and the FLV file that it repeats.
    pub clips: Vec<(&'static str, Bytes)>,
}

/// What the simulated devices did. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    orders: AtomicU64,
    frames: AtomicU64,
}

impl Counts {
    /// Reports sent.
    pub fn sent(&self) -> u64 {
        self.inner.sent.load(Ordering::Relaxed)
    }

    /// Reports the gateway acknowledged (UDP has no acknowledgement).
    pub fn acknowledged(&self) -> u64 {
        self.inner.acknowledged.load(Ordering::Relaxed)
    }

    /// Orders that came to devices.
    pub fn orders(&self) -> u64 {
        self.inner.orders.load(Ordering::Relaxed)
    }

    /// Access units that cameras pushed.
    pub fn frames(&self) -> u64 {
        self.inner.frames.load(Ordering::Relaxed)
    }

    fn note_sent(&self) {
        self.inner.sent.fetch_add(1, Ordering::Relaxed);
    }

    fn note_acknowledged(&self) {
        self.inner.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    fn note_order(&self) {
        self.inner.orders.fetch_add(1, Ordering::Relaxed);
    }

    fn note_frame(&self) {
        self.inner.frames.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a simulated device's connection ended.
#[derive(Debug, thiserror::Error)]
enum SimError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the gateway did not answer within {ANSWER_MAX:?}")]
    Silent,
    #[error("the gateway answered {0}")]
    Refused(String),
    #[error("RTMP: {0}")]
    Rtmp(#[from] protocols::rtmp::client::ClientError),
    #[error("the clip: {0}")]
    Clip(#[from] protocols::media::MediaError),
}

/// Starts every device that has somewhere to go. They end with `tasks`.
pub fn start(targets: &Targets, tasks: &Tasks) -> Counts {
    let counts = Counts::default();
    if let Some(address) = targets.mqtt {
        keep(tasks, &counts, move |counts| devices::climate(address, "climate-1", 0, counts));
        keep(tasks, &counts, move |counts| devices::climate(address, "climate-2", 40, counts));
        keep(tasks, &counts, move |counts| devices::meter(address, "meter-1", counts));
        keep(tasks, &counts, move |counts| devices::relay(address, "relay-1", counts));
    }
    if let Some(address) = targets.coap {
        keep(tasks, &counts, move |counts| plain::coap_meter(address, "meter-2", counts));
    }
    if let Some(address) = targets.tcp {
        keep(tasks, &counts, move |counts| plain::tracker(address, "truck-7", counts));
    }
    if let Some(address) = targets.udp {
        keep(tasks, &counts, move |counts| plain::udp_climate(address, "cellar-1", counts));
    }
    if let Some(address) = targets.rtmp {
        for (name, clip) in &targets.clips {
            let (name, clip) = (*name, clip.clone());
            keep(tasks, &counts, move |counts| camera::push(address, name, clip.clone(), counts));
        }
    }
    counts
}

/// Runs a device until the process stops; its connection is made again whenever it ends.
fn keep<F>(tasks: &Tasks, counts: &Counts, device: impl Fn(Counts) -> F + Send + Sync + 'static)
where
    F: Future<Output = Result<(), SimError>> + Send,
{
    let (stopping, counts) = (tasks.clone(), counts.clone());
    tasks.spawn("sim", async move {
        let again = async {
            loop {
                if let Err(error) = device(counts.clone()).await {
                    tracing::debug!(%error, "a simulated device lost its connection");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = again => {}
            () = stopping.stopping() => {}
        }
    });
}
