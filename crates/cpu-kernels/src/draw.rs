//! Draws of tokens from their logits.

use crate::{
    element::{Element, widen},
    error::Result,
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, with_slice},
    scratch::Scratch,
    shared_slice::SharedSlice,
    simd::{Kernel, Simd, exp},
};

/// Elements that are computed side by side, so that the compiler keeps them in vectors.
const LANES: usize = 16;

/// How far below the likeliest token, in natural logarithms, candidates are looked for, one after the other until they suffice.
const DEPTHS: [f32; 4] = [4.0, 8.0, 16.0, f32::INFINITY];

/// How a token is drawn from the logits of a row: by the Gumbel-max trick (Gumbel 1954), from the tokens that the filters leave.
///
/// The filters act in this order on log-probabilities at temperature 1. All of them leave a beginning of the tokens, the likeliest
/// first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The key of the noise: the bits of Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX and MLX count them.
    pub key: [u32; 2],
    /// Above 0.
    pub temperature: f32,
    /// Leaves the likeliest tokens until their probabilities add up to this.
    pub top_p: Option<f32>,
    /// Leaves tokens that are at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Leaves so many tokens.
    pub top_k: Option<usize>,
}

impl Kernels {
    /// Draws a token for each row of `logits` `[rows, size]` → `ids` `[rows]`, and its log-probability, before filters and temperature,
    /// → `log_probabilities` `[rows]`. That is no finite number where logits are NaN or +∞, or all are −∞.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn draw(
        &self,
        logits: Floats<'_>,
        draws: &[Draw],
        ids: &mut [u32],
        log_probabilities: &mut [f32],
    ) -> Result<()> {
        let rows = draws.len();
        let size = logits.len().checked_div(rows).unwrap_or(0);
        length("logits", logits.len(), rows * size)?;
        length("ids", ids.len(), rows)?;
        length("log_probabilities", log_probabilities.len(), rows)?;
        let (ids, scores) = (SharedSlice::new(ids), SharedSlice::new(log_probabilities));
        with_slice!(logits, Floats, logits => self.for_each_row(rows, size, &|row| {
            let (id, score) = self.isa.run(DrawRow { logits: &logits[row * size..][..size], draw: &draws[row] });
            // SAFETY: each row belongs to one task.
            unsafe { (ids.part(row, 1)[0], scores.part(row, 1)[0]) = (id, score) };
        }));
        Ok(())
    }
}

/// Makes the logits of banned tokens −∞: of each row of `logits` `[rows, size]` those whose bit in `allowed` is 0, 32 tokens a word,
/// the lowest bit first, and those behind its last word. A row without bits stays as it is.
///
/// # Errors
/// Operands whose sizes do not match.
pub fn ban(allowed: &[Option<&[u32]>], logits: FloatsMut<'_>) -> Result<()> {
    let size = logits.len().checked_div(allowed.len()).unwrap_or(0);
    length("logits", logits.len(), allowed.len() * size)?;
    with_slice!(logits, FloatsMut, logits => {
        for (words, row) in allowed.iter().zip(logits.chunks_exact_mut(size.max(1))) {
            if let Some(words) = words {
                ban_row(words, row);
            }
        }
    });
    Ok(())
}

fn ban_row<E: Element>(words: &[u32], row: &mut [E]) {
    let banned = E::round(f32::NEG_INFINITY);
    let words = words.iter().copied().chain(std::iter::repeat(0));
    for (word, part) in words.zip(row.chunks_mut(32)) {
        match word {
            u32::MAX => {}
            0 => part.fill(banned),
            _ => {
                for (bit, logit) in part.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = banned;
                    }
                }
            }
        }
    }
}

struct DrawRow<'a, E> {
    logits: &'a [E],
    draw: &'a Draw,
}

impl<E: Element> Kernel for DrawRow<'_, E> {
    type Output = (u32, f32);

    #[inline(always)]
    fn run<S: Simd>(self) -> (u32, f32) {
        let Self { logits, draw } = self;
        let mut values = Scratch::new(logits.len());
        widen::<E, S>(logits, &mut values);
        let largest = log_softmax::<S>(&mut values);
        if !largest.is_finite() {
            return (0, f32::NAN);
        }
        let noise = Noise::new(draw.key, values.len());
        let id = if (draw.top_p, draw.min_p, draw.top_k) == (None, None, None) {
            noise.best_of_all(&values, draw.temperature)
        } else {
            noise.best_of(&values, &candidates(&values, largest, draw), draw.temperature)
        };
        (id, values[id as usize])
    }
}

