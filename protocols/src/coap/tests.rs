//! The talk on virtual time, against the RFCs' rules.

#![allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::{Command, Failure, Order, Report, Value, Word};

use super::frame::{Code, Kind, Message, decode, number, uint};
use super::session::Talk;
use super::{Options, blocks::Block};
use crate::session::{Claim, Identity, Input, Outbox, Output, Peer, Reach, Refusal, Session, Ticket};

struct Bench {
    talk: Talk,
    now: Instant,
    out: Outbox,
}

impl Bench {
    fn new() -> Self {
        let options = Options { body_kib: 1, ..Options::default() };
        options.check().unwrap();
        let peer = Peer { address: None, adapter: "a".into(), seed: [9; 32], secure: false };
        Self { talk: Talk::new(Arc::new(options), &peer), now: Instant::now(), out: Outbox::default() }
    }

    fn give(&mut self, input: Input<'_>) -> Vec<Output> {
        // Faults have tests of their own; here the answers count.
        let _fault = self.talk.receive(self.now, input, &mut self.out).is_err();
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.out.pop()).collect()
    }

    fn ask(&mut self, message: &Message) -> Vec<Output> {
        self.give(Input::Datagram(message.encode()))
    }

    /// Sends a request, says yes to its admission, and leaves its reports unsettled.
    fn ask_admitted(&mut self, message: &Message) -> Vec<Output> {
        let outputs = self.ask(message);
        match outputs[..] {
            [Output::Admit { ticket, .. }] => {
                self.give(Input::Admission { ticket, outcome: Ok(Identity::anonymous()) })
            }
            _ => outputs,
        }
    }

    fn settle(&mut self, ticket: Ticket, outcome: Result<(), Refusal>) -> Message {
        one_message(&self.give(Input::Settled { ticket, outcome }))
    }

    fn pass_deadline(&mut self) -> Vec<Output> {
        self.now = self.talk.deadline().expect("a deadline");
        self.talk.tick(self.now, &mut self.out);
        self.outputs()
    }
}

