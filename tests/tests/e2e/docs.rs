//! What the documents say is so.

use std::path::Path;

use sluicegate_tests::{root, run};

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// `docs/capabilities.md`: each row names a test, and each test named exists.
#[test]
fn every_capability_has_a_test_that_exists() {
    let text = read("docs/capabilities.md");
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| capability")).collect();
    assert!(rows.len() >= 20, "{} rows", rows.len());
    let sources = sources();
    for row in rows {
        let cells: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "capability, how, test, figure, how to repeat: {row}");
        let tests: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            exists(&sources, test, row);
        }
    }
}

/// `docs/complaints.md`: each of the 22 groups once, with tests that exist.
#[test]
fn every_complaint_has_a_test_that_exists() {
    let text = read("docs/complaints.md");
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| #")).collect();
    let sources = sources();
    let mut numbers = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "number, complaint, what Sluicegate does, test: {row}");
        let number: u32 = cells[0].parse().unwrap_or_else(|e| panic!("{e}: {row}"));
        numbers.push(number);
        assert!(cells[1].contains('#') || cells[1].contains("CVE-"), "no thread is named: {row}");
        let tests: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            exists(&sources, test, row);
        }
    }
    assert_eq!(numbers, (1..=22).collect::<Vec<_>>());
}

/// The Rust text of all crates.
fn sources() -> String {
    crate::style::sources().into_iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

fn exists(sources: &str, test: &str, row: &str) {
    let name = test.rsplit("::").next().unwrap_or(test);
    assert!(sources.contains(&format!("fn {name}(")), "there is no test `{test}`: {row}");
}

/// Every relative link of every document leads somewhere.
#[test]
fn links_lead_somewhere() {
    let mut files = vec!["README.md".to_owned()];
    for folder in ["docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if Path::new(&name).extension().is_some_and(|e| e == "md") {
                files.push(format!("{folder}/{name}"));
            }
        }
    }
    for file in files {
        let text = read(&file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(t, _)| t)) {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let base = root().join(&file).parent().unwrap().to_owned();
            assert!(base.join(path).exists(), "{file}: {target} leads nowhere");
        }
    }
}

/// The map in the README names every top folder, and nothing that is not there.
#[test]
fn the_readme_maps_the_tree() {
    let readme = read("README.md");
    for folder in
        ["device-models/", "firmware-bridge/", "protocols/", "gateway/", "systemd/", "cross/", "tests/", "docs/"]
    {
        assert!(readme.contains(folder) && root().join(folder).is_dir(), "{folder}");
    }
    assert!(readme.lines().take(5).any(|l| l.contains("Nothing acknowledged is lost; nothing lost is unsaid")));
    for command in ["cargo run --release -- demo", "tests/run"] {
        assert!(readme.contains(command), "{command}");
    }
}

/// Nothing of a machine or a registry got into the tree.
#[test]
fn no_machine_and_no_registry_is_named() {
    let listed = run("git", &["-C", &root().display().to_string(), "ls-files"]);
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        for (at, line) in text.lines().enumerate() {
            let named =
                [concat!("/", "work/"), concat!("/", "root/"), concat!("deb.", "debian.org"), concat!("/tmp/", "team")];
            for word in named {
                assert!(!line.contains(word), "{file}:{}: {word}", at + 1);
            }
        }
    }
}

/// `docs/store.md`: gigabytes a day and years of flash follow from the bytes that were measured.
#[test]
fn what_a_commit_window_costs_in_flash_is_reckoned_right() {
    let text = read("docs/store.md");
    let rows =
        text.lines().filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()));
    let rows: Vec<Vec<f64>> = rows
        .map(|row| {
            let cells = row.trim_matches('|').split('|');
            cells.map(|cell| cell.split_whitespace().next().unwrap().replace(',', "").parse().unwrap()).collect()
        })
        .collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), [0.0, 10.0, 100.0, 1000.0]);
    for row in rows {
        let [_, _, _, bytes, gigabytes, years] = row[..] else { panic!("{row:?}") };
        let reckoned = bytes * 1_000.0 * 86_400.0 / 1e9;
        assert!((gigabytes / reckoned - 1.0).abs() < 0.01, "{bytes} B a message are {reckoned} GB a day");
        let reckoned = 8.0 * 3_000.0 / gigabytes / 365.0;
        assert!((years / reckoned - 1.0).abs() < 0.02, "{gigabytes} GB a day are {reckoned} years");
    }
}
