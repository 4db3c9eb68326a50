//! What a conversion is to write, known before anything is read.

use std::collections::BTreeMap;

use inference_core::{Dtype, Error, ModelManifest, Quantization, Result, SidePart, backend::TensorInfo};
use serde_json::{Map, Value, json};

use super::{
    ConvertOptions,
    delta::Delta,
    experts::{self, FusedExperts, Part},
    invalid_option,
    job::{Job, Work},
    layout::Layout,
};
use crate::{
    arch,
    mlx::{MXFP4, QuantizationScheme},
    nn::FLOATS,
};

/// The steps, and what the new config says.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    /// What the config says of single matrices.
    settings: Map<String, Value>,
    default: Option<QuantizationScheme>,
    rules: Vec<(String, Option<QuantizationScheme>)>,
    /// The type of weights that are not quantised.
    dtype: Option<Dtype>,
    /// Whether the config's quantisation stands.
    keep: bool,
}

/// Matrices of one shape that lie in the same tensors.
struct Matrices {
    stems: Vec<String>,
    sources: Vec<TensorInfo>,
    /// The shape of the sources together, and of each matrix or stack.
    whole: Vec<usize>,
    shape: Vec<usize>,
    layout: Layout,
}

impl Plan {
    pub(super) fn new(source: &ModelManifest, options: &ConvertOptions) -> Result<Self> {
        let default = options.quantization.as_ref().map(|q| scheme("quantization", q)).transpose()?;
        let rules = options.rules.iter().map(|(pattern, quantization)| {
            Ok((pattern.clone(), quantization.as_ref().map(|q| scheme("rules", q)).transpose()?))
        });
        let rules = rules.collect::<Result<Vec<_>>>()?;
        if options.dtype.is_some_and(|dtype| !FLOATS.contains(&dtype)) {
            return Err(invalid_option("dtype", format!("expected one of {FLOATS:?}")));
        }
        let packed = source.tensors().keys().any(|name| name.ends_with(".scales"));
        if default.is_some() && packed {
            return Err(Error::invalid_file(source.path(), "is quantised already: make it dense first"));
        }
        let mut plan = Self {
            jobs: Vec::new(),
            settings: Map::new(),
            default,
            rules,
            dtype: options.dtype,
            keep: options.keep,
        };
        if options.keep {
            return plan.kept(source);
        }
        let mut stacks: BTreeMap<String, Vec<(usize, &TensorInfo)>> = BTreeMap::new();
        for (name, tensor) in source.tensors() {
            if let Some(fused) = plan.fused(source, name, tensor) {
                plan.experts(source, name, tensor, &fused)?;
                continue;
            }
            let Some(stem) = name.strip_suffix(".weight") else {
                if !(packed && is_part_of_packed(source, name)) {
                    plan.copy(vec![name.clone()], tensor, &tensor.shape, Layout::default());
                }
                continue;
            };
            if source.tensors().contains_key(&format!("{stem}.scales")) {
                plan.dequantize(source, stem)?;
            } else if let (Some(_), Some((stack, index))) = (default, experts::stacked_name(stem)) {
                stacks.entry(stack).or_default().push((index, tensor));
            } else {
                plan.quantize_or_copy(Matrices {
                    stems: vec![stem.to_owned()],
                    sources: vec![tensor.clone()],
                    whole: tensor.shape.clone(),
                    shape: tensor.shape.clone(),
                    layout: Layout::default(),
                });
            }
        }
        plan.add_stacks(source, stacks)?;
        if default.is_some() {
            plan.rename(|name| arch::published_name(source.model_type(), name));
        }
        plan.jobs.sort_by(|a, b| a.outputs[0].0.cmp(&b.outputs[0].0));
        Ok(plan)
    }

    /// Adds matrices of single experts, by the name of their stack and their number: they are quantised as one stack.
    fn add_stacks(
        &mut self,
        source: &ModelManifest,
        stacks: BTreeMap<String, Vec<(usize, &TensorInfo)>>,
    ) -> Result<()> {
        for (stem, mut parts) in stacks {
            parts.sort_by_key(|(index, _)| *index);
            let first = parts[0].1;
            let complete = parts.iter().enumerate().all(|(i, (index, part))| {
                i == *index && part.shape == first.shape && part.dtype == first.dtype
            });
            if !complete {
                let reason = "the experts are not all there, or not alike";
                return Err(Error::invalid_key(source.path(), stem, reason));
            }
            let shape: Vec<_> = [parts.len()].iter().chain(&first.shape).copied().collect();
            let sources = parts.into_iter().map(|(_, tensor)| tensor.clone()).collect();
            let (stems, whole) = (vec![stem], shape.clone());
            self.quantize_or_copy(Matrices { stems, sources, whole, shape, layout: Layout::default() });
        }
        Ok(())
    }

