//! The native batch: consecutive messages of one class, small, and complete by itself but for the catalog.

use prost::Message as _;

use super::WireError;
use super::catalog::Catalog;
use super::compression::{Compression, pack, unpack};
use super::generated as pb;
use super::rows::{Report, next_seq, read_rows, thing, write_rows};
use super::value::{Said, from_class, from_said, to_said};
use crate::message::{Class, Message};

/// The version of the format.
const VERSION: u32 = 1;

/// What a batch says of itself beside its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    pub epoch: u64,
    pub class: Class,
    /// Backlog, not live.
    pub hist: bool,
    /// The gateway's clock, microseconds since 1970 UTC.
    pub gw_time_us: i64,
    pub clock: Clock,
    /// How the body is to be packed; of a batch that was read: how it was.
    pub compression: Compression,
}

/// How far the gateway's clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    #[default]
    Unknown,
    Synchronized,
    /// It was synchronized once and runs alone since.
    Holdover,
}

impl Clock {
    /// As batches say it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::Synchronized => 1,
            Self::Holdover => 2,
        }
    }
}

/// Sequence numbers of the batch's class that no longer exist: `first`, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    pub first: u64,
    pub count: u64,
    pub reason: String,
}

/// A batch whose envelope is read and whose body is checked but not decoded: enough to drop a duplicate, or to find
/// the catalog that the rest needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub meta: Meta,
    pub first_seq: u64,
    pub count: u64,
    /// Revision of the catalog it needs; 0: none.
    pub rev: u32,
    base_us: i64,
    body: Vec<u8>,
}

/// What a batch holds: every number from its first to its last is in `messages` or in a hole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoded {
    /// By sequence number, rising.
    pub messages: Vec<(u64, Message)>,
    pub holes: Vec<Hole>,
}

/// A batch of messages and holes, which must follow each other without a number between them.
///
/// `messages` and `holes` rise. Things, and properties whose name the catalog knows under the message's alias, go by
/// alias, everything else by name.
pub fn encode_batch(
    meta: &Meta,
    messages: &[(u64, Message)],
    holes: &[Hole],
    catalog: &Catalog,
) -> Result<Vec<u8>, WireError> {
    let first_message = messages.first().map(|(seq, _)| *seq);
    let first_hole = holes.first().map(|hole| hole.first);
    let first_seq = first_message.into_iter().chain(first_hole).min().ok_or(WireError::Empty)?;
    let spans = messages.iter().map(|(seq, _)| (*seq, 1)).chain(holes.iter().map(|hole| (hole.first, hole.count)));
    let count = covered(first_seq, spans.collect())?;
    let before = first_seq.wrapping_sub(1);
    let base_us = messages.first().map_or(meta.gw_time_us, |(_, message)| message.time_us);

    let reports: Vec<Report<'_>> = messages.iter().filter_map(|(seq, message)| Report::of(*seq, message)).collect();
    let rows = write_rows(&reports, before, base_us, catalog);
    let note = write_notes(messages, before, base_us, catalog);
    let hole = holes
        .iter()
        .map(|hole| pb::Hole { at: hole.first - first_seq, count: hole.count, reason: hole.reason.clone() })
        .collect();
    let aliased = rows.iter().any(|rows| rows.thing != 0 || rows.named.len() < rows_width(rows))
        || note.iter().any(|note| note.thing != 0);
    let (packing, body) = pack(meta.compression, pb::Frames { rows, note, hole }.encode_to_vec());
    let batch = pb::Batch {
        v: VERSION,
        epoch: meta.epoch,
        cls: u32::from(meta.class.number()),
        first_seq,
        count,
        rev: if aliased { catalog.rev() } else { 0 },
        hist: meta.hist,
        codec: packing.number(),
        crc32c: crc32c::crc32c(&body),
        body,
        gw_time_us: meta.gw_time_us,
        clock: meta.clock.number(),
        base_us,
    };
    Ok(batch.encode_to_vec())
}

fn rows_width(rows: &pb::Rows) -> usize {
    rows.prop.chunks(2).filter_map(|run| run.get(1)).map(|length| *length as usize).sum()
}

