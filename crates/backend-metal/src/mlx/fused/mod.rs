//! Operations that MLX computes as several, as one kernel each on CUDA. None has a gradient.
//!
//! Each function returns `None` where the kernel does not know the types or shapes.

use std::{
    ffi::CStr,
    sync::atomic::{AtomicBool, Ordering},
};

use mlx_rs::{Array, Dtype, error::Result};

use super::cuda_kernel::{Call, Constant, CudaKernel};

/// Whether MLX can compile kernels here, as far as is known.
static USABLE: AtomicBool = AtomicBool::new(true);

/// Whether the kernels may be used.
pub(crate) fn are_usable() -> bool {
    USABLE.load(Ordering::Relaxed)
}

/// Has MLX's own operations compute everything from now on, in this process.
pub(crate) fn give_up() {
    USABLE.store(false, Ordering::Relaxed);
}

/// Bytes that a thread reads at once.
const VECTOR: usize = 16;

/// Threads of a block where rows are cut into pieces.
const THREADS: usize = 256;

/// Elements of a head, four of which are in shared memory.
const WIDEST_HEAD: i32 = 512;

/// Elements of a row that a block of [`add_rms_norm`] holds at most.
const LONGEST_ROW: usize = 32 * 1024;

static GLU: CudaKernel = CudaKernel::new(
    c"inferlm_glu",
    &[c"joined"],
    &[c"gated"],
    contents(concat!(include_str!("glu.cu"), "\0")),
    contents(concat!(include_str!("glu.cuh"), "\0")),
);

const ADD_RMS_NORM: &CStr = contents(concat!(include_str!("add_rms_norm.cu"), "\0"));

static ADD_NORM: CudaKernel = CudaKernel::new(
    c"inferlm_add_norm",
    &[c"x", c"y", c"after"],
    &[c"sum", c"normalised"],
    ADD_RMS_NORM,
    contents(concat!("#define INFERLM_AFTER\n", include_str!("add_rms_norm.cuh"), "\0")),
);

static NORM_ADD_NORM: CudaKernel = CudaKernel::new(
    c"inferlm_norm_add_norm",
    &[c"x", c"y", c"before", c"after"],
    &[c"sum", c"normalised"],
    ADD_RMS_NORM,
    contents(concat!(
        "#define INFERLM_BEFORE\n#define INFERLM_AFTER\n",
        include_str!("add_rms_norm.cuh"),
        "\0"
    )),
);

static NORM_ADD: CudaKernel = CudaKernel::new(
    c"inferlm_norm_add",
    &[c"x", c"y", c"before"],
    &[c"sum"],
    ADD_RMS_NORM,
    contents(concat!("#define INFERLM_BEFORE\n", include_str!("add_rms_norm.cuh"), "\0")),
);

const QK_NORM_ROPE: &CStr = contents(concat!(include_str!("qk_norm_rope.cu"), "\0"));

static ROPE: CudaKernel = CudaKernel::new(
    c"inferlm_qk_rope",
    &[c"qkv", c"offsets", c"frequencies"],
    &[c"queries", c"keys", c"values"],
    QK_NORM_ROPE,
    c"",
);

static NORM_ROPE: CudaKernel = CudaKernel::new(
    c"inferlm_qk_norm_rope",
    &[c"qkv", c"offsets", c"frequencies", c"q_weight", c"k_weight"],
    &[c"queries", c"keys", c"values"],
    QK_NORM_ROPE,
    c"#define INFERLM_NORMS\n",
);

/// What a gate is put through before it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Gate {
    /// x · σ(x)
    Silu,
    /// x · Φ(x)
    Gelu,
    /// x · Φ(x), with tanh instead of the error function.
    GeluTanh,
    /// max(x, 0)²
    Relu2,
    /// x · σ(alpha · x), with x at most `limit`, and 1 added to what is multiplied, which is cut to ± `limit`.
    Clamped { alpha: f32, limit: f32 },
}

/// A norm: weights `[size]`, and what is added to the mean of squares.
pub(crate) type Norm<'a> = (&'a Array, f32);

