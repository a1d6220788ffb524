//! One segment file: its name, its header, its frames, and finding the next good frame after a bad one.
//!
//! The format is written down byte by byte in the documentation of [`bus`](super). Must not be in here: files.

use std::ops::Range;

use crc32c::{crc32c, crc32c_append};
use device_models::Class;
use device_models::wire::Template;

/// Bytes of the segment header.
pub(super) const HEADER: usize = 40;
/// Bytes in front of each record's own.
pub(super) const FRAME: usize = 16;
/// Longest record, bytes: a batch of a few thousand samples fits; a reader can hold one whatever else it holds.
pub const RECORD_MAX: usize = 512 * 1024;

const MAGIC: [u8; 8] = *b"SGLOGSEG";
/// What is written; files of version 1, which have no templates, are read.
const VERSION: u16 = 2;
const VERSION_OLDEST: u16 = 1;
/// Top bits of the length word: the frame is a gap marker, a template, a record that leans on one.
const GAP_BIT: u32 = 1 << 31;
const TEMPLATE_BIT: u32 = 1 << 30;
const LEANING_BIT: u32 = 1 << 29;
const KIND_BITS: u32 = GAP_BIT | TEMPLATE_BIT | LEANING_BIT;
/// Bytes of a template's label in front of a leaning record, and of the template itself.
pub(super) const LABEL: usize = 8;

/// What a segment's file name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    pub class: Class,
    pub epoch: u64,
    pub first: u64,
}

/// What stands at one place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Frame(Frame),
    /// The bytes end inside the frame; so many are needed.
    Short(usize),
    /// No frame of this segment starts here.
    Bad,
}

/// A good frame: where its payload lies, where the next frame starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub seq: u64,
    pub kind: Kind,
    /// Behind the label, where there is one.
    pub payload: Range<usize>,
    pub end: usize,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A record, and the label of the template it leans on.
    Record(Option<u64>),
    Gap,
    /// What records behind it lean on; its number is that of the first of them.
    Template(u64),
}

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Microseconds since 1970 by the box's clock; 0: unknown.
    pub begun_us: i64,
    /// Whether this is the format that is written: only then may records be appended.
    pub current: bool,
}

// === impl Name ===

impl Name {
    pub(super) fn file(&self) -> String {
        format!("{}-{:016x}-{:020}.seg", self.class.topic(), self.epoch, self.first)
    }

    pub(super) fn parse(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(".seg")?.split('-');
        let (class, epoch, first) = (parts.next()?, parts.next()?, parts.next()?);
        let class = Class::ALL.into_iter().find(|c| c.topic() == class)?;
        let name = Self { class, epoch: u64::from_str_radix(epoch, 16).ok()?, first: first.parse().ok()? };
        // Exactly our own spelling, and a first number that leaves room to count on.
        (name.file() == file && (1..1 << 62).contains(&name.first)).then_some(name)
    }

    /// The header of a file begun at this time, microseconds since 1970.
    pub(super) fn header(&self, begun_us: i64) -> [u8; HEADER] {
        self.header_of(VERSION, begun_us)
    }

    fn header_of(&self, version: u16, begun_us: i64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&version.to_le_bytes());
        header[10] = self.class.number();
        header[12..20].copy_from_slice(&self.epoch.to_le_bytes());
        header[20..28].copy_from_slice(&self.first.to_le_bytes());
        header[28..36].copy_from_slice(&begun_us.to_le_bytes());
        let crc = crc32c(&header[..36]);
        header[36..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// What the header says, if these are the first bytes of the file of this name.
    pub(super) fn read_header(&self, bytes: &[u8]) -> Option<Header> {
        let begun_us = u64_at(bytes, 28)?.cast_signed();
        let version = u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?);
        let known = (VERSION_OLDEST..=VERSION).contains(&version);
        let whole = bytes.get(..HEADER)? == self.header_of(version, begun_us);
        (known && whole).then_some(Header { begun_us, current: version == VERSION })
    }

    pub(super) fn seed(&self) -> u32 {
        seed(self.epoch)
    }
}

// === frames ===

/// Where the checksums of an epoch start: frames of another store's files, left on recycled disk blocks or forged into
/// a payload, do not check here.
pub(super) fn seed(epoch: u64) -> u32 {
    crc32c(&epoch.to_le_bytes())
}

/// The part of a record's checksum that can be computed before its number is known.
pub(super) fn record_crc(seed: u32, label: Option<u64>, record: &[u8]) -> u32 {
    crc32c_append(label.map_or(seed, |label| crc32c_append(seed, &label.to_le_bytes())), record)
}

