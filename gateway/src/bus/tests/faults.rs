//! Torn tails, flipped bits, zeros, lost files, full and failing disks: a start always goes on, every number is delivered
//! or named.

use std::path::PathBuf;

use device_models::Class;

use super::sim::{Leave, Rig};
use super::{append_all, covered, drain};
use crate::bus::segment::HEADER;
use crate::bus::{BusError, Entry, FindingKind};

/// A box with one live segment of `count` records (their number and a pad), stopped cleanly, and nothing read.
async fn stopped(count: u64) -> (Rig, PathBuf) {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    let records: Vec<Vec<u8>> = (1..=count).map(record).collect();
    drop(bus.reader("up").unwrap());
    append_all(&bus, Class::Live, &records).await;
    bus.close().await;
    let file = rig.disk.files("live-").remove(0);
    (rig, file)
}

fn record(n: u64) -> Vec<u8> {
    format!("{n:09}").into_bytes()
}

/// Every record delivered is the one sent under its number.
fn check_records(records: &[(u64, Vec<u8>)], upto: u64) {
    for (seq, bytes) in records.iter().filter(|(seq, _)| *seq <= upto) {
        assert_eq!(*bytes, record(*seq));
    }
}

#[tokio::test]
async fn a_segment_cut_at_any_byte_keeps_what_lies_before() {
    let (rig, file) = stopped(12).await;
    let whole = rig.disk.edit(&file, |bytes| bytes.len());
    let frame = (whole - HEADER) / 12;
    for len in HEADER..whole {
        let rig = rig.cut(Leave::Nothing);
        rig.disk.edit(&file, |bytes| bytes.truncate(len));
        let (bus, findings) = rig.start().unwrap();
        let kept = ((len - HEADER) / frame) as u64;
        let torn = !(len - HEADER).is_multiple_of(frame);
        assert_eq!(findings.iter().any(|f| f.kind == FindingKind::TornTail), torn, "{len}: {findings:?}");
        let seq = bus.append(Class::Live, b"later").await.unwrap();
        assert!(seq > kept);
        bus.settled(Class::Live, seq).await.unwrap();
        let mut reader = bus.reader("up").unwrap();
        let records = covered(&drain(&mut reader, Class::Live).await, 1, seq);
        assert_eq!(records.len() as u64, kept + 1, "cut at {len}");
        check_records(&records, kept);
    }
}

#[tokio::test]
async fn a_file_cut_between_two_records_gives_no_number_again() {
    let (rig, file) = stopped(12).await;
    let frame = (rig.disk.edit(&file, |bytes| bytes.len()) - HEADER) / 12;
    for kept in [0, 1, 6, 11, 12] {
        let rig = rig.cut(Leave::Nothing);
        rig.disk.edit(&file, |bytes| bytes.truncate(HEADER + kept * frame));
        let (bus, findings) = rig.start().unwrap();
        assert_eq!(findings.iter().any(|f| f.kind == FindingKind::LostRecords), kept < 12, "{kept}: {findings:?}");
        let seq = append_all(&bus, Class::Live, &[record(0)]).await[0];
        assert!(seq > 12, "{kept} kept: {seq} given again");
        assert!(kept < 12 || seq == 13, "nothing is skipped without need");
        let mut reader = bus.reader("up").unwrap();
        assert_eq!(covered(&drain(&mut reader, Class::Live).await, 1, seq).len(), kept + 1);
    }
}

#[tokio::test]
async fn a_newest_segment_that_is_lost_gives_no_number_again() {
    let mut rig = Rig::new();
    rig.config.segment_mib = 1;
    let (bus, _) = rig.start().unwrap();
    drop(bus.reader("up").unwrap());
    append_all(&bus, Class::Live, &vec![vec![7; 100_000]; 25]).await;
    // A commit notes the newest segments at its end: the next one comes after that. Then the power goes.
    append_all(&bus, Class::Event, &[record(1)]).await;
    bus.keyed().flush().await.unwrap();
    let rig = rig.cut(Leave::Nothing);
    let newest = rig.disk.files("live-").pop().unwrap();
    crate::bus::disk::Disk::remove(&rig.disk, &newest).unwrap();
    let (bus, findings) = rig.start().unwrap();
    assert!(findings.iter().any(|f| f.kind == FindingKind::LostRecords), "{findings:?}");
    let seq = append_all(&bus, Class::Live, &[record(0)]).await[0];
    assert!(seq > 25, "{seq} given again");
    let mut reader = bus.reader("up").unwrap();
    covered(&drain(&mut reader, Class::Live).await, 1, seq);
}

