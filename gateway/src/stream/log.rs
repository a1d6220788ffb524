//! The append-only log of one stream in one container: blocks of muxed bytes that all viewers read.
//!
//! A tag never spans two blocks, so that a viewer's write is a few long slices and the rest of a tag is one slice.
//! Bytes never move and never change once appended; a sealed block lives as long as the log or a viewer that is in the
//! middle of one of its tags needs it. Must not be in here: sockets, clocks.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::gop::{Gop, Keep, Mark};

/// Bytes of an ordinary block; a tag that is larger gets a block of its own. Below 30 KB a write the system call costs
/// more than the copy, above 64 KB nothing is gained.
const BLOCK_LEN: usize = 64 * 1024;

/// Slices one write hands to the kernel: more than 4 cost more than they bring.
pub(super) const SLICES_MAX: usize = 4;

#[derive(Debug)]
struct Block {
    base: u64,
    bytes: Bytes,
}

impl Block {
    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    sealed: VecDeque<Block>,
    open: Vec<u8>,
    open_base: u64,
    gop: Gop,
}

impl Log {
    pub(super) fn new(keep: Keep) -> Self {
        Self { sealed: VecDeque::new(), open: Vec::new(), open_base: 0, gop: Gop::new(keep) }
    }

    pub(super) fn gop(&self) -> &Gop {
        &self.gop
    }

    /// Appends one tag; `true` when a block was sealed for it, which is the moment to think about what can go.
    pub(super) fn append(&mut self, mark: Mark, dts_90k: i64, tag: &[u8]) -> bool {
        let mut sealed = false;
        if self.open.len() + tag.len() > self.open.capacity() {
            sealed = self.seal();
            self.open = Vec::with_capacity(tag.len().max(BLOCK_LEN));
        }
        self.open.extend_from_slice(tag);
        self.gop.push(mark, dts_90k, tag.len());
        sealed
    }

    fn seal(&mut self) -> bool {
        let mut full = std::mem::take(&mut self.open);
        if full.is_empty() {
            return false;
        }
        // A large key frame after a small rest leaves most of a block empty.
        if full.capacity() - full.len() > BLOCK_LEN / 8 {
            full.shrink_to_fit();
        }
        let block = Block { base: self.open_base, bytes: Bytes::from(full) };
        self.open_base = block.end();
        self.sealed.push_back(block);
        true
    }

    /// Up to where the bytes are in sealed blocks.
    pub(super) fn sealed_to(&self) -> u64 {
        self.open_base
    }

    /// The sealed blocks that begin at or after `from`, with the offsets of their first bytes.
    pub(super) fn sealed_since(&self, from: u64) -> impl Iterator<Item = (u64, &Bytes)> {
        let first = self.sealed.partition_point(|block| block.base < from);
        self.sealed.range(first..).map(|block| (block.base, &block.bytes))
    }

    /// Bytes kept in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.gop.head() - self.sealed.front().map_or(self.open_base, |block| block.base)
    }

    /// Fills `slices` from index `filled` on with the bytes of `from..to`; gives the number of filled slices.
    pub(super) fn slices<'a>(
        &'a self,
        from: u64,
        to: u64,
        slices: &mut [IoSlice<'a>; SLICES_MAX],
        mut filled: usize,
    ) -> usize {
        let first = self.sealed.partition_point(|block| block.end() <= from);
        let sealed = self.sealed.range(first..).map(|block| (block.base, &block.bytes[..]));
        for (base, bytes) in sealed.chain(std::iter::once((self.open_base, &self.open[..]))) {
            if base >= to || filled == SLICES_MAX {
                break;
            }
            let start = from.saturating_sub(base) as usize;
            let end = bytes.len().min((to - base) as usize);
            if let (Some(slot), Some(part)) = (slices.get_mut(filled), bytes.get(start..end))
                && !part.is_empty()
            {
                *slot = IoSlice::new(part);
                filled += 1;
            }
        }
        filled
    }

    /// The bytes `from..to` of one tag, to outlive the log's own interest in them. Shared where the block is sealed.
    pub(super) fn pin(&self, from: u64, to: u64) -> Bytes {
        let at = self.sealed.partition_point(|block| block.end() <= from);
        if let Some(block) = self.sealed.get(at) {
            let (start, end) = (from.saturating_sub(block.base) as usize, (to - block.base) as usize);
            return block.bytes.slice(start..end.min(block.bytes.len()));
        }
        let (start, end) = (from.saturating_sub(self.open_base) as usize, to.saturating_sub(self.open_base) as usize);
        self.open.get(start..end).map(Bytes::copy_from_slice).unwrap_or_default()
    }

    /// The tail that has to be enforced now, whoever still reads there; equal to the present tail when nothing has to.
    pub(super) fn bound(&self) -> u64 {
        let mut tail = self.gop.bound();
        let mut bytes = self.bytes();
        for block in &self.sealed {
            if bytes <= self.gop.bytes_max() {
                break;
            }
            bytes -= block.bytes.len() as u64;
            tail = tail.max(block.end());
        }
        tail
    }

    /// Lets go of what lies before `tail` (a tag's beginning). Cursors before it must have been moved.
    pub(super) fn evict(&mut self, tail: u64) {
        self.gop.drop_before(tail);
        while self.sealed.front().is_some_and(|block| block.end() <= tail) {
            self.sealed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &Log, from: u64, to: u64) -> Vec<u8> {
        let (mut from, mut read) = (from, Vec::new());
        while from < to {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = log.slices(from, to, &mut slices, 0);
            assert!(filled > 0, "bytes {from}..{to} are not there");
            for slice in &slices[..filled] {
                read.extend_from_slice(slice);
                from += slice.len() as u64;
            }
        }
        read
    }

    #[test]
    fn what_was_appended_is_read_across_blocks() {
        let mut log = Log::new(Keep::new(8192, 10));
        let mut all = Vec::new();
        for n in 0..2000_u32 {
            let tag = vec![n as u8; 1 + (n as usize * 37) % 900];
            all.extend_from_slice(&tag);
            log.append(Mark::Video, i64::from(n), &tag);
        }
        let big = vec![7; 200_000];
        all.extend_from_slice(&big);
        log.append(Mark::Key, 3000, &big);
        assert_eq!(read(&log, 0, all.len() as u64), all);
        assert_eq!(read(&log, 12_345, 500_000), all[12_345..500_000]);
        assert_eq!(log.pin(all.len() as u64 - 10, all.len() as u64), vec![7; 10]);
    }

    #[test]
    fn bytes_are_bounded_by_whole_blocks() {
        let mut log = Log::new(Keep::new(256, 1000));
        for n in 0..5000_i64 {
            log.append(if n == 0 { Mark::Key } else { Mark::Video }, n, &[0; 1000]);
            let tail = log.bound();
            if tail > log.gop().tail() {
                log.evict(tail);
            }
            assert!(log.bytes() <= 256 * 1024 + 1000, "{}", log.bytes());
        }
        assert_eq!(log.gop().join(), None, "the key frame went with the oldest block");
    }

    #[test]
    fn a_pinned_rest_outlives_its_block() {
        let mut log = Log::new(Keep::new(64, 10));
        log.append(Mark::Key, 0, &vec![1; 60_000]);
        log.append(Mark::Key, 1, &vec![2; 60_000]);
        let rest = log.pin(59_990, 60_000);
        log.evict(60_000);
        assert_eq!(rest, vec![1; 10]);
        assert_eq!(read(&log, 60_000, 120_000), vec![2; 60_000]);
    }
}
