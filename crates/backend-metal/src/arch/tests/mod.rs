//! The families, tried on small checkpoints.

mod bindings;
mod conversion;
mod fixtures;
mod golden;
mod hostile;
mod training;
