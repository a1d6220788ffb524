//! RTP (RFC 3550): access units to packets and back, and the reports beside them.
//!
//! Inside: the packet's header and what each codec is called; `packetize.rs` (units to packets: H.264 as RFC 6184 mode 1,
//! H.265 as RFC 7798, AAC as RFC 3640 AAC-hbr, Opus as RFC 7587, G.711 as RFC 3551, MP3 as RFC 2250), `obus.rs` (AV1, both ways), `depacketize/` (packets to units),
//! `decode_order.rs` (decode times, which RTP does not say), `reorder.rs` (packets of a datagram wire in order), `reports.rs` (RTCP). Must not be in here: how packets travel, and who
//! asked for them.

use bytes::{BufMut, Bytes, BytesMut};

use super::aac::AudioSpecificConfig;
use super::opus::{self, OpusHead};
use super::read::{ByteReader, MediaError};
use super::{Codec, Track, Tracks};

pub mod decode_order;
pub mod depacketize;
mod obus;
pub mod packetize;
pub mod reorder;
pub mod reports;

pub use decode_order::DecodeOrder;
pub use depacketize::Depacketizer;
pub use packetize::{Packetizer, Sink};
pub use reorder::Reorder;

/// Ticks a second of every video codec's clock, and of [`Unit`](super::Unit)'s times.
pub const VIDEO_CLOCK: u32 = 90_000;

/// Bytes of a header without contributing sources and extension.
pub const HEADER_LEN: usize = 12;

/// A packet's fixed header (5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Last packet of an access unit (video).
    pub marker: bool,
    pub payload_type: u8,
    pub sequence: u16,
    /// In ticks of the codec's clock.
    pub timestamp: u32,
    pub ssrc: u32,
}

impl Header {
    pub fn write(&self, out: &mut BytesMut) {
        out.put_u8(0x80);
        out.put_u8(u8::from(self.marker) << 7 | self.payload_type & 0x7f);
        out.put_u16(self.sequence);
        out.put_u32(self.timestamp);
        out.put_u32(self.ssrc);
    }

    /// Header and payload of a packet; contributing sources, extension and padding are taken off.
    pub fn parse(packet: &Bytes) -> Result<(Self, Bytes), MediaError> {
        let mut reader = ByteReader::new("RTP packet", packet);
        let first = reader.u8()?;
        if first >> 6 != 2 {
            return Err(reader.malformed("version is not 2"));
        }
        let second = reader.u8()?;
        let (sequence, timestamp, ssrc) = (reader.u16()?, reader.u32()?, reader.u32()?);
        reader.take(4 * usize::from(first & 0xf))?;
        if first & 0x10 != 0 {
            reader.u16()?;
            let words = reader.u16()?;
            reader.take(4 * usize::from(words))?;
        }
        let padding = match packet.last() {
            Some(&len) if first & 0x20 != 0 => usize::from(len),
            _ => 0,
        };
        let (start, end) = (reader.position(), packet.len().checked_sub(padding));
        let Some(end) = end.filter(|&end| end >= start) else {
            return Err(reader.malformed("more padding than payload"));
        };
        let header = Self { marker: second & 0x80 != 0, payload_type: second & 0x7f, sequence, timestamp, ssrc };
        Ok((header, packet.slice(start..end)))
    }
}

/// Whether a packet beside RTP is RTCP, by its second byte (RFC 5761, 4).
pub fn is_report(packet: &[u8]) -> bool {
    packet.get(1).is_some_and(|kind| (192..=223).contains(kind))
}

/// How a codec is said in RTP and SDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub codec: Codec,
    pub payload_type: u8,
    /// Encoding name of an `a=rtpmap`.
    pub name: &'static str,
    /// Ticks a second of the timestamps.
    pub clock: u32,
    /// Audio channels an `a=rtpmap` says; 0 for video.
    pub channels: u8,
}

