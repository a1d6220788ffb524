//! The laws every protocol keeps, run over the table. A new row gets them all by being there.

#![allow(clippy::panic, reason = "a test that cannot go on should stop")]

mod host;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use host::{Event, Host, Random, packets};
use proptest::prelude::*;
use protocols::{Capture, PROTOCOLS, Protocol, Sniff, Wire};

/// Bytes one test of cuts may push through a session: keeps the suite short for long captures.
const CUT_WORK_MAX: usize = 6 << 20;

/// Folders of `src` that hold no protocol.
const SHARED_FOLDERS: &[&str] = &["http", "media"];

#[test]
fn the_table_is_not_empty_and_has_captures() {
    assert!(!PROTOCOLS.is_empty());
    for row in PROTOCOLS {
        assert!(!row.captures().is_empty(), "{}: a row brings bytes of real peers", row.name());
        assert!(!row.wires().is_empty(), "{}", row.name());
        assert!(!row.summary().is_empty(), "{}", row.name());
        for capture in row.captures() {
            assert!(!capture.bytes.is_empty(), "{}: {} is empty", row.name(), capture.name);
            assert!(row.wires().contains(&capture.wire), "{}: {} is of another wire", row.name(), capture.name);
        }
    }
}

/// Law 1: where the bytes are cut does not matter.
#[test]
fn cuts_do_not_matter() {
    for (row, capture) in captures(Wire::Stream) {
        let whole = Host::play(row, capture);
        let bytes = capture.bytes;
        let splits = (CUT_WORK_MAX / bytes.len()).clamp(16, bytes.len());
        for n in 0..splits {
            // All cuts when there is room for them, else evenly spread ones.
            let cut = n * bytes.len() / splits;
            let mut host = Host::new(row);
            host.stream(&bytes[..cut]);
            host.stream(&bytes[cut..]);
            assert_same(row, capture, &format!("cut at {cut}"), &whole, &host);
        }
        let mut host = Host::new(row);
        for byte in bytes {
            host.stream(&[*byte]);
        }
        assert_same(row, capture, "byte by byte", &whole, &host);
    }
}

/// Law 2: noise neither panics nor grows buffer or outbox.
#[test]
fn noise_is_bounded() {
    for row in PROTOCOLS {
        let mut random = Random::new(2);
        for round in 0..400 {
            let mut host = Host::new(*row);
            let mut fed = 0;
            for _ in 0..8 {
                let noise = noise(*row, &mut random, round);
                fed += noise.len();
                if row.wires().contains(&Wire::Stream) && round % 2 == 0 || row.wires() == [Wire::Stream] {
                    host.stream(&noise);
                } else {
                    host.datagram(Bytes::from(noise));
                }
            }
            assert!(
                host.closed.is_some() || host.paused() || host.buffer.len() <= host.limits.frame_max,
                "{}",
                row.name()
            );
            // Handshakes answer a few bytes with kilobytes, once.
            let sent: usize = host.sends().iter().map(Bytes::len).sum();
            assert!(sent <= 32 * 1024 + 64 * fed, "{}: {fed} bytes in, {sent} out", row.name());
            assert!(host.outbox_peak <= 256 + fed, "{}: outbox of {}", row.name(), host.outbox_peak);
        }
    }
}

/// Law 3: a sniff never changes its mind.
#[test]
fn sniffs_keep_their_mind() {
    for row in PROTOCOLS {
        let mut random = Random::new(3);
        let mut samples: Vec<Vec<u8>> =
            captures(Wire::Stream).map(|(_, c)| c.bytes[..c.bytes.len().min(4096)].to_vec()).collect();
        samples.extend((0..500).map(|n| random.bytes(n % 200)));
        samples.extend((0..200).map(|n| noise(*row, &mut random, n)));
        for sample in samples {
            let mut decided = None;
            for len in 0..=sample.len().min(4096) {
                let sniff = row.sniff(&sample[..len]);
                match decided {
                    Some(before) => assert_eq!(before, sniff, "{}: {:?}", row.name(), &sample[..len]),
                    None if sniff != Sniff::More => decided = Some(sniff),
                    None => {}
                }
            }
        }
        if row.wires().contains(&Wire::Stream) {
            for capture in row.captures().iter().filter(|capture| capture.wire == Wire::Stream) {
                assert_eq!(row.sniff(capture.bytes), Sniff::Yes, "{}: {}", row.name(), capture.name);
            }
        }
    }
}

