//! What goes when: shares of the classes, and the longest age.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device_models::{Body, Class};

use super::sim::{Leave, Removing, Rig};
use super::{append_all, covered, drain};
use crate::bus::keyed::full_key;
use crate::bus::segment::{HEADER, Name};
use crate::bus::table::Table;
use crate::bus::{Bus, Entry, Happening, Reader};
use crate::clock;

const DAY_US: i64 = 86_400_000_000;

async fn flood(bus: &Bus, class: Class, count: usize) {
    for _ in 0..count {
        append_all(bus, class, &[vec![7; 100_000]]).await;
    }
}

/// Bytes a class has left after `first` came (3 MB) and then `second` (20 MB), in a store of 8 MiB.
async fn left_after_flood(first: Class, second: Class) -> u64 {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    flood(&bus, first, 30).await;
    flood(&bus, second, 200).await;
    assert!(bus.stat().bytes <= 8 * 1024 * 1024);
    assert!(bus.stat().dropped["cap"] > 100, "{:?}", bus.stat());
    covered(&drain(&mut reader, first).await, 1, bus.stat().through[usize::from(first.number())]);
    let stat = bus.stat();
    stat.class_bytes[usize::from(first.number())]
}

#[tokio::test]
async fn a_flood_of_one_class_leaves_the_others_their_share() {
    const MIB: u64 = 1024 * 1024;
    // Shares of 8 MiB: control 10 %, event 20 %, live 40 %, historical 10 %; what is held goes by whole segments.
    for (first, second, least) in [
        (Class::Event, Class::Live, 8 * MIB * 20 / 100),
        (Class::Live, Class::Event, 5 * MIB / 2),
        (Class::Live, Class::Control, 5 * MIB / 2),
        (Class::Control, Class::Event, 8 * MIB * 10 / 100),
        (Class::Historical, Class::Live, 8 * MIB * 10 / 100),
    ] {
        let left = left_after_flood(first, second).await;
        assert!(left >= least, "{first:?} has {left} bytes left after a flood of {second:?}");
    }
}

/// Writes into a segment's header that it was begun so many days ago.
fn age(rig: &Rig, file: &std::path::Path, days: i64) {
    let name = Name::parse(file.file_name().unwrap().to_str().unwrap()).unwrap();
    let header = name.header(clock::now_us() - days * DAY_US);
    rig.disk.edit(file, |bytes| bytes[..HEADER].copy_from_slice(&header));
}

#[tokio::test]
async fn what_is_older_than_its_class_allows_goes_and_is_said_to_be_too_old() {
    let mut rig = Rig::new();
    rig.config.segment_mib = 1;
    let (bus, _) = rig.start().unwrap();
    bus.reader("up").unwrap();
    for class in [Class::Live, Class::Event] {
        flood(&bus, class, 25).await;
    }
    bus.close().await;
    let files = [rig.disk.files("live-"), rig.disk.files("event-")].concat();
    assert_eq!(files.len(), 6);
    for (at, file) in files.iter().enumerate() {
        age(&rig, file, 9 - (at as i64 % 3) * 3);
    }
    // Live: begun 9, 6 and 3 days ago. With a limit of 5 days the first goes (its last record is at least 6 days old).
    rig.config.ttl_hours.live = 5 * 24;
    let rig = rig.cut(Leave::All);
    let (bus, findings) = rig.start().unwrap();
    assert_eq!(findings, []);
    assert!(bus.stat().oldest_seconds[2] >= 9 * 86_400 - 60, "{:?}", bus.stat());
    let mut reader = bus.reader("up").unwrap();
    append_all(&bus, Class::Live, &[b"new".to_vec()]).await;
    reader.ready_in(Class::Control).await;
    let told = drain(&mut reader, Class::Control).await;
    let Some(Entry::Record { bytes, .. }) = told.first() else { panic!("{told:?}") };
    let message = device_models::wire::decode_message(bytes).unwrap();
    let entries = drain(&mut reader, Class::Live).await;
    let Entry::Gap { first, last, reason } = &entries[0] else { panic!("{entries:?}") };
    assert_eq!((*first, reason.as_str()), (1, "ttl"));
    let Body::Gap { class, first: told_first, last: told_last, reason } = message.body else { panic!("{message:?}") };
    assert_eq!((class, told_first, told_last, reason.as_str()), (Class::Live, 1, *last, "ttl"));
    assert_eq!(covered(&entries, 1, 26).len() as u64, 26 - last, "what is young enough stays");
    assert_eq!(covered(&drain(&mut reader, Class::Event).await, 1, 25).len(), 25, "events have no limit");
    assert_eq!(bus.stat().dropped["ttl"], *last);
}

