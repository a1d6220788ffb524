//! Property reports as rows: reports of one thing that carry the same properties share a frame.

use std::collections::HashMap;
use std::sync::Arc;

use super::WireError;
use super::catalog::Catalog;
use super::columns::{Columns, Kind, write};
use super::generated as pb;
use super::value::{from_quality, to_quality};
use crate::message::{Body, Message, Sample};

/// Frames of one thing that are looked through for one with the same properties, newest first.
const SHAPES_MAX: usize = 8;

/// A property report on its way into a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report<'a> {
    pub seq: u64,
    pub message: &'a Message,
    pub samples: &'a [Sample],
}

impl<'a> Report<'a> {
    /// `None` for what is no property report, and for one that is empty.
    pub(super) fn of(seq: u64, message: &'a Message) -> Option<Self> {
        match &message.body {
            Body::Properties(samples) if !samples.is_empty() => Some(Self { seq, message, samples }),
            _ => None,
        }
    }

    fn like(&self, other: &Self) -> bool {
        self.message.model == other.message.model
            && self.samples.len() == other.samples.len()
            && self
                .samples
                .iter()
                .zip(other.samples)
                .all(|(a, b)| a.alias == b.alias && a.name == b.name && Kind::of(&a.value) == Kind::of(&b.value))
    }
}

// === writing ===

