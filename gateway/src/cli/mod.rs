//! The command line: verbs, flags, exit codes (0 well, 1 failed, 2 bad usage or configuration).
//!
//! Inside: the verbs; `store.rs` those about the store, `log.rs` what is written to the log. Must not be in here: what a verb
//! does beyond reading its flags, calling the part and printing.

mod allocator;
mod log;
mod store;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use crate::app::App;
use crate::config::{example, load, plan::Plan, problem::Problems};
use crate::{demo, receive};

/// Worker threads of the control plane. The disk, the streams and slow work have threads of their own; a second worker is
/// woken for nearly every report of a steady load and finds nothing to do, which costs a quarter more CPU.
const CONTROL_WORKERS: usize = 1;

#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, about, long_about = LONG_ABOUT, arg_required_else_help = true)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,gateway::upstream=debug`.
    #[arg(long, global = true, env = "SLUICEGATE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

const LONG_ABOUT: &str = "\
An IoT device-access edge gateway: devices of every kind come in, speak one thing model, are kept safe on disk, and go \
upstream. Nothing acknowledged is lost; nothing lost is unsaid.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway.
    Run(ConfigArgs),
    /// Check the configuration and print every error in it.
    Check(CheckArgs),
    /// Show the whole way on this machine: simulated devices and cameras, a gateway, a platform, a status page.
    Demo(demo::Options),
    /// Look into the messages on disk, write them out, give them up.
    Store(Box<store::StoreArgs>),
    /// Be the upstream: decode, verify and print what a gateway sends to an MQTT broker.
    Receive(Box<receive::Options>),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file; `conf.d/*.toml` beside it is read too.
    #[arg(
        long,
        short,
        global = true,
        env = "SLUICEGATE_CONFIG",
        default_value = "/etc/sluicegate/sluicegate.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print a complete commented example instead.
    #[arg(long)]
    example: bool,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version are asked for and no failure.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    log::start(&command.log, matches!(command.verb, Verb::Demo(_) | Verb::Store(_)));
    if matches!(command.verb, Verb::Run(_) | Verb::Demo(_)) {
        allocator::tell();
    }
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return failed("another TLS provider is installed already");
    }
    match command.verb {
        Verb::Check(args) => check(&args),
        Verb::Run(args) => match prepare(&args.config) {
            Ok(plan) => on_runtime(run(plan)),
            Err(problems) => bad_configuration(&problems),
        },
        Verb::Demo(options) => {
            on_runtime(async { Ok(if demo::run(options).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE }) })
        }
        Verb::Store(args) => match args.settings() {
            Ok(settings) => on_runtime(args.run(settings)),
            Err(problems) => bad_configuration(&problems),
        },
        Verb::Receive(options) => on_runtime(async {
            Ok(receive::run(*options)
                .await
                .map(|s| if s.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })?)
        }),
    }
}

fn prepare(file: &Path) -> Result<Plan, Problems> {
    Plan::make(load::load(file)?)
}

fn check(args: &CheckArgs) -> ExitCode {
    if args.example {
        return say(&example::example());
    }
    match prepare(&args.config.config) {
        Ok(plan) => say(&format!(
            "{}: well. Gateway `{}`: {} adapters, {} devices, {} upstreams, {} models.\n",
            args.config.config.display(),
            plan.gateway_id,
            plan.adapters.len(),
            plan.declared.len(),
            plan.config.upstreams.len(),
            plan.models.len(),
        )),
        Err(problems) => bad_configuration(&problems),
    }
}

/// As many descriptors as the system lets us have: the usual soft limit of 1,024 is fewer than the devices of a site.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open descriptors");
        }
    }
}

async fn run(plan: Plan) -> anyhow::Result<ExitCode> {
    raise_descriptors();
    // Before anything runs: a stop that comes early is a stop too, and no kill.
    let mut stop = StopSignals::install()?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let app = App::start(plan).await?;
    let watchdog = watchdog(&app);
    // Not under systemd: nobody to notify.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    let why = tokio::select! {
        why = stop.next() => why,
        () = hang_ups(&app, &mut hang_up) => "no more signals",
        () = watchdog => "the watchdog",
    };
    info!(why, "stopping");
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    app.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Feeds systemd's watchdog while every pinned loop ticks; never ends otherwise.
async fn watchdog(app: &App) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(period / 3).await;
        if app.services.streams.responsive(period / 3).await {
            drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog]));
        }
    }
}

/// Has certificates read again at every SIGHUP; never ends otherwise.
async fn hang_ups(app: &App, hang_up: &mut Signal) {
    while hang_up.recv().await.is_some() {
        info!("SIGHUP: looking at the certificates");
        app.reload().await;
    }
    std::future::pending::<()>().await;
}

/// SIGTERM and SIGINT, caught from here on.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves when one comes, with its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn on_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_WORKERS)
        .thread_name("sg-control")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(work).unwrap_or_else(|error| failed(&format!("{error:#}")));
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

fn bad_configuration(problems: &Problems) -> ExitCode {
    drop(writeln!(std::io::stderr(), "{problems}\n{} problem(s); nothing was started.", problems.0.len()));
    ExitCode::from(2)
}

fn failed(why: &str) -> ExitCode {
    drop(writeln!(std::io::stderr(), "sluicegate: {why}"));
    ExitCode::FAILURE
}

fn say(text: &str) -> ExitCode {
    // A closed pipe (`| head`) is the reader's wish.
    drop(std::io::stdout().write_all(text.as_bytes()));
    ExitCode::SUCCESS
}
