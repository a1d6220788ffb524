//! Opening sled without trusting it: in a thread of its own, with a deadline and against its panics. A database that
//! cannot be opened is set aside, and the state starts from the last export.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::disk::Disk;
use super::table::{BROKEN, LOCKED, MemoryTable, SledTable, Table};
use super::{BusError, Finding, FindingKind, export};
use crate::{clock, threads};

/// How long sled may take to open: a large one takes a second on a slow box; a damaged one can hang for ever.
const PATIENCE: Duration = Duration::from_secs(20);
/// Databases set aside that are kept for a look.
const ASIDE_MAX: usize = 2;

/// Opens the keyed state under `folder` (sled in `sled/`, the export in `sled.export`). The flag says that it is not what
/// was written last: it was restored from the export, or begins anew.
pub(super) fn open(
    disk: &dyn Disk,
    folder: &Path,
    findings: &mut Vec<Finding>,
) -> Result<(Box<dyn Table>, bool), BusError> {
    let path = folder.join("sled");
    let (note, export) = (folder.join(BROKEN), folder.join("sled.export"));
    let existed = path.join("db").exists();
    let first = if note.exists() { Err("it had panicked while running".to_owned()) } else { attempt(&path) };
    let why = match first {
        // A database that came out empty although its export has content has lost everything silently.
        Ok((table, _)) if table.is_empty() && export.exists() => {
            drop(table);
            "it is empty, but its export is not".to_owned()
        }
        Ok((table, true)) => return Ok((Box::new(table), !existed)),
        Ok((table, false)) => {
            let back = export::restore(disk, &export, &table, true).map_err(BusError::Keyed)?.unwrap_or(0);
            let text = format!("{}: values are missing; {back} put back from the export", path.display());
            findings.push(Finding { kind: FindingKind::KeyedRestored, text });
            return Ok((Box::new(table), true));
        }
        Err(why) if why.contains(LOCKED) => return Err(BusError::Locked { path }),
        Err(why) => why,
    };
    if existed {
        let aside = set_aside(&path);
        let text = format!("{}: {why}; set aside: {aside}", path.display());
        findings.push(Finding { kind: FindingKind::Quarantined, text });
    }
    // Until the restored state is durable the note stays: a power cut in between must not leave half of it behind.
    drop(fs::write(&note, "restoring").and_then(|()| disk.sync_folder(folder)));
    let table: Box<dyn Table> = match attempt(&path) {
        Ok((table, _)) => Box::new(table),
        Err(why) => {
            let text = format!("{}: {why}; the keyed state is in memory only", path.display());
            findings.push(Finding { kind: FindingKind::ReadOnly, text });
            Box::new(MemoryTable::default())
        }
    };
    let text = match export::restore(disk, &export, &*table, false).map_err(BusError::Keyed)? {
        Some(entries) => format!("{entries} entries of keyed state restored from {}", export.display()),
        None => "the keyed state begins anew: there is no export to restore".to_owned(),
    };
    if table.sync().is_ok() {
        drop(fs::remove_file(&note));
    }
    findings.push(Finding { kind: FindingKind::KeyedRestored, text });
    Ok((table, true))
}

fn attempt(path: &Path) -> Result<(SledTable, bool), String> {
    let (done, result) = mpsc::sync_channel(1);
    let folder = path.to_owned();
    let thread = threads::thread("sled-open", move || {
        // The receiver is gone when the patience is over: the table is then dropped here.
        drop(done.send(SledTable::open(&folder)));
    });
    thread.map_err(|error| error.to_string())?;
    // A panic drops the sender; it needs no catching beyond the thread's own.
    match result.recv_timeout(PATIENCE) {
        Ok(opened) => opened,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("it did not open within {PATIENCE:?}")),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err("it panicked on opening".to_owned()),
    }
}

/// Moves sled's folder out of the way and keeps only the newest ones moved. Returns the new place.
fn set_aside(path: &Path) -> String {
    let to = path.with_file_name(format!("quarantine-{:020}", clock::now_us()));
    let moved = fs::rename(path, &to);
    if let Some(folder) = path.parent() {
        prune(folder);
    }
    moved.map_or_else(|error| error.to_string(), |()| to.display().to_string())
}

fn prune(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut aside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    aside.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("quarantine-")));
    aside.sort();
    while aside.len() > ASIDE_MAX {
        drop(fs::remove_dir_all(aside.remove(0)));
    }
}
