//! `sluicegate store`: look into the messages on disk, write them out, give them up.
//!
//! `stat`, `inspect`, `export` and a `repair` without `--yes` only read files and work beside a running gateway; `purge` and
//! a `repair` that mends need it stopped.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use device_models::Class;
use device_models::wire::{decode_record, message_json, time_text};
use serde_json::{Value, json};

use super::ConfigArgs;
use crate::bus::{Bus, BusError, Checkup, CursorSurvey, Stored, Survey};
use crate::config::{self, load, problem::Problems};

/// Least time between two words about progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Most records that one `inspect` shows: more are for `export`.
const SHOWN_MAX: usize = 10_000;

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The state folder itself, instead of the one that the configuration names.
    #[arg(long, global = true, value_name = "FOLDER")]
    path: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what is kept: files, bytes, numbers and age of each class. Reads only; the gateway may run.
    Stat {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show records, decoded: the newest ones, or those from a number on. Reads only; the gateway may run.
    Inspect {
        /// Of this class only; without it, of each.
        #[arg(long, value_enum)]
        class: Option<ClassName>,
        /// So many of a class, up to 10000.
        #[arg(long, short = 'n', default_value_t = 20, value_name = "RECORDS")]
        count: usize,
        /// From this number on, instead of the newest.
        #[arg(long, value_name = "SEQ", requires = "class")]
        from: Option<u64>,
        /// As JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// Write all records as JSON lines to a new file. Reads only; the gateway may run.
    Export {
        /// The file to make; `-` is the standard output.
        file: PathBuf,
        #[arg(long, value_enum)]
        class: Option<ClassName>,
    },
    /// Check every file from end to end. With --yes: keep damaged ones aside, write them anew with what is whole, restore the
    /// keyed state, and tell every upstream what is gone; the gateway must be stopped. Exit code 1: damage was found.
    Repair {
        /// Yes, mend it.
        #[arg(long)]
        yes: bool,
    },
    /// Give up all messages kept, forwarded or not; gap records tell every upstream. The gateway must be stopped.
    Purge {
        #[arg(long, value_enum)]
        class: Option<ClassName>,
        /// Yes, give them up.
        #[arg(long)]
        yes: bool,
    },
}

/// A class as the configuration spells it.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClassName {
    Control,
    Event,
    Live,
    Historical,
}

/// Where decoded records go.
struct Lines<'a> {
    out: &'a mut dyn Write,
    epoch: u64,
    json: bool,
    count: u64,
    /// The reader has closed the pipe, or the disk is full.
    failed: Option<std::io::Error>,
}

// === impl StoreArgs ===

impl StoreArgs {
    /// The store's settings. A configuration that is wrong elsewhere does not matter here.
    pub(super) fn settings(&self) -> Result<config::Store, Problems> {
        match &self.path {
            Some(path) => Ok(config::Store { path: path.clone(), ..config::Store::default() }),
            None => Ok(load::load(&self.config.config)?.config.store),
        }
    }

    pub(super) async fn run(self, store: config::Store) -> anyhow::Result<ExitCode> {
        let path = &store.path;
        match self.verb {
            Verb::Stat { json } => stat(path, json),
            Verb::Inspect { class, count, from, json } => inspect(path, class, count.min(SHOWN_MAX), from, json),
            Verb::Export { file, class } => export(path, &file, class),
            Verb::Repair { yes: false } => check(path),
            Verb::Repair { yes: true } => repair(&store).await,
            Verb::Purge { class, yes: true } => purge(&store, class).await,
            Verb::Purge { yes: false, .. } => {
                let mut errors = std::io::stderr();
                writeln!(errors, "sluicegate: this gives up all messages in {}: say --yes", path.display())?;
                Ok(ExitCode::from(2))
            }
        }
    }
}

// === impl ClassName ===

impl ClassName {
    const fn class(self) -> Class {
        match self {
            Self::Control => Class::Control,
            Self::Event => Class::Event,
            Self::Live => Class::Live,
            Self::Historical => Class::Historical,
        }
    }

