//! Mamba 2: state space models alone, without attention and feed-forward parts.

use inference_core::{Error, ModelManifest, Result as LoadResult};
use mlx_rs::{Array, Dtype, error::Result};
use serde::Deserialize;
use serde_json::json;

use super::config::Config;
use crate::nn::{
    Architecture, Block, Decoder, Dimensions, ForwardPass, LayerState, Mamba2, Mixer, Norm, RmsNorm, SsmNorm,
    SsmSizes, TimeStepLimit, Weights,
};

#[derive(Debug, Deserialize)]
struct Own {
    num_heads: usize,
    n_groups: usize,
    state_size: usize,
    conv_kernel: usize,
    expand: usize,
    use_bias: bool,
    use_conv_bias: bool,
    residual_in_fp32: bool,
    #[serde(default)]
    time_step_limit: TimeStepLimit,
}

impl Own {
    fn ssm(&self, manifest: &ModelManifest, dims: &Dimensions) -> LoadResult<SsmSizes> {
        let sizes = SsmSizes {
            hidden_size: dims.hidden_size,
            heads: self.num_heads,
            head_dim: dims.head_dim(),
            groups: self.n_groups,
            state: self.state_size,
            kernel: self.conv_kernel,
            conv_bias: self.use_conv_bias,
            activation: dims.hidden_act,
            proj_bias: [self.use_bias; 2],
            time_step_limit: self.time_step_limit,
            norm: SsmNorm::AfterGate,
            multipliers: None,
            eps: dims.rms_norm_eps,
        };
        sizes.check(manifest, ["num_heads", "head_dim", "n_groups", "state_size", "conv_kernel"])?;
        if sizes.heads * sizes.head_dim != self.expand.saturating_mul(dims.hidden_size) {
            let reason = format!("{} times head_dim is not expand times hidden_size", self.num_heads);
            return Err(Error::invalid_key(manifest.config_path(), "num_heads", reason));
        }
        Ok(sizes)
    }
}

/// x + mamba(norm(x)). The sum is in single precision where the config wants that.
#[derive(Debug)]
struct MambaBlock {
    norm: RmsNorm,
    mixer: Mamba2,
    /// The type of the activations.
    dtype: Dtype,
    /// That of the residual stream: of what is added to, and of what is given on.
    residual: [Dtype; 2],
}

impl Block for MambaBlock {
    fn forward(&self, x: &Array, pass: &mut ForwardPass<'_>, layer: usize) -> Result<Array> {
        let [sum, output] = self.residual;
        let mixed = self.mixer.forward(&self.norm.forward(&x.as_dtype(self.dtype)?)?, pass, layer)?;
        x.as_dtype(sum)?.add(mixed.as_dtype(sum)?)?.as_dtype(output)
    }

    fn state(&self) -> LayerState {
        self.mixer.state()
    }
}

/// Binds a checkpoint.
pub(super) fn load(weights: &Weights<'_>) -> LoadResult<Box<dyn Architecture>> {
    // There are no heads of attention, no feed-forward part, and positions have no end.
    let defaults = json!({
        "num_attention_heads": 1, "intermediate_size": 1, "max_position_embeddings": 1 << 24, "num_heads": 128,
        "head_dim": 64, "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64, "vocab_size": 32768,
        "rms_norm_eps": 1e-5, "expand": 2, "conv_kernel": 4, "n_groups": 8, "use_bias": false,
        "use_conv_bias": true, "hidden_act": "silu", "residual_in_fp32": true, "tie_word_embeddings": false,
    });
    let manifest = weights.manifest();
    let renamed = [("layer_norm_epsilon", "rms_norm_eps")];
    let Config { dims, own, .. } = Config::<Own>::read_renamed(manifest, None, defaults, &renamed)?;
    let ssm = own.ssm(manifest, &dims)?;
    let model = weights.at("backbone");
    let dtype = weights.float_dtype();
    let wide = if own.residual_in_fp32 { Dtype::Float32 } else { dtype };
    let layers = dims.layers(&model)?.enumerate().map(|(i, layer)| {
        let output = if i + 1 == dims.num_hidden_layers { dtype } else { wide };
        LoadResult::Ok(MambaBlock {
            norm: dims.norm(&layer.at("norm"))?,
            mixer: Mamba2::load(&layer.at("mixer"), ssm)?,
            dtype,
            residual: [wide, output],
        })
    });
    let layers = layers.collect::<LoadResult<Vec<_>>>()?;
    let norm = Norm::Rms(dims.norm(&model.at("norm_f"))?);
    Ok(Box::new(Decoder::load_named(weights, &model, "embeddings", &dims, layers, &[], norm)?))
}