/// A crash a moment after the first start: the reader would begin anew behind what had to go, and nobody would be told.
#[tokio::test]
async fn a_reader_that_settled_is_told_of_what_went_before_a_crash() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    bus.reader("up").unwrap().settle().await.unwrap();
    for _ in 0..120 {
        append_all(&bus, Class::Live, &[vec![7; 100_000]]).await;
    }
    let (bus, _) = rig.cut(Leave::Nothing).start().unwrap();
    assert!(bus.stat().oldest[2] > 1);
    let mut reader = bus.reader("up").unwrap();
    let records = covered(&drain(&mut reader, Class::Live).await, 1, 120);
    assert!(records.len() < 120 && !records.is_empty());
}

/// What a gap record names: class, first, last, reason.
fn gap(entry: &Entry) -> Option<(Class, u64, u64, String)> {
    let Entry::Record { bytes, .. } = entry else { return None };
    match device_models::wire::decode_message(bytes).unwrap().body {
        Body::Gap { class, first, last, reason } => Some((class, first, last, reason)),
        other => panic!("{other:?}"),
    }
}

async fn told(reader: &mut Reader) -> Vec<(Class, u64, u64, String)> {
    drain(reader, Class::Control).await.iter().map(|entry| gap(entry).expect("no hole in the control class")).collect()
}

/// A store at its cap with records let go of unread, and a copy of the box as a kill leaves it between the removal of the
/// newest of them and its gap record.
async fn killed_before_the_gap_was_told() -> Rig {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    bus.reader("up").unwrap().settle().await.unwrap();
    flood(&bus, Class::Live, 100).await;
    assert!(bus.stat().oldest[2] > 1);
    bus.reader("up").unwrap().ready_in(Class::Control).await;
    bus.close().await;
    // The gap records never were, and nobody has noted them.
    let rig = rig.cut(Leave::All);
    let control = rig.disk.files("ctl-").remove(0);
    rig.disk.edit(&control, |bytes| bytes.truncate(HEADER));
    for key in [b"told".as_slice(), b"high"] {
        let full = full_key("bus", key).unwrap();
        rig.table.apply(&[(full, None)]).unwrap();
    }
    rig
}

#[tokio::test]
async fn what_went_just_before_a_kill_is_named_by_the_next_start() {
    let rig = killed_before_the_gap_was_told().await;
    let (bus, _) = rig.start().unwrap();
    let oldest = bus.stat().oldest[2];
    let mut reader = bus.reader("up").unwrap();
    reader.ready_in(Class::Control).await;
    assert_eq!(told(&mut reader).await, [(Class::Live, 1, oldest - 1, "cap".to_owned())]);
    // It is on disk and noted: the start after that has nothing to add.
    reader.commit(Class::Control, 1);
    bus.close().await;
    let (bus, _) = rig.cut(Leave::All).start().unwrap();
    append_all(&bus, Class::Event, &[b"later".to_vec()]).await;
    bus.close().await;
    let (bus, _) = rig.cut(Leave::All).start().unwrap();
    assert_eq!(bus.stat().through[0], 1);
    let mut reader = bus.reader("up").unwrap();
    let live = drain(&mut reader, Class::Live).await;
    assert!(matches!(&live[0], Entry::Gap { first: 1, last, reason } if *last == oldest - 1 && reason == "cap"));
}

