//! SIGKILL at random moments under load, on the real disk with sled: the test runs itself again as a child, notes what the
//! child says is settled, kills it, and looks for it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use device_models::Class;

use super::{covered, drain};
use crate::bus::Bus;
use crate::config;

const FOLDER: &str = "SLUICEGATE_TEST_KILL_FOLDER";
const ROUNDS: u32 = 12;

fn store(folder: &Path) -> config::Store {
    config::Store {
        path: folder.join("store"),
        commit_ms: 5,
        segment_mib: 1,
        free_min_mib: 0,
        ..config::Store::default()
    }
}

fn record(class: Class, seq: u64) -> Vec<u8> {
    format!("{} {seq} ", class.topic()).repeat(1 + (seq % 30) as usize).into_bytes()
}

/// Not a test but the victim: does nothing unless its parent asks.
#[tokio::test]
async fn victim() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (bus, _) = Bus::open(&store(Path::new(&folder))).unwrap();
    let mut next = bus.durable().borrow().through.map(|seq| seq + 1);
    let mut out = std::io::stdout();
    for turn in 0_u64.. {
        let mut last = [0; 4];
        for n in 0..200 {
            let class = Class::ALL[(n + turn as usize) % 4];
            let at = usize::from(class.number());
            // Gap records of the bus's own would shift the numbers: the disk never fails here, so there are none.
            last[at] = bus.append(class, &record(class, next[at])).await.unwrap();
            next[at] = last[at] + 1;
        }
        bus.keyed().put("t", b"turn", &turn.to_le_bytes()).unwrap();
        for class in Class::ALL {
            bus.settled(class, last[usize::from(class.number())]).await.unwrap();
        }
        let told = last.map(|seq| seq.to_string()).join(" ");
        writeln!(out, "settled {told}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn what_was_settled_survives_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut committed = [0; 4];
    let mut most = [0; 4];
    for round in 0..ROUNDS {
        let patience = Duration::from_millis(u64::from(20 + round * 37 % 180));
        let settled = run_and_kill(folder.path(), patience);
        for (most, seq) in most.iter_mut().zip(settled) {
            *most = seq.max(*most);
        }
        let (bus, _) = Bus::open(&store(folder.path())).unwrap();
        let mut reader = bus.reader("up").unwrap();
        for class in Class::ALL {
            let at = usize::from(class.number());
            let through = bus.durable().borrow().through[at];
            assert!(through >= most[at], "{class:?}: {} was settled, {through} is there", most[at]);
            let first = reader.committed()[at] + 1;
            assert!(first <= committed[at] + 1, "a cursor ran ahead");
            for (seq, bytes) in covered(&drain(&mut reader, class).await, first, through) {
                assert!(bytes == record(class, seq), "{class:?} {seq}");
            }
            committed[at] = through;
            reader.commit(class, through);
        }
        bus.close().await;
    }
    assert!(most[0] > 0, "the victim got nowhere");
}

fn run_and_kill(folder: &Path, patience: Duration) -> [u64; 4] {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bus::tests::kill::victim", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut settled = [0; 4];
    let mut started = None;
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        // The test harness writes its own words before the first.
        let Some((_, told)) = line.split_once("settled ") else { continue };
        for (most, seq) in settled.iter_mut().zip(told.split(' ')) {
            *most = seq.parse().unwrap();
        }
        // The clock runs from its first word: opening sled takes as long as it takes.
        if started.get_or_insert_with(Instant::now).elapsed() >= patience {
            child.kill().unwrap();
            break;
        }
    }
    child.wait().unwrap();
    settled
}
