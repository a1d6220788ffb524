//! `sluicegate receive`: the reference consumer of what gateways send upstream.
//!
//! `consumer.rs` reads, drops duplicates and keeps the book; `spans.rs` are its sets of numbers; `table.rs` prints. Here is
//! the talk with the broker: a session that outlives the connection, and an acknowledgement only after printing. Must
//! not be in here: anything a consumer on another machine could not know.

mod consumer;
mod spans;
mod table;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

pub use consumer::{Account, Consumer, Content, Delivered, Stream};
pub use spans::Spans;
pub use table::Table;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Sasl;
use crate::threads::Tasks;
use crate::tls::Trust;
use crate::upstream::Receipt;
use crate::upstream::destination::mqtt::Link;
use crate::upstream::destination::place::{Place, PlaceError};
use crate::upstream::destination::{Arrival, Event, LinkError, Publication, Settings, Version};

/// Publishes the broker may send before we acknowledge.
const WINDOW: u16 = 100;
/// Receipts published and not yet confirmed.
const RECEIPTS_UNDER_WAY_MAX: usize = 32;
/// Pause after a lost connection: doubles up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long the goodbye may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What `sluicegate receive` is asked to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The broker: mqtt://HOST, mqtts://HOST, ws://HOST/PATH or wss://HOST/PATH, with :PORT where it is not the usual one
    #[arg(long)]
    pub url: String,
    /// The gateway to listen to; `+` for all
    #[arg(long, default_value = "+")]
    pub gateway: String,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    pub json: bool,
    /// Print nothing but the summary
    #[arg(long)]
    pub quiet: bool,
    /// Tell the gateways what was printed: for upstreams with `acknowledge = "receiver"`
    #[arg(long)]
    pub acknowledge: bool,
    /// Stop after this many messages
    #[arg(long)]
    pub count: Option<u64>,
    /// Stop after this long without a message, seconds
    #[arg(long)]
    pub idle_seconds: Option<u64>,
    /// Our name at the broker: it keeps messages for this name while we are away
    #[arg(long, default_value = "sluicegate-receive")]
    pub client_id: String,
    /// How long the broker keeps them, seconds
    #[arg(long, default_value_t = 3600)]
    pub expiry_seconds: u64,
    /// Certificate authorities, PEM, for mqtts; without it the built-in web roots
    #[arg(long)]
    pub ca_file: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long, requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    #[arg(long)]
    pub username: Option<String>,
    /// Environment variable that holds the password
    #[arg(long, requires = "username")]
    pub password_env: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("`{0}` is no MQTT broker: mqtt, mqtts, ws or wss")]
    Broker(String),
    #[error("environment variable {0} (from --password-env) is not set")]
    Password(String),
    #[error("`{0}` is no gateway's name: letters, digits, `-`, `_`, or `+` for all")]
    Gateway(String),
    #[error("the broker refuses the subscription: {0}")]
    NotSubscribed(String),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// What came, and whether something is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub messages: u64,
    pub bytes: u64,
    pub duplicates: u64,
    /// Numbers that never came and that no gap names.
    pub missing: u64,
    /// Numbers that the gateways say are gone.
    pub said_lost: u64,
    pub out_of_order: u64,
    pub unreadable: u64,
    /// One line a stream.
    pub streams: Vec<String>,
    pub last_error: Option<String>,
}

/// Why the talk with the broker is over.
enum End {
    Enough,
    Lost(String),
}

struct Receiver {
    consumer: Consumer,
    table: Table,
    options: Options,
    messages: u64,
    quiet_since: Instant,
}

/// Receives until it is stopped: by Ctrl-C, by `--count`, by `--idle-seconds`.
pub async fn run(options: Options) -> Result<Summary, ReceiveError> {
    let settings = options.settings()?;
    let tasks = Tasks::new();
    let mut receiver = Receiver {
        consumer: if options.acknowledge { Consumer::with_receipts() } else { Consumer::new() },
        table: Table::new(options.json),
        options,
        messages: 0,
        quiet_since: Instant::now(),
    };
    let mut pause = PAUSE_MIN;
    loop {
        let mut link = Link::open(&settings, &tasks)?;
        let before = receiver.messages;
        let end = tokio::select! {
            end = receiver.talk(&mut link) => end?,
            stop = tokio::signal::ctrl_c() => { stop?; End::Enough }
        };
        match end {
            End::Enough => {
                link.close(CLOSE_MAX).await;
                break;
            }
            End::Lost(reason) => warn!(url = receiver.options.url, reason, "no connection to the broker"),
        }
        if receiver.messages > before {
            pause = PAUSE_MIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            () = receiver.idle() => break,
            stop = tokio::signal::ctrl_c() => { stop?; break }
        }
    }
    tasks.join(CLOSE_MAX).await;
    Ok(receiver.summary())
}

// === impl Options ===

