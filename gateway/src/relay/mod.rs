//! Copies of chosen streams to RTMP servers: one task a stream and server.
//!
//! `connect.rs` finds, reaches and greets the server; `copy.rs` sends the stream; `budget.rs` says how much may be sent;
//! this file says when, and tries again with growing patience. A relay reads the stream through a tap: what was
//! published since the key frame before an alarm waits in there, bounded, while the connection is made.
//!
//! Must not be in here: RTMP itself (`protocols::rtmp::client`), and why a relay is wanted (`outlet/`).

mod budget;
mod connect;
mod copy;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocols::Refusal;
use protocols::media::StreamName;
use protocols::rtmp::client::{ClientError, Target};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::budget::Budget;
use self::connect::Connector;
use self::copy::Load;
use crate::config::{self, OverBudget, When};
use crate::outlet::{Demand, Means, Reason, chosen};
use crate::stream::{TapKind, TapRules};
use crate::tls::TlsError;

/// Between tries: doubled from the first to the last, and up to a quarter more or less, so that a hundred boxes do not
/// come back to a server at one moment.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A connection that lasted this long was a good one: the next try is made soon.
const STEADY: Duration = Duration::from_secs(30);

/// Time to say goodbye to a server when the stream ends.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

/// Units that may wait in a tap: half a minute of ordinary video and audio.
const UNITS_MAX: usize = 4_096;

/// Why a relay has no connection.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the name `{host}` has no address: {error}")]
    Name { host: String, error: std::io::Error },
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("the server did not take the stream within {} s", connect::ESTABLISH_MAX.as_secs())]
    Patience,
    #[error("no randomness: {0}")]
    Seed(getrandom::Error),
    #[error("the server ended the stream")]
    Ended,
    #[error("the server closed the connection")]
    Closed,
    #[error("the server took no byte for {} s", copy::STALL_MAX.as_secs())]
    Stalled,
    #[error("{0}")]
    Stream(#[from] Refusal),
    #[error("over the budget: {0}")]
    Budget(String),
}

/// How a relay stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayState {
    /// Nothing asks for it.
    #[default]
    Idle,
    Connecting,
    Sending,
    /// Only key frames are sent: more would break a budget.
    KeyFrames,
    /// Nothing is sent: it would break a budget.
    OverBudget,
    /// Waits before the next try.
    Waiting,
}

impl RelayState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Sending => "sending",
            Self::KeyFrames => "key-frames",
            Self::OverBudget => "over-budget",
            Self::Waiting => "waiting",
        }
    }

    pub fn is_sending(self) -> bool {
        matches!(self, Self::Sending | Self::KeyFrames)
    }
}

/// One relay of one stream, for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RelayInfo {
    /// Without user, password and query.
    pub url: String,
    pub state: RelayState,
    /// Why it runs: `always`, `asked for`, `watched`, `alarm: …`.
    pub reason: Option<String>,
    /// Why the last connection ended or could not be made, or which budget is in the way.
    pub error: Option<String>,
    /// Connections made.
    pub connections: u64,
    /// Media bytes sent.
    pub bytes: u64,
    /// Units left out: the server was too slow, or the budget too small.
    pub skipped: u64,
}

/// What a relay says of itself.
#[derive(Debug, Default)]
pub(crate) struct Board {
    info: Mutex<RelayInfo>,
    bytes: AtomicU64,
    skipped: AtomicU64,
}

impl Board {
    pub(crate) fn info(&self) -> RelayInfo {
        let (bytes, skipped) = (self.bytes.load(Ordering::Relaxed), self.skipped.load(Ordering::Relaxed));
        RelayInfo { bytes, skipped, ..self.lock().clone() }
    }

    fn lock(&self) -> MutexGuard<'_, RelayInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules, and what all relays share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Relays {
    rules: Arc<[config::Relay]>,
    budget: Arc<Budget>,
    connector: Connector,
    /// What may wait in a tap.
    bytes_max: u64,
}

