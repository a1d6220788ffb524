//! The reference consumer: topics and payloads in, each message once out, and the book of what is missing.
//!
//! Pure: no socket, no clock. Tests and the demo use it as a library. A message's name is (gateway, epoch, class,
//! sequence number); what has been seen of each stream is kept as spans of numbers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use device_models::wire::{Batch, Catalog, Clock, Hole, WireError, message_json};
use device_models::{Body, Class, Message};
use serde_json::Value as Json;

use super::spans::Spans;
use crate::upstream::Receipt;

/// Streams (gateway, epoch, class) kept apart. A topic's author must not fill our memory.
const STREAMS_MAX: usize = 10_000;
/// Bytes of batches that wait for their catalog.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Receipts that wait to be sent.
const RECEIPTS_MAX: usize = 10_000;
/// Catalog revisions kept of one gateway.
const CATALOGS_MAX: usize = 64;

/// One message, delivered once.
#[derive(Debug, Clone)]
pub struct Delivered {
    pub gateway: Arc<str>,
    pub epoch: u64,
    pub class: Class,
    pub seq: u64,
    /// Backlog, not live.
    pub hist: bool,
    pub content: Content,
}

/// A message as its dialect carries it.
#[derive(Debug, Clone)]
pub enum Content {
    /// With the catalog it was read with, which knows units, and how far its times can be trusted.
    Native(Message, Arc<Catalog>, Clock),
    Json(Json),
}

/// Names one stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    pub gateway: Arc<str>,
    pub epoch: u64,
    pub class: Class,
}

/// What has been seen of one stream.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Delivered or named by a gap.
    pub seen: Spans,
    pub messages: u64,
    pub duplicates: u64,
    /// Numbers that the gateway itself says are gone.
    pub said_lost: u64,
    /// Numbers that the gateway leaves out for us, by its configuration.
    pub filtered: u64,
    /// Messages that came after one with a higher number on the same road (live or backlog).
    pub out_of_order: u64,
    /// Highest number of a delivered message: live, backlog.
    highest: [Option<u64>; 2],
}

/// Takes what a broker delivers.
#[derive(Debug, Default)]
pub struct Consumer {
    catalogs: HashMap<Arc<str>, VecDeque<Arc<Catalog>>>,
    accounts: HashMap<Stream, Account>,
    waiting: VecDeque<(Arc<str>, Batch)>,
    waiting_bytes: usize,
    /// Payloads that could not be read, newest reason.
    pub unreadable: u64,
    pub last_error: Option<String>,
    /// Payload bytes taken.
    pub bytes: u64,
    /// `None`: nobody wants any.
    receipts: Option<VecDeque<(Arc<str>, Receipt)>>,
}

// === impl Delivered ===

impl Delivered {
    /// The message as the JSON dialect would carry it.
    pub fn json(&self) -> Json {
        let mut json = match &self.content {
            Content::Json(json) => json.clone(),
            Content::Native(message, ..) => message_json(message),
        };
        if let Json::Object(fields) = &mut json {
            if let Content::Native(_, _, clock) = &self.content {
                fields.insert("clock".to_owned(), Json::from(clock.number()));
            }
            fields.insert("gateway".to_owned(), Json::from(self.gateway.as_ref()));
            fields.insert("epoch".to_owned(), Json::from(format!("{:016x}", self.epoch)));
            fields.insert("class".to_owned(), Json::from(self.class.topic()));
            fields.insert("seq".to_owned(), Json::from(self.seq));
            if self.hist {
                fields.insert("hist".to_owned(), Json::from(true));
            }
        }
        json
    }

    /// The message, if it came in the native dialect.
    pub fn message(&self) -> Option<&Message> {
        match &self.content {
            Content::Native(message, ..) => Some(message),
            Content::Json(_) => None,
        }
    }
}

// === impl Consumer ===

impl Consumer {
    pub fn new() -> Self {
        Self::default()
    }

    /// One that keeps a receipt for each native batch it has delivered.
    pub fn with_receipts() -> Self {
        Self { receipts: Some(VecDeque::new()), ..Self::default() }
    }

    /// The oldest receipt: a gateway, and what of its messages was delivered.
    pub fn receipt(&mut self) -> Option<(Arc<str>, Receipt)> {
        self.receipts.as_mut()?.pop_front()
    }

