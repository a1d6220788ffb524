//! `[[upstream]]`: a platform that takes the messages, and what of them it wants.

use std::path::PathBuf;

use device_models::wire;
use serde::Deserialize;

/// A platform that takes the messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub name: String,
    /// Where it is and how it is spoken to: `mqtt`, `mqtts`, `ws`, `wss` (MQTT over WebSocket), `http`, `https`, `nats`,
    /// `nats+tls`, then `://HOST[:PORT][/PATH]`; `kafka`, `kafka+tls`, then `://HOST[:PORT],…[/TOPIC]`.
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
    /// How Kafka is shown the name and password: `plain`, `scram-sha-256`, `scram-sha-512`.
    #[serde(default)]
    pub sasl: Sasl,
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
    /// Whose acknowledgement counts: the `destination`'s, or the `receiver`'s behind it. Native alone.
    #[serde(default)]
    pub acknowledge: Acknowledge,
    /// What the receiver has not acknowledged after this time goes again, 1 to 3600.
    #[serde(default = "Upstream::acknowledge_seconds")]
    pub acknowledge_seconds: u64,
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
    /// How long a command from here waits for a thing that is not connected, unless it says so itself, seconds, up to
    /// 2592000; 0: it does not wait. Absent: `shadow.command_expiry_seconds` with `native` and `json`, 0 with the others,
    /// whose platforms give a command up by themselves.
    pub commands_wait_seconds: Option<u64>,
    /// Of the dialect `sparkplug`.
    #[serde(default)]
    pub sparkplug: Sparkplug,
    /// Of the dialect `alink`.
    #[serde(default)]
    pub alink: Alink,
    /// What this destination wants; without it everything.
    #[serde(default)]
    pub filter: Filter,
}

/// Whose word it takes to forget a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acknowledge {
    /// The broker's, the server's.
    #[default]
    Destination,
    /// The consumer's too: see `docs/native.md`.
    Receiver,
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

/// How a name and password are shown to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sasl {
    /// As they are: over TLS, or where nobody listens.
    #[default]
    Plain,
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
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
    /// thin-edge.io's local topics.
    ThinEdge,
    /// Sparkplug B 3.0.
    Sparkplug,
    /// Alibaba Cloud's IoT Platform.
    Alink,
}

/// What the dialect `sparkplug` has to know.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sparkplug {
    pub group: String,
    /// The edge node's id; empty: the gateway's.
    pub node: String,
    /// The host that is waited for before anything is sent; empty: none is.
    pub primary_host: String,
}

impl Default for Sparkplug {
    fn default() -> Self {
        Self { group: "sluicegate".to_owned(), node: String::new(), primary_host: String::new() }
    }
}

/// What the dialect `alink` has to know.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alink {
    /// The gateway's own.
    pub product_key: String,
    pub device_name: String,
    /// A file with the gateway's device secret.
    pub secret_file: Option<PathBuf>,
    /// A JSON file with `productKey`, `deviceName` and `deviceSecret` of each thing, by its id.
    pub things_file: Option<PathBuf>,
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

    fn acknowledge_seconds() -> u64 {
        30
    }

    fn keep_alive_seconds() -> u64 {
        30
    }
}
