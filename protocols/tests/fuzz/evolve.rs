//! Inputs that beget inputs: those with an outcome not seen before stay, and are changed further.

#![allow(unreachable_pub, reason = "a module of a test crate")]

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::host::Random;
use crate::targets::Target;

/// Inputs kept at a time: the newest replace others at random beyond it.
const POPULATION_MAX: usize = 2_000;

/// Bytes of an input: more only makes it slow.
const INPUT_MAX: usize = 32 * 1024;

/// Numbers at which parsers go wrong.
const EDGES: [u32; 14] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x1_0000, 0xff_ffff, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff];

/// What a run came to, in short; `None` when it panicked.
pub fn outcome(target: &Target, input: &[u8]) -> Option<u64> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).ok()
}

#[derive(Debug)]
pub struct Population {
    members: Vec<Vec<u8>>,
    seen: HashSet<u64>,
    random: Random,
}

impl Population {
    pub fn new(members: Vec<Vec<u8>>) -> Self {
        assert!(!members.is_empty());
        let moment =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        Self { members, seen: HashSet::new(), random: Random::new(moment) }
    }

    /// Kinds of outcome seen.
    pub fn kinds(&self) -> usize {
        self.seen.len()
    }

    pub fn note(&mut self, input: Vec<u8>, outcome: u64) {
        if self.seen.insert(outcome) {
            if self.members.len() < POPULATION_MAX {
                self.members.push(input);
            } else {
                let at = self.random.below(self.members.len());
                self.members[at] = input;
            }
        }
    }

    /// A child of one member, or of two.
    pub fn next(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = self.members[random.below(self.members.len())].clone();
        input.truncate(INPUT_MAX);
        for _ in 0..=random.below(4) {
            match random.below(5) {
                0 => input = random.mutate(&input),
                1 => put_edge(random, &mut input),
                2 => change_length(random, &mut input),
                3 => {
                    let other = &self.members[random.below(self.members.len())];
                    let (head, tail) = (random.below(input.len() + 1), random.below(other.len() + 1));
                    input.truncate(head);
                    input.extend_from_slice(&other[tail..]);
                }
                _ => {
                    let from = random.below(input.len() + 1);
                    let to = (from + random.below(64)).min(input.len());
                    input.drain(from..to);
                }
            }
        }
        input.truncate(INPUT_MAX);
        input
    }
}

/// A number of 1 to 4 bytes, in either order, becomes one at an edge.
fn put_edge(random: &mut Random, input: &mut [u8]) {
    let edge = EDGES[random.below(EDGES.len())];
    let width = 1 + random.below(4);
    let bytes = edge.to_be_bytes();
    let mut bytes = bytes[4 - width..].to_vec();
    if random.below(4) == 0 {
        bytes.reverse();
    }
    let at = random.below(input.len());
    input.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = from);
}

/// What may be a length is made a little longer or shorter, or what the rest of the input is.
fn change_length(random: &mut Random, input: &mut [u8]) {
    let (at, width) = (random.below(input.len()), 1 + random.below(4));
    let Some(field) = input.len().checked_sub(at + width).map(|_| at..at + width) else { return };
    let rest = (input.len() - at - width) as u32;
    let field = &mut input[field];
    let before = field.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
    let after = match random.below(4) {
        0 => before.wrapping_add(1),
        1 => before.wrapping_sub(1),
        2 => rest,
        _ => rest.wrapping_add(1),
    };
    let bytes = after.to_be_bytes();
    field.copy_from_slice(&bytes[4 - width..]);
}

/// The same finding in fewer bytes: pieces are left out and bytes zeroed as long as it still panics.
pub fn shrink(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut piece = input.len().next_power_of_two() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut fewer = input.clone();
            fewer.drain(at..(at + piece).min(input.len()));
            if outcome(target, &fewer).is_none() {
                input = fewer;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    for at in 0..input.len() {
        let mut plainer = input.clone();
        plainer[at] = 0;
        if outcome(target, &plainer).is_none() {
            input = plainer;
        }
    }
    input
}

pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn a_finding_is_found_and_shrunk_to_what_matters() {
    /// Panics where a length of two bytes points beyond the input, behind a magic byte.
    fn broken(input: &[u8]) -> u64 {
        if let Some(at) = input.iter().position(|byte| *byte == 0xa5)
            && let Some([high, low]) = input.get(at + 1..).and_then(<[u8]>::first_chunk)
        {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            assert!(input.len() >= at + 3 + len, "cut off");
            return len as u64;
        }
        0
    }
    let target = Target { name: "broken", seeds: vec![], run: Box::new(broken) };
    let mut population = Population::new(vec![[&[7; 40][..], &[0xa5, 0, 4, 1, 2, 3, 4], &[9; 40]].concat()]);
    let found = (0..100_000).find_map(|_| {
        let input = population.next();
        match outcome(&target, &input) {
            Some(kind) => {
                population.note(input, kind);
                None
            }
            None => Some(input),
        }
    });
    let small = shrink(&target, found.expect("a finding"));
    assert!(small.len() == 3 && small[0] == 0xa5, "{small:02x?}");
}
