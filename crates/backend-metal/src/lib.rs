//! The MLX engine: Metal on Apple silicon, CUDA and CPU on Linux.
