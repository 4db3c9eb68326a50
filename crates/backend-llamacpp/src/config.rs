//! What a GGUF file says of a model before llama-server loads it.

use std::fs::File;

use inference_core::{Error, KvBits, ModelInfo, ModelManifest, Result, backend::free_memory};

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

/// `<architecture>.context_length`, of a model whose family the manifest does not know.
fn context_of_file(manifest: &ModelManifest) -> Result<usize> {
    let path = manifest.files().first().map_or(manifest.path(), |path| path);
    let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
    let length = file.metadata().map_err(|source| Error::io("read", path, source))?.len();
    let wrong = |error: gguf::Error| Error::invalid_file(path, error.to_string());
    let metadata = gguf::Header::read(&file, length).map_err(wrong)?.metadata;
    let architecture = metadata.text("general.architecture").map_err(wrong)?.unwrap_or_default();
    let key = format!("{architecture}.context_length");
    let context = metadata.unsigned(&key).map_err(wrong)?.and_then(|n| usize::try_from(n).ok());
    let Some(context) = context.filter(|n| (1..1 << 31).contains(n)) else {
        return Err(Error::invalid_key(
            path,
            key,
            "is missing, expected the number of tokens that the context holds",
        ));
    };
    Ok(context)
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
