//! Grouped-query self-attention, with the options that families differ in.

use std::rc::Rc;

use cuda_kernels::{AttentionSpec, DevicePtr};
use inference_core::Result as LoadResult;
use mlx_rs::{Array, error::Result, ops};

use super::{
    attention_params::AttentionParams,
    cpu::{self, QkNormRope},
    cuda::{SpecBuilder, Unsupported},
    dimensions::{Dimensions, Heads},
    exec::ExecMode,
    forward_pass::ForwardPass,
    linear::{Linear, Projections},
    norm::RmsNorm,
    rope::Rope,
    weights::Weights,
};
use crate::mlx::slice;

/// The norms of queries and keys.
#[derive(Debug, Clone)]
pub(crate) enum QkNorm {
    /// None.
    None,
    /// Each head by itself.
    Heads(RmsNorm, RmsNorm),
    /// All heads together.
    Whole(RmsNorm, RmsNorm),
}

impl QkNorm {
    /// `q_norm` and `k_norm` below `weights`, for each head.
    pub(crate) fn load_heads(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Self> {
        let norm =
            |name| RmsNorm::load(&weights.at(name), dims.head_dim(), dims.rms_norm_eps, dims.norm_offset);
        Ok(Self::Heads(norm("q_norm")?, norm("k_norm")?))
    }

    /// `q_norm` and `k_norm` below `weights`, for all heads together.
    pub(crate) fn load_whole(weights: &Weights<'_>, dims: &Dimensions) -> LoadResult<Self> {
        let Heads { heads, kv_heads, head_dim, .. } = dims.heads();
        let norm = |name, size| RmsNorm::load(&weights.at(name), size, dims.rms_norm_eps, dims.norm_offset);
        Ok(Self::Whole(norm("q_norm", heads * head_dim)?, norm("k_norm", kv_heads * head_dim)?))
    }
}

/// A self-attention block.
#[derive(Debug)]
pub(crate) struct Attention {
    qkv_proj: Projections,
    o_proj: Linear,
    norm: QkNorm,
    rope: Option<Rc<Rope>>,
    attend: AttentionParams,
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
        let Heads { hidden_size, heads, kv_heads, head_dim } = heads;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let names = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        Ok(Self {
            qkv_proj: Projections::load(weights, "qkv_proj", names, hidden_size, qkv_bias)?,
            o_proj: Linear::load(&weights.at("o_proj"), hidden_size, queries, o_bias)?,
            norm: QkNorm::None,
            rope,
            attend,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
        })
    }

    /// The same with norms of queries and keys.
    pub(crate) fn with_norm(self, norm: QkNorm) -> Self {
        Self { norm, ..self }
    }

    /// The sliding window, if it has one.
    pub(crate) fn window(&self) -> Option<usize> {
        self.attend.window
    }

    /// What the kernels of CUDA need to know.
    pub(crate) fn describe(
        &self,
        builder: &mut SpecBuilder,
    ) -> std::result::Result<AttentionSpec, Unsupported> {
        builder.heads([self.heads, self.kv_heads, self.head_dim])?;
        let qk_norm = match &self.norm {
            QkNorm::None => None,
            QkNorm::Heads(q_norm, k_norm) => Some([builder.norm(q_norm)?, builder.norm(k_norm)?]),
            QkNorm::Whole(..) => return Err(Unsupported("norms of all heads together".to_owned())),
        };
        Ok(AttentionSpec {
            qkv: builder.projections(&self.qkv_proj)?,
            output: builder.linear(&self.o_proj)?,
            qk_norm,
            rope: self.rope.as_ref().map(|rope| builder.rope(rope)).transpose()?,
            window: self.attend.window,
            scale: self.attend.scale,
            cap: self.attend.softcap,
            sinks: self.attend.sinks.as_ref().map_or(Ok(DevicePtr::NULL), |sinks| builder.sinks(sinks))?,
        })
    }

    /// `[B, T, hidden]` → the same, as layer `layer` of the model.
    pub(crate) fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let [queries, keys, values] = match ExecMode::current() {
            ExecMode::CpuKernels => self.fused_qk_norm_rope(x, pass)?,
            _ => self.rotate(x, pass)?,
        };
        let output = pass.attend(layer, [&queries, &keys, &values], &self.attend)?;
        self.o_proj.forward(&output)
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
        let norms = match &self.norm {
            QkNorm::Heads(q_norm, k_norm) => Some([q_norm.parts()?, k_norm.parts()?]),
            QkNorm::None | QkNorm::Whole(..) => None,
        };
        let table = self.rope.as_ref().map(|rope| pass.rotary_table(rope)).transpose()?;
        let heads = [self.heads, self.kv_heads, self.head_dim];
        match cpu::qk_norm_rope(&joined, &QkNormRope { heads, norms, rotary: table.as_ref() }) {
            Some(ready) => ready,
            None => self.rotate(x, pass),
        }
    }

    /// The same with MLX's operations.
    fn rotate(&self, x: &Array, pass: &ForwardPass<'_>) -> Result<[Array; 3]> {
        match (self.qkv_proj.joined(), &self.norm) {
            (Some(projection), QkNorm::None) => self.rotate_joined(&projection.forward(x)?, pass),
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
        [mut queries, mut keys, values]: [Array; 3],
        pass: &ForwardPass<'_>,
    ) -> Result<[Array; 3]> {
        if let QkNorm::Whole(q_norm, k_norm) = &self.norm {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        let split = |x: Array, heads: i32| x.reshape(&[x.dim(0), x.dim(1), heads, self.head_dim]);
        (queries, keys) = (split(queries, self.heads)?, split(keys, self.kv_heads)?);
        if let QkNorm::Heads(q_norm, k_norm) = &self.norm {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        let heads_first = |x: Array| x.swap_axes(1, 2);
        let values = heads_first(split(values, self.kv_heads)?)?;
        (queries, keys) = (heads_first(queries)?, heads_first(keys)?);
        if let Some(rope) = &self.rope {
            queries = rope.forward(&queries, pass.offsets(), pass.lengths())?;
            keys = rope.forward(&keys, pass.offsets(), pass.lengths())?;
        }
        Ok([queries, keys, values])
    }
}
