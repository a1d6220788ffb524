//! What outlets say of a camera: reports of the thing that has the stream's name, on their way to the intake.

use device_models::{Report, Value, Word};
use tokio::sync::mpsc;

use crate::clock;
use crate::metrics::{Figure, Metrics};
use crate::record::RecordInfo;
use crate::relay::RelayInfo;
use crate::stream::CAMERA;

/// Characters of a text in an event, and of a URL, as the model of cameras has them.
const TEXT_MAX: usize = 256;
const URL_MAX: usize = 512;

/// The way to the intake: bounded, never waited for. What does not fit is counted. It ends with the streaming core, whose
/// reports go the same way.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    reports: mpsc::WeakSender<Report>,
    metrics: Metrics,
}

impl Voice {
    pub(crate) fn new(reports: &mpsc::Sender<Report>, metrics: Metrics) -> Self {
        Self { reports: reports.downgrade(), metrics }
    }

    /// Something happened; texts are cut to what the model allows.
    pub(crate) fn event(&self, stream: &str, name: &str, data: &[(&str, &str)]) {
        let cut = |key: &str, value: &str| text(value, if key == "url" { URL_MAX } else { TEXT_MAX });
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), cut(key, value))).collect();
        self.say(stream, Word::Event { name: name.to_owned(), data: Value::Object(data) });
    }

    /// Something happened, with figures.
    pub(crate) fn event_with(&self, stream: &str, name: &str, data: Vec<(&str, Value)>) {
        let data = data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.say(stream, Word::Event { name: name.to_owned(), data: Value::Object(data) });
    }

    /// `false` when the intake had no room.
    pub(crate) fn properties(&self, stream: &str, properties: Vec<(&'static str, Value)>) -> bool {
        let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.say(stream, Word::Properties(properties))
    }

    fn say(&self, stream: &str, word: Word) -> bool {
        let time_us = Some(clock::now_us());
        let report = Report { device: stream.to_owned(), product: Some(CAMERA.to_owned()), time_us, word };
        let said = self.reports.upgrade().is_some_and(|reports| reports.try_send(report).is_ok());
        if !said {
            self.metrics.add(Figure::OutletReportsDropped, &[], 1);
        }
        said
    }
}

/// A relay as a member of the property `relays`.
pub(super) fn relay(info: &RelayInfo) -> Value {
    let mut members = vec![("url", text(&info.url, URL_MAX)), ("state", word(info.state.as_str()))];
    members.extend(info.reason.as_deref().map(|reason| ("reason", text(reason, TEXT_MAX))));
    members.extend(info.error.as_deref().map(|error| ("error", text(error, TEXT_MAX))));
    object(members)
}

/// A recording as a member of the property `records`.
pub(super) fn record(info: &RecordInfo) -> Value {
    let mut members = vec![("rule", word(&info.rule)), ("state", word(info.state.as_str()))];
    members.extend(info.reason.as_deref().map(|reason| ("reason", text(reason, TEXT_MAX))));
    members.extend(info.error.as_deref().map(|error| ("error", text(error, TEXT_MAX))));
    object(members)
}

fn object(members: Vec<(&str, Value)>) -> Value {
    Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn word(word: &str) -> Value {
    Value::Text(word.to_owned())
}

fn text(text: &str, len_max: usize) -> Value {
    Value::Text(text.chars().take(len_max).collect())
}
