//! Talks that captures do not hold: refusals, pings, acknowledgements, goodbyes, and our own publisher against us.

use super::*;
use crate::media::Unit;
use crate::media::flv::{Demux, take_tag};
use crate::media::mux::{Tracks, mux};
use crate::rtmp::client::{ClientError, Event, Publisher, Target};
use crate::session::Identity;

const CLIP: &[u8] = include_bytes!("../../media/testdata/ffmpeg_h264_aac.flv");

/// A peer that went through the handshake and writes commands.
struct Talk {
    session: RtmpSession,
    writer: Writer,
    out: Outbox,
    connected: bool,
}

#[allow(clippy::disallowed_methods, reason = "the session is handed a time and does not look at it")]
fn now() -> Instant {
    Instant::now()
}

impl Talk {
    fn new() -> Self {
        let session = RtmpSession::new([1; 32], 1 << 20);
        let mut talk = Self { session, writer: Writer::new(), out: Outbox::default(), connected: false };
        let hello = [&handshake::hello(&[2; 32])[..], &[0; handshake::PACKET_LEN]].concat();
        talk.feed(&hello).unwrap();
        talk.out = Outbox::default();
        talk
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut buffer = BytesMut::from(bytes);
        let outcome = self.session.receive(now(), Input::Stream(&mut buffer), &mut self.out);
        assert!(outcome.is_err() || self.session.paused() || buffer.is_empty());
        outcome
    }

    fn call(&mut self, name: &str, transaction: f64, arguments: &[Value]) -> Result<(), Fault> {
        let mut bytes = BytesMut::new();
        self.writer.command(name, transaction, arguments, 0, &mut bytes);
        self.feed(&bytes)
    }

    fn connected(app: &str) -> Self {
        let mut talk = Self::new();
        talk.call("connect", 1.0, &[Value::object([("app", app.into())])]).unwrap();
        talk.out = Outbox::default();
        talk.connected = true;
        talk
    }

    fn admit(&mut self, outcome: Result<Identity, Refusal>) -> Option<Claim> {
        while let Some(output) = self.out.pop() {
            if let Output::Admit { ticket, claim } = output {
                self.session.receive(now(), Input::Admission { ticket, outcome }, &mut self.out).unwrap();
                return Some(claim);
            }
        }
        None
    }

    /// Everything said to the peer as messages, and the other outputs in short.
    fn said(&mut self) -> (Vec<Message>, Vec<String>) {
        let (mut bytes, mut others) = (BytesMut::new(), Vec::new());
        while let Some(output) = self.out.pop() {
            match output {
                Output::Send(more) => bytes.extend_from_slice(&more),
                Output::Source { stream } => others.push(format!("source {stream}")),
                Output::Watch { stream, .. } => others.push(format!("watch {stream}")),
                Output::Unit(unit) => others.push(format!("unit {}", unit.dts_ms())),
                Output::Close { reason } => others.push(format!("close {reason}")),
                other => others.push(format!("{other:?}")),
            }
        }
        let mut reader = ChunkReader::new(1 << 20);
        let set = [2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 1, 0, 0];
        if self.connected {
            reader.read(&mut BytesMut::from(&set[..])).unwrap();
        }
        let messages = std::iter::from_fn(|| reader.read(&mut bytes).unwrap()).collect();
        (messages, others)
    }
}

fn codes(messages: &[Message]) -> Vec<String> {
    let commands = messages.iter().filter(|message| message.type_id == kind::COMMAND);
    let text = |message: &Message| {
        let command = Command::parse(message).unwrap();
        let code = command.arguments.get(1).and_then(|info| info.get("code")).and_then(Value::as_str);
        code.map_or_else(|| command.name.clone(), str::to_owned)
    };
    commands.map(text).collect()
}

