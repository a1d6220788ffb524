//! Cameras are things too, and the gateway itself is their device: what the streaming core and the outlets say of one goes
//! the way of every report, and an order to one finds those who can carry it out.
//!
//! Must not be in here: what a report says (`stream/camera.rs`, `outlet/voice.rs`), what an order does (`outlet/`).

use std::sync::Arc;

use device_models::{Command, Failure, Order, Outcome, Report, Word};
use protocols::Identity;
use tokio::sync::mpsc;
use tracing::debug;

use crate::devices::Route;
use crate::intake::{AdapterInfo, Intake};
use crate::outlet::Outlets;
use crate::stream::CAMERA;
use crate::transport;

/// Orders on their way to all cameras.
const ORDERS_MAX: usize = 64;

/// Cameras that are remembered, with 2 KiB each, though nobody declared them: twice the streams at a time. Whoever may
/// publish invents names, and each would stay for ever; a camera that is declared is none of these.
const REMEMBERED_MAX: usize = 512;

/// Takes reports and orders until the streaming core is gone.
pub async fn run(intake: Intake, outlets: Outlets, mut reports: mpsc::Receiver<Report>) {
    let adapter = AdapterInfo {
        name: Arc::from("camera"),
        product: Some(CAMERA.to_owned()),
        auto_register: true,
        allow_anonymous: true,
        push_without_key: Vec::new(),
        commit: None,
    };
    let (commands, mut orders) = mpsc::channel(ORDERS_MAX);
    let route = Route { id: transport::next_route(), adapter: Arc::clone(&adapter.name), commands };
    let identity = Identity::anonymous();
    loop {
        tokio::select! {
            report = reports.recv() => {
                let Some(report) = report else { return };
                // A camera that comes is reached this way from then on. What is said of one that is not there must not
                // make it look as if it were.
                let comes = matches!(report.word, Word::Presence { online: true, .. });
                if comes {
                    intake.make_room(&adapter, &report.device, REMEMBERED_MAX).await;
                }
                if let Err(refusal) = intake.take(&adapter, &identity, report, comes.then_some(&route)).await {
                    debug!(%refusal, "a camera's report is refused");
                }
            }
            Some(order) = orders.recv() => {
                let outcome = carry_out(&outlets, &order);
                intake.devices().session_answered(&order.id, outcome).await;
            }
        }
    }
}

fn carry_out(outlets: &Outlets, command: &Command) -> Outcome {
    match &command.order {
        Order::Invoke { action, input } => outlets.order(&command.device, action, input),
        Order::Write(_) | Order::Read(_) => {
            Err(Failure::Unsupported("a camera's properties are said, not asked".to_owned()))
        }
    }
}
