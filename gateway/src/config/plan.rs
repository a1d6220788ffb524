//! A configuration turned into what will run: every reference followed, every limit held, every secret read.
//!
//! `sluicegate check` and `sluicegate run` go the same way, so that what passes the one starts in the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use device_models::model::Models;
use protocols::Wire;

use super::load::Loaded;
use super::problem::{Places, Problem, Problems};
use super::{Acknowledge, Adapter, Alink, Config, Dialect, MqttVersion, Sasl, Sparkplug, Upstream, rules};
use crate::credentials;
use crate::devices::Declared;
use crate::edge::Scope;
use crate::intake::AdapterInfo;
use crate::tls::ServerTls;
use crate::transport::{self, Language, Listen};
use crate::upstream::destination::{self, place::Place, place::Scheme};

/// Everything needed to start.
#[derive(Debug)]
pub struct Plan {
    pub config: Config,
    pub gateway_id: String,
    pub models: Arc<Models>,
    pub adapters: Vec<transport::Adapter>,
    pub admin_tls: Option<ServerTls>,
    pub credentials: Vec<credentials::Credential>,
    pub declared: Vec<Declared>,
    pub scopes: Vec<Scope>,
}

impl Plan {
    /// Follows every reference and checks every value; all problems at once.
    pub fn make(loaded: Loaded) -> Result<Self, Problems> {
        let Loaded { config, places } = loaded;
        let mut check = Check { config: &config, places: &places, problems: Vec::new() };
        check.ranges();
        check.classes();
        let gateway_id = check.gateway_id();
        let models = check.models();
        let adapters = check.adapters();
        let credentials = check.credentials();
        let declared = check.devices(&models);
        let scopes = rules::scopes(&config, &models, |key, what| check.problem(key, what));
        check.upstreams();
        check.relays();
        check.pulls();
        check.records();
        let admin_tls = check.admin();
        check.webrtc();
        check.hooks();
        check.memory();
        let problems = check.problems;
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let models = Arc::new(models);
        Ok(Self { config, gateway_id, models, adapters, admin_tls, credentials, declared, scopes })
    }
}

pub(super) struct Check<'c> {
    pub(super) config: &'c Config,
    places: &'c Places,
    problems: Vec<Problem>,
}

