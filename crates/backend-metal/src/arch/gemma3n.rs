//! Gemma 3n: several residual streams that a layer predicts, computes one of, and corrects (AltUp, Baykal et al. 2023, arXiv 2301.13310), a
//! residual of low rank beside attention, sparse activations, keys and values that later layers share, and an input of its own for each
//! layer.

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    config::{Config, LayerType, Layers, positive, rope_by_type, text_section, tower},
    gemma4::{Attention, AttentionPlan, sharing},
};
use crate::{
    mlx::{scalar, slice},
    nn::{
        Architecture, Block, Decoder, Dimensions, ForwardPass, Gating, LayerInputs, LayerState, Linear,
        RmsNorm, Rope, Streams, Weight, Weights,
    },
};

#[derive(Debug, Deserialize)]
struct Own {
    attention_bias: bool,
    /// The width of the feed-forward part of each layer, where they differ.
    #[serde(default)]
    intermediate_sizes: Option<Vec<usize>>,
    num_kv_shared_layers: usize,
    hidden_size_per_layer_input: usize,
    vocab_size_per_layer_input: usize,
    altup_num_inputs: usize,
    altup_active_idx: usize,
    altup_correct_scale: bool,
    laurel_rank: usize,
    /// The part of each layer's activations that is zero.
    #[serde(default)]
    activation_sparsity_pattern: Option<Vec<f32>>,
    #[serde(default)]
    final_logit_softcapping: Option<f32>,
    #[serde(flatten)]
    layers: Layers,
}

/// Widths of feed-forward parts may be one number or a list.
fn split_widths(config: &mut Map<String, Value>) -> LoadResult<()> {
    if let Some(Value::Array(widths)) = config.get("intermediate_size").cloned() {
        config.insert("intermediate_size".to_owned(), widths.first().cloned().unwrap_or(json!(0)));
        config.insert("intermediate_sizes".to_owned(), Value::Array(widths));
    }
    Ok(())
}

impl Own {
    /// Checks what the dimensions do not.
    fn check(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<()> {
        const LARGEST: usize = 1 << 24;
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        let sizes = [
            ("hidden_size_per_layer_input", self.hidden_size_per_layer_input),
            ("vocab_size_per_layer_input", self.vocab_size_per_layer_input),
            ("laurel_rank", self.laurel_rank),
        ];
        let widths = self.intermediate_sizes.iter().flatten().map(|size| ("intermediate_size", *size));
        for (key, size) in sizes.into_iter().chain(widths) {
            if size == 0 || size > LARGEST {
                return invalid(key, format!("{size}, expected a number from 1 to {LARGEST}"));
            }
        }
        if !(1..=64).contains(&self.altup_num_inputs) {
            let reason = format!("{}, expected a number from 1 to 64", self.altup_num_inputs);
            return invalid("altup_num_inputs", reason);
        }
        if self.altup_active_idx >= self.altup_num_inputs {
            let reason = format!("{}, expected less than altup_num_inputs", self.altup_active_idx);
            return invalid("altup_active_idx", reason);
        }
        let layers = dims.num_hidden_layers;
        if self.num_kv_shared_layers >= layers {
            let reason = format!("{}, expected fewer than layers", self.num_kv_shared_layers);
            return invalid("num_kv_shared_layers", reason);
        }
        let lists = [
            ("intermediate_size", self.intermediate_sizes.as_ref().map(Vec::len)),
            ("activation_sparsity_pattern", self.activation_sparsity_pattern.as_ref().map(Vec::len)),
        ];
        for (key, found) in lists {
            if let Some(found) = found.filter(|found| *found != layers) {
                return invalid(key, format!("{found} entries for {layers} layers"));
            }
        }
        let mut parts = self.activation_sparsity_pattern.iter().flatten();
        match parts.find(|part| !(0.0..1.0).contains(*part)) {
            Some(part) => {
                invalid("activation_sparsity_pattern", format!("{part}, expected numbers from 0 to below 1"))
            }
            None => Ok(()),
        }
    }

    /// The part of a layer's activations that is zero.
    fn sparsity(&self, layer: usize, layers: usize) -> f32 {
        match &self.activation_sparsity_pattern {
            Some(parts) => parts[layer],
            None if layers > 10 && layer < 10 => 0.95,
            None => 0.0,
        }
    }
}

/// down(act(sparse(gate(x))) · up(x))
#[derive(Debug)]
struct SparseMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    gating: Gating,
    /// Gates below their mean by this many standard deviations, and less, are none.
    deviations: Option<Array>,
}

