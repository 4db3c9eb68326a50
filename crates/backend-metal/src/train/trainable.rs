//! The trainable parameters of a run: adapters on layers, or the weights themselves.

use std::{borrow::Cow, rc::Rc};

use inference_core::{
    Error, Result,
    train::{AdapterDtype, AdapterOptions, Method},
};
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result as MlxResult},
    ops, random,
};

use crate::{
    mlx::{exception, on_cuda},
    nn::{Adapter, AdapterSlot, Architecture, Param, SlotKind, Weight, layer_of},
};

/// Which tensors a run trains. Their values are kept by the run.
#[derive(Debug)]
pub(crate) struct TrainableParams {
    params: Vec<Rc<Param>>,
    adapters: Vec<(Rc<AdapterSlot>, Rc<Adapter>)>,
    by_layer: Vec<Vec<Rc<Param>>>,
    dropout: f32,
    /// The type that a step computes in; unset: the values' own.
    compute_dtype: Option<Dtype>,
    seed: u64,
}

/// Adapters that are attached to the model; dropping this detaches them.
pub(super) struct AdapterGuard<'a>(&'a TrainableParams);

impl Drop for AdapterGuard<'_> {
    fn drop(&mut self) {
        self.0.adapters.iter().for_each(|(slot, _)| slot.set(None));
    }
}

impl TrainableParams {
    /// The parameters that `method` trains, and their values before the first step.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the model has no such layers, or the method cannot train its weights.
    pub(crate) fn new(model: &dyn Architecture, method: &Method, seed: u64) -> Result<(Self, Vec<Array>)> {
        let layers = model.config().layers;
        let first = method.layers().map_or(0, |last| layers.saturating_sub(last));
        if model.registry().slots().iter().any(|slot| slot.adapter().is_some()) {
            return Err(invalid("method", "the model was loaded with an adapter: fuse it, or load without"));
        }
        let mut trainable = Self {
            params: Vec::new(),
            adapters: Vec::new(),
            by_layer: vec![Vec::new(); layers],
            dropout: 0.0,
            compute_dtype: None,
            seed,
        };
        let values = match method {
            Method::Lora(options) => {
                // In single precision, MLX would convert what goes in and comes out of each adapter, and keep it for the gradient.
                let half = on_cuda() && model.config().dtype == "bf16";
                trainable.compute_dtype = half.then_some(Dtype::Bfloat16);
                trainable.add_adapters(model, options, first, false)?
            }
            Method::Dora(options) => trainable.add_adapters(model, options, first, true)?,
            Method::Full(options) => {
                let all = options.layers.is_none();
                trainable.dropout = options.dropout;
                trainable.compute_dtype = options.mixed_precision.then_some(Dtype::Bfloat16);
                trainable.add_weights(model, |name| match layer_of(name) {
                    Some(layer) => layer >= first,
                    None => all,
                })?
            }
            other => return Err(invalid("method", format!("this backend does not know {}", other.name()))),
        };
        let mut both: Vec<_> = trainable.params.drain(..).zip(values).collect();
        both.sort_by_key(|(param, _)| depth(param.name()));
        let (params, values) = both.into_iter().unzip();
        trainable.params = params;
        for param in &trainable.params {
            if let Some(params) = param.layer().and_then(|layer| trainable.by_layer.get_mut(layer)) {
                params.push(param.clone());
            }
        }
        Ok((trainable, values))
    }

    /// The parameters, from the embedding to the head.
    pub(crate) fn params(&self) -> &[Rc<Param>] {
        &self.params
    }

    /// Has the model give up the weights that are trained here. It computes with zeros from then on.
    pub(super) fn release_base(&self, model: &dyn Architecture) -> MlxResult<()> {
        let trained = |param: &Rc<Param>| self.params.iter().any(|own| Rc::ptr_eq(own, param));
        let parameters = model.registry().parameters();
        parameters.iter().filter(|weight| weight.params().all(&trained)).try_for_each(Weight::release)
    }

    /// The parameters of each block.
    pub(super) fn by_layer(&self) -> &[Vec<Rc<Param>>] {
        &self.by_layer
    }

    /// The parameters outside all blocks: embedding, final norm, head.
    pub(super) fn outside_blocks(&self) -> Vec<Rc<Param>> {
        self.params.iter().filter(|param| param.layer().is_none()).cloned().collect()
    }

