//! Half-precision numbers, which mlx-c has on some processors only: here they are their bits on all of them.

use std::ffi::c_int;

use crate::{mlx_array, mlx_array_data_uint16, mlx_array_item_uint16};

/// The bits of an IEEE 754 half-precision number.
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(transparent)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct float16_t(pub u16);

/// The bits of a bfloat16, the upper half of a single-precision number.
#[allow(non_camel_case_types, reason = "C's name")]
pub type bfloat16_t = u16;

/// Reads the value of a scalar array of float16 into `res`. Not zero: it failed, and the error handler was told why.
///
/// # Safety
///
/// `res` must be valid for writes, and `arr` a live array.
pub unsafe fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> c_int {
    // SAFETY: the caller's promise; the type is transparent over u16, and MLX reads the item's bits without converting.
    unsafe { mlx_array_item_uint16(res.cast(), arr) }
}

/// Reads the value of a scalar array of bfloat16 into `res`. Not zero: it failed, and the error handler was told why.
///
/// # Safety
///
/// `res` must be valid for writes, and `arr` a live array.
pub unsafe fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> c_int {
    // SAFETY: the caller's promise; MLX reads the item's bits without converting.
    unsafe { mlx_array_item_uint16(res, arr) }
}

/// The data of an evaluated array of float16; null when it is not evaluated.
///
/// # Safety
///
/// `arr` must be a live array; the data live as long as it does.
pub unsafe fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t {
    // SAFETY: the caller's promise; the type is transparent over u16.
    unsafe { mlx_array_data_uint16(arr).cast() }
}

/// The data of an evaluated array of bfloat16; null when it is not evaluated.
///
/// # Safety
///
/// `arr` must be a live array; the data live as long as it does.
pub unsafe fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t {
    // SAFETY: the caller's promise.
    unsafe { mlx_array_data_uint16(arr) }
}
