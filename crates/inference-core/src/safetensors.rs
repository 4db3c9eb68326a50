//! The header of an untrusted safetensors file, read without its data.
//!
//! The file is 8 bytes of header length, little-endian; the header, a JSON object from each tensor's name to its type, shape
//! and place; and the data, in which the tensors lie end to end. A file that departs from this in any way is refused: a
//! reader that overlooks a hole or an overlap takes someone else's bytes for weights.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Read as _, Seek as _},
    ops::Range,
    path::Path,
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::{
    Error, Result,
    files::{LFS_ADVICE, LFS_POINTER, key_of, open_regular},
    tensor_source::TensorSource,
};

/// The longest header that the format allows, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// The one name in the header that is no tensor's.
pub(crate) const METADATA: &str = "__metadata__";

/// The longest tensor name, in bytes; published ones stay under 200.
const LONGEST_NAME: usize = 1024;

/// The most dimensions of a tensor, numpy's limit.
const MOST_DIMENSIONS: usize = 64;

/// One tensor: its file, type, shape and bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The index of its file in [`ModelManifest::files`](crate::ModelManifest::files).
    pub file: usize,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extent in each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file, from the file's start. Where it has a [`source`](Self::source), those that it is computed from.
    pub range: Range<u64>,
    /// What computes its bytes, where they do not lie in the file as they are.
    pub source: Option<Arc<dyn TensorSource>>,
}

impl TensorInfo {
    /// A tensor that lies in a file as it is.
    pub(crate) fn in_file(file: usize, dtype: Dtype, shape: Vec<usize>, range: Range<u64>) -> Self {
        Self { file, dtype, shape, range, source: None }
    }

    /// Its bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self.source {
            None => self.range.end - self.range.start,
            // Checked against the file: no product is beyond 64 bits.
            Some(_) => {
                self.shape.iter().fold(self.dtype.size() as u64, |bytes, n| bytes.saturating_mul(*n as u64))
            }
        }
    }

    /// Its elements: packed weights count as the words that they are packed into.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.bytes() / self.dtype.size() as u64
    }
}

/// The floating-point type that most bytes of the tensors have.
pub(crate) fn most_floats(tensors: &BTreeMap<String, TensorInfo>) -> Option<Dtype> {
    let mut bytes = BTreeMap::new();
    for tensor in tensors.values().filter(|tensor| tensor.dtype.is_float()) {
        *bytes.entry(tensor.dtype).or_insert(0) += tensor.bytes();
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype)
}

/// Element types, by safetensors' own names. Types of less than a byte are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    C64,
    #[serde(rename = "F8_E4M3")]
    F8E4m3,
    #[serde(rename = "F8_E5M2")]
    F8E5m2,
    #[serde(rename = "F8_E8M0")]
    F8E8m0,
    #[serde(rename = "F8_E4M3FNUZ")]
    F8E4m3Fnuz,
    #[serde(rename = "F8_E5M2FNUZ")]
    F8E5m2Fnuz,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::F8E4m3 | Self::F8E5m2 | Self::F8E8m0 | Self::F8E4m3Fnuz | Self::F8E5m2Fnuz => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::C64 => 8,
        }
    }

    /// Whether weights that are not quantised can have this type: a real floating-point type of at least 16 bits.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }
}

/// Safetensors' name in lower case: `bf16`.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::C64 => "c64",
            Self::F8E4m3 => "f8_e4m3",
            Self::F8E5m2 => "f8_e5m2",
            Self::F8E8m0 => "f8_e8m0",
            Self::F8E4m3Fnuz => "f8_e4m3fnuz",
            Self::F8E5m2Fnuz => "f8_e5m2fnuz",
        })
    }
}

/// The tensors of one safetensors file, such as an adapter's, by name. Reads the header only.
///
/// # Errors
/// [`Error::Io`] if the file is missing or unreadable; [`Error::InvalidModel`] names what is wrong in it, and which tensor.
pub fn read_tensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, TensorInfo>> {
    read_header(path.as_ref(), 0)
}

