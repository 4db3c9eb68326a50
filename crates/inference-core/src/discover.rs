//! Finding models in a folder.

use std::path::{Path, PathBuf};

use crate::{ModelManifest, Result};

/// A model that was found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Discovered {
    /// `organisation/name` where the folder is in a Hugging Face cache, else its path below the root.
    pub name: String,
    /// What the folder says about itself.
    pub manifest: ModelManifest,
}

/// The models at and below `root`, found lazily.
pub fn discover(root: impl AsRef<Path>) -> Discover {
    Discover { pending: vec![root.as_ref().to_owned()] }
}

/// The iterator of [`discover`].
#[derive(Debug)]
pub struct Discover {
    pending: Vec<PathBuf>,
}

impl Iterator for Discover {
    type Item = Result<Discovered>;

    fn next(&mut self) -> Option<Self::Item> {
        let folder = self.pending.pop()?;
        Some(
            ModelManifest::read(&folder)
                .map(|manifest| Discovered { name: folder.display().to_string(), manifest }),
        )
    }
}