#[tokio::test]
async fn a_flipped_bit_anywhere_costs_at_most_its_record_and_is_said() {
    let (rig, file) = stopped(12).await;
    let whole = rig.disk.edit(&file, |bytes| bytes.len());
    let frame = (whole - HEADER) / 12;
    for at in 0..whole {
        let rig = rig.cut(Leave::Nothing);
        rig.disk.edit(&file, |bytes| bytes[at] ^= 1 << (at % 8));
        let (bus, findings) = rig.start().unwrap();
        assert!(!findings.is_empty(), "byte {at}");
        let seq = bus.append(Class::Live, b"later").await.unwrap();
        assert!(seq > 12, "byte {at}: number {seq} given again");
        bus.settled(Class::Live, seq).await.unwrap();
        let mut reader = bus.reader("up").unwrap();
        let entries = drain(&mut reader, Class::Live).await;
        let records = covered(&entries, 1, seq);
        check_records(&records, 12);
        let hit = if at < HEADER { None } else { Some(((at - HEADER) / frame) as u64 + 1) };
        let lost: Vec<u64> = (1..=12).filter(|n| !records.iter().any(|(seq, _)| seq == n)).collect();
        assert_eq!(lost, hit.into_iter().collect::<Vec<_>>(), "byte {at}");
        assert_eq!(entries.iter().any(|entry| matches!(entry, Entry::Gap { .. })), hit.is_some());
    }
}

#[tokio::test]
async fn zeros_in_any_place_are_stepped_over() {
    let (rig, file) = stopped(40).await;
    let whole = rig.disk.edit(&file, |bytes| bytes.len());
    for at in (0..whole).step_by(13) {
        let rig = rig.cut(Leave::Nothing);
        rig.disk.edit(&file, |bytes| {
            let end = (at + 100).min(whole);
            bytes[at..end].fill(0);
        });
        let (bus, _) = rig.start().unwrap();
        let seq = bus.append(Class::Live, b"later").await.unwrap();
        assert!(seq > 40, "zeros at {at}");
        bus.settled(Class::Live, seq).await.unwrap();
        let mut reader = bus.reader("up").unwrap();
        let records = covered(&drain(&mut reader, Class::Live).await, 1, seq);
        check_records(&records, 40);
        assert!(records.len() >= 40 + 1 - 100 / 25 - 2, "zeros at {at}: {} left", records.len());
    }
}

#[tokio::test]
async fn a_segment_of_rubbish_is_set_aside_and_its_numbers_are_not_given_again() {
    let (rig, file) = stopped(12).await;
    rig.disk.edit(&file, |bytes| bytes.fill(0x5a));
    let (bus, findings) = rig.start().unwrap();
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::Quarantined), "{findings:?}");
    assert_eq!(rig.disk.files(".bad").len(), 1);
    let seq = append_all(&bus, Class::Live, &[record(0)]).await[0];
    assert!(seq > 12);
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(covered(&drain(&mut reader, Class::Live).await, 1, seq).len(), 1);
}

#[tokio::test]
async fn a_lost_log_starts_a_new_epoch() {
    let (rig, _) = stopped(12).await;
    let old = rig.start().unwrap().0.epoch();
    let rig = Rig { disk: super::sim::SimDisk::default(), ..rig };
    let (bus, findings) = rig.start().unwrap();
    assert_ne!(bus.epoch(), old);
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::NewEpoch));
    assert_eq!(append_all(&bus, Class::Live, &[record(1)]).await, [1]);
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(covered(&drain(&mut reader, Class::Live).await, 1, 1).len(), 1, "an old cursor means nothing");
}

#[tokio::test]
async fn a_lost_class_goes_on_behind_every_number_it_gave() {
    let (rig, file) = stopped(12).await;
    let (bus, _) = rig.start().unwrap();
    let epoch = bus.epoch();
    bus.close().await;
    let rig = rig.cut(Leave::Nothing);
    crate::bus::disk::Disk::remove(&rig.disk, &file).unwrap();
    let (bus, findings) = rig.start().unwrap();
    assert_eq!(bus.epoch(), epoch, "the other classes go on");
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::LostSegment), "{findings:?}");
    let seq = append_all(&bus, Class::Live, &[record(0)]).await[0];
    assert!(seq > 12);
    let mut reader = bus.reader("up").unwrap();
    covered(&drain(&mut reader, Class::Live).await, 1, seq);
}

