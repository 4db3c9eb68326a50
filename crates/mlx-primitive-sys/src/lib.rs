//! Custom primitives of MLX's graph: an operation that computes its outputs with a function of the caller's, on a CPU stream.
//!
//! mlx-c, MLX's C interface, has no way to add a primitive. This crate adds [`mlx_primitive`], in the manner of mlx-c, and
//! [`mlx_cuda_address`], which kernels beside MLX's need.
//! The README says how it is built.

use std::ffi::{c_char, c_int, c_void};

use mlx_sys::{mlx_array, mlx_dtype, mlx_stream};

/// The memory of an array while the function of a [`mlx_primitive`] runs.
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_view {
    /// The first element.
    pub data: *mut c_void,
    /// `ndim` sizes.
    pub shape: *const i32,
    /// `ndim` strides in elements. Outputs are row-major.
    pub strides: *const i64,
    /// The number of axes.
    pub ndim: usize,
    /// The type of the elements.
    pub dtype: mlx_dtype,
}

/// The function of a [`mlx_primitive`].
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_function {
    /// The first argument of the functions below.
    pub payload: *mut c_void,
    /// Computes the outputs from the inputs, on the thread of the stream. Returns 0, or another number after writing the reason:
    /// text with a zero byte at its end, into the buffer whose size is the last argument. It must not unwind.
    pub run: unsafe extern "C" fn(
        *mut c_void,
        *const mlx_primitive_view,
        *const mlx_primitive_view,
        *mut c_char,
        usize,
    ) -> c_int,
    /// Called once, on any thread, when MLX drops the function.
    pub free: unsafe extern "C" fn(*mut c_void),
}

/// The description of an output of a [`mlx_primitive`].
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_output {
    /// `ndim` sizes.
    pub shape: *const i32,
    /// The number of axes.
    pub ndim: usize,
    /// The type of the elements.
    pub dtype: mlx_dtype,
    /// The input whose memory it reuses if nothing else needs that memory and the two have one shape and type, or a negative
    /// number. The function can compare addresses.
    pub donor: i32,
}

unsafe extern "C" {
    /// Stores an array for each of `outputs` in `results`, which holds null handles. Takes `function` over, also on failure. MLX
    /// keeps `name`, which must be static. Returns 0, or another number after writing the reason: at most `capacity` bytes of text,
    /// with a zero byte at its end.
    pub fn mlx_primitive(
        results: *mut mlx_array,
        name: *const c_char,
        inputs: *const mlx_array,
        input_count: usize,
        outputs: *const mlx_primitive_output,
        output_count: usize,
        function: mlx_primitive_function,
        stream: mlx_stream,
        reason: *mut c_char,
        capacity: usize,
    ) -> c_int;

    /// Bytes of memory that are kept for later outputs, 64 MiB at most. MLX counts them as active.
    pub fn mlx_primitive_cached_bytes() -> usize;

    /// Frees that memory.
    pub fn mlx_primitive_clear_cache();

    /// Where an evaluated array begins in the memory of the GPU. MLX must be its CUDA build: others keep arrays elsewhere.
    pub fn mlx_cuda_address(array: mlx_array) -> *mut c_void;
}
