//! The few `$SYS` topics that tools ask for; made when somebody subscribes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocols::exchange::{Publication, Qos};
use protocols::mqtt::topic;

use super::Stat;

/// What the filter takes of them.
pub(super) fn publications(stat: &Stat, uptime: Duration, filter: &str) -> Vec<Publication> {
    let values = [
        ("$SYS/broker/version", format!("sluicegate {}", env!("CARGO_PKG_VERSION"))),
        ("$SYS/broker/uptime", format!("{} seconds", uptime.as_secs())),
        ("$SYS/broker/clients/connected", stat.connected.to_string()),
        ("$SYS/broker/clients/total", stat.sessions.to_string()),
        ("$SYS/broker/messages/received", stat.published.to_string()),
        ("$SYS/broker/messages/sent", stat.delivered.to_string()),
        ("$SYS/broker/publish/messages/dropped", (stat.dropped + stat.turned_away).to_string()),
        ("$SYS/broker/retained messages/count", stat.retained.to_string()),
    ];
    let publication = |(name, value): (&str, String)| Publication {
        topic: Arc::from(name),
        payload: Bytes::from(value),
        qos: Qos::AtMostOnce,
        retain: true,
        properties: None,
    };
    values.into_iter().filter(|(name, _)| topic::matches(filter, name)).map(publication).collect()
}
