//! A configuration turned into what will run: every reference followed, every limit held, every secret read.
//!
//! `sluicegate check` and `sluicegate run` go the same way, so that what passes the one starts in the other.
//!
//! Inside: the ranges of plain values, the models, and the sum of the memory budgets; `adapters.rs` (with the declared
//! devices), `upstreams.rs`, `media.rs`. Keys and certificates are looked at in `../access.rs`, rules in `../rules.rs`.

use std::sync::Arc;

use device_models::model::Models;

use super::load::Loaded;
use super::problem::{Places, Problem, Problems};
use super::{BrokerCore, Config, Gateway, rules};
use crate::credentials;
use crate::devices::Declared;
use crate::edge::Scope;
use crate::tls::ServerTls;
use crate::transport;

mod adapters;
mod media;
mod upstreams;

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
        if broker.core == BrokerCore::Rumqttd && !cfg!(feature = "rumqttd") {
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
            if self.places.of("gateway.models").is_some_and(|p| p.line > 0) && *folder != Gateway::default().models {
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
