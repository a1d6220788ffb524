//! Looking at a store from outside, beside a running gateway or without one: the log's files are only read, nothing is
//! locked, repaired or made. What the gateway writes meanwhile may be seen or not.
//!
//! Must not be in here: what a record says, and the keyed state (one process alone can read it; cursors come from its copy).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use device_models::Class;
use device_models::wire::Template;

use super::disk::{Disk, RealDisk, read_all};
use super::keyed::full_key;
use super::recover::{SEGMENT_READ_MAX, read_epoch};
use super::repair::Checkup;
use super::segment::{self, HEADER, Kind, Name, Parsed};
use super::{BusError, cursors, export, index};

/// The log's files as they were listed.
#[derive(Debug)]
pub struct Survey {
    /// The store's epoch; `None` if its file is missing or damaged.
    pub epoch: Option<u64>,
    /// Whether a process holds the store.
    pub held: bool,
    /// Bytes left on its disk to an unprivileged process.
    pub free_bytes: u64,
    /// Files that a start has set aside.
    pub aside: Vec<PathBuf>,
    folder: PathBuf,
    segments: [VecDeque<(Name, u64)>; 4],
}

/// One class of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassSurvey {
    pub class: Class,
    pub segments: usize,
    pub bytes: u64,
    /// The first number kept, and the newest; `last` below `first`: none.
    pub first: u64,
    pub last: u64,
    /// When the oldest file was begun, microseconds since 1970 by the box's clock; `None`: unknown.
    pub begun_us: Option<i64>,
}

/// A reader's cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorSurvey {
    pub name: String,
    /// By class: everything up to here is done.
    pub through: [u64; 4],
    /// By class: first and last of what is done beyond.
    pub beyond: [Vec<(u64, u64)>; 4],
}

/// What stands in the log at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<'a> {
    Record {
        seq: u64,
        /// What it leans on.
        template: Option<&'a Template>,
        bytes: &'a [u8],
    },
    /// The numbers are not there; `damaged` where a file should have held them.
    Gap { first: u64, last: u64, reason: &'a str },
}

