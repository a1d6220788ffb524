//! Every figure the gateway counts: one table, plain methods to count with, and the text that `/metrics` answers.
//!
//! Inside: the table [`TABLE`] (name, kind, labels, help; `table.rs`), the handle [`Metrics`] that every part gets a clone of, and
//! the samplers that read figures from their owners when somebody asks. Must not be in here: what a figure means for
//! the part that counts it; names of protocols, adapters or upstreams (they are labels).

mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use device_models::Class;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use self::table::{Figure, Kind, Row, TABLE};

/// Label sets one figure may have. What comes after is counted under the label value `other`: a peer that invents names
/// must not grow the gateway's memory.
pub const SERIES_MAX: usize = 512;

/// Bytes of a label value; the rest is cut off.
pub const LABEL_LEN_MAX: usize = 128;

/// What stands before every name.
pub const PREFIX: &str = "sluicegate";

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the histogram's buckets, seconds.
const BUCKETS_SECONDS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// The handle every part counts with. Cheap to clone; all clones share the figures.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

/// One figure's value at the moment it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub figure: Figure,
    /// In the order of the row's labels.
    pub labels: Vec<String>,
    pub value: f64,
}

/// What the reference consumer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    pub messages: u64,
    pub missing: u64,
    pub duplicates: u64,
}

impl Sample {
    pub fn new(figure: Figure, labels: &[&str], value: f64) -> Self {
        Self { figure, labels: labels.iter().map(|l| cut(l).to_owned()).collect(), value }
    }
}

