//! What any native engine needs around a model: tokenizer, streaming detokenizer, stop strings and chat templates.
//!
//! - [`TextPipeline`] is all of a folder's text side in one: prompts to ids, ids to text. What it is made of:
//! - [`Tokenizer`] reads a model folder's tokenizer and knows its special and end-of-sequence tokens.
//! - [`TokenData`] is what [`TextPipeline::encode_training`] makes of examples to learn from.
//! - [`TextAssembler`] turns generated ids into tokens with text, held back while that text is undecided: half a
//!   character, or the possible beginning of a stop string. [`Detokenizer`] and [`StopStrings`] are its parts.
//! - [`ChatTemplate`] renders a conversation the way the model was trained on it.
//! - [`AnswerParser`] tells text, reasoning and calls of tools apart in what the model says, by the [`AnswerFormat`] of its
//!   family. [`ChatOutputParser`] does it for a stream, [`ThinkingBudget`] for an engine that limits reasoning.
//!
//! Nothing in a model folder is trusted: files are bounded, a hostile tokenizer or template is an error and neither a
//! panic nor an endless loop.
#![forbid(unsafe_code)]

mod answer;
mod assembler;
mod detokenizer;
mod output_parser;
mod pipeline;
mod stop;
mod template;
mod tokenizer;
mod training;

pub use answer::{AnswerFormat, AnswerParser};
pub use assembler::{TextAssembler, TextEvent};
pub use detokenizer::Detokenizer;
pub use output_parser::{ChatOutputParser, ThinkingBudget};
pub use pipeline::{Prepared, PromptLimits, TextPipeline};
pub use stop::StopStrings;
pub use template::ChatTemplate;
pub use tokenizer::{EncodeLimits, SpecialTokens, Tokenizer};
pub use training::TokenData;

/// The longest text, in bytes, that is tokenised or that a template may render: some four million tokens, far more than
/// any context holds.
pub const MAX_TEXT_BYTES: usize = 16 << 20;
