//! A scoped reader of a checkpoint's tensors: takes them by name and checks type and shape.

use std::{cell::RefCell, collections::BTreeSet, fmt::Display, rc::Rc};

use inference_core::{Dtype, Error, ModelManifest, Result, backend::TensorInfo};
use mlx_rs::Array;

use super::{
    adapter::{AdapterSlot, SlotKind},
    parameter::{Weight, WeightTransform},
    registry::ParamRegistry,
};
use crate::mlx::{QuantizationScheme, Reader, mlx_dtype};

/// The types of weights that are not quantised.
pub(crate) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The tensors below one name, such as `model.layers.3`. It records what was taken: [`finish`](Self::finish) lists the rest.
pub(crate) struct Weights<'a> {
    source: &'a Source<'a>,
    path: String,
}

/// All tensors of a checkpoint.
pub(crate) struct Source<'a> {
    reader: Reader<'a>,
    taken: RefCell<BTreeSet<&'a str>>,
    float: Dtype,
    registry: Rc<ParamRegistry>,
}

impl<'a> Source<'a> {
    /// The tensors that this reader reads.
    pub(crate) fn new(reader: Reader<'a>) -> Self {
        let float = reader.manifest().float_dtype().filter(|dtype| FLOATS.contains(dtype));
        let float = float.unwrap_or(Dtype::F32);
        Self { reader, taken: RefCell::default(), float, registry: Rc::default() }
    }

    /// The whole checkpoint.
    pub(crate) fn weights(&'a self) -> Weights<'a> {
        Weights { source: self, path: String::new() }
    }
}

impl<'a> Weights<'a> {
    /// The tensors below `name` of these.
    pub(crate) fn at(&self, name: impl Display) -> Self {
        let name = name.to_string();
        let path = if name.is_empty() { self.path.clone() } else { self.name(name) };
        Self { source: self.source, path }
    }

    /// The tensors below an index: `layers.3`.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.at(index)
    }

    /// The whole checkpoint.
    pub(crate) fn root(&self) -> Self {
        Self { source: self.source, path: String::new() }
    }

    /// The full name of a tensor below this one.
    pub(crate) fn name(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The manifest of the model's folder.
    pub(crate) fn manifest(&self) -> &'a ModelManifest {
        self.source.reader.manifest()
    }

    /// The type of the activations.
    pub(crate) fn float_dtype(&self) -> mlx_rs::Dtype {
        mlx_dtype(self.source.float).unwrap_or(mlx_rs::Dtype::Float32)
    }