    fn all(of: Option<Self>) -> Vec<Class> {
        of.map_or_else(|| Class::ALL.to_vec(), |name| vec![name.class()])
    }
}

// === verbs ===

fn open(path: &Path) -> anyhow::Result<Survey> {
    Ok(Survey::open(path)?)
}

fn stat(path: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let survey = open(path)?;
    let classes: Vec<_> = Class::ALL.into_iter().map(|class| survey.class(class)).collect::<Result<_, BusError>>()?;
    let epoch = survey.epoch.map(|epoch| format!("{epoch:016x}"));
    let begun = |at: Option<i64>| at.map(time_text);
    let cursors = survey.cursors();
    let mut out = std::io::stdout().lock();
    if json {
        let classes = classes.iter().map(|c| {
            let range = (c.last >= c.first).then_some((c.first, c.last));
            let one = json!({ "segments": c.segments, "bytes": c.bytes, "first": range.map(|r| r.0),
                "last": range.map(|r| r.1), "begun": begun(c.begun_us) });
            (c.class.topic().to_owned(), one)
        });
        let classes: serde_json::Map<String, Value> = classes.collect();
        let noted = cursors.as_ref().map(|(noted, _)| time_text(micros(*noted)));
        let cursors: serde_json::Map<String, Value> =
            cursors.iter().flat_map(|(_, all)| all).map(cursor_json).collect();
        let all = json!({ "path": path, "epoch": epoch, "in_use": survey.held, "bytes": survey.bytes(),
            "free_bytes": survey.free_bytes, "set_aside": survey.aside, "classes": classes,
            "cursors": cursors, "cursors_noted": noted });
        return told(writeln!(out, "{all}"));
    }
    let epoch = epoch.unwrap_or_else(|| "unknown".to_owned());
    let used = if survey.held { "in use by a gateway" } else { "not in use" };
    let (kib, free) = (survey.bytes() / 1024, survey.free_bytes / 1_048_576);
    let mut text = format!("{}: epoch {epoch}, {used}\n{kib} KiB of messages, {free} MiB free\n\n", path.display());
    text.push_str("class   files      KiB   first    last  since\n");
    for c in classes {
        let (first, last) =
            if c.last < c.first { ("-".into(), "-".into()) } else { (c.first.to_string(), c.last.to_string()) };
        let since = begun(c.begun_us).unwrap_or_else(|| "-".to_owned());
        let (class, kib) = (c.class.topic(), c.bytes / 1024);
        let line = format!("{class:<7} {:>5} {kib:>8} {first:>7} {last:>7}  {since}\n", c.segments);
        text.push_str(&line);
    }
    if let Some((noted, cursors)) = &cursors {
        text.push_str("\ncursors as noted at ");
        text.push_str(&time_text(micros(*noted)));
        text.push('\n');
        for cursor in cursors {
            text.push_str(&cursor_line(cursor));
        }
    }
    for file in &survey.aside {
        text.push_str("set aside: ");
        text.push_str(&file.display().to_string());
        text.push('\n');
    }
    told(out.write_all(text.as_bytes()))
}

