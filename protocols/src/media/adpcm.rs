//! ADPCM as the IMA wrote it down (DVI4): four bits a sample, to linear samples.

/// Step sizes (IMA Digital Audio Focus and Technical Working Groups, 1992, table 2).
const STEPS: [i32; 89] = [
    7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 21, 23, 25, 28, 31, 34, 37, 41, 45, 50, 55, 60, 66, 73, 80, 88, 97, 107,
    118, 130, 143, 157, 173, 190, 209, 230, 253, 279, 307, 337, 371, 408, 449, 494, 544, 598, 658, 724, 796, 876, 963,
    1060, 1166, 1282, 1411, 1552, 1707, 1878, 2066, 2272, 2499, 2749, 3024, 3327, 3660, 4026, 4428, 4871, 5358, 5894,
    6484, 7132, 7845, 8630, 9493, 10442, 11487, 12635, 13899, 15289, 16818, 18500, 20350, 22385, 24623, 27086, 29794,
    32767,
];

/// How far the index of the step goes on, by the size of a code (table 1).
const TURNS: [i32; 8] = [-1, -1, -1, -1, 2, 4, 6, 8];

/// The samples of a packet: 16 bits of prediction, little endian, an index, a byte of nothing; then codes, the one in the high
/// bits first.
pub fn samples(packet: &[u8]) -> impl Iterator<Item = i16> {
    let (head, codes) = packet.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
    let mut value = i32::from(i16::from_le_bytes([head[0], head[1]]));
    let mut index = i32::from(head[2]).min(88);
    codes.iter().flat_map(|byte| [byte >> 4, byte & 0x0f]).map(move |code| {
        let step = STEPS.get(index as usize).copied().unwrap_or(0);
        let size = i32::from(code & 7);
        // Each bit counts by itself, rounded down.
        let part = |bit: i32| if size & (1 << bit) == 0 { 0 } else { step >> (2 - bit) };
        let change = (step >> 3) + part(0) + part(1) + part(2);
        value = (if code & 8 == 0 { value + change } else { value - change }).clamp(-0x8000, 0x7fff);
        index = (index + TURNS.get(size as usize).copied().unwrap_or(0)).clamp(0, 88);
        value as i16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_move_the_value_by_the_step_and_the_step_by_the_code() {
        // By hand: 7 moves 7 + 3 + 1 up from 16, and the step 8 further, to 16; 15 then 2 + 16 + 8 + 4 down.
        let decoded: Vec<i16> = samples(&[16, 0, 0, 0, 0x7f, 0x00]).collect();
        assert_eq!(decoded, [27, -3, 1, 4]);
        let loudest: Vec<i16> = samples(&[0xff, 0x7f, 255, 0, 0x77, 0xff, 0xff]).collect();
        assert_eq!((loudest[0], loudest[1], loudest[5]), (0x7fff, 0x7fff, -0x8000));
        assert_eq!(samples(&[1, 2, 3]).count(), 0);
    }
}
