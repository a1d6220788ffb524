//! The one thread that writes recordings: a piece is one write (and one fdatasync), a complete file is one rename. It makes
//! room by removing the oldest of the rule; where there is none left to make, the rule pauses and the stream goes on.
//!
//! Must not be in here: media, runtimes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::Value;
use protocols::media::StreamName;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::shelf::{self, RECORDINGS_MAX, Recording, Shelf, Wall};
use super::whole::whole;
use super::{Board, Rule, Tell};
use crate::clock;
use crate::config::Format;
use crate::hooks::Visit;

/// Levels of folders below a rule's own: a stream name has up to four.
const DEPTH_MAX: usize = 4;

/// What a recording hands over: one piece of one file.
#[derive(Debug)]
pub(super) struct Piece {
    /// The file, unique in this run.
    pub file: u64,
    pub rule: Arc<Rule>,
    pub stream: StreamName,
    pub board: Arc<Board>,
    pub bytes: Bytes,
    pub duration_ms: u64,
    /// The file begins, or is complete.
    pub first: bool,
    pub last: bool,
}

/// An open file.
#[derive(Debug)]
struct Writing {
    id: u64,
    file: File,
    len: u64,
    start_us: i64,
}

pub(super) struct Writer {
    shelf: Shelf,
    tell: Tell,
    open: HashMap<u64, Writing>,
    wall: Wall,
}

