//! Random histories of appends, reads, commits, power cuts and disk faults, held against a model in memory: whatever was
//! settled is delivered, under its number, in order; whatever is missing is named; no number is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use device_models::Class;
use proptest::prelude::*;

use super::sim::{Leave, Rig};
use crate::bus::{Bus, Entry, Reader};

#[derive(Debug, Clone)]
enum Step {
    Append {
        class: Class,
        count: u8,
        len: u16,
    },
    /// So many records of 120 kB: segments roll, go when read, and are let go of at the cap.
    AppendBig {
        class: Class,
        count: u8,
    },
    Settle,
    Read {
        class: Class,
        records: u8,
        commit: bool,
    },
    Rewind,
    Put {
        key: u8,
        value: u8,
    },
    Flush,
    Fail {
        sync: bool,
    },
    Restart,
    Cut(Leave),
}

fn step() -> impl Strategy<Value = Step> {
    let class = || prop::sample::select(Class::ALL.to_vec());
    let leave =
        prop_oneof![Just(Leave::Nothing), Just(Leave::All), Just(Leave::Zeros), (0_usize..3000).prop_map(Leave::Bytes)];
    prop_oneof![
        6 => (class(), 1_u8..20, 0_u16..600).prop_map(|(class, count, len)| Step::Append { class, count, len }),
        2 => (class(), 1_u8..10).prop_map(|(class, count)| Step::AppendBig { class, count }),
        3 => Just(Step::Settle),
        6 => (class(), 1_u8..40, any::<bool>()).prop_map(|(class, records, commit)| Step::Read { class, records, commit }),
        1 => Just(Step::Rewind),
        2 => (0_u8..6, any::<u8>()).prop_map(|(key, value)| Step::Put { key, value }),
        1 => Just(Step::Flush),
        1 => any::<bool>().prop_map(|sync| Step::Fail { sync }),
        1 => Just(Step::Restart),
        2 => leave.prop_map(Step::Cut),
    ]
}

#[derive(Debug, Default)]
struct OneClass {
    sent: BTreeMap<u64, Vec<u8>>,
    open: Vec<u64>,
    settled: BTreeSet<u64>,
    /// Where the reader stands, and the highest number it was ever shown.
    next: u64,
    shown: u64,
    committed: u64,
}

