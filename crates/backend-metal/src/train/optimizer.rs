//! Optimisers: how a gradient changes a weight. They compute in float32, whatever the weights' type, and say what they keep.

use inference_core::Optimizer;
use mlx_rs::{Array, Dtype, error::Result, ops};

/// An optimiser and what it keeps of the steps before.
#[derive(Debug)]
pub(crate) struct Stepper {
    rule: Optimizer,
    /// For each tensor what it keeps, in the order of [`Stepper::kept`].
    pub(crate) state: Vec<Vec<Array>>,
}

impl Stepper {
    /// The optimiser before the first step, for tensors of these values.
    pub(crate) fn new(rule: &Optimizer, values: &[Array]) -> Result<Self> {
        let state = values.iter().map(|value| {
            let kept = kept(rule, value.shape());
            kept.iter().map(|(_, shape)| ops::zeros_dtype(shape, Dtype::Float32)).collect()
        });
        Ok(Self { rule: rule.clone(), state: state.collect::<Result<_>>()? })
    }

    /// The names and shapes of what it keeps for a tensor of this shape.
    pub(crate) fn kept(&self, shape: &[i32]) -> Vec<(&'static str, Vec<i32>)> {
        kept(&self.rule, shape)
    }

    /// Bytes of what it keeps.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.iter().flatten().map(|array| array.nbytes() as u64).sum()
    }

    /// Changes the values by these gradients, at this rate, in step `step`, from 1. Lazy.
    pub(crate) fn step(
        &mut self,
        values: &mut [Array],
        gradients: &[Array],
        rate: f32,
        step: usize,
    ) -> Result<()> {
        for ((value, gradient), state) in values.iter_mut().zip(gradients).zip(&mut self.state) {
            let dtype = value.dtype();
            let (weight, gradient) = (value.as_dtype(Dtype::Float32)?, gradient.as_dtype(Dtype::Float32)?);
            let changed = match (&self.rule, state.as_mut_slice()) {
                (Optimizer::AdamW { betas, eps, weight_decay, bias_correction }, [mean, square]) => {
                    let [first, second] = *betas;
                    *mean = blend(mean, &gradient, first)?;
                    *square = blend(square, &gradient.square()?, second)?;
                    let correct = |beta: f32| {
                        if *bias_correction { 1.0 - f64::from(beta).powf(step as f64) } else { 1.0 }
                    };
                    let root = square.sqrt()?.multiply(number(correct(second).sqrt().recip()))?;
                    let change = mean.multiply(number(f64::from(rate) / correct(first)))?;
                    let kept = weight.multiply(number(1.0 - f64::from(rate) * f64::from(*weight_decay)))?;
                    kept.subtract(change.divide(root.add(number(f64::from(*eps)))?)?)?
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
                    weight.subtract(change.multiply(Array::from_f32(rate))?)?
                }
                (_, state) => adafactor(&weight, &gradient, state, rate, step)?,
            };
            *value = changed.as_dtype(dtype)?;
        }
        Ok(())
    }
}

/// The gradients' norm, all of them together, in float32. Lazy.
pub(crate) fn norm(gradients: &[Array]) -> Result<Array> {
    let mut sum = Array::from_f32(0.0);
    for gradient in gradients {
        sum = sum.add(gradient.as_dtype(Dtype::Float32)?.square()?.sum(false)?)?;
    }
    sum.sqrt()
}

/// Shortens gradients of this norm to `limit`, where they are longer. Lazy.
pub(crate) fn clip(gradients: &mut [Array], norm: &Array, limit: f32) -> Result<()> {
    // As torch has it.
    let share = Array::from_f32(limit).divide(norm.add(Array::from_f32(1e-6))?)?;
    let share = ops::minimum(share, Array::from_f32(1.0))?;
    for gradient in gradients {
        *gradient = gradient.multiply(share.as_dtype(gradient.dtype())?)?;
    }
    Ok(())
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
fn adafactor(weight: &Array, gradient: &Array, state: &mut [Array], rate: f32, step: usize) -> Result<Array> {
    const SQUARE_EPS: f32 = 1e-30;
    const SCALE_EPS: f32 = 1e-3;
    let decay = 1.0 - (step as f32).powf(-0.8);
    let square = gradient.square()?.add(Array::from_f32(SQUARE_EPS))?;
    let direction = match state {
        [rows, columns] => {
            *rows = blend(rows, &square.mean_axis(-1, false)?, decay)?;
            *columns = blend(columns, &square.mean_axis(-2, false)?, decay)?;
            let share = rows.divide(rows.mean_axis(-1, true)?)?.rsqrt()?;
            gradient.multiply(share.expand_dims(-1)?)?.multiply(columns.rsqrt()?.expand_dims(-2)?)?
        }
        [mean] => {
            *mean = blend(mean, &square, decay)?;
            gradient.multiply(mean.rsqrt()?)?
        }
        _ => gradient.clone(),
    };
    let rms = |x: &Array| x.square()?.mean(false)?.sqrt();
    let one = Array::from_f32(1.0);
    let direction = direction.divide(ops::maximum(rms(&direction)?, one)?)?;
    let scale = ops::maximum(rms(weight)?, Array::from_f32(SCALE_EPS))?;
    weight.subtract(direction.multiply(scale)?.multiply(Array::from_f32(rate))?)
}

/// share · old + (1 − share) · new
fn blend(old: &Array, new: &Array, share: f32) -> Result<Array> {
    old.multiply(Array::from_f32(share))?.add(new.multiply(number(1.0 - f64::from(share)))?)
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
        let mut stepper = Stepper::new(rule, &values).unwrap();
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
        let gradients = || [Array::from_slice(&[3.0_f32, 0.0], &[2]), Array::from_slice(&[4.0_f32], &[1])];
        for (limit, expected) in [(10.0, 5.0), (2.5, 2.5)] {
            let mut gradients = gradients();
            let before = norm(&gradients).unwrap();
            assert_eq!(before.item_exact::<f32>(), 5.0);
            clip(&mut gradients, &before, limit).unwrap();
            let after = norm(&gradients).unwrap().item_exact::<f32>();
            assert!((after - expected).abs() < 1e-4, "{after}");
        }
    }
}