/// Why a piece did not come to disk.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the disk has less than {0} MiB left, and no older recording of the rule can go")]
    Space(u64),
    #[error("the rule may take {0} MiB, and nothing of it can go")]
    Cap(u64),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Writer {
    pub(super) fn new(shelf: Shelf, tell: Tell) -> Self {
        Self { shelf, tell, open: HashMap::new(), wall: Wall::new() }
    }

    /// Reads what is there, then writes until the end is said or the senders are gone.
    pub(super) fn run(mut self, rules: &[Arc<Rule>], mut pieces: mpsc::Receiver<Option<Piece>>) {
        self.wall.look();
        for rule in rules {
            let root = rule.root.join(&rule.config.name);
            if root.is_dir() {
                self.read_folder(rule, &root, 0);
            }
        }
        while let Some(Some(piece)) = pieces.blocking_recv() {
            self.wall.look();
            piece.board.settled(piece.bytes.len() as u64);
            self.take(&piece);
        }
        for (_, writing) in std::mem::take(&mut self.open) {
            // What is written is whole; the next start gives the file its name.
            let _synced = writing.file.sync_data();
        }
    }

    fn take(&mut self, piece: &Piece) {
        let outcome = self.write(piece);
        if piece.last {
            self.complete(piece.file, piece);
        }
        match outcome {
            Ok(true) if piece.first && piece.board.resume() => {
                info!(stream = %piece.stream, rule = piece.rule.config.name, "recording goes on");
                self.tell.voice.event(piece.stream.as_str(), "recordResumed", &[("rule", &piece.rule.config.name)]);
            }
            Ok(_) => {}
            Err(error) => {
                self.complete(piece.file, piece);
                if piece.board.pause(&error.to_string()) {
                    warn!(stream = %piece.stream, rule = piece.rule.config.name, %error, "recording pauses");
                    let data = [("rule", piece.rule.config.name.as_str()), ("reason", &error.to_string())];
                    self.tell.voice.event(piece.stream.as_str(), "recordPaused", &data);
                }
            }
        }
    }

    /// `false`: the file could not be begun, and nothing more of it is written.
    fn write(&mut self, piece: &Piece) -> Result<bool, WriteError> {
        if piece.bytes.is_empty() {
            return Ok(self.open.contains_key(&piece.file));
        }
        if piece.first {
            self.make_room(piece)?;
            let writing = self.create(piece)?;
            self.open.insert(piece.file, writing);
        } else if self.open.contains_key(&piece.file) {
            self.make_room(piece)?;
        }
        let Some(writing) = self.open.get_mut(&piece.file) else {
            // Paused: look whether there is space again; the recording then begins a new file.
            if self.make_room(piece).is_ok() {
                piece.board.restart();
            }
            return Ok(false);
        };
        let written = writing
            .file
            .write_all_at(&piece.bytes, writing.len)
            .and_then(|()| if piece.rule.config.sync { writing.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Half a piece is no piece.
            let _cut = writing.file.set_len(writing.len);
            return Err(error.into());
        }
        writing.len += piece.bytes.len() as u64;
        piece.board.wrote(piece.bytes.len() as u64);
        if let Some(recording) = self.shelf.lock().get_mut(&writing.id) {
            (recording.bytes, recording.duration_ms) = (writing.len, piece.duration_ms);
        }
        Ok(true)
    }

    fn create(&self, piece: &Piece) -> io::Result<Writing> {
        let folder = shelf::folder(&piece.rule.root, &piece.rule.config.name, &piece.stream);
        fs::create_dir_all(&folder)?;
        let (id, start_us, format) = (self.shelf.next_id(), clock::now_us(), piece.rule.config.format);
        let path = folder.join(shelf::file_name(id, start_us, None, format));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        sync_folder(&folder);
        let recording = Recording {
            id,
            rule: Arc::from(piece.rule.config.name.as_str()),
            stream: Arc::from(piece.stream.as_str()),
            start_us,
            duration_ms: 0,
            bytes: 0,
            format: shelf::extension(format),
            open: true,
            path,
            known: Instant::now(),
        };
        self.shelf.lock().insert(id, recording);
        Ok(Writing { id, file, len: 0, start_us })
    }

    /// Gives the file its name; one without media goes.
    fn complete(&mut self, file: u64, piece: &Piece) {
        let Some(writing) = self.open.remove(&file) else { return };
        let mut all = self.shelf.lock();
        let Some(recording) = all.get_mut(&writing.id) else { return };
        if writing.len == 0 {
            let path = recording.path.clone();
            all.remove(&writing.id);
            remove(&path);
            return;
        }
        let name =
            shelf::file_name(writing.id, writing.start_us, Some(recording.duration_ms), piece.rule.config.format);
        let path = recording.path.with_file_name(name);
        match fs::rename(&recording.path, &path) {
            Ok(()) => recording.path = path,
            Err(error) => warn!(path = %recording.path.display(), %error, "a recording keeps the name of an open one"),
        }
        recording.open = false;
        if let Some(folder) = recording.path.parent() {
            sync_folder(folder);
        }
        let stream = piece.stream.to_string();
        let visit = Visit { stream, protocol: "record".to_owned(), peer: None, query: String::new() };
        self.tell.hooks.recorded(visit, &recording.path.to_string_lossy());
    }

    /// Removes what is too old, and the oldest until the piece has room.
    fn make_room(&self, piece: &Piece) -> Result<(), WriteError> {
        const MIB: u64 = 1024 * 1024;
        let rule = &piece.rule.config;
        let wanted = piece.bytes.len() as u64;
        let mut removed: Vec<(Recording, &str)> = Vec::new();
        let age_max = Duration::from_secs(rule.age_max_hours.saturating_mul(3600));
        let outcome = loop {
            let oldest = self.shelf.oldest(&rule.name);
            let old = !age_max.is_zero() && oldest.as_ref().is_some_and(|oldest| oldest.age(self.wall) > age_max);
            let over = self.shelf.bytes(&rule.name).saturating_add(wanted) > rule.cap_mib.saturating_mul(MIB);
            let many = self.shelf.lock().len() >= RECORDINGS_MAX;
            let full = free(&piece.rule.root) < rule.free_min_mib.saturating_mul(MIB).saturating_add(wanted);
            let why = match (old, over || many, full) {
                (true, ..) => "age",
                (_, true, _) => "cap",
                (.., true) => "space",
                _ => break Ok(()),
            };
            match oldest {
                Some(oldest) => {
                    self.shelf.lock().remove(&oldest.id);
                    remove(&oldest.path);
                    removed.push((oldest, why));
                }
                None if full => break Err(WriteError::Space(rule.free_min_mib)),
                None => break Err(WriteError::Cap(rule.cap_mib)),
            }
        };
        self.say_removed(&rule.name, &piece.board, &removed);
        outcome
    }

    fn say_removed(&self, rule: &str, board: &Board, removed: &[(Recording, &str)]) {
        let mut said: HashMap<(Arc<str>, &str), (u64, u64)> = HashMap::new();
        for (recording, why) in removed {
            let sum = said.entry((recording.stream.clone(), why)).or_default();
            *sum = (sum.0 + 1, sum.1 + recording.bytes);
        }
        board.removed(removed.len() as u64);
        for ((stream, why), (count, bytes)) in said {
            info!(%stream, rule, count, bytes, why, "recordings removed");
            let data = vec![
                ("rule", Value::Text(rule.to_owned())),
                ("count", Value::Int(count as i64)),
                ("bytes", Value::Int(bytes as i64)),
                ("reason", Value::Text(why.to_owned())),
            ];
            self.tell.voice.event_with(&stream, "recordsRemoved", data);
        }
    }

    // --- at the start ---

    fn read_folder(&self, rule: &Rule, folder: &Path, depth: usize) {
        let listed = match fs::read_dir(folder) {
            Ok(listed) => listed,
            Err(error) => return warn!(folder = %folder.display(), %error, "recordings cannot be listed"),
        };
        for entry in listed.filter_map(Result::ok) {
            // A link leads elsewhere: it is neither listed nor removed.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEPTH_MAX => self.read_folder(rule, &entry.path(), depth + 1),
                Ok(kind) if kind.is_file() => self.read_file(rule, &entry.path()),
                _ => {}
            }
        }
    }

    fn read_file(&self, rule: &Rule, path: &Path) {
        let Some((id, start_us, duration, format)) =
            path.file_name().and_then(|name| name.to_str()).and_then(shelf::read_name)
        else {
            return;
        };
        let root = rule.root.join(&rule.config.name);
        let stream = path.parent().and_then(|folder| folder.strip_prefix(root).ok()?.to_str()).unwrap_or_default();
        let stream: Arc<str> = Arc::from(stream);
        let (path, duration_ms) = match duration {
            Some(duration) => (path.to_owned(), duration),
            None => match repair(path, id, start_us, format) {
                Ok(Some((path, duration_ms, torn))) => {
                    info!(path = %path.display(), torn, "a recording that was open is complete");
                    let bytes = Value::Int(torn as i64);
                    let data = vec![("rule", Value::Text(rule.config.name.clone())), ("bytes", bytes)];
                    self.tell.voice.event_with(&stream, "recordRepaired", data);
                    (path, duration_ms)
                }
                Ok(None) => return remove(path),
                Err(error) => return warn!(path = %path.display(), %error, "a recording cannot be repaired"),
            },
        };
        let bytes = fs::metadata(&path).map_or(0, |data| data.len());
        let (format, known) = (shelf::extension(format), self.wall.begun);
        let rule = Arc::from(rule.config.name.as_str());
        let recording = Recording { id, rule, stream, start_us, duration_ms, bytes, format, open: false, path, known };
        self.shelf.lock().insert(id, recording);
    }
}

