//! A publisher of our own: what a relay speaks to an RTMP server.
//!
//! Sans-io: the caller moves bytes both ways. After [`Event::Ready`] it writes bytes of
//! [`Container::Rtmp`](crate::media::Container::Rtmp) as they are, shared with our own viewers, and goes on handing in
//! what the server says (pings want answers). Must not be in here: reconnecting, clocks.

use bytes::{Buf, Bytes, BytesMut};

use super::capabilities;
use super::command::{Command, Writer, event, user_control};
use super::frame::{ChunkReader, FrameError, Message, kind};
use super::handshake;
use crate::media::amf0::Value;
use crate::media::mux::MESSAGE_STREAM;
use crate::media::{MediaError, RTMP_CHUNK_SIZE};

/// Longest message a server may send us; commands are short.
const MESSAGE_MAX: usize = 256 * 1024;

/// Transactions, in the order in which they are sent.
const CONNECT: f64 = 1.0;
const RELEASE_STREAM: f64 = 2.0;
const FC_PUBLISH: f64 = 3.0;
const CREATE_STREAM: f64 = 4.0;
const PUBLISH: f64 = 5.0;

/// Where to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub app: String,
    /// With its query, which is how servers get keys.
    pub name: String,
    /// RTMP inside TLS.
    pub secure: bool,
}

impl Target {
    pub const PORT: u16 = 1935;
    /// Without a port of its own, `rtmps://` goes where HTTPS goes.
    pub const PORT_SECURE: u16 = 443;

