//! Streams kept on disk by rule: one task a stream and rule cuts files at key frames (here), `encode.rs` packs them,
//! `preroll.rs` has what an alarm finds recorded, `writer.rs` is the one thread that touches the disk, `shelf.rs` knows what is there, `whole.rs` what of a torn file is
//! good. What is on its way to the disk is bounded in bytes: behind a disk that is too slow the recording leaves out up to
//! the next key frame, and says so; the stream never waits.
//!
//! Must not be in here: why a recording is wanted (`outlet/`), HTTP (`admin/`).

mod encode;
mod preroll;
mod shelf;
mod whole;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use device_models::Value;
use protocols::media::{Change, Kind, StreamName, Track, Tracks, Unit};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::encode::Encoder;
use self::preroll::Preroll;
pub(crate) use self::preroll::SECONDS_MAX as PREROLL_MAX;
pub use self::shelf::Recording;
use self::shelf::Shelf;
use self::writer::{Piece, Writer};
use crate::config::{self, When};
use crate::hooks::Hooks;
use crate::outlet::{Demand, Means, Reason, Voice, chosen};
use crate::stream::{Tap, TapKind, TapRules, Tapped};
use crate::threads::{self, Tasks};

/// Pieces on their way to the disk, and bytes of one recording: some seconds of a slow disk.
const PIECES_MAX: usize = 256;
const QUEUED_MAX: u64 = 8 * 1024 * 1024;

/// Units that may wait in a tap.
const UNITS_MAX: usize = 1_024;

/// Between tries to open a tap.
const AGAIN: Duration = Duration::from_millis(500);

/// Time the writer has to end.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Ticks of the media clock in a second.
const CLOCK_HZ: i64 = 90_000;

/// A rule, and where its recordings are.
#[derive(Debug)]
pub(crate) struct Rule {
    config: config::Record,
    root: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordState {
    /// Nothing asks for it.
    #[default]
    Idle,
    Recording,
    /// It is wanted, and the disk does not take it.
    Paused,
}

impl RecordState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Recording => "recording",
            Self::Paused => "paused",
        }
    }
}

/// One rule of one stream, for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RecordInfo {
    pub rule: String,
    pub state: RecordState,
    /// Why it runs.
    pub reason: Option<String>,
    /// Why it does not, though it should.
    pub error: Option<String>,
    /// Since the stream began.
    pub bytes: u64,
    pub writes: u64,
    /// Units left out: the disk was too slow or full.
    pub skipped: u64,
    /// Recordings removed to make room.
    pub removed: u64,
}

impl RecordInfo {
    pub fn is_recording(&self) -> bool {
        self.state == RecordState::Recording
    }
}

/// What a recording says of itself, and what its writer says to it.
#[derive(Debug, Default)]
pub(crate) struct Board {
    info: Mutex<RecordInfo>,
    bytes: AtomicU64,
    writes: AtomicU64,
    skipped: AtomicU64,
    removed: AtomicU64,
    queued: AtomicU64,
    restart: AtomicBool,
}

impl Board {
    pub(crate) fn info(&self) -> RecordInfo {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, writes) = (of(&self.bytes), of(&self.writes));
        let (skipped, removed) = (of(&self.skipped), of(&self.removed));
        RecordInfo { bytes, writes, skipped, removed, ..self.lock().clone() }
    }

    fn lock(&self) -> MutexGuard<'_, RecordInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn removed(&self, count: u64) {
        self.removed.fetch_add(count, Ordering::Relaxed);
    }

    /// A piece left the queue.
    fn settled(&self, bytes: u64) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// `true` when it was not paused before.
    fn pause(&self, why: &str) -> bool {
        let mut info = self.lock();
        info.error = Some(why.to_owned());
        std::mem::replace(&mut info.state, RecordState::Paused) != RecordState::Paused
    }

    /// `true` when it was paused.
    fn resume(&self) -> bool {
        let mut info = self.lock();
        info.error = None;
        std::mem::replace(&mut info.state, RecordState::Recording) == RecordState::Paused
    }

    /// There is space again: a new file may begin.
    fn restart(&self) {
        self.restart.store(true, Ordering::Relaxed);
    }

    fn say(&self, state: RecordState, reason: Option<&Reason>) {
        let mut info = self.lock();
        (info.state, info.reason, info.error) = (state, reason.map(ToString::to_string), None);
    }
}

/// All recordings: the rules, the writer, and what is on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    rules: Arc<[Arc<Rule>]>,
    /// `None` is the end.
    pieces: mpsc::Sender<Option<Piece>>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
    shelf: Shelf,
    files: Arc<AtomicU64>,
}

/// Who is told what becomes of recordings.
#[derive(Debug)]
pub(crate) struct Tell {
    /// Events and properties of the camera.
    pub voice: Voice,
    /// `on_record`, when a file is complete.
    pub hooks: Hooks,
}

