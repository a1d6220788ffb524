//! RTP between RTSP's own messages (RFC 2326, 10.12): packets of all tracks on channels that are the same for all viewers.
//!
//! Sequence numbers and reports are made once for all; a viewer that skips sees a gap in the numbers, which is what it is.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Mux, Tracks};
use crate::media::rtp::{Packetizer, Sink, reports};
use crate::media::{Codec, Container, Kind, Track, Unit};

/// The sources of the tracks, the same in every session: each has one sender alone.
pub const SSRC_VIDEO: u32 = 0x5347_0001;
pub const SSRC_AUDIO: u32 = 0x5347_0002;

/// Between two sender reports, 1/90,000 s (RFC 3550, 6.2).
const REPORT_EVERY: i64 = 5 * 90_000;

/// Some receivers take a sequence number of 0 for none.
const SEQUENCE_FIRST: u16 = 1;

impl Container {
    /// The RTP channel of a track; the next one is its RTCP's. `None` where the container lacks the track.
    pub fn rtp_channel(self, track: Track) -> Option<u8> {
        match (self, track) {
            (Self::Rtsp | Self::RtspVideo, Track::Video) | (Self::RtspAudio, Track::Audio) => Some(0),
            (Self::Rtsp, Track::Audio) => Some(2),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Interleaved {
    container: Container,
    tracks: Tracks,
    video: Option<Packetizer>,
    audio: Option<Packetizer>,
    /// When the last sender reports were.
    reported_90k: Option<i64>,
}

impl Interleaved {
    pub(super) fn new(container: Container) -> Self {
        Self { container, tracks: Tracks::default(), video: None, audio: None, reported_90k: None }
    }

    /// Makes sure of a packetizer for the codec the track has now.
    fn ready(&mut self, track: Track, codec: Codec) {
        let (packetizer, ssrc) = match track {
            Track::Video => (&mut self.video, SSRC_VIDEO),
            Track::Audio => (&mut self.audio, SSRC_AUDIO),
            Track::Data => return,
        };
        if self.container.rtp_channel(track).is_none() {
            return;
        }
        let sequence = match packetizer {
            Some(packetizer) if packetizer.format().codec == codec => return,
            Some(packetizer) => packetizer.sequence(),
            None => SEQUENCE_FIRST,
        };
        *packetizer = Packetizer::new(&self.tracks, track, ssrc, sequence);
    }

    fn report(&self, time_90k: i64, out: &mut BytesMut) {
        for (track, packetizer) in [(Track::Video, &self.video), (Track::Audio, &self.audio)] {
            if let (Some(channel), Some(packetizer)) = (self.container.rtp_channel(track), packetizer) {
                put_frame_head(channel + 1, reports::REPORT_LEN, out);
                reports::write_sender_report(packetizer, time_90k, out);
            }
        }
    }
}

impl Mux for Interleaved {
    fn prime(&mut self, tracks: &Tracks) {
        self.tracks = tracks.clone();
        for (track, codec) in [(Track::Video, tracks.video_codec), (Track::Audio, tracks.audio_codec)] {
            if let Some(codec) = codec {
                self.ready(track, codec);
            }
        }
    }

    fn preamble(&self, _tracks: &Tracks, dts_90k: i64) -> Bytes {
        let mut out = BytesMut::new();
        self.report(dts_90k, &mut out);
        out.freeze()
    }

    fn unit(&mut self, unit: &Unit, out: &mut BytesMut) {
        self.tracks.note(unit);
        self.ready(unit.track, unit.codec);
        if unit.kind != Kind::Config && self.reported_90k.is_none_or(|at| (unit.dts_90k - at).abs() >= REPORT_EVERY) {
            self.report(unit.dts_90k, out);
            self.reported_90k = Some(unit.dts_90k);
        }
        let packetizer = match unit.track {
            Track::Video => &mut self.video,
            Track::Audio => &mut self.audio,
            Track::Data => return,
        };
        if let (Some(packetizer), Some(channel)) = (packetizer, self.container.rtp_channel(unit.track)) {
            packetizer.unit(unit, &mut Frames { channel, out });
        }
    }
}

/// Packets as frames of one channel.
#[derive(Debug)]
pub struct Frames<'a> {
    pub channel: u8,
    pub out: &'a mut BytesMut,
}

impl Sink for Frames<'_> {
    fn packet(&mut self, len: usize) -> &mut BytesMut {
        put_frame_head(self.channel, len, self.out);
        self.out
    }
}

/// What stands before each packet.
pub fn put_frame_head(channel: u8, len: usize, out: &mut BytesMut) {
    out.reserve(4 + len);
    out.put_slice(&[b'$', channel]);
    out.put_u16(len as u16);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::rtp::{Header, is_report};

    fn frames(mut bytes: Bytes) -> Vec<(u8, Bytes)> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes[0], b'$');
            let (channel, len) = (bytes[1], usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
            let _head = bytes.split_to(4);
            frames.push((channel, bytes.split_to(len)));
        }
        frames
    }

    fn audio(dts_90k: i64) -> Unit {
        let data = Bytes::from_static(&[1, 2, 3]);
        Unit { track: Track::Audio, codec: Codec::G711A, dts_90k, pts_90k: dts_90k, kind: Kind::Key, data }
    }

    fn video(dts_90k: i64) -> Unit {
        let data = Bytes::from_static(&[0, 0, 0, 2, 0x65, 0x88]);
        Unit { track: Track::Video, codec: Codec::H264, dts_90k, pts_90k: dts_90k, kind: Kind::Key, data }
    }

    #[test]
    fn tracks_are_on_their_channels_with_a_report_now_and_then() {
        for (container, channels) in [
            (Container::Rtsp, vec![1, 0, 2, 1, 3, 0]),
            (Container::RtspVideo, vec![1, 0, 1, 0]),
            (Container::RtspAudio, vec![0, 1]),
        ] {
            let mut mux = Interleaved::new(container);
            let mut out = BytesMut::new();
            for unit in [video(0), audio(1), video(REPORT_EVERY)] {
                mux.unit(&unit, &mut out);
            }
            let frames = frames(out.freeze());
            let seen: Vec<u8> = frames.iter().map(|(channel, _)| *channel).collect();
            assert_eq!(seen, channels, "{container:?}");
            for (channel, packet) in frames {
                assert_eq!(is_report(&packet), channel % 2 == 1);
                assert!(channel % 2 == 1 || Header::parse(&packet).is_ok());
            }
        }
    }

    #[test]
    fn a_viewer_begins_with_reports_of_what_the_source_sent_before() {
        let mut tracks = Tracks::default();
        tracks.note(&video(0));
        tracks.note(&audio(0));
        let mut mux = Interleaved::new(Container::Rtsp);
        mux.prime(&tracks);
        let reports = frames(mux.preamble(&tracks, 90_000));
        let clocks: Vec<u32> =
            reports.iter().map(|(_, packet)| reports::SenderReport::find(packet).unwrap().timestamp).collect();
        assert_eq!(clocks, [90_000, 8_000]);
    }
}
