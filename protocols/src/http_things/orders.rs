//! Orders to devices that ask for them. Once fetched, an order is the gateway's to wait for, and its answer may come by
//! another connection; until then it waits here. One that was not fetched when the connection ends never left.

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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use std::time::Duration;

    use device_models::Order as Wish;

    use super::*;

    #[test]
    fn what_was_fetched_is_the_gateways_and_what_was_not_never_left() {
        let (mut orders, mut out, now) = (Orders::default(), Outbox::default(), Instant::now());
        for id in ["c-1", "c-2"] {
            let order = Wish::Invoke { action: "toggle".to_owned(), input: Value::Null };
            let (id, device, product) = (id.to_owned(), "relay-1".to_owned(), String::new());
            let patience = Duration::from_secs(10);
            keep(&mut orders, now, &Command { id, device, product, order, patience }, &mut out);
        }
        assert!(orders.take_oldest("relay-2").is_none());
        assert!(String::from_utf8(orders.take_oldest("relay-1").unwrap()).unwrap().contains("c-1"));
        orders.unsent(&mut out);
        assert!(matches!(out.pop(), Some(Output::Unsent { id }) if id == "c-2"));
        assert!(out.pop().is_none());
    }
}
