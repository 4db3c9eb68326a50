//! Grouped-query self-attention, with the options that families differ in.

use std::rc::Rc;

use cuda_kernels::{AttentionSpec, DevicePtr};
use inference_core::Result as LoadResult;
use mlx_rs::{Array, Dtype, error::Result, ops};

use super::{
    attention_params::AttentionParams,
    cache::LayerState,
    cpu::{self, QkNormRope, Recorded, RecordedAttention, Recording, Unrecorded, Value},
    cuda::{self, SpecBuilder, Unsupported},
    dimensions::{Dimensions, Heads},
    exec::ExecMode,
    forward_pass::ForwardPass,
    linear::{Linear, Projections},
    norm::RmsNorm,
    parameter::Weight,
    rope::{Offsets, Rope},
    weights::Weights,
};
use crate::mlx::{
    fast,
    fused::{self, Rotation},
    scalar, slice,
};

/// The norms of queries and keys.
#[derive(Debug, Clone)]
pub(crate) enum QkNorm {
    /// None.
    None,
    /// Each head by itself.
    Heads(RmsNorm, RmsNorm),
    /// All heads together.
    Whole(RmsNorm, RmsNorm),
    /// Each head by itself, without weights, and after positions are applied. This is epsilon.
    Unweighted(f32),
    /// Each head by mean and variance, with weights of its own: `[heads · head_dim]` of queries and of keys, and epsilon.
    Own([Weight; 2], f32),
}

/// A factor of queries that grows with their positions: `1 + beta · ln(1 + ⌊(position + shift) / original⌋)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueryScale {
    pub(crate) beta: f32,
    pub(crate) original: usize,
    pub(crate) shift: usize,
}

impl QkNorm {
    /// `q_norm` and `k_norm` below `weights`, for each head.
    pub(crate) fn load_heads(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Self> {
        Self::load_named(weights, ["q_norm", "k_norm"], dims)
    }

    /// Norms of these names below `weights`, for each head.
    pub(crate) fn load_named(weights: &Weights<'_>, names: [&str; 2], dims: &Dimensions) -> LoadResult<Self> {
        let norm =
            |name| RmsNorm::load(&weights.at(name), dims.head_dim(), dims.rms_norm_eps, dims.norm_offset);
        Ok(Self::Heads(norm(names[0])?, norm(names[1])?))
    }

    /// `q_norm` and `k_norm` below `weights`, for all heads together.
    pub(crate) fn load_whole(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Self> {
        let Heads { heads, kv_heads, head_dim, .. } = dims.heads();
        let norm = |name, size| RmsNorm::load(&weights.at(name), size, dims.rms_norm_eps, dims.norm_offset);
        Ok(Self::Whole(norm("q_norm", heads * head_dim)?, norm("k_norm", kv_heads * head_dim)?))
    }
}

/// The usual names of the projections.
const NAMES: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];

/// A self-attention block.
#[derive(Debug)]
pub(crate) struct Attention {
    qkv_proj: Projections,
    o_proj: Linear,
    norm: QkNorm,
    rope: Option<Rc<Rope>>,
    attend: AttentionParams,
    /// Whether the output of each head is multiplied by gates, which lie behind the head's queries.
    gated: bool,
    /// Whether positions are applied before the norms.
    rope_first: bool,
    query_scale: Option<QueryScale>,
    /// Queries, keys and values are cut to ± this.
    clip: Option<f32>,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
}

impl Attention {
    /// The block at `weights`: `q_proj`, `k_proj` and `v_proj`, or a fused `qkv_proj`, and `o_proj`. The two flags say whether the
    /// input projections and the output projection have biases.
    pub(crate) fn load(
        weights: &Weights<'_>,
        heads: Heads,
        [qkv_bias, o_bias]: [bool; 2],
        rope: Option<Rc<Rope>>,
        attend: AttentionParams,
    ) -> LoadResult<Self> {
        Self::load_with(weights, ("qkv_proj", NAMES), heads, [qkv_bias, o_bias], rope, attend, false)
    }

    /// The same with gates: `q_proj` has for each head its queries and then its gates.
    pub(crate) fn load_gated(
        weights: &Weights<'_>,
        heads: Heads,
        bias: bool,
        rope: Rc<Rope>,
        attend: AttentionParams,
    ) -> LoadResult<Self> {
        Self::load_with(weights, ("qkv_proj", NAMES), heads, [bias; 2], Some(rope), attend, true)
    }

