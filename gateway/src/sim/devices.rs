//! Simulated devices that speak MQTT: climate sensors and a relay in JetLinks' topics, an energy meter in ThingsBoard's.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};
use tokio::time::{MissedTickBehavior, interval};

use super::course::{Course, round};
use super::mqtt::{Arrived, Client};
use super::{Counts, SimError};

const TEMPERATURE: Course = Course { mean: 22.0, swing: 3.0, period: 90.0, noise: 0.15 };
const HUMIDITY: Course = Course { mean: 48.0, swing: 9.0, period: 130.0, noise: 0.8 };
const VOLTAGE: Course = Course { mean: 230.0, swing: 2.5, period: 70.0, noise: 0.6 };
const CURRENT: Course = Course { mean: 6.0, swing: 4.0, period: 50.0, noise: 0.3 };
/// What hangs on the relay draws this much, W.
const LOAD: Course = Course { mean: 60.0, swing: 2.0, period: 20.0, noise: 0.8 };

/// Reports temperature and humidity once a second; `phase` tells two of a kind apart.
pub(super) async fn climate(address: SocketAddr, id: &str, phase: u64, counts: Counts) -> Result<(), SimError> {
    let topic = format!("/temperature-humidity/{id}/properties/report");
    let mut client = Client::connect(address, id).await?;
    report(&mut client, Duration::from_secs(1), &counts, |step| {
        let step = step + phase;
        let properties = json!({
            "temperature": TEMPERATURE.at(step, 1), "humidity": HUMIDITY.at(step, 1), "battery": 100 - step / 600 % 60,
        });
        (topic.clone(), json!({ "messageId": step.to_string(), "properties": properties }))
    })
    .await
}

/// Reports electrical values twice a second.
pub(super) async fn meter(address: SocketAddr, id: &str, counts: Counts) -> Result<(), SimError> {
    let mut client = Client::connect(address, id).await?;
    let mut energy = 1204.5;
    report(&mut client, Duration::from_millis(500), &counts, |step| {
        let values = electricity(step, &mut energy, 0.5);
        ("v1/devices/me/telemetry".to_owned(), Json::Object(values))
    })
    .await
}

/// What a meter reads at a step of so many seconds.
pub(super) fn electricity(step: u64, energy: &mut f64, seconds: f64) -> Map<String, Json> {
    let (voltage, current) = (VOLTAGE.at(step, 1), CURRENT.at(step, 2).max(0.0));
    let power = round(voltage * current * 0.97, 1);
    *energy += power / 1000.0 * seconds / 3600.0;
    let values = json!({
        "voltage": voltage, "current": current, "power": power, "powerFactor": 0.97, "frequency": 50.0,
        "energy": round(*energy, 2),
    });
    if let Json::Object(values) = values { values } else { Map::new() }
}

/// Publishes what `make` says of each step, and counts what is acknowledged.
async fn report(
    client: &mut Client,
    every: Duration,
    counts: &Counts,
    mut make: impl FnMut(u64) -> (String, Json),
) -> Result<(), SimError> {
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut step = 0;
    loop {
        tokio::select! {
            _ = clock.tick() => {
                let (topic, payload) = make(step);
                client.publish(&topic, &payload).await?;
                counts.note_sent();
                step += 1;
            }
            arrived = client.next() => if arrived? == Arrived::Acknowledged { counts.note_acknowledged() },
        }
    }
}

