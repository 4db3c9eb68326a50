//! The primitive under mlx-rs: its results, its errors, and the end of its function.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mlx_primitive_sys::{mlx_primitive, mlx_primitive_function, mlx_primitive_output, mlx_primitive_view};
use mlx_rs::{Array, Device, Stream, with_device};
use mlx_sys::{mlx_array, mlx_dtype__MLX_FLOAT32};

/// Counts what happened to the function.
struct Payload {
    freed: Arc<AtomicUsize>,
    fails: bool,
}

/// The sum of two row-major arrays of `f32`.
unsafe extern "C" fn run(
    payload: *mut c_void,
    inputs: *const mlx_primitive_view,
    outputs: *const mlx_primitive_view,
    reason: *mut c_char,
    capacity: usize,
) -> c_int {
    // SAFETY: two inputs and one output of one shape, as `sum` describes them, and a live payload.
    unsafe {
        if (*payload.cast::<Payload>()).fails {
            let text = b"no sum today\0";
            assert!(text.len() <= capacity);
            ptr::copy_nonoverlapping(text.as_ptr(), reason.cast(), text.len());
            return 1;
        }
        let [a, b] = [*inputs, *inputs.add(1)];
        let shape = slice::from_raw_parts(a.shape, a.ndim);
        let len = shape.iter().map(|size| *size as usize).product();
        let floats = |view: mlx_primitive_view| slice::from_raw_parts(view.data.cast::<f32>(), len);
        let out = slice::from_raw_parts_mut((*outputs).data.cast::<f32>(), len);
        for ((out, a), b) in out.iter_mut().zip(floats(a)).zip(floats(b)) {
            *out = a + b;
        }
    }
    0
}

unsafe extern "C" fn free(payload: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `sum`, and freed once.
    let payload = unsafe { Box::from_raw(payload.cast::<Payload>()) };
    payload.freed.fetch_add(1, Ordering::SeqCst);
}

fn sum(a: &Array, b: &Array, fails: bool, freed: &Arc<AtomicUsize>) -> Result<Array, String> {
    let payload = Box::into_raw(Box::new(Payload { freed: Arc::clone(freed), fails })).cast();
    let inputs = [a.as_ptr(), b.as_ptr()];
    let output = mlx_primitive_output {
        shape: a.shape().as_ptr(),
        ndim: a.ndim(),
        dtype: mlx_dtype__MLX_FLOAT32,
        donor: -1,
    };
    let mut result = mlx_array { ctx: ptr::null_mut() };
    let mut reason = [0_u8; 128];
    // SAFETY: live arrays, one described output, a static name, and a function for them.
    let status = unsafe {
        mlx_primitive(
            &mut result,
            c"sum".as_ptr(),
            inputs.as_ptr(),
            2,
            &output,
            1,
            mlx_primitive_function { payload, run, free },
            Stream::thread_local_or_default().as_ptr(),
            reason.as_mut_ptr().cast(),
            reason.len(),
        )
    };
    if status != 0 {
        return Err(CStr::from_bytes_until_nul(&reason).unwrap_or_default().to_string_lossy().into_owned());
    }
    // SAFETY: a new handle.
    Ok(unsafe { Array::from_ptr(result) })
}

#[test]
fn the_function_computes_the_output_and_is_freed() {
    with_device(Device::cpu(), || {
        let freed = Arc::new(AtomicUsize::new(0));
        let (a, b) = (Array::from_slice(&[1.0_f32, 2.0], &[2]), Array::from_slice(&[3.0_f32, 4.0], &[2]));
        let out = sum(&a, &b, false, &freed).unwrap();
        assert_eq!(out.as_slice::<f32>(), [4.0, 6.0]);
        drop(out);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_failure_is_the_error_of_the_evaluation() {
    with_device(Device::cpu(), || {
        let freed = Arc::new(AtomicUsize::new(0));
        let a = Array::from_slice(&[1.0_f32], &[1]);
        let out = sum(&a, &a, true, &freed).unwrap();
        let message = out.eval().unwrap_err().to_string();
        assert!(message.contains("[sum] no sum today"), "{message}");
    });
}

#[test]
fn an_invalid_handle_is_an_error_with_its_reason() {
    let freed = Arc::new(AtomicUsize::new(0));
    let a = Array::from_slice(&[1.0_f32], &[1]);
    // SAFETY: a null handle is never read: the call refuses it.
    let none = unsafe { Array::from_ptr(mlx_array { ctx: ptr::null_mut() }) };
    let payload = Box::into_raw(Box::new(Payload { freed: Arc::clone(&freed), fails: false })).cast();
    let output =
        mlx_primitive_output { shape: a.shape().as_ptr(), ndim: 1, dtype: mlx_dtype__MLX_FLOAT32, donor: -1 };
    let mut result = mlx_array { ctx: ptr::null_mut() };
    let mut reason = [0_u8; 16];
    // SAFETY: as in `sum`, but for the null handle.
    let status = unsafe {
        mlx_primitive(
            &mut result,
            c"sum".as_ptr(),
            [none.as_ptr()].as_ptr(),
            1,
            &output,
            1,
            mlx_primitive_function { payload, run, free },
            Stream::thread_local_or_default().as_ptr(),
            reason.as_mut_ptr().cast(),
            reason.len(),
        )
    };
    assert_ne!(status, 0);
    // Cut to the buffer, with the zero byte.
    assert_eq!(CStr::from_bytes_until_nul(&reason).unwrap(), c"expected a non-");
    assert_eq!(freed.load(Ordering::SeqCst), 1);
}
