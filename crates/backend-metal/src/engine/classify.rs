//! Classification: one forward pass over many prompts, in buckets of similar length.
//!
//! Only the positions that are asked for go through the head. What all prompts begin with is computed once, and nothing else is
//! kept. A label of several tokens costs one more sequence: the prompt with the label's tokens but the last.

use std::collections::VecDeque;

use inference_core::{CancellationToken, Error};
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops, transforms,
};
use tokio::sync::oneshot;

use super::{prefix::common, sampler::NOT_FINITE};
use crate::{
    mlx::{exception, on_cpu, slice},
    nn::{Architecture, ModelConfig, Rows, SharedPrefix, argmax},
};

/// Padded tokens in one forward pass.
const BUCKET_TOKENS: usize = 16 * 1024;

/// The same on the CPU, where what a pass makes should stay in the caches.
const CPU_BUCKET_TOKENS: usize = 1024;

/// A shorter beginning is computed with each prompt: that costs less than to put it before each.
const SHORTEST: usize = 16;

/// Keys and values of a beginning are copied for each row of a pass, so many in all for each of its tokens.
const COPIES: usize = 8;

/// Logits computed at once: 256 MiB of f32.
const LOGITS_AT_ONCE: usize = 1 << 26;

/// A classification, as the caller hands it over.
#[derive(Debug)]
pub(crate) struct ClassifyRequest {
    /// The prompts: not empty, every id within the vocabulary, short enough for the context with any label.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// The labels' tokens, none empty.
    pub(crate) labels: Vec<Vec<u32>>,
    pub(crate) logits: bool,
    pub(crate) cancel: CancellationToken,
    pub(crate) reply: oneshot::Sender<inference_core::Result<Vec<Classified>>>,
}

/// The outcome for one prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Classified {
    /// The likeliest next token.
    pub(crate) token: u32,
    /// The log-probability of each label.
    pub(crate) labels: Vec<f32>,
    /// The next token's logits, if asked for.
    pub(crate) logits: Option<Vec<f32>>,
}

/// A classification under way.
#[derive(Debug)]
pub(super) struct ClassifyJob {
    request: ClassifyRequest,
    /// Shortest first.
    sequences: VecDeque<Sequence>,
    results: Vec<Classified>,
    /// Tokens that all prompts begin with, where it is worth while; none of them has them all.
    shared: usize,
    /// Their keys and values, once they are computed.
    beginning: SharedPrefix,
    /// The bucket that the device computes.
    submitted: Option<Submitted>,
    /// The most logits of one piece; a test sets fewer.
    logits_at_once: usize,
}

/// A bucket that was submitted and not read.
#[derive(Debug)]
struct Submitted {
    bucket: Vec<Sequence>,
    /// Of all places whose logits are wanted, in their order.
    pieces: Vec<Logprobs>,
}

/// The log-probabilities of N places, as far as they are wanted.
#[derive(Debug)]
struct Logprobs {
    /// `[N, 1]`, f32: logits less this are log-probabilities.
    normalizers: Array,
    /// `[N]`, u32
    likeliest: Array,
    /// `[N, labels]`, f32: the log-probabilities of every label's first token, or of the label's next one.
    scores: Array,
    /// `[N, V]`, f32, if asked for.
    logits: Option<Array>,
}

/// One row of a forward pass.
#[derive(Debug)]
struct Sequence {
    prompt: usize,
    /// The label whose later tokens are scored; `None` scores the next token.
    label: Option<usize>,
    len: usize,
}

impl ClassifyJob {
    pub(super) fn new(request: ClassifyRequest) -> Self {
        let mut sequences = Vec::new();
        for (prompt, tokens) in request.prompts.iter().enumerate() {
            sequences.push(Sequence { prompt, label: None, len: tokens.len() });
            for (label, continuation) in
                request.labels.iter().enumerate().filter(|(_, tokens)| tokens.len() > 1)
            {
                sequences.push(Sequence {
                    prompt,
                    label: Some(label),
                    len: tokens.len() + continuation.len() - 1,
                });
            }
        }
        sequences.sort_by_key(|sequence| sequence.len);
        let empty = Classified { labels: vec![0.0; request.labels.len()], ..Classified::default() };
        let results = vec![empty; request.prompts.len()];
        let (shared, beginning) = (shared(&request.prompts), SharedPrefix::default());
        let sequences = sequences.into();
        let logits_at_once = LOGITS_AT_ONCE;
        Self { request, sequences, results, shared, beginning, submitted: None, logits_at_once }
    }