/// Makes logits log-probabilities; the largest of them, which is not finite where the logits are none to draw from.
#[inline(always)]
fn log_softmax<S: Simd>(values: &mut [f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (mut lanes, mut bad) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    for chunk in chunks {
        for ((lane, bad), x) in lanes.iter_mut().zip(&mut bad).zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
            *bad |= x.is_nan() || *x == f32::INFINITY;
        }
    }
    // Comparisons and the vectors' `exp` take NaN and infinities for numbers.
    if bad.contains(&true) || rest.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return f32::NAN;
    }
    let largest = lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let whole = values.len() - values.len() % S::LANES;
    // SAFETY: see `Isa::run`; `LANES` values begin here.
    let mut sum = unsafe {
        let mut sums = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            sums = S::add(sums, exp::<S>(S::sub(S::load(values.as_ptr().add(i)), S::splat(largest))));
        }
        S::reduce_add(sums)
    };
    sum += values[whole..].iter().map(|x| (x - largest).exp()).sum::<f32>();
    let total = largest + sum.ln();
    values.iter_mut().for_each(|x| *x -= total);
    largest - total
}

/// The tokens that the filters leave.
#[inline(always)]
fn candidates(values: &[f32], largest: f32, draw: &Draw) -> Vec<u32> {
    let Draw { top_p, min_p, top_k, .. } = *draw;
    let floor = min_p.map_or(f32::NEG_INFINITY, |share| largest + share.ln());
    let most = top_k.unwrap_or(usize::MAX).max(1);
    let mut found = Vec::new();
    for depth in DEPTHS {
        let least = (largest - depth).max(floor);
        found.clear();
        found.extend((0_u32..).zip(values).filter(|(_, x)| **x >= least && **x > f32::NEG_INFINITY));
        let mass = || found.iter().map(|(_, x)| f64::from(x.exp())).sum::<f64>();
        if least == floor || found.len() >= most || top_p.is_some_and(|share| mass() >= f64::from(share)) {
            break;
        }
    }
    let order = |a: &(u32, &f32), b: &(u32, &f32)| b.1.total_cmp(a.1).then(a.0.cmp(&b.0));
    if found.len() > most {
        found.select_nth_unstable_by(most - 1, order);
        found.truncate(most);
    }
    if let Some(share) = top_p {
        found.sort_unstable_by(order);
        let mut before = 0.0;
        let left = found.iter().take_while(|(_, x)| {
            let is_left = before < f64::from(share);
            before += f64::from(x.exp());
            is_left
        });
        let left = left.count().max(1);
        found.truncate(left);
    }
    found.into_iter().map(|(id, _)| id).collect()
}

/// The noise of a row: a number for each token.
struct Noise {
    keys: [u32; 3],
    /// Tokens; the bits of the first half and of the second are made together.
    size: usize,
    half: usize,
}

impl Noise {
    fn new([a, b]: [u32; 2], size: usize) -> Self {
        Self { keys: [a, b, a ^ b ^ 0x1bd1_1bda], size, half: size / 2 }
    }

    /// The likeliest of all tokens with its noise.
    #[inline(always)]
    fn best_of_all(&self, values: &[f32], temperature: f32) -> u32 {
        let mut best = Best::new();
        // Of an odd number the middle one is made by itself.
        let second = self.size - self.half;
        if second > self.half {
            best.offer(self.half as u32, values[self.half] / temperature + self.of(self.half));
        }
        for start in (0..self.half).step_by(LANES) {
            let count = LANES.min(self.half - start);
            let mut words = [[start as u32; LANES], [(second + start) as u32; LANES]];
            for words in &mut words {
                for (word, lane) in words.iter_mut().zip(0..) {
                    *word += lane;
                }
            }
            let words = self.bits(words);
            for (words, first) in words.into_iter().zip([start, second + start]) {
                let mut scores = gumbel(words);
                for (score, value) in scores.iter_mut().zip(&values[first..][..count]) {
                    *score += value / temperature;
                }
                best.offer_all(first as u32, &scores[..count]);
            }
        }
        best.id
    }

    /// The likeliest of some tokens with its noise.
    #[inline(always)]
    fn best_of(&self, values: &[f32], ids: &[u32], temperature: f32) -> u32 {
        let mut best = Best::new();
        for id in ids {
            best.offer(*id, values[*id as usize] / temperature + self.of(*id as usize));
        }
        best.id
    }