/// Gates and what they let through, from one array `[.., 2 · size]`, gates first or taking turns → `[.., size]`.
pub(crate) fn glu(joined: &Array, gate: Gate, interleaved: bool) -> Option<Result<Array>> {
    let (both, rows) = joined.shape().split_last()?;
    let (size, vector) = (usize::try_from(*both).ok()? / 2, vector_of(joined.dtype())?);
    if size == 0 || both % 2 != 0 || !size.is_multiple_of(vector) || joined.size() == 0 {
        return None;
    }
    let shape = [rows, &[size as i32]].concat();
    if let Gate::Clamped { alpha, limit } = gate
        && (alpha.is_sign_negative() || limit.is_sign_negative())
    {
        return None;
    }
    let (act, alpha, limit) = match gate {
        Gate::Silu => (0, 0.0, 0.0),
        Gate::Gelu => (1, 0.0, 0.0),
        Gate::GeluTanh => (2, 0.0, 0.0),
        Gate::Relu2 => (3, 0.0, 0.0),
        Gate::Clamped { alpha, limit } => (4, alpha, limit),
    };
    let call = Call {
        inputs: &[joined],
        outputs: [(&shape[..], joined.dtype())],
        constants: &[
            (c"T", Constant::Type(joined.dtype())),
            (c"N", Constant::Int(size as i32)),
            (c"ACT", Constant::Int(act)),
            (c"LAYOUT", Constant::Int(i32::from(interleaved))),
            (c"ALPHA", Constant::Bits(alpha)),
            (c"LIMIT", Constant::Bits(limit)),
        ],
        blocks: joined.size() / (2 * size) * (size / vector).div_ceil(THREADS),
        threads: THREADS,
    };
    // SAFETY: each thread reads and writes a vector of a row of `joined` and of `gated`, which are as long as `N` says.
    Some(unsafe { GLU.call(&call) }.map(|[gated]| gated))
}

/// x + y, where y may be normalised before, and, where two are wanted, that normalised with `after`: `[.., size]` each.
pub(crate) fn add_rms_norm<const N: usize>(
    [x, y]: [&Array; 2],
    before: Option<Norm<'_>>,
    after: Option<Norm<'_>>,
) -> Option<Result<[Array; N]>> {
    let kernel = match (before, after) {
        (None, Some(_)) => &ADD_NORM,
        (Some(_), Some(_)) => &NORM_ADD_NORM,
        (Some(_), None) => &NORM_ADD,
        (None, None) => return None,
    };
    let size = usize::try_from(*x.shape().last()?).ok()?;
    let (dtype, vector) = (x.dtype(), vector_of(x.dtype())?);
    let fits = |(weights, eps): Norm<'_>| {
        weights.shape() == [size as i32] && weights.dtype() == dtype && eps.is_sign_positive()
    };
    if x.shape() != y.shape()
        || y.dtype() != dtype
        || x.size() == 0
        || !size.is_multiple_of(vector)
        || size > LONGEST_ROW
        || N != 1 + usize::from(after.is_some())
        || !before.is_none_or(fits)
        || !after.is_none_or(fits)
    {
        return None;
    }
    let mut inputs = vec![x, y];
    inputs.extend([before, after].into_iter().flatten().map(|(weights, _)| weights));
    let threads = (size / vector).next_multiple_of(32).min(1024);
    let eps = |norm: Option<Norm<'_>>| Constant::Bits(norm.map_or(0.0, |(_, eps)| eps));
    let call = Call {
        inputs: &inputs,
        outputs: [(x.shape(), dtype); N],
        constants: &[
            (c"T", Constant::Type(dtype)),
            (c"D", Constant::Int(size as i32)),
            (c"THREADS", Constant::Int(threads as i32)),
            (c"EPS_BEFORE", eps(before)),
            (c"EPS_AFTER", eps(after)),
        ],
        blocks: x.size() / size,
        threads,
    };
    // SAFETY: a block reads and writes one row, which is `D` long in x, y and the outputs, and weights of that length.
    Some(unsafe { kernel.call(&call) })
}

/// How queries and keys are made ready for attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNormRope<'a> {
    /// Heads of queries, heads of keys and of values, and the width of one.
    pub(crate) heads: [i32; 3],
    /// The norms of queries and of keys.
    pub(crate) norms: Option<[Norm<'a>; 2]>,
    pub(crate) rotation: Option<Rotation<'a>>,
}

