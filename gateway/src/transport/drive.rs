//! Runs one session over one wire: the loop that waits for whatever comes first.
//!
//! The driver, not the protocol, enforces frame size, admission time, silence, write time and the size of what waits to
//! be written. What the session wants done is carried out in `conversation.rs`.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::{Input, MediaEvent, Peer, Session};
use tokio::time::Sleep;
use tracing::debug;

use super::conversation::{Conversation, Ending, Fetched};
use super::media::Media;
use super::unwritten::{SHARED_TIME_MAX, Unwritten};
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

/// Talks with one peer until the talk ends or moves to a stream thread.
pub(super) async fn drive(
    wire: Wire,
    unread: BytesMut,
    peer: Peer,
    language: &Language,
    adapter: Arc<Adapter>,
    services: &Services,
) {
    let session = language.endpoint.open(&peer);
    let limits = language.endpoint.limits();
    let metrics = services.metrics.clone();
    metrics.connected(&adapter.info.name);
    let name = Arc::clone(&adapter.info.name);
    let mut drive = Drive {
        wire,
        unread,
        started: Instant::now(),
        heard: Instant::now(),
        ended: None,
        talk: Conversation::new(peer, session, limits, language.row.name(), adapter, services.clone()),
    };
    let ending = drive.run(services).await;
    if let Ending::Moves(outbox) = ending {
        Box::pin(drive.hand_over(outbox, services)).await;
    } else {
        Box::pin(drive.goodbye(&ending)).await;
    }
    metrics.disconnected(&name);
}

struct Drive {
    wire: Wire,
    unread: BytesMut,
    started: Instant,
    heard: Instant,
    /// When the peer closed its side (it may still read).
    ended: Option<Instant>,
    talk: Conversation,
}

enum Woken {
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
    async fn run(&mut self, services: &Services) -> Ending {
        let mut written_at = Instant::now();
        // Kept from wait to wait: to register with the clock and the stop signal anew for every packet costs more than to
        // wake once too often.
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(self.deadline(written_at).into()));
        let mut stopping = std::pin::pin!(services.tasks.stopping());
        // Bytes that sniffing read already.
        if !self.unread.is_empty() {
            self.talk.receive_stream(&mut self.unread);
        }
        loop {
            if let Some(ending) = self.talk.carry_out(&self.wire).await {
                return ending;
            }
            // An answer may have ended a pause: the bytes left unread are offered again.
            if self.talk.resume(&mut self.unread) {
                continue;
            }
            if let Some(ending) = self.talk.over(&self.unread) {
                return ending;
            }
            if self.ended.is_some() && self.talk.owes_nothing() {
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
            match self.wait(alarm.as_mut(), stopping.as_mut()).await {
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
                Woken::Arrived(Ok(Arrived::End)) => self.ended = Some(Instant::now()),
                Woken::Arrived(Err(error)) | Woken::Written(Err(error)) => {
                    return Ending::Closed(error.to_string().into());
                }
                Woken::Written(Ok(count)) => {
                    written_at = Instant::now();
                    self.talk.wrote(count);
                }
                Woken::Durable => self.talk.settle(),
                Woken::Exchange(event) => self.talk.receive(Input::Exchange(event)),
                Woken::Fetched((ticket, outcome)) => {
                    self.talk.fetching = None;
                    self.talk.receive(Input::Piece { ticket, outcome });
                }
                Woken::Command(command) => self.talk.receive(Input::Command(*command)),
                Woken::Media(Some(event)) => self.talk.receive(Input::Media(event)),
                Woken::Media(None) => return Ending::Closed("the stream ended".into()),
                Woken::Deadline => {
                    if let Some(why) = self.overdue(written_at) {
                        return Ending::Closed(why.into());
                    }
                    self.talk.tick();
                }
                Woken::Stopping => return Ending::Stopping,
            }
        }
    }

