//! A loaded model: text on this side, ids and arithmetic in the child.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use child_process::{Keeper, KillOnDrop, Launch};
use inference_core::{
    CancellationToken, Classification, ClassifyOptions, Error, GenerateOptions, LabelScore, LoadOptions,
    ModelInfo, ModelManifest, ModelStats, Prompt, Result, TemplateOptions, TextModel, TokenStream,
    backend::{SharedStats, spawn_blocking},
};
use inference_text::{PromptLimits, TextPipeline};

use crate::{
    ID, MlxLmOptions,
    client::{Answers, Client},
    config,
    failure::error_of,
    generation::{CREDIT, Generation, Shape},
    interpreter::REMEDY,
    launch::launch,
    protocol::{self, ErrorKind, Event, Memory, Request, decode_floats, or_minus_infinity},
};

/// Requests that are decoded at once where the caller has no wish.
const MAX_BATCH: usize = 32;

/// Prompt tokens that are computed at once where the caller has no wish: cancelling waits for one chunk.
const PREFILL_CHUNK: usize = 512;

/// A model in a child process.
#[derive(Debug)]
pub(crate) struct MlxLmModel {
    info: ModelInfo,
    text: TextPipeline,
    child: ChildSource,
    stats: SharedStats,
    shutdown: CancellationToken,
}

/// Where the child comes from: it is started again after a crash.
#[derive(Debug)]
struct ChildSource {
    launch: Launch,
    hang_timeout: Duration,
    load: protocol::Load,
    keeper: Keeper<Client>,
}

/// What the child says of a model that it has loaded.
#[derive(Debug, Clone, Default)]
struct Loaded {
    parameters: u64,
}

impl MlxLmModel {
    /// Loads the model in a child that runs this interpreter.
    pub(crate) async fn load(python: &Path, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let own = options.extensions.get::<MlxLmOptions>().cloned().unwrap_or_default();
        let load = protocol::Load {
            id: 0,
            path: utf8(manifest.path())?,
            adapter: options.adapter.as_deref().map(utf8).transpose()?,
            max_batch: options.max_batch.unwrap_or(MAX_BATCH),
            prefill_chunk: options.prefill_chunk.unwrap_or(PREFILL_CHUNK),
            memory_limit: options.memory_limit,
            cache_limit: options.cache_limit,
            trust_remote_code: own.trust_remote_code,
        };
        let mut info = config::describe(&manifest, options.context_length)?;
        let child = ChildSource {
            launch: launch(own.python.clone().unwrap_or_else(|| python.to_owned()), &own),
            hang_timeout: own.hang_timeout,
            load,
            keeper: Keeper::new(own.restart),
        };
        // The tokenizer is read while the child reads the weights.
        let path = manifest.path().to_owned();
        let text = spawn_blocking(move || TextPipeline::load(&path));
        let (client, loaded) = tokio::select! {
            started = child.start() => started?,
            () = options.cancel.cancelled() => return Err(Error::Cancelled),
        };
        let text = text.await?;
        child.keeper.set(client).await;
        info.parameters = loaded.parameters;
        // MLX would ban an id that the model lacks in memory that is another's.
        let ends = text.tokenizer().eos_ids().iter().copied();
        info.eos_token_ids = ends.filter(|id| (*id as usize) < info.vocab_size).collect();
        let (stats, shutdown) = (SharedStats::default(), CancellationToken::new());
        Ok(Self { info, text, child, stats, shutdown })
    }