impl Recorder {
    /// Starts the writer; nothing without a rule.
    pub(crate) fn start(records: &[config::Record], store: &Path, tell: Tell) -> io::Result<Option<Self>> {
        if records.is_empty() {
            return Ok(None);
        }
        let root = |record: &config::Record| record.path.clone().unwrap_or_else(|| store.join("recordings"));
        let rules: Arc<[_]> =
            records.iter().map(|record| Arc::new(Rule { root: root(record), config: record.clone() })).collect();
        let (pieces, incoming) = mpsc::channel(PIECES_MAX);
        let shelf = Shelf::default();
        let (writer, known) = (Writer::new(shelf.clone(), tell), rules.clone());
        let writer = threads::thread("sg-record", move || writer.run(&known, incoming))?;
        let writer = Arc::new(Mutex::new(Some(writer)));
        Ok(Some(Self { rules, pieces, writer, shelf, files: Arc::default() }))
    }

    /// Writes what waits and ends. Behind the tasks of the recordings, which hand over their last pieces.
    pub(crate) async fn close(&self, tasks: &Tasks) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        let ended = async {
            // A writer that is gone needs no end.
            let _gone = self.pieces.send(None).await;
            tasks.blocking(move || writer.join().is_ok()).await
        };
        if !matches!(tokio::time::timeout(CLOSE_MAX, ended).await, Ok(Ok(true))) {
            warn!("recordings were not written to their end within {CLOSE_MAX:?}: the next start makes them whole");
        }
    }

    pub(crate) fn has_alarms(&self) -> bool {
        self.rules.iter().any(|rule| rule.config.when == When::Alarm)
    }

    /// Recordings, newest first: of one stream or all, that have anything between the two times (microseconds since 1970
    /// UTC).
    pub fn list(&self, stream: Option<&str>, from_us: i64, to_us: i64, count_max: usize) -> Vec<Recording> {
        let all = self.shelf.lock();
        let end_us = |r: &Recording| r.start_us.saturating_add(i64::try_from(r.duration_ms).unwrap_or(0) * 1000);
        let wanted = all.values().rev().filter(|r| stream.is_none_or(|stream| *r.stream == *stream));
        wanted.filter(|r| r.start_us <= to_us && end_us(r) >= from_us).take(count_max).cloned().collect()
    }

    pub fn find(&self, id: u64) -> Option<Recording> {
        self.shelf.lock().get(&id).cloned()
    }

    /// Removes a recording that is complete; `false` while it is being written, or when there is none.
    pub fn remove(&self, id: u64) -> bool {
        let mut all = self.shelf.lock();
        let Some(recording) = all.get(&id).filter(|recording| !recording.open).cloned() else { return false };
        all.remove(&id);
        drop(all);
        writer::remove(&recording.path);
        true
    }

    /// Each rule's name, its recordings, and their bytes.
    pub fn kept(&self) -> Vec<(String, u64, u64)> {
        let all = self.shelf.lock();
        let of = |rule: &Arc<Rule>| {
            let own = all.values().filter(|r| *r.rule == *rule.config.name);
            let (count, bytes) = own.fold((0, 0), |(count, bytes), r| (count + 1, bytes + r.bytes));
            (rule.config.name.clone(), count, bytes)
        };
        self.rules.iter().map(of).collect()
    }

    /// Starts the recordings of one stream.
    pub(crate) fn open(
        &self,
        stream: &StreamName,
        means: &Means,
        stop: &CancellationToken,
    ) -> Vec<(Demand, Arc<[config::AlarmEvent]>, Arc<Board>)> {
        let rules = self.rules.iter().filter(|rule| chosen(&rule.config.stream, stream.as_str()));
        let open = |rule: &Arc<Rule>| {
            let demand = Demand::new(rule.config.when, Duration::from_secs(rule.config.hold_seconds));
            let board = Arc::new(Board::default());
            board.lock().rule.clone_from(&rule.config.name);
            let task = Task {
                stream: stream.clone(),
                rule: rule.clone(),
                recorder: self.clone(),
                demand: demand.clone(),
                board: board.clone(),
                means: means.clone(),
                stop: stop.clone(),
                tracks: Tracks::default(),
                file: None,
            };
            means.tasks.spawn("record", task.run());
            (demand, Arc::from(rule.config.alarms.as_slice()), board)
        };
        rules.map(open).collect()
    }
}

/// One stream on its way to disk by one rule.
struct Task {
    stream: StreamName,
    rule: Arc<Rule>,
    recorder: Recorder,
    demand: Demand,
    board: Arc<Board>,
    means: Means,
    stop: CancellationToken,
    tracks: Tracks,
    file: Option<OpenFile>,
}

/// The file that is being made.
struct OpenFile {
    number: u64,
    encoder: Encoder,
    flushed_90k: i64,
    /// Nothing of it was handed over yet.
    first: bool,
}

