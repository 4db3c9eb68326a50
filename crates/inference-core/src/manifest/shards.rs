//! Which safetensors files make up a model, and the tensors that they hold.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Component, Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{
    Error, Result,
    files::{open_regular, parse_json, read_text},
    safetensors::{TensorInfo, read_header},
};

/// The file that names each tensor's file.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

const SINGLE: &str = "model.safetensors";

/// The longest index, in bytes: of a million tensors.
const LONGEST_INDEX: u64 = 128 << 20;

/// The most tensors of a model, in all its files; the largest published ones have under 300 000.
const MOST_TENSORS: usize = 1 << 20;

type Tensors = BTreeMap<String, TensorInfo>;

/// The files in order, and every tensor in them.
pub(super) fn read(folder: &Path) -> Result<(Vec<PathBuf>, Tensors)> {
    let index_path = folder.join(INDEX);
    let exists = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
    if !exists(INDEX) {
        let names = if exists(SINGLE) { vec![SINGLE.to_owned()] } else { unindexed(folder)? };
        let files: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
        let tensors = read_headers(&files)?;
        return Ok((files, tensors));
    }

    let Index { weight_map: WeightMap(places) } =
        parse_json(&index_path, &read_text(&index_path, LONGEST_INDEX)?)?;
    let mut names = BTreeSet::new();
    for (tensor, name) in &places {
        let invalid = |reason| Err(Error::invalid_key(&index_path, format!("weight_map.{tensor}"), reason));
        if !is_inside(name) {
            return invalid(format!("is {name:?}, expected the name of a file in the same folder"));
        }
        if names.insert(name) && !exists(name) {
            return invalid(format!("names {name:?}, which is missing: download the model again"));
        }
    }
    if names.is_empty() {
        return Err(Error::invalid_key(index_path, "weight_map", "names no tensor"));
    }
    if exists(SINGLE) && !names.iter().any(|name| *name == SINGLE) {
        let reason =
            format!("does not name {SINGLE}, which lies beside it: remove the one that is out of date");
        return Err(Error::invalid_file(index_path, reason));
    }
    let files: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
    let tensors = read_headers(&files)?;
    // The headers decide where a tensor lies, as for transformers and mlx_lm: converters write indexes that name tensors which
    // no file holds, such as the head of a tied model. A backend names the tensors that it misses.
    Ok((files, tensors))
}

/// What a folder without safetensors files holds in their place: why it cannot be read as safetensors, and the files.
pub(super) fn other_formats(folder: &Path) -> Result<Option<(&'static str, Vec<PathBuf>)>> {
    const FORMATS: [(&[&str], &str); 3] = [
        (
            &["bin", "pt", "pth", "ckpt"],
            "has PyTorch weights only, which can run code when they are opened: use a safetensors version of the \
             model, or save it with transformers' save_pretrained",
        ),
        (&["gguf"], "has several models in GGUF, or none that is whole: give the path of one file"),
        (&["npz"], "has NumPy weights only: convert the model again, to safetensors"),
    ];
    let mut names = names(folder)?;
    names.sort();
    let has = |name: &str, extension: &str| Path::new(name).extension().is_some_and(|e| e == extension);
    if names.iter().any(|name| has(name, "safetensors") || name == INDEX) {
        return Ok(None);
    }
    Ok(FORMATS.iter().find_map(|(extensions, reason)| {
        let files = names.iter().filter(|name| extensions.iter().any(|extension| has(name, extension)));
        let files: Vec<PathBuf> = files.map(|name| folder.join(name)).collect();
        (!files.is_empty()).then_some((*reason, files))
    }))
}

