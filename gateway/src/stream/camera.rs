//! The camera as a thing: what a stream is, said as reports of a device of its name and of the product `ip-camera`.
//!
//! Reports go out when the stream comes and goes, and at most every 5 s while something changes. They wait for the intake
//! in `unsaid.rs`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use device_models::{Report, Value, Word};

use super::info::StreamInfo;
use super::unsaid::Unsaid;
use crate::clock;

/// The model of every camera.
pub const PRODUCT: &str = "ip-camera";

/// Between two reports of changing figures.
const INTERVAL: Duration = Duration::from_secs(5);

/// The first full report waits this long for codec, size and rates to be known.
const FIRST: Duration = Duration::from_secs(2);

/// Characters of a text in an event, as the model has it.
const REASON_MAX: usize = 256;

/// Rates within this share of what was reported are not news.
const DEADBAND: f64 = 0.05;

pub(super) struct Camera {
    device: String,
    unsaid: Rc<Unsaid>,
    said: Vec<(String, Value)>,
    next: Option<Instant>,
}

impl Camera {
    pub(super) fn new(device: String, unsaid: Rc<Unsaid>) -> Self {
        Self { device, unsaid, said: Vec::new(), next: None }
    }

    /// The stream has a publisher (again).
    pub(super) fn online(&mut self, publisher: &str, now: Instant) {
        self.said.clear();
        self.next = Some(now + FIRST);
        self.say(Word::Presence { online: true, reason: format!("published by {publisher}") });
        self.say(Word::Event { name: "online".to_owned(), data: Value::Null });
        self.say_properties(vec![
            ("online".to_owned(), Value::Bool(true)),
            ("publisher".to_owned(), Value::Text(publisher.to_owned())),
        ]);
    }

    /// The publisher went.
    pub(super) fn offline(&mut self, reason: &str) {
        self.next = None;
        let data = [("reason".to_owned(), text(reason, REASON_MAX))];
        self.say_properties(vec![("online".to_owned(), Value::Bool(false))]);
        self.say(Word::Event { name: "offline".to_owned(), data: Value::Object(data.into()) });
        self.say(Word::Presence { online: false, reason: reason.to_owned() });
    }

    /// A look at the stream, about once a second: says what changed.
    pub(super) fn observe(&mut self, info: &StreamInfo, now: Instant) {
        if self.next.is_none_or(|next| now < next) || !info.live {
            return;
        }
        let changed: Vec<_> = properties(info).into_iter().filter(|(name, value)| self.is_news(name, value)).collect();
        if changed.is_empty() {
            return;
        }
        self.next = Some(now + INTERVAL);
        self.say_properties(changed);
    }

    fn is_news(&self, name: &str, value: &Value) -> bool {
        let Some((_, said)) = self.said.iter().find(|(known, _)| known == name) else { return true };
        match (said.as_f64(), value.as_f64()) {
            (Some(before), Some(now)) if matches!(name, "fps" | "bitRate" | "keyInterval") => {
                (now - before).abs() > before.abs() * DEADBAND
            }
            _ => said != value,
        }
    }

    fn say_properties(&mut self, properties: Vec<(String, Value)>) {
        for (name, value) in &properties {
            match self.said.iter_mut().find(|(known, _)| known == name) {
                Some((_, said)) => *said = value.clone(),
                None => self.said.push((name.clone(), value.clone())),
            }
        }
        self.say(Word::Properties(properties));
    }

    fn say(&self, word: Word) {
        let time_us = Some(clock::now_us());
        self.unsaid.say(Report { device: self.device.clone(), product: Some(PRODUCT.to_owned()), time_us, word });
    }
}

fn text(text: &str, len_max: usize) -> Value {
    Value::Text(text.chars().take(len_max).collect())
}

