//! Orders on their way down, and their answers.

use std::time::Instant;

use device_models::{Command, Failure, Report, Value, Word};

use super::super::dialects::{Asked, Context, DIALECTS, Downward, is_level};
use super::super::frame::Reason;
use super::{MqttSession, ask};
use crate::exchange::{Publication, Qos, Request};
use crate::session::{Outbox, Output, Refusal, Ticket};

/// Commands of one client that wait for their answer.
const COMMANDS_MAX: usize = 64;

/// A command on its way.
pub(super) struct Sent {
    ticket: Ticket,
    command: Box<Command>,
    /// Its id on the wire.
    wire: Box<str>,
    topic: Box<str>,
    /// The packet id of its delivery, where the acknowledgement is the answer.
    delivery: Option<u16>,
    replies: bool,
    retained: bool,
    /// Rows of dialects still to be tried when this one's topic has no subscriber.
    left: Vec<usize>,
    until: Instant,
}

impl MqttSession {
    pub(super) fn command(&mut self, now: Instant, command: Command, out: &mut Outbox) {
        self.commands.retain(|sent| sent.until > now);
        if self.commands.len() >= COMMANDS_MAX {
            out.push(Output::Answer { id: command.id, outcome: Err(Failure::Busy) });
            return;
        }
        let mut rows = match self.spoken.get(command.device.as_str()) {
            Some(spoken) => vec![spoken.dialect],
            None => self.settings.dialects.clone(),
        };
        rows.reverse();
        let nothing = Failure::Unsupported("no dialect of this adapter can say it".to_owned());
        self.try_next(now, Box::new(command), rows, nothing, out);
    }

    /// Says the command in the next dialect that can; `failure` is the answer when none is left.
    fn try_next(
        &mut self,
        now: Instant,
        command: Box<Command>,
        mut left: Vec<usize>,
        mut failure: Failure,
        out: &mut Outbox,
    ) {
        while let Some(row) = left.pop() {
            match self.say(row, &command) {
                Ok((wire, down)) => {
                    let ticket = self.ticket();
                    let until = now + command.patience;
                    self.commands.push(Sent {
                        ticket,
                        wire,
                        topic: down.topic.as_str().into(),
                        delivery: None,
                        replies: down.replies,
                        retained: down.retain,
                        left,
                        until,
                        command,
                    });
                    let publication = Publication {
                        topic: down.topic.into(),
                        payload: down.payload.into(),
                        qos: Qos::AtLeastOnce,
                        retain: down.retain,
                        properties: None,
                    };
                    ask(Request::Command { ticket, publication }, out);
                    return;
                }
                Err(why) => failure = why,
            }
        }
        out.push(Output::Answer { id: command.id, outcome: Err(failure) });
    }

    fn say(&mut self, row: usize, command: &Command) -> Result<(Box<str>, Downward), Failure> {
        let Some(dialect) = DIALECTS.get(row) else { return Err(Failure::Unsupported("no such dialect".to_owned())) };
        // A number of our own where the command's id cannot stand on the wire.
        let wire: Box<str> = if dialect.numbers_ids() || !is_level(&command.id) {
            self.tickets += 1;
            self.tickets.to_string().into()
        } else {
            command.id.as_str().into()
        };
        let base = self.spoken.get(command.device.as_str()).map(|spoken| &*spoken.base);
        let context = Context { own: &self.own, template: self.settings.template.as_ref() };
        dialect.say(Asked { command, wire: &wire, base }, context).map(|down| (wire, down))
    }

    /// The exchange has queued the command, or nobody listens.
    pub(super) fn commanded(&mut self, now: Instant, ticket: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let Err(refusal) = outcome else { return };
        let Some(index) = self.commands.iter().position(|sent| sent.ticket == ticket) else { return };
        let Sent { command, topic, left, .. } = self.commands.swap_remove(index);
        let failure = match refusal {
            Refusal::NotFound(_) => Failure::Unsupported(format!(
                "client `{}` has no subscription that takes `{topic}`; the device must subscribe to it",
                self.client
            )),
            Refusal::Limit(_) => Failure::Busy,
            other => Failure::Unsupported(other.to_string()),
        };
        self.try_next(now, command, left, failure, out);
    }

    /// The command's publication goes out under this packet id. At QoS 0 that is all there will ever be.
    pub(super) fn handed_over(&mut self, ticket: Ticket, delivery: u16, out: &mut Outbox) {
        let Some(index) = self.commands.iter().position(|sent| sent.ticket == ticket) else { return };
        let Some(sent) = self.commands.get_mut(index) else { return };
        if sent.replies {
            return;
        }
        if delivery > 0 {
            sent.delivery = Some(delivery);
            return;
        }
        let id = self.commands.swap_remove(index).command.id;
        out.push(Output::Answer { id, outcome: Ok(Value::Null) });
    }

    /// The client is done with a delivery; the answer to a command whose dialect has no replies.
    pub(super) fn acknowledged(&mut self, delivery: u16, reason: Reason, out: &mut Outbox) {
        ask(Request::Acknowledged { delivery }, out);
        if self.commands.is_empty() {
            return;
        }
        let Some(index) = self.commands.iter().position(|sent| sent.delivery == Some(delivery)) else { return };
        let id = self.commands.swap_remove(index).command.id;
        let outcome = if reason.is_error() {
            Err(Failure::Device(format!("delivery refused with reason {reason:?}")))
        } else {
            Ok(Value::Null)
        };
        out.push(Output::Answer { id, outcome });
    }

    /// Gives replies the ids of their commands, and clears what a retained command left behind.
    pub(super) fn claim_replies(&mut self, reports: &mut [Report], out: &mut Outbox) {
        if self.commands.is_empty() {
            return;
        }
        for report in reports {
            let Word::Reply { id, .. } = &mut report.word else { continue };
            let Some(index) = self.commands.iter().position(|sent| *sent.wire == **id) else { continue };
            let sent = self.commands.swap_remove(index);
            *id = sent.command.id;
            if sent.retained {
                let publication = Publication {
                    topic: (*sent.topic).into(),
                    payload: bytes::Bytes::new(),
                    qos: Qos::AtLeastOnce,
                    retain: true,
                    properties: None,
                };
                ask(Request::Publish { ticket: None, publication, reports: Vec::new(), packet_id: None }, out);
            }
        }
    }
}
