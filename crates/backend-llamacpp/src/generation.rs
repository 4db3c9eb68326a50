//! One generation: the child's tokens in, the caller's text out.
//!
//! An answer is one request to the child or several, each of which goes on from the text so far: after a minimum of tokens,
//! after an end that is none by the contract, and as its shape needs it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use inference_core::{
    CancellationToken, Error, FinishReason, Metrics, Result, StopCause, Token, TokenMask,
    backend::ResponseWriter,
};
use inference_text::Tokenizer;
use serde_json::{Value, json};

use crate::{
    client::{Client, Parts, Requests},
    gap::TokensByBytes,
    next_token::{NO_PARSER, next_token},
    protocol::{Part, Probabilities, StopType},
    sampling::Sampler,
    shape::{Shape, Step, nothing_left},
    slots::TakenSlot,
    turn::Turn,
};

/// Ends and bytes of a vocabulary, which the answers of a model share.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Tokenizer,
    by_bytes: std::sync::OnceLock<TokensByBytes>,
    /// An id whose text is whole characters, and which ends no text.
    plain: u32,
}

impl Vocabulary {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        let plain = |id: &u32| {
            let bytes = tokenizer.token_bytes(*id).filter(|_| tokenizer.special(*id).is_none());
            bytes.is_some_and(|bytes| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic))
        };
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let plain = ids.clone().find(plain).unwrap_or(0);
        Self { tokenizer, by_bytes: std::sync::OnceLock::new(), plain }
    }

    /// The only tokens that the stream can have left out before this one.
    fn left_out(&self, text: &str, last: u32, count: usize) -> Option<Vec<u32>> {
        let bytes = self.tokenizer.token_bytes(last)?;
        let by_bytes = self.by_bytes.get_or_init(|| TokensByBytes::new(&self.tokenizer));
        by_bytes.left_out(text, bytes, count)
    }
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) sampler: Sampler,
    /// The model's ids that end a text.
    pub(crate) ends: Vec<u32>,
    pub(crate) min_tokens: usize,
    /// Log-probabilities of so many alternatives.
    pub(crate) log_probabilities: Option<usize>,
    pub(crate) vocab_size: usize,
}

/// What is needed to serve one request to its end.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) client: Arc<Client>,
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) writer: ResponseWriter,
    /// Cancelled when the model is closed or dropped.
    pub(crate) shutdown: CancellationToken,
    pub(crate) asked: Asked,
    /// What holds the answer to a shape.
    pub(crate) shape: Option<Shape>,
    /// The prompt and what was generated.
    pub(crate) text: Vec<u32>,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// The session whose turn this is.
    pub(crate) turn: Option<Turn>,
    /// The server's time for the prompt.
    pub(crate) prefill: Option<Duration>,
}

/// How one request to the child ended.
enum Ending {
    /// The answer is complete.
    Complete(FinishReason),
    /// It goes on with another request.
    GoesOn,
    /// The server chose a token that the shape does not have.
    Barred,
}

impl Generation {
    /// Serves the request; ends the stream, whatever happens.
    pub(crate) async fn run(mut self) {
        let outcome = self.serve().await;
        let metrics = self.metrics();
        let Self { writer, turn, text, .. } = self;
        // The next turn waits for the text, and its caller for this stream's end.
        if let Some(turn) = turn {
            turn.end(text);
        }
        writer.end_with(outcome, metrics);
    }

    fn metrics(&mut self) -> Metrics {
        let mut metrics = self.writer.metrics();
        if let Some(prefill) = self.prefill {
            metrics.prefill = prefill.min(metrics.prefill);
        }
        let memory = self.client.memory();
        (metrics.peak_memory_bytes, metrics.active_memory_bytes) = (memory.peak_bytes, memory.active_bytes);
        metrics
    }

