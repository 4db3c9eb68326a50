//! The loss of a batch and its gradient.

use std::rc::Rc;

use inference_core::train::TokenExample;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    transforms,
};

use super::{
    compiled_fn::CompiledFn,
    head_loss::{HeadLoss, LOGIT_BYTES, rows_at_once},
    trainable::TrainableParams,
};
use crate::{
    mlx::{on_cpu, slice, take_failure},
    nn::{Architecture, ExecMode, Param, ParamOverride, TrainMode, params_used},
};

/// Examples, padded to the longest of them.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[B, T]`, u32
    tokens: Array,
    /// The positions in `[B · T]` whose next token counts in the loss: `[N]`, u32
    positions: Array,
    /// Those next tokens: `[N]`, u32
    targets: Array,
    /// How many targets are real: the rest of the N is padding, with weight 0.
    pub(crate) target_count: usize,
}

/// How a batch is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    /// To its longest example.
    Exact,
    /// To one of a few sizes: a graph is compiled once for each size, and attention with a gradient has kernels for some lengths
    /// only.
    Bucketed,
}

impl Padding {
    fn width(self, tokens: usize) -> usize {
        match (self, tokens.next_multiple_of(128)) {
            (Self::Exact, _) => tokens,
            (Self::Bucketed, whole) if whole - tokens <= tokens / 8 => whole,
            (Self::Bucketed, _) => tokens.next_multiple_of(32),
        }
    }

    fn targets(self, count: usize) -> usize {
        match self {
            Self::Exact => count,
            Self::Bucketed => count.next_multiple_of((count.next_power_of_two() / 16).max(32)),
        }
    }
}

impl Batch {
    /// The batch of these examples, which have at least one target together.
    pub(crate) fn new(examples: &[&TokenExample], padding: Padding) -> Self {
        // The last token of an example is a target and never an input.
        let width = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1).max(2) - 1;
        let width = padding.width(width);
        let mut tokens = vec![0_u32; examples.len() * width];
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let inputs = example.tokens.len().saturating_sub(1);
            tokens[row * width..row * width + inputs].copy_from_slice(&example.tokens[..inputs]);
            for (at, target) in
                example.tokens.iter().enumerate().skip(1).filter(|(at, _)| example.learnt[*at])
            {
                positions.push((row * width + at - 1) as u32);
                targets.push(*target);
            }
        }
        let target_count = targets.len();
        let padded = padding.targets(target_count);
        positions.resize(padded, 0);
        targets.resize(padded, 0);
        Self {
            tokens: Array::from_slice(&tokens, &[examples.len() as i32, width as i32]),
            positions: Array::from_slice(&positions, &[padded as i32]),
            targets: Array::from_slice(&targets, &[padded as i32]),
            target_count,
        }
    }

    /// The weight of each target's loss in a mean over `tokens` targets: `[N]`, 0 for padding.
    fn loss_weights(&self, tokens: usize) -> Array {
        let mut weights = vec![(tokens.max(1) as f32).recip(); self.targets.size()];
        weights[self.target_count..].fill(0.0);
        Array::from_slice(&weights, self.targets.shape())
    }
}

/// Computes losses and gradients.
#[derive(Debug)]
pub(crate) struct LossAndGrad {
    function: CompiledFn,
    padding: Padding,
    trainable: Rc<TrainableParams>,
}

impl LossAndGrad {
    /// `checkpointing`: recompute activations in the backward pass.
    pub(crate) fn new(
        model: Rc<dyn Architecture>,
        trainable: Rc<TrainableParams>,
        checkpointing: bool,
    ) -> Self {
        // The rotations of some models depend on the length of a text: padding would change them.
        let exact = on_cpu() || model.config().length_dependent;
        let padding = if exact { Padding::Exact } else { Padding::Bucketed };
        let gradient = value_and_grad(model, trainable.clone(), checkpointing, LOGIT_BYTES);
        let function = CompiledFn::new(gradient);
        Self { function, padding, trainable }
    }

    /// The same, compiled and padded for that on every device.
    #[cfg(test)]
    pub(crate) fn compiled(
        model: Rc<dyn Architecture>,
        trainable: Rc<TrainableParams>,
        checkpointing: bool,
    ) -> Self {
        let gradient = value_and_grad(model, trainable.clone(), checkpointing, LOGIT_BYTES);
        let function = CompiledFn::compiled(gradient);
        Self { function, padding: Padding::Bucketed, trainable }
    }

    /// The same as [`new`](Self::new), with logits in as many pieces as there may be.
    #[cfg(test)]
    pub(crate) fn in_pieces(
        model: Rc<dyn Architecture>,
        trainable: Rc<TrainableParams>,
        checkpointing: bool,
    ) -> Self {
        let function = CompiledFn::new(value_and_grad(model, trainable.clone(), checkpointing, 1));
        Self { function, padding: Padding::Exact, trainable }
    }

    /// The batch of these examples.
    pub(crate) fn batch(&self, examples: &[&TokenExample]) -> Batch {
        Batch::new(examples, self.padding)
    }