#[tokio::test]
async fn a_failing_disk_refuses_and_recovers_and_names_the_loss() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    append_all(&bus, Class::Live, &[record(1)]).await;
    rig.disk.faults.lock().unwrap().sync = true;
    let lost = bus.append(Class::Live, &record(2)).await.unwrap();
    assert!(matches!(bus.settled(Class::Live, lost).await, Err(BusError::Failed { seq: 2, .. })));
    assert_eq!(drain(&mut reader, Class::Live).await.len(), 1, "what failed is not shown");
    rig.disk.faults.lock().unwrap().sync = false;
    let seqs = append_all(&bus, Class::Live, &[record(3)]).await;
    assert_eq!(seqs, [3]);
    assert!(matches!(bus.settled(Class::Live, lost).await, Err(BusError::Failed { .. })), "and stays refused");
    let entries = drain(&mut reader, Class::Live).await;
    assert_eq!(entries[0], Entry::Gap { first: 2, last: 2, reason: "disk-error".into() });
    assert_eq!(covered(&entries, 2, 3), [(3, record(3))]);
    reader.ready_in(Class::Control).await;
    assert_eq!(drain(&mut reader, Class::Control).await.len(), 1, "the control class is told");
    bus.close().await;
    // And the same is read after a restart.
    let (bus, _) = rig.cut(Leave::Nothing).start().unwrap();
    let mut reader = bus.reader("again").unwrap();
    assert_eq!(covered(&drain(&mut reader, Class::Live).await, 1, 3).len(), 2);
}

#[tokio::test]
async fn a_class_that_was_read_to_its_end_keeps_its_place_while_the_disk_fails() {
    let rig = Rig::new();
    append_all(&rig.start().unwrap().0, Class::Live, &[record(1)]).await;
    // The power goes before the keyed state says anything.
    let rig = rig.cut(Leave::Nothing);
    let (bus, _) = rig.start().unwrap();
    bus.reader("up").unwrap().commit(Class::Live, 1);
    rig.disk.faults.lock().unwrap().sync = true;
    for _ in 0..4 {
        // Each commit that fails looks at what readers have passed; the cursor is durable by the second.
        let seq = bus.append(Class::Live, &record(2)).await.unwrap();
        bus.settled(Class::Live, seq).await.unwrap_err();
        bus.keyed().flush().await.unwrap();
    }
    let (again, _) = rig.cut(Leave::All).start().unwrap();
    assert_eq!(again.epoch(), bus.epoch(), "no number is known to be free without a file of its class");
    assert!(append_all(&again, Class::Live, &[record(3)]).await[0] > 1);
}

#[tokio::test]
async fn a_full_disk_lets_the_oldest_go_and_the_live_path_goes_on() {
    let mut rig = Rig::new();
    rig.config.segment_mib = 1;
    rig.disk.faults.lock().unwrap().room = Some(6 * 1024 * 1024);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let big = vec![7; 100_000];
    let mut last = 0;
    for _ in 0..200 {
        last = bus.append(Class::Live, &big).await.unwrap();
        bus.settled(Class::Live, last).await.unwrap();
    }
    assert!(rig.disk.bytes() <= 6 * 1024 * 1024);
    let entries = drain(&mut reader, Class::Live).await;
    assert!(matches!(entries[0], Entry::Gap { first: 1, .. }));
    let kept = covered(&entries, 1, last);
    assert!((30..=62).contains(&kept.len()), "{}", kept.len());
}

