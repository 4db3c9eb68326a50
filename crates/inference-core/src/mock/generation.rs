//! A generation: the prompt's words again and again, up to a stop.

use tokio::sync::OwnedMutexGuard;

use super::words::Word;
use crate::{
    FinishReason, GenerateOptions, StopCause, Token,
    response::{ResponseWriter, uniform},
};

/// One generation of the mock.
pub(super) struct Run {
    pub(super) words: Vec<Word>,
    pub(super) options: GenerateOptions,
    pub(super) writer: ResponseWriter,
    /// The session's, which this is a turn of.
    pub(super) text: Option<OwnedMutexGuard<Vec<Word>>>,
}

impl Run {
    pub(super) fn finish(mut self) {
        let known = self.text.iter().flat_map(|text| text.iter()).zip(&self.words);
        let cached = known.take_while(|(known, word)| known.id == word.id).count();
        self.writer.begin(cached.min(self.words.len() - 1));
        if let Some(text) = &mut self.text {
            (**text).clone_from(&self.words);
        }
        let reason = self.generate();
        // Before the end is told: who has seen it can take the next turn at once.
        self.text = None;
        self.writer.end(Ok(reason));
    }

    fn generate(&mut self) -> FinishReason {
        let seed = self.options.sampling.seed_or_random();
        loop {
            if let Some(reason) = self.writer.wait() {
                return reason;
            }
            let word = &self.words[self.choose(seed, self.writer.generated_tokens())];
            let end = self.writer.push(Token::new(word.id, format!(" {}", word.text)));
            let is_text = !matches!(
                end,
                Some(FinishReason::Stop(StopCause::EndOfSequence(_) | StopCause::StopToken(_)))
            );
            if let Some(text) = self.text.as_mut().filter(|_| is_text) {
                text.push(word.clone());
            }
        }
    }

    fn choose(&self, seed: u64, step: usize) -> usize {
        if self.options.sampling.temperature_or_greedy() == 0.0 {
            return (step + 1) % self.words.len();
        }
        (uniform(seed, step) * self.words.len() as f64) as usize
    }
}
