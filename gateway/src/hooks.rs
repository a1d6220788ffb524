//! Hooks: a service of the user's is asked before a publisher or viewer is let in, and told when it went, in LKM's words.
//!
//! A POST with a JSON body `{"stream", "protocol", "remote_addr"}` (and `sink` of a viewer, `path` of a recording); the
//! query of the peer's URL is added to the hook's. 200 lets in, any other answer does not. Asked on the control plane, by
//! the task of the peer that waits, never on a stream thread; what is only told goes through a bounded queue an event.
//! Must not be in here: keys and signatures (`credentials.rs`), which come first.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::Refusal;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config;
use crate::http::{Client, HttpError};
use crate::metrics::{Figure, Metrics};
use crate::signing::Kind;
use crate::stream::StreamCore;
use crate::threads::Tasks;
use crate::tls::Trust;

/// Peers asked about at a time, each with a connection to the hook; the others wait for their turn, as long as one answer
/// may take.
const ASKING_MAX: usize = 64;

/// Things of one kind to be told that may wait; more are left out and counted: a hook that hangs must not grow the gateway.
const TOLD_MAX: usize = 1_024;

/// The protocol whose players come with a claim a request.
pub const HLS: &str = "hls";

/// How long a hook's word for a player of HLS holds, and how many such words are kept.
const HLS_WORD: Duration = Duration::from_secs(30);
const HLS_WORDS_MAX: usize = 4_096;

/// How often streams without viewers are looked for.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// What a hook is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Publish,
    PublishDone,
    Play,
    PlayDone,
    Record,
    IdleTimeout,
    ReceiveTimeout,
}

/// Who came, and to which stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    pub stream: String,
    /// As the table of protocols calls it: `rtmp`, `http-flv`, ….
    pub protocol: String,
    pub peer: Option<SocketAddr>,
    /// Of the peer's URL, as it came.
    pub query: String,
}

/// The hooks; clones share them. Without any configured it holds nothing and lets everybody in.
#[derive(Debug, Clone, Default)]
pub struct Hooks(Option<Arc<Inner>>);

struct Inner {
    clients: HashMap<Event, Client>,
    queues: HashMap<Event, mpsc::Sender<Told>>,
    patience: Duration,
    tries: u32,
    allow_when_unreachable: bool,
    protocol_numbers: bool,
    asking: Semaphore,
    /// Players of HLS that were let in: address, stream and query, and until when that holds.
    words: Mutex<HashMap<Word, Instant>>,
    metrics: Metrics,
}

/// A player of HLS: address, stream, and what of its query does not change.
type Word = (Option<IpAddr>, String, String);

/// One thing that waits to be told.
#[derive(Debug)]
struct Told {
    visit: Visit,
    more: More,
}

#[derive(Debug)]
enum More {
    Nothing,
    /// Of a recording.
    Path(String),
    /// Cancelled unless the hook answers 200.
    Close(CancellationToken),
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Denied(u16),
    Unreachable(String),
}

/// While it lives somebody is there; dropped, the hook is told that they went.
pub struct Stay(Box<(Arc<Inner>, Event, Visit)>);

/// Who is asked when a publisher falls silent, for one whose [`Stay`] is held elsewhere.
pub struct Silence(Box<(Arc<Inner>, Visit)>);

impl Hooks {
    /// Checks the URLs; for `sluicegate check`. The key of the first that is wrong, and why.
    pub fn check(config: &config::Hooks) -> Result<(), (&'static str, HttpError)> {
        clients(config).map(drop)
    }

