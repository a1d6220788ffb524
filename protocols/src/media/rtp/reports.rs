//! RTCP (RFC 3550, 6): the reports that go beside the packets.

use bytes::{BufMut, BytesMut};

use super::{Packetizer, VIDEO_CLOCK, scale};

/// Bytes of a sender report without report blocks.
pub const SENDER_REPORT_LEN: usize = 28;
/// Bytes of the name that goes with it: without one a report is not a whole compound packet (6.1).
pub const SOURCE_DESCRIPTION_LEN: usize = 24;
/// Bytes of both.
pub const REPORT_LEN: usize = SENDER_REPORT_LEN + SOURCE_DESCRIPTION_LEN;

const SENDER_REPORT: u8 = 200;
const SOURCE_DESCRIPTION: u8 = 202;
const BYE: u8 = 203;

/// What every source of ours is called.
const CNAME: &[u8; 10] = b"sluicegate";

/// Seconds from 1900, from which NTP counts, to 2000.
const NTP_2000: i64 = 3_155_673_600;

/// A sender report (6.4.1) and the source's name (6.5): ties the track's timestamps to those of the other tracks.
///
/// The wall clock in it is the stream's own time, counted from the year 2000: it runs like a clock, and says nothing about the time of
/// day.
pub fn write_sender_report(packetizer: &Packetizer, time_90k: i64, out: &mut BytesMut) {
    let clock = i64::from(VIDEO_CLOCK);
    let seconds = NTP_2000.wrapping_add(time_90k.div_euclid(clock));
    let fraction = (time_90k.rem_euclid(clock) << 32) / clock;
    let (packets, octets) = packetizer.sent();
    out.put_slice(&[0x80, SENDER_REPORT, 0, 6]);
    out.put_u32(packetizer.ssrc());
    out.put_u32(seconds as u32);
    out.put_u32(fraction as u32);
    out.put_u32(packetizer.format().ticks(time_90k));
    out.put_u32(packets);
    out.put_u32(octets);
    out.put_slice(&[0x81, SOURCE_DESCRIPTION, 0, 5]);
    out.put_u32(packetizer.ssrc());
    out.put_slice(&[1, CNAME.len() as u8]);
    out.put_slice(CNAME);
    // The end of the list, padded to a whole word.
    out.put_slice(&[0; 4]);
}

/// The source is no more (6.6).
pub fn bye(ssrc: u32) -> [u8; 8] {
    let [a, b, c, d] = ssrc.to_be_bytes();
    [0x81, BYE, 0, 1, a, b, c, d]
}

/// What a sender report says about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderReport {
    pub ssrc: u32,
    /// Wall clock in 1/90,000 s since 1900.
    pub wall_90k: i64,
    /// The same moment in ticks of the track's clock.
    pub timestamp: u32,
}

impl SenderReport {
    /// The sender report of a compound packet, if there is one.
    pub fn find(compound: &[u8]) -> Option<Self> {
        let mut rest = compound;
        loop {
            let &[first, kind, high, low, ..] = rest else { return None };
            let len = 4 + 4 * usize::from(u16::from_be_bytes([high, low]));
            let (packet, next) = rest.split_at_checked(len)?;
            if first >> 6 == 2 && kind == SENDER_REPORT {
                let word = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
                let (seconds, fraction) = (i64::from(word(8)?), word(12)?);
                let wall_90k =
                    seconds * i64::from(VIDEO_CLOCK) + ((i64::from(fraction) * i64::from(VIDEO_CLOCK)) >> 32);
                return Some(Self { ssrc: word(4)?, wall_90k, timestamp: word(16)? });
            }
            rest = next;
        }
    }

    /// The wall clock at another timestamp of the track, 1/90,000 s.
    pub fn wall_at(&self, timestamp: u32, clock: u32) -> i64 {
        let ticks = i64::from(timestamp.wrapping_sub(self.timestamp) as i32);
        self.wall_90k.saturating_add(scale(ticks, VIDEO_CLOCK, clock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Codec, Kind, Track, Tracks, Unit};
    use proptest::prelude::*;

    fn packetizer() -> Packetizer {
        let mut tracks = Tracks::default();
        let data = bytes::Bytes::new();
        tracks.note(&Unit { track: Track::Audio, codec: Codec::G711A, dts_90k: 0, pts_90k: 0, kind: Kind::Key, data });
        Packetizer::new(&tracks, Track::Audio, 0x0102_0304, 0).unwrap()
    }

    proptest! {
        #[test]
        fn a_report_ties_two_clocks(time_90k in 0i64..1 << 40, later in 0i64..90_000 * 3_600) {
            let mut out = BytesMut::new();
            write_sender_report(&packetizer(), time_90k, &mut out);
            prop_assert_eq!(out.len(), REPORT_LEN);
            let report = SenderReport::find(&out).unwrap();
            prop_assert_eq!(report.ssrc, 0x0102_0304);
            let wall = report.wall_at(packetizer().format().ticks(time_90k + later), 8_000);
            prop_assert!((wall - report.wall_90k - later).abs() <= 90_000 / 8_000 + 1);
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _report = SenderReport::find(&noise);
        }
    }
}