fn properties(info: &StreamInfo) -> Vec<(String, Value)> {
    let mut all = vec![("online", Value::Bool(info.live)), ("viewers", Value::Int(info.viewers as i64))];
    if let Some(video) = &info.video {
        all.push(("codec", Value::Text(video.codec.clone())));
        if video.width > 0 {
            all.push(("width", Value::Int(i64::from(video.width))));
            all.push(("height", Value::Int(i64::from(video.height))));
        }
        all.push(("fps", Value::Float((info.fps * 100.0).round() / 100.0)));
        all.push(("keyInterval", Value::Float(info.key_interval_ms as f64 / 1000.0)));
    }
    if let Some(audio) = &info.audio {
        all.push(("audioCodec", Value::Text(audio.codec.clone())));
    }
    all.push(("bitRate", Value::Int(info.bits_per_second as i64)));
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use device_models::{Body, Models, Quality, normalize};
    use tokio::sync::mpsc;

    use super::super::info::{AudioInfo, VideoInfo};
    use super::*;

    fn info() -> StreamInfo {
        let video = Some(VideoInfo { codec: "H264".to_owned(), width: 1280, height: 720 });
        StreamInfo { live: true, video, fps: 25.0, bits_per_second: 1_000_000, ..StreamInfo::default() }
    }

    fn said(reports: &mut mpsc::Receiver<Report>) -> Vec<Word> {
        std::iter::from_fn(|| reports.try_recv().ok()).map(|report| report.word).collect()
    }

    #[test]
    fn says_what_changed_and_no_more_often_than_every_five_seconds() {
        let (send, mut reports) = mpsc::channel(16);
        let mut camera = Camera::new("live/gate".to_owned(), Unsaid::new(send, 1, Arc::default()));
        let start = Instant::now();
        camera.online("10.0.0.9:5000", start);
        assert_eq!(said(&mut reports).len(), 3);
        camera.observe(&info(), start + Duration::from_secs(1));
        assert_eq!(said(&mut reports), vec![]);
        camera.observe(&info(), start + Duration::from_secs(3));
        let Some(Word::Properties(first)) = said(&mut reports).pop() else { panic!("no properties") };
        assert!(first.contains(&("width".to_owned(), Value::Int(1280))));
        // A rate that swings a little is no news; a viewer more is, but not within the interval.
        let swung = StreamInfo { bits_per_second: 1_020_000, ..info() };
        camera.observe(&swung, start + Duration::from_secs(9));
        assert_eq!(said(&mut reports), vec![]);
        let watched = StreamInfo { viewers: 1, ..info() };
        camera.observe(&watched, start + Duration::from_secs(10));
        assert_eq!(said(&mut reports), vec![Word::Properties(vec![("viewers".to_owned(), Value::Int(1))])]);
        camera.observe(&info(), start + Duration::from_secs(11));
        assert_eq!(said(&mut reports), vec![]);
        camera.offline("the publisher closed the stream");
        assert_eq!(said(&mut reports).len(), 3);
    }

    #[test]
    fn everything_it_says_is_in_the_model_of_cameras() {
        let (send, mut reports) = mpsc::channel(64);
        let mut camera = Camera::new("live/gate".to_owned(), Unsaid::new(send, 1, Arc::default()));
        let start = Instant::now();
        camera.online("10.0.0.9:5000", start);
        let audio = Some(AudioInfo { codec: "AAC".to_owned(), rate: 44_100, channels: 1 });
        camera.observe(&StreamInfo { audio, ..info() }, start + Duration::from_secs(3));
        camera.offline("the publisher closed the stream");
        let models = Models::shipped().unwrap();
        let model = models.get(PRODUCT).unwrap();
        let mut events = Vec::new();
        while let Ok(report) = reports.try_recv() {
            let message = normalize(model, &"t".into(), &report, clock::now_us()).unwrap();
            match message.body {
                Body::Event { name, quality, .. } => {
                    assert_eq!(quality, Quality::Good, "{name}");
                    events.push(name.to_string());
                }
                Body::Properties(samples) => {
                    assert!(samples.iter().all(|sample| sample.quality == Quality::Good), "{samples:?}");
                }
                _ => {}
            }
        }
        assert_eq!(events, ["online", "offline"]);
    }
}
