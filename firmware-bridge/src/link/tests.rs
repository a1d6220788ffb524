//! Two ends over a wire that drops, doubles, reorders and damages; restarts, noise, a deaf peer.

use proptest::prelude::*;

use super::*;

const EVERYTHING: Config = Config {
    window: WINDOW_MAX,
    patience: Duration::from_millis(100),
    patience_max: Duration::from_millis(400),
    repeats_max: 1000,
};

#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
fn zero() -> Instant {
    Instant::now()
}

/// A small generator, so that proptest shrinks one seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Two links and what is under way between them, in virtual time.
struct Wire {
    now: Instant,
    ends: [Link; 2],
    to_send: [VecDeque<Bytes>; 2],
    got: [Vec<Bytes>; 2],
    under_way: Vec<(Instant, usize, Vec<u8>)>,
    dice: Dice,
    /// In 16 frames, how many are dropped, doubled, damaged, and delayed.
    faults: [u64; 4],
}

impl Wire {
    fn new(config: Config, seed: u64, faults: [u64; 4], counts: [u8; 2]) -> Self {
        let message = |end: u8| move |n: u8| Bytes::from(vec![end, n, 0, n]);
        Self {
            now: zero(),
            ends: [Link::new(config, 7), Link::new(config, 8)],
            to_send: [(0..counts[0]).map(message(0)).collect(), (0..counts[1]).map(message(1)).collect()],
            got: [Vec::new(), Vec::new()],
            under_way: Vec::new(),
            dice: Dice(seed),
            faults,
        }
    }

    /// Lets time pass until nothing is to do, or for so many steps.
    fn run(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            for end in 0..2 {
                while self.ends[end].can_send() {
                    let Some(message) = self.to_send[end].pop_front() else { break };
                    self.ends[end].send(self.now, message).unwrap();
                }
                self.collect(end);
            }
            let deadlines = self.ends.iter().filter_map(Link::deadline);
            let Some(next) = self.under_way.iter().map(|(at, ..)| *at).chain(deadlines).min() else { return true };
            self.now = self.now.max(next);
            let arrived = self.under_way.iter().position(|(at, ..)| *at <= self.now);
            if let Some((_, end, bytes)) = arrived.map(|index| self.under_way.swap_remove(index)) {
                self.ends[end].receive(self.now, &bytes);
                self.collect(end);
            }
            for end in 0..2 {
                self.ends[end].tick(self.now);
                self.collect(end);
            }
        }
        false
    }

    fn collect(&mut self, end: usize) {
        while let Some(event) = self.ends[end].poll() {
            match event {
                Event::Send(frame) => self.throw(1 - end, &frame),
                Event::Message(message) => self.got[end].push(message),
                Event::PeerRestarted => {}
                Event::Broken => panic!("broken"),
            }
        }
    }

    fn throw(&mut self, end: usize, frame: &[u8]) {
        let [drop, double, damage, delay] = self.faults;
        let copies = if self.dice.roll(16) < double { 2 } else { 1 };
        for _ in 0..copies {
            if self.dice.roll(16) < drop {
                continue;
            }
            let mut frame = frame.to_vec();
            if self.dice.roll(16) < damage {
                let at = self.dice.roll(frame.len() as u64) as usize;
                frame[at] ^= 1 << self.dice.roll(8);
            }
            let late = if self.dice.roll(16) < delay { self.dice.roll(250) } else { 1 };
            self.under_way.push((self.now + Duration::from_millis(late), end, frame));
        }
    }
}

fn numbers(messages: &[Bytes]) -> Vec<u8> {
    messages.iter().map(|message| message[1]).collect()
}

