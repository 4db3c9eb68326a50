//! Every variant of every family against what the reference implementations made of the same weights.
//!
//! `tests/fixtures/<variant>` holds a config, a rule for each tensor and the reference's logits and greedy tokens;
//! `xtask/python/golden` makes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use inference_core::ModelManifest;
use mlx_rs::{
    Array, Device, Dtype,
    ops::{self, indexing::TryIndexOp as _},
};
use serde::Deserialize;

use super::Architecture;
use crate::nn::{KvCache, Rows};

/// The agreement that the fixtures' float32 logits must show, in the same unit.
const TOLERANCE: f32 = 2e-4;

#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    std: f32,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    margins: Vec<f32>,
    mlx_lm: MlxLm,
}

#[derive(Deserialize)]
struct MlxLm {
    rms: Option<f32>,
}

/// name, type, shape, mean, spread: see weights.py beside the script.
type Rule = (String, String, Vec<usize>, f64, f64);

struct Variant {
    name: String,
    folder: tempfile::TempDir,
    golden: Golden,
}

impl Variant {
    fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut folders: Vec<PathBuf> =
            fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        folders
            .iter()
            .filter(|folder| folder.join("golden.json").exists())
            .map(|folder| Self::write(folder))
            .collect()
    }

    fn write(fixture: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixture.join("config.json"), folder.path().join("config.json")).unwrap();
        let rules: Vec<Rule> =
            serde_json::from_slice(&fs::read(fixture.join("tensors.json")).unwrap()).unwrap();
        let tensors: Vec<_> = rules.iter().map(|rule| (rule, tensor(rule))).collect();
        let mut offset = 0;
        let header: serde_json::Map<_, _> = tensors
            .iter()
            .map(|((name, dtype, shape, ..), bytes)| {
                let offsets = [offset, offset + bytes.len()];
                offset = offsets[1];
                (name.clone(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}))
            })
            .collect();
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(tensors.into_iter().flat_map(|(_, bytes)| bytes));
        fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let golden = serde_json::from_slice(&fs::read(fixture.join("golden.json")).unwrap()).unwrap();
        Self { name: fixture.file_name().unwrap().to_string_lossy().into_owned(), folder, golden }
    }

    fn load(&self) -> Box<dyn Architecture> {
        let manifest = ModelManifest::read(self.folder.path()).unwrap();
        crate::load::load("cpu", &manifest, &mut |_| true)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether greater differences than those of float32 are the reference's own: it computed in float32, we do not.
    fn is_half(&self) -> bool {
        self.name.ends_with("+bf16") || self.name.ends_with("+f16")
    }

    fn tolerance(&self) -> f32 {
        if self.is_half() { self.golden.std } else { TOLERANCE }
    }
}

/// The bytes that a rule stands for.
fn tensor((name, dtype, shape, mean, spread): &Rule) -> Vec<u8> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let hash = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let value = |bits: u64| *mean as f32 + *spread as f32 * ((bits >> 40) as f32 / 8_388_608.0 - 1.0);
    (0..shape.iter().product::<usize>() as u64)
        .map(hash)
        .flat_map(|bits| match dtype.as_str() {
            "U32" => ((bits >> 32) as u32 & *spread as u32).to_le_bytes().to_vec(),
            "U8" => vec![(*mean as u64 + bits % *spread as u64) as u8],
            "F16" => f16::from_f32(value(bits)).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f32(value(bits)).to_le_bytes().to_vec(),
            _ => value(bits).to_le_bytes().to_vec(),
        })
        .collect()
}

fn tokens(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}

/// Logits `[T][V]` of row 0 in float32.
fn rows(logits: &Array) -> Vec<Vec<f32>> {
    let logits = logits.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap();
    let vocab = *logits.shape().last().unwrap() as usize;
    logits.to_vec_exact::<f32>().unwrap().chunks(vocab).map(<[f32]>::to_vec).collect()
}

fn whole(model: &dyn Architecture, ids: &[u32]) -> Vec<Vec<f32>> {
    rows(&model.logits(&model.hidden(&tokens(ids), Rows::Uncached).unwrap()).unwrap())
}

