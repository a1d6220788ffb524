//! The rescue copy of the keyed state: one file, written whole and put in place at once, each frame with its CRC32C.
//!
//! Bytes: magic `SGKEYED1`, then frames of `len: u32, crc: u32, key_len: u32, key, value` (little-endian; `len` counts
//! from `key_len`, `crc` covers the same), at the end a frame of `len` 8 with the count of frames as a u64. A copy
//! without that end is not used; one with damaged frames gives what is whole.

use std::io;
use std::path::Path;

use bytes::Bytes;
use crc32c::crc32c;

use super::disk::{Disk, DiskFile};
use super::table::Table;

const MAGIC: [u8; 8] = *b"SGKEYED1";
/// Bytes written at a time.
const BLOCK: usize = 64 * 1024;
/// Longest frame believed: the longest key and value, and a little.
const FRAME_MAX: usize = 2 * 1024 * 1024;
/// Entries given to the engine at a time on restoring.
const RESTORE: usize = 1000;

/// Takes a key and its value.
type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), String>;

/// Writes the copy to `path`. Returns its bytes.
pub(super) fn write(disk: &dyn Disk, path: &Path, table: &dyn Table) -> io::Result<u64> {
    let new = path.with_extension("new");
    let file = disk.create(&new)?;
    let mut out = Out { file: &*file, block: MAGIC.to_vec(), offset: 0 };
    let mut count: u64 = 0;
    let mut each = |key: &[u8], value: Bytes| {
        count += 1;
        let body = [&(key.len() as u32).to_le_bytes(), key, value.as_ref()].concat();
        out.frame(&body).map_err(|error| error.to_string())
    };
    table.scan(&[], &mut each).map_err(io::Error::other)?;
    out.frame(&count.to_le_bytes())?;
    out.flush()?;
    let bytes = out.offset;
    file.sync()?;
    disk.rename(&new, path)?;
    if let Some(folder) = path.parent() {
        disk.sync_folder(folder)?;
    }
    Ok(bytes)
}

/// Puts everything whole in the copy (or only what is `missing`) into `table`. Returns the entries restored; `None`
/// without a usable copy.
pub(super) fn restore(disk: &dyn Disk, path: &Path, table: &dyn Table, missing: bool) -> Result<Option<u64>, String> {
    let (mut restored, mut changes) = (0, Vec::new());
    let mut each = |key: &[u8], value: &[u8]| {
        if !(missing && table.get(key)?.is_some()) {
            changes.push((key.to_vec(), Some(Bytes::copy_from_slice(value))));
            restored += 1;
        }
        if changes.len() >= RESTORE {
            table.apply(&changes)?;
            changes.clear();
        }
        Ok(())
    };
    if !read(disk, path, &mut each)? {
        return Ok(None);
    }
    table.apply(&changes)?;
    Ok(Some(restored))
}

/// Tells everything whole in the copy. False without a usable copy.
pub(super) fn read(disk: &dyn Disk, path: &Path, each: Each<'_>) -> Result<bool, String> {
    let Ok(file) = disk.open(path) else { return Ok(false) };
    let len = file.len().map_err(|error| error.to_string())?;
    let mut magic = [0; 8];
    if file.read_at(0, &mut magic).map_err(|error| error.to_string())? < 8 || magic != MAGIC {
        return Ok(false);
    }
    let mut at = 8;
    while at + 8 < len {
        let mut head = [0; 8];
        file.read_at(at, &mut head).map_err(|error| error.to_string())?;
        let [a, b, c, d, crc @ ..] = head;
        let size = u32::from_le_bytes([a, b, c, d]) as usize;
        if size > FRAME_MAX || at + 8 + size as u64 > len {
            break;
        }
        let mut body = vec![0; size];
        file.read_at(at + 8, &mut body).map_err(|error| error.to_string())?;
        at += 8 + size as u64;
        if crc32c(&body).to_le_bytes() != crc || at >= len {
            continue;
        }
        if let Some((key, value)) = entry(&body) {
            each(key, value)?;
        }
    }
    Ok(true)
}

fn entry(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = body.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// Collects frames into blocks.
struct Out<'a> {
    file: &'a dyn DiskFile,
    block: Vec<u8>,
    offset: u64,
}

impl Out<'_> {
    fn frame(&mut self, body: &[u8]) -> io::Result<()> {
        self.block.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.block.extend_from_slice(&crc32c(body).to_le_bytes());
        self.block.extend_from_slice(body);
        if self.block.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.offset, &self.block)?;
        self.offset += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }
}