impl Options {
    fn settings(&self) -> Result<Settings, ReceiveError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.gateway != "+" && (self.gateway.is_empty() || !self.gateway.chars().all(plain)) {
            return Err(ReceiveError::Gateway(self.gateway.clone()));
        }
        let place: Place = self.url.parse()?;
        if !place.scheme.is_mqtt() {
            return Err(ReceiveError::Broker(self.url.clone()));
        }
        let password = match &self.password_env {
            None => String::new(),
            Some(name) => std::env::var(name).map_err(|_| ReceiveError::Password(name.clone()))?,
        };
        let trust =
            Trust { ca_file: self.ca_file.clone(), cert_file: self.cert_file.clone(), key_file: self.key_file.clone() };
        Ok(Settings {
            trust: place.is_tls().then_some(trust),
            place,
            version: Version::V5,
            client_id: self.client_id.clone(),
            credentials: self.username.clone().map(|name| (name, password)),
            keep_alive: Duration::from_secs(15),
            clean_start: false,
            session_expiry: Duration::from_secs(self.expiry_seconds),
            window: WINDOW,
            will: None,
            sasl: Sasl::default(),
            token: None,
            content_type: "",
        })
    }
}

// === impl Receiver ===

impl Receiver {
    async fn talk(&mut self, link: &mut Link) -> Result<End, ReceiveError> {
        loop {
            let event = tokio::select! {
                event = link.next() => event,
                () = self.idle() => return Ok(End::Enough),
            };
            match event {
                Event::Up { .. } => {
                    info!(url = self.options.url, "connected");
                    // The catalogs first: the batches need them.
                    for way in ["model/+", "up/+", "json/#"] {
                        link.subscribe(&format!("sg/v1/{}/{way}", self.options.gateway))?;
                    }
                }
                Event::Arrived(arrival) => {
                    self.print(&arrival)?;
                    self.say_receipts(link)?;
                    link.acknowledge(arrival)?;
                    if self.options.count.is_some_and(|count| self.messages >= count) {
                        return Ok(End::Enough);
                    }
                }
                Event::NotSubscribed(reason) => return Err(ReceiveError::NotSubscribed(reason)),
                Event::Down { reason, .. } => return Ok(End::Lost(reason)),
                Event::Subscribed => info!(url = self.options.url, "subscribed"),
                Event::Confirmed(_) | Event::Sent | Event::Refused { .. } => self.say_receipts(link)?,
            }
        }
    }

    /// After what was printed has left us: as many as may be under way, the rest when those are confirmed.
    fn say_receipts(&mut self, link: &mut Link) -> Result<(), LinkError> {
        while link.unconfirmed() < RECEIPTS_UNDER_WAY_MAX
            && let Some((gateway, receipt)) = self.consumer.receipt()
        {
            link.publish(Publication::new(Receipt::topic(&gateway), receipt.json().into_bytes()))?;
        }
        Ok(())
    }

    fn print(&mut self, arrival: &Arrival) -> Result<(), ReceiveError> {
        let unreadable = self.consumer.unreadable;
        let delivered = self.consumer.take(&arrival.topic, &arrival.payload);
        if self.consumer.unreadable > unreadable {
            warn!(reason = self.consumer.last_error, "cannot read what arrived");
        }
        if delivered.is_empty() {
            return Ok(());
        }
        self.quiet_since = Instant::now();
        self.messages += delivered.len() as u64;
        if !self.options.quiet {
            let mut out = io::stdout().lock();
            for one in &delivered {
                self.table.write(&mut out, one)?;
            }
            out.flush()?;
        }
        Ok(())
    }

    /// Resolves when nothing has come for as long as asked for.
    async fn idle(&self) {
        match self.options.idle_seconds {
            Some(seconds) => tokio::time::sleep_until(self.quiet_since + Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    }

    fn summary(&self) -> Summary {
        Summary::of(&self.consumer)
    }
}

// === impl Summary ===

impl Summary {
    pub fn of(consumer: &Consumer) -> Self {
        let mut summary = Self {
            bytes: consumer.bytes,
            unreadable: consumer.unreadable + consumer.waiting() as u64,
            last_error: consumer.last_error.clone(),
            ..Self::default()
        };
        let mut accounts: Vec<_> = consumer.accounts().collect();
        accounts.sort_by_key(|(stream, _)| *stream);
        for (stream, account) in accounts {
            summary.messages += account.messages;
            summary.duplicates += account.duplicates;
            summary.missing += account.seen.missing();
            summary.said_lost += account.said_lost;
            summary.out_of_order += account.out_of_order;
            let range = account.seen.first().zip(account.seen.last());
            let range = range.map_or_else(String::new, |(first, last)| format!("{first} to {last}"));
            summary.streams.push(format!(
                "{}/{:016x}/{}: {range}, {} messages, {} twice, {} said lost, {} missing",
                stream.gateway,
                stream.epoch,
                stream.class.topic(),
                account.messages,
                account.duplicates,
                account.said_lost,
                account.seen.missing(),
            ));
        }
        summary
    }

    /// Whether every number came or was named, once, in order, and readable. Else the command exits with 1.
    pub const fn is_whole(&self) -> bool {
        self.missing == 0 && self.out_of_order == 0 && self.unreadable == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for stream in &self.streams {
            writeln!(f, "{stream}")?;
        }
        let Self { messages, bytes, duplicates, missing, said_lost, out_of_order, unreadable, .. } = self;
        writeln!(f, "{messages} messages in {bytes} bytes, {duplicates} duplicates dropped, {said_lost} said lost")?;
        write!(f, "{missing} missing, {out_of_order} out of order, {unreadable} unreadable")?;
        match &self.last_error {
            Some(error) => write!(f, " (last: {error})"),
            None => Ok(()),
        }
    }
}
