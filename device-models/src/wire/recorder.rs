//! Writing the log's property reports as rows behind templates.
//!
//! A template is made of the second report of its shape, so that what comes once costs nothing more, and anew when it has
//! paid for itself [`WORTH`] times over (values walk away from those they count from) or no longer fits. So damage to
//! one costs a bounded stretch of the log.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use prost::Message as _;

use super::columns::{self, F64, SCALED};
use super::generated as pb;
use super::message::encode_message;
use super::template::{LEANING, Record, Template};
use super::value::to_quality;
use crate::message::{Body, Message, Sample};

/// Bytes of rows behind a template, as a multiple of its own, after which a new one is made.
const WORTH: usize = 64;
/// Shapes known at a time, and columns of all of them together (about 50 bytes each).
const SHAPES_MAX: usize = 1024;
const COLUMNS_MAX: usize = 16 * 1024;
/// Records between two looks for shapes that are not seen any more.
const SWEEP_EVERY: u32 = 16 * 1024;
/// A longer template is not worth its frame.
const TEMPLATE_MAX: usize = 64 * 1024;

/// Turns messages into records. Remembers the shapes of reports it has seen.
#[derive(Debug, Default)]
pub struct Recorder {
    shapes: HashMap<u64, Shape>,
    /// Columns of all shapes.
    columns: usize,
    since_sweep: u32,
}

/// Reports of one model with the same properties in the same order.
#[derive(Debug)]
struct Shape {
    model: Arc<str>,
    columns: Vec<Column>,
    /// Since the last sweep.
    seen: bool,
    template: Option<Template>,
    time_us: i64,
    /// Bytes of rows behind the template, and of those what a better one would have saved.
    written: usize,
    wasted: usize,
}

#[derive(Debug)]
struct Column {
    alias: u32,
    name: Arc<str>,
    kind: u32,
    base: i64,
    /// The kind that would have fitted all values since the template.
    wanted: u32,
}

// === impl Recorder ===

impl Recorder {
    pub fn record(&mut self, message: &Message) -> Record {
        self.row(message).unwrap_or_else(|| Record { template: None, bytes: encode_message(message) })
    }

    fn row(&mut self, message: &Message) -> Option<Record> {
        let Body::Properties(samples) = &message.body else { return None };
        self.since_sweep = self.since_sweep.saturating_add(1);
        let key = key(&message.model, samples);
        if !self.shapes.contains_key(&key) {
            self.learn(key, message, samples);
            return None;
        }
        let shape = self.shapes.get_mut(&key).filter(|shape| shape.fits(&message.model, samples))?;
        shape.seen = true;
        if shape.is_spent() {
            shape.renew(message.time_us, samples);
        }
        let template = shape.template.clone().filter(|template| template.bytes.len() <= TEMPLATE_MAX)?;
        Some(Record { template: Some(template), bytes: shape.row(message, samples) })
    }

    /// Notes a shape, if there is room for one more.
    fn learn(&mut self, key: u64, message: &Message, samples: &[Sample]) {
        let full =
            |recorder: &Self| recorder.shapes.len() >= SHAPES_MAX || recorder.columns + samples.len() > COLUMNS_MAX;
        if full(self) && self.since_sweep >= SWEEP_EVERY {
            self.since_sweep = 0;
            self.shapes.retain(|_, shape| std::mem::take(&mut shape.seen));
            self.columns = self.shapes.values().map(|shape| shape.columns.len()).sum();
        }
        if samples.is_empty() || full(self) {
            return;
        }
        let column = |sample: &Sample| {
            let kind = columns::kind_of(&sample.value);
            Column { alias: sample.alias, name: Arc::clone(&sample.name), kind, base: 0, wanted: kind }
        };
        let shape = Shape {
            model: Arc::clone(&message.model),
            columns: samples.iter().map(column).collect(),
            seen: false,
            template: None,
            time_us: 0,
            written: 0,
            wasted: 0,
        };
        self.columns += samples.len();
        self.shapes.insert(key, shape);
    }
}

fn key(model: &str, samples: &[Sample]) -> u64 {
    let mut hasher = DefaultHasher::new();
    model.hash(&mut hasher);
    for sample in samples {
        (sample.alias, &sample.name).hash(&mut hasher);
    }
    hasher.finish()
}

// === impl Shape ===

impl Shape {
    fn fits(&self, model: &str, samples: &[Sample]) -> bool {
        let same = |(column, sample): (&Column, &Sample)| column.alias == sample.alias && column.name == sample.name;
        *self.model == *model && self.columns.len() == samples.len() && self.columns.iter().zip(samples).all(same)
    }

    fn is_spent(&self) -> bool {
        let len = self.template.as_ref().map_or(0, |template| template.bytes.len());
        self.written >= len.saturating_mul(WORTH) || self.wasted > len
    }

    fn renew(&mut self, time_us: i64, samples: &[Sample]) {
        let mut template = pb::Template { model: self.model.as_ref().to_owned(), time_us, ..pb::Template::default() };
        for (column, sample) in self.columns.iter_mut().zip(samples) {
            let wanted = merge(column.wanted, columns::kind_of(&sample.value));
            (column.kind, column.wanted) = (wanted, wanted);
            column.base = columns::integer_of(wanted, &sample.value).unwrap_or(0);
            template.alias.push(column.alias);
            template.name.push(column.name.as_ref().to_owned());
            template.kind.push(column.kind);
            template.base.push(column.base);
        }
        self.template = Some(Template::new(&template));
        (self.time_us, self.written, self.wasted) = (time_us, 0, 0);
    }

