//! A disk and a table in memory whose power can be cut: what was not synced is forgotten, in part or whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::bus::disk::{Disk, DiskFile};
use crate::bus::keyed;
use crate::bus::table::{Each, Table};
use crate::bus::{Bus, BusError, Finding, Ground};
use crate::config;

/// What a power cut leaves of the bytes that were written but not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leave {
    Nothing,
    /// So many bytes of each file from the first that was written, and every folder entry.
    Bytes(usize),
    /// The file's length, but zeros for bytes that are new, and old ones for those written over.
    Zeros,
    /// Everything: a killed process, not a power cut.
    All,
}

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
}

type Shared = Arc<Mutex<Content>>;

#[derive(Debug, Default)]
struct State {
    now: BTreeMap<PathBuf, Shared>,
    durable: BTreeMap<PathBuf, Shared>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Bytes all files may take; `None`: any.
    pub room: Option<u64>,
    /// Every sync fails.
    pub sync: bool,
    /// Called by whoever removes a file, once it is gone.
    pub removing: Option<Removing>,
}

#[derive(Clone)]
pub(super) struct Removing(Arc<Mutex<dyn FnMut() + Send>>);

#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk {
    state: Arc<Mutex<State>>,
    pub faults: Arc<Mutex<Faults>>,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    content: Shared,
}

// === impl Removing ===

impl Removing {
    pub(super) fn new(called: impl FnMut() + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(called)))
    }
}

impl std::fmt::Debug for Removing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Removing")
    }
}

// === impl SimDisk ===

impl SimDisk {
    pub(super) fn cut(&self, leave: Leave) -> Self {
        let state = self.state.lock().unwrap();
        let names = if matches!(leave, Leave::Nothing) { &state.durable } else { &state.now };
        let files: BTreeMap<PathBuf, Shared> = names
            .iter()
            .map(|(path, content)| {
                let content = content.lock().unwrap();
                let Content { now, durable } = &*content;
                let (kept, new) = (durable.len().min(now.len()), now.len());
                let first = now.iter().zip(durable).position(|(new, old)| new != old).unwrap_or(kept);
                let after = match leave {
                    Leave::Nothing => durable.clone(),
                    Leave::Bytes(n) => {
                        let end = (first + n).min(new);
                        [&now[..end], durable.get(end..kept).unwrap_or_default()].concat()
                    }
                    Leave::Zeros => [&durable[..kept], &vec![0; new - kept][..]].concat(),
                    Leave::All => now.clone(),
                };
                (path.clone(), Arc::new(Mutex::new(Content { now: after.clone(), durable: after })))
            })
            .collect();
        let state = State { now: files.clone(), durable: files };
        Self { state: Arc::new(Mutex::new(state)), faults: Arc::default() }
    }

    /// Plain files whose path contains `part`, in order.
    pub(super) fn files(&self, part: &str) -> Vec<PathBuf> {
        let state = self.state.lock().unwrap();
        state.now.keys().filter(|path| path.to_string_lossy().contains(part)).cloned().collect()
    }

    pub(super) fn edit<T>(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let state = self.state.lock().unwrap();
        let mut content = state.now[path].lock().unwrap();
        let result = edit(&mut content.now);
        content.durable = content.now.clone();
        result
    }

    pub(super) fn bytes(&self) -> u64 {
        let state = self.state.lock().unwrap();
        state.now.values().map(|content| content.lock().unwrap().now.len() as u64).sum()
    }