fn cached(model: &dyn Architecture, ids: &[u32], cache: &mut KvCache) -> Vec<Vec<f32>> {
    let hidden = model.hidden(&tokens(ids), Rows::Cached(&mut [cache])).unwrap();
    rows(&model.logits(&hidden).unwrap())
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

fn argmax(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
}

#[test]
fn logits_and_greedy_tokens_are_the_references() {
    Device::set_default(&Device::cpu());
    let mut failures = Vec::new();
    for variant in Variant::all() {
        let golden = &variant.golden;
        let model = variant.load();
        let ours = whole(&*model, &golden.prompt);
        let picked = golden.positions.iter().zip(&golden.logits);
        let worst = picked.map(|(p, reference)| distance(&ours[*p], reference)).fold(0.0, f32::max);
        println!("{}: {worst:.2e} of {TOLERANCE:.0e}, logits have std {:.1}", variant.name, golden.std);
        if !(worst <= variant.tolerance()) {
            failures.push(format!("{}: logits differ by {worst}", variant.name));
            continue;
        }
        let mut cache = model.new_cache();
        let mut logits = cached(&*model, &golden.prompt, &mut cache).pop().unwrap();
        for (step, (id, margin)) in golden.greedy.iter().zip(&golden.margins).enumerate() {
            let lead = logits[argmax(&logits) as usize] - logits[*id as usize];
            if lead > 2.0 * variant.tolerance() && *margin > 0.0 {
                failures.push(format!(
                    "{}: step {step} leads by {lead} over the reference's token",
                    variant.name
                ));
                break;
            }
            // The reference's own token, so that a tie decided otherwise is no end.
            logits = cached(&*model, &[*id], &mut cache).pop().unwrap();
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn chunks_cache_and_batch_change_nothing() {
    Device::set_default(&Device::cpu());
    for variant in Variant::all() {
        let Variant { name, golden, .. } = &variant;
        let model = variant.load();
        let tolerance = if variant.is_half() { golden.std / 2.0 } else { TOLERANCE };
        let mut text = golden.prompt.clone();
        let reference = whole(&*model, &text);
        // Windows of 8 are met, filled and crossed by chunks of 5; one by one after 20.
        for sizes in [vec![32], vec![5; 7], vec![7, 1, 1, 12, 3, 8], [vec![20], vec![1; 12]].concat()] {
            let mut cache = model.new_cache();
            cache.expect(text.len());
            let mut at = 0;
            for size in sizes {
                let end = (at + size).min(text.len());
                let logits = cached(&*model, &text[at..end], &mut cache);
                for (p, logits) in (at..end).zip(&logits) {
                    let d = distance(logits, &reference[p]);
                    assert!(d <= tolerance, "{name}: position {p} of a chunk at {at} differs by {d}");
                }
                at = end;
                assert_eq!(cache.len(), at);
            }
        }
        // Rows of other lengths beside it: each gets what it gets alone.
        let lengths = [3, 17, 9, 32];
        let mut caches: Vec<_> = lengths
            .iter()
            .map(|length| {
                let mut cache = model.new_cache();
                let _ = cached(&*model, &text[..*length], &mut cache);
                cache
            })
            .collect();
        text.extend(&golden.greedy[..3]);
        for step in 0..3 {
            let alone: Vec<_> = caches
                .iter()
                .zip(lengths)
                .map(|(cache, length)| {
                    cached(&*model, &text[length + step..=length + step], &mut cache.clone())
                })
                .collect();
            let next: Vec<_> = lengths.iter().map(|length| text[length + step]).collect();
            let mut together: Vec<_> = caches.iter_mut().collect();
            let hidden =
                model.hidden(&Array::from_slice(&next, &[4, 1]), Rows::Cached(&mut together)).unwrap();
            let logits = rows(&model.logits(&hidden).unwrap());
            for (row, (alone, together)) in alone.iter().zip(&logits).enumerate() {
                let d = distance(&alone[0], together);
                assert!(d <= tolerance, "{name}: row {row} in step {step} differs by {d} from the row alone");
            }
        }
        // Right-padded rows of one uncached pass.
        if model.config().recompute_at.is_none() && name != "llama-dynamic" {
            let mut padded = text[..32].to_vec();
            padded.extend(text[..9].iter().chain(&[0; 23]));
            let hidden = model.hidden(&Array::from_slice(&padded, &[2, 32]), Rows::Uncached).unwrap();
            let second = hidden.try_index((1, .., ..)).unwrap();
            let d = distance(&rows(&model.logits(&second).unwrap())[8], &reference[8]);
            assert!(d <= tolerance, "{name}: a padded row differs by {d}");
        }
    }
    let _ = ops::zeros::<f32>(&[1]);
}
