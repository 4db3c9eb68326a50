//! Array operations that mlx-rs lacks, and access to the memory of arrays.

use std::ptr;

use inference_core::backend::free_memory;
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
    ops,
};

use super::device::on_cuda;

/// Bytes from which on memory is looked after.
const LARGE: usize = 4 << 20;

/// Evaluates an array and reads its bytes in row-major order.
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

/// Where the array's elements begin in the memory of the device that computes here: with CUDA, an address of the GPU. It is valid
/// while the array lives and nobody reads it, or another array that shares its memory, on the host: MLX moves it there. `None` unless the elements lie row by row, or column by column where `transposed`.
pub(crate) fn device_address(array: &Array, transposed: bool) -> Result<Option<u64>> {
    array.eval()?;
    let ndim = array.ndim();
    // SAFETY: the handle is valid, and an array has as many strides as axes.
    let strides = unsafe {
        let strides = mlx_sys::mlx_array_strides(array.as_ptr());
        if strides.is_null() { &[] } else { std::slice::from_raw_parts(strides, ndim) }
    };
    let mut axes: Vec<usize> = (0..ndim).collect();
    if transposed && ndim >= 2 {
        axes.swap(ndim - 1, ndim - 2);
    }
    let mut expected = 1;
    for axis in axes.into_iter().rev() {
        let size = array.dim(axis as i32).max(0) as usize;
        if size > 1 && strides.get(axis) != Some(&expected) {
            return Ok(None);
        }
        expected *= size;
    }
    let address = if on_cuda() {
        // SAFETY: the array is evaluated, and MLX is its CUDA build.
        unsafe { mlx_primitive_sys::mlx_cuda_address(array.as_ptr()) as u64 }
    } else {
        // SAFETY: the array is evaluated.
        unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) as u64 }
    };
    Ok((address != 0).then_some(address))
}

/// MLX's exception with the message of another error, such as that of reading an array's elements.
pub(crate) fn exception(error: impl std::fmt::Display) -> Exception {
    Exception::custom(error.to_string())
}

/// A scalar of type `dtype`, so that arithmetic keeps the other operand's type.
pub(crate) fn scalar(value: f32, dtype: Dtype) -> Result<Array> {
    Array::from_f32(value).as_dtype(dtype)
}

/// A new array whose bytes `fill` writes, in MLX's memory: nothing is copied. `shape` must have elements.
pub(crate) fn filled<E: FillError>(
    shape: &[i32],
    dtype: Dtype,
    fill: impl FnOnce(&mut [u8]) -> std::result::Result<(), E>,
) -> std::result::Result<Array, E> {
    // On the CPU, whatever the default device: the memory must be reachable from here.
    let array = mlx_rs::with_stream(&Stream::cpu(), || ops::zeros_dtype(shape, dtype)).map_err(E::mlx)?;
    check_memory(array.nbytes() as u64)?;
    array.eval().map_err(E::mlx)?;
    // SAFETY: the handle is valid, and the array was evaluated.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) }.cast_mut();
    if data.is_null() {
        return Err(E::mlx(Exception::custom("MLX gave an array without memory")));
    }
    // SAFETY: a fresh evaluated array of zeros is contiguous, `nbytes` long and owned by this handle alone, and nothing
    // reads it before this function returns.
    fill(unsafe { std::slice::from_raw_parts_mut(data, array.nbytes()) })?;
    Ok(array)
}

/// The array in memory of the GPU, where CUDA computes. What was written on the host lies in memory that CUDA moves page by page as it
/// is touched: rows of an embedding that are read here and there came at 0.3 GB/s on an H100.
pub(super) fn on_device(array: Array) -> Result<Array> {
    if !on_cuda() || array.ndim() == 0 || array.size() == 0 {
        return Ok(array);
    }
    let mut shape = array.shape().to_vec();
    shape[0] = 0;
    // A concatenation has memory of its own, whatever the type of its elements.
    let copy = ops::concatenate(&[&array, &ops::zeros_dtype(&shape, array.dtype())?], 0)?;
    copy.eval()?;
    drop(array);
    if copy.nbytes() >= LARGE {
        // MLX would give the memory out again as if it were the GPU's.
        mlx_rs::memory::clear_cache()?;
    }
    Ok(copy)
}

/// What says that there is no memory for an array.
pub(crate) trait FillError {
    /// MLX failed.
    fn mlx(error: Exception) -> Self;
    /// Memory cannot hold the array.
    fn no_memory(needed: u64, available: u64) -> Self;
}

impl FillError for Exception {
    fn mlx(error: Exception) -> Self {
        error
    }