    fn row(&mut self, message: &Message, samples: &[Sample]) -> Vec<u8> {
        let mut row = pb::Row {
            thing: message.thing.as_ref().to_owned(),
            dt_us: message.time_us.wrapping_sub(self.time_us),
            late_us: message.received_us.wrapping_sub(message.time_us),
            ints: Vec::with_capacity(samples.len()),
            ..pb::Row::default()
        };
        for ((index, column), sample) in (0u32..).zip(&mut self.columns).zip(samples) {
            if !columns::write_one(column.kind, column.base, &sample.value, &mut row) {
                let kind = columns::kind_of(&sample.value);
                columns::write_one(kind, 0, &sample.value, &mut row);
                row.kind.extend([index, kind]);
                column.wanted = merge(column.wanted, kind);
                self.wasted += 4;
            }
            let quality = to_quality(sample.quality);
            match row.quality.as_mut_slice() {
                [.., last, length] if *last == quality => *length += 1,
                _ => row.quality.extend([quality, 1]),
            }
        }
        if let [0, _] = row.quality.as_slice() {
            row.quality.clear();
        }
        let mut bytes = Vec::with_capacity(1 + row.encoded_len());
        bytes.push(LEANING);
        // Into a Vec it cannot fail: the only error is a full buffer.
        row.encode_raw(&mut bytes);
        self.written += bytes.len();
        bytes
    }
}

/// A kind that fits values of both, as far as there is one.
fn merge(old: u32, new: u32) -> u32 {
    match (old, new) {
        (old, new) if old == new => old,
        (old, new) if old >= SCALED && new >= SCALED => old.max(new),
        (old, new) if columns::is_float(old) && columns::is_float(new) => F64,
        (_, new) => new,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Quality;
    use crate::value::Value;
    use crate::wire::RecordReader;
    use crate::wire::tests::{message, same};

    /// Writes all, reads all, and gives the bytes of all records and of each template once.
    fn there_and_back(messages: &[Message]) -> usize {
        let (mut recorder, mut reader) = (Recorder::default(), RecordReader::default());
        let mut bytes = 0;
        let mut known = std::collections::HashSet::new();
        for message in messages {
            let record = recorder.record(message);
            bytes += record.bytes.len();
            if let Some(template) = &record.template {
                bytes += if known.insert(template.label) { template.bytes.len() } else { 8 };
            }
            let back = reader.read(&record.bytes, record.template.as_ref()).unwrap();
            assert!(same(message, &back), "{message:?} became {back:?}");
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_message_comes_back(messages in prop::collection::vec(message(), 1..40), again in 1usize..4) {
            there_and_back(&messages.iter().flat_map(|message| vec![message.clone(); again]).collect::<Vec<_>>());
        }

        #[test]
        fn noise_is_refused_or_read(
            row in prop::collection::vec(any::<u8>(), 0..200),
            template in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let template = Template { label: 1, bytes: template.into() };
            let bytes = [&[LEANING][..], &row].concat();
            drop(RecordReader::default().read(&bytes, Some(&template)));
        }

        #[test]
        fn a_torn_row_never_panics(message in message(), cut in any::<prop::sample::Index>()) {
            let mut recorder = Recorder::default();
            recorder.record(&message);
            let Record { template, bytes } = recorder.record(&message);
            drop(RecordReader::default().read(&bytes[..cut.index(bytes.len())], template.as_ref()));
        }
    }

    fn report(n: i64, values: impl IntoIterator<Item = f64>) -> Message {
        let samples = (1u32..).zip(values).map(|(alias, v)| Sample {
            alias,
            name: format!("tag{alias}").into(),
            value: Value::Float(v),
            quality: Quality::Good,
        });
        let (time_us, body) = (1_700_000_000_000_000 + n * 1_000_000, Body::Properties(samples.collect()));
        Message { thing: "plc-1".into(), model: "plc".into(), time_us, received_us: time_us, body }
    }

    #[test]
    fn an_hour_of_a_hundred_tags_stays_small() {
        let mut state = 7u32;
        let mut walk: Vec<i64> = (0..100).map(|i| 200 + i * 3).collect();
        let hour: Vec<Message> = (0..3600)
            .map(|n| {
                let values = walk.iter_mut().map(|v| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *v += i64::from(state >> 16) % 11 - 5;
                    *v as f64 / 10.0
                });
                report(n, values.collect::<Vec<_>>())
            })
            .collect();
        let bytes = there_and_back(&hour) as f64 / 360_000.0;
        println!("{bytes:.2} bytes a point");
        assert!(bytes <= 2.0, "{bytes} bytes a point");
    }

    #[test]
    fn what_comes_once_is_plain_and_shapes_have_an_end() {
        let mut recorder = Recorder::default();
        for n in 0..600_usize {
            let record = recorder.record(&report(0, vec![1.5; n % 300]));
            assert!(n >= 300 || record.template.is_none(), "{n}");
        }
        let columns: usize = recorder.shapes.values().map(|shape| shape.columns.len()).sum();
        assert!(columns == recorder.columns && columns <= COLUMNS_MAX && columns > COLUMNS_MAX / 2, "{columns}");
        assert!(recorder.record(&report(1, [2.5, 2.5])).template.is_some());
    }

    #[test]
    fn a_template_is_made_anew_when_values_need_more_digits() {
        let mut recorder = Recorder::default();
        let labels: std::collections::HashSet<_> = (0..200)
            .filter_map(|n| recorder.record(&report(n, [n as f64 / 8.0, 5.0])).template)
            .map(|template| template.label)
            .collect();
        assert!((2..=6).contains(&labels.len()), "{}", labels.len());
    }
}
