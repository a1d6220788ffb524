//! How much of a file is whole: what a power cut tore off its end is found without an index.

use std::io;

use crate::config::Format;

/// The whole part of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub bytes: u64,
    pub duration_ms: u64,
}

/// Bytes at a place of a file; fewer at its end.
pub(super) type ReadAt<'r> = dyn Fn(u64, &mut [u8]) -> io::Result<usize> + 'r;

/// Walks a file from its beginning to the last whole tag or fragment. `bytes` 0: there is no media in it.
pub(super) fn whole(format: Format, read: &ReadAt<'_>) -> io::Result<Whole> {
    match format {
        Format::Flv => flv(read),
        Format::Fmp4 => fmp4(read),
    }
}

/// FLV, annex E: a head of 13 bytes, then tags, each followed by its length.
fn flv(read: &ReadAt<'_>) -> io::Result<Whole> {
    let mut head = [0; 13];
    if read(0, &mut head)? < head.len() || !head.starts_with(b"FLV\x01") {
        return Ok(Whole::default());
    }
    let (mut at, mut found) = (13_u64, Whole::default());
    loop {
        let mut tag = [0; 11];
        if read(at, &mut tag)? < tag.len() {
            return Ok(found);
        }
        let [kind, a, b, c, t1, t2, t3, t4, ..] = tag;
        let len = u32::from_be_bytes([0, a, b, c]);
        let end = at + 11 + u64::from(len);
        let mut back = [0; 4];
        if !matches!(kind, 8 | 9 | 18) || read(end, &mut back)? < 4 || u32::from_be_bytes(back) != len + 11 {
            return Ok(found);
        }
        at = end + 4;
        let time_ms = u64::from(u32::from_be_bytes([t4, t1, t2, t3]));
        if kind != 18 {
            found = Whole { bytes: at, duration_ms: found.duration_ms.max(time_ms) };
        }
    }
}

/// ISO/IEC 14496-12: `ftyp`, `moov`, then pairs of `moof` and `mdat`.
fn fmp4(read: &ReadAt<'_>) -> io::Result<Whole> {
    let (mut at, mut found, mut moof_90k) = (0_u64, Whole::default(), None);
    loop {
        let mut head = [0; 8];
        if read(at, &mut head)? < head.len() {
            return Ok(found);
        }
        let [a, b, c, d, name @ ..] = head;
        let len = u64::from(u32::from_be_bytes([a, b, c, d]));
        let mut last = [0; 1];
        let known = matches!(&name, b"ftyp" | b"moov" | b"moof" | b"mdat");
        if !known || len < 8 || read(at + len - 1, &mut last)? < 1 {
            return Ok(found);
        }
        match &name {
            b"moof" => moof_90k = Some(decode_time(read, at, len)?),
            b"mdat" => {
                if let Some(time_90k) = moof_90k.take() {
                    found = Whole { bytes: at + len, duration_ms: found.duration_ms.max(time_90k / 90) };
                }
            }
            _ => {}
        }
        at += len;
    }
}

/// Longest head of a fragment that is looked into.
const MOOF_MAX: u64 = 1024 * 1024;

/// The decode time of a fragment's first track (`tfdt`, 8.8.12, version 1), which is the video where there is any; 0 where
/// it is not found.
fn decode_time(read: &ReadAt<'_>, at: u64, len: u64) -> io::Result<u64> {
    let mut moof = vec![0; len.min(MOOF_MAX) as usize];
    let count = read(at, &mut moof)?;
    let moof = moof.get(..count).unwrap_or_default();
    let tfdt = moof.windows(4).position(|name| name == b"tfdt");
    let time = tfdt.and_then(|tfdt| moof.get(tfdt + 8..)?.first_chunk::<8>().copied());
    Ok(time.map_or(0, u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::{Tracks, Unit, flv};

    use super::super::encode::Encoder;
    use super::*;

    const SAMPLE: &[u8] = include_bytes!("../demo/clips/gate-1.flv");

    /// A file as the recorder writes it, and where each piece ends.
    fn recorded(format: Format) -> (Vec<u8>, Vec<usize>) {
        let (mut demux, mut tracks, mut encoder, mut at) = (flv::Demux::default(), Tracks::default(), None, 13);
        let (mut file, mut ends, mut units) = (Vec::new(), vec![0], 0);
        while let Some(tag) = SAMPLE.get(at..at + 11).filter(|_| file.len() < 40_000) {
            let len = u32::from_be_bytes([0, tag[1], tag[2], tag[3]]) as usize;
            let time = i64::from(u32::from_be_bytes([tag[7], tag[4], tag[5], tag[6]]));
            let body = Bytes::copy_from_slice(&SAMPLE[at + 11..at + 11 + len]);
            at += len + 15;
            let Ok(Some(unit)) = demux.unit(flv::TagType::of(tag[0]).unwrap(), time, body) else { continue };
            let unit: Unit = unit;
            tracks.note(&unit);
            if unit.kind == protocols::media::Kind::Config {
                continue;
            }
            let encoder = encoder.get_or_insert_with(|| Encoder::begin(format, &tracks, &unit).unwrap());
            encoder.push(&unit);
            units += 1;
            if units % 20 == 0 {
                file.extend_from_slice(&encoder.piece(false));
                ends.push(file.len());
            }
        }
        (file, ends)
    }

    fn of(format: Format, bytes: &[u8]) -> Whole {
        let read = |at: u64, into: &mut [u8]| {
            let rest = bytes.get(at as usize..).unwrap_or_default();
            let count = rest.len().min(into.len());
            into[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        };
        whole(format, &read).unwrap()
    }

    /// Complaint 20: a power cut at any byte.
    #[test]
    fn what_was_flushed_is_whole_wherever_the_power_is_cut() {
        for format in [Format::Flv, Format::Fmp4] {
            let (file, ends) = recorded(format);
            assert!(ends.len() > 3, "{format:?}: {ends:?}");
            assert_eq!(of(format, &file).bytes, file.len() as u64, "{format:?}: all of it");
            for cut in 0..=file.len() {
                let found = of(format, &file[..cut]).bytes as usize;
                let flushed = ends.iter().rev().find(|end| **end <= cut).copied().unwrap_or(0);
                assert!((flushed..=cut).contains(&found), "{format:?} cut at {cut}: {found}, flushed {flushed}");
                assert_eq!(of(format, &file[..found]).bytes as usize, found, "what is left is whole");
            }
            let mut zeroed = file[..ends[2]].to_vec();
            zeroed.extend_from_slice(&[0; 5000]);
            assert_eq!(of(format, &zeroed).bytes as usize, ends[2], "{format:?}: blocks that never came to disk");
        }
    }
}
