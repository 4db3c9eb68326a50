//! This crate has no code: its build script says how to link MLX's published wheel, if the program does not. See the README.