proptest! {
    /// All messages arrive once and in order, both ways at once, whatever the wire does.
    #[test]
    fn every_message_once_and_in_order(
        seed in any::<u64>(),
        faults in [0..7_u64, 0..7_u64, 0..5_u64, 0..16_u64],
        counts in [0..60_u8, 0..60_u8],
        window in 0..20_u32,
    ) {
        let mut wire = Wire::new(Config { window, ..EVERYTHING }, seed, faults, counts);
        prop_assert!(wire.run(200_000), "comes to an end");
        prop_assert_eq!(numbers(&wire.got[1]), (0..counts[0]).collect::<Vec<_>>());
        prop_assert_eq!(numbers(&wire.got[0]), (0..counts[1]).collect::<Vec<_>>());
        prop_assert_eq!(wire.ends[1].counters().delivered, u64::from(counts[0]));
    }

    /// A receiver that restarts at any step loses nothing; only what was under way then may come again.
    #[test]
    fn a_restarted_receiver_goes_on(seed in any::<u64>(), at in 0..150_usize, drop in 0..6_u64) {
        let mut wire = Wire::new(EVERYTHING, seed, [drop, 3, 2, 8], [40, 0]);
        wire.run(at);
        wire.ends[1] = Link::new(EVERYTHING, 9);
        let before = wire.got[1].len();
        prop_assert!(wire.run(200_000), "comes to an end");
        let got = numbers(&wire.got[1]);
        let (first, second) = got.split_at(before);
        prop_assert_eq!(first, (0..before as u8).collect::<Vec<_>>());
        prop_assert!(second.is_sorted_by(|a, b| a < b), "the new life hears each once, in order: {got:?}");
        let mut all = got.clone();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all, (0..40).collect::<Vec<_>>(), "nothing is lost");
    }

    /// A sender that restarts and hands its unacknowledged messages on loses nothing.
    #[test]
    fn a_restarted_sender_goes_on(seed in any::<u64>(), at in 0..150_usize) {
        let mut wire = Wire::new(EVERYTHING, seed, [3, 3, 0, 0], [40, 0]);
        wire.run(at);
        // In order on the wire, as a serial line is: what the old life sent has come or is lost.
        wire.under_way.clear();
        let old = std::mem::replace(&mut wire.ends[0], Link::new(EVERYTHING, 10));
        for message in old.into_unacknowledged().into_iter().rev() {
            wire.to_send[0].push_front(message);
        }
        prop_assert!(wire.run(200_000), "comes to an end");
        let mut got = numbers(&wire.got[1]);
        got.sort_unstable();
        got.dedup();
        prop_assert_eq!(got, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4000), cut in 1..100_usize) {
        let mut link = Link::new(EVERYTHING, 1);
        for piece in bytes.chunks(cut) {
            link.receive(zero(), piece);
        }
        prop_assert!(link.events.len() <= bytes.len());
    }

    #[test]
    fn nonsense_packets_never_panic(
        session in 0..3_u32,
        packets in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 0..50),
    ) {
        let mut link = Link::new(EVERYTHING, 1);
        link.send(zero(), Bytes::new()).unwrap();
        for (sequence, oldest, ack) in packets {
            let data = Kind::Data(Data { sequence, oldest, payload: Vec::new() });
            let kind = if ack { Kind::Ack(Ack { next: sequence }) } else { data };
            let mut frame = Vec::new();
            frame::encode(&Packet { session, kind: Some(kind) }.encode_to_vec(), &mut frame).unwrap();
            link.receive(zero(), &frame);
            prop_assert!(link.peer.as_ref().is_none_or(|peer| peer.early.len() <= WINDOW_MAX as usize));
        }
    }
}

#[test]
fn a_deaf_peer_breaks_the_link_and_gives_the_messages_back() {
    let config = Config { repeats_max: 3, ..EVERYTHING };
    let mut link = Link::new(config, 1);
    let began = zero();
    for n in 0..WINDOW_MAX {
        link.send(began, Bytes::from(vec![n as u8])).unwrap();
    }
    assert_eq!(link.send(began, Bytes::new()), Err(LinkError::Full(8)));
    let mut waits = Vec::new();
    let mut last = began;
    while let Some(deadline) = link.deadline() {
        waits.push((deadline - last).as_millis());
        last = deadline;
        link.tick(deadline);
    }
    assert_eq!(waits, [100, 200, 400, 400], "patience doubles up to its end");
    assert_eq!(std::iter::from_fn(|| link.poll()).last(), Some(Event::Broken));
    assert_eq!(link.send(last, Bytes::new()), Err(LinkError::Broken));
    assert_eq!(link.counters().repeated, 3 * 8);
    assert_eq!(link.into_unacknowledged().len(), 8);
}

#[test]
fn each_packet_is_acknowledged_and_counted_for_what_it_is() {
    let mut link = Link::new(EVERYTHING, 1);
    let mut hear = |session: u32, sequence: u32| {
        let data = Data { sequence, oldest: 5, payload: vec![sequence as u8] };
        let mut frame = Vec::new();
        frame::encode(&Packet { session, kind: Some(Kind::Data(data)) }.encode_to_vec(), &mut frame).unwrap();
        link.receive(zero(), &frame);
        let mut heard = Vec::new();
        let mut next = None;
        while let Some(event) = link.poll() {
            match event {
                Event::Message(message) => heard.push(message[0]),
                Event::Send(frame) => {
                    let packet = Decoder::new().next(&mut &frame[..]).unwrap().unwrap();
                    let Some(Kind::Ack(ack)) = Packet::decode(&packet[..]).unwrap().kind else { panic!("no ack") };
                    next = Some(ack.next);
                }
                other => panic!("{other:?}"),
            }
        }
        let Counters { duplicates, foreign, .. } = link.counters();
        (heard, next, duplicates, foreign)
    };
    assert_eq!(hear(3, 6), (vec![], Some(5), 0, 0), "too early: held");
    assert_eq!(hear(3, 6), (vec![], Some(5), 1, 0), "held already");
    assert_eq!(hear(3, 5), (vec![5, 6], Some(7), 1, 0));
    assert_eq!(hear(3, 5), (vec![], Some(7), 2, 0), "an acknowledgement was lost: said again");
    assert_eq!(hear(3, 7 + WINDOW_MAX), (vec![], None, 2, 1), "beyond the window");
    assert_eq!(hear(3, 7), (vec![7], Some(8), 2, 1));
}

#[test]
fn the_largest_message_fits() {
    let mut link = Link::new(EVERYTHING, u32::MAX);
    link.next = u32::MAX;
    let message = Bytes::from(vec![0; MESSAGE_MAX]);
    assert_eq!(link.send(zero(), message.clone()), Ok(()));
    let Some(Event::Send(frame)) = link.poll() else { panic!("no frame") };
    let mut other = Link::new(EVERYTHING, 2);
    other.receive(zero(), &frame);
    assert_eq!(other.poll(), Some(Event::Message(message)));
    let long = Bytes::from(vec![0; MESSAGE_MAX + 1]);
    assert_eq!(link.send(zero(), long), Err(LinkError::TooLong(MESSAGE_MAX + 1)));
}
