//! RTP packets of one track, in order, to access units.
//!
//! A gap in the sequence numbers loses the access unit it falls into and, in video, all up to the next key frame; what was
//! lost is counted. Must not be in here: putting packets of a datagram wire back in order.

use bytes::{BufMut, Bytes, BytesMut};

use super::{DecodeOrder, Header, VIDEO_CLOCK, obus, scale};
use crate::media::av1::{self, Av1C};
use crate::media::h264::{self, AvcC};
use crate::media::h265::{self, HvcC};
use crate::media::read::{ByteReader, MediaError};
use crate::media::{Codec, Kind, Track, Unit};

const PART: &str = "RTP payload";

/// Parameter sets of one kind that are kept.
const SETS_MAX: usize = 16;

/// Bytes of AAC frames in pieces: far more than a frame has.
const PIECES_MAX: usize = 64 * 1024;

/// Samples of an AAC frame.
const AAC_SAMPLES: i64 = 1_024;

/// What a peer said about a track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub codec: Codec,
    pub payload_type: u8,
    /// Ticks a second of its timestamps.
    pub clock: u32,
    /// H.264, H.265: parameter sets, each a NAL unit. AAC: one AudioSpecificConfig. Opus: one OpusHead.
    pub sets: Vec<Bytes>,
    /// AAC as RFC 6416 has it (LATM, its configuration told apart), not as RFC 3640.
    pub latm: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Depacketizer {
    described: Described,
    order: DecodeOrder,
    /// Ticks at the stream's time 0, and the newest ticks; they do not wrap.
    origin: Option<i64>,
    ticks: i64,
    expected: Option<u16>,
    access: Access,
    sets: Sets,
    told: Bytes,
    /// After a loss: nothing before the next key frame.
    waits_for_key: bool,
    lost: u64,
}

/// The access unit under way.
#[derive(Debug, Default)]
struct Access {
    ticks: i64,
    /// Length-prefixed NAL units, or the beginning of an AAC frame.
    data: BytesMut,
    /// A fragmented NAL unit.
    fragment: BytesMut,
    key: bool,
    spoiled: bool,
    /// Parameter sets that came with it.
    sets: Sets,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Sets {
    vps: Vec<Bytes>,
    sps: Vec<Bytes>,
    pps: Vec<Bytes>,
}

impl Depacketizer {
    pub fn new(described: Described) -> Self {
        let mut sets = Sets::default();
        for set in &described.sets {
            sets.put(described.codec, set.clone());
        }
        Self {
            described,
            order: DecodeOrder::default(),
            origin: None,
            ticks: 0,
            expected: None,
            access: Access::default(),
            sets,
            told: Bytes::new(),
            waits_for_key: false,
            lost: 0,
        }
    }

    /// Packets missing so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The RTP timestamp that is time 0 of the stream; the first packet's, if nobody says.
    pub fn align(&mut self, timestamp: u32) {
        if self.origin.is_none() {
            self.ticks = i64::from(timestamp);
            self.origin = Some(self.ticks);
        }
    }

    pub fn is_aligned(&self) -> bool {
        self.origin.is_some()
    }

    pub fn clock(&self) -> u32 {
        self.described.clock
    }

    /// The stream's time at a timestamp near the newest packet's, 1/90,000 s; `None` before the first.
    pub fn time_at(&self, timestamp: u32) -> Option<i64> {
        self.origin?;
        let ahead = timestamp.wrapping_sub(self.ticks as u32) as i32;
        Some(self.time_90k(self.ticks + i64::from(ahead)))
    }

