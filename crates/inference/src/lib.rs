//! Load a language model from a folder and stream text out of it, whichever engine runs it.
//!
//! The folder has the published layout: `config.json`, safetensors files, `tokenizer.json`. [`load_model`] takes the first
//! engine that runs on this machine and supports the model; nothing else of a program changes when another one does.
//!
#![cfg_attr(feature = "metal", doc = "```")]
#![cfg_attr(not(feature = "metal"), doc = "```no_run")]
//! use futures::StreamExt as _;
//! use inference::{ChatEvent, GenerateOptions, Message, TextModelExt as _};
//!
//! # futures::executor::block_on(async {
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
//! let model = inference::load_model(folder).await?;
//!
//! let question = vec![Message::user("What is 2+2?")];
//! let mut answer = model.chat(question, GenerateOptions::new().max_tokens(64)).await?;
//! let mut text = String::new();
//! while let Some(event) = answer.next().await {
//!     if let ChatEvent::Text(piece) = event? {
//!         text.push_str(&piece); // a word, a part of one, or a character
//!     }
//! }
//! assert!(text.contains('4'));
//!
//! let finish = answer.finish().await?;
//! println!("{:?}, {:.1} tokens/s", finish.reason, finish.metrics.decode_tokens_per_second());
//! model.close().await
//! # }).unwrap();
//! ```
//!
//! | to | call |
//! | --- | --- |
//! | stream an answer's text, reasoning and tool calls | [`TextModelExt::chat`] |
//! | stream tokens | [`TextModel::generate`] with any [`Prompt`] |
//! | have it whole, or many at once | [`TextModelExt::complete`], [`TextModelExt::batch_generate`] |
//! | have reasoning and tool calls of any prompt | [`TokenStream::events`], [`Completion::answer`] |
//! | tokenize, decode and count | [`TextModel::tokenize`], [`TextModel::decode`], [`TextModelExt::count_tokens`] |
//! | have a value of a type of one's own | [`TextModelExt::extract`], [`TextModelExt::extract_stream`] |
//! | hold an answer to a JSON schema, a regular expression, a grammar | [`GenerateOptions::constraint`] |
//! | let a model call functions until it has its answer | [`agent`] |
//! | score labels in one forward pass | [`TextModel::classify`] |
//! | embed texts as vectors, or say how relevant documents are | [`TextModel::embed`], [`TextModel::rerank`] |
//! | choose the engine | `load_model(path).backend("cpu")`; [`explain`] says what each makes of a model |
//! | set how tokens are chosen | [`GenerateOptions`], whose setters say what each value means |
//! | stop an answer | [`GenerateOptions::cancel`] with a [`CancellationToken`], or drop the stream |
//! | find models on a disk | [`discover()`] |
//! | read what a folder says, and estimate its memory | [`manifest::ModelManifest`] |
//! | do any of it without async | [`blocking`] |
//!
//! # Engines
//!
//! | feature | registers | what it is |
//! | --- | --- | --- |
//! | `metal` (default) | `metal`, `cuda`, `cpu` | MLX in this process, on the devices that this machine has |
//! | `mlxlm` (default) | `mlx_lm` | Python's mlx_lm in a child process |
//! | `llamacpp` | `llama_cpp`, `rocm` | llama.cpp's llama-server in a child process, for GGUF files; `rocm` was never run |
//! | `mock` | `mock` | no model: repeats the prompt's words, for the tests of a program |
//!
//! With the feature `hub`, [`load_model`] takes names of models on the Hugging Face Hub as well, and `.download(true)` fetches
//! what is not in the cache.
//!
//! Options that only one engine has are in its module, `inference::metal`, `inference::mlxlm` or `inference::llamacpp`.
//!
//! An engine of your own is a crate that depends on `inference-core` alone and calls its `register_backend!`; a program that
//! names the crate (`use my_backend as _;`) has it in [`load_model`] with no further line.
//!
//! No async runtime is prescribed: every future here runs under any executor.
#![forbid(unsafe_code)]

pub mod agent;
pub mod blocking;
#[cfg(feature = "hub")]
mod load;

// A crate that no code names is not linked, and would register nothing.
#[cfg(feature = "llamacpp")]
pub use backend_llamacpp as llamacpp;
#[cfg(feature = "metal")]
pub use backend_metal as metal;
#[cfg(feature = "mlxlm")]
pub use backend_mlxlm as mlxlm;
#[doc(inline)]
#[cfg(feature = "mock")]
pub use inference_core::mock;
#[doc(inline)]
pub use inference_core::{
    Alternative, AssistantMessage, CancellationToken, ChatEvent, ChatStream, Classification, ClassifyOptions,
    Completion, Constraint, ConstraintState, ConstraintVocabulary, ContextOverflow, EmbedOptions, Embedding,
    EmbeddingFormat, EmbeddingVector, Error, ExtractStream, Feature, Finish, FinishReason, GenerateOptions,
    KvBits, LabelScore, LoadOptions, LoadProgress, LogitsProcessor, Message, Metrics, ModelInfo, ModelStats,
    Pooling, Prompt, Relevance, RerankOptions, Result, Role, SamplingOptions, Session, StopCause,
    TemplateOptions, TextModel, TextModelExt, TextProgress, Token, TokenConstraint, TokenMask, TokenStream,
    ToolCall, ToolChoice, Xtc, discover, explain, train,
};
#[doc(inline)]
#[cfg(not(feature = "hub"))]
pub use inference_core::{Load, load_model};
#[cfg(feature = "hub")]
pub use load::{Load, find_model, load_model};

/// Models of the Hugging Face Hub: found in its cache, or downloaded into it.
#[cfg(feature = "hub")]
pub mod hub {
    pub use inference_hub::*;
}

/// What a model's folder says, before anything is loaded: architecture, tensors, quantisation, sampling values, memory.
pub mod manifest {
    #[doc(inline)]
    pub use inference_core::{
        Dtype, GenerationConfig, LayerKind, MemoryEstimate, ModelManifest, QuantMode, Quantization, SidePart,
    };
}

/// Parts of [`Metrics`] and [`ModelStats`].
pub mod metrics {
    #[doc(inline)]
    pub use inference_core::{MemoryUsage, Percentiles};
}

/// Which engines there are, what each makes of a model, and where models were found.
pub mod registry {
    #[doc(inline)]
    pub use inference_core::{Discovered, Outcome, Registry, Verdict};
}
