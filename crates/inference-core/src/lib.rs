//! The contract between programs that use language models and engines that run them.
//!
//! A program asks [`load_model`] for a [`TextModel`] and streams tokens out of it; an engine implements [`Backend`] and
//! [`TextModel`] and registers itself at link time with [`register_backend!`]. Neither knows the other, and this crate
//! holds no engine: no MLX, no Python, no network, no runtime. It works under any async executor.
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
mod backend;
mod capabilities;
mod chat;
mod checked;
mod classify;
mod discover;
mod error;
mod files;
mod manifest;
mod metrics;
#[cfg(feature = "mock")]
pub mod mock;
mod model;
mod off_thread;
mod options;
mod prompt;
mod registry;
mod safetensors;
mod session;
mod session_file;
mod stream;
mod system;
mod train;

pub use adapter::{ADAPTER_FILE, AdaptedLayer, AdapterConfig, AdapterManifest};
pub use backend::{Backend, BackendInfo, MemoryControl, MemoryLimits, Support};
pub use capabilities::{Capabilities, Feature};
pub use chat::{Answer, AnswerReader, ChatEvent, ChatStream, ToolCall};
pub use checked::CheckedModel;
pub use classify::{Classification, LabelScore};
pub use discover::{Discover, Discovered, discover};
pub use error::{Error, Printable, Result, Source};
pub use files::{read_json, read_regular};
pub use manifest::{MemoryEstimate, ModelManifest};
pub use metrics::{MemoryUsage, Metrics, ModelStats, Percentiles};
pub use model::{Completion, ModelInfo, Quantization, TextModel, TextModelExt};
pub use off_thread::off_thread;
pub use options::{
    ClassifyOptions, ContextOverflow, DEFAULT_MAX_TOKENS, DEFAULT_PENALTY_WINDOW, Extensions,
    GenerateOptions, KvBits, LoadOptions, LoadProgress, LogitsProcessor, Processor, Progress,
    SamplingOptions, TemplateOptions, Xtc,
};
pub use prompt::{Message, Prompt, Role};
pub use registry::{Availability, BackendDescriptor, Load, Outcome, Registry, Verdict, explain, load_model};
pub use safetensors::{Dtype, TensorInfo, read_tensors};
pub use session::{Session, SessionEngine};
pub use session_file::{SessionFile, SessionTensor};
pub use stream::{Alternative, Finish, FinishReason, StopCause, Token, TokenSink, TokenStream};
pub use system::free_memory;
pub use tokio_util::sync::CancellationToken;
pub use train::{
    AdapterDtype, AdapterOptions, Batches, Content, Example, FullOptions, Learn, Method, Optimizer, Origin,
    Schedule, TokenExample, TooLong, TrainEnd, TrainEvent, TrainLength, TrainMemory, TrainOptions, TrainPlan,
    TrainState, TrainStream, Trainable, TrainingData,
};

#[doc(hidden)]
pub use inventory as __inventory;
