//! Answers that are held to a shape: which tokens may come next.
//!
//! llguidance computes the masks. `trie` gives it the tokens' bytes, `grammar` and `schema` what may be said, `tools` the notations of
//! calls. `compiler` bounds its work and keeps what was compiled. `gate` lets the model reason first; `answer` puts both together
//! for one request.

mod answer;
mod compiler;
mod gate;
mod grammar;
mod invalid;
mod schema;
mod tools;
mod trie;

use std::sync::Arc;

use inference_core::{Constraint, GenerateOptions, Result, backend::ConstraintRun};

pub(crate) use self::compiler::Compiler;
use self::{answer::ConstrainedAnswer, gate::Gate, grammar::Grammar, invalid::invalid};
use crate::{Prepared, PromptLimits, TextPipeline};

impl TextPipeline {
    /// What holds the answer to this prompt to the shape that the options ask for; `None` where they ask for none. Grammars are
    /// compiled off the caller's executor, and kept for the next request.
    ///
    /// # Errors
    /// [`Error::InvalidOption`](inference_core::Error::InvalidOption): the constraint is malformed, asks for what cannot be held to, or is too large; [`Error::Cancelled`](inference_core::Error::Cancelled).
    pub async fn constraint(
        &self,
        prompt: &Prepared,
        options: &GenerateOptions,
        limits: PromptLimits,
    ) -> Result<Option<ConstraintRun>> {
        if !options.is_constrained() {
            return Ok(None);
        }
        let vocab_size = limits.vocab_size;
        let starts_in_reasoning = prompt.starts_in_reasoning;
        let options = options.clone();
        let work = move |text: &Self, _: PromptLimits| {
            text.start_constraint(&options, starts_in_reasoning, vocab_size)
        };
        self.run(limits, work).await.map(Some)
    }

    fn start_constraint(
        &self,
        options: &GenerateOptions,
        starts_in_reasoning: bool,
        vocab_size: usize,
    ) -> Result<ConstraintRun> {
        let grammars = self.compiler().grammars(self.tokenizer(), self.format())?;
        let tokens = Arc::clone(&grammars.tokens);
        let state = match (&options.constraint, self.call_grammar(options)?) {
            (Some(Constraint::Custom(custom)), None) => custom.start(&tokens.vocabulary(vocab_size))?,
            (Some(Constraint::Custom(_)), Some(_)) => {
                return Err(invalid(
                    "a constraint of one's own does not go together with required or strict calls",
                ));
            }
            (Some(constraint), None) => grammars.start(Grammar::of(constraint)?, vocab_size)?,
            (None, Some(calls)) => grammars.start(calls.into_grammar(None)?, vocab_size)?,
            (Some(constraint), Some(calls)) => {
                grammars.start(calls.into_grammar(Some(Grammar::of(constraint)?))?, vocab_size)?
            }
            (None, None) => return Err(invalid("there is none")),
        };
        let gate = Gate::new(grammars.family.clone(), starts_in_reasoning);
        let answer = ConstrainedAnswer::new(gate, state, tokens);
        Ok(ConstraintRun::new(Box::new(answer), vocab_size))
    }
}
