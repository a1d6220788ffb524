//! Upstreams: a name, a destination that can carry the dialect, limits, files.

use std::collections::HashSet;

use super::Check;
use crate::config::{Acknowledge, Alink, Dialect, MqttVersion, Sasl, Sparkplug, Upstream};
use crate::shadow::WAIT_MAX;
use crate::upstream::destination::{self, place::Place, place::Scheme};

impl Check<'_> {
    pub(super) fn upstreams(&mut self) {
        let mut names = HashSet::new();
        for (at, upstream) in self.config.upstreams.iter().enumerate() {
            let key = format!("upstream[{at}]");
            if upstream.name.is_empty() || !names.insert(upstream.name.as_str()) {
                self.problem(
                    format!("{key}.name"),
                    "each upstream needs a name of its own: its backlog is kept under it",
                );
            }
            self.destination(&key, upstream);
            if !(1..=256).contains(&upstream.batch_kib) {
                self.problem(format!("{key}.batch_kib"), "out of range: 1 to 256 KiB");
            }
            if upstream.batch_ms > 10_000 {
                self.problem(format!("{key}.batch_ms"), "out of range: 0 to 10000 ms");
            }
            if upstream.drain_messages_per_second > 10_000_000 || upstream.drain_kib_per_second > 10_000_000 {
                self.problem(
                    format!("{key}.drain_messages_per_second"),
                    "out of range: 0 to 10000000, as is drain_kib_per_second",
                );
            }
            if !(1..=3600).contains(&upstream.acknowledge_seconds) {
                self.problem(format!("{key}.acknowledge_seconds"), "out of range: 1 to 3600 s");
            }
            if upstream.commands_wait_seconds.is_some_and(|seconds| seconds > WAIT_MAX.as_secs()) {
                let most = WAIT_MAX.as_secs();
                self.problem(format!("{key}.commands_wait_seconds"), format!("out of range: 0 to {most} seconds"));
            }
            if !(1..=100).contains(&upstream.inflight_max) {
                self.problem(format!("{key}.inflight_max"), "out of range: 1 to 100 batches");
            }
            for (what, file) in [
                ("password_file", &upstream.password_file),
                ("token_file", &upstream.token_file),
                ("ca_file", &upstream.ca_file),
                ("cert_file", &upstream.cert_file),
                ("key_file", &upstream.key_file),
                ("alink.secret_file", &upstream.alink.secret_file),
                ("alink.things_file", &upstream.alink.things_file),
            ] {
                if let Some(file) = file.as_deref().filter(|f| !f.is_file()) {
                    self.problem(format!("{key}.{what}"), format!("{} is not a file", file.display()));
                }
            }
        }
    }

    /// The destination, and whether it can carry the dialect.
    fn destination(&mut self, key: &str, upstream: &Upstream) {
        let place = match upstream.url.parse::<Place>() {
            Ok(place) => place,
            Err(error) => return self.problem(format!("{key}.url"), error.to_string()),
        };
        if let Some(why) = destination::unsupported(place.scheme) {
            self.problem(format!("{key}.url"), why);
        }
        let plain = matches!(upstream.dialect, Dialect::Native | Dialect::Json);
        if !place.scheme.is_mqtt() && !plain {
            self.problem(
                format!("{key}.dialect"),
                "this dialect is one of MQTT topics; here there are `native` and `json`",
            );
        }
        let Sparkplug { group, node, primary_host } = &upstream.sparkplug;
        if group.is_empty() || [group, node, primary_host].iter().any(|id| id.contains(['/', '+', '#'])) {
            self.problem(
                format!("{key}.sparkplug"),
                "ids are topic levels: without `/`, `+`, `#`, and a group has one",
            );
        }
        let Alink { product_key, device_name, secret_file, things_file } = &upstream.alink;
        let known = ![product_key, device_name].iter().any(|id| id.is_empty() || id.contains(['/', '+', '#']));
        if upstream.dialect == Dialect::Alink && !(known && secret_file.is_some() && things_file.is_some()) {
            self.problem(format!("{key}.alink"), "it takes product_key, device_name, secret_file and things_file");
        }
        let way_back = place.scheme.is_mqtt() || matches!(place.scheme, Scheme::Nats | Scheme::NatsTls);
        if upstream.acknowledge == Acknowledge::Receiver && !(way_back && upstream.dialect == Dialect::Native) {
            self.problem(format!("{key}.acknowledge"), "a receiver answers `native` batches, over MQTT or NATS");
        }
        if !place.scheme.is_mqtt() && upstream.mqtt_version != MqttVersion::default() {
            self.problem(format!("{key}.mqtt_version"), "only MQTT has one");
        }
        if (place.scheme.is_mqtt() || place.scheme.is_kafka()) && upstream.token_file.is_some() {
            self.problem(format!("{key}.token_file"), "here it is a name and a password: username, password_file");
        }
        if place.scheme.is_kafka() && place.topic().is_none() {
            let why = "write kafka://HOST[:PORT]/TOPIC; a topic has letters, digits, `.`, `_` and `-`, 243 at most";
            self.problem(format!("{key}.url"), why);
        }
        if !place.scheme.is_kafka() && upstream.sasl != Sasl::default() {
            self.problem(format!("{key}.sasl"), "only Kafka has it");
        }
    }
}
