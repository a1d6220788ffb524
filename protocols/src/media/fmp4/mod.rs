//! Fragmented MP4 (ISO/IEC 14496-12, CMAF): an init segment that says what the tracks are, and fragments of access units.
//!
//! Inside: the boxes of both (here), sample entries and codecs strings (`entry.rs`), and what collects units into
//! fragments (`fragmenter.rs`). Must not be in here: playlists, files, and when to cut; that is the user's.

use bytes::{BufMut, Bytes, BytesMut};

use super::Track;

mod entry;
mod fragmenter;
#[cfg(test)]
mod tests;

pub use entry::Description;
pub use fragmenter::{Fragment, Fragmenter};

/// One access unit in a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Ticks of the track's clock until the next unit.
    pub duration: u32,
    /// Ticks of the track's clock from decode to presentation.
    pub composition: i32,
    /// Decoding can start here.
    pub sync: bool,
    pub data: Bytes,
}

/// The access units of one track in a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub track_id: u32,
    /// Decode time of the first unit in ticks of the track's clock; before 0 counts as 0.
    pub dts: i64,
    pub samples: Vec<Sample>,
}

/// The identity matrix (14496-12, 6.2.2).
const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// `und`, packed (8.4.2.3).
const LANGUAGE: u16 = 0x55c4;

/// Sample flags (8.8.3.1): depends on no other; depends on others and is no sync sample.
const SYNC: u32 = 0x0200_0000;
const NOT_SYNC: u32 = 0x0101_0000;

/// The init segment: `ftyp` and a `moov` without samples (14496-12, 4.3 and 8.2.1).
pub fn init(tracks: &[Description]) -> Bytes {
    let mut out = BytesMut::with_capacity(1024);
    boxed(&mut out, *b"ftyp", |out| {
        out.put_slice(b"iso6");
        out.put_u32(0);
        out.put_slice(b"iso6cmfcmp41");
    });
    boxed(&mut out, *b"moov", |out| {
        let next_id = tracks.iter().map(|track| track.id).max().unwrap_or(0).saturating_add(1);
        movie_header(next_id, out);
        for track in tracks {
            boxed(out, *b"trak", |out| trak(track, out));
        }
        boxed(out, *b"mvex", |out| {
            for track in tracks {
                full(out, *b"trex", 0, 0, |out| {
                    // Sample description 1; duration, size and flags are said in each fragment (8.8.3).
                    words(out, &[track.id, 1, 0, 0, 0]);
                });
            }
        });
    });
    out.freeze()
}

/// 8.2.2; the duration of what has none yet is 0.
fn movie_header(next_id: u32, out: &mut BytesMut) {
    full(out, *b"mvhd", 0, 0, |out| {
        words(out, &[0, 0, 1_000, 0, 0x1_0000]);
        out.put_u16(0x100);
        out.put_bytes(0, 10);
        words(out, &MATRIX);
        out.put_bytes(0, 24);
        out.put_u32(next_id);
    });
}

fn trak(track: &Description, out: &mut BytesMut) {
    let video = track.track == Track::Video;
    // 8.3.2: enabled, in the movie, in the preview
    full(out, *b"tkhd", 0, 7, |out| {
        words(out, &[0, 0, track.id, 0, 0, 0, 0]);
        out.put_u32(u32::from(!video));
        out.put_u16(if video { 0 } else { 0x100 });
        out.put_u16(0);
        words(out, &MATRIX);
        out.put_u32(u32::from(track.width) << 16);
        out.put_u32(u32::from(track.height) << 16);
    });
    boxed(out, *b"mdia", |out| {
        full(out, *b"mdhd", 0, 0, |out| {
            words(out, &[0, 0, track.timescale, 0]);
            out.put_u16(LANGUAGE);
            out.put_u16(0);
        });
        let (kind, name) = if video { (b"vide", b"video\0") } else { (b"soun", b"audio\0") };
        full(out, *b"hdlr", 0, 0, |out| {
            out.put_u32(0);
            out.put_slice(kind);
            out.put_bytes(0, 12);
            out.put_slice(name);
        });
        boxed(out, *b"minf", |out| media_information(track, video, out));
    });
}