impl SparseMlp {
    fn load(weights: &Weights<'_>, dims: &Dimensions, width: usize, sparsity: f32) -> LoadResult<Self> {
        let linear = |name, outputs, inputs| Linear::load(&weights.at(name), outputs, inputs, false);
        // The quantile of a normal distribution.
        let quantile = || {
            let quantile = ops::erfinv(Array::from_f32(2.0 * sparsity - 1.0))?;
            let quantile = quantile.multiply(Array::from_f32(std::f32::consts::SQRT_2))?;
            quantile.eval()?;
            Ok(quantile)
        };
        let quantile = (sparsity > 0.0).then(quantile).transpose();
        Ok(Self {
            gate_proj: linear("gate_proj", width, dims.hidden_size)?,
            up_proj: linear("up_proj", width, dims.hidden_size)?,
            down_proj: linear("down_proj", dims.hidden_size, width)?,
            gating: Gating::Glu(dims.hidden_act),
            deviations: quantile
                .map_err(|error: Exception| Error::backend("mlx", "bind the weights", error))?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let mut gate = self.gate_proj.forward(x)?;
        if let Some(deviations) = &self.deviations {
            let centred = gate.subtract(gate.mean_axis(-1, true)?)?;
            let deviation = centred.multiply(&centred)?.mean_axis(-1, true)?.sqrt()?;
            let cut = deviation.multiply(deviations.as_dtype(x.dtype())?)?;
            gate = ops::maximum(centred.subtract(cut)?, scalar(0.0, x.dtype())?)?;
        }
        self.down_proj.forward(&self.gating.apply(&gate, &self.up_proj.forward(x)?)?)
    }
}

/// x + norm(right(left(x))), by way of a narrow space.
#[derive(Debug)]
struct Laurel {
    linear_left: Linear,
    linear_right: Linear,
    post_laurel_norm: RmsNorm,
}

impl Laurel {
    fn load(weights: &Weights<'_>, dims: &Dimensions, rank: usize) -> LoadResult<Self> {
        Ok(Self {
            linear_left: Linear::load(&weights.at("linear_left"), rank, dims.hidden_size, false)?,
            linear_right: Linear::load(&weights.at("linear_right"), dims.hidden_size, rank, false)?,
            post_laurel_norm: dims.norm(&weights.at("post_laurel_norm"))?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        self.post_laurel_norm.add(x, &self.linear_right.forward(&self.linear_left.forward(x)?)?)
    }
}

/// How the streams, `[B, T, streams, hidden]`, are predicted before a layer, and corrected by what it gives.
#[derive(Debug)]
struct AltUp {
    router_norm: RmsNorm,
    modality_router: Linear,
    prediction_coefs: Linear,
    correction_coefs: Linear,
    /// Factors of the stream that is computed, where its correction goes on into the others.
    correct_output_scale: Option<Weight>,
    streams: i32,
    active: i32,
}

impl AltUp {
    fn load(weights: &Weights<'_>, dims: &Dimensions, own: &Own) -> LoadResult<Self> {
        let (streams, hidden) = (own.altup_num_inputs, dims.hidden_size);
        let linear = |name, outputs, inputs| Linear::load(&weights.at(name), outputs, inputs, false);
        let scale = weights.take("correct_output_scale", &[hidden])?;
        Ok(Self {
            router_norm: dims.norm(&weights.at("router_norm"))?,
            modality_router: linear("modality_router", streams, hidden)?,
            prediction_coefs: linear("prediction_coefs", streams * streams, streams)?,
            correction_coefs: linear("correction_coefs", streams, streams)?,
            correct_output_scale: own.altup_correct_scale.then_some(scale),
            streams: streams as i32,
            active: own.altup_active_idx as i32,
        })
    }

    /// The stream that is computed, `[B, T, hidden]`.
    fn active(&self, streams: &Array) -> Result<Array> {
        slice(streams, 2, self.active, self.active + 1)?.squeeze_axes(&[2])
    }

    /// `[B, T, hidden]` → `[B, T, streams]`
    fn modalities(&self, x: &Array) -> Result<Array> {
        let inputs = self.router_norm.forward(x)?.multiply(scalar((x.dim(-1) as f32).recip(), x.dtype())?)?;
        ops::tanh(self.modality_router.forward(&inputs)?.as_dtype(Dtype::Float32)?)?.as_dtype(x.dtype())
    }

    fn predict(&self, streams: &Array) -> Result<Array> {
        let mixing = self.prediction_coefs.forward(&self.modalities(&self.active(streams)?)?)?;
        let mixing = mixing.reshape(&[streams.dim(0), streams.dim(1), self.streams, self.streams])?;
        let wide = streams.as_dtype(Dtype::Float32)?;
        mixing.as_dtype(Dtype::Float32)?.matmul(&wide)?.add(wide)?.as_dtype(streams.dtype())
    }

    /// What was predicted, corrected by what became of the stream that is computed.
    fn correct(&self, predicted: &Array, computed: &Array) -> Result<Array> {
        let shares = self.correction_coefs.forward(&self.modalities(computed)?)?;
        let shares = shares.add(scalar(1.0, shares.dtype())?)?.expand_dims(3)?;
        let news = computed.subtract(self.active(predicted)?)?.expand_dims(2)?;
        predicted.add(news.multiply(shares)?)
    }
}

/// A block of Gemma 3n.
#[derive(Debug)]
struct Gemma3nBlock {
    altup: AltUp,
    laurel: Laurel,
    self_attn: Attention,
    mlp: SparseMlp,
    /// Before and after attention, before and after the feed-forward part.
    norms: [RmsNorm; 4],
    per_layer_input_gate: Linear,
    per_layer_projection: Linear,
    post_per_layer_input_norm: RmsNorm,
    gating: Gating,
}

impl Gemma3nBlock {
    fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        own: &Own,
        i: usize,
        self_attn: Attention,
    ) -> LoadResult<Self> {
        let (width, hidden) = (own.hidden_size_per_layer_input, dims.hidden_size);
        let norm = |name| dims.norm(&weights.at(name));
        let inner = own.intermediate_sizes.as_ref().map_or(dims.intermediate_size, |sizes| sizes[i]);
        let sparsity = own.sparsity(i, dims.num_hidden_layers);
        let linear = |name, outputs, inputs| Linear::load(&weights.at(name), outputs, inputs, false);
        Ok(Self {
            altup: AltUp::load(&weights.at("altup"), dims, own)?,
            laurel: Laurel::load(&weights.at("laurel"), dims, own.laurel_rank)?,
            self_attn,
            mlp: SparseMlp::load(&weights.at("mlp"), dims, inner, sparsity)?,
            norms: [
                norm("input_layernorm")?,
                norm("post_attention_layernorm")?,
                norm("pre_feedforward_layernorm")?,
                norm("post_feedforward_layernorm")?,
            ],
            per_layer_input_gate: linear("per_layer_input_gate", width, hidden)?,
            per_layer_projection: linear("per_layer_projection", hidden, width)?,
            post_per_layer_input_norm: norm("post_per_layer_input_norm")?,
            gating: Gating::Glu(dims.hidden_act),
        })
    }
}

impl Block for Gemma3nBlock {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let [before, after, before_mlp, after_mlp] = &self.norms;
        let predicted = self.altup.predict(x)?;
        let active = self.altup.active(&predicted)?;
        let normalised = before.forward(&active)?;
        let attended = after.add(&active, &self.self_attn.forward(&normalised, pass, layer)?)?;
        let half = scalar(std::f32::consts::FRAC_1_SQRT_2, x.dtype())?;
        let mixed = attended.add(self.laurel.forward(&normalised)?)?.multiply(half)?;
        let computed = after_mlp.add(&mixed, &self.mlp.forward(&before_mlp.forward(&mixed)?)?)?;
        let corrected = self.altup.correct(&predicted, &computed)?;
        let mut first = self.altup.active(&corrected)?;
        if let Some(scale) = &self.altup.correct_output_scale {
            first = first.multiply(scale.get()?)?;
        }
        let input = pass.layer_input(layer)?.ok_or_else(|| Exception::custom("a layer without its input"))?;
        let gated = self.gating.apply(&self.per_layer_input_gate.forward(&first)?, &input)?;
        let added = self.post_per_layer_input_norm.forward(&self.per_layer_projection.forward(&gated)?)?;
        // To all streams but the first.
        let others = ops::arange::<_, i32>(0, x.dim(2), None)?.gt(Array::from_int(0))?.expand_dims(1)?;
        corrected.add(added.expand_dims(2)?.multiply(others.as_dtype(x.dtype())?)?)
    }

    fn state(&self) -> LayerState {
        self.self_attn.state()
    }
}

/// The streams: the embeddings, and what projections make of them. In the end they are brought back and averaged.
#[derive(Debug)]
struct AltUpStreams {
    altup_projections: Vec<Linear>,
    altup_unembed_projections: Vec<Linear>,
}

impl AltUpStreams {
    fn load(weights: &Weights<'_>, dims: &Dimensions, streams: usize) -> LoadResult<Self> {
        let load = |name: &str| {
            let all = weights.at(name);
            let each = (1..streams)
                .map(|i| Linear::load(&all.index(i - 1), dims.hidden_size, dims.hidden_size, false));
            each.collect::<LoadResult<Vec<_>>>()
        };
        Ok(Self {
            altup_projections: load("altup_projections")?,
            altup_unembed_projections: load("altup_unembed_projections")?,
        })
    }
}

/// The root mean square of vectors.
fn magnitude(x: &Array, least: f32) -> Result<Array> {
    let mean = x.multiply(x)?.mean_axis(-1, true)?;
    ops::maximum(mean.clone(), scalar(least, mean.dtype())?)?.sqrt()
}

/// y with the magnitude of x.
fn as_large_as(y: &Array, target: &Array) -> Result<Array> {
    y.multiply(target)?.divide(magnitude(y, 1e-5)?)
}

impl Streams for AltUpStreams {
    fn open(&self, x: &Array) -> Result<Array> {
        let target = magnitude(x, 0.0)?;
        let mut streams = vec![x.expand_dims(2)?];
        for projection in &self.altup_projections {
            streams.push(as_large_as(&projection.forward(x)?, &target)?.expand_dims(2)?);
        }
        ops::concatenate(&streams, 2)
    }

    fn close(&self, x: &Array) -> Result<Array> {
        let stream = |i: i32| slice(x, 2, i, i + 1)?.squeeze_axes(&[2]);
        let mut sum = stream(0)?;
        let target = magnitude(&sum, 0.0)?;
        for (i, projection) in (1..).zip(&self.altup_unembed_projections) {
            sum = sum.add(as_large_as(&projection.forward(&stream(i)?)?, &target)?)?;
        }
        sum.multiply(scalar((x.dim(2) as f32).recip(), x.dtype())?)
    }
}

/// Binds a checkpoint, or the language tower of a multimodal one.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    let defaults = json!({
        "attention_bias": false, "tie_word_embeddings": true, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 262_400, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "sliding_window": 512, "final_logit_softcapping": 30.0, "num_kv_shared_layers": 15,
        "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144, "altup_num_inputs": 4,
        "altup_active_idx": 0, "altup_correct_scale": true, "laurel_rank": 64,
    });
    let manifest = weights.manifest();
    let section = text_section(manifest);
    let Config { dims, own, value } =
        Config::<Own>::read_edited(manifest, section, defaults, &[], split_widths)?;
    own.check(manifest, &dims)?;
    let [root, model] = tower(weights);
    let settings = rope_by_type(&value, [("rope_theta", 1_000_000.0), ("rope_local_base_freq", 10_000.0)]);
    let rope = |name| Rope::load(weights, &settings, Some(name), dims.rope(), 10_000.0).map(Rc::new);
    let (full, sliding) = (rope("full_attention")?, rope("sliding_attention")?);
    let types: Vec<_> = (own.layers.clone())
        .types(manifest, &dims, |i| {
            if (i + 1) % 5 == 0 { LayerType::FullAttention } else { LayerType::SlidingAttention }
        })?
        .collect();
    let scopes: Vec<_> = dims.layers(&model)?.collect();
    let layers = scopes.iter().enumerate().map(|(i, layer)| {
        let attention = layer.at("self_attn");
        let (source, is_shared) = sharing(&attention, &types, own.num_kv_shared_layers, i)?;
        let heads = dims.heads();
        let plan = AttentionPlan {
            head_dim: heads.head_dim,
            kv_heads: heads.kv_heads,
            keys_are_values: false,
            bias: own.attention_bias,
            source,
            is_shared,
            window: own.layers.window(types[i]),
            rope: if types[i] == LayerType::FullAttention { &full } else { &sliding },
        };
        Gemma3nBlock::load(layer, &dims, &own, i, Attention::load(&attention, &dims, &plan)?)
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let sizes = [own.vocab_size_per_layer_input, own.hidden_size_per_layer_input];
    let inputs = LayerInputs::load(&model, &dims, sizes)?;
    let streams = AltUpStreams::load(&model, &dims, own.altup_num_inputs)?;
    let cap = own.final_logit_softcapping;
    let decoder = Decoder::load(&root, &model, &dims, layers, &[&full, &sliding])?;
    Ok(Box::new(Decoder {
        embed_scale: Some((dims.hidden_size as f32).sqrt()),
        logit_cap: cap.map(|cap| positive(manifest, "final_logit_softcapping", cap)).transpose()?,
        layer_inputs: Some(inputs),
        streams: Some(Box::new(streams)),
        ..decoder
    }))
}
