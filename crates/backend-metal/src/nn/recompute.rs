//! Gradient checkpointing: what lies between the inputs and the output of a function is not kept for the backward pass, but
//! computed a second time (Chen et al. 2016, arXiv 1604.06174).

use std::{
    cell::RefCell,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
};

use mlx_rs::{
    Array,
    error::{Exception, Result},
};

thread_local! {
    /// Why a function failed: MLX, through which it is called, passes on only that it did.
    static FAILURE: RefCell<Option<Exception>> = const { RefCell::new(None) };
}

/// The failure of a function given to [`recomputed`] since this was last called on this thread.
pub(crate) fn take_failure() -> Option<Exception> {
    FAILURE.take()
}

/// `function(inputs)`, which is called again where its gradient is taken. It may depend on traced arrays through `inputs`
/// alone, and it lives as long as the graph.
pub(crate) fn recomputed<F>(inputs: &[Array], function: F) -> Result<Array>
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
{
    let inputs = Vector::of(inputs);
    let mut output = Vector::of(&[]);
    // SAFETY: the payload is freed by `free`, once, when the last owner of the closure goes, which may be the graph; the
    // handles made here are freed here.
    let status = unsafe {
        let payload = Box::into_raw(Box::new(function)).cast();
        let closure = mlx_sys::mlx_closure_new_func_payload(Some(call::<F>), payload, Some(free::<F>));
        let mut checkpointed = mlx_sys::mlx_closure_new();
        let mut status = mlx_sys::mlx_checkpoint(&raw mut checkpointed, closure);
        if status == 0 {
            status = mlx_sys::mlx_closure_apply(&raw mut output.0, checkpointed, inputs.0);
        }
        mlx_sys::mlx_closure_free(checkpointed);
        mlx_sys::mlx_closure_free(closure);
        status
    };
    if status != 0 {
        return Err(take_failure().unwrap_or_else(|| Exception::custom("a checkpointed function failed")));
    }
    output.arrays()?.pop().ok_or_else(|| Exception::custom("a checkpointed function gave nothing"))
}

unsafe extern "C" fn call<F>(
    output: *mut mlx_sys::mlx_vector_array,
    inputs: mlx_sys::mlx_vector_array,
    payload: *mut c_void,
) -> i32
where
    F: Fn(&[Array]) -> Result<Array> + 'static,
{
    let result = catch_unwind(AssertUnwindSafe(|| {
        // The caller's, who frees it.
        let inputs = std::mem::ManuallyDrop::new(Vector(inputs));
        // SAFETY: the payload is the boxed function, alive as long as its closure is.
        let function = unsafe { &*payload.cast::<F>() };
        function(&inputs.arrays()?)
    }));
    match result.unwrap_or_else(|_| Err(Exception::custom("a checkpointed function panicked"))) {
        Ok(array) => {
            let vector = std::mem::ManuallyDrop::new(Vector::of(&[array]));
            // SAFETY: the caller owns what is stored here.
            unsafe { *output = vector.0 };
            0
        }
        Err(failure) => {
            FAILURE.set(Some(failure));
            1
        }
    }
}

unsafe extern "C" fn free<F>(payload: *mut c_void) {
    // SAFETY: boxed by `recomputed`, freed once.
    drop(unsafe { Box::from_raw(payload.cast::<F>()) });
}

/// MLX's list of arrays.
struct Vector(mlx_sys::mlx_vector_array);

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
            super::ops::call("read a list of arrays", |result| {
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
