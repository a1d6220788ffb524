//! SETUP: which way each track takes, on the connection or through ports of its own.

use std::fmt::Write as _;

use super::{RtspSession, Setup, Waiting, Way, cseq_of};
use crate::media::Track;
use crate::media::mux::interleaved::SSRC_VIDEO;
use crate::rtsp::frame::{Answer, Request, Status};
use crate::rtsp::sdp;
use crate::rtsp::transport::Offer;
use crate::session::{Outbox, Output, Refusal, Ticket};

impl RtspSession {
    pub(super) fn setup(&mut self, request: Box<Request>, out: &mut Outbox) {
        let cseq = cseq_of(&request);
        if self.publishing.is_some() {
            return match self.announced_track(&request) {
                Some((place, track)) => self.transport(request, place, track, out),
                None => self.answer(Answer::new(Status::NOT_FOUND, cseq), out),
            };
        }
        let Some((target, presentation)) = self.presented(&request) else { return self.prepare(request, out) };
        let formats = sdp::formats(&presentation.tracks);
        // A stream of one track may be set up by its own address.
        let number = target.track.or((formats.len() == 1).then_some(0));
        match number.and_then(|number| Some((number, formats.get(number)?.0))) {
            Some((place, track)) => self.transport(request, place, track, out),
            None => self.answer(Answer::new(Status::NOT_FOUND, cseq), out),
        }
    }

    /// Gives a track the first way of those offered that we have.
    fn transport(&mut self, request: Box<Request>, place: usize, track: Track, out: &mut Outbox) {
        let cseq = cseq_of(&request);
        if self.setups.iter().any(|setup| setup.place == place) {
            self.answer(Answer::new(Status::NOT_IN_THIS_STATE, cseq), out);
            return;
        }
        let datagrams = self.setups.first().map(|setup| matches!(setup.way, Way::Udp(_)));
        let fits = |offer: &Offer| match offer {
            Offer::Interleaved(channels) => datagrams != Some(true) && channels.is_none_or(|own| self.are_free(own)),
            Offer::Udp(_) => self.udp && datagrams != Some(false),
            Offer::Other => false,
        };
        match request.field("transport").and_then(|field| Offer::all(field).find(fits)) {
            Some(Offer::Interleaved(channels)) => {
                let channels = channels.unwrap_or_else(|| self.free_channels());
                self.setups.push(Setup { track, place, way: Way::Interleaved(channels) });
                let [rtp, rtcp] = channels;
                let mode = self.mode();
                let answer = Answer::new(Status::OK, cseq)
                    .field("Transport", format_args!("RTP/AVP/TCP;unicast;interleaved={rtp}-{rtcp}{mode}"));
                let answer = self.in_session(answer);
                self.answer(answer, out);
            }
            Some(Offer::Udp(remote)) => {
                let ticket = self.ticket();
                self.setups.push(Setup { track, place, way: Way::Udp(ticket) });
                self.waiting = Some(Waiting { ticket, request, admitted: None });
                out.push(Output::Open { ticket, remote });
            }
            _ => self.answer(Answer::new(Status::UNSUPPORTED_TRANSPORT, cseq), out),
        }
    }

    /// What an answered transport says at its end.
    fn mode(&self) -> &'static str {
        if self.publishing.is_some() { ";mode=record" } else { "" }
    }

    fn are_free(&self, channels: [u8; 2]) -> bool {
        let taken = |channel: &u8| {
            self.setups.iter().any(|setup| matches!(setup.way, Way::Interleaved(taken) if taken.contains(channel)))
        };
        !channels.iter().any(taken)
    }

    fn free_channels(&self) -> [u8; 2] {
        let pairs = (0..=254).step_by(2).map(|rtp| [rtp, rtp + 1]);
        pairs.into_iter().find(|pair| self.are_free(*pair)).unwrap_or([0, 1])
    }

    pub(super) fn opened(&mut self, ticket: Ticket, outcome: Result<[u16; 2], Refusal>, out: &mut Outbox) {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.ticket == ticket) else { return };
        let request = &waiting.request;
        let offers = request.field("transport").into_iter().flat_map(Offer::all);
        let remote =
            offers.into_iter().find_map(|offer| if let Offer::Udp(remote) = offer { Some(remote) } else { None });
        match (outcome, remote) {
            (Ok([rtp, rtcp]), Some([to, to_rtcp])) => {
                let mut transport =
                    format!("RTP/AVP;unicast;client_port={to}-{to_rtcp};server_port={rtp}-{rtcp}{}", self.mode());
                if self.publishing.is_none() {
                    // Writing to a string does not fail.
                    let _infallible = write!(transport, ";ssrc={:08X}", self.ssrc(self.setups.len()));
                }
                let answer = Answer::new(Status::OK, cseq_of(request)).field("Transport", transport);
                let answer = self.in_session(answer);
                self.answer(answer, out);
            }
            (outcome, _) => {
                self.setups.pop();
                if let Err(refusal) = outcome {
                    self.refused(request, &refusal, out);
                }
            }
        }
    }

    /// The source of the n-th track set up, for a viewer on its own.
    pub(super) fn ssrc(&self, number: usize) -> u32 {
        let at = 8 + 4 * number.min(4);
        let bytes = self.seed.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(SSRC_VIDEO, u32::from_be_bytes)
    }
}
