//! One viewer: a socket, a cursor, and the session that hears what little a viewer says. No task, channel or queue of
//! its own; `fanout.rs` visits it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::media::Hevc;
use protocols::{Input, MediaEvent, Outbox, Output, Session};

use super::cursor::Cursor;
use super::gate::Gate;
use super::log::{Log, SLICES_MAX};
use super::socket::Socket;
use crate::hooks::Stay;

/// Writes one visit may make: enough to bring a GOP to a new viewer, few enough not to hold up the others.
const WRITES_MAX: usize = 4;

/// Skips within [`SKIPS_SPAN`] after which a viewer is too slow for the stream.
const SKIPS_MAX: u16 = 10;
const SKIPS_SPAN: Duration = Duration::from_secs(60);

/// Why a viewer went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It closed or broke the connection.
    Left,
    /// It said goodbye and listens for ours.
    Parted,
    /// It took no byte for too long.
    Stalled,
    /// It skipped too often.
    Slow,
    /// It broke its protocol.
    Fault,
    /// Somebody who may asked for it.
    Dismissed,
    /// The stream ended, or the gateway stops.
    Ended,
}

impl Closed {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Left | Self::Parted => "the peer closed the connection",
            Self::Stalled => "the peer took no byte for too long",
            Self::Slow => "the peer is too slow for the stream",
            Self::Fault => "the peer broke the protocol",
            Self::Dismissed => "the viewer was closed on request",
            Self::Ended => "the stream ended",
        }
    }
}

/// How a visit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// It has everything.
    Done,
    /// The kernel takes no more for now.
    Blocked,
    /// There is more, and the kernel takes it.
    More,
    Gone(Closed),
}

/// Who a viewer is and what it got, for those who ask.
#[derive(Debug)]
pub(super) struct Account {
    pub id: u64,
    pub peer: Option<SocketAddr>,
    pub since_us: i64,
    /// Bytes handed to the kernel.
    pub bytes: u64,
    pub skips: u64,
    pub written_at: Option<Instant>,
}

impl Account {
    pub(super) fn new(id: u64, peer: Option<SocketAddr>, since_us: i64) -> Self {
        Self { id, peer, since_us, bytes: 0, skips: 0, written_at: None }
    }
}

pub(super) struct Viewer {
    socket: Socket,
    pub(super) account: Account,
    pub(super) cursor: Cursor,
    session: Box<dyn Session>,
    unread: BytesMut,
    frame_max: usize,
    /// How it wants H.265 said, should there be any.
    pub(super) hevc: Hevc,
    /// It has its preamble.
    pub(super) greeted: bool,
    /// Nothing was written yet. The runtime knows a new socket as writable only after its next poll; the first picture is
    /// what a viewer waits for and does not wait for that.
    fresh: bool,
    blocked_since: Option<Instant>,
    /// Shut while the kernel takes no more.
    gate: Arc<Gate>,
    /// The kernel would take more than one visit brings.
    more: bool,
    skips_since: Option<Instant>,
    skips: u16,
    /// It was moved ahead, and took something since it was last: only then is it another skip.
    displaced: bool,
    moved: bool,
    /// Says that the viewer went when it is dropped.
    stay: Option<Stay>,
}

impl Viewer {
    pub(super) fn new(
        socket: Socket,
        session: Box<dyn Session>,
        unread: BytesMut,
        frame_max: usize,
        account: Account,
        gate: Arc<Gate>,
    ) -> Self {
        // The driver's receive buffer is sized for handshakes; thousands of idle viewers must not keep one each.
        let unread = if unread.is_empty() { BytesMut::new() } else { BytesMut::from(&unread[..]) };
        Self {
            socket,
            account,
            cursor: Cursor::default(),
            session,
            unread,
            frame_max,
            hevc: Hevc::default(),
            greeted: false,
            fresh: true,
            blocked_since: None,
            gate,
            more: false,
            skips_since: None,
            skips: 0,
            displaced: false,
            moved: true,
            stay: None,
        }
    }

    pub(super) fn staying(mut self, stay: Option<Stay>) -> Self {
        self.stay = stay;
        self
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// It did not get all it could have had at its last visit; the others wait for their turn in the merge window.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_blocked() || self.more
    }

    /// The kernel took no more, and has not said since that it would.
    pub(super) fn is_shut(&self) -> bool {
        !self.gate.is_open()
    }

    /// The log moved it ahead, or it jumped.
    pub(super) fn displace(&mut self) {
        self.displaced = true;
    }

    /// Whether it was moved ahead since it last took something: `None` when not, else whether that is bearable.
    pub(super) fn take_skip(&mut self, now: Instant) -> Option<bool> {
        if !std::mem::take(&mut self.displaced) || !std::mem::take(&mut self.moved) {
            return None;
        }
        let since = *self.skips_since.get_or_insert(now);
        if now.duration_since(since) > SKIPS_SPAN {
            self.skips_since = Some(now);
            self.skips = 0;
        }
        self.skips += 1;
        self.account.skips += 1;
        Some(self.skips <= SKIPS_MAX)
    }

