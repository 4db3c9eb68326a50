//! The mock's model and its sessions.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::{
    generation::Run,
    words::{ID, VOCAB_SIZE, Word, lock},
};
use crate::{
    Classification, ClassifyOptions, Dtype, EmbedOptions, Embedding, Error, GenerateOptions, LabelScore,
    ModelInfo, ModelManifest, ModelStats, Prompt, Relevance, RerankOptions, Result, Session, TemplateOptions,
    TextModel, TextProgress, TokenStream,
    response::{ResponseWriter, SharedStats, Verbatim},
    session::SessionEngine,
    session_file::{SessionFile, SessionTensor},
};

/// Elements of the mock's vectors.
const DIMENSIONS: usize = 64;

/// A loaded mock.
#[derive(Debug)]
pub(super) struct MockModel(Arc<Inner>);

impl MockModel {
    pub(super) fn new(info: ModelInfo, manifest: ModelManifest) -> Self {
        Self(Arc::new(Inner {
            info,
            manifest,
            stats: SharedStats::default(),
            vocabulary: Mutex::default(),
            closed: AtomicBool::new(false),
            shutdown: CancellationToken::new(),
        }))
    }
}

/// What a model shares with its sessions.
#[derive(Debug)]
struct Inner {
    info: ModelInfo,
    manifest: ModelManifest,
    stats: SharedStats,
    /// The words of prompts so far, by id.
    vocabulary: Mutex<HashMap<u32, String>>,
    closed: AtomicBool,
    shutdown: CancellationToken,
}

impl Inner {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The prompt's words after those of `text`, which a conversation replaces.
    fn words(&self, prompt: Prompt, text: &[Word]) -> Result<Vec<Word>> {
        self.check_open()?;
        let mut words = if matches!(prompt, Prompt::Chat(_)) { Vec::new() } else { text.to_vec() };
        match prompt {
            Prompt::Text(text) => words.extend(text.split_whitespace().map(Word::new)),
            Prompt::Chat(messages) => {
                words.extend(messages.iter().flat_map(|m| m.content.split_whitespace()).map(Word::new));
            }
            Prompt::Tokens(ids) => {
                words.extend(ids.into_iter().map(|id| Word { id, text: format!("#{id}") }));
            }
        }
        let ids: Vec<u32> = words.iter().map(|word| word.id).collect();
        self.info.check_prompt(&ids)?;
        lock(&self.vocabulary).extend(words.iter().map(|word| (word.id, word.text.clone())));
        Ok(words)
    }

    fn start(
        &self,
        words: Vec<Word>,
        options: GenerateOptions,
        called: Instant,
        text: Option<OwnedMutexGuard<Vec<Word>>>,
    ) -> Result<TokenStream> {
        let info = &self.info;
        let (writer, stream) =
            ResponseWriter::channel(info, &self.stats, Verbatim::default(), &options, words.len(), called)?;
        let run = Run { words, options, writer: writer.with_shutdown(self.shutdown.clone()), text };
        let spawned = std::thread::Builder::new().name("mock".to_owned()).spawn(move || run.finish());
        spawned.map_err(|error| Error::backend(ID, "start a thread", error))?;
        Ok(stream)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[async_trait]
impl TextModel for MockModel {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.0.start(self.0.words(prompt, &[])?, options, called, None)
    }

    async fn classify(&self, prompts: Vec<Prompt>, options: ClassifyOptions) -> Result<Vec<Classification>> {
        let mut classifications = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            if options.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let words = self.0.words(prompt, &[])?;
            let next = &words[1 % words.len()];
            let shared = |label: &String| {
                label.chars().filter(|c| words.iter().any(|w| w.text.contains(*c))).count() as f32
            };
            let labels = options.labels.as_deref().unwrap_or_default();
            let scores: Vec<f32> =
                labels.iter().map(|label| shared(label) - label.chars().count() as f32).collect();
            classifications.push(Classification {
                token: next.id,
                text: format!(" {}", next.text),
                labels: LabelScore::normalize(labels, &scores),
                logits: options
                    .logits
                    .then(|| (0..VOCAB_SIZE as u32).map(|id| f32::from(u8::from(id == next.id))).collect()),
                prompt_tokens: words.len(),
            });
        }
        Ok(classifications)
    }

    async fn embed(&self, prompts: Vec<Prompt>, options: EmbedOptions) -> Result<Vec<Embedding>> {
        let prefix = options.prefix.clone().unwrap_or_default();
        if options.prefix_name.is_some() {
            let reason = "the mock's folder has no prefixes".to_owned();
            return Err(Error::invalid_option("prefix_name", reason));
        }
        let total = prompts.len();
        let mut embeddings = Vec::with_capacity(total);
        for prompt in prompts {
            let prompt = match prompt {
                Prompt::Text(text) => {
                    let (text, most) = (format!("{prefix}{text}"), self.0.info.context_length);
                    let words =
                        text.split_whitespace().take(if options.truncate { most } else { usize::MAX });
                    Prompt::Text(words.collect::<Vec<_>>().join(" "))
                }
                other => other,
            };
            if options.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let words = self.0.words(prompt, &[])?;
            let mut vector = vec![0.0_f32; DIMENSIONS];
            words.iter().for_each(|word| vector[word.id as usize % DIMENSIONS] += 1.0);
            embeddings.push(Embedding::from_pooled(vector, words.len(), &options, true)?);
            options
                .on_progress
                .iter()
                .for_each(|seen| seen.report(TextProgress::new(embeddings.len(), total)));
        }
        Ok(embeddings)
    }

