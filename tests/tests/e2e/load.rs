//! The load client does what it says, with loads too small to measure anything.

use serde_json::Value;
use sluicegate_tests::run_ok;

fn rows(arguments: &[&str]) -> Vec<Value> {
    let printed = run_ok(env!("CARGO_BIN_EXE_load"), arguments);
    let json: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{e}: {printed}"));
    assert!(json["measured_on"].as_array().is_some_and(|notes| notes.len() >= 3), "{json}");
    json["rows"].as_array().expect("rows").clone()
}

#[test]
fn viewers_of_every_server_get_the_whole_stream() {
    let rows = rows(&["--json", "streams", "--viewers", "20", "--seconds", "2", "--windows", "100"]);
    let servers: Vec<_> = rows.iter().map(|row| row["server"].as_str().unwrap()).collect();
    assert_eq!(servers, ["nginx-rtmp", "sluicegate", "floor", "sluicegate"]);
    for row in &rows {
        assert_eq!([&row["joined"], &row["cut"], &row["got nothing"]], [20.0, 0.0, 0.0], "{row}");
        let rate = row["Mb/s each"].as_f64().unwrap();
        assert!((0.7..1.5).contains(&rate), "{row}");
        assert!(row["latency p50 ms"].as_f64().is_some_and(|ms| ms > 0.0), "{row}");
    }
}

#[test]
fn reports_into_every_broker_are_all_acknowledged_and_upstream() {
    let rows = rows(&["--json", "mqtt", "--publishers", "5", "--seconds", "2", "--rates", "200"]);
    let brokers: Vec<_> = rows.iter().map(|row| row["broker"].as_str().unwrap()).collect();
    assert_eq!(brokers, ["mosquitto", "sluicegate"]);
    for row in &rows {
        assert_eq!(row["not upstream"], 0.0, "{row}");
        let rate = row["acknowledged msg/s"].as_f64().unwrap();
        assert!((100.0..220.0).contains(&rate), "{row}");
    }
}

#[test]
fn a_process_is_measured_while_others_load_it() {
    let own = std::process::id().to_string();
    let measured =
        std::thread::spawn(move || rows(&["--json", "process", "--pid", &own, "--seconds", "1", "--each", "2"]));
    let (mut busy, began) = (0u64, std::time::Instant::now());
    while !measured.is_finished() {
        busy = std::hint::black_box(busy.wrapping_add(1));
        assert!(began.elapsed() < sluicegate_tests::PATIENCE);
    }
    let row = &measured.join().unwrap()[0];
    let (share, each) = (row["% of a core"].as_f64().unwrap(), row["CPU µs/s each"].as_f64().unwrap());
    assert!(share > 2.0 && (each - share * 5_000.0).abs() <= share * 500.0 + 50.0, "{row}");
    assert!(row["RSS MiB"].as_f64() > Some(1.0), "{row}");
}

#[test]
fn a_backlog_drains_in_every_dialect_that_is_measured() {
    let rows = rows(&["--json", "drain", "--messages", "1500", "--points", "10", "--line", "0"]);
    assert_eq!(rows.iter().map(|row| row["dialect"].as_str().unwrap()).collect::<Vec<_>>(), ["native", "json"]);
    for row in &rows {
        assert!(row["points/s"].as_f64().is_some_and(|rate| rate > 100.0), "{row}");
    }
}

#[test]
fn the_disk_of_one_device_and_the_cost_of_rules_are_measured() {
    let folder = tempfile::TempDir::new_in(sluicegate_tests::root().join("target")).unwrap();
    let place = folder.path().display().to_string();
    let wear = &rows(&["--json", "wear", "--seconds", "2", "--points", "10", "--folder", &place])[0];
    // A commit is a block of the file system's at least. Under a container's layers there is no device to ask.
    let device = wear["device B each"].as_f64();
    assert!(wear["write_bytes each"].as_f64() >= Some(4096.0) && device.is_none_or(|bytes| bytes >= 4096.0), "{wear}");
    let rules = rows(&["--json", "rules", "--seconds", "2", "--reports", "50"]);
    let held: Vec<_> = rules.iter().map(|row| row["held back/s"].as_f64().unwrap()).collect();
    assert!(held[0] < 1.0, "without a rule: {held:?}");
    assert!(held[1] < held[2] && held[2] > 2_500.0, "{held:?}");
}
