//! Shadows and waiting commands on a real store, with a session made of two channels.

use std::path::Path;

use device_models::model::Models;
use device_models::{Outcome, Report};
use protocols::Identity;
use tokio::sync::mpsc;

use super::*;
use crate::bus::Bus;
use crate::clock;
use crate::corrections::Corrections;
use crate::devices::{Declared, Route, RouteId};
use crate::edge::Edge;
use crate::intake::{AdapterInfo, Intake};

/// How long anything may take on a busy machine before it counts as never.
const PATIENCE: Duration = Duration::from_secs(20);

struct Box_ {
    bus: Bus,
    intake: Intake,
    shadows: Shadows,
    metrics: Metrics,
    tasks: Tasks,
}

fn config() -> config::Shadow {
    config::Shadow::default()
}

fn open(folder: &Path, config: config::Shadow, restored: bool) -> Box_ {
    let store = config::Store { path: folder.join("store"), commit_ms: 0, free_min_mib: 0, ..config::Store::default() };
    let (bus, _) = Bus::open(&store).unwrap();
    let models = Arc::new(Models::shipped().unwrap());
    let declare = |id: &str| Declared {
        id: id.to_owned(),
        product: "relay-switch".to_owned(),
        name: id.to_owned(),
        adapter: None,
    };
    let devices = Devices::open(Arc::clone(&models), ["r1", "r2"].map(declare).into(), bus.clone()).unwrap();
    let (metrics, tasks) = (Metrics::new(), Tasks::new());
    let shadows = Shadows::start(&config, &devices, bus.keyed(), restored, &metrics, &tasks).unwrap();
    let (edge, corrections) = (Edge::new(&models, Vec::new()), Corrections::open(&bus));
    let intake = Intake::new(devices, bus.clone(), metrics.clone(), edge, corrections);
    Box_ { bus, intake, shadows, metrics, tasks }
}

impl Box_ {
    /// A session that speaks for the thing; what it is ordered.
    async fn connect(&self, thing: &str, route: u64) -> (Route, mpsc::Receiver<Box<device_models::Command>>) {
        let (commands, orders) = mpsc::channel(16);
        let route = Route { id: RouteId(route), adapter: Arc::from("a"), commands };
        self.intake.arrive(&self.thing(thing), &route, clock::now_us()).await.unwrap();
        (route, orders)
    }

    fn thing(&self, thing: &str) -> Arc<Thing> {
        self.intake.devices().by_id(thing).unwrap()
    }

    async fn report(&self, thing: &str, route: &Route, on: bool) {
        let adapter = AdapterInfo {
            name: Arc::from("a"),
            product: None,
            auto_register: false,
            allow_anonymous: true,
            push_without_key: Vec::new(),
            commit: None,
        };
        let report = Report::properties(thing, vec![("on".to_owned(), Value::Bool(on))]);
        self.intake.take(&adapter, &Identity::anonymous(), report, Some(route)).await.unwrap();
    }

    fn defer(&self, thing: &str, id: &str, wait: Option<Duration>) -> Result<Option<Duration>, ShadowError> {
        let order = Order::Invoke { action: "toggle".to_owned(), input: Value::Null };
        self.shadows.defer(thing, id, &order, Duration::from_secs(60), wait)
    }

    async fn answer(&self, id: &str, outcome: Outcome) {
        self.intake.devices().session_answered(id, outcome).await;
    }

    fn waited(&self, how: &str) -> bool {
        self.metrics.encode().contains(&format!("commands_waited_total{{result=\"{how}\"}} 1"))
    }

    async fn until(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !fits(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "waited for {what}");
    }

    async fn close(self) {
        self.tasks.join(Duration::from_millis(300)).await;
        self.bus.close().await;
    }
}

async fn next(orders: &mut mpsc::Receiver<Box<device_models::Command>>) -> device_models::Command {
    *tokio::time::timeout(PATIENCE, orders.recv()).await.expect("an order").expect("the session is there")
}

fn patch(json: &str) -> Patch {
    serde_json::from_str(json).unwrap()
}

