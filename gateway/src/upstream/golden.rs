//! What the dialects' tests share: a thing of each kind of message, and the comparison with `docs/dialects.md`.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests read and, on demand, write the documentation"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use device_models::model::Model;
use device_models::wire::{Catalog, Clock, Compression, Hole};
use device_models::{Body, Class, Failure, Level, Message, Outcome, Quality, Sample, Value};

use super::dialect::{Dialect, Heard, Parcel, Publication, Said, Scope};
use super::down::Command;
use super::things::Known;

pub(super) const SCOPE: Scope<'_> = Scope { gateway: "box-1", upstream: "platform" };
/// 2026-03-01 08:15:00.250 UTC.
pub(super) const TIME_US: i64 = 1_772_352_900_250_000;

/// `meter-1`, an energy meter that is online.
pub(super) fn meter() -> Known {
    known("meter-1", "energy-meter", include_str!("../../../device-models/models/energy-meter.tm.json"))
}

pub(super) fn relay() -> Known {
    known("relay-1", "relay-switch", include_str!("../../../device-models/models/relay-switch.tm.json"))
}

fn known(id: &str, model: &str, json: &str) -> Known {
    let model = Model::parse(&format!("{model}.tm.json"), json).expect("a shipped model");
    Known { id: Arc::from(id), model: Arc::new(model), online: true, latest: BTreeMap::new() }
}

pub(super) fn message(body: Body) -> Message {
    Message { thing: "meter-1".into(), model: "energy-meter".into(), time_us: TIME_US, received_us: TIME_US, body }
}

pub(super) fn sample(alias: u32, name: &str, value: Value, quality: Quality) -> Sample {
    Sample { alias, name: name.into(), value, quality }
}

/// Two properties, of which the second is out of its range.
pub(super) fn report() -> Message {
    message(Body::Properties(vec![
        sample(3, "power", Value::Float(230.5), Quality::Good),
        sample(1, "voltage", Value::Int(900), Quality::OutOfRange),
    ]))
}

pub(super) fn event() -> Message {
    let data = Value::Object([("limit".to_owned(), Value::Int(5000))].into());
    message(Body::Event { name: "overload".into(), level: Level::Warn, data, quality: Quality::Good })
}

pub(super) fn presence(online: bool) -> Message {
    message(Body::Presence { online, reason: if online { String::new() } else { "connection lost".to_owned() } })
}

pub(super) fn reply(id: &str, outcome: Outcome) -> Message {
    message(Body::Reply { id: id.to_owned(), outcome })
}

pub(super) fn silent() -> Outcome {
    Err(Failure::Silent(Duration::from_secs(10)))
}

pub(super) fn waiting() -> Outcome {
    Err(Failure::Waiting(Duration::from_secs(60)))
}

pub(super) fn gap() -> Message {
    message(Body::Gap { class: Class::Live, first: 3, last: 9, reason: "cap".to_owned() })
}

/// Says the messages, numbered from 1.
pub(super) fn said(dialect: &dyn Dialect, class: Class, hist: bool, messages: Vec<Message>, holes: &[Hole]) -> Said {
    let messages: Vec<(u64, Message)> = (1..).zip(messages).collect();
    let parcel = Parcel {
        scope: SCOPE,
        epoch: 0x1a2b_3c4d_5e6f_7081,
        class,
        hist,
        now_us: TIME_US,
        clock: Clock::Unknown,
        compression: Compression::None,
        messages: &messages,
        holes,
        catalog: &Catalog::new(0),
    };
    dialect.encode(&parcel).expect("it can be said")
}

/// Topic and payload of each publish as text, `(retained)` where it is.
pub(super) fn lines(publications: &[Publication]) -> Vec<(String, String)> {
    let line = |publication: &Publication| {
        let kept = if publication.retain { " (retained)" } else { "" };
        (format!("{}{kept}", publication.topic), String::from_utf8_lossy(&publication.payload).into_owned())
    };
    publications.iter().map(line).collect()
}

pub(super) fn hear(dialect: &mut dyn Dialect, topic: &str, payload: &str) -> Heard {
    dialect.hear(SCOPE, topic, payload.as_bytes(), 7)
}

/// The order in what was heard, with its thing.
pub(super) fn order(dialect: &mut dyn Dialect, topic: &str, payload: &str) -> (String, Command) {
    match hear(dialect, topic, payload) {
        Heard::Command { thing, command: Ok(command), .. } => (thing, command),
        other => panic!("{topic} {payload}: {other:?}"),
    }
}

/// Holds the dialect's example in `docs/dialects.md` to these publishes. With UPDATE_DOCS set it is written anew.
pub(super) fn documented(dialect: &dyn Dialect, publications: &[Publication]) {
    let mut example = String::from("\n");
    for (topic, payload) in lines(publications) {
        writeln!(example, "    {topic}\n    {payload}\n").expect("a text takes all");
    }
    let (begin, end) = (format!("<!-- example {} -->\n", dialect.word()), format!("<!-- end {} -->", dialect.word()));
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dialects.md");
    let text = std::fs::read_to_string(&place).expect("docs/dialects.md");
    let from = text.find(&begin).expect("the example's beginning") + begin.len();
    let to = text.find(&end).expect("the example's end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&place, format!("{}{example}{}", &text[..from], &text[to..])).expect("to write");
        return;
    }
    assert!(
        text[from..to] == example,
        "docs/dialects.md: run UPDATE_DOCS=1 cargo test -p gateway -- documented --test-threads=1"
    );
}
