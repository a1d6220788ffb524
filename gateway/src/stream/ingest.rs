//! A publisher on its stream thread: reads its socket, runs its session, and hands the units to the hub.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::media::{Kind, StreamName, Track, Unit};
use protocols::{Input, Limits, Outbox, Output, Session};
use tokio::io::Interest;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::gather::{Pace, READ_LEN};
use super::hub::{Hub, Origin, SharedSource, refuse};
use super::rhythm::Rhythm;
use super::socket::Socket;
use super::source::Generation;
use super::{Handover, feed, sockets};
use crate::hooks::Stay;

/// Reads before other tasks of the thread get their turn.
const READS_MAX: usize = 4;

/// Answers a publisher may leave unread, bytes. They are acknowledgements and pings of a few bytes each.
const ANSWERS_MAX: usize = 64 * 1024;

struct Ingest {
    hub: Rc<Hub>,
    source: SharedSource,
    generation: Generation,
    socket: Socket,
    session: Box<dyn Session>,
    outbox: Outbox,
    unread: BytesMut,
    limits: Limits,
    answers: BytesMut,
    heard: Instant,
    /// When to read next, where nobody says when something came.
    read_at: Option<Instant>,
    pace: Pace,
    rhythm: Rhythm,
    stay: Option<Stay>,
}

/// Runs one publisher to its end.
pub(super) async fn run(hub: Rc<Hub>, stream: StreamName, handover: Handover) {
    let (source, generation, stop) = match hub.publish(&stream, &Origin::Peer(handover.peer.address)) {
        Ok(seat) => seat,
        Err(reason) => {
            debug!(%stream, peer = ?handover.peer.address, reason, "publisher refused");
            hub.refused_publisher();
            refuse(handover, reason);
            return;
        }
    };
    sockets::prepare(handover.socket.tcp());
    let Handover { socket, session, outbox, unread, limits, peer: _, stay } = handover;
    let reason = match socket.register() {
        Ok(socket) => {
            let answers = BytesMut::new();
            let (hub, source, heard) = (hub.clone(), source.clone(), Instant::now());
            let mut ingest = Ingest {
                hub,
                source,
                generation,
                socket,
                session,
                outbox,
                unread,
                limits,
                answers,
                heard,
                read_at: None,
                pace: Pace::default(),
                rhythm: Rhythm::default(),
                stay,
            };
            let reason = ingest.talk(&stop).await;
            ingest.goodbye(&reason);
            reason
        }
        Err(error) => format!("cannot take over the publisher's socket: {error}"),
    };
    hub.unpublish(&source, generation, &reason);
}

impl Ingest {
    /// Goes on until somebody has a reason to end.
    async fn talk(&mut self, stop: &CancellationToken) -> String {
        let silence_max = self.limits.silence_max.unwrap_or(self.hub.rules.silence_max).min(self.hub.rules.silence_max);
        if let Err(reason) = self.carry_out().and_then(|()| self.understand()) {
            return reason;
        }
        // Kept from wait to wait: to register with the clock and the stop signal anew for every frame costs more than to
        // wake once too often.
        let mut alarm = pin!(tokio::time::sleep_until((self.heard + silence_max).into()));
        let mut cancelled = pin!(stop.cancelled());
        loop {
            if let Err(reason) = self.answer() {
                return reason;
            }
            let silent_at = self.heard + silence_max;
            let wake_at = self.session.deadline().map_or(silent_at, |deadline| deadline.min(silent_at));
            let wake_at = self.read_at.map_or(wake_at, |read_at| read_at.min(wake_at));
            if alarm.is_elapsed() || wake_at < alarm.deadline().into() {
                alarm.as_mut().reset(wake_at.into());
            }
            let interest = self.interest();
            tokio::select! {
                biased;
                () = cancelled.as_mut() => return self.stopped(),
                ready = ready(&self.socket, interest) => {
                    if let Err(error) = ready {
                        return format!("the connection broke: {error}");
                    }
                }
                () = alarm.as_mut() => {}
            }
            let outcome = self
                .read()
                .and_then(|came| self.pace(came))
                .and_then(|()| self.tick(silent_at, silence_max, stop))
                .and_then(|()| self.understand());
            if let Err(reason) = outcome {
                return reason;
            }
        }
    }

