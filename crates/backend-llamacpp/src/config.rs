//! What a GGUF file says of a model before llama-server loads it.

use std::{fs::File, path::Path};

use inference_core::{
    Error, Feature, KvBits, ModelInfo, ModelManifest, Pooling, Result, backend::free_memory,
};

/// Texts that are decoded at once where the caller has no wish and memory suffices.
const SLOTS: usize = 4;

/// The description of a model before it is loaded. The server says later what the file leaves out.
///
/// # Errors
/// [`Error::InvalidModel`] names the file and the key that makes no sense.
pub(crate) fn describe(
    backend: &'static str,
    manifest: &ModelManifest,
    context_length: Option<usize>,
) -> Result<ModelInfo> {
    check_lengths(manifest)?;
    let mut info = ModelInfo::from_manifest(backend, manifest)?;
    let own = match info.context_length {
        0 => context_of_file(manifest)?,
        own => own,
    };
    info.context_length = context_length.unwrap_or(own);
    if info.context_length > own {
        tracing::warn!(info.context_length, own, "the context is longer than the model was made for");
    }
    Ok(info)
}

/// Refuses files that became shorter since their headers were read.
fn check_lengths(manifest: &ModelManifest) -> Result<()> {
    for (index, path) in manifest.files().iter().enumerate() {
        let tensors = manifest.tensors().values().filter(|tensor| tensor.file == index);
        let expected = tensors.map(|tensor| tensor.range.end).max().unwrap_or(0);
        let length = std::fs::metadata(path).map_err(|source| Error::io("read", path, source))?.len();
        if length < expected {
            let reason = format!("has {length} bytes, its header promises {expected}");
            return Err(Error::invalid_file(path, reason));
        }
    }
    Ok(())
}

/// The metadata of a model's first file, and the keys that its architecture has there.
pub(crate) struct OfFile<'a> {
    path: &'a Path,
    metadata: gguf::Metadata,
    pub(crate) architecture: String,
}

impl<'a> OfFile<'a> {
    /// # Errors
    /// [`Error::InvalidModel`] and [`Error::Io`]: the file is no longer what the manifest was read of.
    pub(crate) fn read(manifest: &'a ModelManifest) -> Result<Self> {
        let path = manifest.files().first().map_or(manifest.path(), |path| path);
        let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
        let length = file.metadata().map_err(|source| Error::io("read", path, source))?.len();
        let wrong = |error: gguf::Error| Error::invalid_file(path, error.to_string());
        let metadata = gguf::Header::read(&file, length).map_err(wrong)?.metadata;
        let architecture =
            metadata.text("general.architecture").map_err(wrong)?.unwrap_or_default().to_owned();
        Ok(Self { path, metadata, architecture })
    }

    /// A text of the file.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>> {
        let text = self.metadata.text(key).map_err(|error| self.wrong(&error))?;
        Ok(text.map(str::to_owned))
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn wrong(&self, error: &gguf::Error) -> Error {
        Error::invalid_file(self.path, error.to_string())
    }
}

/// `<architecture>.context_length`, of a model whose family the manifest does not know.
fn context_of_file(manifest: &ModelManifest) -> Result<usize> {
    let file = OfFile::read(manifest)?;
    let key = file.key("context_length");
    let context = file.metadata.unsigned(&key).map_err(|error| file.wrong(&error))?;
    let context = context.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..1 << 31).contains(n));
    let reason = "is missing, expected the number of tokens that the context holds";
    context.ok_or_else(|| Error::invalid_key(file.path, key, reason))
}

/// How a model that is loaded for embeddings pools; `None` of one that generates text.
///
/// # Errors
/// [`Error::InvalidOption`]: llama-server has no such pooling; [`Error::Unsupported`]: the model scores pairs.
pub(crate) fn pooling(
    backend: &'static str,
    manifest: &ModelManifest,
    asked: Option<Pooling>,
) -> Result<Option<Pooling>> {
    if let Some(pooling) = asked {
        if pooling_name(pooling).is_none() {
            let reason = format!("pooling: llama-server has no {pooling:?}, only Mean, Cls and Last");
            return Err(Error::invalid_option("extension", reason));
        }
        return Ok(Some(pooling));
    }
    let file = OfFile::read(manifest)?;
    let wrong = |error: gguf::Error| file.wrong(&error);
    let encodes = file.metadata.flag(&file.key("attention.causal")).map_err(wrong)? == Some(false);
    // The numbers of llama.cpp's own list.
    Ok(match file.metadata.unsigned(&file.key("pooling_type")).map_err(wrong)? {
        Some(1) => Some(Pooling::Mean),
        Some(2) => Some(Pooling::Cls),
        Some(3) => Some(Pooling::Last),
        Some(4) => return Err(Error::unsupported(backend, Feature::Rerank)),
        _ => encodes.then_some(Pooling::Mean),
    })
}

/// llama-server's name of a pooling, where it has it.
pub(crate) fn pooling_name(pooling: Pooling) -> Option<&'static str> {
    match pooling {
        Pooling::Mean => Some("mean"),
        Pooling::Cls => Some("cls"),
        Pooling::Last => Some("last"),
        _ => None,
    }
}

/// How many texts are decoded at once: as many as asked for; else four, or as many as half of the free memory has room for.
pub(crate) fn slots(
    manifest: &ModelManifest,
    context: usize,
    asked: Option<usize>,
    kv_bits: Option<KvBits>,
    free_on_device: Option<u64>,
) -> usize {
    if let Some(asked) = asked {
        return asked;
    }
    let Some(free) = free_on_device.or_else(free_memory) else { return 1 };
    let room = free.saturating_sub(manifest.weight_bytes()) / 2;
    let needs = |slots: usize| {
        manifest.estimate(context, slots, kv_bits).map_or(u64::MAX, |estimate| estimate.kv_bytes)
    };
    (2..=SLOTS).rev().find(|slots| needs(*slots) <= room).unwrap_or(1)
}