fn micros(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

fn cursor_json(cursor: &CursorSurvey) -> (String, Value) {
    let classes = Class::ALL.into_iter().zip(cursor.through).zip(&cursor.beyond);
    let classes = classes
        .map(|((class, through), beyond)| (class.topic().to_owned(), json!({ "through": through, "beyond": beyond })));
    (cursor.name.clone(), Value::Object(classes.collect()))
}

/// `NAME  ctl 3, event 0, live 1 and 51-60, hist 0`: everything up to the first number is done, and what stands behind it.
fn cursor_line(cursor: &CursorSurvey) -> String {
    let classes = Class::ALL.into_iter().zip(cursor.through).zip(&cursor.beyond).map(|((class, through), beyond)| {
        let beyond: Vec<_> = beyond.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        let and = if beyond.is_empty() { "" } else { " and " };
        format!("{} {through}{and}{}", class.topic(), beyond.join(" "))
    });
    format!("{}  {}\n", cursor.name, classes.collect::<Vec<_>>().join(", "))
}

fn inspect(
    path: &Path,
    class: Option<ClassName>,
    count: usize,
    from: Option<u64>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let survey = open(path)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut lines = Lines { out: &mut out, epoch: survey.epoch.unwrap_or(0), json, count: 0, failed: None };
    for class in ClassName::all(class) {
        let start = match from {
            Some(from) => from,
            None => survey.newest(class, count)?,
        };
        let mut left = count;
        let mut each = |stored: Stored<'_>| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            lines.line(class, stored)
        };
        survey.scan(class, start, &mut each, &mut |_| {})?;
    }
    let failed = lines.failed.take();
    told(failed.map_or(Ok(()), Err).and_then(|()| out.flush()))
}

fn export(path: &Path, file: &Path, class: Option<ClassName>) -> anyhow::Result<ExitCode> {
    let survey = open(path)?;
    let to_stdout = file == Path::new("-");
    let naming = || format!("cannot write {}", file.display());
    let target: Box<dyn Write> = if to_stdout {
        Box::new(std::io::stdout().lock())
    } else {
        // Never over what is there.
        Box::new(File::options().write(true).create_new(true).open(file).with_context(naming)?)
    };
    let mut out = BufWriter::new(target);
    let mut lines = Lines { out: &mut out, epoch: survey.epoch.unwrap_or(0), json: true, count: 0, failed: None };
    let mut progress = progress(survey.bytes());
    let classes = ClassName::all(class);
    for class in &classes {
        survey.scan(*class, 1, &mut |stored| lines.line(*class, stored), &mut progress)?;
        if lines.failed.is_some() {
            break;
        }
    }
    let (count, failed) = (lines.count, lines.failed.take());
    let written = failed.map_or(Ok(()), Err).and_then(|()| out.flush());
    match written {
        Err(error) if to_stdout && error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        other => other.with_context(naming)?,
    }
    drop(writeln!(std::io::stderr(), "{count} records of {} classes written to {}", classes.len(), file.display()));
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    let survey = open(path)?;
    let checkup = survey.check(&mut progress(survey.bytes()))?;
    told(std::io::stdout().write_all(checkup_text(&checkup).as_bytes()))?;
    if checkup.damages.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    drop(writeln!(std::io::stderr(), "sluicegate: nothing was changed: stop the gateway and say --yes to mend it"));
    Ok(ExitCode::FAILURE)
}

async fn repair(store: &config::Store) -> anyhow::Result<ExitCode> {
    let bytes = open(&store.path)?.bytes();
    let repaired = Bus::repair(store, &mut progress(bytes)).await.map_err(in_use)?;
    let mut text = checkup_text(&repaired.checkup);
    for finding in &repaired.findings {
        text.push_str("repaired: ");
        text.push_str(&finding.text);
        text.push('\n');
    }
    let files = repaired.checkup.damages.len();
    let last = format!("{files} files mended, {} lost messages will be named upstream\n", repaired.told);
    text.push_str(&last);
    told(std::io::stdout().write_all(text.as_bytes()))
}

/// One line for each damaged file, and the sum.
fn checkup_text(checkup: &Checkup) -> String {
    let mut text = String::new();
    for damage in &checkup.damages {
        let lost: Vec<String> = damage.lost.iter().map(|(first, last)| format!("{first} to {last}")).collect();
        let lost = if lost.is_empty() { "nothing lost".to_owned() } else { format!("lost {}", lost.join(", ")) };
        let line = format!("damaged: {}: {} {lost}\n", damage.file.display(), damage.class.topic());
        text.push_str(&line);
    }
    let rescue = match checkup.rescue_entries {
        Some(entries) => format!("{entries} whole entries in the rescue copy of the keyed state"),
        None => "no rescue copy of the keyed state".to_owned(),
    };
    let (files, records, lost) = (checkup.files, checkup.records, checkup.lost());
    let last = format!("{files} files checked: {records} messages whole, {lost} lost; {rescue}\n");
    text.push_str(&last);
    text
}

