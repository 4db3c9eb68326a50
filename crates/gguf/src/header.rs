//! The beginning of a file: metadata, and where the tensors lie.
//!
//! The format: `GGUF`, the version, how many tensors and keys there are; the keys with their values; each tensor's name, extents
//! (innermost first), type and place; zeros up to a multiple of the alignment; the tensors.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read},
    ops::Range,
};

use crate::{Error, Metadata, Result, TensorType, parse::Source};

/// How every file begins.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of tensors where `general.alignment` does not say.
const ALIGNMENT: u64 = 32;

/// The largest alignment that is taken for one.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// The most keys; published files have under 100.
const MOST_KEYS: u64 = 1 << 16;

/// The longest key, in bytes: the format's own limit.
const LONGEST_KEY: u64 = 65_535;

/// The most tensors of a file; the largest published ones have under 3000.
const MOST_TENSORS: u64 = 1 << 20;

/// The longest name of a tensor, in bytes; the format allows 64, and some writers more.
const LONGEST_NAME: u64 = 1024;

/// The format's own limit.
const MOST_DIMENSIONS: u32 = 4;

/// What a file says before its tensors begin. Nothing of it was trusted: every tensor lies within the file, and none over another.
#[derive(Debug, Clone)]
pub struct Header {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensors in their order in the file.
    pub tensors: Vec<Tensor>,
}

/// What a tensor is and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub kind: TensorType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes, from the file's start.
    pub range: Range<u64>,
}

impl Tensor {
    /// Bytes of one row, which is a run of elements along the innermost dimension.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        let inner = self.shape.last().copied().unwrap_or(0);
        inner / self.kind.block_len() * self.kind.block_bytes()
    }
}

impl Header {
    /// Reads the header of a file of `length` bytes from its beginning.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Invalid`] with the key or tensor at fault.
    pub fn read(reader: impl Read, length: u64) -> Result<Self> {
        let mut source = Source::new(BufReader::with_capacity(1 << 16, reader), length);
        let magic: [u8; 4] = source.array()?;
        if &magic != MAGIC {
            return Err(Error::file("does not begin with GGUF, so it is no GGUF file"));
        }
        let version = source.u32()?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::file("is a GGUF file for big-endian machines, which are not supported"));
            }
            _ => return Err(Error::file(format!("is of version {version} of GGUF, expected 2 or 3"))),
        }
        let (tensors, keys) = (source.u64()?, source.u64()?);
        for (what, count, most) in [("tensors", tensors, MOST_TENSORS), ("keys", keys, MOST_KEYS)] {
            if count > most {
                return Err(Error::file(format!("claims {count} {what}, expected at most {most}")));
            }
        }
        let metadata = read_metadata(&mut source, keys)?;
        let mut places = Vec::new();
        for _ in 0..tensors {
            places.push(read_tensor(&mut source)?);
        }
        let alignment = metadata.unsigned("general.alignment")?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
            let reason = format!("is {alignment}, expected a power of two up to {LARGEST_ALIGNMENT}");
            return Err(Error::at("general.alignment", reason));
        }
        let start = source.position.next_multiple_of(alignment);
        let tensors = place_tensors(places, start, alignment, length)?;
        Ok(Self { version, metadata, tensors })
    }
}

fn read_metadata<R: Read>(source: &mut Source<R>, keys: u64) -> Result<Metadata> {
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = source.text("a key", LONGEST_KEY)?;
        let kind = source.u32()?;
        let value = source.value(&key, kind)?;
        if metadata.contains_key(&key) {
            return Err(Error::at(key, "occurs twice"));
        }
        metadata.insert(key, value);
    }
    Ok(Metadata(metadata))
}

/// A tensor whose place is counted from where the tensors begin.
fn read_tensor<R: Read>(source: &mut Source<R>) -> Result<Tensor> {
    let name = source.text("a tensor's name", LONGEST_NAME)?;
    let invalid = |reason| Err(Error::at(name.clone(), reason));
    let dimensions = source.u32()?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return invalid(format!("has {dimensions} dimensions, expected 1 to {MOST_DIMENSIONS}"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(source.u64()?);
    }
    let number = source.u32()?;
    let Some(kind) = TensorType::from_number(number) else {
        return invalid(format!("is of type {number}, which is unknown: a newer program wrote this file"));
    };
    let offset = source.u64()?;
    let elements = shape.iter().try_fold(1_u64, |product, extent| product.checked_mul(*extent));
    let elements = elements.filter(|elements| i64::try_from(*elements).is_ok() && *elements > 0);
    let Some(elements) = elements else {
        return invalid(format!("has the extents {shape:?}, whose product is 0 or too large"));
    };
    if !shape[0].is_multiple_of(kind.block_len() as u64) {
        let block = kind.block_len();
        return invalid(format!(
            "has rows of {} elements, expected whole blocks of {block} in {kind}",
            shape[0]
        ));
    }
    let bytes = (elements / kind.block_len() as u64).checked_mul(kind.block_bytes() as u64);
    let end = bytes.and_then(|bytes| offset.checked_add(bytes));
    let Some(end) = end.filter(|end| i64::try_from(*end).is_ok()) else {
        return invalid(format!("has the extents {shape:?} of {kind} at {offset}, which is too large"));
    };
    // Checked above: the product of all extents fits.
    let shape = shape.iter().rev().map(|extent| *extent as usize).collect();
    Ok(Tensor { name, kind, shape, range: offset..end })
}

/// Checks that the tensors lie in the file, one after the other, and counts their places from the file's start.
fn place_tensors(mut tensors: Vec<Tensor>, start: u64, alignment: u64, length: u64) -> Result<Vec<Tensor>> {
    tensors.sort_by(|a, b| a.range.start.cmp(&b.range.start).then_with(|| a.name.cmp(&b.name)));
    let mut covered = 0_u64;
    for tensor in &mut tensors {
        let Range { start: begin, end } = tensor.range.clone();
        let invalid = |reason| Err(Error::at(tensor.name.clone(), reason));
        if !begin.is_multiple_of(alignment) {
            return invalid(format!("begins at {begin}, which is no multiple of the alignment {alignment}"));
        }
        if begin < covered {
            return invalid(format!(
                "begins at {begin}, within the tensor before it, which ends at {covered}"
            ));
        }
        if begin - covered >= alignment {
            return invalid(format!("begins at {begin}: bytes {covered} to {begin} belong to no tensor"));
        }
        covered = end;
        let placed = start.checked_add(begin).zip(start.checked_add(end)).filter(|(_, end)| *end <= length);
        let Some((begin, end)) = placed else {
            let reason =
                format!("ends {end} bytes after the header, at {start}; the file has {length} bytes");
            return invalid(format!("{reason}: it was cut short, download it again"));
        };
        tensor.range = begin..end;
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::at(pair[0], "occurs twice"));
    }
    Ok(tensors)
}
