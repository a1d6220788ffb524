//! G.726 (ITU-T, 12/1990): 16, 24, 32 and 40 kbit/s to linear samples.
//!
//! A code says by how much a sample differs from its prediction, as the logarithm of a size against the present scale. The
//! prediction is that of two poles and six zeros, which follow the signal. Names of blocks are those of the standard's clause 4.

/// What differs between rates, by the bits of a code without its sign.
#[derive(Debug)]
struct Rate {
    /// Logarithm of the difference (table 8 and following: the inverse quantizer).
    sizes: &'static [i32],
    /// By how much the scale grows (W), shifted as it is used.
    scales: &'static [i32],
    /// How much of a speaker's unrest it shows (F), shifted as it is used.
    unrest: &'static [i32],
}

/// The logarithm of nothing.
const NONE: i32 = -2_048;

static RATES: [Rate; 4] = [
    Rate { sizes: &[116, 365], scales: &[-704, 14_048], unrest: &[0, 0xe00] },
    Rate { sizes: &[NONE, 135, 273, 373], scales: &[-128, 960, 4_384, 18_624], unrest: &[0, 0x200, 0x400, 0xe00] },
    Rate {
        sizes: &[NONE, 4, 135, 213, 273, 323, 373, 425],
        scales: &[-384, 576, 1_312, 2_048, 3_584, 6_336, 11_360, 35_904],
        unrest: &[0, 0, 0, 0x200, 0x200, 0x200, 0x600, 0xe00],
    },
    Rate {
        sizes: &[NONE, -66, 28, 104, 169, 224, 274, 318, 358, 395, 429, 459, 488, 514, 539, 566],
        scales: &[
            448, 448, 768, 1_248, 1_280, 1_312, 1_856, 3_200, 4_512, 5_728, 7_008, 8_960, 11_456, 14_080, 16_928,
            22_272,
        ],
        unrest: &[0, 0, 0, 0, 0, 0x200, 0x200, 0x200, 0x200, 0x200, 0x400, 0x600, 0x800, 0xa00, 0xc00, 0xc00],
    },
];

/// A number as the predictor keeps it: four bits of exponent, six of mantissa, and a sign.
#[derive(Debug, Clone, Copy)]
struct Float {
    negative: bool,
    exponent: u32,
    mantissa: i32,
}

/// A decoder; what it has heard so far decides what the next code means.
#[derive(Debug)]
pub struct G726 {
    bits: u32,
    big_endian: bool,
    /// Quantizer's scale factor: slow (19 bits) and fast (13 bits).
    slow: i32,
    fast: i32,
    /// Short and long average of the unrest, and how far the fast scale counts.
    short: i32,
    long: i32,
    speed: i32,
    poles: [i32; 2],
    zeros: [i32; 6],
    /// Newest first: differences, reconstructed samples, and whether the partial sums were below 0.
    differences: [Float; 6],
    samples: [Float; 2],
    signs: [bool; 2],
    /// A tone of narrow band.
    tone: bool,
}

impl Float {
    const ZERO: Self = Self { negative: false, exponent: 0, mantissa: 32 };

    /// FLOAT A and B (4.2.6): of at most 15 bits.
    fn of(size: i32, negative: bool) -> Self {
        let size = size.clamp(0, 0x7fff);
        if size == 0 {
            return Self { negative, ..Self::ZERO };
        }
        let exponent = size.checked_ilog2().map_or(0, |log| log + 1);
        Self { negative, exponent, mantissa: (size << 6) >> exponent }
    }

    /// FMULT (4.2.6): with a coefficient of 16 bits.
    fn times(self, coefficient: i32) -> i32 {
        let size = if coefficient < 0 { -coefficient & 0x1fff } else { coefficient };
        let log = size.checked_ilog2().map_or(0, |log| log + 1);
        let mantissa = if size == 0 { 32 } else { (size << 6) >> log };
        let product = (self.mantissa * mantissa + 48) >> 4;
        let exponent = self.exponent + log;
        let product = if exponent < 19 { product >> (19 - exponent) } else { product << (exponent - 19) & 0x7fff };
        if (coefficient < 0) == self.negative { product } else { -product }
    }
}

impl G726 {
    /// Of codes of 2 to 5 bits, the first of a packet in the low bits of its first byte or, big endian, in the high ones.
    pub fn new(bits: u32, big_endian: bool) -> Self {
        Self {
            bits: bits.clamp(2, 5),
            big_endian,
            slow: 34_816,
            fast: 544,
            short: 0,
            long: 0,
            speed: 0,
            poles: [0; 2],
            zeros: [0; 6],
            differences: [Float::ZERO; 6],
            samples: [Float::ZERO; 2],
            signs: [false; 2],
            tone: false,
        }
    }

    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The samples of a packet; bits that make no whole code are left out.
    pub fn samples(&mut self, packet: &[u8]) -> impl Iterator<Item = i16> {
        let (bits, big_endian) = (self.bits, self.big_endian);
        let (mut kept, mut count) = (0u32, 0u32);
        let mut bytes = packet.iter();
        std::iter::from_fn(move || {
            if count < bits {
                let byte = u32::from(*bytes.next()?);
                kept = if big_endian { kept << 8 | byte } else { kept | byte << count };
                count += 8;
            }
            count -= bits;
            let mask = (1 << bits) - 1;
            let code = if big_endian { kept >> count & mask } else { kept & mask };
            kept = if big_endian { kept & ((1 << count) - 1) } else { kept >> bits };
            Some(self.sample(code))
        })
    }

