//! What cameras say, on its way to the intake. Its queue is bounded and a stream thread waits for nobody: what finds the
//! queue full is kept here, by camera, and goes out in order as soon as there is room. A newer word takes the place of an
//! older one of its kind, so that a camera costs three words at most: what was replaced is counted.
//!
//! Must not be in here: what a camera says, and when (`camera.rs`).

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use device_models::{Report, Word};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};

/// Cameras may wait with their last words when their streams have ended: so many times as many as there are streams.
const CAMERAS_PER_STREAM: usize = 2;

/// The way of one thread's cameras to the intake.
pub(super) struct Unsaid {
    reports: mpsc::Sender<Report>,
    cameras_max: usize,
    cameras: RefCell<HashMap<String, Vec<Report>>>,
    /// The cameras by how long they wait.
    order: RefCell<VecDeque<String>>,
    /// Words that were replaced by newer ones before they were said, or that nobody hears any more: of all threads.
    lost: Arc<AtomicU64>,
    news: Notify,
    emptied: Notify,
}

impl Unsaid {
    pub(super) fn new(reports: mpsc::Sender<Report>, sources_max: usize, lost: Arc<AtomicU64>) -> Rc<Self> {
        Rc::new(Self {
            reports,
            cameras_max: sources_max.saturating_mul(CAMERAS_PER_STREAM),
            cameras: RefCell::default(),
            order: RefCell::default(),
            lost,
            news: Notify::new(),
            emptied: Notify::new(),
        })
    }

    fn lose(&self, words: usize) {
        self.lost.fetch_add(words as u64, Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.order.borrow().is_empty()
    }

    /// Says it now, or as soon as there is room.
    pub(super) fn say(&self, report: Report) {
        if !self.is_empty() {
            return self.keep(report);
        }
        match self.reports.try_send(report) {
            Ok(()) => {}
            Err(TrySendError::Full(report)) => self.keep(report),
            Err(TrySendError::Closed(_)) => self.lose(1),
        }
    }

    fn keep(&self, report: Report) {
        let mut cameras = self.cameras.borrow_mut();
        let full = cameras.len() >= self.cameras_max;
        match cameras.get_mut(&report.device) {
            Some(words) => self.lose(usize::from(replace(words, report))),
            None if full => self.lose(1),
            None => {
                self.order.borrow_mut().push_back(report.device.clone());
                cameras.insert(report.device.clone(), vec![report]);
            }
        }
        self.news.notify_one();
    }

    /// The oldest word of the camera that waits longest.
    fn next(&self) -> Option<Report> {
        let (mut cameras, mut order) = (self.cameras.borrow_mut(), self.order.borrow_mut());
        let device = order.front()?;
        let words = cameras.get_mut(device)?;
        let report = if words.is_empty() { None } else { Some(words.remove(0)) };
        if words.is_empty() {
            cameras.remove(device);
            order.pop_front();
        }
        report
    }

    /// Says what waits whenever there is room; ends with the thread, or with the intake.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            self.news.notified().await;
            while !self.is_empty() {
                let Ok(room) = self.reports.reserve().await else { return };
                if let Some(report) = self.next() {
                    room.send(report);
                }
            }
            self.emptied.notify_one();
        }
    }

    /// Waits, within bounds, until all is said.
    pub(super) async fn empty(&self, patience: Duration) {
        let emptied = async {
            while !self.is_empty() {
                self.emptied.notified().await;
            }
        };
        if tokio::time::timeout(patience, emptied).await.is_err() {
            let words: usize = self.cameras.borrow().values().map(Vec::len).sum();
            self.lose(words);
            tracing::warn!(words, "what cameras had to say found no room until the end");
        }
    }
}

