//! Values that move as real ones do: a slow wave with a little noise on it. The same step gives the same value.

use std::f64::consts::TAU;

/// How a value moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    pub(super) mean: f64,
    pub(super) swing: f64,
    /// Steps of one wave.
    pub(super) period: f64,
    pub(super) noise: f64,
}

impl Course {
    /// The value at a step, with so many decimals.
    pub(super) fn at(&self, step: u64, decimals: i32) -> f64 {
        let wave = (step as f64 / self.period * TAU).sin();
        round(self.mean + self.swing * wave + self.noise * noise(step), decimals)
    }
}

pub(super) fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

/// Between -1 and 1, unlike its neighbours (the finalizer of SplitMix64).
fn noise(step: u64) -> f64 {
    let mut bits = step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_within_swing_and_noise_and_do_move() {
        let course = Course { mean: 20.0, swing: 3.0, period: 60.0, noise: 0.5 };
        let values: Vec<f64> = (0..200).map(|step| course.at(step, 1)).collect();
        assert!(values.iter().all(|v| (16.4..=23.6).contains(v)), "{values:?}");
        assert!(values.windows(2).filter(|w| (w[0] - w[1]).abs() > f64::EPSILON).count() > 100);
    }
}
