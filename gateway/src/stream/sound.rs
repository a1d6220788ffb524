//! What becomes of audio that browsers cannot play: it passes, it is left out, or (G.711) it becomes AAC. Video never waits
//! for it.
//!
//! Must not be in here: the encoder (`transcode.rs`).

use std::rc::Rc;

use protocols::media::{Codec, Kind, Unit};
use tokio::sync::mpsc;

use super::hub::{Hub, SharedSource};
use super::transcode;
use crate::config::UnplayableAudio;
use crate::threads;

/// Packets on their way to the transcoder: more than a second of them waiting means it does not keep up.
const PACKETS_MAX: usize = 64;

/// Frames on their way back, of 128 ms each.
const FRAMES_MAX: usize = 16;

/// One stream's audio.
#[derive(Debug)]
pub(super) struct Treatment {
    choice: UnplayableAudio,
    /// The way to the transcoder of the present publisher's audio.
    lane: Option<mpsc::Sender<Unit>>,
    /// The codec whose configuration was said in this lane.
    configured: bool,
}

/// What to do with a unit.
#[derive(Debug)]
pub(super) enum Treated {
    /// It goes on as it is.
    Passes(Unit),
    /// It will come back as something else; with a configuration that goes ahead.
    Becomes(Option<Unit>),
    /// It is left out.
    LeftOut,
}

impl Treatment {
    pub(super) fn new(choice: UnplayableAudio) -> Self {
        Self { choice, lane: None, configured: false }
    }

    /// A new publisher begins.
    pub(super) fn restart(&mut self) {
        (self.lane, self.configured) = (None, false);
    }

    /// Whether the unit is for a transcoder that is not there yet.
    pub(super) fn wants_lane(&self, unit: &Unit) -> bool {
        self.choice == UnplayableAudio::Aac && self.lane.is_none() && is_g711(unit.codec)
    }

    /// Whether the unit is not to go out as it is.
    pub(super) fn treats(&self, unit: &Unit) -> bool {
        match self.choice {
            UnplayableAudio::Pass => false,
            UnplayableAudio::Aac => is_g711(unit.codec),
            UnplayableAudio::Drop => is_g711(unit.codec) || matches!(unit.codec, Codec::Ac3 | Codec::Flac),
        }
    }

    /// Whether G.711 becomes AAC: those who can play it get it as it is instead.
    pub(super) fn transcodes(&self) -> bool {
        self.lane.is_some()
    }

    /// Takes a unit on the stream's running time.
    pub(super) fn treat(&mut self, unit: Unit) -> Treated {
        if !self.treats(&unit) {
            return Treated::Passes(unit);
        }
        let Some(lane) = &self.lane else { return Treated::LeftOut };
        let config = Unit { codec: Codec::Aac, kind: Kind::Config, data: transcode::config(), ..unit.clone() };
        if lane.try_send(unit).is_err() {
            return Treated::LeftOut;
        }
        Treated::Becomes((!std::mem::replace(&mut self.configured, true)).then_some(config))
    }
}

fn is_g711(codec: Codec) -> bool {
    matches!(codec, Codec::G711A | Codec::G711U)
}

/// Starts a transcoder for the publisher of the moment. It ends with the lane: with the publisher's place, or the stream.
pub(super) fn open_lane(hub: &Rc<Hub>, source: &SharedSource) {
    let (packets_to, packets) = mpsc::channel(PACKETS_MAX);
    let (frames_to, mut frames) = mpsc::channel(FRAMES_MAX);
    if !hub.delegate("transcode", transcode::run(packets, frames_to)) {
        return;
    }
    let generation = source.borrow().generation();
    source.borrow_mut().treatment.lane = Some(packets_to);
    // Only the lane keeps the transcoder alive: this task must not keep the stream, which has the lane.
    let (hub, source) = (hub.clone(), Rc::downgrade(source));
    threads::spawn_local(async move {
        while let Some(frame) = frames.recv().await {
            let Some(source) = source.upgrade() else { break };
            if source.borrow().is_current(generation) {
                hub.put(&source, frame);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::Track;

    use super::*;

    fn unit(codec: Codec) -> Unit {
        let data = Bytes::from_static(&[0xd5; 160]);
        Unit { track: Track::Audio, codec, dts_90k: 900, pts_90k: 900, kind: Kind::Key, data }
    }

    #[test]
    fn each_choice_does_what_it_says() {
        let treats =
            |choice| [Codec::G711A, Codec::Ac3, Codec::Aac].map(|codec| Treatment::new(choice).treats(&unit(codec)));
        assert_eq!(treats(UnplayableAudio::Pass), [false, false, false]);
        assert_eq!(treats(UnplayableAudio::Aac), [true, false, false]);
        assert_eq!(treats(UnplayableAudio::Drop), [true, true, false]);
    }

    #[test]
    fn the_configuration_goes_ahead_once_and_a_full_lane_leaves_out() {
        let mut treatment = Treatment::new(UnplayableAudio::Aac);
        assert!(treatment.wants_lane(&unit(Codec::G711U)) && !treatment.wants_lane(&unit(Codec::Aac)));
        let (lane, _packets) = mpsc::channel(2);
        treatment.lane = Some(lane);
        let Treated::Becomes(Some(config)) = treatment.treat(unit(Codec::G711U)) else { panic!("no configuration") };
        assert_eq!((config.codec, config.kind, config.dts_90k), (Codec::Aac, Kind::Config, 900));
        assert!(matches!(treatment.treat(unit(Codec::G711U)), Treated::Becomes(None)));
        assert!(matches!(treatment.treat(unit(Codec::G711U)), Treated::LeftOut));
        assert!(matches!(treatment.treat(unit(Codec::Aac)), Treated::Passes(_)));
    }
}
