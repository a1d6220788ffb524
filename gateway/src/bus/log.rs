//! The set of segment files: appending to the active one of each class, and rolling.
//!
//! [`Log`] belongs to the writer thread alone; readers see the [`Table`] it publishes, never a byte that is not durable.
//! Must not be in here: when to commit (`commit.rs`), what goes when (`evict.rs`), what a start finds (`recover.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use device_models::Class;
use device_models::wire::Template;
use tracing::{debug, warn};

use super::ages::Ages;
use super::disk::{Disk, DiskFile, is_full};
use super::figures::Figures;
use super::segment::{self, HEADER, Name};
use super::{Lock, index};
use crate::clock;

/// Segments let go of for one batch on a full disk, before the batch is given up.
const EVICTIONS_MAX: usize = 8;
/// Reasons of losses kept for readers that come later, by class; older ones take the next one's reason.
const GONE_MAX: usize = 16;
/// Losses that wait to be told to the control class: the disk has refused writes all the while.
const UNSAID_MAX: usize = 1024;
/// A batch of at most so many bytes has zeros written behind it, so far ahead: what comes then changes no file's length,
/// and a commit is a block or two of data without the four or five of the file system's journal.
const SMALL: usize = 8 * 1024;
static AHEAD: [u8; 128 * 1024] = [0; 128 * 1024];

/// Limits, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub segment: u64,
    pub cap: u64,
    pub free_min: u64,
    /// By class: what of all bytes it keeps while others have more than theirs, percent, together at most 100.
    pub share_percent: [u64; 4],
    /// By class: seconds after which a record goes; 0: never.
    pub ttl_seconds: [u64; 4],
}

/// One segment file as readers may see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub name: Name,
    /// Durable bytes, header included.
    pub len: u64,
    /// Highest durable number; `name.first - 1` while there is none.
    pub last: u64,
    /// Nothing is appended any more.
    pub sealed: bool,
}

/// The segments of each class, oldest first.
#[derive(Debug)]
pub(super) struct Table {
    pub classes: [VecDeque<Segment>; 4],
    pub ages: Ages,
    /// By class: the last number of what was let go of, and why; the newest few.
    gone: [VecDeque<(u64, &'static str)>; 4],
}

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Files {
    pub disk: Arc<dyn Disk>,
    pub folder: PathBuf,
    pub table: Lock<Table>,
    /// Segments let go of before every reader had read them.
    pub evicted: AtomicU64,
    /// Numbers found damaged on reading.
    pub corrupt: AtomicU64,
    pub figures: Figures,
}

/// Numbers that will never be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    pub class: Class,
    pub first: u64,
    pub last: u64,
    pub reason: &'static str,
}

/// The writer's side of the log.
#[derive(Debug)]
pub(super) struct Log {
    pub files: Arc<Files>,
    pub epoch: u64,
    pub limits: Limits,
    pub active: [Option<Box<dyn DiskFile>>; 4],
    /// By class: length of the active segment's file; behind its last record are zeros.
    pub lengths: [u64; 4],
    /// By class: labels of the templates in the active segment. One of a batch that is not in there goes in front of it, so
    /// that no segment needs another.
    pub templates: [BTreeSet<u64>; 4],
    /// Numbers that a marker has to name before the next record of the class.
    pub unmarked: [Option<Loss>; 4],
    /// Losses that the control class has not been told of. Bounded: each class's neighbours with one reason merge.
    pub unsaid: Vec<Loss>,
    /// Per class the number up to which every reader has (durably) passed.
    pub passed: [u64; 4],
}

/// Frames of one class, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub first: u64,
    pub last: u64,
    pub bytes: Vec<u8>,
    /// What its records lean on, by label.
    pub templates: BTreeMap<u64, Bytes>,
}

// === impl Table ===

