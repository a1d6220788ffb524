//! One stream on its thread: who publishes it, what was published lately, and every container in which it is watched
//! (`viewers.rs`), here and on other threads (`replicas.rs`).
//!
//! Must not be in here: tasks and sockets of publishers (`ingest.rs`), the finding of streams by name (`hub.rs`).

mod replicas;
mod viewers;

use std::time::{Duration, Instant};

use protocols::media::{Change, Codec, Kind, Picture, Sound, StreamName, Track, Tracks, Unit};
use tokio_util::sync::CancellationToken;

use super::camera::Camera;
use super::fanout::{Patience, Rendition};
use super::figures::Figures;
use super::gop::{Keep, Mark};
use super::hub::Origin;
use super::info::{AudioInfo, StreamCounters, StreamInfo, VideoInfo};
use super::recent::Recent;
use super::sound::{Treated, Treatment};
use super::spill::{self, Replica};
use super::tap::{Spout, Tapped};
use super::timeline::Timeline;

/// A container nobody watches is given up after this long: a player that reconnects finds it warm.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Where video flows, an audio unit goes out with the next frame, or after this long: a write costs more than its bytes,
/// and a player holds sound back for its picture anyway. More than a frame at 25 fps, since frames come unevenly.
const SOUND_WAIT: Duration = Duration::from_millis(60);

/// Video flows while the newest frame is at most this far behind the sound, media clock ticks.
const VIDEO_NEAR: i64 = 9_000;

/// What a unit means for those who watch.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct News {
    /// They have seen all that came before.
    pub first: bool,
    /// They are to be visited within this time; `None`: not for this unit.
    pub within: Option<Duration>,
}

/// A publisher's place at a stream; void once another took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// Where the stream's publisher is.
#[derive(Debug)]
enum Role {
    Home,
    /// On another thread; this serves viewers, and nobody since then.
    Replica {
        idle_since: Option<Instant>,
    },
}

/// The publisher of the moment.
#[derive(Debug)]
struct Publisher {
    origin: Origin,
    since_us: i64,
    stop: CancellationToken,
}

pub(super) struct Source {
    pub(super) name: StreamName,
    keep: Keep,
    generation: u64,
    publisher: Option<Publisher>,
    /// Since when there is no publisher.
    gone_since: Option<Instant>,
    began: Instant,
    timeline: Timeline,
    pub(super) treatment: Treatment,
    /// What the present publisher sent, and the same as of the newest key frame: what one who joins there needs.
    tracks: Tracks,
    key_tracks: Tracks,
    /// What viewers were told: a configuration equal to it need not be repeated, whoever publishes.
    told: Tracks,
    /// No video before the publisher's first key frame.
    keyless: bool,
    /// The newest frame's time.
    video_dts: Option<i64>,
    recent: Recent,
    renditions: Vec<Rendition>,
    taps: Vec<Spout>,
    /// Other threads that serve viewers of this stream.
    replicas: Vec<Replica>,
    role: Role,
    figures: Figures,
    pub(super) counters: StreamCounters,
    pub(super) camera: Camera,
    /// Flush phases that have not seen the newest units.
    due: usize,
    /// When they are to be seen at the latest, where nothing is collected for a merge window.
    visit_at: Option<Instant>,
}

