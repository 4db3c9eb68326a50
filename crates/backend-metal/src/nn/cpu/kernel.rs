//! What all operations on the CPU's kernels share.

use cpu_kernels::{Kernels, QuantMode};
use mlx_rs::Dtype;

use crate::mlx::{QuantizationMode, QuantizationScheme, primitive::KernelError};

/// What an operation comes to on the stream.
pub(super) type KernelResult<T = ()> = Result<T, KernelError>;

pub(super) fn kernels() -> KernelResult<Kernels> {
    kernel_result(Kernels::new())
}

/// Starts the kernels' threads, which the first operation does otherwise.
///
/// # Errors
/// The environment asks for a number of threads that makes no sense.
pub(crate) fn start_kernels() -> cpu_kernels::Result<()> {
    Kernels::new().map(drop)
}

pub(super) fn kernel_result<T>(result: cpu_kernels::Result<T>) -> KernelResult<T> {
    result.map_err(|error| error.to_string().into())
}

impl From<QuantizationScheme> for cpu_kernels::Quantization {
    fn from(QuantizationScheme { mode, bits, group_size }: QuantizationScheme) -> Self {
        let mode = match mode {
            QuantizationMode::Affine => QuantMode::Affine,
            QuantizationMode::Mxfp4 => QuantMode::Mxfp4,
            QuantizationMode::Nvfp4 => QuantMode::Nvfp4,
            QuantizationMode::Mxfp8 => QuantMode::Mxfp8,
        };
        Self { mode, bits, group_size }
    }
}

/// The type of a product of arrays of these types, where the kernels know them.
pub(super) fn promoted(dtypes: impl IntoIterator<Item = Dtype>) -> Option<Dtype> {
    let known = |dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    dtypes.into_iter().map(|dtype| known(dtype).then_some(dtype)).reduce(|all, dtype| {
        let (all, dtype) = (all?, dtype?);
        Some(if all == dtype { all } else { Dtype::Float32 })
    })?
}

/// What the tests of all these functions share.
#[cfg(test)]
pub(in crate::nn) mod testing {
    use mlx_rs::{Array, Dtype, random};

    pub(in crate::nn) const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

    pub(in crate::nn) fn drawn(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
        let key = random::key(seed).unwrap();
        random::uniform::<f32, f32>(-1.0, 1.0, shape, &key).unwrap().as_dtype(dtype).unwrap()
    }

    pub(in crate::nn) fn wide(x: &Array) -> Array {
        x.as_dtype(Dtype::Float32).unwrap()
    }

    /// Both round sums of numbers of about 1 once, in their own order.
    pub(in crate::nn) fn check(ours: &Array, mlx: &Array, dtype: Dtype, what: &str) {
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