/// Puts a word behind those of its camera that wait. `true`: it took an older one's place. Properties are joined: those that
/// are not said anew are as they were.
fn replace(words: &mut Vec<Report>, mut report: Report) -> bool {
    let kind = std::mem::discriminant(&report.word);
    let older = words.iter().position(|word| std::mem::discriminant(&word.word) == kind).map(|at| words.remove(at));
    let replaced = older.is_some();
    if let (Some(Word::Properties(older)), Word::Properties(newer)) = (older.map(|older| older.word), &mut report.word)
    {
        let kept = older.into_iter().filter(|(name, _)| newer.iter().all(|(other, _)| other != name));
        *newer = kept.chain(newer.iter().cloned()).collect();
        words.push(report);
        return false;
    }
    words.push(report);
    replaced
}

#[cfg(test)]
mod tests {
    use device_models::Value;

    use super::*;

    fn presence(device: &str, online: bool) -> Report {
        word(device, Word::Presence { online, reason: String::new() })
    }

    fn word(device: &str, word: Word) -> Report {
        Report { device: device.to_owned(), product: None, time_us: None, word }
    }

    fn properties(device: &str, all: &[(&str, i64)]) -> Report {
        let all = all.iter().map(|(name, value)| ((*name).to_owned(), Value::Int(*value))).collect();
        word(device, Word::Properties(all))
    }

    /// As many words as the queue holds, then what waits, as the intake gets them.
    async fn heard(unsaid: &Rc<Unsaid>, reports: &mut mpsc::Receiver<Report>) -> Vec<Report> {
        let local = tokio::task::LocalSet::new();
        let (speaker, quiet) = (local.spawn_local(unsaid.clone().run()), unsaid.clone());
        let mut heard = Vec::new();
        let all = async {
            tokio::join!(quiet.empty(Duration::from_secs(5)), async {
                while !quiet.is_empty() {
                    heard.extend(reports.recv().await);
                }
            });
        };
        local.run_until(all).await;
        speaker.abort();
        heard.extend(std::iter::from_fn(|| reports.try_recv().ok()));
        heard
    }

    #[tokio::test]
    async fn what_finds_the_intake_full_is_said_later_the_newest_state_in_order() {
        let ((send, mut reports), lost) = (mpsc::channel(1), Arc::new(AtomicU64::new(0)));
        let unsaid = Unsaid::new(send, 8, lost.clone());
        unsaid.say(presence("other", true));
        unsaid.say(presence("gate", true));
        unsaid.say(properties("gate", &[("online", 1), ("viewers", 3)]));
        unsaid.say(presence("yard", true));
        unsaid.say(properties("gate", &[("online", 0)]));
        unsaid.say(presence("gate", false));
        assert_eq!(lost.load(Ordering::Relaxed), 1, "that the gate had come");
        let expected = [
            presence("other", true),
            properties("gate", &[("viewers", 3), ("online", 0)]),
            presence("gate", false),
            presence("yard", true),
        ];
        assert_eq!(heard(&unsaid, &mut reports).await, expected);
        unsaid.say(presence("gate", true));
        assert_eq!(reports.try_recv().ok(), Some(presence("gate", true)), "there is room again");
        assert_eq!(lost.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_camera_costs_three_words_and_more_cameras_than_may_wait_are_counted() {
        let ((send, mut reports), lost) = (mpsc::channel(1), Arc::new(AtomicU64::new(0)));
        let unsaid = Unsaid::new(send, 1, lost.clone());
        unsaid.say(presence("first", true));
        for round in 0..1_000 {
            unsaid.say(presence("gate", round % 2 == 0));
            unsaid.say(word("gate", Word::Event { name: round.to_string(), data: Value::Null }));
            unsaid.say(properties("gate", &[("viewers", round)]));
        }
        unsaid.say(presence("yard", true));
        unsaid.say(presence("one too many", true));
        assert_eq!(
            lost.load(Ordering::Relaxed),
            2 * 999 + 1,
            "but no property, whose newest value is what there is to say"
        );
        assert_eq!(heard(&unsaid, &mut reports).await.len(), 1 + 3 + 1);
        drop(reports);
        unsaid.say(presence("gate", true));
        assert_eq!(lost.load(Ordering::Relaxed), 2 * 999 + 2, "nobody hears it");
    }
}
