//! What a decoder is made of, as addresses in the memory of the GPU.
//!
//! General enough for Llama, Qwen 3 and Gemma 3: norms before or around blocks, norms of single heads, several rotations, windows.

mod feed_forward;
#[cfg(test)]
mod tests;
mod weight;

use crate::{DevicePtr, Error, Result};

pub use feed_forward::{
    Activation, ExpertsSpec, FeedForwardSpec, Gating, MlpSpec, RoutingSpec, Scoring, SharedExpertSpec, Stack,
};
pub use weight::{Half, Layout, NormWeight, Weight};

/// A rotation of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Radians for each position, of each pair of elements. Twice as many leading elements of a head are rotated.
    pub frequencies: Vec<f32>,
    /// What rotated elements are multiplied by.
    pub magnitude: f32,
    /// Whether pairs are neighbours, rather than from the two halves of what is rotated.
    pub interleaved: bool,
}

/// Where keys and values of one row and layer are cached, `[kv_heads][capacity][head_dim]` each. Position `p` lies at
/// `p % capacity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Keys, halves. The address is a multiple of 16.
    pub keys: DevicePtr,
    /// Values, likewise.
    pub values: DevicePtr,
    /// Positions.
    pub capacity: usize,
}

/// The attention of a layer.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// The projections of queries, keys and values.
    pub qkv: [Weight; 3],
    /// The projection of what was attended to.
    pub output: Weight,
    /// Norms of single heads of queries and keys.
    pub qk_norm: Option<[NormWeight; 2]>,
    /// Which of [`DecoderSpec::ropes`].
    pub rope: Option<usize>,
    /// Positions that a token attends to, itself included.
    pub window: Option<usize>,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub cap: Option<f32>,
    /// Scores of nothing, `[heads]` in single precision; or null.
    pub sinks: DevicePtr,
}

/// A layer: `x + post(attention(norm(x)))`, then the same with the feed-forward block.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// The norm before attention.
    pub input_norm: NormWeight,
    /// Attention.
    pub attention: AttentionSpec,
    /// The norm before the feed-forward block.
    pub mlp_norm: NormWeight,
    /// The feed-forward block.
    pub mlp: FeedForwardSpec,
    /// The norms after both, where there are such.
    pub post_norms: Option<[NormWeight; 2]>,
}

/// A decoder.
#[derive(Debug, Clone)]
pub struct DecoderSpec {
    /// The type of activations.
    pub half: Half,
    /// The width of the residual stream.
    pub hidden: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, which divide those of queries.
    pub kv_heads: usize,
    /// A multiple of 32 up to 256.
    pub head_dim: usize,
    /// What is added to means of squares.
    pub eps: f32,
    /// `[vocabulary, hidden]`
    pub embedding: Weight,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// The rotations.
    pub ropes: Vec<RopeSpec>,
    /// The last norm.
    pub norm: NormWeight,
    /// `[vocabulary, hidden]`
    pub head: Weight,
    /// What logits are multiplied by.
    pub logit_scale: f32,
    /// Logits `l` become `cap · tanh(l / cap)`.
    pub logit_cap: Option<f32>,
}

impl DecoderSpec {
    /// Tokens.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.head.rows
    }

    /// Bytes of the matrices that a step of one row reads, without scales and biases.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| {
            let attention = layer.attention.qkv.iter().chain([&layer.attention.output]);
            attention.map(|weight| (weight, 1)).chain(layer.mlp.weights())
        });
        let bytes =
            |(weight, count): (&Weight, usize)| count * weight.rows * weight.layout.row_bytes(weight.columns);
        layers.chain([(&self.head, 1)]).map(bytes).sum()
    }

    /// The most gated activations of a row, and those of a shared expert.
    pub(crate) fn gated(&self) -> [usize; 2] {
        self.layers.iter().map(|layer| layer.mlp.gated()).fold([0; 2], most)
    }

    /// The most experts of a layer, and the most that a token has.
    pub(crate) fn experts(&self) -> [usize; 2] {
        self.layers.iter().map(|layer| layer.mlp.experts()).fold([0; 2], most)
    }

    /// Checks that shapes fit together.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what does not.
    pub fn check(&self) -> Result<()> {
        if !(32..=256).contains(&self.head_dim) || !self.head_dim.is_multiple_of(32) {
            return Err(Error::invalid("the width of a head", self.head_dim, "a multiple of 32 up to 256"));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || self.heads == 0 {
            let expected = format!("a multiple of {} heads of keys", self.kv_heads);
            return Err(Error::invalid("the number of heads", self.heads, expected));
        }
        if self.hidden == 0 || !self.hidden.is_multiple_of(8) {
            return Err(Error::invalid("the width of the model", self.hidden, "a multiple of 8"));
        }
        let vocabulary = self.vocabulary();
        self.head.check("the head", vocabulary, self.hidden)?;
        self.embedding.check("the embedding", vocabulary, self.hidden)?;
        for (i, rope) in self.ropes.iter().enumerate() {
            if rope.frequencies.is_empty() || 2 * rope.frequencies.len() > self.head_dim {
                let expected = format!("1 to {}", self.head_dim / 2);
                return Err(Error::invalid(
                    format!("frequencies of rope {i}"),
                    rope.frequencies.len(),
                    expected,
                ));
            }
        }
        self.layers.iter().enumerate().try_for_each(|(i, layer)| self.check_layer(i, layer))
    }

    fn check_layer(&self, i: usize, layer: &LayerSpec) -> Result<()> {
        let name = |part: &str| format!("{part} of layer {i}");
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = &layer.attention;
        for (weight, (part, rows)) in attention.qkv.iter().zip([("q", queries), ("k", keys), ("v", keys)]) {
            weight.check(&name(part), rows, self.hidden)?;
        }
        attention.output.check(&name("o"), self.hidden, queries)?;
        layer.mlp.check(self.hidden, &name)?;
        if attention.rope.is_some_and(|rope| rope >= self.ropes.len()) {
            let expected = format!("one of {}", self.ropes.len());
            return Err(Error::invalid(name("the rope"), format!("{:?}", attention.rope), expected));
        }
        if attention.window == Some(0) {
            return Err(Error::invalid(name("the window"), 0, "at least one position"));
        }
        Ok(())
    }
}

fn most(a: [usize; 2], b: [usize; 2]) -> [usize; 2] {
    [a[0].max(b[0]), a[1].max(b[1])]
}