/// As [`read_tensors`]; `file` is the index that the tensors are given.
pub(crate) fn read_header(path: &Path, file: usize) -> Result<BTreeMap<String, TensorInfo>> {
    Ok(open(path, file)?.tensors)
}

/// A safetensors file that was opened and whose header was checked.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// As [`read_header`], with the file's own metadata.
pub(crate) fn open(path: &Path, file: usize) -> Result<Opened> {
    let (mut reader, file_length) = open_regular(path)?;
    let io = |source| Error::io("read", path, source);
    let mut first = Vec::new();
    reader.by_ref().take(64).read_to_end(&mut first).map_err(io)?;
    let unlike = |reason: String| {
        Error::invalid_file(
            path,
            foreign(&first).map_or(reason, |what| format!("{what}, expected safetensors")),
        )
    };
    let Some(length) = first.first_chunk().copied().map(u64::from_le_bytes) else {
        return Err(unlike(format!("has {} bytes, a safetensors file has at least 10", first.len())));
    };
    if length > LONGEST_HEADER {
        return Err(unlike(format!("claims a header of {length} bytes, expected at most {LONGEST_HEADER}")));
    }
    let start = 8 + length;
    if start > file_length {
        let reason = format!(
            "is cut short: its header ends at byte {start}, the file at {file_length}; download it again"
        );
        return Err(unlike(reason));
    }
    if first.get(8) != Some(&b'{') || length < 2 {
        return Err(unlike(format!("claims a header of {length} bytes that does not begin with {{")));
    }

    reader.seek(std::io::SeekFrom::Start(8)).map_err(io)?;
    // No more than the file has: checked above.
    let mut header = Vec::with_capacity(length as usize);
    reader.by_ref().take(length).read_to_end(&mut header).map_err(io)?;
    let header = std::str::from_utf8(&header).map_err(|error| {
        Error::invalid_file(path, format!("header is not UTF-8 at byte {}", 8 + error.valid_up_to()))
    })?;
    let Header { entries, metadata } = parse(path, header)?;
    check_layout(path, &entries, file_length - start)?;
    let place = |(name, Entry { dtype, shape, data_offsets: (begin, end) })| {
        (name, TensorInfo::in_file(file, dtype, shape.0, start + begin..start + end))
    };
    let tensors = entries.into_iter().map(place).collect();
    Ok(Opened { file: reader, tensors, metadata })
}

fn parse(path: &Path, header: &str) -> Result<Header> {
    let mut deserializer = serde_json::Deserializer::from_str(header);
    let parsed =
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| Error::InvalidModel {
            path: path.into(),
            key: key_of(error.path()),
            reason: format!("header: {}", error.into_inner()),
        })?;
    let end = deserializer.end();
    end.map_err(|error| Error::invalid_file(path, format!("header goes on after its JSON: {error}")))?;
    Ok(parsed)
}

