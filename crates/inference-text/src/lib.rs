//! What any native engine needs around a model: tokenizer, incremental detokenizer, chat templates and output parsers.
//!
//! - [`TextPipeline`] is the text side of a model's folder: prompts to ids, ids to text. Its parts:
//! - [`Tokenizer`] reads a model folder's tokenizer and knows its special and end-of-sequence tokens.
//! - [`TokenData`] is the result of [`TextPipeline::encode_training`]: training examples as tokens.
//! - [`Detokenizer`] turns generated ids into text one at a time, and holds incomplete characters back.
//!   [`TextPipeline::response`] gives it to a [`ResponseWriter`](inference_core::backend::ResponseWriter), which does the
//!   rest of the bookkeeping for an engine.
//! - [`ChatTemplate`] renders a conversation the way the model was trained on it.
//! - [`AnswerParser`] separates text, reasoning and tool calls in what the model generates, by the [`AnswerFormat`] of its
//!   family. [`TextPipeline::constraint`] holds an answer to a shape. [`ChatOutputParser`] does it for a stream, [`ThinkingBudget`] for an engine that limits reasoning.
//!
//! Nothing in a model folder is trusted: files are bounded, a hostile tokenizer or template is an error and neither a
//! panic nor an endless loop.
#![forbid(unsafe_code)]

mod answer;
mod constraint;
mod detokenizer;
mod embedding;
mod output_parser;
mod pipeline;
mod template;
mod tokenizer;
mod training;

pub use answer::{AnswerFormat, AnswerParser};
pub use detokenizer::Detokenizer;
pub use embedding::{Judgement, TextSettings};
pub use output_parser::{ChatOutputParser, ThinkingBudget};
pub use pipeline::{Prepared, PromptLimits, TextPipeline};
pub use template::ChatTemplate;
pub use tokenizer::{EncodeLimits, EncodedPair, SpecialTokens, Tokenizer};
pub use training::TokenData;

/// The longest text, in bytes, that is tokenised or that a template may render: some four million tokens, far more than
/// any context holds.
pub const MAX_TEXT_BYTES: usize = 16 << 20;
