//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are made of one short vector, and only
//! that vector and one rotated key are kept.
//!
//! | tokens | attention |
//! |---|---|
//! | 1, no adapter | absorbed: queries are brought into the space of the vectors, and the output is brought out of it |
//! | T | expanded: keys and values of every position are made first |

use std::rc::Rc;

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, error::Result, ops};
use serde::Deserialize;

use super::{
    adapter::RowSource,
    attention::QueryScale,
    attention_params::AttentionParams,
    block::Mixer,
    cache::LayerState,
    dimensions::Dimensions,
    forward_pass::ForwardPass,
    linear::Linear,
    matrix::Matrix,
    norm::RmsNorm,
    rope::Rope,
    sdpa::{Masks, flatten_heads, masked},
    shown::{Seen, Visible, of_rows},
    weights::Weights,
};
use crate::mlx::{scalar, slice};

/// The sizes of latent attention, by their names in config.json.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct LatentSizes {
    #[serde(default)]
    pub(crate) q_lora_rank: Option<usize>,
    pub(crate) kv_lora_rank: usize,
    pub(crate) qk_nope_head_dim: usize,
    pub(crate) qk_rope_head_dim: usize,
    pub(crate) v_head_dim: usize,
}

impl LatentSizes {
    /// Checks that the sizes make sense.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that does not.
    pub(crate) fn check(&self, manifest: &ModelManifest) -> LoadResult<()> {
        const LARGEST: usize = 1 << 16;
        let sizes = [
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_lora_rank),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ];
        for (key, size) in sizes {
            if !(1..=LARGEST).contains(&size) {
                let reason = format!("{size}, expected a number from 1 to {LARGEST}");
                return Err(Error::invalid_key(manifest.config_path(), key, reason));
            }
        }
        Ok(())
    }

    /// The width of a head's queries and keys.
    pub(crate) fn head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }
}

/// Where queries come from.
#[derive(Debug)]
enum Queries {
    Direct(Linear),
    LowRank(Linear, RmsNorm, Linear),
}

/// Latent attention.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    queries: Queries,
    kv_a_proj: Linear,
    kv_a_layernorm: RmsNorm,
    /// `[.., kv_lora_rank]` → keys without positions and values of all heads; without it they are made by `up`.
    kv_b_proj: Option<Linear>,
    /// The same for each head: `[heads, qk_nope_head_dim, kv_lora_rank]`, `[heads, v_head_dim, kv_lora_rank]`.
    up: [Array; 2],
    o_proj: Linear,
    rope: Rc<Rope>,
    params: AttentionParams,
    query_scale: Option<QueryScale>,
    heads: i32,
    sizes: LatentSizes,
}

impl LatentAttention {
    /// The block at `weights`. `bias`: of the projections into the short vectors and of the output. `eps` is that of the norms.
    pub(crate) fn load(
        weights: &Weights<'_>,
        dims: &Dimensions,
        sizes: LatentSizes,
        bias: bool,
        eps: f32,
        rope: Rc<Rope>,
        scale: f32,
    ) -> LoadResult<Self> {
        let (hidden, heads) = (dims.hidden_size, dims.num_attention_heads);
        let LatentSizes { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, .. } = sizes;
        let query = heads * sizes.head_dim();
        let queries = match sizes.q_lora_rank {
            None => Queries::Direct(Linear::load(&weights.at("q_proj"), query, hidden, false)?),
            Some(rank) => Queries::LowRank(
                Linear::load(&weights.at("q_a_proj"), rank, hidden, bias)?,
                RmsNorm::load(&weights.at("q_a_layernorm"), rank, eps, false)?,
                Linear::load(&weights.at("q_b_proj"), query, rank, false)?,
            ),
        };
        let (kv_b_proj, up) = if weights.has_any("embed_q") {
            // mlx_lm stores what queries are multiplied by, and what is made of the output.
            let [keys, values] =
                [("embed_q", kv_lora_rank, qk_nope_head_dim), ("unembed_out", v_head_dim, kv_lora_rank)].map(
                    |(name, outputs, inputs)| {
                        stack(
                            weights,
                            &Matrix::load_stack(&weights.at(name), heads, outputs, inputs)?,
                            [heads, outputs],
                        )
                    },
                );
            let keys = keys?.swap_axes(-1, -2).map_err(failed)?;
            (None, [keys, values?])
        } else {
            let outputs = heads * (qk_nope_head_dim + v_head_dim);
            let kv_b_proj = Linear::load(&weights.at("kv_b_proj"), outputs, kv_lora_rank, false)?;
            let all = stack(weights, kv_b_proj.matrix(), [heads, qk_nope_head_dim + v_head_dim])?;
            let middle = qk_nope_head_dim as i32;
            let up = [(0, middle), (middle, middle + v_head_dim as i32)];
            let [keys, values] = up.map(|(start, end)| slice(&all, 1, start, end).map_err(failed));
            (Some(kv_b_proj), [keys?, values?])
        };
        let latent = kv_lora_rank + qk_rope_head_dim;
        Ok(Self {
            queries,
            kv_a_proj: Linear::load(&weights.at("kv_a_proj_with_mqa"), latent, hidden, bias)?,
            kv_a_layernorm: RmsNorm::load(&weights.at("kv_a_layernorm"), kv_lora_rank, eps, false)?,
            kv_b_proj,
            up,
            o_proj: Linear::load(&weights.at("o_proj"), hidden, heads * v_head_dim, bias)?,
            rope,
            params: AttentionParams::full(scale),
            query_scale: None,
            heads: heads as i32,
            sizes,
        })
    }

