//! One connection of a relay: the stream's units packed as RTMP, within the budget, until there is a reason to end.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use protocols::media::{Container, Kind, Mux, Track, Tracks, Unit, mux};
use protocols::rtmp::client::{Event, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior};

use super::budget::Share;
use super::connect::Link;
use super::{Relay, RelayError, RelayState, narrows};
use crate::stream::{Tap, Tapped};

/// A server that takes no byte for this long is given up.
pub(super) const STALL_MAX: Duration = Duration::from_secs(10);

/// How often the budget is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What one write may carry, bytes: what waited goes out in large pieces.
const WRITE_MAX: usize = 256 * 1024;

/// Bytes of an answer of the server that is not all there.
const ANSWER_MAX: usize = 256 * 1024;

/// What is to be sent, over one connection or several.
pub(super) struct Load {
    tap: Tap,
    /// Taken out of the tap and not sent.
    held: Option<Unit>,
    packer: Packer,
}

impl Load {
    pub(super) fn new(tap: Tap) -> Self {
        Self { tap, held: None, packer: Packer::new() }
    }

    /// Waits until there is something; `false` when the stream has ended.
    async fn is_there(&mut self) -> bool {
        while self.held.is_none() {
            match self.tap.next().await {
                Some(Tapped::Unit(unit)) => self.held = Some(unit),
                Some(_) => {}
                None => return false,
            }
        }
        true
    }
}

/// Waits for something to send, connects, and copies. `Ok`: nobody wants it any more, or the stream ended.
pub(super) async fn attempt(relay: &Relay, target: &Target, load: &mut Load) -> Result<(), RelayError> {
    let mut done = pin!(relay.done());
    // Without a publisher there is nothing to copy, and nobody to connect for.
    tokio::select! {
        there = load.is_there() => if !there { return Ok(()) },
        () = &mut done => return Ok(()),
    }
    let share = relay.relays.budget.share(relay.rule.kbps_max);
    let mut narrow = false;
    if share.is_limited() {
        tokio::select! {
            judged = judge(relay, &share) => narrow = judged?,
            () = &mut done => return Ok(()),
        }
    }
    relay.say(RelayState::Connecting, None);
    let link = tokio::select! {
        link = relay.relays.connector.establish(target, relay.rule.ca_file.clone(), &relay.means.tasks) => link?,
        () = &mut done => return Ok(()),
    };
    relay.up();
    relay.say(if narrow { RelayState::KeyFrames } else { RelayState::Sending }, None);
    let Load { tap, held, packer } = load;
    packer.restart();
    if let Some(unit) = held.take() {
        packer.pack(&unit, narrow);
    }
    Copy { relay, link, packer, narrow }.run(tap, &share, done).await
}

/// Whether the stream has to be narrowed to key frames; waits until its rate is known.
async fn judge(relay: &Relay, share: &Share<'_>) -> Result<bool, RelayError> {
    loop {
        let kbps = relay.kbps();
        if kbps > 0 {
            return fits(relay, share, kbps);
        }
        tokio::time::sleep(LOOK / 4).await;
    }
}

fn fits(relay: &Relay, share: &Share<'_>, kbps: u64) -> Result<bool, RelayError> {
    match share.take(kbps) {
        Ok(()) => Ok(false),
        Err(_) if narrows(&relay.rule) => Ok(true),
        Err(why) => Err(RelayError::Budget(why)),
    }
}

struct Copy<'r> {
    relay: &'r Relay,
    link: Link,
    packer: &'r mut Packer,
    /// Key frames only.
    narrow: bool,
}

impl Copy<'_> {
    async fn run(
        &mut self,
        tap: &mut Tap,
        share: &Share<'_>,
        mut done: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), RelayError> {
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.link.unread.reserve(1024);
            tokio::select! {
                biased;
                () = &mut done => {
                    // What was published while it was wanted goes out, however late the connection came.
                    self.send(Tapped::Published, tap).await?;
                    return self.goodbye().await;
                }
                read = self.link.wire.read_buf(&mut self.link.unread) => match read? {
                    0 => return Err(RelayError::Closed),
                    _ => self.hear().await?,
                },
                _ = look.tick(), if share.is_limited() => self.look(share)?,
                tapped = tap.next() => match tapped {
                    Some(tapped) => self.send(tapped, tap).await?,
                    None => return self.goodbye().await,
                },
            }
        }
    }

    /// Sends what the tap gave, and what waits behind it.
    async fn send(&mut self, first: Tapped, tap: &mut Tap) -> Result<(), RelayError> {
        let mut next = Some(first);
        while let Some(tapped) = next.take() {
            match tapped {
                Tapped::Unit(unit) => {
                    let packed = self.packer.pack(&unit, self.narrow);
                    self.skipped(u64::from(!packed));
                }
                Tapped::Skipped { units, .. } => self.skipped(units),
                Tapped::Published | Tapped::Unpublished => {}
            }
            if self.packer.out.len() < WRITE_MAX {
                tokio::select! {
                    biased;
                    // The end of the stream is heard at the next turn.
                    more = tap.next() => next = more,
                    () = std::future::ready(()) => {}
                }
            }
        }
        let out = self.packer.out.split();
        self.relay.board.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.write(&out).await
    }

    fn skipped(&self, units: u64) {
        self.relay.board.skipped.fetch_add(units, Ordering::Relaxed);
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), RelayError> {
        let written = tokio::time::timeout(STALL_MAX, async {
            self.link.wire.write_all(bytes).await?;
            self.link.wire.flush().await
        });
        Ok(written.await.map_err(|_| RelayError::Stalled)??)
    }

    /// What the server says while the stream flows.
    async fn hear(&mut self) -> Result<(), RelayError> {
        let heard = self.link.publisher.receive(&mut self.link.unread)?;
        let answer = self.link.publisher.take();
        if !answer.is_empty() {
            self.write(&answer).await?;
        }
        if heard == Some(Event::Ended) || self.link.unread.len() > ANSWER_MAX {
            return Err(RelayError::Ended);
        }
        Ok(())
    }

    /// Does it still fit?
    fn look(&mut self, share: &Share<'_>) -> Result<(), RelayError> {
        let kbps = self.relay.kbps();
        if kbps == 0 {
            return Ok(());
        }
        let narrow = fits(self.relay, share, kbps)?;
        if narrow != self.narrow {
            self.narrow = narrow;
            let (state, why) =
                if narrow { (RelayState::KeyFrames, "over the budget") } else { (RelayState::Sending, "") };
            self.relay.say(state, Some(why.to_owned()).filter(|why| !why.is_empty()));
        }
        Ok(())
    }

    async fn goodbye(&mut self) -> Result<(), RelayError> {
        self.link.publisher.finish();
        let goodbye = self.link.publisher.take();
        self.write(&goodbye).await?;
        self.relay.down("no longer wanted, or the stream ended");
        self.relay.say(RelayState::Idle, None);
        Ok(())
    }
}

