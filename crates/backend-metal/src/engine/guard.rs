//! Work that may fail or panic in MLX, contained.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use inference_core::Error;
use mlx_rs::error::Result;

/// Runs work that may fail or panic in MLX: either is an error of the requests at hand.
pub(super) fn guard<T>(
    backend: &'static str,
    action: &'static str,
    work: impl FnOnce() -> Result<T>,
) -> inference_core::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(exception)) => Err(Error::backend(backend, action, exception)),
        Err(panic) => {
            Err(Error::backend(backend, action, format!("panicked: {}", panic_text(panic.as_ref()))))
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
