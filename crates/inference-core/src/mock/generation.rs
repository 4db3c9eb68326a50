//! A generation: the prompt's words again and again, up to a stop.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::words::{EOS, Word, lock};
use crate::{
    Finish, FinishReason, GenerateOptions, Metrics, ModelStats, StopCause, Token, stream::TokenSink,
};

/// One generation of the mock.
pub(super) struct Run {
    pub(super) words: Vec<Word>,
    pub(super) options: GenerateOptions,
    /// Tokens that still fit the context.
    pub(super) room: usize,
    pub(super) started: Instant,
    pub(super) shutdown: CancellationToken,
    /// The session's, which this is a turn of.
    pub(super) text: Option<OwnedMutexGuard<Vec<Word>>>,
}

impl Run {
    pub(super) fn finish(mut self, mut sink: TokenSink, stats: &Mutex<ModelStats>) {
        let began = Instant::now();
        let mut held = Held { tokens: Vec::new(), stops: self.options.stop.clone().unwrap_or_default() };
        let (mut generated, mut first) = (0, None);
        let mut text = self.text.take();
        let known = text.iter().flat_map(|text| text.iter()).zip(&self.words);
        let cached = known.take_while(|(known, word)| known.id == word.id).count();
        if let Some(text) = &mut text {
            (**text).clone_from(&self.words);
        }
        let reason = loop {
            if sink.is_cancelled() || self.shutdown.is_cancelled() {
                break FinishReason::Cancelled;
            }
            if generated >= self.options.max_tokens_or_default().min(self.room) {
                break FinishReason::Length;
            }
            let word = &self.words[self.choose(generated)];
            if let Some(cause) = self.stop_cause(word.id) {
                break FinishReason::Stop(cause);
            }
            generated += 1;
            if let Some(text) = &mut text {
                text.push(word.clone());
            }
            first.get_or_insert_with(Instant::now);
            let matched = held.push(Token::new(word.id, format!(" {}", word.text)));
            held.release(&mut sink);
            if let Some(stop) = matched {
                break FinishReason::Stop(StopCause::StopString(stop));
            }
            if sink.is_full() {
                let (ready, shutdown) =
                    (std::pin::pin!(sink.ready()), std::pin::pin!(self.shutdown.cancelled()));
                futures::executor::block_on(futures::future::select(ready, shutdown));
            }
        };
        held.tokens.drain(..).for_each(|token| sink.send(token));
        let metrics = Metrics {
            prompt_tokens: self.words.len(),
            cached_tokens: cached.min(self.words.len() - 1),
            generated_tokens: generated,
            queued: began - self.started,
            decode: first.map(|first| first.elapsed()).unwrap_or_default(),
            time_to_first_token: first.map(|first| first - self.started),
            ..Metrics::default()
        };
        {
            let mut stats = lock(stats);
            stats.active -= 1;
            stats.prompt_tokens += self.words.len() as u64;
            stats.cached_tokens += metrics.cached_tokens as u64;
            stats.generated_tokens += generated as u64;
            stats.cancelled += u64::from(reason == FinishReason::Cancelled);
        }
        // Before the end is told: who has seen it can take the next turn at once.
        drop(text);
        sink.end(Ok(Finish::new(reason, metrics)));
    }

    fn choose(&self, step: usize) -> usize {
        let sampling = &self.options.sampling;
        if sampling.temperature_or_greedy() == 0.0 {
            return (step + 1) % self.words.len();
        }
        // SplitMix64; without a seed the clock serves.
        let seed = sampling.seed.unwrap_or_else(|| self.started.elapsed().as_nanos() as u64);
        let mut z = seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % self.words.len() as u64) as usize
    }

    fn stop_cause(&self, id: u32) -> Option<StopCause> {
        if self.options.stop_tokens.as_ref().is_some_and(|ids| ids.contains(&id)) {
            return Some(StopCause::StopToken(id));
        }
        (id == EOS && !self.options.ignore_eos).then_some(StopCause::EndOfSequence(id))
    }
}

/// Tokens whose text may be the beginning of a stop string.
struct Held {
    tokens: Vec<Token>,
    stops: Arc<[String]>,
}

impl Held {
    /// Takes a token in; the stop string that it completes, whose text and what follows it are then cut.
    fn push(&mut self, token: Token) -> Option<String> {
        self.tokens.push(token);
        let text: String = self.tokens.iter().map(|token| token.text.as_str()).collect();
        let (at, stop) = self
            .stops
            .iter()
            .filter_map(|stop| Some((text.find(stop.as_str())?, stop)))
            .min_by_key(|m| m.0)?;
        let mut keep = at;
        for token in &mut self.tokens {
            let kept = keep.min(token.text.len());
            token.text.truncate(kept);
            keep -= kept;
        }
        Some(stop.clone())
    }

    /// Sends the tokens that cannot be part of a stop string any more.
    fn release(&mut self, sink: &mut TokenSink) {
        let text: String = self.tokens.iter().map(|token| token.text.as_str()).collect();
        let undecided = (0..text.len())
            .filter(|i| text.is_char_boundary(*i))
            .find(|i| self.stops.iter().any(|stop| stop.starts_with(&text[*i..])))
            .unwrap_or(text.len());
        let mut end = 0;
        let decided = self.tokens.iter().take_while(|token| {
            end += token.text.len();
            end <= undecided
        });
        let decided = decided.count();
        self.tokens.drain(..decided).for_each(|token| sink.send(token));
    }
}
