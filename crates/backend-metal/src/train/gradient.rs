//! The loss of a batch and its gradient.

use std::rc::Rc;

use inference_core::TokenExample;
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops, transforms,
};

use super::trained::Trained;
use crate::{
    arch::{Architecture, Lesson},
    nn::{Swapped, ops::slice, recomputed, take_failure, tracing},
};

/// Bytes of float32 logits that are held at once. Beyond, they are computed in pieces, and again in the backward pass.
const LOGIT_BYTES: usize = 256 << 20;

/// Examples, padded to the longest of them.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[B, T]`, u32
    tokens: Array,
    /// Where in `[B · T]` the next token is learnt: `[N]`, u32
    places: Array,
    /// Those next tokens: `[N]`, u32
    targets: Array,
    /// How many they are.
    pub(crate) learnt: usize,
}

impl Batch {
    /// The batch of these examples, of which at least one token is learnt.
    pub(crate) fn new(examples: &[&TokenExample]) -> Self {
        // The last token of an example is learnt, and nothing is learnt from it.
        let width = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1).max(2) - 1;
        let mut tokens = vec![0_u32; examples.len() * width];
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let given = example.tokens.len().saturating_sub(1);
            tokens[row * width..row * width + given].copy_from_slice(&example.tokens[..given]);
            for (at, target) in
                example.tokens.iter().enumerate().skip(1).filter(|(at, _)| example.learnt[*at])
            {
                places.push((row * width + at - 1) as u32);
                targets.push(*target);
            }
        }
        let learnt = targets.len();
        Self {
            tokens: Array::from_slice(&tokens, &[examples.len() as i32, width as i32]),
            places: Array::from_slice(&places, &[learnt as i32]),
            targets: Array::from_slice(&targets, &[learnt as i32]),
            learnt,
        }
    }
}

/// How the loss of a batch is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The batch's number, for the chance of dropout.
    pub(crate) number: u64,
    /// Tokens of which the loss is the mean: those of all batches of the step.
    pub(crate) tokens: usize,
    /// Whether activations are computed anew in the backward pass.
    pub(crate) recompute: bool,
}

/// The batch's part in the mean loss of its step, and its gradient by each of the trained tensors. Both lazy.
pub(crate) fn gradient(
    model: &Rc<dyn Architecture>,
    trained: &Trained,
    batch: &Batch,
    pace: Pace,
) -> Result<(Array, Vec<Array>)> {
    let _attached = trained.attach(Some(pace.number))?;
    let lesson = Lesson {
        recompute: pace.recompute.then(|| trained.by_layer()),
        dropout: trained.residual_dropout(pace.number)?,
    };
    let all: Vec<i32> = (0..trained.values.len() as i32).collect();
    let loss = |values: &[Array]| {
        let _swapped = Swapped::new(trained.leaves(), values);
        let sum = sum_of_losses(model, trained, batch, &lesson)?;
        Ok::<_, Exception>(vec![sum.divide(Array::from_f32(pace.tokens as f32))?])
    };
    let mut differentiated = transforms::value_and_grad_with_argnums(loss, all.as_slice());
    let differentiated = tracing(|| differentiated(&trained.values));
    let (losses, gradients) = differentiated.map_err(|error| take_failure().unwrap_or(error))?;
    let loss = losses.into_iter().next().ok_or_else(|| Exception::custom("there is no loss"))?;
    Ok((loss, gradients))
}

/// The sum of the losses of the batch's learnt tokens, in nats, without dropout. Lazy.
pub(crate) fn validation_loss(
    model: &Rc<dyn Architecture>,
    trained: &Trained,
    batch: &Batch,
) -> Result<Array> {
    let _attached = trained.attach(None)?;
    let _swapped = Swapped::new(trained.leaves(), &trained.values);
    // As in training, so that the two can be compared; and our own kernels read weights as they were loaded.
    tracing(|| sum_of_losses(model, trained, batch, &Lesson::default()))
}

fn sum_of_losses(
    model: &Rc<dyn Architecture>,
    trained: &Trained,
    batch: &Batch,
    lesson: &Lesson<'_>,
) -> Result<Array> {
    let hidden = model.hidden_to_learn(&batch.tokens, lesson)?;
    let hidden = hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(&batch.places, 0)?;
    let rows = (LOGIT_BYTES / (4 * model.config().vocab_size.max(1))).max(1);
    if batch.learnt <= rows {
        return cross_entropy(&**model, &hidden, &batch.targets);
    }
    let outside = trained.outside();
    let mut sum = Array::from_f32(0.0);
    for start in (0..batch.learnt).step_by(rows) {
        let end = (start + rows).min(batch.learnt);
        let targets = slice(&batch.targets, 0, start as i32, end as i32)?;
        let mut inputs = vec![slice(&hidden, 0, start as i32, end as i32)?];
        for leaf in &outside {
            inputs.push(leaf.get()?);
        }
        let (model, outside) = (model.clone(), outside.clone());
        sum = sum.add(recomputed(&inputs, move |inputs| {
            let _swapped = Swapped::new(&outside, &inputs[1..]);
            cross_entropy(&*model, &inputs[0], &targets)
        })?)?;
    }
    Ok(sum)
}

/// Hidden states `[N, hidden]` and the tokens `[N]` that come next → the sum of −ln p, in float32.
fn cross_entropy(model: &dyn Architecture, hidden: &Array, targets: &Array) -> Result<Array> {
    let logits = model.logits(&hidden.expand_dims(0)?)?;
    let logits = logits.reshape(&[-1, logits.dim(-1)])?.as_dtype(Dtype::Float32)?;
    let chosen = logits.take_along_axis(&targets.expand_dims(-1)?, -1)?;
    ops::logsumexp_axis(&logits, -1, true)?.subtract(chosen)?.sum(false)
}
