//! The output layer and its loss, which are computed in pieces: logits of all positions at once would be the largest arrays of a
//! step.

use std::{ops::Range, rc::Rc};

use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops, transforms,
};

use crate::{
    mlx::{after, cross_entropy, loss_with_gradients, on_cuda, slice},
    nn::{Architecture, Param, ParamOverride},
};

/// The largest logits that are held at once, in bytes of the type that the loss is computed in.
pub(super) const LOGIT_BYTES: usize = 160 << 20;

/// The most pieces: the gradients of the output layer are sums over them, rounded to its type.
const MOST_PIECES: usize = 8;

/// Bytes of a logit in the loss: on CUDA its own type, elsewhere float32. `size` is that of the logit's type.
fn logit_size(size: usize) -> usize {
    if on_cuda() { size } else { size_of::<f32>() }
}

/// How many of `count` rows of logits are computed at once, where these bytes are the limit. `size` is that of a logit's type.
pub(super) fn rows_at_once(count: usize, vocabulary: usize, size: usize, limit: usize) -> usize {
    let bytes = count.saturating_mul(vocabulary).saturating_mul(logit_size(size));
    let pieces = bytes.div_ceil(limit).clamp(1, MOST_PIECES);
    // Products of whole tiles are faster.
    count.div_ceil(pieces).next_multiple_of(32).min(count)
}

/// The loss of final hidden states.
pub(crate) struct HeadLoss {
    pub(crate) model: Rc<dyn Architecture>,
    /// The trained parameters of the output layer.
    pub(crate) params: Vec<Rc<Param>>,
    /// `[N]`
    pub(crate) targets: Array,
    /// `[N]`: the weight of each target's loss.
    pub(crate) weights: Array,
    /// Rows of logits that are computed at once.
    pub(crate) rows: usize,
}

impl HeadLoss {
    /// Hidden states `[N, hidden]`, then the parameters' values → the sum of weight · −ln p(target), in float32. If logits are computed
    /// in pieces, so are the gradients, with the loss: nothing of a piece is kept for the backward pass.
    pub(crate) fn differentiable(self, inputs: &[Array]) -> Result<Array> {
        if self.pieces().count() == 1 {
            return self.loss(inputs, 0..inputs[0].dim(0));
        }
        let all: Vec<i32> = (0..inputs.len() as i32).collect();
        loss_with_gradients(inputs, move |inputs| {
            self.in_pieces(inputs, |inputs, rows| {
                let loss = |inputs: &[Array]| Ok::<_, Exception>(vec![self.loss(inputs, rows.clone())?]);
                let mut differentiated = transforms::value_and_grad_with_argnums(loss, all.as_slice());
                let (mut results, gradients) = differentiated(inputs)?;
                results.extend(gradients);
                Ok(results)
            })
        })
    }

    /// The same without a gradient.
    pub(crate) fn value(&self, inputs: &[Array]) -> Result<Array> {
        let mut sums = self.in_pieces(inputs, |inputs, rows| Ok(vec![self.loss(inputs, rows)?]))?;
        Ok(sums.swap_remove(0))
    }

    /// The sums over all pieces of what `compute` gives for one: the loss, then perhaps its gradients, of which that of the hidden states
    /// is put together.
    fn in_pieces(
        &self,
        inputs: &[Array],
        compute: impl Fn(&[Array], Range<i32>) -> Result<Vec<Array>>,
    ) -> Result<Vec<Array>> {
        let (mut sums, mut by_hidden) = (Vec::<Array>::new(), Vec::new());
        for rows in self.pieces() {
            let mut part = slice(&inputs[0], 0, rows.start, rows.end)?;
            // MLX would begin all pieces at once, and hold the logits of all.
            if !sums.is_empty() {
                part = after(&[part], &[&sums, by_hidden.as_slice()].concat())?.swap_remove(0);
            }
            let mut results = compute(&[&[part], &inputs[1..]].concat(), rows)?;
            if results.len() > 1 {
                by_hidden.push(results.remove(1));
            }
            sums = match sums.as_slice() {
                [] => results,
                sums => sums.iter().zip(&results).map(|(sum, new)| sum.add(new)).collect::<Result<_>>()?,
            };
        }
        if !by_hidden.is_empty() {
            sums.insert(1, ops::concatenate(&by_hidden, 0)?);
        }
        Ok(sums)
    }

    /// The rows of each piece.
    fn pieces(&self) -> impl Iterator<Item = Range<i32>> + use<> {
        let (count, rows) = (self.targets.dim(0), self.rows.max(1) as i32);
        (0..count).step_by(rows as usize).map(move |start| start..(start + rows).min(count))
    }

    fn loss(&self, inputs: &[Array], rows: Range<i32>) -> Result<Array> {
        let _override = ParamOverride::new(&self.params, &inputs[1..]);
        let logits = self.model.logits(&inputs[0].expand_dims(0)?)?;
        let part = |array: &Array| slice(array, 0, rows.start, rows.end);
        let losses = cross_entropy(&logits.reshape(&[-1, logits.dim(-1)])?, &part(&self.targets)?)?;
        losses.multiply(part(&self.weights)?)?.sum(false)
    }
}