#[test]
fn keys_come_with_the_name_or_with_the_app() {
    for (app, name, query) in [
        ("live", "x?key=a", "key=a"),
        ("live?key=b", "x", "key=b"),
        ("live/?key=b", "x?key=a&z=1", "key=a&z=1"),
        ("live?key=b", "x?hevc=legacy", "key=b"),
        ("live", "x?exp=1&sig=00", "exp=1&sig=00"),
        ("live", "x?token=1", "token=1"),
    ] {
        let mut talk = Talk::connected(app);
        talk.call("publish", 0.0, &[Value::Null, name.into(), "live".into()]).unwrap();
        let stream = StreamName::parse("live/x").unwrap();
        let claim = talk.admit(Ok(Identity::anonymous()));
        assert_eq!(claim, Some(Claim::Publish { stream, pass: Pass::of_query(query) }), "{app} {name}");
        let (messages, others) = talk.said();
        assert_eq!((codes(&messages), others), (vec!["NetStream.Publish.Start".into()], vec!["source live/x".into()]));
    }
}

#[test]
fn no_media_moves_before_the_answer() {
    let mut talk = Talk::connected("live");
    let mut bytes = BytesMut::new();
    talk.writer.command("publish", 0.0, &[Value::Null, "x".into()], 1, &mut bytes);
    talk.writer.values(kind::DATA, 1, &["onMetaData".into(), Value::Null], &mut bytes);
    let outcome = talk.session.receive(now(), Input::Stream(&mut bytes), &mut talk.out);
    assert_eq!((outcome, talk.session.paused(), bytes.is_empty()), (Ok(()), true, false));
    assert!(talk.admit(Ok(Identity::anonymous())).is_some());
    talk.feed(&bytes).unwrap();
    assert_eq!(talk.said().1, ["source live/x", "unit 0"]);
}

#[test]
fn refusals_have_their_codes_and_end_the_talk() {
    for (method, refusal, code) in [
        ("publish", Refusal::Unauthorized, "NetStream.Publish.Denied"),
        ("publish", Refusal::Forbidden("no".into()), "NetStream.Publish.Denied"),
        ("publish", Refusal::Unavailable("busy".into()), "NetStream.Publish.BadName"),
        ("publish", Refusal::Limit("256".into()), "NetStream.Publish.Rejected"),
        ("play", Refusal::NotFound("x".into()), "NetStream.Play.StreamNotFound"),
        ("play", Refusal::Unauthorized, "NetStream.Play.Failed"),
    ] {
        let mut talk = Talk::connected("live");
        talk.call(method, 0.0, &[Value::Null, "x".into()]).unwrap();
        talk.admit(Err(refusal.clone())).unwrap();
        let (messages, others) = talk.said();
        assert_eq!((codes(&messages), others), (vec![code.to_owned()], vec![format!("close {refusal}")]));
    }
}

#[test]
fn what_comes_behind_the_reason_for_a_close_means_nothing() {
    let mut behind = BytesMut::new();
    Writer::new().values(kind::VIDEO, 1, &[Value::Null], &mut behind);
    Writer::new().command("publish", 0.0, &[Value::Null, "x".into()], 1, &mut behind);
    let mut talk = Talk::connected("live");
    let mut bytes = BytesMut::new();
    talk.writer.command("publish", 0.0, &[Value::Null, "..".into()], 1, &mut bytes);
    talk.feed(&[&bytes[..], &behind].concat()).unwrap();
    talk.feed(&behind).unwrap();
    assert_eq!(talk.said().1, ["close stream name not valid"]);
    // The same after the end of what was published.
    let mut talk = Talk::connected("live");
    talk.call("publish", 0.0, &[Value::Null, "x".into()]).unwrap();
    talk.admit(Ok(Identity::anonymous())).unwrap();
    bytes.clear();
    talk.writer.command("deleteStream", 0.0, &[Value::Null, 1.0.into()], 0, &mut bytes);
    talk.feed(&[&bytes[..], &behind].concat()).unwrap();
    assert_eq!(talk.said().1, ["source live/x", "close the publisher ended the stream"]);
}

#[test]
fn names_that_are_none_are_refused_without_asking() {
    for name in ["..", "a b", "a/b/c/d", "", "%2e%2e", "x\0y"] {
        let mut talk = Talk::connected("live");
        talk.call("publish", 0.0, &[Value::Null, name.into()]).unwrap();
        let (messages, others) = talk.said();
        assert_eq!(codes(&messages), ["NetStream.Publish.BadName"], "{name:?}");
        assert_eq!(others, ["close stream name not valid"], "{name:?}");
    }
    let mut talk = Talk::new();
    talk.call("connect", 1.0, &[Value::object([("app", "".into())])]).unwrap();
    assert_eq!(codes(&talk.said().0), ["NetConnection.Connect.Rejected"]);
}

