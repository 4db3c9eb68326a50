//! Failures, each of the kind that says what to do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use inference_core::{Error, Feature, Message, ModelManifest, Prompt};
use tempfile::TempDir;

use super::{ended, some_ids};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("errors":
    an_empty_prompt_is_refused [Generate],
    ids_outside_the_vocabulary_are_refused [Generate],
    a_prompt_past_the_context_is_refused [Generate],
    a_missing_folder_is_an_error [],
    a_broken_config_is_named [],
    a_truncated_file_is_named [],
    weights_that_end_after_all_are_named [],
    a_missing_tensor_is_named [],
    a_broken_tokenizer_is_named [],
    an_unknown_architecture_is_refused [],
    absurd_sizes_are_refused [],
);

/// Longer weights are not copied to be broken.
const LONGEST_COPY: u64 = 2 << 30;

/// A prompt of nothing is refused by the call. Empty text is nothing too, unless the tokenizer begins texts with a token.
pub async fn an_empty_prompt_is_refused(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut nothing = vec![Prompt::Tokens(Vec::new())];
    if subject.capabilities()?.has(Feature::Chat) {
        nothing.push(Prompt::Chat(Vec::<Message>::new()));
    }
    for prompt in nothing {
        let said = format!("{prompt:?}");
        match model.generate(prompt, subject.greedy(1)?).await {
            Err(Error::InvalidPrompt { .. }) => {}
            result => return Err(Failure::broken(format!("{said} ended as {}", ended(&result)))),
        }
    }
    match model.generate(Prompt::Text(String::new()), subject.greedy(1)?).await {
        Err(Error::InvalidPrompt { .. }) => Ok(()),
        Ok(mut stream) => {
            let counted = stream.finish().await?.metrics.prompt_tokens;
            ensure!(counted > 0, "an empty text was answered as a prompt of no tokens");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Ids that the model does not have are refused by the call, before any work.
pub async fn ids_outside_the_vocabulary_are_refused(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let outside = model.info().vocab_size as u32;
    let before = model.stats().prompt_tokens;
    for id in [outside, outside.saturating_add(1), u32::MAX] {
        let mut prompt = some_ids(&*model, 4, 1);
        prompt.push(id);
        match model.generate(prompt.into(), subject.greedy(1)?).await {
            Err(Error::InvalidPrompt { reason, .. }) => {
                ensure!(reason.contains(&id.to_string()), "the error does not name {id}: {reason}");
            }
            result => {
                return Err(Failure::broken(format!("id {id} of {outside} ended as {}", ended(&result))));
            }
        }
    }
    let after = model.stats().prompt_tokens;
    ensure!(after == before, "{} tokens of refused prompts were computed", after - before);
    Ok(())
}

/// A prompt that the context cannot hold is refused by the call, with both lengths; it is never cut short.
pub async fn a_prompt_past_the_context_is_refused(subject: &Subject) -> ClauseResult {
    let mut model = subject.model().await?;
    if model.info().context_length > 1 << 16 {
        if !subject.capabilities()?.has(Feature::ContextLength) {
            let found = model.info().context_length;
            return Err(Failure::inconclusive(format!("a context of {found} tokens: use a model with less")));
        }
        model = subject.load(subject.base_load_options().context_length(32)).await?;
    }
    let context = model.info().context_length;
    match model.generate(some_ids(&*model, context + 1, 2).into(), subject.greedy(1)?).await {
        Err(Error::ContextExceeded { tokens, limit, .. }) => {
            ensure!(
                tokens == context + 1 && limit <= context,
                "{tokens} of {limit}, expected {} of {context}",
                context + 1
            );
            Ok(())
        }
        result => {
            Err(Failure::broken(format!("{} tokens of {context} ended as {}", context + 1, ended(&result))))
        }
    }
}

/// A folder that is not there is an error about that folder.
pub async fn a_missing_folder_is_an_error(subject: &Subject) -> ClauseResult {
    let missing = subject.folder().join("no such model");
    expect(subject, &missing, &["io", "invalid_model"], "no such model").await
}

/// A config that is missing, no JSON, or no object is an error that names the file.
pub async fn a_broken_config_is_named(subject: &Subject) -> ClauseResult {
    config_is_a_file(subject)?;
    let folder = Copy::of(subject, &["config.json"])?;
    expect(subject, folder.path(), &["io", "invalid_model"], "config.json").await?;
    for text in ["", "{\"model_type\":", "[]", "{}", "{\"model_type\": 7}"] {
        folder.write("config.json", text.as_bytes())?;
        expect(subject, folder.path(), &["invalid_model"], "config.json").await?;
    }
    Ok(())
}

/// Weights that end too early, in the header or after it, are an error that names the file.
pub async fn a_truncated_file_is_named(subject: &Subject) -> ClauseResult {
    let (name, bytes) = weights(subject)?;
    let folder = Copy::of(subject, &[&name])?;
    let header = header_length(subject, &bytes)?;
    let broken = folder.model(subject, &name)?;
    // A file that does not begin as GGUF is no model of that format, and none that is broken.
    let magic: &[u8] = if broken == folder.path() { b"" } else { b"GGUF" };
    for length in [magic.len(), 7, 8 + header / 2, 8 + header, bytes.len() - 1] {
        folder.write(&name, &bytes[..length.min(bytes.len() - 1)])?;
        expect(subject, &broken, &["io", "invalid_model"], &name).await?;
    }
    folder.write(&name, &[magic, &u64::MAX.to_le_bytes()].concat())?;
    expect(subject, &broken, &["invalid_model"], &name).await
}

/// Weights that shrink between the reading of their header and the load are an error that names the file, and no crash.
pub async fn weights_that_end_after_all_are_named(subject: &Subject) -> ClauseResult {
    let (name, bytes) = weights(subject)?;
    let folder = Copy::of(subject, &[&name])?;
    folder.write(&name, &bytes)?;
    let manifest = ModelManifest::read(folder.path())?;
    folder.write(&name, &bytes[..8 + header_length(subject, &bytes)?])?;
    match subject.backend()?.load(manifest, subject.base_load_options()).await {
        Err(error @ (Error::Io { .. } | Error::InvalidModel { .. })) => {
            ensure!(error.to_string().contains(&name), "the error does not name {name}: {error}");
            Ok(())
        }
        result => Err(Failure::broken(format!("it ended as {}", ended(&result)))),
    }
}

/// A tokenizer that cannot be read is an error that names the file.
pub async fn a_broken_tokenizer_is_named(subject: &Subject) -> ClauseResult {
    let name = "tokenizer.json";
    if !subject.folder().join(name).exists() {
        return Err(Failure::inconclusive(format!("the model has no {name}")));
    }
    let folder = Copy::of(subject, &[name])?;
    for text in ["", "{\"model\":", "[7]"] {
        folder.write(name, text.as_bytes())?;
        expect(subject, folder.path(), &["invalid_model"], name).await?;
    }
    Ok(())
}

/// A tensor that the model needs and the file lacks is an error, not a model with a hole.
pub async fn a_missing_tensor_is_named(subject: &Subject) -> ClauseResult {
    let (name, mut bytes) = weights(subject)?;
    let header = header_length(subject, &bytes)?;
    let (tensor, at) = if ModelManifest::read(subject.folder())?.is_gguf() {
        // What GGUF calls the tensor behind the last layer, which all families have.
        let tensor = "output_norm.weight";
        (tensor.to_owned(), position(&bytes[..header], tensor).map(|at| at.saturating_sub(9)))
    } else {
        let parsed: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + header])
                .map_err(|error| Failure::broken(format!("{name}: {error}")))?;
        let Some(tensor) = parsed.keys().find(|key| *key != "__metadata__") else {
            return Err(Failure::inconclusive(format!("{name} has no tensors")));
        };
        (tensor.clone(), position(&bytes[8..8 + header], &format!("\"{tensor}\"")))
    };
    // Renamed in place: the same length, another first letter.
    let Some(at) = at else {
        return Err(Failure::inconclusive(format!("{tensor:?} is not in the header as it is spelt")));
    };
    let letter = &mut bytes[8 + at + 1];
    *letter = if *letter == b'X' { b'Y' } else { b'X' };
    let folder = Copy::of(subject, &[&name])?;
    folder.write(&name, &bytes)?;
    expect(subject, &folder.model(subject, &name)?, &["invalid_model", "unsupported_model"], &tensor).await
}

/// An architecture that nobody knows is refused by name; unnamed, the error lists the backend with its reason.
pub async fn an_unknown_architecture_is_refused(subject: &Subject) -> ClauseResult {
    let mut config = config(subject)?;
    config.insert("model_type".to_owned(), "no_such_architecture".into());
    let folder = Copy::of(subject, &["config.json"])?;
    folder.write("config.json", serde_json::Value::from(config).to_string().as_bytes())?;
    expect(subject, folder.path(), &["unsupported_model"], "no_such_architecture").await?;
    match subject.awaited(subject.registry().load_model(folder.path())).await {
        Err(Error::NoBackend { candidates, .. }) => {
            let said = candidates.iter().any(|verdict| verdict.to_string().contains("no_such_architecture"));
            ensure!(said, "the verdict does not name the architecture: {candidates:?}");
            Ok(())
        }
        result => Err(Failure::broken(format!("unnamed, it ended as {}", ended(&result)))),
    }
}

/// Sizes in the config that the weights do not bear out are an error: nothing of that size is allocated or looped over.
pub async fn absurd_sizes_are_refused(subject: &Subject) -> ClauseResult {
    let config = config(subject)?;
    let folder = Copy::of(subject, &["config.json"])?;
    let keys = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"];
    let present: Vec<_> = keys.into_iter().filter(|key| config.contains_key(*key)).collect();
    if present.is_empty() {
        return Err(Failure::inconclusive(format!("config.json has none of {}", keys.join(", "))));
    }
    for key in present {
        for absurd in [1_000_000_000_i64.into(), (-1).into(), serde_json::Value::from("many")] {
            let mut config = config.clone();
            config.insert(key.to_owned(), absurd);
            folder.write("config.json", serde_json::Value::from(config).to_string().as_bytes())?;
            let kinds = ["invalid_model", "unsupported_model", "out_of_memory"];
            expect(subject, folder.path(), &kinds, "").await?;
        }
    }
    Ok(())
}

/// Expects a load of this folder to fail as one of these kinds, and the message or path to name what is wrong.
async fn expect(subject: &Subject, folder: &Path, kinds: &[&str], names: &str) -> ClauseResult {
    match subject.load_folder(folder, subject.base_load_options()).await {
        Ok(_) if names.is_empty() => Err(Failure::broken("it was loaded, though config.json is wrong")),
        Ok(_) => Err(Failure::broken(format!("it was loaded, though {names} is wrong"))),
        Err(error) if !kinds.contains(&error.kind()) => {
            let kinds = kinds.join(" or ");
            Err(Failure::broken(format!("it failed as {}, expected {kinds}: {error}", error.kind())))
        }
        Err(error) => {
            ensure!(error.to_string().contains(names), "the error does not name {names}: {error}");
            Ok(())
        }
    }
}

/// Where a text begins in these bytes.
fn position(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

/// The clauses about config.json have nothing to judge where a GGUF file stands for it.
fn config_is_a_file(subject: &Subject) -> ClauseResult {
    if ModelManifest::read(subject.folder())?.is_gguf() {
        return Err(Failure::inconclusive("a GGUF file has no config.json"));
    }
    Ok(())
}

fn config(subject: &Subject) -> Result<serde_json::Map<String, serde_json::Value>, Failure> {
    config_is_a_file(subject)?;
    let path = subject.folder().join("config.json");
    let bytes = fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::invalid_file(path, error.to_string()).into())
}

/// The model's first weights file: its name and bytes.
pub(super) fn weights(subject: &Subject) -> Result<(String, Vec<u8>), Failure> {
    let manifest = ModelManifest::read(subject.folder())?;
    let path = &manifest.files()[0];
    let io = |source| Error::io("read", path, source);
    let length = fs::metadata(path).map_err(io)?.len();
    if length > LONGEST_COPY {
        return Err(Failure::inconclusive(format!("the weights have {length} bytes: use a smaller model")));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((name, fs::read(path).map_err(io)?))
}

/// Bytes of the header behind the first eight: where the first tensor begins, in a GGUF file.
fn header_length(subject: &Subject, bytes: &[u8]) -> Result<usize, Failure> {
    let manifest = ModelManifest::read(subject.folder())?;
    if manifest.is_gguf() {
        let starts =
            manifest.tensors().values().filter(|tensor| tensor.file == 0).map(|tensor| tensor.range.start);
        let first =
            starts.min().and_then(|start| usize::try_from(start).ok()).and_then(|start| start.checked_sub(8));
        return first.ok_or_else(|| Failure::inconclusive("the weights have no tensors"));
    }
    let length = bytes.first_chunk().map(|first| u64::from_le_bytes(*first) as usize);
    length.ok_or_else(|| Failure::inconclusive("the weights have no header"))
}

/// The subject's folder again, for breaking: files are links, those to be broken are left out.
pub(super) struct Copy(TempDir);

impl Copy {
    pub(super) fn of(subject: &Subject, without: &[&str]) -> Result<Self, Failure> {
        let here = |source| Error::io("write", std::env::temp_dir(), source);
        let copy = tempfile::tempdir().map_err(here)?;
        let folder = subject.folder();
        for entry in fs::read_dir(folder).map_err(|source| Error::io("read", folder, source))? {
            let entry = entry.map_err(|source| Error::io("read", folder, source))?;
            let name = entry.file_name();
            let Ok(source) = entry.path().canonicalize() else { continue };
            if source.is_file() && !without.iter().any(|left_out| name == *left_out) {
                link(&source, &copy.path().join(name)).map_err(here)?;
            }
        }
        Ok(Self(copy))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// What is loaded of it: the folder, or the file of weights where the model is GGUF. A folder in which that is broken holds no
    /// model.
    fn model(&self, subject: &Subject, weights: &str) -> Result<PathBuf, Failure> {
        let is_gguf = ModelManifest::read(subject.folder())?.is_gguf();
        Ok(if is_gguf { self.path().join(weights) } else { self.path().to_owned() })
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> ClauseResult {
        let path = self.path().join(name);
        Ok(fs::write(&path, bytes).map_err(|source| Error::io("write", path, source))?)
    }
}

#[cfg(unix)]
fn link(source: &Path, target: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(source, target)
}

#[cfg(not(unix))]
fn link(source: &Path, target: &Path) -> std::io::Result<()> {
    fs::copy(source, target).map(drop)
}
