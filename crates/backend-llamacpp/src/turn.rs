//! The text of a session, and one turn of it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use inference_core::{Error, Result};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;

use crate::{client::Client, protocol::SlotAction, slots::TakenSlot};

/// Numbers the files in a child's folder.
static FILES: AtomicU64 = AtomicU64::new(0);

/// What a session holds.
#[derive(Debug, Default, Clone)]
pub(crate) struct SessionText {
    pub(crate) tokens: Vec<u32>,
    /// The state that it was loaded with.
    pub(crate) state: Option<Arc<SavedState>>,
}

/// The state of a slot in a file, and the text that it is of.
#[derive(Debug)]
pub(crate) struct SavedState {
    file: tempfile::NamedTempFile,
    tokens: Vec<u32>,
}

/// One turn of a session, which has its text until the turn has ended.
#[derive(Debug)]
pub(crate) struct Turn(OwnedMutexGuard<SessionText>);

impl Turn {
    /// A turn that has this text.
    pub(crate) fn new(text: OwnedMutexGuard<SessionText>) -> Self {
        Self(text)
    }

    /// The turn's text, prompt and answer: what the session holds from now on.
    pub(crate) fn end(mut self, text: Vec<u32>) {
        self.0.tokens = text;
    }

    /// Puts the state that the session was loaded with into the slot, where the slot holds less.
    pub(crate) async fn restore(&self, client: &Client, slot: &TakenSlot, text: &[u32]) -> Result<()> {
        let Some(state) = self.0.state.as_ref().filter(|state| text.starts_with(&state.tokens)) else {
            return Ok(());
        };
        if slot.shared + 1 >= state.tokens.len() {
            return Ok(());
        }
        let (name, path) = new_file(client);
        let copied = std::fs::copy(state.file.path(), &path);
        copied.map_err(|source| Error::io("write", &path, source))?;
        let url = format!("/slots/{}?action=restore", slot.index);
        let restored =
            client.weak().post::<SlotAction>(&url, &json!({"filename": name}), "restore a slot").await;
        remove(&path);
        match restored {
            Ok(_) => Ok(()),
            Err(error @ Error::Stopped { .. }) => Err(error),
            // The text is computed again.
            Err(error) => {
                tracing::warn!("a session's state is not used: {error}");
                Ok(())
            }
        }
    }
}

impl SavedState {
    /// Writes the state of this text to a file.
    pub(crate) fn new(bytes: &[u8], tokens: Vec<u32>) -> Result<Self> {
        let failed = |source| Error::io("write", std::env::temp_dir(), source);
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        std::io::Write::write_all(&mut file, bytes).map_err(failed)?;
        Ok(Self { file, tokens })
    }
}

/// The name of a new file in the child's folder, and its path.
pub(crate) fn new_file(client: &Client) -> (String, PathBuf) {
    let name = format!("slot-{}.bin", FILES.fetch_add(1, Ordering::Relaxed));
    let path = client.folder().join(&name);
    (name, path)
}

/// Removes a file of a child's folder.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!("{} cannot be removed: {error}", path.display());
    }
}
