//! A viewer whose packets are made for it alone: over UDP, or on channels of its own choice.

use bytes::{Bytes, BytesMut};

use super::{Setup, Way};
use crate::media::mux::interleaved::{Frames, put_frame_head};
use crate::media::rtp::{Packetizer, Sink, reports};
use crate::media::{Kind, Track, Tracks, Unit};
use crate::session::{Outbox, Output, Ticket};

/// Between two sender reports, 1/90,000 s.
const REPORT_EVERY: i64 = 5 * 90_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Own {
    tracks: Vec<(Setup, Packetizer)>,
    reported_90k: Option<i64>,
}

impl Own {
    pub(super) fn new(tracks: &Tracks, ways: impl Iterator<Item = (Setup, u32)>, sequence: u16) -> Self {
        let track = |(setup, ssrc): (Setup, u32)| Some((setup, Packetizer::new(tracks, setup.track, ssrc, sequence)?));
        Self { tracks: ways.filter_map(track).collect(), reported_90k: None }
    }

    pub(super) fn is_datagram(&self) -> bool {
        self.tracks.iter().any(|(setup, _)| matches!(setup.way, Way::Udp(_)))
    }

    /// The sequence number of a track's next packet.
    pub(super) fn sequence(&self, track: Track) -> Option<u16> {
        self.tracks.iter().find(|(setup, _)| setup.track == track).map(|(_, packetizer)| packetizer.sequence())
    }

    pub(super) fn unit(&mut self, unit: &Unit, out: &mut Outbox) {
        if unit.kind != Kind::Config && self.reported_90k.is_none_or(|at| (unit.dts_90k - at).abs() >= REPORT_EVERY) {
            self.reported_90k = Some(unit.dts_90k);
            for (setup, packetizer) in &self.tracks {
                let mut report = BytesMut::with_capacity(reports::REPORT_LEN);
                reports::write_sender_report(packetizer, unit.dts_90k, &mut report);
                say(setup.way, &report, out);
            }
        }
        let Some((setup, packetizer)) = self.tracks.iter_mut().find(|(setup, _)| setup.track == unit.track) else {
            return;
        };
        match setup.way {
            Way::Interleaved([channel, _]) => {
                let mut bytes = BytesMut::new();
                packetizer.unit(unit, &mut Frames { channel, out: &mut bytes });
                out.send(bytes);
            }
            Way::Udp(ticket) => {
                let mut packets = Packets { ticket, packet: BytesMut::new(), out };
                packetizer.unit(unit, &mut packets);
                packets.end();
            }
        }
    }

    pub(super) fn bye(&self, out: &mut Outbox) {
        self.tracks.iter().for_each(|(setup, packetizer)| say(setup.way, &reports::bye(packetizer.ssrc()), out));
    }
}

/// Sends an RTCP packet.
fn say(way: Way, report: &[u8], out: &mut Outbox) {
    match way {
        Way::Interleaved([_, channel]) => {
            let mut bytes = BytesMut::with_capacity(4 + report.len());
            put_frame_head(channel, report.len(), &mut bytes);
            bytes.extend_from_slice(report);
            out.send(bytes);
        }
        Way::Udp(ticket) => {
            out.push(Output::Packet { ticket, second: true, packet: Bytes::copy_from_slice(report) });
        }
    }
}

/// Packets as datagrams.
struct Packets<'a> {
    ticket: Ticket,
    packet: BytesMut,
    out: &'a mut Outbox,
}

impl Packets<'_> {
    fn end(&mut self) {
        if !self.packet.is_empty() {
            let packet = self.packet.split().freeze();
            self.out.push(Output::Packet { ticket: self.ticket, second: false, packet });
        }
    }
}

impl Sink for Packets<'_> {
    fn packet(&mut self, len: usize) -> &mut BytesMut {
        self.end();
        self.packet.reserve(len);
        &mut self.packet
    }
}