    /// Takes one publish and answers the messages in it that were not delivered before, in order.
    ///
    /// A batch whose catalog has not come yet is kept (16 MiB of such at most) and delivered when it comes.
    pub fn take(&mut self, topic: &str, payload: &[u8]) -> Vec<Delivered> {
        self.bytes += payload.len() as u64;
        let mut out = Vec::new();
        let mut levels = topic.splitn(5, '/');
        let (Some("sg"), Some("v1"), Some(gateway), Some(way)) =
            (levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return out;
        };
        let gateway: Arc<str> = Arc::from(gateway);
        let result = match way {
            "up" => Batch::parse(payload).and_then(|batch| self.batch(&gateway, batch, &mut out)),
            "model" if payload.is_empty() => Ok(()),
            "model" => Catalog::decode(payload).map(|catalog| self.catalog(&gateway, catalog, &mut out)),
            "json" => self.json(&gateway, payload, &mut out),
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.unreadable += 1;
            self.last_error = Some(format!("{topic}: {error}"));
        }
        out
    }

    /// Every stream heard of.
    pub fn accounts(&self) -> impl Iterator<Item = (&Stream, &Account)> {
        self.accounts.iter()
    }

    /// Numbers missing in all streams, between the first and the last heard of.
    pub fn missing(&self) -> u64 {
        self.accounts.values().map(|account| account.seen.missing()).sum()
    }

