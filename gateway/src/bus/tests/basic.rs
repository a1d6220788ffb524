//! The ordinary ways: append, read, commit, restart.

use std::time::{Duration, Instant};

use device_models::Class;

use super::sim::{Leave, Rig};
use super::{append_all, covered, drain};
use crate::bus::{Bus, BusError, Entry, Happening, RECORD_MAX, Road, cursors};
use crate::config;

fn records(from: u64, count: u64) -> Vec<Vec<u8>> {
    (from..from + count).map(|n| format!("record {n}").into_bytes()).collect()
}

#[tokio::test]
async fn the_shortest_window_wanted_counts_for_all_who_wait() {
    let mut rig = Rig::new();
    rig.config.commit_ms = 60_000;
    let (bus, _) = rig.start().unwrap();
    let record = device_models::wire::Record { template: None, bytes: b"x".to_vec() };
    // The first after a quiet spell goes at once; what follows waits for its window.
    append_all(&bus, Class::Live, &[b"first".to_vec()]).await;
    let patient = bus.append_record(Class::Live, &record, None).await.unwrap();
    assert!(bus.durable().borrow().settled(Class::Live, patient).is_none());
    let hasty = bus.append_record(Class::Event, &record, Some(Duration::ZERO)).await.unwrap();
    bus.settled(Class::Event, hasty).await.unwrap();
    assert_eq!(bus.durable().borrow().settled(Class::Live, patient), Some(true), "they go together");
    let later = bus.append_record(Class::Live, &record, Some(Duration::from_millis(20))).await.unwrap();
    bus.settled(Class::Live, later).await.unwrap();
    let patient = bus.append_record(Class::Live, &record, None).await.unwrap();
    assert!(bus.durable().borrow().settled(Class::Live, patient).is_none(), "what went has no say any more");
    bus.close().await;
}

#[tokio::test]
async fn what_is_appended_is_read_in_order_by_class() {
    let (bus, findings) = Rig::new().start().unwrap();
    assert_eq!(findings, []);
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(append_all(&bus, Class::Live, &records(0, 100)).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(append_all(&bus, Class::Event, &records(7, 1)).await, [1]);
    reader.ready().await;
    let live = covered(&drain(&mut reader, Class::Live).await, 1, 100);
    assert_eq!(live.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), records(0, 100));
    assert_eq!(covered(&drain(&mut reader, Class::Event).await, 1, 1), [(1, b"record 7".to_vec())]);
    assert_eq!(reader.backlog(), [0, 1, 100, 0]);
    reader.commit(Class::Live, 60);
    reader.rewind();
    assert_eq!(reader.backlog(), [0, 1, 40, 0]);
    covered(&drain(&mut reader, Class::Live).await, 61, 100);
}

#[tokio::test]
async fn numbers_cursors_and_epoch_survive_a_restart() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    let epoch = bus.epoch();
    append_all(&bus, Class::Live, &records(0, 10)).await;
    let mut reader = bus.reader("up").unwrap();
    reader.commit(Class::Live, 4);
    bus.close().await;
    assert!(matches!(bus.append(Class::Live, b"x").await, Err(BusError::Closed)));

    let (bus, findings) = rig.cut(Leave::Nothing).start().unwrap();
    assert_eq!((bus.epoch(), findings), (epoch, vec![]));
    assert_eq!(append_all(&bus, Class::Live, &records(10, 1)).await, [11]);
    let mut reader = bus.reader("up").unwrap();
    let read = covered(&drain(&mut reader, Class::Live).await, 5, 11);
    assert_eq!(read.last().unwrap().1, b"record 10");
}

/// How far the note of a reader's cursor is.
fn noted(bus: &Bus) -> u64 {
    let note = bus.keyed().get(cursors::TREE, b"up").unwrap().unwrap();
    cursors::decode_cursor(&note).unwrap().1[usize::from(Class::Live.number())].through
}

/// The next number, once the writer has looked at the cursors after everything before.
async fn looked(bus: &Bus) -> u64 {
    bus.keyed().flush().await.unwrap();
    append_all(bus, Class::Live, &records(0, 1)).await;
    append_all(bus, Class::Live, &records(0, 1)).await[0]
}

