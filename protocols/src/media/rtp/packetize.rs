//! Access units to RTP packets of one track.
//!
//! Every key frame goes out with its parameter sets ahead of it, so that whoever comes in there, or lost what was before,
//! can decode. Must not be in here: sockets and the framing of packets in a connection.

use bytes::{BufMut, Bytes, BytesMut};

use super::obus;
use super::{Format, HEADER_LEN, Header};
use crate::media::h264::{self, AvcC, NAL_LENGTH_SIZE};
use crate::media::h265::HvcC;
use crate::media::nal::nal_type;
use crate::media::{Codec, Kind, Track, Tracks, Unit};

/// Bytes of a packet, header included: fits an Ethernet frame through the usual tunnels.
pub const PACKET_MAX: usize = 1_400;

/// Bytes of a packet's payload.
const PAYLOAD_MAX: usize = PACKET_MAX - HEADER_LEN;

/// Bytes of an AAC frame: its length has 13 bits (RFC 3640, 3.3.6).
const AAC_LEN_MAX: usize = 0x1fff;

/// NAL unit types of aggregates and fragments (RFC 6184, 5.2; RFC 7798, 4.4).
const H264_STAP_A: u8 = 24;
const H264_FU_A: u8 = 28;
const H265_AP: u8 = 48;
const H265_FU: u8 = 49;

/// Takes packets.
pub trait Sink {
    /// A packet of `len` bytes begins; exactly so many are appended to the buffer.
    fn packet(&mut self, len: usize) -> &mut BytesMut;
}

/// One track as packets.
#[derive(Debug)]
pub struct Packetizer {
    format: Format,
    ssrc: u32,
    sequence: u16,
    /// Parameter sets of the newest configuration.
    sets: Vec<Bytes>,
    packets: u32,
    octets: u32,
}

