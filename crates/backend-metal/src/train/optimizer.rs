//! Optimisers: AdamW, SGD with momentum, Adafactor. They compute in float32, whatever the weights' type.

use std::mem;

use inference_core::train::Optimizer as Rule;
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops,
};

use super::compiled_fn::CompiledFn;

/// An optimiser and its state.
#[derive(Debug)]
pub(crate) struct Optimizer {
    rule: Rule,
    function: CompiledFn,
    /// The state of each tensor, in the order of [`Optimizer::state_shapes`].
    pub(crate) state: Vec<Vec<Array>>,
}

impl Optimizer {
    /// The optimiser before the first step, for tensors of these values. `clip`: the maximum global norm of the gradients.
    pub(crate) fn new(rule: &Rule, clip: Option<f32>, values: &[Array]) -> Result<Self> {
        let state = values.iter().map(|value| {
            let shapes = state_shapes(rule, value.shape());
            shapes.iter().map(|(_, shape)| ops::zeros_dtype(shape, Dtype::Float32)).collect()
        });
        let state: Vec<Vec<_>> = state.collect::<Result<_>>()?;
        let parts = state.iter().map(Vec::len).collect();
        let function = CompiledFn::new(step_function(rule.clone(), clip, parts));
        Ok(Self { rule: rule.clone(), function, state })
    }

    /// The names and shapes of the state of a tensor of this shape.
    pub(crate) fn state_shapes(&self, shape: &[i32]) -> Vec<(&'static str, Vec<i32>)> {
        state_shapes(&self.rule, shape)
    }

    /// Bytes of the state.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.iter().flatten().map(|array| array.nbytes() as u64).sum()
    }

    /// Updates the values with these gradients, at this learning rate, in step `step`, counted from 1. With clipping, returns the
    /// global norm of the gradients before they were clipped. All lazy.
    pub(crate) fn step(
        &mut self,
        values: &mut [Array],
        gradients: &[Array],
        rate: f32,
        step: usize,
    ) -> Result<Option<Array>> {
        let scalars = scalars(&self.rule, f64::from(rate), step as f64).map(number);
        let state = mem::take(&mut self.state);
        let parts: Vec<_> = state.iter().map(Vec::len).collect();
        let arguments = [&scalars, &*values, gradients, &state.concat()].concat();
        let mut results = self.function.call(&arguments)?.into_iter();
        values.iter_mut().zip(&mut results).for_each(|(value, updated)| *value = updated);
        self.state = parts.iter().map(|count| results.by_ref().take(*count).collect()).collect();
        Ok(results.next())
    }
}

/// [`scalars`], values, gradients, and for each tensor as many arrays of state as `parts` says → the values and the state after the
/// step and, with clipping, the gradients' global norm.
fn step_function(
    rule: Rule,
    clip: Option<f32>,
    parts: Vec<usize>,
) -> impl FnMut(&[Array]) -> Result<Vec<Array>> + 'static {
    move |arguments| {
        let [first, second, third, rest @ ..] = arguments else {
            return Err(Exception::custom("an optimiser step lacks its scalars"));
        };
        let (values, rest) = rest.split_at(parts.len());
        let (gradients, mut before) = rest.split_at(parts.len());
        let norm = clip.map(|_| global_norm(gradients)).transpose()?;
        let factor =
            norm.iter().zip(clip).map(|(norm, limit)| clip_factor(norm, limit)).next().transpose()?;
        let (mut results, mut after) = (Vec::new(), Vec::new());
        for ((value, gradient), count) in values.iter().zip(gradients).zip(&parts) {
            let (mut state, rest) = (before[..*count].to_vec(), &before[*count..]);
            before = rest;
            let weight = value.as_dtype(Dtype::Float32)?;
            let mut gradient = gradient.as_dtype(Dtype::Float32)?;
            if let Some(factor) = &factor {
                gradient = gradient.multiply(factor)?;
            }
            let updated = update_weight(&rule, &weight, gradient, &mut state, [first, second, third])?;
            results.push(updated.as_dtype(value.dtype())?);
            after.append(&mut state);
        }
        results.append(&mut after);
        results.extend(norm);
        Ok(results)
    }
}

/// The scalars that differ from step to step: arguments of the compiled function.
fn scalars(rule: &Rule, rate: f64, step: f64) -> [f64; 3] {
    match *rule {
        Rule::AdamW { betas: [first, second], weight_decay, bias_correction, .. } => {
            let correct = |beta: f32| if bias_correction { 1.0 - f64::from(beta).powf(step) } else { 1.0 };
            [rate / correct(first), correct(second).sqrt().recip(), 1.0 - rate * f64::from(weight_decay)]
        }
        Rule::Sgd { .. } => [rate, 0.0, 0.0],
        _ => {
            let decay = f64::from(1.0 - (step as f32).powf(-0.8));
            [rate, decay, 1.0 - decay]
        }
    }
}

