//! With `acknowledge = "receiver"` a batch is done when the broker has it and the consumer behind it has said so. Without
//! such a receipt everything goes again from the cursor, and then one batch at a time until somebody answers.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::receipt::Receipt;
use super::super::window::BatchId;
use super::Sender;
use crate::config::Acknowledge;
use crate::metrics::Figure;

/// Batches without a receipt at a time.
const OWING_MAX: usize = 64;
/// The oldest batch waits at most so many patiences while receipts of others come.
const PATIENCES: u32 = 4;

/// What is known of the consumer.
#[derive(Debug)]
pub(super) struct Receipts {
    /// `None`: nobody is asked for any.
    pub patience: Option<Duration>,
    /// When the last one came.
    last: Instant,
    /// Whether one batch at a time goes, because nobody answered.
    probing: bool,
}

impl Receipts {
    pub(super) fn new(acknowledge: Acknowledge, seconds: u64) -> Self {
        let patience = (acknowledge == Acknowledge::Receiver).then(|| Duration::from_secs(seconds.max(1)));
        Self { patience, last: Instant::now(), probing: false }
    }
}

impl Sender {
    /// Whether another batch may go without a receipt for those before it.
    pub(super) fn may_owe(&self) -> bool {
        self.receipts.patience.is_none() || self.window.owing() < if self.receipts.probing { 1 } else { OWING_MAX }
    }

    /// A batch under way needs a receipt for these numbers.
    pub(super) fn owe(&mut self, batch: BatchId, first: u64, last: u64) {
        if self.receipts.patience.is_some() {
            self.window.owes(batch, first, last);
        }
    }

    /// When the batches under way have waited too long for a receipt.
    pub(super) fn receipt_due(&self) -> Option<Instant> {
        let (patience, since) = (self.receipts.patience?, self.window.owing_since()?);
        Some((since.max(self.receipts.last) + patience).min(since + patience * PATIENCES))
    }

    /// The consumer has these numbers.
    pub(super) fn received(&mut self, receipt: Receipt) {
        if receipt.epoch != self.epoch || !self.window.received(receipt.class, receipt.first, receipt.last) {
            return;
        }
        self.receipts.last = Instant::now();
        if std::mem::take(&mut self.receipts.probing) {
            self.status.send_modify(|status| status.error = None);
        }
        for lane in self.lanes.iter().filter(|lane| lane.class == receipt.class) {
            self.settle(*lane);
        }
    }

    /// Nobody has answered: again from the cursor.
    pub(super) fn unanswered(&mut self) {
        let patience = self.receipts.patience.unwrap_or_default();
        let reason = format!("the receiver has not acknowledged what it was sent within {patience:?}: it goes again");
        if !self.receipts.probing {
            warn!(upstream = self.config.name, reason, "no receipt");
        }
        self.status.send_modify(|status| status.error = Some(reason));
        self.metrics.add(Figure::Unanswered, &[&self.config.name], 1);
        self.receipts.probing = true;
        self.back();
    }
}