#[tokio::test]
async fn gap_records_that_the_disk_refused_are_said_again() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    // The commit after the one that let go of records is the one with their gap record: it fails.
    let (faults, step) = (Arc::clone(&rig.disk.faults), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&step);
    bus.observe(move |happening| match happening {
        Happening::Dropped { reason: "cap", .. } => {
            seen.fetch_max(1, Ordering::SeqCst);
        }
        Happening::Committed(_) if (1..3).contains(&seen.load(Ordering::SeqCst)) => {
            faults.lock().unwrap().sync = seen.fetch_add(1, Ordering::SeqCst) == 1;
        }
        _ => {}
    });
    while step.load(Ordering::SeqCst) == 0 {
        append_all(&bus, Class::Live, &[vec![7; 100_000]]).await;
    }
    let mut entries = Vec::new();
    while entries.len() < 2 {
        reader.ready_in(Class::Control).await;
        entries.extend(drain(&mut reader, Class::Control).await);
    }
    assert_eq!(step.load(Ordering::SeqCst), 3);
    assert!(matches!(entries[0], Entry::Gap { first: 1, last: 1, .. }), "the first one was refused: {entries:?}");
    let named = entries.iter().filter_map(gap).filter(|(class, ..)| *class == Class::Live).collect::<Vec<_>>();
    assert_eq!(named, [(Class::Live, 1, bus.stat().oldest[2] - 1, "cap".to_owned())]);
}

#[tokio::test]
async fn cursors_of_an_older_copy_name_what_they_cannot_tell() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    flood(&bus, Class::Live, 30).await;
    reader.commit(Class::Live, 5);
    bus.keyed().flush().await.unwrap();
    bus.close().await;
    let old = rig.cut(Leave::All).table;
    // The reader goes on, segments go because it has passed them, and then the keyed state of before comes back.
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    reader.commit(Class::Live, 28);
    while bus.stat().oldest[2] <= 6 {
        bus.keyed().flush().await.unwrap();
        append_all(&bus, Class::Event, &[b"tick".to_vec()]).await;
    }
    bus.close().await;
    for lossy in [true, false] {
        let rig = Rig { table: old.cut(), lossy, ..rig.cut(Leave::All) };
        let (bus, _) = rig.start().unwrap();
        let (oldest, reason) = (bus.stat().oldest[2], if lossy { "restored" } else { "cap" });
        let mut reader = bus.reader("up").unwrap();
        reader.ready_in(Class::Control).await;
        assert_eq!(told(&mut reader).await, [(Class::Live, 6, oldest - 1, reason.to_owned())]);
        let live = drain(&mut reader, Class::Live).await;
        assert_eq!(live[0], Entry::Gap { first: 6, last: oldest - 1, reason: reason.to_owned() });
        covered(&live, 6, 30);
        bus.close().await;
    }
}

#[tokio::test]
async fn what_goes_while_it_is_read_is_said_to_have_gone_at_the_cap() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.cap_mib) = (1, 8);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let (gone, mut going) = tokio::sync::mpsc::channel(1);
    let (go_on, held) = std::sync::mpsc::sync_channel::<()>(0);
    rig.disk.faults.lock().unwrap().removing = Some(Removing::new(move || {
        // Later ones find the test over.
        let _told = gone.try_send(());
        held.recv().unwrap_err();
    }));
    let record = vec![7; 100_000];
    loop {
        tokio::select! {
            biased;
            _ = going.recv() => break,
            appended = bus.append(Class::Live, &record) => drop(appended.unwrap()),
        }
    }
    // The file is gone, and the writer has not come back from it.
    let entries = reader.next(Class::Live, 5, 1_000_000).await.unwrap();
    let Entry::Gap { first: 1, last, reason } = &entries[0] else { panic!("{entries:?}") };
    assert_eq!((reason.as_str(), bus.stat().corrupt), ("cap", 0));
    assert!(matches!(entries[1], Entry::Record { seq, .. } if seq == last + 1), "{:?}", entries[1]);
    drop(go_on);
}
