//! The loss of a batch and its gradient.

use std::rc::Rc;

use inference_core::train::TokenExample;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    transforms,
};

use super::{function::Function, trained::Trained};
use crate::{
    mlx::{cross_entropy, on_cpu, on_cuda, recomputed, slice, take_failure},
    nn::{Architecture, ParamOverride, TrainMode, tracing},
};

/// Bytes of logits that are held at once, in the type that the loss is computed from: float32, but on CUDA their own. Beyond, they
/// are computed in pieces, and again in the backward pass.
fn logit_bytes(size: usize) -> (usize, usize) {
    if on_cuda() { (2 << 30, size) } else { (256 << 20, size_of::<f32>()) }
}

/// Examples, padded to the longest of them.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[B, T]`, u32
    tokens: Array,
    /// Where in `[B · T]` the next token is learnt: `[N]`, u32
    places: Array,
    /// Those next tokens: `[N]`, u32
    targets: Array,
    /// How many they are. N may be more; what is there beyond them counts for nothing.
    pub(crate) learnt: usize,
}

/// What sizes a batch may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// Those of its examples.
    Exact,
    /// A few, for each of which a graph is built once; and of the length, those for which there are kernels of attention with a
    /// gradient.
    Rounded,
}

impl Sizes {
    fn width(self, tokens: usize) -> usize {
        match (self, tokens.next_multiple_of(128)) {
            (Self::Exact, _) => tokens,
            (Self::Rounded, whole) if whole - tokens <= tokens / 8 => whole,
            (Self::Rounded, _) => tokens.next_multiple_of(32),
        }
    }

    fn places(self, learnt: usize) -> usize {
        match self {
            Self::Exact => learnt,
            Self::Rounded => learnt.next_multiple_of((learnt.next_power_of_two() / 16).max(32)),
        }
    }
}

impl Batch {
    /// The batch of these examples, of which at least one token is learnt.
    pub(crate) fn new(examples: &[&TokenExample], sizes: Sizes) -> Self {
        // The last token of an example is learnt, and nothing is learnt from it.
        let width = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1).max(2) - 1;
        let width = sizes.width(width);
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
        let count = sizes.places(learnt);
        places.resize(count, 0);
        targets.resize(count, 0);
        Self {
            tokens: Array::from_slice(&tokens, &[examples.len() as i32, width as i32]),
            places: Array::from_slice(&places, &[count as i32]),
            targets: Array::from_slice(&targets, &[count as i32]),
            learnt,
        }
    }

    /// What the losses of its tokens count when they are to come to a mean over `tokens`.
    fn shares(&self, tokens: usize) -> Array {
        let mut shares = vec![(tokens.max(1) as f32).recip(); self.targets.size()];
        shares[self.learnt..].fill(0.0);
        Array::from_slice(&shares, self.targets.shape())
    }
}

/// Computes losses and gradients.
#[derive(Debug)]
pub(crate) struct Learner {
    function: Function,
    sizes: Sizes,
    trained: Rc<Trained>,
}

impl Learner {
    /// `recompute`: whether activations are computed anew in the backward pass.
    pub(crate) fn new(model: Rc<dyn Architecture>, trained: Rc<Trained>, recompute: bool) -> Self {
        // The rotations of some models depend on how long a text is.
        let exact = on_cpu() || model.config().length_dependent;
        let sizes = if exact { Sizes::Exact } else { Sizes::Rounded };
        let function = Function::new(function(model, trained.clone(), recompute));
        Self { function, sizes, trained }
    }

    /// The same with its graph compiled, whatever the device, and padded as for that.
    #[cfg(test)]
    pub(crate) fn compiled(model: Rc<dyn Architecture>, trained: Rc<Trained>, recompute: bool) -> Self {
        let function = Function::compiled(function(model, trained.clone(), recompute));
        Self { function, sizes: Sizes::Rounded, trained }
    }

    /// The batch of these examples.
    pub(crate) fn batch(&self, examples: &[&TokenExample]) -> Batch {
        Batch::new(examples, self.sizes)
    }

