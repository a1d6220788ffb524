//! The headers of a program stream (ITU-T H.222.0, 2.4.3.6 and 2.5.3; ISO/IEC 11172-1 for the older form), read with
//! tolerance: marker bits, checksums and inner lengths are wrong on devices that are sold; the outer length is not.

use crate::media::read::{ByteReader, MediaError};

/// Bytes of an MPEG-1 packet's header at most: code and length, stuffing, buffer size, both times.
const OLD_HEAD_MAX: usize = 6 + 16 + 2 + 10;

/// Ids of elementary streams that are carried: audio, then video.
const STREAMS: std::ops::RangeInclusive<u8> = 0xc0..=0xef;

/// What stands at the front of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// More bytes are needed.
    More,
    /// So many bytes that say nothing to us, or whose content was taken off.
    Skip(usize),
    /// A packet of a stream: bytes of its header, bytes behind it (`None`: up to the next header).
    Packet {
        id: u8,
        head: usize,
        len: Option<usize>,
        times: RawTimes,
    },
    /// The map of streams: all its bytes.
    Map(usize),
    End,
    /// A code that no program stream has; some devices have it.
    Unknown,
}

/// PTS and DTS as a packet has them: 33 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RawTimes {
    pub pts: Option<u64>,
    pub dts: Option<u64>,
}

/// Reads the header at the front.
pub(super) fn front(bytes: &[u8]) -> Result<Front, MediaError> {
    let reader = ByteReader::new("program stream", bytes);
    let Some(&[a, b, c, id]) = bytes.first_chunk() else {
        let begins = [0, 0, 1].iter().zip(bytes).all(|(code, byte)| code == byte);
        return if begins { Ok(Front::More) } else { Err(reader.malformed("no start code")) };
    };
    if [a, b, c] != [0, 0, 1] {
        return Err(reader.malformed("no start code"));
    }
    match id {
        0xba => pack(bytes),
        0xb9 => Ok(Front::End),
        0..0xb9 => Ok(Front::Unknown),
        _ => {
            let Some(len) = bytes.get(4..6).and_then(|len| len.first_chunk()).map(|len| u16::from_be_bytes(*len))
            else {
                return Ok(Front::More);
            };
            let len = usize::from(len);
            match id {
                0xbc => Ok(if bytes.len() < 6 + len { Front::More } else { Front::Map(6 + len) }),
                _ if STREAMS.contains(&id) => packet(id, len, bytes),
                _ => Ok(Front::Skip(6 + len)),
            }
        }
    }
}

/// 2.5.3.3
fn pack(bytes: &[u8]) -> Result<Front, MediaError> {
    let whole = |len: usize| if bytes.len() < len { Front::More } else { Front::Skip(len) };
    match bytes.get(4) {
        None => Ok(Front::More),
        // A device that sends the code alone: the next follows at once.
        Some(0) => Ok(match bytes.get(5..7) {
            None => Front::More,
            Some([0, 1]) => Front::Skip(4),
            Some(_) => return Err(ByteReader::new("pack header", bytes).malformed("neither MPEG-1 nor MPEG-2")),
        }),
        Some(first) if first >> 6 == 1 => {
            Ok(bytes.get(13).map_or(Front::More, |stuffing| whole(14 + usize::from(stuffing & 7))))
        }
        Some(first) if first >> 4 == 2 => Ok(whole(12)),
        Some(_) => Err(ByteReader::new("pack header", bytes).malformed("neither MPEG-1 nor MPEG-2")),
    }
}

/// 2.4.3.6: a packet's header with its times.
fn packet(id: u8, len: usize, bytes: &[u8]) -> Result<Front, MediaError> {
    let mut reader = ByteReader::new("packet header", bytes);
    let Some(first) = bytes.get(6) else { return Ok(Front::More) };
    if first >> 6 != 2 {
        return old_packet(id, len, bytes);
    }
    let Some(head_len) = bytes.get(8).map(|len| 9 + usize::from(*len)) else { return Ok(Front::More) };
    if bytes.len() < head_len {
        return Ok(Front::More);
    }
    reader.take(7)?;
    let flags = reader.u8()?;
    reader.take(1)?;
    let mut times = RawTimes::default();
    if flags & 0x80 != 0 && head_len >= 14 {
        times.pts = Some(time(reader.array()?));
    }
    if flags & 0xc0 == 0xc0 && head_len >= 19 {
        times.dts = Some(time(reader.array()?));
    }
    let body = match len {
        0 => None,
        len => Some((6 + len).checked_sub(head_len).ok_or_else(|| reader.malformed("longer than its packet"))?),
    };
    Ok(Front::Packet { id, head: head_len, len: body, times })
}