/// Law 4: names are unique and plain.
#[test]
fn names_are_unique_and_plain() {
    let mut seen = BTreeSet::new();
    for row in PROTOCOLS {
        let name = row.name();
        assert!(seen.insert(name), "{name} twice");
        assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        assert!(folder(*row).is_dir(), "{name} has no folder of its name");
        let mut captures = BTreeSet::new();
        for capture in row.captures() {
            assert!(captures.insert(capture.name), "{name}: capture {} twice", capture.name);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(capture.name.chars().all(plain), "{name}: capture {}", capture.name);
        }
    }
}

#[test]
fn every_folder_has_its_row() {
    let rows: BTreeSet<String> = PROTOCOLS.iter().map(|row| row.name().replace('-', "_")).collect();
    for entry in source().read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() && !SHARED_FOLDERS.contains(&name.as_str()) {
            assert!(rows.contains(&name), "src/{name} has no row in PROTOCOLS");
            for file in ["mod.rs", "frame.rs", "session.rs", "testdata"] {
                let as_folder = file.trim_end_matches(".rs");
                let there = entry.path().join(file).exists() || entry.path().join(as_folder).is_dir();
                assert!(there, "src/{name} lacks {file}");
            }
        }
    }
}

/// Law 5: the example configures, unknown keys are refused.
#[test]
fn examples_configure_and_unknown_keys_do_not() {
    for row in PROTOCOLS {
        let name = row.name();
        let example: toml::Table = toml::from_str(row.example()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let adapters = example["adapter"].as_array().expect("[[adapter]]");
        for adapter in adapters {
            let spoken = match &adapter["protocol"] {
                toml::Value::Array(names) => names.iter().filter_map(toml::Value::as_str).collect(),
                one => vec![one.as_str().unwrap()],
            };
            assert!(spoken.contains(&name), "{name}: the example speaks {spoken:?}");
            assert!(adapter["listen"].is_str() && adapter["name"].is_str(), "{name}");
        }
        let limits = host::endpoint(*row).limits();
        assert!((16..=64 << 20).contains(&limits.frame_max), "{name}: frame_max {}", limits.frame_max);
        assert!(!limits.admission_max.is_zero(), "{name}");
        row.configure(&toml::Table::new()).unwrap_or_else(|e| panic!("{name} without options: {e}"));
        let unknown = toml::Table::from_iter([("no_such_option".to_owned(), toml::Value::Boolean(true))]);
        let error = row.configure(&unknown).expect_err("unknown keys are refused").to_string();
        assert!(error.contains("no_such_option"), "{name}: {error}");
    }
}

/// Law 6: a deadline never runs backwards without input, and a tick at it moves it on.
#[test]
fn deadlines_do_not_run_backwards() {
    for row in PROTOCOLS {
        for capture in row.captures() {
            let mut host = Host::new(*row);
            let pieces = match capture.wire {
                Wire::Stream => {
                    capture.bytes.chunks((capture.bytes.len() / 64).max(7)).map(Bytes::from_static).collect()
                }
                Wire::Datagram => packets(capture),
            };
            for piece in pieces {
                match capture.wire {
                    Wire::Stream => host.stream(&piece),
                    Wire::Datagram => host.datagram(piece),
                }
                let before = host.deadline();
                if before.is_some_and(|deadline| deadline > host.now) {
                    host.tick();
                    if host.closed.is_none() {
                        assert!(host.deadline().is_none_or(|d| Some(d) >= before), "{} {}", row.name(), capture.name);
                    }
                }
            }
            for _ in 0..50 {
                let Some(before) = host.deadline().filter(|_| host.closed.is_none()) else { break };
                host.pass_deadline();
                let after = host.deadline().filter(|_| host.closed.is_none());
                assert!(after.is_none_or(|after| after > before), "{} {}: stuck deadline", row.name(), capture.name);
            }
        }
    }
}

/// Law 7: after a recoverable fault the next good frame is read.
#[test]
fn good_frames_follow_faults() {
    for row in PROTOCOLS {
        let mut random = Random::new(7);
        let mut faults = 0;
        for capture in row.captures() {
            let frames = frames(*row, capture);
            for round in 0..200 {
                let wrong = round % frames.len().max(1);
                faults += usize::from(fault_then_frame(*row, capture, &frames, wrong, &mut random));
            }
        }
        // The test has to meet faults where the row knows recoverable ones; raw and CoAP do.
        assert!(faults > 0 || !["raw", "coap"].contains(&row.name()), "{}: no fault was provoked", row.name());
    }
}

/// Law 8: what comes out of every capture is what came out before. `SLUICEGATE_GOLDEN=write` writes the files anew.
#[test]
fn captures_give_their_golden_outputs() {
    for row in PROTOCOLS {
        for capture in row.captures() {
            let path = folder(*row).join("testdata").join(format!("{}.golden", capture.name));
            let text = Host::play(*row, capture).text();
            if std::env::var("SLUICEGATE_GOLDEN").is_ok_and(|v| v == "write") {
                write(&path, &text);
            }
            let golden = read(&path);
            assert!(golden == text, "{} differs; now:\n{text}", path.display());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Laws 1 and 2 once more, over whatever proptest makes of the captures.
    #[test]
    fn mutated_captures_are_cut_anywhere(seed in any::<u64>(), cut in any::<prop::sample::Index>()) {
        let mut random = Random::new(seed);
        for (row, capture) in captures(Wire::Stream) {
            let bytes = random.mutate(&capture.bytes[..capture.bytes.len().min(16 * 1024)]);
            let cut = cut.index(bytes.len() + 1);
            let mut whole = Host::new(row);
            whole.stream(&bytes);
            let mut pieces = Host::new(row);
            pieces.stream(&bytes[..cut]);
            pieces.stream(&bytes[cut..]);
            assert_same(row, capture, &format!("mutated with {seed}, cut at {cut}"), &whole, &pieces);
        }
        for (row, capture) in captures(Wire::Datagram) {
            let play = |random: &mut Random| {
                let mut host = Host::new(row);
                for packet in packets(capture) {
                    host.datagram(random.mutate(&packet).into());
                }
                host.text()
            };
            // A session knows nothing but its inputs.
            prop_assert_eq!(play(&mut Random::new(seed)), play(&mut Random::new(seed)));
        }
    }
}

// === what the laws share ===

fn captures(wire: Wire) -> impl Iterator<Item = (&'static dyn Protocol, &'static Capture)> {
    let all = PROTOCOLS.iter().flat_map(|row| row.captures().iter().map(|capture| (*row, capture)));
    all.filter(move |(_, capture)| capture.wire == wire)
}

/// Equal but for what timing may change: how sends are cut (or interleaved with other sends), offsets of faults, and when
/// among the rest a session says for whom it speaks (MQTT says it again when a subscription is granted).
fn assert_same(row: &dyn Protocol, capture: &Capture, how: &str, one: &Host, other: &Host) {
    let others = |host: &Host| -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Send(_) => None,
            Event::Output(text) => Some(text.clone()),
            Event::Fault(fault) => Some(fault.what.to_string()),
        };
        host.events.iter().filter_map(text).chain(host.closed.clone()).collect()
    };
    let context = format!("{} {} {how}", row.name(), capture.name);
    let parted = |host| others(host).into_iter().partition::<Vec<_>, _>(|text| text.starts_with("Speaks "));
    assert_eq!(parted(one), parted(other), "{context}");
    let (mut a, mut b) = (one.sends(), other.sends());
    if a.concat() != b.concat() {
        a.sort();
        b.sort();
        assert_eq!(a, b, "{context}");
    }
}

fn noise(row: &dyn Protocol, random: &mut Random, round: usize) -> Vec<u8> {
    let captures = row.captures();
    match round % 4 {
        0 => {
            let len = random.below(3000);
            random.bytes(len)
        }
        1 => {
            let (byte, len) = (random.next() as u8, random.below(100_000));
            vec![byte; len]
        }
        _ => {
            let capture = &captures[random.below(captures.len())];
            let bytes = match capture.wire {
                Wire::Stream => capture.bytes[..capture.bytes.len().min(20_000)].to_vec(),
                Wire::Datagram => {
                    let packets = packets(capture);
                    packets[random.below(packets.len())].to_vec()
                }
            };
            random.mutate(&bytes)
        }
    }
}

/// The pieces of a capture after each of which the session has taken everything off the buffer.
fn frames(row: &dyn Protocol, capture: &Capture) -> Vec<Bytes> {
    if capture.wire == Wire::Datagram {
        return packets(capture);
    }
    let bytes = Bytes::from_static(&capture.bytes[..capture.bytes.len().min(16 * 1024)]);
    let mut host = Host::new(row);
    let mut frames = Vec::new();
    let mut from = 0;
    for at in 0..bytes.len() {
        host.stream(&bytes[at..=at]);
        if host.buffer.is_empty() {
            frames.push(bytes.slice(from..=at));
            from = at + 1;
        }
    }
    frames
}

/// Spoils one frame. Where that gives a recoverable fault and the framing holds, the frames after it must be read as
/// if nothing had been. Says whether there was such a fault.
fn fault_then_frame(
    row: &dyn Protocol,
    capture: &Capture,
    frames: &[Bytes],
    wrong: usize,
    random: &mut Random,
) -> bool {
    let feed = |host: &mut Host, frame: &[u8]| match capture.wire {
        Wire::Stream => host.stream(frame),
        Wire::Datagram => host.datagram(Bytes::copy_from_slice(frame)),
    };
    let (Some(frame), Some(next)) = (frames.get(wrong), frames.get(wrong + 1)) else { return false };
    let mut good = Host::new(row);
    let mut spoiled = Host::new(row);
    for frame in &frames[..wrong] {
        feed(&mut good, frame);
        feed(&mut spoiled, frame);
    }
    feed(&mut good, frame);
    let mut bytes = frame.to_vec();
    if !bytes.is_empty() {
        let at = random.below(bytes.len());
        bytes[at] = random.next() as u8;
    }
    let faults_before = spoiled.faults().count();
    feed(&mut spoiled, &bytes);
    if spoiled.closed.is_some() || !spoiled.buffer.is_empty() || spoiled.faults().count() == faults_before {
        return false;
    }
    let (good_before, spoiled_before) = (good.faults().count(), spoiled.faults().count());
    feed(&mut good, next);
    feed(&mut spoiled, next);
    if good.faults().count() == good_before {
        let context = format!("{} {}: frame {} after a fault: {}", row.name(), capture.name, wrong + 1, spoiled.text());
        assert_eq!(spoiled.faults().count(), spoiled_before, "{context}");
        // The good frame may itself be the goodbye.
        assert!((spoiled.closed.is_none() || good.closed.is_some()) && spoiled.buffer.is_empty(), "{context}");
    }
    true
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn folder(row: &dyn Protocol) -> PathBuf {
    source().join(row.name().replace('-', "_"))
}

#[allow(clippy::disallowed_methods, reason = "golden files are files")]
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[allow(clippy::disallowed_methods, reason = "golden files are files")]
fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
