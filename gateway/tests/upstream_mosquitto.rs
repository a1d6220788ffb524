//! The way upstream against a real broker: Debian's mosquitto, started and stopped by each test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what it expects")]

use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device_models::wire::{Catalog, PropertyName, encode_message};
use device_models::{Body, Class, Failure, Level, Message, Order, Outcome, Quality, Sample, Value};
use gateway::bus::Bus;
use gateway::corrections::Corrections;
use gateway::metrics::Metrics;
use gateway::receive::{self, Consumer, Content, Delivered};
use gateway::threads::Tasks;
use gateway::upstream::destination::mqtt::Link;
use gateway::upstream::destination::place::Place;
use gateway::upstream::destination::{Event, Publication, Settings, Version};
use gateway::upstream::{Known, Parts, Status, Things, Upstream};
use gateway::{clock, config};

/// How long anything may take on a busy machine before it counts as never.
const PATIENCE: Duration = Duration::from_secs(60);

// === the broker ===

struct Mosquitto {
    port: u16,
    home: tempfile::TempDir,
    child: Child,
}

impl Mosquitto {
    fn start(extra: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Started as root it would become the user `mosquitto`, who may not write here.
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
             max_queued_messages 0\nmax_inflight_messages 0\nuser root\n{extra}\n",
            home.path().display()
        );
        std::fs::write(home.path().join("mosquitto.conf"), text).unwrap();
        let child = Self::spawn(home.path());
        let broker = Self { port, home, child };
        broker.await_port();
        broker
    }

    fn spawn(home: &Path) -> Child {
        Command::new("mosquitto")
            .arg("-c")
            .arg(home.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed")
    }

    fn await_port(&self) {
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("mosquitto does not listen");
    }

    /// Ends it as a service manager does: it writes its sessions down.
    fn stop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.home.path());
        self.await_port();
    }

    fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Makes the session that keeps messages for `receive`, before anything is sent.
    fn make_session(&self) {
        let port = self.port.to_string();
        let session = ["-V", "5", "-i", "sluicegate-receive", "-c", "-x", "3600", "-q", "1", "-E"];
        let status = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &port])
            .args(session)
            .args(["-t", "sg/v1/+/model/+", "-t", "sg/v1/+/up/+", "-t", "sg/v1/+/json/#"])
            .status()
            .expect("mosquitto_sub is installed");
        assert!(status.success());
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // Already gone is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// === the gateway's side ===

/// A list of one thing, and what was ordered of it.
struct OneMeter {
    bus: Bus,
    orders: Mutex<Vec<(String, Order)>>,
}

impl Things for OneMeter {
    fn rev(&self) -> u32 {
        4
    }

    fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::new(4);
        catalog.add_thing(1, "meter-1".into(), "energy-meter".into());
        let watt = PropertyName { name: "power".into(), kind: "number".into(), unit: "W".into() };
        catalog.add_property(&"energy-meter".into(), 1, watt);
        catalog
    }

    fn known(&self) -> Vec<Known> {
        Vec::new()
    }

    fn find(&self, _id: &str) -> Option<Known> {
        None
    }

    fn model(&self, thing: &str) -> Arc<str> {
        Arc::from(if thing == "meter-1" { "energy-meter" } else { "" })
    }

    fn order<'a>(
        &'a self,
        thing: &'a str,
        id: &'a str,
        order: Order,
        _patience: Duration,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        self.orders.lock().unwrap().push((thing.to_owned(), order));
        Box::pin(async move {
            let outcome = Ok(Value::Text("done".to_owned()));
            let message = message(Body::Reply { id: id.to_owned(), outcome: outcome.clone() });
            self.bus.append(Class::Control, &encode_message(&message)).await.unwrap();
            outcome
        })
    }
}

struct Site {
    bus: Bus,
    tasks: Tasks,
    meter: Arc<OneMeter>,
    upstream: Upstream,
}