    /// The child's request.
    fn request(&self, id: u64, prompt: Vec<u32>, max_tokens: usize, options: &GenerateOptions) -> Request {
        let sampling = &options.sampling;
        let own_ends = self.info.eos_token_ids.iter().filter(|_| !options.ignore_eos);
        let min_tokens = options.min_tokens.filter(|tokens| *tokens > 0);
        let vocab_size = self.info.vocab_size;
        let biases = sampling.logit_bias.as_deref().unwrap_or_default().iter();
        let biases = biases.filter(|(id, _)| (*id as usize) < vocab_size);
        Request::Generate(Box::new(protocol::Generate {
            id,
            max_tokens,
            credit: CREDIT,
            stop: own_ends.chain(options.stop_tokens.iter().flat_map(|ids| ids.iter())).copied().collect(),
            seed: sampling.seed_or_random(),
            temperature: sampling.temperature_or_greedy(),
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            top_k: sampling.top_k,
            xtc: sampling
                .xtc
                .map(|xtc| protocol::Xtc { probability: xtc.probability, threshold: xtc.threshold }),
            logit_bias: biases.map(|(id, bias)| (*id, bias.is_finite().then_some(*bias))).collect(),
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            penalty_window: sampling.has_penalties().then(|| sampling.window()),
            min_tokens,
            eos: min_tokens.map(|_| self.info.eos_token_ids.clone()).unwrap_or_default(),
            logprobs: options.log_probabilities,
            masked: options.is_constrained(),
            prompt,
        }))
    }

    /// Takes the verdicts on `prompts` prompts.
    async fn verdicts(
        &self,
        client: &Client,
        mut answers: Answers,
        prompts: usize,
        cancel: &CancellationToken,
    ) -> Result<Vec<protocol::Classified>> {
        let mut verdicts = Vec::with_capacity(prompts);
        while verdicts.len() < prompts {
            let event = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Error::Closed),
                () = cancel.cancelled() => return Err(Error::Cancelled),
                event = answers.next() => event,
            };
            match event {
                None => return Err(answers.stopped()),
                Some(Event::Classified(verdict)) if verdict.index == verdicts.len() => verdicts.push(verdict),
                Some(Event::Progress { .. }) => {}
                Some(Event::Error { kind, message, needed, .. }) => {
                    return Err(error_of(kind, message, needed, "classify"));
                }
                Some(event) => {
                    client.report_violation(format!("it answered a classification with {event:?}"));
                    return Err(answers.stopped());
                }
            }
        }
        Ok(verdicts)
    }

    fn classification(
        &self,
        verdict: &protocol::Classified,
        labels: &[String],
        prompt_tokens: usize,
    ) -> Result<Classification> {
        let scores: Vec<f32> = verdict.scores.iter().copied().map(or_minus_infinity).collect();
        let logits = verdict.logits.as_deref().map(|base64| {
            decode_floats(base64)
                .ok_or_else(|| Error::backend(ID, "read logits", "they are not base64 of float32"))
        });
        let mut classification = Classification::default();
        classification.token = verdict.token;
        classification.text = self.text.tokenizer().decode(&[verdict.token], false);
        classification.labels = LabelScore::normalize(labels, &scores);
        classification.logits = logits.transpose()?;
        classification.prompt_tokens = prompt_tokens;
        Ok(classification)
    }
}