    async fn serve(&mut self) -> Result<FinishReason> {
        let slots = self.client.slots.clone();
        let Self { writer, shutdown, text, .. } = self;
        let taken = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(FinishReason::Cancelled),
            () = writer.cancelled() => return Ok(FinishReason::Cancelled),
            taken = slots.take(text) => taken,
        };
        let Some(mut slot) = taken else { return Ok(FinishReason::Cancelled) };
        if let Some(turn) = &self.turn {
            turn.restore(&self.client, &slot, &self.text).await?;
        }
        let mut barred = false;
        loop {
            let before = self.text.len();
            let ending = match self.step(barred)? {
                Step::Forced(id) => self.forced(id, &slot).await?,
                step => {
                    let ending = match step {
                        Step::Masked(mask) => self.masked(&slot, &mask).await,
                        _ => self.request(&slot).await,
                    };
                    // The last token that was chosen is not computed.
                    slot.holds(self.text[..self.text.len().saturating_sub(1)].to_vec());
                    ending?
                }
            };
            barred = matches!(ending, Ending::Barred);
            match ending {
                Ending::Complete(reason) => return Ok(reason),
                Ending::Barred => {}
                Ending::GoesOn if self.text.len() > before => {}
                Ending::GoesOn => {
                    let reason = "llama-server ended an answer that has no token";
                    return Err(Error::backend(self.client.backend(), "generate", reason));
                }
            }
        }
    }

    /// How the next token is got.
    fn step(&mut self, barred: bool) -> Result<Step> {
        let (_, ends_banned) = self.limit();
        match &mut self.shape {
            // Then no token is wanted.
            Some(shape) if self.writer.max_tokens() > 0 => shape.step(barred, ends_banned),
            _ => Ok(Step::Free),
        }
    }

    /// Takes a token that has to come.
    async fn forced(&mut self, id: u32, slot: &TakenSlot) -> Result<Ending> {
        self.keeps_up().await;
        if self.writer.is_cancelled() || self.shutdown.is_cancelled() {
            return Ok(Ending::Complete(FinishReason::Cancelled));
        }
        self.writer.begin(slot.shared);
        Ok(self.push(Token::new(id, ""))?.unwrap_or(Ending::GoesOn))
    }

    /// One token, of those that a mask has.
    async fn masked(&mut self, slot: &TakenSlot, mask: &TokenMask) -> Result<Ending> {
        self.keeps_up().await;
        let requests = self.client.weak();
        let ways = self.shape.as_ref().map(|shape| shape.biases(mask)).unwrap_or_default();
        for (draw, biases) in (1..).zip(ways) {
            let mut body = self.body(slot.index, 1, draw, &biases);
            (body["stream"], body["return_progress"]) = (json!(false), json!(false));
            let answer = requests.post::<Part>("/completion", &body, "generate");
            let Some(part) = self.unless_cancelled(answer).await else {
                return Ok(Ending::Complete(FinishReason::Cancelled));
            };
            let part = part?;
            self.writer.begin(part.timings.cache_n);
            self.prefill.get_or_insert(part.timings.prefill());
            if let Some(id) = part.tokens.first().filter(|id| mask.allows(**id)) {
                return Ok(self.push(Token::new(*id, ""))?.unwrap_or(Ending::GoesOn));
            }
        }
        Err(nothing_left())
    }

    /// One request to the child.
    async fn request(&mut self, slot: &TakenSlot) -> Result<Ending> {
        let requests = self.client.weak();
        let start = self.text.len();
        let (limit, banned) = self.limit();
        let banned = if banned { self.asked.ends.as_slice() } else { &[] };
        let banned = banned.iter().map(|id| (*id, f32::NEG_INFINITY)).collect();
        let body = self.body(slot.index, limit, 0, &banned);
        let mut parts = match self.unless_cancelled(requests.stream(&body)).await {
            Some(parts) => parts?,
            None => return Ok(Ending::Complete(FinishReason::Cancelled)),
        };
        // Tokens of this request that are known.
        let mut known = 0;
        loop {
            let Some(part) = self.next(&mut parts).await? else {
                return Ok(Ending::Complete(FinishReason::Cancelled));
            };
            if let Some(progress) = part.prompt_progress {
                self.writer.begin(progress.cache);
                continue;
            }
            self.writer.begin(part.timings.cache_n);
            let missing = part.tokens_predicted.saturating_sub(known + part.tokens.len());
            if missing > 0 && self.writer.max_tokens() > 0 {
                let Some(ids) = part
                    .tokens
                    .first()
                    .and_then(|last| self.vocabulary.left_out(&part.content, *last, missing))
                else {
                    drop(parts);
                    return self.again_unstreamed(&requests, body, start).await;
                };
                for id in ids {
                    let token = self.token(&requests, id, None).await?;
                    if let Some(ending) = self.push(token)? {
                        return Ok(ending);
                    }
                }
            }
            known = part.tokens_predicted.max(known + part.tokens.len());
            for (at, id) in part.tokens.iter().enumerate() {
                let token = self.token(&requests, *id, part.completion_probabilities.get(at)).await?;
                if let Some(ending) = self.push(token)? {
                    return Ok(ending);
                }
            }
            if part.stop {
                self.prefill.get_or_insert(part.timings.prefill());
                return Ok(self.ending(part.stop_type));
            }
        }
    }

    /// How many tokens the next request is for, and whether it bans the ends.
    fn limit(&self) -> (usize, bool) {
        let generated = self.writer.generated_tokens();
        let most = self.writer.max_tokens().saturating_sub(generated).max(1);
        match self.asked.min_tokens.saturating_sub(generated) {
            0 => (most, false),
            least => (least.min(most), true),
        }
    }

    fn body(&self, slot: usize, limit: usize, draw: u64, biases: &BTreeMap<u32, f32>) -> Value {
        let mut body = self.asked.sampler.fields(self.writer.generated_tokens(), draw, biases);
        let own = json!({
            "prompt": self.text, "n_predict": limit, "id_slot": slot, "cache_prompt": true, "stream": true,
            "return_tokens": true, "return_progress": true, "chat_parser": NO_PARSER, "n_probs": self.asked.log_probabilities.map_or(0, |top| top.max(1)),
        });
        if let Value::Object(own) = own {
            body.extend(own);
        }
        Value::Object(body)
    }

    /// The next part of the stream, once the reader keeps up; `None` where the request is cancelled.
    async fn next(&mut self, parts: &mut Parts) -> Result<Option<Part>> {
        self.keeps_up().await;
        match self.unless_cancelled(parts.next()).await {
            None => Ok(None),
            Some(Ok(Some(part))) => Ok(Some(part)),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) => {
                let reason = "llama-server ended an answer before its last part".to_owned();
                Err(Error::stopped(self.client.backend(), reason))
            }
        }
    }

    /// Waits for a slow reader.
    async fn keeps_up(&mut self) {
        if self.writer.is_full() {
            let Self { writer, shutdown, .. } = &*self;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = writer.ready() => {}
            }
        }
    }

    /// What comes of this, unless the request is cancelled first.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            () = self.writer.cancelled() => None,
            done = work => Some(done),
        }
    }

    /// The token with what is wanted of it.
    async fn token(
        &self,
        requests: &Requests,
        id: u32,
        probabilities: Option<&Probabilities>,
    ) -> Result<Token> {
        match (self.asked.log_probabilities, probabilities) {
            (None, _) => Ok(Token::new(id, "")),
            (Some(top), Some(probabilities)) if probabilities.chosen.id == id => Ok(probabilities.token(top)),
            (Some(top), _) => self.with_log_probabilities(requests, id, top).await,
        }
    }

    /// The log-probabilities of a token that the stream left out: asked for by a request of their own.
    async fn with_log_probabilities(&self, requests: &Requests, id: u32, top: usize) -> Result<Token> {
        let mut token = Token::new(id, "");
        for count in [top.max(1), self.asked.vocab_size] {
            let found = next_token(requests, &self.text, self.vocabulary.plain, count).await?;
            token.log_probability = found.of(id);
            token.top = found.alternatives(top);
            if token.log_probability.is_some() {
                break;
            }
        }
        Ok(token)
    }

    /// Takes a token; how the request ends with it, if it does.
    fn push(&mut self, token: Token) -> Result<Option<Ending>> {
        if self.writer.max_tokens() == 0 {
            // The prompt is computed, and nothing more was wanted.
            return Ok(Some(Ending::Complete(FinishReason::Length)));
        }
        let id = token.id;
        if let Some(shape) = &mut self.shape
            && !shape.take(id)?
        {
            return Ok(Some(Ending::Barred));
        }
        let complete = self.writer.push(token);
        // A token that ended the text is no part of it.
        if !matches!(
            complete,
            Some(FinishReason::Stop(StopCause::EndOfSequence(_) | StopCause::StopToken(_)))
        ) {
            self.text.push(id);
        }
        Ok(complete.map(Ending::Complete))
    }

    /// What a request that the server ended means for the answer.
    fn ending(&self, stop: StopType) -> Ending {
        let generated = self.writer.generated_tokens();
        match stop {
            _ if generated >= self.writer.max_tokens() => Ending::Complete(FinishReason::Length),
            // An end by llama.cpp's list that the model's files do not name.
            StopType::Eos => Ending::GoesOn,
            // The ends are no longer banned.
            StopType::Limit if generated >= self.asked.min_tokens && self.asked.min_tokens > 0 => {
                self.after_minimum()
            }
            StopType::Limit | StopType::Word | StopType::None => Ending::Complete(FinishReason::Length),
        }
    }

    fn after_minimum(&self) -> Ending {
        if self.text.len() - self.prompt == self.asked.min_tokens {
            Ending::GoesOn
        } else {
            Ending::Complete(FinishReason::Length)
        }
    }

    /// The same request without a stream, which leaves out no token: it begins anew with the same seed, and so chooses the same tokens.
    async fn again_unstreamed(
        &mut self,
        requests: &Requests,
        mut body: Value,
        start: usize,
    ) -> Result<Ending> {
        body["stream"] = json!(false);
        body["return_progress"] = json!(false);
        body["prompt"] = json!(self.text[..start]);
        let whole = match self.unless_cancelled(requests.post::<Part>("/completion", &body, "generate")).await
        {
            Some(whole) => whole?,
            None => return Ok(Ending::Complete(FinishReason::Cancelled)),
        };
        let known = &self.text[start..];
        if !whole.tokens.starts_with(known) {
            let reason =
                "llama-server left tokens out of its answer, and chose others when it was asked again";
            return Err(Error::backend(self.client.backend(), "generate", reason));
        }
        for id in whole.tokens.iter().skip(known.len()).copied().collect::<Vec<_>>() {
            let token = self.token(requests, id, None).await?;
            if let Some(ending) = self.push(token)? {
                return Ok(ending);
            }
        }
        self.prefill.get_or_insert(whole.timings.prefill());
        Ok(self.ending(whole.stop_type))
    }
}

impl Vocabulary {
    /// An id whose text is whole characters, and which ends no text.
    pub(crate) fn plain(&self) -> u32 {
        self.plain
    }
}