/// ISO/IEC 11172-1, 2.4.3.3
fn old_packet(id: u8, len: usize, bytes: &[u8]) -> Result<Front, MediaError> {
    if bytes.len() < OLD_HEAD_MAX.min(6 + len) {
        return Ok(Front::More);
    }
    let mut reader = ByteReader::new("packet header", bytes);
    reader.take(6)?;
    let stuffing = reader.rest().iter().take(16).take_while(|byte| **byte == 0xff).count();
    reader.take(stuffing)?;
    if reader.rest().first().is_some_and(|first| first >> 6 == 1) {
        reader.take(2)?;
    }
    let mut times = RawTimes::default();
    match reader.rest().first().map(|first| first >> 4) {
        Some(2) => times.pts = Some(time(reader.array()?)),
        Some(3) => (times.pts, times.dts) = (Some(time(reader.array()?)), Some(time(reader.array()?))),
        Some(0) => drop(reader.take(1)?),
        _ => return Err(reader.malformed("neither MPEG-1 nor MPEG-2")),
    }
    let head = reader.position();
    let body = (6 + len).checked_sub(head).ok_or_else(|| reader.malformed("longer than its packet"))?;
    Ok(Front::Packet { id, head, len: Some(body), times })
}

/// 33 bits in five bytes.
fn time([first, second, third, fourth, fifth]: [u8; 5]) -> u64 {
    let (middle, low) = (u16::from_be_bytes([second, third]) >> 1, u16::from_be_bytes([fourth, fifth]) >> 1);
    u64::from(first >> 1 & 7) << 30 | u64::from(middle) << 15 | u64::from(low)
}

/// The types of the elementary streams in a map (2.5.4.1), as far as it can be read: `put(id, type)`.
pub(super) fn map(bytes: &[u8], mut put: impl FnMut(u8, u8)) {
    let mut reader = ByteReader::new("program stream map", bytes);
    let mut entries = || -> Result<(), MediaError> {
        reader.take(8)?;
        let info = reader.u16()?;
        reader.take(usize::from(info))?;
        // Its own length, often wrong: what is there counts, less the checksum.
        reader.u16()?;
        while reader.rest().len() >= 4 + 4 {
            let (kind, id) = (reader.u8()?, reader.u8()?);
            if STREAMS.contains(&id) {
                put(id, kind);
            }
            let info = reader.u16()?;
            reader.take(usize::from(info))?;
        }
        Ok(())
    };
    // What was read before it ends early counts.
    let _early = entries();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_real_cameras() {
        // Hikvision: the time of a key frame, and of the sound behind it.
        assert_eq!(time([0x25, 0x8a, 0x6d, 0x81, 0x35]), 2_728_083_610);
        assert_eq!(time([0x25, 0x8a, 0x6d, 0xa9, 0xfd]), 2_728_088_830);
        assert_eq!(time([0x21, 0x1a, 0x1b, 0xa3, 0x51]), 109_498_792);
    }

    #[test]
    fn headers_of_both_ages() {
        let pack = b"\0\0\x01\xba\x44\x68\x6e\x4c\x94\x01\x01\x30\x13\xfe\xff\xff\xff\xff\xff\xff";
        assert_eq!(front(pack), Ok(Front::Skip(20)));
        assert_eq!(front(&pack[..19]), Ok(Front::More));
        assert_eq!(front(b"\0\0\x01\xba\0\0\x01\xe0"), Ok(Front::Skip(4)), "a code alone");
        assert_eq!(front(b"\0\0\x01\xba\x21\0\x01\0\x01\x80\x0a\xab"), Ok(Front::Skip(12)));
        assert!(front(b"\0\0\x01\xba\x99").is_err() && front(b"\0\0\x02").is_err());
        let old = b"\0\0\x01\xe0\0\x0a\xff\x60\x20\x21\0\x01\0\x05ab";
        let times = RawTimes { pts: Some(2), dts: None };
        assert_eq!(front(old), Ok(Front::Packet { id: 0xe0, head: 14, len: Some(2), times }));
        let new = b"\0\0\x01\xe0\0\0\x80\xc0\x0a\x31\0\x01\0\x05\x11\0\x01\0\x03ab";
        let times = RawTimes { pts: Some(2), dts: Some(1) };
        assert_eq!(front(new), Ok(Front::Packet { id: 0xe0, head: 19, len: None, times }));
        assert!(front(b"\0\0\x01\xe0\0\x03\x80\0\x01\xff").is_err(), "a header longer than its packet");
    }

    #[test]
    fn a_map_is_read_as_far_as_it_goes() {
        let types = |bytes: &[u8]| {
            let mut types = Vec::new();
            map(bytes, |id, kind| types.push((id, kind)));
            types
        };
        let whole = b"\0\0\x01\xbc\0\x12\xe0\xff\0\0\0\x08\x1b\xe0\0\0\x90\xc0\0\0\x01\x02\x03\x04";
        assert_eq!(types(whole), [(0xe0, 0x1b), (0xc0, 0x90)]);
        let mut wrong = whole.to_vec();
        wrong[11] = 99;
        assert_eq!(types(&wrong), [(0xe0, 0x1b), (0xc0, 0x90)], "its inner length is of no use");
        wrong[15] = 99;
        assert_eq!(types(&wrong), [(0xe0, 0x1b)]);
        assert_eq!(types(&whole[..9]), []);
    }
}