impl Source {
    pub(super) fn new(name: StreamName, keep: Keep, treatment: Treatment, camera: Camera, now: Instant) -> Self {
        Self {
            name,
            keep,
            generation: 0,
            publisher: None,
            gone_since: None,
            began: now,
            timeline: Timeline::default(),
            treatment,
            tracks: Tracks::default(),
            key_tracks: Tracks::default(),
            told: Tracks::default(),
            keyless: true,
            video_dts: None,
            recent: Recent::new(keep),
            renditions: Vec::new(),
            taps: Vec::new(),
            replicas: Vec::new(),
            role: Role::Home,
            figures: Figures::new(now),
            counters: StreamCounters::default(),
            camera,
            due: 0,
            visit_at: None,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.publisher.is_some()
    }

    // --- publishers ---

    /// A new publisher takes the stream; one that has it is asked to go.
    pub(super) fn publish(&mut self, origin: &Origin, since_us: i64, stop: CancellationToken) -> Generation {
        if let Some(before) = self.publisher.replace(Publisher { origin: origin.clone(), since_us, stop }) {
            before.stop.cancel();
            self.counters.takeovers += 1;
        }
        self.generation += 1;
        self.counters.publishers += 1;
        self.gone_since = None;
        self.timeline.restart();
        self.treatment.restart();
        self.tracks = Tracks::default();
        self.recent.restart();
        (self.keyless, self.video_dts) = (true, None);
        self.taps.iter_mut().for_each(|tap| tap.say(Tapped::Published));
        self.replicas.iter_mut().for_each(Replica::published);
        Generation(self.generation)
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    pub(super) fn is_current(&self, generation: Generation) -> bool {
        self.generation == generation.0 && self.publisher.is_some()
    }

    /// The publisher went; `false` when another has its place already.
    pub(super) fn unpublish(&mut self, generation: Generation, now: Instant) -> bool {
        let current = self.is_current(generation);
        if current {
            self.publisher = None;
            self.gone_since = Some(now);
            self.taps.iter_mut().for_each(|tap| tap.say(Tapped::Unpublished));
        }
        current
    }

    /// Asks the publisher to go.
    pub(super) fn stop_publisher(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.stop.cancel();
        }
    }

    /// What the publisher sent last came at this moment.
    pub(super) fn arrived(&mut self, at: Instant) {
        self.figures.arrived(at);
    }

    /// Takes a publisher's unit, for viewers that are visited in so many phases.
    pub(super) fn push(&mut self, mut unit: Unit, patience: &Patience, phases: usize) -> News {
        self.counters.bytes_in += unit.data.len() as u64;
        self.figures.bytes(unit.data.len());
        self.count(&unit);
        if self.keyless && unit.track == Track::Video && unit.kind == Kind::Delta {
            self.counters.keyless_frames += 1;
            return News::default();
        }
        let began = self.began;
        self.timeline.place(&mut unit, || (began.elapsed().as_micros() as i64).saturating_mul(9) / 100);
        if self.treatment.transcodes() && self.treatment.treats(&unit) {
            for tap in self.taps.iter_mut().filter(|tap| tap.plays_g711()) {
                tap.offer(Mark::Audio, &unit, &self.key_tracks);
            }
        }
        match self.treatment.treat(unit) {
            Treated::Passes(unit) | Treated::Becomes(Some(unit)) => self.put(unit, patience, phases),
            Treated::Becomes(None) => News::default(),
            Treated::LeftOut => {
                self.counters.audio_left_out += 1;
                News::default()
            }
        }
    }

    /// Takes a unit that is on the running time.
    pub(super) fn put(&mut self, unit: Unit, patience: &Patience, phases: usize) -> News {
        self.tracks.note(&unit);
        let told = self.told.note(&unit);
        if unit.kind == Kind::Config && told == Change::None {
            self.counters.repeated_configs += 1;
            return News::default();
        }
        self.spread(unit, told, patience, phases)
    }

    /// Gives a unit to all who want it.
    fn spread(&mut self, unit: Unit, told: Change, patience: &Patience, phases: usize) -> News {
        let mark = match (unit.track, unit.kind) {
            (Track::Data, _) | (_, Kind::Config) => Mark::Config,
            (Track::Video, Kind::Key) => Mark::Key,
            (Track::Video, Kind::Delta) => Mark::Video,
            (Track::Audio, _) => Mark::Audio,
        };
        if mark == Mark::Key {
            self.keyless = false;
            self.key_tracks = self.tracks.clone();
            self.figures.key(unit.dts_90k);
        } else if told == Change::New || !self.told.has_video() {
            // A track that came late is news to those who join at an older key frame too.
            self.key_tracks.note(&unit);
        }
        if mark == Mark::Key || told != Change::None {
            self.renditions.iter_mut().for_each(Rendition::tracks_changed);
        }
        let mut append = |rendition: &mut Rendition| rendition.append(&unit, mark, &self.key_tracks, patience);
        let mut renditions = self.renditions.iter_mut();
        let place = renditions.next().and_then(&mut append);
        for rendition in renditions {
            append(rendition);
        }
        let transcoded = unit.codec == Codec::Aac && self.treatment.transcodes();
        for tap in self.taps.iter_mut().filter(|tap| !(transcoded && tap.plays_g711())) {
            tap.offer(mark, &unit, &self.key_tracks);
        }
        if !self.replicas.is_empty() {
            self.replicas.iter_mut().for_each(|replica| replica.add(mark, &unit));
            self.tell_replicas();
        }
        let (track, dts_90k) = (unit.track, unit.dts_90k);
        // Last: where nobody watches, the unit is moved and its bytes are never shared.
        self.counters.gops_over_limit += u64::from(self.recent.push(mark, unit));
        if let Some(rendition) = self.renditions.first() {
            self.recent.follow(rendition.log(), self.recent.len().saturating_sub(1), place);
        }
        if track == Track::Video {
            self.video_dts = Some(dts_90k);
        }
        if !self.has_viewers() {
            return News::default();
        }
        let first = std::mem::replace(&mut self.due, phases) == 0;
        // Sound goes out with the picture that is about to come: a write a frame is enough.
        let near = |video: i64| (0..VIDEO_NEAR).contains(&dts_90k.saturating_sub(video));
        let waits = track == Track::Audio && self.video_dts.is_some_and(near);
        News { first, within: Some(if waits { SOUND_WAIT } else { Duration::ZERO }) }
    }

    fn count(&mut self, unit: &Unit) {
        match (unit.track, unit.kind) {
            (_, Kind::Config) | (Track::Data, _) => {}
            (Track::Video, _) => {
                self.counters.video_frames += 1;
                self.figures.video();
            }
            (Track::Audio, _) => self.counters.audio_frames += 1,
        }
    }

    // --- once a second ---

    /// Closes the second; gives up containers nobody watches. `true` when the stream itself is over.
    pub(super) fn sweep(&mut self, now: Instant, grace: Duration) -> bool {
        self.figures.turn(now);
        self.taps.retain(|tap| !tap.is_closed());
        self.counters.times_fixed = self.timeline.fixed;
        for rendition in &mut self.renditions {
            if rendition.viewers.is_empty() {
                rendition.idle_since.get_or_insert(now);
            }
        }
        let first = self.renditions.first().map(|rendition| rendition.container);
        self.renditions.retain(|r| r.idle_since.is_none_or(|since| now.duration_since(since) < IDLE_MAX));
        if first != self.renditions.first().map(|rendition| rendition.container) {
            self.recent.follow_anew();
        }
        let watched = !self.renditions.iter().all(|rendition| rendition.viewers.is_empty());
        if let Role::Replica { idle_since } = &mut self.role {
            *idle_since = if watched { None } else { idle_since.or(Some(now)) };
            return idle_since.is_some_and(|since| now.duration_since(since) >= spill::IDLE_MAX);
        }
        self.gone_since.is_some_and(|since| now.duration_since(since) >= grace)
    }

    pub(super) fn bits_per_second(&self) -> u64 {
        self.figures.bits_per_second()
    }

    pub(super) fn info(&self, thread: &str) -> StreamInfo {
        let kept: u64 = self.renditions.iter().map(Rendition::bytes).sum();
        StreamInfo {
            name: self.name.to_string(),
            live: self.is_live(),
            since_us: self.publisher.as_ref().map_or(0, |publisher| publisher.since_us),
            publisher: self.publisher.as_ref().and_then(|publisher| publisher.origin.peer()),
            origin: self.publisher.as_ref().and_then(|publisher| publisher.origin.name()),
            thread: thread.to_owned(),
            video: video_info(&self.tracks),
            audio: audio_info(&self.tracks),
            fps: if self.is_live() { self.figures.fps() } else { 0.0 },
            bits_per_second: if self.is_live() { self.figures.bits_per_second() } else { 0 },
            key_interval_ms: (self.figures.key_interval / 90) as u64,
            viewers: self.viewers(),
            viewers_elsewhere: 0,
            lag_ms: self.lag_ms(),
            kept_bytes: kept + self.recent.own_bytes(),
            counters: self.counters,
            taps: self.taps.iter().map(Spout::info).collect(),
        }
    }
}

fn video_info(tracks: &Tracks) -> Option<VideoInfo> {
    let codec = tracks.video_codec?;
    let picture = tracks.video.as_ref().and_then(Picture::of);
    let (width, height) = picture.map_or((0, 0), |picture| (picture.width, picture.height));
    Some(VideoInfo { codec: codec.name().to_owned(), width, height })
}

fn audio_info(tracks: &Tracks) -> Option<AudioInfo> {
    let codec = tracks.audio_codec?;
    let sound = Sound::of(codec, tracks.audio.as_ref());
    let (rate, channels) = sound.map_or((0, 0), |sound| (sound.rate, u32::from(sound.channels)));
    Some(AudioInfo { codec: codec.name().to_owned(), rate, channels })
}