/// Bytes of a record's frame.
pub(super) const fn record_len(label: Option<u64>, record: &[u8]) -> usize {
    FRAME + record.len() + if label.is_some() { LABEL } else { 0 }
}

/// Appends a record's frame. `crc` is its [`record_crc`]; with its label it has at most [`RECORD_MAX`] bytes.
pub(super) fn push_record(out: &mut Vec<u8>, crc: u32, seq: u64, label: Option<u64>, record: &[u8]) {
    match label {
        None => push_frame(out, crc, 0, seq, &[record]),
        Some(label) => push_frame(out, crc, LEANING_BIT, seq, &[&label.to_le_bytes(), record]),
    }
}

/// Appends a template. `first`: the number of the first record behind it.
pub(super) fn push_template(out: &mut Vec<u8>, seed: u32, first: u64, template: &Template) {
    let crc = record_crc(seed, Some(template.label), &template.bytes);
    push_frame(out, crc, TEMPLATE_BIT, first, &[&template.label.to_le_bytes(), &template.bytes]);
}

/// Appends a marker that stands for the lost numbers `first..=last`.
pub(super) fn push_gap(out: &mut Vec<u8>, seed: u32, first: u64, last: u64, reason: &str) {
    let mut payload = last.to_le_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    push_frame(out, record_crc(seed, None, &payload), GAP_BIT, first, &[&payload]);
}

fn push_frame(out: &mut Vec<u8>, crc: u32, kind: u32, seq: u64, payload: &[&[u8]]) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let word = len as u32 | kind;
    out.reserve(FRAME + len);
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(&finish_crc(crc, word, seq).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
}

fn finish_crc(crc: u32, word: u32, seq: u64) -> u32 {
    let mut tail = [0; 12];
    tail[..4].copy_from_slice(&word.to_le_bytes());
    tail[4..].copy_from_slice(&seq.to_le_bytes());
    crc32c_append(crc, &tail)
}

/// Reads the frame that starts at `at`.
pub(super) fn parse(seed: u32, bytes: &[u8], at: usize) -> Parsed {
    let (Some(word), Some(crc), Some(seq)) = (u32_at(bytes, at), u32_at(bytes, at + 4), u64_at(bytes, at + 8)) else {
        return Parsed::Short(FRAME);
    };
    let len = (word & !KIND_BITS) as usize;
    if len > RECORD_MAX || seq == 0 || seq >= 1 << 62 {
        return Parsed::Bad;
    }
    let whole = at + FRAME..at + FRAME + len;
    let Some(payload) = bytes.get(whole.clone()) else {
        return Parsed::Short(FRAME + len);
    };
    if finish_crc(crc32c_append(seed, payload), word, seq) != crc {
        return Parsed::Bad;
    }
    let label = u64_at(payload, 0);
    let (kind, behind) = match (word & KIND_BITS, label) {
        (0, _) => (Kind::Record(None), 0),
        (GAP_BIT, _) => (Kind::Gap, 0),
        (LEANING_BIT, Some(label)) => (Kind::Record(Some(label)), LABEL),
        (TEMPLATE_BIT, Some(label)) => (Kind::Template(label), LABEL),
        _ => return Parsed::Bad,
    };
    Parsed::Frame(Frame { seq, kind, payload: whole.start + behind..whole.end, end: whole.end })
}

/// Length and number of a frame whose end is not there, and whether it is a template.
pub(super) fn parse_head(bytes: &[u8], at: usize) -> Option<(usize, u64, bool)> {
    let (word, seq) = (u32_at(bytes, at)?, u64_at(bytes, at + 8)?);
    let len = (word & !KIND_BITS) as usize;
    (len <= RECORD_MAX).then_some((FRAME + len, seq, word & TEMPLATE_BIT != 0))
}

/// Last number and reason of a gap marker's payload.
pub(super) fn parse_gap(payload: &[u8]) -> Option<(u64, &str)> {
    Some((u64_at(payload, 0)?, std::str::from_utf8(payload.get(8..)?).ok()?))
}

/// The first place in `within` where a good frame with a number in `seqs` starts.
pub(super) fn resync(seed: u32, bytes: &[u8], within: Range<usize>, seqs: &Range<u64>) -> Option<usize> {
    within.into_iter().find(|at| {
        u64_at(bytes, at + 8).is_some_and(|seq| seqs.contains(&seq))
            && matches!(parse(seed, bytes, *at), Parsed::Frame(_))
    })
}

