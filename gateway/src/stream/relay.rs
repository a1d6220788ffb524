//! Copies of chosen streams to RTMP servers. A task makes the connection and speaks until the server takes the stream;
//! from then on the connection is one more cursor in the stream's RTMP log, visited like a viewer. When it ends the
//! task makes another, with growing patience, and the new one begins at a key frame like any viewer.
//!
//! Must not be in here: RTMP itself (`protocols::rtmp::client`).

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::media::{Container, StreamName};
use protocols::rtmp::client::{ClientError, Event, Publisher, Target};
use protocols::{Fault, Input, Outbox, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::hub::{Hub, SharedSource};
use super::info::{RelayInfo, RelayState};
use super::socket::{Parked, Socket};
use super::sockets;
use super::viewer::Viewer;
use crate::config;
use crate::threads;

/// Time for connection and handshake.
const ESTABLISH_MAX: Duration = Duration::from_secs(10);

/// Between tries: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A connection that lasted this long was a good one: the next try is made soon.
const STEADY: Duration = Duration::from_secs(30);

/// Bytes of an answer of the server that is not all there.
const ANSWER_MAX: usize = 256 * 1024;

/// Why a relay has no connection.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the server did not take the stream within {} s", ESTABLISH_MAX.as_secs())]
    Patience,
    #[error("no randomness: {0}")]
    Seed(getrandom::Error),
}

/// Starts the relays that are configured for the stream.
pub(super) fn start(hub: &Rc<Hub>, source: &SharedSource, relays: &[config::Relay]) {
    let name = source.borrow().name.clone();
    for relay in relays.iter().filter(|relay| chosen(&relay.stream, name.as_str())) {
        let url = address(&relay.url, &name);
        let shown = url.split('?').next().unwrap_or_default().to_owned();
        let info = Rc::new(RefCell::new(RelayInfo { url: shown, ..RelayInfo::default() }));
        source.borrow_mut().relays.push(info.clone());
        match Target::parse(&url) {
            Ok(target) => {
                let relay = Relay { hub: hub.clone(), source: source.clone(), target, info };
                threads::spawn_local(relay.run());
            }
            Err(error) => {
                warn!(stream = %name, %error, "relay cannot start");
                let mut info = info.borrow_mut();
                (info.state, info.error) = (RelayState::Waiting, Some(error.to_string()));
            }
        }
    }
}

/// `live/gate-1`, `live/*` or `*`.
fn chosen(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn address(url: &str, name: &StreamName) -> String {
    let (app, last) = name.as_str().rsplit_once('/').unwrap_or(("live", name.as_str()));
    url.replace("{app}", app).replace("{name}", last)
}

struct Relay {
    hub: Rc<Hub>,
    source: SharedSource,
    target: Target,
    info: Rc<RefCell<RelayInfo>>,
}

impl Relay {
    /// Copies the stream until it ends.
    async fn run(self) {
        let (ended, live) = {
            let source = self.source.borrow();
            (source.ended.clone(), source.published.clone())
        };
        let talk = async {
            let mut backoff = BACKOFF.0;
            loop {
                // Without a publisher there is nothing to copy.
                while !self.source.borrow().is_live() {
                    live.notified().await;
                }
                self.say(RelayState::Connecting, None);
                let (begun, error) = (Instant::now(), self.copy().await);
                backoff = if begun.elapsed() >= STEADY { BACKOFF.0 } else { backoff };
                warn!(stream = %self.source.borrow().name, url = self.info.borrow().url, error, ?backoff, "relay ended");
                self.say(RelayState::Waiting, Some(error));
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        };
        // The connection itself is closed with the stream's viewers.
        tokio::select! {
            () = ended.cancelled() => {}
            () = talk => {}
        }
    }

    /// One connection, from its making to its end; says why it ended.
    async fn copy(&self) -> String {
        let established = tokio::time::timeout(ESTABLISH_MAX, self.establish()).await;
        let (socket, publisher, unread) = match established.unwrap_or(Err(RelayError::Patience)) {
            Ok(established) => established,
            Err(error) => return error.to_string(),
        };
        let fault = Arc::new(OnceLock::new());
        let session = Upstream { publisher, fault: fault.clone() };
        let (closed, ends) = oneshot::channel();
        let account = self.hub.account(socket.peer());
        let viewer = Viewer::new(socket, Box::new(session), unread, ANSWER_MAX, account).for_relay(closed);
        self.info.borrow_mut().connections += 1;
        self.say(RelayState::Sending, None);
        info!(stream = %self.source.borrow().name, url = self.info.borrow().url, "relay is sending");
        self.hub.join(&self.source, Container::Rtmp, viewer);
        let reason = ends.await.map_or("the stream ended", super::viewer::Closed::as_str);
        fault.get().cloned().unwrap_or_else(|| reason.to_owned())
    }

    async fn establish(&self) -> Result<(Socket, Publisher, BytesMut), RelayError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(RelayError::Seed)?;
        let mut publisher = Publisher::new(self.target.clone(), &seed);
        let mut socket = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
        socket.set_nodelay(true)?;
        let mut unread = BytesMut::new();
        loop {
            socket.write_all(&publisher.take()).await?;
            if publisher.is_ready() {
                break;
            }
            if socket.read_buf(&mut unread).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            publisher.receive(&mut unread)?;
        }
        // The options are set on the plain socket, like those of the viewers that arrive from outside.
        let socket = socket.into_std()?;
        sockets::prepare_viewer(&socket, self.source.borrow().bits_per_second(), self.hub.window());
        Ok((Parked::Plain(socket).register()?, publisher, unread))
    }

    fn say(&self, state: RelayState, error: Option<String>) {
        let mut info = self.info.borrow_mut();
        info.state = state;
        // The last error stays to be read while the next try goes on.
        info.error = error.or(info.error.take()).filter(|_| state != RelayState::Sending);
    }
}

/// What an upstream says while the stream flows.
struct Upstream {
    publisher: Publisher,
    fault: Arc<OnceLock<String>>,
}

impl Session for Upstream {
    fn receive(&mut self, _: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        let heard = match input {
            Input::Stream(buffer) => self.publisher.receive(buffer).map_err(|error| error.to_string()),
            Input::Ended { .. } => {
                self.publisher.finish();
                Ok(None)
            }
            _ => Ok(None),
        };
        let answer = self.publisher.take();
        if !answer.is_empty() {
            out.send(answer);
        }
        let why = match heard {
            Ok(Some(Event::Ended)) => "the server ended the stream".to_owned(),
            Ok(Some(Event::Ready) | None) => return Ok(()),
            Err(error) => error,
        };
        // Only the first fault counts: it ends the connection.
        let _said = self.fault.set(why.clone());
        Err(Fault::fatal(why))
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_chosen_by_name_or_prefix() {
        assert!(chosen("live/gate", "live/gate"));
        assert!(chosen("live/*", "live/gate"));
        assert!(chosen("*", "gb/1/2"));
        assert!(!chosen("live/gate", "live/gate-2"));
        assert!(!chosen("live/*", "gb/1/2"));
    }

    #[test]
    fn the_url_takes_the_streams_own_names() {
        let name = StreamName::parse("gb/34020000001320000001/1").unwrap();
        assert_eq!(address("rtmp://up/{app}/{name}?k=1", &name), "rtmp://up/gb/34020000001320000001/1?k=1");
    }
}
