//! The talk: requests to reports, settlements to responses, orders to notifications.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::{Command, Failure};

use super::Options;
use super::blocks::{Block, Progress, SIZE_MAX, Uploads};
use super::delivery::{Cargo, Due, Flights, Recent, Seen};
use super::frame::{self, Code, Kind, Message, Rejected, Rejection, number};
use super::links;
use super::orders::Orders;
use super::request::{Ask, LINK_FORMAT, Refused, TEXT};
use crate::admitted::Admitted;
use crate::session::{Claim, Fault, Identity, Input, Outbox, Output, Peer, Refusal, Session, Ticket};
use crate::things::Target;

/// Requests of one peer that wait for an admission or a settlement.
const PENDING_MAX: usize = 64;

/// Bytes of a diagnostic payload.
const DIAGNOSTIC_MAX: usize = 200;

/// The talk with one peer.
#[derive(Debug)]
pub(super) struct Talk {
    options: Arc<Options>,
    recent: Recent,
    flights: Flights,
    admitted: Admitted,
    /// The devices this peer was let in for, newest last.
    devices: Vec<String>,
    uploads: Uploads,
    pending: Vec<Pending>,
    orders: Orders,
    message_id: u16,
    ticket_next: u64,
}

/// A request without its response yet.
#[derive(Debug)]
struct Pending {
    reply_to: ReplyTo,
    /// When it is acknowledged without a response; `None` when it is not confirmable or that was done.
    acknowledge_at: Option<Instant>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Admission {
        ticket: Ticket,
        ask: Box<Ask>,
    },
    /// The reports with these tickets are on their way to the disk.
    Settling {
        first: u64,
        last: u64,
        left: u64,
        refusal: Option<Refusal>,
    },
}

/// Where a response goes.
#[derive(Debug, Clone)]
struct ReplyTo {
    kind: Kind,
    id: u16,
    token: Bytes,
    received: Instant,
    /// The request has its acknowledgement already.
    acknowledged: bool,
    block1: Option<Block>,
}

// === impl Session ===

impl Session for Talk {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Datagram(packet) => self.packet(now, &packet, out),
            Input::Admission { ticket, outcome } => {
                self.admission(now, ticket, outcome, out);
                Ok(())
            }
            Input::Settled { ticket, outcome } => {
                self.settled(now, ticket, outcome, out);
                Ok(())
            }
            Input::Command(command) => {
                self.command(now, &command, out);
                Ok(())
            }
            Input::Ended { .. } => {
                self.orders.abandon(out);
                Ok(())
            }
            Input::Stream(buffer) => {
                buffer.clear();
                Err(Fault::fatal("CoAP over streams (RFC 8323) is another protocol").ours())
            }
            Input::Exchange(_) | Input::Media(_) | Input::Piece { .. } => {
                Err(Fault::recoverable("CoAP has no exchange and no media").ours())
            }
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        for pending in &mut self.pending {
            if pending.acknowledge_at.is_some_and(|at| at <= now) {
                pending.acknowledge_at = None;
                pending.reply_to.acknowledged = true;
                let packet = Message::new(Kind::Acknowledgement, Code::EMPTY, pending.reply_to.id).encode();
                self.recent.answered(pending.reply_to.id, &packet);
                out.send(packet);
            }
        }
        while let Some(due) = self.flights.due(now) {
            match due {
                Due::Resend(packet) => out.send(packet),
                Due::GivenUp(cargo) => self.orders.undelivered(cargo, out),
            }
        }
        self.orders.expire(now, out);
    }

    fn deadline(&self) -> Option<Instant> {
        let acknowledge = self.pending.iter().filter_map(|pending| pending.acknowledge_at);
        acknowledge.chain(self.orders.deadline()).chain(self.flights.deadline()).min()
    }
}

// === impl Talk: messages ===

