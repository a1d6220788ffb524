//! `sluicegate demo`: the whole way on one machine, on loopback, with nothing to prepare.
//!
//! A gateway with the embedded configuration (`demo.toml`), simulated devices and cameras as its clients, a second
//! gateway that is nothing but an MQTT door as the platform (`upstream.toml`), and the reference consumer there that
//! counts what arrives. Must not be in here: a way around the doors that real devices use.

mod consumer;
mod ports;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use self::consumer::Platform;
use self::ports::{Ports, Taken};
use crate::app::App;
use crate::cli::StopSignals;
use crate::config::load::load_text;
use crate::config::plan::Plan;
use crate::metrics::{Figure, Sample};
use crate::sim;
use crate::threads::Tasks;

const GATEWAY: &str = include_str!("demo.toml");
const PLATFORM: &str = include_str!("upstream.toml");
const CLIPS: [(&str, &[u8]); 2] =
    [("gate-1", include_bytes!("clips/gate-1.flv")), ("yard-1", include_bytes!("clips/yard-1.flv"))];
/// After the devices stopped: time for the last messages to reach the platform.
const DRAIN_MAX: Duration = Duration::from_millis(1_200);
/// The platform must listen before the gateway sends.
const LISTEN_MAX: Duration = Duration::from_secs(10);

/// What `sluicegate demo` is asked to do.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Keep the store here; without it, it goes to a folder of its own and is removed at the end
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Stop after this many seconds; without it, at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<u64>,
    /// Start no simulated devices and cameras: only yours
    #[arg(long)]
    pub empty: bool,
}

/// What the demo did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Messages the gateway has on disk, and those of them that its platform has.
    pub kept: u64,
    pub received: u64,
    pub duplicates: u64,
    /// Messages that the platform does not have.
    pub missing: u64,
    /// Reports devices sent, and those that the gateway acknowledged.
    pub sent: u64,
    pub acknowledged: u64,
}

/// Runs the demo until it is stopped; `true` when nothing was lost.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    let mut stop = StopSignals::install()?;
    let folder = Folder::make(options.dir.as_deref())?;
    let demo = Demo::start(&folder, options.empty).await?;
    print(&demo.words())?;
    let limit = async {
        match options.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = limit => {}
        _ = stop.next() => {}
    }
    let began = Instant::now();
    let outcome = demo.stop().await;
    print(&outcome.words(began.elapsed()))?;
    Ok(outcome.missing == 0)
}

struct Demo {
    gateway: App,
    door: App,
    devices: Tasks,
    counts: sim::Counts,
    platform: Platform,
    taken: Vec<Taken>,
    /// The store was there before: what the platform misses of it was delivered in another run.
    kept_before: u64,
}

impl Demo {
    async fn start(folder: &Folder, empty: bool) -> anyhow::Result<Self> {
        let mut ports = Ports::default();
        let mut door = load_text("the demo's platform", PLATFORM)?;
        ports.place(&mut door.config)?;
        door.config.store.path = folder.path.join("platform");
        let door = App::start(Plan::make(door)?).await.context("the demo's platform cannot start")?;
        let door_address = door.bound.iter().find_map(|(_, address)| *address).context("the platform has no door")?;

        let devices = Tasks::new();
        let platform = Platform::start(door_address, &devices);
        tokio::time::timeout(LISTEN_MAX, platform.listening()).await.context("the demo's platform does not listen")?;

        let mut gateway = load_text("the demo's gateway", GATEWAY)?;
        ports.place(&mut gateway.config)?;
        gateway.config.store.path = folder.path.join("gateway");
        for upstream in &mut gateway.config.upstreams {
            upstream.url = format!("mqtt://{door_address}");
        }
        let gateway = App::start(Plan::make(gateway)?).await.context("the demo's gateway cannot start")?;
        let kept_before = gateway.services.bus.stat().through.iter().sum();

        let counted = platform.clone();
        gateway.services.metrics.sample(move || {
            let book = counted.book();
            let one = |figure, value: u64| Sample::new(figure, &[], value as f64);
            vec![
                one(Figure::ConsumerReceived, book.messages),
                one(Figure::ConsumerMissing, book.missing),
                one(Figure::ConsumerDuplicates, book.duplicates),
            ]
        });
        let address = |name: &str| gateway.bound.iter().find(|(n, _)| n == name).and_then(|(_, address)| *address);
        let targets = sim::Targets {
            mqtt: address("mqtt"),
            coap: address("coap"),
            tcp: address("tcp"),
            udp: address("udp"),
            rtmp: address("media"),
            clips: CLIPS.map(|(name, file)| (name, Bytes::from_static(file))).to_vec(),
        };
        let targets = if empty { sim::Targets::default() } else { targets };
        let counts = sim::start(&targets, &devices);
        Ok(Self { gateway, door, devices, counts, platform, taken: ports.taken, kept_before })
    }

