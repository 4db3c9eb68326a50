//! Verdicts on prompts: log-probabilities of the next token, and of labels token by token.

use std::sync::Arc;

use inference_core::{
    CancellationToken, Classification, ClassifyOptions, Error, Feature, LabelScore, Prompt, Result,
};
use inference_text::PromptLimits;
use serde_json::{Value, json};

use crate::{
    client::{Client, Requests},
    inner::Inner,
    next_token::next_token_body,
    protocol::{Part, Probabilities},
};

impl Inner {
    /// See [`TextModel::classify`](inference_core::TextModel::classify).
    pub(crate) async fn classify(
        &self,
        prompts: Vec<Prompt>,
        options: ClassifyOptions,
    ) -> Result<Vec<Classification>> {
        self.check_generates(Feature::Classify)?;
        let labels = options.labels.clone().unwrap_or_default();
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let label_tokens = self.text.encode_labels(&options, limits.clone()).await?;
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let prompts =
            self.text.prepare_all(prompts, &options.template, limits.with_reserved(longest)).await?;
        let mut classifications = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let work = Work {
                vocab_size: self.info.vocab_size,
                plain: self.vocabulary.plain(),
                labels: label_tokens.clone(),
                prompt: prompt.ids,
            };
            let length = work.prompt.len();
            let (token, scores) = self.verdict(work, &options.cancel).await?;
            let text = self.text.tokenizer().decode(&[token], false);
            let mut classification = Classification::new(token, text, length);
            classification.labels = LabelScore::normalize(&labels, &scores);
            classifications.push(classification);
        }
        Ok(classifications)
    }

    async fn verdict(&self, work: Work, cancel: &CancellationToken) -> Result<(u32, Vec<f32>)> {
        let client = self.client().await?;
        let verdict = client.run(work.run(client.clone()));
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Error::Closed),
            () = cancel.cancelled() => Err(Error::Cancelled),
            verdict = verdict => verdict,
        }
    }
}

/// One prompt and the labels.
struct Work {
    vocab_size: usize,
    plain: u32,
    labels: Vec<Vec<u32>>,
    prompt: Vec<u32>,
}

impl Work {
    /// The likeliest token, and the log-probability of each label.
    async fn run(self, client: Arc<Client>) -> Result<(u32, Vec<f32>)> {
        let gone = || Error::stopped(client.backend(), "it has no slots");
        let mut slot = client.slots.take(&self.prompt).await.ok_or_else(gone)?;
        let requests = client.weak();
        // Without labels the likeliest is enough.
        let count = if self.labels.is_empty() { 1 } else { self.vocab_size };
        let next = self.next(&requests, slot.index, &self.prompt, count).await?;
        let Some(likeliest) = next.alternatives(1).first().map(|token| token.id) else {
            return Err(Error::backend(
                client.backend(),
                "classify",
                "llama-server gave no log-probabilities",
            ));
        };
        let mut scores = Vec::with_capacity(self.labels.len());
        for label in &self.labels {
            let mut score = label.first().and_then(|id| next.of(*id)).unwrap_or(f32::NEG_INFINITY);
            for at in 1..label.len() {
                let text = [&self.prompt, &label[..at]].concat();
                let next = self.next(&requests, slot.index, &text, self.vocab_size).await?;
                score += next.of(label[at]).unwrap_or(f32::NEG_INFINITY);
            }
            scores.push(score);
        }
        slot.holds(self.prompt);
        Ok((likeliest, scores))
    }

    async fn next(
        &self,
        requests: &Requests,
        slot: usize,
        text: &[u32],
        count: usize,
    ) -> Result<Probabilities> {
        let mut body = next_token_body(text, self.plain, count);
        body.insert("id_slot".to_owned(), json!(slot));
        let mut part: Part = requests.post("/completion", &Value::Object(body), "classify").await?;
        Ok(part.completion_probabilities.pop().unwrap_or_default())
    }
}
