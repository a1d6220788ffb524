//! The one place that knows all the parts: builds them in order, starts them, stops them in reverse.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::admin::{self, parts::AdapterView};
use crate::broker::{Broker, WillReport};
use crate::bus::{Bus, FindingKind};
use crate::cameras;
use crate::config::{self, plan::Plan};
use crate::corrections::Corrections;
use crate::credentials::Gatekeeper;
use crate::devices::Devices;
use crate::edge::Edge;
use crate::hls::Hls;
use crate::hooks::Hooks;
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::outlet::{Means, Outlets, Voice};
use crate::pull;
use crate::record::{self, Recorder};
use crate::relay::Relays;
use crate::shadow::Shadows;
use crate::stream::StreamCore;
use crate::threads::Tasks;
use crate::tls::ServerTls;
use crate::transport::{self, Services};
use crate::upstream::{self, Upstream};
use crate::webrtc::Webrtc;

/// Camera reports that may wait for the intake.
const CAMERA_REPORTS_MAX: usize = 1_024;
/// How often changed latest values are written to the store: each time costs flash, and what a crash makes older is
/// told anew by the next report.
const LATEST_EVERY: Duration = Duration::from_secs(60);
/// Time all tasks have to end.
const STOP_TIME_MAX: Duration = Duration::from_millis(1_500);

/// A running gateway.
#[derive(Debug)]
pub struct App {
    pub services: Services,
    /// Each adapter's name and the address it really bound.
    pub bound: Vec<(String, Option<SocketAddr>)>,
    /// Where the status page is.
    pub admin: Option<SocketAddr>,
    pub upstreams: Vec<Upstream>,
    /// The listeners' certificates.
    certificates: Vec<ServerTls>,
    outlets: Outlets,
    tasks: Tasks,
}

