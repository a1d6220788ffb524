//! Runs one session over one wire: the loop that waits for whatever comes first.
//!
//! The driver, not the protocol, enforces frame size, admission time, silence, write time and the size of what waits to
//! be written. What the session wants done is carried out in `conversation/`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::{Input, MediaEvent, Peer, Session};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::consume_budget;
use tokio::time::Sleep;
use tracing::debug;

use super::conversation::{Conversation, Ending, Fetched, Step};
use super::media::Media;
use super::unwritten::SHARED_TIME_MAX;
use super::wire::{Arrived, Wire};
use super::{Adapter, Language, Services};
use crate::stream::Handover;

/// A peer that takes no byte for this long is closed.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// What may wait to be written before the session's input waits too.
const UNWRITTEN_MAX: usize = 256 * 1024;
/// Time for the last words at the end.
const GOODBYE_TIME_MAX: Duration = Duration::from_millis(500);
/// Bytes of a peer that does not stop sending after its goodbye.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// A peer that has closed its side still gets the answers that wait for the disk, at most this long.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// Talks with one peer until the talk ends or moves to a stream thread. `place` is its place among the adapter's
/// connections.
///
/// Not `async fn`: that would hold its arguments twice for the connection's life.
pub(super) fn drive(
    wire: Wire,
    unread: BytesMut,
    peer: Peer,
    language: &Arc<Language>,
    adapter: &Arc<Adapter>,
    services: &Arc<Services>,
    place: Option<OwnedSemaphorePermit>,
) -> impl Future<Output = ()> + Send + use<> {
    let mut drive = Drive {
        wire,
        unread,
        started: Instant::now(),
        heard: Instant::now(),
        ended: false,
        wire_first: false,
        talk: Conversation::new(&peer, Arc::clone(language), Arc::clone(adapter), Arc::clone(services)),
        place,
    };
    async move {
        drive.talk.services.metrics.connected(&drive.talk.adapter.info.name);
        let ending = drive.run().await;
        Box::pin(drive.finish(ending)).await;
    }
}

struct Drive {
    wire: Wire,
    unread: BytesMut,
    started: Instant,
    heard: Instant,
    /// The peer closed its side (it may still read); `heard` says when.
    ended: bool,
    /// Whose turn it is to be asked first.
    wire_first: bool,
    talk: Conversation,
    place: Option<OwnedSemaphorePermit>,
}

pub(super) enum Woken {
    Arrived(std::io::Result<Arrived>),
    Written(std::io::Result<usize>),
    Durable,
    Exchange(protocols::exchange::Event),
    Fetched(Fetched),
    Command(Box<device_models::Command>),
    /// `None`: the stream that the session carries has ended.
    Media(Option<MediaEvent>),
    Deadline,
    Stopping,
}

