//! Gated delta nets: their sizes, and the order in which files have the heads of their values.

use serde_json::{Map, Value, json};

use super::{
    config::Fields,
    families::DeltaNets,
    layout::{Rows, Tiles},
};
use crate::{Error, Result, Tensor};

/// How the files of a model have its gated delta nets.
pub(super) struct DeltaNet {
    /// The rows of queries and keys, which are before those of values.
    keys: usize,
    /// The heads of keys and of values.
    heads: Tiles,
    /// Whether the heads of values are in another order than transformers'.
    tiled: bool,
    /// Whether queries, keys and values are in one matrix and z in another; then b and a are in two for transformers.
    apart: bool,
}

/// A tensor of transformers': its name, the order of its rows, and of the parts of each row.
pub(super) type Placed = (String, Rows, Option<Tiles>);

impl DeltaNet {
    /// Adds the sizes to config.json.
    ///
    /// # Errors
    /// [`Error::Invalid`] names a size that is missing or does not go with the others.
    pub(super) fn add(fields: &Fields<'_>, config: &mut Map<String, Value>) -> Result<Self> {
        let needed = |name| fields.needed(name).map(|size| size as usize);
        let (key_dim, groups) = (needed("ssm.state_size")?, needed("ssm.group_count")?);
        let (heads, values) = (needed("ssm.time_step_rank")?, needed("ssm.inner_size")?);
        for (name, size, part) in [("ssm.time_step_rank", heads, groups), ("ssm.inner_size", values, heads)] {
            if !size.is_multiple_of(part) {
                return Err(Error::at(fields.key(name), format!("is {size}, expected a multiple of {part}")));
            }
        }
        let interval = match fields.count("full_attention_interval")?.unwrap_or(4) {
            // The layers that are no delta nets have attention.
            interval @ 2.. => interval,
            other => {
                let reason = format!("is {other}, expected a number from 2");
                return Err(Error::at(fields.key("full_attention_interval"), reason));
            }
        };
        let mut put = |key: &str, value: Value| config.insert(key.to_owned(), value);
        put("full_attention_interval", json!(interval));
        put("linear_conv_kernel_dim", json!(needed("ssm.conv_kernel")?));
        put("linear_num_key_heads", json!(groups));
        put("linear_key_head_dim", json!(key_dim));
        put("linear_num_value_heads", json!(heads));
        put("linear_value_head_dim", json!(values / heads));
        let tiled = fields.family.delta_nets == Some(DeltaNets::Tiled) && heads != groups;
        let keys = key_dim.saturating_mul(2).saturating_mul(groups);
        let apart = fields.tensors.iter().any(|tensor| tensor.name.ends_with(".attn_gate.weight"));
        Ok(Self { keys, heads: Tiles { groups, heads }, tiled, apart })
    }

    /// What the tensor is that has this name for transformers, or would have.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the tensor does not divide into as many heads.
    pub(super) fn place(&self, name: String, tensor: &Tensor) -> Result<Vec<Placed>> {
        let Some((layer, part)) = name.split_once(".linear_attn.") else {
            return Ok(vec![(name, Rows::Same, None)]);
        };
        let Tiles { groups, heads } = self.heads;
        let rows =
            if tensor.shape.len() == 1 { tensor.shape.first() } else { tensor.shape.iter().nth_back(1) };
        match part.trim_end_matches(".weight") {
            "in_proj_ba" if self.apart => {
                divides(tensor, tensor.shape.iter().nth_back(1), 0, 2 * heads)?;
                let half = |part, second| {
                    (
                        format!("{layer}.linear_attn.in_proj_{part}.weight"),
                        Rows::Half { groups, second },
                        None,
                    )
                };
                Ok(vec![half("b", false), half("a", true)])
            }
            "in_proj_qkv" | "conv1d" if self.tiled => {
                divides(tensor, rows, self.keys, heads)?;
                Ok(vec![(name, Rows::Tiled { first: self.keys, tiles: self.heads }, None)])
            }
            "in_proj_z" | "in_proj_a" | "in_proj_b" | "A_log" | "dt_bias" if self.tiled => {
                divides(tensor, rows, 0, heads)?;
                Ok(vec![(name, Rows::Tiled { first: 0, tiles: self.heads }, None)])
            }
            "out_proj" if self.tiled => {
                divides(tensor, tensor.shape.last(), 0, heads)?;
                Ok(vec![(name, Rows::Same, Some(self.heads))])
            }
            _ => Ok(vec![(name, Rows::Same, None)]),
        }
    }
}

/// Checks that what is left of an extent behind the first ones divides into heads.
fn divides(tensor: &Tensor, extent: Option<&usize>, first: usize, heads: usize) -> Result<()> {
    let left = extent.and_then(|extent| extent.checked_sub(first));
    if tensor.shape.len() <= 2 && left.is_some_and(|left| left > 0 && left.is_multiple_of(heads)) {
        return Ok(());
    }
    let reason = format!(
        "has the extents {:?}, expected {heads} heads of equal width behind the first {first} rows",
        tensor.shape
    );
    Err(Error::at(&tensor.name, reason))
}
