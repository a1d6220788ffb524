//! The systemd unit.

use sluicegate_tests::{binary, root, run, shell};
use tempfile::TempDir;

#[test]
fn the_unit_verifies() {
    // `verify` wants the program to be where the unit says.
    let folder = TempDir::new().unwrap();
    let unit = std::fs::read_to_string(root().join("systemd/sluicegate.service")).unwrap();
    let unit = unit.replace("/usr/bin/sluicegate", &binary().display().to_string());
    let file = folder.path().join("sluicegate.service");
    std::fs::write(&file, unit).unwrap();
    let output = run("systemd-analyze", &["verify", "--man=no", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|l| l.contains("sluicegate")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn its_exposure_is_at_most_2() {
    let unit = root().join("systemd/sluicegate.service");
    let said = shell(&format!("systemd-analyze security --offline=true --no-pager {} 2>&1", unit.display()));
    let line = said.lines().find(|l| l.contains("Overall exposure level")).expect("the verdict");
    let level: f64 = line.split(':').nth(1).and_then(|v| v.split_whitespace().next()?.parse().ok()).expect("a number");
    assert!(level <= 2.0, "{line}");
}
