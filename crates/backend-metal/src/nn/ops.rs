//! MLX operations that mlx-rs does not offer in safe form: quantised matrices of every mode, and buffers filled in place.

use std::{ffi::CStr, ptr};

use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops,
};

use super::native;

/// How the elements of a quantised matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Scheme {
    /// The encoding.
    pub(crate) mode: Mode,
    /// Bits of one element.
    pub(crate) bits: usize,
    /// Elements of a row that share a scale.
    pub(crate) group_size: usize,
}

/// The encodings of quantised matrices that MLX has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Integers with a scale and a bias for each group.
    Affine,
    /// Four-bit floats; scales are powers of two.
    Mxfp4,
    /// Four-bit floats; scales are eight-bit floats.
    Nvfp4,
    /// Eight-bit floats; scales are powers of two.
    Mxfp8,
}

impl Mode {
    /// The encoding of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Affine, Self::Mxfp4, Self::Nvfp4, Self::Mxfp8].into_iter().find(|mode| mode.name() == name)
    }

    /// Whether groups have a bias besides their scale.
    pub(crate) fn has_biases(self) -> bool {
        self == Self::Affine
    }

    /// Its name in config.json.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Self::Affine => c"affine",
            Self::Mxfp4 => c"mxfp4",
            Self::Nvfp4 => c"nvfp4",
            Self::Mxfp8 => c"mxfp8",
        }
    }
}

/// How gpt-oss's publisher packs its experts, and MLX what it calls so.
pub(crate) const MXFP4: Scheme = Scheme { mode: Mode::Mxfp4, bits: 4, group_size: 32 };

impl Scheme {
    /// Whether MLX has kernels for these numbers.
    pub(crate) fn is_supported(self) -> bool {
        match self.mode {
            Mode::Affine => matches!(self.bits, 2..=6 | 8) && matches!(self.group_size, 32 | 64 | 128),
            Mode::Mxfp4 => (self.bits, self.group_size) == (4, 32),
            Mode::Nvfp4 => (self.bits, self.group_size) == (4, 16),
            Mode::Mxfp8 => (self.bits, self.group_size) == (8, 32),
        }
    }

    fn bits(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int { value: self.bits as i32, has_value: true }
    }

    fn group_size(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int { value: self.group_size as i32, has_value: true }
    }
}

/// A quantised matrix `[out, in]`, or a stack of them `[n, out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// Elements, packed into u32: `[.., out, in * bits / 32]`.
    pub(crate) weight: Array,
    /// `[.., out, in / group_size]`
    pub(crate) scales: Array,
    /// As the scales; affine only.
    pub(crate) biases: Option<Array>,
    /// The storage.
    pub(crate) scheme: Scheme,
}

/// `x · wᵀ`: `[.., in]` → `[.., out]`.
pub(crate) fn quantized_matmul(x: &Array, w: &Packed) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: every handle belongs to an array that lives through the call; a null handle stands for an absent one.
    call("quantized_matmul", |result| unsafe {
        mlx_sys::mlx_quantized_matmul(
            result,
            x.as_ptr(),
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            true,
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            stream.as_ref().as_ptr(),
        )
    })
}

/// `x · w[i]ᵀ` with one `i` of `indices` for each matrix of x: `[.., M, in]`, `[..]` → `[.., M, out]`.
pub(crate) fn gather_qmm(x: &Array, w: &Packed, indices: &Array, sorted: bool) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    call("gather_qmm", |result| unsafe {
        mlx_sys::mlx_gather_qmm(
            result,
            x.as_ptr(),
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            handle(None),
            indices.as_ptr(),
            true,
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            sorted,
            stream.as_ref().as_ptr(),
        )
    })
}

/// The matrix in full, `[.., out, in]`, with elements of type `dtype`.
pub(crate) fn dequantize(w: &Packed, dtype: Dtype) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    call("dequantize", |result| unsafe {
        mlx_sys::mlx_dequantize(
            result,
            w.weight.as_ptr(),
            w.scales.as_ptr(),
            handle(w.biases.as_ref()),
            w.scheme.group_size(),
            w.scheme.bits(),
            w.scheme.mode.c_name().as_ptr(),
            handle(None),
            mlx_sys::mlx_optional_dtype { value: dtype.into(), has_value: true },
            stream.as_ref().as_ptr(),
        )
    })
}

