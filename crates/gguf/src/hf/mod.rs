//! A GGUF model in the terms of the folders that Hugging Face publishes: config.json, names of tensors, tokenizer.json.
//!
//! llama.cpp's converters change models on the way in: names, the order of rows of queries and keys, the order of heads of gated delta
//! nets, norms that are stored without their 1. What they change is known by family and undone here.

mod config;
mod delta_net;
mod family;
mod layout;
mod merges;
mod pre_tokenizer;
mod rope;
mod tokenizer;
mod word_piece;

use serde_json::{Map, Value};

use self::{
    config::Fields,
    delta_net::DeltaNet,
    family::{Family, Target},
};
pub use self::{
    layout::{Change, Dropped, Named, Rows, Tiles},
    tokenizer::TextFiles,
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
        let delta_net = family.delta_nets.map(|_| DeltaNet::add(&fields, &mut config)).transpose()?;
        let heads = [fields.heads, fields.kv_heads];
        let mut named = Vec::new();
        for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !fields.predicts_more(tensor))
        {
            match family.target(&tensor.name) {
                Some(Target::Ignored) => {}
                Some(Target::Tensor { name, paired, change }) => {
                    let placed = match (paired, &delta_net) {
                        (Some(which), _) => vec![(name, Rows::paired(tensor, heads[which])?, None)],
                        (None, Some(delta_net)) => delta_net.place(name, tensor)?,
                        (None, None) => vec![(name, Rows::Same, None)],
                    };
                    named.extend(placed.into_iter().map(|(name, rows, columns)| {
                        let dropped = Dropped::of(&name, tensor);
                        Named { name, tensor: index, rows, columns, change, dropped }
                    }));
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