    /// Takes the next packet; finished units are appended to `units`, each configuration ahead of what needs it.
    pub fn packet(&mut self, packet: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        let (header, payload) = Header::parse(packet)?;
        if header.payload_type != self.described.payload_type {
            return Err(MediaError::Unsupported {
                part: PART,
                what: "payload type",
                value: u32::from(header.payload_type),
            });
        }
        self.align(header.timestamp);
        let missing = self.expected.map_or(0, |expected| header.sequence.wrapping_sub(expected));
        if missing > u16::MAX / 2 {
            // Older than what was taken already.
            return Ok(());
        }
        if missing > 0 {
            self.lost += u64::from(missing);
            self.access.spoil();
        }
        self.expected = Some(header.sequence.wrapping_add(1));
        let step = header.timestamp.wrapping_sub(self.ticks as u32) as i32;
        self.ticks += i64::from(step);
        if self.described.latm {
            return self.latm(header.marker, &payload, units);
        }
        if self.described.codec == Codec::Aac {
            return self.aac(header.marker, &payload, units);
        }
        if self.described.codec.track() == Track::Audio {
            if !payload.is_empty() {
                self.tell(units);
                let unit = self.audio(payload, 0);
                units.push(unit);
            }
            return Ok(());
        }
        if self.access.ticks != self.ticks {
            self.finish(units);
            self.access.ticks = self.ticks;
            self.access.spoiled = missing > 0 && !self.begins_picture(&payload);
        }
        let taken = if self.described.codec == Codec::Av1 {
            obus::join(&payload, &mut self.access.fragment, &mut self.access.data)
        } else {
            self.nals(&payload)
        };
        if taken.is_err() {
            self.access.spoil();
        }
        if header.marker {
            self.finish(units);
        }
        taken
    }

    fn time_90k(&self, ticks: i64) -> i64 {
        scale(ticks - self.origin.unwrap_or(ticks), VIDEO_CLOCK, self.described.clock)
    }

    // --- video ---

    fn nals(&mut self, payload: &Bytes) -> Result<(), MediaError> {
        let reader = ByteReader::new(PART, payload);
        let hevc = self.described.codec == Codec::H265;
        let Some(&first) = payload.first() else { return Ok(()) };
        let (kind, head_len) = if hevc { (first >> 1 & 0x3f, 2) } else { (first & 0x1f, 1) };
        match (hevc, kind) {
            (false, 1..=23) | (true, 0..=47) => self.nal(payload.clone()),
            (false, 24) | (true, 48) => {
                let mut reader = reader;
                reader.take(head_len)?;
                while !reader.is_empty() {
                    let len = usize::from(reader.u16()?);
                    let nal = Bytes::copy_from_slice(reader.take(len)?);
                    self.nal(nal);
                }
            }
            (false, 28) | (true, 49) => return self.fragment(payload, head_len),
            _ => {
                return Err(MediaError::Unsupported { part: PART, what: "NAL unit type", value: u32::from(kind) });
            }
        }
        Ok(())
    }

    /// Whether a picture begins with this payload, so that what was lost before it was of another.
    fn begins_picture(&self, payload: &[u8]) -> bool {
        if self.described.codec == Codec::Av1 {
            return obus::begins_sequence(payload);
        }
        let hevc = self.described.codec == Codec::H265;
        let kind = |first: u8| if hevc { first >> 1 & 0x3f } else { first & 0x1f };
        // The first bit of a slice says that it is the first: of a code for address 0, or as a flag.
        let starts = |kind: u8, body: Option<&u8>| match (hevc, kind) {
            (false, 1..=5) | (true, 0..=31) => body.is_some_and(|byte| byte & 0x80 != 0),
            _ => true,
        };
        let fragment = |flags: u8| flags & if hevc { 0x3f } else { 0x1f };
        match (hevc, payload) {
            (false, [head, flags, body @ ..]) if kind(*head) == 28 => {
                flags & 0x80 != 0 && starts(fragment(*flags), body.first())
            }
            (true, [head, _, flags, body @ ..]) if kind(*head) == 49 => {
                flags & 0x80 != 0 && starts(fragment(*flags), body.first())
            }
            (false, [head, _, _, first, body @ ..]) if kind(*head) == 24 => starts(kind(*first), body.first()),
            (true, [head, _, _, _, first, _, body @ ..]) if kind(*head) == 48 => starts(kind(*first), body.first()),
            (false, [first, body @ ..]) | (true, [first, _, body @ ..]) => starts(kind(*first), body.first()),
            _ => false,
        }
    }