    /// Starts what tells the configured events.
    pub fn start(
        config: &config::Hooks,
        streams: &StreamCore,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Self, HttpError> {
        let clients = clients(config).map_err(|(_, error)| error)?;
        if clients.is_empty() {
            return Ok(Self(None));
        }
        let (mut queues, mut waiting) = (HashMap::new(), Vec::new());
        for event in [Event::PublishDone, Event::PlayDone, Event::Record, Event::ReceiveTimeout] {
            if clients.contains_key(&event) {
                let (queue, told) = mpsc::channel(TOLD_MAX);
                queues.insert(event, queue);
                waiting.push((event, told));
            }
        }
        let inner = Arc::new(Inner {
            clients,
            queues,
            patience: Duration::from_millis(config.timeout_ms),
            tries: config.retries + 1,
            allow_when_unreachable: config.allow_when_unreachable,
            protocol_numbers: config.protocol_numbers,
            asking: Semaphore::new(ASKING_MAX),
            words: Mutex::default(),
            metrics: metrics.clone(),
        });
        for (event, told) in waiting {
            tasks.spawn("hook", tell(Arc::clone(&inner), event, told, tasks.clone()));
        }
        if inner.clients.contains_key(&Event::IdleTimeout) {
            let idle = Duration::from_secs(config.idle_timeout_seconds);
            tasks.spawn("hook-idle", watch_idle(Arc::clone(&inner), streams.clone(), idle, tasks.clone()));
        }
        Ok(Self(Some(inner)))
    }

    /// Whether the hook lets them in. Waits for its answer, its retries included.
    pub async fn ask(&self, kind: Kind, visit: &Visit) -> Result<(), Refusal> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let event = match kind {
            Kind::Publish => Event::Publish,
            Kind::Play => Event::Play,
        };
        if !inner.clients.contains_key(&event) {
            return Ok(());
        }
        if visit.protocol == HLS && inner.remembers(visit) {
            return Ok(());
        }
        let verdict = match tokio::time::timeout(inner.patience, inner.asking.acquire()).await {
            Ok(_room) => inner.post(event, visit, &More::Nothing).await,
            Err(_) => Verdict::Unreachable(format!("{ASKING_MAX} others are being asked about")),
        };
        match verdict {
            Verdict::Allowed => {
                inner.remember(visit);
                Ok(())
            }
            Verdict::Denied(status) => {
                Err(Refusal::Forbidden(format!("the hook {} answered {status}", event.as_str())))
            }
            Verdict::Unreachable(_) if inner.allow_when_unreachable => Ok(()),
            Verdict::Unreachable(_) => Err(Refusal::Unavailable(format!("the hook {} gave no answer", event.as_str()))),
        }
    }

    /// To be held as long as they are there; `None` when nobody wants to know.
    pub fn stay(&self, kind: Kind, visit: Visit) -> Option<Stay> {
        let inner = self.0.as_ref()?;
        let (event, other) = match kind {
            Kind::Publish => (Event::PublishDone, Event::ReceiveTimeout),
            Kind::Play => (Event::PlayDone, Event::PlayDone),
        };
        let wanted = inner.clients.contains_key(&event) || inner.clients.contains_key(&other);
        wanted.then(|| Stay(Box::new((Arc::clone(inner), event, visit))))
    }

    /// A file of a recording is complete.
    pub fn recorded(&self, visit: Visit, path: &str) {
        if let Some(inner) = &self.0 {
            inner.queue(Event::Record, Told { visit, more: More::Path(path.to_owned()) });
        }
    }
}

impl Stay {
    /// Whom to ask when the publisher falls silent.
    pub fn silence(&self) -> Silence {
        let (inner, _, visit) = &*self.0;
        Silence(Box::new((Arc::clone(inner), visit.clone())))
    }

    /// The publisher was silent for too long. `true`: the hook is asked, and `close` is cancelled unless it says 200;
    /// `false`: nobody is asked.
    pub fn silent(&self, close: CancellationToken) -> bool {
        let (inner, _, visit) = &*self.0;
        inner.silent(visit, close)
    }
}

impl Silence {
    /// The same as [`Stay::silent`].
    pub fn is_asked_about(&self, close: CancellationToken) -> bool {
        let (inner, visit) = &*self.0;
        inner.silent(visit, close)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let (inner, event, visit) = &*self.0;
        inner.queue(*event, Told { visit: visit.clone(), more: More::Nothing });
    }
}

impl Event {
    pub const ALL: [Self; 7] = [
        Self::Publish,
        Self::PublishDone,
        Self::Play,
        Self::PlayDone,
        Self::Record,
        Self::IdleTimeout,
        Self::ReceiveTimeout,
    ];

    /// Its key in `[hooks]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "on_publish",
            Self::PublishDone => "on_publish_done",
            Self::Play => "on_play",
            Self::PlayDone => "on_play_done",
            Self::Record => "on_record",
            Self::IdleTimeout => "on_idle_timeout",
            Self::ReceiveTimeout => "on_receive_timeout",
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("events", &self.clients.keys()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stay").field(&self.0.2.stream).finish()
    }
}