/// Units to the bytes of an RTMP chunk stream.
struct Packer {
    mux: Box<dyn Mux>,
    /// What came before the first frame.
    tracks: Tracks,
    begun: bool,
    /// Nothing before the next key frame: those between were left out.
    keyless: bool,
    out: BytesMut,
}

impl Packer {
    fn new() -> Self {
        Self {
            mux: mux(Container::Rtmp),
            tracks: Tracks::default(),
            begun: false,
            keyless: false,
            out: BytesMut::new(),
        }
    }

    /// Another connection: it is told everything anew, and begins at a key frame if one before it was sent any.
    fn restart(&mut self) {
        self.keyless |= self.begun;
        self.begun = false;
        self.out.clear();
    }

    /// `false` when the unit is left out.
    fn pack(&mut self, unit: &Unit, narrow: bool) -> bool {
        self.tracks.note(unit);
        if unit.kind == Kind::Config && !self.begun {
            // It goes with the first frame, timestamped like it.
            return true;
        }
        let key = unit.track == Track::Video && unit.kind == Kind::Key;
        if unit.kind != Kind::Config && narrow && !key && self.tracks.has_video() {
            self.keyless = true;
            return false;
        }
        if key {
            self.keyless = narrow;
        } else if self.keyless && unit.kind != Kind::Config && unit.track == Track::Video {
            return false;
        }
        if !self.begun {
            self.begun = true;
            self.out.extend_from_slice(&self.mux.preamble(&self.tracks, unit.dts_90k));
        }
        self.mux.unit(unit, &mut self.out);
        true
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::Codec;

    use super::*;

    fn unit(track: Track, kind: Kind, dts_90k: i64) -> Unit {
        let codec = if track == Track::Video { Codec::H264 } else { Codec::Aac };
        Unit { track, codec, dts_90k, pts_90k: dts_90k, kind, data: Bytes::from_static(&[0x12, 0x10]) }
    }

    #[test]
    fn over_the_budget_only_key_frames_go_out_and_afterwards_all_from_the_next_one() {
        let mut packer = Packer::new();
        let mut kept = |track, kind, narrow| packer.pack(&unit(track, kind, 0), narrow);
        assert!(kept(Track::Video, Kind::Config, false));
        assert!(kept(Track::Video, Kind::Key, false));
        assert!(kept(Track::Video, Kind::Delta, false));
        assert!(!kept(Track::Video, Kind::Delta, true));
        assert!(!kept(Track::Audio, Kind::Key, true));
        assert!(kept(Track::Video, Kind::Key, true));
        assert!(!kept(Track::Video, Kind::Delta, false), "what it builds on was left out");
        assert!(kept(Track::Audio, Kind::Key, false));
        assert!(kept(Track::Video, Kind::Key, false));
        assert!(kept(Track::Video, Kind::Delta, false));
    }

    #[test]
    fn another_connection_is_told_everything_and_begins_at_a_key_frame() {
        let mut packer = Packer::new();
        packer.pack(&unit(Track::Video, Kind::Config, 0), false);
        packer.restart();
        assert!(packer.pack(&unit(Track::Video, Kind::Key, 0), false), "nothing was sent yet");
        packer.restart();
        assert!(!packer.pack(&unit(Track::Video, Kind::Delta, 1), false));
        assert!(packer.pack(&unit(Track::Video, Kind::Key, 2), false));
        let mut alone = BytesMut::new();
        mux(Container::Rtmp).unit(&unit(Track::Video, Kind::Key, 2), &mut alone);
        assert!(packer.out.len() > alone.len(), "with its configuration");
    }

    #[test]
    fn configurations_go_before_the_first_frame_and_with_its_time() {
        let mut packer = Packer::new();
        packer.pack(&unit(Track::Audio, Kind::Config, 0), false);
        assert!(packer.out.is_empty());
        packer.pack(&unit(Track::Audio, Kind::Key, 90_000), false);
        let mut alone = BytesMut::new();
        mux(Container::Rtmp).unit(&unit(Track::Audio, Kind::Key, 90_000), &mut alone);
        assert!(packer.out.len() > alone.len() && packer.out.ends_with(&alone));
    }
}