impl Table {
    pub(super) fn new() -> Self {
        Self { classes: Default::default(), ages: Ages::new(), gone: Default::default() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.classes.iter().flatten().map(|segment| segment.len).sum()
    }

    pub(super) fn class_bytes(&self, class: Class) -> u64 {
        self.class(class).iter().map(|segment| segment.len).sum()
    }

    pub(super) fn class(&self, class: Class) -> &VecDeque<Segment> {
        &self.classes[index(class)]
    }

    pub(super) fn class_mut(&mut self, class: Class) -> &mut VecDeque<Segment> {
        &mut self.classes[index(class)]
    }

    /// Notes that the class's numbers up to `last` were let go of.
    pub(super) fn let_go(&mut self, class: Class, last: u64, reason: &'static str) {
        let gone = &mut self.gone[index(class)];
        match gone.back_mut() {
            Some(newest) if newest.1 == reason => newest.0 = last,
            _ => gone.push_back((last, reason)),
        }
        if gone.len() > GONE_MAX {
            gone.pop_front();
        }
    }

    /// Why a number below the oldest is gone, and up to which number that holds. What a start does not know any more went
    /// at the cap, as nearly all does.
    pub(super) fn why_gone(&self, class: Class, seq: u64) -> (u64, &'static str) {
        let gone = &self.gone[index(class)];
        gone.iter().find(|(last, _)| *last >= seq).copied().unwrap_or((u64::MAX, "cap"))
    }

    /// The oldest number that can still be read (the next one, when there is none).
    pub(super) fn oldest(&self, class: Class) -> u64 {
        self.class(class).front().map_or(1, |segment| segment.name.first)
    }
}

// === impl Files ===

impl Files {
    pub(super) fn path(&self, name: &Name) -> PathBuf {
        self.folder.join(name.file())
    }
}

// === impl Log ===

impl Log {
    /// Writes a class's batch (or only its pending marker) and makes it durable. Returns the highest number that is on
    /// disk then. On an error nothing of it counts.
    pub(super) fn write(&mut self, class: Class, batch: Option<&Batch>) -> io::Result<u64> {
        let mark = self.unmarked[index(class)].clone();
        let joined;
        let (first, last, bytes) = match (&mark, batch) {
            (None, None) => return Ok(self.files.table.lock().class(class).back().map_or(0, |segment| segment.last)),
            (None, Some(batch)) => (batch.first, batch.last, &batch.bytes),
            (Some(loss), batch) => {
                let mut bytes = Vec::new();
                segment::push_gap(&mut bytes, segment::seed(self.epoch), loss.first, loss.last, loss.reason);
                bytes.extend_from_slice(batch.map_or(&[], |batch| &batch.bytes));
                joined = bytes;
                (loss.first, batch.map_or(loss.last, |batch| batch.last), &joined)
            }
        };
        let none = BTreeMap::new();
        let templates = batch.map_or(&none, |batch| &batch.templates);
        let lead: usize = templates.values().map(|bytes| segment::record_len(Some(0), bytes)).sum();
        self.make_room((lead + bytes.len()) as u64);
        let mut evictions = 0;
        loop {
            match self.append(class, first, last, bytes, templates) {
                Ok(()) => break,
                Err(error) => {
                    self.seal(class);
                    evictions += 1;
                    if !is_full(&error) || evictions > EVICTIONS_MAX || !self.evict("disk-full") {
                        return Err(error);
                    }
                }
            }
        }
        self.unmarked[index(class)] = None;
        Ok(last)
    }

    /// Whether a loss still has to be marked or said.
    pub(super) fn owes(&self) -> bool {
        !self.unsaid.is_empty() || self.unmarked.iter().any(Option::is_some)
    }

    /// Notes that numbers are gone: a marker will name them in their class, a gap record in the control class.
    pub(super) fn lose(&mut self, loss: Loss) {
        let slot = &mut self.unmarked[index(loss.class)];
        match slot {
            Some(old) => old.last = old.last.max(loss.last),
            None => *slot = Some(loss.clone()),
        }
        self.say(loss);
    }

    /// The first number of each class's newest segment: what a start needs to know if that file is lost.
    pub(super) fn marks(&self) -> [u64; 4] {
        let table = self.files.table.lock();
        Class::ALL.map(|class| table.class(class).back().map_or(0, |segment| segment.name.first))
    }

    /// By class the last number of the oldest segment if that is full; `u64::MAX`: it is not.
    pub(super) fn sealed(&self) -> [u64; 4] {
        let table = self.files.table.lock();
        let front = |class| table.class(class).front().filter(|segment| segment.sealed);
        Class::ALL.map(|class| front(class).map_or(u64::MAX, |segment| segment.last))
    }

    fn append(
        &mut self,
        class: Class,
        first: u64,
        last: u64,
        bytes: &[u8],
        templates: &BTreeMap<u64, Bytes>,
    ) -> io::Result<()> {
        let back = self.files.table.lock().class(class).back().copied();
        let mut lead = self.lead(class, first, templates);
        let room = back.is_some_and(|segment| {
            segment.len == HEADER as u64 || segment.len + (lead.len() + bytes.len()) as u64 <= self.limits.segment
        });
        if self.active[index(class)].is_none() || !room {
            self.roll(class, first)?;
            lead = self.lead(class, first, templates);
        }
        let Some(file) = &self.active[index(class)] else {
            return Err(io::Error::other("no active segment"));
        };
        let offset = self.files.table.lock().class(class).back().map_or(HEADER as u64, |segment| segment.len);
        if !lead.is_empty() {
            file.write_at(offset, &lead)?;
        }
        file.write_at(offset + lead.len() as u64, bytes)?;
        let end = offset + (lead.len() + bytes.len()) as u64;
        let length = self.lengths[index(class)];
        let length = if end <= length { length } else { ahead(&**file, end, bytes.len(), self.limits.segment) };
        file.sync()?;
        self.lengths[index(class)] = length;
        self.templates[index(class)].extend(templates.keys());
        let mut table = self.files.table.lock();
        if let Some(segment) = table.class_mut(class).back_mut() {
            segment.len = end;
            segment.last = last;
        }
        let now = table.ages.now();
        table.ages.note(class, first, last, now);
        Ok(())
    }