/// Says how far a long read has come, at most once a second.
fn progress(all: u64) -> impl FnMut(u64) {
    let (mut done, mut said) = (0, Instant::now());
    move |bytes| {
        done += bytes;
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            progress_line(done, all);
        }
    }
}

fn in_use(error: BusError) -> anyhow::Error {
    match error {
        BusError::Locked { path } => anyhow::anyhow!("{} is in use: stop the gateway first", path.display()),
        error => error.into(),
    }
}

async fn purge(store: &config::Store, class: Option<ClassName>) -> anyhow::Result<ExitCode> {
    if !store.path.join("log").is_dir() {
        bail!("there is no store in {}", store.path.display());
    }
    let (bus, findings) = Bus::open(store).map_err(in_use)?;
    for finding in findings {
        drop(writeln!(std::io::stderr(), "repaired: {}", finding.text));
    }
    let gone = bus.purge(&ClassName::all(class)).await;
    bus.close().await;
    let gone = gone?;
    told(writeln!(std::io::stdout(), "{gone} messages given up in {}", store.path.display()))
}

/// What became of the last words: a closed pipe (`| head`) is the reader's wish.
fn told(written: std::io::Result<()>) -> anyhow::Result<ExitCode> {
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write the output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn progress_line(done: u64, all: u64) {
    let (done, all) = (done / 1_048_576, all / 1_048_576);
    drop(writeln!(std::io::stderr(), "{done} of {all} MiB read"));
}

// === impl Lines ===

impl Lines<'_> {
    fn line(&mut self, class: Class, stored: Stored<'_>) -> ControlFlow<()> {
        let text = if self.json { self.json(class, stored).to_string() } else { plain(class, stored) };
        match writeln!(self.out, "{text}") {
            Ok(()) => {
                self.count += u64::from(matches!(stored, Stored::Record { .. }));
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// The message with its place in front: `epoch`, `class`, `seq`. What is not there has `missing` instead.
    fn json(&self, class: Class, stored: Stored<'_>) -> Value {
        let epoch = format!("{:016x}", self.epoch);
        let class = class.topic();
        match stored {
            Stored::Record { seq, template, bytes } => {
                let mut object = match decode_record(bytes, template).map(|message| message_json(&message)) {
                    Ok(Value::Object(object)) => object,
                    Ok(_) => serde_json::Map::new(),
                    Err(error) => [("unreadable".to_owned(), json!(error.to_string()))].into_iter().collect(),
                };
                object.insert("epoch".to_owned(), json!(epoch));
                object.insert("class".to_owned(), json!(class));
                object.insert("seq".to_owned(), json!(seq));
                Value::Object(object)
            }
            Stored::Gap { first, last, reason } => {
                json!({ "epoch": epoch, "class": class, "missing": { "first": first, "last": last, "reason": reason } })
            }
        }
    }
}

/// One line for people: class, number, time, thing, and what it said.
fn plain(class: Class, stored: Stored<'_>) -> String {
    let class = class.topic();
    match stored {
        Stored::Gap { first, last, reason } => format!("{class:<5} {first} to {last} are missing: {reason}"),
        Stored::Record { seq, template, bytes } => match decode_record(bytes, template) {
            Ok(message) => {
                let said = message_json(&message);
                let parts = said.as_object().cloned().unwrap_or_default();
                let body: Vec<String> = parts
                    .iter()
                    .filter(|(key, _)| !["thing", "model", "time", "received"].contains(&key.as_str()))
                    .map(|(key, value)| format!("{key} {value}"))
                    .collect();
                let body = body.join(" ");
                format!("{class:<5} {seq:>8} {} {} {body}", time_text(message.time_us), message.thing)
            }
            Err(error) => format!("{class:<5} {seq:>8} unreadable: {error}"),
        },
    }
}
