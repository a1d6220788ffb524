//! The second way into a stream: units from a task of the control plane (a camera that is pulled, a browser that
//! publishes). On its stream's thread a feed is a publisher like any other: it takes over, is taken over, falls silent.
//!
//! Must not be in here: sockets and protocols.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use protocols::Refusal;
use protocols::media::{StreamName, Unit};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::debug;

use super::hub::{Hub, Origin};
use super::{Order, StreamCore};
use crate::hooks::Silence;

/// Units on their way to the stream's thread: a second of video and audio. More means that the thread hangs.
const UNITS_MAX: usize = 128;

/// Media bytes on their way: a few key frames of a large camera.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why a feed is no longer the stream's publisher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Parted(pub String);

/// The publisher's end. Dropping it gives the stream up; its viewers are kept for the grace time.
#[derive(Debug)]
pub struct Feed {
    outgoing: mpsc::Sender<Unit>,
    shared: Arc<Shared>,
}

// === impl Feed ===

impl Feed {
    /// Hands one unit on; waits while too many are on their way. An error says why this feed has ended.
    pub async fn push(&self, unit: Unit) -> Result<(), Parted> {
        let len = permits(&unit);
        let room = self.shared.room.acquire_many(len).await.map_err(|_| self.why())?;
        self.outgoing.send(unit).await.map_err(|_| self.why())?;
        room.forget();
        Ok(())
    }

    /// Resolves when the feed has ended from the other side: taken over, silent, closed.
    pub async fn parted(&self) -> Parted {
        self.outgoing.closed().await;
        self.why()
    }

    fn why(&self) -> Parted {
        self.shared.parted.get().cloned().unwrap_or_else(|| Parted("the streaming core stops".to_owned()))
    }
}

#[derive(Debug)]
struct Shared {
    /// Bytes that may still be sent on their way.
    room: Semaphore,
    parted: OnceLock<Parted>,
}

fn permits(unit: &Unit) -> u32 {
    unit.data.len().clamp(1, BYTES_MAX) as u32
}

impl StreamCore {
    /// Becomes the stream's publisher. `origin` says where the units come from, without secrets: it is shown beside the
    /// stream. `silence` says who is asked when nothing comes; without it the feed ends then.
    pub async fn feed(&self, stream: &StreamName, origin: &str, silence: Option<Silence>) -> Result<Feed, Refusal> {
        self.publishable(stream)?;
        let seat = self.seat_for_publisher(stream)?;
        let (reply, opened) = oneshot::channel();
        let order = Order::Feed { stream: stream.clone(), origin: origin.to_owned(), silence, reply };
        let stops = || Refusal::Unavailable("the streaming core stops".to_owned());
        if self.send(seat, order).await.is_err() {
            self.shared.arrived(stream);
            self.shared.settle(stream);
            return Err(stops());
        }
        opened.await.map_err(|_| stops())?
    }
}

// === the stream's end ===

/// Runs one feed to its end, on the thread of its stream.
pub(super) async fn run(
    hub: Rc<Hub>,
    stream: StreamName,
    origin: String,
    silence: Option<Silence>,
    reply: oneshot::Sender<Result<Feed, Refusal>>,
) {
    let (source, generation, stop) = match hub.publish(&stream, &Origin::Named(origin)) {
        Ok(seat) => seat,
        Err(reason) => {
            debug!(%stream, reason, "feed refused");
            hub.refused_publisher();
            // The asker may have lost patience.
            let _unheard = reply.send(Err(Refusal::Unavailable(reason.to_owned())));
            return;
        }
    };
    let (outgoing, mut incoming) = mpsc::channel::<Unit>(UNITS_MAX);
    let shared = Arc::new(Shared { room: Semaphore::new(BYTES_MAX), parted: OnceLock::new() });
    // An asker that is gone ends the feed at once: its sender is dropped.
    let _unheard = reply.send(Ok(Feed { outgoing, shared: shared.clone() }));
    let silence_max = hub.rules.silence_max;
    let reason = loop {
        let unit = tokio::select! {
            biased;
            () = stop.cancelled() => break stopped(source.borrow().is_current(generation)),
            unit = tokio::time::timeout(silence_max, incoming.recv()) => unit,
        };
        match unit {
            Ok(Some(unit)) => {
                shared.room.add_permits(permits(&unit) as usize);
                hub.push(&source, unit);
            }
            Ok(None) => break "the feed ended".to_owned(),
            // Where a hook is asked, it decides; until the next silence, should it say that all is well.
            Err(_) if silence.as_ref().is_some_and(|silence| silence.is_asked_about(stop.clone())) => {}
            Err(_) => break silent(silence_max),
        }
    };
    // It is set here alone, once.
    let _said = shared.parted.set(Parted(reason.clone()));
    shared.room.close();
    drop(incoming);
    hub.unpublish(&source, generation, &reason);
}

/// Why a publisher that was told to stop has to.
pub(super) fn stopped(current: bool) -> String {
    if current { "the gateway closed the stream" } else { "another publisher took the stream over" }.to_owned()
}