impl Drive {
    async fn run(&mut self) -> Ending {
        let mut written_at = Instant::now();
        // Kept from wait to wait: to register with the clock and the stop signal anew for every packet costs more than to
        // wake once too often.
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(self.deadline(written_at).into()));
        let mut stopping = std::pin::pin!(self.talk.services.tasks.stopped());
        // Bytes that sniffing read already.
        if !self.unread.is_empty() {
            self.talk.receive_stream(&mut self.unread);
        }
        loop {
            // Whoever has much to say lets others speak in between.
            consume_budget().await;
            let ending = match self.talk.carry_out(&self.wire) {
                Step::Done => None,
                Step::Ending(ending) => Some(ending),
                Step::Waits(attending) => attending.await,
            };
            if let Some(ending) = ending {
                return ending;
            }
            // An answer may have ended a pause: the bytes left unread are offered again.
            if self.talk.resume(&mut self.unread) {
                continue;
            }
            if let Some(ending) = self.talk.over(&self.unread) {
                return ending;
            }
            if self.ended && self.talk.owes_nothing() {
                return Ending::Closed("the peer closed the connection".into());
            }
            self.shrink();
            if self.talk.unwritten.is_empty() {
                written_at = Instant::now();
            }
            let deadline = self.deadline(written_at).into();
            if alarm.is_elapsed() || deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            let woken = match self.talk.media.take() {
                None => poll_fn(|cx| self.poll(cx, alarm.as_mut(), stopping.as_mut())).await,
                // Boxed: few connections carry a stream by themselves, and the others hold no room for it.
                Some(media) => Box::pin(self.wait_with(media, alarm.as_mut(), stopping.as_mut())).await,
            };
            if let Some(ending) = self.take(woken, &mut written_at) {
                return ending;
            }
        }
    }

    fn take(&mut self, woken: Woken, written_at: &mut Instant) -> Option<Ending> {
        match woken {
            Woken::Arrived(Ok(Arrived::Bytes(count))) => {
                self.heard = Instant::now();
                self.talk.heard(count);
                self.talk.receive_stream(&mut self.unread);
            }
            Woken::Arrived(Ok(Arrived::Packet(packet))) => {
                self.heard = Instant::now();
                self.talk.heard(packet.len());
                self.talk.receive(Input::Datagram(packet));
            }
            Woken::Arrived(Ok(Arrived::End)) => {
                self.heard = Instant::now();
                self.ended = true;
            }
            Woken::Arrived(Err(error)) | Woken::Written(Err(error)) => {
                return Some(Ending::Closed(error.to_string().into()));
            }
            Woken::Written(Ok(count)) => {
                *written_at = Instant::now();
                self.talk.wrote(count);
            }
            Woken::Durable => self.talk.settle(),
            Woken::Exchange(event) => self.talk.receive(Input::Exchange(event)),
            Woken::Fetched((ticket, outcome)) => self.talk.receive(Input::Piece { ticket, outcome }),
            Woken::Command(command) => self.talk.receive(Input::Command(*command)),
            Woken::Media(Some(event)) => self.talk.receive(Input::Media(event)),
            Woken::Media(None) => return Some(Ending::Closed("the stream ended".into())),
            Woken::Deadline => {
                if let Some(why) = self.overdue(*written_at) {
                    return Some(Ending::Closed(why.into()));
                }
                self.talk.tick();
            }
            Woken::Stopping => return Some(Ending::Stopping),
        }
        None
    }

    /// The first of everything that can happen. Written by hand, not with `select!`: what each of its futures keeps
    /// while it waits would be most of an idle connection's memory, and all would be made anew for every packet.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        alarm: Pin<&mut Sleep>,
        stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Woken> {
        if alarm.poll(cx).is_ready() {
            return Poll::Ready(Woken::Deadline);
        }
        // By turns: neither a flood of bytes nor one of deliveries starves the other.
        self.wire_first = !self.wire_first;
        let woken = if self.wire_first {
            or(self.poll_wire(cx), || self.talk.poll(cx))
        } else {
            or(self.talk.poll(cx), || self.poll_wire(cx))
        };
        or(woken, || stopping.poll(cx).map(|()| Woken::Stopping))
    }

    /// The same for a session that carries a stream.
    async fn wait_with(
        &mut self,
        mut media: Box<Media>,
        mut alarm: Pin<&mut Sleep>,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Woken {
        let takes_more = self.talk.unwritten.len() < UNWRITTEN_MAX;
        let woken = {
            let mut next = std::pin::pin!(media.next(takes_more));
            let mut first = false;
            poll_fn(|cx| {
                first = !first;
                if first && let Poll::Ready(event) = next.as_mut().poll(cx) {
                    return Poll::Ready(Woken::Media(event));
                }
                let woken = self.poll(cx, alarm.as_mut(), stopping.as_mut());
                if first { woken } else { or(woken, || next.as_mut().poll(cx).map(Woken::Media)) }
            })
            .await
        };
        self.talk.media = Some(media);
        woken
    }

    /// Reads, or writes when something waits.
    fn poll_wire(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
        let Self { wire, unread, talk, ended, .. } = self;
        if !wire.is_datagram() && (!talk.unwritten.is_empty() || wire.is_unflushed()) {
            return wire.poll_write(cx, &mut talk.unwritten).map(Woken::Written);
        }
        let may_read = !*ended && !talk.session.paused() && unread.len() < talk.language.limits.frame_max;
        if may_read { wire.poll_read(cx, unread).map(Woken::Arrived) } else { Poll::Pending }
    }

    /// The next moment at which something must be looked at.
    fn deadline(&self, written_at: Instant) -> Instant {
        let limits = &self.talk.language.limits;
        let mut next = self.heard + limits.silence_max.unwrap_or(Duration::from_secs(24 * 3600));
        if self.ended {
            next = next.min(self.heard + ANSWER_TIME_MAX);
        }
        if !self.talk.admitted {
            next = next.min(self.started + limits.admission_max);
        }
        if !self.talk.unwritten.is_empty() {
            next = next.min(written_at + WRITE_TIME_MAX);
        }
        if let Some(shared) = self.talk.unwritten.deadline() {
            next = next.min(shared);
        }
        if let Some(own) = self.talk.session.deadline() {
            next = next.min(own);
        }
        next
    }

    /// Which of the driver's own limits has passed.
    fn overdue(&self, written_at: Instant) -> Option<&'static str> {
        let now = Instant::now();
        let limits = &self.talk.language.limits;
        if self.ended && now >= self.heard + ANSWER_TIME_MAX {
            Some("the peer closed the connection")
        } else if !self.talk.admitted && now >= self.started + limits.admission_max {
            Some("it did not introduce itself in time")
        } else if limits.silence_max.is_some_and(|max| now >= self.heard + max) {
            Some("it was silent for too long")
        } else if !self.talk.unwritten.is_empty() && now >= written_at + WRITE_TIME_MAX {
            Some("it takes no bytes")
        } else if self.talk.unwritten.deadline().is_some_and(|deadline| now >= deadline) {
            Some("it takes its bytes too slowly")
        } else {
            None
        }
    }

    /// An idle connection holds no buffers.
    fn shrink(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
        self.talk.shrink();
    }

    async fn finish(mut self, ending: Ending) {
        let (place, services, adapter) =
            (self.place.take(), Arc::clone(&self.talk.services), Arc::clone(&self.talk.adapter));
        match ending {
            Ending::Moves(outbox) => self.hand_over(outbox).await,
            other => self.goodbye(&other).await,
        }
        services.metrics.disconnected(&adapter.info.name);
        drop(place);
    }

    /// Moves socket, session and everything unread to the thread that owns the stream.
    async fn hand_over(mut self, outbox: protocols::Outbox) {
        if let Err(why) = self.flush(WRITE_TIME_MAX).await {
            debug!(%why, "lost before the hand-over");
            return;
        }
        let services = Arc::clone(&self.talk.services);
        let (session, limits, peer, stay) = self.talk.dismantle().await;
        let mut unread = self.unread;
        match self.wire.park(&mut unread) {
            Ok(socket) => services.streams.adopt(Handover { socket, session, outbox, unread, limits, peer, stay }),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                services.metrics.connection_refused(&peer.adapter, "streams_need_tcp");
            }
            Err(error) => debug!(%error, "cannot hand the connection over"),
        }
    }

    async fn goodbye(&mut self, ending: &Ending) {
        let why = ending.why();
        debug!(peer = ?self.talk.address, adapter = %self.talk.adapter.info.name, why, "the talk ends");
        self.talk.receive(Input::Ended { reason: why });
        self.talk.last_words(&self.wire).await;
        // A whole segment takes longer than a goodbye.
        let owes = self.talk.unwritten.deadline().is_some() && !matches!(ending, Ending::Stopping);
        let patience = if owes { SHARED_TIME_MAX } else { GOODBYE_TIME_MAX };
        // The peer may be gone: nothing is lost with a goodbye it does not hear.
        if self.flush(patience).await.is_ok() && !self.ended && !matches!(ending, Ending::Stopping) {
            self.linger().await;
        }
        self.talk.leave(why).await;
    }

    /// Closes our side and throws away what the peer still sends: closing with unread bytes would reset the connection,
    /// and the peer would never read why.
    async fn linger(&mut self) {
        let drained = async {
            self.wire.shutdown().await?;
            let mut bytes = 0;
            while let Arrived::Bytes(count) = self.wire.read(&mut self.unread).await? {
                bytes += count;
                self.unread.clear();
                if bytes > LINGER_BYTES_MAX {
                    break;
                }
            }
            std::io::Result::Ok(())
        };
        drop(tokio::time::timeout(GOODBYE_TIME_MAX, drained).await);
    }

    async fn flush(&mut self, patience: Duration) -> Result<(), String> {
        let all = async {
            while !self.talk.unwritten.is_empty() || self.wire.is_unflushed() {
                let count = self.wire.write(&mut self.talk.unwritten).await.map_err(|e| e.to_string())?;
                self.talk.wrote(count);
            }
            Ok(())
        };
        tokio::time::timeout(patience, all).await.map_err(|_| "it takes no bytes".to_owned())?
    }
}

/// The first that is ready; the second is asked only if the first is not.
fn or<T>(first: Poll<T>, second: impl FnOnce() -> Poll<T>) -> Poll<T> {
    if first.is_ready() { first } else { second() }
}

/// The session's part of the driver: kept as a trait object, so that one driver serves all protocols.
pub(super) type BoxedSession = Box<dyn Session>;

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a call of `drive` gives.
    fn size<F>(
        _: impl FnOnce(
            Wire,
            BytesMut,
            Peer,
            &'static Arc<Language>,
            &'static Arc<Adapter>,
            &'static Arc<Services>,
            Option<OwnedSemaphorePermit>,
        ) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Ten thousand idle connections are kept on a box of 512 MB.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size(drive) <= 752, "{} bytes", size(drive));
    }
}
