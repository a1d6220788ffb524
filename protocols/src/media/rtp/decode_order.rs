//! Decode times for frames that come in decode order with their presentation times alone, as RTP has it.
//!
//! With `depth` frames of reordering, a frame is decoded at the smallest presentation time that is not a decode time yet, once
//! `depth + 1` wait. The depth is what the parameter sets say, and is corrected by what is seen.

/// Frames of reordering that are looked for (H.264 and H.265 allow no more).
const DEPTH_MAX: usize = 16;

/// Between frames of which nothing better is known, 1/90,000 s.
const STEP: i64 = 90;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct DecodeOrder {
    depth: usize,
    /// The newest presentation times, newest last.
    recent: Vec<i64>,
    /// Presentation times that are not yet decode times, and the one that was last; in order.
    waiting: Vec<i64>,
    last: Option<i64>,
}

impl DecodeOrder {
    /// What the parameter sets say about reordering.
    pub fn expect(&mut self, depth: u32) {
        self.depth = self.depth.max((depth as usize).min(DEPTH_MAX));
    }

    /// The decode time of the next frame; grows from frame to frame, and is no later than the presentation once the depth is
    /// known.
    pub fn place(&mut self, pts_90k: i64) -> i64 {
        // Times that jump far belong to another stretch of the stream.
        const FAR: i64 = 10 * 90_000;
        if self.recent.last().is_some_and(|before| (pts_90k - before).abs() > FAR) {
            *self = Self { depth: self.depth, ..Self::default() };
        }
        let overtaken = self.recent.iter().filter(|other| **other > pts_90k).count();
        self.depth = self.depth.max(overtaken);
        if self.recent.len() >= DEPTH_MAX {
            self.recent.remove(0);
        }
        self.recent.push(pts_90k);
        if self.waiting.len() > self.depth {
            self.waiting.remove(0);
        }
        let at = self.waiting.partition_point(|other| *other <= pts_90k);
        self.waiting.insert(at, pts_90k);
        let missing = (self.depth + 1).saturating_sub(self.waiting.len());
        let least = self.waiting.first().map_or(pts_90k, |least| least - missing as i64 * STEP);
        let dts = self.last.map_or(least, |last| least.max(last + 1));
        self.last = Some(dts);
        dts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(depth: u32, pts: &[i64]) -> Vec<i64> {
        let mut order = DecodeOrder::default();
        order.expect(depth);
        pts.iter().map(|pts| order.place(*pts)).collect()
    }

    #[test]
    fn without_reordering_both_times_are_one() {
        assert_eq!(place(0, &[0, 3_600, 7_200]), [0, 3_600, 7_200]);
    }

    #[test]
    fn frames_that_overtake_are_decoded_in_time() {
        let pts = [0, 10_800, 3_600, 7_200, 21_600, 14_400, 18_000];
        assert_eq!(place(1, &pts), [-90, 0, 3_600, 7_200, 10_800, 14_400, 18_000]);
    }

    #[test]
    fn reordering_nobody_spoke_of_is_learned() {
        let pts: Vec<i64> =
            (0..40).flat_map(|gop| [0, 3, 1, 2].map(|at| (gop * 3 + at) * 3_600 + i64::from(at == 0))).collect();
        let dts = place(0, &pts);
        assert!(dts.windows(2).all(|pair| pair[0] < pair[1]));
        let late = pts.iter().zip(&dts).skip(12).filter(|(pts, dts)| dts > pts).count();
        assert_eq!(late, 0, "{dts:?}");
    }

    proptest! {
        #[test]
        fn decode_times_grow_whatever_comes(depth in 0u32..20, pts in prop::collection::vec(0i64..1 << 40, 1..200)) {
            // A jump begins a stretch of its own.
            let mut order = DecodeOrder::default();
            order.expect(depth);
            let mut before: Option<(i64, i64)> = None;
            for pts in pts {
                let pts = before.map_or(pts, |(last, _)| last + (pts % 1_800_000) - 900_000);
                let dts = order.place(pts);
                if let Some((_, last)) = before {
                    prop_assert!(dts > last);
                }
                before = Some((pts, dts));
            }
        }
    }
}