/// How many of the bytes behind a file's last good frame are more than zeros written ahead of the records to come.
pub(super) fn without_zeros(tail: &[u8]) -> usize {
    tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// How many records so many bytes can hold at most.
pub(super) fn records_max(bytes: u64) -> u64 {
    bytes.div_ceil(FRAME as u64)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { class: Class::Live, epoch: 0xfeed, first: 7 };

    #[test]
    fn a_name_survives_its_spelling_and_nothing_else_is_one() {
        assert_eq!(Name::parse(&NAME.file()), Some(NAME));
        for other in ["live-feed-7.seg", "live-000000000000feed-00000000000000000000.seg", "x.seg", "", "epoch"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_format_is_as_documented() {
        let header = "53474c4f4753454702000200edfe000000000000".to_owned() + "0700000000000000";
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        assert_eq!(hex(&NAME.header(0x0102)[..36]), header + "0201000000000000");
        assert_eq!(NAME.read_header(&NAME.header(0x0102)), Some(Header { begun_us: 0x0102, current: true }));
        assert_eq!(NAME.read_header(&NAME.header_of(1, 5)), Some(Header { begun_us: 5, current: false }));
        assert_eq!(NAME.read_header(&NAME.header_of(3, 5)), None, "of a later version");
        assert_eq!(Name { first: 8, ..NAME }.read_header(&NAME.header(0x0102)), None);
        let mut bytes = Vec::new();
        push_record(&mut bytes, record_crc(NAME.seed(), None, b"hello"), 9, None, b"hello");
        push_gap(&mut bytes, NAME.seed(), 10, 12, "cap");
        let covered = |frame: &[u8]| {
            let whole = [&0xfeed_u64.to_le_bytes(), &frame[16..], &frame[..4], &frame[8..16]].concat();
            assert_eq!(crc32c(&whole).to_le_bytes(), frame[4..8], "epoch, payload, length, number");
        };
        assert_eq!(hex(&bytes[..4]), "05000000");
        assert_eq!(hex(&bytes[8..21]), "090000000000000068656c6c6f");
        covered(&bytes[..21]);
        assert_eq!(hex(&bytes[21..25]), "0b000080");
        assert_eq!(hex(&bytes[29..]), "0a000000000000000c00000000000000636170");
        covered(&bytes[21..]);
        let mut bytes = Vec::new();
        push_template(&mut bytes, NAME.seed(), 9, &Template { label: 0x0201, bytes: "names".into() });
        assert_eq!(hex(&bytes[..4]), "0d000040");
        assert_eq!(hex(&bytes[16..]), "01020000000000006e616d6573");
        covered(&bytes);
        let mut bytes = Vec::new();
        push_record(&mut bytes, record_crc(NAME.seed(), Some(0x0201), b"row"), 9, Some(0x0201), b"row");
        assert_eq!(bytes.len(), record_len(Some(0x0201), b"row"));
        assert_eq!((hex(&bytes[..4]), hex(&bytes[16..])), ("0b000020".to_owned(), "0102000000000000726f77".to_owned()));
        covered(&bytes);
        let Parsed::Frame(frame) = parse(NAME.seed(), &bytes, 0) else { panic!("not a frame") };
        assert_eq!((frame.kind, &bytes[frame.payload]), (Kind::Record(Some(0x0201)), &b"row"[..]));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_seen() {
        let mut bytes = Vec::new();
        push_record(&mut bytes, record_crc(NAME.seed(), None, b"hello"), 9, None, b"hello");
        let Parsed::Frame(frame) = parse(NAME.seed(), &bytes, 0) else { panic!("not a frame") };
        assert_eq!((frame.seq, &bytes[frame.payload], frame.end), (9, &b"hello"[..], bytes.len()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(NAME.seed(), &bytes, 0), Parsed::Frame(_)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(parse(seed(1), &bytes, 0), Parsed::Bad, "another epoch's frame");
    }

    #[test]
    fn the_next_good_frame_is_found_behind_rubbish() {
        let mut bytes = vec![0x11; 1000];
        push_gap(&mut bytes, NAME.seed(), 20, 30, "disk-full");
        let at = resync(NAME.seed(), &bytes, 0..bytes.len(), &(8..100));
        assert_eq!(at, Some(1000));
        assert_eq!(resync(NAME.seed(), &bytes, 0..bytes.len(), &(8..20)), None, "a number out of place");
        assert_eq!(parse_gap(&bytes[1000 + FRAME..]), Some((30, "disk-full")));
    }
}