/// Why a publisher that says nothing has to go.
pub(super) fn silent(max: Duration) -> String {
    format!("the publisher sent nothing for {} s", max.as_secs())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::{Codec, Kind, Track};

    use super::super::{TapKind, TapRules, Tapped};
    use super::*;
    use crate::config;
    use crate::threads::Tasks;

    const TAP: TapRules = TapRules { kind: TapKind::Record, units_max: 1000, bytes_max: 1 << 20 };

    struct Rig {
        core: StreamCore,
        tasks: Tasks,
        name: StreamName,
    }

    impl Rig {
        fn new(change: impl FnOnce(&mut config::Stream)) -> Self {
            let mut config = config::Stream { threads: 1, ..config::Stream::default() };
            change(&mut config);
            let (tasks, name) = (Tasks::new(), StreamName::parse("live/gate").unwrap());
            let core = StreamCore::start(&config, mpsc::channel(256).0, &tasks).unwrap();
            Self { core, tasks, name }
        }

        async fn close(self) {
            self.core.close().await;
            self.tasks.join(Duration::from_secs(2)).await;
        }
    }

    fn frame(kind: Kind, dts_90k: i64) -> Unit {
        let data = Bytes::from_static(&[0, 0, 0, 2, 0x65, 1]);
        Unit { track: Track::Video, codec: Codec::H264, dts_90k, pts_90k: dts_90k, kind, data }
    }

    /// The next video unit.
    async fn next(tap: &mut super::super::Tap) -> (Kind, i64) {
        loop {
            match tap.next().await.unwrap() {
                Tapped::Unit(unit) if unit.track == Track::Video => return (unit.kind, unit.dts_90k),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn what_is_fed_is_tapped_from_the_newest_key_frame_on() {
        let rig = Rig::new(|_| {});
        let feed = rig.core.feed(&rig.name, "rtsp://camera/1", None).await.unwrap();
        for (kind, dts) in [(Kind::Config, 0), (Kind::Key, 0), (Kind::Delta, 3600), (Kind::Key, 7200)] {
            feed.push(frame(kind, dts)).await.unwrap();
        }
        feed.push(frame(Kind::Delta, 10_800)).await.unwrap();
        let mut changes = rig.core.changes();
        while rig.core.list().first().is_none_or(|info| info.counters.video_frames < 4) {
            let _tick = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
        }
        let mut tap = rig.core.tap(&rig.name, TAP).await.unwrap();
        tap.set_viewers(3);
        assert_eq!(next(&mut tap).await, (Kind::Config, 7200));
        assert_eq!(next(&mut tap).await, (Kind::Key, 7200));
        assert_eq!(next(&mut tap).await, (Kind::Delta, 10_800));
        feed.push(frame(Kind::Delta, 14_400)).await.unwrap();
        assert_eq!(next(&mut tap).await, (Kind::Delta, 14_400));
        while rig.core.list().first().is_none_or(|info| info.viewers != 3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rig.core.list()[0].origin.as_deref(), Some("rtsp://camera/1"));
        assert!(rig.core.end(&rig.name).await);
        assert_eq!(feed.parted().await, Parted("the gateway closed the stream".to_owned()));
        assert!(tap.next().await.is_none(), "the stream ended");
        rig.close().await;
    }

    #[tokio::test]
    async fn a_feed_is_taken_over_and_the_tap_goes_on() {
        let rig = Rig::new(|_| {});
        let first = rig.core.feed(&rig.name, "one", None).await.unwrap();
        first.push(frame(Kind::Key, 90_000)).await.unwrap();
        let mut tap = rig.core.tap(&rig.name, TAP).await.unwrap();
        assert_eq!(next(&mut tap).await, (Kind::Key, 90_000));
        let second = rig.core.feed(&rig.name, "two", None).await.unwrap();
        assert_eq!(first.parted().await, Parted("another publisher took the stream over".to_owned()));
        assert!(first.push(frame(Kind::Key, 93_600)).await.is_err());
        second.push(frame(Kind::Key, 5)).await.unwrap();
        assert_eq!(next(&mut tap).await, (Kind::Key, 93_600), "time goes on");
        drop(second);
        loop {
            match tap.next().await {
                Some(Tapped::Unpublished) => break,
                Some(_) => {}
                None => panic!("kept for the grace time"),
            }
        }
        rig.close().await;
    }

    #[tokio::test]
    async fn a_feed_is_refused_where_takeover_is_off_and_a_silent_one_is_let_go() {
        let rig = Rig::new(|config| (config.takeover, config.silence_max_seconds) = (false, 1));
        let first = rig.core.feed(&rig.name, "one", None).await.unwrap();
        assert!(matches!(rig.core.feed(&rig.name, "two", None).await, Err(Refusal::Unavailable(_))));
        assert_eq!(first.parted().await, Parted("the publisher sent nothing for 1 s".to_owned()));
        assert!(matches!(
            rig.core.tap(&StreamName::parse("live/other").unwrap(), TAP).await,
            Err(Refusal::NotFound(_))
        ));
        rig.close().await;
    }
}