fn write_notes(messages: &[(u64, Message)], mut before: u64, base_us: i64, catalog: &Catalog) -> Vec<pb::Note> {
    use pb::note::Body;
    let mut notes = Vec::new();
    for (seq, message) in messages.iter().filter(|(seq, message)| Report::of(*seq, message).is_none()) {
        let body = match to_said(&message.body) {
            Said::Samples(v) => Body::Samples(v),
            Said::Event(v) => Body::Event(v),
            Said::Reply(v) => Body::Reply(v),
            Said::Presence(v) => Body::Presence(v),
            Said::Gap(v) => Body::Gap(v),
        };
        let alias = catalog.alias(&message.thing, &message.model).unwrap_or_default();
        let inline = |text: &str| if alias == 0 { text.to_owned() } else { String::new() };
        notes.push(pb::Note {
            thing: alias,
            id: inline(&message.thing),
            model: inline(&message.model),
            skip: seq.wrapping_sub(before).wrapping_sub(1),
            dt_us: message.time_us.wrapping_sub(base_us),
            late_us: message.received_us.wrapping_sub(message.time_us),
            body: Some(body),
        });
        before = *seq;
    }
    notes
}

/// How many numbers from `first` on the spans cover, each once and with none between them.
fn covered(first: u64, mut spans: Vec<(u64, u64)>) -> Result<u64, WireError> {
    spans.sort_unstable();
    let mut next = first;
    for (start, count) in spans {
        if start != next || count == 0 {
            return Err(WireError::Order(start));
        }
        next = next.checked_add(count).ok_or(WireError::Order(start))?;
    }
    Ok(next - first)
}

// === impl Batch ===

impl Batch {
    /// Reads the envelope, checks the body's CRC and unpacks it.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let batch = pb::Batch::decode(bytes)?;
        if batch.v != VERSION {
            return Err(WireError::Version(batch.v));
        }
        let compression = Compression::from_number(batch.codec)?;
        let found = crc32c::crc32c(&batch.body);
        if found != batch.crc32c {
            return Err(WireError::Crc { said: batch.crc32c, found });
        }
        let clock = match batch.clock {
            1 => Clock::Synchronized,
            2 => Clock::Holdover,
            // A later version may know more; what is not known is not trusted.
            _ => Clock::Unknown,
        };
        let meta = Meta {
            epoch: batch.epoch,
            class: from_class(batch.cls)?,
            hist: batch.hist,
            gw_time_us: batch.gw_time_us,
            clock,
            compression,
        };
        if batch.count == 0 || batch.first_seq.checked_add(batch.count).is_none() {
            return Err(WireError::Order(batch.first_seq));
        }
        Ok(Self {
            meta,
            first_seq: batch.first_seq,
            count: batch.count,
            rev: batch.rev,
            base_us: batch.base_us,
            body: unpack(compression, batch.body)?,
        })
    }

    /// The batch's last sequence number.
    pub const fn last_seq(&self) -> u64 {
        // `parse` has seen that there is at least one, and that the sum fits.
        self.first_seq + self.count - 1
    }

    /// Bytes that the batch keeps in memory.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// The messages. Takes memory in proportion to the batch's bytes.
    pub fn decode(&self, catalog: &Catalog) -> Result<Decoded, WireError> {
        if self.rev != 0 && self.rev != catalog.rev() {
            return Err(WireError::Catalog { needed: self.rev, have: catalog.rev() });
        }
        let frames = pb::Frames::decode(self.body.as_slice())?;
        let before = self.first_seq.wrapping_sub(1);
        let mut messages = Vec::new();
        for rows in frames.rows {
            read_rows(rows, before, self.base_us, catalog, &mut messages)?;
        }
        let mut seq = before;
        for note in frames.note {
            seq = next_seq(seq, note.skip)?;
            messages.push((seq, read_note(note, self.base_us, catalog)?));
        }
        let mut holes = Vec::with_capacity(frames.hole.len());
        for hole in frames.hole {
            let first = self.first_seq.checked_add(hole.at).ok_or(WireError::Order(hole.at))?;
            holes.push(Hole { first, count: hole.count, reason: hole.reason });
        }
        messages.sort_by_key(|(seq, _)| *seq);
        let spans = messages.iter().map(|(seq, _)| (*seq, 1)).chain(holes.iter().map(|hole| (hole.first, hole.count)));
        let found = covered(self.first_seq, spans.collect())?;
        if found != self.count {
            return Err(WireError::Count { said: self.count, found });
        }
        Ok(Decoded { messages, holes })
    }
}

