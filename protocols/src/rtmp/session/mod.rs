//! The server's side of an RTMP talk: handshake, commands, publishing, playing.
//!
//! `publish` and `play` ask [`Output::Admit`] and pause the session until the answer: an undecided publisher moves no
//! media byte. A publisher's messages become units; a viewer's connection is handed over with [`Output::Watch`], after
//! which only its control messages come by here. All media is on message stream 1, so that its bytes can be shared.
//!
//! Must not be in here: chunks (`frame`), the client's side (`client.rs`), what becomes of units.

use std::borrow::Cow;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use crate::media::amf0::Value;
use crate::media::mux::MESSAGE_STREAM;
use crate::media::{Container, Hevc, RTMP_CHUNK_SIZE, StreamName};
use crate::pass::{Pass, parameter};
use crate::rtmp::capabilities;
use crate::rtmp::command::{Command, Writer, event, info, user_control};
use crate::rtmp::frame::{ChunkReader, Message, kind};
use crate::rtmp::handshake;
use crate::rtmp::publishing::Publishing;
use crate::session::{Claim, Fault, Input, Outbox, Output, Refusal, Session, Ticket};

/// What we allow the peer to send before it must wait for our acknowledgement, and it us: the customary 2.5 MB.
const WINDOW: u32 = 2_500_000;

/// A peer that asks for acknowledgements more often than this gets them this often.
const WINDOW_MIN: u32 = 512;

#[derive(Debug)]
pub(in crate::rtmp) struct RtmpSession {
    phase: Phase,
    seed: [u8; 32],
    reader: ChunkReader,
    writer: Writer,
    /// Bytes after which the peer wants an acknowledgement, and where the last was given.
    window: u32,
    acknowledged: u64,
    app: String,
    /// What stands behind the question mark of the app or of tcUrl.
    app_query: String,
    /// How H.265 is said to this peer, should it play.
    hevc: Hevc,
    role: Role,
    tickets: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hello,
    /// S0 to S2 are out, C2 is to come.
    Answered,
    /// Only `connect` is taken.
    Greeted,
    Connected,
    /// We said that we close: what was sent behind the reason for it means nothing.
    Closed,
}

#[derive(Debug)]
enum Role {
    None,
    /// Asked for, not answered yet.
    Waiting {
        ticket: Ticket,
        wish: Wish,
        stream: StreamName,
    },
    Publishing(Box<Publishing>),
    Watching,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Publish,
    Play,
}

// === impl Session ===

impl Session for RtmpSession {
    fn receive(&mut self, _now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.stream(buffer, out),
            Input::Admission { ticket, outcome } => {
                self.admission(ticket, outcome.map(drop), out);
                Ok(())
            }
            Input::Ended { reason } => {
                self.farewell(reason, out);
                Ok(())
            }
            Input::Datagram(_)
            | Input::Settled { .. }
            | Input::Exchange(_)
            | Input::Command(_)
            | Input::Media(_)
            | Input::Piece { .. } => Ok(()),
        }
    }

    fn tick(&mut self, _now: Instant, _out: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn paused(&self) -> bool {
        matches!(self.role, Role::Waiting { .. })
    }
}

impl RtmpSession {
    pub(in crate::rtmp) fn new(seed: [u8; 32], message_max: usize) -> Self {
        Self {
            phase: Phase::Hello,
            seed,
            reader: ChunkReader::new(message_max),
            writer: Writer::new(),
            window: WINDOW,
            acknowledged: 0,
            app: String::new(),
            app_query: String::new(),
            hevc: Hevc::Legacy,
            role: Role::None,
            tickets: 0,
        }
    }

    fn stream(&mut self, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        if self.phase == Phase::Hello && !self.hello(buffer, out)? {
            return Ok(());
        }
        if self.phase == Phase::Answered {
            if buffer.len() < handshake::PACKET_LEN {
                return Ok(());
            }
            // What C2 echoes proves nothing that matters; old encoders echo wrongly.
            buffer.advance(handshake::PACKET_LEN);
            self.phase = Phase::Greeted;
        }
        while !self.paused() && self.phase != Phase::Closed {
            let message = self.reader.read(buffer).map_err(|error| Fault::fatal(error.to_string()))?;
            let Some(message) = message else { break };
            self.acknowledge(out);
            self.message(message, out)?;
        }
        if self.phase == Phase::Closed {
            buffer.clear();
        }
        Ok(())
    }