// === impl Metrics ===

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let series = TABLE.iter().map(|row| Series::register(row, &mut registry)).collect();
        let samplers = Samplers::default();
        registry.register_collector(Box::new(samplers.clone()));
        Self { inner: Arc::new(Inner { registry, series, samplers }) }
    }

    /// A report was taken in.
    pub fn received(&self, adapter: &str) {
        self.add(Figure::MessagesReceived, &[adapter], 1);
    }

    /// Property values were taken in, with this quality.
    pub fn points(&self, adapter: &str, quality: &str, count: u64) {
        self.add(Figure::Points, &[adapter, quality], count);
    }

    /// Property values were held back by rules of the edge.
    pub fn held(&self, adapter: &str, count: u32) {
        if count > 0 {
            self.add(Figure::Held, &[adapter], u64::from(count));
        }
    }

    /// A report was refused. `reason` is one of few words, not a text with names in it.
    pub fn refused(&self, adapter: &str, reason: &str) {
        self.add(Figure::Refused, &[adapter, reason], 1);
    }

    /// A peer departed from its protocol.
    pub fn fault(&self, adapter: &str, protocol: &str) {
        self.add(Figure::Faults, &[adapter, protocol], 1);
    }

    pub fn connected(&self, adapter: &str) {
        self.change(Figure::Connections, &[adapter], 1.0);
    }

    pub fn disconnected(&self, adapter: &str) {
        self.change(Figure::Connections, &[adapter], -1.0);
    }

    /// A connection was turned away. `reason` is one of few words.
    pub fn connection_refused(&self, adapter: &str, reason: &str) {
        self.add(Figure::ConnectionsRefused, &[adapter, reason], 1);
    }

    /// Whether a pulled camera plays.
    pub fn pull_up(&self, stream: &str, up: bool) {
        self.set(Figure::PullUp, &[stream], f64::from(u8::from(up)));
    }

    /// Packets of a pulled camera did not come.
    pub fn pull_lost(&self, stream: &str, count: u64) {
        if count > 0 {
            self.add(Figure::PullLost, &[stream], count);
        }
    }

    pub fn pull_failed(&self, stream: &str) {
        self.add(Figure::PullFailures, &[stream], 1);
    }

    /// A packet of a stream found its socket full.
    pub fn packet_lost(&self, adapter: &str) {
        self.add(Figure::PacketsLost, &[adapter], 1);
    }

    pub fn packets_missing(&self, adapter: &str, count: u64) {
        self.add(Figure::PacketsMissing, &[adapter], count);
    }

    pub fn bytes_in(&self, adapter: &str, bytes: u64) {
        self.add(Figure::BytesIn, &[adapter], bytes);
    }

    pub fn bytes_out(&self, adapter: &str, bytes: u64) {
        self.add(Figure::BytesOut, &[adapter], bytes);
    }

    /// Messages were given up (cap, ttl, corrupt, oversize, disk full).
    pub fn dropped(&self, reason: &str, count: u64) {
        self.add(Figure::Dropped, &[reason], count);
    }

    /// An upstream does not get messages that the others may get.
    pub fn upstream_dropped(&self, upstream: &str, reason: &str, count: u64) {
        self.add(Figure::UpstreamDropped, &[upstream, reason], count);
        self.dropped(reason, count);
    }

    /// An upstream's dialect has no words for something. `reason` is one of few words.
    pub fn left_out(&self, upstream: &str, reason: &str, count: u64) {
        self.add(Figure::LeftOut, &[upstream, reason], count);
    }

    /// A batch of messages was written to disk and made durable.
    pub fn committed(&self, took: Duration) {
        self.observe(Figure::StoreCommit, &[], took);
    }

    /// A command ended. `result` is one of few words: `ok`, `offline`, `silent`, ….
    pub fn command(&self, result: &str, took: Duration) {
        self.add(Figure::Commands, &[result], 1);
        self.observe(Figure::CommandSeconds, &[result], took);
    }

    pub fn link(&self, upstream: &str, up: bool) {
        self.set(Figure::LinkUp, &[upstream], if up { 1.0 } else { 0.0 });
    }

    pub fn link_failed(&self, upstream: &str) {
        self.add(Figure::LinkFailures, &[upstream], 1);
    }

    pub fn backlog(&self, upstream: &str, class: Class, messages: u64) {
        self.set(Figure::Backlog, &[upstream, class.topic()], messages as f64);
    }

    pub fn acked(&self, upstream: &str, class: Class, seq: u64) {
        self.set(Figure::AckedSeq, &[upstream, class.topic()], seq as f64);
    }

    /// Messages acknowledged by the upstream, and the payload bytes they took.
    pub fn sent(&self, upstream: &str, messages: u64, bytes: u64) {
        self.add(Figure::MessagesSent, &[upstream], messages);
        self.add(Figure::UpstreamBytes, &[upstream], bytes);
    }

    /// A pinned thread's last second: the part it worked (0 to 1) and the longest wait of its loop.
    pub fn thread(&self, thread: &str, busy: f64, lag: Duration) {
        self.set(Figure::ThreadBusy, &[thread], busy);
        self.set(Figure::ThreadLag, &[thread], lag.as_secs_f64());
    }

    /// Adds to a counter; does nothing to a figure of another kind.
    pub fn add(&self, figure: Figure, labels: &[&str], count: u64) {
        if let Some(Series::Counter(counter)) = self.inner.series(figure) {
            counter.with(figure, labels, |c| {
                c.inc_by(count);
            });
        }
    }

    /// Sets a gauge; does nothing to a figure of another kind.
    pub fn set(&self, figure: Figure, labels: &[&str], value: f64) {
        if let Some(Series::Gauge(gauge)) = self.inner.series(figure) {
            gauge.with(figure, labels, |g| {
                g.set(value);
            });
        }
    }

    /// Changes a gauge by so much; does nothing to a figure of another kind.
    pub fn change(&self, figure: Figure, labels: &[&str], by: f64) {
        if let Some(Series::Gauge(gauge)) = self.inner.series(figure) {
            gauge.with(figure, labels, |g| {
                g.inc_by(by);
            });
        }
    }

    /// Adds a duration to a histogram; does nothing to a figure of another kind.
    pub fn observe(&self, figure: Figure, labels: &[&str], took: Duration) {
        if let Some(Series::Histogram(histogram)) = self.inner.series(figure) {
            histogram.with(figure, labels, |h| h.observe(took.as_secs_f64()));
        }
    }

    /// Has figures read from their owner whenever somebody asks. The sampler must be quick and must not block.
    pub fn sample(&self, sampler: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        self.inner.samplers.all.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(sampler));
    }

    /// What the reference consumer in this process has; `None` where there is none.
    pub fn consumer(&self) -> Option<Consumer> {
        let samples = self.inner.samplers.read();
        let value = |figure| samples.iter().find(|s| s.figure == figure).map(|s| s.value as u64);
        Some(Consumer {
            messages: value(Figure::ConsumerReceived)?,
            missing: value(Figure::ConsumerMissing)?,
            duplicates: value(Figure::ConsumerDuplicates)?,
        })
    }

    /// All figures as OpenMetrics text; see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(8 * 1024);
        // Writing into a String cannot fail; a sampler's figure that cannot be encoded ends the text early.
        if prometheus_client::encoding::text::encode(&mut text, &self.inner.registry).is_err() {
            tracing::warn!("the metrics could not be written to their end");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("figures", &TABLE.len()).finish_non_exhaustive()
    }
}

