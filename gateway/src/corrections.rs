//! Boxes without a clock: what was taken in before the clock was set goes upstream with the times it would have had.
//!
//! A run that begins before 2026 has no clock. Its first numbers are noted, and by how much the wall clock steps when it
//! is set; both are on disk before anything later is, so that a backlog is corrected after a restart too. A step of a clock
//! that was set corrects nothing, because nobody knows which side of it was right. Either kind is said as an event `clock`
//! of the thing `gateway`, for whoever got the earlier messages already. The order of messages never depends on a clock:
//! their numbers make it.
//!
//! Must not be in here: how messages are kept (`bus/`), how they are said (`upstream/`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_models::wire::Recorder;
use device_models::{Body, Class, Level, Message, Quality, Value};
use tracing::{debug, info, warn};

use crate::bus::Bus;
use crate::clock;

/// Runs without a clock that are remembered; what is left of older ones keeps its times.
const RUNS_MAX: usize = 16;
/// A wall clock that moves this much against the one that never jumps has been set.
const STEP_MIN_US: i64 = 2_000_000;
/// A time so near to when the message was taken in was given by the gateway's clock, or by one as wrong.
const OWN_MAX_US: u64 = 86_400_000_000;
const TREE: &str = "clock";
const KEY: &[u8] = b"runs";

/// The corrections of one store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Corrections {
    bus: Bus,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    runs: VecDeque<Run>,
    /// The wall clock less the one that never jumps, us.
    offset_us: i64,
    /// This run began without a clock, which has not been set since.
    unset: bool,
}

/// A run that began without a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// By class its first number.
    from: [u64; 4],
    /// What its times lack; 0: unknown.
    by_us: i64,
}

// === impl Corrections ===

impl Corrections {
    pub fn open(bus: &Bus) -> Self {
        Self::open_at(bus, clock::now_us(), clock::boot_us())
    }

    fn open_at(bus: &Bus, now_us: i64, boot_us: i64) -> Self {
        let kept = bus.keyed().get(TREE, KEY).ok().flatten();
        let runs = kept.and_then(|bytes| decode(bus.epoch(), &bytes)).unwrap_or_default();
        let unset = !clock::is_plausible(now_us);
        let mut state = State { runs, offset_us: now_us.saturating_sub(boot_us), unset };
        if unset {
            warn!("the clock is not set: times are corrected once it is");
            state.runs.push_back(Run { from: bus.durable().borrow().through.map(|seq| seq + 1), by_us: 0 });
            if state.runs.len() > RUNS_MAX {
                state.runs.pop_front();
            }
        }
        let corrections = Self { bus: bus.clone(), state: Arc::new(Mutex::new(state)) };
        if unset {
            corrections.keep(&corrections.state());
        }
        corrections
    }

    /// Looks whether the clock was set, and says so on the bus. Called before a time of the clock is used.
    pub async fn look(&self) {
        self.look_at(clock::now_us(), clock::boot_us()).await;
    }

    async fn look_at(&self, now_us: i64, boot_us: i64) {
        let Some((by_us, from)) = self.step(now_us, boot_us) else { return };
        info!(by_ms = by_us / 1000, "the clock was set");
        if from.is_some()
            && let Err(error) = self.bus.keyed().flush().await
        {
            warn!(%error, "after a crash, times of before will not be corrected");
        }
        let mut data = BTreeMap::from([("by_ms".to_owned(), Value::Int(by_us / 1000))]);
        if let Some(from) = from {
            let name = |class: Class| format!("{}_from", class.topic());
            data.extend(
                Class::ALL.into_iter().zip(from).map(|(class, seq)| (name(class), Value::Int(seq.cast_signed()))),
            );
        }
        let body =
            Body::Event { name: "clock".into(), level: Level::Info, data: Value::Object(data), quality: Quality::Good };
        let message =
            Message { thing: "gateway".into(), model: "gateway".into(), time_us: now_us, received_us: now_us, body };
        let record = Recorder::default().record(&message);
        if let Err(error) = self.bus.append_record(Class::Event, &record, None).await {
            debug!(%error, "could not say that the clock was set");
        }
    }

    /// By how much the clock was set, and of a run without one the numbers that this corrects.
    fn step(&self, now_us: i64, boot_us: i64) -> Option<(i64, Option<[u64; 4]>)> {
        let mut state = self.state();
        let offset_us = now_us.saturating_sub(boot_us);
        let by_us = offset_us.saturating_sub(state.offset_us);
        if by_us.abs() < STEP_MIN_US {
            return None;
        }
        state.offset_us = offset_us;
        let mut corrected = None;
        if state.unset && clock::is_plausible(now_us) {
            state.unset = false;
            if let Some(run) = state.runs.back_mut() {
                run.by_us = by_us;
                corrected = Some(run.from);
            }
            self.keep(&state);
        }
        Some((by_us, corrected))
    }

    /// Puts a message's times right if they were taken without a clock, and it is known by how much they are wrong.
    /// False: they are wrong and stay so.
    pub fn correct(&self, class: Class, seq: u64, message: &mut Message) -> bool {
        if clock::is_plausible(message.received_us) {
            return true;
        }
        let at = usize::from(class.number());
        let by_us = self.state().runs.iter().rev().find(|run| run.from[at] <= seq).map_or(0, |run| run.by_us);
        if by_us == 0 {
            return false;
        }
        if message.time_us.abs_diff(message.received_us) < OWN_MAX_US {
            message.time_us = message.time_us.saturating_add(by_us);
        }
        message.received_us = message.received_us.saturating_add(by_us);
        true
    }