/// Takes off what is not whole and gives the file its name; `None` when there is no media in it.
fn repair(path: &Path, id: u64, start_us: i64, format: Format) -> io::Result<Option<(std::path::PathBuf, u64, u64)>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let read = |at: u64, into: &mut [u8]| {
        let mut count = 0;
        while let Some(rest) = into.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + count as u64)? {
                0 => break,
                read => count += read,
            }
        }
        Ok(count)
    };
    let found = whole(format, &read)?;
    if found.bytes == 0 {
        return Ok(None);
    }
    file.set_len(found.bytes)?;
    file.sync_all()?;
    let name = path.with_file_name(shelf::file_name(id, start_us, Some(found.duration_ms), format));
    fs::rename(path, &name)?;
    Ok(Some((name, found.duration_ms, len.saturating_sub(found.bytes))))
}

pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "a recording cannot be removed");
    }
}

/// A new name in a folder is durable once the folder is; a file system that cannot do it has it when it likes.
fn sync_folder(folder: &Path) {
    let _synced = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Bytes left on the disk of a folder that may not be there yet.
fn free(folder: &Path) -> u64 {
    let there = folder.ancestors().find(|folder| folder.exists());
    let stat = there.and_then(|folder| rustix::fs::statvfs(folder).ok());
    stat.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}