#[tokio::test]
async fn at_the_cap_the_lowest_class_goes_first_and_the_control_class_is_told() {
    let mut rig = Rig::new();
    rig.config.cap_mib = 8;
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let big = vec![7; 100_000];
    for _ in 0..30 {
        append_all(&bus, Class::Event, std::slice::from_ref(&big)).await;
        append_all(&bus, Class::Historical, std::slice::from_ref(&big)).await;
    }
    for _ in 0..40 {
        append_all(&bus, Class::Live, std::slice::from_ref(&big)).await;
        assert!(bus.stat().bytes <= 8 * 1024 * 1024);
    }
    assert_eq!(covered(&drain(&mut reader, Class::Event).await, 1, 30).len(), 30, "the higher class is kept");
    let entries = drain(&mut reader, Class::Historical).await;
    assert!(matches!(&entries[0], Entry::Gap { first: 1, reason, .. } if reason == "cap"), "{entries:?}");
    assert!(covered(&entries, 1, 30).len() < 15);
    reader.ready_in(Class::Control).await;
    let told = drain(&mut reader, Class::Control).await;
    assert!(!told.is_empty());
    for entry in told {
        let Entry::Record { bytes, .. } = entry else { panic!("a gap in the control class") };
        let message = device_models::wire::decode_message(&bytes).unwrap();
        assert!(matches!(message.body, device_models::Body::Gap { reason, .. } if reason == "cap"));
    }
}

#[tokio::test]
async fn what_every_reader_has_passed_goes_and_is_no_gap() {
    let mut rig = Rig::new();
    rig.config.segment_mib = 1;
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let big = vec![7; 100_000];
    for _ in 0..100 {
        append_all(&bus, Class::Live, std::slice::from_ref(&big)).await;
    }
    assert!(bus.stat().bytes > 9_000_000);
    reader.commit(Class::Live, 95);
    while bus.stat().bytes > 2_000_000 {
        // Each commit looks; the cursor has to be durable first, which this waits for.
        bus.keyed().flush().await.unwrap();
        append_all(&bus, Class::Event, &[record(1)]).await;
    }
    assert_eq!(bus.stat().evicted, 0);
    bus.close().await;
    let (bus, _) = rig.cut(Leave::Nothing).start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    assert_eq!(covered(&drain(&mut reader, Class::Live).await, 96, 100).len(), 5);
}

#[tokio::test]
async fn whatever_a_power_cut_leaves_what_was_settled_is_there() {
    for leave in [Leave::Nothing, Leave::Bytes(1), Leave::Bytes(20), Leave::Bytes(60), Leave::Zeros, Leave::All] {
        let rig = Rig::new();
        let (bus, _) = rig.start().unwrap();
        append_all(&bus, Class::Live, &(1..=5).map(record).collect::<Vec<_>>()).await;
        rig.disk.faults.lock().unwrap().sync = true;
        // Written, never synced.
        let lost = bus.append(Class::Live, &record(6)).await.unwrap();
        assert!(bus.settled(Class::Live, lost).await.is_err());
        let rig = rig.cut(leave);
        let (bus, _) = rig.start().unwrap();
        let seq = append_all(&bus, Class::Live, &[record(0)]).await[0];
        let mut reader = bus.reader("up").unwrap();
        let records = covered(&drain(&mut reader, Class::Live).await, 1, seq);
        check_records(&records, 5);
        assert!(records.len() >= 6, "{leave:?}: {records:?}");
    }
}

#[tokio::test]
async fn the_free_space_floor_is_kept() {
    let mut rig = Rig::new();
    (rig.config.segment_mib, rig.config.free_min_mib) = (1, 3);
    rig.disk.faults.lock().unwrap().room = Some(10 * 1024 * 1024);
    let (bus, _) = rig.start().unwrap();
    let mut reader = bus.reader("up").unwrap();
    let big = vec![7; 100_000];
    for _ in 0..150 {
        append_all(&bus, Class::Live, std::slice::from_ref(&big)).await;
        assert!(rig.disk.bytes() <= 8 * 1024 * 1024, "at most a segment into the floor");
    }
    covered(&drain(&mut reader, Class::Live).await, 1, 150);
    assert!(bus.stat().evicted > 0);
}

#[tokio::test]
async fn a_first_start_that_was_cut_off_is_a_first_start_again() {
    let rig = Rig::new();
    drop(rig.start().unwrap());
    let rig = Rig { table: super::sim::SimTable::default(), ..rig.cut(Leave::Nothing) };
    for file in rig.disk.files("epoch").into_iter().chain(rig.disk.files("ctl-")) {
        crate::bus::disk::Disk::remove(&rig.disk, &file).unwrap();
    }
    let (bus, findings) = rig.start().unwrap();
    assert_eq!(findings, []);
    assert_eq!(append_all(&bus, Class::Live, &[record(1)]).await, [1]);
}