    fn keep(&self, state: &State) {
        if let Err(error) = self.bus.keyed().put(TREE, KEY, &encode(self.bus.epoch(), &state.runs)) {
            warn!(%error, "after a restart, times of before will not be corrected");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Epoch, then of each run four numbers and what its times lack, little-endian.
fn encode(epoch: u64, runs: &VecDeque<Run>) -> Vec<u8> {
    let words = runs.iter().flat_map(|run| run.from.into_iter().chain([run.by_us.cast_unsigned()]));
    std::iter::once(epoch).chain(words).flat_map(u64::to_le_bytes).collect()
}

fn decode(epoch: u64, bytes: &[u8]) -> Option<VecDeque<Run>> {
    let words: Vec<u64> =
        bytes.chunks(8).map(|word| Some(u64::from_le_bytes(word.try_into().ok()?))).collect::<Option<_>>()?;
    let (of, words) = words.split_first()?;
    let runs = words.chunks_exact(5).filter_map(|run| {
        let (from, by_us) = run.split_first_chunk::<4>()?;
        Some(Run { from: *from, by_us: by_us.first()?.cast_signed() })
    });
    (*of == epoch).then(|| runs.take(RUNS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const DAY_US: i64 = 86_400_000_000;
    /// 2021 and the end of 2026.
    const BEFORE_US: i64 = 18_700 * DAY_US;
    const NOW_US: i64 = 20_800 * DAY_US;

    fn store(path: &std::path::Path) -> Bus {
        let store = config::Store { path: path.to_owned(), commit_ms: 0, ..config::Store::default() };
        Bus::open(&store).unwrap().0
    }

    fn presence(time_us: i64, received_us: i64) -> Message {
        let body = Body::Presence { online: true, reason: String::new() };
        Message { thing: "t".into(), model: "m".into(), time_us, received_us, body }
    }

    async fn append(bus: &Bus) -> u64 {
        let seq = bus.append(Class::Live, b"message").await.unwrap();
        bus.settled(Class::Live, seq).await.unwrap();
        seq
    }

    /// Time and time of arrival of a live message as it goes upstream; `None`: nobody knows how wrong they are.
    fn said(corrections: &Corrections, seq: u64, time_us: i64, received_us: i64) -> Option<(i64, i64)> {
        let mut message = presence(time_us, received_us);
        corrections.correct(Class::Live, seq, &mut message).then_some((message.time_us, message.received_us))
    }

    #[tokio::test]
    async fn what_came_before_the_clock_was_set_is_corrected_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let bus = store(folder.path());
        append(&bus).await;
        let corrections = Corrections::open_at(&bus, BEFORE_US, 1_000);
        let seq = append(&bus).await;
        corrections.look_at(BEFORE_US + 5_000_000, 5_001_000).await;
        assert_eq!(said(&corrections, seq, BEFORE_US, BEFORE_US), None, "not set yet");
        corrections.look_at(NOW_US, 10_001_000).await;
        let by_us = NOW_US - BEFORE_US - 10_000_000;
        assert_eq!(bus.stat().appended[1], 1, "an event says so, once");
        let right = Some((BEFORE_US + 3 + by_us, BEFORE_US + 7 + by_us));
        assert_eq!(said(&corrections, seq, BEFORE_US + 3, BEFORE_US + 7), right);
        assert_eq!(
            said(&corrections, seq, 19_000 * DAY_US, BEFORE_US),
            Some((19_000 * DAY_US, BEFORE_US + by_us)),
            "a device's own"
        );
        assert_eq!(said(&corrections, seq, 5, NOW_US), Some((5, NOW_US)), "what came with a clock stays");
        assert_eq!(said(&corrections, seq - 1, BEFORE_US, BEFORE_US), None, "of a run that nobody knows");
        bus.close().await;
        drop((bus, corrections));
        // A second run without a clock, never set: its own times are wrong, those of the first one are still known.
        let bus = store(folder.path());
        let corrections = Corrections::open_at(&bus, BEFORE_US, 1_000);
        let later = append(&bus).await;
        assert_eq!(said(&corrections, seq, BEFORE_US + 3, BEFORE_US + 7), right);
        assert_eq!(said(&corrections, later, BEFORE_US, BEFORE_US), None);
        bus.close().await;
    }

    #[tokio::test]
    async fn a_jump_of_a_set_clock_is_said_and_corrects_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let bus = store(folder.path());
        let corrections = Corrections::open_at(&bus, NOW_US, 0);
        for (wall_us, boot_us, events) in [
            (NOW_US + 1_900_000, 0, 0),
            (NOW_US - 3_600_000_000, 1_000_000, 1),
            (NOW_US - 3_599_000_000, 2_000_000, 1),
            (NOW_US, 3_000_000, 2),
        ] {
            corrections.look_at(wall_us, boot_us).await;
            assert_eq!(bus.stat().appended[1], events, "{wall_us}");
        }
        assert_eq!(bus.keyed().get(TREE, KEY).unwrap(), None);
        assert_eq!(said(&corrections, 1, BEFORE_US, BEFORE_US), None);
        bus.close().await;
    }

    #[test]
    fn a_bounded_number_of_runs_is_kept_and_of_this_epoch_alone() {
        let runs: VecDeque<Run> = (0..40).map(|n| Run { from: [n; 4], by_us: -(n as i64) }).collect();
        let bytes = encode(7, &runs);
        assert_eq!(decode(7, &bytes).unwrap(), runs.iter().take(RUNS_MAX).copied().collect::<VecDeque<_>>());
        assert_eq!((decode(8, &bytes), decode(7, &bytes[..9]), decode(7, &[])), (None, None, None));
    }
}
