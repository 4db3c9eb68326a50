//! For tests that count the operations of a graph as on a GPU, and build it on the CPU: stand-ins for what is one operation there, and
//! a counter.

use std::{cell::Cell, ffi::c_void};

use mlx_rs::{Array, error::Result};

use super::primitive::{Shape, primitive, primitive_one};

/// What is pretended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pretence {
    /// MLX's fused operations are one each.
    Gpu,
    /// So are our kernels for CUDA, which are then in use.
    Cuda,
}

thread_local! {
    static PRETENCE: Cell<Option<Pretence>> = const { Cell::new(None) };
}

impl Pretence {
    /// Builds with stand-ins. What is computed means nothing.
    pub(crate) fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Pretence>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PRETENCE.set(self.0);
            }
        }
        let _restore = Restore(PRETENCE.replace(Some(self)));
        work()
    }

    pub(crate) fn current() -> Option<Self> {
        PRETENCE.get()
    }
}

/// One operation with an output like `x`, where stand-ins are wanted.
pub(super) fn of(x: &Array, others: &[Option<&Array>]) -> Option<Result<Array>> {
    Pretence::current()?;
    let inputs: Vec<&Array> = std::iter::once(x).chain(others.iter().flatten().copied()).collect();
    Some(primitive_one(c"stand_in", &inputs, x.shape(), x.dtype(), |_, _| Ok(())))
}

/// One operation with these outputs, where stand-ins for kernels of CUDA are wanted.
pub(super) fn of_kernel<const N: usize>(
    inputs: &[&Array],
    outputs: [(&[i32], mlx_rs::Dtype); N],
) -> Option<Result<[Array; N]>> {
    if Pretence::current() != Some(Pretence::Cuda) {
        return None;
    }
    let shapes = outputs.map(|(sizes, dtype)| Shape { sizes, dtype, donor: None });
    Some(primitive(c"stand_in", inputs, shapes, |_, _| Ok(())))
}

/// The operations that MLX would do to compute these arrays.
pub(crate) fn count_operations(arrays: &[&Array]) -> usize {
    // SAFETY: the file, the list and the names are made, used and freed here; the buffer is as long as is said.
    unsafe {
        let file = libc::tmpfile();
        assert!(!file.is_null(), "no temporary file");
        let list = mlx_sys::mlx_vector_array_new();
        for array in arrays {
            mlx_sys::mlx_vector_array_append_value(list, array.as_ptr());
        }
        let names = mlx_sys::mlx_node_namer_new();
        assert_eq!(mlx_sys::mlx_export_to_dot(file.cast(), names, list), 0);
        mlx_sys::mlx_node_namer_free(names);
        mlx_sys::mlx_vector_array_free(list);
        libc::fflush(file);
        let length = libc::ftell(file).max(0) as usize;
        libc::rewind(file);
        let mut text = vec![0_u8; length];
        let read = libc::fread(text.as_mut_ptr().cast::<c_void>(), 1, length, file);
        libc::fclose(file);
        // Operations are rectangles.
        String::from_utf8_lossy(&text[..read]).matches("shape=rectangle").count()
    }
}
