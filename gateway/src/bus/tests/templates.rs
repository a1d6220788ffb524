//! Records that lean on templates: each segment can be read alone, whatever happened to its neighbours.

use device_models::wire::{Recorder, decode_record};
use device_models::{Body, Class, Message, Quality, Sample, Value};

use super::sim::{Leave, Rig};
use crate::bus::{Bus, Entry};

fn report(thing: u64, n: u64) -> Message {
    let sample = |alias: u32| Sample {
        alias,
        name: format!("tag{alias}").into(),
        value: Value::Float((n * 7 % 50 + u64::from(alias)) as f64 / 10.0),
        quality: Quality::Good,
    };
    let time_us = 1_700_000_000_000_000 + n as i64 * 1_000_000;
    let body = Body::Properties((1..=100).map(sample).collect());
    let model = format!("plc-{}", thing % 3);
    Message { thing: format!("t{thing}").into(), model: model.into(), time_us, received_us: time_us, body }
}

async fn append(bus: &Bus, recorder: &mut Recorder, numbers: std::ops::Range<u64>) {
    let mut last = 0;
    for n in numbers {
        last = bus.append_record(Class::Live, &recorder.record(&report(n % 5, n)), None).await.unwrap();
    }
    bus.settled(Class::Live, last).await.unwrap();
}

/// Every number is in one entry; the messages that are there are what they were.
fn check(entries: &[Entry], last: u64) -> u64 {
    let mut next = 1;
    let mut there = 0;
    for entry in entries {
        match entry {
            Entry::Record { seq, template, bytes } => {
                assert_eq!(*seq, next);
                assert_eq!(decode_record(bytes, template.as_ref()).unwrap(), report((seq - 1) % 5, seq - 1));
                there += 1;
            }
            Entry::Gap { first, .. } => assert_eq!(*first, next),
        }
        next = entry.last() + 1;
    }
    assert_eq!(next, last + 1);
    there
}

#[tokio::test]
async fn a_segment_needs_no_other_and_a_reader_may_begin_anywhere() {
    let mut rig = Rig::new();
    rig.config.segment_mib = 1;
    rig.config.cap_mib = 64;
    let (bus, _) = rig.start().unwrap();
    let mut recorder = Recorder::default();
    append(&bus, &mut recorder, 0..8_000).await;
    let (bytes, segments) = (bus.stat().class_bytes[2], bus.stat().segments);
    assert!(bytes < 8_000 * 250 && segments > 4, "{bytes} bytes in {segments} segments: 2.5 B a point");
    for seq in [1, 2, 3, 4_000, 7_999, 8_000] {
        let reader = bus.reader("one").unwrap();
        let Some(Entry::Record { template, bytes, .. }) = reader.one(Class::Live, seq).await.unwrap() else {
            panic!("{seq} is not there")
        };
        assert_eq!(decode_record(&bytes, template.as_ref()).unwrap(), report((seq - 1) % 5, seq - 1));
    }
    bus.close().await;
    // The first segment goes: what lies behind is read as before. A start goes on in the same file.
    let first = rig.disk.files("live-").remove(0);
    rig.disk.edit(&first, Vec::clear);
    let (bus, _) = rig.start().unwrap();
    append(&bus, &mut recorder, 8_000..8_100).await;
    let mut reader = bus.reader("one").unwrap();
    let there = check(&super::drain(&mut reader, Class::Live).await, 8_100);
    assert!(there > 400 && there < 8_100, "{there}");
    bus.close().await;
}

#[tokio::test]
async fn a_damaged_template_costs_what_leans_on_it_and_is_said() {
    for at in (40..4_000).step_by(97) {
        let rig = Rig::new();
        let (bus, _) = rig.start().unwrap();
        append(&bus, &mut Recorder::default(), 0..300).await;
        append(&bus, &mut Recorder::default(), 300..600).await;
        bus.close().await;
        let file = rig.disk.files("live-").remove(0);
        rig.disk.edit(&file, |bytes| bytes[at] ^= 0x10);
        let (bus, _) = rig.start().unwrap();
        let mut reader = bus.reader("up").unwrap();
        let there = check(&super::drain(&mut reader, Class::Live).await, 600);
        assert!((100..600).contains(&there), "byte {at}: {there}");
        bus.close().await;
    }
}

#[tokio::test]
async fn a_file_cut_at_any_byte_gives_what_lies_before() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    append(&bus, &mut Recorder::default(), 0..12).await;
    bus.close().await;
    let file = rig.disk.files("live-").remove(0);
    let len = rig.disk.edit(&file, |bytes| bytes.len());
    let mut most = 0;
    for cut in (40..=len).step_by(7).chain([len]) {
        let again = rig.cut(Leave::All);
        again.disk.edit(&file, |bytes| bytes.truncate(cut));
        let (bus, _) = again.start().unwrap();
        let through = bus.durable().borrow().through[2];
        let mut reader = bus.reader("up").unwrap();
        let there = check(&super::drain(&mut reader, Class::Live).await, through);
        assert!(there >= most, "cut at {cut}: {there} after {most}");
        most = there;
        bus.close().await;
    }
    assert_eq!(most, 12);
}

/// A store of the format before: records as they are, a header of version 1.
#[tokio::test]
async fn a_store_of_the_version_before_is_read_and_goes_on() {
    let rig = Rig::new();
    let (bus, _) = rig.start().unwrap();
    let seqs = super::append_all(&bus, Class::Live, &[b"old 1".to_vec(), b"old 2".to_vec()]).await;
    assert_eq!(seqs, [1, 2]);
    bus.close().await;
    for file in rig.disk.files(".seg") {
        rig.disk.edit(&file, |bytes| {
            bytes[8] = 1;
            let crc = crc32c::crc32c(&bytes[..36]);
            bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        });
    }
    let before = rig.disk.files("live-").len();
    let (bus, findings) = rig.start().unwrap();
    assert_eq!(findings, []);
    let mut recorder = Recorder::default();
    for n in 2..5 {
        let seq = bus.append_record(Class::Live, &recorder.record(&report(n % 5, n)), None).await.unwrap();
        bus.settled(Class::Live, seq).await.unwrap();
    }
    assert_eq!(rig.disk.files("live-").len(), before + 1, "a new file for the new format");
    let mut reader = bus.reader("up").unwrap();
    let entries = super::drain(&mut reader, Class::Live).await;
    let old: Vec<&[u8]> = entries
        .iter()
        .take(2)
        .filter_map(|e| match e {
            Entry::Record { bytes, .. } => Some(bytes.as_ref()),
            Entry::Gap { .. } => None,
        })
        .collect();
    assert_eq!((old, entries.len()), (vec![&b"old 1"[..], b"old 2"], 5));
    bus.close().await;
}
