//! Models of the Hugging Face Hub by name: found in its cache, or downloaded into it.
//!
//! The cache has the layout of Python's `huggingface_hub`, and is shared with it: `models--org--name` holds `blobs` by
//! checksum, `snapshots` of links to them by commit, and `refs` that name commits.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod blob;
mod cache;
mod client;
mod error;
mod files;
mod hub;
mod name;
mod retry;

pub use self::{
    cache::CachedModel,
    error::{HubError, Result},
    hub::{Hub, PullOptions, PullProgress},
    name::ModelName,
};
