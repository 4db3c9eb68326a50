//! The families, tried on small checkpoints.

mod batches;
mod bindings;
mod conversion;
mod cuda;
mod fields;
mod fixtures;
mod golden;
mod heads;
mod hostile;
mod nodes;
mod readme;
mod training;
