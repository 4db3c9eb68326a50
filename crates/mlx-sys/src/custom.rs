//! An operation of the caller's in MLX's graph: `native/custom.cpp`, which is compiled together with mlx-c.

use std::ffi::{c_char, c_int, c_void};

use crate::{mlx_array, mlx_dtype, mlx_stream};

/// Memory of an array, while the function of a [`mlx_primitive`] runs.
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_view {
    /// The first element.
    pub data: *mut c_void,
    /// `ndim` sizes.
    pub shape: *const i32,
    /// `ndim` distances in elements; those of outputs are those of a row-major array.
    pub strides: *const i64,
    /// Axes.
    pub ndim: usize,
    /// The type of the elements.
    pub dtype: mlx_dtype,
}

/// The function of a [`mlx_primitive`].
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_function {
    /// What the two below are given.
    pub payload: *mut c_void,
    /// Computes the outputs from the inputs, on the thread of the stream. Not zero: it failed, and wrote why into the buffer,
    /// whose size comes last: text that ends in a zero byte.
    pub run: unsafe extern "C" fn(
        *mut c_void,
        *const mlx_primitive_view,
        *const mlx_primitive_view,
        *mut c_char,
        usize,
    ) -> c_int,
    /// Called once, when MLX lets go of the function, on any thread.
    pub free: unsafe extern "C" fn(*mut c_void),
}

/// What an output of a [`mlx_primitive`] is.
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mlx_primitive_output {
    /// `ndim` sizes.
    pub shape: *const i32,
    /// Axes.
    pub ndim: usize,
    /// The type of the elements.
    pub dtype: mlx_dtype,
    /// The input whose memory it takes over, where nothing else needs that and the two are alike; less than zero for none.
    /// The function tells by the addresses.
    pub donor: i32,
}

unsafe extern "C" {
    /// Stores an array for each of `outputs` in `results`, which holds null handles. MLX calls it `name`, which is static, and
    /// takes over `function`, also on failure. Not zero: it failed, and the error handler was told why.
    pub fn mlx_primitive(
        results: *mut mlx_array,
        name: *const c_char,
        inputs: *const mlx_array,
        input_count: usize,
        outputs: *const mlx_primitive_output,
        output_count: usize,
        function: mlx_primitive_function,
        stream: mlx_stream,
    ) -> c_int;
}