#[tokio::test]
async fn a_cursor_is_noted_now_and_then_or_at_once_when_much_waits_for_it() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    let began = Instant::now();
    let mut reader = bus.reader("up").unwrap();
    let first = looked(&bus).await;
    reader.commit(Class::Live, first);
    let second = looked(&bus).await;
    assert!(noted(&bus) < first || began.elapsed() >= cursors::NOTE_EVERY, "little waits: each note costs flash");
    append_all(&bus, Class::Live, &records(0, 1_000)).await;
    reader.commit(Class::Live, second + 1_000);
    looked(&bus).await;
    assert_eq!(noted(&bus), second + 1_000, "a crash would send a thousand again");
    let last = *append_all(&bus, Class::Live, &vec![vec![7; 100_000]; 15]).await.last().unwrap();
    reader.commit(Class::Live, last);
    looked(&bus).await;
    assert_eq!(noted(&bus), last, "a full segment waits for it");
    looked(&bus).await;
    assert!(bus.stat().class_bytes[2] < 1 << 20, "and goes: {:?}", bus.stat());
}

#[tokio::test]
async fn records_of_all_lengths_pass_and_too_long_ones_are_refused() {
    let (bus, _) = Rig::new().start().unwrap();
    let lengths = [0, 1, 15, 16, 17, 4096, 100_000, 300_000, RECORD_MAX];
    let records: Vec<Vec<u8>> = lengths.iter().map(|len| vec![0xa5; *len]).collect();
    append_all(&bus, Class::Historical, &records).await;
    let mut reader = bus.reader("up").unwrap();
    let read = covered(&drain(&mut reader, Class::Historical).await, 1, lengths.len() as u64);
    assert_eq!(read.into_iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), lengths);
    let refused = bus.append(Class::Live, &vec![0; RECORD_MAX + 1]).await;
    assert!(matches!(refused, Err(BusError::TooLong { .. })));
}

#[tokio::test]
async fn next_keeps_to_its_limits_and_always_gets_on() {
    let (bus, _) = Rig::new().start().unwrap();
    append_all(&bus, Class::Live, &vec![vec![1; 100]; 50]).await;
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(reader.next(Class::Live, 7, 1_000_000).await.unwrap().len(), 7);
    assert_eq!(reader.next(Class::Live, 50, 350).await.unwrap().len(), 3);
    assert_eq!(reader.next(Class::Live, 50, 1).await.unwrap().len(), 1, "one record however long");
    assert_eq!(reader.next(Class::Live, 0, 1).await.unwrap(), []);
}

#[tokio::test]
async fn ready_waits_for_what_is_durable() {
    let (bus, _) = Rig::new().start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let append = async {
        tokio::task::yield_now().await;
        bus.append(Class::Control, b"now").await.unwrap()
    };
    let ((), seq) = tokio::join!(reader.ready(), append);
    let entries = reader.next(Class::Control, 10, 1000).await.unwrap();
    assert_eq!(entries, [Entry::Record { seq, template: None, bytes: "now".into() }]);
}

#[tokio::test]
async fn it_works_on_the_real_disk_with_sled() {
    let folder = tempfile::tempdir().unwrap();
    let config = config::Store { path: folder.path().join("store"), free_min_mib: 0, ..config::Store::default() };
    let (bus, findings) = Bus::open(&config).unwrap();
    assert_eq!(findings, []);
    let epoch = bus.epoch();
    append_all(&bus, Class::Live, &records(0, 1000)).await;
    bus.reader("up").unwrap().commit(Class::Live, 999);
    bus.keyed().put("registry", b"meter-1", b"{}").unwrap();
    bus.close().await;

    let (bus, findings) = Bus::open(&config).unwrap();
    assert_eq!((bus.epoch(), findings), (epoch, vec![]));
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(covered(&drain(&mut reader, Class::Live).await, 1000, 1000), [(1000, b"record 999".to_vec())]);
    assert_eq!(bus.keyed().get("registry", b"meter-1").unwrap().as_deref(), Some(&b"{}"[..]));
    assert!(matches!(Bus::open(&config), Err(BusError::Locked { .. })), "one process holds the store");
    bus.close().await;
}

