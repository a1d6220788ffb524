//! What a peer sends of its picture, as frames of a stream: parameter sets go ahead of a frame, not in it. Must not be in
//! here: sessions and times.

use bytes::{BufMut, Bytes, BytesMut};
use protocols::media::Codec;
use protocols::media::av1::{self, Av1C};
use protocols::media::h264::{self, AvcC, NAL_PPS, NAL_SPS};
use protocols::media::h265::{self, HvcC};

/// Access unit delimiters (H.264 table 7-1, H.265 table 7-1) say nothing that is not known.
const H264_AUD: u8 = 9;
const H265_AUD: u8 = 35;
/// Pictures of H.265 from which decoding can start (table 7-1: BLA, IDR, CRA).
const H265_STARTS: std::ops::RangeInclusive<u8> = 16..=21;
/// Parameter sets taken from one frame; a decoder knows up to 256, an encoder sends one of each.
const SETS_MAX: usize = 16;

/// One frame.
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// The configuration that came with it, as containers have it.
    pub(super) config: Option<Bytes>,
    /// H.264 and H.265: NAL units with 4-byte lengths; AV1: a temporal unit without its delimiter.
    pub(super) data: Bytes,
    /// Decoding can start here.
    pub(super) key: bool,
}

impl Frame {
    /// H.264 and H.265 come as byte streams, AV1 in the low-overhead format.
    pub(super) fn of(codec: Codec, data: &[u8]) -> Self {
        match codec {
            Codec::H265 => Self::h265(data),
            Codec::Av1 => Self::av1(data),
            _ => Self::h264(data),
        }
    }

    fn h264(data: &[u8]) -> Self {
        let (mut sps, mut pps, mut rest) = (None, Vec::new(), BytesMut::with_capacity(data.len() + 64));
        for nal in h264::annex_b_nals(data) {
            match nal.first().map_or(0, |header| header & 0x1f) {
                NAL_SPS => sps = Some(Bytes::copy_from_slice(nal)),
                NAL_PPS => keep(&mut pps, nal),
                H264_AUD => {}
                _ => put(&mut rest, nal),
            }
        }
        let config = sps.and_then(|sps| AvcC::of(sps, pps)).map(|record| record.build());
        Self { config, key: h264::is_key(&rest), data: rest.freeze() }
    }

    fn h265(data: &[u8]) -> Self {
        let (mut vps, mut sps, mut pps) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rest, mut key) = (BytesMut::with_capacity(data.len() + 64), false);
        for nal in h264::annex_b_nals(data) {
            match nal.first().map_or(0, |header| header >> 1 & 0x3f) {
                h265::NAL_VPS => keep(&mut vps, nal),
                h265::NAL_SPS => keep(&mut sps, nal),
                h265::NAL_PPS => keep(&mut pps, nal),
                H265_AUD => {}
                kind => {
                    key |= H265_STARTS.contains(&kind);
                    put(&mut rest, nal);
                }
            }
        }
        let config = if pps.is_empty() { None } else { HvcC::of(vps, sps, pps) };
        Self { config, key, data: rest.freeze() }
    }

    fn av1(data: &[u8]) -> Self {
        let data = av1::without_delimiters(&Bytes::copy_from_slice(data));
        let header = av1::sequence_header(&data).and_then(|header| Av1C::of(header).ok());
        Self { config: header.map(|header| header.build()), key: av1::is_key(&data), data }
    }
}

fn keep(sets: &mut Vec<Bytes>, nal: &[u8]) {
    if sets.len() < SETS_MAX {
        sets.push(Bytes::copy_from_slice(nal));
    }
}

fn put(out: &mut BytesMut, nal: &[u8]) {
    out.put_u32(nal.len() as u32);
    out.put_slice(nal);
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: [u8; 4] = [0, 0, 0, 1];

    /// x265 3.5, 640x360 at 25 frames a second.
    const H265_VPS: &[u8] = &[
        0x40, 0x01, 0x0c, 0x01, 0xff, 0xff, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00,
        0x03, 0x00, 0x3f, 0x95, 0x98, 0x09,
    ];

    #[test]
    fn parameter_sets_are_taken_out_of_a_frame_and_the_rest_gets_lengths() {
        let data =
            [0, 0, 0, 1, 9, 0xf0, 0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0, 0, 0, 1, 0x68, 0xce, 0, 0, 0, 1, 0x65, 1, 2];
        let frame = Frame::of(Codec::H264, &data);
        let record = AvcC::parse(&frame.config.unwrap()).unwrap();
        assert_eq!((record.sps.concat(), record.pps.concat()), (vec![0x67, 0x42, 0xe0, 0x1f], vec![0x68, 0xce]));
        assert_eq!((&frame.data[..], frame.key), (&[0, 0, 0, 3, 0x65, 1, 2][..], true));
        let nothing = Frame::of(Codec::H264, &[1, 2, 3]);
        assert!(nothing.data.is_empty() && nothing.config.is_none() && !nothing.key);
    }

    #[test]
    fn h265_frames_lose_their_sets_and_their_delimiter() {
        // IDR_W_RADL, then a trailing picture.
        for (slice, key) in [([0x26, 1, 0xaf], true), ([0x02, 1, 0xd0], false)] {
            let data = [&START[..], &[0x46, 1, 0x50], &START, H265_VPS, &START, &slice].concat();
            let frame = Frame::of(Codec::H265, &data);
            assert_eq!((&frame.data[..], frame.key), (&[&[0, 0, 0, 3][..], &slice].concat()[..], key));
            assert!(frame.config.is_none(), "without a sequence parameter set");
        }
    }

    #[test]
    fn noise_is_no_frame_of_any_codec() {
        for codec in [Codec::H264, Codec::H265, Codec::Av1] {
            for len in 0..64u8 {
                let noise: Vec<u8> = (0..len).map(|at| at.wrapping_mul(len).wrapping_add(7)).collect();
                assert!(Frame::of(codec, &noise).config.is_none());
            }
        }
    }
}
