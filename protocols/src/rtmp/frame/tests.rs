//! Chunk streams as encoders write them, cut anywhere, and as an enemy writes them.

use proptest::prelude::*;

use super::*;
use crate::media::mux::{MessageHeader, write_message};

const MAX: usize = 1 << 20;

fn read_all(reader: &mut ChunkReader, bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
    let mut buffer = BytesMut::from(bytes);
    std::iter::from_fn(|| reader.read(&mut buffer).transpose()).collect()
}

fn read(bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
    read_all(&mut ChunkReader::new(MAX), bytes)
}

fn times(bytes: &[u8]) -> Vec<u32> {
    read(bytes).unwrap().iter().map(|message| message.timestamp).collect()
}

/// A type 0 chunk of one payload byte.
fn full(time: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    let header = MessageHeader { chunk_stream: 4, timestamp: time, type_id: 8, stream_id: 1 };
    write_message(&header, &[&[0xaa]], 128, &mut out);
    out.to_vec()
}

/// A type 1 or 2 chunk of one payload byte.
fn stepped(fmt: u8, delta: u32) -> Vec<u8> {
    let mut out = vec![fmt << 6 | 4];
    out.extend_from_slice(&delta.min(0xff_ffff).to_be_bytes()[1..]);
    if fmt == 1 {
        out.extend_from_slice(&[0, 0, 1, 8]);
    }
    if delta >= 0xff_ffff {
        out.extend_from_slice(&delta.to_be_bytes());
    }
    out.push(0xaa);
    out
}

#[test]
fn deltas_add_up_and_a_bare_chunk_repeats_the_last() {
    let bytes = [full(1_000), stepped(1, 40), stepped(2, 23), vec![0xc4, 0xaa], vec![0xc4, 0xaa]].concat();
    assert_eq!(times(&bytes), [1_000, 1_040, 1_063, 1_086, 1_109]);
    // ffmpeg: 0, 40, then type 3 because the step equals the last time field.
    assert_eq!(times(&[full(40), vec![0xc4, 0xaa]].concat()), [40, 80]);
}

#[test]
fn extended_times_begin_at_the_mark_and_wrap() {
    assert_eq!(
        times(&[full(0xff_fffe), full(0xff_ffff), full(0x100_0000)].concat()),
        [0xff_fffe, 0xff_ffff, 0x100_0000]
    );
    assert_eq!(times(&[full(0xff_fff0), stepped(1, 40), stepped(2, 40)].concat()), [0xff_fff0, 0x100_0018, 0x100_0040]);
    assert_eq!(times(&[full(u32::MAX - 9), stepped(1, 20)].concat()), [u32::MAX - 9, 10]);
    assert_eq!(times(&[full(5), stepped(1, 0x200_0000)].concat()), [5, 0x200_0005]);
    // An extended time is no delta for the type 3 chunk that follows.
    assert_eq!(times(&[full(0x200_0000), vec![0xc4, 2, 0, 0, 0, 0xaa]].concat()), [0x200_0000, 0x200_0000]);
}

#[test]
fn continuation_chunks_may_repeat_the_extended_time_or_leave_it_out() {
    let payload: Vec<u8> = (0..100).collect();
    let mut repeated = BytesMut::new();
    let header = MessageHeader { chunk_stream: 6, timestamp: 0x0123_4567, type_id: 9, stream_id: 1 };
    write_message(&header, &[&payload], 30, &mut repeated);
    let set_size = [2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 30];
    let time = [0x01, 0x23, 0x45, 0x67];
    let mut bare = repeated[..16 + 30].to_vec();
    for piece in payload[30..].chunks(30) {
        bare.push(0xc6);
        bare.extend_from_slice(piece);
    }
    // A delta in the header, the time itself in the continuation: seen from some hardware encoders.
    let step: u32 = 0x0100_0000;
    let mut other = [full(0x23_4567).as_slice(), &[0x44, 0xff, 0xff, 0xff, 0, 0, 40, 9]].concat();
    other.extend_from_slice(&step.to_be_bytes());
    other.extend_from_slice(&payload[..30]);
    other.extend_from_slice(&[&[0xc4][..], &time, &payload[30..40]].concat());
    for (name, bytes, count) in [("repeated", &repeated[..], 100), ("bare", &bare, 100), ("time", &other, 40)] {
        let messages = read(&[&set_size, bytes].concat()).unwrap();
        let message = messages.last().unwrap();
        assert_eq!((message.timestamp, &message.payload[..]), (0x0123_4567, &payload[..count]), "{name}");
    }
}

#[test]
fn abort_drops_what_is_unfinished() {
    let mut bytes = vec![4, 0, 0, 0, 0, 0, 200, 8, 1, 0, 0, 0];
    bytes.extend_from_slice(&[1; 128]);
    bytes.extend_from_slice(&[2, 0, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 0, 0, 0, 4]);
    bytes.extend_from_slice(&full(7));
    let mut reader = ChunkReader::new(MAX);
    let messages = read_all(&mut reader, &bytes).unwrap();
    assert_eq!((messages.len(), messages[0].timestamp, reader.held), (1, 7, 0));
    assert_eq!(reader.taken(), bytes.len() as u64);
}

#[test]
fn large_chunk_stream_ids() {
    let head = [0, 0, 5, 0, 0, 1, 8, 1, 0, 0, 0, 0xaa];
    let two = [&[0u8, 255][..], &head[..]].concat();
    let three = [&[1u8, 255, 255][..], &head[..]].concat();
    assert_eq!(read(&[two, three].concat()).unwrap().len(), 2);
}

