//! Program streams made here: cut anywhere, damaged, with lengths, marks and times that lie.

use super::*;
use crate::media::{Kind, Track};

/// A packet of the stream with this time.
fn packet(id: u8, pts: Option<u64>, content: &[u8]) -> Vec<u8> {
    let head: Vec<u8> = match pts {
        Some(pts) => {
            let [high, middle, low] = [pts >> 30 << 1 | 0x21, (pts >> 15 & 0x7fff) << 1 | 1, (pts & 0x7fff) << 1 | 1];
            let two = |value: u64| (value as u16).to_be_bytes();
            [&[0x80, 0x80, 5, high as u8][..], &two(middle), &two(low)].concat()
        }
        None => vec![0x80, 0, 0],
    };
    let len = (head.len() + content.len()) as u16;
    [&[0, 0, 1, id][..], &len.to_be_bytes(), &head, content].concat()
}

const PACK: &[u8] = &[0, 0, 1, 0xba, 0x44, 0, 4, 0, 4, 1, 0, 0x5f, 0x6b, 0xf8];
const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x0b, 0xda, 0x0f, 0x0a];
const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x38, 0x80];

fn key(pts: u64) -> Vec<u8> {
    [PACK, &packet(0xe0, Some(pts), &[SPS, PPS, &[0, 0, 1, 0x65, 0x88, 1, 2]].concat())].concat()
}

fn delta(pts: u64) -> Vec<u8> {
    [PACK, &packet(0xe0, Some(pts), &[0, 0, 1, 0x41, 0x9a, 3, 4])].concat()
}

fn shown(bytes: &[u8], cut: usize) -> (Vec<(Track, Kind, i64)>, usize) {
    let (mut demuxer, mut units, mut errors) = (Demuxer::default(), Vec::new(), 0);
    for piece in bytes.chunks(cut) {
        errors += usize::from(demuxer.push(piece, &mut units).is_err());
    }
    let end = demuxer.push(&[0, 0, 1, 0xb9], &mut units);
    errors += usize::from(end.is_err());
    (units.iter().map(|unit| (unit.track, unit.kind, unit.pts_90k - BEGIN)).collect(), errors)
}

#[test]
fn pictures_and_sound_come_out_wherever_they_are_cut() {
    let max = (1 << 33) - 1_800;
    let sound = packet(0xc0, Some(1_800), &[0xd5; 160]);
    let bytes = [key(max), delta(1_800), sound, delta(5_400)].concat();
    let expected = vec![
        (Track::Video, Kind::Config, 0),
        (Track::Video, Kind::Key, 0),
        (Track::Audio, Kind::Key, 3_600),
        (Track::Video, Kind::Delta, 3_600),
        (Track::Video, Kind::Delta, 7_200),
    ];
    for cut in [1, 2, 3, 7, 50, 1_000] {
        assert_eq!(shown(&bytes, cut), (expected.clone(), 0), "pieces of {cut}");
    }
}

#[test]
fn damage_costs_pictures_up_to_the_next_key_frame() {
    let mut cut = delta(3_600);
    cut.truncate(cut.len() - 2);
    let bytes = [key(0), cut, delta(7_200), delta(10_800), key(14_400)].concat();
    let (units, errors) = shown(&bytes, 1_000);
    let times: Vec<i64> = units.iter().filter(|(_, kind, _)| *kind != Kind::Config).map(|(.., at)| *at).collect();
    assert_eq!((times.first(), times.last()), (Some(&0), Some(&14_400)), "{units:?}");
    assert!(errors > 0 && !times.contains(&7_200) && !times.contains(&10_800), "{units:?}");
}

#[test]
fn a_length_of_0_goes_up_to_the_next_header_and_odd_codes_are_passed_over() {
    let mut open = key(0);
    open[18..20].copy_from_slice(&[0, 0]);
    let odd = [&[0, 0, 1, 0xaf, 9, 9][..], &packet(0xbd, None, &[0, 0, 1, 0xe0, 5])].concat();
    let (units, errors) = shown(&[open, odd, delta(3_600)].concat(), 5);
    assert_eq!((units.len(), errors), (3, 0), "{units:?}");
}

#[test]
fn marks_spare_a_frames_delay_once_they_told_the_truth() {
    let (mut demuxer, mut units, mut at_once) = (Demuxer::default(), Vec::new(), 0);
    for frame in 0..20 {
        let bytes = if frame == 0 { key(0) } else { delta(frame * 3_600) };
        demuxer.push(&bytes, &mut units).unwrap();
        demuxer.mark(&mut units);
        let newest = units.last().map(|unit| unit.pts_90k - BEGIN);
        at_once += usize::from(newest == Some(frame as i64 * 3_600));
    }
    assert!((10..15).contains(&at_once), "{at_once}");
}

#[test]
fn streams_that_are_not_carried_are_counted() {
    let svac = b"\0\0\x01\xbc\0\x0e\xe0\xff\0\0\0\x04\x80\xe0\0\0\x01\x02\x03\x04";
    let mut demuxer = Demuxer::default();
    demuxer.push(&[PACK, svac, &packet(0xe0, Some(0), &[1, 2, 3])].concat(), &mut Vec::new()).unwrap();
    assert_eq!(
        (demuxer.left_out(), demuxer.take_refused(), demuxer.take_refused()),
        (1, Some(0x80), None),
        "told once"
    );
}

#[test]
fn pictures_without_times_of_their_own_go_on_as_those_before() {
    let several = |pts, count: u8| {
        let pictures: Vec<u8> = (0..count).flat_map(|n| [0, 0, 1, 0x41, 0x9a, 3, n + 1]).collect();
        [PACK, &packet(0xe0, Some(pts), &pictures)].concat()
    };
    let bytes = [key(0), delta(9_000), several(18_000, 3), several(45_000, 2)].concat();
    let (units, errors) = shown(&bytes, 11);
    let times: Vec<i64> = units.iter().skip(1).map(|(.., at)| *at).collect();
    assert_eq!((times, errors), (vec![0, 9_000, 18_000, 27_000, 36_000, 45_000, 54_000], 0));
}

#[test]
fn bytes_without_a_header_are_counted_until_one_comes() {
    for noise in [0, 0xff] {
        let mut demuxer = Demuxer::default();
        for _ in 0..10 {
            let _fault = demuxer.push(&[noise; 1_000], &mut Vec::new());
        }
        assert!(demuxer.searched() > 9_990, "{} of {noise}", demuxer.searched());
        let _fault = demuxer.push(&key(0), &mut Vec::new());
        assert_eq!(demuxer.searched(), 0);
    }
}

#[test]
fn marks_in_the_middle_of_pictures_are_not_believed() {
    let (mut demuxer, mut units) = (Demuxer::default(), Vec::new());
    for frame in 0..30 {
        let bytes = if frame == 0 { key(0) } else { delta(frame * 3_600) };
        demuxer.push(&bytes, &mut units).unwrap();
        demuxer.mark(&mut units);
        // What is left of the slice comes in a packet of its own, without a time.
        demuxer.push(&packet(0xe0, None, &[9; 20]), &mut units).unwrap();
    }
    assert_eq!(units.len(), 30, "a configuration, and all but the last");
    assert!(units.iter().skip(1).all(|unit| unit.data.ends_with(&[9; 20])), "{units:?}");
}