impl App {
    /// Starts everything the plan names. An error says what could not start; nothing is left running then.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let tasks = Tasks::new();
        match Self::start_parts(plan, tasks.clone()).await {
            Ok(app) => Ok(app),
            Err(error) => {
                tasks.join(STOP_TIME_MAX).await;
                Err(error)
            }
        }
    }

    async fn start_parts(plan: Plan, tasks: Tasks) -> anyhow::Result<Self> {
        let started = Instant::now();
        let metrics = Metrics::new();
        let store = plan.config.store.clone();
        let (bus, findings) = tasks.blocking(move || Bus::open(&store)).await??;
        for finding in &findings {
            warn!(?finding, "the store was repaired");
        }
        let devices = Devices::open(Arc::clone(&plan.models), plan.declared, bus.clone())?;
        let restored = findings.iter().any(|finding| finding.kind == FindingKind::KeyedRestored);
        let shadows = Shadows::start(&plan.config.shadow, &devices, bus.keyed(), restored, &metrics, &tasks)?;
        let edge = Edge::new(&plan.models, plan.scopes);
        let corrections = Corrections::open(&bus);
        let intake = Intake::new(devices.clone(), bus.clone(), metrics.clone(), edge, corrections.clone());
        tasks.spawn("rules", say_what_waits(intake.clone(), tasks.clone()));
        tasks.spawn("presence", say_presence_again(intake.clone(), tasks.clone()));
        let gatekeeper = Arc::new(Gatekeeper::new(plan.credentials, tasks.clone()));
        let (broker, wills) = Broker::open(&plan.config.broker, bus.keyed(), Arc::clone(&gatekeeper), &tasks)?;
        tasks.spawn("wills", take_will_reports(intake.clone(), wills, tasks.clone()));
        let (reports, camera_reports) = mpsc::channel(CAMERA_REPORTS_MAX);
        let voice = Voice::new(&reports, metrics.clone());
        let streams = StreamCore::start(&plan.config.stream, reports, &tasks)?;
        let relays = Relays::new(&plan.config.relays, &plan.config.stream);
        let means = Means { streams: streams.clone(), tasks: tasks.clone(), metrics: metrics.clone(), voice };
        let pulls = pull::Means {
            streams: streams.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            voice: means.voice.clone(),
        };
        pull::start(&plan.config.pulls, &pulls);
        let hooks = Hooks::start(&plan.config.hooks, &streams, &tasks, &metrics)?;
        let tell = record::Tell { voice: means.voice.clone(), hooks: hooks.clone() };
        let recorder = Recorder::start(&plan.config.records, &plan.config.store.path, tell)?;
        let outlets = Outlets::start(means, relays, recorder, intake.events());
        tasks.spawn("cameras", cameras::run(intake.clone(), outlets.clone(), camera_reports));
        tasks.spawn("latest", save_latest(devices.clone(), tasks.clone()));
        let hls = Hls::new(&plan.config.hls, streams.clone(), tasks.clone(), metrics.clone());
        let services = Services { tasks: tasks.clone(), bus, intake, broker, streams, hls, gatekeeper, hooks, metrics };
        let listeners = plan.adapters.iter().filter_map(|adapter| adapter.tls.clone());
        let certificates = listeners.chain(plan.admin_tls.clone()).collect();
        let (mut bound, mut views) = (Vec::new(), Vec::new());
        for adapter in plan.adapters {
            let name = adapter.info.name.to_string();
            let view = AdapterView::of(&adapter);
            let address = transport::start(adapter, &services).await?.address;
            bound.push((name, address));
            views.push(AdapterView { address, ..view });
        }
        let upstreams = start_upstreams(&plan.config, &plan.gateway_id, &services, &shadows, corrections)?;
        let store_bytes_max = plan.config.store.cap_mib * 1024 * 1024;
        let webrtc = Webrtc::start(&plan.config.webrtc, &services).await?;
        let ups = upstreams.clone();
        let parts = admin::Parts::of(&plan.gateway_id, &services, views, ups, webrtc, &outlets, store_bytes_max);
        let parts = admin::Parts { shadows: Some(shadows), ..parts };
        let admin = admin::start(&plan.config.admin, plan.admin_tls, parts, &tasks).await?;
        info!(gateway = %plan.gateway_id, took = ?started.elapsed(), "started");
        Ok(Self { services, bound, admin, upstreams, certificates, outlets, tasks })
    }

    /// Reads the certificates of all listeners again where their files have changed.
    pub async fn reload(&self) {
        for certificate in &self.certificates {
            certificate.look_again(&self.tasks, &self.services.metrics).await;
        }
    }

    /// Stops everything: no new input, last words, last commit.
    pub async fn stop(self) {
        self.tasks.stop();
        // The streams' threads first: the task that takes the cameras' reports ends with them.
        self.services.streams.close().await;
        self.tasks.join(STOP_TIME_MAX).await;
        if let Some(recorder) = self.outlets.recorder() {
            recorder.close(&self.tasks).await;
        }
        self.services.intake.finish().await;
        self.services.intake.devices().save_latest();
        self.services.bus.close().await;
        info!("stopped");
    }
}

fn start_upstreams(
    config: &config::Config,
    gateway: &str,
    services: &Services,
    shadows: &Shadows,
    corrections: Corrections,
) -> anyhow::Result<Vec<Upstream>> {
    let configs = &config.upstreams;
    upstream::forget_removed(&services.bus, configs)?;
    let parts = upstream::Parts {
        quarantine: config.store.path.join("refused"),
        gateway: Arc::from(gateway),
        bus: services.bus.clone(),
        corrections,
        things: Arc::new(shadows.clone()),
        tasks: services.tasks.clone(),
        metrics: services.metrics.clone(),
    };
    Ok(configs.iter().map(|config| Upstream::start(config.clone(), &parts)).collect::<Result<_, _>>()?)
}

/// What MQTT wills say about devices; nobody is left to be acknowledged.
async fn take_will_reports(intake: Intake, mut wills: mpsc::Receiver<WillReport>, tasks: Tasks) {
    loop {
        let will = tokio::select! {
            will = wills.recv() => will,
            () = tasks.stopping() => return,
        };
        let Some(WillReport { adapter, by, reports }) = will else { return };
        for report in reports {
            if let Err(refusal) = intake.take(&adapter, &by, report, None).await {
                debug!(%refusal, "a will's report is refused");
            }
        }
    }
}

async fn say_what_waits(intake: Intake, tasks: Tasks) {
    intake.run_rules(tasks.stopping()).await;
}

async fn say_presence_again(intake: Intake, tasks: Tasks) {
    intake.run_presence(tasks.stopping()).await;
}

async fn save_latest(devices: Devices, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LATEST_EVERY) => devices.save_latest(),
            () = tasks.stopping() => return,
        }
    }
}
