//! The families, tried on small checkpoints.

mod bindings;
mod fixtures;
mod golden;
mod hostile;