    /// The config with what the new form changes in it.
    pub(super) fn config(&self, source: &ModelManifest) -> Value {
        let mut config = source.config().clone();
        let Value::Object(fields) = &mut config else { return config };
        for key in ["quantization", "quantization_config"].iter().filter(|_| !self.keep) {
            fields.remove(*key);
        }
        if let Some(default) = self.default {
            let mut settings = describe(default);
            settings.extend(self.settings.clone());
            // The first is read by MLX's programs, the second by others.
            fields.insert("quantization".to_owned(), Value::Object(settings.clone()));
            fields.insert("quantization_config".to_owned(), Value::Object(settings));
        }
        if let Some(dtype) = self.dtype {
            let name = match dtype {
                Dtype::F16 => "float16",
                Dtype::Bf16 => "bfloat16",
                _ => "float32",
            };
            let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            fields.insert(key.to_owned(), json!(name));
        }
        config
    }

    /// What this tensor holds of all experts, where that gets another form: when it is quantised, and when it was.
    fn fused(&self, source: &ModelManifest, name: &str, tensor: &TensorInfo) -> Option<FusedExperts> {
        let changes = self.default.is_some() || experts::has_blocks(source, name);
        FusedExperts::of(source, name, tensor).filter(|_| changes)
    }

    /// Matrices of all experts. Those that are packed stay so, or become dense.
    fn experts(
        &mut self,
        source: &ModelManifest,
        name: &str,
        tensor: &TensorInfo,
        fused: &FusedExperts,
    ) -> Result<()> {
        let FusedExperts { stems, layout, part } = fused;
        let named = |end: &str| stems.iter().map(|stem| format!("{stem}.{end}")).collect::<Vec<_>>();
        match (part, self.default) {
            (Part::Dense, _) => self.quantize_or_copy(Matrices {
                stems: stems.clone(),
                sources: vec![tensor.clone()],
                whole: tensor.shape.clone(),
                shape: fused.shape(&tensor.shape),
                layout: *layout,
            }),
            (Part::Bias, _) => self.copy(named("bias"), tensor, &fused.shape(&tensor.shape), *layout),
            (Part::Blocks, Some(default)) => {
                for (part, end) in experts::packed(source, name, tensor)?.iter().zip(["weight", "scales"]) {
                    self.copy(named(end), part, &fused.shape(&part.shape), *layout);
                }
                for stem in stems.iter().filter(|_| default != MXFP4) {
                    self.settings.insert(stem.clone(), Value::Object(describe(MXFP4)));
                }
            }
            (Part::Blocks, None) => {
                let [words, scales] = experts::packed(source, name, tensor)?;
                let mut shape = fused.shape(&words.shape);
                shape[2] = scales.shape[2] * MXFP4.group_size;
                let dtype = self.dtype.unwrap_or(Dtype::Bf16);
                let outputs = named("weight").into_iter().map(|name| (name, dtype, shape.clone())).collect();
                let work = Work::Dequantize(MXFP4);
                self.jobs.push(Job { sources: vec![words, scales], shape, layout: *layout, work, outputs });
            }
            // They go with their blocks.
            (Part::Scales, _) => {}
        }
        Ok(())
    }

    /// A tensor as it is, or its parts under these names.
    fn copy(&mut self, names: Vec<String>, tensor: &TensorInfo, shape: &[usize], layout: Layout) {
        let dtype = self.dtype.filter(|_| FLOATS.contains(&tensor.dtype)).unwrap_or(tensor.dtype);
        let outputs = names.into_iter().map(|name| (name, dtype, shape.to_vec())).collect();
        let (sources, shape) = (vec![tensor.clone()], tensor.shape.clone());
        self.jobs.push(Job { sources, shape, layout, work: Work::Copy, outputs });
    }