// === the figures kept here ===

struct Inner {
    registry: Registry,
    /// One a row, in the table's order.
    series: Vec<Series>,
    samplers: Samplers,
}

type LabelSet = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;

enum Series {
    Counter(Labelled<Counter>),
    Gauge(Labelled<FloatGauge>),
    Histogram(Labelled<Histogram, fn() -> Histogram>),
    Sampled,
}

struct Labelled<M, C = fn() -> M> {
    family: Family<LabelSet, M, C>,
    count: AtomicUsize,
}

impl Inner {
    fn series(&self, figure: Figure) -> Option<&Series> {
        self.series.get(figure as usize)
    }
}

impl Series {
    fn register(row: &Row, registry: &mut Registry) -> Self {
        match row.kind {
            Kind::Counter => Self::Counter(Labelled::register(row, registry, Counter::default)),
            Kind::Gauge => Self::Gauge(Labelled::register(row, registry, FloatGauge::default)),
            Kind::Histogram => Self::Histogram(Labelled::register(row, registry, || Histogram::new(BUCKETS_SECONDS))),
            Kind::SampledCounter | Kind::SampledGauge => Self::Sampled,
        }
    }
}

impl<M> Labelled<M>
where
    M: Clone + fmt::Debug + Send + Sync + EncodeMetric + prometheus_client::metrics::TypedMetric + 'static,
{
    fn register(row: &Row, registry: &mut Registry, make: fn() -> M) -> Self {
        let family: Family<LabelSet, M, fn() -> M> = Family::new_with_constructor(make);
        registry.register(row.plain_name(), row.help, family.clone());
        if row.labels.is_empty() {
            // A figure without labels is there from the start, as 0.
            drop(family.get_or_create(&LabelSet::new()));
        }
        Self { family, count: AtomicUsize::new(0) }
    }

    fn with(&self, figure: Figure, labels: &[&str], work: impl FnOnce(&M)) {
        let set = label_set(figure, labels);
        if let Some(metric) = self.family.get(&set) {
            return work(&metric);
        }
        // Two callers may both be first with a name: the count is then one too high, never too low.
        if self.count.fetch_add(1, Ordering::Relaxed) < SERIES_MAX {
            work(&self.family.get_or_create(&set));
        } else {
            let other = set.into_iter().map(|(name, _)| (name, "other".to_owned())).collect();
            work(&self.family.get_or_create(&other));
        }
    }
}

fn label_set(figure: Figure, values: &[&str]) -> LabelSet {
    let names = TABLE.get(figure as usize).map_or(&[][..], |row| row.labels);
    debug_assert_eq!(names.len(), values.len(), "{figure:?} has other labels");
    names.iter().zip(values).map(|(name, value)| (*name, cut(value).to_owned())).collect()
}

fn cut(value: &str) -> &str {
    let mut end = value.len().min(LABEL_LEN_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value.get(..end).unwrap_or_default()
}

// === the figures kept by their owners ===

type Sampler = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

#[derive(Clone, Default)]
struct Samplers {
    all: Arc<RwLock<Vec<Sampler>>>,
}

impl Samplers {
    fn read(&self) -> Vec<Sample> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).iter().flat_map(|sampler| sampler()).collect()
    }
}

impl fmt::Debug for Samplers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Samplers")
    }
}

impl Collector for Samplers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let samples = self.read();
        for row in TABLE.iter().filter(|row| matches!(row.kind, Kind::SampledCounter | Kind::SampledGauge)) {
            let mut of_row = samples.iter().filter(|sample| sample.figure == row.figure).take(SERIES_MAX).peekable();
            if of_row.peek().is_none() {
                continue;
            }
            let counter = row.kind == Kind::SampledCounter;
            let kind = if counter { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(row.plain_name(), row.help, None, kind)?;
            for sample in of_row {
                let labels: LabelSet = row.labels.iter().copied().zip(sample.labels.iter().cloned()).collect();
                let encoder = metric.encode_family(&labels)?;
                if counter {
                    ConstCounter::new(sample.value).encode(encoder)?;
                } else {
                    ConstGauge::new(sample.value).encode(encoder)?;
                }
            }
        }
        Ok(())
    }
}
