//! The tensors of GGUF files in the forms that MLX computes with.

use std::{collections::BTreeMap, ops::Range, path::Path, path::PathBuf, sync::Arc};

use gguf::{Groups, Packing, Tensor, TensorType, hf};
use serde_json::{Map, Value, json};

use crate::{
    Dtype, Error, Result,
    safetensors::TensorInfo,
    tensor_source::{ReadAt, TensorSource},
};

/// Elements that share a scale, in every form that is quantised.
const GROUP: usize = 32;

/// What becomes of quantised matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::manifest) enum Form {
    /// They stay quantised where that loses nothing, and are in single precision elsewhere.
    Packed,
    /// All are in single precision.
    Full,
}

/// How the matrices are quantised.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<String, (u32, &'static str)>, bool);

impl Settings {
    /// Whether the file has quantised tensors, whatever became of them.
    pub(super) fn is_quantized(&self) -> bool {
        self.1
    }

    /// `quantization` of config.json: what most matrices have, and those that differ.
    pub(super) fn config(&self) -> Option<Map<String, Value>> {
        let mut counts = BTreeMap::new();
        for setting in self.0.values() {
            *counts.entry(*setting).or_insert(0_usize) += 1;
        }
        let (default, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let describe = |(bits, mode): (u32, &str)| json!({"group_size": GROUP, "bits": bits, "mode": mode});
        let mut config = describe(default).as_object().cloned().unwrap_or_default();
        let others = self.0.iter().filter(|(_, setting)| **setting != default);
        config.extend(others.map(|(name, setting)| (name.clone(), describe(*setting))));
        Some(config)
    }
}

/// The tensors that one of the file becomes.
pub(super) fn infos(
    path: &Path,
    named: &hf::Named,
    file: usize,
    stored: &Tensor,
    form: Form,
    settings: &mut Settings,
) -> Result<Vec<(String, TensorInfo)>> {
    let stored = &named.stored(stored);
    let Some(packing) = stored.kind.packing() else {
        let reason = format!(
            "is in {}, which is not supported: use a file of this model in Q4_K_M, Q5_K_M, Q8_0 or BF16",
            stored.kind
        );
        return Err(Error::invalid_key(path, &stored.name, reason));
    };
    settings.1 |= stored.kind.is_quantized();
    let matrix = named.name.strip_suffix(".weight").filter(|_| stored.shape.len() > 1);
    // The parts of rows that change places have to be whole groups.
    let columns = stored.shape.last().copied().unwrap_or(1);
    let keeps_groups = named.columns.is_none_or(|tiles| (columns / tiles.heads).is_multiple_of(GROUP));
    let form = if keeps_groups { form } else { Form::Full };
    let parts: Vec<(String, Part, Dtype)> = match (packing, matrix) {
        (Packing::Affine { bits, wide }, Some(stem)) if form == Form::Packed => {
            settings.0.insert(stem.to_owned(), (bits, "affine"));
            let scales = if wide { Dtype::F32 } else { Dtype::F16 };
            vec![
                (named.name.clone(), Part::Values, Dtype::U32),
                (format!("{stem}.scales"), Part::Scales, scales),
                (format!("{stem}.biases"), Part::Biases, scales),
            ]
        }
        (Packing::Mxfp4, Some(stem)) if form == Form::Packed => {
            settings.0.insert(stem.to_owned(), (4, "mxfp4"));
            vec![
                (named.name.clone(), Part::Codes, Dtype::U32),
                (format!("{stem}.scales"), Part::Exponents, Dtype::U8),
            ]
        }
        (Packing::Float, _) if named.change == hf::Change::Nothing => {
            let dtype = match stored.kind {
                TensorType::F16 => Dtype::F16,
                TensorType::BF16 => Dtype::Bf16,
                _ => Dtype::F32,
            };
            vec![(named.name.clone(), Part::Stored, dtype)]
        }
        _ => vec![(named.name.clone(), Part::Elements { change: named.change }, Dtype::F32)],
    };
    let info = |(name, part, dtype): (String, Part, Dtype)| {
        let (mut shape, source) = part.of(path, named, file, stored, dtype);
        named.extents.undo(&mut shape);
        let mut info = TensorInfo::in_file(file, dtype, shape, stored.range.clone());
        // What lies in the file as it is needs no detour.
        if part != Part::Stored || named.rows != hf::Rows::Same || named.columns.is_some() {
            info.source = Some(Arc::new(source));
        }
        (name, info)
    };
    Ok(parts.into_iter().map(info).collect())
}

/// A tensor that the file has in its metadata.
pub(super) fn constant(constant: &hf::Constant) -> TensorInfo {
    let mut info = TensorInfo::in_file(0, Dtype::F32, constant.shape.clone(), 0..0);
    info.source = Some(Arc::new(Constant(constant.value)));
    info
}

/// One element.
#[derive(Debug)]
struct Constant(f32);

impl TensorSource for Constant {
    fn unit(&self) -> usize {
        size_of::<f32>()
    }

    fn read(&self, _: &dyn ReadAt, _: u64, memory: &mut [u8]) -> Result<()> {
        memory.as_chunks_mut().0.iter_mut().for_each(|element| *element = self.0.to_le_bytes());
        Ok(())
    }
}

/// What is read of blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    /// The bytes as they are.
    Stored,
    /// The elements in single precision, as they were before the converter changed them.
    Elements { change: hf::Change },
    /// The whole numbers of affine groups, packed.
    Values,
    /// Their scales.
    Scales,
    /// Their biases.
    Biases,
    /// The four-bit floats of MXFP4.
    Codes,
    /// Their scales.
    Exponents,
}

