//! Compiles every code block of the README and the book, as documentation tests.

#[doc = include_str!("../../README.md")]
mod readme {}

#[doc = include_str!("../../docs/src/using.md")]
mod using {}

#[doc = include_str!("../../docs/src/serving.md")]
mod serving {}

#[doc = include_str!("../../docs/src/training.md")]
mod training {}