    fn fragment(&mut self, payload: &Bytes, head_len: usize) -> Result<(), MediaError> {
        let mut reader = ByteReader::new(PART, payload);
        let head = reader.take(head_len)?;
        let flags = reader.u8()?;
        let fragment = &mut self.access.fragment;
        if flags & 0x80 != 0 {
            fragment.clear();
            match *head {
                [a, b] => fragment.put_slice(&[a & 0x81 | (flags & 0x3f) << 1, b]),
                [a] => fragment.put_u8(a & 0xe0 | flags & 0x1f),
                _ => {}
            }
        } else if fragment.is_empty() {
            // Its beginning is lost.
            self.access.spoil();
            return Ok(());
        }
        if fragment.len() + self.access.data.len() + payload.len() > Unit::LEN_MAX {
            return Err(reader.limit("bytes in an access unit", Unit::LEN_MAX));
        }
        fragment.put_slice(reader.rest());
        if flags & 0x40 != 0 {
            let nal = self.access.fragment.split().freeze();
            self.nal(nal);
        }
        Ok(())
    }

    fn nal(&mut self, nal: Bytes) {
        if nal.is_empty() || self.access.data.len() + nal.len() + 4 > Unit::LEN_MAX {
            return;
        }
        let codec = self.described.codec;
        if self.access.sets.put(codec, nal.clone()) {
            return;
        }
        let first = nal.first().copied().unwrap_or(0);
        let (kind, delimiter) = if codec == Codec::H265 { (first >> 1 & 0x3f, 35) } else { (first & 0x1f, 9) };
        if kind == delimiter {
            return;
        }
        self.access.key |= if codec == Codec::H265 { (16..=21).contains(&kind) } else { kind == h264::NAL_IDR };
        self.access.data.put_u32(nal.len() as u32);
        self.access.data.put_slice(&nal);
    }