    /// The name of that type.
    pub(crate) fn float_name(&self) -> &'static str {
        match self.source.float {
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            _ => "f32",
        }
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: impl Display) -> bool {
        self.manifest().tensors().contains_key(&self.name(name))
    }

    /// Whether anything lies below `name`.
    pub(crate) fn has_any(&self, name: impl Display) -> bool {
        self.at(name).tensors().next().is_some()
    }

    /// The tensors below this name, without it: `weight`, `scales`, ….
    fn tensors(&self) -> impl Iterator<Item = (&'a str, &'a TensorInfo)> {
        let prefix = self.name("");
        let from = self.manifest().tensors().range(prefix.clone()..);
        from.map_while(move |(name, info)| Some((name.strip_prefix(&prefix)?, info)))
    }

    /// Whether the files hold the same tensors below this name as below another: types, shapes and bytes.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::InvalidModel`] where a file became shorter.
    pub(crate) fn is_stored_like(&self, other: &Weights<'_>) -> Result<bool> {
        let (own, others): (Vec<_>, Vec<_>) = (self.tensors().collect(), other.tensors().collect());
        let alike = |((name, a), (other, b)): (&(&str, &TensorInfo), &(&str, &TensorInfo))| {
            name == other && (a.dtype, &a.shape) == (b.dtype, &b.shape)
        };
        if own.len() != others.len() || !own.iter().zip(&others).all(alike) {
            return Ok(false);
        }
        for ((_, a), (_, b)) in own.iter().zip(&others) {
            if !self.source.reader.has_same_bytes(a, b)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Type, shape and place of a tensor.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: there is no such tensor.
    pub(crate) fn info(&self, name: impl Display) -> Result<&'a TensorInfo> {
        let name = self.name(name);
        self.manifest()
            .tensors()
            .get(&name)
            .ok_or_else(|| Error::invalid_key(self.manifest().path(), name, "is missing from the files"))
    }

    /// The vector or stack of vectors `name`, of any of the types of [`FLOATS`].
    ///
    /// # Errors
    /// [`Error::InvalidModel`] where it is missing or its shape or type is another.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        Weight::load(&[self], None, name, &[shape.to_vec()], WeightTransform::Stored)
    }

    /// As [`take`](Self::take), in the type that the files hold it in.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_exact(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        Weight::load(&[self], None, name, &[shape.to_vec()], WeightTransform::Exact)
    }

    /// The tensor `name` in single precision: one that is not trained.
    ///
    /// # Errors
    /// As [`take`](Self::take), and MLX's own.
    pub(crate) fn take_wide(&self, name: &str, shape: &[usize]) -> Result<Array> {
        let wide = self.take_as(name, shape, FLOATS)?.as_dtype(mlx_rs::Dtype::Float32);
        let wide = wide.and_then(|wide| wide.eval().map(|()| wide));
        wide.map_err(|error| Error::backend("mlx", "bind the weights", error))
    }

    /// The tensor `name`, of one of these types.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_as(&self, name: &str, shape: &[usize], dtypes: &[Dtype]) -> Result<Array> {
        take_joined(&[self], None, name, &[shape.to_vec()], dtypes)
    }

    /// The tensor `name` of bytes with this shape, read as 32-bit words `[.., bytes / 4]`.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_words(&self, name: &str, shape: &[usize], words: &[usize]) -> Result<Array> {
        let info = self.info(name)?;
        if info.shape != shape
            || info.dtype != Dtype::U8
            || shape.iter().product::<usize>() != 4 * words.iter().product::<usize>()
        {
            let reason =
                format!("has {:?} of type {:?}, the config demands {shape:?} of U8", info.shape, info.dtype);
            return Err(Error::invalid_key(&self.manifest().files()[info.file], self.name(name), reason));
        }
        self.mark(name);
        self.source.reader.read(&[info], Dtype::U32, &self.mlx_shape(name, words)?)
    }

    fn mark(&self, name: &str) {
        if let Some((name, _)) = self.manifest().tensors().get_key_value(&self.name(name)) {
            self.source.taken.borrow_mut().insert(name);
        }
    }

    fn mlx_shape(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let shape: Option<Vec<i32>> =
            shape.iter().map(|n| i32::try_from(*n).ok().filter(|n| *n > 0)).collect();
        shape.ok_or_else(|| {
            Error::invalid_key(
                self.manifest().path(),
                self.name(name),
                "has a dimension that MLX cannot hold",
            )
        })
    }

    /// Marks the tensors that `unneeded` accepts, by full name, as not needed.
    pub(crate) fn skip(&self, unneeded: impl Fn(&str) -> bool) {
        let names = self.manifest().tensors().keys().map(String::as_str);
        self.source.taken.borrow_mut().extend(names.filter(|name| unneeded(name)));
    }

    /// A new adapter slot for the layer at `name` below this one.
    pub(crate) fn slot(&self, name: &str, kind: SlotKind, inputs: usize, outputs: usize) -> Rc<AdapterSlot> {
        let slot = AdapterSlot::new(self.at(name).path, kind, inputs, outputs);
        self.registry().add_slot(slot.clone());
        slot
    }

    /// The registry of trainable parameters.
    pub(crate) fn registry(&self) -> &Rc<ParamRegistry> {
        &self.source.registry
    }

    /// How the matrix at this name is quantised.
    ///
    /// # Errors
    /// As [`scheme`].
    pub(crate) fn scheme(&self) -> Result<QuantizationScheme> {
        scheme(self.manifest(), &self.path)
    }

    /// Checks that every tensor was taken.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] lists the tensors that nothing took.
    pub(crate) fn finish(&self) -> Result<()> {
        const SHOWN: usize = 8;
        let taken = self.source.taken.borrow();
        let unused: Vec<_> =
            self.manifest().tensors().keys().filter(|name| !taken.contains(name.as_str())).collect();
        let Some(first) = unused.first() else {
            return Ok(());
        };
        let file = &self.manifest().files()[self.manifest().tensors()[*first].file];
        let mut listed: Vec<_> = unused.iter().take(SHOWN).map(|name| name.as_str()).collect();
        let more = format!("and {} more", unused.len().saturating_sub(SHOWN));
        if unused.len() > SHOWN {
            listed.push(&more);
        }
        let reason = format!(
            "{} tensors are not part of a {} of this config: {}",
            unused.len(),
            self.manifest().model_type(),
            listed.join(", ")
        );
        Err(Error::invalid_file(file, reason))
    }
}