/// How heads are rotated by their positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// Radians for each position of each pair, `[pairs]`, f32.
    pub(crate) frequencies: &'a Array,
    /// Factor of what is rotated.
    pub(crate) magnitude: f32,
    /// Whether pairs are neighbours, and not halves of what is rotated.
    pub(crate) interleaved: bool,
}

impl QkNormRope<'_> {
    /// Whether the kernel knows these arrays.
    fn fits(&self, qkv: &Array, starts: &Array, rotation: &Rotation<'_>) -> bool {
        let [heads, kv_heads, width] = self.heads;
        let (dtype, frequencies) = (qkv.dtype(), rotation.frequencies);
        let (Some(vector), &[batch, _, all]) = (vector_of(dtype), qkv.shape()) else { return false };
        let fits = |(weights, eps): Norm<'_>| {
            weights.shape() == [width] && weights.dtype() == dtype && eps.is_sign_positive()
        };
        heads >= 1
            && kv_heads >= 1
            && (1..=WIDEST_HEAD).contains(&width)
            && (width as usize).is_multiple_of(vector)
            && all == (heads + 2 * kv_heads) * width
            && qkv.size() > 0
            && (starts.shape(), starts.dtype()) == (&[batch][..], Dtype::Int32)
            && (frequencies.ndim(), frequencies.dtype()) == (1, Dtype::Float32)
            && 2 * frequencies.dim(0) <= width
            && rotation.magnitude.is_sign_positive()
            && self.norms.is_none_or(|norms| norms.into_iter().all(fits))
    }
}

/// Queries, keys and values from one array `[B, T, (heads + 2 · kv_heads) · width]`, where row b begins at position `starts[b]`
/// (`[B]`, i32) → `[B, T, heads, width]`, and `[B, kv_heads, T, width]` twice.
pub(crate) fn qk_norm_rope(qkv: &Array, starts: &Array, how: &QkNormRope<'_>) -> Option<Result<[Array; 3]>> {
    let rotation = how.rotation.as_ref().filter(|rotation| how.fits(qkv, starts, rotation))?;
    let ([heads, kv_heads, width], dtype) = (how.heads, qkv.dtype());
    let (batch, tokens, pairs) = (qkv.dim(0), qkv.dim(1), rotation.frequencies.dim(0));
    let mut inputs = vec![qkv, starts, rotation.frequencies];
    inputs.extend(how.norms.iter().flatten().map(|(weights, _)| *weights));
    let eps = how.norms.map_or([0.0; 2], |norms| norms.map(|(_, eps)| eps));
    let kept = [batch, kv_heads, tokens, width];
    let call = Call {
        inputs: &inputs,
        outputs: [(&[batch, tokens, heads, width][..], dtype), (&kept, dtype), (&kept, dtype)],
        constants: &[
            (c"T", Constant::Type(dtype)),
            (c"HEADS", Constant::Int(heads)),
            (c"KV_HEADS", Constant::Int(kv_heads)),
            (c"D", Constant::Int(width)),
            (c"PAIRS", Constant::Int(pairs)),
            (c"INTERLEAVED", Constant::Bool(rotation.interleaved)),
            (c"MAGNITUDE", Constant::Bits(rotation.magnitude)),
            (c"EPS_Q", Constant::Bits(eps[0])),
            (c"EPS_K", Constant::Bits(eps[1])),
        ],
        blocks: (batch * tokens) as usize,
        threads: 128,
    };
    let kernel = if how.norms.is_none() { &ROPE } else { &NORM_ROPE };
    // SAFETY: a block reads one token's row of `qkv`, as long as was checked, that row's position and the pairs' frequencies, and writes
    // that token's heads.
    Some(unsafe { kernel.call(&call) })
}

/// How many elements of this type a thread reads at once.
fn vector_of(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::Float16 | Dtype::Bfloat16 => Some(VECTOR / 2),
        Dtype::Float32 => Some(VECTOR / 4),
        _ => None,
    }
}

const fn contents(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    }
}

#[cfg(test)]
mod tests;