    fn finish(&mut self, units: &mut Vec<Unit>) {
        let mut access = std::mem::take(&mut self.access);
        access.key |= self.described.codec == Codec::Av1 && av1::is_key(&access.data);
        self.waits_for_key |= access.spoiled;
        if access.spoiled || access.sets == Sets::default() && access.data.is_empty() {
            return;
        }
        self.sets.replace(&access.sets);
        let pts_90k = self.time_90k(access.ticks);
        if self.waits_for_key && !access.key {
            return;
        }
        self.waits_for_key = false;
        if access.data.is_empty() {
            return;
        }
        let config = self.config(&access.data).filter(|config| *config != self.told);
        if let Some(config) = &config {
            self.told = config.clone();
        }
        let dts_90k = self.order.place(pts_90k);
        let codec = self.described.codec;
        if let Some(data) = config {
            units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k: dts_90k, kind: Kind::Config, data });
        }
        let kind = if access.key { Kind::Key } else { Kind::Delta };
        units.push(Unit { track: Track::Video, codec, dts_90k, pts_90k, kind, data: access.data.freeze() });
    }

    /// The configuration, where it is whole.
    fn config(&mut self, data: &[u8]) -> Option<Bytes> {
        if self.described.codec == Codec::Av1 {
            return Some(Av1C::of(av1::sequence_header(data)?).ok()?.build());
        }
        let Sets { vps, sps, pps } = &self.sets;
        let (sps, depth) = (sps.first()?, self.sets.depth(self.described.codec));
        let config = match self.described.codec {
            Codec::H265 => HvcC::of(vps.clone(), vec![sps.clone()], pps.clone())?,
            _ if pps.is_empty() => return None,
            _ => AvcC::of(sps.clone(), pps.clone())?.build(),
        };
        if let Some(depth) = depth {
            self.order.expect(depth);
        }
        Some(config)
    }

    // --- audio ---

    fn audio(&self, data: Bytes, samples: i64) -> Unit {
        let time = self.time_90k(self.ticks + samples);
        let codec = self.described.codec;
        Unit { track: Track::Audio, codec, dts_90k: time, pts_90k: time, kind: Kind::Key, data }
    }

    /// RFC 3640, 3.2 and 3.3.6: lengths of 13 bits, indices of 3.
    fn aac(&mut self, marker: bool, payload: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        let mut reader = ByteReader::new(PART, payload);
        let heads = usize::from(reader.u16()?) / 16;
        let mut lengths = Vec::with_capacity(heads.min(64));
        for _ in 0..heads {
            lengths.push(usize::from(reader.u16()? >> 3));
        }
        if std::mem::take(&mut self.access.spoiled) {
            self.access.data.clear();
        }
        self.tell(units);
        if let &[len] = lengths.as_slice()
            && (len > reader.rest().len() || !self.access.data.is_empty())
        {
            self.access.data.put_slice(reader.rest());
            if self.access.data.len() >= len || marker {
                let frame = self.access.data.split().freeze();
                if frame.len() == len {
                    units.push(self.audio(frame, 0));
                }
            }
            return Ok(());
        }
        for (at, len) in lengths.into_iter().enumerate() {
            let frame = Bytes::copy_from_slice(reader.take(len)?);
            if !frame.is_empty() {
                units.push(self.audio(frame, at as i64 * AAC_SAMPLES));
            }
        }
        Ok(())
    }

    /// RFC 6416, 6: frames, each behind its length, in one packet or in pieces up to the marker.
    fn latm(&mut self, marker: bool, payload: &Bytes, units: &mut Vec<Unit>) -> Result<(), MediaError> {
        self.access.data.put_slice(payload);
        let pieces = std::mem::take(&mut self.access.data);
        if self.access.spoiled {
            // What is left of a frame whose beginning is lost.
            self.access.spoiled = !marker;
            return Ok(());
        }
        let mut reader = ByteReader::new(PART, &pieces);
        if !marker {
            if pieces.len() > PIECES_MAX {
                return Err(reader.limit("bytes in an AAC frame", PIECES_MAX));
            }
            self.access.data = pieces;
            return Ok(());
        }
        self.tell(units);
        let mut samples = 0;
        while !reader.is_empty() {
            let mut len = 0;
            loop {
                let part = reader.u8()?;
                len += usize::from(part);
                if part < u8::MAX {
                    break;
                }
            }
            let frame = Bytes::copy_from_slice(reader.take(len)?);
            if !frame.is_empty() {
                units.push(self.audio(frame, samples));
                samples += AAC_SAMPLES;
            }
        }
        Ok(())
    }

    /// Says the configuration of audio, if that was not done.
    fn tell(&mut self, units: &mut Vec<Unit>) {
        if let Some(config) = self.described.sets.first().filter(|config| **config != self.told).cloned() {
            self.told = config.clone();
            units.push(Unit { kind: Kind::Config, ..self.audio(config, 0) });
        }
    }
}

impl Access {
    fn spoil(&mut self) {
        self.spoiled = true;
        self.fragment.clear();
    }
}

impl Sets {
    /// Keeps the NAL unit if it is a parameter set.
    fn put(&mut self, codec: Codec, nal: Bytes) -> bool {
        let Some(&first) = nal.first() else { return false };
        let sets = match (codec, first & 0x1f, first >> 1 & 0x3f) {
            (Codec::H264, h264::NAL_SPS, _) | (Codec::H265, _, h265::NAL_SPS) => &mut self.sps,
            (Codec::H264, h264::NAL_PPS, _) | (Codec::H265, _, h265::NAL_PPS) => &mut self.pps,
            (Codec::H265, _, h265::NAL_VPS) => &mut self.vps,
            _ => return false,
        };
        if sets.len() < SETS_MAX && !sets.contains(&nal) {
            sets.push(nal);
        }
        true
    }

