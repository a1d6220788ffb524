//! WHEP: the units of a tap as frames for one peer.
//!
//! A peer begins at the newest key frame, which is sent at once with everything since: its frames are timed a
//! millisecond apart up to the present, so that the picture moves to the present quickly and is then live. Must not be in
//! here: the socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::media::av1::{self, Av1C};
use protocols::media::h264::{self, AvcC};
use protocols::media::h265::{self, HvcC};
use protocols::media::{Codec, Kind, StreamName, Track, Tracks, Unit};
use str0m::format::{Codec as Format, CodecConfig, PayloadParams};
use str0m::media::{MediaAdded, MediaKind, MediaTime, Mid, Pt};
use str0m::stats::MediaEgressStats;
use str0m::{Event, Rtc};
use tracing::{debug, info};

use super::offer::{self, StreamProfile};
use super::session::End;
use crate::metrics::{Figure, Metrics};
use crate::stream::{StreamCore, Tap, TapKind, TapRules, Tapped};
use crate::transport::Services;
use crate::webrtc::{Offer, OfferError};

const TAP: TapRules = TapRules { kind: TapKind::WebRtc, units_max: 512, bytes_max: 8 * 1024 * 1024 };
/// Time a stream has to show its codecs.
const CODECS_WITHIN: Duration = Duration::from_secs(3);
/// … and how long its sound is waited for beyond its picture.
const SOUND_WITHIN: Duration = Duration::from_millis(300);
/// Bytes of a start that are sent again for a peer that lost its picture; where it is more, the next key frame is
/// waited for.
const REPEAT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A peer gets a fresh start at most this often, however often it asks.
const REPEAT_EVERY: Duration = Duration::from_secs(2);
/// Time between the frames of a start.
const START_STEP_90K: i64 = 90;
/// RTP times begin here, so that none is negative.
const ORIGIN_90K: i64 = 3_600 * 90_000;
/// Loss from which a peer gets key frames alone, and below which it gets everything again.
const LOSS_TERRIBLE: f32 = 0.3;
const LOSS_BEARABLE: f32 = 0.1;

/// One peer that watches.
pub(super) struct Viewer {
    core: StreamCore,
    stream: StreamName,
    metrics: Metrics,
    video_codec: Option<Codec>,
    audio_codec: Option<Codec>,
    video: Option<Line>,
    audio: Option<Line>,
    tap: Option<Tap>,
    /// Frames of the start that are still to be sent, with their times.
    start: VecDeque<(Unit, i64)>,
    started: Option<Instant>,
    parameter_sets: Vec<Bytes>,
    times: Times,
    /// Frames are left out up to the next key frame.
    waits_for_key: bool,
    keys_only: bool,
    reordered: bool,
}

/// A negotiated media line.
#[derive(Debug, Clone, Copy)]
struct Line {
    mid: Mid,
    format: Pt,
}

// === the offer ===

impl Viewer {
    /// Finds out what the stream has that the offer can take.
    pub(super) async fn prepare(services: &Services, offer: &Offer) -> Result<(Self, CodecConfig), OfferError> {
        let tracks = codecs(&services.streams, &offer.stream).await?;
        let sdp = &offer.sdp;
        let mut codecs = CodecConfig::empty();
        let video_codec = tracks.video_codec;
        if let Some(codec) = video_codec {
            Self::picture(codec, tracks.video.as_ref(), offer, &mut codecs)?;
        }
        let audio_codec = tracks.audio_codec.filter(|codec| sound(*codec, sdp, &mut codecs));
        if let Some(codec) = tracks.audio_codec.filter(|_| audio_codec.is_none()) {
            info!(stream = %offer.stream, peer = %offer.peer, ?codec, "a WebRTC viewer gets no sound: WebRTC has no such codec, or the peer");
        }
        if video_codec.is_none() && audio_codec.is_none() {
            return Err(OfferError::NoCodec(format!("stream {} has nothing that WebRTC can carry", offer.stream)));
        }
        let viewer = Self {
            core: services.streams.clone(),
            stream: offer.stream.clone(),
            metrics: services.metrics.clone(),
            video_codec,
            audio_codec,
            video: None,
            audio: None,
            tap: None,
            start: VecDeque::new(),
            started: None,
            parameter_sets: Vec::new(),
            times: Times::default(),
            waits_for_key: true,
            keys_only: false,
            reordered: false,
        };
        Ok((viewer, codecs))
    }

