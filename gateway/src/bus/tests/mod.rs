//! Tests of the bus as a whole: on a simulated disk whose power can be cut, and on the real one.

mod basic;
mod evict;
mod faults;
mod keyed;
mod kill;
mod model;
mod repair;
mod sim;
mod templates;

use device_models::Class;

use super::{Bus, Entry, Reader};

/// Appends records and waits until they are on disk.
async fn append_all(bus: &Bus, class: Class, records: &[Vec<u8>]) -> Vec<u64> {
    let mut seqs = Vec::new();
    for record in records {
        seqs.push(bus.append(class, record).await.unwrap());
    }
    bus.settled(class, *seqs.last().unwrap()).await.unwrap();
    seqs
}

/// Everything a reader has to give now.
async fn drain(reader: &mut Reader, class: Class) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let entries = reader.next(class, 1000, 100_000).await.unwrap();
        if entries.is_empty() {
            return all;
        }
        all.extend(entries);
    }
}

/// Checks that the entries cover `first..=last` without hole or overlap, and returns the records.
fn covered(entries: &[Entry], first: u64, last: u64) -> Vec<(u64, Vec<u8>)> {
    let mut next = first;
    let mut records = Vec::new();
    for entry in entries {
        match entry {
            Entry::Record { seq, bytes, .. } => {
                assert_eq!(*seq, next, "{entries:?}");
                records.push((*seq, bytes.to_vec()));
            }
            Entry::Gap { first, .. } => assert_eq!(*first, next, "{entries:?}"),
        }
        next = entry.last() + 1;
    }
    assert_eq!(next, last + 1, "the last number");
    records
}
