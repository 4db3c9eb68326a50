//! Which files of a repository a model needs.

use serde::Deserialize;

use crate::{HubError, Result};

/// What the Hub says of a repository at a revision.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) checksum: Checksum,
}

/// What a file's bytes have to hash to. It is the name of the blob, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// Of the bytes.
    Sha256(String),
    /// Git's of a blob: of `blob LENGTH\0` and the bytes.
    GitSha1(String),
}

impl Checksum {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }
}

/// Files beside the weights that loading or converting a model reads.
const TEXTS: [&str; 14] = [
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

impl Listing {
    /// The files that a model needs: texts first, weights last.
    ///
    /// # Errors
    /// The list is malformed, or has no model that could be loaded.
    pub(crate) fn files(&self, what: &str) -> Result<Vec<RemoteFile>> {
        let invalid = |reason: String| HubError::InvalidAnswer { what: what.to_owned(), reason };
        if !is_hex(&self.sha, 40) {
            return Err(invalid(format!("its commit is {:?}, expected 40 hexadecimal digits", self.sha)));
        }
        let named = |name: &str| self.siblings.iter().any(|sibling| sibling.rfilename == name);
        if !named("config.json") {
            return Err(invalid(
                "it has no config.json: it is no model in the layout of transformers".to_owned(),
            ));
        }
        let is_text = |name: &str| TEXTS.contains(&name);
        // Some repositories hold the same weights twice, in another layout.
        let is_weight = |name: &str| {
            name.ends_with(".safetensors") && !name.contains('/') && !name.starts_with("consolidated")
        };
        let weights = self.siblings.iter().filter(|sibling| is_weight(&sibling.rfilename));
        let texts = self.siblings.iter().filter(|sibling| is_text(&sibling.rfilename));
        let files: Vec<_> = texts.chain(weights).map(|sibling| sibling.file(what)).collect::<Result<_>>()?;
        if !files.iter().any(|file| is_weight(&file.name)) {
            return Err(invalid(
                "it has no weights in safetensors: look for a converted copy of it".to_owned(),
            ));
        }
        Ok(files)
    }
}

impl Sibling {
    fn file(&self, what: &str) -> Result<RemoteFile> {
        let invalid = |reason: &str| HubError::InvalidAnswer {
            what: format!("{what}: {}", self.rfilename),
            reason: reason.to_owned(),
        };
        let plain = self.rfilename.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !plain || self.rfilename.starts_with('.') {
            return Err(invalid("is no name of a file"));
        }
        let (size, checksum) = match (&self.lfs, &self.blob_id, self.size) {
            (Some(lfs), ..) if is_hex(&lfs.sha256, 64) => (lfs.size, Checksum::Sha256(lfs.sha256.clone())),
            (None, Some(id), Some(size)) if is_hex(id, 40) => (size, Checksum::GitSha1(id.clone())),
            _ => return Err(invalid("has no size and checksum in the Hub's list")),
        };
        Ok(RemoteFile { name: self.rfilename.clone(), size, checksum })
    }
}

pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing(files: &[&str]) -> Listing {
        let file = |name: &&str| json!({"rfilename": name, "size": 3, "blobId": "a".repeat(40)});
        let siblings: Vec<_> = files.iter().map(file).collect();
        serde_json::from_value(json!({"sha": "b".repeat(40), "siblings": siblings, "likes": 7})).unwrap()
    }

    #[test]
    fn what_a_model_needs_is_chosen() {
        let files = listing(&[
            "model-00001.safetensors",
            "consolidated.safetensors",
            "config.json",
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "tokenizer.json",
        ]);
        let names: Vec<_> = files.files("m").unwrap().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["config.json", "tokenizer.json", "model-00001.safetensors"]);
    }

    #[test]
    fn what_is_no_model_is_said() {
        let error = |files: &[&str]| listing(files).files("a/b").unwrap_err().to_string();
        assert!(error(&["model.safetensors"]).contains("no config.json"));
        assert!(error(&["config.json", "model.gguf"]).contains("no weights in safetensors"));
    }

    #[test]
    fn names_and_checksums_are_not_trusted() {
        let siblings = json!([{"rfilename": "config.json", "size": 1, "blobId": "../../x"}]);
        let listing: Listing =
            serde_json::from_value(json!({"sha": "c".repeat(40), "siblings": siblings})).unwrap();
        assert!(listing.files("m").unwrap_err().to_string().contains("checksum"));
        let listing: Listing = serde_json::from_value(json!({"sha": "../x", "siblings": []})).unwrap();
        assert!(listing.files("m").unwrap_err().to_string().contains("commit"));
    }
}
