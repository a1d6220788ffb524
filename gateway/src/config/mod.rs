//! Every setting: meaning, default, unit, limit. One typed tree; unknown keys are refused.
//!
//! `load.rs` reads the files and the environment and finds every error with its place; `example.rs` prints the
//! commented example that `sluicegate check --example` shows. Must not be in here: anything that opens a socket.

mod access;
pub mod example;
pub mod load;
mod media;
mod outlet;
pub mod plan;
pub mod problem;
mod rules;
mod shadow;
mod store;
mod upstream;

use std::path::PathBuf;

use serde::Deserialize;

pub use self::media::{AudioRule, Hls, Pull, PullTransport, PullWhen, Stream, UnplayableAudio, Webrtc};
pub use self::outlet::{AlarmEvent, Format, OverBudget, Record, Relay, When};
pub use self::rules::{Alarm, Reporting, Rule, Take};
pub use self::shadow::Shadow;
pub use self::store::{SharePercent, Store, TtlHours};
pub use self::upstream::{
    Acknowledge, Alink, Compression, Dialect, Filter, MinQuality, MqttVersion, Order, Sasl, Sparkplug, Upstream,
};

/// The whole configuration: `sluicegate.toml` plus `conf.d/*.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub gateway: Gateway,
    pub store: Store,
    pub shadow: Shadow,
    pub admin: Admin,
    pub broker: Broker,
    pub stream: Stream,
    pub webrtc: Webrtc,
    pub hls: Hls,
    pub hooks: Hooks,
    #[serde(rename = "adapter")]
    pub adapters: Vec<Adapter>,
    #[serde(rename = "device")]
    pub devices: Vec<Device>,
    #[serde(rename = "credential")]
    pub credentials: Vec<Credential>,
    #[serde(rename = "upstream")]
    pub upstreams: Vec<Upstream>,
    #[serde(rename = "relay")]
    pub relays: Vec<Relay>,
    #[serde(rename = "pull")]
    pub pulls: Vec<Pull>,
    #[serde(rename = "record")]
    pub records: Vec<Record>,
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
    #[serde(rename = "alarm")]
    pub alarms: Vec<Alarm>,
}

/// Who this box is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// The box's name upstream, in topics and batches: letters, digits, `-`, `_`. Empty: the host's name.
    pub id: String,
    /// Folder of thing models (`*.tm.json`) beside the shipped ones. May be missing.
    pub models: PathBuf,
    /// Memory all budgets together may take, MiB; a configuration that needs more is refused. 0: half of the machine's.
    pub memory_mib: u64,
}

/// Status page, API, metrics.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// `HOST:PORT`; empty: none. Off the box only with a token.
    pub listen: String,
    /// File with the API token (one line). Without one the API answers on loopback only.
    pub token_file: Option<PathBuf>,
    /// Certificate chain and key, PEM: the console and API speak https then.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Limits of the MQTT door.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    /// Kept sessions (connected or not).
    pub sessions_max: usize,
    /// Bytes of messages waiting for one session, KiB; beyond it the oldest QoS 0, then the newest is turned away.
    pub queue_kib: u64,
    /// Bytes of messages waiting for all sessions together, MiB.
    pub queues_mib: u64,
    /// Bytes of all retained messages together, MiB.
    pub retained_mib: u64,
    /// Subscriptions of one session.
    pub subscriptions_max: usize,
    /// Longest time a session is kept without its client, seconds.
    pub session_expiry_max_seconds: u64,
    /// Which core routes: `own`, or `rumqttd` (needs the build feature of that name; keeps no sessions).
    pub core: BrokerCore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerCore {
    #[default]
    Own,
    Rumqttd,
}

/// A service that is asked about publishers and viewers, and told of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// URLs, `http://…` or `https://…`; absent: nobody is asked or told.
    pub on_publish: Option<String>,
    pub on_publish_done: Option<String>,
    pub on_play: Option<String>,
    pub on_play_done: Option<String>,
    pub on_record: Option<String>,
    pub on_idle_timeout: Option<String>,
    pub on_receive_timeout: Option<String>,
    /// Time one answer may take, connecting included, ms, 100 to 60000.
    pub timeout_ms: u64,
    /// Further tries when there was no answer, 0 to 10.
    pub retries: u32,
    /// Whether a hook that gives no answer counts as one that allows.
    pub allow_when_unreachable: bool,
    /// A stream that nobody watches for this long is asked about, seconds, 1 to 86400.
    pub idle_timeout_seconds: u64,
    /// Say protocols as the numbers of LKM's newer versions, not by name.
    pub protocol_numbers: bool,
    /// Certificate authorities of `https` hooks, PEM; absent: the built-in web roots.
    pub ca_file: Option<PathBuf>,
}

