//! WHIP: what a peer sends as units of a feed. Must not be in here: the socket.

use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::media::opus::OpusHead;
use protocols::media::{Codec, Kind, StreamName, Track, Unit};
use str0m::format::{Codec as Format, CodecConfig};
use str0m::media::{KeyframeRequestKind, MediaAdded, MediaData, MediaKind, Mid};
use str0m::{Event, Rtc};
use tracing::debug;

use super::offer;
use super::picture::Frame;
use super::session::End;
use crate::hooks::Silence;
use crate::metrics::{Figure, Metrics};
use crate::stream::{Feed, StreamCore};
use crate::transport::Services;
use crate::webrtc::{Offer, OfferError};

/// A browser sends a key frame when it is asked and hardly ever else; viewers join at key frames.
const KEY_EVERY: Duration = Duration::from_secs(3);
/// A key frame that was asked for and lost is asked for again.
const KEY_AGAIN: Duration = Duration::from_millis(500);
/// Pictures that are taken.
const PICTURES: [&str; 3] = ["H264", "H265", "AV1"];

/// One peer that publishes.
pub(super) struct Publisher {
    core: StreamCore,
    stream: StreamName,
    origin: String,
    metrics: Metrics,
    /// Who is asked when nothing comes.
    silence: Option<Silence>,
    feed: Option<Feed>,
    video: Option<Mid>,
    began: Instant,
    video_clock: Clock,
    audio_clock: Clock,
    config: Option<Bytes>,
    opus_said: bool,
    /// Frames are left out up to the next key frame: something they build on was lost.
    waits_for_key: bool,
    /// When a key frame is asked for next.
    ask_at: Option<Instant>,
}

impl Publisher {
    pub(super) fn prepare(
        services: &Services,
        offer: &Offer,
        silence: Option<Silence>,
    ) -> Result<(Self, CodecConfig), OfferError> {
        let mut codecs = CodecConfig::empty();
        codecs.enable_opus(true, false);
        codecs.enable_pcma(true, false);
        codecs.enable_pcmu(true, false);
        // One of them: the peer's own choice, and none that it changes to in the middle.
        match offer::first_of(&offer.sdp, &PICTURES) {
            Some("H264") => codecs.enable_h264(true),
            Some("H265") => codecs.enable_h265(true),
            Some(_) => codecs.enable_av1(true),
            None => {
                let (taken, offered) = (PICTURES.join(", "), offer::codecs(&offer.sdp).join(", "));
                return Err(OfferError::NoCodec(format!("{taken} are taken; the offer has {offered}")));
            }
        }
        let publisher = Self {
            core: services.streams.clone(),
            stream: offer.stream.clone(),
            origin: format!("whip://{}", offer.peer),
            metrics: services.metrics.clone(),
            silence,
            feed: None,
            video: None,
            began: Instant::now(),
            video_clock: Clock::default(),
            audio_clock: Clock::default(),
            config: None,
            opus_said: false,
            waits_for_key: true,
            ask_at: None,
        };
        Ok((publisher, codecs))
    }

    pub(super) async fn event(&mut self, rtc: &mut Rtc, event: Event) -> Result<(), End> {
        match event {
            Event::MediaAdded(MediaAdded { mid, kind: MediaKind::Video, .. }) => self.video = self.video.or(Some(mid)),
            Event::Connected => {
                let feed = self.core.feed(&self.stream, &self.origin, self.silence.take()).await;
                self.feed = Some(feed.map_err(|refusal| End::Stream(refusal.to_string()))?);
                self.ask_at = Some(Instant::now());
            }
            Event::MediaData(data) => self.take(rtc, &data).await?,
            _ => {}
        }
        Ok(())
    }

    /// Asks for a key frame when it is time; ends when the stream does. Cancel safe.
    pub(super) async fn turn(&mut self, rtc: &mut Rtc) -> Result<(), End> {
        let Some(feed) = &self.feed else { return std::future::pending().await };
        let ask_at = self.ask_at.unwrap_or_else(|| Instant::now() + KEY_EVERY);
        tokio::select! {
            parted = feed.parted() => Err(End::Stream(parted.to_string())),
            () = tokio::time::sleep_until(ask_at.into()) => {
                self.ask(rtc);
                Ok(())
            }
        }
    }