#[async_trait]
impl TextModel for MlxLmModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.child.keeper.check_open()?;
        self.text.check_options(&prompt, &options)?;
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let prompt = self.text.prepare(prompt, &options.template, limits.clone()).await?;
        let shape = self.text.constraint(&prompt, &options, limits).await?;
        let shape = shape.map(|run| Shape { run, eos: self.info.eos_token_ids.clone() });
        let client = self.child.get().await?;
        let (mut writer, stream) = self.text.response(&self.info, &self.stats, &prompt, &options, called)?;
        // The child counts its own time from when it reads the request.
        writer.begin(0);
        let answers = client.request(|id| self.request(id, prompt.ids, writer.max_tokens(), &options));
        let generation = Generation::new(client.clone(), answers, writer, self.shutdown.clone(), shape);
        client.spawn(generation.run());
        Ok(stream)
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.child.keeper.check_open()?;
        Ok(self.text.prepare(prompt, &options, PromptLimits::without_context(&self.info)).await?.ids)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.child.keeper.check_open()?;
        let limits = PromptLimits::without_context(&self.info);
        self.text.run(limits, move |text, _| Ok(text.tokenizer().decode(&tokens, false))).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        self.child.keeper.check_open()?;
        let labels = options.labels.as_deref().unwrap_or_default();
        let limits = PromptLimits::new(&self.info, 0).with_cancel(options.cancel.clone());
        let label_tokens = self.text.encode_labels(&options, limits.clone()).await?;
        let longest = label_tokens.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let limits = limits.with_reserved(longest);
        let prompts = self.text.prepare_all(prompts, &options.template, limits).await?;
        let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|prompt| prompt.ids).collect();
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        if options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let client = self.child.get().await?;
        let logits = options.logits;
        let answers = client.request(|id| {
            Request::Classify(protocol::Classify { id, prompts, labels: label_tokens, logits })
        });
        // A caller who stops waiting wants no more of it.
        let mut unfinished = CancelOnDrop { client: &client, id: Some(answers.id) };
        let verdicts = self.verdicts(&client, answers, lengths.len(), &options.cancel).await?;
        unfinished.id = None;
        let verdicts = verdicts.into_iter().zip(lengths);
        verdicts.map(|(verdict, length)| self.classification(&verdict, labels, length)).collect()
    }

    fn stats(&self) -> ModelStats {
        let mut stats = self.stats.snapshot();
        if let Some(client) = self.child.keeper.current() {
            let Memory { active_memory, peak_memory, cache_memory } = client.memory();
            stats.memory.active_bytes = active_memory;
            stats.memory.peak_bytes = peak_memory;
            stats.memory.cache_bytes = cache_memory;
        }
        stats
    }

    async fn close(&self) -> Result<()> {
        self.child.keeper.close();
        self.shutdown.cancel();
        if let Some(client) = self.child.keeper.take().await {
            client.close().await;
        }
        Ok(())
    }
}

impl Drop for MlxLmModel {
    fn drop(&mut self) {
        // Running generations hold the child until they see this.
        self.shutdown.cancel();
    }
}

impl ChildSource {
    /// The child; a new one where the last has crashed.
    async fn get(&self) -> Result<Arc<Client>> {
        self.keeper.get(async { Ok(self.start().await?.0) }).await
    }

    /// Starts a child and loads the model in it.
    async fn start(&self) -> Result<(Arc<Client>, Loaded)> {
        let (client, hello) = Client::start(self.launch.clone(), self.hang_timeout).await?;
        if hello.mlx_lm.is_none() || hello.mlx.is_none() {
            let missing = if hello.mlx_lm.is_none() { "mlx_lm" } else { "mlx" };
            let python = self.launch.program.display();
            let reason = format!("{python} (Python {}) has no {missing}; {REMEDY}", hello.python);
            return Err(Error::unavailable(ID, reason));
        }
        let client = KillOnDrop::new(Arc::new(client));
        let mut answers = client.request(|id| Request::Load(protocol::Load { id, ..self.load.clone() }));
        loop {
            match answers.next().await {
                None => return Err(answers.stopped()),
                Some(Event::Loaded { parameters, device, .. }) => {
                    tracing::debug!(device, parameters, "loaded");
                    return Ok((client.keep(), Loaded { parameters }));
                }
                Some(Event::Progress { .. }) => {}
                Some(Event::Error { kind: ErrorKind::InvalidModel, message, .. }) => {
                    return Err(Error::invalid_file(&self.load.path, message));
                }
                Some(Event::Error { kind: ErrorKind::InvalidAdapter, message, .. }) => {
                    let adapter = self.load.adapter.as_ref().unwrap_or(&self.load.path);
                    return Err(Error::invalid_file(adapter, message));
                }
                Some(Event::Error { kind, message, needed, .. }) => {
                    return Err(error_of(kind, message, needed, "load the model"));
                }
                Some(event) => {
                    client.report_violation(format!("it answered a load with {event:?}"));
                    // Wait for its end, which tells why.
                }
            }
        }
    }
}

/// Cancels a request whose answer nobody waits for any more.
struct CancelOnDrop<'a> {
    client: &'a Client,
    id: Option<u64>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.client.send(&Request::Cancel { id });
        }
    }
}

/// The child gets paths as JSON, which is UTF-8.
fn utf8(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(|source| Error::io("resolve", path, source))?;
    match absolute.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::invalid_file(path, "its path is not UTF-8, which the mlx_lm backend needs")),
    }
}
