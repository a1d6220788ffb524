//! Orders to devices: who observes them (RFC 7641), which are on their way, and how they end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::{Command, Failure, Outcome, Value};

use super::blocks::SIZE_MAX;
use super::delivery::Cargo;
use super::frame::{Code, Kind, Message, number};
use super::request::{CBOR, JSON};
use crate::awaited::Awaited;
use crate::payload;
use crate::session::{Outbox, Output};
use crate::things;

/// Observers at one peer: a gateway may sit in front of many devices.
const OBSERVERS_MAX: usize = 64;

/// Orders to one peer on their way.
const IN_FLIGHT_MAX: usize = 32;

/// The orders of one peer's devices.
#[derive(Debug, Default)]
pub(super) struct Orders {
    observers: Vec<Observer>,
    in_flight: Awaited<Value, IN_FLIGHT_MAX>,
    /// 24 bits, grows with every notification (RFC 7641 section 4.4).
    sequence: u32,
}

#[derive(Debug)]
struct Observer {
    device: String,
    token: Bytes,
    format: u32,
}

// === impl Orders ===

impl Orders {
    /// The response to a GET of the device's commands, and whether it is an observer from now on.
    pub(super) fn asked(
        &mut self,
        device: &str,
        token: &Bytes,
        observe: Option<u32>,
        accept: Option<u32>,
        age_max: Duration,
    ) -> (Message, bool) {
        let format = accept.unwrap_or(JSON);
        let mut response = Message::new(Kind::Acknowledgement, Code::CONTENT, 0);
        self.observers.retain(|observer| observer.token != *token);
        let registers = observe == Some(0) && self.observers.len() < OBSERVERS_MAX;
        if registers {
            self.observers.retain(|observer| observer.device != device);
            self.observers.push(Observer { device: device.to_owned(), token: token.clone(), format });
            let age_max = u32::try_from(age_max.as_secs()).unwrap_or(u32::MAX);
            response = response.with_uint(number::OBSERVE, self.next()).with_uint(number::MAX_AGE, age_max);
        }
        // What there is to do: the oldest order without an answer, or null.
        response.payload = encoded(self.in_flight.oldest(device).unwrap_or(&Value::Null), format);
        (response.with_uint(number::CONTENT_FORMAT, format), registers)
    }

    /// The notification that carries the command to its device.
    pub(super) fn begin(&mut self, now: Instant, command: &Command) -> Result<(Message, Cargo), Failure> {
        if self.in_flight.is_full() {
            return Err(Failure::Busy);
        }
        let Some(observer) = self.observers.iter().find(|observer| observer.device == command.device) else {
            let why = format!("it does not observe /things/{}/commands", command.device);
            return Err(Failure::Unsupported(why));
        };
        let order = Value::Object(things::order(command));
        let (payload, token, format) = (encoded(&order, observer.format), observer.token.clone(), observer.format);
        if payload.len() > SIZE_MAX {
            let why = format!("an order of {} bytes, at most {SIZE_MAX}", payload.len());
            return Err(Failure::Unsupported(why));
        }
        let mut message = Message::new(Kind::Confirmable, Code::CONTENT, 0)
            .with_uint(number::OBSERVE, self.next())
            .with_uint(number::CONTENT_FORMAT, format);
        (message.token, message.payload) = (token.clone(), payload);
        let cargo = Cargo::Command { id: command.id.clone(), token };
        self.in_flight.add(now, command, order);
        Ok((message, cargo))
    }

    /// The device's answer to an order. Says whether there was such an order.
    pub(super) fn replied(&mut self, device: &str, id: &str, outcome: Outcome, out: &mut Outbox) -> bool {
        let known = self.in_flight.take(id, Some(device));
        if known {
            out.push(Output::Answer { id: id.to_owned(), outcome });
        }
        known
    }

    /// The peer reset it or never acknowledged it: an observer that does not want or hear notifications is none.
    pub(super) fn undelivered(&mut self, cargo: Cargo, out: &mut Outbox) {
        let Cargo::Command { id, token } = cargo else { return };
        self.observers.retain(|observer| observer.token != token);
        if self.in_flight.take(&id, None) {
            out.push(Output::Answer { id, outcome: Err(Failure::Offline) });
        }
    }

    /// Ends the orders whose time is over.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Outbox) {
        self.in_flight.expire(now, out);
    }

    /// Ends all: the peer is gone.
    pub(super) fn abandon(&mut self, out: &mut Outbox) {
        self.in_flight.abandon(out);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.in_flight.deadline()
    }

    fn next(&mut self) -> u32 {
        self.sequence = (self.sequence + 1) & 0x00ff_ffff;
        self.sequence
    }
}

// === private ===

fn encoded(value: &Value, format: u32) -> Bytes {
    Bytes::from(if format == CBOR { payload::to_cbor(value) } else { payload::to_json(value) })
}
