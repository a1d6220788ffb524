//! The store as an operator meets it: `sluicegate store`, and a disk that is full.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluicegate_tests::{
    Child, Counter, Gateway, Language, Mosquitto, Options, PATIENCE, Receiver, SmallDisk, binary, run, wait_for,
};
use tempfile::TempDir;

/// Exit code, standard output, standard error.
fn store(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let path = folder.join("state").display().to_string();
    let all = [&["store", "--path", &path], arguments].concat();
    let output = run(&binary().display().to_string(), &all);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// The `n` of each report of a device, and the sequence numbers, as they come.
fn counted(records: &[Value], device: &str) -> (Vec<u64>, Vec<u64>) {
    let own = records.iter().filter(|r| r["thing"] == device && r["properties"]["n"].is_u64());
    own.map(|r| (r["properties"]["n"].as_u64().unwrap(), r["seq"].as_u64().unwrap())).unzip()
}

#[test]
fn what_is_stored_can_be_listed_shown_and_exported_while_the_gateway_runs() {
    let gateway = Gateway::start(Options::default());
    let folder = gateway.folder.path();
    let device = Counter::start(Language::Raw, "counter", gateway.options.tcp);
    wait_for("reports", PATIENCE, || (device.acknowledged() >= 200).then_some(()));
    let (code, out, error) = store(folder, &["stat", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let stat = lines(&out).remove(0);
    assert_eq!(stat["in_use"], true, "{stat}");
    assert!(stat["classes"]["live"]["last"].as_u64() >= Some(200), "{stat}");
    assert!(stat["bytes"].as_u64() > Some(5_000) && stat["free_bytes"].as_u64() > Some(0), "{stat}");
    let acknowledged = device.stop();

    let (code, out, error) = store(folder, &["inspect", "--class", "live", "--count", "3", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let newest = lines(&out);
    let (_, seqs) = counted(&newest, "counter");
    assert_eq!(newest.len(), 3, "{out}");
    assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{seqs:?}");
    let (code, out, _) = store(folder, &["inspect", "--class", "live", "--from", "7", "-n", "2"]);
    assert_eq!((code, out.lines().count()), (Some(0), 2), "{out}");
    assert!(out.starts_with("live ") && out.contains(" 7 ") && out.contains("counter"), "{out}");

    let file = folder.join("all.jsonl");
    let name = file.display().to_string();
    let (code, _, error) = store(folder, &["export", &name]);
    assert_eq!(code, Some(0), "{error}");
    assert!(error.contains("records of 4 classes written to"), "{error}");
    let exported = lines(&std::fs::read_to_string(&file).unwrap());
    let (counts, seqs) = counted(&exported, "counter");
    let counts: BTreeSet<u64> = counts.into_iter().collect();
    assert!((1..=acknowledged).all(|n| counts.contains(&n)), "what was acknowledged is in the export");
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "in order");
    let (code, _, error) = store(folder, &["export", &name]);
    assert_eq!(code, Some(1), "it never writes over a file");
    assert!(error.contains(&name), "{error}");
    gateway.stop();
}

#[test]
fn a_purge_needs_a_yes_and_a_stopped_gateway_and_is_said_upstream() {
    let mut broker = Mosquitto::start();
    let mut gateway = Gateway::start(Options::default().upstream(broker.port, "native"));
    broker.pause();
    let device = Counter::start(Language::Raw, "counter", gateway.options.tcp);
    wait_for("reports", PATIENCE, || (device.acknowledged() >= 50).then_some(()));
    device.stop();
    let folder = gateway.folder.path().to_owned();
    let (code, _, error) = store(&folder, &["purge", "--yes"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("in use") && error.contains("state"), "{error}");
    gateway.child.signal(rustix::process::Signal::TERM);
    assert!(gateway.child.wait(Duration::from_secs(10)).success());
    let (code, _, error) = store(&folder, &["purge"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("--yes"), "{error}");
    let (code, out, error) = store(&folder, &["purge", "--class", "live", "--yes"]);
    assert_eq!(code, Some(0), "{error}");
    let given_up: u64 = out.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{out}"));
    assert!(given_up >= 50, "{out}");
    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    gateway.restart();
    let device = Counter::start(Language::Raw, "later", gateway.options.tcp);
    let gap = receiver.until("the gap record", PATIENCE, |m| m["gap"]["reason"] == "purge");
    assert_eq!((&gap["gap"]["class"], &gap["gap"]["last"]), (&Value::from("live"), &Value::from(given_up)), "{gap}");
    receiver.until("a new report", PATIENCE, |m| m["thing"] == "later");
    device.stop();
    gateway.stop();
    let (status, seen) = receiver.finish();
    assert!(status.success(), "every number is there or named: {status}");
    assert!(counted(&seen, "counter").0.is_empty());
}

#[test]
fn a_repair_shows_first_then_mends_and_says_upstream_what_is_gone() {
    let mut broker = Mosquitto::start();
    let mut gateway = Gateway::start(Options::default().upstream(broker.port, "native"));
    broker.pause();
    let device = Counter::start(Language::Raw, "counter", gateway.options.tcp);
    wait_for("reports", PATIENCE, || (device.acknowledged() >= 200).then_some(()));
    let acknowledged = device.stop();
    let folder = gateway.folder.path().to_owned();
    let (code, _, error) = store(&folder, &["repair", "--yes"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("in use"), "{error}");
    gateway.terminate();
    let (code, out, error) = store(&folder, &["repair"]);
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains(" 0 lost"), "{out}");

    let mut files = std::fs::read_dir(folder.join("state/log")).unwrap().map(|entry| entry.unwrap().path());
    let live = files.find(|path| path.to_string_lossy().contains("live-")).expect("a file of live messages");
    let mut bytes = std::fs::read(&live).unwrap();
    bytes[4_000..4_020].fill(0);
    std::fs::write(&live, &bytes).unwrap();
    let (code, out, error) = store(&folder, &["repair"]);
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(out.contains("damaged: ") && error.contains("--yes"), "{out}{error}");
    assert!(std::fs::read(&live).unwrap() == bytes, "looking changes nothing");
    let (code, out, error) = store(&folder, &["repair", "--yes"]);
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("1 files mended"), "{out}");
    assert!(std::fs::read(live.with_extension("seg.bad")).unwrap() == bytes, "what it was is kept");
    assert_eq!(store(&folder, &["repair"]).0, Some(0));

    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    gateway.restart();
    let gap = receiver.until("the gap record", PATIENCE, |m| m["gap"]["reason"] == "corrupt");
    let named = gap["gap"]["last"].as_u64().unwrap() - gap["gap"]["first"].as_u64().unwrap() + 1;
    receiver.until("the last report", PATIENCE, |m| m["properties"]["n"].as_u64() >= Some(acknowledged));
    gateway.stop();
    let (status, seen) = receiver.finish();
    assert!(status.success(), "every number is there or named: {status}");
    let counts: BTreeSet<u64> = counted(&seen, "counter").0.into_iter().collect();
    let missing = (1..=acknowledged).filter(|n| !counts.contains(n)).count() as u64;
    assert!(missing > 0 && missing <= named, "{missing} missing, {named} named");
}

/// The disk is read-only at a start: what is there is forwarded, nothing is acknowledged; then it can be written again.
#[test]
fn a_read_only_disk_acknowledges_nothing_and_forwards_what_it_has() {
    let mut broker = Mosquitto::start();
    let disk = SmallDisk::new(32);
    let mut options = Options::default().upstream(broker.port, "native");
    options.under = disk.enter();
    for (name, value) in [("PATH", disk.path().to_str().unwrap()), ("FREE_MIN_MIB", "0")] {
        options.environment.push((format!("SLUICEGATE_STORE_{name}"), value.to_owned()));
    }
    let mut gateway = Gateway::start(options);
    broker.pause();
    let device = Counter::start(Language::Raw, "before", gateway.options.tcp);
    wait_for("reports", PATIENCE, || (device.acknowledged() >= 100).then_some(()));
    let before = device.stop();
    gateway.kill();
    disk.remount("ro");
    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    gateway.restart();
    receiver.until("the last report before", PATIENCE, |m| {
        m["thing"] == "before" && m["properties"]["n"].as_u64() >= Some(before)
    });
    let device = Counter::start(Language::Raw, "patient", gateway.options.tcp);
    wait_for("a write that fails", PATIENCE, || {
        (gateway.metric("sluicegate_store_failures_total") >= 1.0).then_some(())
    });
    assert_eq!(device.acknowledged(), 0, "nothing is acknowledged that is not on disk");

    disk.remount("rw");
    wait_for("reports", PATIENCE, || (device.acknowledged() >= 50).then_some(()));
    let acknowledged = device.stop();
    receiver.until("that it is there, said again", PATIENCE, |m| {
        m["thing"] == "patient" && m["presence"]["online"] == true
    });
    receiver.until("the last report", PATIENCE, |m| {
        m["thing"] == "patient" && m["properties"]["n"].as_u64() >= Some(acknowledged)
    });
    gateway.stop();
    let (status, seen) = receiver.finish();
    assert!(status.success(), "every number is there or named: {status}");
    for (name, last) in [("before", before), ("patient", acknowledged)] {
        let counts: BTreeSet<u64> = counted(&seen, name).0.into_iter().collect();
        assert!((1..=last).all(|n| counts.contains(&n)), "{name}: {last} were acknowledged");
    }
}

#[test]
fn a_store_that_is_not_there_is_named() {
    let folder = TempDir::new().unwrap();
    for verb in [&["stat"][..], &["inspect"], &["export", "-"], &["purge", "--yes"], &["repair"], &["repair", "--yes"]]
    {
        let (code, _, error) = store(folder.path(), verb);
        assert_eq!(code, Some(1), "{verb:?}");
        assert!(error.contains(&folder.path().join("state").display().to_string()), "{verb:?}: {error}");
    }
    assert_eq!(store(folder.path(), &["burn"]).0, Some(2));
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "looking makes nothing");
}

/// Publishes so many reports of about 30 kB over MQTT at QoS 1; ends when all are acknowledged.
fn push_big(port: u16, count: u64) -> Child {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-p", &port.to_string(), "-i", "big", "-q", "1", "-t", "v1/devices/me/telemetry", "-l"]);
    let mut child = Child::start(command.stdin(Stdio::piped()).stdout(Stdio::null()));
    let mut input = child.inner.stdin.take().expect("piped");
    std::thread::spawn(move || {
        let pad = "x".repeat(30_000);
        for n in 1..=count {
            // The test sees it in the publisher's exit status if this ends early.
            if writeln!(input, "{{\"n\":{n},\"pad\":\"{pad}\"}}").is_err() {
                return;
            }
        }
    });
    child
}

/// A file system of 64 MiB of the gateway's own, in a mount namespace of its own: the test needs the right to mount. More
/// than it holds is reported while the upstream is away, then the last byte of it is taken by somebody else.
#[test]
fn a_full_disk_holds_nobody_up_and_what_it_cost_is_said() {
    let mut broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let disk = TempDir::new().unwrap();
    let mount = "mount -t tmpfs -o size=64m none \"$SLUICEGATE_STORE_PATH\" && exec \"$0\" \"$@\"";
    let mut options = Options::default().upstream(broker.port, "native").with("[broker]\nqueue_kib = 1024");
    options.under = ["unshare", "--mount", "sh", "-c", mount].map(str::to_owned).to_vec();
    for (name, value) in [("PATH", disk.path().to_str().unwrap()), ("FREE_MIN_MIB", "0"), ("SEGMENT_MIB", "2")] {
        options.environment.push((format!("SLUICEGATE_STORE_{name}"), value.to_owned()));
    }
    let gateway = Gateway::start(options);
    let inside = Path::new("/proc").join(gateway.child.pid().to_string()).join("root");
    let inside = inside.join(disk.path().strip_prefix("/").unwrap());
    assert!(inside.join("log").is_dir() && !disk.path().join("log").exists(), "the store is on the small disk");
    broker.pause();
    let mut big = push_big(gateway.options.mqtt, 3_000);
    assert!(big.wait(Duration::from_secs(120)).success(), "all are acknowledged:\n{}", gateway.log());

    // Somebody else takes what is left.
    let filler = inside.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let device = Counter::start(Language::Raw, "patient", gateway.options.tcp);
    wait_for("reports on a full disk", PATIENCE, || (device.acknowledged() >= 100).then_some(()));
    let given_up = gateway.metric("sluicegate_dropped_total{reason=\"disk-full\"}");
    assert!(given_up > 500.0, "{given_up} messages given up:\n{}", gateway.log());

    // Space returns: nothing more goes, and everything that is left arrives.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    broker.resume();
    let acknowledged = device.stop();
    receiver.until("the backlog", Duration::from_secs(120), |m| {
        m["thing"] == "patient" && m["properties"]["n"].as_u64() >= Some(acknowledged)
    });
    let device = Counter::start(Language::Raw, "after", gateway.options.tcp);
    receiver.until("a report with room again", PATIENCE, |m| m["thing"] == "after");
    device.stop();
    let then = gateway.metric("sluicegate_dropped_total{reason=\"disk-full\"}");
    gateway.stop();
    let (status, seen) = receiver.finish();
    assert!(status.success(), "every missing number is named: {status}");
    let gaps = seen.iter().filter(|m| m["gap"]["class"] == "live" && m["gap"]["reason"] == "disk-full");
    let named: u64 = gaps.map(|m| m["gap"]["last"].as_u64().unwrap() - m["gap"]["first"].as_u64().unwrap() + 1).sum();
    assert_eq!(named, then as u64, "the gap records name what was counted as given up");
    let (patient, _) = counted(&seen, "patient");
    assert!(patient.contains(&acknowledged));
}
