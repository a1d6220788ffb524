//! What a publisher sends, as units: packets in order, tracks on one clock.
//!
//! Each track's timestamps begin anywhere. Sender reports tie them to a wall clock; until they come, tracks are tied by when
//! their first packets arrived. Must not be in here: requests and answers.

use std::time::Instant;

use bytes::Bytes;

use super::sdp::Announced;
use crate::media::rtp::reports::SenderReport;
use crate::media::rtp::{Depacketizer, Header, Reorder, depacketize::Described, is_report};
use crate::media::{MediaError, Track, Unit};
use crate::session::{Fault, Outbox, Output};

/// Tracks that were tied by arrival are tied anew by their reports if that was wrong by more than this, 1/90,000 s.
const SKEW_MAX: i64 = 90 * 20;

/// The stream's time at the first packet, 1/90,000 s: what turns out to be earlier still is not before 0, for which FLV has no word.
const BEGIN: i64 = 90_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Publishing {
    tracks: Vec<Inbound>,
    began: Option<Instant>,
    /// Both tracks stand where their reports say.
    tied: bool,
}

/// A track of the publisher's, by its place in the description.
#[derive(Debug)]
struct Inbound {
    control: String,
    is_video: bool,
    /// `None`: its packets are left out.
    flow: Option<Flow>,
}

/// The packets of one source.
#[derive(Debug)]
struct Flow {
    described: Described,
    depacketizer: Depacketizer,
    reorder: Reorder,
    ssrc: Option<u32>,
    report: Option<SenderReport>,
    /// What is added to the depacketizer's times; known with the first packet.
    offset_90k: Option<i64>,
}

impl Publishing {
    pub(super) fn new(announced: Vec<Announced>) -> Self {
        let inbound = |Announced { control, is_video, described }| Inbound {
            control,
            is_video,
            flow: described.map(|described| Flow::new(described, None)),
        };
        Self { tracks: announced.into_iter().map(inbound).collect(), began: None, tied: false }
    }

    /// The track that an address ends with; of one track, any.
    pub(super) fn track(&self, path: &str, query: &str, number: Option<usize>) -> Option<(usize, Track)> {
        let ends = |text: &str, control: &str| text.strip_suffix(control).is_some_and(|rest| rest.ends_with('/'));
        let named = |track: &Inbound| {
            let control = track.control.trim_matches('/');
            let numbered = number.is_some_and(|number| control.ends_with(&format!("trackID={number}")));
            numbered || !control.is_empty() && (ends(path, control) || ends(query, control))
        };
        let only = (self.tracks.len() == 1).then_some(0);
        let place = self.tracks.iter().position(named).or(number).or(only)?;
        let is_video = self.tracks.get(place)?.is_video;
        Some((place, if is_video { Track::Video } else { Track::Audio }))
    }

    /// Takes a packet of a track; `datagram`: from a wire that may change their order.
    pub(super) fn packet(
        &mut self,
        now: Instant,
        track: usize,
        packet: Bytes,
        datagram: bool,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let Some(flow) = self.tracks.get_mut(track).and_then(|track| track.flow.as_mut()) else { return Ok(()) };
        if is_report(&packet) {
            if let Some(report) = SenderReport::find(&packet) {
                flow.report = Some(report);
                self.tie();
            }
            return Ok(());
        }
        if !datagram {
            return self.take(now, track, &packet, out);
        }
        let mut outcome = Ok(());
        flow.reorder.push(now, packet);
        while let Some(packet) = self.flow(track).and_then(|flow| flow.reorder.pop(now)) {
            let taken = self.take(now, track, &packet, out);
            outcome = outcome.and(taken);
        }
        outcome
    }

    fn flow(&mut self, track: usize) -> Option<&mut Flow> {
        self.tracks.get_mut(track)?.flow.as_mut()
    }