/// Checks that each tensor has the bytes that its shape needs, and that together they are the data, end to end.
fn check_layout(path: &Path, entries: &BTreeMap<String, Entry>, data: u64) -> Result<()> {
    for (name, Entry { dtype, shape, data_offsets: (begin, end) }) in entries {
        let invalid = |reason| Err(Error::invalid_key(path, name, reason));
        let shape = &shape.0;
        // Without the zeros, so that no product that a reader forms of these overflows.
        let mut counted = shape.iter().filter(|extent| **extent != 0);
        let bytes = counted.try_fold(dtype.size() as u64, |bytes, n| bytes.checked_mul(*n as u64));
        let Some(bytes) = bytes.filter(|bytes| i64::try_from(*bytes).is_ok()) else {
            return invalid(format!("shape {shape:?} of {dtype} overflows"));
        };
        let bytes = if shape.contains(&0) { 0 } else { bytes };
        let Some(span) = end.checked_sub(*begin) else {
            return invalid(format!("data_offsets are reversed: [{begin}, {end}]"));
        };
        if span != bytes {
            return invalid(format!(
                "data_offsets [{begin}, {end}] span {span} bytes, shape {shape:?} of {dtype} needs {bytes}"
            ));
        }
        if *end > data {
            return invalid(format!(
                "data_offsets end at {end}, the file's data at {data}: it was cut short, download it again"
            ));
        }
    }

    let mut order: Vec<_> = entries.iter().map(|(name, entry)| (entry.data_offsets, name)).collect();
    order.sort_unstable();
    let mut covered = 0;
    let mut last = None;
    for ((begin, end), name) in order {
        if begin < covered {
            let other = last.unwrap_or(name);
            let reason = format!("begins at {begin} and overlaps {other:?}, which ends at {covered}");
            return Err(Error::invalid_key(path, name, reason));
        } else if begin > covered {
            let reason = format!("begins at {begin}: bytes {covered} to {begin} belong to no tensor");
            return Err(Error::invalid_key(path, name, reason));
        }
        covered = end;
        last = Some(name);
    }
    if covered != data {
        let reason = format!("has {} bytes after its last tensor", data - covered);
        return Err(Error::invalid_file(path, reason));
    }
    Ok(())
}

/// The format of a file that is not a safetensors file, by its first bytes. Called only after parsing failed: the length of
/// a valid header can begin like any of these.
fn foreign(first: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 10] = [
        (LFS_POINTER.as_bytes(), LFS_ADVICE),
        (b"PK\x03\x04", "is a zip archive, perhaps a PyTorch checkpoint"),
        (b"\x80\x02", "is a Python pickle, which can run code when it is opened"),
        (b"\x80\x03", "is a Python pickle, which can run code when it is opened"),
        (b"\x80\x04", "is a Python pickle, which can run code when it is opened"),
        (b"\x80\x05", "is a Python pickle, which can run code when it is opened"),
        (b"GGUF", "is a GGUF file"),
        (b"\x93NUMPY", "is a NumPy array"),
        (b"\x89HDF", "is an HDF5 file"),
        (b"\x1f\x8b", "is compressed with gzip"),
    ];
    if first.is_empty() {
        return Some("is empty");
    }
    if let Some((_, what)) = kinds.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Some(what);
    }
    match first.trim_ascii_start().first()? {
        b'<' => Some("is a web page, perhaps of a download that failed"),
        b'{' | b'[' => Some("is JSON text"),
        _ => None,
    }
}

/// The header's entries, each name once.
struct Header {
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to their type, shape and place")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Header, A::Error> {
                let mut header = BTreeMap::new();
                let mut metadata = None;
                while let Some(name) = entries.next_key::<String>()? {
                    if name.len() > LONGEST_NAME {
                        return Err(A::Error::custom(format_args!(
                            "a tensor's name has {} bytes, expected at most {LONGEST_NAME}",
                            name.len()
                        )));
                    }
                    if (name == METADATA && metadata.is_some()) || header.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("the name {name:?} occurs twice")));
                    }
                    if name == METADATA {
                        // MLX writes a null where it was given none.
                        let given = entries.next_value::<Option<Metadata>>()?;
                        metadata = Some(given.map_or_else(BTreeMap::new, |Metadata(strings)| strings));
                    } else {
                        header.insert(name, entries.next_value()?);
                    }
                }
                Ok(Header { entries: header, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A list of extents that is no longer than any real one.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;

        impl<'de> Visitor<'de> for Extents {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of whole numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = items.next_element()? {
                    if shape.len() == MOST_DIMENSIONS {
                        return Err(A::Error::custom(format_args!(
                            "a shape of more than {MOST_DIMENSIONS} dimensions"
                        )));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Extents)
    }
}

/// `__metadata__`: as the format has it, from strings to strings; of a name that occurs twice, the last.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from strings to strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Metadata, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((name, text)) = entries.next_entry()? {
                    strings.insert(name, text);
                }
                Ok(Metadata(strings))
            }
        }

        deserializer.deserialize_map(Strings)
    }
}
