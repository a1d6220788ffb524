//! A client that publishes: ANNOUNCE says what comes and asks whether it may, RECORD begins.

use std::time::Instant;

use bytes::Bytes;

use super::{RtspSession, State, Way, cseq_of};
use crate::media::{StreamName, Track};
use crate::rtsp::frame::{Answer, Request, Status};
use crate::rtsp::publishing::Publishing;
use crate::rtsp::sdp;
use crate::session::{Fault, Outbox, Output};

impl RtspSession {
    /// Looks at the description before anybody is asked: what nobody could carry needs no key.
    pub(super) fn announce(&mut self, request: Box<Request>, out: &mut Outbox) {
        let tracks = sdp::announced(&request.body);
        let any = |wanted: Option<bool>| {
            let mut tracks = tracks.iter().flatten().filter(|track| wanted.is_none_or(|video| track.is_video == video));
            tracks.any(|track| track.described.is_some())
        };
        let video = tracks.iter().flatten().any(|track| track.is_video);
        if tracks.is_none() {
            self.answer(Answer::new(Status::BAD_REQUEST, cseq_of(&request)), out);
        } else if !any(video.then_some(true)) {
            let text = "send H.264, H.265, AV1, AAC, Opus or G.711\r\n".to_owned();
            let answer = Answer::new(Status::UNSUPPORTED_MEDIA, cseq_of(&request)).body("text/plain", text);
            self.answer(answer, out);
        } else {
            self.prepare(request, out);
        }
    }

    /// The peer may push the stream.
    pub(super) fn announced(&mut self, stream: StreamName, request: &Request, out: &mut Outbox) {
        let tracks = sdp::announced(&request.body).unwrap_or_default();
        self.publishing = Some((stream, Box::new(Publishing::new(tracks))));
        self.answer(Answer::new(Status::OK, cseq_of(request)), out);
    }

    /// The announced track that a SETUP is about.
    pub(super) fn announced_track(&self, request: &Request) -> Option<(usize, Track)> {
        let ((_, publishing), target) = (self.publishing.as_ref()?, request.target.as_ref()?);
        publishing.track(&target.path, &target.query, target.track)
    }

    pub(super) fn record(&mut self, request: &Request, out: &mut Outbox) {
        let cseq = cseq_of(request);
        let Some((stream, _)) = &self.publishing else {
            self.answer(Answer::new(Status::NOT_IN_THIS_STATE, cseq), out);
            return;
        };
        let stream = stream.clone();
        out.send(self.in_session(Answer::new(Status::OK, cseq)).bytes());
        if let State::Still = self.state {
            self.state = State::Recording;
            out.push(Output::Source { stream });
        }
    }

    /// A packet that came this way.
    pub(super) fn recorded(
        &mut self,
        now: Instant,
        came: impl Fn(Way) -> bool,
        packet: Bytes,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let (State::Recording | State::Leaving { .. }, Some((_, publishing))) = (&self.state, &mut self.publishing)
        else {
            return Ok(());
        };
        let Some(setup) = self.setups.iter().find(|setup| came(setup.way)) else { return Ok(()) };
        let datagram = matches!(setup.way, Way::Udp(_));
        publishing.packet(now, setup.place, packet, datagram, out)
    }
}
