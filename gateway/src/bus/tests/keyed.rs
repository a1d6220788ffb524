//! The keyed state on real sled: every change is seen at once, long values are split, damage is survived.

use std::path::Path;

use crate::bus::disk::RealDisk;
use crate::bus::table::{BROKEN, SledTable};
use crate::bus::{Bus, BusError, FindingKind, guard};
use crate::config;

fn store(folder: &Path) -> config::Store {
    config::Store { path: folder.join("store"), free_min_mib: 0, ..config::Store::default() }
}

fn value(n: u32) -> Vec<u8> {
    n.to_le_bytes().repeat(3 + n as usize % 40)
}

#[tokio::test]
async fn values_of_all_lengths_are_kept_replaced_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let config = store(folder.path());
    let lengths = [0, 1, 3583, 3584, 3585, 7168, 50_000, 1 << 20];
    let (bus, _) = Bus::open(&config).unwrap();
    let keyed = bus.keyed();
    for (n, len) in lengths.iter().enumerate() {
        keyed.put("long", &[n as u8], &vec![n as u8; *len]).unwrap();
    }
    keyed.flush().await.unwrap();
    // Longer ones become shorter and the other way round.
    for (n, len) in lengths.iter().rev().enumerate() {
        keyed.put("long", &[n as u8], &vec![7; *len]).unwrap();
    }
    keyed.put("lon", b"g\x01", b"another tree").unwrap();
    keyed.remove("long", &[3]).unwrap();
    let check = |bus: &Bus| {
        let found = bus.keyed().scan("long", b"").unwrap();
        let found: Vec<(u8, usize)> = found.iter().map(|(key, value)| (key[0], value.len())).collect();
        let sent = lengths.iter().rev().enumerate().map(|(n, len)| (n as u8, *len));
        assert_eq!(found, sent.filter(|(n, _)| *n != 3).collect::<Vec<_>>());
        assert_eq!(bus.keyed().get("long", &[3]).unwrap(), None);
        assert_eq!(bus.keyed().get("lon", b"g\x01").unwrap().as_deref(), Some(&b"another tree"[..]));
    };
    check(&bus);
    keyed.flush().await.unwrap();
    check(&bus);
    bus.close().await;
    assert!(matches!(keyed.get("long", &[1]), Err(BusError::Closed)));
    let (bus, findings) = Bus::open(&config).unwrap();
    assert_eq!(findings, []);
    check(&bus);
    assert!(bus.keyed().put("long", b"x", &vec![0; (1 << 20) + 1]).is_err());
}

#[tokio::test]
async fn changes_that_outrun_the_disk_are_refused_not_hoarded() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, _) = Bus::open(&store(folder.path())).unwrap();
    let big = vec![1; 1 << 20];
    let refused = (0..100_u8).find_map(|n| bus.keyed().put("t", &[n], &big).err());
    assert!(matches!(refused, Some(BusError::Full { .. })), "{refused:?}");
    while matches!(bus.keyed().put("t", b"later", &big), Err(BusError::Full { .. })) {
        bus.keyed().flush().await.unwrap();
    }
}

/// Damages sled's file, and expects everything back, from sled or from the export.
async fn survive(damage: impl Fn(&mut Vec<u8>)) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let config = store(folder.path());
    let (bus, _) = Bus::open(&config).unwrap();
    for n in 0..400_u32 {
        bus.keyed().put("t", &n.to_be_bytes(), &value(n)).unwrap();
    }
    let seq = bus.append(device_models::Class::Live, b"kept").await.unwrap();
    bus.settled(device_models::Class::Live, seq).await.unwrap();
    let epoch = bus.epoch();
    bus.close().await;
    let file = config.path.join("sled/db");
    let mut bytes = std::fs::read(&file).unwrap();
    damage(&mut bytes);
    std::fs::write(&file, bytes).unwrap();

    let (bus, findings) = Bus::open(&config).unwrap();
    assert_eq!(bus.epoch(), epoch, "{findings:?}");
    for n in 0..400_u32 {
        let found = bus.keyed().get("t", &n.to_be_bytes()).unwrap();
        assert_eq!(found.as_deref(), Some(&value(n)[..]), "key {n}, {findings:?}");
    }
    assert_eq!(bus.durable().borrow().through[2], 1);
    bus.close().await;
    findings.iter().any(|finding| finding.kind == FindingKind::KeyedRestored)
}

#[tokio::test]
async fn a_truncated_zeroed_or_flipped_database_is_set_aside_and_restored() {
    assert!(survive(|bytes| bytes.truncate(bytes.len() / 2)).await, "half a file");
    assert!(survive(|bytes| bytes.fill(0)).await, "zeros");
    assert!(survive(Vec::clear).await, "nothing");
    for eighth in 0..8 {
        survive(|bytes| {
            let at = bytes.len() * eighth / 8;
            bytes[at..][..4096].fill(0);
        })
        .await;
        survive(|bytes| {
            let at = bytes.len() * eighth / 8;
            (0..20).for_each(|n| bytes[at + n * 37] ^= 0x10);
        })
        .await;
    }
}

#[tokio::test]
async fn a_damaged_export_gives_what_is_whole_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = store(folder.path());
    let (bus, _) = Bus::open(&config).unwrap();
    for n in 0..100_u32 {
        bus.keyed().put("t", &n.to_be_bytes(), &value(n)).unwrap();
    }
    bus.close().await;
    std::fs::remove_dir_all(config.path.join("sled")).unwrap();
    let export = config.path.join("sled.export");
    let mut bytes = std::fs::read(&export).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&export, bytes).unwrap();
    let (bus, findings) = Bus::open(&config).unwrap();
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::KeyedRestored), "{findings:?}");
    let found = bus.keyed().scan("t", b"").unwrap();
    assert!(found.len() >= 98, "{}", found.len());
    for (key, bytes) in found {
        assert_eq!(bytes, value(u32::from_be_bytes(key.as_slice().try_into().unwrap())));
    }
}

#[tokio::test]
async fn a_restore_that_was_cut_off_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = store(folder.path());
    let (bus, _) = Bus::open(&config).unwrap();
    bus.keyed().put("t", b"a", b"1").unwrap();
    bus.close().await;
    std::fs::remove_dir_all(config.path.join("sled")).unwrap();
    // The half-restored database, as a power cut left it.
    drop(SledTable::open(&config.path.join("sled")).unwrap());
    std::fs::write(config.path.join(BROKEN), "restoring").unwrap();
    let (bus, findings) = Bus::open(&config).unwrap();
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::KeyedRestored), "{findings:?}");
    assert_eq!(bus.keyed().get("t", b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert!(!config.path.join(BROKEN).exists());
    bus.close().await;
    let (_, findings) = Bus::open(&config).unwrap();
    assert_eq!(findings, [], "and only once");
}

#[tokio::test]
async fn where_no_database_can_be_made_state_is_kept_in_memory_and_never_called_durable() {
    let mut findings = Vec::new();
    let (table, lossy) = guard::open(&RealDisk, Path::new("/proc/self"), &mut findings).unwrap();
    assert!(lossy);
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::ReadOnly), "{findings:?}");
    table.apply(&[(b"k".to_vec(), Some("v".into()))]).unwrap();
    assert_eq!(table.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert!(table.sync().is_err());
}
