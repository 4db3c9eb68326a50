//! Finding models in a folder.

use std::{
    collections::{HashSet, VecDeque},
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::{
    Error, ModelManifest, Result,
    manifest::{INDEX, models},
};

/// The depth of folders below the root that is searched.
const DEEPEST: usize = 32;

/// Folders that hold no models but many files.
const SKIPPED: [&str; 3] = [".git", "target", "node_modules"];

/// A model that was found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Discovered {
    /// Its path below the root, with `/` on every system; the root's own name if it is the root. In a Hugging Face cache
    /// `organisation/name` for the revision that `refs/main` names and `organisation/name@revision` for any other. The name of a
    /// GGUF file is without `.gguf`.
    pub name: String,
    /// What the folder or file says about itself.
    pub manifest: ModelManifest,
}

/// The models at and below `root`, found lazily: a folder is read when the iterator gets to it, its headers only.
///
/// A folder that has a config.json beside any `*.safetensors` or an index is a model, and is not searched further. In other folders
/// each `*.gguf` is a model, of several numbered files the first, but not encoders of images (`mmproj*`). Folders and files come in
/// the order of their names. Unreadable folders and broken models are `Err` items, and the search goes
/// on. Links are followed; a folder is visited once, by whichever path comes first. `.git`, `target` and `node_modules` below
/// the root are left out, and so is what lies more than 32 folders deep.
///
/// ```
/// # let folder = inference_core::mock::folder();
/// # let root = folder.path();
/// for model in inference_core::discover(root) {
///     match model {
///         Ok(found) => println!("{}: {} parameters", found.name, found.manifest.parameters()),
///         Err(error) => eprintln!("{error}"),
///     }
/// }
/// ```
pub fn discover(root: impl AsRef<Path>) -> Discover {
    let root = root.as_ref().to_owned();
    let pending = vec![Pending { path: root.clone(), depth: 0, link: true, parent: PathBuf::new() }];
    Discover { root, pending, found: VecDeque::new(), visited: HashSet::new() }
}

/// The iterator of [`discover`].
#[derive(Debug)]
pub struct Discover {
    root: PathBuf,
    /// A stack: the next folder is the last.
    pending: Vec<Pending>,
    /// GGUF files of the folder that was visited last.
    found: VecDeque<PathBuf>,
    /// Folders by their real paths.
    visited: HashSet<PathBuf>,
}

#[derive(Debug)]
struct Pending {
    path: PathBuf,
    depth: usize,
    /// Whether its real path is not known yet; then this is its name in `parent`.
    link: bool,
    parent: PathBuf,
}

impl Iterator for Discover {
    type Item = Result<Discovered>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(file) = self.found.pop_front() {
            let named = |manifest| Discovered { name: self.file_name(&file), manifest };
            return Some(ModelManifest::read(&file).map(named));
        }
        while let Some(folder) = self.pending.pop() {
            match self.visit(&folder) {
                Ok(false) if self.found.is_empty() => {}
                Ok(false) => return self.next(),
                Ok(true) => {
                    let named = |manifest| Discovered { name: self.name(&folder.path), manifest };
                    return Some(ModelManifest::read(&folder.path).map(named));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

impl Discover {
    /// Whether the folder is a model; if not, its folders are next.
    fn visit(&mut self, folder: &Pending) -> Result<bool> {
        let path = &folder.path;
        let io = |source| Error::io("read", path, source);
        let real = if folder.link {
            match fs::canonicalize(path) {
                // A link to nothing or in a circle is no folder; the root is expected to be one.
                Err(_) if folder.depth > 0 => return Ok(false),
                real => real.map_err(io)?,
            }
        } else {
            folder.parent.join(path.file_name().unwrap_or_default())
        };
        if folder.link && folder.depth > 0 && !real.is_dir() {
            return Ok(false);
        }
        if !self.visited.insert(real.clone()) {
            return Ok(false);
        }

        let (mut config, mut weights) = (false, false);
        let (mut folders, mut names) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(path).map_err(io)?;
        for entry in entries.collect::<io::Result<Vec<_>>>().map_err(io)? {
            let name = entry.file_name();
            config |= name == "config.json";
            weights |= name == INDEX || Path::new(&name).extension().is_some_and(|e| e == "safetensors");
            let kind = entry.file_type().map_err(io)?;
            // A file, or a link to one, as in a Hugging Face cache.
            if !kind.is_dir() {
                names.extend(name.to_str().map(str::to_owned));
            }
            let skipped = SKIPPED.iter().any(|skipped| name == *skipped);
            if (kind.is_dir() || kind.is_symlink()) && !skipped && folder.depth < DEEPEST {
                folders.push(Pending {
                    path: entry.path(),
                    depth: folder.depth + 1,
                    link: kind.is_symlink(),
                    parent: real.clone(),
                });
            }
        }
        if config && weights {
            return Ok(true);
        }
        self.found = models(path, names.into_iter()).into();
        folders.sort_unstable_by(|a, b| b.path.cmp(&a.path));
        self.pending.append(&mut folders);
        Ok(false)
    }

    /// The name of a GGUF file.
    fn file_name(&self, file: &Path) -> String {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        match file.parent().filter(|folder| *folder != self.root || cached_name(folder).is_some()) {
            Some(folder) => format!("{}/{stem}", self.name(folder)),
            None => stem.into_owned(),
        }
    }

    fn name(&self, folder: &Path) -> String {
        if let Some(name) = cached_name(folder) {
            return name;
        }
        let below = folder.strip_prefix(&self.root).unwrap_or(folder);
        let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        if !parts.is_empty() {
            return parts.join("/");
        }
        let absolute = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        absolute
            .file_name()
            .map_or_else(|| folder.to_string_lossy(), |name| name.to_string_lossy())
            .into_owned()
    }
}

/// The name of a folder `…/models--organisation--name/snapshots/revision`.
fn cached_name(folder: &Path) -> Option<String> {
    let folder = std::path::absolute(folder).ok()?;
    let mut parts = folder.components().rev().map(Component::as_os_str);
    let revision = parts.next()?.to_str()?;
    if parts.next()? != "snapshots" {
        return None;
    }
    let name = parts.next()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
    let main = folder.parent()?.parent()?.join("refs/main");
    let main = crate::files::read_regular(&main, 1024).unwrap_or_default();
    let is_main = main.trim_ascii() == revision.as_bytes();
    Some(if is_main { name } else { format!("{name}@{revision}") })
}