/// A relay: reports its state every two seconds, takes writes and actions and answers them.
pub(super) async fn relay(address: SocketAddr, id: &str, counts: Counts) -> Result<(), SimError> {
    let base = format!("/relay-switch/{id}");
    let mut client = Client::connect(address, id).await?;
    client.subscribe(&format!("{base}/properties/write")).await?;
    client.subscribe(&format!("{base}/properties/read")).await?;
    client.subscribe(&format!("{base}/function/invoke")).await?;
    let mut relay = Relay { on: true, count: 0, step: 0 };
    let mut clock = interval(Duration::from_secs(2));
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let said = tokio::select! {
            _ = clock.tick() => {
                client.ping().await?;
                vec![("properties/report".to_owned(), json!({ "properties": relay.state() }))]
            }
            arrived = client.next() => match arrived? {
                Arrived::Acknowledged => {
                    counts.note_acknowledged();
                    continue;
                }
                Arrived::Message { topic, payload } => {
                    counts.note_order();
                    relay.obey(topic.strip_prefix(base.as_str()).unwrap_or_default(), &payload)
                }
            },
        };
        for (tail, payload) in said {
            client.publish(&format!("{base}/{tail}"), &payload).await?;
            counts.note_sent();
        }
    }
}

struct Relay {
    on: bool,
    count: u64,
    step: u64,
}

/// Messages to send: the topic's end and the body.
type Said = Vec<(String, Json)>;

impl Relay {
    fn state(&mut self) -> Json {
        self.step += 1;
        let power = if self.on { LOAD.at(self.step, 1) } else { 0.0 };
        json!({ "on": self.on, "power": power, "switchCount": self.count })
    }

    fn switch(&mut self, on: bool) -> Said {
        if self.on == on {
            return Vec::new();
        }
        self.on = on;
        self.count += 1;
        let event = json!({ "data": { "on": on, "cause": "remote" } });
        vec![
            ("event/switched".to_owned(), event),
            ("properties/report".to_owned(), json!({ "properties": self.state() })),
        ]
    }

    /// Does what an order says; the answer goes first.
    fn obey(&mut self, tail: &str, payload: &Bytes) -> Said {
        let order: Json = serde_json::from_slice(payload).unwrap_or_default();
        let id = order.get("messageId").cloned().unwrap_or_default();
        let refuse = |why: &str| json!({ "messageId": id, "success": false, "message": why });
        match tail {
            "/properties/write" => {
                let wanted = order.get("properties").and_then(|p| p.get("on"));
                let Some(on) = wanted.and_then(Json::as_bool) else {
                    return vec![("properties/write/reply".to_owned(), refuse("only `on` can be written"))];
                };
                let answer = json!({ "messageId": id, "success": true, "properties": { "on": on } });
                [vec![("properties/write/reply".to_owned(), answer)], self.switch(on)].concat()
            }
            "/properties/read" => {
                let answer = json!({ "messageId": id, "success": true, "properties": self.state() });
                vec![("properties/read/reply".to_owned(), answer)]
            }
            "/function/invoke" if order.get("functionId").is_some_and(|f| f == "toggle") => {
                let on = !self.on;
                let answer = json!({ "messageId": id, "success": true, "output": { "on": on } });
                [vec![("function/invoke/reply".to_owned(), answer)], self.switch(on)].concat()
            }
            "/function/invoke" => vec![("function/invoke/reply".to_owned(), refuse("this relay only toggles"))],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_answers_what_it_did_and_what_it_does_not_do() {
        let mut relay = Relay { on: false, count: 0, step: 0 };
        let order = |json: Json| Bytes::from(json.to_string());
        let said = relay.obey("/properties/write", &order(json!({ "messageId": "7", "properties": { "on": true } })));
        assert_eq!(said[0].0, "properties/write/reply");
        assert_eq!(said[0].1, json!({ "messageId": "7", "success": true, "properties": { "on": true } }));
        assert_eq!(said.len(), 3, "the switch is told as event and as state");
        assert_eq!((relay.on, relay.count), (true, 1));
        let said = relay.obey("/function/invoke", &order(json!({ "messageId": "8", "functionId": "toggle" })));
        assert_eq!(said[0].1["output"], json!({ "on": false }));
        let said = relay.obey("/function/invoke", &order(json!({ "messageId": "9", "functionId": "explode" })));
        assert_eq!(said[0].1["success"], json!(false));
        let said = relay.obey("/properties/write", &order(json!({ "messageId": "10", "properties": { "on": 3 } })));
        assert_eq!(said[0].1["success"], json!(false));
        assert!(!relay.on);
    }
}
