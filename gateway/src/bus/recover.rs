//! What a start finds in the log's folder: the epoch, the segments, the torn tail, damage. A start always goes on; what
//! it had to repair, set aside or give up is told in [`Finding`]s.
//!
//! Only the newest segment of each class is read whole; older ones are named by their first number, and damage inside
//! them is found when they are read. So a start costs four segments, however long the backlog is.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crc32c::crc32c;
use device_models::Class;

use super::disk::{Disk, DiskFile, read_all};
use super::figures::Figures;
use super::log::{Files, Limits, Log, Loss, Segment, Table};
use super::segment::{self, HEADER, Kind, Name, Parsed, records_max};
use super::{BusError, Finding, FindingKind, Lock, index};
use crate::clock;

const EPOCH_FILE: &str = "epoch";
const EPOCH_MAGIC: [u8; 8] = *b"SGEPOCH1";
/// Damaged files kept for a look, newest first; more would eat the disk.
const ASIDE_MAX: usize = 4;
/// Longest segment file that is read whole: the largest segment size plus the largest batch.
pub(super) const SEGMENT_READ_MAX: u64 = 72 * 1024 * 1024;

/// What the keyed state knows about the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    pub epoch: Option<u64>,
    /// First number of each class's newest segment, at most a second old; 0: unknown.
    pub marks: [u64; 4],
    /// By class a number that was on disk; at most [`cursors::NOTE_EVERY`](super::cursors::NOTE_EVERY) old after a crash,
    /// exact after a stop. 0: unknown.
    pub high: [u64; 4],
    /// Highest number any reader has committed, by class.
    pub committed: [u64; 4],
}

/// The log as found, and the next number of each class.
#[derive(Debug)]
pub(super) struct Recovered {
    pub log: Log,
    pub next: [u64; 4],
    /// The numbers start anew: cursors of before mean nothing.
    pub new_epoch: bool,
}

/// What reading a segment whole found.
#[derive(Debug, Default)]
struct Scan {
    /// Where the next frame belongs.
    end: usize,
    last: u64,
    frames: u64,
    /// Numbers that damage in the middle has cost.
    damaged: u64,
}

struct Recovery<'a> {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    limits: Limits,
    known: Known,
    epoch: u64,
    table: Table,
    active: [Option<Box<dyn DiskFile>>; 4],
    lengths: [u64; 4],
    next: [u64; 4],
    losses: Vec<Loss>,
    findings: &'a mut Vec<Finding>,
}

/// Opens the log in `folder`, which is made if it is not there. `entropy` becomes the epoch if a new one is needed.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    folder: &Path,
    limits: Limits,
    known: Known,
    entropy: u64,
    findings: &mut Vec<Finding>,
) -> Result<Recovered, BusError> {
    let io = |error: io::Error| BusError::Open { path: folder.to_owned(), error };
    disk.create_folder(folder).map_err(io)?;
    let mut names: [Vec<(Name, u64)>; 4] = Default::default();
    for (file, len) in disk.list(folder).map_err(io)? {
        if let Some(name) = Name::parse(&file) {
            names[index(name.class)].push((name, len));
        }
    }
    let filed = read_epoch(&*disk, folder);
    let stored = filed.or(known.epoch);
    let found = names.iter().flatten().map(|(name, _)| name.epoch).max();
    // A first start that was cut off halfway has made files, but no record can have counted.
    let fresh = stored.is_none() && names.iter().flatten().all(|(_, len)| *len <= HEADER as u64);
    let gone = found.is_none();
    // A class without any file, of which nothing else tells how far it was: only a new epoch keeps numbers honest.
    let unknown = Class::ALL.into_iter().any(|class| names[index(class)].is_empty() && known.marks[index(class)] == 0);
    let new_epoch = gone || unknown;
    let epoch = if new_epoch { entropy } else { stored.or(found).unwrap_or(entropy) };
    let mut recovery = Recovery {
        disk: Arc::clone(&disk),
        folder: folder.to_owned(),
        limits,
        known: if new_epoch { Known::default() } else { known },
        epoch,
        table: Table::new(),
        active: Default::default(),
        lengths: [0; 4],
        next: [1; 4],
        losses: Vec::new(),
        findings,
    };
    if new_epoch && !fresh {
        recovery.find(FindingKind::NewEpoch, format!("the log's files were lost; epoch {epoch:016x} starts"));
    }
    for class in Class::ALL {
        let mut files = std::mem::take(&mut names[index(class)]);
        files.sort_by_key(|(name, _)| (name.first, name.epoch));
        recovery.class(class, files, new_epoch).map_err(io)?;
    }
    recovery.tidy();
    recovery.finish(fresh, filed).map_err(io).map(|(log, next)| Recovered { log, next, new_epoch })
}