    fn no_memory(needed: u64, available: u64) -> Self {
        Self::custom(format!("an array needs {needed} bytes, {available} are available"))
    }
}

impl FillError for inference_core::Error {
    fn mlx(error: Exception) -> Self {
        Self::backend("mlx", "allocate memory", error)
    }

    fn no_memory(needed: u64, available: u64) -> Self {
        Self::out_of_memory("a tensor", needed, available)
    }
}

/// Whether there is memory for an array of so many bytes: MLX writes to the null pointer of an allocation that failed.
fn check_memory<E: FillError>(needed: u64) -> std::result::Result<(), E> {
    // Smaller ones are not worth the question.
    match free_memory() {
        Some(available) if needed >= LARGE as u64 && needed > available => {
            Err(E::no_memory(needed, available))
        }
        _ => Ok(()),
    }
}

/// Cross-entropy, −ln p of each of `targets` `[..]` by its logits `[.., n]`, in float32. On CUDA it is one kernel, and so is its
/// gradient; elsewhere MLX sums in the logits' type, so they are converted to float32.
pub(crate) fn cross_entropy(logits: &Array, targets: &Array) -> Result<Array> {
    let logits = if on_cuda() { logits.clone() } else { logits.as_dtype(Dtype::Float32)? };
    let stream = Stream::thread_local_or_default();
    // SAFETY: every handle belongs to an array that lives through the call.
    call("cross_entropy", |result| unsafe {
        mlx_sys::mlx_fast_cross_entropy(result, logits.as_ptr(), targets.as_ptr(), stream.as_ref().as_ptr())
    })
}

/// Random bits of this shape (u32) from a key `[2]` (u32).
pub(crate) fn random_bits(shape: &[i32], key: &Array) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: every handle belongs to an array that lives through the call; the shape is as long as is said, and a number takes four bytes.
    call("random_bits", |result| unsafe {
        let stream = stream.as_ref().as_ptr();
        mlx_sys::mlx_random_bits(result, shape.as_ptr(), shape.len(), 4, key.as_ptr(), stream)
    })
}

/// Asks Linux for huge pages of 2 MiB: two cores of an EPYC (Zen 4, in a virtual machine) read 22 GB/s from pages of 4 KiB, and
/// 35 GB/s from these. It takes time. Neighbouring memory may get into the same pages.
pub(super) fn use_large_pages(memory: &[u8]) {
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

/// The slice `start..end` of an axis: a view.
pub(crate) fn slice(x: &Array, axis: usize, start: i32, end: i32) -> Result<Array> {
    view(x, &Bounds::new(x.shape(), axis, start, end)?)
}

/// Every `step`-th element of an axis, from `start` on: a view.
pub(crate) fn every(x: &Array, axis: usize, start: i32, step: i32) -> Result<Array> {
    let end = x.shape().get(axis).copied().unwrap_or(0);
    let mut bounds = Bounds::new(x.shape(), axis, start, end)?;
    bounds.strides[axis] = step;
    view(x, &bounds)
}

fn view(x: &Array, Bounds { starts, ends, strides }: &Bounds) -> Result<Array> {
    let (n, stream) = (starts.len(), Stream::thread_local_or_default());
    // SAFETY: every handle belongs to an array that lives through the call; the bounds hold one number for each axis.
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

/// The rows `indices` `[..]` of a matrix `[rows, n]`, as matrices of one row: `[.., 1, n]`.
pub(crate) fn gather_rows(x: &Array, indices: &Array) -> Result<Array> {
    let &[_, n] = x.shape() else {
        return Err(Exception::custom(format!("rows are gathered of {:?}, expected a matrix", x.shape())));
    };
    let stream = Stream::thread_local_or_default();
    // SAFETY: every handle belongs to an array that lives through the call, or is made and freed here; there is one axis, and a size for each
    // axis of `x`.
    call("gather", |result| unsafe {
        let list = mlx_sys::mlx_vector_array_new_value(indices.as_ptr());
        let status = mlx_sys::mlx_gather(
            result,
            x.as_ptr(),
            list,
            [0].as_ptr(),
            1,
            [1, n].as_ptr(),
            2,
            stream.as_ref().as_ptr(),
        );
        mlx_sys::mlx_vector_array_free(list);
        status
    })
}

/// A copy of `x` with `update` written to an axis from `start` on. MLX reuses the memory of `x` if nothing else owns it. An update
/// of the whole array is returned as it is: it may be a view.
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

/// The bounds of a slice for each axis.
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

/// The handle of an array; the null handle means none.
pub(super) fn handle(array: Option<&Array>) -> mlx_sys::mlx_array {
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