/// Quantises `[.., out, in]`, floats.
pub(crate) fn quantize(w: &Array, scheme: Scheme) -> Result<Packed> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: the vector is made, filled, read and freed here; its arrays get handles of their own.
    let mut arrays = unsafe {
        let mut vector = mlx_sys::mlx_vector_array_new();
        let status = mlx_sys::mlx_quantize(
            &raw mut vector,
            w.as_ptr(),
            scheme.group_size(),
            scheme.bits(),
            scheme.mode.c_name().as_ptr(),
            handle(None),
            stream.as_ref().as_ptr(),
        );
        let count = if status == 0 { mlx_sys::mlx_vector_array_size(vector) } else { 0 };
        let arrays: Result<Vec<_>> = (0..count)
            .map(|i| call("quantize", |result| mlx_sys::mlx_vector_array_get(result, vector, i)))
            .collect();
        mlx_sys::mlx_vector_array_free(vector);
        arrays?.into_iter()
    };
    let (Some(weight), Some(scales)) = (arrays.next(), arrays.next()) else {
        return Err(Exception::custom(format!(
            "quantize failed for {scheme:?} and the shape {:?}",
            w.shape()
        )));
    };
    Ok(Packed { weight, scales, biases: arrays.next(), scheme })
}

/// The elements of an array in memory, row by row. Evaluates it.
pub(crate) fn with_bytes<T>(x: &Array, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    x.eval()?;
    // SAFETY: the handle is valid, and the array was evaluated.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(x.as_ptr()) };
    if data.is_null() {
        return Err(Exception::custom("MLX gave an array without memory"));
    }
    // SAFETY: an evaluated contiguous array has `nbytes` bytes at this place, and `x` outlives the call.
    Ok(read(unsafe { std::slice::from_raw_parts(data, x.nbytes()) }))
}

/// A number as an array of type `dtype`, so that arithmetic with it keeps the other side's type.
pub(crate) fn scalar(value: f32, dtype: Dtype) -> Result<Array> {
    Array::from_f32(value).as_dtype(dtype)
}

/// An array whose bytes `fill` writes, in MLX's own memory: nothing is held twice. `shape` must not be empty of elements.
pub(crate) fn filled<E: From<Exception>>(
    shape: &[i32],
    dtype: Dtype,
    fill: impl FnOnce(&mut [u8]) -> std::result::Result<(), E>,
) -> std::result::Result<Array, E> {
    // On the CPU, whatever the default device: the memory must be reachable from here.
    let array = mlx_rs::with_stream(&Stream::cpu(), || ops::zeros_dtype(shape, dtype))?;
    array.eval()?;
    // SAFETY: the handle is valid, and the array was evaluated.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) }.cast_mut();
    if data.is_null() {
        return Err(Exception::custom("MLX gave an array without memory").into());
    }
    // SAFETY: a fresh evaluated array of zeros is contiguous, `nbytes` long and owned by this handle alone, and nothing
    // reads it before this function returns.
    let memory = unsafe { std::slice::from_raw_parts_mut(data, array.nbytes()) };
    if on_cpu() {
        use_large_pages(memory);
    }
    fill(memory)?;
    Ok(array)
}

