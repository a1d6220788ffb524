//! Every setting: meaning, default, unit, limit. One typed tree; unknown keys are refused.
//!
//! `load.rs` reads the files and the environment and finds every error with its place; `example.rs` prints the
//! commented example that `sluicegate check --example` shows. Must not be in here: anything that opens a socket.

mod access;
pub mod example;
pub mod load;
mod outlet;
pub mod plan;
pub mod problem;
mod rules;

use std::path::PathBuf;

use device_models::wire;
use serde::Deserialize;

pub use self::outlet::{AlarmEvent, Format, OverBudget, Record, Relay, When};
pub use self::rules::{Alarm, Reporting, Rule, Take};

/// The whole configuration: `sluicegate.toml` plus `conf.d/*.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub gateway: Gateway,
    pub store: Store,
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

/// The bus on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// State folder.
    pub path: PathBuf,
    /// A batch of messages is made durable (fdatasync) at most this long after its first message, ms, 0 to 1000.
    /// Acknowledgements (PUBACK, CoAP ACK) go out after it. 0: every batch at once.
    pub commit_ms: u64,
    /// … or as soon as this much waits, KiB, 4 to 4096.
    pub commit_kib: u64,
    /// Bytes all segment files together may take, MiB, at least 8. The oldest of the lowest class that has more than
    /// its share goes first, and a gap record says so.
    pub cap_mib: u64,
    /// Size of one segment file, MiB, 1 to 64.
    pub segment_mib: u64,
    /// Free space that is left to the rest of the box, MiB: below it the log drops as at its cap.
    pub free_min_mib: u64,
    /// What of all bytes a class keeps while another has more than its own share, percent, together at most 100: a flood
    /// of one class must not cost the others all they have.
    pub share_percent: SharePercent,
    /// Messages older than this go, with a gap record, even where there is room, hours, up to 87600. 0: never.
    pub ttl_hours: TtlHours,
}

/// A share for each class of messages, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharePercent {
    pub control: u64,
    pub event: u64,
    pub live: u64,
    pub historical: u64,
}

/// A longest age for each class of messages, hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TtlHours {
    pub control: u64,
    pub event: u64,
    pub live: u64,
    pub historical: u64,
}

impl SharePercent {
    /// In the order of the classes' numbers.
    pub const fn by_class(self) -> [u64; 4] {
        [self.control, self.event, self.live, self.historical]
    }
}

impl TtlHours {
    /// In the order of the classes' numbers.
    pub const fn by_class(self) -> [u64; 4] {
        [self.control, self.event, self.live, self.historical]
    }
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

/// The streaming core.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// Pinned threads; 0: one less than the CPUs, at least 1.
    pub threads: usize,
    /// Above this use of its thread a stream's new viewers are served by another thread, %, 0 to 100. 100: never.
    pub spill_percent: u64,
    /// Lower bound of the merge window, ms, 0 to 1000. 0: viewers get each frame at once while there is time to spare.
    pub window_min_ms: u64,
    /// Upper bound of the merge window, ms, 0 to 1000: how long bytes for viewers may be collected under load.
    pub window_max_ms: u64,
    /// Bytes kept of one stream in one container since its last key frame, KiB.
    pub gop_kib: u64,
    /// Seconds kept of one stream since its last key frame (also bounds audio-only streams).
    pub gop_seconds: u64,
    /// Streams at a time.
    pub sources_max: usize,
    /// Viewers at a time.
    pub viewers_max: usize,
    /// A viewer further behind than this jumps to the newest key frame, ms.
    pub lag_max_ms: u64,
    /// A viewer that takes no byte for this long is closed, seconds.
    pub stall_max_seconds: u64,
    /// A publisher that sends nothing for this long is closed, seconds.
    pub silence_max_seconds: u64,
    /// How long a viewer waits for a stream that is not there yet, seconds.
    pub wait_max_seconds: u64,
    /// How long viewers are kept when the publisher goes, seconds.
    pub grace_seconds: u64,
    /// Whether a new publisher of a live stream replaces the old one (else it is refused).
    pub takeover: bool,
    /// What all relays together may take, kbit/s; 0: no limit.
    pub relays_kbps_max: u64,
    /// What becomes of audio that browsers cannot play.
    pub unplayable_audio: UnplayableAudio,
    /// Streams with a choice of their own; the first that fits holds.
    pub audio_rules: Vec<AudioRule>,
}