    fn picture(codec: Codec, config: Option<&Unit>, offer: &Offer, codecs: &mut CodecConfig) -> Result<(), OfferError> {
        let missing = |name: &str| {
            let offered = offer::codecs(&offer.sdp).join(", ");
            OfferError::NoCodec(format!("stream {} is {name}; the offer has {offered}", offer.stream))
        };
        match codec {
            Codec::H264 => {
                let record = config.and_then(|unit| AvcC::parse(&unit.data).ok());
                let profile = record.map_or(StreamProfile { idc: 66, constraints: 0xe0, level: 31 }, |record| {
                    StreamProfile { idc: record.profile, constraints: record.compatibility, level: record.level }
                });
                let (id, fits) = offer::h264_profile(&offer.sdp, profile).ok_or_else(|| missing("H264"))?;
                if !fits {
                    info!(stream = %offer.stream, peer = %offer.peer, ?profile, "a WebRTC viewer does not offer the stream's H.264 profile; it may not decode it");
                }
                codecs.add_h264(96.into(), Some(97.into()), true, id);
            }
            Codec::H265 if offer::has_codec(&offer.sdp, "H265") => codecs.enable_h265(true),
            Codec::Av1 if offer::has_codec(&offer.sdp, "AV1") => codecs.enable_av1(true),
            other => return Err(missing(other.name())),
        }
        Ok(())
    }
}

/// The stream's codecs, waited for a little where it has just begun.
async fn codecs(core: &StreamCore, stream: &StreamName) -> Result<Tracks, OfferError> {
    let mut tap = core.tap(stream, TAP).await?;
    let mut tracks = Tracks::default();
    let mut deadline = tokio::time::Instant::now() + CODECS_WITHIN;
    while let Ok(Some(tapped)) = tokio::time::timeout_at(deadline, tap.next()).await {
        let Tapped::Unit(unit) = tapped else { continue };
        let had_video = tracks.has_video();
        tracks.note(&unit);
        let video_known = tracks.has_video() && (tracks.video.is_some() || unit.kind != Kind::Config);
        if video_known && tracks.audio_codec.is_some() {
            break;
        }
        if !had_video && tracks.has_video() {
            deadline = deadline.min(tokio::time::Instant::now() + SOUND_WITHIN);
        }
    }
    Ok(tracks)
}

/// Adds a sound codec if WebRTC has it and the peer offers it.
fn sound(codec: Codec, sdp: &str, codecs: &mut CodecConfig) -> bool {
    match codec {
        Codec::G711A if offer::has_codec(sdp, "PCMA") => codecs.enable_pcma(true, false),
        Codec::G711U if offer::has_codec(sdp, "PCMU") => codecs.enable_pcmu(true, false),
        Codec::Opus if offer::has_codec(sdp, "opus") => codecs.enable_opus(true, false),
        _ => return false,
    }
    true
}

// === the session ===

impl Viewer {
    pub(super) async fn event(&mut self, rtc: &mut Rtc, event: Event) -> Result<(), End> {
        match event {
            Event::MediaAdded(added) => self.line(rtc, &added),
            Event::Connected => self.begin().await?,
            Event::KeyframeRequest(_) => self.repeat().await?,
            Event::MediaEgressStats(stats) => self.losses(&stats),
            _ => {}
        }
        Ok(())
    }

    fn line(&mut self, rtc: &mut Rtc, added: &MediaAdded) {
        let wanted = match added.kind {
            MediaKind::Video => self.video_codec.and_then(format),
            MediaKind::Audio => self.audio_codec.and_then(format),
        };
        if !added.direction.is_sending() {
            return;
        }
        let found = rtc.writer(added.mid).and_then(|writer| {
            let mut formats = writer.payload_params();
            formats.find(|params| Some(params.spec().codec) == wanted).map(PayloadParams::pt)
        });
        let line = found.map(|format| Line { mid: added.mid, format });
        match added.kind {
            MediaKind::Video => self.video = self.video.or(line),
            MediaKind::Audio => self.audio = self.audio.or(line),
        }
    }