/// −ln p of each of `targets`, `[..]`, by its logits `[.., n]`: in float32, whatever the logits' type. On CUDA it is one kernel, and
/// so is its gradient; elsewhere MLX sums in the logits' type.
pub(crate) fn cross_entropy(logits: &Array, targets: &Array) -> Result<Array> {
    let logits = if on_cuda() { logits.clone() } else { logits.as_dtype(Dtype::Float32)? };
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`.
    call("cross_entropy", |result| unsafe {
        mlx_sys::mlx_fast_cross_entropy(result, logits.as_ptr(), targets.as_ptr(), stream.as_ref().as_ptr())
    })
}

/// The index of the largest element of the last axis, u32: `[.., n]` → `[..]`.
pub(crate) fn argmax(x: &Array) -> Result<Array> {
    native::argmax(x).unwrap_or_else(|| ops::indexing::argmax_axis(x, -1, false))
}

/// Random bits of this shape, u32, from a key `[2]` (u32).
pub(crate) fn random_bits(shape: &[i32], key: &Array) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: as in `quantized_matmul`; the shape is as long as is said, and a number takes four bytes.
    call("random_bits", |result| unsafe {
        let stream = stream.as_ref().as_ptr();
        mlx_sys::mlx_random_bits(result, shape.as_ptr(), shape.len(), 4, key.as_ptr(), stream)
    })
}

/// Asks the system to hold this memory in pages of 2 MiB, where it has such: two cores of an EPYC (Zen 4, in a virtual machine)
/// read 22 GB/s from pages of 4 KiB, and 35 GB/s from these. What lies around it may come to lie in the same pages.
fn use_large_pages(memory: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        if memory.len() < PAGE {
            return;
        }
        let start = memory.as_ptr().map_addr(|start| start / PAGE * PAGE);
        let len = (memory.as_ptr_range().end.addr() - start.addr()).next_multiple_of(PAGE);
        // SAFETY: the call changes no contents, and fails where there is no memory. A system that cannot do it changes nothing.
        unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_COLLAPSE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// The part `start..end` of an axis.
pub(crate) fn slice(x: &Array, axis: usize, start: i32, end: i32) -> Result<Array> {
    let Bounds { starts, ends, strides } = Bounds::new(x.shape(), axis, start, end)?;
    let (n, stream) = (starts.len(), Stream::thread_local_or_default());
    // SAFETY: as in `quantized_matmul`; the bounds hold one number for each axis.
    call("slice", |result| unsafe {
        mlx_sys::mlx_slice(
            result,
            x.as_ptr(),
            starts.as_ptr(),
            n,
            ends.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream.as_ref().as_ptr(),
        )
    })
}

/// The array with `update` in place of the part of an axis that begins at `start`. Where nothing else owns `x`, MLX writes
/// in place.
pub(crate) fn slice_update(x: Array, update: &Array, axis: usize, start: i32) -> Result<Array> {
    let end = start + update.shape().get(axis).copied().unwrap_or(0);
    let Bounds { starts, ends, strides } = Bounds::new(x.shape(), axis, start, end)?;
    let (n, stream) = (starts.len(), Stream::thread_local_or_default());
    // SAFETY: as in `slice`.
    let updated = call("slice_update", |result| unsafe {
        mlx_sys::mlx_slice_update(
            result,
            x.as_ptr(),
            update.as_ptr(),
            starts.as_ptr(),
            n,
            ends.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream.as_ref().as_ptr(),
        )
    });
    drop(x);
    updated
}

/// Whether arrays are computed on the CPU here: on the stream in scope, or MLX's default.
pub(crate) fn on_cpu() -> bool {
    let stream = Stream::thread_local_or_default();
    let mut kind = mlx_sys::mlx_device_type__MLX_GPU;
    // SAFETY: the device is made, filled, read and freed here; a failed call leaves `kind` as it is.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        if mlx_sys::mlx_stream_get_device(&raw mut device, stream.as_ref().as_ptr()) == 0 {
            mlx_sys::mlx_device_get_type(&raw mut kind, device);
        }
        mlx_sys::mlx_device_free(device);
    }
    kind == mlx_sys::mlx_device_type__MLX_CPU
}

/// Whether MLX's CUDA build computes here.
pub(crate) fn on_cuda() -> bool {
    cfg!(target_os = "linux") && !on_cpu()
}

/// What of each axis a slice takes.
struct Bounds {
    starts: Vec<i32>,
    ends: Vec<i32>,
    strides: Vec<i32>,
}

impl Bounds {
    fn new(shape: &[i32], axis: usize, start: i32, end: i32) -> Result<Self> {
        let mut ends = shape.to_vec();
        let mut starts = vec![0; shape.len()];
        let within = |size: &i32| 0 <= start && start <= end && end <= *size;
        if !shape.get(axis).is_some_and(within) {
            return Err(Exception::custom(format!(
                "{start}..{end} of axis {axis} is not within the shape {shape:?}"
            )));
        }
        (starts[axis], ends[axis]) = (start, end);
        Ok(Self { strides: vec![1; shape.len()], starts, ends })
    }
}

fn handle(array: Option<&Array>) -> mlx_sys::mlx_array {
    array.map_or(mlx_sys::mlx_array { ctx: ptr::null_mut() }, Array::as_ptr)
}

/// Runs a function of MLX's C interface that writes one array.
pub(super) fn call(name: &str, function: impl FnOnce(*mut mlx_sys::mlx_array) -> i32) -> Result<Array> {
    let mut result = handle(None);
    match function(&raw mut result) {
        // SAFETY: on success the function stored a fresh handle, which nothing else owns.
        0 => Ok(unsafe { Array::from_ptr(result) }),
        status => Err(Exception::custom(format!("{name} failed with status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, random, with_device};

    use super::*;

    #[test]
    fn losses_are_computed_in_float32_whatever_the_type_of_logits() {
        with_device(Device::cpu(), || {
            let logits =
                random::uniform::<f32, f32>(-8.0, 8.0, &[5, 3000], &random::key(1).unwrap()).unwrap();
            let targets = Array::from_slice(&[0_u32, 2999, 17, 17, 1024], &[5]);
            for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
                let logits = logits.as_dtype(dtype).unwrap();
                let losses = cross_entropy(&logits, &targets).unwrap();
                assert_eq!((losses.shape(), losses.dtype()), (targets.shape(), Dtype::Float32));
                let wide = logits.as_dtype(Dtype::Float32).unwrap().to_vec_exact::<f32>().unwrap();
                let losses = losses.to_vec_exact::<f32>().unwrap();
                for ((row, target), loss) in wide.chunks(3000).zip([0, 2999, 17, 17, 1024]).zip(losses) {
                    let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                    let expected = sum.ln() - f64::from(row[target]);
                    assert!((f64::from(loss) - expected).abs() < 1e-5, "{dtype:?}: {loss}, {expected}");
                }
            }
        });
    }
}