    /// Submits one bucket, and reads the one before it; whether that was the last. A cancelled job has nothing left.
    pub(super) fn advance(&mut self, model: &dyn Architecture) -> Result<bool> {
        if self.request.cancel.is_cancelled() || self.request.reply.is_closed() {
            return Ok(true);
        }
        if model.config().length_dependent {
            self.shared = 0;
        }
        if self.shared > self.beginning.len() {
            let tokens = &self.request.prompts[0][..self.shared];
            let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]);
            let fresh = Rows::Prefixed { prefix: &SharedPrefix::default(), store: Some(&mut self.beginning) };
            model.hidden(&tokens, fresh)?;
            transforms::eval(&self.beginning.arrays())?;
        }
        let bucket = self.next_bucket(model.config());
        let next = if bucket.is_empty() { None } else { Some(self.submit(model, bucket)?) };
        if let Some(before) = std::mem::replace(&mut self.submitted, next) {
            self.read(&before)?;
        }
        Ok(self.submitted.is_none())
    }

    /// Answers the caller.
    pub(super) fn finish(mut self) {
        let results = std::mem::take(&mut self.results);
        let cancelled = self.request.cancel.is_cancelled();
        self.end(if cancelled { Err(Error::Cancelled) } else { Ok(results) });
    }

    /// Answers the caller with this result.
    pub(super) fn end(self, result: inference_core::Result<Vec<Classified>>) {
        // A caller that has gone needs no answer.
        let _ = self.request.reply.send(result);
    }

    /// The shortest sequences that are left, as many as fit one pass without much padding, or with none where the length of a
    /// row matters.
    fn next_bucket(&mut self, config: &ModelConfig) -> Vec<Sequence> {
        let vocab_size = config.vocab_size;
        let Some(shortest) = self.sequences.front().map(|sequence| sequence.len) else { return Vec::new() };
        let own = shortest - self.shared;
        let longest = if config.length_dependent { shortest } else { shortest + own / 4 + 8 };
        let tokens = if on_cpu() { CPU_BUCKET_TOKENS } else { BUCKET_TOKENS };
        let mut bucket = Vec::new();
        let mut logits = 0;
        while let Some(next) = self.sequences.front() {
            logits += next.label.map_or(1, |label| self.request.labels[label].len() - 1) * vocab_size;
            let fits = next.len <= longest
                && (next.len - self.shared) * (bucket.len() + 1) <= tokens
                && self.shared * (bucket.len() + 1) <= COPIES * tokens
                && (logits <= self.logits_at_once || !self.request.logits);
            if !bucket.is_empty() && !fits {
                break;
            }
            bucket.extend(self.sequences.pop_front());
        }
        bucket
    }

    /// Submits a bucket, which is not empty.
    fn submit(&self, model: &dyn Architecture, bucket: Vec<Sequence>) -> Result<Submitted> {
        let width = bucket.last().map_or(0, |sequence| sequence.len - self.shared);
        let mut tokens = vec![0; bucket.len() * width];
        // Places in [B · T] whose logits are wanted.
        let mut places = Vec::new();
        for (row, sequence) in bucket.iter().enumerate() {
            let prompt = &self.request.prompts[sequence.prompt][self.shared..];
            let start = row * width;
            tokens[start..start + prompt.len()].copy_from_slice(prompt);
            let first = start + prompt.len();
            match sequence.label {
                None => places.push(first - 1),
                Some(label) => {
                    let label = &self.request.labels[label];
                    let given = &label[..label.len() - 1];
                    tokens[first..first + given.len()].copy_from_slice(given);
                    places.extend(first..first + given.len());
                }
            }
        }
        let tokens = Array::from_slice(&tokens, &[bucket.len() as i32, width as i32]);
        let hidden = model.hidden(&tokens, Rows::Prefixed { prefix: &self.beginning, store: None })?;
        let places: Vec<u32> = places.into_iter().map(|place| place as u32).collect();
        let places = Array::from_slice(&places, &[places.len() as i32]);
        let hidden = hidden.reshape(&[-1, hidden.dim(-1)])?.take_axis(&places, 0)?;
        let width = self.scores_per_place() as i32;
        let wanted = self.wanted(&bucket);
        let wanted = Array::from_slice(&wanted, &[hidden.dim(0), width]);
        let (count, rows) = (hidden.dim(0), (self.logits_at_once / model.config().vocab_size).max(1) as i32);
        let pieces = (0..count).step_by(rows as usize).map(|start| {
            let part = |array: &Array| slice(array, 0, start, (start + rows).min(count));
            Logprobs::submit(model, &part(&hidden)?, &part(&wanted)?, self.request.logits)
        });
        Ok(Submitted { bucket, pieces: pieces.collect::<Result<_>>()? })
    }

    /// How many scores each place has.
    fn scores_per_place(&self) -> usize {
        self.request.labels.len().max(1)
    }

    /// For each place the ids whose log-probabilities are wanted: every label's first token, or the label's next one.
    fn wanted(&self, bucket: &[Sequence]) -> Vec<u32> {
        let labels = &self.request.labels;
        let firsts: Vec<u32> = labels.iter().map(|label| label[0]).collect();
        let mut wanted = Vec::new();
        for sequence in bucket {
            match sequence.label {
                None if firsts.is_empty() => wanted.push(0),
                None => wanted.extend(&firsts),
                Some(label) => {
                    for id in &labels[label][1..] {
                        wanted.extend(std::iter::repeat_n(id, firsts.len()));
                    }
                }
            }
        }
        wanted
    }

    /// Takes the wanted figures of a bucket.
    fn read(&mut self, submitted: &Submitted) -> Result<()> {
        let (mut scores, mut likeliest, mut full) = (Vec::new(), Vec::new(), None::<Vec<f32>>);
        for piece in &submitted.pieces {
            let normalizers = piece.normalizers.to_vec_exact::<f32>().map_err(exception)?;
            if normalizers.iter().any(|normalizer| !normalizer.is_finite()) {
                return Err(Exception::custom(NOT_FINITE));
            }
            scores.extend(piece.scores.to_vec_exact::<f32>().map_err(exception)?);
            likeliest.extend(piece.likeliest.to_vec_exact::<u32>().map_err(exception)?);
            if let Some(logits) = &piece.logits {
                full.get_or_insert_default().extend(logits.to_vec_exact::<f32>().map_err(exception)?);
            }
        }
        let (labels, width) = (&self.request.labels, self.scores_per_place());
        let vocab_size = full.as_ref().map_or(0, |full| full.len() / likeliest.len().max(1));
        let mut place = 0;
        for sequence in &submitted.bucket {
            let result = &mut self.results[sequence.prompt];
            match sequence.label {
                None => {
                    result.token = likeliest[place];
                    for (score, first) in result.labels.iter_mut().zip(&scores[place * width..]) {
                        *score += first;
                    }
                    let own = place * vocab_size..(place + 1) * vocab_size;
                    result.logits = full.as_ref().map(|full| full[own].to_vec());
                    place += 1;
                }
                Some(label) => {
                    let later = labels[label].len() - 1;
                    result.labels[label] +=
                        (place..place + later).map(|place| scores[place * width]).sum::<f32>();
                    place += later;
                }
            }
        }
        Ok(())
    }
}