    fn take(&mut self, now: Instant, track: usize, packet: &Bytes, out: &mut Outbox) -> Result<(), Fault> {
        let fault = |error: MediaError| Fault::recoverable(error.to_string());
        let began = *self.began.get_or_insert(now);
        let Some(flow) = self.flow(track) else { return Ok(()) };
        let (header, _) = Header::parse(packet).map_err(fault)?;
        if header.payload_type == flow.described.payload_type && flow.ssrc.is_some_and(|ssrc| ssrc != header.ssrc) {
            // The encoder began anew: other numbers, another clock.
            *flow = Flow::new(flow.described.clone(), flow.report.filter(|report| report.ssrc == header.ssrc));
        }
        let mut units = Vec::new();
        let outcome = flow.depacketizer.packet(packet, &mut units).map_err(fault);
        if flow.offset_90k.is_none() && flow.depacketizer.is_aligned() {
            flow.ssrc = Some(header.ssrc);
            let since = i64::try_from(now.saturating_duration_since(began).as_millis()).unwrap_or(0);
            self.begin(track, since.saturating_mul(90).saturating_add(BEGIN));
        }
        let offset_90k = self.flow(track).and_then(|flow| flow.offset_90k).unwrap_or(0);
        for unit in units {
            let (dts_90k, pts_90k) = (unit.dts_90k.saturating_add(offset_90k), unit.pts_90k.saturating_add(offset_90k));
            out.push(Output::Unit(Unit { dts_90k, pts_90k, ..unit }));
        }
        outcome
    }

    /// A track's first packet: it begins where its report says, beside the other track, or else where it arrived.
    fn begin(&mut self, track: usize, arrived_90k: i64) {
        let is_video = self.tracks.get(track).is_some_and(|track| track.is_video);
        let beside = self.carried(!is_video).and_then(|other| other.wall_zero_90k());
        let Some(flow) = self.flow(track) else { return };
        let reported = beside.zip(flow.wall_90k()).map(|(zero, wall)| zero.saturating_add(wall));
        flow.offset_90k = Some(reported.unwrap_or(arrived_90k));
        self.tied = reported.is_some();
    }

    /// Both tracks' reports are there: if they were tied by their arrival alone, the one that is early is moved, once. None
    /// is moved back: no unit comes before one that was given.
    fn tie(&mut self) {
        let zero = |flow: Option<&mut Flow>| flow.and_then(|flow| flow.wall_zero_90k());
        let (Some(picture), Some(sound)) = (zero(self.carried(true)), zero(self.carried(false))) else { return };
        let skew = picture.saturating_sub(sound);
        if !std::mem::replace(&mut self.tied, true)
            && skew.abs() > SKEW_MAX
            && let Some(flow) = self.carried(skew < 0)
        {
            flow.offset_90k = flow.offset_90k.map(|offset| offset.saturating_add(skew.abs()));
        }
    }

    /// The picture or the sound; of each there is one at most.
    fn carried(&mut self, is_video: bool) -> Option<&mut Flow> {
        let mut tracks = self.tracks.iter_mut().filter(|track| track.is_video == is_video);
        tracks.find_map(|track| track.flow.as_mut())
    }
}

impl Flow {
    fn new(described: Described, report: Option<SenderReport>) -> Self {
        let depacketizer = Depacketizer::new(described.clone());
        Self { described, depacketizer, reorder: Reorder::default(), ssrc: None, report, offset_90k: None }
    }

    /// The wall clock at the depacketizer's time 0; `None` until a report and a packet were there.
    fn wall_90k(&self) -> Option<i64> {
        let report = self.report?;
        Some(report.wall_90k.saturating_sub(self.depacketizer.time_at(report.timestamp)?))
    }