/// Takes what is found; may end the walk.
type Each<'a> = &'a mut dyn FnMut(Stored<'_>) -> ControlFlow<()>;

// === impl Survey ===

impl Survey {
    /// Lists the store in `path` (`store.path`).
    pub fn open(path: &Path) -> Result<Self, BusError> {
        let folder = path.join("log");
        let mut survey = Self {
            epoch: read_epoch(&RealDisk, &folder),
            held: is_held(&path.join("lock")),
            free_bytes: RealDisk.free(path).unwrap_or(0),
            aside: Vec::new(),
            segments: Default::default(),
            folder,
        };
        let listed = RealDisk.list(&survey.folder);
        for (file, len) in listed.map_err(|error| BusError::Open { path: survey.folder.clone(), error })? {
            match Name::parse(&file) {
                Some(name) => survey.segments[index(name.class)].push_back((name, len)),
                None if file.strip_suffix(".bad").is_some() => survey.aside.push(survey.folder.join(file)),
                None => {}
            }
        }
        for segments in &mut survey.segments {
            segments.make_contiguous().sort_by_key(|(name, _)| name.first);
        }
        survey.aside.sort();
        Ok(survey)
    }

    /// The readers' cursors and when they were noted, from the rescue copy of the keyed state: written at a clean stop and
    /// at most every 5 minutes. `None` without one.
    pub fn cursors(&self) -> Option<(SystemTime, Vec<CursorSurvey>)> {
        let path = self.folder.parent()?.join("sled.export");
        let noted = std::fs::metadata(&path).and_then(|data| data.modified()).ok()?;
        let tree = full_key(cursors::TREE, b"").ok()?;
        let mut found = Vec::new();
        let mut each = |key: &[u8], value: &[u8]| {
            if let (Some(name), Some((epoch, passed))) = (key.strip_prefix(&*tree), cursors::decode_cursor(value))
                && Some(epoch) == self.epoch
            {
                found.push(CursorSurvey {
                    name: String::from_utf8_lossy(name).into_owned(),
                    through: std::array::from_fn(|at| passed[at].through),
                    beyond: std::array::from_fn(|at| passed[at].spans().to_vec()),
                });
            }
            Ok(())
        };
        export::read(&RealDisk, &path, &mut each).ok()?.then_some((noted, found))
    }

    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().flatten().map(|(_, len)| len).sum()
    }

    /// What there is of a class. Reads its newest file.
    pub fn class(&self, class: Class) -> Result<ClassSurvey, BusError> {
        let segments = &self.segments[index(class)];
        let first = segments.front().map_or(1, |(name, _)| name.first);
        let mut last = segments.back().map_or(0, |(name, _)| name.first - 1);
        if let Some((name, _)) = segments.back() {
            self.walk(name, None, &mut |stored| {
                last = stored.last().max(last);
                ControlFlow::Continue(())
            })?;
        }
        let begun_us = segments.front().and_then(|(name, _)| {
            let mut header = [0; HEADER];
            let file = RealDisk.open(&self.folder.join(name.file())).ok()?;
            let read = file.read_at(0, &mut header).ok()?;
            name.read_header(header.get(..read)?).map(|header| header.begun_us).filter(|begun| *begun > 0)
        });
        let bytes = segments.iter().map(|(_, len)| len).sum();
        Ok(ClassSurvey { class, segments: segments.len(), bytes, first, last, begun_us })
    }

    /// Everything of a class from a number on, in order. `file_done` is told the bytes of each file that is read through.
    pub fn scan(
        &self,
        class: Class,
        from: u64,
        each: Each<'_>,
        file_done: &mut dyn FnMut(u64),
    ) -> Result<(), BusError> {
        let segments = &self.segments[index(class)];
        let nexts = segments.iter().skip(1).map(|(name, _)| Some(name.first)).chain([None]);
        for ((name, len), next) in segments.iter().zip(nexts) {
            if next.is_none_or(|next| next > from) {
                let mut ended = false;
                self.walk(name, next, &mut |stored| {
                    let flow = if stored.last() < from { ControlFlow::Continue(()) } else { each(stored) };
                    ended = flow.is_break();
                    flow
                })?;
                if ended {
                    return Ok(());
                }
            }
            file_done(*len);
        }
        Ok(())
    }

    /// Reads every file from end to end, and changes nothing. `done` is told the bytes of each.
    pub fn check(&self, done: &mut dyn FnMut(u64)) -> Result<Checkup, BusError> {
        Checkup::of(&self.folder, self.segments.each_ref().map(|segments| segments.iter().copied().collect()), done)
    }

    /// The number from which on a class has about `count` records: where a look at the newest starts.
    pub fn newest(&self, class: Class, count: usize) -> Result<u64, BusError> {
        let mut missing = count;
        for (name, _) in self.segments[index(class)].iter().rev() {
            let mut seqs = Vec::new();
            self.walk(name, None, &mut |stored| {
                if let Stored::Record { seq, .. } = stored {
                    seqs.push(seq);
                }
                ControlFlow::Continue(())
            })?;
            if let Some(seq) = seqs.len().checked_sub(missing).and_then(|at| seqs.get(at)) {
                return Ok(*seq);
            }
            missing -= seqs.len();
        }
        Ok(1)
    }

    /// One file, frame by frame. `next`: the first number of the file behind it. A file that went meanwhile has nothing.
    fn walk(&self, name: &Name, next: Option<u64>, each: Each<'_>) -> Result<(), BusError> {
        let path = self.folder.join(name.file());
        let bytes = match read_all(&RealDisk, &path, SEGMENT_READ_MAX) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(BusError::Read { path, error }),
        };
        let (mut at, mut seq) = (HEADER, name.first);
        let mut templates = HashMap::new();
        loop {
            match segment::parse(name.seed(), &bytes, at) {
                Parsed::Frame(frame) => {
                    at = frame.end;
                    if let Kind::Template(label) = frame.kind {
                        templates.insert(label, Template { label, bytes: bytes.slice(frame.payload) });
                        continue;
                    }
                    if frame.seq > seq && each(Stored::damaged(seq, frame.seq - 1)).is_break() {
                        return Ok(());
                    }
                    if frame.seq < seq {
                        continue;
                    }
                    let payload = bytes.get(frame.payload).unwrap_or_default();
                    let stored = match (frame.kind, segment::parse_gap(payload)) {
                        (Kind::Gap, Some((last, reason))) => Stored::Gap { first: frame.seq, last, reason },
                        (Kind::Record(Some(label)), _) if !templates.contains_key(&label) => {
                            Stored::damaged(frame.seq, frame.seq)
                        }
                        (Kind::Record(label), _) => {
                            let template = label.and_then(|label| templates.get(&label));
                            Stored::Record { seq: frame.seq, template, bytes: payload }
                        }
                        _ => Stored::damaged(frame.seq, frame.seq),
                    };
                    seq = stored.last() + 1;
                    if each(stored).is_break() {
                        return Ok(());
                    }
                }
                Parsed::Short(_) | Parsed::Bad => {
                    let seqs = seq..next.unwrap_or(1 << 62);
                    match segment::resync(name.seed(), &bytes, at + 1..bytes.len(), &seqs) {
                        Some(good) => at = good,
                        None => break,
                    }
                }
            }
        }
        match next.map(|next| next - 1).filter(|last| *last >= seq) {
            Some(last) if each(Stored::damaged(seq, last)).is_break() => Ok(()),
            _ => Ok(()),
        }
    }
}

// === impl Stored ===

impl Stored<'_> {
    /// The highest number it covers.
    pub const fn last(&self) -> u64 {
        match self {
            Self::Record { seq, .. } => *seq,
            Self::Gap { last, .. } => *last,
        }
    }

    const fn damaged(first: u64, last: u64) -> Self {
        Self::Gap { first, last, reason: "damaged" }
    }
}

/// Whether a process holds the store: its lock is tried, and let go at once.
fn is_held(lock: &Path) -> bool {
    let Ok(file) = std::fs::File::open(lock) else { return false };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}
