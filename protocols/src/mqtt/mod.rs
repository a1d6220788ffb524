//! MQTT 3.1, 3.1.1 and 5 on one port: the level byte of CONNECT decides.
//!
//! `frame/` is the codec, `topic.rs` the rules of topics, `session/` the talk, `dialects/` what well-known topics say
//! about devices. Routing, retained messages, kept sessions and permissions are the exchange's
//! ([`crate::exchange`]); must not be in here.

pub mod dialects;
pub mod frame;
pub mod session;
pub mod topic;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::session::{Capture, Endpoint, Limits, OptionsError, Peer, Protocol, Session, Sniff, Wire};
use dialects::{DIALECTS, Template, TemplateOptions};
use session::MqttSession;

/// The row of the protocol table.
pub static ROW: Mqtt = Mqtt;

#[derive(Debug)]
pub struct Mqtt;

/// The adapter's `options`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Largest packet taken, KiB, 1 to 262144 (MQTT's own limit); announced to MQTT 5 clients.
    pub packet_kib: usize,
    /// QoS 1 and 2 publications of one client that may wait for the disk, 1 to 65535. MQTT 5 clients are told; of the
    /// others nothing more is read until one is settled.
    pub receive_max: u16,
    /// Topic aliases an MQTT 5 client may use; each may hold a topic's length in memory. 0 to 1024.
    pub topic_alias_max: u16,
    /// Longest keep alive of MQTT 5 clients, seconds; a client that asks for more or none is told to use it. 0: none.
    pub keep_alive_max_seconds: u16,
    /// Time from the connection's first moment to its admission, seconds, 1 to 60.
    pub connect_seconds: u64,
    /// Longest client id, bytes, 1 to 65535.
    pub client_id_max: usize,
    /// Devices one client may speak for and be sent commands for, 1 to 100000.
    pub devices_max: usize,
    /// Topic conventions that are understood.
    pub dialects: Vec<String>,
    /// Topics of the `template` dialect.
    pub template: Option<TemplateOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            packet_kib: 256,
            receive_max: 256,
            topic_alias_max: 16,
            keep_alive_max_seconds: 0,
            connect_seconds: 5,
            client_id_max: 256,
            devices_max: 1000,
            dialects: DIALECTS.iter().map(|row| row.name().to_owned()).collect(),
            template: None,
        }
    }
}

/// Checked options, shared by the adapter's sessions.
#[derive(Debug)]
pub struct Settings {
    pub packet_max: usize,
    pub receive_max: u16,
    pub topic_alias_max: u16,
    pub keep_alive_max: Option<NonZeroU16>,
    pub admission_max: Duration,
    pub client_id_max: usize,
    pub devices_max: usize,
    /// Rows of [`DIALECTS`] in use.
    pub dialects: Vec<usize>,
    pub template: Option<Template>,
}

#[derive(Debug)]
struct MqttEndpoint(Arc<Settings>);

impl Protocol for Mqtt {
    fn name(&self) -> &'static str {
        "mqtt"
    }

    fn summary(&self) -> &'static str {
        "MQTT 3.1, 3.1.1 and 5; topics of JetLinks, thin-edge, ThingsBoard or your own template"
    }

    fn wires(&self) -> &'static [Wire] {
        &[Wire::Stream]
    }

    /// CONNECT: 0x10, a length of at most four bytes, then the protocol's name with its length.
    fn sniff(&self, prefix: &[u8]) -> Sniff {
        let Some((&first, rest)) = prefix.split_first() else { return Sniff::More };
        if first != 0x10 {
            return Sniff::No;
        }
        let length_len = rest.iter().take(4).take_while(|byte| **byte & 0x80 != 0).count();
        if length_len == 4 {
            return Sniff::No;
        }
        let name = rest.get(length_len + 1..).unwrap_or_default();
        let begins = |full: &[u8]| {
            let common = name.len().min(full.len());
            name.get(..common) == full.get(..common)
        };
        let (new, old) = (b"\0\x04MQTT".as_slice(), b"\0\x06MQIsdp".as_slice());
        match (begins(new), begins(old)) {
            (false, false) => Sniff::No,
            (true, _) if name.len() >= new.len() => Sniff::Yes,
            (_, true) if name.len() >= old.len() => Sniff::Yes,
            _ => Sniff::More,
        }
    }

    fn configure(&self, options: &toml::Table) -> Result<Arc<dyn Endpoint>, OptionsError> {
        Ok(Arc::new(MqttEndpoint(Arc::new(Settings::check(&OptionsError::parse(options)?)?))))
    }

    fn example(&self) -> &'static str {
        include_str!("example.toml")
    }

    fn captures(&self) -> &'static [Capture] {
        CAPTURES
    }
}