    /// The part of batch `number` in the mean loss of its step, which learns `tokens` tokens, and its gradient by each of the
    /// values. All lazy.
    pub(crate) fn gradient(
        &mut self,
        values: &[Array],
        batch: &Batch,
        number: u64,
        tokens: usize,
    ) -> Result<(Array, Vec<Array>)> {
        let Batch { tokens: ids, places, targets, .. } = batch;
        let key = self.trained.key("", number)?;
        let arguments = [ids.clone(), places.clone(), targets.clone(), batch.shares(tokens), key];
        let mut results = self.function.call(&[&arguments, values].concat())?;
        let loss = results.pop().ok_or_else(|| Exception::custom("there is no loss"))?;
        Ok((loss, results))
    }
}

/// Tokens, places, targets, shares, the key of chance and the values → the gradients and the loss.
fn function(
    model: Rc<dyn Architecture>,
    trained: Rc<Trained>,
    recompute: bool,
) -> impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static {
    move |arguments| {
        let [tokens, places, targets, shares, key, values @ ..] = arguments else {
            return Err(Exception::custom("a batch is incomplete"));
        };
        let _attached = trained.attach(Some(key))?;
        let mode = TrainMode {
            recompute: recompute.then(|| trained.by_layer()),
            dropout: trained.residual_dropout(key)?,
        };
        let task = Task { tokens, places, targets, shares };
        let all: Vec<i32> = (0..values.len() as i32).collect();
        let loss = |values: &[Array]| {
            let values = trained.in_use(values)?;
            let _override = ParamOverride::new(trained.params(), &values);
            Ok::<_, Exception>(vec![task.loss(&model, &trained, &mode)?])
        };
        let mut differentiated = transforms::value_and_grad_with_argnums(loss, all.as_slice());
        let differentiated = tracing(|| differentiated(values));
        let (losses, mut results) = differentiated.map_err(|error| take_failure().unwrap_or(error))?;
        results.extend(losses);
        Ok(results)
    }
}

/// The sum of the losses of the batch's learnt tokens, in nats, without dropout. Lazy.
pub(crate) fn validation_loss(
    model: &Rc<dyn Architecture>,
    trained: &Trained,
    values: &[Array],
    batch: &Batch,
) -> Result<Array> {
    let _attached = trained.attach(None)?;
    let values = trained.in_use(values)?;
    let _override = ParamOverride::new(trained.params(), &values);
    let Batch { tokens, places, targets, .. } = batch;
    let task = Task { tokens, places, targets, shares: &batch.shares(1) };
    // As in training, so that the two can be compared; and our own kernels read weights as they were loaded.
    tracing(|| task.loss(model, trained, &TrainMode::default()))
}

/// What is to be predicted: see [`Batch`].
struct Task<'a> {
    tokens: &'a Array,
    places: &'a Array,
    targets: &'a Array,
    /// What the loss of each counts: `[N]`, float32
    shares: &'a Array,
}

impl Task<'_> {
    fn loss(&self, model: &Rc<dyn Architecture>, trained: &Trained, mode: &TrainMode<'_>) -> Result<Array> {
        let hidden = model.hidden_for_training(self.tokens, mode)?;
        let hidden = hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(self.places, 0)?;
        let (bytes, size) = logit_bytes(hidden.item_size());
        let rows = (bytes / (size * model.config().vocab_size.max(1))).max(1) as i32;
        let count = self.places.dim(0);
        if count <= rows {
            return loss(&**model, &hidden, self.targets, self.shares);
        }
        let outside = trained.outside();
        let mut sum = Array::from_f32(0.0);
        for start in (0..count).step_by(rows as usize) {
            let part = |array: &Array| slice(array, 0, start, (start + rows).min(count));
            let (targets, shares) = (part(self.targets)?, part(self.shares)?);
            let mut inputs = vec![part(&hidden)?];
            for param in &outside {
                inputs.push(param.get()?);
            }
            let (model, outside) = (model.clone(), outside.clone());
            sum = sum.add(recomputed(&inputs, move |inputs| {
                let _override = ParamOverride::new(&outside, &inputs[1..]);
                loss(&*model, &inputs[0], &targets, &shares)
            })?)?;
        }
        Ok(sum)
    }
}

/// Hidden states `[N, hidden]`, the tokens `[N]` that come next and their shares `[N]` → the sum of share · −ln p, in float32.
fn loss(model: &dyn Architecture, hidden: &Array, targets: &Array, shares: &Array) -> Result<Array> {
    let logits = model.logits(&hidden.expand_dims(0)?)?;
    cross_entropy(&logits.reshape(&[-1, logits.dim(-1)])?, targets)?.multiply(shares)?.sum(false)
}
