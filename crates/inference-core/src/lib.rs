//! The contract between programs that use language models and engines that run them.
//!
//! A program calls [`load_model`] for a [`TextModel`] and streams tokens from it. An engine implements
//! [`Backend`](backend::Backend) and [`TextModel`], and registers itself at link time with [`register_backend!`]. Neither
//! knows the other. This crate holds no engine: no MLX, no Python, no network, no runtime. It works under any async executor.
//!
//! - The crate root has what a program calls.
//! - [`train`] has what a program needs to fine-tune a model.
//! - [`backend`] has what an engine implements, and the helpers it implements it with.
//!
//! ```
//! use futures::StreamExt as _;
//! use inference_core::{GenerateOptions, Prompt, Registry, TextModel as _, mock};
//!
//! # let folder = mock::folder();
//! # let path = folder.path();
//! # futures::executor::block_on(async {
//! // In a program: `inference::load_model(path).await?`.
//! let model = Registry::empty().with(mock::DESCRIPTOR).load_model(path).backend("mock").await?;
//!
//! let mut stream = model.generate(Prompt::from("one two three"), GenerateOptions::new().max_tokens(2)).await?;
//! let mut text = String::new();
//! while let Some(token) = stream.next().await {
//!     text.push_str(&token?.text);
//! }
//! assert_eq!(text, " two three");
//! assert_eq!(stream.finish().await?.metrics.generated_tokens, 2);
//! # Ok::<(), inference_core::Error>(()) }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod adapter;
pub mod backend;
mod capabilities;
mod chat;
mod chat_stream;
mod checked;
mod classify;
mod completion;
mod constraint;
mod discover;
mod embedding;
mod embedding_config;
mod engine;
mod error;
mod extract;
mod files;
mod finish;
mod manifest;
mod metrics;
#[cfg(feature = "mock")]
pub mod mock;
mod model;
mod model_files;
mod model_info;
mod options;
mod partial_json;
mod printable;
mod prompt;
mod registry;
mod request;
mod response;
mod safetensors;
mod session;
mod session_file;
mod spawn_blocking;
mod stream;
mod system;
mod tensor_source;
mod token;
mod tool_call;
pub mod train;
mod verdict;

pub use capabilities::Feature;
pub use chat::{AssistantMessage, ChatEvent};
pub use chat_stream::ChatStream;
pub use classify::{Classification, LabelScore};
pub use completion::Completion;
pub use constraint::{
    Constraint, ConstraintState, ConstraintVocabulary, CustomConstraint, TokenConstraint, TokenMask,
};
pub use discover::{Discovered, discover};
pub use embedding::{Embedding, EmbeddingVector, Relevance};
pub use error::{Error, Result};
pub use extract::{ExtractStream, schema_of};
pub use finish::{Finish, FinishReason, StopCause};
pub use manifest::{
    GenerationConfig, LayerKind, MemoryEstimate, ModelManifest, QuantMode, Quantization, SidePart,
};
pub use metrics::{MemoryUsage, Metrics, ModelStats, Percentiles};
pub use model::{TextModel, TextModelExt};
pub use model_info::ModelInfo;
pub use options::{
    ClassifyOptions, ContextOverflow, EmbedOptions, EmbeddingFormat, GenerateOptions, KvBits, LoadOptions,
    LoadProgress, LogitsProcessor, Pooling, RerankOptions, SamplingOptions, TemplateOptions, TextProgress,
    ToolChoice, Xtc,
};
pub use prompt::{Message, Prompt, Role};
pub use registry::{Load, Registry, explain, load_model};
pub use safetensors::Dtype;
pub use session::Session;
pub use stream::TokenStream;
pub use token::{Alternative, Token};
pub use tokio_util::sync::CancellationToken;
pub use tool_call::ToolCall;
pub use verdict::{Outcome, Verdict};

#[doc(hidden)]
pub use inventory as __inventory;