    /// Reads `rtmp[s]://HOST[:PORT]/APP/NAME[?QUERY]`; an app of several levels has all but the last.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let wrong = |why| ClientError::Url { url: url.to_owned(), why };
        let (rest, secure) = match (url.strip_prefix("rtmp://"), url.strip_prefix("rtmps://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => return Err(wrong("it does not begin with rtmp:// or rtmps://")),
        };
        let (authority, path) = rest.split_once('/').ok_or_else(|| wrong("it has no /APP/NAME"))?;
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let (app, name) = path.rsplit_once('/').ok_or_else(|| wrong("it has no NAME after the APP"))?;
        let bracket_end = authority.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = match authority.get(bracket_end..).and_then(|rest| rest.rfind(':')) {
            Some(colon) => {
                let (host, port) = authority.split_at(bracket_end + colon);
                (host, port.trim_start_matches(':').parse().map_err(|_| wrong("the port is not a number"))?)
            }
            None => (authority, if secure { Self::PORT_SECURE } else { Self::PORT }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || app.is_empty() || name.is_empty() {
            return Err(wrong("host, APP or NAME is empty"));
        }
        let name = query.map_or_else(|| name.to_owned(), |query| format!("{name}?{query}"));
        Ok(Self { host: host.to_owned(), port, app: app.to_owned(), name, secure })
    }

    /// What `connect` calls the server.
    fn tc_url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let (scheme, usual) = if self.secure { ("rtmps", Self::PORT_SECURE) } else { ("rtmp", Self::PORT) };
        let port = if self.port == usual { String::new() } else { format!(":{}", self.port) };
        format!("{scheme}://{host}{port}/{}", self.app)
    }
}

/// Why a relay cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("{url}: {why}")]
    Url { url: String, why: &'static str },
    #[error("the server's handshake is of version {0}, not 3")]
    Version(u8),
    #[error("chunk stream of the server: {0}")]
    Frame(#[from] FrameError),
    #[error("answer of the server: {0}")]
    Answer(#[from] MediaError),
    #[error("the server sends us to {to}")]
    Redirected { to: String },
    #[error("the server refused {what}: {code} {description}")]
    Refused { what: &'static str, code: String, description: String },
    #[error("the server gave message stream {0}; shared bytes are for stream 1")]
    MessageStream(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server takes the stream: media from here on.
    Ready,
    /// The server ended the stream in good order.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// S0, S1 are to come.
    Hello,
    /// S2 is to come.
    Answered,
    Connecting,
    Creating,
    Publishing,
    Ready,
}

/// One publishing connection.
#[derive(Debug)]
pub struct Publisher {
    target: Target,
    phase: Phase,
    reader: ChunkReader,
    writer: Writer,
    window: u32,
    acknowledged: u64,
    out: BytesMut,
}

impl Publisher {
    /// The hello is in [`take`](Self::take) at once.
    pub fn new(target: Target, seed: &[u8; 32]) -> Self {
        Self {
            target,
            phase: Phase::Hello,
            reader: ChunkReader::new(MESSAGE_MAX),
            writer: Writer::new(),
            window: u32::MAX,
            acknowledged: 0,
            out: BytesMut::from(&handshake::hello(seed)[..]),
        }
    }

    /// What has to be sent next; between two units once media flows. Empty: nothing.
    pub fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Takes what the server sent off the buffer. Call again while it returns an event.
    pub fn receive(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, ClientError> {
        if self.phase == Phase::Hello {
            match buffer.first() {
                Some(&handshake::VERSION) | None => {}
                Some(&version) => return Err(ClientError::Version(version)),
            }
            let Some(s1) = buffer.get(1..=handshake::PACKET_LEN) else { return Ok(None) };
            self.out.extend_from_slice(s1);
            buffer.advance(1 + handshake::PACKET_LEN);
            self.phase = Phase::Answered;
            self.connect();
        }
        if self.phase == Phase::Answered {
            if buffer.len() < handshake::PACKET_LEN {
                return Ok(None);
            }
            buffer.advance(handshake::PACKET_LEN);
            self.phase = Phase::Connecting;
        }
        while let Some(message) = self.reader.read(buffer)? {
            let taken = self.reader.taken();
            if taken - self.acknowledged >= u64::from(self.window) {
                self.acknowledged = taken;
                self.writer.acknowledgement(taken as u32, &mut self.out);
            }
            if let Some(event) = self.message(&message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// A goodbye in good order, to be sent after the last unit.
    pub fn finish(&mut self) {
        let name = Value::from(self.target.name.as_str());
        self.writer.command("FCUnpublish", PUBLISH + 1.0, &[Value::Null, name], 0, &mut self.out);
        let stream = Value::from(f64::from(MESSAGE_STREAM));
        self.writer.command("deleteStream", PUBLISH + 2.0, &[Value::Null, stream], 0, &mut self.out);
    }

    /// Our chunk size goes first: from here on it holds for all we send.
    fn connect(&mut self) {
        self.writer.set_chunk_size(RTMP_CHUNK_SIZE, &mut self.out);
        let mut fields = vec![
            ("app".to_owned(), self.target.app.as_str().into()),
            ("type".to_owned(), "nonprivate".into()),
            ("flashVer".to_owned(), "FMLE/3.0 (compatible; Sluicegate)".into()),
            ("tcUrl".to_owned(), self.target.tc_url().as_str().into()),
        ];
        fields.extend(capabilities::ours());
        let object = Value::Object(fields);
        self.writer.command("connect", CONNECT, &[object], 0, &mut self.out);
    }

    fn message(&mut self, message: &Message) -> Result<Option<Event>, ClientError> {
        match message.type_id {
            kind::COMMAND | kind::COMMAND_AMF3 => self.command(&Command::parse(message)?),
            kind::WINDOW_SIZE => {
                self.window = message.payload.first_chunk().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes).max(1));
                Ok(None)
            }
            kind::USER_CONTROL => {
                if let Some((event::PING_REQUEST, time)) = user_control(&message.payload) {
                    self.writer.user_control(event::PING_RESPONSE, time, &mut self.out);
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn command(&mut self, command: &Command) -> Result<Option<Event>, ClientError> {
        match (command.name.as_str(), self.phase) {
            ("_result", Phase::Connecting) if is(command, CONNECT) => {
                self.create();
                self.phase = Phase::Creating;
            }
            ("_result", Phase::Creating) if is(command, CREATE_STREAM) => {
                let stream = command.arguments.get(1).and_then(Value::as_number).unwrap_or(0.0) as u32;
                if stream != MESSAGE_STREAM {
                    return Err(ClientError::MessageStream(stream));
                }
                let arguments = [Value::Null, self.target.name.as_str().into(), "live".into()];
                self.writer.command("publish", PUBLISH, &arguments, MESSAGE_STREAM, &mut self.out);
                self.phase = Phase::Publishing;
            }
            ("_error", _) => return refusal(command).map_or(Ok(None), Err),
            ("onStatus", _) => return self.status(command),
            _ => {}
        }
        Ok(None)
    }

    fn create(&mut self) {
        let name = || [Value::Null, self.target.name.as_str().into()];
        self.writer.command("releaseStream", RELEASE_STREAM, &name(), 0, &mut self.out);
        self.writer.command("FCPublish", FC_PUBLISH, &name(), 0, &mut self.out);
        self.writer.command("createStream", CREATE_STREAM, &[Value::Null], 0, &mut self.out);
    }

    fn status(&mut self, command: &Command) -> Result<Option<Event>, ClientError> {
        let field = |name: &str| command.arguments.get(1).and_then(|info| info.get(name)).and_then(Value::as_str);
        let code = field("code").unwrap_or_default();
        match code {
            "NetStream.Publish.Start" if self.phase == Phase::Publishing => {
                self.phase = Phase::Ready;
                Ok(Some(Event::Ready))
            }
            "NetStream.Unpublish.Success" => Ok(Some(Event::Ended)),
            _ if field("level") == Some("error") => Err(refused("publish", command)),
            _ => Ok(None),
        }
    }
}

fn is(command: &Command, transaction: f64) -> bool {
    (command.transaction - transaction).abs() < 0.5
}

/// What an `_error` means for us; `None` for calls that servers may refuse without harm.
fn refusal(command: &Command) -> Option<ClientError> {
    if is(command, RELEASE_STREAM) || is(command, FC_PUBLISH) || command.transaction > PUBLISH + 0.5 {
        return None;
    }
    let ex = command.arguments.get(1).and_then(|info| info.get("ex"));
    if let Some(to) = ex.and_then(|ex| ex.get("redirect")).and_then(Value::as_str) {
        return Some(ClientError::Redirected { to: to.chars().take(300).collect() });
    }
    let what = [(CONNECT, "connect"), (CREATE_STREAM, "createStream"), (PUBLISH, "publish")];
    let what =
        what.into_iter().find(|(transaction, _)| is(command, *transaction)).map_or("a command", |(_, what)| what);
    Some(refused(what, command))
}

fn refused(what: &'static str, command: &Command) -> ClientError {
    let text = |name: &str| {
        let text = command.arguments.get(1).and_then(|info| info.get(name)).and_then(Value::as_str);
        text.unwrap_or_default().chars().take(300).collect()
    };
    ClientError::Refused { what, code: text("code"), description: text("description") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtmp::command::info;

    fn publisher() -> Publisher {
        let mut publisher = Publisher::new(Target::parse("rtmp://h/app/x").unwrap(), &[1; 32]);
        let mut answer = BytesMut::from(&handshake::answer(&publisher.take()[1..], &[2; 32])[..]);
        assert_eq!(publisher.receive(&mut answer), Ok(None));
        assert!(answer.is_empty());
        publisher
    }

    fn told(
        publisher: &mut Publisher,
        name: &str,
        transaction: f64,
        info: Value,
    ) -> Result<Option<Event>, ClientError> {
        let mut bytes = BytesMut::new();
        Writer::new().command(name, transaction, &[Value::Null, info], 0, &mut bytes);
        // The server keeps to 128-byte chunks.
        publisher.receive(&mut bytes)
    }

    #[test]
    fn urls() {
        let target = |host: &str, port, app: &str, name: &str| {
            Ok(Target { host: host.into(), port, app: app.into(), name: name.into(), secure: false })
        };
        assert_eq!(Target::parse("rtmp://h/live/x"), target("h", 1935, "live", "x"));
        assert_eq!(Target::parse("rtmp://h:1936/a/b/x?key=1"), target("h", 1936, "a/b", "x?key=1"));
        assert_eq!(Target::parse("rtmp://[::1]:1936/live/x"), target("::1", 1936, "live", "x"));
        assert_eq!(Target::parse("rtmp://[::1]/live/x").unwrap().tc_url(), "rtmp://[::1]/live");
        let secure = Target::parse("rtmps://h/live/x").unwrap();
        assert_eq!((secure.port, secure.secure, secure.tc_url().as_str()), (443, true, "rtmps://h/live"));
        for bad in ["http://h/a/b", "rtmp://h", "rtmp://h/a", "rtmp://h:x/a/b", "rtmp:///a/b", "rtmp://h/a/"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_chunk_size_is_said_first() {
        let mut publisher = publisher();
        let sent = publisher.take();
        assert_eq!(sent[handshake::PACKET_LEN..][..16], [2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn redirects_and_refusals() {
        let redirect = Value::object([("ex", Value::object([("redirect", "rtmp://other/app".into())]))]);
        let error = told(&mut publisher(), "_error", CONNECT, redirect).unwrap_err();
        assert_eq!(error, ClientError::Redirected { to: "rtmp://other/app".into() });
        let why = info("error", "NetConnection.Connect.Rejected", "go away");
        let error = told(&mut publisher(), "_error", CONNECT, why).unwrap_err();
        assert_eq!(error.to_string(), "the server refused connect: NetConnection.Connect.Rejected go away");
        assert!(told(&mut publisher(), "_error", CONNECT, Value::Null).is_err());
        assert_eq!(told(&mut publisher(), "_error", RELEASE_STREAM, Value::Null), Ok(None));
    }

    #[test]
    fn another_message_stream_is_an_error() {
        let mut publisher = publisher();
        assert_eq!(told(&mut publisher, "_result", CONNECT, Value::Null), Ok(None));
        assert_eq!(told(&mut publisher, "_result", CREATE_STREAM, 5.0.into()), Err(ClientError::MessageStream(5)));
    }

    #[test]
    fn a_server_of_another_protocol() {
        let mut publisher = Publisher::new(Target::parse("rtmp://h/app/x").unwrap(), &[1; 32]);
        let mut bytes = BytesMut::from(&b"HTTP/1.1 400 Bad Request"[..]);
        assert_eq!(publisher.receive(&mut bytes), Err(ClientError::Version(b'H')));
    }
}