/// What becomes of audio that browsers cannot play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnplayableAudio {
    /// It goes out as it came.
    Pass,
    /// G.711, AC-3 and FLAC are left out.
    Drop,
    /// G.711 becomes AAC, 32 kbit/s; the rest passes.
    #[default]
    Aac,
}

/// A choice for some streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioRule {
    /// Stream name, or `live/*`.
    pub stream: String,
    pub unplayable_audio: UnplayableAudio,
}

/// WebRTC: WHEP out and WHIP in, on the console's port; its media on a port of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webrtc {
    /// `udp://HOST:PORT` of the media; empty: no WebRTC.
    pub listen: String,
    /// More addresses at which peers reach that port, `IP` or `IP:PORT`: for a box behind a router that forwards it.
    pub candidates: Vec<String>,
    /// Whether peers without a key may watch and publish.
    pub allow_anonymous: bool,
    /// Sessions at a time, 1 to 10000.
    pub sessions_max: usize,
}

/// What is kept in memory for HLS players, while somebody asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hls {
    /// How long a part of low-latency HLS is planned to be, ms, 50 to 1000: whole frames, at least one.
    pub part_ms: u64,
    /// How long a segment is at least, ms, 500 to 10000: it ends with the next group of pictures.
    pub segment_ms: u64,
    /// What a playlist names, seconds, 2 to 60, at least three segments; as much again is kept.
    pub window_seconds: u64,
    /// Bytes kept of one stream, KiB, at least 1024; the oldest segments go first.
    pub stream_kib: u64,
    /// Bytes kept of all streams together, MiB: each gets an equal share of it, and no more streams are opened than have
    /// 1 MiB each.
    pub total_mib: u64,
    /// A stream that nobody asked for so long is given up, seconds, 2 to 300.
    pub idle_seconds: u64,
    /// Requests that may wait for a playlist or part that is still to come.
    pub waiting_max: usize,
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
    /// Connections (or UDP peers) at a time.
    #[serde(default = "Adapter::connections_max")]
    pub connections_max: usize,
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

/// A platform that takes the messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub name: String,
    /// Where it is and how it is spoken to: `mqtt`, `mqtts`, `ws`, `wss` (MQTT over WebSocket), `http`, `https`, `nats`,
    /// `nats+tls`, then `://HOST[:PORT][/PATH]`.
    pub url: String,
    /// Of MQTT: `5` or `3.1.1`.
    #[serde(default)]
    pub mqtt_version: MqttVersion,
    /// How the platform wants it said.
    #[serde(default)]
    pub dialect: Dialect,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub password_env: Option<String>,
    /// Instead of name and password, where the destination takes one (HTTP, NATS): a bearer token.
    pub token_file: Option<PathBuf>,
    /// Certificate authorities, PEM; absent: the built-in web roots.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and key, PEM.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How native batches are packed: `none`, `lz4`, `zstd`.
    #[serde(default)]
    pub compression: Compression,
    /// A batch is closed at this many bytes, KiB, 1 to 256.
    #[serde(default = "Upstream::batch_kib")]
    pub batch_kib: u64,
    /// … or this long after its first message, ms, 0 to 10000.
    #[serde(default = "Upstream::batch_ms")]
    pub batch_ms: u64,
    /// Batches sent and not yet acknowledged, 1 to 100.
    #[serde(default = "Upstream::inflight_max")]
    pub inflight_max: u16,
    #[serde(default = "Upstream::keep_alive_seconds")]
    pub keep_alive_seconds: u64,
    /// Whether what comes now waits for what is older.
    #[serde(default)]
    pub order: Order,
    /// With `live-first`: what the backlog may take beside the live messages, a second; 0: as much as leaves them room.
    #[serde(default)]
    pub drain_messages_per_second: u64,
    #[serde(default)]
    pub drain_kib_per_second: u64,
    /// What this destination wants; without it everything.
    #[serde(default)]
    pub filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Live messages at once, the backlog beside them; each in order.
    #[default]
    LiveFirst,
    /// Strictly by number inside a class.
    InOrder,
}

