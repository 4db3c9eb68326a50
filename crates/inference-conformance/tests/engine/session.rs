//! Sessions of the engine: a text, which a turn holds the lock of.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use futures::lock::Mutex;
use inference_core::{
    CancellationToken, Error, GenerateOptions, Prompt, Result, Session, TokenStream,
    backend::{SessionEngine, SessionFile},
};

use super::model::Core;

#[derive(Debug)]
pub(crate) struct Kept {
    model: Arc<Core>,
    text: Arc<Mutex<Vec<u32>>>,
}

impl Kept {
    pub(crate) fn new(model: Arc<Core>, text: Vec<u32>) -> Self {
        Self { model, text: Arc::new(Mutex::new(text)) }
    }

    pub(crate) fn load(model: Arc<Core>, path: &Path) -> Result<Session> {
        let mut file =
            SessionFile::read(path, &Self::fingerprint(&model)?, "ids", |_| 0).map_err(|error| {
                let other = || Error::backend("syllables", "load a session", "it is broken");
                if model.fault.is("a_damaged_session_is_refused") { other() } else { error }
            })?;
        if model.fault.is("a_saved_session_goes_on") {
            file.tokens.pop();
        }
        Ok(Session::new(Box::new(Self::new(model, file.tokens)), file.metadata))
    }

    fn fingerprint(model: &Core) -> Result<String> {
        if model.fault.is("another_models_session_is_refused") {
            return Ok("any".into());
        }
        model.manifest.fingerprint()
    }
}

#[async_trait]
impl SessionEngine for Kept {
    async fn generate(&mut self, prompt: Prompt, mut options: GenerateOptions) -> Result<TokenStream> {
        if self.model.fault.is("an_unread_turn_does_not_hold_the_next") {
            options.cancel = CancellationToken::new();
        }
        let text = self.text.clone().lock_owned().await;
        self.model.start(prompt, options, Some(text))
    }

    async fn tokens(&self) -> Vec<u32> {
        self.text.lock().await.clone()
    }

    async fn fork(&self) -> Result<Box<dyn SessionEngine>> {
        if !self.model.fault.is("a_closed_models_sessions_refuse") {
            self.model.check_open()?;
        }
        if self.model.fault.is("forks_go_their_own_ways") {
            return Ok(Box::new(Self { model: self.model.clone(), text: self.text.clone() }));
        }
        Ok(Box::new(Self::new(self.model.clone(), self.text.lock().await.clone())))
    }

    async fn save(&self, path: &Path, metadata: &str) -> Result<()> {
        let mut file = SessionFile::new(Self::fingerprint(&self.model)?, "ids", self.tokens().await);
        file.metadata = metadata.to_owned();
        file.write(path)
    }
}