// === impl Recovery ===

impl Recovery<'_> {
    fn find(&mut self, kind: FindingKind, text: String) {
        self.findings.push(Finding { kind, text });
    }

    fn class(&mut self, class: Class, files: Vec<(Name, u64)>, new_epoch: bool) -> io::Result<()> {
        let mut segments = VecDeque::new();
        let (newest, none) = (files.len().saturating_sub(1), files.is_empty());
        let newest_first = files.last().map_or(u64::MAX, |(name, _)| name.first);
        let nexts: Vec<u64> = files.iter().skip(1).map(|(name, _)| name.first).collect();
        let mut next = 1;
        for (at, (name, len)) in files.into_iter().enumerate() {
            if at < newest {
                let last = nexts.get(at).map_or(name.first, |first| *first) - 1;
                if self.headed(&name, len)? {
                    segments.push_back(Segment { name, len, last, sealed: true });
                }
            } else {
                next = self.newest(name, len, &mut segments)?;
            }
        }
        let floor = self.known.committed[index(class)] + 1;
        if none && !new_epoch {
            let mark = self.known.marks[index(class)];
            // More than two segments cannot have been filled since the mark was noted.
            next = mark + records_max(2 * self.limits.segment) + 1;
            self.lost(class, mark, next - 1, "corrupt");
            self.find(FindingKind::LostSegment, format!("all of class {} is gone, from {mark}", class.topic()));
        }
        // A segment is noted once its file is durable: one that is not there was lost with what it held.
        let mark = self.known.marks[index(class)];
        let high = self.known.high[index(class)].max(if newest_first < mark { mark } else { 0 });
        if next <= high {
            // The end of the class is gone although it was on disk: a file cut between two records, or lost. More than
            // two segments cannot have been filled since the number was noted.
            let after = high + records_max(2 * self.limits.segment) + 1;
            self.lost(class, next, after - 1, "corrupt");
            self.find(FindingKind::LostRecords, format!("{} {next} to at least {high} are gone", class.topic()));
            next = after;
        }
        if next < floor {
            // Readers have seen numbers that the disk no longer has: they must not be given again.
            self.lost(class, next, floor - 1, "corrupt");
            self.find(FindingKind::LostRecords, format!("{} {next} to {} are gone", class.topic(), floor - 1));
            next = floor;
        }
        self.next[index(class)] = next;
        if let Some(segment) = segments.back().filter(|segment| segment.last >= segment.name.first) {
            self.table.ages.reached(class, segment.last + 1);
        }
        *self.table.class_mut(class) = segments;
        Ok(())
    }

    fn lost(&mut self, class: Class, first: u64, last: u64, reason: &'static str) {
        self.losses.push(Loss { class, first: first.max(1), last, reason });
    }

    /// Whether an older segment has its header, or at least one good frame. Sets it aside if not.
    fn headed(&mut self, name: &Name, len: u64) -> io::Result<bool> {
        let path = self.folder.join(name.file());
        let mut header = [0; HEADER];
        let file = self.disk.open(&path)?;
        let read = file.read_at(0, &mut header)?;
        if let Some(header) = name.read_header(header.get(..read).unwrap_or_default()) {
            self.table.ages.found(name.class, name.first, header.begun_us, clock::now_us());
            return Ok(true);
        }
        let bytes = read_all(&*self.disk, &path, SEGMENT_READ_MAX).unwrap_or_default();
        if scan(name, &bytes).frames > 0 {
            self.find(FindingKind::DamagedHeader, format!("{} is read by its name", path.display()));
            return Ok(true);
        }
        self.set_aside(name, &format!("no record in its {len} bytes is whole"));
        Ok(false)
    }

    /// Reads a class's newest segment whole, cuts its torn tail and opens it for appending. Returns the next number.
    fn newest(&mut self, name: Name, len: u64, segments: &mut VecDeque<Segment>) -> io::Result<u64> {
        let (class, path) = (name.class, self.folder.join(name.file()));
        let bytes = read_all(&*self.disk, &path, SEGMENT_READ_MAX).unwrap_or_default();
        let header = name.read_header(&bytes);
        let headed = header.is_some();
        self.table.ages.found(class, name.first, header.map_or(0, |header| header.begun_us), clock::now_us());
        let seen = scan(&name, &bytes);
        if !headed && seen.frames == 0 {
            let marked = self.known.marks[index(class)] >= name.first;
            if len < HEADER as u64 && !marked {
                // The ordinary trace of a power cut while the file was made: no record can have counted.
                self.disk.remove(&path)?;
                return Ok(name.first);
            }
            self.set_aside(&name, &format!("no record in its {len} bytes is whole"));
            let next = name.first + records_max(len.max(self.limits.segment)) + 1;
            self.lost(class, name.first, next - 1, "corrupt");
            return Ok(next);
        }
        if seen.damaged > 0 {
            self.find(FindingKind::DamagedRecords, format!("{}: {} records are damaged", path.display(), seen.damaged));
        }
        // Zeros were written ahead of the records.
        let torn = segment::without_zeros(bytes.get(seen.end..).unwrap_or_default());
        let mut next = seen.last + 1;
        if torn > 0 {
            let written = bytes.get(..seen.end + torn).unwrap_or_default();
            let count = torn_records(written, seen.end, next);
            self.lost(class, next, next + count - 1, "torn");
            self.find(
                FindingKind::TornTail,
                format!("{}: {torn} bytes behind {} were cut off", path.display(), seen.last),
            );
            next += count;
        }
        if !headed {
            self.find(FindingKind::DamagedHeader, format!("{} is read by its name", path.display()));
        }
        let file = self.disk.open(&path)?;
        // After a kill the records may be in memory only: they count once they are on disk. A file that cannot be
        // written any more (read-only disk) is still read.
        let whole = (if torn > 0 { file.set_len(seen.end as u64) } else { Ok(()) }).and_then(|()| file.sync());
        // A file of an older version is read, and what comes goes into a new one.
        let current = header.is_some_and(|header| header.current);
        let sealed = whole.is_err() || !current || name.epoch != self.epoch;
        if let Err(error) = whole {
            self.find(FindingKind::ReadOnly, format!("{}: {error}", path.display()));
        }
        segments.push_back(Segment { name, len: seen.end as u64, last: seen.last, sealed });
        if !sealed {
            self.lengths[index(class)] = if torn > 0 { seen.end } else { bytes.len() } as u64;
            self.active[index(class)] = Some(file);
        }
        Ok(next)
    }

    fn set_aside(&mut self, name: &Name, why: &str) {
        let (from, to) = (self.folder.join(name.file()), self.folder.join(format!("{}.bad", name.file())));
        let done = self.disk.rename(&from, &to).map_or_else(|error| error.to_string(), |()| to.display().to_string());
        self.find(FindingKind::Quarantined, format!("{}: {why}; set aside: {done}", from.display()));
    }

    /// Keeps only the newest files that were set aside.
    fn tidy(&self) {
        let Ok(files) = self.disk.list(&self.folder) else { return };
        let mut aside: Vec<String> =
            files.into_iter().map(|(file, _)| file).filter(|file| file.strip_suffix(".bad").is_some()).collect();
        aside.sort();
        while aside.len() > ASIDE_MAX {
            if let Err(error) = self.disk.remove(&self.folder.join(aside.remove(0))) {
                tracing::debug!(%error, "cannot remove a file that was set aside");
            }
        }
    }

    fn finish(self, fresh: bool, filed: Option<u64>) -> io::Result<(Log, [u64; 4])> {
        let files = Arc::new(Files {
            disk: self.disk,
            folder: self.folder,
            table: Lock::new(self.table),
            evicted: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            figures: Figures::default(),
        });
        let mut log = Log {
            files,
            epoch: self.epoch,
            limits: self.limits,
            active: self.active,
            lengths: self.lengths,
            templates: Default::default(),
            unmarked: Default::default(),
            unsaid: Vec::new(),
            passed: [0; 4],
        };
        // The free space is a figure from the start on.
        log.free();
        for loss in self.losses {
            log.lose(loss);
        }
        for class in Class::ALL {
            let first = log.unmarked[index(class)].as_ref().map_or(self.next[index(class)], |loss| loss.first);
            let missing = log.files.table.lock().class(class).is_empty();
            let made = if missing { log.roll(class, first) } else { Ok(()) };
            match made.and_then(|()| log.write(class, None).map(drop)) {
                // A store that cannot be made at all is a mistake to tell, not a fault to live with.
                Err(error) if fresh => return Err(error),
                Err(error) => self.findings.push(Finding { kind: FindingKind::ReadOnly, text: error.to_string() }),
                Ok(()) => {}
            }
        }
        if filed != Some(self.epoch) {
            match write_epoch(&*log.files.disk, &log.files.folder, self.epoch) {
                Err(error) if fresh => return Err(error),
                Err(error) => self.findings.push(Finding { kind: FindingKind::ReadOnly, text: error.to_string() }),
                Ok(()) => {}
            }
        }
        Ok((log, self.next))
    }
}