impl Site {
    fn start(folder: &Path, url: &str, settings: &str) -> Self {
        let store =
            config::Store { path: folder.to_owned(), commit_ms: 5, free_min_mib: 1, ..config::Store::default() };
        let (bus, _findings) = Bus::open(&store).unwrap();
        let tasks = Tasks::new();
        let meter = Arc::new(OneMeter { bus: bus.clone(), orders: Mutex::default() });
        let parts = Parts {
            gateway: "box-1".into(),
            bus: bus.clone(),
            corrections: Corrections::open(&bus),
            things: Arc::clone(&meter) as Arc<dyn Things>,
            tasks: tasks.clone(),
            metrics: Metrics::new(),
            quarantine: folder.join("refused"),
        };
        let config = toml::from_str(&format!("name = \"cloud\"\nurl = \"{url}\"\nbatch_ms = 20\n{settings}")).unwrap();
        let upstream = Upstream::start(config, &parts).unwrap();
        Self { bus, tasks, meter, upstream }
    }

    async fn append(&self, body: Body) {
        let message = message(body);
        self.bus.append(message.class(), &encode_message(&message)).await.unwrap();
    }

    async fn power(&self, watts: i64) {
        let value = Value::Float(watts as f64 / 10.0);
        self.append(Body::Properties(vec![Sample { alias: 1, name: "power".into(), value, quality: Quality::Good }]))
            .await;
    }

    async fn status(&self, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut watch = self.upstream.watch();
        let found = tokio::time::timeout(PATIENCE, watch.wait_for(wanted)).await;
        found.unwrap_or_else(|_| panic!("{what} never came: {:?}", self.upstream.status())).unwrap().clone()
    }

    async fn stop(self) {
        self.tasks.join(Duration::from_secs(5)).await;
        self.bus.close().await;
    }
}

fn message(body: Body) -> Message {
    let now = clock::now_us();
    Message { thing: "meter-1".into(), model: "energy-meter".into(), time_us: now, received_us: now, body }
}

// === the platform's side ===

fn receive_options(broker: &Mosquitto, count: u64) -> receive::Options {
    receive::Options {
        url: broker.url(),
        gateway: "+".to_owned(),
        json: false,
        quiet: true,
        acknowledge: false,
        count: Some(count),
        idle_seconds: Some(30),
        client_id: "sluicegate-receive".to_owned(),
        expiry_seconds: 3600,
        ca_file: None,
        cert_file: None,
        key_file: None,
        username: None,
        password_env: None,
    }
}

/// A client that subscribes, publishes, and takes what arrives.
struct Platform {
    link: Link,
    consumer: Consumer,
    states: Vec<serde_json::Value>,
}

impl Platform {
    async fn connect(broker: &Mosquitto, tasks: &Tasks) -> Self {
        let settings = Settings {
            place: Place::mqtt("127.0.0.1", broker.port),
            version: Version::V5,
            trust: None,
            client_id: "platform".to_owned(),
            credentials: None,
            keep_alive: Duration::from_secs(10),
            clean_start: true,
            session_expiry: Duration::ZERO,
            window: 20,
            will: None,
            sasl: config::Sasl::default(),
            token: None,
            content_type: "",
        };
        let mut link = Link::open(&settings, tasks).unwrap();
        assert!(matches!(link.next().await, Event::Up { .. }));
        link.subscribe("sg/v1/box-1/#").unwrap();
        Self { link, consumer: Consumer::new(), states: Vec::new() }
    }