    /// The same with other names of the four projections.
    pub(crate) fn load_named(
        weights: &Weights<'_>,
        names: [&str; 4],
        heads: Heads,
        bias: [bool; 2],
        rope: Option<Rc<Rope>>,
        attend: AttentionParams,
    ) -> LoadResult<Self> {
        Self::load_with(weights, ("qkv_proj", names), heads, bias, rope, attend, false)
    }

    /// The same with queries, keys and values in one projection: the names of that and of the output's.
    pub(crate) fn load_fused(
        weights: &Weights<'_>,
        [qkv_proj, o_proj]: [&str; 2],
        heads: Heads,
        bias: [bool; 2],
        rope: Option<Rc<Rope>>,
        attend: AttentionParams,
    ) -> LoadResult<Self> {
        let [q_proj, k_proj, v_proj, _] = NAMES;
        let names = (qkv_proj, [q_proj, k_proj, v_proj, o_proj]);
        Self::load_with(weights, names, heads, bias, rope, attend, false)
    }

    fn load_with(
        weights: &Weights<'_>,
        (qkv_proj, [q_proj, k_proj, v_proj, o_proj]): (&str, [&str; 4]),
        heads: Heads,
        [qkv_bias, o_bias]: [bool; 2],
        rope: Option<Rc<Rope>>,
        attend: AttentionParams,
        gated: bool,
    ) -> LoadResult<Self> {
        let Heads { hidden_size, heads, kv_heads, head_dim } = heads;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let names = [(q_proj, queries * (1 + usize::from(gated))), (k_proj, keys), (v_proj, keys)];
        Ok(Self {
            qkv_proj: Projections::load(weights, qkv_proj, names, hidden_size, qkv_bias)?,
            o_proj: Linear::load(&weights.at(o_proj), hidden_size, queries, o_bias)?,
            norm: QkNorm::None,
            rope,
            attend,
            gated,
            rope_first: false,
            query_scale: None,
            clip: None,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
        })
    }

    /// The same with norms of queries and keys.
    pub(crate) fn with_norm(self, norm: QkNorm) -> Self {
        Self { norm, ..self }
    }

    /// The same with queries scaled by their positions.
    pub(crate) fn with_query_scale(self, query_scale: Option<QueryScale>) -> Self {
        Self { query_scale, ..self }
    }

    /// The same with queries, keys and values cut to ± `clip`.
    pub(crate) fn with_clip(self, clip: Option<f32>) -> Self {
        Self { clip, ..self }
    }

    /// The same with positions applied before the norms.
    pub(crate) fn with_rope_first(self) -> Self {
        Self { rope_first: true, ..self }
    }

    /// What it keeps of a text.
    pub(crate) fn state(&self) -> LayerState {
        LayerState::attention(self.attend.window, 2 * (self.kv_heads * self.head_dim) as usize)
    }

    /// What the kernels of CUDA need to know.
    pub(crate) fn describe(
        &self,
        builder: &mut SpecBuilder,
    ) -> std::result::Result<AttentionSpec, Unsupported> {
        // All fields, so that none is forgotten.
        let Self {
            qkv_proj,
            o_proj,
            norm,
            rope,
            attend: AttentionParams { scale, both_ways, window, chunk, softcap, sinks, bias },
            gated,
            rope_first,
            query_scale,
            clip,
            heads,
            kv_heads,
            head_dim,
        } = self;
        builder.heads([*heads, *kv_heads, *head_dim])?;
        if *both_ways || bias.is_some() {
            return Err(Unsupported("attention to later positions".to_owned()));
        }
        if *gated || *rope_first || query_scale.is_some() || clip.is_some() || chunk.is_some() {
            return Err(Unsupported("gates, scales or bounds of queries".to_owned()));
        }
        let qk_norm = match norm {
            QkNorm::None => None,
            QkNorm::Heads(q_norm, k_norm) => Some([builder.norm(q_norm)?, builder.norm(k_norm)?]),
            QkNorm::Whole(..) | QkNorm::Own(..) | QkNorm::Unweighted(_) => {
                return Err(Unsupported("norms of all heads together".to_owned()));
            }
        };
        Ok(AttentionSpec {
            qkv: builder.projections(qkv_proj)?,
            output: builder.linear(o_proj)?,
            qk_norm,
            rope: rope.as_ref().map(|rope| builder.rope(rope)).transpose()?,
            window: *window,
            scale: *scale,
            cap: *softcap,
            sinks: sinks.as_ref().map_or(Ok(DevicePtr::NULL), |sinks| builder.sinks(sinks))?,
        })
    }

    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    pub(crate) fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        if self.gated {
            return self.forward_gated(x, pass, layer);
        }
        let [mut queries, keys, values] = match ExecMode::current() {
            // There is nothing to do to them.
            ExecMode::CpuKernels if pass.is_packed() && self.rope.is_none() => self.rotate(x, pass)?,
            ExecMode::CpuKernels => self.fused_qk_norm_rope(x, pass)?,
            _ => match self.fused_on_cuda(x, pass)? {
                Some(ready) => ready,
                None => self.rotate(x, pass)?,
            },
        };
        if let Some(scale) = self.query_scale {
            queries = scale.apply(queries, pass)?;
        }
        let output = pass.attend(layer, [&queries, &keys, &values], &self.attend)?;
        self.o_proj.forward(&output)
    }

