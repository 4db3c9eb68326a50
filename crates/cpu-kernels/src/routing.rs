//! Routing of tokens to experts: which experts a token's scores pick, and with which weights.

use crate::{
    element::{Element, narrow},
    error::{Error, Result},
    glu::{exp, sigmoid},
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, product, with_slice},
    scratch::Scratch,
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// How experts are picked by a router's scores, and weighted.
#[derive(Debug, Clone, Copy)]
pub struct Routing<'a> {
    /// Whether a score becomes the expert's own probability, σ(score). Otherwise all experts share one: their softmax.
    pub sigmoid: bool,
    /// What is added to probabilities for the choice, not for the weights: `[experts]`.
    pub bias: Option<&'a [f32]>,
    /// Experts are picked from the best groups: how many groups there are, and how many are the best. A group is as good as its two
    /// best experts together.
    pub groups: Option<[usize; 2]>,
    /// Experts for each token.
    pub top_k: usize,
    /// Weights are divided by their sum and this, if there is one.
    pub normalize: Option<f32>,
    /// Factor of the weights.
    pub scale: f32,
}

impl Routing<'_> {
    fn check(&self, experts: usize) -> Result<()> {
        if let Some(bias) = self.bias {
            length("bias", bias.len(), experts)?;
        }
        if !(1..=experts).contains(&self.top_k) {
            let expected = format!("a number from 1 to {experts}");
            return Err(Error::Invalid { name: "top_k", found: self.top_k, expected });
        }
        if let Some([groups, best]) = self.groups
            && (groups == 0 || !experts.is_multiple_of(groups) || !(1..=groups).contains(&best))
        {
            let expected =
                format!("a number that divides {experts}, and at least {best}, which is at least 1");
            return Err(Error::Invalid { name: "groups", found: groups, expected });
        }
        Ok(())
    }
}

impl Kernels {
    /// Picks experts by `scores` `[tokens, experts]` → their numbers and weights, `[tokens, top_k]` each, the best first.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn route(
        &self,
        scores: Floats<'_>,
        experts: usize,
        routing: &Routing<'_>,
        picks: &mut [u32],
        weights: &mut [f32],
    ) -> Result<()> {
        routing.check(experts)?;
        let tokens = scores.len() / experts.max(1);
        length("scores", scores.len(), tokens * experts)?;
        length("picks", picks.len(), product("picks", &[tokens, routing.top_k])?)?;
        length("weights", weights.len(), picks.len())?;
        let (picks, weights) = (SharedSlice::new(picks), SharedSlice::new(weights));
        with_slice!(scores, Floats, scores => self.for_each_row(tokens, experts, &|token| {
            let start = token * routing.top_k;
            // SAFETY: each token's places belong to one task.
            let (picks, weights) = unsafe { (picks.part(start, routing.top_k), weights.part(start, routing.top_k)) };
            self.isa.run(Token { scores: &scores[token * experts..][..experts], routing, picks, weights });
        }));
        Ok(())
    }

    /// What picked experts give, `y` `[tokens, top_k, size]`, times their weights `[tokens, top_k]`, summed → `out` `[tokens, size]`.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn mix(&self, y: Floats<'_>, weights: &[f32], out: FloatsMut<'_>) -> Result<()> {
        let size = y.len().checked_div(weights.len()).unwrap_or(0);
        let tokens = out.len().checked_div(size).unwrap_or(0);
        let top_k = weights.len().checked_div(tokens).unwrap_or(0);
        length("y", y.len(), tokens * top_k * size)?;
        length("weights", weights.len(), tokens * top_k)?;
        length("out", out.len(), tokens * size)?;
        with_slice!(y, Floats, y => with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.for_each_row(tokens, top_k * size, &|token| {
                // SAFETY: each token belongs to one task.
                let out = unsafe { out.part(token * size, size) };
                let (y, weights) = (&y[token * top_k * size..], &weights[token * top_k..][..top_k]);
                self.isa.run(MixToken { y, weights, out });
            });
        }));
        Ok(())
    }
}

struct Token<'a, X> {
    scores: &'a [X],
    routing: &'a Routing<'a>,
    picks: &'a mut [u32],
    weights: &'a mut [f32],
}

impl<X: Element> Kernel for Token<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { scores, routing, picks, weights } = self;
        let mut probabilities: Vec<f32> = vec![0.0; scores.len()];
        for (probability, score) in probabilities.iter_mut().zip(scores) {
            *probability = score.widen();
        }
        if routing.sigmoid {
            probabilities.iter_mut().for_each(|score| *score = sigmoid(*score));
        } else {
            let largest = probabilities.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            probabilities.iter_mut().for_each(|score| *score = exp(*score - largest));
            let sum: f32 = probabilities.iter().sum();
            probabilities.iter_mut().for_each(|probability| *probability /= sum);
        }
        let mut choice = probabilities.clone();
        for (choice, bias) in choice.iter_mut().zip(routing.bias.unwrap_or_default()) {
            *choice += bias;
        }
        if let Some(groups) = routing.groups {
            keep_best_groups(&mut choice, groups);
        }
        largest(&choice, picks);
        for (weight, pick) in weights.iter_mut().zip(&*picks) {
            *weight = probabilities[*pick as usize];
        }
        let sum = routing.normalize.map_or(1.0, |epsilon| weights.iter().sum::<f32>() + epsilon);
        weights.iter_mut().for_each(|weight| *weight = *weight / sum * routing.scale);
    }
}

/// The places of the largest elements, the largest first. A NaN is larger than any number.
fn largest(x: &[f32], places: &mut [u32]) {
    let order = |place: u32| if x[place as usize].is_nan() { f32::INFINITY } else { x[place as usize] };
    let mut found = 0;
    for place in 0..x.len() as u32 {
        let before = places[..found].partition_point(|known| order(*known) >= order(place));
        if before < places.len() {
            found = (found + 1).min(places.len());
            places[before..found].rotate_right(1);
            places[before] = place;
        }
    }
}

/// Makes the scores of experts outside of the best groups less than any other.
fn keep_best_groups(choice: &mut [f32], [groups, best]: [usize; 2]) {
    let size = choice.len() / groups;
    let mut two = vec![0; size.min(2)];
    let sums: Vec<f32> = choice
        .chunks_exact(size)
        .map(|group| {
            largest(group, &mut two);
            two.iter().map(|place| group[*place as usize]).sum()
        })
        .collect();
    let mut kept = vec![0; best];
    largest(&sums, &mut kept);
    for (group, scores) in choice.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&(group as u32)) {
            scores.fill(f32::NEG_INFINITY);
        }
    }
}

/// The weighted sum of vectors that lie one after the other.
struct MixToken<'a, X, O> {
    y: &'a [X],
    weights: &'a [f32],
    out: &'a mut [O],
}

impl<X: Element, O: Element> Kernel for MixToken<'_, X, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { y, weights, out } = self;
        let mut sums = Scratch::zeroed(out.len());
        for (y, weight) in y.chunks_exact(out.len()).zip(weights) {
            for (sum, y) in sums.iter_mut().zip(y) {
                *sum += y.widen() * weight;
            }
        }
        narrow::<O, S>(&sums, out);
    }
}