    fn sample(&mut self, code: u32) -> i16 {
        let sign = 1 << (self.bits - 1);
        let negative = code & sign != 0;
        // The codes of negative differences are the complements of those of positive ones.
        let size = if negative { !code } else { code };
        let size = (size & (sign - 1)) as usize;
        let Some(rate) = RATES.get(self.bits as usize - 2) else { return 0 };
        let pick = |table: &[i32]| table.get(size).copied().unwrap_or(0);

        let zeros: i32 = self.zeros.iter().zip(self.differences).map(|(b, difference)| difference.times(b >> 2)).sum();
        let poles: i32 = self.poles.iter().zip(self.samples).map(|(a, sample)| sample.times(a >> 2)).sum();
        let (partial, estimate) = (zeros >> 1, (zeros + poles) >> 1);
        let scale = self.scale();
        let difference = inverse(pick(rate.sizes), scale);
        let signed = if negative { -difference } else { difference };
        let sample = estimate + signed;
        self.adapt(
            scale,
            pick(rate.scales),
            pick(rate.unrest),
            (difference, negative),
            (sample, sample - estimate + partial),
        );
        (sample.clamp(-0x2000, 0x1fff) << 2) as i16
    }

    /// MIX (4.2.4): the slow scale and the fast one, by how restless the signal is.
    fn scale(&self) -> i32 {
        if self.speed >= 256 {
            return self.fast;
        }
        let slow = self.slow >> 6;
        let product = (self.fast - slow) * (self.speed >> 2);
        // Towards 0.
        slow + ((product + if product < 0 { 63 } else { 0 }) >> 6)
    }

    /// All that follows the signal (4.2.3 to 4.2.7). `difference`: its size and whether it is negative; `sums`: the sample,
    /// and the difference with the zeros' part of the prediction.
    fn adapt(&mut self, scale: i32, growth: i32, unrest: i32, difference: (i32, bool), sums: (i32, i32)) {
        let ((size, negative), (sample, partial)) = (difference, sums);
        // TRANS: a modem's signal changed over.
        let (whole, rest) = (self.slow >> 15, self.slow >> 10 & 31);
        let limit = if whole > 9 { 31 << 10 } else { (32 + rest) << whole };
        let changed = self.tone && size > (limit + (limit >> 1)) >> 1;
        // FUNCTW, FILTD, LIMB, FILTE.
        self.fast = (scale + ((growth - scale) >> 5)).clamp(544, 5_120);
        self.slow += self.fast + (-self.slow >> 6);

        let sign = partial < 0;
        let mut second = 0;
        if changed {
            (self.poles, self.zeros) = ([0; 2], [0; 6]);
        } else {
            second = self.second_pole(partial, sign);
            let same = sign == self.signs[0];
            let step = if partial == 0 {
                0
            } else if same {
                192
            } else {
                -192
            };
            // UPA1, LIMD.
            let (first, most) = (self.poles[0], 15_360 - second);
            self.poles = [(first - (first >> 8) + step).clamp(-most, most), second];
            // UPB.
            let leak = if self.bits == 5 { 9 } else { 8 };
            for (zero, before) in self.zeros.iter_mut().zip(&self.differences) {
                *zero -= *zero >> leak;
                if size != 0 {
                    *zero += if before.negative == negative { 128 } else { -128 };
                }
            }
        }
        self.differences.rotate_right(1);
        self.differences[0] = Float::of(size, negative);
        self.samples = [Float::of(sample.abs(), sample < 0), self.samples[0]];
        self.signs = [sign, self.signs[0]];
        // TONE.
        self.tone = !changed && second < -11_776;
        // FILTA, FILTB, SUBTC, FILTC.
        self.short += (unrest - self.short) >> 5;
        self.long += ((unrest << 2) - self.long) >> 7;
        let restless = ((self.short << 2) - self.long).abs() >= self.long >> 3;
        if changed {
            self.speed = 256;
        } else if scale < 1_536 || self.tone || restless {
            self.speed += (0x200 - self.speed) >> 4;
        } else {
            self.speed += -self.speed >> 4;
        }
    }

    /// UPA2, LIMC.
    fn second_pole(&self, partial: i32, sign: bool) -> i32 {
        let [first, second] = self.poles;
        let mut second = second - (second >> 7);
        if partial != 0 {
            let turned = if sign == self.signs[0] { -first } else { first };
            second += match turned {
                ..-8_191 => -0x100,
                8_192.. => 0xff,
                _ => turned >> 5,
            };
            second += if sign == self.signs[1] { 0x80 } else { -0x80 };
        }
        second.clamp(-12_288, 12_288)
    }
}

/// The size of a difference from its logarithm and the scale (4.2.3: ADDA, ANTILOG).
fn inverse(log: i32, scale: i32) -> i32 {
    let log = log + (scale >> 2);
    if log < 0 {
        return 0;
    }
    ((128 + (log & 127)) << 7) >> (14 - (log >> 7 & 15)).max(0)
}
