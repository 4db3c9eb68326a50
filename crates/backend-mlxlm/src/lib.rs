//! Drives Python's `mlx_lm` in a child process.