    fn close(&mut self, reason: impl Into<Cow<'static, str>>, out: &mut Outbox) {
        self.phase = Phase::Closed;
        out.close(reason);
    }

    fn hello(&mut self, buffer: &mut BytesMut, out: &mut Outbox) -> Result<bool, Fault> {
        match buffer.first() {
            Some(&handshake::VERSION) => {}
            Some(&(6 | 8)) => return Err(Fault::fatal("encrypted handshake (RTMPE) is not spoken").at(0).ours()),
            Some(version) => return Err(Fault::fatal(format!("handshake version {version}, not 3")).at(0)),
            None => return Ok(false),
        }
        let Some(c1) = buffer.get(1..=handshake::PACKET_LEN) else { return Ok(false) };
        out.send(handshake::answer(c1, &self.seed));
        buffer.advance(1 + handshake::PACKET_LEN);
        self.phase = Phase::Answered;
        Ok(true)
    }

    /// Sends an acknowledgement (5.4.3) when the peer's window is used up.
    fn acknowledge(&mut self, out: &mut Outbox) {
        let taken = self.reader.taken();
        if taken - self.acknowledged >= u64::from(self.window) {
            self.acknowledged = taken;
            self.send(out, |writer, bytes| writer.acknowledgement(taken as u32, bytes));
        }
    }

    fn send(&self, out: &mut Outbox, write: impl FnOnce(&Writer, &mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&self.writer, &mut bytes);
        out.send(bytes.freeze());
    }

    fn message(&mut self, message: Message, out: &mut Outbox) -> Result<(), Fault> {
        match message.type_id {
            kind::COMMAND | kind::COMMAND_AMF3 => self.command(&message, out),
            kind::AUDIO | kind::VIDEO | kind::DATA | kind::DATA_AMF3 | kind::AGGREGATE => self.media(message, out),
            kind::WINDOW_SIZE => {
                let window = message.payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                self.window = window.unwrap_or(WINDOW).max(WINDOW_MIN);
                Ok(())
            }
            kind::USER_CONTROL => {
                if let Some((event::PING_REQUEST, time)) = user_control(&message.payload) {
                    self.send(out, |writer, bytes| writer.user_control(event::PING_RESPONSE, time, bytes));
                }
                Ok(())
            }
            // Acknowledgements, bandwidth, shared objects: nothing to do.
            _ => Ok(()),
        }
    }

    fn media(&mut self, message: Message, out: &mut Outbox) -> Result<(), Fault> {
        match &mut self.role {
            Role::Publishing(publishing) => {
                let outcome = publishing.message(message, out);
                if let Err(fault) = &outcome
                    && fault.fatal
                {
                    self.status(out, "error", "NetStream.Publish.BadName", &fault.what);
                }
                outcome
            }
            // Players may send data messages; media from who does not publish is a mistake.
            _ if matches!(message.type_id, kind::DATA | kind::DATA_AMF3) => Ok(()),
            _ => Err(Fault::recoverable("media without publish")),
        }
    }

    fn command(&mut self, message: &Message, out: &mut Outbox) -> Result<(), Fault> {
        let command = Command::parse(message).map_err(|error| Fault::recoverable(error.to_string()))?;
        if self.phase == Phase::Greeted && command.name != "connect" {
            return Err(Fault::fatal(format!("command {:?} before connect", shown(&command.name))));
        }
        match command.name.as_str() {
            "connect" => self.connect(&command, out),
            "createStream" => {
                let answer = [Value::Null, f64::from(MESSAGE_STREAM).into()];
                self.result(&command, &answer, out);
                Ok(())
            }
            "getStreamLength" => {
                self.result(&command, &[Value::Null, 0.0.into()], out);
                Ok(())
            }
            "publish" => self.ask(Wish::Publish, &command, out),
            "play" | "play2" => self.ask(Wish::Play, &command, out),
            "closeStream" | "deleteStream" => {
                self.close_stream(out);
                Ok(())
            }
            "releaseStream" | "FCPublish" | "FCUnpublish" | "FCSubscribe" | "_checkbw" | "pause" | "pauseRaw"
            | "seek" | "receiveAudio" | "receiveVideo" | "setBandwidth" => {
                self.result(&command, &[Value::Null, Value::Undefined], out);
                Ok(())
            }
            // Answers to what we never ask, and a player's reports.
            "_result" | "_error" | "onStatus" => Ok(()),
            _ => {
                let name = shown(&command.name);
                let why = info("error", "NetConnection.Call.Failed", &format!("no such method: {name}"));
                self.answer("_error", &command, &[Value::Null, why], out);
                Ok(())
            }
        }
    }

