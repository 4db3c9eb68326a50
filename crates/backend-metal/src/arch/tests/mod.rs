//! The families, tried on small checkpoints.

mod fixtures;
mod golden;
mod hostile;
