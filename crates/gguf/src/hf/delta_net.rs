//! Gated delta nets: their sizes, and the order in which files have the heads of their values.

use serde_json::{Map, Value, json};

use super::{
    config::Fields,
    layout::{Rows, Tiles},
};
use crate::{Error, Result, Tensor};

/// How the files of a model have its gated delta nets.
pub(super) struct DeltaNet {
    /// The rows of queries and keys, which are before those of values.
    keys: usize,
    /// The order of values' heads; `None` where each has a key of its own.
    tiles: Option<Tiles>,
}

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
        let tiles = (heads != groups).then_some(Tiles { groups, heads });
        Ok(Self { keys: key_dim.saturating_mul(2).saturating_mul(groups), tiles })
    }

    /// The order of rows, and of the parts of rows, of the tensor that has this name for transformers.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the tensor does not divide into as many heads.
    pub(super) fn order(&self, name: &str, tensor: &Tensor) -> Result<(Rows, Option<Tiles>)> {
        let (Some(tiles), Some((_, part))) = (self.tiles, name.split_once(".linear_attn.")) else {
            return Ok((Rows::Same, None));
        };
        let first = match part.trim_end_matches(".weight") {
            "in_proj_qkv" | "conv1d" => self.keys,
            "in_proj_z" | "in_proj_a" | "in_proj_b" | "A_log" | "dt_bias" => 0,
            "out_proj" => {
                heads(tensor, tensor.shape.last(), 0, tiles)?;
                return Ok((Rows::Same, Some(tiles)));
            }
            _ => return Ok((Rows::Same, None)),
        };
        let rows =
            if tensor.shape.len() == 1 { tensor.shape.first() } else { tensor.shape.iter().nth_back(1) };
        heads(tensor, rows, first, tiles)?;
        Ok((Rows::Tiled { first, tiles }, None))
    }
}

/// Checks that what is left of an extent behind the first ones divides into heads.
fn heads(tensor: &Tensor, extent: Option<&usize>, first: usize, tiles: Tiles) -> Result<()> {
    let left = extent.and_then(|extent| extent.checked_sub(first));
    if tensor.shape.len() <= 2 && left.is_some_and(|left| left > 0 && left.is_multiple_of(tiles.heads)) {
        return Ok(());
    }
    let reason = format!(
        "has the extents {:?}, expected {} heads of equal width behind the first {first} rows",
        tensor.shape, tiles.heads
    );
    Err(Error::at(&tensor.name, reason))
}