    fn interest(&self) -> Option<Interest> {
        let waits = !self.answers.is_empty() || self.socket.is_full(true);
        match (self.may_read(), waits) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        }
    }

    fn stopped(&self) -> String {
        feed::stopped(self.source.borrow().is_current(self.generation))
    }

    /// Reads what is there, within bounds; how much came.
    fn read(&mut self) -> Result<usize, String> {
        let mut came = 0;
        for _ in 0..READS_MAX {
            if !self.may_read() {
                break;
            }
            match self.hub.reads.read(&mut self.socket, &mut self.unread) {
                Ok(0) => return Err("the publisher closed the connection".to_owned()),
                Ok(read) => {
                    came += read;
                    self.heard = Instant::now();
                    self.source.borrow_mut().arrived(self.heard);
                    self.understand()?;
                    if read < READ_LEN {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("the connection broke: {error}")),
            }
        }
        Ok(came)
    }

    /// Has the socket watched, or says when to read it next.
    fn pace(&mut self, came: usize) -> Result<(), String> {
        let now = Instant::now();
        let reads = &self.hub.reads;
        let (heard, tapped) = {
            let source = self.source.borrow();
            (source.is_heard(), source.is_tapped())
        };
        let next = if reads.are_gathered() || !heard {
            Some(reads.after(now, self.pace.pause(came, heard)))
        } else if tapped {
            // WebRTC and RTSP send each piece of sound as it comes.
            None
        } else {
            self.rhythm.due_us(reads.micros(now)).map(|due| reads.at(due))
        };
        // What waits to be written needs to be told when it may go on.
        let watched = next.is_none() || !self.answers.is_empty();
        if watched != self.socket.is_watched() {
            self.socket.watch(watched).map_err(|error| format!("the connection broke: {error}"))?;
        }
        self.read_at = next.filter(|_| !self.socket.is_watched());
        Ok(())
    }

    /// Whether more bytes are wanted now.
    fn may_read(&self) -> bool {
        !self.session.paused() && self.unread.len() < self.limits.frame_max
    }

    /// Hands the bytes to the session again and again while it takes some and stumbles over others, as the driver does
    /// before a connection comes here.
    fn understand(&mut self) -> Result<(), String> {
        while !self.unread.is_empty() && !self.session.paused() {
            let before = self.unread.len();
            let heard = self.session.receive(Instant::now(), Input::Stream(&mut self.unread), &mut self.outbox);
            self.carry_out()?;
            match heard {
                Err(fault) if fault.fatal => return Err(format!("protocol fault: {fault}")),
                Err(fault) => {
                    let mut source = self.source.borrow_mut();
                    source.counters.faults += 1;
                    debug!(stream = %source.name, %fault, "recoverable fault");
                }
                // Without a fault the session took what it could; with one it may go on with the next frame.
                Ok(()) => break,
            }
            if self.unread.len() == before {
                break;
            }
        }
        self.hub.reads.take_back(&mut self.unread);
        if self.unread.len() >= self.limits.frame_max && !self.session.paused() {
            return Err(format!("a frame of more than {} bytes", self.limits.frame_max));
        }
        Ok(())
    }

    fn tick(&mut self, silent_at: Instant, silence_max: Duration, stop: &CancellationToken) -> Result<(), String> {
        let now = Instant::now();
        if now >= silent_at && now >= self.heard + silence_max {
            // Where a hook is asked, it decides; until the next silence, should it say that all is well.
            if !self.stay.as_ref().is_some_and(|stay| stay.silent(stop.clone())) {
                return Err(feed::silent(silence_max));
            }
            self.heard = now;
        }
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.session.tick(now, &mut self.outbox);
            self.carry_out()?;
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<(), String> {
        while let Some(output) = self.outbox.pop() {
            match output {
                Output::Unit(unit) => {
                    if !self.source.borrow().is_current(self.generation) {
                        return Err(self.stopped());
                    }
                    self.listen(&unit);
                    self.hub.push(&self.source, unit);
                }
                Output::Send(bytes) => self.answers.extend_from_slice(&bytes),
                Output::Missing { .. } => self.source.borrow_mut().counters.faults += 1,
                Output::Close { reason } => return Err(reason.into_owned()),
                // A publisher stays the source of its one stream.
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes in when its pictures come.
    fn listen(&mut self, unit: &Unit) {
        match (unit.track, unit.kind) {
            (Track::Video, Kind::Key | Kind::Delta) => {
                let now_us = self.hub.reads.micros(self.heard);
                self.rhythm.picture(now_us, unit.dts_90k, self.socket.is_watched());
            }
            (Track::Audio, _) => self.rhythm.sound(),
            _ => {}
        }
    }

    /// Writes what waits for the publisher, as far as the kernel takes it.
    fn answer(&mut self) -> Result<(), String> {
        while !self.answers.is_empty() {
            match self.socket.try_write(&self.answers) {
                Ok(0) => return Err("the publisher closed the connection".to_owned()),
                Ok(written) => drop(self.answers.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("the connection broke: {error}")),
            }
        }
        if let Err(error) = self.socket.flush()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            return Err(format!("the connection broke: {error}"));
        }
        if self.answers.len() > ANSWERS_MAX {
            return Err(format!("the publisher left more than {ANSWERS_MAX} bytes of answers unread"));
        }
        Ok(())
    }

    fn goodbye(&mut self, reason: &str) {
        // The connection ends in any case: a fault in the goodbye changes nothing.
        let _fault = self.session.receive(Instant::now(), Input::Ended { reason }, &mut self.outbox);
        while let Some(output) = self.outbox.pop() {
            if let Output::Send(bytes) = output {
                self.answers.extend_from_slice(&bytes);
            }
        }
        let _unsent = self.answer();
        self.socket.say_goodbye();
    }
}

async fn ready(socket: &Socket, interest: Option<Interest>) -> io::Result<()> {
    match interest {
        Some(interest) => socket.ready(interest).await,
        None => std::future::pending().await,
    }
}