impl fmt::Debug for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Silence").field(&self.0.1.stream).finish()
    }
}

// === asking ===

impl Inner {
    /// Posts until there is an answer, as often as configured.
    async fn post(&self, event: Event, visit: &Visit, more: &More) -> Verdict {
        let Some(client) = self.clients.get(&event) else { return Verdict::Allowed };
        let (query, body) = (in_query(&visit.query), self.body(event, visit, more));
        let mut verdict = Verdict::Unreachable(String::new());
        for _ in 0..self.tries {
            verdict = match client.post(&query, "application/json", &[], body.clone(), self.patience).await {
                Ok(answer) if answer.status == 200 => Verdict::Allowed,
                // Its server's own trouble is no answer.
                Ok(answer) if answer.status >= 500 => Verdict::Unreachable(format!("it answered {}", answer.status)),
                Ok(answer) => Verdict::Denied(answer.status),
                Err(error) => Verdict::Unreachable(error.to_string()),
            };
            if !matches!(verdict, Verdict::Unreachable(_)) {
                break;
            }
        }
        if let Verdict::Unreachable(why) = &verdict {
            warn!(hook = event.as_str(), stream = visit.stream, why, "the hook gave no answer");
        } else {
            debug!(hook = event.as_str(), stream = visit.stream, ?verdict, "the hook answered");
        }
        self.metrics.add(Figure::Hooks, &[event.as_str(), verdict.as_str()], 1);
        verdict
    }

    fn remembers(&self, visit: &Visit) -> bool {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.get(&word(visit)).is_some_and(|until| *until > Instant::now())
    }

    /// Players of HLS ask for something every second: their hook is not asked as often.
    fn remember(&self, visit: &Visit) {
        if visit.protocol != HLS {
            return;
        }
        let (now, mut words) = (Instant::now(), self.words.lock().unwrap_or_else(PoisonError::into_inner));
        if words.len() >= HLS_WORDS_MAX {
            words.retain(|_, until| *until > now);
        }
        // Still full: the next request is asked about again.
        if words.len() < HLS_WORDS_MAX {
            words.insert(word(visit), now + HLS_WORD);
        }
    }

    fn body(&self, event: Event, visit: &Visit, more: &More) -> Bytes {
        let plays = matches!(event, Event::Play | Event::PlayDone);
        let (name, number) = lkm_protocol(&visit.protocol, plays);
        let address = visit.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let mut body = json!({ "stream": visit.stream, "protocol": name, "remote_addr": address });
        if self.protocol_numbers {
            body["protocol"] = number.into();
        }
        if plays {
            body["sink"] = address.into();
        }
        if let More::Path(path) = more {
            body["path"] = path.as_str().into();
        }
        Bytes::from(body.to_string())
    }

    /// Whether the hook is asked about a publisher that says nothing.
    fn silent(&self, visit: &Visit, close: CancellationToken) -> bool {
        self.queue(Event::ReceiveTimeout, Told { visit: visit.clone(), more: More::Close(close) })
    }

    /// Whether it will be told.
    fn queue(&self, event: Event, told: Told) -> bool {
        let Some(queue) = self.queues.get(&event) else { return false };
        let queued = queue.try_send(told).is_ok();
        if !queued {
            self.metrics.add(Figure::Hooks, &[event.as_str(), "dropped"], 1);
        }
        queued
    }
}

