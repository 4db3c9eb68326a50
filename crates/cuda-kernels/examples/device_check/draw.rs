//! Draws on the GPU, and the same in double precision from the logits that the GPU stored.

use std::sync::Arc;

use cuda_kernels::{Compiler, Executor, Logits, Options, Result, Row, Sampling};

use crate::decoder::{Decoder, Shape};

/// How close two numbers are that rounding may exchange.
const CLOSE: f64 = 1e-4;

/// Steps of each case.
const STEPS: usize = 8;

/// How rows draw, by turns; `None` is the likeliest token.
fn sampling(kind: usize, vocabulary: usize) -> Option<Sampling> {
    let all = Sampling {
        seed: (0x9e37_79b9 * (kind as u64 + 1)) << 20,
        step: 5 * kind as u64,
        temperature: 0.5 + kind as f32 / 7.0,
        top_p: None,
        min_p: None,
        top_k: None,
    };
    let few = vocabulary / 3;
    match kind % 8 {
        0 => Some(all),
        1 => Some(Sampling { top_p: Some(0.9), ..all }),
        2 => None,
        3 => Some(Sampling { top_k: Some(40), ..all }),
        4 => Some(Sampling { min_p: Some(0.05), ..all }),
        5 => Some(Sampling { top_k: Some(50), top_p: Some(0.5), min_p: Some(0.01), ..all }),
        6 => Some(Sampling { top_k: Some(few), temperature: 30.0, ..all }),
        _ => Some(Sampling { top_p: Some(0.999), temperature: 3.0, ..all }),
    }
}

/// Decoders without layers, whose logits are far apart, close together and all but equal.
pub(crate) fn cases() -> Vec<(String, Shape)> {
    let mut cases = Vec::new();
    for vocabulary in [997, 1024, 20_000, 151_936] {
        for cap in [40.0, 2.0, 1e-3] {
            let shape = Shape { vocabulary, logit_cap: Some(cap), layers: 0, hidden: 64, ..Shape::default() };
            cases.push((format!("draws from {vocabulary} up to {cap}"), shape));
        }
    }
    cases
}

/// How many tokens were drawn, and how many of them are others than in double precision because numbers were too close. Steps one by
/// one, whose logits are looked at, and then the same without the host.
///
/// # Errors
/// Those of the executor. A token that is wrong comes back as `Err` with what is wrong in the inner result.
pub(crate) fn check(
    compiler: &Arc<Compiler>,
    shape: &Shape,
    rows: usize,
    seed: u64,
) -> Result<std::result::Result<[usize; 2], String>> {
    let decoder = Decoder::random(compiler.device(), shape.clone(), seed)?;
    let options = Options { history: STEPS, ..Options::default() };
    // SAFETY: the decoder lives as long as this function, and has no caches.
    let mut executor = unsafe { Executor::new(compiler.clone(), decoder.spec(), options)? };
    let idle = |row: usize| rows == 3 && row == 1;
    let kind = |row: usize| row + seed as usize;
    let start = |executor: &mut Executor| -> Result<()> {
        (0..rows).try_for_each(|row| executor.set_caches(row, &[]))?;
        let next = |row: usize| (!idle(row)).then_some(Row { token: row as u32, position: 3 });
        executor.set_rows(&(0..rows).map(next).collect::<Vec<_>>())?;
        let sampling = (0..rows).map(|row| sampling(kind(row), shape.vocabulary));
        executor.set_sampling(&sampling.collect::<Vec<_>>())
    };
    start(&mut executor)?;
    let (mut close, mut drawn) = (0, vec![Vec::new(); rows]);
    for step in 0..STEPS {
        let pending = executor.submit(rows, Logits::Draw)?;
        for row in (0..rows).filter(|row| !idle(*row)) {
            let Some(token) = pending.token(row)? else {
                return Ok(Err(format!("row {row}, step {step}: logits that are not finite")));
            };
            drawn[row].push(token);
            let logits = executor.logits(row)?;
            let how = sampling(kind(row), shape.vocabulary)
                .map(|how| Sampling { step: how.step + step as u64, ..how });
            match compare(&logits, how.as_ref(), token as usize) {
                Ok(is_close) => close += usize::from(is_close),
                Err(why) => return Ok(Err(format!("row {row}, step {step}, {how:?}: {why}"))),
            }
        }
    }
    start(&mut executor)?;
    executor.run(rows, STEPS, Logits::Draw)?;
    for row in (0..rows).filter(|row| !idle(*row)) {
        let together = executor.tokens(row, STEPS)?;
        if together != drawn[row] {
            return Ok(Err(format!("row {row}: {together:?} in one go, {:?} step by step", drawn[row])));
        }
    }
    Ok(Ok([drawn.iter().map(Vec::len).sum(), close]))
}

