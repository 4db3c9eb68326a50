//! Descriptions of models by the addresses of their weights.

use std::{fmt, ptr, rc::Rc};

use cuda_kernels::{
    Activation, DecoderSpec, DevicePtr, Gating, Half, LayerSpec, Layout, NormWeight, RopeSpec, Stack, Weight,
};
use mlx_rs::{Array, Dtype};

use crate::{
    mlx::{QuantizationMode, QuantizationScheme, device_address},
    nn::{
        activation::{self, Activation as A},
        linear::{Embedding, Linear, Projections},
        matrix::Matrix,
        norm::RmsNorm,
        parameter,
        rope::Rope,
    },
};

/// What the kernels do not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsupported(pub(crate) String);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CUDA kernels do not know {}", self.0)
    }
}

type Result<T> = std::result::Result<T, Unsupported>;

fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(Unsupported(what.into()))
}

/// A model as the kernels see it.
#[derive(Debug)]
pub(crate) struct Description {
    /// The addresses.
    pub(crate) spec: DecoderSpec,
    /// The arrays that lie there.
    pub(crate) _arrays: Vec<Array>,
}

/// Collects the addresses of a model's weights.
#[derive(Debug)]
pub(crate) struct SpecBuilder {
    half: Half,
    dtype: Dtype,
    hidden: usize,
    /// Heads of queries, of keys, and their width.
    heads: Option<[i32; 3]>,
    eps: Option<f32>,
    ropes: Vec<(*const Rope, RopeSpec)>,
    arrays: Vec<Array>,
}

impl SpecBuilder {
    /// A builder for a model with weights of this type, `bf16`, …, and a residual stream of this width.
    pub(crate) fn new(dtype: &str, hidden: usize) -> Result<Self> {
        let (half, dtype) = match dtype {
            "bf16" => (Half::Bf16, Dtype::Bfloat16),
            "f16" => (Half::F16, Dtype::Float16),
            other => return unsupported(format!("weights in {other}")),
        };
        let (heads, eps, ropes, arrays) = Default::default();
        Ok(Self { half, dtype, hidden, heads, eps, ropes, arrays })
    }

    /// The heads of a layer's attention: of queries, of keys, and their width.
    pub(crate) fn heads(&mut self, heads: [i32; 3]) -> Result<()> {
        if *self.heads.get_or_insert(heads) != heads {
            return unsupported("layers with different heads");
        }
        Ok(())
    }

    /// A norm.
    pub(crate) fn norm(&mut self, norm: &RmsNorm) -> Result<NormWeight> {
        let (weight, eps) = norm.parts().map_err(mlx_failed)?;
        #[expect(clippy::float_cmp, reason = "the same number of one config")]
        if *self.eps.get_or_insert(eps) != eps {
            return unsupported("norms with different epsilons");
        }
        let single = weight.dtype() == Dtype::Float32;
        let dtype = if single { Dtype::Float32 } else { self.dtype };
        Ok(NormWeight { data: self.address(&weight, dtype, false)?, single, offset: 0.0 })
    }

    /// A linear layer.
    pub(crate) fn linear(&mut self, linear: &Linear) -> Result<Weight> {
        let Some((matrix, bias)) = linear.parts() else { return unsupported("adapters") };
        let mut weight = self.matrix(matrix)?;
        if let Some(bias) = bias {
            weight.bias = self.weight(bias, self.dtype)?;
        }
        Ok(weight)
    }

    /// Linear layers with the same input.
    pub(crate) fn projections<const N: usize>(&mut self, projections: &Projections) -> Result<[Weight; N]> {
        let (linears, cuts) = projections.parts();
        let weights: Vec<Weight> = match linears {
            [linear] => {
                let whole = self.linear(linear)?;
                let starts = std::iter::once(0).chain(cuts.iter().map(|cut| *cut as usize));
                let ends = cuts.iter().map(|cut| *cut as usize).chain([whole.rows]);
                starts.zip(ends).map(|(start, end)| whole.slice(start, end - start)).collect()
            }
            linears => linears.iter().map(|linear| self.linear(linear)).collect::<Result<_>>()?,
        };
        let found = weights.len();
        weights.try_into().or_else(|_| unsupported(format!("{found} projections instead of {N}")))
    }