    /// Carries out what the session wants.
    pub(super) fn carry_out(&mut self, outbox: &mut Outbox) -> Result<(), Closed> {
        let mut outcome = Ok(());
        while let Some(output) = outbox.pop() {
            match output {
                Output::Send(bytes) => {
                    let fits = self.cursor.interject(bytes);
                    outcome = if fits { outcome } else { Err(Closed::Stalled) };
                }
                Output::Close { .. } => outcome = Err(Closed::Parted),
                // A viewer has no more to say: what it reports or asks for is not heard.
                _ => {}
            }
        }
        outcome
    }

    /// Reads what the viewer said, if anything. Costs no system call while there is nothing.
    pub(super) fn hear(&mut self, now: Instant) -> Result<(), Closed> {
        let mut buffer = [0; 2048];
        loop {
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Err(Closed::Left),
                Ok(read) => {
                    self.unread.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    self.understand(now)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Closed::Left),
            }
        }
    }

    /// Lets the session take what came with the viewer, if anything did.
    pub(super) fn understand_leftover(&mut self, now: Instant) -> Result<(), Closed> {
        if self.unread.is_empty() { Ok(()) } else { self.understand(now) }
    }

    fn understand(&mut self, now: Instant) -> Result<(), Closed> {
        let mut outbox = Outbox::default();
        let heard = self.session.receive(now, Input::Stream(&mut self.unread), &mut outbox);
        self.carry_out(&mut outbox)?;
        if heard.is_err_and(|fault| fault.fatal) || self.unread.len() > self.frame_max {
            return Err(Closed::Fault);
        }
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
        Ok(())
    }

    /// Tells the session that its viewer's first unit is known: it may still have something to say ahead of it.
    pub(super) fn joined(&mut self, dts_90k: i64, now: Instant) -> Result<(), Closed> {
        let mut outbox = Outbox::default();
        let heard = self.session.receive(now, Input::Media(MediaEvent::Joined { dts_90k }), &mut outbox);
        self.carry_out(&mut outbox)?;
        heard.map_err(|_| Closed::Fault)?;
        // It may have waited for that.
        self.understand_leftover(now)
    }

    /// The session's own time.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Closed> {
        if self.session.deadline().is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        let mut outbox = Outbox::default();
        self.session.tick(now, &mut outbox);
        self.carry_out(&mut outbox)?;
        self.understand_leftover(now)
    }

    /// Writes what the cursor has; adds the bytes written to `bytes`.
    pub(super) fn write(&mut self, log: &Log, now: Instant, stall_max: Duration, bytes: &mut u64) -> Flushed {
        let direct = self.fresh;
        self.more = false;
        for _ in 0..WRITES_MAX {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = self.cursor.fill(log, &mut slices);
            let Some(slices) = slices.get(..filled).filter(|slices| !slices.is_empty()) else {
                return match self.socket.flush() {
                    Ok(()) => self.unblock(Flushed::Done),
                    Err(error) => self.stopped(&error, now, stall_max),
                };
            };
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            match self.socket.try_write_vectored(slices, direct) {
                Ok(0) => return Flushed::Gone(Closed::Left),
                Ok(written) => {
                    self.cursor.advance(log, written);
                    self.moved = true;
                    self.fresh = false;
                    *bytes += written as u64;
                    self.account.bytes += written as u64;
                    self.account.written_at = Some(now);
                    if self.socket.is_full(written == offered) {
                        self.blocked_since = None;
                        return self.block(now, stall_max);
                    }
                }
                Err(error) => return self.stopped(&error, now, stall_max),
            }
        }
        self.more = self.cursor.behind(log);
        self.unblock(if self.more { Flushed::More } else { Flushed::Done })
    }

    fn unblock(&mut self, flushed: Flushed) -> Flushed {
        self.blocked_since = None;
        self.gate.stay_open();
        flushed
    }

    /// The kernel takes nothing: for now, for too long, or ever again.
    fn stopped(&mut self, error: &io::Error, now: Instant, stall_max: Duration) -> Flushed {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Flushed::Gone(Closed::Left);
        }
        self.block(now, stall_max)
    }

    /// Waits for the kernel, which says when it takes more.
    fn block(&mut self, now: Instant, stall_max: Duration) -> Flushed {
        let since = *self.blocked_since.get_or_insert(now);
        if now.duration_since(since) > stall_max {
            return Flushed::Gone(Closed::Stalled);
        }
        self.gate.shut();
        if self.socket.wake_when_writable(&Waker::from(self.gate.clone())) {
            self.gate.open();
        }
        Flushed::Blocked
    }

    /// Says goodbye as far as the kernel takes it, and closes.
    pub(super) fn close(mut self, log: &Log, now: Instant, reason: Closed) {
        if reason != Closed::Left {
            let mut outbox = Outbox::default();
            // The connection ends in any case: a fault in the goodbye changes nothing.
            let _fault = self.session.receive(now, Input::Ended { reason: reason.as_str() }, &mut outbox);
            let _closing = self.carry_out(&mut outbox);
            self.cursor.retire(log);
            let _flushed = self.write(log, now, Duration::MAX, &mut 0);
            self.socket.say_goodbye();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewer_is_small() {
        assert!(size_of::<Viewer>() <= 360, "{}", size_of::<Viewer>());
    }
}