    /// The same with queries scaled by their positions.
    pub(crate) fn with_query_scale(self, query_scale: Option<QueryScale>) -> Self {
        Self { query_scale, ..self }
    }

    /// Keys and values of the vectors `[B, 1, S, kv_lora_rank]`, with the rotated key `[B, 1, S, qk_rope_head_dim]` behind each key:
    /// `[B, heads, S, ..]` each.
    fn expand(&self, [latent, rotated]: &[Array; 2]) -> Result<[Array; 2]> {
        let nope = self.sizes.qk_nope_head_dim as i32;
        let [keys, values] = match &self.kv_b_proj {
            Some(kv_b_proj) => {
                let both = kv_b_proj.forward(&latent.squeeze_axes(&[1])?)?;
                let both = both.reshape(&[both.dim(0), both.dim(1), self.heads, -1])?.swap_axes(1, 2)?;
                [slice(&both, 3, 0, nope)?, slice(&both, 3, nope, both.dim(3))?]
            }
            None => {
                let [keys, values] = &self.up;
                [latent.matmul(keys.swap_axes(-1, -2)?)?, latent.matmul(values.swap_axes(-1, -2)?)?]
            }
        };
        let mut shape = rotated.shape().to_vec();
        shape[1] = self.heads;
        Ok([ops::concatenate(&[keys, ops::broadcast_to(rotated, &shape)?], 3)?, values])
    }

    /// One token for each row: queries without and with positions, `[B, heads, 1, ..]` → `[B, heads, 1, v_head_dim]`.
    fn absorbed(&self, queries: [&Array; 2], seen: &Seen<'_>) -> Result<Array> {
        let [latent, rotated] = seen.kept;
        let [keys, values] = &self.up;
        let scale = scalar(self.params.scale, queries[0].dtype())?;
        let own = queries[0].multiply(&scale)?.matmul(keys)?.matmul(latent.swap_axes(-1, -2)?)?;
        let turned = queries[1].multiply(&scale)?.matmul(rotated.swap_axes(-1, -2)?)?;
        let mut scores = own.add(turned)?;
        if let Visible::Masked(Some(mask)) = seen.visible {
            scores = ops::select(mask, &scores, scalar(f32::NEG_INFINITY, scores.dtype())?)?;
        }
        let mixed = ops::softmax_axis(&scores, -1, true)?.matmul(latent)?;
        mixed.matmul(values.swap_axes(-1, -2)?)
    }

    fn attend(&self, masks: &mut Masks, [nope, turned]: [&Array; 2], seen: &Seen<'_>) -> Result<Array> {
        let (nope, turned) = (of_rows(nope, seen.rows.clone())?, of_rows(turned, seen.rows.clone())?);
        let is_plain = self.kv_b_proj.as_ref().is_none_or(Linear::is_plain);
        let output = if nope.dim(2) == 1 && is_plain {
            self.absorbed([&nope, &turned], seen)?
        } else {
            let queries = ops::concatenate(&[nope, turned], 3)?;
            let [keys, values] = self.expand(seen.kept)?;
            match seen.visible {
                Visible::Causal => masks.attend([&queries, &keys, &values], &self.params)?,
                Visible::Masked(mask) => masked(&queries, &keys, &values, &self.params, mask)?,
            }
        };
        flatten_heads(&output)
    }
}

/// A stack of matrices `[n, outputs, inputs]` in the type of the activations.
fn stack(weights: &Weights<'_>, matrix: &Matrix, [n, outputs]: [usize; 2]) -> LoadResult<Array> {
    let whole = || -> Result<Array> {
        let all = match matrix {
            Matrix::Dense(transposed) => transposed.get()?.swap_axes(-1, -2)?,
            Matrix::Quantized(packed) => matrix.rows_in_full(0, packed.weight.dim(0))?,
        };
        let all = all.as_dtype(weights.float_dtype())?.reshape(&[n as i32, outputs as i32, -1])?;
        all.eval().map(|()| all)
    };
    whole().map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::backend("mlx", "bind the weights", error)
}

impl Mixer for LatentAttention {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let queries = match &self.queries {
            Queries::Direct(q_proj) => q_proj.forward(x)?,
            Queries::LowRank(down, norm, up) => up.forward(&norm.forward(&down.forward(x)?)?)?,
        };
        let (batch, tokens) = (x.dim(0), x.dim(1));
        let mut queries = queries.reshape(&[batch, tokens, self.heads, -1])?.swap_axes(1, 2)?;
        if let Some(scale) = self.query_scale {
            queries = scale.apply(queries, pass)?;
        }
        let (nope, rank) = (self.sizes.qk_nope_head_dim as i32, self.sizes.kv_lora_rank as i32);
        let rotate = |x: &Array| self.rope.forward(x, pass.offsets(), pass.lengths());
        // MLX's CUDA rope reads beyond the memory of a slice.
        let turned = rotate(&slice(&queries, 3, nope, queries.dim(3))?.contiguous()?)?;
        let kept = self.kv_a_proj.forward(x)?;
        let latent = self.kv_a_layernorm.forward(&slice(&kept, 2, 0, rank)?)?.expand_dims(1)?;
        let rotated = rotate(&slice(&kept, 2, rank, kept.dim(2))?.expand_dims(1)?.contiguous()?)?;
        let nope = slice(&queries, 3, 0, nope)?;
        let output = pass
            .extend(layer, [&latent, &rotated], |masks, seen| self.attend(masks, [&nope, &turned], &seen))?;
        self.o_proj.forward(&output)
    }

    fn state(&self) -> LayerState {
        LayerState::attention(None, self.sizes.kv_lora_rank + self.sizes.qk_rope_head_dim)
    }
}