impl Talk {
    pub(super) fn new(options: Arc<Options>, peer: &Peer) -> Self {
        let seed = peer.seed.iter().fold(0_u64, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte));
        Self {
            recent: Recent::default(),
            flights: Flights::new(seed),
            admitted: Admitted::default(),
            devices: Vec::new(),
            uploads: Uploads::new(options.body_max()),
            pending: Vec::new(),
            orders: Orders::default(),
            message_id: (seed >> 16) as u16,
            ticket_next: 0,
            options,
        }
    }

    fn packet(&mut self, now: Instant, packet: &Bytes, out: &mut Outbox) -> Result<(), Fault> {
        match frame::decode(packet, self.options.message_bytes) {
            Ok(message) => self.message(now, &message, out),
            Err(Rejected { fault, answer }) => {
                match answer {
                    Rejection::Silence => {}
                    Rejection::Reset(id) => out.send(reset(id)),
                    Rejection::TooLarge(message) => {
                        let reply_to = ReplyTo::of(now, &message, Some(Block::FIRST));
                        let refused = Refused::new(Code::REQUEST_ENTITY_TOO_LARGE, fault.to_string());
                        self.refuse(now, &reply_to, &refused, out);
                    }
                }
                Err(fault)
            }
        }
    }

    fn message(&mut self, now: Instant, message: &Message, out: &mut Outbox) -> Result<(), Fault> {
        match (message.kind, message.code) {
            // A ping (section 4.3).
            (Kind::Confirmable, Code::EMPTY) => out.send(reset(message.id)),
            (Kind::NonConfirmable, Code::EMPTY) => {}
            (Kind::Acknowledgement, _) => {
                self.flights.landed(message.id);
            }
            (Kind::Reset, _) => {
                if let Some(cargo) = self.flights.landed(message.id) {
                    self.orders.undelivered(cargo, out);
                }
            }
            (_, code) if code.is_request() => return self.request(now, message, out),
            (kind, _) => {
                if kind == Kind::Confirmable {
                    out.send(reset(message.id));
                }
                return Err(Fault::recoverable("a response to no request").at(1));
            }
        }
        Ok(())
    }

    fn request(&mut self, now: Instant, message: &Message, out: &mut Outbox) -> Result<(), Fault> {
        if let Seen::Before(answer) = self.recent.look(now, message.id) {
            if let Some(packet) = answer.filter(|_| message.kind == Kind::Confirmable) {
                out.send(packet);
            }
            return Ok(());
        }
        let reply_to = ReplyTo::of(now, message, None);
        let ask = match Ask::read(message, &self.options.token_query) {
            Ok(ask) => ask,
            Err(refused) => {
                let fault = Fault::recoverable(refused.why.clone());
                // In a message that is not confirmable an unknown critical option is rejected (section 5.4.1).
                if refused.code == Code::BAD_OPTION && message.kind == Kind::NonConfirmable {
                    out.send(reset(message.id));
                } else {
                    self.refuse(now, &reply_to, &refused, out);
                }
                return Err(fault);
            }
        };
        match ask.target {
            Target::Core => {
                let body = links::core(self.devices.iter().map(String::as_str));
                self.page(now, &reply_to, ask.block2, LINK_FORMAT, body.into(), out);
            }
            Target::Things => self.page(now, &reply_to, ask.block2, TEXT, links::MANUAL.into(), out),
            _ => self.admit(now, reply_to, ask, out),
        }
        Ok(())
    }

    fn respond(&mut self, now: Instant, reply_to: &ReplyTo, mut response: Message, out: &mut Outbox) {
        response.token = reply_to.token.clone();
        if let Some(block) = reply_to.block1 {
            response = response.with_uint(number::BLOCK1, block.value());
        }
        match (reply_to.kind, reply_to.acknowledged) {
            (Kind::Confirmable, false) => {
                (response.kind, response.id) = (Kind::Acknowledgement, reply_to.id);
                let packet = response.encode();
                self.recent.answered(reply_to.id, &packet);
                out.send(packet);
            }
            (Kind::Confirmable, true) => self.confirmable(now, response, Cargo::Response, out),
            _ => {
                (response.kind, response.id) = (Kind::NonConfirmable, self.next_message_id());
                out.send(response.encode());
            }
        }
    }

    /// Sends a confirmable message of ours; when too many are on their way already, without the care.
    fn confirmable(&mut self, now: Instant, mut message: Message, cargo: Cargo, out: &mut Outbox) {
        message.id = self.next_message_id();
        message.kind = if self.flights.full() { Kind::NonConfirmable } else { Kind::Confirmable };
        let packet = message.encode();
        if message.kind == Kind::Confirmable {
            self.flights.sent(now, message.id, packet.clone(), cargo);
        }
        out.send(packet);
    }

    fn refuse(&mut self, now: Instant, reply_to: &ReplyTo, refused: &Refused, out: &mut Outbox) {
        let mut response = Message::new(Kind::Acknowledgement, refused.code, 0);
        // An answer whose Block1 says "more" would ask for the next block (RFC 7959 section 2.3).
        let block1 = reply_to.block1.map(|block| Block { more: false, ..block });
        let reply_to = &ReplyTo { block1, ..reply_to.clone() };
        match refused.code {
            Code::REQUEST_ENTITY_TOO_LARGE => {
                response = response.with_uint(number::SIZE1, self.options.body_max() as u32);
            }
            Code::SERVICE_UNAVAILABLE | Code::TOO_MANY_REQUESTS => response = response.with_uint(number::MAX_AGE, 5),
            _ => {}
        }
        let cut = (0..=DIAGNOSTIC_MAX).rev().find(|at| refused.why.is_char_boundary(*at)).unwrap_or(0);
        let text = refused.why.get(..cut).unwrap_or(&refused.why);
        response.payload = Bytes::copy_from_slice(text.as_bytes());
        self.respond(now, reply_to, response, out);
    }

    /// Answers with a page of text, in blocks when it is long or blocks were asked for.
    fn page(
        &mut self,
        now: Instant,
        reply_to: &ReplyTo,
        asked: Option<Block>,
        format: u32,
        body: Bytes,
        out: &mut Outbox,
    ) {
        let mut response =
            Message::new(Kind::Acknowledgement, Code::CONTENT, 0).with_uint(number::CONTENT_FORMAT, format);
        if asked.is_none() && body.len() <= SIZE_MAX {
            response.payload = body;
            return self.respond(now, reply_to, response, out);
        }
        let Some((block, piece)) = asked.unwrap_or(Block::FIRST).of(&body) else {
            let refused = Refused::new(Code::BAD_REQUEST, "a block beyond the end");
            return self.refuse(now, reply_to, &refused, out);
        };
        let tag = body.iter().fold(0xcbf2_9ce4_u32, |tag, byte| (tag ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        response.options.push((number::ETAG, Bytes::copy_from_slice(&tag.to_be_bytes())));
        response.payload = piece;
        let response = response.with_uint(number::BLOCK2, block.value()).with_uint(number::SIZE2, body.len() as u32);
        self.respond(now, reply_to, response, out);
    }

    fn next_message_id(&mut self) -> u16 {
        self.message_id = self.message_id.wrapping_add(1);
        self.message_id
    }

    fn ticket(&mut self) -> Ticket {
        self.ticket_next += 1;
        Ticket(self.ticket_next)
    }
}

// === impl Talk: requests ===

impl Talk {
    fn admit(&mut self, now: Instant, reply_to: ReplyTo, ask: Ask, out: &mut Outbox) {
        if let Some(by) = self.admitted.get(now, ask.device(), ask.secret.as_ref()).cloned() {
            return self.admitted(now, &by, reply_to, ask, out);
        }
        if self.pending.len() >= PENDING_MAX {
            let refused = Refused::new(Code::SERVICE_UNAVAILABLE, "too many requests wait for their answer");
            return self.refuse(now, &reply_to, &refused, out);
        }
        let ticket = self.ticket();
        let claim = Claim::Device { name: ask.device().to_owned(), user: None, secret: ask.secret.clone() };
        out.push(Output::Admit { ticket, claim });
        self.wait(reply_to, Stage::Admission { ticket, ask: Box::new(ask) });
    }

    fn wait(&mut self, reply_to: ReplyTo, stage: Stage) {
        let confirmable = reply_to.kind == Kind::Confirmable && !reply_to.acknowledged;
        let acknowledge_at = confirmable.then(|| reply_to.received + Duration::from_millis(self.options.separate_ms));
        self.pending.push(Pending { reply_to, acknowledge_at, stage });
    }

    fn admission(&mut self, now: Instant, ticket: Ticket, outcome: Result<Identity, Refusal>, out: &mut Outbox) {
        let waits = |p: &Pending| matches!(&p.stage, Stage::Admission { ticket: t, .. } if *t == ticket);
        let Some(at) = self.pending.iter().position(waits) else { return };
        let Pending { reply_to, stage: Stage::Admission { ask, .. }, .. } = self.pending.swap_remove(at) else {
            return;
        };
        match outcome {
            Ok(by) => {
                let newly = self.admitted.insert(now, ask.device(), ask.secret.clone(), by.clone());
                if let Some(device) = ask.target.device_of(&by).filter(|_| newly) {
                    self.speaks(&by, &device, out);
                }
                self.admitted(now, &by, reply_to, *ask, out);
            }
            Err(refusal) => self.refuse(now, &reply_to, &refused(&refusal), out),
        }
    }

    fn speaks(&mut self, by: &Identity, device: &str, out: &mut Outbox) {
        /// Devices a peer finds its links of in `/.well-known/core`.
        const DEVICES_MAX: usize = 64;
        if self.devices.len() < DEVICES_MAX && !self.devices.iter().any(|known| known == device) {
            self.devices.push(device.to_owned());
        }
        out.push(Output::Speaks { by: by.clone(), device: device.to_owned(), product: None });
    }

    fn admitted(&mut self, now: Instant, by: &Identity, mut reply_to: ReplyTo, mut ask: Ask, out: &mut Outbox) {
        if let Some(block) = ask.block1 {
            reply_to.block1 = Some(block);
            match self.uploads.take(now, &ask, block) {
                Ok(Progress::Whole(body)) => ask.payload = body,
                Ok(Progress::Continue) => {
                    let response = Message::new(Kind::Acknowledgement, Code::CONTINUE, 0);
                    return self.respond(now, &reply_to, response, out);
                }
                Err(refused) => return self.refuse(now, &reply_to, &refused, out),
            }
        }
        let outcome = match &ask.target {
            Target::Commands { .. } => {
                self.commands_asked(now, by, &reply_to, &ask, out);
                Ok(())
            }
            Target::Reply { id, .. } => self.reply(now, &reply_to, &ask, id, out),
            _ => self.report(by, &reply_to, &ask, out),
        };
        if let Err(refused) = outcome {
            self.refuse(now, &reply_to, &refused, out);
        }
    }

    fn report(&mut self, by: &Identity, reply_to: &ReplyTo, ask: &Ask, out: &mut Outbox) -> Result<(), Refused> {
        let Some(device) = ask.target.device_of(by) else {
            return Err(Refused::new(Code::UNAUTHORIZED, "the token belongs to no single device"));
        };
        let reports = ask.reports(&device)?;
        if self.pending.len() >= PENDING_MAX {
            return Err(Refused::new(Code::SERVICE_UNAVAILABLE, "too many requests wait for their answer"));
        }
        let first = self.ticket_next + 1;
        let left = reports.len() as u64;
        for report in reports {
            out.push(Output::Report { ticket: Some(self.ticket()), by: by.clone(), report });
        }
        let stage = Stage::Settling { first, last: self.ticket_next, left, refusal: None };
        self.wait(reply_to.clone(), stage);
        Ok(())
    }

    fn settled(&mut self, now: Instant, ticket: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let mut done = None;
        for (at, pending) in self.pending.iter_mut().enumerate() {
            let Stage::Settling { first, last, left, refusal } = &mut pending.stage else { continue };
            if (*first..=*last).contains(&ticket.0) {
                *left = left.saturating_sub(1);
                if refusal.is_none() {
                    *refusal = outcome.err();
                }
                if *left == 0 {
                    done = Some((at, refusal.take()));
                }
                break;
            }
        }
        let Some((at, refusal)) = done else { return };
        let reply_to = self.pending.swap_remove(at).reply_to;
        match refusal {
            None => self.respond(now, &reply_to, Message::new(Kind::Acknowledgement, Code::CHANGED, 0), out),
            Some(refusal) => self.refuse(now, &reply_to, &refused(&refusal), out),
        }
    }
}

// === impl Talk: orders ===

impl Talk {
    fn commands_asked(&mut self, now: Instant, by: &Identity, reply_to: &ReplyTo, ask: &Ask, out: &mut Outbox) {
        let device = ask.device();
        // Half of the time after which a silent peer is forgotten: observers register anew in time.
        let age_max = Duration::from_secs(self.options.silence_seconds / 2);
        let (response, registers) = self.orders.asked(device, &reply_to.token, ask.observe, ask.accept, age_max);
        if registers {
            self.speaks(by, device, out);
        }
        self.respond(now, reply_to, response, out);
    }

    fn command(&mut self, now: Instant, command: &Command, out: &mut Outbox) {
        let begun = if self.flights.full() { Err(Failure::Busy) } else { self.orders.begin(now, command) };
        match begun {
            Ok((message, cargo)) => self.confirmable(now, message, cargo, out),
            Err(failure) => out.push(Output::Answer { id: command.id.clone(), outcome: Err(failure) }),
        }
    }

    fn reply(
        &mut self,
        now: Instant,
        reply_to: &ReplyTo,
        ask: &Ask,
        id: &str,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        if !self.orders.replied(ask.device(), id, ask.outcome()?, out) {
            return Err(Refused::new(Code::NOT_FOUND, "no such order is on its way"));
        }
        self.respond(now, reply_to, Message::new(Kind::Acknowledgement, Code::CHANGED, 0), out);
        Ok(())
    }
}

// === private ===

impl ReplyTo {
    fn of(now: Instant, message: &Message, block1: Option<Block>) -> Self {
        let token = message.token.clone();
        Self { kind: message.kind, id: message.id, token, received: now, acknowledged: false, block1 }
    }
}

fn reset(id: u16) -> Bytes {
    Message::new(Kind::Reset, Code::EMPTY, id).encode()
}

fn refused(refusal: &Refusal) -> Refused {
    let code = match refusal {
        Refusal::Unauthorized => Code::UNAUTHORIZED,
        Refusal::Forbidden(_) => Code::FORBIDDEN,
        Refusal::NotFound(_) => Code::NOT_FOUND,
        Refusal::Invalid(_) => Code::BAD_REQUEST,
        Refusal::Limit(_) => Code::TOO_MANY_REQUESTS,
        Refusal::Unavailable(_) => Code::SERVICE_UNAVAILABLE,
    };
    Refused::new(code, refusal.to_string())
}
