//! Fuzzing without instruments: every parser has a target, each target a population that grows by what is new in its
//! outcomes, mutated with a sense for lengths and counts.
//!
//! `SLUICEGATE_FUZZ_SECONDS` says how long each target runs (default: a moment). What a target was ever caught by, or what
//! brings it somewhere special, lies in `corpus/TARGET/` and is played first. A finding is shrunk, printed, and kept in
//! the target folder's `tmp/fuzz/`: fix it and move it into the corpus under a name that says what it triggers.

#![allow(clippy::disallowed_methods, reason = "it runs for a time, not a count, and keeps files")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]
#![allow(clippy::print_stdout, reason = "how far each target came is worth a line")]

mod evolve;
#[path = "../host/mod.rs"]
mod host;
mod targets;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evolve::Population;
use targets::Target;

/// Whether a build's parsers stop at an overflow instead of reading on with a wrapped number. In CI this runs as released.
#[test]
fn parsers_check_overflow_in_every_build() {
    assert!(protocols::checks_overflow());
}

macro_rules! fuzz {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        #[test]
        fn every_parser_has_its_target() {
            let mut named = vec![$(stringify!($name)),*];
            let mut there: Vec<_> = targets::all().into_iter().map(|target| target.name).collect();
            named.sort_unstable();
            there.sort_unstable();
            assert_eq!(named, there);
        }
    };
}

fuzz!(
    mqtt,
    rtmp,
    http_flv,
    http_things,
    hls,
    rtsp,
    jt1078,
    gb28181,
    coap,
    raw,
    flv,
    video_records,
    audio_records,
    script,
    rtp,
    ps
);

fn run(name: &str) {
    let target = targets::all().into_iter().find(|target| target.name == name).expect("a target of this name");
    let kept = corpus(name);
    assert!(!kept.is_empty(), "{name} has no corpus");
    for (file, input) in &kept {
        assert!(evolve::outcome(&target, input).is_some(), "{} is found again", file.display());
    }
    let inputs = kept.into_iter().map(|(_, input)| input).chain(target.seeds.iter().cloned());
    let mut population = Population::new(inputs.collect());
    let end = Instant::now() + seconds();
    let mut tries = 0u64;
    while tries < 200 || Instant::now() < end {
        let input = population.next();
        match evolve::outcome(&target, &input) {
            Some(outcome) => population.note(input, outcome),
            None => report(&target, input),
        }
        tries += 1;
    }
    println!("{name}: {tries} tries, {} kinds of outcome", population.kinds());
}

/// Shrinks a finding, keeps it, and fails the test with it.
fn report(target: &Target, input: Vec<u8>) -> ! {
    let small = evolve::shrink(target, input);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&folder).expect("a folder for findings");
    let file = folder.join(format!("{}-{:016x}", target.name, evolve::fnv(&small)));
    std::fs::write(&file, &small).expect("to keep the finding");
    panic!(
        "{}: finding of {} bytes in {}: {:02x?}",
        target.name,
        small.len(),
        file.display(),
        &small[..small.len().min(400)]
    );
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read(&file).expect("a file of the corpus"))).collect()
}

fn seconds() -> Duration {
    let said = std::env::var("SLUICEGATE_FUZZ_SECONDS").ok().and_then(|value| value.parse().ok());
    said.map_or(Duration::from_millis(300), Duration::from_secs)
}