    /// Matrices of one size, with the biases of their outputs.
    pub(crate) fn stack(&mut self, matrix: &Matrix, bias: Option<&parameter::Weight>) -> Result<Stack> {
        let (mut all, count) = self.matrices(matrix)?;
        if let Some(bias) = bias {
            all.bias = self.weight(bias, self.dtype)?;
        }
        let stride = all.rows / count.max(1);
        Ok(Stack { first: all.slice(0, stride), stride, step: 1 })
    }

    /// What stands between gate and up.
    pub(crate) fn gating(&self, gating: activation::Gating) -> Result<Gating> {
        Ok(match gating {
            activation::Gating::Glu(A::Silu) => Gating::Glu(Activation::Silu),
            activation::Gating::Glu(A::Gelu) => Gating::Glu(Activation::Gelu),
            activation::Gating::Glu(A::GeluTanh) => Gating::Glu(Activation::GeluTanh),
            activation::Gating::Clamped { alpha, limit } => Gating::Clamped { alpha, limit },
            other => return unsupported(format!("a feed-forward part with {other:?}")),
        })
    }

    /// An embedding.
    pub(crate) fn embedding(&mut self, embedding: &Embedding) -> Result<Weight> {
        match embedding.matrix() {
            Some(matrix) => self.matrix(matrix),
            None => unsupported("adapters"),
        }
    }

    /// The rotation of this rope, by its place among all.
    pub(crate) fn rope(&mut self, rope: &Rc<Rope>) -> Result<usize> {
        let address = Rc::as_ptr(rope);
        if let Some(known) = self.ropes.iter().position(|(known, _)| ptr::eq(*known, address)) {
            return Ok(known);
        }
        let Some((frequencies, magnitude)) = rope.frequencies().map_err(mlx_failed)? else {
            return unsupported("positions that depend on the length of the text");
        };
        self.ropes.push((address, RopeSpec { frequencies, magnitude, interleaved: rope.is_interleaved() }));
        Ok(self.ropes.len() - 1)
    }

    /// Attention sinks, in single precision.
    pub(crate) fn sinks(&mut self, sinks: &parameter::Weight) -> Result<DevicePtr> {
        let sinks = sinks.get().map_err(mlx_failed)?;
        self.single(&sinks)
    }

    /// An array in single precision.
    pub(crate) fn single(&mut self, array: &Array) -> Result<DevicePtr> {
        let single = array.as_dtype(Dtype::Float32).map_err(mlx_failed)?;
        self.address(&single, Dtype::Float32, false)
    }

    /// The model of these parts: embedding and head, with the factors of embeddings and logits.
    pub(crate) fn finish(
        self,
        layers: Vec<LayerSpec>,
        [embedding, head]: [Weight; 2],
        norm: NormWeight,
        scales: [f32; 2],
        logit_cap: Option<f32>,
    ) -> Result<Description> {
        let Some([heads, kv_heads, head_dim]) = self.heads.map(|heads| heads.map(|size| size as usize))
        else {
            return unsupported("a model without attention");
        };
        // MLX multiplies by factors of the type of what is multiplied.
        let [embedding_scale, logit_scale] = scales.map(|scale| match self.half {
            Half::Bf16 => half::bf16::from_f32(scale).to_f32(),
            Half::F16 => half::f16::from_f32(scale).to_f32(),
        });
        let spec = DecoderSpec {
            half: self.half,
            hidden: self.hidden,
            heads,
            kv_heads,
            head_dim,
            eps: self.eps.unwrap_or_default(),
            embedding,
            embedding_scale,
            layers,
            ropes: self.ropes.into_iter().map(|(_, spec)| spec).collect(),
            norm,
            head,
            logit_scale,
            logit_cap,
        };
        spec.check().map_err(|error| Unsupported(format!("this shape: {error}")))?;
        Ok(Description { spec, _arrays: self.arrays })
    }