impl Settings {
    pub fn check(options: &Options) -> Result<Self, OptionsError> {
        in_range("packet_kib", options.packet_kib, 1, 262_144)?;
        in_range("receive_max", usize::from(options.receive_max), 1, 65_535)?;
        in_range("topic_alias_max", usize::from(options.topic_alias_max), 0, 1024)?;
        in_range("connect_seconds", options.connect_seconds as usize, 1, 60)?;
        in_range("client_id_max", options.client_id_max, 1, 65_535)?;
        in_range("devices_max", options.devices_max, 1, 100_000)?;
        let mut dialects = Vec::new();
        for name in &options.dialects {
            let row = DIALECTS.iter().position(|row| row.name() == name).ok_or_else(|| {
                let known: Vec<_> = DIALECTS.iter().map(|row| row.name()).collect();
                OptionsError {
                    key: Some("dialects".to_owned()),
                    why: format!("no `{name}`; there are {}", known.join(", ")),
                }
            })?;
            if !dialects.contains(&row) {
                dialects.push(row);
            }
        }
        dialects.sort_unstable();
        let keep_alive = options.keep_alive_max_seconds;
        Ok(Self {
            packet_max: (options.packet_kib * 1024).min(268_435_455),
            receive_max: options.receive_max,
            topic_alias_max: options.topic_alias_max,
            keep_alive_max: NonZeroU16::new(keep_alive),
            admission_max: Duration::from_secs(options.connect_seconds),
            client_id_max: options.client_id_max,
            devices_max: options.devices_max,
            dialects,
            template: options.template.as_ref().map(Template::compile).transpose()?,
        })
    }
}

fn in_range(key: &str, value: usize, min: usize, max: usize) -> Result<(), OptionsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(OptionsError { key: Some(key.to_owned()), why: format!("{value} is not from {min} to {max}") })
}

impl Endpoint for MqttEndpoint {
    fn limits(&self) -> Limits {
        // One packet at its largest must fit the buffer before the session can take it off.
        Limits { frame_max: self.0.packet_max + 5, silence_max: None, admission_max: self.0.admission_max }
    }

    fn open(&self, peer: &Peer) -> Box<dyn Session> {
        Box::new(MqttSession::new(Arc::clone(&self.0), peer))
    }
}

/// One side of a talk with mosquitto 2.0.11, recorded from Debian's clients.
macro_rules! capture {
    ($name:literal) => {
        Capture::stream($name, include_bytes!(concat!("testdata/", $name, ".bin")))
    };
}

static CAPTURES: &[Capture] = &[
    capture!("mosquitto_pub_311_login_will"),
    capture!("mosquitto_pub_311_qos0"),
    capture!("mosquitto_pub_311_qos1"),
    capture!("mosquitto_pub_311_qos2"),
    capture!("mosquitto_pub_31_qos1"),
    capture!("mosquitto_pub_5_alias_lines"),
    capture!("mosquitto_pub_5_qos0"),
    capture!("mosquitto_pub_5_qos1"),
    capture!("mosquitto_pub_5_qos2"),
    capture!("mosquitto_pub_5_will"),
    capture!("mosquitto_sub_311"),
    capture!("mosquitto_sub_5"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sniffs_every_version_and_nothing_else() {
        let row = Mqtt;
        for good in [b"\x10\x10\0\x04MQTT\x04".as_slice(), b"\x10\x80\x01\0\x04MQTT\x05", b"\x10\x10\0\x06MQIsdp\x03"] {
            assert_eq!(row.sniff(good), Sniff::Yes);
            assert_eq!(row.sniff(&good[..4]), Sniff::More);
        }
        for bad in [b"GET / HTTP".as_slice(), b"\x03", b"\x10\xff\xff\xff\xff", b"\x10\x10\0\x05MQTTT"] {
            assert_eq!(row.sniff(bad), Sniff::No, "{bad:?}");
        }
    }

    #[test]
    fn options_are_checked() {
        for bad in ["packet_kib = 0", "dialects = ['morse']", "colour = 1", "template = { telemetry = 'a/#' }"] {
            let table: toml::Table = bad.parse().unwrap();
            assert!(Mqtt.configure(&table).is_err(), "{bad}");
        }
        assert!(Mqtt.configure(&toml::Table::new()).is_ok());
    }
}