    /// The same in a recording, where that can be.
    pub(crate) fn record(&self, x: Value, recording: &mut Recording<'_, '_>, layer: usize) -> Recorded {
        let [mut queries, mut keys, mut values] = recording.project(x, &self.qkv_proj)?;
        let heads = [self.heads, self.kv_heads, self.head_dim].map(|size| size as usize);
        let norms = match &self.norm {
            QkNorm::None => None,
            QkNorm::Heads(q_norm, k_norm) => Some([q_norm, k_norm]),
            QkNorm::Whole(q_norm, k_norm) => {
                queries = recording.norm_of_part(queries, q_norm, heads[0] * heads[2])?;
                keys = recording.norm_of_part(keys, k_norm, heads[1] * heads[2])?;
                None
            }
            QkNorm::Own(..) | QkNorm::Unweighted(_) => {
                return Err(Unrecorded::Never("norms of queries of another kind"));
            }
        };
        if let Some(limit) = self.clip {
            [queries, keys, values] = [queries, keys, values].map(|part| recording.clip(part, limit));
        }
        let query_factors = match self.query_scale {
            Some(scale) => Some(scale.factors(&recording.positions()?)),
            None => None,
        };
        let how = RecordedAttention {
            heads,
            gated: self.gated,
            norms,
            rope: self.rope.as_deref(),
            rope_first: self.rope_first,
            // Most texts are short of the first step.
            query_factors: query_factors.filter(|factors| factors.iter().any(|factor| *factor != 1.0)),
            params: &self.attend,
        };
        let attended = recording.attend(layer, [queries, keys, values], &how)?;
        recording.linear(attended, &self.o_proj)
    }

    /// Whether the CPU's kernels know what is done between projections and attention, but for norms.
    fn is_fused(&self) -> bool {
        !self.rope_first && self.clip.is_none()
    }

    fn forward_gated(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        if ExecMode::current() == ExecMode::CpuKernels {
            let joined = match self.qkv_proj.joined() {
                Some(projection) => projection.forward(x)?,
                None => ops::concatenate(&self.qkv_proj.forward::<3>(x)?, -1)?,
            };
            if let Some([queries, keys, values]) = self.fused(&joined, pass)? {
                let output = pass.attend(layer, [&queries, &keys, &values], &self.attend)?;
                return self.o_proj.forward(&cpu::gate_heads(&joined, &output, [self.heads, self.head_dim])?);
            }
        }
        let [queries, keys, values] = self.qkv_proj.forward(x)?;
        let both = queries.reshape(&[x.dim(0), x.dim(1), self.heads, 2 * self.head_dim])?;
        let flat = |start| slice(&both, 3, start, start + self.head_dim)?.reshape(&[x.dim(0), x.dim(1), -1]);
        let (queries, gates) = (flat(0)?, flat(self.head_dim)?);
        let [queries, keys, values] = self.rotate_apart([queries, keys, values], pass)?;
        let output = pass.attend(layer, [&queries, &keys, &values], &self.attend)?;
        self.o_proj.forward(&output.multiply(ops::sigmoid(gates)?)?)
    }

