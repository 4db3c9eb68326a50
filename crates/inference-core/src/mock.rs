//! A deterministic backend with no model behind it, for tests and examples.
//!
//! Its tokens are words. `generate` goes on with the prompt's own words from the second on, over and over; at a temperature
//! it draws from them; the word `<eos>` ends the text. `classify` prefers labels by the letters they share with the prompt.
//! It keeps the whole contract and is never selected unless it is named.

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
use tempfile::TempDir;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::{
    Classification, ClassifyOptions, Dtype, Error, Feature, Finish, FinishReason, GenerateOptions,
    LabelScore, LoadOptions, LoadProgress, Metrics, ModelInfo, ModelManifest, ModelStats, Prompt, Result,
    Session, StopCause, TemplateOptions, TextModel, Token, TokenStream,
    capabilities::Capabilities,
    engine::{Backend, BackendInfo, Support},
    registry::{Availability, BackendDescriptor},
    session::SessionEngine,
    session_file::{SessionFile, SessionTensor},
    stream::TokenSink,
};

/// The mock's entry for a registry. The feature `mock` also registers it, with a priority that needs it to be named.
pub const DESCRIPTOR: BackendDescriptor = BackendDescriptor::new(
    ID,
    -100,
    || Availability::Available("imagination".to_owned()),
    || Ok(Arc::new(MockBackend::default())),
);

crate::register_backend!(DESCRIPTOR);

/// What the mock can do.
pub const CAPABILITIES: Capabilities = Capabilities::from_features(&[
    Feature::Generate,
    Feature::Chat,
    Feature::Classify,
    Feature::Logits,
    Feature::Sampling,
    Feature::Seed,
    Feature::Stop,
    Feature::ContextLength,
    Feature::Session,
    Feature::Tokenize,
]);

/// Ids of the mock's vocabulary: 0 ends a text, a word has the id that its letters hash to.
pub const VOCAB_SIZE: usize = 4096;

const ID: &str = "mock";
const EOS: u32 = 0;
const CONTEXT: usize = 1 << 20;

/// A new folder with a model that the mock can load; it is removed when the value is dropped.
///
/// # Panics
/// The system has no folder for temporary files: this is for tests.
#[must_use]
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let header = br#"{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut tensors = (header.len() as u64).to_le_bytes().to_vec();
    tensors.extend_from_slice(header);
    tensors.extend_from_slice(&[0; 4]);
    std::fs::write(folder.path().join("config.json"), r#"{"model_type":"mock"}"#).expect("a writable folder");
    std::fs::write(folder.path().join("model.safetensors"), tensors).expect("a writable folder");
    folder
}

/// The mock as a [`Backend`].
#[derive(Debug)]
pub struct MockBackend {
    info: BackendInfo,
}

impl Default for MockBackend {
    fn default() -> Self {
        Self { info: BackendInfo::new(ID, env!("CARGO_PKG_VERSION"), "imagination") }
    }
}

#[async_trait]
impl Backend for MockBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn supports(&self, model: &ModelManifest) -> Support {
        match model.model_type() {
            "mock" => Support::Yes,
            other => Support::No(format!("model_type is {other:?}, expected \"mock\"")),
        }
    }

    async fn load(&self, model: ModelManifest, options: LoadOptions) -> Result<Arc<dyn TextModel>> {
        if let Some(progress) = &options.on_progress {
            progress.report(LoadProgress::new(model.weight_bytes(), model.weight_bytes()));
        }
        let info = ModelInfo {
            path: model.path().to_owned(),
            backend: ID.to_owned(),
            architecture: model.model_type().to_owned(),
            vocab_size: VOCAB_SIZE,
            layers: 1,
            hidden_size: 1,
            context_length: options.context_length.unwrap_or(CONTEXT),
            parameters: 1,
            weight_bytes: model.weight_bytes(),
            dtype: model.float_dtype(),
            quantization: None,
            eos_token_ids: vec![EOS],
        };
        Ok(Arc::new(MockModel(Arc::new(Inner {
            info,
            manifest: model,
            stats: Arc::default(),
            vocabulary: Mutex::default(),
            closed: AtomicBool::new(false),
            shutdown: CancellationToken::new(),
        }))))
    }
}

#[derive(Debug)]
struct MockModel(Arc<Inner>);

