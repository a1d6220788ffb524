//! The templates of one segment, as its readers need them: learned while the file is read front to back, and looked up in
//! what lies before when a reader begins in the middle.
//!
//! Must not be in here: what a template says.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use device_models::wire::Template;

use super::disk::DiskFile;
use super::log::Segment;
use super::segment::{self, FRAME, Frame, HEADER, Kind, Parsed, RECORD_MAX};

/// Bytes of templates remembered for one file; beyond it one is read again whenever it is needed.
const KEPT_MAX: usize = 1024 * 1024;
/// Bytes read at a time while looking for one.
const CHUNK: usize = 256 * 1024;

/// What is known of a file's templates.
#[derive(Debug)]
pub(super) struct Templates {
    known: HashMap<u64, Bytes>,
    bytes: usize,
    /// Everything before this offset has been learned (what there was room for).
    learned: u64,
    overflowed: bool,
}

impl Default for Templates {
    fn default() -> Self {
        Self { known: HashMap::new(), bytes: 0, learned: HEADER as u64, overflowed: false }
    }
}

// === impl Templates ===

impl Templates {
    /// Notes a frame that was read at `offset`.
    pub(super) fn note(&mut self, chunk: &Bytes, frame: &Frame, offset: u64) {
        if let Kind::Template(label) = frame.kind
            && !self.known.contains_key(&label)
            && let Some(bytes) = chunk.get(frame.payload.clone())
        {
            if self.bytes + bytes.len() > KEPT_MAX {
                self.overflowed = true;
            } else {
                self.bytes += bytes.len();
                // A copy: a slice would keep the whole chunk.
                self.known.insert(label, Bytes::copy_from_slice(bytes));
            }
        }
        if offset == self.learned {
            self.learned = offset + (frame.end - frame.payload.start) as u64 + head(frame) as u64;
        }
    }

    /// The template of this label that stands before `offset`; `None`: it is damaged, or never was.
    pub(super) fn get(
        &mut self,
        file: &dyn DiskFile,
        segment: &Segment,
        label: u64,
        offset: u64,
    ) -> io::Result<Option<Template>> {
        let mut found = self.known.get(&label).cloned();
        if found.is_none() && self.learned < offset {
            let mut at = self.learned;
            while at < offset {
                at = walk(file, segment, at, offset, &mut |chunk, frame, at| self.note(chunk, frame, at))?;
            }
            self.learned = self.learned.max(offset);
            found = self.known.get(&label).cloned();
        }
        if found.is_none() && self.overflowed {
            let mut at = HEADER as u64;
            let mut each = |chunk: &Bytes, frame: &Frame, _| {
                if frame.kind == Kind::Template(label) {
                    found = chunk.get(frame.payload.clone()).map(Bytes::copy_from_slice);
                }
            };
            while at < offset {
                at = walk(file, segment, at, offset, &mut each)?;
            }
        }
        Ok(found.map(|bytes| Template { label, bytes }))
    }
}

/// Bytes of a frame before its payload, the label included.
fn head(frame: &Frame) -> usize {
    match frame.kind {
        Kind::Record(None) | Kind::Gap => FRAME,
        Kind::Record(Some(_)) | Kind::Template(_) => FRAME + segment::LABEL,
    }
}

/// Takes a chunk's frames from `at` on. Returns where to go on, behind damage if there is any.
fn walk(
    file: &dyn DiskFile,
    segment: &Segment,
    at: u64,
    end: u64,
    each: &mut dyn FnMut(&Bytes, &Frame, u64),
) -> io::Result<u64> {
    let seed = segment.name.seed();
    let size = (CHUNK + FRAME + RECORD_MAX).min((end - at) as usize);
    let mut chunk = vec![0; size];
    let read = file.read_at(at, &mut chunk)?;
    chunk.truncate(read);
    let (chunk, mut place) = (Bytes::from(chunk), 0);
    while place < CHUNK.min(chunk.len()) {
        match segment::parse(seed, &chunk, place) {
            Parsed::Frame(frame) => {
                each(&chunk, &frame, at + place as u64);
                place = frame.end;
            }
            Parsed::Short(_) | Parsed::Bad => {
                let seqs = segment.name.first..segment.last + 1;
                match segment::resync(seed, &chunk, place + 1..chunk.len(), &seqs) {
                    Some(next) => place = next,
                    None => return Ok(at + chunk.len().max(1) as u64),
                }
            }
        }
    }
    Ok(at + place.max(1) as u64)
}
