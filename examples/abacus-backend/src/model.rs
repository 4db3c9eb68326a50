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
        info.vocab_size = table.len();
        info.layers = 1;
        info.hidden_size = table.len();
        info.context_length = options.context_length.unwrap_or(CONTEXT);
        info.eos_token_ids = vec![END];
        Ok(Self {
            info,
            table: Arc::new(table),
            stats: SharedStats::default(),
            shutdown: CancellationToken::new(),
        })
    }

    // ANCHOR: prompt
    /// The prompt's ids, or why it cannot be run.
    fn ids(&self, prompt: Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Text(text) => self.table.ids(&text),
            Prompt::Tokens(ids) => ids,
            // No capability, so the core has refused it; and prompts of kinds to come.
            _ => return Err(Error::InvalidPrompt { reason: "expected text or token ids".to_owned() }),
        };
        self.info.check_prompt(&ids)?;
        Ok(ids)
    }
    // ANCHOR_END: prompt

    fn classify_one(&self, ids: &[u32], options: &ClassifyOptions) -> Classification {
        let row = self.table.row(ids[ids.len() - 1]);
        let mut answer = Classification::default();
        answer.token = sampling::likeliest(row);
        answer.text = self.table.text(answer.token);
        answer.prompt_tokens = ids.len();
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
            let mut row = self.table.row(before).to_vec();
            sampling::log_softmax(&mut row);
            total += row[id as usize];
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
        let ids = self.ids(prompt)?;
        let (writer, stream) = ResponseWriter::channel(
            &self.info,
            &self.stats,
            Verbatim::default(),
            &options,
            ids.len(),
            called,
        )?;
        let writer = writer.with_shutdown(self.shutdown.clone());
        let run = Run { ids, options, table: self.table.clone(), writer };
        thread::Builder::new()
            .name(ID.to_owned())
            .spawn(move || run.run())
            .map_err(|error| Error::backend(ID, "start a thread", error))?;
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

/// One request on its thread.
struct Run {
    ids: Vec<u32>,
    options: GenerateOptions,
    table: Arc<Table>,
    writer: ResponseWriter,
}

impl Run {
    // ANCHOR: run
    fn run(mut self) {
        let seed = self.options.sampling.seed_or_random();
        self.writer.begin(0);
        let reason = loop {
            if let Some(reason) = self.writer.wait() {
                break reason;
            }
            let token = self.next(seed, self.writer.generated_tokens());
            self.ids.push(token.id);
            self.writer.push(token);
        };
        self.writer.end(Ok(reason));
    }
    // ANCHOR_END: run

    fn next(&self, seed: u64, step: usize) -> Token {
        let sampling = &self.options.sampling;
        let before = self.ids[self.ids.len() - 1];
        let log_probabilities = sampling::log_probabilities(self.table.row(before), sampling);
        let temperature = sampling.temperature_or_greedy();
        let id = sampling::choose(&log_probabilities, temperature, uniform(seed, step));
        let token = Token::new(id, self.table.text(id));
        match self.options.log_probabilities {
            Some(top) => token.with_log_probabilities(&log_probabilities, top),
            None => token,
        }
    }
}
