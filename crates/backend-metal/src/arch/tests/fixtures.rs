//! Small checkpoints made from rules, and what the reference implementations make of them.
//!
//! `tests/fixtures/<variant>` holds a config, a rule for each tensor and the reference's logits and greedy tokens;
//! `xtask/python/golden` makes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use inference_core::{ModelManifest, Result};
use mlx_rs::{Array, Device};
use serde::Deserialize;
use serde_json::Value;

use crate::arch::Architecture;

#[derive(Deserialize)]
pub(super) struct Golden {
    pub(super) prompt: Vec<u32>,
    pub(super) std: f32,
    pub(super) positions: Vec<usize>,
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) greedy: Vec<u32>,
    pub(super) margins: Vec<f32>,
    pub(super) mlx_lm: MlxLm,
}

#[derive(Deserialize)]
pub(super) struct MlxLm {
    #[serde(default)]
    pub(super) max: Option<f32>,
    #[serde(default)]
    pub(super) rms: Option<f32>,
}

/// name, type, shape, mean, spread: see weights.py beside the script.
pub(super) type Rule = (String, String, Vec<usize>, f64, f64);

pub(super) struct Variant {
    pub(super) name: String,
    pub(super) folder: tempfile::TempDir,
    pub(super) golden: Golden,
}

/// Has MLX compute on the CPU, or on what `TEST_DEVICE=gpu` asks for. CUDA needs `MLX_ENABLE_TF32=0` too, or its float32
/// products are rounded to ten bits, and one process for each `VARIANT`: it does not survive the end of a test's thread.
pub(super) fn device() {
    let gpu = std::env::var("TEST_DEVICE").is_ok_and(|device| device == "gpu");
    Device::set_default(&if gpu { Device::gpu() } else { Device::cpu() });
}

/// Where the fixtures are, also for a test program that runs on another machine than it was built on.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("tests/fixtures")
}

impl Variant {
    /// All that are committed, or the one that `VARIANT` names.
    pub(super) fn all() -> Vec<Self> {
        let mut folders: Vec<PathBuf> =
            fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        if let Some(name) = std::env::var_os("VARIANT") {
            folders.retain(|folder| folder.file_name() == Some(&name));
        }
        folders
            .iter()
            .filter(|folder| folder.join("golden.json").exists())
            .map(|folder| Self::write(folder))
            .collect()
    }

    fn write(fixture: &Path) -> Self {
        Self::read(fixture, |_, _| {})
    }

    /// The variant of this name, changed.
    pub(super) fn changed(name: &str, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> Self {
        Self::read(&root().join(name), change)
    }

    fn read(fixture: &Path, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let json = |name: &str| fs::read(fixture.join(name)).unwrap();
        let mut config = serde_json::from_slice(&json("config.json")).unwrap();
        let mut rules: Vec<Rule> = serde_json::from_slice(&json("tensors.json")).unwrap();
        change(&mut config, &mut rules);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
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
        let golden = serde_json::from_slice(&json("golden.json")).unwrap();
        Self { name: fixture.file_name().unwrap().to_string_lossy().into_owned(), folder, golden }
    }

    pub(super) fn load(&self) -> Box<dyn Architecture> {
        self.try_load().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub(super) fn try_load(&self) -> Result<Box<dyn Architecture>> {
        crate::load::load("cpu", &ModelManifest::read(self.folder.path())?, &mut |_| true)
    }

    /// Whether greater differences than those of float32 are the reference's own: it computed in float32, we do not.
    pub(super) fn is_half(&self) -> bool {
        self.name.ends_with("+bf16") || self.name.ends_with("+f16")
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

/// One row `[1, T]`.
pub(super) fn tokens(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}
