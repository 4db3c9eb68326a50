//! What a model spends its time in, computed by our own kernels on the CPU. Each function is one operation of the graph, or
//! `None` where it is MLX's to compute: on another device, while gradients are traced of what has none here, or of types that
//! the kernels lack.

mod attention;
mod in_place;
mod operand;
mod product;
mod vectors;

pub(super) use attention::{Arrangement, Turns, arrange, attend};
pub(super) use in_place::{Place, attend_in_place};
pub(super) use product::{gather, multiply, times};
pub(super) use vectors::{Halves, add, argmax, gate, rms_norm};

use cpu_kernels::Kernels;
use mlx_rs::Dtype;

use super::custom::Reason;

type Done<T = ()> = Result<T, Reason>;

fn kernels() -> Done<Kernels> {
    to_reason(Kernels::new())
}

fn to_reason<T>(result: cpu_kernels::Result<T>) -> Done<T> {
    result.map_err(|error| error.to_string().into())
}

/// The type of a product of arrays of these types, where the kernels know them.
fn promoted(dtypes: impl IntoIterator<Item = Dtype>) -> Option<Dtype> {
    let known = |dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    dtypes.into_iter().map(|dtype| known(dtype).then_some(dtype)).reduce(|all, dtype| {
        let (all, dtype) = (all?, dtype?);
        Some(if all == dtype { all } else { Dtype::Float32 })
    })?
}

/// What the tests of all these functions share.
#[cfg(test)]
mod testing {
    use mlx_rs::{Array, Dtype, random};

    pub(super) const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

    pub(super) fn drawn(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
        let key = random::key(seed).unwrap();
        random::uniform::<f32, f32>(-1.0, 1.0, shape, &key).unwrap().as_dtype(dtype).unwrap()
    }

    pub(super) fn wide(x: &Array) -> Array {
        x.as_dtype(Dtype::Float32).unwrap()
    }

    /// Both round sums of numbers of about 1 once, in their own order.
    pub(super) fn check(ours: &Array, mlx: &Array, dtype: Dtype, what: &str) {
        assert_eq!((ours.shape(), ours.dtype()), (mlx.shape(), dtype), "{what}");
        let worst = wide(ours).subtract(mlx).unwrap().abs().unwrap().max(false).unwrap().item_exact::<f32>();
        let largest = mlx.abs().unwrap().max(false).unwrap().item_exact::<f32>();
        let tolerance = match dtype {
            Dtype::Float32 => 2e-6,
            Dtype::Float16 => 1e-3,
            _ => 8e-3,
        };
        assert!(worst <= tolerance * largest.max(1.0), "{what}: {worst} of {largest}");
    }
}