    /// Joins the stream at its newest key frame.
    async fn begin(&mut self) -> Result<(), End> {
        let tap = self.core.tap(&self.stream, TAP).await;
        let mut tap = tap.map_err(|refusal| End::Stream(refusal.to_string()))?;
        tap.set_viewers(1);
        let mut units = Vec::new();
        while let Some(tapped) = ready(&mut tap).await {
            if let Tapped::Unit(unit) = tapped {
                units.push(unit);
            }
        }
        self.tap = Some(tap);
        let again = self.started.replace(Instant::now()).is_some();
        let len: usize = units.iter().map(|unit| unit.data.len()).sum();
        let whole = !again || len <= REPEAT_BYTES_MAX;
        self.start.clear();
        let mut frames = Vec::new();
        for unit in units {
            match (unit.track, unit.kind) {
                (Track::Video, Kind::Config) => self.configure(&unit)?,
                (Track::Video, _) if whole => frames.push(unit),
                // Sound is live from the first: what is past is not heard.
                _ => {}
            }
        }
        self.waits_for_key = frames.is_empty();
        if let Some(newest) = frames.last() {
            let first = newest.pts_90k - START_STEP_90K * (frames.len() as i64 - 1);
            let times = (0..).map(|at| first + START_STEP_90K * at);
            self.start = frames.into_iter().zip(times).collect();
        }
        Ok(())
    }

    /// The peer lost its picture.
    async fn repeat(&mut self) -> Result<(), End> {
        let fresh = self.started.is_none_or(|started| started.elapsed() < REPEAT_EVERY);
        self.metrics.add(Figure::WebrtcKeyRequests, &[if fresh { "soon-enough" } else { "repeated" }], 1);
        if fresh || !self.start.is_empty() {
            return Ok(());
        }
        self.begin().await
    }

    fn losses(&mut self, stats: &MediaEgressStats) {
        let Some(loss) = stats.loss.filter(|_| self.video.is_some_and(|line| line.mid == stats.mid)) else { return };
        if loss >= LOSS_TERRIBLE && !self.keys_only {
            debug!(stream = %self.stream, loss, "a WebRTC viewer gets key frames alone");
            self.metrics.add(Figure::WebrtcSkips, &["loss"], 1);
            (self.keys_only, self.waits_for_key) = (true, true);
            self.start.clear();
        } else if loss <= LOSS_BEARABLE {
            self.keys_only = false;
        }
    }

    /// Sends the next frame when there is one. Cancel safe.
    pub(super) async fn turn(&mut self, rtc: &mut Rtc) -> Result<(), End> {
        if let Some((unit, time_90k)) = self.start.pop_front() {
            self.frame(rtc, &unit, time_90k);
            return Ok(());
        }
        let Some(tap) = &mut self.tap else { return std::future::pending().await };
        match tap.next().await {
            Some(Tapped::Unit(unit)) => self.unit(rtc, unit),
            Some(Tapped::Skipped { .. }) => {
                self.metrics.add(Figure::WebrtcSkips, &["slow"], 1);
                self.waits_for_key = true;
                Ok(())
            }
            Some(Tapped::Published | Tapped::Unpublished) => Ok(()),
            None => Err(End::Stream("the stream ended".to_owned())),
        }
    }

    fn unit(&mut self, rtc: &mut Rtc, unit: Unit) -> Result<(), End> {
        match (unit.track, unit.kind) {
            (Track::Video, Kind::Config) => self.configure(&unit)?,
            (Track::Video, kind) => {
                self.waits_for_key &= kind != Kind::Key;
                if !self.waits_for_key {
                    let time_90k = unit.pts_90k;
                    self.frame(rtc, &unit, time_90k);
                    self.waits_for_key = self.keys_only;
                }
            }
            (Track::Audio, Kind::Key | Kind::Delta) if Some(unit.codec) == self.audio_codec => self.sound(rtc, &unit),
            _ => {}
        }
        Ok(())
    }

    /// What a decoder needs before a key frame.
    fn configure(&mut self, unit: &Unit) -> Result<(), End> {
        if Some(unit.codec) != self.video_codec {
            return Err(End::Stream(format!("the stream is {} now: connect again", unit.codec.name())));
        }
        self.parameter_sets = match unit.codec {
            Codec::H264 => AvcC::parse(&unit.data).map(|record| [record.sps, record.pps].concat()),
            Codec::Av1 => Av1C::parse(&unit.data).map(|record| vec![record.obus]),
            _ => HvcC::parse(&unit.data).map(|record| [record.vps, record.sps, record.pps].concat()),
        }
        .unwrap_or_default();
        Ok(())
    }