/// Frames for the reports, in the order of their first rows. `before` is the sequence number in front of the batch.
pub(super) fn write_rows(reports: &[Report<'_>], before: u64, base_us: i64, catalog: &Catalog) -> Vec<pb::Rows> {
    let mut groups: Vec<Vec<Report<'_>>> = Vec::new();
    let mut by_thing: HashMap<&str, Vec<usize>> = HashMap::new();
    for report in reports {
        let mine = by_thing.entry(report.message.thing.as_ref()).or_default();
        let same =
            mine.iter().rev().take(SHAPES_MAX).copied().find(|index| {
                groups.get(*index).and_then(|group| group.first()).is_some_and(|first| first.like(report))
            });
        if let Some(group) = same.and_then(|index| groups.get_mut(index)) {
            group.push(*report);
        } else {
            mine.push(groups.len());
            groups.push(vec![*report]);
        }
    }
    groups.iter().filter_map(|group| write_group(group, before, base_us, catalog)).collect()
}

fn write_group(group: &[Report<'_>], before: u64, base_us: i64, catalog: &Catalog) -> Option<pb::Rows> {
    let first = group.first()?;
    let mut rows = pb::Rows::default();
    let message = first.message;
    if let Some(alias) = catalog.alias(&message.thing, &message.model) {
        rows.thing = alias;
    } else {
        message.thing.as_ref().clone_into(&mut rows.id);
        message.model.as_ref().clone_into(&mut rows.model);
    }
    let (mut seq, mut time_us) = (before, base_us);
    for report in group {
        rows.skip.push(report.seq.wrapping_sub(seq).wrapping_sub(1));
        rows.dt_us.push(report.message.time_us.wrapping_sub(time_us));
        rows.late_us.push(report.message.received_us.wrapping_sub(report.message.time_us));
        (seq, time_us) = (report.seq, report.message.time_us);
    }
    clear_zeros(&mut rows.skip);
    clear_zeros(&mut rows.late_us);
    write_names(first, &mut rows, catalog);
    let mut kinds = Runs::default();
    let mut qualities = Runs::default();
    for (column, sample) in first.samples.iter().enumerate() {
        let cells = group.iter().filter_map(|report| report.samples.get(column));
        kinds.push(write(Kind::of(&sample.value), cells.clone().map(|cell| &cell.value), &mut rows));
        cells.for_each(|cell| qualities.push(to_quality(cell.quality)));
    }
    rows.kind = kinds.0;
    if qualities.0.chunks(2).any(|run| run.first() != Some(&0)) {
        rows.quality = qualities.0;
    }
    Some(rows)
}

fn write_names(first: &Report<'_>, rows: &mut pb::Rows, catalog: &Catalog) {
    let mut next = 1u32;
    for (column, sample) in (0u32..).zip(first.samples) {
        match rows.prop.last_mut() {
            // The alias that the run before would give next: the run grows.
            Some(length) if sample.alias == next => *length += 1,
            _ => {
                rows.prop.push(zigzag(sample.alias.wrapping_sub(next) as i32));
                rows.prop.push(1);
            }
        }
        next = sample.alias.wrapping_add(1);
        let known = catalog.property(&first.message.model, sample.alias);
        if known.is_none_or(|known| known.name != sample.name) {
            rows.named.push(column);
            rows.name.push(sample.name.as_ref().to_owned());
        }
    }
}

/// What is zero throughout is not written.
fn clear_zeros<T: Default + PartialEq>(values: &mut Vec<T>) {
    if values.iter().all(|value| *value == T::default()) {
        values.clear();
    }
}

/// Pairs of a value and how often it stands in a row.
#[derive(Debug, Default)]
struct Runs(Vec<u32>);

impl Runs {
    fn push(&mut self, value: u32) {
        if let [.., last, length] = self.0.as_mut_slice()
            && *last == value
        {
            *length += 1;
        } else {
            self.0.extend([value, 1]);
        }
    }
}

const fn zigzag(v: i32) -> u32 {
    ((v << 1) ^ (v >> 31)) as u32
}

const fn unzigzag(v: u32) -> i32 {
    (v >> 1) as i32 ^ -((v & 1) as i32)
}

// === reading ===

/// Reads a frame and hands each row, with its sequence number, to `out`.
pub(super) fn read_rows(
    mut rows: pb::Rows,
    before: u64,
    base_us: i64,
    catalog: &Catalog,
    out: &mut Vec<(u64, Message)>,
) -> Result<(), WireError> {
    let count = rows.dt_us.len();
    if count == 0 {
        return Err(WireError::Shape("no row"));
    }
    // Every cell takes at least a byte, so the cells bound the columns, and the input bounds the cells.
    let cells = rows.ints.len() + rows.f32.len() / 4 + rows.f64.len() / 8 + rows.text.len() + rows.other.len();
    let (thing, model) = thing(rows.thing, &rows.id, &rows.model, catalog)?;
    let aliases = read_aliases(&rows.prop, cells)?;
    let names = read_names(&rows, &aliases, &model, catalog)?;
    let kinds = expand(&rows.kind, aliases.len())?;
    let mut columns = Columns::new(&mut rows, &kinds, count)?;
    let qualities = match rows.quality.as_slice() {
        [] => None,
        // Bounded by the check in `Columns::new`: columns times rows is the number of cells.
        runs => Some(expand(runs, aliases.len().saturating_mul(count))?),
    };
    let mut qualities = qualities.into_iter().flatten();
    let mut samples: Vec<Vec<Sample>> = (0..count).map(|_| Vec::with_capacity(aliases.len())).collect();
    for ((alias, name), kind) in aliases.iter().zip(&names).zip(kinds) {
        for (row, value) in samples.iter_mut().zip(columns.next(kind, count)) {
            let quality = from_quality(qualities.next().unwrap_or_default())?;
            row.push(Sample { alias: *alias, name: Arc::clone(name), value, quality });
        }
    }
    let (skips, lates) = (per_row(&rows.skip, count)?, per_row(&rows.late_us, count)?);
    let (mut seq, mut time_us) = (before, base_us);
    for (row, samples) in samples.into_iter().enumerate() {
        seq = next_seq(seq, skips.get(row).copied().unwrap_or_default())?;
        time_us = time_us.wrapping_add(rows.dt_us.get(row).copied().unwrap_or_default());
        let message = Message {
            thing: Arc::clone(&thing),
            model: Arc::clone(&model),
            time_us,
            received_us: time_us.wrapping_add(lates.get(row).copied().unwrap_or_default()),
            body: Body::Properties(samples),
        };
        out.push((seq, message));
    }
    Ok(())
}

/// Id and model: by alias, or as they stand there.
pub(super) fn thing(alias: u32, id: &str, model: &str, catalog: &Catalog) -> Result<(Arc<str>, Arc<str>), WireError> {
    if alias == 0 {
        return Ok((Arc::from(id), Arc::from(model)));
    }
    let (id, model) = catalog.thing(alias).ok_or(WireError::Thing { alias, rev: catalog.rev() })?;
    Ok((Arc::clone(id), Arc::clone(model)))
}

/// The number `skip` places after the one that follows `before`.
pub(super) fn next_seq(before: u64, skip: u64) -> Result<u64, WireError> {
    // `before` of a batch that begins at 0 wraps: the first number is 0 then.
    before.wrapping_add(1).checked_add(skip).ok_or(WireError::Order(skip))
}

fn per_row<T>(values: &[T], count: usize) -> Result<&[T], WireError> {
    if values.is_empty() || values.len() == count { Ok(values) } else { Err(WireError::Shape("rows")) }
}

fn read_aliases(runs: &[u32], cells: usize) -> Result<Vec<u32>, WireError> {
    let mut aliases = Vec::new();
    let mut next = 1u32;
    for run in runs.chunks(2) {
        let [delta, length] = run else { return Err(WireError::Shape("property runs")) };
        if aliases.len().saturating_add(*length as usize) > cells {
            return Err(WireError::Shape("more properties than values"));
        }
        next = next.wrapping_add_signed(unzigzag(*delta));
        for _ in 0..*length {
            aliases.push(next);
            next = next.wrapping_add(1);
        }
    }
    Ok(aliases)
}

fn read_names(rows: &pb::Rows, aliases: &[u32], model: &str, catalog: &Catalog) -> Result<Vec<Arc<str>>, WireError> {
    if rows.named.len() != rows.name.len() {
        return Err(WireError::Shape("names"));
    }
    let mut named = rows.named.iter().zip(&rows.name).peekable();
    let mut names = Vec::with_capacity(aliases.len());
    for (column, alias) in (0u32..).zip(aliases) {
        let name = match named.next_if(|(index, _)| **index == column) {
            Some((_, name)) => Arc::from(name.as_str()),
            None => catalog
                .property(model, *alias)
                .map(|property| Arc::clone(&property.name))
                .ok_or_else(|| WireError::Property { model: model.to_owned(), alias: *alias, rev: catalog.rev() })?,
        };
        names.push(name);
    }
    if named.next().is_some() {
        return Err(WireError::Shape("names"));
    }
    Ok(names)
}

/// Runs as single values, exactly `count` of them.
pub(super) fn expand(runs: &[u32], count: usize) -> Result<Vec<u32>, WireError> {
    let mut values = Vec::new();
    for run in runs.chunks(2) {
        let [value, length] = run else { return Err(WireError::Shape("runs")) };
        if values.len().saturating_add(*length as usize) > count {
            return Err(WireError::Shape("runs too long"));
        }
        values.resize(values.len() + *length as usize, *value);
    }
    if values.len() == count { Ok(values) } else { Err(WireError::Shape("runs too short")) }
}