    /// Batch `number`'s part in the mean loss of a step over `tokens` targets, and the gradient for each of the values. All lazy.
    pub(crate) fn gradient(
        &mut self,
        values: &[Array],
        batch: &Batch,
        number: u64,
        tokens: usize,
    ) -> Result<(Array, Vec<Array>)> {
        let Batch { tokens: ids, positions, targets, .. } = batch;
        let key = self.trainable.prng_key("", number)?;
        let arguments = [ids.clone(), positions.clone(), targets.clone(), batch.loss_weights(tokens), key];
        let mut results = self.function.call(&[&arguments, values].concat())?;
        let loss = results.pop().ok_or_else(|| Exception::custom("there is no loss"))?;
        Ok((loss, results))
    }
}

/// Tokens, positions, targets, loss weights, the PRNG key and the values → the gradients and the loss.
fn value_and_grad(
    model: Rc<dyn Architecture>,
    trainable: Rc<TrainableParams>,
    checkpointing: bool,
    logit_bytes: usize,
) -> impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static {
    move |arguments| {
        let [tokens, positions, targets, loss_weights, key, values @ ..] = arguments else {
            return Err(Exception::custom("a batch is incomplete"));
        };
        let _adapters = trainable.attach(Some(key))?;
        let mode = TrainMode {
            recompute: checkpointing.then(|| trainable.by_layer()),
            dropout: trainable.residual_dropout(key)?,
        };
        let inputs = LossInputs { tokens, positions, targets, loss_weights, logit_bytes };
        let all: Vec<i32> = (0..values.len() as i32).collect();
        let loss = |values: &[Array]| {
            let values = trainable.as_computed(values)?;
            let _override = ParamOverride::new(trainable.params(), &values);
            Ok::<_, Exception>(vec![inputs.loss(&model, &trainable, &mode)?])
        };
        let mut differentiated = transforms::value_and_grad_with_argnums(loss, all.as_slice());
        let differentiated = ExecMode::current().differentiable().scope(|| differentiated(values));
        let (losses, mut results) = differentiated.map_err(|error| take_failure().unwrap_or(error))?;
        results.extend(losses);
        Ok(results)
    }
}

/// The sum of the losses of the batch's targets, in nats, without dropout. Lazy.
pub(crate) fn validation_loss(
    model: &Rc<dyn Architecture>,
    trainable: &TrainableParams,
    values: &[Array],
    batch: &Batch,
) -> Result<Array> {
    let _adapters = trainable.attach(None)?;
    let values = trainable.as_computed(values)?;
    let _override = ParamOverride::new(trainable.params(), &values);
    let Batch { tokens, positions, targets, .. } = batch;
    let inputs = LossInputs {
        tokens,
        positions,
        targets,
        loss_weights: &batch.loss_weights(1),
        logit_bytes: LOGIT_BYTES,
    };
    // Computed as in training, so that the two losses can be compared.
    ExecMode::current().differentiable().scope(|| {
        let hidden = inputs.hidden(&**model, &TrainMode::default())?;
        inputs.head(model, Vec::new(), &hidden).value(&[hidden])
    })
}

/// The arrays of a [`Batch`] that the loss is computed from.
struct LossInputs<'a> {
    tokens: &'a Array,
    positions: &'a Array,
    targets: &'a Array,
    /// The weight of each target's loss: `[N]`, float32
    loss_weights: &'a Array,
    /// The largest logits that are held at once.
    logit_bytes: usize,
}

impl LossInputs<'_> {
    /// The final hidden states at the positions: `[N, hidden]`.
    fn hidden(&self, model: &dyn Architecture, mode: &TrainMode<'_>) -> Result<Array> {
        let hidden = model.hidden_for_training(self.tokens, mode)?;
        hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(self.positions, 0)
    }

    /// The loss of these hidden states.
    fn head(&self, model: &Rc<dyn Architecture>, params: Vec<Rc<Param>>, hidden: &Array) -> HeadLoss {
        let (targets, weights) = (self.targets.clone(), self.loss_weights.clone());
        let vocabulary = model.config().vocab_size;
        let rows = rows_at_once(targets.size(), vocabulary, hidden.item_size(), self.logit_bytes);
        HeadLoss { model: model.clone(), params, targets, weights, rows }
    }

    /// The loss, to be differentiated.
    fn loss(
        &self,
        model: &Rc<dyn Architecture>,
        trainable: &TrainableParams,
        mode: &TrainMode<'_>,
    ) -> Result<Array> {
        let hidden = self.hidden(&**model, mode)?;
        let first = slice(&hidden, 0, 0, 1)?.expand_dims(0)?;
        let params = params_used(&trainable.outside_blocks(), || model.logits(&first).map(drop))?;
        let head = self.head(model, params, &hidden);
        let mut inputs = vec![hidden];
        for param in &head.params {
            inputs.push(param.get()?);
        }
        head.differentiable(&inputs)
    }
}