/// How the matrix `path` is quantised, by the manifest.
///
/// # Errors
/// [`Error::InvalidModel`] where it says nothing, or what MLX cannot do.
pub(crate) fn scheme(manifest: &ModelManifest, path: &str) -> Result<QuantizationScheme> {
    let invalid = |reason: String| Error::invalid_key(manifest.config_path(), "quantization", reason);
    let found = manifest.quantization_of(path)?;
    let found = found.ok_or_else(|| invalid(format!("{path} has no scales, so it is not quantised")))?;
    QuantizationScheme::try_from(found).map_err(|reason| invalid(format!("{reason}, as {path} is quantised")))
}

impl Weight {
    /// The tensor `name` below each of `parts`, fused: see [`take_joined`]. Vectors are converted to the type of the activations,
    /// because another type would change the type of every result.
    ///
    /// # Errors
    /// As [`take_joined`], and MLX's own.
    pub(crate) fn load(
        parts: &[&Weights<'_>],
        stack: Option<usize>,
        name: &str,
        shapes: &[Vec<usize>],
        form: WeightTransform,
    ) -> Result<Self> {
        let mut stored = take_joined(parts, stack, name, shapes, FLOATS)?;
        let failed = |error| Error::backend("mlx", "bind the weights", error);
        let dtype = parts[0].float_dtype();
        let converts = matches!(form, WeightTransform::Stored | WeightTransform::PlusOne);
        if converts && stored.dtype() != dtype {
            stored = stored.as_dtype(dtype).and_then(|cast| cast.eval().map(|()| cast)).map_err(failed)?;
        }
        let rows = parts.iter().zip(shapes).map(|(part, shape)| (part.name(name), shape[0]));
        let parameter = Self::new(rows.collect(), stored, form).map_err(failed)?;
        parts[0].registry().add_weight(parameter.clone());
        Ok(parameter)
    }
}

/// The tensor `name` below each of `parts` in one array, concatenated by rows. `stack` reshapes it to that many matrices:
/// `[stack, rows, ..]`. Part `i` has the shape `shapes[i]`; shapes differ in their rows alone. Nothing is copied.
///
/// # Errors
/// [`Error::InvalidModel`] where one is missing, or has another shape or a type that is not among `dtypes` or not the
/// first one's.
pub(crate) fn take_joined(
    parts: &[&Weights<'_>],
    stack: Option<usize>,
    name: &str,
    shapes: &[Vec<usize>],
    dtypes: &[Dtype],
) -> Result<Array> {
    let mut infos = Vec::with_capacity(parts.len());
    for (weights, shape) in parts.iter().zip(shapes) {
        let info = weights.info(name)?;
        let file = &weights.manifest().files()[info.file];
        if info.shape != *shape {
            let reason = format!("has the shape {:?}, the config demands {shape:?}", info.shape);
            return Err(Error::invalid_key(file, weights.name(name), reason));
        }
        let first = infos.first().map_or(info.dtype, |first: &&TensorInfo| first.dtype);
        if !dtypes.contains(&info.dtype) || info.dtype != first {
            let expected =
                if dtypes.contains(&first) { format!("{first:?}") } else { format!("one of {dtypes:?}") };
            let reason = format!("has elements of type {:?}, expected {expected}", info.dtype);
            return Err(Error::invalid_key(file, weights.name(name), reason));
        }
        infos.push(info);
    }
    for weights in parts {
        weights.mark(name);
    }
    let (Some(weights), Some(shape)) = (parts.first(), shapes.first()) else {
        return Err(Error::backend("mlx", "bind the weights", "no parts to join"));
    };
    let rows: usize = shapes.iter().map(|shape| shape.first().copied().unwrap_or(1)).sum();
    let whole: Vec<_> = match stack {
        // A single number.
        None if shape.is_empty() => Vec::new(),
        None => [rows].into_iter().chain(shape[1..].iter().copied()).collect(),
        Some(n) => [n, rows / n.max(1)].into_iter().chain(shape[1..].iter().copied()).collect(),
    };
    weights.source.reader.read(&infos, infos[0].dtype, &weights.mlx_shape(name, &whole)?)
}