    /// Takes until `wanted` finds what it looks for.
    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Delivered) -> Option<T>) -> T {
        let found = async {
            loop {
                match self.link.next().await {
                    Event::Arrived(arrival) => {
                        if arrival.topic.ends_with("/state") {
                            self.states.push(serde_json::from_slice(&arrival.payload).unwrap());
                        }
                        let delivered = self.consumer.take(&arrival.topic, &arrival.payload);
                        self.link.acknowledge(arrival).unwrap();
                        if let Some(found) = delivered.iter().find_map(&mut wanted) {
                            return found;
                        }
                    }
                    Event::Down { reason, .. } => panic!("the platform lost its broker: {reason}"),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what} never came"))
    }
}

fn reply(delivered: &Delivered, id: &str) -> Option<Outcome> {
    match &delivered.message()?.body {
        Body::Reply { id: of, outcome } if of == id => Some(outcome.clone()),
        _ => None,
    }
}

// === the tests ===

/// Sends while the broker goes and comes, twice; all must arrive at `receive`, once, in order.
async fn survives_restarts(settings: &str, rounds: i64, each: i64) {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Mosquitto::start("");
    broker.make_session();
    let site = Site::start(folder.path(), &broker.url(), settings);
    let tasks = Tasks::new();
    let total = (rounds * (each + 1)) as u64;
    let consumer = tasks.spawn("receive", receive::run(receive_options(&broker, total)));
    for round in 0..rounds {
        for watts in 0..each {
            site.power(watts).await;
            if round < 2 && watts == each / 3 {
                site.status("some confirmed", |status| status.connected && status.messages > 0).await;
                broker.stop();
            }
            if round < 2 && watts == each / 3 * 2 {
                site.status("the loss noticed", |status| !status.connected).await;
                broker.restart();
            }
        }
        let data = Value::Int(round);
        site.append(Body::Event { name: "round".into(), level: Level::Warn, data, quality: Quality::Good }).await;
    }
    let summary = tokio::time::timeout(PATIENCE, consumer).await.expect("all arrives in time").unwrap().unwrap();
    assert_eq!(summary.messages, total, "{summary}");
    assert!(summary.is_whole(), "{summary}");
    assert_eq!(summary.said_lost, 0, "{summary}");
    let status = site.status("the cursor at the end", |status| status.backlog == [0; 4]).await;
    assert_eq!(status.dropped, 0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_broker_loses_no_native_message() {
    survives_restarts("", 4, 1500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_broker_loses_no_json_message() {
    survives_restarts("dialect = \"json\"", 3, 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_go_down_and_their_replies_come_up() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start("");
    let tasks = Tasks::new();
    let mut platform = Platform::connect(&broker, &tasks).await;
    let site = Site::start(folder.path(), &broker.url(), "");
    site.power(10).await;
    let (unit, message) = platform
        .until("a report", |delivered| match &delivered.content {
            Content::Native(message, catalog, _) if message.class() == Class::Live => {
                let unit = catalog.property(&message.model, 1).map(|property| property.unit.clone());
                Some((unit, message.clone()))
            }
            _ => None,
        })
        .await;
    assert_eq!(unit.as_deref(), Some("W"), "the catalog came, and first");
    assert_eq!(message.thing.as_ref(), "meter-1");
    assert_eq!(platform.states.first().and_then(|state| state.get("online")), Some(&true.into()));

    let down = "sg/v1/box-1/down/meter-1".to_owned();
    platform.link.publish(Publication::new(down.clone(), br#"{"id": "c1", "write": {"on": true}}"#.to_vec())).unwrap();
    let outcome = platform.until("the reply", |delivered| reply(delivered, "c1")).await;
    assert_eq!(outcome, Ok(Value::Text("done".to_owned())));
    let orders = site.meter.orders.lock().unwrap().clone();
    assert_eq!(orders, [("meter-1".to_owned(), Order::Write(vec![("on".to_owned(), Value::Bool(true))]))]);

    platform.link.publish(Publication::new(down, br#"{"id": "c2", "raed": []}"#.to_vec())).unwrap();
    let outcome = platform.until("the refusal", |delivered| reply(delivered, "c2")).await;
    assert!(matches!(&outcome, Err(Failure::Refused(reason)) if reason.contains("unknown field")), "{outcome:?}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_is_told_from_what_is_live_and_a_stop_keeps_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Mosquitto::start("");
    let url = broker.url();
    broker.stop();
    let site = Site::start(folder.path(), &url, "");
    site.power(1).await;
    site.status("an error", |status| status.error.is_some()).await;
    site.stop().await;

    broker.restart();
    let tasks = Tasks::new();
    let mut platform = Platform::connect(&broker, &tasks).await;
    let site = Site::start(folder.path(), &url, "");
    let first = platform.until("the first", |delivered| Some((delivered.seq, delivered.hist))).await;
    assert_eq!(first, (1, true), "it waited through a restart of the gateway");
    site.power(2).await;
    let second = platform.until("the second", |delivered| Some((delivered.seq, delivered.hist))).await;
    assert_eq!(second, (2, false));
    site.status("both confirmed", |status| status.acked[2] == 2).await;
    site.stop().await;

    let site = Site::start(folder.path(), &url, "");
    site.power(3).await;
    let third = platform.until("the third", |delivered| Some(delivered.seq)).await;
    assert_eq!(third, 3);
    assert_eq!(receive::Summary::of(&platform.consumer).duplicates, 0, "a clean stop sends nothing twice");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_the_broker_is_said_and_the_rest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start("max_packet_size 4000");
    let tasks = Tasks::new();
    let mut platform = Platform::connect(&broker, &tasks).await;
    let site = Site::start(folder.path(), &broker.url(), "");
    site.power(1).await;
    let name: Arc<str> = "blob".into();
    let value = Value::Text("x".repeat(10_000));
    site.append(Body::Properties(vec![Sample { alias: 0, name, value, quality: Quality::UnknownProperty }])).await;
    for watts in 0..500 {
        site.power(watts).await;
    }
    platform.until("the last", |delivered| (delivered.seq == 502).then_some(())).await;
    let summary = receive::Summary::of(&platform.consumer);
    assert!(summary.is_whole(), "{summary}");
    assert_eq!((summary.messages, summary.said_lost), (501, 1), "{summary}");
    assert_eq!(site.upstream.status().dropped, 1);
    site.stop().await;
}

/// An authority, and a certificate each for the broker and the gateway, made by openssl in `home`.
fn make_certificates(home: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(home).output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    for authority in ["ca", "other-ca"] {
        let files = ["-keyout", &format!("{authority}.key"), "-out", &format!("{authority}.pem")];
        openssl(&[&["req", "-x509", "-subj", &format!("/CN=test {authority}")], &key[..], &files[..]].concat());
    }
    std::fs::write(home.join("names"), "subjectAltName=DNS:localhost,DNS:box-1\n").unwrap();
    for name in ["broker", "client"] {
        let (file, request, out) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        openssl(&[&["req", "-new", "-subj", "/CN=box-1", "-keyout", &file, "-out", &request], &key[..5]].concat());
        let signed = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(&[&signed[..], &["-days", "2", "-extfile", "names", "-out", &out]].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_both_ways_and_an_unknown_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    make_certificates(home.path());
    let file = |name: &str| home.path().join(name).display().to_string();
    let broker = Mosquitto::start(&format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        file("ca.pem"),
        file("broker.pem"),
        file("broker.key")
    ));
    let url = format!("mqtts://localhost:{}", broker.port);
    let own = format!("cert_file = \"{}\"\nkey_file = \"{}\"", file("client.pem"), file("client.key"));
    let site = Site::start(folder.path(), &url, &format!("ca_file = \"{}\"\n{own}", file("other-ca.pem")));
    site.power(1).await;
    let status = site.status("an error", |status| status.error.is_some()).await;
    assert!(status.error.as_deref().is_some_and(|error| error.contains("certificate")), "{status:?}");
    site.stop().await;
    let site = Site::start(folder.path(), &url, &format!("ca_file = \"{}\"\n{own}", file("ca.pem")));
    let status = site.status("the report confirmed", |status| status.acked[2] == 1).await;
    assert!(status.connected && status.error.is_none());
    site.stop().await;
}
