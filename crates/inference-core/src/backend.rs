//! What an engine implements, and the helpers it implements it with. Programs that only call models need none of this.
//!
//! - **The contract**: [`Backend`], [`TextModel`](crate::TextModel), [`SessionEngine`],
//!   [`Trainable`](crate::train::Trainable). [`CheckedModel`] stands in front of every model and refuses what the
//!   backend's [`Capabilities`] lack.
//! - **Registration**: [`BackendDescriptor`], [`register_backend!`](crate::register_backend).
//! - **Streams**: [`ResponseWriter`] turns the tokens that an engine chooses into a [`TokenStream`](crate::TokenStream): text,
//!   stop conditions, metrics, totals. Its parts are [`Detokenize`], [`StreamDecoder`], [`StopStrings`], [`SharedStats`] and
//!   [`TokenSink`]. [`OutputParser`] separates reasoning and tool calls from the text.
//! - **Sampling**: [`uniform`] draws by seed and step; [`ConstraintRun`] and [`Processor`] run callers' code.
//! - **Files**: [`TensorInfo`], [`read_tensors`], [`read_json`], [`read_value`], [`read_regular`] and [`open_regular`] trust nothing in a
//!   folder; [`TensorSource`] computes tensors that are stored in another form; [`ModelFiles`] has a model's text files, also those
//!   that a GGUF file stands for; [`AdapterManifest`] and [`SessionFile`] are the formats of adapters and saved sessions.
//! - **Embeddings**: [`EmbeddingConfig`] is what a folder says about them.
//! - **Training**: [`Batches`], [`TrainState`].
//! - **Work that blocks**: [`spawn_blocking`].

pub use async_trait::async_trait;

pub use crate::{
    adapter::{ADAPTER_FILE, AdaptedLayer, AdapterConfig, AdapterManifest},
    capabilities::Capabilities,
    chat::OutputParser,
    checked::CheckedModel,
    constraint::ConstraintRun,
    discover::Discover,
    embedding_config::{DenseActivation, DenseConfig, EmbeddingConfig},
    engine::{Backend, BackendInfo, MemoryControl, MemoryLimits, Support},
    error::BoxError,
    files::{open_regular, read_json, read_regular, read_value},
    model_files::ModelFiles,
    options::{DEFAULT_MAX_TOKENS, DEFAULT_PENALTY_WINDOW, Extensions, Processor, Progress, TextObserver},
    printable::Printable,
    register_backend,
    registry::{Availability, BackendDescriptor},
    response::{
        Detokenize, ResponseWriter, SharedStats, StopPosition, StopStrings, StreamDecoder, Verbatim, uniform,
    },
    safetensors::{TensorInfo, read_tensors},
    session::SessionEngine,
    session_file::{SessionFile, SessionTensor},
    spawn_blocking::spawn_blocking,
    stream::TokenSink,
    system::free_memory,
    tensor_source::{ReadAt, TensorSource},
    train::{batches::Batches, checkpoint::TrainState},
};