    /// The values in the type that a step computes in.
    pub(super) fn as_computed<'a>(&self, values: &'a [Array]) -> MlxResult<Cow<'a, [Array]>> {
        let Some(dtype) = self.compute_dtype else { return Ok(Cow::Borrowed(values)) };
        values.iter().map(|value| value.as_dtype(dtype)).collect::<MlxResult<_>>().map(Cow::Owned)
    }

    /// The name of the first parameter whose value has elements that are NaN or infinite.
    pub(super) fn not_finite(&self, values: &[Array]) -> MlxResult<Option<&str>> {
        for (param, value) in self.params.iter().zip(values) {
            let finite = value.is_finite()?.all(false)?.try_item_exact::<bool>();
            if !finite.map_err(exception)? {
                return Ok(Some(param.name()));
            }
        }
        Ok(None)
    }

    /// Attaches the adapters to the model. `key` seeds their dropout; without it there is none, as in validation.
    pub(super) fn attach(&self, key: Option<&Array>) -> MlxResult<AdapterGuard<'_>> {
        let guard = AdapterGuard(self);
        for (slot, adapter) in &self.adapters {
            let dropout_key = key.filter(|_| self.dropout > 0.0).map(|key| named_key(slot.name(), key));
            adapter.dropout.replace(dropout_key.transpose()?.map(|key| (self.dropout, key)));
            slot.set(Some(adapter.clone()));
        }
        Ok(guard)
    }

    /// Dropout on the residual stream, used in full training: the rate, and one PRNG key per block.
    pub(super) fn residual_dropout(&self, key: &Array) -> MlxResult<Option<(f32, Vec<Array>)>> {
        if self.dropout <= 0.0 || !self.adapters.is_empty() {
            return Ok(None);
        }
        let keys = (0..self.by_layer.len()).map(|layer| named_key(&format!("layers.{layer}"), key));
        Ok(Some((self.dropout, keys.collect::<MlxResult<_>>()?)))
    }

    fn add_adapters(
        &mut self,
        model: &dyn Architecture,
        options: &AdapterOptions,
        first: usize,
        dora: bool,
    ) -> Result<Vec<Array>> {
        self.dropout = options.dropout;
        let mut unused: Vec<&String> = options.keys.iter().flatten().collect();
        let chosen: Vec<_> = model
            .registry()
            .slots()
            .into_iter()
            .filter(|slot| {
                let fits = |key: &&String| {
                    let tail = slot.name().strip_suffix(key.as_str());
                    tail.is_some_and(|head| head.is_empty() || head.ends_with('.'))
                };
                let named = options.keys.iter().flatten().any(|key| fits(&key));
                unused.retain(|key| !fits(key));
                match (layer_of(slot.name()), slot.kind()) {
                    (Some(layer), _) => layer >= first && (named || options.keys.is_none()),
                    (None, SlotKind::Embedding) => named || options.embeddings,
                    (None, _) => named,
                }
            })
            .collect();
        if let Some(key) = unused.first() {
            return Err(invalid("keys", format!("{key} is not a layer of the model")));
        }
        if let Some(slot) = chosen.iter().find(|slot| dora && slot.kind() != SlotKind::Linear) {
            return Err(invalid(
                "method",
                format!("DoRA adapts linear layers only, {} is not one", slot.name()),
            ));
        }
        let mut values = Vec::new();
        for slot in chosen {
            values.extend(self.add_adapter(&slot, options, dora).map_err(failed)?);
        }
        if self.adapters.is_empty() {
            return Err(invalid("keys", "they select none of the model's layers"));
        }
        Ok(values)
    }

    /// Initial values: A uniform in ±1/√inputs; B zero, so that training starts from the model as it is.
    fn add_adapter(
        &mut self,
        slot: &Rc<AdapterSlot>,
        options: &AdapterOptions,
        dora: bool,
    ) -> MlxResult<Vec<Array>> {
        let dtype = match options.dtype {
            AdapterDtype::Bf16 => Dtype::Bfloat16,
            _ => Dtype::Float32,
        };
        let [a, b] =
            slot.shapes(options.rank).map(|shape| shape.iter().map(|n| *n as i32).collect::<Vec<_>>());
        let bound = (slot.inputs() as f32).sqrt().recip();
        let key = self.prng_key(slot.name(), 0)?;
        let a = random::uniform::<_, f32>(-bound, bound, a.as_slice(), &key)?.as_dtype(dtype)?;
        let b = ops::zeros_dtype(&b, dtype)?;
        let mut values = Vec::new();
        let mut param = |part: &str, value: Array| {
            let param = Param::new(format!("{}.{part}", slot.name()), Some(value.clone()));
            self.params.push(param.clone());
            values.push(value);
            param
        };
        let (a, b) = (param("lora_a", a), param("lora_b", b));
        let magnitude = if dora { Some(param("m", slot.row_norms()?)) } else { None };
        let (scale, dropout) = (options.scale, None.into());
        let adapter = Adapter { a, b, magnitude, scale, dropout, norms: None };
        self.adapters.push((slot.clone(), Rc::new(adapter)));
        Ok(values)
    }

    fn add_weights(&mut self, model: &dyn Architecture, chosen: impl Fn(&str) -> bool) -> Result<Vec<Array>> {
        if let Some(name) = model.registry().packed().iter().find(|name| chosen(name)) {
            let reason = format!(
                "full: {name} is quantised, which only adapters can train: dequantise the model first"
            );
            return Err(invalid("method", reason));
        }
        let mut values = Vec::new();
        for parameter in model.registry().parameters() {
            for (param, value) in parameter.params().zip(parameter.values()) {
                if chosen(param.name()) {
                    self.params.push(param.clone());
                    values.push(value.map_err(failed)?);
                }
            }
        }
        Ok(values)
    }

    /// A PRNG key for this name and batch: the same in every run with this seed.
    pub(super) fn prng_key(&self, name: &str, batch: u64) -> MlxResult<Array> {
        random::key(hash(name.bytes().chain(self.seed.to_le_bytes()).chain(batch.to_le_bytes())))
    }
}

/// The position of a tensor in the model. MLX evaluates the last requested array first: in this order each gradient is computed when
/// the backward pass reaches its layer, and its inputs are freed with it.
fn depth(name: &str) -> usize {
    match layer_of(name) {
        Some(layer) => layer + 1,
        None if name.contains("embed_tokens") => 0,
        None => usize::MAX,
    }
}

/// The key of this name, derived from a shared key inside the graph.
fn named_key(name: &str, shared: &Array) -> MlxResult<Array> {
    shared.add(random::key(hash(name.bytes()))?)
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn invalid(option: &'static str, reason: impl Into<String>) -> Error {
    Error::invalid_option(option, reason)
}

fn failed(error: Exception) -> Error {
    Error::backend("mlx", "prepare the trainable parameters", error)
}