    /// Batches that wait for a catalog.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn catalog(&mut self, gateway: &Arc<str>, catalog: Catalog, out: &mut Vec<Delivered>) {
        let known = self.catalogs.entry(Arc::clone(gateway)).or_default();
        known.retain(|old| old.rev() != catalog.rev());
        known.push_back(Arc::new(catalog));
        if known.len() > CATALOGS_MAX {
            known.pop_front();
        }
        self.waiting_bytes = 0;
        for (gateway, batch) in std::mem::take(&mut self.waiting) {
            if let Err(error) = self.batch(&gateway, batch, out) {
                self.unreadable += 1;
                self.last_error = Some(format!("sg/v1/{gateway}/up: {error}"));
            }
        }
    }

    fn batch(&mut self, gateway: &Arc<str>, batch: Batch, out: &mut Vec<Delivered>) -> Result<(), WireError> {
        let known = self.catalogs.get(gateway);
        let catalog = match known.and_then(|known| known.iter().find(|catalog| catalog.rev() == batch.rev)) {
            Some(catalog) => Arc::clone(catalog),
            None if batch.rev == 0 => Arc::new(Catalog::new(0)),
            None => return self.wait(gateway, batch),
        };
        let decoded = batch.decode(&catalog)?;
        let stream = Stream { gateway: Arc::clone(gateway), epoch: batch.meta.epoch, class: batch.meta.class };
        for hole in &decoded.holes {
            self.gone(&stream, hole);
        }
        for (seq, message) in decoded.messages {
            if let Body::Gap { class, first, last, .. } = &message.body {
                let hole = Hole {
                    first: *first,
                    count: (last.saturating_sub(*first)).saturating_add(1),
                    reason: String::new(),
                };
                self.gone(&Stream { class: *class, ..stream.clone() }, &hole);
            }
            let content = Content::Native(message, Arc::clone(&catalog), batch.meta.clock);
            self.deliver(&stream, seq, batch.meta.hist, content, out)?;
        }
        let last = batch.first_seq.saturating_add(batch.count.saturating_sub(1));
        self.keep(gateway, Receipt { epoch: stream.epoch, class: stream.class, first: batch.first_seq, last });
        Ok(())
    }

    fn keep(&mut self, gateway: &Arc<str>, receipt: Receipt) {
        let Some(receipts) = &mut self.receipts else { return };
        if let Some((known, before)) = receipts.back_mut()
            && known == gateway
            && let Some(joined) = before.joined(&receipt)
        {
            *before = joined;
            return;
        }
        receipts.push_back((Arc::clone(gateway), receipt));
        if receipts.len() > RECEIPTS_MAX {
            // Its gateway sends again.
            receipts.pop_front();
        }
    }

    fn wait(&mut self, gateway: &Arc<str>, batch: Batch) -> Result<(), WireError> {
        let bytes = batch.body_len();
        if self.waiting_bytes + bytes > WAITING_BYTES_MAX {
            return Err(WireError::Catalog { needed: batch.rev, have: 0 });
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back((Arc::clone(gateway), batch));
        Ok(())
    }

    fn json(&mut self, gateway: &Arc<str>, payload: &[u8], out: &mut Vec<Delivered>) -> Result<(), WireError> {
        let json: Json = serde_json::from_slice(payload).map_err(|_| WireError::Missing("the JSON object"))?;
        let epoch = json.get("epoch").and_then(Json::as_str).and_then(|epoch| u64::from_str_radix(epoch, 16).ok());
        let class = json.get("class").and_then(Json::as_str).and_then(class_of);
        let epoch = epoch.ok_or(WireError::Missing("`epoch`"))?;
        let class = class.ok_or(WireError::Missing("`class`"))?;
        let stream = Stream { gateway: Arc::clone(gateway), epoch, class };
        if let Some(gap) = json.get("gap") {
            let number = |key: &str| gap.get(key).and_then(Json::as_u64).ok_or(WireError::Missing("`gap`'s numbers"));
            let class = gap.get("class").and_then(Json::as_str).and_then(class_of);
            let class = class.ok_or(WireError::Missing("`gap`'s class"))?;
            let (first, last) = (number("first")?, number("last")?);
            let hole = Hole { first, count: last.saturating_sub(first).saturating_add(1), reason: String::new() };
            self.gone(&Stream { class, ..stream.clone() }, &hole);
            if json.get("seq").is_none() {
                return Ok(());
            }
        }
        let seq = json.get("seq").and_then(Json::as_u64).ok_or(WireError::Missing("`seq`"))?;
        let hist = json.get("hist").and_then(Json::as_bool).unwrap_or_default();
        self.deliver(&stream, seq, hist, Content::Json(json), out)
    }

    fn deliver(
        &mut self,
        stream: &Stream,
        seq: u64,
        hist: bool,
        content: Content,
        out: &mut Vec<Delivered>,
    ) -> Result<(), WireError> {
        let account = self.account(stream).ok_or(WireError::Missing("room for one more stream"))?;
        if account.seen.insert(seq, seq) == 0 {
            account.duplicates += 1;
            return Ok(());
        }
        account.messages += 1;
        let highest = if hist { &mut account.highest[1] } else { &mut account.highest[0] };
        if highest.is_some_and(|highest| seq < highest) {
            account.out_of_order += 1;
        }
        *highest = (*highest).max(Some(seq));
        let Stream { gateway, epoch, class } = stream.clone();
        out.push(Delivered { gateway, epoch, class, seq, hist, content });
        Ok(())
    }

    fn gone(&mut self, stream: &Stream, hole: &Hole) {
        if hole.count > 0
            && let Some(account) = self.account(stream)
        {
            let new = account.seen.insert(hole.first, hole.first.saturating_add(hole.count - 1));
            if hole.reason == "filtered" {
                account.filtered += new;
            } else {
                account.said_lost += new;
            }
        }
    }

    fn account(&mut self, stream: &Stream) -> Option<&mut Account> {
        if !self.accounts.contains_key(stream) {
            if self.accounts.len() >= STREAMS_MAX {
                return None;
            }
            self.accounts.insert(stream.clone(), Account::default());
        }
        self.accounts.get_mut(stream)
    }
}

fn class_of(word: &str) -> Option<Class> {
    Class::ALL.into_iter().find(|class| class.topic() == word)
}

#[cfg(test)]
mod tests {
    use device_models::wire::{Compression, Meta, PropertyName, encode_batch};
    use device_models::{Quality, Sample, Value};

    use super::*;

    fn message(power: i64) -> Message {
        let sample = Sample { alias: 1, name: "power".into(), value: Value::Int(power), quality: Quality::Good };
        Message {
            thing: "meter-1".into(),
            model: "energy-meter".into(),
            time_us: 10,
            received_us: 10,
            body: Body::Properties(vec![sample]),
        }
    }

    fn catalog(rev: u32) -> Catalog {
        let mut catalog = Catalog::new(rev);
        catalog.add_thing(1, "meter-1".into(), "energy-meter".into());
        let watt = PropertyName { name: "power".into(), kind: "number".into(), unit: "W".into() };
        catalog.add_property(&"energy-meter".into(), 1, watt);
        catalog
    }

