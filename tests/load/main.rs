//! The load client: puts the gateway, its peers and a bare floor under the same load in the same run, and prints what each
//! of them took. Figures of one run compare with each other; figures of two runs do not.
//!
//!     cargo build --release -p gateway --bin sluicegate -p sluicegate-tests --bin load
//!     target/release/load streams --help
//!     target/release/load publishers
//!     target/release/load mqtt --help
//!     target/release/load idle
//!     target/release/load drain
//!     target/release/load wear --help
//!     target/release/load rules
//!     target/release/load process --help
//!
//! CPU is what the kernel accounts to the server's process (`/proc/PID/stat`), memory its `VmRSS`. Everything is on
//! loopback and on the same cores as the client: the receiver's share of the network stack is charged to the sender.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program for the terminal, with two threads of its own"
)]

mod drain;
mod mqtt;
mod process;
mod steady;
mod streams;
mod table;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "load", about = "Puts the gateway and its peers under the same load and prints a table")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One camera, many viewers: gateway, nginx-rtmp and the floor.
    Streams(streams::Plan),
    /// Thousands of viewers of a camera that shows next to nothing: memory.
    IdleViewers(streams::IdlePlan),
    /// Many cameras, no viewers: gateway and nginx-rtmp. Half a minute a server.
    Publishers(streams::IngestPlan),
    /// A few cameras with a few viewers each. Half a minute a server and container.
    Channels(streams::ChannelsPlan),
    /// Connect, publish, play, leave, thousands of times: what is left behind.
    Sessions(streams::SessionsPlan),
    /// Thousands of viewers within a second.
    Storm(streams::StormPlan),
    /// Memory of a stream, unwatched, and in one and two containers: the gateway alone.
    Sources(streams::SourcesPlan),
    /// Many devices at QoS 1, forwarded to a second broker: gateway and a bridging mosquitto.
    Mqtt(mqtt::Plan),
    /// Nothing to do, and connections with nothing to say: gateway and mosquitto.
    Idle(mqtt::IdlePlan),
    /// A backlog that goes upstream: the gateway alone.
    Drain(drain::Plan),
    /// One device alone at 1 Hz: what the disk gets for each report. The gateway alone.
    Wear(steady::WearPlan),
    /// 100,000 points a second under rules and without: the gateway alone.
    Rules(steady::RulesPlan),
    /// What a running process takes while others load it: viewers over TLS, browsers, recordings.
    Process(process::Plan),
    /// The floor itself: a bare epoll loop that writes one shared buffer to HTTP-FLV viewers.
    Floor(streams::FloorPlan),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    process::raise_descriptor_limit()?;
    let table = match arguments.command {
        Command::Streams(plan) => streams::run(&plan)?,
        Command::IdleViewers(plan) => streams::run_idle(&plan)?,
        Command::Publishers(plan) => streams::run_ingest(&plan)?,
        Command::Channels(plan) => streams::run_channels(&plan)?,
        Command::Sessions(plan) => streams::run_sessions(&plan)?,
        Command::Storm(plan) => streams::run_storm(&plan)?,
        Command::Sources(plan) => streams::run_sources(&plan)?,
        Command::Mqtt(plan) => mqtt::run(&plan)?,
        Command::Drain(plan) => drain::run(&plan)?,
        Command::Wear(plan) => steady::run_wear(&plan)?,
        Command::Rules(plan) => steady::run_rules(&plan)?,
        Command::Idle(plan) => mqtt::run_idle(&plan)?,
        Command::Process(plan) => process::run(&plan)?,
        Command::Floor(plan) => return streams::floor(&plan),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&table.json())?);
    } else {
        print!("{table}");
    }
    Ok(())
}