fn media_information(track: &Description, video: bool, out: &mut BytesMut) {
    if video {
        full(out, *b"vmhd", 0, 1, |out| out.put_bytes(0, 8));
    } else {
        full(out, *b"smhd", 0, 0, |out| out.put_u32(0));
    }
    boxed(out, *b"dinf", |out| {
        full(out, *b"dref", 0, 0, |out| {
            out.put_u32(1);
            // 8.7.2: the media is in this file
            full(out, *b"url ", 0, 1, |_| {});
        });
    });
    boxed(out, *b"stbl", |out| {
        full(out, *b"stsd", 0, 0, |out| {
            out.put_u32(1);
            track.write_entry(out);
        });
        for name in [*b"stts", *b"stsc"] {
            full(out, name, 0, 0, |out| out.put_u32(0));
        }
        full(out, *b"stsz", 0, 0, |out| out.put_u64(0));
        full(out, *b"stco", 0, 0, |out| out.put_u32(0));
    });
}

/// A fragment: `moof` and `mdat` (14496-12, 8.8.4 and 8.1.1). `sequence` rises from fragment to fragment. The units
/// together must be below 4 GiB.
pub fn fragment(sequence: u32, runs: &[Run]) -> Bytes {
    let media: usize = runs.iter().flat_map(|run| &run.samples).map(|sample| sample.data.len()).sum();
    let samples: usize = runs.iter().map(|run| run.samples.len()).sum();
    let mut out = BytesMut::with_capacity(media + 16 * samples + 128 * (runs.len() + 1));
    let mut offsets = Vec::with_capacity(runs.len());
    boxed(&mut out, *b"moof", |out| {
        full(out, *b"mfhd", 0, 0, |out| out.put_u32(sequence));
        for run in runs {
            boxed(out, *b"traf", |out| offsets.push(traf(run, out)));
        }
    });
    // Data offsets count from the beginning of the moof (tfhd's default-base-is-moof).
    let mut offset = out.len() + 8;
    for (at, run) in offsets.into_iter().zip(runs) {
        patch(&mut out, at, offset);
        offset += run.samples.iter().map(|sample| sample.data.len()).sum::<usize>();
    }
    boxed(&mut out, *b"mdat", |out| {
        for sample in runs.iter().flat_map(|run| &run.samples) {
            out.put_slice(&sample.data);
        }
    });
    out.freeze()
}

/// Gives the place of the run's data offset, to be filled in.
fn traf(run: &Run, out: &mut BytesMut) -> usize {
    const DEFAULT_BASE_IS_MOOF: u32 = 0x02_0000;
    const DEFAULT_FLAGS: u32 = 0x20;
    const DATA_OFFSET: u32 = 1;
    const DURATION_AND_SIZE: u32 = 0x300;
    const SAMPLE_FLAGS: u32 = 0x400;
    const COMPOSITION: u32 = 0x800;
    // 8.8.7
    full(out, *b"tfhd", 0, DEFAULT_BASE_IS_MOOF | DEFAULT_FLAGS, |out| {
        out.put_u32(run.track_id);
        out.put_u32(SYNC);
    });
    // 8.8.12
    full(out, *b"tfdt", 1, 0, |out| out.put_u64(u64::try_from(run.dts).unwrap_or(0)));
    let all_sync = run.samples.iter().all(|sample| sample.sync);
    let in_order = run.samples.iter().all(|sample| sample.composition == 0);
    let mut flags = DATA_OFFSET | DURATION_AND_SIZE;
    flags |= if all_sync { 0 } else { SAMPLE_FLAGS };
    flags |= if in_order { 0 } else { COMPOSITION };
    let mut at = 0;
    // 8.8.8; version 1 has signed composition offsets
    full(out, *b"trun", 1, flags, |out| {
        out.put_u32(run.samples.len() as u32);
        at = out.len();
        out.put_u32(0);
        for sample in &run.samples {
            out.put_u32(sample.duration);
            out.put_u32(sample.data.len() as u32);
            if !all_sync {
                out.put_u32(if sample.sync { SYNC } else { NOT_SYNC });
            }
            if !in_order {
                out.put_i32(sample.composition);
            }
        }
    });
    at
}

/// A box (4.2) around what `body` writes.
fn boxed(out: &mut BytesMut, name: [u8; 4], body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_slice(&name);
    body(out);
    let len = out.len() - start;
    patch(out, start, len);
}

/// A full box (4.2): with version and flags.
fn full(out: &mut BytesMut, name: [u8; 4], version: u8, flags: u32, body: impl FnOnce(&mut BytesMut)) {
    boxed(out, name, |out| {
        out.put_u32(u32::from(version) << 24 | flags);
        body(out);
    });
}

fn words(out: &mut BytesMut, words: &[u32]) {
    for word in words {
        out.put_u32(*word);
    }
}

/// Fills in four bytes that were left for a number.
fn patch(out: &mut BytesMut, at: usize, value: usize) {
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&(value as u32).to_be_bytes());
    }
}
