//! Style that a machine can hold: sizes, banned words, the one table, dependencies with one owner.

use std::path::{Path, PathBuf};

use sluicegate_tests::root;

/// Lines of one source file, tests included.
const FILE_LINES_MAX: usize = 700;

/// The Rust files of all crates.
pub(crate) fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["device-models", "firmware-bridge", "protocols", "gateway", "tests"].iter().map(|f| root().join(f)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50);
    found
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn no_file_is_too_long() {
    for path in sources() {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        let generated = path.ends_with("generated.rs");
        assert!(generated || lines <= FILE_LINES_MAX, "{} has {lines} lines; split it by meaning", short(&path));
    }
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    for path in sources() {
        for part in short(&path).trim_end_matches(".rs").split('/') {
            let empty = ["util", "utils", "helper", "helpers", "manager", "common", "misc", "define"].contains(&part);
            assert!(!empty, "{}: `{part}` says nothing", short(&path));
        }
    }
}

#[test]
fn every_file_says_what_is_inside() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//!") || first.contains("@generated"), "{}: no module doc", short(&path));
    }
}

#[test]
fn nothing_is_left_to_be_done_or_skipped() {
    for path in sources().into_iter().filter(|p| !p.ends_with("style.rs")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["todo!(", "unimplemented!(", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{}: {word}", short(&path));
        }
    }
}

/// A dependency is named by one owner.
#[test]
fn dependencies_have_one_owner() {
    let owners = [
        ("sled::", "gateway/src/bus/"),
        ("rumqttc::", "gateway/src/upstream/destination/mqtt/"),
        ("async_nats::", "gateway/src/upstream/destination/nats.rs"),
        ("rskafka::", "gateway/src/upstream/destination/kafka.rs"),
        // The module of that name is the owner; its folder names the module.
        ("rumqttd::", "gateway/src/broker/"),
        ("coap_lite::", "protocols/src/coap/frame.rs"),
        ("tokio_serial::", "gateway/src/transport/"),
        ("retina::", "gateway/src/pull/"),
        ("rtsp_types::", "protocols/src/rtsp/"),
        ("axum::", "gateway/src/admin/"),
        ("hyper::", "gateway/src/http.rs"),
        ("str0m::", "gateway/src/webrtc/peers/"),
        ("dimpl::", "gateway/src/webrtc/peers/crypto/"),
        ("syom::", "gateway/src/stream/transcode.rs"),
        ("nix::unistd", "gateway/src/cli/allocator.rs"),
        ("prometheus_client::", "gateway/src/metrics/mod.rs"),
    ];
    for path in sources() {
        let name = short(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        for (dependency, owner) in owners {
            let names_it = text.lines().any(|l| {
                let code = l.trim_start();
                !code.starts_with("//") && !code.starts_with("(\"") && code.contains(dependency)
            });
            assert!(!names_it || name.starts_with(owner), "{name} names {dependency} which belongs to {owner}");
        }
    }
}

/// The purity of the crates below the gateway: nothing that reads a clock or a socket among their dependencies.
#[test]
fn the_pure_crates_have_no_runtime() {
    for name in ["device-models", "firmware-bridge", "protocols"] {
        let manifest: toml::Table =
            std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap().parse().unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        for banned in ["tokio", "mio", "socket2", "rustix", "getrandom", "gateway", "tracing"] {
            assert!(!dependencies.contains_key(banned), "{name} depends on {banned}");
        }
    }
}

/// Every protocol's folder has the same files.
#[test]
fn protocols_look_alike() {
    let folder = root().join("protocols/src");
    for row in protocols::PROTOCOLS {
        let own = folder.join(row.name().replace('-', "_"));
        for part in ["mod.rs", "frame", "session", "testdata"] {
            let there = own.join(part).exists() || own.join(format!("{part}.rs")).exists();
            assert!(there, "protocols/src/{}: no {part}", row.name());
        }
    }
}
