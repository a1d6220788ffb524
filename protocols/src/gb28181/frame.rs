//! RTP packets on a connection: behind two bytes of length (RFC 4571), or as RTSP has them (RFC 2326, 10.12), which some devices
//! do.

use bytes::{Buf, Bytes, BytesMut};

use crate::media::rtp::{HEADER_LEN, is_report};
use crate::session::Fault;

/// Bytes that are searched for the next packet.
const SEARCH_MAX: usize = 64 * 1024;

/// How packets are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Length,
    /// `$`, channel, length.
    Interleaved,
}

impl Form {
    fn head(self) -> usize {
        match self {
            Self::Length => 2,
            Self::Interleaved => 4,
        }
    }

    /// Bytes of the packet that begins here; `None` where none does.
    fn len(self, bytes: &[u8]) -> Option<usize> {
        let len = match (self, bytes) {
            (Self::Length, [a, b, ..]) | (Self::Interleaved, [b'$', _, a, b, ..]) => u16::from_be_bytes([*a, *b]),
            _ => return None,
        };
        let len = usize::from(len);
        (len >= HEADER_LEN && bytes.get(self.head())? >> 6 == 2).then_some(len)
    }

    fn ssrc(self, bytes: &[u8]) -> Option<u32> {
        bytes.get(self.head() + 8..)?.first_chunk().map(|ssrc| u32::from_be_bytes(*ssrc))
    }
}

/// Takes packets off a connection. Where one should begin and none does, the next of the same source is searched for.
#[derive(Debug, Default)]
pub(super) struct Framing {
    form: Option<Form>,
    ssrc: Option<u32>,
    /// Since the last packet there were bytes that are none.
    lost: bool,
    /// How many.
    searched: usize,
}

/// What stands at the front.
enum Front {
    /// More bytes are needed to tell.
    Short,
    Wrong,
    /// A packet of so many bytes with what stands ahead of it.
    Packet(usize),
    /// One of another source between two of ours.
    Stray(usize),
}

impl Framing {
    /// The next packet; `None` when more bytes are needed. A fault is said once for all that lies between two packets, and
    /// takes something off the buffer.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Fault> {
        loop {
            let Some(form) = self.form.or_else(|| detect(buffer)) else { return Ok(None) };
            self.form = Some(form);
            match self.front(form, buffer) {
                Front::Packet(len) if buffer.len() >= len => {
                    let ssrc = form.ssrc(buffer);
                    let packet = buffer.split_to(len).freeze().slice(form.head()..);
                    if !is_report(&packet) {
                        (self.ssrc, self.lost, self.searched) = (ssrc, false, 0);
                        return Ok(Some(packet));
                    }
                }
                Front::Stray(len) if buffer.len() >= len => {
                    buffer.advance(len);
                    return Err(Fault::recoverable("a packet of another source"));
                }
                Front::Short | Front::Packet(_) | Front::Stray(_) => return Ok(None),
                Front::Wrong => {
                    buffer.advance(1);
                    self.searched += 1;
                    if self.searched > SEARCH_MAX {
                        return Err(Fault::fatal(format!("no RTP packet within {SEARCH_MAX} bytes")));
                    }
                    if !std::mem::replace(&mut self.lost, true) {
                        return Err(Fault::recoverable("no RTP packet where one should begin"));
                    }
                }
            }
        }
    }

    fn front(&self, form: Form, bytes: &[u8]) -> Front {
        let Some(ssrc) = form.ssrc(bytes) else { return Front::Short };
        let Some(len) = form.len(bytes).map(|len| form.head() + len) else { return Front::Wrong };
        // Reports have their sender elsewhere; where nothing is certain, too little of them is.
        let report = bytes.get(form.head()..).is_some_and(is_report);
        match self.ssrc {
            _ if report => return if self.lost { Front::Wrong } else { Front::Packet(len) },
            Some(ours) if ours == ssrc => return Front::Packet(len),
            // After damage only a source that was heard before is believed.
            Some(_) if self.lost => return Front::Wrong,
            None if !self.lost => return Front::Packet(len),
            _ => {}
        }
        // Another source, or something that looks like a packet: what follows it tells.
        let Some(next) = bytes.get(len..) else { return Front::Short };
        let Some(follows) = form.ssrc(next) else { return Front::Short };
        match form.len(next) {
            Some(_) if follows == ssrc => Front::Packet(len),
            Some(_) if self.ssrc == Some(follows) => Front::Stray(len),
            _ => Front::Wrong,
        }
    }
}

/// How packets are told apart on a connection that begins with these bytes; `None` as long as there are too few.
fn detect(bytes: &[u8]) -> Option<Form> {
    bytes.get(..5)?;
    let interleaved = Form::Length.len(bytes).is_none() && Form::Interleaved.len(bytes).is_some();
    Some(if interleaved { Form::Interleaved } else { Form::Length })
}

