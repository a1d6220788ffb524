//! Orders to devices that ask for them. Once fetched, an order is the gateway's to wait for; until then it waits
//! here. It ends with the connection that fetched it: a device that takes orders keeps its connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use device_models::{Command, Failure, Value};

use crate::payload;
use crate::session::{Outbox, Output};
use crate::things;

/// Orders that wait at one connection.
const ORDERS_MAX: usize = 32;

/// The orders of one connection's devices, oldest first.
#[derive(Debug, Default)]
pub(super) struct Orders {
    all: VecDeque<Order>,
}

#[derive(Debug)]
struct Order {
    id: String,
    device: String,
    /// As the device reads it.
    body: Vec<u8>,
    until: Instant,
    patience: Duration,
}

impl Orders {
    pub(super) fn take(&mut self, now: Instant, command: &Command, out: &mut Outbox) {
        let id = command.id.clone();
        if self.all.len() >= ORDERS_MAX {
            return out.push(Output::Answer { id, outcome: Err(Failure::Busy) });
        }
        let body = payload::to_json(&Value::Object(things::order(command)));
        let (device, patience) = (command.device.clone(), command.patience);
        self.all.push_back(Order { id, device, body, until: now + patience, patience });
    }

    /// The oldest order to the device, which has it from now on.
    pub(super) fn next(&mut self, device: &str) -> Option<Vec<u8>> {
        let at = self.all.iter().position(|order| order.device == device)?;
        self.all.remove(at).map(|order| order.body)
    }

    /// Ends the orders whose time is over.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Outbox) {
        self.all.retain_mut(|order| {
            let late = order.until <= now;
            if late {
                let id = std::mem::take(&mut order.id);
                out.push(Output::Answer { id, outcome: Err(Failure::Silent(order.patience)) });
            }
            !late
        });
    }

    /// Ends all: the connection is over.
    pub(super) fn abandon(&mut self, out: &mut Outbox) {
        for order in self.all.drain(..) {
            out.push(Output::Answer { id: order.id, outcome: Err(Failure::Offline) });
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.all.iter().map(|order| order.until).min()
    }
}
