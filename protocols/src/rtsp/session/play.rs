//! A client that watches: PLAY joins the stream's fan-out where the channels allow it, or gets packets of its own.

use std::time::Instant;

use super::own::Own;
use super::{RtspSession, State, Way, cseq_of};
use crate::media::{Container, Track};
use crate::rtsp::frame::{Answer, Request, Status};
use crate::rtsp::sdp;
use crate::session::{Outbox, Output};

impl RtspSession {
    pub(super) fn play(&mut self, now: Instant, request: &Request, out: &mut Outbox) {
        let cseq = cseq_of(request);
        // Whatever point of a live stream is asked for, it is played from now; other clocks than that cannot be told.
        if request.field("range").is_some_and(|range| !range.trim_start().starts_with("npt")) {
            self.answer(Answer::new(Status::INVALID_RANGE, cseq), out);
            return;
        }
        if !matches!(self.state, State::Still) {
            // It plays already; some clients ask again as a sign of life.
            let answer = self.in_session(Answer::new(Status::OK, cseq)).field("Range", "npt=now-");
            self.answer(answer, out);
            return;
        }
        let Some(presentation) = &self.presentation else { return };
        let stream = presentation.stream.clone();
        if let Some(container) = self.container() {
            out.push(Output::Watch { stream, container });
            self.state = State::Joining { cseq, since: now, container };
            return;
        }
        let first =
            self.seed.get(28..30).map_or(1, |bytes| bytes.iter().fold(0, |all, byte| all << 8 | u16::from(*byte)));
        let ways = self.setups.iter().enumerate().map(|(at, setup)| (*setup, self.ssrc(at + 1)));
        let own = Own::new(&presentation.tracks, ways, first & 0x7fff | 1);
        let answer = self.in_session(Answer::new(Status::OK, cseq)).field("Range", "npt=now-");
        let answer =
            answer.field("RTP-Info", self.rtp_info(|track| own.sequence(track).map(|seq| format!("seq={seq}"))));
        out.send(answer.bytes());
        self.state = State::Own(Box::new(own));
        out.push(Output::Follow { stream });
    }

    /// The container whose channels are those of this client.
    fn container(&self) -> Option<Container> {
        let channels = |track| {
            let setup = self.setups.iter().find(|setup| setup.track == track)?;
            if let Way::Interleaved(channels) = setup.way { Some(channels) } else { None }
        };
        let fits = |container: &Container, track| {
            let wanted = container.rtp_channel(track).map(|rtp| [rtp, rtp + 1]);
            channels(track) == wanted
        };
        let datagrams = self.setups.iter().any(|setup| matches!(setup.way, Way::Udp(_)));
        let all = [Container::Rtsp, Container::RtspVideo, Container::RtspAudio];
        all.into_iter().find(|one| !datagrams && fits(one, Track::Video) && fits(one, Track::Audio))
    }

    /// The answer to PLAY, now that the time of the first unit is known or that has taken too long.
    pub(super) fn joined(&mut self, dts_90k: Option<i64>, out: &mut Outbox) {
        let State::Joining { cseq, container, .. } = self.state else { return };
        self.state = State::Shared(container);
        let mut answer = self.in_session(Answer::new(Status::OK, cseq)).field("Range", "npt=now-");
        if let (Some(time), Some(presentation)) = (dts_90k, &self.presentation) {
            let formats = sdp::formats(&presentation.tracks);
            let ticks = |track| formats.iter().find(|(own, _)| *own == track).map(|(_, format)| format.ticks(time));
            let info = self.rtp_info(|track| ticks(track).map(|ticks| format!("rtptime={ticks}")));
            answer = answer.field("RTP-Info", info);
        }
        out.send(answer.bytes());
    }

    fn rtp_info(&self, says: impl Fn(Track) -> Option<String>) -> String {
        let Some(presentation) = &self.presentation else { return String::new() };
        let formats = sdp::formats(&presentation.tracks);
        let number = |track| formats.iter().position(|(own, _)| *own == track);
        let parts = self.setups.iter().filter_map(|setup| {
            let (number, says) = (number(setup.track)?, says(setup.track)?);
            Some(format!("url=trackID={number};{says}"))
        });
        parts.collect::<Vec<_>>().join(",")
    }
}
