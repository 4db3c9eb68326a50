//! What computes the operations of a model here: our own kernels, or MLX.

use std::cell::Cell;

use crate::mlx::on_cpu;

/// Whether functions of our own compute here: on the CPU, while no gradient is traced, for they have none.
pub(crate) fn native() -> bool {
    !is_tracing() && on_cpu()
}

/// Whether graphs are built that gradients are taken of.
pub(crate) fn is_tracing() -> bool {
    TRACING.get()
}

/// Runs `work`, in which graphs are built that gradients are taken of: of MLX's own operations alone.
pub(crate) fn tracing<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRACING.set(self.0);
        }
    }
    let _restore = Restore(TRACING.replace(true));
    work()
}

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
mod tests {
    use mlx_rs::{Device, with_device};

    use super::*;

    #[test]
    fn nothing_of_ours_is_native_while_gradients_are_traced() {
        with_device(Device::cpu(), || {
            assert!(native());
            assert!(!tracing(native));
            assert!(native());
        });
    }
}