    fn batch(epoch: u64, seqs: std::ops::RangeInclusive<u64>, holes: &[Hole], catalog: &Catalog) -> Vec<u8> {
        let meta = Meta {
            epoch,
            class: Class::Live,
            hist: false,
            gw_time_us: 9,
            clock: Clock::Unknown,
            compression: Compression::None,
        };
        let messages: Vec<_> = seqs.map(|seq| (seq, message(seq as i64))).collect();
        encode_batch(&meta, &messages, holes, catalog).unwrap()
    }

    fn seqs(delivered: &[Delivered]) -> Vec<u64> {
        delivered.iter().map(|one| one.seq).collect()
    }

    const UP: &str = "sg/v1/box/up/live";

    #[test]
    fn what_was_delivered_is_not_delivered_again() {
        let mut consumer = Consumer::new();
        let none = Catalog::new(0);
        assert_eq!(seqs(&consumer.take(UP, &batch(7, 1..=3, &[], &none))), [1, 2, 3]);
        assert_eq!(seqs(&consumer.take(UP, &batch(7, 2..=5, &[], &none))), [4, 5]);
        // A new epoch is a new stream.
        assert_eq!(seqs(&consumer.take(UP, &batch(8, 1..=1, &[], &none))), [1]);
        assert_eq!(consumer.accounts().map(|(_, account)| account.duplicates).sum::<u64>(), 2);
        assert_eq!(consumer.missing(), 0);
    }

    #[test]
    fn what_is_missing_is_noticed_unless_it_is_said() {
        let mut consumer = Consumer::new();
        let none = Catalog::new(0);
        consumer.take(UP, &batch(7, 1..=3, &[], &none));
        consumer.take(UP, &batch(7, 6..=7, &[], &none));
        assert_eq!(consumer.missing(), 2);
        let hole = Hole { first: 4, count: 2, reason: "cap".to_owned() };
        let mut said = batch(7, 6..=6, &[hole], &none);
        consumer.take(UP, &said);
        assert_eq!(consumer.missing(), 0);
        let (_, account) = consumer.accounts().next().unwrap();
        assert_eq!((account.said_lost, account.out_of_order), (2, 0));
        // The same said by a gap record in the control class.
        consumer.take(UP, &batch(7, 10..=10, &[], &none));
        assert_eq!(consumer.missing(), 2);
        let gap = Body::Gap { class: Class::Live, first: 8, last: 9, reason: "ttl".to_owned() };
        let meta = Meta {
            epoch: 7,
            class: Class::Control,
            hist: false,
            gw_time_us: 9,
            clock: Clock::Unknown,
            compression: Compression::None,
        };
        said = encode_batch(&meta, &[(1, Message { body: gap, ..message(0) })], &[], &none).unwrap();
        assert_eq!(consumer.take("sg/v1/box/up/ctl", &said).len(), 1);
        assert_eq!(consumer.missing(), 0);
    }

    #[test]
    fn a_late_number_is_out_of_order() {
        let mut consumer = Consumer::new();
        let none = Catalog::new(0);
        consumer.take(UP, &batch(7, 5..=5, &[], &none));
        consumer.take(UP, &batch(7, 4..=4, &[], &none));
        assert_eq!(consumer.accounts().next().unwrap().1.out_of_order, 1);
    }

    #[test]
    fn a_batch_waits_for_its_catalog() {
        let mut consumer = Consumer::new();
        assert!(consumer.take(UP, &batch(7, 1..=2, &[], &catalog(3))).is_empty());
        assert_eq!(consumer.waiting(), 1);
        let delivered = consumer.take("sg/v1/box/model/3", &catalog(3).encode());
        assert_eq!(seqs(&delivered), [1, 2]);
        assert_eq!(delivered[0].message(), Some(&message(1)));
        assert_eq!((consumer.waiting(), consumer.unreadable), (0, 0));
    }

    #[test]
    fn noise_is_counted() {
        let mut consumer = Consumer::new();
        consumer.take(UP, b"noise");
        consumer.take("sg/v1/box/json/x/properties", b"{");
        consumer.take("other/topic", b"noise");
        consumer.take("sg/v1/box/state", b"{}");
        assert_eq!(consumer.unreadable, 2);
        assert!(consumer.last_error.unwrap().starts_with("sg/v1/box/json/x/properties"));
    }
}