/// A tensor that is computed row by row.
#[derive(Debug)]
struct RowsOf {
    path: PathBuf,
    /// The name of the tensor in the file.
    name: String,
    file: usize,
    range: Range<u64>,
    kind: TensorType,
    /// Bytes of a row in the file, and computed.
    stored_row: usize,
    row: usize,
    /// Rows of each matrix, in the file and computed, and their order.
    stored_rows: usize,
    rows: usize,
    order: hf::Rows,
    /// The order of the parts of each row.
    columns: Option<hf::Tiles>,
    part: Part,
}

impl Part {
    /// The shape of this part, and where it comes from.
    fn of(
        self,
        path: &Path,
        named: &hf::Named,
        file: usize,
        stored: &Tensor,
        dtype: Dtype,
    ) -> (Vec<usize>, RowsOf) {
        let columns = stored.shape.last().copied().unwrap_or(1);
        let width = match (self, stored.kind.packing()) {
            (Self::Values, Some(Packing::Affine { bits, .. })) => columns * bits as usize / 32,
            (Self::Codes, _) => columns / 8,
            (Self::Scales | Self::Biases | Self::Exponents, _) => columns / GROUP,
            _ => columns,
        };
        let mut shape = stored.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        let stored_rows = shape.iter().nth_back(1).copied().unwrap_or(1);
        if let Some(rows) = shape.iter_mut().nth_back(1) {
            *rows = named.rows.count(*rows);
        }
        // The elements of a vector whose order differs are rows of one each.
        let vector = shape.len() == 1 && named.rows != hf::Rows::Same;
        let (stored_row, row, rows) = if vector {
            (stored.kind.block_bytes(), dtype.size(), width)
        } else {
            let rows = if shape.len() > 1 { shape[shape.len() - 2] } else { 1 };
            (stored.row_bytes(), width * dtype.size(), rows)
        };
        let source = RowsOf {
            path: path.to_owned(),
            name: stored.name.clone(),
            file,
            range: stored.range.clone(),
            kind: stored.kind,
            stored_row,
            row,
            stored_rows,
            rows,
            order: named.rows,
            columns: named.columns,
            part: self,
        };
        (shape, source)
    }
}

impl TensorSource for RowsOf {
    fn unit(&self) -> usize {
        self.row
    }

    fn read(&self, files: &dyn ReadAt, position: u64, memory: &mut [u8]) -> Result<()> {
        let first = (position / self.row as u64) as usize;
        let count = memory.len() / self.row;
        let mut blocks = vec![0; count * self.stored_row];
        let start = |row: usize| self.range.start + row as u64 * self.stored_row as u64;
        if self.order == hf::Rows::Same {
            files.read_at(self.file, start(first), &mut blocks)?;
        } else {
            for (row, blocks) in (first..).zip(blocks.chunks_exact_mut(self.stored_row)) {
                let (matrix, within) = (row / self.rows, row % self.rows);
                let stored = matrix * self.stored_rows + self.order.stored(within, self.rows);
                files.read_at(self.file, start(stored), blocks)?;
            }
        }
        self.decode(&blocks, memory)?;
        self.arrange(memory);
        Ok(())
    }
}

impl RowsOf {
    /// Puts the parts of each row in their order.
    fn arrange(&self, memory: &mut [u8]) {
        let Some(tiles) = self.columns else { return };
        let width = self.row / tiles.heads;
        let mut stored = vec![0; self.row];
        for row in memory.chunks_exact_mut(self.row) {
            stored.copy_from_slice(row);
            for (head, part) in row.chunks_exact_mut(width).enumerate() {
                let from = tiles.stored(head) * width;
                part.copy_from_slice(&stored[from..from + width]);
            }
        }
    }

    fn decode(&self, blocks: &[u8], memory: &mut [u8]) -> Result<()> {
        let done = match self.part {
            Part::Stored => {
                memory.copy_from_slice(blocks);
                Some(())
            }
            Part::Elements { change } => {
                let mut elements = vec![0.0; memory.len() / size_of::<f32>()];
                let done = self.kind.dequantize(blocks, &mut elements);
                for (out, element) in memory.as_chunks_mut().0.iter_mut().zip(elements) {
                    let Some(before) = change.undo(element) else {
                        let reason = format!("has the element {element}, expected a number below 0");
                        return Err(Error::invalid_key(&self.path, &self.name, reason));
                    };
                    *out = before.to_le_bytes();
                }
                done
            }
            Part::Values => Groups::pack_values(self.kind, blocks, memory),
            Part::Scales => Groups::scales(self.kind, blocks, memory),
            Part::Biases => Groups::biases(self.kind, blocks, memory),
            Part::Codes => gguf::mxfp4_codes(blocks, memory),
            Part::Exponents => gguf::mxfp4_scales(blocks, memory),
        };
        // The lengths are those of whole rows; what is left is a scale that is no number.
        done.ok_or_else(|| {
            let reason =
                format!("has a scale that is not finite, or too large, in its blocks of {}", self.kind);
            Error::invalid_key(&self.path, &self.name, reason)
        })
    }
}