#[tokio::test]
async fn the_figures_say_what_happened() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&seen);
    bus.observe(move |happening| told.lock().unwrap().push(happening));
    let mut reader = bus.reader("up").unwrap();
    append_all(&bus, Class::Live, &[vec![1; 100], vec![2; 100]]).await;
    rig.disk.faults.lock().unwrap().sync = true;
    let lost = bus.append(Class::Event, b"lost").await.unwrap();
    assert!(bus.settled(Class::Event, lost).await.is_err());
    rig.disk.faults.lock().unwrap().sync = false;
    append_all(&bus, Class::Event, &[b"kept".to_vec()]).await;
    reader.ready_in(Class::Control).await;
    let stat = bus.stat();
    assert_eq!((stat.appended, stat.settled, stat.failed), ([1, 2, 2, 0], [1, 1, 2, 0], [0, 1, 0, 0]));
    assert_eq!(stat.dropped.into_iter().collect::<Vec<_>>(), [("disk-error", 1)]);
    assert_eq!(stat.class_bytes.iter().sum::<u64>(), stat.bytes);
    assert_eq!(stat.free_bytes, u64::MAX);
    assert!(stat.oldest_seconds.iter().all(|seconds| *seconds < 60), "{:?}", stat.oldest_seconds);
    reader.commit(Class::Live, 2);
    assert_eq!(bus.stat().oldest_seconds[2], 0);
    let seen = seen.lock().unwrap();
    assert!(seen.contains(&Happening::Dropped { reason: "disk-error", count: 1 }), "{seen:?}");
    assert!(seen.iter().any(|happening| matches!(happening, Happening::Committed(_))));
}

fn numbers(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(Entry::last).collect()
}

#[tokio::test]
async fn what_comes_is_read_beside_what_waits_and_neither_is_read_twice() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    append_all(&bus, Class::Live, &records(0, 10)).await;
    let mut reader = bus.reader("up").unwrap();
    assert!(!reader.is_split(Class::Live) && reader.split(Class::Live, None) && reader.is_split(Class::Live));
    append_all(&bus, Class::Live, &records(10, 10)).await;
    assert_eq!(numbers(&reader.next_on(Road::Newest, Class::Live, 5, 1 << 20).await.unwrap()), [11, 12, 13, 14, 15]);
    assert_eq!(numbers(&reader.next_on(Road::Main, Class::Live, 4, 1 << 20).await.unwrap()), [1, 2, 3, 4]);
    reader.commit_span(Class::Live, 11, 13);
    // Behind again: 15 was read but not sent, the rest waits; new ones do not wait for either.
    assert!(reader.split(Class::Live, Some(15)));
    append_all(&bus, Class::Live, &records(20, 2)).await;
    reader.ready_on(&[(Road::Newest, Class::Live)]).await;
    assert_eq!(numbers(&reader.next_on(Road::Newest, Class::Live, 9, 1 << 20).await.unwrap()), [21, 22]);
    let mut main = Vec::new();
    loop {
        let entries = reader.next_on(Road::Main, Class::Live, 100, 1 << 20).await.unwrap();
        if entries.is_empty() {
            break;
        }
        main.extend(numbers(&entries));
    }
    assert_eq!(main, [5, 6, 7, 8, 9, 10, 15, 16, 17, 18, 19, 20]);
    reader.commit_span(Class::Live, 21, 22);
    assert_eq!((reader.backlog()[2], bus.backlog("up")[2], reader.committed()[2]), (17, 17, 0));
    bus.close().await;

    let (bus, _) = rig.cut(Leave::Nothing).start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let mut left = Vec::new();
    loop {
        let entries = reader.next(Class::Live, 100, 1 << 20).await.unwrap();
        if entries.is_empty() {
            break;
        }
        left.extend(numbers(&entries));
    }
    assert_eq!(left, (1..=10).chain(14..=20).collect::<Vec<_>>());
    reader.commit_span(Class::Live, 1, 10);
    assert_eq!(reader.committed()[2], 13);
    assert!(matches!(reader.one(Class::Live, 16).await.unwrap(), Some(Entry::Record { seq: 16, .. })));
    assert!(reader.one(Class::Live, 99).await.unwrap().is_none());
}