impl Packetizer {
    /// The packetizer of a stream's track; `None` where RTP cannot carry it.
    pub fn new(tracks: &Tracks, track: Track, ssrc: u32, sequence: u16) -> Option<Self> {
        let format = Format::of(tracks, track)?;
        let mut packetizer = Self { format, ssrc, sequence, sets: Vec::new(), packets: 0, octets: 0 };
        if let (Track::Video, Some(config)) = (track, &tracks.video) {
            packetizer.configure(config);
        }
        Some(packetizer)
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// The sequence number of the next packet.
    pub fn sequence(&self) -> u16 {
        self.sequence
    }

    /// Packets and bytes of payload so far, as sender reports say them.
    pub fn sent(&self) -> (u32, u32) {
        (self.packets, self.octets)
    }

    /// Sends the unit. A configuration is kept for the next key frame; a unit of another codec is left out: the peer was
    /// not told of it.
    pub fn unit(&mut self, unit: &Unit, sink: &mut dyn Sink) {
        if unit.codec != self.format.codec {
            return;
        }
        if unit.kind == Kind::Config {
            self.configure(unit);
            return;
        }
        let timestamp = self.format.ticks(unit.pts_90k);
        match unit.codec {
            Codec::H264 | Codec::H265 => self.video(unit, timestamp, sink),
            Codec::Aac => self.aac(&unit.data, timestamp, sink),
            Codec::Av1 => {
                obus::split(&unit.data, unit.kind == Kind::Key, PAYLOAD_MAX, |payload, last| {
                    self.packet(timestamp, last, &[payload], sink);
                });
            }
            Codec::Opus => self.packet(timestamp, false, &[&unit.data], sink),
            Codec::Mp3 => self.mp3(&unit.data, timestamp, sink),
            _ => {
                // A byte is a sample (G.711).
                for (at, part) in unit.data.chunks(PAYLOAD_MAX).enumerate() {
                    let time = timestamp.wrapping_add((at * PAYLOAD_MAX) as u32);
                    self.packet(time, false, &[part], sink);
                }
            }
        }
    }

    fn configure(&mut self, config: &Unit) {
        let sets = match config.codec {
            Codec::H264 => AvcC::parse(&config.data).map(|record| [record.sps, record.pps].concat()),
            Codec::H265 => HvcC::parse(&config.data).map(|record| [record.vps, record.sps, record.pps].concat()),
            _ => return,
        };
        if let Ok(sets) = sets {
            self.sets = sets;
        }
    }

    fn video(&mut self, unit: &Unit, timestamp: u32, sink: &mut dyn Sink) {
        let nals: Vec<&[u8]> = h264::nals(&unit.data, NAL_LENGTH_SIZE).filter(|nal| !nal.is_empty()).collect();
        let sets = std::mem::take(&mut self.sets);
        let ahead = if unit.kind == Kind::Key { sets.as_slice() } else { &[] };
        // A source that repeats them itself need not be helped.
        let missing = ahead.iter().map(Bytes::as_ref).filter(|set| !set.is_empty() && !nals.contains(set));
        let all: Vec<&[u8]> = missing.chain(nals.iter().copied()).collect();
        self.nals(&all, timestamp, sink);
        self.sets = sets;
    }

    /// Small neighbours go together, large ones in pieces.
    fn nals(&mut self, mut nals: &[&[u8]], timestamp: u32, sink: &mut dyn Sink) {
        let head_len = self.nal_head_len();
        while let Some((first, rest)) = nals.split_first() {
            let mut len = head_len;
            let together = nals.iter().take_while(|nal| {
                len += 2 + nal.len();
                len <= PAYLOAD_MAX
            });
            let count = together.count();
            let (now, later) = if count >= 2 { nals.split_at(count) } else { (std::slice::from_ref(first), rest) };
            let last = later.is_empty();
            match now {
                [nal] if nal.len() <= PAYLOAD_MAX => self.packet(timestamp, last, &[nal], sink),
                [nal] => self.fragments(nal, timestamp, last, sink),
                together => self.aggregate(together, timestamp, last, sink),
            }
            nals = later;
        }
    }

    fn nal_head_len(&self) -> usize {
        if self.format.codec == Codec::H265 { 2 } else { 1 }
    }

    /// STAP-A (RFC 6184, 5.7.1) or AP (RFC 7798, 4.4.2).
    fn aggregate(&mut self, nals: &[&[u8]], timestamp: u32, last: bool, sink: &mut dyn Sink) {
        let head = if self.format.codec == Codec::H265 {
            // The lowest layer and temporal id of all.
            let rest = |nal: &&[u8]| {
                let (a, b) = (nal.first().copied().unwrap_or(0), nal.get(1).copied().unwrap_or(0));
                (u16::from(a & 1) << 5 | u16::from(b >> 3), b & 7)
            };
            let layer = nals.iter().map(|nal| rest(nal).0).min().unwrap_or(0);
            let temporal = nals.iter().map(|nal| rest(nal).1).min().unwrap_or(1);
            vec![H265_AP << 1 | (layer >> 5) as u8, (layer << 3) as u8 | temporal]
        } else {
            let reference = nals.iter().filter_map(|nal| nal.first()).map(|head| head & 0x60).max().unwrap_or(0);
            let broken = nals.iter().filter_map(|nal| nal.first()).fold(0, |all, head| all | head & 0x80);
            vec![broken | reference | H264_STAP_A]
        };
        let lengths: Vec<[u8; 2]> = nals.iter().map(|nal| (nal.len() as u16).to_be_bytes()).collect();
        let mut parts: Vec<&[u8]> = vec![&head];
        for (len, nal) in lengths.iter().zip(nals) {
            parts.extend([&len[..], nal]);
        }
        self.packet(timestamp, last, &parts, sink);
    }

    /// FU-A (RFC 6184, 5.8) or FU (RFC 7798, 4.4.3).
    fn fragments(&mut self, nal: &[u8], timestamp: u32, last: bool, sink: &mut dyn Sink) {
        let (first, head, body) = match (self.format.codec, nal) {
            (Codec::H265, [a, b, body @ ..]) => (*a, vec![a & 0x81 | H265_FU << 1, *b], body),
            (_, [a, body @ ..]) => (*a, vec![a & 0xe0 | H264_FU_A], body),
            _ => return,
        };
        let kind = nal_type(self.format.codec, first);
        let room = PAYLOAD_MAX - head.len() - 1;
        let count = body.len().div_ceil(room);
        for (at, part) in body.chunks(room).enumerate() {
            let end = at + 1 == count;
            let flags = u8::from(at == 0) << 7 | u8::from(end) << 6;
            self.packet(timestamp, last && end, &[&head, &[flags | kind], part], sink);
        }
    }

    /// RFC 3640, 3.3.6: one frame a packet, or its pieces with the whole frame's length in each.
    fn aac(&mut self, frame: &[u8], timestamp: u32, sink: &mut dyn Sink) {
        if frame.is_empty() || frame.len() > AAC_LEN_MAX {
            return;
        }
        let [high, low] = ((frame.len() as u16) << 3).to_be_bytes();
        let room = PAYLOAD_MAX - 4;
        let count = frame.len().div_ceil(room);
        for (at, part) in frame.chunks(room).enumerate() {
            self.packet(timestamp, at + 1 == count, &[&[0, 16, high, low], part], sink);
        }
    }

    /// RFC 2250, 3.5.
    fn mp3(&mut self, frame: &[u8], timestamp: u32, sink: &mut dyn Sink) {
        let room = PAYLOAD_MAX - 4;
        for (at, part) in frame.chunks(room).enumerate() {
            let [high, low] = ((at * room) as u16).to_be_bytes();
            self.packet(timestamp, false, &[&[0, 0, high, low], part], sink);
        }
    }

    fn packet(&mut self, timestamp: u32, marker: bool, parts: &[&[u8]], sink: &mut dyn Sink) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let out = sink.packet(HEADER_LEN + len);
        let Format { payload_type, .. } = self.format;
        Header { marker, payload_type, sequence: self.sequence, timestamp, ssrc: self.ssrc }.write(out);
        for part in parts {
            out.put_slice(part);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.packets = self.packets.wrapping_add(1);
        self.octets = self.octets.wrapping_add(len as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Packets(Vec<BytesMut>);

    impl Sink for Packets {
        fn packet(&mut self, len: usize) -> &mut BytesMut {
            self.0.push(BytesMut::with_capacity(len));
            self.0.last_mut().unwrap()
        }
    }

    fn video(nals: &[Vec<u8>], kind: Kind) -> Unit {
        let mut data = BytesMut::new();
        for nal in nals {
            data.put_u32(nal.len() as u32);
            data.put_slice(nal);
        }
        Unit { track: Track::Video, codec: Codec::H264, dts_90k: 0, pts_90k: 900, kind, data: data.freeze() }
    }

    #[test]
    fn a_key_frame_brings_its_parameter_sets_and_is_cut_into_fragments() {
        let config = AvcC::of(Bytes::from_static(&[0x67, 66, 0, 30]), vec![Bytes::from_static(&[0x68, 1])]).unwrap();
        let mut tracks = Tracks::default();
        let unit = video(&[], Kind::Config);
        tracks.note(&Unit { data: config.build(), ..unit });
        let mut packetizer = Packetizer::new(&tracks, Track::Video, 7, 65_535).unwrap();
        let mut idr = vec![0x65; 3_000];
        idr[1] = 9;
        let mut packets = Packets(Vec::new());
        packetizer.unit(&video(&[idr.clone()], Kind::Key), &mut packets);
        let parsed: Vec<_> = packets.0.into_iter().map(|packet| Header::parse(&packet.freeze()).unwrap()).collect();
        let sequences: Vec<u16> = parsed.iter().map(|(header, _)| header.sequence).collect();
        assert_eq!(sequences, [65_535, 0, 1, 2]);
        assert!(parsed.iter().all(|(header, _)| header.timestamp == 900 && header.payload_type == 96));
        assert_eq!(parsed[0].1[..], [0x78, 0, 4, 0x67, 66, 0, 30, 0, 2, 0x68, 1]);
        let flags: Vec<[u8; 2]> = parsed[1..].iter().map(|(_, payload)| [payload[0], payload[1]]).collect();
        assert_eq!(flags, [[0x7c, 0x85], [0x7c, 0x05], [0x7c, 0x45]]);
        let body: Vec<u8> = parsed[1..].iter().flat_map(|(_, payload)| payload[2..].to_vec()).collect();
        assert_eq!(body, idr[1..]);
        let markers: Vec<bool> = parsed.iter().map(|(header, _)| header.marker).collect();
        assert_eq!(markers, [false, false, false, true]);
        assert_eq!(packetizer.sent().0, 4);
    }

    #[test]
    fn what_the_peer_was_not_told_of_is_left_out() {
        let mut tracks = Tracks::default();
        tracks.note(&video(&[vec![0x65]], Kind::Key));
        let mut packetizer = Packetizer::new(&tracks, Track::Video, 7, 0).unwrap();
        let mut packets = Packets(Vec::new());
        packetizer.unit(&Unit { codec: Codec::H265, ..video(&[vec![0x65]], Kind::Key) }, &mut packets);
        packetizer.unit(&video(&[], Kind::Delta), &mut packets);
        assert!(packets.0.is_empty());
        assert!(Packetizer::new(&tracks, Track::Audio, 8, 0).is_none());
    }
}