fn request(kind: Kind, code: Code, id: u16, path: &[&'static str], body: &'static [u8]) -> Message {
    let mut message = Message::new(kind, code, id);
    message.token = Bytes::copy_from_slice(&id.to_be_bytes());
    message.options = path.iter().map(|segment| (number::URI_PATH, Bytes::from(*segment))).collect();
    message.payload = Bytes::from_static(body);
    message
}

fn report(id: u16) -> Message {
    request(Kind::Confirmable, Code::POST, id, &["things", "d", "properties"], b"{\"t\":1}")
}

fn messages(outputs: &[Output]) -> Vec<Message> {
    let read = |output: &Output| match output {
        Output::Send(packet) => Some(decode(packet, 2000).expect("what we send is CoAP")),
        _ => None,
    };
    outputs.iter().filter_map(read).collect()
}

fn one_message(outputs: &[Output]) -> Message {
    let [message] = &messages(outputs)[..] else { panic!("not one message: {outputs:?}") };
    message.clone()
}

fn reports(outputs: &[Output]) -> Vec<(Ticket, Report)> {
    let read = |output: &Output| match output {
        Output::Report { ticket: Some(ticket), report, .. } => Some((*ticket, report.clone())),
        _ => None,
    };
    outputs.iter().filter_map(read).collect()
}

#[test]
fn a_report_is_acknowledged_once_it_is_settled() {
    let mut bench = Bench::new();
    let outputs = bench.ask_admitted(&report(1));
    assert!(messages(&outputs).is_empty(), "nothing is acknowledged before it is on disk");
    let [(ticket, report)] = &reports(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(report.word, Word::Properties(vec![("t".to_owned(), Value::Int(1))]));
    let answer = bench.settle(*ticket, Ok(()));
    assert_eq!((answer.kind, answer.code, answer.id), (Kind::Acknowledgement, Code::CHANGED, 1));
    assert_eq!(&answer.token[..], [0, 1]);
    assert_eq!(bench.talk.deadline(), None);
}

#[test]
fn a_repeated_request_is_answered_again_and_not_run_again() {
    let mut bench = Bench::new();
    let outputs = bench.ask_admitted(&report(1));
    assert!(bench.ask(&report(1)).is_empty(), "still at work");
    let answer = bench.settle(reports(&outputs)[0].0, Ok(()));
    let again = bench.ask(&report(1));
    assert_eq!(messages(&again), [answer]);
    assert!(reports(&again).is_empty());
    bench.now += Duration::from_secs(248);
    assert_eq!(reports(&bench.ask(&report(1))).len(), 1, "the id means a new message after EXCHANGE_LIFETIME");
}

#[test]
fn a_slow_settlement_is_answered_separately_and_repeated_until_acknowledged() {
    let mut bench = Bench::new();
    let outputs = bench.ask_admitted(&report(1));
    let empty = one_message(&bench.pass_deadline());
    assert_eq!((empty.kind, empty.code, empty.id), (Kind::Acknowledgement, Code::EMPTY, 1));
    assert_eq!(messages(&bench.ask(&report(1))), [empty], "a repetition gets the empty acknowledgement again");
    let response = bench.settle(reports(&outputs)[0].0, Ok(()));
    assert_eq!((response.kind, response.code), (Kind::Confirmable, Code::CHANGED));
    assert_eq!(&response.token[..], [0, 1]);
    for _ in 0..2 {
        assert_eq!(one_message(&bench.pass_deadline()), response);
    }
    bench.ask(&Message::new(Kind::Acknowledgement, Code::EMPTY, response.id));
    assert_eq!(bench.talk.deadline(), None);
}

#[test]
fn refusals_have_their_codes() {
    let cases = [
        (Refusal::Unauthorized, (4, 1)),
        (Refusal::Forbidden(String::new()), (4, 3)),
        (Refusal::NotFound(String::new()), (4, 4)),
        (Refusal::Invalid("no".repeat(500)), (4, 0)),
        (Refusal::Limit(String::new()), (4, 29)),
        (Refusal::Unavailable(String::new()), (5, 3)),
    ];
    let mut bench = Bench::new();
    for (id, (refusal, (class, detail))) in cases.into_iter().enumerate() {
        let outputs = bench.ask_admitted(&report(id as u16));
        let answer = bench.settle(reports(&outputs)[0].0, Err(refusal.clone()));
        assert_eq!(answer.code, Code(class << 5 | detail), "{refusal:?}");
        assert!(!answer.payload.is_empty() && answer.payload.len() <= 200, "a short diagnostic");
    }
    let outputs = Bench::new().ask(&report(1));
    let [Output::Admit { ticket, .. }] = outputs[..] else { panic!("{outputs:?}") };
    let mut bench = Bench::new();
    bench.ask(&report(1));
    let outputs = bench.give(Input::Admission { ticket, outcome: Err(Refusal::Unauthorized) });
    assert_eq!(one_message(&outputs).code, Code::UNAUTHORIZED);
}

#[test]
fn wrong_requests_have_their_codes() {
    let post = |id, path: &[&'static str], body| request(Kind::Confirmable, Code::POST, id, path, body);
    let with = |mut message: Message, number: u16, value: &'static [u8]| {
        message.options.push((number, Bytes::from_static(value)));
        message.options.sort_by_key(|(number, _)| *number);
        message
    };
    let cases = [
        (post(1, &["nowhere"], b""), Code::NOT_FOUND),
        (request(Kind::Confirmable, Code::GET, 2, &["things", "d", "properties"], b""), Code::METHOD_NOT_ALLOWED),
        (request(Kind::Confirmable, Code(4), 3, &["things", "d", "properties"], b""), Code::METHOD_NOT_ALLOWED),
        (with(report(4), number::CONTENT_FORMAT, &[41]), Code::UNSUPPORTED_CONTENT_FORMAT),
        (with(report(5), 2049, b"?"), Code::BAD_OPTION),
        (with(report(6), number::URI_QUERY, &[0xff]), Code::BAD_OPTION),
        (with(report(7), number::PROXY_URI, b"coap://x"), Code::PROXYING_NOT_SUPPORTED),
        (with(report(8), number::BLOCK1, &[0x07]), Code::BAD_REQUEST),
        (with(report(9), number::URI_QUERY, b"t=noon"), Code::BAD_REQUEST),
        (post(10, &["things", "", "properties"], b"{}"), Code::BAD_REQUEST),
        (with(with(report(11), number::ACCEPT, &[50]), number::ACCEPT, &[60]), Code::BAD_OPTION),
    ];
    let mut bench = Bench::new();
    for (message, code) in cases {
        let answer = one_message(&bench.ask(&message));
        assert_eq!((answer.code, answer.id), (code, message.id), "{message:?}");
    }
    // Elective options that nobody knows are passed over.
    assert!(matches!(bench.ask(&with(report(12), 2048, b"?"))[..], [Output::Admit { .. }]));
    for (id, body) in [(13, &b"{\"t\":"[..]), (14, b"[]"), (15, b"7"), (16, b"{}"), (17, b"{\"time\":true,\"t\":1}")] {
        let answer = one_message(&bench.ask_admitted(&post(id, &["things", "d", "properties"], body)));
        assert_eq!(answer.code, Code::BAD_REQUEST, "{id}");
    }
    // Not confirmable and a critical option that nobody knows: reset.
    let mut message = with(report(18), 2049, b"?");
    message.kind = Kind::NonConfirmable;
    assert_eq!(one_message(&bench.ask(&message)).kind, Kind::Reset);
}

#[test]
fn pings_are_reset_and_stray_responses_too() {
    let mut bench = Bench::new();
    let ping = Message::new(Kind::Confirmable, Code::EMPTY, 5);
    let stray = Message::new(Kind::Confirmable, Code::CONTENT, 6);
    for message in [ping, stray] {
        let answer = one_message(&bench.ask(&message));
        assert_eq!((answer.kind, answer.code, answer.id), (Kind::Reset, Code::EMPTY, message.id));
    }
    for kind in [Kind::Acknowledgement, Kind::Reset, Kind::NonConfirmable] {
        assert!(bench.ask(&Message::new(kind, Code::EMPTY, 7)).is_empty());
    }
}

#[test]
fn a_nonconfirmable_request_has_a_nonconfirmable_response_and_runs_once() {
    let mut bench = Bench::new();
    let message = Message { kind: Kind::NonConfirmable, ..report(1) };
    let outputs = bench.ask_admitted(&message);
    assert_eq!(bench.talk.deadline(), None, "nothing to acknowledge");
    let answer = bench.settle(reports(&outputs)[0].0, Ok(()));
    assert_eq!((answer.kind, answer.code), (Kind::NonConfirmable, Code::CHANGED));
    assert!(bench.ask(&message).is_empty());
}

#[test]
fn bodies_in_every_form() {
    let cbor: &[u8] = &[0xa1, 0x61, b't', 0xfb, 0x40, 0x35, 0x80, 0, 0, 0, 0, 0];
    let t = |value| Word::Properties(vec![("t".to_owned(), value)]);
    let event = |data| Word::Event { name: "e".to_owned(), data };
    type Case = (&'static [&'static str], Option<u32>, &'static [u8], Word, Option<i64>);
    let cases: Vec<Case> = vec![
        (&["things", "d", "properties"], Some(60), cbor, t(Value::Float(21.5)), None),
        (&["things", "d", "properties"], None, cbor, t(Value::Float(21.5)), None),
        (
            &["things", "d", "properties"],
            Some(50),
            b"{\"time\":2,\"properties\":{\"t\":1}}",
            t(Value::Int(1)),
            Some(2_000_000),
        ),
        (&["things", "d", "properties"], Some(50), b"{\"time\":2,\"t\":1}", t(Value::Int(1)), Some(2_000_000)),
        (&["things", "d", "properties", "t"], None, b"21.5", t(Value::Float(21.5)), None),
        (&["things", "d", "properties", "t"], Some(0), b"on", t(Value::Text("on".to_owned())), None),
        (&["things", "d", "properties", "t"], Some(50), b"[1]", t(Value::Array(vec![Value::Int(1)])), None),
        (&["things", "d", "events", "e"], None, b"", event(Value::Null), None),
        (&["things", "d", "events", "e"], Some(50), b"{\"data\":1,\"time\":3}", event(Value::Int(1)), Some(3_000_000)),
        (&["things", "d", "events", "e"], Some(0), b"hot", event(Value::Text("hot".to_owned())), None),
    ];
    for (id, (path, format, body, word, time_us)) in cases.into_iter().enumerate() {
        let mut message = request(Kind::Confirmable, Code::POST, id as u16, path, body);
        if let Some(format) = format {
            message = message.with_uint(number::CONTENT_FORMAT, format);
        }
        let outputs = Bench::new().ask_admitted(&message);
        let [(_, report)] = &reports(&outputs)[..] else { panic!("{id}: {outputs:?}") };
        assert_eq!((&report.word, report.time_us, report.device.as_str()), (&word, time_us, "d"), "case {id}");
    }
}

#[test]
fn an_array_is_settled_when_all_of_it_is() {
    let mut bench = Bench::new();
    let body = b"[{\"t\":1},{\"t\":2},{\"t\":3}]";
    let outputs = bench.ask_admitted(&request(Kind::Confirmable, Code::POST, 1, &["things", "d", "properties"], body));
    let reports = reports(&outputs);
    assert_eq!(reports.len(), 3);
    assert!(bench.give(Input::Settled { ticket: reports[2].0, outcome: Ok(()) }).is_empty());
    let refusal = Err(Refusal::Invalid("t".to_owned()));
    assert!(bench.give(Input::Settled { ticket: reports[0].0, outcome: refusal }).is_empty());
    assert_eq!(bench.settle(reports[1].0, Ok(())).code, Code::BAD_REQUEST);
}

#[test]
fn things_boards_path_takes_the_device_from_the_token() {
    let message = request(
        Kind::Confirmable,
        Code::POST,
        1,
        &["api", "v1", "secret", "telemetry"],
        b"{\"ts\":2,\"values\":{\"t\":1}}",
    );
    let mut bench = Bench::new();
    let outputs = bench.ask(&message);
    let [Output::Admit { ticket, claim: Claim::Device { name, secret, .. } }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!((name.as_str(), secret.as_deref()), ("", Some(&b"secret"[..])));
    let identity = Identity { name: "key".into(), reach: Reach::Only(Arc::from([Box::from("boiler")])) };
    let outputs = bench.give(Input::Admission { ticket: *ticket, outcome: Ok(identity) });
    assert_eq!(reports(&outputs)[0].1.device, "boiler");
    assert_eq!(reports(&outputs)[0].1.time_us, Some(2_000_000));
    // Whoever is let in without a name of his own has no device here.
    let answer = one_message(&Bench::new().ask_admitted(&message));
    assert_eq!(answer.code, Code::UNAUTHORIZED);
}

#[test]
fn a_body_in_blocks_is_one_report() {
    let mut bench = Bench::new();
    let body = b"{\"t\":1,\"text\":\"0123456789\"}";
    let mut outputs = Vec::new();
    for (number, piece) in body.chunks(16).enumerate() {
        let block = Block { number: number as u32, more: number == 0, exponent: 0 };
        let mut message = report(number as u16).with_uint(number::BLOCK1, block.value());
        message.payload = Bytes::from_static(piece);
        outputs = bench.ask_admitted(&message);
        if block.more {
            let answer = one_message(&outputs);
            assert_eq!(answer.code, Code::CONTINUE);
            assert_eq!(answer.values(number::BLOCK1).next(), message.values(number::BLOCK1).next());
        }
    }
    let reports = reports(&outputs);
    assert_eq!(reports.len(), 1);
    let answer = bench.settle(reports[0].0, Ok(()));
    assert_eq!(answer.values(number::BLOCK1).next().map(|value| &value[..]), Some(&[0x10][..]));

    let late = report(9).with_uint(number::BLOCK1, Block { number: 3, more: true, exponent: 0 }.value());
    let late = Message { payload: Bytes::from_static(&[b' '; 16]), ..late };
    assert_eq!(one_message(&bench.ask(&late)).code, Code::REQUEST_ENTITY_INCOMPLETE);
}

#[test]
fn what_is_too_large_is_said_with_the_size() {
    let mut bench = Bench::new();
    let answer = one_message(
        &bench.give(Input::Datagram(Message { payload: Bytes::from_static(&[b' '; 1150]), ..report(1) }.encode())),
    );
    assert_eq!(answer.code, Code::REQUEST_ENTITY_TOO_LARGE);
    assert_eq!(answer.values(number::SIZE1).next().and_then(|value| uint(value, 4)), Some(1024));
    assert_eq!(&answer.token[..], [0, 1]);
}

#[test]
fn long_pages_come_in_blocks() {
    let mut bench = Bench::new();
    let core = |id| request(Kind::Confirmable, Code::GET, id, &[".well-known", "core"], b"");
    let page = one_message(&bench.ask(&core(1)));
    assert_eq!(page.values(number::BLOCK2).count(), 0);
    let whole = String::from_utf8(page.payload.to_vec()).unwrap();
    let mut text = String::new();
    for block in 0..100 {
        let asked =
            core(block + 2).with_uint(number::BLOCK2, Block { number: block.into(), more: false, exponent: 1 }.value());
        let page = one_message(&bench.ask(&asked));
        text.push_str(std::str::from_utf8(&page.payload).unwrap());
        if !Block::read(&page, number::BLOCK2).unwrap().unwrap().more {
            break;
        }
    }
    assert_eq!(text, whole);
    let beyond = core(200).with_uint(number::BLOCK2, Block { number: 99, more: false, exponent: 6 }.value());
    assert_eq!(one_message(&bench.ask(&beyond)).code, Code::BAD_REQUEST);
}

fn command(id: &str) -> Command {
    Command {
        id: id.to_owned(),
        device: "d".to_owned(),
        product: String::new(),
        order: Order::Invoke { action: "vent".to_owned(), input: Value::Int(3) },
        patience: Duration::from_secs(600),
    }
}

fn observe(bench: &mut Bench) {
    let ask = request(Kind::Confirmable, Code::GET, 1, &["things", "d", "commands"], b"").with_uint(number::OBSERVE, 0);
    let outputs = bench.ask_admitted(&ask);
    let answer = one_message(&outputs);
    assert_eq!((answer.code, &answer.payload[..]), (Code::CONTENT, &b"null"[..]));
    assert_eq!(answer.values(number::OBSERVE).count(), 1);
    assert!(outputs.iter().any(|output| matches!(output, Output::Speaks { device, .. } if device == "d")));
}

#[test]
fn an_observed_order_reaches_the_device_and_its_reply_comes_back() {
    let mut bench = Bench::new();
    let outputs = bench.give(Input::Command(command("c0")));
    assert!(matches!(&outputs[..], [Output::Answer { outcome: Err(Failure::Unsupported(_)), .. }]), "nobody observes");
    observe(&mut bench);
    let notification = one_message(&bench.give(Input::Command(command("c1"))));
    assert_eq!(
        (notification.kind, notification.code, &notification.token[..]),
        (Kind::Confirmable, Code::CONTENT, &[0, 1][..])
    );
    assert_eq!(&notification.payload[..], b"{\"id\":\"c1\",\"input\":3,\"invoke\":\"vent\"}");
    bench.ask(&Message::new(Kind::Acknowledgement, Code::EMPTY, notification.id));
    let reply =
        |id| request(Kind::Confirmable, Code::POST, id, &["things", "d", "replies", "c1"], b"{\"ok\":true,\"data\":7}");
    let outputs = bench.ask(&reply(2));
    assert!(matches!(&outputs[0], Output::Answer { id, outcome: Ok(Value::Int(7)) } if id == "c1"), "{outputs:?}");
    assert_eq!(one_message(&outputs).code, Code::CHANGED);
    assert_eq!(one_message(&bench.ask(&reply(3))).code, Code::NOT_FOUND, "only once");
    assert_eq!(bench.talk.deadline(), None);
}

#[test]
fn an_observer_that_resets_or_never_acknowledges_is_none() {
    for resets in [true, false] {
        let mut bench = Bench::new();
        observe(&mut bench);
        let notification = one_message(&bench.give(Input::Command(command("c1"))));
        let mut outputs = Vec::new();
        if resets {
            outputs = bench.ask(&Message::new(Kind::Reset, Code::EMPTY, notification.id));
        } else {
            let mut resent = 0;
            while !outputs.iter().any(|output| matches!(output, Output::Answer { .. })) {
                outputs = bench.pass_deadline();
                resent += messages(&outputs).len();
            }
            assert_eq!(resent, 4);
        }
        assert!(matches!(&outputs[..], [Output::Answer { outcome: Err(Failure::Offline), .. }]), "{outputs:?}");
        let outputs = bench.give(Input::Command(command("c2")));
        assert!(matches!(&outputs[..], [Output::Answer { outcome: Err(Failure::Unsupported(_)), .. }]));
    }
}

#[test]
fn requests_without_an_answer_are_bounded() {
    let mut bench = Bench::new();
    let outputs = bench.ask_admitted(&report(0));
    assert_eq!(reports(&outputs).len(), 1);
    let answers: Vec<Message> = (1..200).flat_map(|id| messages(&bench.ask(&report(id)))).collect();
    assert!(answers.len() > 100 && answers.iter().all(|answer| answer.code == Code::SERVICE_UNAVAILABLE));
}