    /// Waits for the first of everything that can happen.
    async fn wait(&mut self, alarm: Pin<&mut Sleep>, stopping: Pin<&mut impl Future<Output = ()>>) -> Woken {
        let may_read = self.ended.is_none()
            && !self.talk.session.paused()
            && self.unread.len() < self.talk.limits.frame_max
            && self.talk.unwritten.len() < UNWRITTEN_MAX;
        let Self { wire, unread, talk, .. } = self;
        let Conversation { unwritten, unsettled, durable, kept, attachment, fetching, commands, media, .. } = talk;
        let takes_more = unwritten.len() < UNWRITTEN_MAX;
        tokio::select! {
            // One future for both directions: the wire cannot be borrowed twice.
            woken = read_or_write(wire, unread, unwritten, may_read) => woken,
            _ = durable.changed(), if !unsettled.is_empty() => Woken::Durable,
            _ = kept.changed(), if !unsettled.is_empty() => Woken::Durable,
            event = async { match attachment { Some(a) => a.next().await, None => pending().await } } => Woken::Exchange(event),
            fetched = async { match fetching { Some(f) => f.await, None => pending().await } } => Woken::Fetched(fetched),
            Some(command) = commands.recv() => Woken::Command(command),
            event = next_event(media, takes_more) => Woken::Media(event),
            () = alarm => Woken::Deadline,
            () = stopping => Woken::Stopping,
        }
    }

    /// The next moment at which something must be looked at.
    fn deadline(&self, written_at: Instant) -> Instant {
        let limits = &self.talk.limits;
        let mut next = self.heard + limits.silence_max.unwrap_or(Duration::from_secs(24 * 3600));
        if let Some(ended) = self.ended {
            next = next.min(ended + ANSWER_TIME_MAX);
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
        let limits = &self.talk.limits;
        if self.ended.is_some_and(|ended| now >= ended + ANSWER_TIME_MAX) {
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
        if self.unread.is_empty() && self.unread.capacity() > 0 {
            self.unread = BytesMut::new();
        }
        self.talk.unwritten.shrink();
    }

    /// Moves socket, session and everything unread to the thread that owns the stream.
    async fn hand_over(mut self, outbox: protocols::Outbox, services: &Services) {
        if let Err(why) = self.flush(WRITE_TIME_MAX).await {
            debug!(%why, "lost before the hand-over");
            return;
        }
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
        debug!(peer = ?self.talk.peer.address, adapter = %self.talk.peer.adapter, why, "the talk ends");
        self.talk.receive(Input::Ended { reason: why });
        self.talk.last_words(&self.wire).await;
        // A whole segment takes longer than a goodbye.
        let owes = self.talk.unwritten.deadline().is_some() && !matches!(ending, Ending::Stopping);
        let patience = if owes { SHARED_TIME_MAX } else { GOODBYE_TIME_MAX };
        // The peer may be gone: nothing is lost with a goodbye it does not hear.
        if self.flush(patience).await.is_ok() && self.ended.is_none() && !matches!(ending, Ending::Stopping) {
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
            while !self.talk.unwritten.is_empty() {
                let count = self.wire.write(&mut self.talk.unwritten).await.map_err(|e| e.to_string())?;
                self.talk.wrote(count);
            }
            Ok(())
        };
        tokio::time::timeout(patience, all).await.map_err(|_| "it takes no bytes".to_owned())?
    }
}

/// Boxed: few connections carry a stream by themselves, and the others hold no room for it.
async fn next_event(media: &mut Option<Box<Media>>, takes_more: bool) -> Option<MediaEvent> {
    match media {
        Some(media) => Box::pin(media.next(takes_more)).await,
        None => pending().await,
    }
}

/// Reads, or writes when something waits. TCP is full duplex, so neither may starve the other: whichever is ready first.
async fn read_or_write(wire: &mut Wire, unread: &mut BytesMut, unwritten: &mut Unwritten, may_read: bool) -> Woken {
    if unwritten.is_empty() || wire.is_datagram() {
        if may_read { Woken::Arrived(wire.read(unread).await) } else { pending().await }
    } else {
        Woken::Written(wire.write(unwritten).await)
    }
}

/// The session's part of the driver: kept as a trait object, so that one driver serves all protocols.
pub(super) type BoxedSession = Box<dyn Session>;

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what a call of `drive` holds while it waits.
    fn size<F>(_: impl FnOnce(Wire, BytesMut, Peer, &'static Language, Arc<Adapter>, &'static Services) -> F) -> usize {
        size_of::<F>()
    }

    /// Ten thousand idle connections are kept on a box of 512 MB.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size(drive) <= 2_304, "{} bytes", size(drive));
    }
}
