//! A loaded table: one thread for each request.

use std::{sync::Arc, thread, time::Instant};

use async_trait::async_trait;
use inference_core::{
    CancellationToken, Classification, ClassifyOptions, Error, GenerateOptions, LabelScore, LoadOptions,
    ModelInfo, ModelManifest, ModelStats, Prompt, Result, TextModel, Token, TokenStream,
    backend::{ResponseWriter, SharedStats, Verbatim, uniform},
};

use crate::{
    ID, sampling,
    table::{END, Table},
};

const CONTEXT: usize = 1 << 15;

#[derive(Debug)]
pub(crate) struct Model {
    info: ModelInfo,
    table: Arc<Table>,
    stats: SharedStats,
    /// Ends every running request.
    shutdown: CancellationToken,
}

impl Model {
    pub(crate) fn new(manifest: &ModelManifest, table: Table, options: &LoadOptions) -> Result<Self> {
        let mut info = ModelInfo::from_manifest(ID, manifest)?;
        info.layers = 1;
        info.hidden_size = table.len();
        info.context_length = options.context_length.unwrap_or(CONTEXT);
        info.eos_token_ids = vec![END];
        let (stats, shutdown) = Default::default();
        Ok(Self { info, table: Arc::new(table), stats, shutdown })
    }

    // ANCHOR: prompt
    /// The prompt's ids, or why it cannot be run.
    fn ids(&self, prompt: Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Text(text) => self.table.ids(&text),
            Prompt::Tokens(ids) => ids,
            // No capability, so the core has refused it; and prompts of kinds to come.
            _ => return Err(Error::invalid_prompt("expected text or token ids")),
        };
        self.info.check_prompt(&ids)?;
        Ok(ids)
    }
    // ANCHOR_END: prompt

    fn classify_one(&self, ids: &[u32], options: &ClassifyOptions) -> Classification {
        let row = self.table.row(ids[ids.len() - 1]);
        let token = sampling::likeliest(row);
        let mut answer = Classification::new(token, self.table.text(token), ids.len());
        answer.logits = options.logits.then(|| row.to_vec());
        if let Some(labels) = &options.labels {
            let scores: Vec<f32> = labels.iter().map(|label| self.score(ids, label)).collect();
            answer.labels = LabelScore::normalize(labels, &scores);
        }
        answer
    }

    /// The log-probability that the prompt goes on with the label.
    fn score(&self, prompt: &[u32], label: &str) -> f32 {
        let mut before = prompt[prompt.len() - 1];
        let mut total = 0.0;
        for id in self.table.ids(label) {
            total += sampling::log_probabilities(self.table.row(before), &Default::default())[id as usize];
            before = id;
        }
        total
    }
}

// ANCHOR: generate
#[async_trait]
impl TextModel for Model {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        let mut ids = self.ids(prompt)?;
        let text = Verbatim::default();
        let (writer, stream) =
            ResponseWriter::channel(&self.info, &self.stats, text, &options, ids.len(), called)?;
        let mut writer = writer.with_shutdown(self.shutdown.clone());
        let table = self.table.clone();
        let run = move || {
            // ANCHOR: run
            let seed = options.sampling.seed_or_random();
            writer.begin(0);
            let reason = loop {
                if let Some(reason) = writer.wait() {
                    break reason;
                }
                let token = next(&table, &ids, &options, uniform(seed, writer.generated_tokens()));
                ids.push(token.id);
                writer.push(token);
            };
            writer.end(Ok(reason));
            // ANCHOR_END: run
        };
        let thread = thread::Builder::new().name(ID.to_owned());
        thread.spawn(run).map_err(|error| Error::backend(ID, "start a thread", error))?;
        Ok(stream)
    }
    // ANCHOR_END: generate

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            if options.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            answers.push(self.classify_one(&self.ids(prompt)?, &options));
        }
        Ok(answers)
    }

    fn stats(&self) -> ModelStats {
        self.stats.snapshot()
    }

    // ANCHOR: close
    async fn close(&self) -> Result<()> {
        self.shutdown.cancel();
        Ok(())
    }
    // ANCHOR_END: close
}

/// The token after `ids`.
fn next(table: &Table, ids: &[u32], options: &GenerateOptions, uniform: f64) -> Token {
    let log_probabilities = sampling::log_probabilities(table.row(ids[ids.len() - 1]), &options.sampling);
    let id = sampling::choose(&log_probabilities, options.sampling.temperature_or_greedy(), uniform);
    let token = Token::new(id, table.text(id));
    match options.log_probabilities {
        Some(top) => token.with_log_probabilities(&log_probabilities, top),
        None => token,
    }
}
