//! Checking every segment file from end to end, and writing anew those that are damaged: what is whole stays where it is,
//! a gap marker stands for what is not, and the damaged file is kept aside.
//!
//! A start reads only the newest file of each class; damage in older ones would show when a reader comes by. Must not be in
//! here: the keyed state (a start checks, sets aside and restores that), how upstream is told (`commit.rs`).

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use device_models::Class;

use super::disk::{Disk, RealDisk, read_all};
use super::log::Loss;
use super::recover::SEGMENT_READ_MAX;
use super::segment::{self, HEADER, Kind, Name, Parsed};
use super::{BusError, export};

/// What is wrong in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub class: Class,
    pub file: PathBuf,
    /// First and last of each stretch of numbers that cannot be read any more.
    pub lost: Vec<(u64, u64)>,
    name: Name,
    next: Option<u64>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkup {
    pub files: u64,
    pub records: u64,
    pub damages: Vec<Damage>,
    /// Whole entries in the rescue copy of the keyed state; `None` without a usable copy.
    pub rescue_entries: Option<u64>,
}

/// A file as it should be.
struct Examined {
    bytes: Vec<u8>,
    records: u64,
    lost: Vec<(u64, u64)>,
    /// Something had to be left out or put in.
    changed: bool,
}

// === impl Checkup ===

impl Checkup {
    /// Reads every file listed. `done` is told the bytes of each.
    pub(super) fn of(
        folder: &Path,
        segments: [Vec<(Name, u64)>; 4],
        done: &mut dyn FnMut(u64),
    ) -> Result<Self, BusError> {
        let mut found = Self { rescue_entries: rescue_entries(folder), ..Self::default() };
        for segments in segments {
            let nexts = segments.iter().skip(1).map(|(name, _)| Some(name.first)).chain([None]);
            for ((name, len), next) in segments.iter().zip(nexts) {
                let file = folder.join(name.file());
                let bytes = match read(&file) {
                    Ok(bytes) => bytes,
                    // A running gateway has let go of it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(BusError::Read { path: file, error }),
                };
                let examined = examine(name, &bytes, next);
                found.files += 1;
                found.records += examined.records;
                if examined.changed {
                    let damage = Damage { class: name.class, file, lost: examined.lost, name: *name, next };
                    found.damages.push(damage);
                }
                done(*len);
            }
        }
        Ok(found)
    }

    /// Numbers that cannot be read any more.
    pub fn lost(&self) -> u64 {
        self.damages.iter().flat_map(|damage| &damage.lost).map(|(first, last)| last - first + 1).sum()
    }

    /// Writes the damaged files anew, durably; what they were is kept beside them, with `.bad` behind the name. The store
    /// must not be in use.
    pub(super) fn mend(&self) -> Result<Vec<Loss>, BusError> {
        let mut losses = Vec::new();
        for damage in &self.damages {
            let path = &damage.file;
            mend(damage).map_err(|error| BusError::Mend { path: path.clone(), error })?;
            losses.extend(damage.lost.iter().map(|(first, last)| Loss {
                class: damage.class,
                first: *first,
                last: *last,
                reason: "corrupt",
            }));
        }
        Ok(losses)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&RealDisk, path, SEGMENT_READ_MAX)
}

fn rescue_entries(folder: &Path) -> Option<u64> {
    let mut entries = 0;
    let mut each = |_: &[u8], _: &[u8]| {
        entries += 1;
        Ok(())
    };
    export::read(&RealDisk, &folder.parent()?.join("sled.export"), &mut each).ok()?.then_some(entries)
}

fn mend(damage: &Damage) -> io::Result<()> {
    let path = &damage.file;
    let bytes = read(path)?;
    let beside = |suffix: &str| path.with_file_name(format!("{}.{suffix}", damage.name.file()));
    write(&beside("bad"), &bytes)?;
    let new = beside("new");
    write(&new, &examine(&damage.name, &bytes, damage.next).bytes)?;
    RealDisk.rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| RealDisk.sync_folder(folder))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = RealDisk.create(path)?;
    file.write_at(0, bytes)?;
    file.sync()
}

/// Takes over what is whole. `next`: the first number of the file behind; without one, what lies behind the last good
/// frame is a torn tail, which is the next start's affair.
fn examine(name: &Name, bytes: &[u8], next: Option<u64>) -> Examined {
    let seed = name.seed();
    let headed = name.read_header(bytes);
    let header = name.header(headed.map_or(0, |header| header.begun_us));
    let mut whole = Examined { bytes: header.to_vec(), records: 0, lost: Vec::new(), changed: headed.is_none() };
    let mut templates = HashSet::new();
    let (mut at, mut seq) = (HEADER, name.first);
    loop {
        match segment::parse(seed, bytes, at) {
            Parsed::Frame(frame) => {
                let raw = bytes.get(at..frame.end).unwrap_or_default();
                at = frame.end;
                let last = match frame.kind {
                    Kind::Template(label) => {
                        templates.insert(label);
                        whole.bytes.extend_from_slice(raw);
                        continue;
                    }
                    // Nobody can read it without its template: it is lost with the next good one's gap.
                    Kind::Record(Some(label)) if !templates.contains(&label) => continue,
                    Kind::Record(_) => frame.seq,
                    Kind::Gap => match bytes.get(frame.payload).and_then(segment::parse_gap) {
                        Some((last, _)) => last,
                        None => continue,
                    },
                };
                if last < seq {
                    continue;
                }
                if frame.seq > seq {
                    whole.lose(seed, seq, frame.seq - 1);
                }
                whole.bytes.extend_from_slice(raw);
                whole.records += u64::from(frame.kind != Kind::Gap);
                seq = last + 1;
            }
            Parsed::Short(_) | Parsed::Bad => {
                let seqs = seq..next.unwrap_or(1 << 62);
                match segment::resync(seed, bytes, at + 1..bytes.len(), &seqs) {
                    Some(good) => {
                        whole.changed = true;
                        at = good;
                    }
                    None => break,
                }
            }
        }
    }
    let tail = bytes.get(at..).unwrap_or_default();
    let tail = tail.get(..segment::without_zeros(tail)).unwrap_or_default();
    match next {
        Some(next) => {
            whole.changed |= !tail.is_empty();
            if seq < next {
                whole.lose(seed, seq, next - 1);
            }
        }
        None => whole.bytes.extend_from_slice(tail),
    }
    whole
}

// === impl Examined ===

impl Examined {
    fn lose(&mut self, seed: u32, first: u64, last: u64) {
        self.changed = true;
        self.lost.push((first, last));
        segment::push_gap(&mut self.bytes, seed, first, last, "corrupt");
    }
}