/// What a destination wants of all messages. An empty list wants all.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Things by id; `*` stands for any text, `?` for one character. So in the next two.
    pub things: Vec<String>,
    /// Things by the name of their model.
    pub products: Vec<String>,
    /// Properties of reports by name; what is left of a report is sent.
    pub properties: Vec<String>,
    pub classes: Vec<device_models::Class>,
    pub min_quality: MinQuality,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MinQuality {
    #[default]
    Any,
    /// All but values of the wrong type and of properties that the model does not know.
    Uncertain,
    Good,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum MqttVersion {
    #[default]
    #[serde(rename = "5")]
    V5,
    #[serde(rename = "3.1.1")]
    V311,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Protobuf batches on `sg/v1/GATEWAY/…`; see `docs/native.md`.
    #[default]
    Native,
    /// One JSON object a message on `sg/v1/GATEWAY/json/THING/…`.
    Json,
    /// ThingsBoard's MQTT gateway API. This and the following: `docs/dialects.md`.
    Thingsboard,
    /// JetLinks' official protocol.
    Jetlinks,
    /// Home Assistant's MQTT discovery.
    Homeassistant,
}

/// What becomes of a native batch's body; `docs/native.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    None,
    /// Little work, a little smaller.
    Lz4,
    /// More work, much smaller.
    Zstd,
}

impl From<Compression> for wire::Compression {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// A camera that is asked for its stream by RTSP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// The stream's name here.
    pub stream: String,
    /// `rtsp://HOST[:PORT]/PATH`, without name and password.
    pub url: String,
    /// The camera's user, and a file with its password (one line).
    #[serde(default)]
    pub user: String,
    pub password_file: Option<PathBuf>,
    #[serde(default)]
    pub transport: PullTransport,
    #[serde(default)]
    pub when: PullWhen,
    /// On demand: how long the camera is kept when nobody watches, seconds, 1 to 3600.
    #[serde(default = "Pull::idle_seconds")]
    pub idle_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullTransport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullWhen {
    #[default]
    Always,
    /// While somebody watches the stream, or waits for it.
    OnDemand,
}

impl Pull {
    fn idle_seconds() -> u64 {
        30
    }
}

// === defaults ===

impl Default for Gateway {
    fn default() -> Self {
        Self { id: String::new(), models: PathBuf::from("/etc/sluicegate/models"), memory_mib: 0 }
    }
}

impl Default for SharePercent {
    fn default() -> Self {
        Self { control: 10, event: 20, live: 40, historical: 10 }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/sluicegate"),
            commit_ms: 100,
            commit_kib: 256,
            cap_mib: 512,
            segment_mib: 8,
            free_min_mib: 64,
            share_percent: SharePercent::default(),
            ttl_hours: TtlHours::default(),
        }
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

impl Default for Stream {
    fn default() -> Self {
        Self {
            threads: 0,
            spill_percent: 60,
            window_min_ms: 0,
            window_max_ms: 350,
            gop_kib: 8 * 1024,
            gop_seconds: 10,
            sources_max: 256,
            viewers_max: 10_000,
            lag_max_ms: 3_000,
            stall_max_seconds: 10,
            silence_max_seconds: 15,
            wait_max_seconds: 5,
            grace_seconds: 15,
            takeover: true,
            relays_kbps_max: 0,
            unplayable_audio: UnplayableAudio::default(),
            audio_rules: Vec::new(),
        }
    }
}

impl Default for Webrtc {
    fn default() -> Self {
        Self { listen: String::new(), candidates: Vec::new(), allow_anonymous: false, sessions_max: 100 }
    }
}

impl Default for Hls {
    fn default() -> Self {
        Self {
            part_ms: 200,
            segment_ms: 2_000,
            window_seconds: 8,
            stream_kib: 12 * 1024,
            total_mib: 32,
            idle_seconds: 10,
            waiting_max: 4_096,
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

impl Upstream {
    fn batch_kib() -> u64 {
        64
    }

    fn batch_ms() -> u64 {
        200
    }

    fn inflight_max() -> u16 {
        16
    }

    fn keep_alive_seconds() -> u64 {
        30
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
