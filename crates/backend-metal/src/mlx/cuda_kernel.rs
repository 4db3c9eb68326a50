//! Kernels of our own in MLX's graph on CUDA: MLX compiles them when they first run, and keeps what it compiled on disk.

use std::{ffi::CStr, ptr, sync::OnceLock};

use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
};

/// A kernel: the body of a function in CUDA C++, whose parameters are pointers with the names of inputs and outputs.
#[derive(Debug)]
pub(super) struct CudaKernel {
    name: &'static CStr,
    inputs: &'static [&'static CStr],
    outputs: &'static [&'static CStr],
    source: &'static CStr,
    /// What stands before the function.
    header: &'static CStr,
    handle: OnceLock<Option<Handle>>,
}

/// A constant of a kernel. Each combination of constants is compiled by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Constant {
    Type(Dtype),
    Int(i32),
    Bool(bool),
    /// A number in single precision, as the whole number with the same bits. Constants are part of the kernel's name, where a sign
    /// has no place: no number may be negative.
    Bits(f32),
}

/// One call of a kernel.
#[derive(Debug)]
pub(super) struct Call<'a, const N: usize> {
    pub(super) inputs: &'a [&'a Array],
    /// Shape and type of each output.
    pub(super) outputs: [(&'a [i32], Dtype); N],
    pub(super) constants: &'a [(&'static CStr, Constant)],
    pub(super) blocks: usize,
    /// Threads of a block.
    pub(super) threads: usize,
}

#[derive(Debug)]
struct Handle(mlx_sys::mlx_fast_cuda_kernel);

// SAFETY: it is a function object of MLX that is only called, and holds nothing but text.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl CudaKernel {
    /// The kernel with this body.
    pub(super) const fn new(
        name: &'static CStr,
        inputs: &'static [&'static CStr],
        outputs: &'static [&'static CStr],
        source: &'static CStr,
        header: &'static CStr,
    ) -> Self {
        Self { name, inputs, outputs, source, header, handle: OnceLock::new() }
    }

    /// Adds a run of the kernel to the graph, on the stream in scope, which must be on CUDA. Inputs are made row-major first.
    ///
    /// # Safety
    /// With these constants, blocks and threads, the kernel reads and writes nothing beyond arrays of these shapes and types.
    ///
    /// # Errors
    /// MLX has no CUDA, or there are too many blocks. What the compiler says comes when an output is evaluated.
    pub(super) unsafe fn call<const N: usize>(&self, call: &Call<'_, N>) -> Result<[Array; N]> {
        let failed = |what: &str| Exception::custom(format!("{}: {what}", self.name.to_string_lossy()));
        if call.inputs.len() != self.inputs.len() || N != self.outputs.len() {
            return Err(failed("called with another number of arrays"));
        }
        #[cfg(test)]
        if let Some(outputs) = super::stand_in::of_kernel(call.inputs, call.outputs) {
            return outputs;
        }
        let handle = self.handle.get_or_init(|| self.make());
        let Some(handle) = handle else { return Err(failed("MLX makes no kernels for CUDA here")) };
        let threads = i32::try_from(call.blocks.saturating_mul(call.threads));
        let threads = threads.map_err(|_| failed("more threads than MLX can count"))?;
        let stream = Stream::thread_local_or_default();
        // SAFETY: all objects are made, used and freed here; arrays, texts and shapes live through the calls.
        unsafe {
            let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
            for (shape, dtype) in call.outputs {
                mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                    config,
                    shape.as_ptr(),
                    shape.len(),
                    dtype.into(),
                );
            }
            mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, threads, 1, 1);
            mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, call.threads as i32, 1, 1);
            for (name, constant) in call.constants {
                constant.add_to(config, name);
            }
            let inputs = mlx_sys::mlx_vector_array_new();
            for input in call.inputs {
                mlx_sys::mlx_vector_array_append_value(inputs, input.as_ptr());
            }
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let status = mlx_sys::mlx_fast_cuda_kernel_apply(
                &raw mut outputs,
                handle.0,
                inputs,
                config,
                stream.as_ref().as_ptr(),
            );
            let mut results = Vec::with_capacity(N);
            if status == 0 {
                for index in 0..N {
                    let mut result = mlx_sys::mlx_array { ctx: ptr::null_mut() };
                    if mlx_sys::mlx_vector_array_get(&raw mut result, outputs, index) == 0 {
                        results.push(Array::from_ptr(result));
                    }
                }
            }
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_vector_array_free(outputs);
            mlx_sys::mlx_fast_cuda_kernel_config_free(config);
            results.try_into().map_err(|_| failed("MLX refused the call"))
        }
    }

    /// `None` where the linked MLX has no CUDA.
    fn make(&self) -> Option<Handle> {
        // SAFETY: the lists are made, filled, read and freed here, and all texts are static.
        let kernel = unsafe {
            let names = |names: &[&CStr]| {
                let list = mlx_sys::mlx_vector_string_new();
                for name in names {
                    mlx_sys::mlx_vector_string_append_value(list, name.as_ptr());
                }
                list
            };
            let (inputs, outputs) = (names(self.inputs), names(self.outputs));
            let (source, header) = (self.source.as_ptr(), self.header.as_ptr());
            let kernel = mlx_sys::mlx_fast_cuda_kernel_new(
                self.name.as_ptr(),
                inputs,
                outputs,
                source,
                header,
                true,
                0,
            );
            mlx_sys::mlx_vector_string_free(inputs);
            mlx_sys::mlx_vector_string_free(outputs);
            kernel
        };
        (!kernel.ctx.is_null()).then_some(Handle(kernel))
    }
}

impl Constant {
    /// # Safety
    /// The configuration is alive.
    unsafe fn add_to(self, config: mlx_sys::mlx_fast_cuda_kernel_config, name: &CStr) {
        let name = name.as_ptr();
        // SAFETY: the caller's, and the name is a text.
        unsafe {
            match self {
                Self::Type(dtype) => {
                    mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(config, name, dtype.into())
                }
                Self::Int(value) => {
                    mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(config, name, value)
                }
                Self::Bool(value) => {
                    mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_bool(config, name, value)
                }
                Self::Bits(value) => mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(
                    config,
                    name,
                    value.to_bits() as i32,
                ),
            };
        }
    }
}