/// A transport plus a protocol plus a thing model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    pub name: String,
    /// `tcp://HOST:PORT`, `tls://HOST:PORT`, `udp://HOST:PORT`, `serial:///dev/NAME?baud=N`.
    pub listen: String,
    /// One protocol, or several on one port: the first bytes decide.
    pub protocol: OneOrMany,
    /// The product of devices that register themselves here.
    pub product: Option<String>,
    /// Whether unknown devices are taken in as things of `product`.
    #[serde(default)]
    pub auto_register: bool,
    /// Whether peers without credentials are let in.
    #[serde(default)]
    pub allow_anonymous: bool,
    /// Streams that may be pushed without a key, by terminals that have none to give: names, with `*` at the end for all that
    /// begin so.
    #[serde(default)]
    pub push_without_key: Vec<String>,
    /// Connections (or UDP peers) at a time.
    #[serde(default = "Adapter::connections_max")]
    pub connections_max: usize,
    /// In place of `store.commit_ms` for what is reported here, ms, 0 to 1000.
    pub commit_ms: Option<u64>,
    /// Certificate chain and key, PEM, for `tls://`.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The protocol's own options; with several protocols one table each, by protocol name.
    #[serde(default)]
    pub options: toml::Table,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A declared thing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The thing's id upstream.
    pub id: String,
    /// Its model: `energy-meter`.
    pub product: String,
    /// Its name in its own protocol, where that differs from the id.
    pub name: Option<String>,
    /// The adapter it comes through; any if absent.
    pub adapter: Option<String>,
}

/// Who may come in, and as what.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Credential {
    /// MQTT user name or client id, CoAP token's name, stream key's name.
    pub name: String,
    /// The secret (password, token, stream key): in a file, in an environment variable, or as an argon2 hash.
    pub secret_file: Option<PathBuf>,
    pub secret_env: Option<String>,
    pub secret_hash: Option<String>,
    /// A key to sign URLs of its streams with (`?exp=&sig=`, docs/access.md): in a file, or in an environment variable.
    pub sign_file: Option<PathBuf>,
    pub sign_env: Option<String>,
    /// Devices it speaks for; `*` for any. Empty: the device of its own name.
    pub devices: Vec<String>,
    /// MQTT topic filters it may publish to and subscribe to beside its devices' own; `{client}` and `{user}` stand for
    /// its names.
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    /// Streams it may push and watch: names, `live/*`, `*`.
    pub push: Vec<String>,
    pub watch: Vec<String>,
}

// === defaults ===

impl Hooks {
    /// The URL of the hook with this key.
    pub fn url(&self, key: &str) -> Option<&str> {
        let url = match key {
            "on_publish" => &self.on_publish,
            "on_publish_done" => &self.on_publish_done,
            "on_play" => &self.on_play,
            "on_play_done" => &self.on_play_done,
            "on_record" => &self.on_record,
            "on_idle_timeout" => &self.on_idle_timeout,
            "on_receive_timeout" => &self.on_receive_timeout,
            _ => return None,
        };
        url.as_deref()
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self { id: String::new(), models: PathBuf::from("/etc/sluicegate/models"), memory_mib: 0 }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8080".to_owned(), token_file: None, cert_file: None, key_file: None }
    }
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            sessions_max: 10_000,
            queue_kib: 256,
            queues_mib: 32,
            retained_mib: 8,
            subscriptions_max: 200,
            session_expiry_max_seconds: 7 * 24 * 3600,
            core: BrokerCore::Own,
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            on_publish: None,
            on_publish_done: None,
            on_play: None,
            on_play_done: None,
            on_record: None,
            on_idle_timeout: None,
            on_receive_timeout: None,
            timeout_ms: 3_000,
            retries: 1,
            allow_when_unreachable: false,
            idle_timeout_seconds: 60,
            protocol_numbers: false,
            ca_file: None,
        }
    }
}

impl Adapter {
    fn connections_max() -> usize {
        10_000
    }
}

impl OneOrMany {
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::One(name) => vec![name],
            Self::Many(names) => names.iter().map(String::as_str).collect(),
        }
    }
}