/// Whether a connection begins with a packet of payload type 96 in which a program stream begins.
pub(super) fn begins(prefix: &[u8]) -> Option<bool> {
    let form = if prefix.first()? == &b'$' { Form::Interleaved } else { Form::Length };
    let head = form.head();
    let at = |at: usize, mask: u8, value: u8| prefix.get(at).map(|byte| byte & mask == value);
    for (place, mask, value) in [
        (head, 0xff, 0x80),
        (head + 1, 0x7f, 96),
        (head + 12, 0xff, 0),
        (head + 13, 0xff, 0),
        (head + 14, 0xff, 1),
        (head + 15, 0xff, 0xba),
    ] {
        match at(place, mask, value) {
            None => return None,
            Some(false) => return Some(false),
            Some(true) => {}
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of the source with a payload of `len` bytes.
    fn packet(form: Form, ssrc: u32, len: u8) -> Vec<u8> {
        let mut packet = vec![0x80, 96, 0, 7, 0, 0, 0, 9];
        packet.extend(ssrc.to_be_bytes());
        packet.extend(vec![len; usize::from(len)]);
        let len = (packet.len() as u16).to_be_bytes();
        let head = if form == Form::Length { len.to_vec() } else { [&[b'$', 0][..], &len].concat() };
        [head, packet].concat()
    }

    /// The lengths of the payloads found, and the faults, byte by byte.
    fn take(bytes: &[u8]) -> (Vec<usize>, usize) {
        let (mut framing, mut buffer, mut found, mut faults) = (Framing::default(), BytesMut::new(), Vec::new(), 0);
        for byte in bytes {
            buffer.extend_from_slice(&[*byte]);
            loop {
                match framing.take(&mut buffer) {
                    Ok(Some(packet)) => found.push(packet.len() - HEADER_LEN),
                    Ok(None) => break,
                    Err(fault) => {
                        assert!(!fault.fatal, "{fault}");
                        faults += 1;
                    }
                }
            }
        }
        (found, faults)
    }

    #[test]
    fn both_forms_are_told_apart_and_reports_left_out() {
        for form in [Form::Length, Form::Interleaved] {
            let mut report = packet(form, 99, 4);
            report[form.head() + 1] = 200;
            let bytes = [packet(form, 5, 1), report, packet(form, 5, 2)].concat();
            assert_eq!(take(&bytes), (vec![1, 2], 0), "{form:?}");
        }
    }

    #[test]
    fn after_damage_the_next_packet_is_found() {
        let form = Form::Length;
        let one = |len| packet(form, 5, len);
        let noise = vec![0x5a; 40];
        assert_eq!(take(&[one(1), noise.clone(), one(2), one(3)].concat()), (vec![1, 2, 3], 1));
        let mut cut = one(9);
        cut.truncate(15);
        assert_eq!(take(&[one(1), cut, noise, one(2), one(3)].concat()).0.last(), Some(&3), "a packet cut short");
    }

    #[test]
    fn another_source_is_one_that_goes_on() {
        let one = |ssrc, len| packet(Form::Length, ssrc, len);
        assert_eq!(take(&[one(5, 1), one(6, 2), one(6, 3), one(6, 4)].concat()), (vec![1, 2, 3, 4], 0));
        assert_eq!(take(&[one(5, 1), one(6, 2), one(5, 3), one(5, 4)].concat()), (vec![1, 3, 4], 1), "a stray one");
    }

    #[test]
    fn a_flood_of_noise_ends_the_talk() {
        let (mut framing, mut buffer) = (Framing::default(), BytesMut::from(&vec![0x11; 2 * SEARCH_MAX][..]));
        assert!(!framing.take(&mut buffer).unwrap_err().fatal);
        assert!(framing.take(&mut buffer).unwrap_err().fatal);
    }

    #[test]
    fn what_a_connection_begins_with_is_told_from_other_protocols() {
        let pack = [0, 0, 1, 0xba];
        for form in [Form::Length, Form::Interleaved] {
            let mut bytes = packet(form, 5, 0);
            bytes.extend(pack);
            assert_eq!(begins(&bytes), Some(true), "{form:?}");
            assert!((0..bytes.len()).all(|len| begins(&bytes[..len]).is_none()), "{form:?}");
            *bytes.last_mut().unwrap() = 0xb9;
            assert_eq!(begins(&bytes), Some(false), "{form:?}");
        }
        for other in [&b"GET / HTTP/1.1"[..], b"\x03\0\0\0\0", b"\x16\x03\x01", b"01cd\x81", b"OPTIONS"] {
            assert_eq!(begins(other), Some(false), "{other:?}");
        }
    }
}