#[tokio::test]
async fn commands_go_in_order_each_once_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    for id in ["c1", "c2", "c3"] {
        assert_eq!(gateway.defer("r1", id, None), Ok(Some(Duration::from_secs(3600))));
    }
    gateway.shadows.kept().await.unwrap();
    gateway.close().await;
    let gateway = open(folder.path(), config(), false);
    let ids: Vec<_> = gateway.shadows.waiting("r1").unwrap().into_iter().map(|w| w.id).collect();
    assert_eq!(ids, ["c1", "c2", "c3"]);
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    for id in ["c1", "c2", "c3"] {
        assert_eq!(next(&mut orders).await.id, id);
        assert!(orders.try_recv().is_err(), "the next goes when this one has ended");
        gateway.answer(id, Ok(Value::Null)).await;
    }
    gateway.until("an empty queue", |g| g.shadows.waiting("r1").unwrap().is_empty()).await;
    gateway.close().await;
    let gateway = open(folder.path(), config(), false);
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    assert!(gateway.shadows.waiting("r1").unwrap().is_empty());
    assert!(orders.try_recv().is_err());
    gateway.close().await;
}

#[tokio::test]
async fn what_a_session_could_not_say_waits_until_it_hears_more() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    gateway.defer("r1", "c1", None).unwrap();
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    assert_eq!(next(&mut orders).await.id, "c1");
    gateway.answer("c1", Err(Failure::Unsupported("nobody listens".to_owned()))).await;
    let unsaid = |g: &Box_| g.shadows.waiting("r1").unwrap()[0].error.as_deref().is_some_and(|e| e.contains("nobody"));
    gateway.until("the reason", unsaid).await;
    gateway.intake.came(&gateway.thing("r1"));
    assert_eq!(next(&mut orders).await.id, "c1");
    gateway.answer("c1", Ok(Value::Null)).await;
    gateway.until("its end", |g| g.waited("delivered")).await;
    gateway.close().await;
}

#[tokio::test]
async fn what_was_handed_over_is_never_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    gateway.defer("r1", "c1", None).unwrap();
    gateway.defer("r1", "c2", None).unwrap();
    let (route, mut orders) = gateway.connect("r1", 1).await;
    assert_eq!(next(&mut orders).await.id, "c1");
    assert_eq!(gateway.shadows.cancel("r1", "c1").await, Err(ShadowError::Sent("c1".to_owned())));
    // The connection goes with it.
    gateway.intake.depart(&gateway.thing("r1"), route.id, "gone", true).await;
    gateway.until("one left", |g| g.shadows.waiting("r1").unwrap().len() == 1).await;
    let (_route, mut orders) = gateway.connect("r1", 2).await;
    assert_eq!(next(&mut orders).await.id, "c2");
    // Stopped before the answer.
    gateway.close().await;
    let gateway = open(folder.path(), config(), false);
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    gateway.until("it is told as unknown", |g| g.waited("unknown")).await;
    assert!(orders.try_recv().is_err() && gateway.shadows.waiting("r1").unwrap().is_empty());
    gateway.close().await;
}

#[tokio::test]
async fn an_older_copy_of_the_store_sends_nothing_that_it_calls_unsent() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    gateway.defer("r1", "c1", None).unwrap();
    gateway.shadows.kept().await.unwrap();
    gateway.close().await;
    let gateway = open(folder.path(), config(), true);
    gateway.until("it is told as unknown", |g| g.waited("unknown")).await;
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    assert!(orders.try_recv().is_err());
    gateway.close().await;
}

#[tokio::test]
async fn what_expires_or_is_taken_back_is_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    gateway.defer("r1", "short", Some(Duration::from_millis(50))).unwrap();
    gateway.defer("r1", "unwanted", None).unwrap();
    gateway.defer("r1", "wanted", None).unwrap();
    gateway.shadows.cancel("r1", "unwanted").await.unwrap();
    gateway.until("the short one's end", |g| g.waited("expired") && g.waited("cancelled")).await;
    let (_route, mut orders) = gateway.connect("r1", 1).await;
    assert_eq!(next(&mut orders).await.id, "wanted");
    gateway.close().await;
}

