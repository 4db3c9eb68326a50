//! The blocks that architectures are built of. Shapes: B rows, T new tokens, S tokens seen, D the width of the residual
//! stream. What belongs to a checkpoint is loaded by `load` functions, which read tensors by the names that it gives them;
//! what builds graphs is called `forward`.

mod activation;
mod adapter;
mod architecture;
mod attention;
mod attention_params;
mod block;
mod cache;
mod causal_conv;
mod cpu;
mod cuda;
mod decoder;
mod dense_layer;
mod dimensions;
mod encoder;
mod exec;
mod forward_pass;
mod gated_delta_net;
mod linear;
mod linear_attention;
mod mamba2;
mod matrix;
mod mla;
mod mlp;
mod moe;
mod norm;
mod ops;
mod packed;
mod parameter;
pub(crate) mod registry;
mod relative_bias;
mod rope;
mod rope_scaling;
mod routing;
mod sdpa;
mod shared_prefix;
mod shown;
mod weights;

pub(crate) use activation::{Activation, Gating};
pub(crate) use adapter::{Adapter, AdapterSlot, SlotKind};
pub(crate) use architecture::{Architecture, ModelConfig, TrainMode};
pub(crate) use attention::{Attention, QkNorm, QueryScale};
pub(crate) use attention_params::AttentionParams;
pub(crate) use block::{Block, FeedForward, LayerNormBlock, Mixer, PreNorm};
pub(crate) use cache::{KvCache, LayerState, Rotation, SNAPSHOTS};
#[cfg(test)]
pub(crate) use cache::{fill_batch, regroup};
pub(crate) use causal_conv::{CausalConv, is_converted};
pub(crate) use cpu::{Draw, Recorded, Recording, Value, start_kernels};
#[cfg(test)]
pub(crate) use cuda::logits_of_description;
pub(crate) use cuda::{CudaDecoder, Pending, Sampling, SpecBuilder, Unsupported};
pub(crate) use decoder::{Decoder, LayerInputs, Streams};
pub(crate) use dense_layer::DenseLayer;
pub(crate) use dimensions::Dimensions;
pub(crate) use encoder::{
    Encoder, HeadActivation, PositionIds, PostNorm, RelevanceHead, TextEmbeddings, gives_one,
};
pub(crate) use exec::ExecMode;
pub(crate) use forward_pass::{ForwardPass, Rows};
pub(crate) use gated_delta_net::{DeltaSizes, GatedDeltaNet};
pub(crate) use linear::{Embedding, Linear};
pub(crate) use mamba2::{Mamba2, SsmNorm, SsmSizes, TimeStepLimit};
pub(crate) use matrix::Matrix;
pub(crate) use mla::{LatentAttention, LatentSizes};
pub(crate) use mlp::{GatedMlp, PlainMlp};
pub(crate) use moe::{ExpertSizes, Experts, Moe, SharedExpert, mix};
pub(crate) use norm::{LayerNorm, Norm, RmsNorm};
pub(crate) use ops::{argmax, argmax_with_score, ban, draw};
pub(crate) use packed::PackedTokens;
pub(crate) use parameter::{Param, ParamOverride, Weight, WeightTransform, layer_of, params_used};
pub(crate) use relative_bias::{BUCKETS, RelativeBias};
pub(crate) use rope::{Rope, RopeShape};
pub(crate) use routing::{Routing, Scoring};
pub(crate) use shared_prefix::SharedPrefix;
pub(crate) use weights::{FLOATS, Source, Weights, scheme};