impl Verdict {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied(_) => "denied",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// What LKM calls a protocol, and the number its newer versions say instead.
fn lkm_protocol(name: &str, plays: bool) -> (&str, u8) {
    match (name, plays) {
        ("rtmp", _) => ("rtmp", 1),
        ("gb28181", _) => ("28181", 2),
        ("jt1078", _) => ("jt1078", 3),
        ("http-flv", _) => ("flv", 2),
        ("rtsp", _) => ("rtsp", 3),
        ("hls", _) => ("hls", 4),
        ("webrtc", _) => ("rtc", 5),
        (other, _) => (other, 0),
    }
}

fn word(visit: &Visit) -> Word {
    // What a player asks to wait for (RFC 8216bis, 6.2.5) is another in every request.
    let lasting: Vec<_> = visit.query.split('&').filter(|pair| !pair.starts_with("_HLS_")).collect();
    (visit.peer.map(|peer| peer.ip()), visit.stream.clone(), lasting.join("&"))
}

/// A peer's query as part of a URL of ours: what may not stand there is escaped.
fn in_query(query: &str) -> String {
    let mut escaped = String::with_capacity(query.len());
    for byte in query.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte);
        if plain {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn clients(config: &config::Hooks) -> Result<HashMap<Event, Client>, (&'static str, HttpError)> {
    let trust = Trust { ca_file: config.ca_file.clone(), ..Trust::default() };
    let mut clients = HashMap::new();
    for event in Event::ALL {
        if let Some(url) = config.url(event.as_str()) {
            let client = Client::new(url, &trust).map_err(|error| (event.as_str(), error))?;
            clients.insert(event, client);
        }
    }
    Ok(clients)
}

// === telling ===

/// Tells what waits, one after another.
async fn tell(inner: Arc<Inner>, event: Event, mut told: mpsc::Receiver<Told>, tasks: Tasks) {
    loop {
        let next = tokio::select! {
            next = told.recv() => next,
            () = tasks.stopping() => return,
        };
        let Some(Told { visit, more }) = next else { return };
        let verdict = tokio::select! {
            verdict = inner.post(event, &visit, &more) => verdict,
            () = tasks.stopping() => return,
        };
        if let More::Close(close) = more
            && verdict != Verdict::Allowed
        {
            close.cancel();
        }
    }
}

/// Asks about streams that nobody watches, again and again; closes those that the hook answers with anything but 200.
async fn watch_idle(inner: Arc<Inner>, streams: StreamCore, idle: Duration, tasks: Tasks) {
    let mut since: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(IDLE_LOOK) => {}
            () = tasks.stopping() => return,
        }
        let list = streams.list();
        since.retain(|name, _| list.iter().any(|info| info.name == *name && info.live && info.viewers == 0));
        for info in list.into_iter().filter(|info| info.live && info.viewers == 0) {
            if since.entry(info.name.clone()).or_insert_with(Instant::now).elapsed() < idle {
                continue;
            }
            since.remove(&info.name);
            let Some(name) = protocols::media::StreamName::parse(&info.name) else { continue };
            let visit =
                Visit { stream: info.name, protocol: "rtmp".to_owned(), peer: info.publisher, query: String::new() };
            let (inner, streams) = (Arc::clone(&inner), streams.clone());
            // Each by itself: a hook that is slow about one stream holds up no other.
            tasks.spawn("hook-idle", async move {
                let _room = inner.asking.acquire().await;
                if let Verdict::Denied(status) = inner.post(Event::IdleTimeout, &visit, &More::Nothing).await {
                    info!(stream = %name, status, "closed by the hook: nobody watches");
                    streams.end(&name).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_query_cannot_break_out_of_ours() {
        assert_eq!(in_query("token=a%20b&x=1"), "token=a%20b&x=1");
        assert_eq!(in_query("a=b c\r\nHost: x#\"门"), "a=b%20c%0D%0AHost:%20x%23%22%E9%97%A8");
    }

    #[test]
    fn bodies_are_lkms() {
        let inner = |protocol_numbers| Inner {
            clients: HashMap::new(),
            queues: HashMap::new(),
            patience: Duration::ZERO,
            tries: 1,
            allow_when_unreachable: false,
            protocol_numbers,
            asking: Semaphore::new(1),
            words: Mutex::default(),
            metrics: Metrics::new(),
        };
        let visit = Visit {
            stream: "live/x".to_owned(),
            protocol: "http-flv".to_owned(),
            peer: Some("127.0.0.1:5".parse().unwrap()),
            query: String::new(),
        };
        let said = |numbers: bool, event, more| -> serde_json::Value {
            serde_json::from_slice(&inner(numbers).body(event, &visit, &more)).unwrap()
        };
        let played =
            json!({"stream": "live/x", "protocol": "flv", "remote_addr": "127.0.0.1:5", "sink": "127.0.0.1:5"});
        assert_eq!(said(false, Event::PlayDone, More::Nothing), played);
        assert_eq!(said(true, Event::Play, More::Nothing)["protocol"], 2);
        let recorded = json!({"stream": "live/x", "protocol": "flv", "remote_addr": "127.0.0.1:5", "path": "/r/1.mp4"});
        assert_eq!(said(false, Event::Record, More::Path("/r/1.mp4".to_owned())), recorded);
    }
}