    /// Frames of the templates that the active segment lacks.
    fn lead(&self, class: Class, first: u64, templates: &BTreeMap<u64, Bytes>) -> Vec<u8> {
        let mut lead = Vec::new();
        let lacking = templates.iter().filter(|(label, _)| !self.templates[index(class)].contains(*label));
        for (label, bytes) in lacking {
            let template = Template { label: *label, bytes: Bytes::clone(bytes) };
            segment::push_template(&mut lead, segment::seed(self.epoch), first, &template);
        }
        lead
    }

    /// Starts the class's next segment. Header and folder entry are durable before the first record can be.
    pub(super) fn roll(&mut self, class: Class, first: u64) -> io::Result<()> {
        self.seal(class);
        let name = Name { class, epoch: self.epoch, first };
        let path = self.files.path(&name);
        let created = create(&*self.files.disk, &self.files.folder, &path, &name);
        let file = match created {
            Ok(file) => file,
            Err(error) => {
                // Half a file would only be found empty at the next start.
                if let Err(error) = self.files.disk.remove(&path) {
                    debug!(%error, "cannot remove an unfinished segment");
                }
                return Err(error);
            }
        };
        self.active[index(class)] = Some(file);
        self.lengths[index(class)] = HEADER as u64;
        self.templates[index(class)].clear();
        let segment = Segment { name, len: HEADER as u64, last: first - 1, sealed: false };
        let mut table = self.files.table.lock();
        let segments = table.class_mut(class);
        // A sealed segment without a record gives its name to the new one.
        segments.retain(|old| old.name != name);
        segments.push_back(segment);
        Ok(())
    }

    /// Ends the active segment at its last durable byte. One without records stays: it is written again.
    fn seal(&mut self, class: Class) {
        let Some(file) = self.active[index(class)].take() else { return };
        let mut table = self.files.table.lock();
        let Some(segment) = table.class_mut(class).back_mut() else { return };
        if segment.len == HEADER as u64 {
            self.active[index(class)] = Some(file);
            return;
        }
        segment.sealed = true;
        // What lies behind never counted; if it cannot be cut off, its numbers are found named by the next marker.
        if let Err(error) = file.set_len(segment.len) {
            debug!(%error, file = %segment.name.file(), "cannot cut a segment at its end");
        }
    }

    /// Cuts the zeros off: the log is at its end.
    pub(super) fn trim(&mut self) {
        for class in Class::ALL {
            let len = self.files.table.lock().class(class).back().map(|segment| segment.len);
            if let (Some(file), Some(len)) = (&self.active[index(class)], len)
                && len < self.lengths[index(class)]
                && let Err(error) = file.set_len(len).and_then(|()| file.sync())
            {
                debug!(%error, class = class.topic(), "zeros stay behind a segment's last record");
            }
        }
    }

    /// Looks at the disk's free space, and notes it.
    pub(super) fn free(&self) -> Option<u64> {
        let free = self.files.disk.free(&self.files.folder).ok()?;
        self.files.figures.free(free);
        Some(free)
    }

    /// What of a loss not every reader has passed.
    pub(super) fn unread(&self, loss: Loss) -> Option<Loss> {
        let first = loss.first.max(self.passed[index(loss.class)] + 1);
        (first <= loss.last).then_some(Loss { first, ..loss })
    }

    /// Names numbers below the oldest that a start cannot tell to have been named before. `restored`: the cursors are of a
    /// rescue copy, so that some may have been delivered.
    pub(super) fn tell_again(&mut self, class: Class, first: u64, last: u64, reason: &'static str) {
        self.files.table.lock().let_go(class, last, reason);
        self.say(Loss { class, first, last, reason });
    }

    /// Notes a loss for the control class.
    pub(super) fn say(&mut self, loss: Loss) {
        self.files.figures.dropped(loss.reason, loss.last - loss.first + 1);
        let room = self.unsaid.len() < UNSAID_MAX;
        let neighbour = self.unsaid.iter_mut().find(|old| {
            old.class == loss.class && old.reason == loss.reason && old.last.checked_add(1) == Some(loss.first)
        });
        match neighbour {
            Some(old) => old.last = loss.last,
            None if room => self.unsaid.push(loss),
            None => warn!(?loss, "too many losses wait to be told; this one is named in its own class only"),
        }
    }
}

/// Writes zeros behind the file's end if the batch there was a small one. Returns the file's length; a disk that has no
/// room for zeros costs nothing but their use.
fn ahead(file: &dyn DiskFile, end: u64, batch: usize, segment: u64) -> u64 {
    let room = usize::try_from(segment.saturating_sub(end)).unwrap_or(0).min(AHEAD.len());
    match AHEAD.get(..room) {
        Some(zeros) if batch <= SMALL && file.write_at(end, zeros).is_ok() => end + room as u64,
        _ => end,
    }
}

fn create(disk: &dyn Disk, folder: &Path, path: &Path, name: &Name) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.create(path)?;
    file.write_at(0, &name.header(clock::now_us()))?;
    file.sync()?;
    disk.sync_folder(folder)?;
    Ok(file)
}