    /// Queries, keys and values with norms and rope applied, each `[B, heads, T, head_dim]`: one operation after the projection.
    fn fused_qk_norm_rope(&self, x: &Array, pass: &mut ForwardPass<'_>) -> Result<[Array; 3]> {
        let joined = match (self.qkv_proj.joined(), &self.norm) {
            (Some(projection), QkNorm::None | QkNorm::Heads(..)) => projection.forward(x)?,
            (_, norm) => {
                let [mut queries, mut keys, values] = self.qkv_proj.forward(x)?;
                if let QkNorm::Whole(q_norm, k_norm) = norm {
                    (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
                }
                ops::concatenate(&[queries, keys, values], -1)?
            }
        };
        match self.fused(&joined, pass)? {
            Some(ready) => Ok(ready),
            None => self.rotate(x, pass),
        }
    }

    /// The same from one array `[B, T, (heads + 2 kv_heads) · head_dim]`, with gates behind each head of queries or without, where the
    /// CPU's kernels know its type.
    fn fused(&self, joined: &Array, pass: &mut ForwardPass<'_>) -> Result<Option<[Array; 3]>> {
        if !self.is_fused() {
            return Ok(None);
        }
        let norms = match &self.norm {
            QkNorm::Heads(q_norm, k_norm) => Some([q_norm.parts()?, k_norm.parts()?]),
            QkNorm::None | QkNorm::Whole(..) => None,
            QkNorm::Own(..) | QkNorm::Unweighted(_) => return Ok(None),
        };
        let table = self.rope.as_ref().map(|rope| pass.rotary_table(rope)).transpose()?;
        let heads = [self.heads, self.kv_heads, self.head_dim];
        let how = QkNormRope { heads, norms, rotary: table.as_ref(), gated: self.gated };
        cpu::qk_norm_rope(joined, &how).transpose()
    }

    /// The same as one kernel of CUDA after the projection; `None` where that does not know the layer.
    fn fused_on_cuda(&self, x: &Array, pass: &mut ForwardPass<'_>) -> Result<Option<[Array; 3]>> {
        let (Some(projection), Some(rope)) = (self.qkv_proj.joined(), &self.rope) else { return Ok(None) };
        if !cuda::fused::is_in_use() || pass.is_packed() || self.rope_first || self.clip.is_some() {
            return Ok(None);
        }
        let norms = match &self.norm {
            QkNorm::Heads(q_norm, k_norm) => Some([q_norm.parts()?, k_norm.parts()?]),
            QkNorm::None => None,
            QkNorm::Whole(..) | QkNorm::Own(..) | QkNorm::Unweighted(_) => return Ok(None),
        };
        let Some((frequencies, magnitude)) = rope.rotation()? else { return Ok(None) };
        let norms = norms.as_ref().map(|norms| norms.each_ref().map(|(weights, eps)| (weights, *eps)));
        let rotation = Rotation { frequencies, magnitude: *magnitude, interleaved: rope.is_interleaved() };
        let heads = [self.heads, self.kv_heads, self.head_dim];
        let how = fused::QkNormRope { heads, norms, rotation: Some(rotation) };
        let qkv = projection.forward(x)?;
        match cuda::fused::qk_norm_rope(&qkv, &pass.starts(), &how) {
            Some(ready) => ready.map(Some),
            // The projection is not computed unless it is asked for.
            None => Ok(None),
        }
    }

    /// The same with MLX's operations.
    fn rotate(&self, x: &Array, pass: &ForwardPass<'_>) -> Result<[Array; 3]> {
        match (self.qkv_proj.joined(), &self.norm) {
            (Some(projection), QkNorm::None) if self.clip.is_none() => {
                self.rotate_joined(&projection.forward(x)?, pass)
            }
            _ => self.rotate_apart(self.qkv_proj.forward(x)?, pass),
        }
    }

    /// Queries, keys and values in one, `[B, T, (heads + 2 kv_heads) · head_dim]` → each `[B, heads, T, head_dim]`. They are
    /// rotated together and then split: MLX's CUDA rope reads beyond the memory of a slice.
    fn rotate_joined(&self, qkv: &Array, pass: &ForwardPass<'_>) -> Result<[Array; 3]> {
        let keys_end = self.heads + self.kv_heads;
        let all = keys_end + self.kv_heads;
        let unrotated = qkv.reshape(&[qkv.dim(0), qkv.dim(1), all, self.head_dim])?.swap_axes(1, 2)?;
        let rotated = match &self.rope {
            Some(rope) => rope.forward(&unrotated, pass.offsets(), pass.lengths())?,
            None => unrotated.clone(),
        };
        Ok([
            slice(&rotated, 1, 0, self.heads)?,
            slice(&rotated, 1, self.heads, keys_end)?,
            slice(&unrotated, 1, keys_end, all)?,
        ])
    }

    /// The same from three arrays `[B, T, heads · head_dim]`, with norms.
    fn rotate_apart(
        &self,
        [mut queries, mut keys, mut values]: [Array; 3],
        pass: &ForwardPass<'_>,
    ) -> Result<[Array; 3]> {
        if let QkNorm::Whole(q_norm, k_norm) = &self.norm {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        if let Some(limit) = self.clip {
            let number = |value| scalar(value, queries.dtype());
            let (low, high) = (number(-limit)?, number(limit)?);
            let cut = |x: &Array| ops::minimum(ops::maximum(x, &low)?, &high);
            (queries, keys, values) = (cut(&queries)?, cut(&keys)?, cut(&values)?);
        }
        let split = |x: Array, heads: i32| x.reshape(&[x.dim(0), x.dim(1), heads, self.head_dim]);
        (queries, keys) = (split(queries, self.heads)?, split(keys, self.kv_heads)?);
        let norms = match &self.norm {
            QkNorm::Heads(q_norm, k_norm) => Some([q_norm, k_norm]),
            QkNorm::None | QkNorm::Whole(..) | QkNorm::Own(..) | QkNorm::Unweighted(_) => None,
        };
        if let QkNorm::Own([q_weight, k_weight], eps) = &self.norm {
            let norm = |x: &Array, weight: &Weight| {
                fast::layer_norm(x, None, None, *eps)?.multiply(weight.get()?.reshape(&[-1, self.head_dim])?)
            };
            (queries, keys) = (norm(&queries, q_weight)?, norm(&keys, k_weight)?);
        }
        if let (Some([q_norm, k_norm]), false) = (norms, self.rope_first) {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        let heads_first = |x: Array| x.swap_axes(1, 2);
        values = heads_first(split(values, self.kv_heads)?)?;
        (queries, keys) = (heads_first(queries)?, heads_first(keys)?);
        if let Some(rope) = &self.rope {
            queries = rope.forward(&queries, pass.offsets(), pass.lengths())?;
            keys = rope.forward(&keys, pass.offsets(), pass.lengths())?;
        }
        if let (Some([q_norm, k_norm]), true) = (norms, self.rope_first) {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        if let QkNorm::Unweighted(eps) = self.norm {
            let norm = |x: &Array| RmsNorm::without_weight(x, eps);
            (queries, keys) = (norm(&queries)?, norm(&keys)?);
        }
        Ok([queries, keys, values])
    }
}

impl QueryScale {
    /// The factors of queries at these positions.
    fn factors(self, positions: &[usize]) -> Vec<f32> {
        let rounds = positions.iter().map(|position| (position + self.shift) / self.original);
        rounds.map(|rounds| 1.0 + self.beta * (rounds as f32).ln_1p()).collect()
    }

    /// Scales queries `[B, heads, T, head_dim]`.
    pub(super) fn apply(self, queries: Array, pass: &ForwardPass<'_>) -> Result<Array> {
        if pass.lengths().iter().all(|length| length + self.shift <= self.original) {
            return Ok(queries);
        }
        let tokens = ops::arange::<_, i32>(0, queries.dim(2), None)?;
        let positions = match pass.offsets() {
            Offsets::Same(start) => tokens.add(Array::from_int(*start as i32))?.expand_dims(0)?,
            Offsets::Each(starts) => starts.expand_dims(1)?.add(tokens.expand_dims(0)?)?,
        };
        let shifted = positions.add(Array::from_int(self.shift as i32))?;
        let rounds = shifted.floor_divide(Array::from_int(self.original as i32))?.as_dtype(Dtype::Float32)?;
        let factor = rounds.log1p()?.multiply(Array::from_f32(self.beta))?.add(Array::from_f32(1.0))?;
        queries.multiply(factor.expand_dims_axes(&[1, 3])?.as_dtype(queries.dtype())?)
    }
}
