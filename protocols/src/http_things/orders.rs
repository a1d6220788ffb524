//! Orders to devices that ask for them. Once fetched, an order is the gateway's to wait for; until then it waits
//! here. It ends with the connection that fetched it: a device that takes orders keeps its connection.

use std::time::Instant;

use device_models::{Command, Failure, Value};

use crate::awaited::Awaited;
use crate::payload;
use crate::session::{Outbox, Output};
use crate::things;

/// Orders that wait at one connection.
const ORDERS_MAX: usize = 32;

/// The orders of one connection's devices, each as the device reads it.
pub(super) type Orders = Awaited<Vec<u8>, ORDERS_MAX>;

/// Keeps an order until its device asks for it.
pub(super) fn keep(orders: &mut Orders, now: Instant, command: &Command, out: &mut Outbox) {
    if orders.is_full() {
        return out.push(Output::Answer { id: command.id.clone(), outcome: Err(Failure::Busy) });
    }
    orders.add(now, command, payload::to_json(&Value::Object(things::order(command))));
}