impl Task {
    async fn run(mut self) {
        let mut preroll =
            Preroll::new(if self.rule.config.when == When::Alarm { self.rule.config.preroll_seconds } else { 0 });
        while !self.is_gone() {
            self.board.say(RecordState::Idle, None);
            let reason = tokio::select! {
                reason = self.demand.wanted() => reason,
                () = preroll.keep(&self.means.streams, &self.stream) => return,
                () = gone(&self.stop, &self.means) => return,
            };
            self.record(&reason, preroll.take()).await;
            self.finish();
        }
    }

    fn is_gone(&self) -> bool {
        self.stop.is_cancelled() || self.means.tasks.is_stopping()
    }

    /// Until it is no longer wanted, or the stream is gone.
    async fn record(&mut self, reason: &Reason, kept: Option<(Tap, Vec<Unit>)>) {
        let (mut tap, before) = match kept {
            Some(kept) => kept,
            None => match self.means.streams.tap(&self.stream, rules()).await {
                Ok(tap) => (tap, Vec::new()),
                Err(refusal) => {
                    debug!(stream = %self.stream, %refusal, "nothing to record");
                    return tokio::time::sleep(AGAIN).await;
                }
            },
        };
        info!(stream = %self.stream, rule = self.rule.config.name, %reason, "recording");
        self.board.say(RecordState::Recording, Some(reason));
        self.tracks = Tracks::default();
        for unit in &before {
            self.take(unit);
        }
        loop {
            let demand = self.demand.clone();
            let tapped = tokio::select! {
                biased;
                tapped = tap.next() => tapped,
                () = demand.unwanted() => return,
                () = gone(&self.stop, &self.means) => return,
            };
            match tapped {
                Some(Tapped::Unit(unit)) => self.take(&unit),
                Some(Tapped::Skipped { units, .. }) => self.gap(units, "the recorder was too slow"),
                Some(Tapped::Unpublished) => self.finish(),
                Some(Tapped::Published) => {}
                None => return,
            }
        }
    }

    fn take(&mut self, unit: &Unit) {
        let change = self.tracks.note(unit);
        if unit.kind == Kind::Config {
            // A decoder is told at the beginning of a file.
            if change != Change::None && unit.track != Track::Data {
                self.finish();
            }
            return;
        }
        let starts = unit.kind == Kind::Key && (unit.track == Track::Video || !self.tracks.has_video());
        let segment_90k = self.rule.config.segment_seconds as i64 * CLOCK_HZ;
        let full = self.file.as_ref().is_some_and(|file| file.encoder.span_90k() >= segment_90k);
        if starts && (full || self.board.restart.swap(false, Ordering::Relaxed)) {
            self.finish();
        }
        if self.file.is_none() && starts {
            self.begin(unit);
        }
        let Some(file) = &mut self.file else { return };
        file.encoder.push(unit);
        let due = file.flushed_90k + self.rule.config.flush_seconds as i64 * CLOCK_HZ;
        if file.encoder.span_90k() >= due {
            self.hand_over(false);
        }
    }

    fn begin(&mut self, unit: &Unit) {
        let Some(encoder) = Encoder::begin(self.rule.config.format, &self.tracks, unit) else {
            self.board.pause("the format has no place for the stream's codecs");
            return;
        };
        let number = self.recorder.files.fetch_add(1, Ordering::Relaxed);
        self.file = Some(OpenFile { number, encoder, flushed_90k: 0, first: true });
    }

    /// Ends the file, if there is one.
    fn finish(&mut self) {
        if self.file.is_some() {
            self.hand_over(true);
        }
        self.file = None;
    }

    fn hand_over(&mut self, last: bool) {
        let Some(file) = &mut self.file else { return };
        let bytes = file.encoder.piece(last);
        if bytes.is_empty() && !last {
            return;
        }
        file.flushed_90k = file.encoder.span_90k();
        let len = bytes.len() as u64;
        let piece = Piece {
            file: file.number,
            rule: self.rule.clone(),
            stream: self.stream.clone(),
            board: self.board.clone(),
            bytes,
            duration_ms: (file.flushed_90k / 90) as u64,
            first: std::mem::take(&mut file.first),
            last,
        };
        let queued = self.board.queued.fetch_add(len, Ordering::Relaxed);
        if queued + len > QUEUED_MAX || self.recorder.pieces.try_send(Some(piece)).is_err() {
            self.board.queued.fetch_sub(len, Ordering::Relaxed);
            self.file = None;
            self.gap(1, "the disk was too slow");
        }
    }

    /// Something is not in the recording; the next file begins at a key frame.
    fn gap(&mut self, units: u64, why: &str) {
        self.board.skipped.fetch_add(units, Ordering::Relaxed);
        let data = vec![
            ("rule", Value::Text(self.rule.config.name.clone())),
            ("units", Value::Int(units as i64)),
            ("reason", Value::Text(why.to_owned())),
        ];
        self.means.voice.event_with(self.stream.as_str(), "recordGap", data);
        self.finish();
    }
}

fn rules() -> TapRules {
    TapRules { kind: TapKind::Record, units_max: UNITS_MAX, bytes_max: QUEUED_MAX }
}

async fn gone(stop: &CancellationToken, means: &Means) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = means.tasks.stopping() => {}
    }
}