/// The files of a folder without an index and without `model.safetensors`.
fn unindexed(folder: &Path) -> Result<Vec<String>> {
    let mut found: Vec<_> =
        names(folder)?.into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    found.sort();
    let (files, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|name| name.starts_with("model"));
    if let (true, Some(other)) = (files.is_empty(), others.first()) {
        let reason = format!("has {other:?} but no model.safetensors: its weights must be named so");
        return Err(Error::invalid_file(folder, reason));
    }
    if files.is_empty() {
        return Err(Error::invalid_file(folder, "has no model.safetensors: download the model's weights"));
    }
    // `model-00001-of-00003.safetensors` tells of the others.
    for name in &files {
        let Some((number, of)) = numbered(name) else { continue };
        for other in 1..=of.min(files.len() as u64 + 1) {
            let sibling = name.replacen(number, &format!("{other:0width$}", width = number.len()), 1);
            if files.binary_search(&sibling).is_err() {
                return Err(Error::invalid_file(
                    folder.join(&sibling),
                    format!("is missing, but {name:?} is one of {of} files: download the model again"),
                ));
            }
        }
    }
    Ok(files)
}

/// The number of a file, as written, and how many there are.
fn numbered(name: &str) -> Option<(&str, u64)> {
    let (number, of) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(of)).then_some(())?;
    Some((number, of.parse().ok()?))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("read", folder, source);
    let entries = fs::read_dir(folder).map_err(failed)?;
    let names = entries.map(|entry| Ok(entry.map_err(failed)?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}

fn read_headers(files: &[PathBuf]) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (index, path) in files.iter().enumerate() {
        for (name, info) in read_header(path, index)? {
            match tensors.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(info);
                }
                Entry::Occupied(other) => {
                    if !same(files, other.get(), &info)? {
                        let file = files[other.get().file].file_name().unwrap_or_default();
                        let reason = format!(
                            "is in {file:?} too, with other contents: remove the file that is out of date"
                        );
                        return Err(Error::invalid_key(path, other.key(), reason));
                    }
                }
            }
        }
        if tensors.len() > MOST_TENSORS {
            let reason =
                format!("brings the model's tensors to {}, expected at most {MOST_TENSORS}", tensors.len());
            return Err(Error::invalid_file(path, reason));
        }
    }
    Ok(tensors)
}

/// Whether two places hold the same tensor, to the byte.
fn same(files: &[PathBuf], one: &TensorInfo, two: &TensorInfo) -> Result<bool> {
    const BLOCK: u64 = 1 << 20;
    if (one.dtype, &one.shape) != (two.dtype, &two.shape) {
        return Ok(false);
    }
    let open = |info: &TensorInfo| -> Result<_> {
        let path = &files[info.file];
        let io = |source| Error::io("read", path, source);
        let mut file = open_regular(path)?.0;
        file.seek(SeekFrom::Start(info.range.start)).map_err(io)?;
        Ok((path, file.take(info.bytes())))
    };
    let ((one_path, mut one_file), (two_path, mut two_file)) = (open(one)?, open(two)?);
    let (mut one_block, mut two_block) = (Vec::new(), Vec::new());
    let mut left = one.bytes();
    while left > 0 {
        one_block.clear();
        two_block.clear();
        let read = |file: &mut io::Take<File>, path: &Path, block: &mut Vec<u8>| {
            file.by_ref().take(BLOCK).read_to_end(block).map_err(|source| Error::io("read", path, source))
        };
        let count = read(&mut one_file, one_path, &mut one_block)?;
        read(&mut two_file, two_path, &mut two_block)?;
        if one_block != two_block || count == 0 {
            return Ok(false);
        }
        left -= count as u64;
    }
    Ok(true)
}

/// Whether a name from the index can only lead to a file below the folder.
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Each tensor's file, no tensor twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Places;

        impl<'de> Visitor<'de> for Places {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<WeightMap, A::Error> {
                let mut places = BTreeMap::new();
                while let Some((tensor, file)) = entries.next_entry::<String, String>()? {
                    if places.contains_key(&tensor) {
                        return Err(A::Error::custom(format_args!("the tensor {tensor:?} occurs twice")));
                    }
                    places.insert(tensor, file);
                }
                Ok(WeightMap(places))
            }
        }

        deserializer.deserialize_map(Places)
    }
}
