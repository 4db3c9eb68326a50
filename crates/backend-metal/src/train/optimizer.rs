//! Optimisers: how a gradient changes a weight. They compute in float32, whatever the weights' type, and say what they keep.

use std::mem;

use inference_core::train::Optimizer;
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops,
};

use super::function::Function;

/// An optimiser and what it keeps of the steps before.
#[derive(Debug)]
pub(crate) struct Stepper {
    rule: Optimizer,
    function: Function,
    /// For each tensor what it keeps, in the order of [`Stepper::kept`].
    pub(crate) state: Vec<Vec<Array>>,
}

impl Stepper {
    /// The optimiser before the first step, for tensors of these values. `clip`: the longest norm of all gradients together.
    pub(crate) fn new(rule: &Optimizer, clip: Option<f32>, values: &[Array]) -> Result<Self> {
        let state = values.iter().map(|value| {
            let kept = kept(rule, value.shape());
            kept.iter().map(|(_, shape)| ops::zeros_dtype(shape, Dtype::Float32)).collect()
        });
        let state: Vec<Vec<_>> = state.collect::<Result<_>>()?;
        let parts = state.iter().map(Vec::len).collect();
        let function = Function::new(function(rule.clone(), clip, parts));
        Ok(Self { rule: rule.clone(), function, state })
    }

    /// The names and shapes of what it keeps for a tensor of this shape.
    pub(crate) fn kept(&self, shape: &[i32]) -> Vec<(&'static str, Vec<i32>)> {
        kept(&self.rule, shape)
    }

    /// Bytes of what it keeps.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.iter().flatten().map(|array| array.nbytes() as u64).sum()
    }

    /// Changes the values by these gradients, at this rate, in step `step`, from 1. Returns the norm of all gradients together,
    /// before they are shortened, where there is a limit to it. All lazy.
    pub(crate) fn step(
        &mut self,
        values: &mut [Array],
        gradients: &[Array],
        rate: f32,
        step: usize,
    ) -> Result<Option<Array>> {
        let numbers = numbers(&self.rule, f64::from(rate), step as f64).map(number);
        let state = mem::take(&mut self.state);
        let parts: Vec<_> = state.iter().map(Vec::len).collect();
        let arguments = [&numbers, &*values, gradients, &state.concat()].concat();
        let mut results = self.function.call(&arguments)?.into_iter();
        values.iter_mut().zip(&mut results).for_each(|(value, changed)| *value = changed);
        self.state = parts.iter().map(|count| results.by_ref().take(*count).collect()).collect();
        Ok(results.next())
    }
}

/// [`numbers`], values, gradients and for each tensor as many arrays of state as `parts` says → the values and the state after the
/// step and, where it has a limit, the gradients' norm.
fn function(
    rule: Optimizer,
    clip: Option<f32>,
    parts: Vec<usize>,
) -> impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static {
    move |arguments| {
        let [first, second, third, rest @ ..] = arguments else {
            return Err(Exception::custom("a step without its numbers"));
        };
        let (values, rest) = rest.split_at(parts.len());
        let (gradients, mut before) = rest.split_at(parts.len());
        let norm = clip.map(|_| norm(gradients)).transpose()?;
        let share = norm.iter().zip(clip).map(|(norm, limit)| shortening(norm, limit)).next().transpose()?;
        let (mut results, mut after) = (Vec::new(), Vec::new());
        for ((value, gradient), count) in values.iter().zip(gradients).zip(&parts) {
            let (mut state, rest) = (before[..*count].to_vec(), &before[*count..]);
            before = rest;
            let weight = value.as_dtype(Dtype::Float32)?;
            let mut gradient = gradient.as_dtype(Dtype::Float32)?;
            if let Some(share) = &share {
                gradient = gradient.multiply(share)?;
            }
            let changed = changed(&rule, &weight, gradient, &mut state, [first, second, third])?;
            results.push(changed.as_dtype(value.dtype())?);
            after.append(&mut state);
        }
        results.append(&mut after);
        results.extend(norm);
        Ok(results)
    }
}