/// Whether the token is another one than that of double precision, and why it may not be.
fn compare(logits: &[f32], how: Option<&Sampling>, token: usize) -> std::result::Result<bool, String> {
    let Some(how) = how else {
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        return if token == best { Ok(false) } else { Err(format!("{token} is not the likeliest, {best}")) };
    };
    let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    let top = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = top + wide.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    let mut order: Vec<usize> = (0..wide.len()).collect();
    order.sort_by(|&a, &b| wide[b].total_cmp(&wide[a]).then(a.cmp(&b)));
    let noise = Noise::new(how, wide.len());
    let score = |id: usize| (wide[id] - total) / f64::from(how.temperature) + noise.of(id);
    // Tokens that are left without doubt, and those that rounding decides on.
    let (mut before, mut sure, mut perhaps) = (0.0, Vec::new(), Vec::new());
    for (rank, id) in order.into_iter().enumerate() {
        let value = wide[id] - total;
        let left = |slack: f64| {
            how.top_k.is_none_or(|count| rank < count)
                && how.top_p.is_none_or(|share| rank == 0 || before < f64::from(share) + slack)
                && how.min_p.is_none_or(|share| value >= value_of_top(top, total, share) - slack)
        };
        if left(-1e-5) {
            sure.push(id);
        } else if left(1e-5) {
            perhaps.push(id);
        } else {
            break;
        }
        before += value.exp();
    }
    let best = |ids: &[usize]| ids.iter().copied().max_by(|&a, &b| score(a).total_cmp(&score(b)));
    let Some(expected) = best(&sure) else { return Err("no token is left".to_owned()) };
    if token == expected {
        return Ok(false);
    }
    let may_be =
        (sure.contains(&token) || perhaps.contains(&token)) && score(token) > score(expected) - CLOSE;
    if may_be {
        return Ok(true);
    }
    Err(format!("{token} with {}, not {expected} with {}", score(token), score(expected)))
}

/// The log-probability that is `share` as likely as the likeliest.
fn value_of_top(top: f64, total: f64, share: f32) -> f64 {
    top - total + f64::from(share).ln()
}

/// The noise of a step.
struct Noise {
    keys: [u32; 3],
    size: usize,
}

impl Noise {
    fn new(how: &Sampling, size: usize) -> Self {
        let mut z = how.seed.wrapping_add((how.step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let [a, b] = [(z >> 32) as u32, z as u32];
        Self { keys: [a, b, a ^ b ^ 0x1bd1_1bda], size }
    }

    /// Gumbel noise of a token.
    fn of(&self, id: usize) -> f64 {
        // The first half of the tokens has the first words of pairs, the second half the others.
        let second = self.size - self.size / 2;
        let pair = match id {
            id if id >= second => [id - second, id],
            id if second + id < self.size => [id, second + id],
            middle => [middle, 0],
        };
        let bits = self.threefry(pair.map(|word| word as u32))[usize::from(id >= second)];
        let uniform = (f64::from(bits as f32) / 2_f64.powi(32)).clamp(2_f64.powi(-33), 1.0 - 2_f64.powi(-24));
        -(-uniform.ln()).ln()
    }

    /// Threefry-2x32 with 20 rounds.
    fn threefry(&self, [a, b]: [u32; 2]) -> [u32; 2] {
        let (mut a, mut b) = (a.wrapping_add(self.keys[0]), b.wrapping_add(self.keys[1]));
        for round in 0..20 {
            let rotation = [13, 15, 26, 6, 17, 29, 16, 24][round % 8];
            a = a.wrapping_add(b);
            b = b.rotate_left(rotation) ^ a;
            if round % 4 == 3 {
                let group = round / 4 + 1;
                a = a.wrapping_add(self.keys[group % 3]);
                b = b.wrapping_add(self.keys[(group + 1) % 3]).wrapping_add(group as u32);
            }
        }
        [a, b]
    }
}