#[tokio::test]
async fn limits_are_told_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let small = config::Shadow { commands_max: 3, commands_per_thing_max: 2, memory_mib: 1, ..config() };
    let gateway = open(folder.path(), small, false);
    gateway.defer("r1", "c1", None).unwrap();
    assert_eq!(gateway.defer("r1", "c1", None), Err(ShadowError::Repeated("c1".to_owned())));
    assert_eq!(gateway.defer("r2", "c1", None), Err(ShadowError::Twice("c1".to_owned())));
    gateway.defer("r1", "c2", None).unwrap();
    let error = gateway.defer("r1", "c3", None).unwrap_err().to_string();
    assert!(error.contains("2 commands wait for `r1`") && error.contains("commands_per_thing_max"), "{error}");
    gateway.defer("r2", "c3", None).unwrap();
    let error = gateway.defer("r2", "c4", None).unwrap_err().to_string();
    assert!(error.contains("3 commands wait already") && error.contains("commands_max"), "{error}");
    assert!(gateway.metrics.encode().contains("commands_waited_total{result=\"refused\"} 3"));
    gateway.shadows.cancel("r2", "c3").await.unwrap();
    let huge = Order::Write(vec![("on".to_owned(), Value::Text("x".repeat(2 << 20)))]);
    let error = gateway.shadows.defer("r2", "c5", &huge, PATIENCE, None).unwrap_err();
    assert!(matches!(error, ShadowError::Unfit(_)), "{error}");
    assert_eq!(gateway.defer("r2", "c6", Some(Duration::ZERO)), Ok(None), "it is not to wait");
    assert!(matches!(gateway.defer("r9", "c7", None), Err(ShadowError::NoThing(_))));
    gateway.close().await;
}

#[tokio::test]
async fn a_thing_that_comes_is_written_what_it_lacks_until_it_reports_it() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    let view = gateway.shadows.change("r1", &patch(r#"{"desired":{"on":true}}"#), false).await.unwrap();
    assert_eq!((view.version, view.state, view.delta.len()), (1, "offline", 1));
    gateway.close().await;
    let gateway = open(folder.path(), config(), false);
    let (route, mut orders) = gateway.connect("r1", 1).await;
    let order = next(&mut orders).await;
    assert_eq!(order.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
    gateway.answer(&order.id, Ok(Value::Null)).await;
    assert_eq!(gateway.shadows.view("r1").unwrap().delta.len(), 1, "yes is not yet a report");
    gateway.report("r1", &route, true).await;
    let view = gateway.shadows.view("r1").unwrap();
    assert_eq!((view.state, view.delta.len(), view.desired.len(), view.version), ("in-sync", 0, 1, 1));
    // Again off by hand: what it is to have holds; but no write follows another closely.
    gateway.report("r1", &route, false).await;
    assert_eq!(gateway.shadows.view("r1").unwrap().state, "sending");
    assert!(orders.try_recv().is_err());
    let view = gateway.shadows.change("r1", &patch(r#"{"desired":{"on":null},"version":1}"#), false).await.unwrap();
    assert_eq!((view.state, view.version), ("in-sync", 2));
    let stale = gateway.shadows.change("r1", &patch(r#"{"desired":{"on":true},"version":1}"#), false).await;
    assert_eq!(stale.unwrap_err().to_string(), "the shadow of `r1` has version 2, not 1");
    gateway.close().await;
}

#[tokio::test]
async fn a_thing_that_has_it_already_is_left_alone_unless_one_insists() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = open(folder.path(), config(), false);
    let (route, mut orders) = gateway.connect("r1", 1).await;
    gateway.report("r1", &route, true).await;
    let view = gateway.shadows.change("r1", &patch(r#"{"desired":{"on":true}}"#), false).await.unwrap();
    assert_eq!(view.state, "in-sync");
    assert!(tokio::time::timeout(Duration::from_millis(200), orders.recv()).await.is_err());
    gateway.shadows.change("r1", &patch(r#"{"desired":{"on":null}}"#), false).await.unwrap();
    gateway.shadows.change("r1", &patch(r#"{"desired":{"on":true}}"#), true).await.unwrap();
    let order = next(&mut orders).await;
    assert_eq!(order.order, Order::Write(vec![("on".to_owned(), Value::Bool(true))]));
    gateway.answer(&order.id, Ok(Value::Null)).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), orders.recv()).await.is_err(), "once");
    gateway.close().await;
}