struct World {
    rig: Rig,
    bus: Bus,
    reader: Reader,
    epoch: u64,
    classes: [OneClass; 4],
    /// By key: values that may be found, the durable one first.
    keyed: BTreeMap<u8, Vec<Option<u8>>>,
    /// Bytes appended in all.
    appended: usize,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new();
        (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
        // Short, so that segments go during a history.
        rig.collect = Duration::from_millis(5);
        let (bus, _) = rig.start().unwrap();
        let (reader, epoch) = (bus.reader("up").unwrap(), bus.epoch());
        let classes = [(); 4].map(|()| OneClass { next: 1, ..OneClass::default() });
        Self { rig, bus, reader, epoch, classes, keyed: BTreeMap::new(), appended: 0 }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Append { class, count, len } => self.append(class, count, len.into()).await,
            Step::AppendBig { class, count } => self.append(class, count, 120_000).await,
            Step::Settle => self.settle().await,
            Step::Read { class, records, commit } => self.read(class, records.into(), commit).await,
            Step::Rewind => {
                self.reader.rewind();
                self.classes.iter_mut().for_each(|class| class.next = class.committed + 1);
            }
            Step::Put { key, value } => {
                self.bus.keyed().put("t", &[key], &[value]).unwrap();
                self.keyed.entry(key).or_insert_with(|| vec![None]).push(Some(value));
            }
            Step::Flush => {
                self.bus.keyed().flush().await.unwrap();
                self.keyed.values_mut().for_each(|values| *values = values.split_off(values.len() - 1));
            }
            Step::Fail { sync } => self.rig.disk.faults.lock().unwrap().sync = sync,
            Step::Restart => {
                self.settle().await;
                self.bus.close().await;
                self.keyed.values_mut().for_each(|values| *values = values.split_off(values.len() - 1));
                self.reopen(Leave::All);
            }
            Step::Cut(leave) => self.reopen(leave),
        }
    }

    async fn append(&mut self, class: Class, count: u8, len: usize) {
        for _ in 0..count {
            let at = usize::from(class.number());
            let record = vec![self.classes[at].sent.len() as u8; len];
            let seq = self.bus.append(class, &record).await.unwrap();
            let model = &mut self.classes[at];
            let taken = model.settled.last().copied().unwrap_or(0).max(model.shown);
            assert!(seq > taken, "{seq} given again, behind {taken}");
            model.sent.insert(seq, record);
            model.open.push(seq);
            self.appended += len;
        }
    }

    async fn settle(&mut self) {
        for class in Class::ALL {
            let model = &mut self.classes[usize::from(class.number())];
            for seq in model.open.drain(..) {
                if self.bus.settled(class, seq).await.is_ok() {
                    model.settled.insert(seq);
                }
            }
        }
    }

    async fn read(&mut self, class: Class, records: usize, commit: bool) {
        let entries = self.reader.next(class, records, 100_000).await.unwrap();
        let model = &mut self.classes[usize::from(class.number())];
        for entry in &entries {
            match entry {
                Entry::Record { seq, bytes, .. } => {
                    assert_eq!(*seq, model.next);
                    // Gap records of its own the bus appends to the control class only, also under numbers that it had
                    // given before the power went, and that never counted.
                    let own = class == Class::Control && !model.settled.contains(seq) && is_gap(bytes);
                    assert!(own || model.sent[seq] == *bytes, "{class:?} {seq}");
                }
                Entry::Gap { first, last, reason } if reason == "cap" => {
                    assert_eq!(*first, model.next);
                    assert!(self.appended > 6 << 20, "{first} to {last} gone long before the cap");
                }
                Entry::Gap { first, last, .. } => {
                    assert_eq!(*first, model.next);
                    let settled: Vec<_> = model.settled.range(first..=last).collect();
                    assert!(settled.is_empty(), "{class:?}: {settled:?} were settled, and are said to be lost");
                }
            }
            model.next = entry.last() + 1;
            model.shown = model.shown.max(entry.last());
        }
        if let (true, Some(last)) = (commit, entries.last()) {
            self.reader.commit(class, last.last());
            model.committed = last.last();
        }
    }

    fn reopen(&mut self, leave: Leave) {
        self.rig = self.rig.cut(leave);
        let (bus, _) = self.rig.start().unwrap();
        assert_eq!(bus.epoch(), self.epoch);
        (self.reader, self.bus) = (bus.reader("up").unwrap(), bus);
        for (model, committed) in self.classes.iter_mut().zip(self.reader.committed()) {
            assert!(committed <= model.committed);
            model.committed = committed;
            model.next = committed + 1;
            model.open.clear();
        }
        for (key, values) in &mut self.keyed {
            let found = self.bus.keyed().get("t", &[*key]).unwrap().map(|value| value[0]);
            assert!(values.contains(&found), "key {key}: {found:?} of {values:?}");
            *values = vec![found];
        }
    }

    /// At the end everything settled is there.
    async fn finish(&mut self) {
        self.rig.disk.faults.lock().unwrap().sync = false;
        for class in Class::ALL {
            let seq = self.bus.append(class, b"last").await.unwrap();
            let model = &mut self.classes[usize::from(class.number())];
            model.sent.insert(seq, b"last".to_vec());
            model.open.push(seq);
        }
        self.settle().await;
        for class in Class::ALL {
            let at = usize::from(class.number());
            while self.classes[at].settled.last().is_some_and(|last| self.classes[at].next <= *last) {
                self.read(class, 50, true).await;
            }
        }
    }
}

fn is_gap(record: &[u8]) -> bool {
    let message = device_models::wire::decode_message(record);
    message.is_ok_and(|message| matches!(message.body, device_models::Body::Gap { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_settled_is_lost_and_nothing_lost_is_unsaid(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
        });
    }
}