/// What differs from step to step.
fn numbers(rule: &Optimizer, rate: f64, step: f64) -> [f64; 3] {
    match *rule {
        Optimizer::AdamW { betas: [first, second], weight_decay, bias_correction, .. } => {
            let correct = |beta: f32| if bias_correction { 1.0 - f64::from(beta).powf(step) } else { 1.0 };
            [rate / correct(first), correct(second).sqrt().recip(), 1.0 - rate * f64::from(weight_decay)]
        }
        Optimizer::Sgd { .. } => [rate, 0.0, 0.0],
        _ => {
            let decay = f64::from(1.0 - (step as f32).powf(-0.8));
            [rate, decay, 1.0 - decay]
        }
    }
}

/// The weight after a step, in float32.
fn changed(
    rule: &Optimizer,
    weight: &Array,
    gradient: Array,
    state: &mut [Array],
    numbers: [&Array; 3],
) -> Result<Array> {
    match (rule, state) {
        (Optimizer::AdamW { betas, eps, .. }, [mean, square]) => {
            let [rate, correction, kept] = numbers;
            let shares = betas.map(|beta| [number(f64::from(beta)), number(1.0 - f64::from(beta))]);
            *mean = blend(mean, &gradient, &shares[0])?;
            *square = blend(square, &gradient.square()?, &shares[1])?;
            let root = square.sqrt()?.multiply(correction)?;
            let change = mean.multiply(rate)?.divide(root.add(number(f64::from(*eps)))?)?;
            weight.multiply(kept)?.subtract(change)
        }
        (Optimizer::Sgd { momentum, weight_decay }, state) => {
            let mut change = gradient;
            if *weight_decay > 0.0 {
                change = change.add(weight.multiply(Array::from_f32(*weight_decay))?)?;
            }
            if let [velocity] = state {
                *velocity = velocity.multiply(Array::from_f32(*momentum))?.add(&change)?;
                change = velocity.clone();
            }
            weight.subtract(change.multiply(numbers[0])?)
        }
        (_, state) => adafactor(weight, &gradient, state, numbers),
    }
}

/// The gradients' norm, all of them together, in float32. Lazy.
fn norm(gradients: &[Array]) -> Result<Array> {
    let mut sum = Array::from_f32(0.0);
    for gradient in gradients {
        sum = sum.add(gradient.as_dtype(Dtype::Float32)?.square()?.sum(false)?)?;
    }
    sum.sqrt()
}

/// What gradients of this norm are multiplied by to be no longer than `limit`.
fn shortening(norm: &Array, limit: f32) -> Result<Array> {
    // As torch has it.
    let share = Array::from_f32(limit).divide(norm.add(Array::from_f32(1e-6))?)?;
    ops::minimum(share, Array::from_f32(1.0))
}

fn kept(rule: &Optimizer, shape: &[i32]) -> Vec<(&'static str, Vec<i32>)> {
    match (rule, shape) {
        (Optimizer::AdamW { .. }, shape) => vec![("mean", shape.to_vec()), ("square", shape.to_vec())],
        (Optimizer::Sgd { momentum, .. }, _) if *momentum == 0.0 => Vec::new(),
        (Optimizer::Sgd { .. }, shape) => vec![("velocity", shape.to_vec())],
        (_, [stack @ .., rows, columns]) => {
            vec![("rows", [stack, &[*rows]].concat()), ("columns", [stack, &[*columns]].concat())]
        }
        (_, shape) => vec![("square", shape.to_vec())],
    }
}