    /// The noise of one token.
    #[inline(always)]
    fn of(&self, id: usize) -> f32 {
        let second = self.size - self.half;
        let (pair, which) = match id {
            id if id < self.half => ([id, second + id], 0),
            id if id >= second => ([id - second, id], 1),
            middle => ([middle, 0], 0),
        };
        gumbel([self.bits(pair.map(|word| [word as u32]))[which][0]])[0]
    }

    /// Threefry-2x32 of counters.
    #[inline(always)]
    fn bits<const N: usize>(&self, [mut a, mut b]: [[u32; N]; 2]) -> [[u32; N]; 2] {
        const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
        for i in 0..N {
            a[i] = a[i].wrapping_add(self.keys[0]);
            b[i] = b[i].wrapping_add(self.keys[1]);
        }
        for group in 0..5 {
            for rotation in ROTATIONS[group % 2] {
                for i in 0..N {
                    a[i] = a[i].wrapping_add(b[i]);
                    b[i] = b[i].rotate_left(rotation) ^ a[i];
                }
            }
            let (first, second) = (self.keys[(group + 1) % 3], self.keys[(group + 2) % 3]);
            let second = second.wrapping_add(group as u32 + 1);
            for i in 0..N {
                a[i] = a[i].wrapping_add(first);
                b[i] = b[i].wrapping_add(second);
            }
        }
        [a, b]
    }
}

/// The token with the largest score so far, the first of equal ones.
struct Best {
    id: u32,
    score: f32,
}

impl Best {
    fn new() -> Self {
        Self { id: 0, score: f32::NEG_INFINITY }
    }

    #[inline(always)]
    fn offer(&mut self, id: u32, score: f32) {
        if score > self.score || score == self.score && id < self.id {
            *self = Self { id, score };
        }
    }

    #[inline(always)]
    fn offer_all(&mut self, first: u32, scores: &[f32]) {
        if scores.iter().any(|score| *score >= self.score) {
            for (id, score) in (first..).zip(scores) {
                self.offer(id, *score);
            }
        }
    }
}

/// −ln(−ln u) for u = bits · 2⁻³², kept between 2⁻³³ and the largest number below 1.
#[inline(always)]
fn gumbel<const N: usize>(bits: [u32; N]) -> [f32; N] {
    const LEAST: f32 = 1.0 / (1_u64 << 33) as f32;
    let mut out = [0.0; N];
    for (out, bits) in out.iter_mut().zip(bits) {
        let uniform = (bits as f32 * (1.0 / (1_u64 << 32) as f32)).clamp(LEAST, 1.0 - f32::EPSILON / 2.0);
        *out = -ln(-ln(uniform));
    }
    out
}

/// ln x of a normal number above 0, within 2 units in the last place, by the polynomial of Cephes (Moshier 1992).
#[inline(always)]
fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    const FACTORS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // x = m · 2ᵉ with m from √½ to √2.
    let bits = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let square = m * m;
    let mut sum = FACTORS[0];
    for factor in &FACTORS[1..] {
        sum = sum.mul_add(m, *factor);
    }
    // ln 2 in two parts, as `exp` has it.
    let small = (sum * m).mul_add(square, exponent * -2.121_944_4e-4) - 0.5 * square;
    exponent.mul_add(0.693_359_4, small + m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_close() {
        for i in 1..200_000_u32 {
            let x = f32::from_bits(i * 10_000 + 0x0080_0000).min(3e38);
            let (found, exact) = (f64::from(ln(x)), f64::from(x).ln());
            assert!(
                (found - exact).abs() <= 2.5e-7 * exact.abs().max(1e-6),
                "ln {x} is {exact}, not {found}"
            );
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn banned_tokens_have_no_logit() {
        let mut logits = vec![1.0_f32; 3 * 70];
        ban(&[Some(&[u32::MAX, 0b101]), None, Some(&[0, u32::MAX, u32::MAX])], FloatsMut::F32(&mut logits))
            .unwrap();
        let left = |row: usize| -> Vec<usize> { (0..70).filter(|id| logits[row * 70 + id] == 1.0).collect() };
        assert_eq!(left(0), (0..33).chain([34]).collect::<Vec<_>>());
        assert_eq!(left(1).len(), 70);
        assert_eq!(left(2), (32..70).collect::<Vec<_>>());
        assert!(ban(&[None, None], FloatsMut::F32(&mut [0.0; 3])).is_err());
    }

    #[test]
    fn the_bits_are_those_of_threefry() {
        // Known answers of Random123 (Salmon et al.): threefry2x32 with 20 rounds.
        let of =
            |key, counter: [u32; 2]| Noise::new(key, 2).bits(counter.map(|word| [word])).map(|word| word[0]);
        assert_eq!(of([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(of([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(of([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }
}
