//! The talk: admission, reports in order, answers in order, commands and their replies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use device_models::{Command, Failure, Outcome, Report};

use super::Options;
use super::frame::{self, Splitter};
use super::line::{self, Echo, Line, Said, Wrong};
use crate::admitted::Admitted;
use crate::awaited::Awaited;
use crate::session::{Claim, Fault, Identity, Input, Outbox, Output, Peer, Refusal, Session, Ticket, Wire};

/// Lines of one peer that may wait for their answer. At one group commit every 100 ms that is 10,000 lines a second;
/// beyond it the session leaves the bytes where they are and TCP holds the peer back.
const WAITING_MAX: usize = 1024;

/// Bytes of those lines.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of datagrams that may wait for an admission: a few of the largest. What comes beyond is turned away.
const QUEUE_BYTES_MAX: usize = 4 * 64 * 1024;

/// Commands of one session on their way.
const COMMANDS_MAX: usize = 64;

/// Refused credentials in a row after which a connection is closed, so that guessing costs a connection each few tries.
const REFUSALS_MAX: u32 = 5;

/// The talk with one peer.
#[derive(Debug)]
pub(super) struct Talk {
    options: Arc<Options>,
    /// The device's name where neither options nor line give one.
    peer: Option<String>,
    wire: Wire,
    splitter: Splitter,
    admitted: Admitted,
    refusals: u32,
    ticket_next: u64,
    /// The line that waits for its admission; nothing is read past it.
    held: Option<Held>,
    /// Lines of datagrams behind it.
    queue: VecDeque<Bytes>,
    queue_bytes: usize,
    /// Lines without an answer yet, in the order they came in.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    commands: Awaited<(), COMMANDS_MAX>,
}

#[derive(Debug)]
struct Held {
    ticket: Ticket,
    echo: Echo,
    bytes: usize,
    report: Report,
    token: Option<Bytes>,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    echo: Echo,
    bytes: usize,
    outcome: Option<Result<(), String>>,
}

// === impl Session ===

impl Session for Talk {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.stream(now, buffer, out),
            Input::Datagram(packet) => self.datagram(now, &packet, out),
            Input::Admission { ticket, outcome } => {
                self.admission(now, ticket, outcome, out);
                self.drain(now, out)
            }
            Input::Settled { ticket, outcome } => {
                self.settled(ticket, outcome, out);
                self.drain(now, out)
            }
            Input::Command(command) => {
                self.command(now, &command, out);
                Ok(())
            }
            Input::Ended { .. } => {
                self.commands.abandon(out);
                Ok(())
            }
            Input::Exchange(_) | Input::Media(_) | Input::Piece { .. } => {
                Err(Fault::recoverable("raw has no exchange and no media").ours())
            }
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        self.commands.expire(now, out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.commands.deadline()
    }

    fn paused(&self) -> bool {
        !self.ready()
    }
}

// === impl Talk ===

impl Talk {
    pub(super) fn new(options: Arc<Options>, peer: &Peer) -> Self {
        let by_address =
            || peer.address.map_or_else(|| peer.adapter.to_string(), |a| a.ip().to_canonical().to_string());
        Self {
            peer: options.peer.then(by_address),
            wire: Wire::Stream,
            splitter: Splitter::new(options.framing, options.line_max()),
            admitted: Admitted::default(),
            refusals: 0,
            ticket_next: 0,
            held: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            commands: Awaited::default(),
            options,
        }
    }

    fn stream(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while self.ready() {
            match self.splitter.next(buffer) {
                None => break,
                Some(Ok(line)) => self.line(now, &line, out)?,
                Some(Err(frame::TooLong)) => return Err(self.too_long(out)),
            }
        }
        Ok(())
    }

    fn datagram(&mut self, now: Instant, packet: &Bytes, out: &mut Outbox) -> Result<(), Fault> {
        self.wire = Wire::Datagram;
        if self.queue_bytes + packet.len() > QUEUE_BYTES_MAX {
            return Err(Fault::recoverable("turned away: too many packets wait for their answer"));
        }
        for line in frame::split(self.options.framing, packet).filter(|line| !line.is_empty()) {
            self.queue_bytes += line.len();
            self.queue.push_back(line);
        }
        self.drain(now, out)
    }

