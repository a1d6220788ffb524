//! What a process took so far, read from `/proc`.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::table::{Cell, Table};

/// A server that others put under load: browsers, curl, encoders.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Process to look at.
    #[arg(long)]
    pid: i32,
    /// For so long.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// What its CPU time is divided by: viewers, streams.
    #[arg(long, default_value_t = 1)]
    each: u32,
}

/// What the process takes while others load it.
pub(crate) fn run(plan: &Plan) -> anyhow::Result<Table> {
    let (before, began) = (run_time(plan.pid)?, Instant::now());
    std::thread::sleep(Duration::from_secs(plan.seconds));
    let cores = run_time(plan.pid)?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    let mut table = Table::new(&["pid", "s", "% of a core", "CPU µs/s each", "RSS MiB"]);
    table.note(
        "CPU: time on a processor of all its threads (/proc/PID/task/*/schedstat), the kernel's work for it included",
    );
    table.note(format!("{} s, divided by {}; memory: VmRSS at the end", plan.seconds, plan.each));
    table.row(vec![
        Cell::text(plan.pid.to_string()),
        Cell::Figure(plan.seconds as f64, 0),
        Cell::Figure(cores * 100.0, 2),
        Cell::Figure(cores * 1e6 / f64::from(plan.each.max(1)), 1),
        Cell::Figure(usage(plan.pid)?.rss_kib as f64 / 1024.0, 1),
    ]);
    Ok(table)
}

/// Time on a processor of all its threads that live, finer than ticks.
pub(crate) fn run_time(pid: i32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("no such process")? {
        // A thread may end while it is looked at.
        let told = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += told.split(' ').next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// A figure of one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// User and system time of all its threads, in ticks of the kernel (usually 10 ms).
    pub(crate) cpu: Duration,
    pub(crate) rss_kib: u64,
    /// Bytes it had written to block devices or would have (`write_bytes`).
    pub(crate) written: u64,
}

/// What a process and the kernel on its behalf have used.
pub(crate) fn usage(pid: i32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    // The second field is the name in brackets and may hold anything; count from its end.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
    let field = |n: usize| rest.split(' ').nth(n).and_then(|f| f.parse::<u64>().ok()).context("/proc/PID/stat");
    let ticks = field(11)? + field(12)?;
    let cpu = Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    // One that has ended and is not yet waited for has a status, but no memory.
    let rss_kib = figure(&status, "VmRSS:").context("the server has ended")?;
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    Ok(Usage { cpu, rss_kib, written: figure(&io, "write_bytes:").unwrap_or(0) })
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) rss_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: usize,
}

pub(crate) fn holding(pid: i32) -> anyhow::Result<Holding> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server is gone")?;
    let threads = figure(&status, "Threads:").context("Threads")?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Holding { rss_kib: figure(&status, "VmRSS:").context("VmRSS")?, threads, descriptors })
}

fn figure(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// As many sockets as the system gives, for the client and for the servers it starts.
pub(crate) fn raise_descriptor_limit() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("RLIMIT_NOFILE")
}

/// The value below which this part (0 to 1) of them lies. Sorts them.
pub(crate) fn quantile(values: &mut [f64], part: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get((last as f64 * part).round() as usize).copied()
}
