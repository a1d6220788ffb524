//! The core's settings, in the shapes the threads want them in.

use std::sync::Arc;
use std::time::Duration;

use protocols::media::StreamName;

use super::fanout::Patience;
use super::gop::Keep;
use crate::config;

#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) window_min_ms: u64,
    pub(super) window_max_ms: u64,
    pub(super) keep: Keep,
    pub(super) patience: Patience,
    pub(super) silence_max: Duration,
    pub(super) wait_max: Duration,
    pub(super) grace: Duration,
    pub(super) takeover: bool,
    pub(super) spill_percent: u64,
    pub(super) sources_max: usize,
    pub(super) viewers_max: usize,
    pub(super) unplayable_audio: config::UnplayableAudio,
    pub(super) audio_choices: Arc<[config::AudioRule]>,
}

impl Rules {
    pub(super) fn new(config: &config::Stream) -> Self {
        Self {
            window_min_ms: config.window_min_ms,
            window_max_ms: config.window_max_ms,
            keep: Keep::new(config.gop_kib, config.gop_seconds),
            patience: Patience::new(config.lag_max_ms, Duration::from_secs(config.stall_max_seconds)),
            silence_max: Duration::from_secs(config.silence_max_seconds.max(1)),
            wait_max: Duration::from_secs(config.wait_max_seconds),
            grace: Duration::from_secs(config.grace_seconds),
            takeover: config.takeover,
            spill_percent: config.spill_percent,
            sources_max: config.sources_max,
            viewers_max: config.viewers_max,
            unplayable_audio: config.unplayable_audio,
            audio_choices: config.audio_rules.as_slice().into(),
        }
    }

    pub(super) fn unplayable_audio(&self, stream: &StreamName) -> config::UnplayableAudio {
        let rule = self.audio_choices.iter().find(|rule| crate::outlet::chosen(&rule.stream, stream.as_str()));
        rule.map_or(self.unplayable_audio, |rule| rule.unplayable_audio)
    }
}
