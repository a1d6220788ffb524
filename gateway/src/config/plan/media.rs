//! Everything about streams that is not the core's own: relays, cameras to pull, recordings, WebRTC.

use std::collections::HashSet;

use super::Check;
use crate::config::{AlarmEvent, When};
use crate::transport::Listen;

impl Check<'_> {
    pub(super) fn relays(&mut self) {
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

    pub(super) fn pulls(&mut self) {
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

    pub(super) fn records(&mut self) {
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
    fn alarms(&mut self, key: &str, when: When, alarms: &[AlarmEvent], hold_seconds: u64) {
        if when == When::Alarm && alarms.is_empty() {
            self.problem(format!("{key}.alarms"), "when = \"alarm\" needs events: alarms = [{ event = \"alarm\" }]");
        }
        if !(1..=86_400).contains(&hold_seconds) {
            self.problem(format!("{key}.hold_seconds"), format!("{hold_seconds} is out of range: 1 to 86400 seconds"));
        }
    }

    pub(super) fn webrtc(&mut self) {
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
}