    fn result(&self, command: &Command, arguments: &[Value], out: &mut Outbox) {
        self.answer("_result", command, arguments, out);
    }

    fn answer(&self, name: &str, command: &Command, arguments: &[Value], out: &mut Outbox) {
        if command.transaction > 0.0 {
            let stream_id = command.stream_id;
            self.send(out, |w, bytes| w.command(name, command.transaction, arguments, stream_id, bytes));
        }
    }

    fn status(&self, out: &mut Outbox, level: &str, code: &str, description: &str) {
        self.send(out, |writer, bytes| writer.on_status(MESSAGE_STREAM, level, code, description, bytes));
    }

    fn connect(&mut self, command: &Command, out: &mut Outbox) -> Result<(), Fault> {
        if self.phase == Phase::Connected {
            return Err(Fault::recoverable("connect twice"));
        }
        let field = |name: &str| command.object().and_then(|object| object.get(name));
        let app = field("app").and_then(Value::as_str).unwrap_or_default();
        let (app, query) = split_query(app);
        let tc_url = field("tcUrl").and_then(Value::as_str).unwrap_or_default();
        let query = if query.is_empty() { split_query(tc_url).1 } else { query };
        query.get(..Pass::QUERY_MAX).unwrap_or(query).clone_into(&mut self.app_query);
        app.trim_matches('/').clone_into(&mut self.app);
        if self.app.is_empty() || self.app.len() > StreamName::LEN_MAX {
            let why = "the URL needs an application: rtmp://HOST/APP/NAME";
            let rejected = info("error", "NetConnection.Connect.Rejected", why);
            self.answer("_error", command, &[Value::Null, rejected], out);
            self.close("connect without a usable application", out);
            return Ok(());
        }
        let object = command.object().unwrap_or(&Value::Null);
        self.hevc = capabilities::hevc_for(object);
        let encoding =
            field("objectEncoding").and_then(Value::as_number).map_or(0.0, |n| if n >= 3.0 { 3.0 } else { 0.0 });
        let properties = Value::object([("fmsVer", "FMS/3,0,1,123".into()), ("capabilities", 31.0.into())]);
        let mut information = vec![
            ("level".to_owned(), "status".into()),
            ("code".to_owned(), "NetConnection.Connect.Success".into()),
            ("description".to_owned(), "Connection succeeded.".into()),
            ("objectEncoding".to_owned(), encoding.into()),
        ];
        if capabilities::announced(object) {
            information.extend(capabilities::ours());
        }
        let mut bytes = BytesMut::new();
        self.writer.window_size(WINDOW, &mut bytes);
        self.writer.peer_bandwidth(WINDOW, &mut bytes);
        self.writer.set_chunk_size(RTMP_CHUNK_SIZE, &mut bytes);
        let arguments = [properties, Value::Object(information)];
        self.writer.command("_result", command.transaction, &arguments, 0, &mut bytes);
        out.send(bytes.freeze());
        self.phase = Phase::Connected;
        Ok(())
    }

    /// `publish` and `play`: asks whether the peer may.
    fn ask(&mut self, wish: Wish, command: &Command, out: &mut Outbox) -> Result<(), Fault> {
        if !matches!(self.role, Role::None) {
            self.refuse(wish, &Refusal::Invalid("this connection already has a stream".to_owned()), out);
            return Err(Fault::recoverable("a second stream on one connection"));
        }
        let (name, query) = split_query(command.text().unwrap_or_default());
        let own = Pass::of_query(query);
        let pass = if own.is_blank() && !self.app_query.is_empty() { Pass::of_query(&self.app_query) } else { own };
        if let Some(hevc) = parameter("hevc", query).and_then(|word| Hevc::parse(&word)) {
            self.hevc = hevc;
        }
        let Some(stream) = StreamName::parse(&format!("{}/{}", self.app, name.trim_matches('/'))) else {
            let why = "a stream name is 2 to 4 levels of letters, digits, '-', '_' and '.'";
            self.refuse(wish, &Refusal::Invalid(why.to_owned()), out);
            self.close("stream name not valid", out);
            return Ok(());
        };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let claim = match wish {
            Wish::Publish => Claim::Publish { stream: stream.clone(), pass },
            Wish::Play => Claim::Watch { stream: stream.clone(), pass },
        };
        self.role = Role::Waiting { ticket, wish, stream };
        out.push(Output::Admit { ticket, claim });
        Ok(())
    }

