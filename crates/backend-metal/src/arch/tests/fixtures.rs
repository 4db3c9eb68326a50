//! Small checkpoints made from rules, and what the reference implementations make of them.
//!
//! `tests/fixtures/<variant>` holds a config, a rule for each tensor and the reference's logits and greedy tokens;
//! `xtask/python/golden` makes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use inference_core::{ModelManifest, Result};
use mlx_rs::{Array, Device};
use serde::Deserialize;
use serde_json::Value;
use tests::checkpoint;
pub(super) use tests::checkpoint::{Rule, tensor};

use crate::nn::Architecture;

#[derive(Deserialize)]
pub(super) struct Golden {
    pub(super) prompt: Vec<u32>,
    pub(super) std: f32,
    pub(super) positions: Vec<usize>,
    pub(super) logits: Vec<Vec<f32>>,
    pub(super) greedy: Vec<u32>,
    pub(super) margins: Vec<f32>,
    pub(super) mlx_lm: MlxLm,
    /// How far transformers is from itself where it computes in the type of the weights: the root mean square.
    #[serde(default)]
    half: Option<f32>,
}

impl Golden {
    /// How far logits in half precision may be from those in float32. We are as far as half precision makes mlx_lm, or transformers
    /// itself, but for the tenth by which one rounding differs from another; where mlx_lm is further off it computes something else.
    pub(super) fn half_limit(&self) -> f32 {
        let (share, half) = (0.05 * self.std, self.half.unwrap_or(0.0));
        let mlx = self.mlx_lm.rms.filter(|rms| *rms < share.max(2.0 * half));
        1.1 * mlx.unwrap_or(share.max(half))
    }
}

#[derive(Deserialize)]
pub(super) struct MlxLm {
    #[serde(default)]
    pub(super) max: Option<f32>,
    #[serde(default)]
    pub(super) rms: Option<f32>,
}

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
pub(super) fn root() -> PathBuf {
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

    /// The variant of this name.
    pub(super) fn named(name: &str) -> Self {
        Self::write(&root().join(name))
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
        checkpoint::write(folder.path(), &config, &rules).unwrap();
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

/// One row `[1, T]`.
pub(super) fn tokens(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}
