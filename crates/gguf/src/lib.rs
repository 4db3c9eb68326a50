//! GGUF files: read without trusting them, and shown as the model folders that Hugging Face publishes.
//!
//! - [`Header`]: metadata and the places of tensors, from the beginning of a file.
//! - [`TensorType`]: the block formats. [`TensorType::dequantize`] gives their elements; [`TensorType::packing`] says in which form
//!   of MLX's they can be kept without loss, and [`Groups`] gives that form.
//! - [`hf`]: config.json, tensor names, tokenizer.json and the chat template of a model.
//!
//! Only data is read: opening files, with all that can be wrong about them, is the caller's.
#![forbid(unsafe_code)]

mod affine;
mod blocks;
mod dequantize;
mod error;
mod header;
pub mod hf;
mod metadata;
mod parse;

pub use affine::{Groups, Packing, mxfp4_codes, mxfp4_scales};
pub use blocks::TensorType;
pub use error::{Error, Result};
pub use header::{Header, MAGIC, Tensor};
pub use metadata::{Array, Metadata, Strings, Value};
