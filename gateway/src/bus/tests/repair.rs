//! Damage of every kind at random places: a repair names what is gone and keeps the rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use device_models::wire::{Recorder, decode_message};
use device_models::{Body, Class, Message, Quality, Sample, Value};

use super::{covered, drain};
use crate::bus::{Bus, Survey};
use crate::config;

/// A fixed sequence: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn store(folder: &Path) -> config::Store {
    config::Store { path: folder.to_owned(), segment_mib: 1, free_min_mib: 0, ..config::Store::default() }
}

fn report(n: u64) -> Message {
    let sample = |alias: u32| Sample {
        alias,
        name: format!("tag{alias}").into(),
        value: Value::Text(format!("{n} {}", "x".repeat(40))),
        quality: Quality::Good,
    };
    let body = Body::Properties((1..=40).map(sample).collect());
    Message { thing: "t".into(), model: "m".into(), time_us: n as i64, received_us: n as i64, body }
}

const REPORTS: u64 = 1_500;

async fn fill(folder: &Path) {
    let (bus, _) = Bus::open(&store(folder)).unwrap();
    let mut recorder = Recorder::default();
    let mut last = 0;
    for n in 1..=REPORTS {
        last = bus.append_record(Class::Live, &recorder.record(&report(n)), None).await.unwrap();
        bus.append(Class::Event, format!("event {n}").as_bytes()).await.unwrap();
    }
    bus.settled(Class::Live, last).await.unwrap();
    bus.close().await;
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    all.retain(|path| path.to_string_lossy().contains("live-") || path.to_string_lossy().contains("event-"));
    all.sort();
    all
}

fn damage(dice: &mut Dice, file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = dice.below(bytes.len() as u64) as usize;
    let until = (at + 1 + dice.below(9_000) as usize).min(bytes.len());
    match dice.below(4) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at..until].fill(0),
        2 => bytes[at..until].iter_mut().for_each(|byte| *byte = dice.below(256) as u8),
        _ => bytes.truncate(at),
    }
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_repair_names_all_that_is_damaged_and_keeps_all_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).await;
    let sound = Survey::open(folder.path()).unwrap().check(&mut |_| {}).unwrap();
    assert_eq!((sound.damages.as_slice(), sound.lost()), (&[][..], 0));
    assert!(sound.files > 5 && sound.records >= 2 * REPORTS && sound.rescue_entries.is_some(), "{sound:?}");
    let mut dice = Dice(11);
    for round in 0..16 {
        let again = tempfile::tempdir().unwrap();
        copy(folder.path(), again.path());
        let files = segments(again.path());
        for _ in 0..=dice.below(4) {
            let at = dice.below(files.len() as u64) as usize;
            damage(&mut dice, &files[at]);
        }
        let told = Bus::repair(&store(again.path()), &mut |_| {}).await.unwrap();
        let after = Survey::open(again.path()).unwrap().check(&mut |_| {}).unwrap();
        assert_eq!((after.damages.as_slice(), after.lost()), (&[][..], 0), "round {round}: {told:?}");
        check(&again, round).await;
    }
}

/// Everything is there, or named to upstream in the control class.
async fn check(folder: &tempfile::TempDir, round: u64) {
    let (bus, _) = Bus::open(&store(folder.path())).unwrap();
    let mut reader = bus.reader("up").unwrap();
    let mut named = [BTreeSet::new(), BTreeSet::new()];
    let through = bus.durable().borrow().through;
    for (_, bytes) in covered(&drain(&mut reader, Class::Control).await, 1, through[0]) {
        if let Body::Gap { class, first, last, .. } = decode_message(&bytes).unwrap().body {
            named[usize::from(class == Class::Live)].extend(first..=last.min(REPORTS));
        }
    }
    for (class, named, at) in [(Class::Event, &named[0], 1), (Class::Live, &named[1], 2)] {
        let records = covered(&drain(&mut reader, class).await, 1, through[at]);
        let there: BTreeSet<u64> = records.iter().map(|(seq, _)| *seq).collect();
        let unsaid: Vec<u64> = (1..=REPORTS).filter(|seq| !there.contains(seq) && !named.contains(seq)).collect();
        assert!(unsaid.is_empty(), "round {round}, {class:?}: {unsaid:?}");
    }
    for (seq, bytes) in covered(&drain(&mut bus.reader("two").unwrap(), Class::Event).await, 1, through[1]) {
        assert!(seq > REPORTS || bytes == format!("event {seq}").as_bytes(), "round {round}, event {seq}");
    }
    bus.close().await;
}

#[tokio::test]
async fn what_every_reader_has_is_not_called_lost() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).await;
    let (bus, _) = Bus::open(&store(folder.path())).unwrap();
    bus.reader("up").unwrap().commit(Class::Event, REPORTS);
    bus.close().await;
    let file = segments(folder.path()).into_iter().find(|path| path.to_string_lossy().contains("event-")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let repaired = Bus::repair(&store(folder.path()), &mut |_| {}).await.unwrap();
    assert_eq!((repaired.checkup.lost(), repaired.told), (1, 0));
    assert!(file.with_extension("seg.bad").exists(), "the damaged file is kept");
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
