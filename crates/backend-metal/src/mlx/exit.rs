//! What is done before the process takes down MLX's static objects.

/// Has the C library call `function` when the process ends. Handlers run in the reverse order of registration.
pub(crate) fn at_exit(function: extern "C" fn()) {
    // SAFETY: a function lives as long as the program, and one with this interface does not unwind: a panic aborts.
    unsafe { libc::atexit(function) };
}