impl Format {
    /// The format of a stream's track, with payload types of our own choice for codecs that have no fixed one; `None` for
    /// what RTP cannot carry, and for AAC whose configuration is not known.
    pub fn of(tracks: &Tracks, track: Track) -> Option<Self> {
        let video =
            |codec, payload_type, name| Some(Self { codec, payload_type, name, clock: VIDEO_CLOCK, channels: 0 });
        match (track, tracks.video_codec, tracks.audio_codec) {
            (Track::Video, Some(codec @ Codec::H264), _) => video(codec, 96, "H264"),
            (Track::Video, Some(codec @ Codec::H265), _) => video(codec, 98, "H265"),
            (Track::Video, Some(codec @ Codec::Av1), _) => video(codec, 99, "AV1"),
            (Track::Audio, _, Some(codec)) => Self::of_audio(tracks, codec),
            _ => None,
        }
    }

    fn of_audio(tracks: &Tracks, codec: Codec) -> Option<Self> {
        let audio = |payload_type, name, clock, channels| Some(Self { codec, payload_type, name, clock, channels });
        match codec {
            Codec::Aac => {
                let config = AudioSpecificConfig::parse(&tracks.audio.as_ref()?.data).ok()?;
                // 0: the stream itself tells; two is what nearly all have.
                let channels = [2, 1, 2, 3, 4, 5, 6, 8].get(usize::from(config.channels)).copied().unwrap_or(2);
                audio(97, "MPEG4-GENERIC", config.rate, channels)
            }
            Codec::G711A => audio(8, "PCMA", 8_000, 1),
            Codec::G711U => audio(0, "PCMU", 8_000, 1),
            Codec::Opus => {
                // More channels than two have no word in RTP (RFC 7587, 7).
                let head = tracks.audio.as_ref().and_then(|config| OpusHead::parse(&config.data).ok());
                let plain = head.is_none_or(|head| head.family == 0);
                audio(101, "opus", opus::RATE, 2).filter(|_| plain)
            }
            Codec::Mp3 => audio(14, "MPA", VIDEO_CLOCK, 1),
            _ => None,
        }
    }

    /// A time of the stream in ticks of this clock, rounded to the nearest.
    pub fn ticks(&self, time_90k: i64) -> u32 {
        scale(time_90k, self.clock, VIDEO_CLOCK) as u32
    }
}

/// `value · to / from`, rounded to the nearest.
pub(super) fn scale(value: i64, to: u32, from: u32) -> i64 {
    let from = i128::from(from.max(1));
    ((i128::from(value) * i128::from(to) + from / 2).div_euclid(from)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_stands_around_the_payload_is_taken_off() {
        let mut packet = vec![0xb1, 0xe0, 0, 7, 0, 0, 0, 9, 1, 2, 3, 4];
        packet.extend([9, 9, 9, 9]); // a contributing source
        packet.extend([0xbe, 0xde, 0, 1, 5, 5, 5, 5]); // an extension of one word
        packet.extend([42, 43, 0, 0, 3]); // payload and padding
        let (header, payload) = Header::parse(&packet.clone().into()).unwrap();
        assert_eq!((header.marker, header.payload_type, header.sequence), (true, 96, 7));
        assert_eq!((header.timestamp, header.ssrc, &payload[..]), (9, 0x0102_0304, &[42, 43][..]));
        *packet.last_mut().unwrap() = 200;
        assert!(Header::parse(&packet.into()).is_err(), "more padding than there is");
    }

    proptest! {
        #[test]
        fn a_header_round_trips(marker: bool, payload_type in 0u8..128, sequence: u16, timestamp: u32, ssrc: u32, payload: Vec<u8>) {
            let header = Header { marker, payload_type, sequence, timestamp, ssrc };
            let mut out = BytesMut::new();
            header.write(&mut out);
            out.extend_from_slice(&payload);
            prop_assert_eq!(Header::parse(&out.freeze()), Ok((header, Bytes::from(payload))));
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _packet = Header::parse(&noise.into());
        }

        #[test]
        fn milliseconds_survive_the_codecs_clock(ms in -1_000_000_000i64..1_000_000_000, clock in 8_000u32..96_001) {
            let there = scale(ms * 90, clock, VIDEO_CLOCK);
            prop_assert!(scale(there, 1_000, clock) == ms);
        }
    }
}