#[test]
fn a_chunk_size_costs_no_memory() {
    let set = |size: u32| [&[2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0][..], &size.to_be_bytes()].concat();
    let mut reader = ChunkReader::new(MAX);
    assert_eq!(read_all(&mut reader, &set(0x7fff_ffff)).map(|messages| messages.len()), Ok(0));
    assert_eq!(reader.chunk_size, CHUNK_SIZE_MAX);
    assert_eq!(read(&set(0)), Err(FrameError::ChunkSize { size: 0 }));
    assert_eq!(read(&set(0x8000_0000)), Err(FrameError::ChunkSize { size: 0x8000_0000 }));
    assert_eq!(read(&[2, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 9]), Err(FrameError::ChunkSize { size: 0 }));
}

#[test]
fn what_an_enemy_may_claim() {
    let sixteen_mib = [4, 0, 0, 0, 0xff, 0xff, 0xff, 9, 1, 0, 0, 0];
    assert_eq!(read(&sixteen_mib), Err(FrameError::MessageTooLong { len: 0xff_ffff, max: MAX }));
    assert_eq!(read(&[0xc4, 1]), Err(FrameError::NoHeader { id: 4, fmt: 3 }));
    let mut half = vec![4, 0, 0, 0, 0, 0, 200, 8, 1, 0, 0, 0];
    half.extend_from_slice(&[1; 128]);
    assert_eq!(read(&[half.clone(), full(1)].concat()), Err(FrameError::Unfinished { id: 4 }));
    // 65,000 chunk streams, each with a message begun.
    let mut many = Vec::new();
    for id in 0..65_000u32 {
        many.extend_from_slice(&[1, id as u8, (id >> 8) as u8, 0, 0, 0, 0, 0, 200, 8, 1, 0, 0, 0]);
        many.extend_from_slice(&[0; 128]);
    }
    assert_eq!(read(&many), Err(FrameError::TooManyStreams));
    // A few streams, each with all but the end of the longest message.
    let mut reader = ChunkReader::new(1_000);
    let mut outcome = Ok(Vec::new());
    for id in 4..20 {
        let mut bytes = vec![id, 0, 0, 0, 0, 3, 0xe8, 8, 1, 0, 0, 0];
        bytes.extend_from_slice(&[0; 128]);
        for _ in 0..6 {
            bytes.push(0xc0 | id);
            bytes.extend_from_slice(&[0; 128]);
        }
        outcome = outcome.and_then(|_| read_all(&mut reader, &bytes));
    }
    assert_eq!(outcome, Err(FrameError::HeldTooMuch { max: 2_000 }));
}

/// Messages of several chunk streams with their chunks shuffled together.
fn interleaved(messages: &[(u8, u32, Vec<u8>)], chunk_size: usize) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let set = MessageHeader { chunk_stream: 2, timestamp: 0, type_id: 1, stream_id: 0 };
    write_message(&set, &[&(chunk_size as u32).to_be_bytes()], 128, &mut bytes);
    let mut queues: Vec<Vec<Vec<u8>>> = Vec::new();
    for (n, (_, time, payload)) in messages.iter().enumerate() {
        let mut out = BytesMut::new();
        let header = MessageHeader { chunk_stream: 4 + n as u8, timestamp: *time, type_id: 9, stream_id: 1 };
        write_message(&header, &[payload], chunk_size, &mut out);
        let extended = if *time >= 0xff_ffff { 4 } else { 0 };
        let mut pieces = Vec::new();
        let mut rest = &out[..];
        let mut head = 12 + extended;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(head + chunk_size));
            pieces.insert(0, piece.to_vec());
            rest = later;
            head = 1 + extended;
        }
        queues.push(pieces);
    }
    let mut turn = 0;
    while queues.iter().any(|queue| !queue.is_empty()) {
        turn += 1;
        let at = turn * 7 % queues.len();
        let place = (0..queues.len()).map(|n| (at + n) % queues.len()).find(|n| !queues[*n].is_empty()).unwrap();
        bytes.extend_from_slice(&queues[place].pop().unwrap());
    }
    bytes.to_vec()
}

proptest! {
    #[test]
    fn any_chunk_size_interleaved_and_cut_anywhere(
        chunk_size in 1usize..300,
        messages in prop::collection::vec((any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 1..700)), 1..6),
        cuts in prop::collection::vec(1usize..400, 1..40),
    ) {
        let bytes = interleaved(&messages, chunk_size);
        let mut reader = ChunkReader::new(MAX);
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        let (mut rest, mut cut) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cut.next().unwrap()));
            buffer.extend_from_slice(now);
            rest = later;
            while let Some(message) = reader.read(&mut buffer).unwrap() {
                got.push((message.timestamp, message.payload.to_vec()));
            }
        }
        let mut expected: Vec<_> = messages.into_iter().map(|(_, time, payload)| (time, payload)).collect();
        got.sort();
        expected.sort();
        prop_assert_eq!(got, expected);
        prop_assert_eq!((reader.held, reader.taken()), (0, bytes.len() as u64));
    }

    #[test]
    fn noise_is_never_a_panic_and_never_held(noise: Vec<u8>, set in 1u32..100_000) {
        let mut bytes = vec![2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
        bytes.extend_from_slice(&set.to_be_bytes());
        bytes.extend_from_slice(&noise);
        let mut reader = ChunkReader::new(5_000);
        let _messages = read_all(&mut reader, &bytes);
        prop_assert!(reader.held <= noise.len());
    }
}