    /// Reads the lines of datagrams as far as possible. A bad one does not take the next ones with it.
    fn drain(&mut self, now: Instant, out: &mut Outbox) -> Result<(), Fault> {
        let mut first = Ok(());
        while self.ready() {
            let Some(line) = self.queue.pop_front() else { break };
            self.queue_bytes -= line.len();
            let outcome =
                if line.len() > self.options.line_max() { Err(self.too_long(out)) } else { self.line(now, &line, out) };
            first = first.and(outcome);
        }
        first
    }

    /// Whether the next line may be read.
    fn ready(&self) -> bool {
        self.held.is_none() && self.waiting.len() < WAITING_MAX && self.waiting_bytes < WAITING_BYTES_MAX
    }

    fn line(&mut self, now: Instant, bytes: &Bytes, out: &mut Outbox) -> Result<(), Fault> {
        if bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        match line::read(&self.options, self.peer.as_deref(), bytes) {
            Ok(Line { echo, said: Said::Report { report, token } }) => {
                let held = Held { ticket: self.ticket(), echo, bytes: bytes.len(), report, token };
                self.report(now, held, out);
                Ok(())
            }
            Ok(Line { echo, said: Said::Reply { id, outcome } }) => self.reply(&id, outcome, echo, out),
            Err(Wrong { echo, what, at }) => {
                let fault = Fault { at, ..Fault::recoverable(what.clone()) };
                self.refuse(echo, fault.to_string(), out);
                Err(fault)
            }
        }
    }

    fn too_long(&mut self, out: &mut Outbox) -> Fault {
        let max = self.options.line_max();
        let fault = Fault::recoverable(format!("a line is longer than {max} bytes")).at(max);
        self.refuse(Echo::default(), fault.to_string(), out);
        fault
    }

    fn report(&mut self, now: Instant, held: Held, out: &mut Outbox) {
        if let Some(by) = self.admitted.get(now, &held.report.device, held.token.as_ref()).cloned() {
            self.submit(by, held, out);
            return;
        }
        let name = held.report.device.clone();
        let claim = Claim::Device { name, user: None, secret: held.token.clone() };
        out.push(Output::Admit { ticket: held.ticket, claim });
        self.held = Some(held);
    }

    fn admission(&mut self, now: Instant, ticket: Ticket, outcome: Result<Identity, Refusal>, out: &mut Outbox) {
        let Some(held) = self.held.take_if(|held| held.ticket == ticket) else { return };
        match outcome {
            Ok(by) => {
                self.refusals = 0;
                let device = &held.report.device;
                if self.admitted.insert(now, device, held.token.clone(), by.clone()) {
                    out.push(Output::Speaks { by: by.clone(), device: device.clone(), product: None });
                }
                self.submit(by, held, out);
            }
            Err(refusal) => {
                self.refusals += 1;
                self.refuse(held.echo, refusal.to_string(), out);
                if self.refusals >= REFUSALS_MAX && self.wire == Wire::Stream {
                    out.close(format!("{REFUSALS_MAX} refused credentials in a row"));
                }
            }
        }
    }

    fn submit(&mut self, by: Identity, held: Held, out: &mut Outbox) {
        let Held { ticket, echo, bytes, report, .. } = held;
        let ticket_if_answered = self.answers().then_some(ticket);
        if self.answers() {
            self.waiting_bytes += bytes;
            self.waiting.push_back(Waiting { ticket, echo, bytes, outcome: None });
        }
        out.push(Output::Report { ticket: ticket_if_answered, by, report });
    }

