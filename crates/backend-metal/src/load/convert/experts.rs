//! How checkpoints store experts, told by the names of tensors.

use inference_core::{Dtype, Error, ModelManifest, Result, backend::TensorInfo};

use super::layout::{Layout, Parts};

/// A tensor with matrices of all experts, which becomes those that mlx_lm reads: `gate_proj` and `up_proj`, or `down_proj`.
pub(super) struct FusedExperts {
    /// Names without `.weight`.
    pub(super) stems: Vec<String>,
    pub(super) layout: Layout,
    pub(super) part: Part,
}

/// Which part of the experts a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The matrices in full, `[experts, .., ..]`.
    Dense,
    /// Their biases, `[experts, rows]`.
    Bias,
    /// Their elements in four-bit floats, `[experts, rows, groups, 16]`, and scales, as gpt-oss is published.
    Blocks,
    /// The scales of those, `[experts, rows, groups]`.
    Scales,
}

impl FusedExperts {
    /// Reads the name of a tensor with matrices of all experts: `…experts.gate_up_proj` or `…experts.down_proj`, as transformers has
    /// them. gpt-oss's have biases, columns before rows, and alternating rows of gate and up; Llama 4's have columns before rows; others
    /// do not.
    pub(super) fn of(source: &ModelManifest, name: &str, tensor: &TensorInfo) -> Option<Self> {
        let (block, rest) = name.split_once(".experts.")?;
        let (joined, names): (_, &[&str]) = if rest.starts_with("gate_up_proj") {
            ("gate_up_proj", &["gate_proj", "up_proj"])
        } else {
            ("down_proj", &["down_proj"])
        };
        let (part, dimensions) = match rest.strip_prefix(joined)? {
            "" => (Part::Dense, 3),
            "_bias" => (Part::Bias, 2),
            "_blocks" => (Part::Blocks, 4),
            "_scales" => (Part::Scales, 3),
            _ => return None,
        };
        let biased = source.tensors().contains_key(&format!("{block}.experts.{joined}_bias"));
        let parts = match names.len() {
            1 => Parts::One,
            _ if biased => Parts::Interleaved,
            _ => Parts::Stacked,
        };
        let columns_first = biased || source.model_type().starts_with("llama4");
        let transposed = columns_first && part == Part::Dense;
        let rows = if transposed { 2 } else { 1 };
        if tensor.shape.len() != dimensions || !tensor.shape[rows].is_multiple_of(names.len()) {
            return None;
        }
        let parent = if columns_first { "experts" } else { "switch_mlp" };
        let stems = names.iter().map(|name| format!("{block}.{parent}.{name}")).collect();
        Some(Self { stems, layout: Layout { transposed, parts }, part })
    }

    /// The shape of each part of a tensor of this shape, rows before columns.
    pub(super) fn shape(&self, whole: &[usize]) -> Vec<usize> {
        let mut shape = whole.to_vec();
        if self.layout.transposed {
            shape.swap(1, 2);
        }
        shape[1] /= self.stems.len();
        shape
    }
}

/// Whether the checkpoint stores this part's experts packed, as `…_blocks`.
pub(super) fn has_blocks(source: &ModelManifest, name: &str) -> bool {
    let stem = ["_blocks", "_scales", "_bias"].iter().find_map(|end| name.strip_suffix(end));
    stem.is_some_and(|stem| source.tensors().contains_key(&format!("{stem}_blocks")))
}

/// Packed experts as MLX stores them: words `[experts, rows, columns / 8]` and scales `[experts, rows, columns / 32]`.
///
/// # Errors
/// [`Error::InvalidModel`] where they do not belong together.
pub(super) fn packed(source: &ModelManifest, name: &str, blocks: &TensorInfo) -> Result<[TensorInfo; 2]> {
    let invalid = |reason: String| Error::invalid_key(&source.files()[blocks.file], name, reason);
    let scales = format!("{}_scales", name.trim_end_matches("_blocks"));
    let scales =
        source.tensors().get(&scales).ok_or_else(|| invalid(format!("has no {scales:?} beside it")))?;
    let types = blocks.dtype == Dtype::U8 && matches!(scales.dtype, Dtype::U8 | Dtype::F8E8m0);
    if !types || blocks.shape[3] != 16 || blocks.shape[..3] != scales.shape[..] {
        let reason = format!(
            "has {:?} of type {}, and scales {:?} of type {}: expected [experts, rows, groups, 16] of u8, and scales for each group",
            blocks.shape, blocks.dtype, scales.shape, scales.dtype
        );
        return Err(invalid(reason));
    }
    let (mut words, mut scales) = (blocks.clone(), scales.clone());
    (words.dtype, scales.dtype) = (Dtype::U32, Dtype::U8);
    words.shape = vec![blocks.shape[0], blocks.shape[1], blocks.shape[2] * 4];
    Ok([words, scales])
}

/// For single experts, what names and places publishers and mlx_lm give them.
const NAMES: [(&str, &str); 3] = [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")];

/// What mlx_lm calls the matrices of experts without gates.
const UNGATED: [(&str, &str); 2] = [("fc1", "up_proj"), ("fc2", "down_proj")];

/// The name of the stack that a single expert's matrix belongs to, and its place there.
pub(super) fn stacked_name(stem: &str) -> Option<(String, usize)> {
    let (block, rest) = stem.split_once(".experts.")?;
    let (index, name) = rest.split_once('.')?;
    let name = NAMES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
    Some((format!("{block}.switch_mlp.{name}"), index.parse().ok()?))
}

/// The names of the single experts' matrices in a stack.
pub(super) fn unstacked_names(stem: &str, shape: &[usize]) -> Option<Vec<String>> {
    let (block, name) = stem.split_once(".switch_mlp.")?;
    let is_short = block.ends_with(".block_sparse_moe") || block.ends_with(".feed_forward");
    let short = NAMES.iter().find(|(_, long)| *long == name && is_short);
    let ungated = UNGATED.iter().find(|(converted, _)| *converted == name);
    let name = short.map(|(short, _)| *short).or(ungated.map(|(_, name)| *name)).unwrap_or(name);
    (shape.len() == 3).then(|| (0..shape[0]).map(|i| format!("{block}.experts.{i}.{name}")).collect())
}