/// The weight after a step, in float32.
fn update_weight(
    rule: &Rule,
    weight: &Array,
    gradient: Array,
    state: &mut [Array],
    scalars: [&Array; 3],
) -> Result<Array> {
    match (rule, state) {
        (Rule::AdamW { betas, eps, .. }, [mean, square]) => {
            let [rate, correction, decay] = scalars;
            let weights = betas.map(|beta| [number(f64::from(beta)), number(1.0 - f64::from(beta))]);
            *mean = lerp(mean, &gradient, &weights[0])?;
            *square = lerp(square, &gradient.square()?, &weights[1])?;
            let root = square.sqrt()?.multiply(correction)?;
            let change = mean.multiply(rate)?.divide(root.add(number(f64::from(*eps)))?)?;
            weight.multiply(decay)?.subtract(change)
        }
        (Rule::Sgd { momentum, weight_decay }, state) => {
            let mut change = gradient;
            if *weight_decay > 0.0 {
                change = change.add(weight.multiply(Array::from_f32(*weight_decay))?)?;
            }
            if let [velocity] = state {
                *velocity = velocity.multiply(Array::from_f32(*momentum))?.add(&change)?;
                change = velocity.clone();
            }
            weight.subtract(change.multiply(scalars[0])?)
        }
        (_, state) => adafactor(weight, &gradient, state, scalars),
    }
}

/// The norm of all gradients together, in float32. Lazy.
fn global_norm(gradients: &[Array]) -> Result<Array> {
    let mut sum = Array::from_f32(0.0);
    for gradient in gradients {
        sum = sum.add(gradient.as_dtype(Dtype::Float32)?.square()?.sum(false)?)?;
    }
    sum.sqrt()
}

/// The factor that scales gradients of this norm down to `limit`.
fn clip_factor(norm: &Array, limit: f32) -> Result<Array> {
    // As in torch's clip_grad_norm_.
    let factor = Array::from_f32(limit).divide(norm.add(Array::from_f32(1e-6))?)?;
    ops::minimum(factor, Array::from_f32(1.0))
}

fn state_shapes(rule: &Rule, shape: &[i32]) -> Vec<(&'static str, Vec<i32>)> {
    match (rule, shape) {
        (Rule::AdamW { .. }, shape) => vec![("mean", shape.to_vec()), ("square", shape.to_vec())],
        (Rule::Sgd { momentum, .. }, _) if *momentum == 0.0 => Vec::new(),
        (Rule::Sgd { .. }, shape) => vec![("velocity", shape.to_vec())],
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
            *rows = lerp(rows, &square.mean_axis(-1, false)?, &decay)?;
            *columns = lerp(columns, &square.mean_axis(-2, false)?, &decay)?;
            let factor = rows.divide(rows.mean_axis(-1, true)?)?.rsqrt()?;
            gradient.multiply(factor.expand_dims(-1)?)?.multiply(columns.rsqrt()?.expand_dims(-2)?)?
        }
        [mean] => {
            *mean = lerp(mean, &square, &decay)?;
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

/// `old · weights[0] + new · weights[1]`: one step of a moving average.
fn lerp(old: &Array, new: &Array, [kept, added]: &[Array; 2]) -> Result<Array> {
    old.multiply(kept)?.add(new.multiply(added)?)
}

fn number(value: f64) -> Array {
    Array::from_f32(value as f32)
}

#[cfg(test)]
mod tests {
    use mlx_rs::Device;

    use super::*;

    /// The weights after two steps. Expected values come from torch; from MLX for a vector with Adafactor.
    fn after_two(rule: &Rule, weights: &[f32], shape: &[i32], gradients: [&[f32]; 2]) -> Vec<f32> {
        Device::set_default(&Device::cpu());
        let mut values = [Array::from_slice(weights, shape)];
        let mut optimizer = Optimizer::new(rule, None, &values).unwrap();
        for (step, gradient) in (1..).zip(gradients) {
            optimizer.step(&mut values, &[Array::from_slice(gradient, shape)], 0.1, step).unwrap();
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
        let sgd = Rule::Sgd { momentum: 0.9, weight_decay: 0.01 };
        near(
            after_two(&sgd, &weights, &[2, 3], gradients),
            &[0.509_560_5, -0.969_121, 1.917_232, 1.414_691_6, 0.194_325_25, -0.658_885_7],
        );
        near(
            after_two(&Rule::Adafactor, &weights, &[2, 3], gradients),
            &[0.613_968, -0.936_506_7, 1.779_575_5, 1.360_119_6, 0.235_917_7, -0.697_557],
        );
        let vectors = gradients.map(|gradient| &gradient[..3]);
        near(
            after_two(&Rule::Adafactor, &weights[..3], &[3], vectors),
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
            let rule = Rule::sgd();
            let mut optimizer = Optimizer::new(&rule, Some(limit), &values).unwrap();
            let before = optimizer.step(&mut values, &gradients(), 1.0, 1).unwrap();
            assert_eq!(before.unwrap().item_exact::<f32>(), 5.0);
            let after = global_norm(&values).unwrap().item_exact::<f32>();
            assert!((after - expected).abs() < 1e-4, "{after}");
        }
    }
}