    fn matrix(&mut self, matrix: &Matrix) -> Result<Weight> {
        match self.matrices(matrix)? {
            (weight, 1) => Ok(weight),
            _ => unsupported("stacks of matrices"),
        }
    }

    /// The rows of all matrices of a stack, and how many matrices there are; of one where it is none.
    fn matrices(&mut self, matrix: &Matrix) -> Result<(Weight, usize)> {
        match matrix {
            Matrix::Dense(transposed) => {
                let transposed = transposed.get().map_err(mlx_failed)?;
                let [count, columns, rows] = sizes(&transposed)?;
                let weight = Weight {
                    layout: Layout::Dense,
                    rows: count * rows,
                    columns,
                    data: self.address(&transposed, self.dtype, true)?,
                    scales: DevicePtr::NULL,
                    biases: DevicePtr::NULL,
                    bias: DevicePtr::NULL,
                };
                Ok((weight, count))
            }
            Matrix::Quantized(packed) => {
                let layout = layout(packed.scheme)?;
                let scale = if packed.scheme.mode.has_biases() { self.dtype } else { Dtype::Uint8 };
                let [count, rows, words] = sizes(&packed.weight)?;
                let weight = Weight {
                    layout,
                    rows: count * rows,
                    columns: words * 32 / packed.scheme.bits,
                    data: self.address(&packed.weight, Dtype::Uint32, false)?,
                    scales: self.address(&packed.scales, scale, false)?,
                    biases: match &packed.biases {
                        Some(biases) => self.address(biases, scale, false)?,
                        None => DevicePtr::NULL,
                    },
                    bias: DevicePtr::NULL,
                };
                Ok((weight, count))
            }
        }
    }

    fn weight(&mut self, weight: &parameter::Weight, dtype: Dtype) -> Result<DevicePtr> {
        let array = weight.get().map_err(mlx_failed)?;
        self.address(&array, dtype, false)
    }

    /// The address of an array of this type whose elements lie row by row, or column by column where `transposed`.
    fn address(&mut self, array: &Array, dtype: Dtype, transposed: bool) -> Result<DevicePtr> {
        if array.dtype() != dtype {
            return unsupported(format!("weights in {:?} beside {dtype:?}", array.dtype()));
        }
        match device_address(array, transposed).map_err(mlx_failed)? {
            Some(address) => {
                self.arrays.push(array.clone());
                Ok(DevicePtr(address))
            }
            None => unsupported("weights in another order"),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn mlx_failed(error: mlx_rs::error::Exception) -> Unsupported {
    Unsupported(format!("an array that MLX could not give: {error}"))
}

/// The sizes of a stack of matrices; a matrix is one of one.
fn sizes(array: &Array) -> Result<[usize; 3]> {
    match *array.shape() {
        [rows, columns] => Ok([1, rows as usize, columns as usize]),
        [count, rows, columns] => Ok([count, rows, columns].map(|size| size as usize)),
        _ => unsupported(format!("a matrix of shape {:?}", array.shape())),
    }
}

fn layout(scheme: QuantizationScheme) -> Result<Layout> {
    let QuantizationScheme { mode, bits, group_size } = scheme;
    Ok(match (mode, bits, group_size) {
        (QuantizationMode::Affine, ..) => Layout::Affine { bits: bits as u32, group: group_size as u32 },
        (QuantizationMode::Mxfp4, 4, 32) => Layout::Mxfp4,
        (QuantizationMode::Mxfp8, 8, 32) => Layout::Mxfp8,
        (QuantizationMode::Nvfp4, 4, 16) => Layout::Nvfp4,
        _ => return unsupported(format!("{mode:?} with {bits} bits in groups of {group_size}")),
    })
}