impl Logprobs {
    /// Submits the log-probabilities that these hidden states, `[N, hidden]`, give the ids `wanted`, `[N, labels]`; with all logits if
    /// `keep`. The device may begin before the next piece is built, so that the logits of two need not be there at once.
    fn submit(model: &dyn Architecture, hidden: &Array, wanted: &Array, keep: bool) -> Result<Self> {
        let logits = model.logits(&hidden.expand_dims(0)?)?;
        let logits = logits.reshape(&[hidden.dim(0), -1])?.as_type::<f32>()?;
        let normalizers = ops::logsumexp_axis(&logits, -1, true)?;
        let scores = logits.take_along_axis(wanted, -1)?.subtract(&normalizers)?;
        let likeliest = argmax(&logits)?;
        let logits = keep.then_some(logits);
        transforms::async_eval([&normalizers, &likeliest, &scores].into_iter().chain(&logits))?;
        Ok(Self { normalizers, likeliest, scores, logits })
    }
}

/// How many tokens all prompts begin with, their last ones aside; 0 where they are too few to matter.
fn shared(prompts: &[Vec<u32>]) -> usize {
    let [first, others @ ..] = prompts else { return 0 };
    if others.is_empty() {
        return 0;
    }
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let shared = others.iter().map(|other| common(first, other)).fold(shortest.saturating_sub(1), usize::min);
    if shared < SHORTEST { 0 } else { shared }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Fake, next},
        *,
    };

    #[test]
    fn logits_in_pieces_give_the_same_and_need_no_more_passes() {
        let prompts: Vec<Vec<u32>> = (0..9).map(|n| (0..=n).map(|at| 200 + 13 * n + at).collect()).collect();
        let ends: Vec<u32> = prompts.iter().map(|prompt| prompt[prompt.len() - 1]).collect();
        let labels = vec![vec![next(ends[4])], vec![next(ends[2]), next(next(ends[2]))]];
        let classify = |rows: usize| {
            let (reply, mut results) = oneshot::channel();
            let (prompts, labels) = (prompts.clone(), labels.clone());
            let request =
                ClassifyRequest { prompts, labels, logits: false, cancel: CancellationToken::new(), reply };
            let (model, mut job) = (Fake::new(), ClassifyJob::new(request));
            job.logits_at_once = rows * model.config().vocab_size;
            while !job.advance(&*model).unwrap() {}
            job.finish();
            let results = results.try_recv().unwrap().unwrap();
            let passes = model.passes.borrow().clone();
            (results.into_iter().map(|result| (result.token, result.labels)).collect::<Vec<_>>(), passes)
        };
        let (whole, passes) = classify(100);
        assert_eq!(
            whole.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            ends.iter().map(|id| next(*id)).collect::<Vec<_>>()
        );
        assert_eq!(passes.iter().map(|(rows, _)| rows).sum::<usize>(), 18);
        for rows in [1, 4] {
            assert_eq!(classify(rows), (whole.clone(), passes.clone()), "{rows} rows at once");
        }
    }
}
