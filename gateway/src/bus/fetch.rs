//! Reading segments for the readers, in one thread. Numbers that are not there become gaps at their place; damage is
//! stepped over to the next good frame.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use device_models::Class;
use device_models::wire::Template;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::BusError;
use super::disk::DiskFile;
use super::log::{Files, Segment};
use super::reader::Entry;
use super::segment::{self, FRAME, Frame, HEADER, Kind, Name, Parsed, RECORD_MAX};
use super::templates::Templates;

/// Bytes read at a time, at least and at most (a longer record is read whole).
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 256 * 1024;
/// Open files kept for the next read.
const FILES_MAX: usize = 8;
/// Bytes searched at a time for the next good frame.
const SEARCH: usize = 1024 * 1024;

/// Where a reader stands in one class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    /// The number wanted next.
    pub next: u64,
    /// First number of the segment in which `offset` holds; 0: none.
    segment: u64,
    offset: u64,
}

// === impl Place ===

impl Place {
    /// A place known by its number alone.
    pub(super) const fn at(next: u64) -> Self {
        Self { next, segment: 0, offset: 0 }
    }
}

/// One read for one reader.
#[derive(Debug)]
pub(super) struct Job {
    pub class: Class,
    pub place: Place,
    /// Numbers up to here are durable and wanted.
    pub through: u64,
    pub records_max: usize,
    pub bytes_max: usize,
    pub reply: oneshot::Sender<Result<(Vec<Entry>, Place), BusError>>,
}

/// The reading thread.
#[derive(Debug)]
pub(super) struct Fetcher {
    files: Arc<Files>,
    open: Vec<Open>,
}

/// A file that is read.
#[derive(Debug)]
struct Open {
    name: Name,
    file: Box<dyn DiskFile>,
    templates: Templates,
}

/// Entries as they are found.
struct Found {
    entries: Vec<Entry>,
    bytes: usize,
    records_max: usize,
    bytes_max: usize,
    /// Nothing behind it is wanted.
    through: u64,
    corrupt: u64,
}

// === impl Fetcher ===

impl Fetcher {
    pub(super) fn new(files: Arc<Files>) -> Self {
        Self { files, open: Vec::new() }
    }

    /// Runs until the last sender of jobs is gone.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            let result = self.fetch(&job);
            // The reader may have given up: then nobody is told, and it reads again from its place.
            drop(job.reply.send(result));
        }
    }

    fn fetch(&mut self, job: &Job) -> Result<(Vec<Entry>, Place), BusError> {
        let mut place = job.place;
        let mut found = Found {
            entries: Vec::new(),
            bytes: 0,
            records_max: job.records_max,
            bytes_max: job.bytes_max.max(1),
            through: job.through,
            corrupt: 0,
        };
        while !found.is_full() {
            let Some(segment) = self.locate(job, &mut place, &mut found) else { break };
            match self.read(&segment, &mut place, &mut found) {
                Ok(()) => {}
                Err(_) if !self.is_there(&segment) => self.open.retain(|open| open.name != segment.name),
                Err(error) if is_lasting(&error) => {
                    warn!(%error, file = %segment.name.file(), "a segment cannot be read; its records are lost");
                    place.offset = segment.len;
                    found.finish(&segment, &mut place);
                }
                Err(_) if !found.entries.is_empty() => break,
                Err(error) => return Err(BusError::Read { path: self.files.path(&segment.name), error }),
            }
        }
        self.files.corrupt.fetch_add(found.corrupt, Ordering::Relaxed);
        Ok((found.entries, place))
    }

    /// The segment that holds the wanted number. Numbers that no segment holds are gaps.
    fn locate(&self, job: &Job, place: &mut Place, found: &mut Found) -> Option<Segment> {
        let table = self.files.table.lock();
        let segments = table.class(job.class);
        let oldest = segments.front()?.name.first;
        while place.next < oldest && place.next <= job.through && !found.is_full() {
            let (last, reason) = table.why_gone(job.class, place.next);
            found.gap(place, last.min(oldest - 1), reason);
        }
        while place.next <= job.through && !found.is_full() {
            let after = segments.partition_point(|segment| segment.name.first <= place.next);
            let segment = segments.get(after.checked_sub(1)?)?;
            if place.next <= segment.last {
                if place.segment != segment.name.first || place.offset == 0 {
                    place.segment = segment.name.first;
                    place.offset = HEADER as u64;
                }
                return Some(*segment);
            }
            found.gap(place, segments.get(after)?.name.first - 1, "corrupt");
        }
        None
    }

    fn is_there(&self, segment: &Segment) -> bool {
        let table = self.files.table.lock();
        table.class(segment.name.class).iter().any(|other| other.name == segment.name)
    }

    fn open(&mut self, name: &Name) -> io::Result<&mut Open> {
        if !self.open.iter().any(|open| open.name == *name) {
            if self.open.len() >= FILES_MAX {
                self.open.remove(0);
            }
            let file = self.files.disk.open(&self.files.path(name))?;
            self.open.push(Open { name: *name, file, templates: Templates::default() });
        }
        self.open.iter_mut().find(|open| open.name == *name).ok_or_else(|| io::Error::other("no open file"))
    }

    /// Takes what fits from one segment, from the place on.
    fn read(&mut self, segment: &Segment, place: &mut Place, found: &mut Found) -> io::Result<()> {
        let seed = segment.name.seed();
        let Open { file, templates, .. } = self.open(&segment.name)?;
        let mut want = (found.bytes_max - found.bytes + FRAME).clamp(READ_MIN, READ_MAX);
        while place.offset < segment.len && place.next <= segment.last.min(found.through) && !found.is_full() {
            let left = segment.len - place.offset;
            let mut chunk = vec![0; want.min(left as usize)];
            let read = file.read_at(place.offset, &mut chunk)?;
            chunk.truncate(read);
            let (chunk, mut at) = (Bytes::from(chunk), 0);
            loop {
                match segment::parse(seed, &chunk, at) {
                    Parsed::Frame(frame) => {
                        let offset = place.offset + at as u64;
                        templates.note(&chunk, &frame, offset);
                        let template = match frame.kind {
                            Kind::Record(Some(label)) => templates.get(&**file, segment, label, offset)?,
                            _ => None,
                        };
                        if !found.take(&chunk, &frame, template, segment, place) {
                            place.offset = offset;
                            break;
                        }
                        at = frame.end;
                    }
                    Parsed::Short(needed) if (at + needed) as u64 <= left && read == want.min(left as usize) => {
                        place.offset += at as u64;
                        want = needed.max(READ_MAX);
                        break;
                    }
                    Parsed::Short(_) if at as u64 == left => {
                        place.offset = segment.len;
                        break;
                    }
                    Parsed::Short(_) | Parsed::Bad => {
                        let from = place.offset + at as u64 + 1;
                        place.offset = search(&**file, segment, from, place.next)?;
                        break;
                    }
                }
            }
        }
        if !found.is_full() {
            found.finish(segment, place);
        }
        Ok(())
    }
}

