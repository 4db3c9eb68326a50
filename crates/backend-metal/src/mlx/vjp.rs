//! Closures in Rust that MLX calls and differentiates: vector-Jacobian products.

use std::{
    cell::RefCell,
    ffi::c_void,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
};
use mlx_sys::{mlx_closure, mlx_vector_array};

thread_local! {
    /// Why a closure failed. MLX reports only that it did.
    static FAILURE: RefCell<Option<Exception>> = const { RefCell::new(None) };
}

/// The error of a closure on this thread since the last call, if one failed.
pub(crate) fn take_failure() -> Option<Exception> {
    FAILURE.take()
}

/// A function of arrays. It lives as long as MLX needs it.
pub(super) struct Closure(mlx_closure);

impl Closure {
    pub(super) fn new<F: Fn(&[Array]) -> Result<Vec<Array>> + 'static>(function: F) -> Self {
        // SAFETY: the payload is freed by `free`, once, when the last owner of the closure goes, which may be a graph.
        Self(unsafe {
            mlx_sys::mlx_closure_new_func_payload(Some(call::<F>), boxed(function), Some(free::<F>))
        })
    }

    /// The same with a custom gradient: `gradient(inputs, by_first_output, outputs)` returns one for each input.
    pub(super) fn with_gradient<B>(&self, gradient: B) -> Result<Self>
    where
        B: Fn(&[Array], &Array, &[Array]) -> Result<Vec<Array>> + 'static,
    {
        // SAFETY: as in `new` and above; the handle made here is freed here.
        unsafe {
            let gradient = mlx_sys::mlx_closure_custom_new_func_payload(
                Some(call_gradient::<B>),
                boxed(gradient),
                Some(free::<B>),
            );
            // An empty handle, which is freed when it is dropped.
            let mut both = Self(mlx_sys::mlx_closure_new());
            let status = mlx_sys::mlx_custom_vjp(&raw mut both.0, self.0, gradient);
            mlx_sys::mlx_closure_custom_free(gradient);
            if status == 0 { Ok(both) } else { Err(Exception::custom("a function could not be transformed")) }
        }
    }

    /// Calls it, and returns its first output.
    pub(super) fn apply(&self, inputs: &[Array]) -> Result<Array> {
        let (inputs, mut output) = (Vector::of(inputs), Vector::of(&[]));
        // SAFETY: closure and vectors are alive.
        if unsafe { mlx_sys::mlx_closure_apply(&raw mut output.0, self.0, inputs.0) } != 0 {
            return Err(take_failure().unwrap_or_else(|| Exception::custom("a function failed")));
        }
        output.arrays()?.into_iter().next().ok_or_else(|| Exception::custom("a function gave nothing"))
    }

    /// The gradient by each input, given the gradient by the output, of which there is one.
    pub(super) fn gradient(&self, inputs: &[Array], by_output: &Array) -> Result<Vec<Array>> {
        let (inputs, by_output) = (Vector::of(inputs), Vector::of(slice::from_ref(by_output)));
        let (mut output, mut gradients) = (Vector::of(&[]), Vector::of(&[]));
        // SAFETY: closure and vectors are alive.
        let status = unsafe {
            mlx_sys::mlx_vjp(&raw mut output.0, &raw mut gradients.0, self.0, inputs.0, by_output.0)
        };
        match status {
            0 => gradients.arrays(),
            _ => Err(take_failure().unwrap_or_else(|| Exception::custom("a function has no gradient"))),
        }
    }
}

/// The arrays, with dependencies: they are computed after `others`.
pub(crate) fn after(arrays: &[Array], others: &[Array]) -> Result<Vec<Array>> {
    let (arrays, others, mut result) = (Vector::of(arrays), Vector::of(others), Vector::of(&[]));
    // SAFETY: the vectors are alive.
    match unsafe { mlx_sys::mlx_depends(&raw mut result.0, arrays.0, others.0) } {
        0 => result.arrays(),
        _ => Err(Exception::custom("arrays could not be made to wait")),
    }
}

impl Drop for Closure {
    fn drop(&mut self) {
        // SAFETY: made above, freed once.
        unsafe { mlx_sys::mlx_closure_free(self.0) };
    }
}

fn boxed<F>(function: F) -> *mut c_void {
    Box::into_raw(Box::new(function)).cast()
}

unsafe extern "C" fn call<F>(
    output: *mut mlx_vector_array,
    inputs: mlx_vector_array,
    payload: *mut c_void,
) -> i32
where
    F: Fn(&[Array]) -> Result<Vec<Array>> + 'static,
{
    // SAFETY: the payload is the boxed function, alive as long as its closure is; inputs and output are the caller's.
    unsafe {
        let function = &*payload.cast::<F>();
        answer(output, || function(&borrowed(inputs)?))
    }
}

unsafe extern "C" fn call_gradient<B>(
    output: *mut mlx_vector_array,
    inputs: mlx_vector_array,
    by_outputs: mlx_vector_array,
    outputs: mlx_vector_array,
    payload: *mut c_void,
) -> i32
where
    B: Fn(&[Array], &Array, &[Array]) -> Result<Vec<Array>> + 'static,
{
    // SAFETY: as in `call`.
    unsafe {
        let function = &*payload.cast::<B>();
        answer(output, || {
            let by_outputs = borrowed(by_outputs)?;
            let by_first = by_outputs.first().ok_or_else(|| Exception::custom("no gradient"))?;
            function(&borrowed(inputs)?, by_first, &borrowed(outputs)?)
        })
    }
}

/// # Safety
/// The caller of the function owns what is stored in `output`.
unsafe fn answer(output: *mut mlx_vector_array, work: impl FnOnce() -> Result<Vec<Array>>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(work));
    match result.unwrap_or_else(|_| Err(Exception::custom("a function panicked"))) {
        Ok(arrays) => {
            let vector = ManuallyDrop::new(Vector::of(&arrays));
            // SAFETY: the caller's promise.
            unsafe { *output = vector.0 };
            0
        }
        Err(failure) => {
            FAILURE.set(Some(failure));
            1
        }
    }
}

/// The arrays of a list that the caller keeps.
fn borrowed(list: mlx_vector_array) -> Result<Vec<Array>> {
    ManuallyDrop::new(Vector(list)).arrays()
}

unsafe extern "C" fn free<F>(payload: *mut c_void) {
    // SAFETY: boxed by `boxed`, freed once.
    drop(unsafe { Box::from_raw(payload.cast::<F>()) });
}

/// MLX's list of arrays.
struct Vector(mlx_vector_array);

impl Vector {
    fn of(arrays: &[Array]) -> Self {
        // SAFETY: the vector is fresh, and takes handles of its own on the arrays.
        unsafe {
            let vector = mlx_sys::mlx_vector_array_new();
            for array in arrays {
                mlx_sys::mlx_vector_array_append_value(vector, array.as_ptr());
            }
            Self(vector)
        }
    }

    fn arrays(&self) -> Result<Vec<Array>> {
        // SAFETY: the vector is alive.
        let count = unsafe { mlx_sys::mlx_vector_array_size(self.0) };
        let get = |i| {
            super::array::call("read a list of arrays", |result| {
                // SAFETY: as above, and `i` is less than its size.
                unsafe { mlx_sys::mlx_vector_array_get(result, self.0, i) }
            })
        };
        (0..count).map(get).collect()
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: made by `of` or by MLX for us, freed once.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}