    fn settled(&mut self, ticket: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ticket == ticket) {
            waiting.outcome = Some(outcome.map_err(|refusal| refusal.to_string()));
        }
        self.flush(out);
    }

    /// Answers a line with an error, after the answers of the lines before it.
    fn refuse(&mut self, echo: Echo, why: String, out: &mut Outbox) {
        if self.answers() {
            let ticket = self.ticket();
            self.waiting.push_back(Waiting { ticket, echo, bytes: 0, outcome: Some(Err(why)) });
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut Outbox) {
        while let Some(Waiting { outcome: Some(outcome), echo, bytes, .. }) = self.waiting.front() {
            out.send(line::answer(echo, outcome.as_ref().copied().map_err(String::as_str)));
            self.waiting_bytes -= bytes;
            self.waiting.pop_front();
        }
    }

    fn command(&mut self, now: Instant, command: &Command, out: &mut Outbox) {
        if self.commands.is_full() {
            out.push(Output::Answer { id: command.id.clone(), outcome: Err(Failure::Busy) });
            return;
        }
        self.commands.add(now, command, ());
        out.send(line::order(&self.options, command));
    }

    fn reply(&mut self, id: &str, outcome: Outcome, echo: Echo, out: &mut Outbox) -> Result<(), Fault> {
        if !self.commands.take(id, None) {
            let fault = Fault::recoverable("a reply to no command that is on its way");
            self.refuse(echo, fault.to_string(), out);
            return Err(fault);
        }
        out.push(Output::Answer { id: id.to_owned(), outcome });
        Ok(())
    }

    fn answers(&self) -> bool {
        self.options.ack.unwrap_or(self.wire == Wire::Stream)
    }

    fn ticket(&mut self) -> Ticket {
        self.ticket_next += 1;
        Ticket(self.ticket_next)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use device_models::{Order, Value};

    use super::*;

    struct Bench {
        talk: Talk,
        now: Instant,
        out: Outbox,
    }

    impl Bench {
        fn new(options: &str) -> Self {
            let options: Options = toml::from_str(options).unwrap();
            options.check().unwrap();
            let address = Some("192.0.2.1:5".parse().unwrap());
            let peer = Peer { address, adapter: "a".into(), seed: [0; 32], secure: false };
            Self { talk: Talk::new(Arc::new(options), &peer), now: Instant::now(), out: Outbox::default() }
        }

        fn give(&mut self, input: Input<'_>) -> Vec<Output> {
            let _fault = self.talk.receive(self.now, input, &mut self.out);
            std::iter::from_fn(|| self.out.pop()).collect()
        }

        fn lines(&mut self, lines: &str) -> Vec<Output> {
            self.give(Input::Stream(&mut BytesMut::from(lines)))
        }

        fn admit(&mut self, ticket: u64) -> Vec<Output> {
            self.give(Input::Admission { ticket: Ticket(ticket), outcome: Ok(Identity::anonymous()) })
        }

        fn settle(&mut self, ticket: u64) -> String {
            sent(&self.give(Input::Settled { ticket: Ticket(ticket), outcome: Ok(()) }))
        }
    }

    fn sent(outputs: &[Output]) -> String {
        let text = |output: &Output| match output {
            Output::Send(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            _ => None,
        };
        outputs.iter().filter_map(text).collect()
    }

    #[test]
    fn answers_come_in_the_order_of_the_lines() {
        let mut bench = Bench::new("");
        bench.lines("{\"device\":\"d\",\"t\":1,\"seq\":1}\n");
        bench.admit(1);
        assert_eq!(sent(&bench.lines("{\"device\":\"d\",\"t\":2,\"seq\":2}\n")), "");
        assert_eq!(sent(&bench.lines("nonsense\n")), "", "an error waits for the answers before it");
        assert_eq!(bench.settle(2), "", "so does a report that is on disk earlier");
        let text = bench.settle(1);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["{\"ok\":true,\"seq\":1}", "{\"ok\":true,\"seq\":2}"]);
        assert!(lines[2].contains("\"ok\":false") && lines[2].contains("at byte 1"), "{text}");
    }

    #[test]
    fn nothing_is_read_past_a_line_that_waits_for_admission() {
        let mut bench = Bench::new("");
        let mut buffer = BytesMut::from("{\"device\":\"d\",\"t\":1}\n{\"device\":\"d\",\"t\":2}\n");
        let outputs = bench.give(Input::Stream(&mut buffer));
        assert!(matches!(outputs[..], [Output::Admit { .. }]));
        assert_eq!(&buffer[..], b"{\"device\":\"d\",\"t\":2}\n");
        assert!(matches!(bench.admit(1)[..], [Output::Speaks { .. }, Output::Report { ticket: Some(_), .. }]));
    }

    #[test]
    fn refused_credentials_are_answered_and_then_cost_the_connection() {
        let mut bench = Bench::new("");
        for n in 1..=5 {
            bench.lines("{\"device\":\"d\",\"token\":\"bad\",\"t\":1}\n");
            let ticket = bench.talk.held.as_ref().unwrap().ticket;
            let outputs = bench.give(Input::Admission { ticket, outcome: Err(Refusal::Unauthorized) });
            assert!(sent(&outputs).contains("wrong or missing credentials"));
            assert_eq!(outputs.iter().any(|output| matches!(output, Output::Close { .. })), n == 5);
        }
    }

    #[test]
    fn waiting_answers_hold_the_peer_back() {
        let mut bench = Bench::new("");
        bench.lines("{\"device\":\"d\",\"t\":1}\n");
        bench.admit(1);
        let mut buffer = BytesMut::from("{\"device\":\"d\",\"t\":1}\n".repeat(WAITING_MAX).as_str());
        assert_eq!(bench.give(Input::Stream(&mut buffer)).len(), WAITING_MAX - 1);
        assert!(!buffer.is_empty(), "the bytes stay where TCP holds the peer back");
        bench.settle(1);
        assert_eq!(bench.give(Input::Stream(&mut buffer)).len(), 1);
    }

    #[test]
    fn a_command_is_a_line_and_so_is_its_reply() {
        let mut bench = Bench::new("");
        let order = Order::Write(vec![("target".to_owned(), Value::Int(60))]);
        let command = Command {
            id: "c1".to_owned(),
            device: "d".to_owned(),
            product: String::new(),
            order,
            patience: std::time::Duration::from_secs(5),
        };
        let line = sent(&bench.give(Input::Command(command.clone())));
        assert_eq!(line, "{\"device\":\"d\",\"id\":\"c1\",\"write\":{\"target\":60}}\n");
        let outputs = bench.lines("{\"reply\":\"c1\",\"ok\":true,\"data\":{\"target\":60}}\n");
        assert!(matches!(&outputs[..], [Output::Answer { id, outcome: Ok(Value::Object(_)) }] if id == "c1"));
        assert!(sent(&bench.lines("{\"reply\":\"c1\"}\n")).contains("no command"), "only once");

        bench.give(Input::Command(command));
        bench.now = bench.talk.deadline().unwrap();
        bench.talk.tick(bench.now, &mut bench.out);
        assert!(matches!(bench.out.pop(), Some(Output::Answer { outcome: Err(Failure::Silent(_)), .. })));
        assert_eq!(bench.talk.deadline(), None);
    }

    #[test]
    fn datagrams_are_not_answered_and_a_bad_line_spares_the_next() {
        let mut bench = Bench::new("peer = true");
        let outputs = bench.give(Input::Datagram(Bytes::from_static(b"oops\n{\"t\":1}\n{\"t\":2}")));
        assert!(
            matches!(&outputs[..], [Output::Admit { claim: Claim::Device { name, .. }, .. }] if name == "192.0.2.1")
        );
        let outputs = bench.admit(1);
        assert!(matches!(
            outputs[..],
            [Output::Speaks { .. }, Output::Report { ticket: None, .. }, Output::Report { ticket: None, .. }]
        ));
    }

    #[test]
    fn options_that_clash_are_refused() {
        for wrong in ["line_kib = 0", "device_field = \"id\"", "time_field = \"device\"", "device = \"\""] {
            let options: Options = toml::from_str(wrong).unwrap();
            assert!(options.check().is_err(), "{wrong}");
        }
        assert!(toml::from_str::<Options>("framing = \"stx-etx\"").is_err());
    }
}