    fn quantize_or_copy(&mut self, matrices: Matrices) {
        let Matrices { stems, sources, whole, shape, layout } = matrices;
        let stored = sources[0].dtype;
        let dtype = self.dtype.filter(|_| FLOATS.contains(&stored)).unwrap_or(stored);
        let columns = shape.last().copied().unwrap_or(0);
        // Parts of one tensor are stored alike: the rule for the first holds for the other.
        let chosen = self.choose(&stems[0], &shape, stored);
        for stem in &stems {
            match chosen {
                // Said only of what would else be taken for one of the others.
                None if self.default.is_some() && is_matrix(stem, &shape, stored) => {
                    self.settings.insert(stem.clone(), json!(false));
                }
                Some(scheme) if self.default != Some(scheme) => {
                    self.settings.insert(stem.clone(), Value::Object(describe(scheme)));
                }
                _ => {}
            }
        }
        let Some(scheme) = chosen else {
            let outputs = stems.iter().map(|stem| (format!("{stem}.weight"), dtype, shape.clone())).collect();
            self.jobs.push(Job { sources, shape: whole, layout, work: Work::Copy, outputs });
            return;
        };
        let with_columns = |columns| {
            let mut shape = shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = columns;
            }
            shape
        };
        let groups = with_columns(columns / scheme.group_size);
        let scales = if scheme.mode.has_biases() { dtype } else { Dtype::U8 };
        let mut outputs = Vec::new();
        for stem in &stems {
            let words = with_columns(columns * scheme.bits / 32);
            outputs.push((format!("{stem}.weight"), Dtype::U32, words));
            outputs.push((format!("{stem}.scales"), scales, groups.clone()));
            if scheme.mode.has_biases() {
                outputs.push((format!("{stem}.biases"), scales, groups.clone()));
            }
        }
        self.jobs.push(Job { sources, shape: whole, layout, work: Work::Quantize(scheme), outputs });
    }

    /// Every tensor as it is.
    fn kept(mut self, source: &ModelManifest) -> Result<Self> {
        if self.default.is_some() {
            return Err(invalid_option("keep", "is set together with a quantisation".to_owned()));
        }
        source.tensors().iter().for_each(|(name, tensor)| self.keep(name, tensor));
        Ok(self)
    }

    /// A tensor as it is.
    pub(super) fn keep(&mut self, name: &str, tensor: &TensorInfo) {
        self.copy(vec![name.to_owned()], tensor, &tensor.shape, Layout::default());
    }

    /// The matrix `stem` with what an adapter adds to it: one that is packed is packed again, unless it is to be dense.
    pub(super) fn add_delta(
        &mut self,
        source: &ModelManifest,
        stem: &str,
        delta: Delta,
        dense: bool,
    ) -> Result<()> {
        let named = ["weight", "scales", "biases"].map(|part| format!("{stem}.{part}"));
        let found: Vec<_> =
            named.into_iter().filter_map(|name| Some((source.tensors().get(&name)?.clone(), name))).collect();
        let packed = (found.len() > 1).then(|| crate::nn::scheme(source, stem)).transpose()?;
        if packed.is_some() && dense {
            self.dequantize(source, stem)?;
        } else {
            let outputs = found.iter().map(|(info, name)| (name.clone(), info.dtype, info.shape.clone()));
            let (outputs, shape) = (outputs.collect(), found[0].0.shape.clone());
            let (sources, work) = (found.into_iter().map(|(info, _)| info).collect(), Work::Copy);
            self.jobs.push(Job { sources, shape, layout: Layout::default(), work, outputs });
        }
        if let Some(job) = self.jobs.last_mut() {
            job.work = Work::Fuse { packed, delta: Box::new(delta) };
        }
        Ok(())
    }

    pub(super) fn dequantize(&mut self, source: &ModelManifest, stem: &str) -> Result<()> {
        let scheme = crate::nn::scheme(source, stem)?;
        let part = |name: &str| {
            let name = format!("{stem}.{name}");
            let missing = || Error::invalid_key(source.path(), name.clone(), "is missing");
            source.tensors().get(&name).cloned().ok_or_else(missing)
        };
        let (weight, scales) = (part("weight")?, part("scales")?);
        let mut shape = weight.shape.clone();
        let fits = weight.dtype == Dtype::U32
            && weight.shape.len() == scales.shape.len()
            && shape.last().is_some_and(|words| {
                Some(words * 32 / scheme.bits) == scales.shape.last().map(|groups| groups * scheme.group_size)
            });
        if !fits {
            let reason =
                format!("{:?} does not fit scales of {:?} with {scheme:?}", weight.shape, scales.shape);
            return Err(Error::invalid_key(&source.files()[weight.file], format!("{stem}.weight"), reason));
        }
        if let (Some(last), Some(groups)) = (shape.last_mut(), scales.shape.last()) {
            *last = groups * scheme.group_size;
        }
        let float = if scheme.mode.has_biases() { scales.dtype } else { Dtype::Bf16 };
        let dtype = self.dtype.unwrap_or(float);
        let outputs = match experts::unstacked_names(stem, &shape) {
            None => vec![(format!("{stem}.weight"), dtype, shape.clone())],
            Some(names) => {
                let single = shape[1..].to_vec();
                names.into_iter().map(|name| (format!("{name}.weight"), dtype, single.clone())).collect()
            }
        };
        let mut sources = vec![weight, scales];
        if scheme.mode.has_biases() {
            sources.push(part("biases")?);
        }
        let work = Work::Dequantize(scheme);
        self.jobs.push(Job { sources, shape, layout: Layout::default(), work, outputs });
        Ok(())
    }

    fn rename(&mut self, rename: impl Fn(&str) -> String) {
        for (name, ..) in self.jobs.iter_mut().flat_map(|job| &mut job.outputs) {
            *name = rename(name);
        }
        let settings = std::mem::take(&mut self.settings);
        self.settings = settings.into_iter().map(|(name, setting)| (rename(&name), setting)).collect();
    }

    /// The scheme of a matrix: that of the last rule that fits, or the default; none for what is no matrix of the language model.
    fn choose(&self, stem: &str, shape: &[usize], dtype: Dtype) -> Option<QuantizationScheme> {
        let rule = self.rules.iter().rev().find(|(pattern, _)| fits(pattern, stem));
        let scheme = rule.map_or(self.default, |(_, scheme)| *scheme)?;
        let columns = shape.last().copied().unwrap_or(0);
        let divides = columns % scheme.group_size == 0 && columns * scheme.bits % 32 == 0;
        (self.default.is_some() && is_matrix(stem, shape, dtype) && divides).then_some(scheme)
    }
}