/// Walks a segment's frames. Damage in the middle is stepped over; behind the last good frame is the end.
fn scan(name: &Name, bytes: &[u8]) -> Scan {
    let seed = name.seed();
    let mut found = Scan { end: HEADER.min(bytes.len()), last: name.first - 1, ..Scan::default() };
    let mut at = HEADER;
    loop {
        match segment::parse(seed, bytes, at) {
            Parsed::Frame(frame) => {
                at = frame.end;
                found.end = at;
                if frame.seq <= found.last || matches!(frame.kind, Kind::Template(_)) {
                    continue;
                }
                found.frames += 1;
                found.damaged += frame.seq - found.last - 1;
                found.last = frame.seq;
                if frame.kind == Kind::Gap {
                    let gap = bytes.get(frame.payload).and_then(segment::parse_gap);
                    found.last = gap.map_or(frame.seq, |(last, _)| last.max(frame.seq));
                }
            }
            Parsed::Short(_) | Parsed::Bad => {
                let seqs = found.last + 1..1 << 62;
                match segment::resync(seed, bytes, at + 1..bytes.len(), &seqs) {
                    Some(next) => at = next,
                    None => return found,
                }
            }
        }
    }
}

/// How many records a torn tail can have held: exact where their lengths can still be read, else an upper bound.
fn torn_records(bytes: &[u8], from: usize, next: u64) -> u64 {
    let (mut at, mut count) = (from, 0);
    while let Some((len, seq, is_template)) = segment::parse_head(bytes, at) {
        if seq != next + count {
            break;
        }
        count += u64::from(!is_template);
        at += len;
    }
    (count + records_max(bytes.len().saturating_sub(at) as u64)).max(1)
}

pub(super) fn read_epoch(disk: &dyn Disk, folder: &Path) -> Option<u64> {
    let bytes = read_all(disk, &folder.join(EPOCH_FILE), 64).ok()?;
    let (body, crc) = bytes.split_at_checked(16)?;
    let whole = bytes.len() == 20 && body.starts_with(&EPOCH_MAGIC) && crc == crc32c(body).to_le_bytes();
    whole.then(|| body.get(8..)?.try_into().ok().map(u64::from_le_bytes)).flatten()
}

fn write_epoch(disk: &dyn Disk, folder: &Path, epoch: u64) -> io::Result<()> {
    let mut bytes = EPOCH_MAGIC.to_vec();
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
    let new = folder.join("epoch.new");
    let file = disk.create(&new)?;
    file.write_at(0, &bytes)?;
    file.sync()?;
    disk.rename(&new, &folder.join(EPOCH_FILE))?;
    disk.sync_folder(folder)
}