    fn frame(&mut self, rtc: &mut Rtc, unit: &Unit, time_90k: i64) {
        let Some(line) = self.video.filter(|_| Some(unit.codec) == self.video_codec) else { return };
        if unit.pts_90k != unit.dts_90k && !std::mem::replace(&mut self.reordered, true) {
            info!(stream = %self.stream, "the stream has B-frames, which browsers show out of order over WebRTC; set the camera or encoder to none");
            self.metrics.add(Figure::WebrtcReordered, &[], 1);
        }
        let time = self.times.video(time_90k, self.reordered);
        self.write(rtc, line, MediaTime::from_90khz(time), payload(unit, &self.parameter_sets));
    }

    fn sound(&mut self, rtc: &mut Rtc, unit: &Unit) {
        let Some(line) = self.audio else { return };
        let clock = match unit.codec {
            Codec::G711A | Codec::G711U => str0m::media::Frequency::EIGHT_KHZ,
            _ => str0m::media::Frequency::FORTY_EIGHT_KHZ,
        };
        let time = MediaTime::from_90khz(self.times.of(unit.pts_90k)).rebase(clock);
        self.write(rtc, line, time, unit.data.to_vec());
    }

    fn write(&self, rtc: &mut Rtc, line: Line, time: MediaTime, data: Vec<u8>) {
        let Some(writer) = rtc.writer(line.mid) else { return };
        if let Err(error) = writer.write(line.format, Instant::now(), time, data) {
            debug!(stream = %self.stream, %error, "a frame could not be sent");
        }
    }
}

/// What the tap has at once.
async fn ready(tap: &mut Tap) -> Option<Tapped> {
    tokio::select! {
        biased;
        tapped = tap.next() => tapped,
        () = std::future::ready(()) => None,
    }
}

/// str0m's word for a codec.
fn format(codec: Codec) -> Option<Format> {
    match codec {
        Codec::H264 => Some(Format::H264),
        Codec::H265 => Some(Format::H265),
        Codec::Av1 => Some(Format::Av1),
        Codec::Opus => Some(Format::Opus),
        Codec::G711A => Some(Format::PCMA),
        Codec::G711U => Some(Format::PCMU),
        _ => None,
    }
}

/// A frame as str0m takes it.
fn payload(unit: &Unit, parameter_sets: &[Bytes]) -> Vec<u8> {
    match unit.codec {
        Codec::Av1 if unit.kind == Kind::Key && av1::sequence_header(&unit.data).is_none() => {
            [&parameter_sets.concat()[..], &unit.data].concat()
        }
        Codec::Av1 => unit.data.to_vec(),
        _ => annex_b(unit, parameter_sets),
    }
}

/// A frame as a byte stream; a key frame that brings no parameter sets gets them.
fn annex_b(unit: &Unit, parameter_sets: &[Bytes]) -> Vec<u8> {
    let is_set = |nal: &[u8]| match (unit.codec, nal.first()) {
        (Codec::H264, Some(header)) => header & 0x1f == h264::NAL_SPS,
        (_, Some(header)) => header >> 1 & 0x3f == h265::NAL_SPS,
        (_, None) => false,
    };
    let own = h264::nals(&unit.data, h264::NAL_LENGTH_SIZE).any(is_set);
    let sets = if unit.kind == Kind::Key && !own { parameter_sets } else { &[] };
    let mut out = Vec::with_capacity(unit.data.len() + sets.iter().map(|set| set.len() + 4).sum::<usize>() + 64);
    let nals = h264::nals(&unit.data, h264::NAL_LENGTH_SIZE);
    for nal in sets.iter().map(|set| &set[..]).chain(nals).filter(|nal| !nal.is_empty()) {
        out.extend_from_slice(&[0, 0, 0, 1]);
        out.extend_from_slice(nal);
    }
    out
}

/// The stream's times as RTP times, from a random beginning of the stream's own clock.
#[derive(Debug, Default)]
struct Times {
    zero_90k: Option<i64>,
    video_last: u64,
}

impl Times {
    fn of(&mut self, time_90k: i64) -> u64 {
        let zero = *self.zero_90k.get_or_insert(time_90k);
        time_90k.saturating_sub(zero).saturating_add(ORIGIN_90K).max(0) as u64
    }

    /// Each frame after the one before, unless frames are out of order in earnest.
    fn video(&mut self, time_90k: i64, reordered: bool) -> u64 {
        let mut time = self.of(time_90k);
        if !reordered {
            time = time.max(self.video_last + 1);
        }
        self.video_last = time;
        time
    }
}