/// Where the next good frame starts at or behind `from`; the segment's end if there is none.
fn search(file: &dyn DiskFile, segment: &Segment, mut from: u64, next: u64) -> io::Result<u64> {
    while from < segment.len {
        let size = (SEARCH + FRAME + RECORD_MAX).min((segment.len - from) as usize);
        let mut window = vec![0; size];
        let read = file.read_at(from, &mut window)?;
        window.truncate(read);
        let within = 0..SEARCH.min(window.len());
        if let Some(at) = segment::resync(segment.name.seed(), &window, within, &(next..segment.last + 1)) {
            return Ok(from + at as u64);
        }
        from += SEARCH as u64;
    }
    Ok(segment.len)
}

/// Whether the disk's error will not pass: bad blocks, a file removed behind our back.
fn is_lasting(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

// === impl Found ===

impl Found {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.records_max || self.bytes >= self.bytes_max
    }

    /// Takes a frame in, with the gap before it if there is one. False when there is no room for it.
    fn take(
        &mut self,
        chunk: &Bytes,
        frame: &Frame,
        template: Option<Template>,
        segment: &Segment,
        place: &mut Place,
    ) -> bool {
        if self.is_full() || place.next > segment.last.min(self.through) {
            return false;
        }
        if matches!(frame.kind, Kind::Template(_)) {
            return true;
        }
        if frame.kind == Kind::Gap {
            let Some((last, reason)) = chunk.get(frame.payload.clone()).and_then(segment::parse_gap) else {
                return true;
            };
            if frame.seq > place.next {
                self.gap(place, (frame.seq - 1).min(segment.last), "corrupt");
            }
            self.gap(place, last.min(segment.last), reason);
            return true;
        }
        if frame.seq < place.next || frame.seq > segment.last {
            return true;
        }
        if frame.seq > place.next {
            self.gap(place, frame.seq - 1, "corrupt");
            if self.is_full() {
                return false;
            }
        }
        if frame.seq > self.through {
            return false;
        }
        if template.is_none() && matches!(frame.kind, Kind::Record(Some(_))) {
            // What it leans on is damaged: nobody can read it.
            self.gap(place, frame.seq, "corrupt");
            return true;
        }
        // With what it leans on: about what it says when it is read.
        let len = frame.payload.len() + template.as_ref().map_or(0, |template| template.bytes.len());
        if self.bytes > 0 && self.bytes + len > self.bytes_max {
            self.bytes = self.bytes_max;
            return false;
        }
        self.entries.push(Entry::Record { seq: frame.seq, template, bytes: chunk.slice(frame.payload.clone()) });
        self.bytes += len;
        place.next = frame.seq + 1;
        true
    }

    /// Everything from the place to `last` is gone.
    fn gap(&mut self, place: &mut Place, last: u64, reason: &str) {
        let (first, last) = (place.next, last.min(self.through));
        if first > last {
            return;
        }
        place.next = last + 1;
        if reason == "corrupt" {
            self.corrupt += last - first + 1;
        }
        match self.entries.last_mut() {
            Some(Entry::Gap { last: end, reason: why, .. }) if *why == reason && *end + 1 == first => *end = last,
            _ => self.entries.push(Entry::Gap { first, last, reason: reason.to_owned() }),
        }
    }

    /// The segment is read to its end: what it should have held and did not is gone.
    fn finish(&mut self, segment: &Segment, place: &mut Place) {
        if place.offset >= segment.len {
            self.gap(place, segment.last, "corrupt");
        }
    }
}
