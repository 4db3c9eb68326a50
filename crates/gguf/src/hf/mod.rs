//! A GGUF model in the terms of the folders that Hugging Face publishes: config.json, names of tensors, tokenizer.json.
//!
//! llama.cpp's converters change models on the way in: names, the order of rows of queries and keys, the order of heads of gated delta
//! nets, norms that are stored without their 1. What they change is known by family and undone here.

mod config;
mod delta_net;
mod families;
mod family;
mod gemma;
mod latent;
mod layout;
mod merges;
mod names;
mod pre_tokenizer;
mod rope;
mod state_space;
mod tokenizer;
mod word_piece;
mod xielu;

use serde_json::{Map, Value};

use self::{config::Fields, delta_net::DeltaNet, families::Family, family::Target};
pub use self::{
    layout::{Change, Extents, Named, Rows, Tiles},
    tokenizer::TextFiles,
    xielu::Constant,
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
    /// Tensors of one element each, which files have in their metadata.
    pub constants: Vec<Constant>,
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
        match family.architecture {
            "deepseek2" => latent::add(&fields, &mut config)?,
            "gemma2" | "gemma3" | "gemma3n" | "gemma4" => gemma::add(&fields, &mut config)?,
            _ if family.state_space.is_some() => state_space::add(&fields, &mut config)?,
            _ => {}
        }
        rope::add(&fields, &mut config, read)?;
        let delta_net = family.delta_nets.map(|_| DeltaNet::add(&fields, &mut config)).transpose()?;
        let mut named = Vec::new();
        for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !fields.is_unused(tensor)) {
            named.extend(place(&fields, delta_net.as_ref(), index, tensor)?);
        }
        let constants =
            if family.architecture == "apertus" { xielu::constants(&fields)? } else { Vec::new() };
        Ok(Self {
            model_type: fields.model_type,
            config,
            tensors: named,
            constants,
            needs_wide_activations: family.needs_wide_activations,
        })
    }
}

/// What a tensor of the file is for transformers.
fn place(
    fields: &Fields<'_>,
    delta_net: Option<&DeltaNet>,
    index: usize,
    tensor: &Tensor,
) -> Result<Vec<Named>> {
    let Some(target) = fields.family.target(&tensor.name) else {
        let reason = format!("is no tensor that a {} is known to have", fields.family.architecture);
        return Err(Error::at(&tensor.name, reason));
    };
    let (name, paired, change) = match target {
        Target::Ignored => return Ok(Vec::new()),
        Target::Stack(name) => return Named::stack(&name, index, tensor),
        Target::Halves(names) => return Ok(Named::halves(names, index, tensor)?.into()),
        Target::Tensor { name, paired, change } => (name, paired, change),
    };
    let placed = match (paired, delta_net) {
        (Some(which), _) => {
            let rows = Rows::paired(tensor, [fields.heads, fields.kv_heads][which])?;
            vec![(name, rows, None)]
        }
        (None, Some(delta_net)) => delta_net.place(name, tensor)?,
        (None, None) => vec![(name, Rows::Same, None)],
    };
    let named = |(name, rows, columns)| Named { rows, columns, change, ..Named::new(name, index, tensor) };
    Ok(placed.into_iter().map(named).collect())
}
