//! What tests of several crates share, and, in `tests/`, what only several crates together can show.

#[cfg(doctest)]
mod book;
pub mod checkpoint;
pub mod gguf_file;
