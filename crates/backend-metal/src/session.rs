//! A session, as callers hold it: the text here, its keys and values on the MLX thread.

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;
use inference_core::{
    Error, GenerateOptions, Prompt, Result, TokenStream,
    backend::{SessionEngine, SessionFile, spawn_blocking},
};
use inference_text::PromptLimits;
use tokio::sync::{Mutex, oneshot};

use crate::{
    engine::{SessionCommand, SessionId, SessionTurn},
    shared_model::SharedModel,
};

/// A session on MLX. A turn holds the lock of the text until it has ended.
#[derive(Debug)]
pub(crate) struct MlxSession {
    model: Arc<SharedModel>,
    id: SessionId,
    text: Arc<Mutex<Vec<u32>>>,
}

impl MlxSession {
    pub(crate) fn new(model: Arc<SharedModel>) -> Self {
        Self { model, id: SessionId::new(), text: Arc::default() }
    }

    /// The session that was saved to this file, and its note.
    pub(crate) async fn load(model: Arc<SharedModel>, path: &Path) -> Result<(Self, String)> {
        let (file, fingerprint, layout) =
            (path.to_owned(), model.fingerprint().await?.to_owned(), model.layout.clone());
        // Words count the places of a cache, and quantised ones take fewer.
        let (position, states) = (model.position_bytes, model.state_bytes);
        let limit = move |tokens: usize| {
            position.saturating_mul(tokens as u64).saturating_add(states).saturating_add(1 << 20)
        };
        let file = spawn_blocking(move || SessionFile::read(&file, &fingerprint, &layout, limit)).await?;
        let info = &model.info;
        if let Some(id) = file.tokens.iter().find(|id| **id as usize >= info.vocab_size) {
            let reason = format!("tokens: {id} is outside the vocabulary of {}", info.vocab_size);
            return Err(Error::invalid_session(path, reason));
        }
        let session = Self { id: SessionId::new(), text: Arc::new(Mutex::new(file.tokens)), model };
        let (reply, imported) = oneshot::channel();
        let command = SessionCommand::Import { id: session.id, tensors: file.tensors, reply };
        session.model.handle.session(command)?;
        let imported = imported.await.map_err(|_| session.gone())?;
        imported.map_err(|reason| Error::invalid_session(path, reason))?;
        Ok((session, file.metadata))
    }

    /// Why the engine does not answer.
    fn gone(&self) -> Error {
        self.model.check_open().err().unwrap_or_else(|| self.model.handle.stopped())
    }
}

#[async_trait]
impl SessionEngine for MlxSession {
    async fn generate(&mut self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        let called = Instant::now();
        self.model.check_open()?;
        let text = self.text.clone().lock_owned().await;
        let prompt = match prompt {
            Prompt::Text(more) if !text.is_empty() => {
                let limits = PromptLimits::new(&self.model.info, 0).with_cancel(options.cancel.clone());
                Prompt::Tokens([&text[..], &self.model.text.encode_more(more, limits).await?].concat())
            }
            Prompt::Tokens(more) => Prompt::Tokens([&text[..], &more].concat()),
            first_or_whole => first_or_whole,
        };
        let prompt = self.model.prepare(prompt, &options).await?;
        self.model.generate(prompt, options, called, Some(SessionTurn { id: self.id, text })).await
    }

    async fn tokens(&self) -> Vec<u32> {
        self.text.lock().await.clone()
    }

    async fn fork(&self) -> Result<Box<dyn SessionEngine>> {
        self.model.check_open()?;
        let text = self.text.lock().await;
        let mut fork = Self::new(self.model.clone());
        fork.text = Arc::new(Mutex::new(text.clone()));
        self.model.handle.session(SessionCommand::Fork { from: self.id, to: fork.id })?;
        Ok(Box::new(fork))
    }

    async fn save(&self, path: &Path, metadata: &str) -> Result<()> {
        self.model.check_open()?;
        let fingerprint = self.model.fingerprint().await?;
        let text = self.text.lock().await;
        let (reply, tensors) = oneshot::channel();
        self.model.handle.session(SessionCommand::Export { id: self.id, reply })?;
        let mut file = SessionFile::new(fingerprint, &self.model.layout, text.clone());
        file.tensors = tensors.await.map_err(|_| self.gone())??;
        metadata.clone_into(&mut file.metadata);
        let path = path.to_owned();
        spawn_blocking(move || file.write(&path)).await
    }
}

impl Drop for MlxSession {
    fn drop(&mut self) {
        // A thread that is gone holds no session.
        let _ = self.model.handle.session(SessionCommand::Drop(self.id));
    }
}
