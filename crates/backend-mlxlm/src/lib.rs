//! Python's [mlx_lm](https://github.com/ml-explore/mlx-lm) as a backend: each model runs in a child process, which a crash, a
//! hang or an exhausted memory costs one typed error and not the program.
//!
//! The text is made on this side: tokenizer, chat template and detokenizer are those of every other backend
//! ([`inference_text`]), so that the same ids give the same text. The child gets ids and gives ids. It batches concurrent
//! requests with mlx_lm's `BatchGenerator`.
//!
//! # The interpreter
//!
//! The first of these that is set is used: [`MlxLmOptions::python`] of the load, [`use_python`] of the process, the
//! environment's `INFERENCE_PYTHON`. Else it is the first that has mlx_lm of: the active virtual environment
//! (`VIRTUAL_ENV`, `CONDA_PREFIX`), `python3` on `PATH`. The probe asks an interpreter once in the life of the process, by
//! a run of some 50 ms that imports neither mlx_lm nor MLX and is killed after 20 s.
//!
//! # After a crash
//!
//! Running calls fail with [`Error::Stopped`](inference_core::Error::Stopped), which has the signal or exit code and the
//! child's last lines on stderr; what text there was is delivered first. The next call starts a new child and loads the
//! model again, unless [`MlxLmOptions::restart`] says otherwise.
//!
//! # A slow reader
//!
//! The child sends at most 128 tokens that were not asked for: a generation whose reader is behind stops there, and costs
//! nothing until it goes on. While other rows are decoded it runs along with them, because a row of a batch cannot stand
//! still; its tokens, `max_tokens` at most, then wait on this side. So an unread stream blocks no other
//! request.
//!
//! # Requirements
//!
//! Unix, and an interpreter with `mlx-lm` 0.32. A program that resets `SIGPIPE` to its default dies with a child that
//! crashes while it is being written to; Rust's own setting, which ignores the signal, is right.
#![forbid(unsafe_code)]

mod backend;
mod client;
mod config;
mod failure;
mod generation;
mod interpreter;
mod launch;
mod model;
mod options;
mod protocol;

pub use backend::{DESCRIPTOR, MlxLmBackend};
pub use interpreter::use_python;
pub use options::MlxLmOptions;

/// The backend's id.
pub const ID: &str = "mlx_lm";
