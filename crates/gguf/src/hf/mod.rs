//! A GGUF model in the terms of the folders that Hugging Face publishes: config.json, names of tensors, tokenizer.json.
//!
//! llama.cpp's converters change models on the way in: names, the order of rows of queries and keys, norms that are stored without
//! their 1. What they change is known by family and undone here.

mod config;
mod family;
mod merges;
mod pre_tokenizer;
mod rope;
mod tokenizer;
mod word_piece;

use serde_json::{Map, Value};

pub use self::tokenizer::TextFiles;
use self::{
    config::Fields,
    family::{Family, Target},
};
use crate::{Error, Metadata, Result, Tensor};

/// A model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Model {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// config.json, without what it says of quantisation.
    pub config: Map<String, Value>,
    /// The tensors by transformers' names, in the order of the file.
    pub tensors: Vec<Named>,
    /// Whether activations of this family leave the range of half precision.
    pub needs_wide_activations: bool,
}

/// A tensor with transformers' name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Named {
    /// Its name, `.weight` included.
    pub name: String,
    /// Its place in the list of tensors.
    pub tensor: usize,
    /// The order of its rows.
    pub rows: Rows,
    /// What was added to its elements, and is to be taken away again.
    pub added: f32,
    /// Whether its numbers are a matrix of one row: the converter drops extents of 1.
    pub row: bool,
}

/// Matrices that have one row.
const ROWS: [&str; 2] = [".shared_expert_gate.weight", ".moe_statics.e_score_correction_bias"];

/// The order of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As transformers has them.
    Same,
    /// Of so many heads, the two rows that rope rotates together stand side by side; transformers has them half a head apart.
    Paired {
        /// Heads, which the rows divide into.
        heads: usize,
    },
}

impl Rows {
    /// The stored row that is row `row` of `rows` for transformers.
    #[must_use]
    pub fn stored(self, row: usize, rows: usize) -> usize {
        let Self::Paired { heads } = self else { return row };
        let width = rows / heads;
        let (head, within) = (row / width, row % width);
        head * width + within % (width / 2) * 2 + within / (width / 2)
    }
}

impl Model {
    /// The model that a header describes. `read` gives the elements of a small tensor in single precision; factors of rope are
    /// stored so.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the key or tensor that is missing, makes no sense or belongs to no family that is known here; and
    /// the errors of `read`.
    pub fn new(
        metadata: &Metadata,
        tensors: &[Tensor],
        read: &mut dyn FnMut(&Tensor) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let family = Family::of(metadata)?;
        let fields = Fields::new(metadata, tensors, family)?;
        let mut config = fields.config()?;
        rope::add(&fields, &mut config, read)?;
        let heads = [fields.heads, fields.kv_heads];
        let mut named = Vec::new();
        for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !fields.predicts_more(tensor))
        {
            match family.target(&tensor.name) {
                Some(Target::Ignored) => {}
                Some(Target::Tensor { name, paired, added }) => {
                    let rows = match paired {
                        Some(which) => paired_rows(tensor, heads[which])?,
                        None => Rows::Same,
                    };
                    let row = tensor.shape.len() == 1 && ROWS.iter().any(|end| name.ends_with(end));
                    named.push(Named { name, tensor: index, rows, added, row });
                }
                None => {
                    let reason = format!("is no tensor that a {} is known to have", family.architecture);
                    return Err(Error::at(&tensor.name, reason));
                }
            }
        }
        Ok(Self {
            model_type: fields.model_type,
            config,
            tensors: named,
            needs_wide_activations: family.needs_wide_activations,
        })
    }
}

fn paired_rows(tensor: &Tensor, heads: usize) -> Result<Rows> {
    let rows = if tensor.shape.len() == 1 { tensor.shape[0] } else { tensor.shape[tensor.shape.len() - 2] };
    if tensor.shape.len() > 2 || heads == 0 || !rows.is_multiple_of(2 * heads) {
        let reason =
            format!("has the extents {:?}, expected rows that divide into {heads} heads", tensor.shape);
        return Err(Error::at(&tensor.name, reason));
    }
    Ok(Rows::Paired { heads })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_put_half_a_head_apart() {
        let rows = Rows::Paired { heads: 2 };
        let stored: Vec<_> = (0..8).map(|row| rows.stored(row, 8)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(Rows::Same.stored(5, 8), 5);
    }
}