impl Relays {
    pub(crate) fn new(rules: &[config::Relay], stream: &config::Stream) -> Self {
        let bytes_max = stream.gop_kib.saturating_mul(1024);
        Self {
            rules: rules.into(),
            budget: Arc::new(Budget::new(stream.relays_kbps_max)),
            bytes_max,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(crate) fn have_alarms(&self) -> bool {
        self.rules.iter().any(|rule| rule.when == When::Alarm)
    }

    /// Starts the relays of one stream.
    pub(crate) fn open(
        &self,
        stream: &StreamName,
        means: &Means,
        stop: &CancellationToken,
    ) -> Vec<(Demand, Arc<[config::AlarmEvent]>, Arc<Board>)> {
        let rules = self.rules.iter().filter(|rule| chosen(&rule.stream, stream.as_str()));
        rules
            .map(|rule| {
                let demand = Demand::new(rule.when, Duration::from_secs(rule.hold_seconds));
                let board = Arc::new(Board::default());
                let relay = Relay {
                    stream: stream.clone(),
                    rule: rule.clone(),
                    relays: self.clone(),
                    demand: demand.clone(),
                    board: Arc::clone(&board),
                    means: means.clone(),
                    stop: stop.clone(),
                };
                means.tasks.spawn("relay", relay.run());
                (demand, Arc::from(rule.alarms.as_slice()), board)
            })
            .collect()
    }
}

/// One stream on its way to one server.
struct Relay {
    stream: StreamName,
    rule: config::Relay,
    relays: Relays,
    demand: Demand,
    board: Arc<Board>,
    means: Means,
    stop: CancellationToken,
}

impl Relay {
    async fn run(self) {
        let url = address(&self.rule.url, &self.stream);
        self.board.lock().url = shown(&url);
        let target = match Target::parse(&url) {
            Ok(target) => target,
            Err(error) => {
                warn!(stream = %self.stream, %error, "a relay cannot start");
                return self.say(RelayState::Waiting, Some(error.to_string()));
            }
        };
        let gone = async {
            self.gone().await;
            // Time for a goodbye to the server.
            tokio::time::sleep(GOODBYE_MAX).await;
        };
        tokio::select! {
            () = self.talk(&target) => {}
            () = gone => {}
        }
    }

    /// Works while it is wanted, again and again, until the stream or the gateway is gone.
    async fn talk(&self, target: &Target) {
        while !self.stop.is_cancelled() && !self.means.tasks.is_stopping() {
            self.board.lock().reason = None;
            self.say(RelayState::Idle, None);
            let reason = self.demand.wanted().await;
            self.board.lock().reason = Some(reason.to_string());
            self.work(target, &reason).await;
        }
    }

    /// Connection after connection, until it is no longer wanted.
    async fn work(&self, target: &Target, reason: &Reason) {
        let mut backoff = BACKOFF.0;
        let mut load = None;
        loop {
            let begun = Instant::now();
            let Err(error) = self.attempt(target, &mut load).await else { return };
            let steady = begun.elapsed() >= STEADY;
            // What was published since the alarm is worth keeping for the next try, in a bounded tap; other relays begin
            // anew and hold nothing meanwhile.
            if self.rule.when != When::Alarm || steady {
                load = None;
            }
            backoff = if steady { BACKOFF.0 } else { backoff };
            let budget = matches!(error, RelayError::Budget(_));
            let patience = if budget { budget::AGAIN } else { jittered(backoff) };
            warn!(stream = %self.stream, url = self.board.lock().url, %error, ?patience, %reason, "relay ended");
            self.fell(budget, &error.to_string());
            backoff = if budget { backoff } else { (backoff * 2).min(BACKOFF.1) };
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                () = self.done() => return,
            }
        }
    }

    /// Resolves when the stream, the gateway or the wish for this relay is gone.
    async fn done(&self) {
        tokio::select! {
            () = self.demand.unwanted() => {}
            () = self.gone() => {}
        }
    }

    async fn gone(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.means.tasks.stopping() => {}
        }
    }

    /// One connection, from its making to its end.
    async fn attempt(&self, target: &Target, load: &mut Option<Load>) -> Result<(), RelayError> {
        if load.is_none() {
            let rules = TapRules { kind: TapKind::Relay, units_max: UNITS_MAX, bytes_max: self.relays.bytes_max };
            *load = Some(Load::new(self.means.streams.tap(&self.stream, rules).await?));
        }
        let Some(load) = load else { return Ok(()) };
        copy::attempt(self, target, load).await
    }

    /// The stream's bit rate, kbit/s; 0 while it is not known.
    fn kbps(&self) -> u64 {
        let info = self.means.streams.list().into_iter().find(|info| info.name == self.stream.as_str());
        info.map_or(0, |info| info.bits_per_second.div_ceil(1000))
    }

    fn up(&self) {
        let url = {
            let mut info = self.board.lock();
            info.connections += 1;
            info.url.clone()
        };
        info!(stream = %self.stream, url, "relay is sending");
        self.means.voice.event(self.stream.as_str(), "relayUp", &[("url", &url)]);
    }

    /// The copy broke off or could not be made; said once until it changes.
    fn fell(&self, budget: bool, why: &str) {
        let state = if budget { RelayState::OverBudget } else { RelayState::Waiting };
        let known = {
            let info = self.board.lock();
            info.error.as_deref() == Some(why)
        };
        if !known {
            self.down(why);
        }
        self.say(state, Some(why.to_owned()));
    }

    fn down(&self, why: &str) {
        let url = self.board.lock().url.clone();
        self.means.voice.event(self.stream.as_str(), "relayDown", &[("url", &url), ("reason", why)]);
    }

    fn say(&self, state: RelayState, error: Option<String>) {
        let mut info = self.board.lock();
        info.state = state;
        // The last error stays to be read while the next try goes on.
        info.error = error.or(info.error.take()).filter(|_| state != RelayState::Sending);
    }
}

fn jittered(patience: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness the patience is what it is.
    let _seeded = getrandom::fill(&mut byte);
    patience.mul_f64(0.75 + f64::from(byte[0]) / 510.0)
}

fn address(url: &str, name: &StreamName) -> String {
    let (app, last) = name.as_str().rsplit_once('/').unwrap_or(("live", name.as_str()));
    url.replace("{app}", app).replace("{name}", last)
}

/// Without what may be secret: user and password, and the query, which is how servers get keys.
fn shown(url: &str) -> String {
    let plain = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = plain.split_once("://") else { return plain.to_owned() };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

/// Whether nothing is sent, or key frames only, when a budget would be broken.
fn narrows(rule: &config::Relay) -> bool {
    rule.over_budget == OverBudget::KeyFrames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_takes_the_streams_own_names_and_shows_no_secret() {
        let name = StreamName::parse("gb/34020000001320000001/1").unwrap();
        let url = address("rtmp://me:secret@up/{app}/{name}?k=1", &name);
        assert_eq!(url, "rtmp://me:secret@up/gb/34020000001320000001/1?k=1");
        assert_eq!(shown(&url), "rtmp://up/gb/34020000001320000001/1");
    }

    #[test]
    fn patience_is_scattered_by_a_quarter() {
        for _ in 0..100 {
            let patience = jittered(Duration::from_secs(4));
            assert!((3.0..=5.01).contains(&patience.as_secs_f64()), "{patience:?}");
        }
    }
}