fn read_note(note: pb::Note, base_us: i64, catalog: &Catalog) -> Result<Message, WireError> {
    use pb::note::Body;
    let (thing, model) = thing(note.thing, &note.id, &note.model, catalog)?;
    let said = match note.body.ok_or(WireError::Missing("a note's body"))? {
        Body::Samples(v) => Said::Samples(v),
        Body::Event(v) => Said::Event(v),
        Body::Reply(v) => Said::Reply(v),
        Body::Presence(v) => Said::Presence(v),
        Body::Gap(v) => Said::Gap(v),
    };
    let time_us = base_us.wrapping_add(note.dt_us);
    Ok(Message { thing, model, time_us, received_us: time_us.wrapping_add(note.late_us), body: from_said(said)? })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::message::{Body, Quality, Sample};
    use crate::value::Value;
    use crate::wire::PropertyName;
    use crate::wire::tests::{message, same};

    const META: Meta = Meta {
        epoch: 0xfeed,
        class: Class::Live,
        hist: false,
        gw_time_us: 5,
        clock: Clock::Synchronized,
        compression: Compression::None,
    };

    /// Knows things `t0` and `t1` (of models `m0` and `m1`) and properties `p1`, `p2` of `m0`, `p1` to `p4` of `m1`.
    fn catalog() -> Catalog {
        let mut catalog = Catalog::new(3);
        for (alias, model, properties) in [(1, "m0", 3), (2, "m1", 5)] {
            catalog.add_thing(alias, format!("t{}", alias - 1).into(), model.into());
            for property in 1..properties {
                let name = PropertyName { name: format!("p{property}").into(), kind: "number".into(), unit: "".into() };
                catalog.add_property(&model.into(), property, name);
            }
        }
        catalog
    }

    /// Messages from `first` on with some numbers made into holes.
    fn numbered(first: u64, messages: Vec<(bool, Message)>) -> (Vec<(u64, Message)>, Vec<Hole>) {
        let (mut kept, mut holes) = (Vec::new(), Vec::new());
        for (seq, (hole, message)) in (first..).zip(messages) {
            if hole {
                holes.push(Hole { first: seq, count: 1, reason: "cap".to_owned() });
            } else {
                kept.push((seq, message));
            }
        }
        (kept, holes)
    }

    proptest! {
        #[test]
        fn every_batch_comes_back(
            first in prop_oneof![Just(0u64), 1..u64::MAX - 100],
            messages in prop::collection::vec((prop::bool::weighted(0.1), message()), 1..30),
            compression in prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd]),
        ) {
            let (messages, holes) = numbered(first, messages);
            let bytes = encode_batch(&Meta { compression, ..META }, &messages, &holes, &catalog()).unwrap();
            let batch = Batch::parse(&bytes).unwrap();
            prop_assert_eq!(Meta { compression: Compression::None, ..batch.meta }, META);
            prop_assert_eq!((batch.first_seq, batch.count), (first, (messages.len() + holes.len()) as u64));
            let back = batch.decode(&catalog()).unwrap();
            prop_assert_eq!(back.holes, holes);
            prop_assert_eq!(back.messages.len(), messages.len());
            for (a, b) in messages.iter().zip(&back.messages) {
                prop_assert!(a.0 == b.0 && same(&a.1, &b.1), "{a:?} became {b:?}");
            }
        }

        #[test]
        fn a_changed_byte_is_noticed_or_harmless(
            messages in prop::collection::vec(message(), 1..10),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let (messages, _) = numbered(9, messages.into_iter().map(|m| (false, m)).collect());
            let mut bytes = encode_batch(&META, &messages, &[], &catalog()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(batch) = Batch::parse(&bytes) {
                let _any = batch.decode(&catalog());
            }
        }

        /// A body that has no CRC to hide behind: whatever it says, no panic, and no more messages than bytes.
        #[test]
        fn a_hostile_body_is_refused_or_read(
            messages in prop::collection::vec(message(), 1..6),
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let (messages, _) = numbered(9, messages.into_iter().map(|m| (false, m)).collect());
            let bytes = encode_batch(&META, &messages, &[], &catalog()).unwrap();
            let mut batch = Batch::parse(&bytes).unwrap();
            for (at, byte) in noise {
                let at = at.index(batch.body.len());
                batch.body[at] = byte;
            }
            if let Ok(decoded) = batch.decode(&catalog()) {
                prop_assert!(decoded.messages.len() <= batch.body.len());
            }
        }
    }

    #[test]
    fn runs_that_claim_more_than_the_bytes_hold_are_refused() {
        let bomb =
            pb::Rows { dt_us: vec![0; 1000], prop: vec![0, u32::MAX], kind: vec![0, u32::MAX], ..pb::Rows::default() };
        let mut out = Vec::new();
        let error = read_rows(bomb, 0, 0, &catalog(), &mut out).unwrap_err();
        assert_eq!(error, WireError::Shape("more properties than values"));
        let bomb = pb::Rows {
            thing: 2,
            dt_us: vec![0; 1000],
            prop: vec![0, 4],
            kind: vec![0, 4],
            ints: vec![0; 4],
            quality: vec![0, u32::MAX],
            ..pb::Rows::default()
        };
        assert_eq!(read_rows(bomb, 0, 0, &catalog(), &mut out), Err(WireError::Shape("values")));
    }

    #[test]
    fn a_number_left_out_is_refused_on_both_sides() {
        let message = |seq| (seq, presence());
        assert_eq!(encode_batch(&META, &[message(1), message(3)], &[], &catalog()), Err(WireError::Order(3)));
        assert_eq!(encode_batch(&META, &[message(1), message(1)], &[], &catalog()), Err(WireError::Order(1)));
        assert_eq!(encode_batch(&META, &[], &[], &catalog()), Err(WireError::Empty));
        let mut batch =
            Batch::parse(&encode_batch(&META, &[message(1), message(2)], &[], &catalog()).unwrap()).unwrap();
        batch.count = 3;
        assert_eq!(batch.decode(&catalog()), Err(WireError::Count { said: 3, found: 2 }));
    }

    fn presence() -> Message {
        let body = Body::Presence { online: true, reason: String::new() };
        Message { thing: "t0".into(), model: "m0".into(), time_us: 7, received_us: 7, body }
    }

    #[test]
    fn another_revision_of_the_catalog_is_asked_for() {
        let bytes = encode_batch(&META, &[(1, presence())], &[], &catalog()).unwrap();
        let batch = Batch::parse(&bytes).unwrap();
        assert_eq!(batch.rev, 3);
        assert_eq!(batch.decode(&Catalog::new(4)), Err(WireError::Catalog { needed: 3, have: 4 }));
        let bytes = encode_batch(&META, &[(1, presence())], &[], &Catalog::new(9)).unwrap();
        assert_eq!(Batch::parse(&bytes).unwrap().rev, 0, "everything goes by name: no catalog needed");
    }

    /// The bars of the native format: 100 tags, once, and over a minute at 1 Hz (bytes a point).
    #[test]
    fn points_stay_small() {
        let model: Arc<str> = "plc".into();
        let mut catalog = Catalog::new(1);
        catalog.add_thing(1, "plc-1".into(), Arc::clone(&model));
        for alias in 1..=100u32 {
            let name = PropertyName { name: format!("tag{alias}").into(), kind: "number".into(), unit: "".into() };
            catalog.add_property(&model, alias, name);
        }
        let mut state = 7u32;
        let mut walk: Vec<i64> = (0..100).map(|i| 200 + i * 3).collect();
        let mut row = |seq: u64| {
            let samples = (1..=100u32).zip(walk.iter_mut()).map(|(alias, v)| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *v += i64::from(state >> 16) % 11 - 5;
                let value = Value::Float(*v as f64 / 10.0);
                Sample { alias, name: format!("tag{alias}").into(), value, quality: Quality::Good }
            });
            let body = Body::Properties(samples.collect());
            let time_us = 1_700_000_000_000_000 + seq as i64 * 1_000_000;
            (seq, Message { thing: "plc-1".into(), model: Arc::clone(&model), time_us, received_us: time_us, body })
        };
        let minute: Vec<(u64, Message)> = (1..=60).map(&mut row).collect();
        let size = |compression, rows: usize| {
            let meta = Meta { compression, ..META };
            encode_batch(&meta, &minute[..rows], &[], &catalog).unwrap().len() as f64 / (rows as f64 * 100.0)
        };
        let (live, backfill) = (size(Compression::None, 1), size(Compression::None, 60));
        let (lz4, zstd) = (size(Compression::Lz4, 60), size(Compression::Zstd, 60));
        println!("live {live:.2}, backfill {backfill:.2}, LZ4 {lz4:.2}, Zstandard {zstd:.2} bytes a point");
        assert!(live <= 3.5, "live {live} B/point");
        assert!(backfill <= 1.2, "backfill {backfill} B/point");
        assert!(zstd <= 0.7, "backfill with Zstandard {zstd} B/point");
    }
}
