//! A fuzz smoke over every row: spoiled captures in random pieces, with commands and deadlines in between.
//!
//! `SLUICEGATE_FUZZ_SECONDS` says how long (default 2). A finding names its row and seed; `SLUICEGATE_FUZZ_SEED` runs
//! that one again.

#![allow(clippy::disallowed_methods, reason = "it runs for a time, not a count")]

mod host;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::{Command, Order, Value};
use host::{Host, Random, packets};
use protocols::{Input, PROTOCOLS, Protocol, Wire};

#[test]
fn spoiled_captures_do_no_harm() {
    if let Some(seed) = number("SLUICEGATE_FUZZ_SEED") {
        for row in PROTOCOLS {
            talk(*row, seed);
        }
        return;
    }
    let end = Instant::now() + Duration::from_secs(number("SLUICEGATE_FUZZ_SECONDS").unwrap_or(2));
    let mut seed = 1;
    while Instant::now() < end {
        for row in PROTOCOLS {
            let found = catch_unwind(AssertUnwindSafe(|| talk(*row, seed))).is_err();
            assert!(!found, "{}: finding with SLUICEGATE_FUZZ_SEED={seed}", row.name());
        }
        seed += 1;
    }
    assert!(seed > 1, "no round in the time given");
}

fn talk(row: &dyn Protocol, seed: u64) {
    let mut random = Random::new(seed);
    let captures = row.captures();
    let capture = &captures[random.below(captures.len())];
    let mut host = Host::new(row);
    let pieces: Vec<Bytes> = match capture.wire {
        Wire::Datagram => packets(capture).iter().map(|packet| spoil(&mut random, packet)).collect(),
        Wire::Stream => {
            let mut rest = spoil(&mut random, &capture.bytes[..capture.bytes.len().min(32 * 1024)]);
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let len = (1 + random.below(2000)).min(rest.len());
                pieces.push(rest.split_to(len));
            }
            pieces
        }
    };
    for piece in pieces {
        match capture.wire {
            Wire::Stream => host.stream(&piece),
            Wire::Datagram => host.datagram(piece),
        }
        match random.below(8) {
            0 => host.input(Input::Command(command(&mut random))),
            1 if host.closed.is_none() => {
                let before = host.deadline();
                host.pass_deadline();
                assert!(
                    host.closed.is_some() || host.deadline().is_none() || host.deadline() > before,
                    "stuck deadline"
                );
            }
            2 => host.pass(Duration::from_millis(random.next() % 400_000)),
            _ => {}
        }
        assert!(host.closed.is_some() || host.paused() || host.buffer.len() <= host.limits.frame_max);
    }
    host.input(Input::Ended { reason: "the end" });
}

/// Two of three pieces stay as they were, so that talks get beyond their first message.
fn spoil(random: &mut Random, bytes: &[u8]) -> Bytes {
    if random.below(3) == 0 { random.mutate(bytes).into() } else { Bytes::copy_from_slice(bytes) }
}

fn command(random: &mut Random) -> Command {
    let order = match random.below(3) {
        0 => Order::Write(vec![("target".to_owned(), Value::Int(60))]),
        1 => Order::Read(vec!["target".to_owned()]),
        _ => Order::Invoke { action: "vent".to_owned(), input: Value::Null },
    };
    Command {
        id: format!("c{}", random.below(100)),
        device: ["boiler", "hut", "aio", "nobody"][random.below(4)].to_owned(),
        product: "energy-meter".to_owned(),
        order,
        patience: Duration::from_secs(random.next() % 100),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}
