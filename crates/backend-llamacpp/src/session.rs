//! Sessions: the text on this side, its keys and values in whichever of the child's slots had it last.
//!
//! A slot that another text needs meanwhile is overwritten; then the next turn computes the text again, or takes up the state that the
//! session was loaded with. A saved session has the state of a slot, as llama-server writes it, in one tensor.

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;
use inference_core::{
    Dtype, Error, GenerateOptions, ModelInfo, Prompt, Result, TokenStream,
    backend::{SessionEngine, SessionFile, SessionTensor, spawn_blocking},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    inner::Inner,
    next_token::next_token_body,
    protocol::{Part, SlotAction},
    turn::{SavedState, SessionText, new_file, remove},
};

/// The tensor of a saved session that has the state of a slot.
const STATE: &str = "state";

/// Bytes of a state besides its keys and values: ids, positions, and what recurrent layers keep.
const STATE_BESIDES: u64 = 1 << 30;

/// A session.
#[derive(Debug)]
pub(crate) struct LlamaSession {
    model: Arc<Inner>,
    text: Arc<Mutex<SessionText>>,
}

impl LlamaSession {
    /// An empty one.
    pub(crate) fn new(model: Arc<Inner>) -> Self {
        Self { model, text: Arc::default() }
    }

    /// Reads a saved one; with the note that was saved with it.
    pub(crate) async fn load(model: Arc<Inner>, path: &Path) -> Result<(Self, String)> {
        let (inner, path) = (model.clone(), path.to_owned());
        let (text, note) = spawn_blocking(move || {
            let (fingerprint, layout) = (inner.manifest.fingerprint()?, inner.state_layout());
            let limit = |tokens: usize| state_limit(&inner.info, tokens);
            let mut file = SessionFile::read(&path, &fingerprint, &layout, limit)?;
            let state = file.tensors.remove(STATE).map(|tensor| tensor.bytes);
            check(&inner.info, &path, &file, state.is_some())?;
            let state = state.map(|bytes| SavedState::new(&bytes, file.tokens.clone())).transpose()?;
            Ok((SessionText { tokens: file.tokens, state: state.map(Arc::new) }, file.metadata))
        })
        .await?;
        Ok((Self { model, text: Arc::new(Mutex::new(text)) }, note))
    }

    /// The state of a slot that holds the text.
    async fn state(&self, tokens: Vec<u32>) -> Result<Vec<u8>> {
        let (client, plain) = (self.model.client().await?, self.model.vocabulary.plain());
        let requests = client.clone();
        client
            .run(async move {
                let client = requests;
                let gone = || Error::stopped(client.backend(), "it has no slots");
                let mut slot = client.slots.take(&tokens).await.ok_or_else(gone)?;
                let requests = client.weak();
                if slot.shared + 1 < tokens.len() {
                    let mut body = next_token_body(&tokens, plain, 0);
                    body.insert("id_slot".to_owned(), json!(slot.index));
                    requests.post::<Part>("/completion", &Value::Object(body), "compute a text").await?;
                }
                let (name, path) = new_file(&client);
                let url = format!("/slots/{}?action=save", slot.index);
                let saved =
                    requests.post::<SlotAction>(&url, &json!({"filename": name}), "save a slot").await;
                let bytes = std::fs::read(&path);
                remove(&path);
                slot.holds(tokens[..tokens.len() - 1].to_vec());
                if saved?.n_saved + 1 < tokens.len() {
                    return Err(Error::backend(
                        client.backend(),
                        "save a slot",
                        "the slot holds another text",
                    ));
                }
                bytes.map_err(|source| Error::io("read", &path, source))
            })
            .await
    }
}

#[async_trait]
impl SessionEngine for LlamaSession {
    async fn generate(&mut self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        let text = self.text.clone().lock_owned().await;
        self.model.generate(prompt, options, called, Some(text)).await
    }

    async fn tokens(&self) -> Vec<u32> {
        self.text.lock().await.tokens.clone()
    }

    async fn fork(&self) -> Result<Box<dyn SessionEngine>> {
        self.model.keeper.check_open()?;
        let text = self.text.lock().await.clone();
        Ok(Box::new(Self { model: self.model.clone(), text: Arc::new(Mutex::new(text)) }))
    }

    async fn save(&self, path: &Path, metadata: &str) -> Result<()> {
        self.model.keeper.check_open()?;
        let tokens = self.text.lock().await.tokens.clone();
        let state = if tokens.is_empty() { None } else { Some(self.state(tokens.clone()).await?) };
        let (model, path, metadata) = (self.model.clone(), path.to_owned(), metadata.to_owned());
        spawn_blocking(move || {
            let mut file = SessionFile::new(model.manifest.fingerprint()?, model.state_layout(), tokens);
            file.metadata = metadata;
            if let Some(bytes) = state {
                let tensor = SessionTensor::new(Dtype::U8, vec![bytes.len()], bytes);
                file.tensors.insert(STATE.to_owned(), tensor);
            }
            file.write(&path)
        })
        .await
    }
}

/// The checksum is right, so only a file that was made to deceive fails here.
fn check(info: &ModelInfo, path: &Path, file: &SessionFile, has_state: bool) -> Result<()> {
    let invalid = |reason: String| Err(Error::invalid_session(path, reason));
    if let Some(id) = file.tokens.iter().find(|id| **id as usize >= info.vocab_size) {
        return invalid(format!("token {id} is outside the vocabulary of {}", info.vocab_size));
    }
    if file.tokens.len() > info.context_length {
        return invalid(format!(
            "its {} tokens do not fit the context of {}",
            file.tokens.len(),
            info.context_length
        ));
    }
    if has_state == file.tokens.is_empty() || !file.tensors.is_empty() {
        return invalid(format!("expected the tensor {STATE:?} where there are tokens, and no other"));
    }
    Ok(())
}

/// Bytes that the state of a text can have at most: keys and values as wide as the residual stream, in single precision.
fn state_limit(info: &ModelInfo, tokens: usize) -> u64 {
    let each = (info.layers.max(1) as u64).saturating_mul(info.hidden_size.max(1) as u64).saturating_mul(16);
    // A slot may have gone on for some tokens.
    (tokens as u64 + 1024).saturating_mul(each).saturating_add(STATE_BESIDES)
}