#[test]
fn a_player_is_told_the_beginning_and_the_end() {
    let mut talk = Talk::connected("live");
    talk.call("createStream", 2.0, &[Value::Null]).unwrap();
    talk.call("getStreamLength", 3.0, &[Value::Null, "x".into()]).unwrap();
    talk.call("play", 4.0, &[Value::Null, "x".into(), Value::Number(-2000.0)]).unwrap();
    talk.admit(Ok(Identity::anonymous())).unwrap();
    let (messages, others) = talk.said();
    assert_eq!(codes(&messages), ["NetStream.Play.Reset", "NetStream.Play.Start"]);
    assert_eq!(user_control(&messages[0].payload), Some((event::STREAM_BEGIN, 1)));
    assert_eq!(others, ["watch live/x"]);
    talk.call("pause", 5.0, &[Value::Null, Value::Boolean(true), 0.0.into()]).unwrap();
    assert_eq!(codes(&talk.said().0), ["_result"]);
    talk.session.receive(now(), Input::Ended { reason: "the source left" }, &mut talk.out).unwrap();
    let (messages, _) = talk.said();
    assert_eq!(user_control(&messages[0].payload), Some((event::STREAM_EOF, 1)));
    assert_eq!(codes(&messages), ["NetStream.Play.UnpublishNotify"]);
}

#[test]
fn a_viewers_session_is_small() {
    let mut talk = Talk::connected("live");
    talk.call("play", 4.0, &[Value::Null, "x".into()]).unwrap();
    talk.admit(Ok(Identity::anonymous())).unwrap();
    let bytes = size_of::<RtmpSession>() + talk.session.reader.memory() + talk.session.app.capacity();
    assert!(bytes <= 512, "{bytes} bytes a viewer");
}

#[test]
fn commands_out_of_order_or_unknown() {
    let mut talk = Talk::new();
    assert!(talk.call("publish", 0.0, &[Value::Null, "x".into()]).unwrap_err().fatal);
    let mut talk = Talk::connected("live");
    talk.call("launchMissiles", 7.0, &[Value::Null]).unwrap();
    assert_eq!(codes(&talk.said().0), ["NetConnection.Call.Failed"]);
    let mut bytes = BytesMut::new();
    talk.writer.values(kind::COMMAND, 0, &[Value::Null], &mut bytes);
    assert!(!talk.feed(&bytes).unwrap_err().fatal, "a nameless command is passed over");
    let huge = Value::String("x".repeat(70_000));
    let mut bytes = BytesMut::new();
    talk.writer.values(kind::COMMAND, 0, &[huge], &mut bytes);
    assert!(!talk.feed(&bytes).unwrap_err().fatal);
}

#[test]
fn pings_and_windows_are_answered() {
    let mut talk = Talk::connected("live");
    let mut bytes = BytesMut::new();
    talk.writer.user_control(event::PING_REQUEST, 77, &mut bytes);
    talk.writer.window_size(1_000, &mut bytes);
    talk.feed(&bytes).unwrap();
    let (messages, _) = talk.said();
    assert_eq!(user_control(&messages[0].payload), Some((event::PING_RESPONSE, 77)));
    let before = talk.session.reader.taken();
    let mut acknowledged = Vec::new();
    for _ in 0..60 {
        let mut bytes = BytesMut::new();
        talk.writer.user_control(3, 0, &mut bytes);
        bytes.extend_from_slice(&[0xc2, 0, 3, 0, 0, 0, 0]);
        talk.feed(&bytes).unwrap();
        let (messages, _) = talk.said();
        assert!(messages.iter().all(|message| message.type_id == kind::ACKNOWLEDGEMENT));
        acknowledged.extend(messages.iter().map(|m| u64::from(u32::from_be_bytes(m.payload[..].try_into().unwrap()))));
    }
    let fed = talk.session.reader.taken() - before;
    assert!(!acknowledged.is_empty() && acknowledged.len() as u64 <= fed / 1_000 + 1, "{acknowledged:?}");
    assert!(acknowledged.is_sorted());
}