    fn admission(&mut self, answered: Ticket, outcome: Result<(), Refusal>, out: &mut Outbox) {
        let (wish, stream) = match std::mem::replace(&mut self.role, Role::None) {
            Role::Waiting { ticket, wish, stream } if ticket == answered => (wish, stream),
            other => {
                self.role = other;
                return;
            }
        };
        match (outcome, wish) {
            (Err(refusal), _) => {
                self.refuse(wish, &refusal, out);
                self.close(refusal.to_string(), out);
            }
            (Ok(()), Wish::Publish) => {
                self.send(out, |w, bytes| w.user_control(event::STREAM_BEGIN, MESSAGE_STREAM, bytes));
                self.status(out, "status", "NetStream.Publish.Start", &format!("Publishing {stream}."));
                self.role = Role::Publishing(Box::default());
                out.push(Output::Source { stream });
            }
            (Ok(()), Wish::Play) => {
                self.send(out, |w, bytes| {
                    w.user_control(event::STREAM_BEGIN, MESSAGE_STREAM, bytes);
                    let description = format!("Playing {stream}.");
                    w.on_status(MESSAGE_STREAM, "status", "NetStream.Play.Reset", &description, bytes);
                    w.on_status(MESSAGE_STREAM, "status", "NetStream.Play.Start", &description, bytes);
                    let access = ["|RtmpSampleAccess".into(), Value::Boolean(true), Value::Boolean(true)];
                    w.values(kind::DATA, MESSAGE_STREAM, &access, bytes);
                });
                self.role = Role::Watching;
                // Viewers are many, and none needs this again.
                (self.app, self.app_query) = (String::new(), String::new());
                self.reader.shrink();
                out.push(Output::Watch { stream, container: Container::Rtmp.with_hevc(self.hevc) });
            }
        }
    }

    fn refuse(&self, wish: Wish, refusal: &Refusal, out: &mut Outbox) {
        let code = match (wish, refusal) {
            (Wish::Publish, Refusal::Unauthorized | Refusal::Forbidden(_)) => "NetStream.Publish.Denied",
            (Wish::Publish, Refusal::Limit(_)) => "NetStream.Publish.Rejected",
            (Wish::Publish, _) => "NetStream.Publish.BadName",
            (Wish::Play, Refusal::NotFound(_)) => "NetStream.Play.StreamNotFound",
            (Wish::Play, _) => "NetStream.Play.Failed",
        };
        self.status(out, "error", code, &refusal.to_string());
    }

    /// The peer is done with its stream; encoders and players close the connection next.
    fn close_stream(&mut self, out: &mut Outbox) {
        match std::mem::replace(&mut self.role, Role::None) {
            Role::Publishing(_) => {
                self.status(out, "status", "NetStream.Unpublish.Success", "Publishing ended.");
                self.close("the publisher ended the stream", out);
            }
            Role::Watching => self.close("the viewer left", out),
            other => self.role = other,
        }
    }

    /// A last word, so that players end instead of waiting.
    fn farewell(&mut self, reason: &str, out: &mut Outbox) {
        match std::mem::replace(&mut self.role, Role::None) {
            Role::Watching => self.send(out, |writer, bytes| {
                writer.user_control(event::STREAM_EOF, MESSAGE_STREAM, bytes);
                writer.on_status(MESSAGE_STREAM, "status", "NetStream.Play.UnpublishNotify", reason, bytes);
            }),
            Role::Publishing(_) => self.status(out, "status", "NetStream.Unpublish.Success", reason),
            Role::Waiting { wish, .. } => self.refuse(wish, &Refusal::Unavailable(reason.to_owned()), out),
            Role::None => {}
        }
    }
}

/// A name and what follows its question mark.
fn split_query(name: &str) -> (&str, &str) {
    name.split_once('?').unwrap_or((name, ""))
}

/// The beginning of a name from the wire, for messages.
fn shown(name: &str) -> &str {
    name.char_indices().nth(40).and_then(|(end, _)| name.get(..end)).unwrap_or(name)
}

#[cfg(test)]
mod tests;