    /// What runs where, and how to take part.
    fn words(&self) -> String {
        let at = |name: &str| {
            let found = self.gateway.bound.iter().find(|(n, _)| n == name).and_then(|(_, address)| *address);
            found.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let (mqtt, coap, tcp, udp, media) = (at("mqtt"), at("coap"), at("tcp"), at("udp"), at("media"));
        let page = self.gateway.admin.map(|address| format!("http://{address}")).unwrap_or_default();
        let platform = self.door.bound.first().and_then(|(_, address)| *address).map(|a| a.to_string());
        let platform = platform.unwrap_or_default();
        let moved: String = self.taken.iter().fold(String::new(), |all, taken| all + &taken.words());
        format!(
            "\nSluicegate's demo runs, on this machine alone.\n{moved}\n\
             \x20 Status page   {page}\n\
             \x20 Devices in    MQTT {mqtt} · CoAP {coap} (udp) · JSON lines {tcp} (tcp), {udp} (udp)\n\
             \x20 Cameras in    rtmp://{media}/live/NAME    out: the same, http://{media}/live/NAME.flv,\n\
             \x20                                                  http://{media}/live/NAME/index.m3u8\n\
             \x20 Platform      mqtt://{platform}, where everything goes; see it: sluicegate receive --url mqtt://{platform}\n\n\
             Push your own device:\n\
             \x20 mosquitto_pub -h 127.0.0.1 -p {mqtt_port} -q 1 -i attic -t /temperature-humidity/attic/properties/report \
             -m '{{\"properties\":{{\"temperature\":21.5}}}}'\n\
             \x20 coap-client-notls -m post -t json -e '{{\"temperature\":4.5}}' coap://{coap}/things/fridge/properties\n\
             \x20 echo '{{\"device\":\"boiler\",\"temperature\":61.5}}' | nc -N 127.0.0.1 {tcp_port}\n\
             Push your own camera, and watch:\n\
             \x20 ffmpeg -re -i CLIP.mp4 -c:v libx264 -bf 0 -g 50 -c:a aac -f flv rtmp://{media}/live/mine\n\
             \x20 ffplay http://{media}/live/gate-1.flv\n\n\
             Ctrl-C ends it.\n",
            mqtt_port = mqtt.port(),
            tcp_port = tcp.port(),
        )
    }

    /// Ends everything, devices first, so that nothing is on its way when the gateway stops.
    async fn stop(self) -> Outcome {
        let Self { gateway, door, devices, counts, platform, kept_before, .. } = self;
        let sims = devices.clone();
        sims.stop();
        let kept = || gateway.services.bus.stat().through.iter().sum::<u64>();
        let fresh = |kept: u64| kept.saturating_sub(kept_before);
        // The devices' departures are messages too: until two looks agree, more may be on the way.
        let drained = async {
            let mut before = u64::MAX;
            loop {
                let (kept, book) = (kept(), platform.book());
                if kept == before && book.messages >= fresh(kept) {
                    return;
                }
                before = kept;
                tokio::time::sleep(Duration::from_millis(120)).await;
            }
        };
        // Too late is told by the numbers.
        drop(tokio::time::timeout(DRAIN_MAX, drained).await);
        let (kept, book) = (fresh(kept()), platform.book());
        platform.end();
        tokio::join!(gateway.stop(), door.stop(), devices.join(DRAIN_MAX));
        Outcome {
            kept,
            received: book.messages,
            duplicates: book.duplicates,
            missing: kept.saturating_sub(book.messages).max(book.missing),
            sent: counts.sent(),
            acknowledged: counts.acknowledged(),
        }
    }
}

impl Outcome {
    fn words(&self, took: Duration) -> String {
        let Self { kept, received, duplicates, missing, sent, acknowledged } = self;
        format!(
            "\nStopped in {:.1} s. Devices sent {sent} reports, {acknowledged} of them acknowledged (UDP has no \
             acknowledgement).\nThe gateway kept {kept} messages, the platform received {received} of them \
             ({duplicates} repeated and left out): {missing} missing.\n",
            took.as_secs_f64()
        )
    }
}

fn print(words: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(words.as_bytes())?;
    out.flush()
}

/// Where the demo keeps its stores.
struct Folder {
    path: PathBuf,
    own: bool,
}

impl Folder {
    fn make(given: Option<&Path>) -> anyhow::Result<Self> {
        let (path, own) = match given {
            Some(path) => (path.to_owned(), false),
            None => (std::env::temp_dir().join(format!("sluicegate-demo-{}", std::process::id())), true),
        };
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self { path, own })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the demo's folder stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_are_good() {
        for (name, text) in [("gateway", GATEWAY), ("platform", PLATFORM)] {
            let loaded = load_text(name, text).unwrap_or_else(|problems| panic!("{name}: {problems}"));
            Plan::make(loaded).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        }
    }
}
