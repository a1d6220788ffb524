//! AV1 in RTP ("RTP Payload Format For AV1", AOM, 1.0): temporal units to payloads, and payloads to temporal units.
//!
//! Of the aggregation header (4.4) we write Z, Y and N; every element has its length (W is 0).

use bytes::{BufMut, BytesMut};

use crate::media::Unit;
use crate::media::av1::{OBU_PADDING, OBU_TEMPORAL_DELIMITER, OBU_TILE_LIST, Obus, leb128, put_leb128};
use crate::media::read::{ByteReader, MediaError};

const PART: &str = "AV1 payload";

/// The first element goes on from the packet before; the last goes on in the next.
const CONTINUES: u8 = 0x80;
const CONTINUED: u8 = 0x40;
/// A coded video sequence begins.
const NEW_SEQUENCE: u8 = 0x08;

/// Bytes of the length ahead of an element: two are enough for any packet.
const LENGTH_LEN: usize = 2;

/// What has no place in RTP (5).
fn is_left_out(obu_type: u8) -> bool {
    matches!(obu_type, OBU_TEMPORAL_DELIMITER | OBU_TILE_LIST | OBU_PADDING)
}

/// Cuts a temporal unit into payloads of at most `len_max` bytes; `put` gets each, and whether it is the last.
pub(super) fn split(unit: &[u8], key: bool, len_max: usize, mut put: impl FnMut(&[u8], bool)) {
    let mut payload = vec![if key { NEW_SEQUENCE } else { 0 }];
    let mark = |payload: &mut Vec<u8>, flag| payload.first_mut().into_iter().for_each(|head| *head |= flag);
    for obu in Obus::new(unit).map_while(Result::ok).filter(|obu| !is_left_out(obu.obu_type)) {
        let mut bytes = BytesMut::new();
        obu.write_unsized(&mut bytes);
        while !bytes.is_empty() {
            let room = len_max.saturating_sub(payload.len() + LENGTH_LEN);
            if room == 0 {
                put(&payload, false);
                payload = vec![0];
                continue;
            }
            let part = bytes.split_to(bytes.len().min(room));
            let mut length = BytesMut::with_capacity(LENGTH_LEN);
            put_leb128(part.len() as u32, &mut length);
            payload.extend_from_slice(&length);
            payload.extend_from_slice(&part);
            if !bytes.is_empty() {
                mark(&mut payload, CONTINUED);
                put(&payload, false);
                payload = vec![CONTINUES];
            }
        }
    }
    if payload.len() > 1 {
        put(&payload, true);
    }
}

/// Whether a coded video sequence begins with this payload.
pub(super) fn begins_sequence(payload: &[u8]) -> bool {
    payload.first().is_some_and(|head| head & (NEW_SEQUENCE | CONTINUES) == NEW_SEQUENCE)
}

/// Appends what the payload brings to the temporal unit in `data`; an element that is not whole waits in `fragment`.
pub(super) fn join(payload: &[u8], fragment: &mut BytesMut, data: &mut BytesMut) -> Result<(), MediaError> {
    let mut reader = ByteReader::new(PART, payload);
    let head = reader.u8()?;
    let count = usize::from(head >> 4 & 3);
    let mut at = 0;
    while !reader.is_empty() {
        at += 1;
        // The last of a counted number has no length.
        let len = if at == count { reader.rest().len() } else { leb128(&mut reader)? as usize };
        let part = reader.take(len)?;
        if at > 1 || head & CONTINUES == 0 {
            fragment.clear();
        } else if fragment.is_empty() {
            return Err(reader.malformed("the beginning of an OBU is lost"));
        }
        if fragment.len() + data.len() + part.len() + 16 > Unit::LEN_MAX {
            return Err(reader.limit("bytes in a temporal unit", Unit::LEN_MAX));
        }
        fragment.put_slice(part);
        if reader.is_empty() && head & CONTINUED != 0 {
            break;
        }
        let whole = fragment.split();
        if let Some(obu) = Obus::new(&whole).next().transpose()?.filter(|obu| !is_left_out(obu.obu_type)) {
            obu.write_sized(data);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn temporal_units_come_back_from_their_payloads(sizes in prop::collection::vec(0usize..5_000, 1..8), len_max in 40usize..1_500, key: bool) {
            let mut unit = BytesMut::new();
            for (at, size) in sizes.iter().enumerate() {
                let kinds = [1, 6, 3, 4];
                unit.put_u8(kinds[at % 4] << 3 | 2);
                put_leb128(*size as u32, &mut unit);
                unit.extend(std::iter::repeat_n(at as u8, *size));
            }
            let mut payloads = Vec::new();
            split(&unit, key, len_max, |payload, last| payloads.push((payload.to_vec(), last)));
            let (mut fragment, mut data) = (BytesMut::new(), BytesMut::new());
            for (at, (payload, last)) in payloads.iter().enumerate() {
                prop_assert!(payload.len() <= len_max && *last == (at + 1 == payloads.len()));
                prop_assert_eq!(begins_sequence(payload), key && at == 0);
                join(payload, &mut fragment, &mut data).unwrap();
            }
            prop_assert!(fragment.is_empty());
            prop_assert_eq!(data, unit);
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>, before: Vec<u8>) {
            let (mut fragment, mut data) = (BytesMut::from(&before[..]), BytesMut::new());
            let _joined = join(&noise, &mut fragment, &mut data);
            prop_assert!(data.len() <= noise.len() * 8 + before.len() + 16);
        }
    }

    #[test]
    fn counted_elements_and_lost_beginnings() {
        let (mut fragment, mut data) = (BytesMut::new(), BytesMut::new());
        // Two elements, the second without its length: a delimiter, which is left out, and a sequence header.
        join(&[0x20, 1, 0x10, 0x08, 7, 7], &mut fragment, &mut data).unwrap();
        assert_eq!(&data[..], [0x0a, 2, 7, 7]);
        assert!(join(&[0x90, 1, 2], &mut fragment, &mut data).is_err());
        assert!(join(&[0x00, 9, 1], &mut fragment, &mut data).is_err(), "longer than the payload");
    }
}
