//! The files of a model that are neither weights nor config.json: tokenizer, chat template, generation config, model card.
//!
//! A new model gets copies of them. Loading a model follows links wherever they lead; copying does not, since the copy may be
//! published. Only regular files of bounded size are copied. A link is copied if it resolves to a file in the model's own
//! repository folder: the folder itself or, in a Hugging Face cache, the `blobs` beside `snapshots`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use inference_core::{
    Error, Result,
    backend::{EmbeddingConfig, ModelFiles},
};

/// The longest file that is copied, in bytes. The longest tokenizer.json published is about 35 MB.
const LONGEST_FILE: u64 = 256 << 20;

/// Bytes of all copied files.
const MOST_BYTES: u64 = 1 << 30;

/// Entries of the folder that are looked at.
const MOST_FILES: usize = 10_000;

/// Extensions of weights, in this or another format.
const WEIGHTS: &[&str] = &["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];

/// Files without which the copy would not be the same model: these are copied, or the conversion fails.
const NEEDED: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Copies the companions of the model in `source` to `target`. Other files that cannot be copied safely are left out with a warning.
///
/// # Errors
/// [`Error::InvalidModel`] names a needed file that leads out of the model's folder, is no regular file or is too long;
/// [`Error::Io`].
pub(super) fn copy(source: &Path, target: &Path) -> Result<()> {
    if !source.is_dir() {
        return Ok(());
    }
    let roots = repository(source)?;
    let entries = fs::read_dir(source).map_err(|error| Error::io("read", source, error))?;
    let mut left = MOST_BYTES;
    for (number, entry) in entries.enumerate() {
        if number == MOST_FILES {
            return Err(Error::invalid_file(source, format!("has more than {MOST_FILES} files")));
        }
        let path = entry.map_err(|error| Error::io("read", source, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !is_companion(&path, name) {
            continue;
        }
        match open(&path, &roots, left.min(LONGEST_FILE)) {
            Ok((file, length)) => {
                copy_file(&path, file, length, &target.join(name))?;
                left -= length;
            }
            Err(reason) if NEEDED.contains(&name) => return Err(Error::invalid_file(path, reason)),
            Err(reason) => tracing::warn!(file = ?path, "not copied: {reason}"),
        }
    }
    copy_modules(source, target, &roots)
}

/// The files of a step of modules.json.
const OF_MODULES: [&str; 2] = ["config.json", "model.safetensors"];

/// Copies the files of the steps from a text to its vector, which have folders of their own.
fn copy_modules(source: &Path, target: &Path, roots: &[PathBuf]) -> Result<()> {
    for folder in EmbeddingConfig::module_folders(source)? {
        for name in OF_MODULES {
            let (path, target) = (source.join(&folder).join(name), target.join(&folder).join(name));
            if fs::symlink_metadata(&path).is_err() {
                continue;
            }
            let (file, length) =
                open(&path, roots, LONGEST_FILE).map_err(|reason| Error::invalid_file(&path, reason))?;
            let parent = target.parent().unwrap_or(&target);
            fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
            copy_file(&path, file, length, &target)?;
        }
    }
    Ok(())
}

/// Writes the files that a GGUF model stands for to `target`, in place of any of the same name that were copied.
///
/// # Errors
/// [`Error::InvalidModel`] names the key that makes no sense; [`Error::Io`].
pub(super) fn make(source: &Path, target: &Path) -> Result<()> {
    for (name, bytes) in ModelFiles::open(source)?.made()? {
        let path = target.join(name);
        fs::write(&path, bytes).map_err(|error| Error::io("write", path, error))?;
    }
    Ok(())
}

fn is_companion(path: &Path, name: &str) -> bool {
    let weights = path.extension().is_some_and(|e| WEIGHTS.contains(&&*e.to_string_lossy()));
    let config = name == "config.json" || name.ends_with(".index.json");
    !weights && !config && !name.starts_with('.') && !path.is_dir()
}

/// The folders that belong to the model: its own and, if it is a snapshot in a Hugging Face cache, that of the blobs.
fn repository(source: &Path) -> Result<Vec<PathBuf>> {
    let folder = fs::canonicalize(source).map_err(|error| Error::io("read", source, error))?;
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    Ok([folder.clone()].into_iter().chain(blobs).collect())
}

/// Opens a file that may be copied, with its length; else says why not.
fn open(path: &Path, roots: &[PathBuf], limit: u64) -> Result<(File, u64), String> {
    let real = fs::canonicalize(path).map_err(|error| format!("cannot be found: {error}"))?;
    if !roots.iter().any(|root| real.starts_with(root)) {
        return Err(
            "is a link to a file outside the model's folder: put a copy of that file in its place".to_owned()
        );
    }
    // From here on no link is followed, and a pipe that takes the file's place is not waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&real);
    let file = file.map_err(|error| format!("cannot be opened: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is no regular file".to_owned());
    }
    if metadata.len() > limit {
        return Err(format!("has {} bytes, expected at most {limit}", metadata.len()));
    }
    Ok((file, metadata.len()))
}

fn copy_file(path: &Path, file: File, length: u64, target: &Path) -> Result<()> {
    let failed = |error| Error::io("copy", path, error);
    let mut new = File::create_new(target).map_err(failed)?;
    // No more than it had when it was opened: a file that grows while it is copied has no end.
    match io::copy(&mut file.take(length), &mut new).map_err(failed)? {
        copied if copied == length => Ok(()),
        _ => Err(Error::invalid_file(path, "became shorter while it was copied")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn copied(source: &Path) -> Result<Vec<(String, String)>> {
        let target = tempfile::tempdir().unwrap();
        copy(source, target.path())?;
        let mut files: Vec<_> = fs::read_dir(target.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            })
            .collect();
        files.sort();
        Ok(files)
    }

    fn pairs(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn what_a_link_leads_out_to_is_not_copied() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("m");
        fs::create_dir(&model).unwrap();
        fs::write(place.path().join("secret"), "secret").unwrap();
        fs::write(model.join("README.md"), "card").unwrap();
        fs::write(model.join("model.safetensors"), "weights").unwrap();
        symlink("README.md", model.join("inside.md")).unwrap();
        symlink(place.path().join("secret"), model.join("notes.md")).unwrap();
        symlink("/etc/passwd", model.join("USE_POLICY.md")).unwrap();
        symlink("nowhere", model.join("dangling.md")).unwrap();
        symlink(place.path(), model.join("folder")).unwrap();
        assert_eq!(copied(&model).unwrap(), pairs(&[("README.md", "card"), ("inside.md", "card")]));
        symlink("../secret", model.join("tokenizer.json")).unwrap();
        let error = copied(&model).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("outside the model's folder"), "{error}");
    }

    #[test]
    fn a_snapshot_of_a_hugging_face_cache_has_its_blobs() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--a--b");
        let snapshot = repository.join("snapshots/0123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(repository.join("blobs")).unwrap();
        fs::create_dir(repository.join("refs")).unwrap();
        fs::write(repository.join("blobs/abc"), "{}").unwrap();
        fs::write(repository.join("refs/main"), "0123").unwrap();
        symlink("../../blobs/abc", snapshot.join("tokenizer.json")).unwrap();
        symlink("../../refs/main", snapshot.join("other.txt")).unwrap();
        assert_eq!(copied(&snapshot).unwrap(), pairs(&[("tokenizer.json", "{}")]));
    }

    #[test]
    fn pipes_and_endless_files_are_not_copied() {
        let model = tempfile::tempdir().unwrap();
        let pipe = model.path().join("pipe.txt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        File::create(model.path().join("filler.txt")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(copied(model.path()).unwrap(), []);
        File::create(model.path().join("vocab.json")).unwrap().set_len(1 << 40).unwrap();
        let error = copied(model.path()).unwrap_err().to_string();
        assert!(error.contains("1099511627776 bytes, expected at most"), "{error}");
    }
}