/// Adafactor (Shazeer & Stern 2018, algorithms 4 and 5) at a given rate, relative to the size of the weights.
fn adafactor(
    weight: &Array,
    gradient: &Array,
    state: &mut [Array],
    [rate, decay, rest]: [&Array; 3],
) -> Result<Array> {
    const SQUARE_EPS: f32 = 1e-30;
    const SCALE_EPS: f32 = 1e-3;
    let decay = [decay.clone(), rest.clone()];
    let square = gradient.square()?.add(Array::from_f32(SQUARE_EPS))?;
    let direction = match state {
        [rows, columns] => {
            *rows = blend(rows, &square.mean_axis(-1, false)?, &decay)?;
            *columns = blend(columns, &square.mean_axis(-2, false)?, &decay)?;
            let share = rows.divide(rows.mean_axis(-1, true)?)?.rsqrt()?;
            gradient.multiply(share.expand_dims(-1)?)?.multiply(columns.rsqrt()?.expand_dims(-2)?)?
        }
        [mean] => {
            *mean = blend(mean, &square, &decay)?;
            gradient.multiply(mean.rsqrt()?)?
        }
        _ => gradient.clone(),
    };
    let rms = |x: &Array| x.square()?.mean(false)?.sqrt();
    let one = Array::from_f32(1.0);
    let direction = direction.divide(ops::maximum(rms(&direction)?, one)?)?;
    let scale = ops::maximum(rms(weight)?, Array::from_f32(SCALE_EPS))?;
    weight.subtract(direction.multiply(scale)?.multiply(rate)?)
}

/// The shares of old and new, added.
fn blend(old: &Array, new: &Array, [share, rest]: &[Array; 2]) -> Result<Array> {
    old.multiply(share)?.add(new.multiply(rest)?)
}

fn number(value: f64) -> Array {
    Array::from_f32(value as f32)
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;

    /// What two steps make of weights; the figures are those of torch and, for a vector with Adafactor, of MLX.
    fn after_two(rule: &Optimizer, weights: &[f32], shape: &[i32], gradients: [&[f32]; 2]) -> Vec<f32> {
        Device::set_default(&Device::cpu());
        let mut values = [Array::from_slice(weights, shape)];
        let mut stepper = Stepper::new(rule, None, &values).unwrap();
        for (step, gradient) in (1..).zip(gradients) {
            stepper.step(&mut values, &[Array::from_slice(gradient, shape)], 0.1, step).unwrap();
        }
        values[0].contiguous().unwrap().to_vec_exact::<f32>().unwrap()
    }

    #[test]
    fn steps_are_those_of_torch_and_mlx() {
        let weights = [0.5, -1.0, 2.0, 1.5, 0.25, -0.75];
        let gradients: [&[f32]; 2] = [&[0.1, -0.2, 0.3, 0.4, 0.5, -0.6], &[-0.3, 0.1, 0.2, 0.05, -0.4, 0.25]];
        let near = |found: Vec<f32>, expected: &[f32]| {
            let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && far < 1e-6, "{found:?}, expected {expected:?}");
        };
        let sgd = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.01 };
        near(
            after_two(&sgd, &weights, &[2, 3], gradients),
            &[0.509_560_5, -0.969_121, 1.917_232, 1.414_691_6, 0.194_325_25, -0.658_885_7],
        );
        near(
            after_two(&Optimizer::Adafactor, &weights, &[2, 3], gradients),
            &[0.613_968, -0.936_506_7, 1.779_575_5, 1.360_119_6, 0.235_917_7, -0.697_557],
        );
        let vectors = gradients.map(|gradient| &gradient[..3]);
        near(
            after_two(&Optimizer::Adafactor, &weights[..3], &[3], vectors),
            &[0.520_902_8, -0.947_755_8, 1.770_131_8],
        );
    }

    #[test]
    fn long_gradients_are_shortened_and_short_ones_are_not() {
        Device::set_default(&Device::cpu());
        let gradients =
            || vec![Array::from_slice(&[3.0_f32, 0.0], &[2]), Array::from_slice(&[4.0_f32], &[1])];
        for (limit, expected) in [(10.0, 5.0), (2.5, 2.5)] {
            let zeros = |like: &Array| ops::zeros_dtype(like.shape(), Dtype::Float32).unwrap();
            let mut values: Vec<_> = gradients().iter().map(zeros).collect();
            let rule = Optimizer::sgd();
            let mut stepper = Stepper::new(&rule, Some(limit), &values).unwrap();
            let before = stepper.step(&mut values, &gradients(), 1.0, 1).unwrap();
            assert_eq!(before.unwrap().item_exact::<f32>(), 5.0);
            let after = norm(&values).unwrap().item_exact::<f32>();
            assert!((after - expected).abs() < 1e-4, "{after}");
        }
    }
}