/// Whether it is a matrix that tokens are multiplied with, or a stack of experts'. Routers stay as they are: they are small, and
/// a wrong pick costs more than it saves.
fn is_matrix(stem: &str, shape: &[usize], dtype: Dtype) -> bool {
    let foreign = [SidePart::Vision, SidePart::Audio, SidePart::MultiTokenPrediction];
    let router = stem.ends_with(".gate") || stem.ends_with(".router");
    let stack = [".experts.", ".switch_mlp.", ".block_sparse_moe."].iter().any(|part| stem.contains(part));
    shape.len() == if stack { 3 } else { 2 }
        && FLOATS.contains(&dtype)
        && !router
        && !foreign.iter().any(|part| part.holds(&format!("{stem}.")))
}

/// Whether the name matches the pattern, in which `*` stands for any characters. Takes at most as many steps as the product of both
/// lengths.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // After the last star, and the place in the name from which the rest of the pattern is tried.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, n));
        } else if pattern.get(p) == Some(&name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after, from)) = star {
            (p, n) = (after, from + 1);
            star = Some((after, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

pub(super) fn is_part_of_packed(source: &ModelManifest, name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, last)| {
        matches!(last, "scales" | "biases") && source.tensors().contains_key(&format!("{stem}.scales"))
    })
}

fn scheme(option: &'static str, quantization: &Quantization) -> Result<QuantizationScheme> {
    QuantizationScheme::try_from(*quantization).map_err(|reason| invalid_option(option, reason))
}

fn describe(scheme: QuantizationScheme) -> Map<String, Value> {
    let mode = Quantization::from(scheme).mode.name();
    let settings =
        [("group_size", json!(scheme.group_size)), ("bits", json!(scheme.bits)), ("mode", json!(mode))];
    settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_any_characters() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("*.down_proj", "model.layers.0.mlp.down_proj", true),
            ("*.down_proj", "model.layers.0.mlp.down_proj.x", false),
            ("model.*.q_*", "model.layers.0.self_attn.q_proj", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("*ü*", "größü", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_longer_than_its_length() {
        // A matcher that tries every split would not end.
        assert!(!fits(&"*a".repeat(5_000), &format!("{}b", "a".repeat(4_999))));
        assert!(fits(&"*".repeat(1_000_000), "model.layers.0.mlp.down_proj"));
    }
}
