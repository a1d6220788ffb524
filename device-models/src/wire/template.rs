//! Templates: what the log's property reports of one shape have in common stands on disk once (model, names, kinds, and
//! values to count from), and each report is a row of differences behind it.
//!
//! This file reads; `recorder.rs` writes. Must not be in here: where templates are kept.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::WireError;
use super::columns::Cells;
use super::generated as pb;
use super::message::{PLAIN, decode_message};
use super::rows::expand;
use super::value::from_quality;
use crate::message::{Body, Message, Sample};

/// First byte of a record that leans on a template.
pub(super) const LEANING: u8 = 2;
/// Columns that all templates a reader remembers may have together: about 2 MB.
const REMEMBERED_MAX: usize = 32 * 1024;

/// What records lean on. Whoever keeps them keeps it in front of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Made of the bytes: equal labels, equal bytes.
    pub label: u64,
    pub bytes: Bytes,
}

/// A message as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What has to be at hand to read it; `None`: nothing.
    pub template: Option<Template>,
    pub bytes: Vec<u8>,
}

/// Reads records, and remembers the templates it has seen.
#[derive(Debug, Default)]
pub struct RecordReader {
    templates: HashMap<u64, Parsed>,
    /// Columns of all of them.
    columns: usize,
}

/// A template that was read.
#[derive(Debug)]
struct Parsed {
    model: Arc<str>,
    time_us: i64,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    alias: u32,
    name: Arc<str>,
    kind: u32,
    base: i64,
}

/// One record alone; of many, a [`RecordReader`] reads each template once.
pub fn decode_record(bytes: &[u8], template: Option<&Template>) -> Result<Message, WireError> {
    RecordReader::default().read(bytes, template)
}

// === impl Template ===

impl Template {
    pub(super) fn new(template: &pb::Template) -> Self {
        let bytes = Bytes::from(template.encode_to_vec());
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Self { label: hasher.finish(), bytes }
    }
}

// === impl RecordReader ===

impl RecordReader {
    /// What [`encode_message`](super::encode_message) or a [`Recorder`](super::Recorder) wrote. Takes memory in proportion
    /// to the bytes of both.
    pub fn read(&mut self, bytes: &[u8], template: Option<&Template>) -> Result<Message, WireError> {
        let (version, row) = bytes.split_first().ok_or(WireError::Empty)?;
        match (*version, template) {
            (PLAIN, _) => decode_message(bytes),
            (LEANING, Some(template)) => read_row(pb::Row::decode(row)?, self.parsed(template)?),
            (LEANING, None) => Err(WireError::Missing("the record's template")),
            (other, _) => Err(WireError::Version(u32::from(other))),
        }
    }

    fn parsed(&mut self, template: &Template) -> Result<&Parsed, WireError> {
        if !self.templates.contains_key(&template.label) {
            let parsed = parse(&template.bytes)?;
            if self.columns + parsed.columns.len() > REMEMBERED_MAX {
                self.templates.clear();
                self.columns = 0;
            }
            self.columns += parsed.columns.len();
            self.templates.insert(template.label, parsed);
        }
        self.templates.get(&template.label).ok_or(WireError::Missing("the record's template"))
    }
}

fn parse(bytes: &[u8]) -> Result<Parsed, WireError> {
    let read = pb::Template::decode(bytes)?;
    let count = read.alias.len();
    if read.name.len() != count || read.kind.len() != count || read.base.len() != count {
        return Err(WireError::Shape("a template's columns"));
    }
    let cells = read.alias.into_iter().zip(read.name).zip(read.kind).zip(read.base);
    let columns = cells.map(|(((alias, name), kind), base)| Column { alias, name: Arc::from(name), kind, base });
    Ok(Parsed { model: Arc::from(read.model), time_us: read.time_us, columns: columns.collect() })
}

fn read_row(mut row: pb::Row, template: &Parsed) -> Result<Message, WireError> {
    let mut kinds: Vec<(u32, i64)> = template.columns.iter().map(|column| (column.kind, column.base)).collect();
    for other in row.kind.chunks(2) {
        let [column, kind] = other else { return Err(WireError::Shape("kinds")) };
        *kinds.get_mut(*column as usize).ok_or(WireError::Shape("kinds"))? = (*kind, 0);
    }
    let qualities = match row.quality.as_slice() {
        [] => None,
        runs => Some(expand(runs, kinds.len())?),
    };
    let mut qualities = qualities.into_iter().flatten();
    let mut cells = Cells::new(&mut row);
    let mut samples = Vec::with_capacity(kinds.len());
    for (column, (kind, base)) in template.columns.iter().zip(&kinds) {
        samples.push(Sample {
            alias: column.alias,
            name: Arc::clone(&column.name),
            value: cells.next(*kind, *base)?,
            quality: from_quality(qualities.next().unwrap_or_default())?,
        });
    }
    if !cells.is_empty() {
        return Err(WireError::Shape("values"));
    }
    let time_us = template.time_us.wrapping_add(row.dt_us);
    Ok(Message {
        thing: Arc::from(row.thing),
        model: Arc::clone(&template.model),
        time_us,
        received_us: time_us.wrapping_add(row.late_us),
        body: Body::Properties(samples),
    })
}
