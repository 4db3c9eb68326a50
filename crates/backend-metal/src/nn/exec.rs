//! Execution mode: what computes the operations of a model.

use std::cell::Cell;

use crate::mlx;

/// What computes. The scheduler and a training step set it once, with [`scope`](Self::scope); operations read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExecMode {
    /// MLX's operations alone: always on a GPU, and on the CPU on request.
    Mlx,
    /// The same, in graphs that gradients are taken of.
    MlxDifferentiable,
    /// The kernels of `cpu-kernels`, and MLX's operations where those lack a type or shape.
    CpuKernels,
    /// The same, in graphs that gradients are taken of: only kernels that have a gradient.
    CpuKernelsDifferentiable,
}

/// What is known while a mode is in scope.
#[derive(Debug, Clone, Copy)]
struct Context {
    mode: ExecMode,
    on_cpu: bool,
}

thread_local! {
    static CONTEXT: Cell<Option<Context>> = const { Cell::new(None) };
}

impl ExecMode {
    /// The mode of the stream in scope: `disable_cpu_kernels` selects [`Mlx`](Self::Mlx) on the CPU, too.
    pub(crate) fn select(disable_cpu_kernels: bool) -> Self {
        if disable_cpu_kernels || !mlx::on_cpu() { Self::Mlx } else { Self::CpuKernels }
    }

    /// The mode in scope. Outside of any scope it is what [`select`](Self::select) gives for the stream.
    pub(crate) fn current() -> Self {
        CONTEXT.get().map_or_else(|| Self::select(false), |context| context.mode)
    }

    /// This mode, in graphs that gradients are taken of.
    pub(crate) fn differentiable(self) -> Self {
        match self {
            Self::Mlx | Self::MlxDifferentiable => Self::MlxDifferentiable,
            Self::CpuKernels | Self::CpuKernelsDifferentiable => Self::CpuKernelsDifferentiable,
        }
    }

    /// Whether MLX's operations compute, and no kernels of `cpu-kernels`.
    pub(crate) fn is_mlx(self) -> bool {
        matches!(self, Self::Mlx | Self::MlxDifferentiable)
    }

    /// Whether gradients are taken of the graphs.
    pub(crate) fn is_differentiable(self) -> bool {
        matches!(self, Self::MlxDifferentiable | Self::CpuKernelsDifferentiable)
    }

    /// Runs `work` in this mode, on the stream in scope.
    pub(crate) fn scope<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Context>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CONTEXT.set(self.0);
            }
        }
        let on_cpu = mlx::on_cpu();
        debug_assert!(on_cpu || self.is_mlx(), "the CPU's kernels need a stream of the CPU");
        let _restore = Restore(CONTEXT.replace(Some(Context { mode: self, on_cpu })));
        work()
    }
}

/// Whether arrays are computed on the CPU here. Inside a scope it costs nothing to ask.
pub(crate) fn on_cpu() -> bool {
    CONTEXT.get().map_or_else(mlx::on_cpu, |context| context.on_cpu)
}

/// Whether MLX's CUDA build computes here.
pub(crate) fn on_cuda() -> bool {
    cfg!(target_os = "linux") && !on_cpu()
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, with_device};

    use super::*;

    #[test]
    fn a_scope_sets_the_mode_and_restores_the_one_before() {
        with_device(Device::cpu(), || {
            assert_eq!(ExecMode::current(), ExecMode::CpuKernels);
            ExecMode::select(true).scope(|| {
                assert_eq!(ExecMode::current(), ExecMode::Mlx);
                let differentiable = ExecMode::current().differentiable();
                differentiable.scope(|| assert_eq!(ExecMode::current(), ExecMode::MlxDifferentiable));
                assert_eq!(ExecMode::current(), ExecMode::Mlx);
            });
            assert_eq!(ExecMode::current(), ExecMode::CpuKernels);
            assert_eq!(ExecMode::CpuKernels.differentiable(), ExecMode::CpuKernelsDifferentiable);
        });
    }
}
