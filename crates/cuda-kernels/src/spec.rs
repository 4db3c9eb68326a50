//! What a decoder is made of, as addresses in the memory of the GPU.
//!
//! General enough for Llama, Qwen 3 and Gemma 3: norms before or around blocks, norms of single heads, several rotations, windows.

mod experts;

use crate::{DevicePtr, Error, Result};

pub use experts::{ExpertsSpec, FeedForwardSpec, Gating, RoutingSpec, Scoring, SharedExpertSpec, Stack};

/// The type of activations, norms, caches and dense weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// The upper half of single precision.
    Bf16 = 0,
    /// IEEE half precision.
    F16 = 1,
}

/// How the elements of a matrix are stored, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Halves.
    Dense,
    /// MLX's affine quantisation: `scale · q + bias` with an integer `q`, scale and bias shared by a group of neighbours in a row.
    Affine {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// 32, 64 or 128.
        group: u32,
    },
    /// Floats of 4 bits (E2M1), 32 neighbours with one scale that is a power of two (E8M0).
    Mxfp4,
    /// Floats of 8 bits (E4M3), likewise.
    Mxfp8,
    /// Floats of 4 bits (E2M1), 16 neighbours with one scale of 8 bits (E4M3).
    Nvfp4,
}

impl Layout {
    /// Bits of an element (16 where it is dense), and the size of a group.
    pub(crate) fn parameters(self) -> (u32, u32) {
        match self {
            Self::Dense => (16, 64),
            Self::Affine { bits, group } => (bits, group),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }

    /// How the sources call its scales.
    pub(crate) fn scale_kind(self) -> u32 {
        match self {
            Self::Dense | Self::Affine { .. } => 0,
            Self::Mxfp4 | Self::Mxfp8 => 1,
            Self::Nvfp4 => 2,
        }
    }

    /// Bytes of a row of `columns` elements, without scales and biases.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        columns * self.parameters().0 as usize / 8
    }

    /// Groups in a row.
    pub(crate) fn groups(self, columns: usize) -> usize {
        match self {
            Self::Dense => 0,
            _ => columns / self.parameters().1 as usize,
        }
    }

    /// Bytes of the scales of a row.
    pub(crate) fn scale_bytes(self, columns: usize) -> usize {
        self.groups(columns) * if self.scale_kind() == 0 { 2 } else { 1 }
    }
}

/// A matrix `[rows, columns]`, which multiplies vectors of `columns` elements.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// How it is stored.
    pub layout: Layout,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The elements.
    pub data: DevicePtr,
    /// `[rows, columns / group]`, halves or the bytes that the layout says; null where the matrix is dense.
    pub scales: DevicePtr,
    /// `[rows, columns / group]`, halves; null where the layout has none.
    pub biases: DevicePtr,
    /// What is added to outputs, `[rows]`, halves; or null.
    pub bias: DevicePtr,
}

impl Weight {
    /// Its rows from `first` on: a part of matrices that are stored as one.
    #[must_use]
    pub fn slice(self, first: usize, rows: usize) -> Self {
        let at = |ptr: DevicePtr, bytes| if ptr.is_null() { ptr } else { ptr.offset(first * bytes) };
        let groups = self.layout.scale_bytes(self.columns);
        Self {
            rows,
            data: at(self.data, self.layout.row_bytes(self.columns)),
            scales: at(self.scales, groups),
            biases: at(self.biases, groups),
            bias: at(self.bias, 2),
            ..self
        }
    }

    fn check(&self, name: &str, rows: usize, columns: usize) -> Result<()> {
        if (self.rows, self.columns) != (rows, columns) {
            let found = format!("[{}, {}]", self.rows, self.columns);
            return Err(Error::invalid(
                format!("the shape of {name}"),
                found,
                format!("[{rows}, {columns}]"),
            ));
        }
        if let Layout::Affine { bits, group } = self.layout
            && (!matches!(bits, 2..=6 | 8) || !matches!(group, 32 | 64 | 128))
        {
            let expected = "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128";
            return Err(Error::invalid(name, format!("{bits} bits in groups of {group}"), expected));
        }
        let quantized = self.layout != Layout::Dense;
        let (_, group) = self.layout.parameters();
        if quantized && !columns.is_multiple_of(group as usize) {
            return Err(Error::invalid(name, columns, format!("columns that groups of {group} divide")));
        }
        let biased = matches!(self.layout, Layout::Affine { .. });
        let there =
            !self.data.is_null() && self.scales.is_null() != quantized && self.biases.is_null() != biased;
        if !there {
            return Err(Error::invalid(name, "an address that is null, or not", "those of its layout"));
        }
        Ok(())
    }
}

/// The weights of a norm.
#[derive(Debug, Clone, Copy)]
pub struct NormWeight {
    /// The elements.
    pub data: DevicePtr,
    /// Whether they are single precision rather than halves.
    pub single: bool,
    /// What is added to each.
    pub offset: f32,
}

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

/// What stands between gate and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · σ(x)
    Silu = 0,
    /// x · Φ(x), with tanh in place of the error function.
    GeluTanh = 1,
    /// x · Φ(x)
    Gelu = 2,
}

/// down(act(gate(x)) · up(x))
#[derive(Debug, Clone)]
pub struct MlpSpec {
    /// Gate and up, stored alike.
    pub gate_up: [Weight; 2],
    /// Down.
    pub down: Weight,
    /// The activation.
    pub activation: Activation,
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
        self.check_feed_forward(&layer.mlp, &name)?;
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
