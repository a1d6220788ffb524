//! The topics that are ours: the gateway's state and the way down, `sg/v1/GATEWAY/{state,down/THING}`. Native and JSON
//! share them.

use device_models::wire::time_text;
use serde_json::json;

use super::dialect::{Heard, Run, Scope, Station};
use super::down::{self, Wish};

pub(super) fn station(scope: Scope<'_>, run: Run) -> Station {
    let online = json!({
        "online": true,
        "since": time_text(run.since_us),
        "epoch": format!("{:016x}", run.epoch),
        "version": env!("CARGO_PKG_VERSION"),
    });
    let gone = |reason: &str| json!({ "online": false, "reason": reason }).to_string();
    let topic = format!("sg/v1/{}/state", scope.gateway);
    Station::retained(&topic, online.to_string(), gone("connection lost"), gone("stopped"))
}

pub(super) fn filters(scope: Scope<'_>) -> Vec<String> {
    vec![format!("sg/v1/{}/down/#", scope.gateway)]
}

pub(super) fn hear(scope: Scope<'_>, topic: &str, payload: &[u8]) -> Heard {
    match topic.strip_prefix(&format!("sg/v1/{}/down/", scope.gateway)) {
        Some(thing) => {
            let thing = thing.to_owned();
            match down::parse(payload) {
                Ok(Wish::Order { command, wait }) => Heard::Patient { thing, command, wait },
                Ok(Wish::Shadow(change)) => Heard::Shadow { thing, change },
                Err(malformed) => Heard::command(thing, Err(malformed)),
            }
        }
        None => Heard::Nothing,
    }
}
