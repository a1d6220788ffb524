//! What is logged, where to, and how much of it: a peer that provokes a line a packet must not fill the journal.
//!
//! Each place in the code that logs may write so many lines a second; what is beyond is counted and said with the next line
//! of that place. Errors and warnings are held to it as everything else: the first ones of a flood say what there is to say.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{DefaultFields, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines of one place in the code within a [`SPAN`]: a site that restarts says all of it, a flood is cut short.
const LINES_MAX: u32 = 50;
const SPAN: Duration = Duration::from_secs(1);

/// Logs go to the standard error; under systemd without time and colour, which the journal has.
pub(super) fn start(filter: &str, quiet_by_default: bool) {
    let filter = if quiet_by_default && filter == "info" { "warn" } else { filter };
    let filter: Targets = filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    // The one opens a span for every message: most of its cost, and nothing for an operator in it. What the other says, a
    // line a connection, the upstream says once.
    let filter = filter.with_target("rumqttd", LevelFilter::OFF).with_target("rskafka", LevelFilter::OFF);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let format = Format::default().with_target(true);
    let log = if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with_ansi(false).event_format(Limited::new(format.without_time())).boxed()
    } else {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        log.with_ansi(terminal).event_format(Limited::new(format)).boxed()
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}

/// A format that leaves out what is too much.
struct Limited<F> {
    format: F,
    places: Mutex<HashMap<Identifier, Place>>,
}

/// What one place in the code wrote lately. There are as many as places: a few hundred.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    since: Option<Instant>,
    lines: u32,
    held_back: u64,
}

impl Place {
    /// Whether one more line may be written now; how many were held back before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= SPAN) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES_MAX {
            self.held_back += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

impl<F> Limited<F> {
    fn new(format: F) -> Self {
        Self { format, places: Mutex::default() }
    }
}

impl<S, F> FormatEvent<S, DefaultFields> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: FormatEvent<S, DefaultFields>,
    DefaultFields: for<'writer> FormatFields<'writer>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // Who asks for debug lines wants them all.
        if *metadata.level() <= Level::INFO {
            // A thread that panicked in here leaves counts behind, not a broken invariant.
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(held_back) = places.entry(metadata.callsite()).or_default().admit(Instant::now()) else {
                return Ok(());
            };
            drop(places);
            if held_back > 0 {
                let target = metadata.target();
                writeln!(writer, "{target}: {held_back} lines like the next one were held back")?;
            }
        }
        self.format.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_short_and_said() {
        let mut place = Place::default();
        let start = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(place.admit(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(place.admit(start + SPAN / 2), None);
        }
        assert_eq!(place.admit(start + SPAN), Some(1000));
        assert_eq!(place.admit(start + SPAN), Some(0));
    }
}