    async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        options: RerankOptions,
    ) -> Result<Vec<Relevance>> {
        if options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if options.instruction.is_some() {
            let reason = "the mock reads none".to_owned();
            return Err(Error::invalid_option("instruction", reason));
        }
        let query = self.0.words(Prompt::Text(query), &[])?;
        let relevance = |document: String| {
            let words = self.0.words(Prompt::Text(document), &[])?;
            let shared = query.iter().filter(|word| words.iter().any(|other| other.id == word.id)).count();
            let logit = 2.0 * shared as f32 - query.len() as f32;
            Ok(Relevance::from_logit(logit, query.len() + words.len(), options.raw))
        };
        documents.into_iter().map(relevance).collect()
    }

    async fn tokenize(&self, prompt: Prompt, _options: TemplateOptions) -> Result<Vec<u32>> {
        Ok(self.0.words(prompt, &[])?.iter().map(|word| word.id).collect())
    }

    /// Ids are hashes of words, so only words of earlier prompts are known.
    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        self.0.check_open()?;
        let vocabulary = lock(&self.0.vocabulary);
        let word = |id: &u32| vocabulary.get(id).map_or_else(|| format!(" #{id}"), |word| format!(" {word}"));
        Ok(tokens.iter().map(word).collect())
    }

    async fn session(&self) -> Result<Session> {
        self.0.check_open()?;
        Ok(Session::new(Box::new(MockSession { model: self.0.clone(), text: Arc::default() }), ""))
    }

    async fn load_session(&self, path: &Path) -> Result<Session> {
        self.0.check_open()?;
        let file = SessionFile::read(path, &self.0.manifest.fingerprint()?, LAYOUT, |tokens| {
            // The words, as JSON: none is that long.
            (tokens as u64 + 1).saturating_mul(1 << 16)
        })?;
        let texts: Option<Vec<String>> =
            file.tensors.get(TEXTS).and_then(|texts| serde_json::from_slice(&texts.bytes).ok());
        let Some(texts) = texts.filter(|texts| texts.len() == file.tokens.len()) else {
            return Err(Error::invalid_session(path, format!("{TEXTS}: expected a text for each token")));
        };
        let words = texts.iter().map(|text| Word::new(text)).zip(file.tokens);
        let words = words.map(|(word, id)| Word { id, ..word }).collect();
        let text = Arc::new(tokio::sync::Mutex::new(words));
        Ok(Session::new(Box::new(MockSession { model: self.0.clone(), text }), file.metadata))
    }

    fn stats(&self) -> ModelStats {
        self.0.stats.snapshot()
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        self.0.shutdown.cancel();
        Ok(())
    }
}

/// How the mock keeps a session, and the tensor that it adds to the file: the words, as JSON.
const LAYOUT: &str = "words";
const TEXTS: &str = "texts";

/// A turn holds the text's lock until it has ended.
#[derive(Debug)]
struct MockSession {
    model: Arc<Inner>,
    text: Arc<tokio::sync::Mutex<Vec<Word>>>,
}

#[async_trait]
impl SessionEngine for MockSession {
    async fn generate(&mut self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        let text = self.text.clone().lock_owned().await;
        self.model.start(self.model.words(prompt, &text)?, options, called, Some(text))
    }

    async fn tokens(&self) -> Vec<u32> {
        self.text.lock().await.iter().map(|word| word.id).collect()
    }

    async fn fork(&self) -> Result<Box<dyn SessionEngine>> {
        self.model.check_open()?;
        let text = Arc::new(tokio::sync::Mutex::new(self.text.lock().await.clone()));
        Ok(Box::new(Self { model: self.model.clone(), text }))
    }

    async fn save(&self, path: &Path, metadata: &str) -> Result<()> {
        self.model.check_open()?;
        let mut file = SessionFile::new(self.model.manifest.fingerprint()?, LAYOUT, self.tokens().await);
        metadata.clone_into(&mut file.metadata);
        let texts: Vec<String> = self.text.lock().await.iter().map(|word| word.text.clone()).collect();
        let bytes = serde_json::json!(texts).to_string().into_bytes();
        let tensor = SessionTensor::new(Dtype::U8, vec![bytes.len()], bytes);
        file.tensors.insert(TEXTS.to_owned(), tensor);
        file.write(path)
    }
}
