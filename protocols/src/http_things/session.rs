//! The talk: one request at a time, answered when what it brought is on disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use device_models::{Report, Word};

use super::Options;
use super::frame::{Ask, Frame, Refused};
use super::orders::{self, Orders};
use crate::admitted::Admitted;
use crate::http::{Answer, Method, Request, RequestError, status_of};
use crate::session::{Claim, Fault, Identity, Input, Outbox, Output, Refusal, Session, Ticket};
use crate::things::{self, Target};

/// Requests that one connection may get wrong: nobody needs more, and each is free work for a stranger.
const WRONG_MAX: u32 = 100;

/// A poll waits as long in any case: a command that waits for its device is on its way only when the device asks.
const POLL_MIN: Duration = Duration::from_secs(1);

/// For whoever stands before the box with a command line.
const MANUAL: &str = "\
POST /things/DEVICE/properties          {\"temperature\":21.5} or {\"time\":MS,\"properties\":{...}} or an array of them
PUT  /things/DEVICE/properties/NAME     21.5
POST /things/DEVICE/events/NAME         {\"data\":...}
GET  /things/DEVICE/commands?wait=30    an order, or 204 when none came
POST /things/DEVICE/replies/ID          {\"ok\":true,\"data\":...}
POST /api/v1/TOKEN/telemetry            {\"temperature\":21.5}
JSON or CBOR; credentials as Authorization: Bearer SECRET or ?token=SECRET, source time as ?t=MS; 204 means on disk";

/// The talk with one peer.
#[derive(Debug)]
pub(super) struct Talk {
    options: Arc<Options>,
    admitted: Admitted,
    orders: Orders,
    state: State,
    /// The sender of the next body was told to go on.
    told: bool,
    /// Whether the connection ends with the answer to the request at hand.
    last: bool,
    wrong: u32,
    ticket_next: u64,
}

#[derive(Debug)]
enum State {
    Open,
    Admission {
        ticket: Ticket,
        ask: Box<Ask>,
    },
    /// Reports up to this ticket are on their way to the disk.
    Settling {
        last: u64,
        left: usize,
        refusal: Option<Refusal>,
    },
    /// The device waits for an order.
    Polling {
        device: String,
        until: Instant,
    },
    Closed,
}

// === impl Session ===

impl Session for Talk {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.stream(now, buffer, out),
            Input::Admission { ticket, outcome } => self.admission(now, ticket, outcome, out),
            Input::Settled { ticket, outcome } => {
                self.settled(ticket, outcome, out);
                Ok(())
            }
            Input::Command(command) => {
                orders::keep(&mut self.orders, now, &command, out);
                self.polled(out);
                Ok(())
            }
            Input::Ended { .. } => {
                if !matches!(self.state, State::Open | State::Closed) {
                    self.last = true;
                    self.refuse(&Refused::new("503 Service Unavailable", "the gateway is stopping"), out);
                }
                self.orders.unsent(out);
                Ok(())
            }
            Input::Datagram(_) | Input::Exchange(_) | Input::Media(_) | Input::Piece { .. } => {
                Err(Fault::recoverable("HTTP devices have no exchange and no media").ours())
            }
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        self.orders.expire(now, out);
        if matches!(&self.state, State::Polling { until, .. } if *until <= now) {
            self.nothing(out);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let poll = if let State::Polling { until, .. } = &self.state { Some(*until) } else { None };
        self.orders.deadline().into_iter().chain(poll).min()
    }

    fn paused(&self) -> bool {
        matches!(self.state, State::Admission { .. } | State::Settling { .. })
    }
}

// === impl Talk: requests ===

impl Talk {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self {
            options,
            admitted: Admitted::default(),
            orders: Orders::default(),
            state: State::Open,
            told: false,
            last: false,
            wrong: 0,
            ticket_next: 0,
        }
    }

    fn stream(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        loop {
            if matches!(self.state, State::Polling { .. }) && !buffer.is_empty() {
                // Who sends the next request does not wait for an order any more.
                self.nothing(out);
            }
            match self.state {
                State::Open => {}
                State::Closed => {
                    buffer.clear();
                    return Ok(());
                }
                _ => return Ok(()),
            }
            match Frame::take(buffer, self.options.body_max(), self.told) {
                Ok(None) => return Ok(()),
                Ok(Some(Frame::Expecting)) => {
                    self.told = true;
                    out.send("HTTP/1.1 100 Continue\r\n\r\n");
                }
                Ok(Some(Frame::Unwanted { status, why })) => {
                    self.last = true;
                    return Err(self.refuse(&Refused::new(status, why), out));
                }
                Ok(Some(Frame::Whole { request, body })) => {
                    self.told = false;
                    self.last = !request.keeps_alive();
                    match self.begin(&request, body) {
                        Ok(ask) => self.ask(now, ask, request.method, out)?,
                        Err(refused) => return Err(self.refuse(&refused, out)),
                    }
                }
                Err(error) => {
                    let at = if let RequestError::Malformed { at, .. } = error { Some(at) } else { None };
                    self.state = State::Closed;
                    buffer.clear();
                    out.send(Answer::malformed(self.origin(), &error));
                    out.close("answered");
                    return Err(Fault { at, ..Fault::fatal(error.to_string()) });
                }
            }
        }
    }

    fn begin(&self, request: &Request, body: bytes::Bytes) -> Result<Ask, Refused> {
        // A browser asks no leave before it posts text to another site: that is for us to see to.
        let allowed = self.options.allow_origin.as_deref();
        let may = |origin: &str| allowed.is_some_and(|allowed| allowed == "*" || allowed == origin);
        if request.field("origin").is_some_and(|origin| !may(origin)) {
            return Err(Refused::new("403 Forbidden", "pages of this origin may not report here: see allow_origin"));
        }
        Ask::read(request, body, &self.options)
    }

    fn ask(&mut self, now: Instant, ask: Ask, method: Method, out: &mut Outbox) -> Result<(), Fault> {
        if ask.target == Target::Things {
            let text = self.answer("200 OK").text(MANUAL, method == Method::Head, self.last);
            self.answered(text, out);
            return Ok(());
        }
        let key = key_of(&ask);
        if let Some(by) = self.admitted.get(now, &key, ask.secret.as_ref()).cloned() {
            return self.carry_out(now, &by, &ask, out);
        }
        let ticket = self.ticket();
        let claim =
            Claim::Device { name: ask.target.device().to_owned(), user: ask.user.clone(), secret: ask.secret.clone() };
        out.push(Output::Admit { ticket, claim });
        self.state = State::Admission { ticket, ask: Box::new(ask) };
        Ok(())
    }

    fn admission(
        &mut self,
        now: Instant,
        answered: Ticket,
        outcome: Result<Identity, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let ask = match std::mem::replace(&mut self.state, State::Open) {
            State::Admission { ticket, ask } if ticket == answered => ask,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        match outcome {
            Ok(by) => {
                self.admitted.insert(now, &key_of(&ask), ask.secret.clone(), by.clone());
                self.carry_out(now, &by, &ask, out)
            }
            Err(refusal) => {
                self.refuse(&refused(&refusal), out);
                Ok(())
            }
        }
    }

    /// Does what the peer may ask for.
    fn carry_out(&mut self, now: Instant, by: &Identity, ask: &Ask, out: &mut Outbox) -> Result<(), Fault> {
        if let Target::Commands { device } = &ask.target {
            out.push(Output::Speaks { by: by.clone(), device: device.clone(), product: None });
            let wait = Duration::from_secs(ask.wait_s).max(POLL_MIN);
            self.state = State::Polling { device: device.clone(), until: now + wait };
            self.polled(out);
            return Ok(());
        }
        let reports = match reports(ask, by) {
            Ok(reports) => reports,
            Err(refused) => return Err(self.refuse(&refused, out)),
        };
        let left = reports.len();
        for report in reports {
            out.push(Output::Report { ticket: Some(self.ticket()), by: by.clone(), report });
        }
        self.state = State::Settling { last: self.ticket_next, left, refusal: None };
        Ok(())
    }

    fn settled(&mut self, ticket: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let State::Settling { last, left, refusal } = &mut self.state else { return };
        if ticket.0 > *last {
            return;
        }
        *left = left.saturating_sub(1);
        if refusal.is_none() {
            *refusal = outcome.err();
        }
        if *left > 0 {
            return;
        }
        match refusal.take() {
            None => self.nothing(out),
            Some(refusal) => {
                self.refuse(&refused(&refusal), out);
            }
        }
    }

    /// Gives a device that waits the oldest order there is.
    fn polled(&mut self, out: &mut Outbox) {
        let State::Polling { device, .. } = &self.state else { return };
        let Some(order) = self.orders.take_oldest(device) else { return };
        let answer = self.answer("200 OK").field("Content-Type", "application/json");
        let head = answer.field("Content-Length", &order.len().to_string()).head(self.last);
        self.answered([head.as_bytes(), &order].concat(), out);
    }
}

// === impl Talk: answers ===

impl Talk {
    fn answer(&self, status: &str) -> Answer {
        Answer::new(status, self.origin())
    }

    fn origin(&self) -> &str {
        self.options.allow_origin.as_deref().unwrap_or("null")
    }

    /// Done, and there is nothing to say.
    fn nothing(&mut self, out: &mut Outbox) {
        let answer = self.answer("204 No Content").head(self.last);
        self.answered(answer, out);
    }

    fn refuse(&mut self, refused: &Refused, out: &mut Outbox) -> Fault {
        self.wrong += 1;
        self.last |= self.wrong >= WRONG_MAX;
        let Refused { status, why, allow } = refused;
        let body = format!("{}\n", serde_json::json!({ "error": why }));
        let mut answer = self.answer(status).field("Content-Type", "application/json");
        match status.get(..3) {
            Some("401") => answer = answer.field("WWW-Authenticate", "Bearer"),
            Some("429" | "503") => answer = answer.field("Retry-After", "5"),
            _ => {}
        }
        if let Some(allow) = allow {
            answer = answer.field("Allow", allow);
        }
        let head = answer.field("Content-Length", &body.len().to_string()).head(self.last);
        self.answered(head + &body, out);
        Fault::recoverable(why.clone())
    }

    fn answered(&mut self, bytes: impl Into<bytes::Bytes>, out: &mut Outbox) {
        out.send(bytes);
        self.state = if self.last { State::Closed } else { State::Open };
        if self.last {
            out.close("answered");
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.ticket_next += 1;
        Ticket(self.ticket_next)
    }
}

// === private ===

/// Under what an admission is remembered.
fn key_of(ask: &Ask) -> String {
    // No name has a control character.
    format!("{}\0{}", ask.user.as_deref().unwrap_or_default(), ask.target.device())
}

/// What a request says: reports, or a device's answer to an order.
fn reports(ask: &Ask, by: &Identity) -> Result<Vec<Report>, Refused> {
    if let Target::Reply { device, id } = &ask.target {
        let word = Word::Reply { id: id.clone(), outcome: things::outcome(ask.value()?)? };
        return Ok(vec![Report { device: device.clone(), product: None, time_us: None, word }]);
    }
    let Some(device) = ask.target.device_of(by) else {
        return Err(Refused::new("401 Unauthorized", "the token belongs to no single device"));
    };
    ask.reports(&device)
}

fn refused(refusal: &Refusal) -> Refused {
    let status = if let Refusal::Limit(_) = refusal { "429 Too Many Requests" } else { status_of(refusal) };
    Refused::new(status, refusal.to_string())
}