/// What a model shares with its sessions.
#[derive(Debug)]
struct Inner {
    info: ModelInfo,
    manifest: ModelManifest,
    stats: Arc<Mutex<ModelStats>>,
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
                if let Some(id) = ids.iter().find(|id| **id as usize >= VOCAB_SIZE) {
                    let reason = format!("token {id} is outside the vocabulary of {VOCAB_SIZE}");
                    return Err(Error::InvalidPrompt { reason });
                }
                words.extend(ids.into_iter().map(|id| Word { id, text: format!("#{id}") }));
            }
        }
        if words.is_empty() {
            return Err(Error::InvalidPrompt { reason: "it is empty".to_owned() });
        }
        if words.len() > self.info.context_length {
            return Err(Error::ContextExceeded { tokens: words.len(), limit: self.info.context_length });
        }
        lock(&self.vocabulary).extend(words.iter().map(|word| (word.id, word.text.clone())));
        Ok(words)
    }

    fn start(
        &self,
        words: Vec<Word>,
        options: GenerateOptions,
        started: Instant,
        text: Option<OwnedMutexGuard<Vec<Word>>>,
    ) -> Result<TokenStream> {
        let (sink, stream) = TokenStream::channel(ID, 64, options.cancel.clone());
        lock(&self.stats).requests += 1;
        lock(&self.stats).active += 1;
        let (stats, shutdown, room) =
            (self.stats.clone(), self.shutdown.clone(), self.info.context_length - words.len());
        let run = Run { words, options, room, started, shutdown, text };
        let spawned =
            std::thread::Builder::new().name("mock".to_owned()).spawn(move || run.finish(sink, &stats));
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
        let started = Instant::now();
        self.0.start(self.0.words(prompt, &[])?, options, started, None)
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
        lock(&self.0.stats).clone()
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
        let started = Instant::now();
        let text = self.text.clone().lock_owned().await;
        self.model.start(self.model.words(prompt, &text)?, options, started, Some(text))
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

#[derive(Debug, Clone)]
struct Word {
    id: u32,
    text: String,
}

impl Word {
    fn new(text: &str) -> Self {
        let id = if text == "<eos>" {
            EOS
        } else {
            let hash = text
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            1 + (hash % (VOCAB_SIZE as u64 - 1)) as u32
        };
        Self { id, text: text.to_owned() }
    }
}

struct Run {
    words: Vec<Word>,
    options: GenerateOptions,
    /// Tokens that still fit the context.
    room: usize,
    started: Instant,
    shutdown: CancellationToken,
    /// The session's, which this is a turn of.
    text: Option<OwnedMutexGuard<Vec<Word>>>,
}

impl Run {
    fn finish(mut self, mut sink: TokenSink, stats: &Mutex<ModelStats>) {
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Registry, TextModelExt as _};

    async fn model() -> Arc<dyn TextModel> {
        let folder = folder();
        Registry::empty().with(DESCRIPTOR).load_model(folder.path()).backend("mock").await.unwrap()
    }

    #[tokio::test]
    async fn it_goes_on_with_the_prompts_words() {
        let model = model().await;
        let answer = model.complete("a b c", GenerateOptions::new().max_tokens(4)).await.unwrap();
        assert_eq!(answer.text, " b c a b");
        assert_eq!(answer.finish.reason, FinishReason::Length);
        assert_eq!(answer.finish.metrics.prompt_tokens, 3);
        let chat = vec![Message::user("x y <eos>")];
        let answer = model.complete(chat, GenerateOptions::new()).await.unwrap();
        assert_eq!(
            (answer.text.as_str(), answer.finish.reason),
            (" y", FinishReason::Stop(StopCause::EndOfSequence(0)))
        );
        assert_eq!(model.stats().requests, 2);
    }

    #[tokio::test]
    async fn stop_strings_cut_across_tokens() {
        let model = model().await;
        let answer = model.complete("a b c d", GenerateOptions::new().stop(["c d"])).await.unwrap();
        assert_eq!(answer.text, " b ");
        assert_eq!(answer.finish.reason, FinishReason::Stop(StopCause::StopString("c d".into())));
    }

    #[tokio::test]
    async fn a_seed_reproduces() {
        let model = model().await;
        let options = GenerateOptions::new().temperature(1.0).seed(7).max_tokens(20);
        let one = model.complete("a b c d e f", options.clone()).await.unwrap();
        assert_eq!(one.text, model.complete("a b c d e f", options).await.unwrap().text);
    }

    #[tokio::test]
    async fn what_it_lacks_is_refused() {
        let error = model().await.generate("a".into(), GenerateOptions::new().top_k(1)).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { feature: Feature::TopK, .. }), "{error}");
    }

    #[tokio::test]
    async fn closing_ends_running_requests_and_refuses_new_ones() {
        let model = model().await;
        let mut stream =
            model.generate("a b".into(), GenerateOptions::new().max_tokens(usize::MAX)).await.unwrap();
        model.close().await.unwrap();
        assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Cancelled);
        assert!(matches!(model.generate("a".into(), GenerateOptions::new()).await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn it_is_never_selected_unnamed() {
        let folder = folder();
        let error = Registry::empty().with(DESCRIPTOR).load_model(folder.path()).await.unwrap_err();
        assert!(error.to_string().contains("mock: usable, only when it is named"), "{error}");
    }
}
