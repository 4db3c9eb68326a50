//! What is learnt from.

use std::{fmt, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Message, Result};

/// What to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TrainingData {
    /// Examples to learn from.
    pub train: Vec<Example>,
    /// Examples held out for validation.
    pub validation: Vec<Example>,
}

/// One example, and where it comes from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Example {
    /// What it says.
    pub kind: ExampleKind,
    /// Where it comes from; unset where it was made by a program.
    pub source: Option<ExampleSource>,
}

/// What an example says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ExampleKind {
    /// A text, ended by the token that ends a text.
    Text(String),
    /// A user's prompt and the answer to it, in the model's chat template.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learnt.
        completion: String,
        /// Definitions of tools (JSON schema objects).
        tools: Option<Arc<[Value]>>,
    },
    /// A conversation, in the model's chat template; its last message is the answer.
    Chat {
        /// The conversation.
        messages: Vec<Message>,
        /// Definitions of tools (JSON schema objects).
        tools: Option<Arc<[Value]>>,
    },
    /// Tokens, used as they are.
    Tokens(TokenExample),
}

/// A tokenised example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenExample {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Which of them are learnt: their prediction counts in the loss. As long as `tokens`. The first is never learnt, since
    /// nothing stands before it.
    pub learnt: Vec<bool>,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExampleSource {
    /// The file.
    pub path: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

/// Which tokens of an example are learnt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossOn {
    /// Those of the answer: a completion, the last message of a conversation, all of a text.
    #[default]
    Answer,
    /// All of them.
    Everything,
}

/// What becomes of an example with more tokens than [`TrainOptions::max_length`](crate::train::TrainOptions::max_length).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Truncation {
    /// It is cut at the end, and counted in [`TrainPlan::truncated_examples`](crate::train::TrainPlan::truncated_examples). One of
    /// which nothing to learn is left is refused.
    #[default]
    Truncate,
    /// It is an error that names it.
    Refuse,
}

impl TrainingData {
    /// Examples to learn from and, perhaps none, to validate on.
    #[must_use]
    pub fn new(train: Vec<Example>, validation: Vec<Example>) -> Self {
        Self { train, validation }
    }
}

impl Example {
    /// An example made by a program.
    #[must_use]
    pub fn new(kind: ExampleKind) -> Self {
        Self { kind, source: None }
    }

    /// A text; all of it is learnt.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(ExampleKind::Text(text.into()))
    }

    /// A prompt and the answer to it.
    pub fn completion(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        let (prompt, completion) = (prompt.into(), completion.into());
        Self::new(ExampleKind::Completion { prompt, completion, tools: None })
    }

    /// A conversation whose last message is the answer.
    #[must_use]
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::new(ExampleKind::Chat { messages, tools: None })
    }

    /// Tokens, all of them learnt but the first.
    #[must_use]
    pub fn tokens(tokens: Vec<u32>) -> Self {
        Self::new(ExampleKind::Tokens(TokenExample::from_answer(tokens, 0)))
    }

    /// An [`Error::InvalidData`] about it; `number`, from 1, names it where it comes from no file.
    #[must_use]
    pub fn invalid(&self, number: usize, reason: impl Into<String>) -> Error {
        let at = self.source.as_ref().map_or_else(|| format!("example {number}"), ToString::to_string);
        Error::invalid_data(at, reason)
    }
}

impl TokenExample {
    /// Tokens; those from index `answer` on are learnt.
    #[must_use]
    pub fn from_answer(tokens: Vec<u32>, answer: usize) -> Self {
        let learnt = (0..tokens.len()).map(|at| at > 0 && at >= answer).collect();
        Self { tokens, learnt }
    }

    /// Tokens, and which of them are learnt.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: the two are not of one length.
    pub fn new(tokens: Vec<u32>, mut learnt: Vec<bool>) -> Result<Self> {
        if tokens.len() != learnt.len() {
            let reason = format!("{} for {} tokens, expected one for each", learnt.len(), tokens.len());
            return Err(Error::invalid_option("learnt", reason));
        }
        if let Some(first) = learnt.first_mut() {
            *first = false;
        }
        Ok(Self { tokens, learnt })
    }

    /// The number of its learnt tokens.
    #[must_use]
    pub fn learnt_tokens(&self) -> usize {
        self.learnt.iter().filter(|learnt| **learnt).count()
    }

    /// Cuts it after `length` tokens; says whether there was anything to cut.
    pub fn truncate(&mut self, length: usize) -> bool {
        let longer = self.tokens.len() > length;
        self.tokens.truncate(length);
        self.learnt.truncate(length);
        longer
    }
}

impl ExampleSource {
    /// A line, from 1, of a file.
    pub fn new(path: impl Into<Arc<Path>>, line: usize) -> Self {
        Self { path: path.into(), line }
    }
}

/// As compilers and editors have it: `data/train.jsonl:12`.
impl fmt::Display for ExampleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}
