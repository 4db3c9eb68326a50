//! llama.cpp's [llama-server](https://github.com/ggml-org/llama.cpp) as a backend: each model runs in a child process, which a crash, a
//! hang or an exhausted memory costs one typed error and not the program. Models are GGUF files.
//!
//! The text is made on this side: tokenizer, chat template and detokenizer are those of every other backend
//! ([`inference_text`]), so that the same ids give the same text. The child gets ids and gives ids.
//!
//! # The program
//!
//! The first of these that is set is used: [`LlamaCppOptions::server`] of the load, [`use_server`] of the process, the environment's
//! `LLAMA_SERVER`, `llama-server` on `PATH`. It is asked for its version, its options and its devices once in the life of the process.
//!
//! # The child
//!
//! It listens at a Unix socket in a temporary folder that only the user can enter, and answers only who knows a random key. It ends
//! with its parent, however that comes. Variables `LLAMA_ARG_…` of the environment, which are llama-server's defaults, do not reach it:
//! what a model is loaded with is what its options say.
//!
//! Each model has a number of slots, which [`LoadOptions::max_batch`](inference_core::LoadOptions::max_batch) sets (else four, or fewer
//! where memory is short): texts that are decoded at once. Each slot has the memory for a whole context, set aside at the load.
//! A request takes the free slot that holds the longest beginning of its text; more requests wait.
//!
//! # What is not llama.cpp's own
//!
//! - **Stop strings, stop tokens, the end of a text**: the contract's, on this side. llama.cpp ends texts at ids that a model's files do
//!   not name; such a text goes on with a further request.
//! - **A minimum of tokens**: a request that bans the ends, and one that goes on.
//! - **Constraints**: the matcher of every other engine ([`inference_text`]), and not the server's grammars, which differ. Where it leaves
//!   most tokens, the server goes on alone until it chooses one that is not allowed; that one is drawn anew with the mask as a logit
//!   bias. Where it leaves few, each token is a request. With top-p, min-p, XTC or top-k, which come after the mask, each always is.
//! - **Tokens that end inside a character**: llama-server's stream leaves them out. Their ids are told from the
//!   character's bytes, or else the answer is computed again without a stream.
//!
//! # What is refused
//!
//! Features that [`Capabilities`](inference_core::backend::Capabilities) lack, by the core; and log-probabilities together with a logit
//! bias, penalties or a constraint, because llama-server reports the model's own, before those.
//!
//! # Embeddings
//!
//! A file of an encoder, one that names its pooling, and one that is loaded with [`LlamaCppOptions::pooling`] is loaded for embeddings,
//! and for them alone. llama-server pools by the mean, the first or the last token, as it was started; another pooling is refused. A
//! GGUF file has no prefixes, and no limit on tokens but the context.
//!
//! Reranking is refused: llama.cpp gives the tokens of query and document one type, where models that score pairs were trained on two.
//!
//! # Adapters
//!
//! LoRA adapters in GGUF, by [`LlamaCppOptions::lora`]. Those in mlx_lm's format, of
//! [`LoadOptions::adapter`](inference_core::LoadOptions::adapter), are refused: llama.cpp's convert_lora_to_gguf.py makes GGUF of adapters
//! in the format of peft.
//!
//! # A slow reader
//!
//! A slot goes on whether its tokens are read or not: an unread stream holds its slot until its answer is complete, and no other
//! request's.
//!
//! # ROCm
//!
//! `rocm` is the same engine where there is an AMD GPU and a llama-server that was built with HIP. It was never run: there was no such
//! machine. Its probe and its list of devices are tested on files made after the documented formats.
#![forbid(unsafe_code)]

mod adapter;
mod backend;
mod classify;
mod client;
mod command;
mod config;
mod embedding;
mod events;
mod failure;
mod gap;
mod generation;
mod http;
mod inner;
mod model;
mod next_token;
mod options;
mod protocol;
mod rocm;
mod sampling;
mod server;
mod session;
mod shape;
mod slots;
mod turn;

pub use backend::{DESCRIPTOR, LlamaCppBackend, ROCM_DESCRIPTOR};
pub use options::LlamaCppOptions;
pub use server::use_server;

/// The backend's id.
pub const ID: &str = "llama_cpp";

/// The id of the backend on AMD GPUs.
pub const ROCM_ID: &str = "rocm";