    /// The stream's time at the wall clock's 0.
    fn wall_zero_90k(&self) -> Option<i64> {
        self.offset_90k?.checked_sub(self.wall_90k()?)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rtsp::sdp::announced;

    const DESCRIPTION: &[u8] = b"v=0\r\nm=audio 0 RTP/AVP 8\r\na=control:stream=1\r\n\
        m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n\
        a=fmtp:96 packetization-mode=1; sprop-parameter-sets=Z0LAC9oKEflwEQAAAwABAAADADIPFCqg,aM48gA==\r\na=control:stream=0\r\n";

    fn publishing() -> Publishing {
        Publishing::new(announced(DESCRIPTION).unwrap())
    }

    fn packet(payload_type: u8, sequence: u16, timestamp: u32, ssrc: u32, payload: &[u8]) -> Bytes {
        let mut packet = bytes::BytesMut::new();
        Header { marker: true, payload_type, sequence, timestamp, ssrc }.write(&mut packet);
        packet.extend_from_slice(payload);
        packet.freeze()
    }

    /// So many seconds of wall clock are this timestamp.
    fn report(seconds: u32, timestamp: u32) -> Bytes {
        let mut packet = vec![0x80, 200, 0, 6, 0, 0, 0, 1];
        packet.extend(seconds.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(timestamp.to_be_bytes());
        packet.extend([0; 8]);
        packet.into()
    }

    fn times(out: &mut Outbox) -> Vec<(Track, i64)> {
        let units = std::iter::from_fn(|| out.pop()).map(|output| match output {
            Output::Unit(unit) => (unit.track, unit.pts_90k - BEGIN),
            other => panic!("{other:?}"),
        });
        units.collect()
    }

    #[test]
    fn tracks_begin_where_their_reports_say() {
        let (mut publishing, mut out, now) = (publishing(), Outbox::default(), Instant::now());
        let late = now + Duration::from_secs(3);
        publishing.packet(now, 1, report(100, 900_000), false, &mut out).unwrap();
        publishing.packet(now, 1, packet(96, 7, 900_000, 1, &[0x65, 0x80]), false, &mut out).unwrap();
        publishing.packet(late, 0, report(101, 50_000), false, &mut out).unwrap();
        // Half a second before its report, whenever it arrives.
        publishing.packet(late, 0, packet(8, 7, 46_000, 2, &[1, 2]), false, &mut out).unwrap();
        let times = times(&mut out);
        assert_eq!(times, [(Track::Video, 0), (Track::Video, 0), (Track::Audio, 45_000)]);
    }

    /// The times of two tracks that begin 100 ms apart, picture (0, in which a key frame is two units) or sound (1) first,
    /// and whose reports then say that they began at once.
    fn tied_late(first: usize) -> [Vec<i64>; 2] {
        let (mut publishing, mut out, now) = (publishing(), Outbox::default(), Instant::now());
        let packets = |n: u16| {
            let picture = packet(96, 7 + n, 900_000 + u32::from(n) * 3_600, 1, &[0x65, 0x80]);
            [(1, picture), (0, packet(8, 7 + n, 46_000 + u32::from(n) * 320, 2, &[1, 2]))]
        };
        for place in [first, 1 - first] {
            let at = now + Duration::from_millis(if place == first { 0 } else { 100 });
            let (track, packet) = packets(0)[place].clone();
            publishing.packet(at, track, packet, false, &mut out).unwrap();
        }
        let late = now + Duration::from_millis(120);
        for n in 1..3 {
            for (track, timestamp) in [(0, 46_000), (1, 900_000)] {
                publishing.packet(late, track, report(95 + 5 * u32::from(n), timestamp), false, &mut out).unwrap();
            }
            for (track, packet) in packets(n) {
                publishing.packet(late, track, packet, false, &mut out).unwrap();
            }
        }
        let times = times(&mut out);
        [Track::Video, Track::Audio]
            .map(|track| times.iter().filter(|(own, _)| *own == track).map(|(_, at)| *at).collect())
    }

    #[test]
    fn tracks_without_reports_begin_where_they_arrive_and_the_early_one_is_moved_once() {
        assert_eq!(tied_late(1), [vec![9_000, 9_000, 12_600, 16_200], vec![0, 12_600, 16_200]]);
        assert_eq!(tied_late(0), [vec![0, 0, 12_600, 16_200], vec![9_000, 12_600, 16_200]]);
    }

    #[test]
    fn an_encoder_that_begins_anew_goes_on_when_it_arrives() {
        let (mut publishing, mut out, now) = (publishing(), Outbox::default(), Instant::now());
        publishing.packet(now, 0, packet(8, 7, 46_000, 2, &[1]), false, &mut out).unwrap();
        let late = now + Duration::from_secs(1);
        publishing.packet(late, 0, packet(8, 1, 5, 3, &[1]), true, &mut out).unwrap();
        assert!(
            publishing.packet(late, 0, packet(9, 2, 5, 4, &[1]), false, &mut out).is_err(),
            "of another payload type"
        );
        publishing.packet(late, 0, packet(8, 3, 325, 3, &[1]), false, &mut out).unwrap();
        assert_eq!(times(&mut out), [(Track::Audio, 0), (Track::Audio, 90_000), (Track::Audio, 93_600)]);
    }

    #[test]
    fn tracks_are_found_by_what_their_description_calls_them() {
        let two = publishing();
        for (path, query, number, found) in [
            ("live/x/stream=0", "", None, Some((1, Track::Video))),
            ("live/x", "key=k/stream=1", None, Some((0, Track::Audio))),
            ("live/x", "", Some(1), Some((1, Track::Video))),
            ("live/x", "", Some(2), None),
            ("live/xstream=0", "", None, None),
            ("live/x", "", None, None),
        ] {
            assert_eq!(two.track(path, query, number), found, "{path} {query}");
        }
        let one = Publishing::new(announced(b"v=0\r\nm=audio 0 RTP/AVP 0\r\n").unwrap());
        assert_eq!(one.track("live/x", "", None), Some((0, Track::Audio)));
    }
}
