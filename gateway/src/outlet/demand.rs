//! When one outlet of one stream runs: its rule's word, orders, viewers and alarms, with their hold times.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::When;

/// Characters of a reason that is shown and reported.
const REASON_MAX: usize = 256;

/// Why an outlet runs, for people: `always`, `asked for`, `alarm: opened of door-1`.
pub(crate) type Reason = Arc<str>;

/// What is wanted of one outlet. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    when: When,
    hold: Duration,
    wish: Arc<watch::Sender<Wish>>,
}

/// All that was said so far.
#[derive(Debug, Clone, Default)]
struct Wish {
    /// An order to run, until it ends or for ever.
    asked: Option<Until>,
    /// An order not to run stands against everything until the next order.
    stopped: bool,
    watched: bool,
    /// The last viewer, or the last alarm, plus the hold time.
    held: Option<(Instant, Reason)>,
}

#[derive(Debug, Clone, Copy)]
enum Until {
    Stopped,
    At(Instant),
}

impl Demand {
    pub(crate) fn new(when: When, hold: Duration) -> Self {
        Self { when, hold, wish: Arc::new(watch::Sender::new(Wish::default())) }
    }

    // --- what is said ---

    /// An order to run, for so long or until it is stopped.
    pub(crate) fn start(&self, span: Option<Duration>) {
        let until = span.map_or(Until::Stopped, |span| Until::At(Instant::now() + span));
        self.wish.send_modify(|wish| (wish.asked, wish.stopped) = (Some(until), false));
    }

    /// An order to end, whatever else is wanted.
    pub(crate) fn stop(&self) {
        self.wish.send_modify(|wish| *wish = Wish { stopped: true, watched: wish.watched, ..Wish::default() });
    }

    /// Whether somebody watches the stream.
    pub(crate) fn watched(&self, watched: bool) {
        if self.when != When::Watched {
            return;
        }
        let held = Instant::now() + self.hold;
        self.wish.send_if_modified(|wish| {
            let changed = wish.watched != watched;
            if changed && !watched {
                wish.held = Some((held, Reason::from("was watched")));
            }
            wish.watched = watched;
            changed
        });
    }

    /// An alarm: it runs until the hold time after the last one.
    pub(crate) fn alarm(&self, what: &str) {
        if self.when != When::Alarm {
            return;
        }
        let reason: String = format!("alarm: {what}").chars().take(REASON_MAX).collect();
        let held = (Instant::now() + self.hold, Reason::from(reason));
        self.wish.send_modify(|wish| wish.held = Some(held));
    }

    // --- what follows from it ---

    /// Resolves when the outlet should run, with the reason.
    pub(crate) async fn wanted(&self) -> Reason {
        let mut wishes = self.wish.subscribe();
        loop {
            if let Some((reason, _)) = self.due(&wishes.borrow_and_update(), Instant::now()) {
                return reason;
            }
            // The sender is in `self`: the wait ends only by news.
            if wishes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves when the outlet should no longer run.
    pub(crate) async fn unwanted(&self) {
        let mut wishes = self.wish.subscribe();
        loop {
            let Some((_, until)) = self.due(&wishes.borrow_and_update(), Instant::now()) else { return };
            let over = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() { return },
                () = over => {}
            }
        }
    }

    /// Why it should run now, and when that has to be looked at again.
    fn due(&self, wish: &Wish, now: Instant) -> Option<(Reason, Option<Instant>)> {
        if wish.stopped {
            return None;
        }
        match wish.asked {
            Some(Until::Stopped) => return Some((Reason::from("asked for"), None)),
            Some(Until::At(at)) if at > now => return Some((Reason::from("asked for"), Some(at))),
            _ => {}
        }
        if self.when == When::Always {
            return Some((Reason::from("always"), None));
        }
        if wish.watched {
            return Some((Reason::from("watched"), None));
        }
        wish.held.as_ref().filter(|(at, _)| *at > now).map(|(at, reason)| (reason.clone(), Some(*at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    fn demand(when: When) -> Demand {
        Demand::new(when, HOLD)
    }

    async fn reason(demand: &Demand) -> Option<String> {
        tokio::time::timeout(Duration::ZERO, demand.wanted()).await.ok().map(|reason| reason.to_string())
    }

    /// How long it goes on without news; `None`: for ever.
    async fn lasts(demand: &Demand) -> Option<Duration> {
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(86_400), demand.unwanted()).await.ok().map(|()| begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn always_runs_until_it_is_stopped_and_goes_on_when_asked() {
        let demand = demand(When::Always);
        assert_eq!(reason(&demand).await.as_deref(), Some("always"));
        assert_eq!(lasts(&demand).await, None);
        demand.stop();
        assert_eq!(reason(&demand).await, None);
        demand.start(None);
        assert_eq!(reason(&demand).await.as_deref(), Some("asked for"));
    }

    #[tokio::test(start_paused = true)]
    async fn on_demand_waits_for_an_order_and_ends_with_its_time() {
        let demand = demand(When::OnDemand);
        demand.watched(true);
        demand.alarm("x");
        assert_eq!(reason(&demand).await, None, "neither viewers nor alarms are orders");
        demand.start(Some(Duration::from_secs(5)));
        assert_eq!(reason(&demand).await.as_deref(), Some("asked for"));
        assert!(lasts(&demand).await.unwrap().abs_diff(Duration::from_secs(5)) < Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn alarms_prolong_each_other() {
        let demand = demand(When::Alarm);
        demand.alarm("opened of door-1");
        assert_eq!(reason(&demand).await.as_deref(), Some("alarm: opened of door-1"));
        tokio::time::advance(Duration::from_secs(20)).await;
        demand.alarm("opened of door-1");
        assert!(lasts(&demand).await.unwrap().abs_diff(HOLD) < Duration::from_millis(5));
        assert_eq!(reason(&demand).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_viewer_is_outlived_by_the_hold_time() {
        let demand = demand(When::Watched);
        assert_eq!(reason(&demand).await, None);
        demand.watched(true);
        assert_eq!(reason(&demand).await.as_deref(), Some("watched"));
        assert_eq!(lasts(&demand).await, None);
        demand.watched(false);
        assert!(lasts(&demand).await.unwrap().abs_diff(HOLD) < Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_a_wish_that_comes_later() {
        let demand = demand(When::Alarm);
        let (waiting, alarm) = (demand.clone(), demand.clone());
        let (reason, ()) = tokio::join!(waiting.wanted(), async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            alarm.alarm("now");
        });
        assert_eq!(&*reason, "alarm: now");
    }
}