#[test]
fn encryption_and_other_versions_are_named() {
    for (first, word) in [(6u8, "RTMPE"), (9, "version 9")] {
        let mut session = RtmpSession::new([1; 32], 1 << 20);
        let mut buffer = BytesMut::from(&[first][..]);
        let fault = session.receive(now(), Input::Stream(&mut buffer), &mut Outbox::default()).unwrap_err();
        assert!(fault.fatal && fault.what.contains(word), "{fault}");
    }
}

fn units() -> Vec<Unit> {
    let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
    std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
        .collect()
}

/// Runs our publisher against our session; admission is as given. What came out, and how it ended.
fn relayed(admission: &Result<Identity, Refusal>, units: &[Unit]) -> (Vec<Unit>, Result<bool, ClientError>) {
    let target = Target::parse("rtmp://127.0.0.1/live/copy?key=k").unwrap();
    let mut publisher = Publisher::new(target, &[3; 32]);
    let mut session = RtmpSession::new([1; 32], 1 << 20);
    let (mut up, mut down, mut out) = (BytesMut::new(), BytesMut::new(), Outbox::default());
    let (mut got, mut ready) = (Vec::new(), false);
    for _ in 0..20 {
        up.extend_from_slice(&publisher.take());
        while !up.is_empty() {
            session.receive(now(), Input::Stream(&mut up), &mut out).unwrap();
            while let Some(output) = out.pop() {
                match output {
                    Output::Send(bytes) => down.extend_from_slice(&bytes),
                    Output::Admit { ticket, .. } => {
                        let input = Input::Admission { ticket, outcome: admission.clone() };
                        session.receive(now(), input, &mut out).unwrap();
                    }
                    Output::Unit(unit) => got.push(unit),
                    _ => {}
                }
            }
            if session.phase == Phase::Hello || session.phase == Phase::Answered {
                break;
            }
        }
        match publisher.receive(&mut down) {
            Ok(Some(Event::Ready)) => {
                ready = true;
                let mut mux = mux(Container::Rtmp);
                let mut tracks = Tracks::default();
                units.iter().filter(|unit| unit.kind == crate::media::Kind::Config).for_each(|unit| {
                    tracks.note(unit);
                });
                up.extend_from_slice(&mux.preamble(&tracks, units[0].dts_90k));
                for unit in units {
                    mux.unit(unit, &mut up);
                }
                publisher.finish();
            }
            Ok(Some(Event::Ended)) => return (got, Ok(ready)),
            Ok(None) => {}
            Err(error) => return (got, Err(error)),
        }
    }
    (got, Ok(ready))
}

#[test]
fn our_publisher_and_our_session_agree_unit_for_unit() {
    let units = units();
    let (got, outcome) = relayed(&Ok(Identity::anonymous()), &units);
    assert_eq!(outcome, Ok(true));
    assert_eq!(got[3..], units[..]);
    assert!(got[..3].iter().all(|unit| unit.kind == crate::media::Kind::Config));
}

#[test]
fn times_beyond_24_and_32_bits_arrive_as_they_were() {
    for start_ms in [0xff_ffffi64 - 200, i64::from(u32::MAX) - 200] {
        let shifted: Vec<Unit> = units()
            .into_iter()
            .map(|unit| Unit { dts_90k: unit.dts_90k + start_ms * 90, pts_90k: unit.pts_90k + start_ms * 90, ..unit })
            .collect();
        let (got, outcome) = relayed(&Ok(Identity::anonymous()), &shifted);
        assert_eq!((outcome, &got[3..]), (Ok(true), &shifted[..]), "from {start_ms} ms");
    }
}

#[test]
fn our_publisher_says_why_it_was_refused() {
    let (_, outcome) = relayed(&Err(Refusal::Unauthorized), &units());
    let error = outcome.unwrap_err().to_string();
    assert_eq!(error, "the server refused publish: NetStream.Publish.Denied wrong or missing credentials");
}