    /// A new sequence parameter set begins anew; what came without one is added.
    fn replace(&mut self, new: &Self) {
        for (own, new) in [(&mut self.vps, &new.vps), (&mut self.sps, &new.sps), (&mut self.pps, &new.pps)] {
            if !new.is_empty() {
                own.clone_from(new);
            }
        }
    }

    fn depth(&self, codec: Codec) -> Option<u32> {
        let sps = self.sps.first()?;
        match codec {
            Codec::H265 => h265::reorder_max(sps),
            _ => h264::reorder_max(sps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Packetizer, Sink};
    use super::*;
    use crate::media::Tracks;
    use crate::media::aac::AudioSpecificConfig;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Packets(Vec<BytesMut>);

    impl Sink for Packets {
        fn packet(&mut self, len: usize) -> &mut BytesMut {
            self.0.push(BytesMut::with_capacity(len));
            self.0.last_mut().unwrap()
        }
    }

    fn packets(tracks: &Tracks, track: Track, units: &[Unit]) -> (Vec<Bytes>, Depacketizer) {
        let mut packetizer = Packetizer::new(tracks, track, 7, 65_530).unwrap();
        let format = packetizer.format();
        let mut packets = Packets::default();
        for unit in units {
            packetizer.unit(unit, &mut packets);
        }
        let packets: Vec<Bytes> = packets.0.into_iter().map(BytesMut::freeze).collect();
        assert!(packets.iter().all(|packet| packet.len() <= super::super::packetize::PACKET_MAX));
        let sets = tracks.audio.iter().map(|config| config.data.clone()).collect();
        let described = Described {
            codec: format.codec,
            payload_type: format.payload_type,
            clock: format.clock,
            sets,
            latm: false,
        };
        (packets, Depacketizer::new(described))
    }

    fn unpack(packets: &[Bytes], depacketizer: &mut Depacketizer) -> Vec<Unit> {
        let mut units = Vec::new();
        for packet in packets {
            depacketizer.packet(packet, &mut units).unwrap();
        }
        units
    }

    const SPS: [u8; 10] = [0x67, 66, 0xc0, 30, 0xd9, 0x01, 0x40, 0x7b, 0x20, 1];

    /// A stream of frames with NAL units of these sizes; every fifth is a key frame.
    fn video(codec: Codec, frames: &[Vec<usize>]) -> (Tracks, Vec<Unit>) {
        let hevc = codec == Codec::H265;
        let unit = |at: usize, kind, data| {
            let time = at as i64 * 3_600;
            Unit { track: Track::Video, codec, dts_90k: time, pts_90k: time, kind, data }
        };
        let pps = |byte| if hevc { vec![0x44, 1, byte] } else { vec![0x68, byte] };
        let config = if hevc {
            let sps = Bytes::copy_from_slice(&h265_sps());
            HvcC::of(vec![Bytes::from_static(&[0x40, 1, 5])], vec![sps], vec![pps(1).into()]).unwrap()
        } else {
            AvcC::of(Bytes::copy_from_slice(&SPS), vec![pps(1).into(), pps(2).into()]).unwrap().build()
        };
        let mut units = vec![unit(0, Kind::Config, config)];
        for (at, sizes) in frames.iter().enumerate() {
            let key = at % 5 == 0;
            let mut data = BytesMut::new();
            for &size in sizes {
                let head: &[u8] = match (hevc, key) {
                    (true, true) => &[0x26, 1],
                    (true, false) => &[0x02, 1],
                    (false, true) => &[0x65],
                    (false, false) => &[0x41],
                };
                data.put_u32((size + head.len()) as u32);
                data.put_slice(head);
                data.extend((0..size).map(|n| (n + at) as u8));
            }
            units.push(unit(at, if key { Kind::Key } else { Kind::Delta }, data.freeze()));
        }
        let mut tracks = Tracks::default();
        tracks.note(&units[0]);
        (tracks, units)
    }

    const fn h265_sps() -> [u8; 42] {
        [
            0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3f,
            0xa0, 0x05, 0x02, 0x01, 0x69, 0x65, 0xba, 0x92, 0x4c, 0xaf, 0x01, 0x68, 0x08, 0x00, 0x00, 0x03, 0x00, 0x08,
            0x00, 0x00, 0x03, 0x00, 0xc8, 0x40,
        ]
    }

    fn audio(sizes: &[usize]) -> (Tracks, Vec<Unit>) {
        let config = AudioSpecificConfig { object_type: 2, rate: 48_000, channels: 2 }.build();
        let unit = |at: usize, kind, data| {
            let time = at as i64 * 1_920;
            Unit { track: Track::Audio, codec: Codec::Aac, dts_90k: time, pts_90k: time, kind, data }
        };
        let mut units = vec![unit(0, Kind::Config, config)];
        units.extend(sizes.iter().enumerate().map(|(at, &size)| unit(at, Kind::Key, vec![at as u8; size].into())));
        let mut tracks = Tracks::default();
        tracks.note(&units[0]);
        (tracks, units)
    }

    /// Without the decode times: with reordering in the parameter sets they lie before those sent.
    fn shown(units: &[Unit]) -> Vec<(Kind, i64, Bytes)> {
        let frames = units.iter().filter(|unit| unit.kind != Kind::Config);
        frames.map(|unit| (unit.kind, unit.pts_90k, unit.data.clone())).collect()
    }

    proptest! {
        #[test]
        fn units_come_back_from_their_packets(
            hevc: bool,
            frames in prop::collection::vec(prop::collection::vec(1usize..6_000, 1..6), 1..12),
        ) {
            let (tracks, units) = video(if hevc { Codec::H265 } else { Codec::H264 }, &frames);
            let (packets, mut depacketizer) = packets(&tracks, Track::Video, &units);
            let back = unpack(&packets, &mut depacketizer);
            prop_assert_eq!(shown(&back), shown(&units));
            prop_assert_eq!(&back[0].data, &units[0].data);
            prop_assert_eq!(back.iter().filter(|unit| unit.kind == Kind::Config).count(), 1);
            prop_assert_eq!(depacketizer.lost(), 0);
        }

        #[test]
        fn audio_comes_back_from_its_packets(sizes in prop::collection::vec(1usize..8_000, 1..20)) {
            let (tracks, units) = audio(&sizes);
            let (packets, mut depacketizer) = packets(&tracks, Track::Audio, &units);
            prop_assert_eq!(unpack(&packets, &mut depacketizer), units);
        }

        /// A lost packet costs its frame and those up to the next key frame, no more, and nothing comes out damaged.
        #[test]
        fn what_is_lost_is_left_out_up_to_the_next_key_frame(
            frames in prop::collection::vec(prop::collection::vec(1usize..6_000, 1..4), 10..20),
            lost in any::<prop::sample::Index>(),
        ) {
            let (tracks, units) = video(Codec::H264, &frames);
            let (mut packets, mut depacketizer) = packets(&tracks, Track::Video, &units);
            // The loss of the very first or the very last cannot be noticed.
            let lost = 1 + lost.index(packets.len() - 2);
            let (header, _) = Header::parse(&packets.remove(lost)).unwrap();
            let back = shown(&unpack(&packets, &mut depacketizer));
            let (frame, all) = (header.timestamp as usize / 3_600, shown(&units));
            let next_key = (frame + 1).div_ceil(5) * 5;
            prop_assert!(back.iter().all(|unit| all.contains(unit)));
            let kept = |range: std::ops::Range<usize>| all.get(range).is_none_or(|range| range.iter().all(|unit| back.contains(unit)));
            prop_assert!(kept(next_key..all.len()));
            prop_assert!(kept(0..frame));
            prop_assert_eq!(depacketizer.lost(), 1);
        }

        #[test]
        fn noise_is_never_a_panic(codec in prop::sample::select(vec![Codec::H264, Codec::H265, Codec::Aac, Codec::G711A]), payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let described = Described { codec, payload_type: 96, clock: 90_000, sets: Vec::new(), latm: false };
            let mut depacketizer = Depacketizer::new(described);
            for (sequence, payload) in payloads.iter().enumerate() {
                let mut packet = BytesMut::new();
                let marker = payload.first().is_some_and(|byte| byte & 1 == 1);
                let timestamp = sequence as u32 / 3;
                Header { marker, payload_type: 96, sequence: sequence as u16, timestamp, ssrc: 1 }.write(&mut packet);
                packet.put_slice(payload);
                let _taken = depacketizer.packet(&packet.freeze(), &mut Vec::new());
            }
        }
    }

    #[test]
    fn several_audio_frames_of_a_packet_have_times_of_their_own() {
        let config = AudioSpecificConfig { object_type: 2, rate: 48_000, channels: 2 }.build();
        let described =
            Described { codec: Codec::Aac, payload_type: 97, clock: 48_000, sets: vec![config], latm: false };
        let mut packet = BytesMut::new();
        Header { marker: true, payload_type: 97, sequence: 0, timestamp: 5, ssrc: 1 }.write(&mut packet);
        packet.put_slice(&[0, 32, 0, 2 << 3, 0, 3 << 3, 1, 1, 2, 2, 2]);
        let units = unpack(&[packet.freeze()], &mut Depacketizer::new(described));
        let shown: Vec<(i64, &[u8])> = units[1..].iter().map(|unit| (unit.pts_90k, &unit.data[..])).collect();
        assert_eq!(shown, [(0, &[1, 1][..]), (1_920, &[2, 2, 2][..])]);
    }

    #[test]
    fn latm_frames_come_whole_or_in_pieces_and_never_spoiled() {
        let described = Described {
            codec: Codec::Aac,
            payload_type: 96,
            clock: 48_000,
            sets: vec![Bytes::from_static(&[0x11, 0x90])],
            latm: true,
        };
        let mut depacketizer = Depacketizer::new(described);
        let packet = |marker, sequence, timestamp, payload: &[u8]| {
            let mut packet = BytesMut::new();
            Header { marker, payload_type: 96, sequence, timestamp, ssrc: 1 }.write(&mut packet);
            packet.extend_from_slice(payload);
            packet.freeze()
        };
        let (mut units, long) = (Vec::new(), vec![7; 300]);
        depacketizer.packet(&packet(true, 0, 0, &[2, 1, 1, 1, 9]), &mut units).unwrap();
        depacketizer.packet(&packet(false, 1, 2_048, &[&[255, 45], &long[..100]].concat()), &mut units).unwrap();
        depacketizer.packet(&packet(true, 2, 2_048, &long[100..]), &mut units).unwrap();
        depacketizer.packet(&packet(true, 4, 4_096, &[9, 9]), &mut units).unwrap();
        assert!(depacketizer.packet(&packet(true, 5, 5_120, &[9, 9]), &mut units).is_err(), "longer than the packet");
        depacketizer.packet(&packet(true, 6, 6_144, &[1, 4]), &mut units).unwrap();
        let shown: Vec<(i64, usize)> = units[1..].iter().map(|unit| (unit.pts_90k, unit.data.len())).collect();
        assert_eq!((units[0].kind, shown), (Kind::Config, vec![(0, 2), (1_920, 1), (3_840, 300), (11_520, 1)]));
    }
}