    fn ask(&mut self, rtc: &mut Rtc) {
        self.ask_at = Some(Instant::now() + KEY_AGAIN);
        let Some(mut writer) = self.video.and_then(|mid| rtc.writer(mid)) else { return };
        let kinds = [KeyframeRequestKind::Pli, KeyframeRequestKind::Fir];
        let Some(kind) = kinds.into_iter().find(|kind| writer.is_request_keyframe_possible(*kind)) else { return };
        // Before its first packet there is nobody to ask; it is tried again.
        if writer.request_keyframe(None, kind).is_ok() {
            self.metrics.add(Figure::WebrtcKeyRequests, &["asked"], 1);
        }
    }

    async fn take(&mut self, rtc: &mut Rtc, data: &MediaData) -> Result<(), End> {
        let spec = data.params.spec();
        let since = data.network_time.saturating_duration_since(self.began);
        let codec = match spec.codec {
            Format::H264 => return self.picture(rtc, data, Codec::H264, since).await,
            Format::H265 => return self.picture(rtc, data, Codec::H265, since).await,
            Format::Av1 => return self.picture(rtc, data, Codec::Av1, since).await,
            Format::Opus => Codec::Opus,
            Format::PCMA => Codec::G711A,
            Format::PCMU => Codec::G711U,
            _ => return Ok(()),
        };
        let time_90k = self.audio_clock.at(data.time.numer(), data.time.denom(), since);
        let unit = |kind, data| Unit { track: Track::Audio, codec, dts_90k: time_90k, pts_90k: time_90k, kind, data };
        if codec == Codec::Opus && !std::mem::replace(&mut self.opus_said, true) {
            // WebRTC's Opus says it can be stereo, whatever is in a packet (RFC 7587, 7).
            self.push(unit(Kind::Config, OpusHead::plain(2).build())).await?;
        }
        self.push(unit(Kind::Key, Bytes::copy_from_slice(&data.data))).await
    }

    async fn picture(&mut self, rtc: &mut Rtc, data: &MediaData, codec: Codec, since: Duration) -> Result<(), End> {
        let time_90k = self.video_clock.at(data.time.numer(), data.time.denom(), since);
        let Frame { config, data: frame, key } = Frame::of(codec, &data.data);
        if !data.contiguous && !key && !self.waits_for_key {
            self.waits_for_key = true;
            self.metrics.add(Figure::WebrtcSkips, &["lost"], 1);
            self.ask(rtc);
        }
        let unit = |kind, data| Unit { track: Track::Video, codec, dts_90k: time_90k, pts_90k: time_90k, kind, data };
        if let Some(config) = config.filter(|config| self.config.as_ref() != Some(config)) {
            self.config = Some(config.clone());
            self.push(unit(Kind::Config, config)).await?;
        }
        if key {
            self.waits_for_key = false;
            self.ask_at = Some(Instant::now() + KEY_EVERY);
        }
        if self.waits_for_key || self.config.is_none() || frame.is_empty() {
            return Ok(());
        }
        self.push(unit(if key { Kind::Key } else { Kind::Delta }, frame)).await
    }

    async fn push(&self, unit: Unit) -> Result<(), End> {
        let Some(feed) = &self.feed else {
            debug!(stream = %self.stream, "media before the session is connected");
            return Ok(());
        };
        feed.push(unit).await.map_err(|parted| End::Stream(parted.to_string()))
    }
}

/// An RTP clock, of 32 bits and any beginning, as time since the session began.
#[derive(Debug, Default)]
struct Clock {
    state: Option<(u32, i64)>,
    base_90k: i64,
}

impl Clock {
    /// `ticks` at `rate` a second, first seen `since` the session began.
    fn at(&mut self, ticks: u64, rate: u32, since: Duration) -> i64 {
        let now = ticks as u32;
        let elapsed = match self.state {
            None => {
                self.base_90k = (since.as_micros() as i64).saturating_mul(9) / 100;
                0
            }
            Some((last, elapsed)) => elapsed + i64::from(now.wrapping_sub(last) as i32),
        };
        self.state = Some((now, elapsed));
        self.base_90k + elapsed * 90_000 / i64::from(rate.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_wraps_goes_on_and_both_tracks_begin_when_they_arrived() {
        let mut clock = Clock::default();
        let begin = Duration::from_millis(200);
        assert_eq!(clock.at(0xffff_ff00, 90_000, begin), 18_000);
        assert_eq!(clock.at(0xffff_ff00 + 3_600, 90_000, Duration::from_secs(9)), 21_600);
        assert_eq!(clock.at(3_600 + 0xffff_ff00 - 10, 90_000, begin), 21_590, "a step back is a step back");
        let mut sound = Clock::default();
        assert_eq!(sound.at(5, 8_000, begin), 18_000);
        assert_eq!(sound.at(5 + 160, 8_000, begin), 18_000 + 1_800);
    }
}