    fn check_room(&self, more: u64) -> io::Result<()> {
        match self.faults.lock().unwrap().room {
            Some(room) if self.bytes() + more > room => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.check_room(1)?;
        let content = Shared::default();
        self.state.lock().unwrap().now.insert(path.to_owned(), Arc::clone(&content));
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let content = self.state.lock().unwrap().now.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let state = self.state.lock().unwrap();
        let inside = state.now.iter().filter(|(path, _)| path.parent() == Some(folder));
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        Ok(inside.map(|(path, content)| (name(path), content.lock().unwrap().now.len() as u64)).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.lock().unwrap().now.remove(path).ok_or(io::ErrorKind::NotFound)?;
        let removing = self.faults.lock().unwrap().removing.clone();
        if let Some(Removing(called)) = removing {
            called.lock().unwrap()();
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let content = state.now.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.now.insert(to.to_owned(), content);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let State { now, durable } = &mut *state;
        durable.retain(|path, _| path.parent() != Some(folder));
        let inside = now.iter().filter(|(path, _)| path.parent() == Some(folder));
        durable.extend(inside.map(|(path, content)| (path.clone(), Arc::clone(content))));
        Ok(())
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        Ok(self.faults.lock().unwrap().room.map_or(u64::MAX, |room| room.saturating_sub(self.bytes())))
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        let len = self.content.lock().unwrap().now.len();
        let full = self.disk.check_room(end.saturating_sub(len) as u64);
        // A full disk takes what still fits: here half.
        let bytes = if full.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let mut content = self.content.lock().unwrap();
        let end = offset + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(bytes);
        full
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.content.lock().unwrap();
        let rest = content.now.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn sync(&self) -> io::Result<()> {
        if self.disk.faults.lock().unwrap().sync {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut content = self.content.lock().unwrap();
        content.durable = content.now.clone();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.content.lock().unwrap().now.resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }
}

type Map = BTreeMap<Vec<u8>, Bytes>;

/// A table whose unsynced changes a power cut forgets.
#[derive(Debug, Clone, Default)]
pub(super) struct SimTable {
    now: Arc<Mutex<Map>>,
    durable: Arc<Mutex<Map>>,
}

impl SimTable {
    pub(super) fn cut(&self) -> Self {
        let map = self.durable.lock().unwrap().clone();
        Self { now: Arc::new(Mutex::new(map.clone())), durable: Arc::new(Mutex::new(map)) }
    }
}

impl Table for SimTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        Ok(self.now.lock().unwrap().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], each: Each<'_>) -> Result<(), String> {
        let map = self.now.lock().unwrap().clone();
        map.iter().filter(|(key, _)| key.starts_with(prefix)).try_for_each(|(key, value)| each(key, value.clone()))
    }

    fn apply(&self, changes: &[(Vec<u8>, Option<Bytes>)]) -> Result<(), String> {
        let mut map = self.now.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => drop(map.insert(key.clone(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        let map = self.now.lock().unwrap().clone();
        *self.durable.lock().unwrap() = map;
        Ok(())
    }
}

/// A box: its disk, its keyed state, its settings.
#[derive(Debug, Clone, Default)]
pub(super) struct Rig {
    pub disk: SimDisk,
    pub table: SimTable,
    pub config: config::Store,
    /// The keyed state was lost or restored.
    pub lossy: bool,
    pub collect: Duration,
}

impl Rig {
    pub(super) fn new() -> Self {
        let config = config::Store { path: "/sim".into(), commit_ms: 0, free_min_mib: 0, ..config::Store::default() };
        Self { config, collect: keyed::COLLECT, ..Self::default() }
    }

    pub(super) fn start(&self) -> Result<(Bus, Vec<Finding>), BusError> {
        let mut findings = Vec::new();
        let (disk, table) = (Arc::new(self.disk.clone()), Box::new(self.table.clone()));
        let ground = Ground { disk, table, lossy: self.lossy, collect: self.collect };
        let bus = Bus::assemble(&self.config, ground, None, &mut findings)?;
        Ok((bus, findings))
    }

    /// The box as it is after its power was cut (or, with `Leave::All`, its process killed).
    pub(super) fn cut(&self, leave: Leave) -> Self {
        let table = if matches!(leave, Leave::All) {
            SimTable { now: Arc::new(Mutex::new(self.table.now.lock().unwrap().clone())), ..self.table.cut() }
        } else {
            self.table.cut()
        };
        Self { disk: self.disk.cut(leave), table, config: self.config.clone(), ..*self }
    }
}