impl Check<'_> {
    pub(super) fn problem(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(self.places.problem(key, what));
    }

    fn ranges(&mut self) {
        let Config { store, shadow, broker, stream, hls, gateway, .. } = self.config;
        let ranges: [(&str, u64, std::ops::RangeInclusive<u64>, &str); 33] = [
            ("gateway.memory_mib", gateway.memory_mib, 0..=65_536, "MiB"),
            ("store.commit_ms", store.commit_ms, 0..=1_000, "ms"),
            ("store.commit_kib", store.commit_kib, 4..=4_096, "KiB"),
            ("store.cap_mib", store.cap_mib, 8..=1_048_576, "MiB"),
            ("store.segment_mib", store.segment_mib, 1..=64, "MiB"),
            ("store.free_min_mib", store.free_min_mib, 0..=1_048_576, "MiB"),
            ("shadow.command_expiry_seconds", shadow.command_expiry_seconds, 0..=2_592_000, "seconds"),
            ("shadow.commands_max", shadow.commands_max as u64, 1..=100_000, "commands"),
            ("shadow.commands_per_thing_max", shadow.commands_per_thing_max as u64, 1..=100_000, "commands"),
            ("shadow.memory_mib", shadow.memory_mib, 1..=256, "MiB"),
            ("broker.sessions_max", broker.sessions_max as u64, 1..=100_000, "sessions"),
            ("broker.queue_kib", broker.queue_kib, 1..=65_536, "KiB"),
            ("broker.queues_mib", broker.queues_mib, 1..=4_096, "MiB"),
            ("broker.retained_mib", broker.retained_mib, 0..=1_024, "MiB"),
            ("broker.subscriptions_max", broker.subscriptions_max as u64, 1..=10_000, "subscriptions"),
            ("stream.threads", stream.threads as u64, 0..=64, "threads"),
            ("stream.spill_percent", stream.spill_percent, 0..=100, "%"),
            ("stream.window_min_ms", stream.window_min_ms, 0..=1_000, "ms"),
            ("stream.window_max_ms", stream.window_max_ms, 0..=1_000, "ms"),
            ("stream.gop_kib", stream.gop_kib, 64..=262_144, "KiB"),
            ("stream.gop_seconds", stream.gop_seconds, 1..=60, "seconds"),
            ("stream.sources_max", stream.sources_max as u64, 1..=10_000, "streams"),
            ("stream.viewers_max", stream.viewers_max as u64, 1..=100_000, "viewers"),
            ("stream.lag_max_ms", stream.lag_max_ms, 500..=60_000, "ms"),
            ("stream.stall_max_seconds", stream.stall_max_seconds, 1..=300, "seconds"),
            ("stream.silence_max_seconds", stream.silence_max_seconds, 1..=300, "seconds"),
            ("hls.part_ms", hls.part_ms, 50..=1_000, "ms"),
            ("hls.segment_ms", hls.segment_ms, 500..=10_000, "ms"),
            ("hls.window_seconds", hls.window_seconds, 2..=60, "seconds"),
            ("hls.stream_kib", hls.stream_kib, 1_024..=262_144, "KiB"),
            ("hls.total_mib", hls.total_mib, 1..=4_096, "MiB"),
            ("hls.idle_seconds", hls.idle_seconds, 2..=300, "seconds"),
            ("hls.waiting_max", hls.waiting_max as u64, 1..=100_000, "requests"),
        ];
        for (key, value, range, unit) in ranges {
            if !range.contains(&value) {
                let what = format!("{value} is out of range: {} to {} {unit}", range.start(), range.end());
                self.problem(key, what);
            }
        }
        if broker.core == super::BrokerCore::Rumqttd && !cfg!(feature = "rumqttd") {
            self.problem(
                "broker.core",
                "`rumqttd` needs a build with the feature of that name; this one has `own` alone",
            );
        }
    }

    /// What the classes share of the store, and how long they are kept.
    fn classes(&mut self) {
        let store = &self.config.store;
        let sum = store.share_percent.by_class().into_iter().fold(0, u64::saturating_add);
        if sum > 100 {
            self.problem("store.share_percent", format!("the shares make {sum} percent, more than 100"));
        }
        if let Some(hours) = store.ttl_hours.by_class().into_iter().find(|hours| *hours > 87_600) {
            self.problem("store.ttl_hours", format!("{hours} is out of range: 0 to 87600 hours"));
        }
    }

    fn gateway_id(&mut self) -> String {
        let given = &self.config.gateway.id;
        let id = if given.is_empty() { host_name() } else { given.clone() };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > 64 || !id.chars().all(plain) {
            self.problem("gateway.id", format!("`{id}` must be 1 to 64 letters, digits, `-` or `_`"));
        }
        id
    }

    /// The shipped models and those of the box's folder.
    fn models(&mut self) -> Models {
        let mut models = Models::shipped().unwrap_or_else(|error| {
            self.problem("gateway.models", format!("a shipped model is broken: {error}"));
            Models::new()
        });
        let folder = &self.config.gateway.models;
        let Ok(listed) = std::fs::read_dir(folder) else {
            // Only the default folder may be missing.
            if self.places.of("gateway.models").is_some_and(|p| p.line > 0)
                && *folder != super::Gateway::default().models
            {
                self.problem("gateway.models", format!("the folder {} cannot be read", folder.display()));
            }
            return models;
        };
        let mut files: Vec<_> = listed
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter(|p| p.to_string_lossy().ends_with(".tm.json"))
            .collect();
        files.sort();
        for file in files {
            let name = file.display().to_string();
            let added = std::fs::read_to_string(&file)
                .map_err(|e| e.to_string())
                .and_then(|json| models.add(&name, &json).map(|_| ()).map_err(|e| e.to_string()));
            if let Err(what) = added {
                self.problem("gateway.models", format!("{name}: {what}"));
            }
        }
        models
    }

    fn adapters(&mut self) -> Vec<transport::Adapter> {
        let mut names = HashSet::new();
        let mut listens: HashMap<String, usize> = HashMap::new();
        let mut ready = Vec::new();
        for (at, adapter) in self.config.adapters.iter().enumerate() {
            let key = format!("adapter[{at}]");
            if adapter.name.is_empty() || !names.insert(adapter.name.as_str()) {
                self.problem(
                    format!("{key}.name"),
                    format!("`{}`: each adapter needs a name of its own", adapter.name),
                );
            }
            if let Some(other) = listens.insert(adapter.listen.clone(), at)
                && !adapter.listen.ends_with(":0")
            {
                let what = format!("{} is taken by adapter[{other}] already", adapter.listen);
                self.problem(format!("{key}.listen"), what);
            }
            if let Some(adapter) = self.adapter(&key, adapter) {
                ready.push(adapter);
            }
        }
        ready
    }

    fn adapter(&mut self, key: &str, adapter: &Adapter) -> Option<transport::Adapter> {
        let listen: Listen = match adapter.listen.parse() {
            Ok(listen) => listen,
            Err(error) => {
                self.problem(format!("{key}.listen"), format!("{error}"));
                return None;
            }
        };
        if !listen.is_on_the_box() && !adapter.allow_anonymous && self.config.credentials.is_empty() {
            let what = format!(
                "{listen} can be reached from off the box, and there is no [[credential]]; add one, or write \
                 allow_anonymous = true"
            );
            self.problem(format!("{key}.listen"), what);
        }
        if adapter.connections_max == 0 || adapter.connections_max > 100_000 {
            self.problem(format!("{key}.connections_max"), "out of range: 1 to 100000");
        }
        if adapter.commit_ms.is_some_and(|ms| ms > 1_000) {
            self.problem(format!("{key}.commit_ms"), "out of range: 0 to 1000 ms");
        }
        if adapter.auto_register && adapter.product.is_none() {
            self.problem(format!("{key}.product"), "auto_register needs to know the product of new devices");
        }
        let languages = self.languages(key, adapter, &listen);
        let tls = self.tls(key, adapter, &listen);
        let info = AdapterInfo {
            name: Arc::from(adapter.name.as_str()),
            product: adapter.product.clone(),
            auto_register: adapter.auto_register,
            allow_anonymous: adapter.allow_anonymous,
            commit: adapter.commit_ms.map(Duration::from_millis),
        };
        Some(transport::Adapter {
            info: Arc::new(info),
            listen,
            languages,
            connections_max: adapter.connections_max,
            tls,
        })
    }

    fn languages(&mut self, key: &str, adapter: &Adapter, listen: &Listen) -> Vec<Arc<Language>> {
        let names = adapter.protocol.names();
        let wire = if matches!(listen, Listen::Udp(_)) { Wire::Datagram } else { Wire::Stream };
        let mut languages = Vec::new();
        if names.is_empty() || (names.len() > 1 && wire == Wire::Datagram) {
            self.problem(format!("{key}.protocol"), "name one protocol (several share a port only on TCP)");
        }
        for name in &names {
            let Some(row) = protocols::protocol(name) else {
                let known = protocols::PROTOCOLS.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
                self.problem(format!("{key}.protocol"), format!("there is no protocol `{name}`; there are {known}"));
                continue;
            };
            if !row.wires().contains(&wire) {
                self.problem(format!("{key}.listen"), format!("`{name}` does not run on {listen}"));
            }
            let options = if names.len() == 1 {
                adapter.options.clone()
            } else {
                match adapter.options.get(*name) {
                    None => toml::Table::new(),
                    Some(toml::Value::Table(own)) => own.clone(),
                    Some(_) => {
                        self.problem(format!("{key}.options"), format!("write options.{name} = {{ … }}"));
                        continue;
                    }
                }
            };
            match row.configure(&options) {
                Ok(endpoint) => languages.push(Arc::new(Language::new(row, endpoint))),
                Err(error) => self.problem(format!("{key}.options"), format!("{name}: {error}")),
            }
        }
        if names.len() > 1 {
            for unknown in adapter.options.keys().filter(|k| !names.contains(&k.as_str())) {
                let what = format!("several protocols: one table each, {}; not `{unknown}`", names.join(", "));
                self.problem(format!("{key}.options"), what);
            }
        }
        // Sniffing asks in the order of the table.
        let place =
            |language: &Arc<Language>| protocols::PROTOCOLS.iter().position(|row| row.name() == language.row.name());
        languages.sort_by_key(place);
        languages
    }

    fn devices(&mut self, models: &Models) -> Vec<Declared> {
        let mut ids = HashSet::new();
        let adapters: HashSet<_> = self.config.adapters.iter().map(|a| a.name.as_str()).collect();
        let mut declared = Vec::new();
        for (at, device) in self.config.devices.iter().enumerate() {
            let key = format!("device[{at}]");
            if device.id.is_empty() || device.id.len() > 128 || device.id.contains(['+', '#']) {
                self.problem(format!("{key}.id"), "an id has 1 to 128 bytes and no `+` or `#`");
            }
            if !ids.insert(device.id.as_str()) {
                self.problem(format!("{key}.id"), format!("`{}` is declared twice", device.id));
            }
            if models.get(&device.product).is_none() {
                let known = models.names().join(", ");
                let what = format!("there is no model `{}`; there are {known}", device.product);
                self.problem(format!("{key}.product"), what);
            }
            if let Some(adapter) = device.adapter.as_deref().filter(|a| !adapters.contains(a)) {
                self.problem(format!("{key}.adapter"), format!("there is no adapter `{adapter}`"));
            }
            declared.push(Declared {
                id: device.id.clone(),
                product: device.product.clone(),
                name: device.name.clone().unwrap_or_else(|| device.id.clone()),
                adapter: device.adapter.clone(),
            });
        }
        for (at, adapter) in self.config.adapters.iter().enumerate() {
            if let Some(product) = adapter.product.as_deref().filter(|p| models.get(p).is_none()) {
                let known = models.names().join(", ");
                let what = format!("there is no model `{product}`; there are {known}");
                self.problem(format!("adapter[{at}].product"), what);
            }
        }
        declared
    }

    fn upstreams(&mut self) {
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

    fn relays(&mut self) {
        for (at, relay) in self.config.relays.iter().enumerate() {
            let key = format!("relay[{at}]");
            if !relay.url.starts_with("rtmp://") && !relay.url.starts_with("rtmps://") {
                self.problem(format!("{key}.url"), "write rtmp://HOST[:PORT]/APP/NAME or rtmps://HOST[:PORT]/APP/NAME");
            }
            if let Some(file) = relay.ca_file.as_deref().filter(|f| !f.is_file()) {
                self.problem(format!("{key}.ca_file"), format!("{} is not a file", file.display()));
            }
            self.alarms(&key, relay.when, &relay.alarms, relay.hold_seconds);
        }
    }

    fn pulls(&mut self) {
        for (at, pull) in self.config.pulls.iter().enumerate() {
            let key = format!("pull[{at}]");
            if protocols::media::StreamName::parse(&pull.stream).is_none() {
                self.problem(format!("{key}.stream"), format!("`{}` is not APP/NAME", pull.stream));
            }
            if self.config.pulls.iter().take(at).any(|other| other.stream == pull.stream) {
                self.problem(format!("{key}.stream"), format!("`{}` is pulled already", pull.stream));
            }
            if let Err(what) = crate::pull::check_url(&pull.url) {
                self.problem(format!("{key}.url"), what);
            }
            if let Some(file) = pull.password_file.as_deref().filter(|f| !f.is_file()) {
                self.problem(format!("{key}.password_file"), format!("{} is not a file", file.display()));
            }
            if !(1..=3_600).contains(&pull.idle_seconds) {
                self.problem(format!("{key}.idle_seconds"), "out of range: 1 to 3600 seconds");
            }
        }
    }

    fn records(&mut self) {
        let mut names = HashSet::new();
        for (at, record) in self.config.records.iter().enumerate() {
            let key = format!("record[{at}]");
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if record.name.is_empty() || record.name.len() > 64 || !record.name.chars().all(plain) {
                let what = format!("`{}` must be 1 to 64 letters, digits, `-` or `_`: it names a folder", record.name);
                self.problem(format!("{key}.name"), what);
            }
            if !names.insert(record.name.as_str()) {
                self.problem(
                    format!("{key}.name"),
                    "each rule needs a name of its own: its recordings are kept under it",
                );
            }
            let ranges = [
                ("segment_seconds", record.segment_seconds, 1..=3_600, "seconds"),
                ("flush_seconds", record.flush_seconds, 1..=30, "seconds"),
                ("preroll_seconds", record.preroll_seconds, 0..=crate::record::PREROLL_MAX, "seconds"),
                ("cap_mib", record.cap_mib, 1..=1_073_741_824, "MiB"),
                ("age_max_hours", record.age_max_hours, 0..=876_000, "hours"),
                ("free_min_mib", record.free_min_mib, 0..=1_073_741_824, "MiB"),
            ];
            for (name, value, range, unit) in ranges {
                if !range.contains(&value) {
                    let what = format!("{value} is out of range: {} to {} {unit}", range.start(), range.end());
                    self.problem(format!("{key}.{name}"), what);
                }
            }
            self.alarms(&key, record.when, &record.alarms, record.hold_seconds);
        }
    }

    /// When a relay or a recording runs.
    fn alarms(&mut self, key: &str, when: super::When, alarms: &[super::AlarmEvent], hold_seconds: u64) {
        if when == super::When::Alarm && alarms.is_empty() {
            self.problem(format!("{key}.alarms"), "when = \"alarm\" needs events: alarms = [{ event = \"alarm\" }]");
        }
        if !(1..=86_400).contains(&hold_seconds) {
            self.problem(format!("{key}.hold_seconds"), format!("{hold_seconds} is out of range: 1 to 86400 seconds"));
        }
    }

    fn webrtc(&mut self) {
        let webrtc = &self.config.webrtc;
        if !(1..=10_000).contains(&webrtc.sessions_max) {
            self.problem("webrtc.sessions_max", "out of range: 1 to 10000 sessions");
        }
        for given in webrtc.candidates.iter().filter(|given| {
            given.parse::<std::net::SocketAddr>().is_err() && given.parse::<std::net::IpAddr>().is_err()
        }) {
            self.problem("webrtc.candidates", format!("`{given}` is neither IP nor IP:PORT"));
        }
        if webrtc.listen.is_empty() {
            return;
        }
        match webrtc.listen.parse::<Listen>() {
            Ok(Listen::Udp(_)) if self.config.admin.listen.is_empty() => {
                self.problem("webrtc.listen", "WHEP and WHIP are on the console's port: set admin.listen too");
            }
            Ok(Listen::Udp(_)) if !webrtc.allow_anonymous && self.config.credentials.is_empty() => {
                self.problem("webrtc.listen", "nobody may come in: add a [[credential]] or allow_anonymous = true");
            }
            Ok(Listen::Udp(_)) => {}
            _ => self.problem("webrtc.listen", format!("`{}` is not udp://HOST:PORT", webrtc.listen)),
        }
    }

    /// The sum of all memory budgets must fit the box.
    fn memory(&mut self) {
        let Config { broker, shadow, stream, hls, gateway, .. } = self.config;
        let allowed = if gateway.memory_mib > 0 { gateway.memory_mib } else { machine_mib() / 2 };
        // Streams share what all of them together may take; a source is counted with its usual GOP, not its cap.
        let parts = [
            ("base", 32),
            ("shadow.memory_mib", shadow.memory_mib),
            ("broker.queues_mib", broker.queues_mib),
            ("broker.retained_mib", broker.retained_mib),
            ("stream.viewers_max x 2 KiB", stream.viewers_max as u64 * 2 / 1_024),
            ("one stream at stream.gop_kib", stream.gop_kib / 1_024),
            ("hls.total_mib", hls.total_mib),
        ];
        let sum: u64 = parts.iter().map(|(_, mib)| mib).sum();
        if sum > allowed {
            let shown = parts.iter().map(|(name, mib)| format!("{name} {mib}")).collect::<Vec<_>>().join(" + ");
            let what = format!("the budgets need {shown} = {sum} MiB, but {allowed} MiB are allowed");
            self.problem("gateway.memory_mib", what);
        }
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The machine's memory, or the limit of its control group if that is lower, MiB.
#[allow(trivial_numeric_casts, reason = "the kernel's word is 32 bits on a 32-bit box")]
fn machine_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let total = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    total.min(group.unwrap_or(u64::MAX)) / 1_048_576
}
