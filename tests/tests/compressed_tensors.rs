//! Checkpoints of compressed-tensors, which `xtask/python/compressed/make.py` writes by the format's own formulas, give what their dense
//! values give.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;

use futures::executor::block_on;
use inference::{
    ClassifyOptions, Prompt, load_model,
    manifest::ModelManifest,
    metal::{ConvertOptions, convert},
};

fn logits(folder: &Path) -> Vec<f32> {
    let prompt = |length: u32| Prompt::Tokens((0..length).map(|i| 3 + i * 7 % 120).collect());
    let prompts = [1, 9, 32].map(prompt).to_vec();
    let model = block_on(async { load_model(folder).backend("cpu").await })
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let classified = block_on(model.classify(prompts, ClassifyOptions::new().logits(true))).unwrap();
    classified.into_iter().flat_map(|one| one.logits.unwrap()).collect()
}

fn apart(one: &[f32], other: &[f32]) -> f32 {
    assert!(one.iter().all(|logit| logit.is_finite()));
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn packed_models_give_what_their_values_give() {
    let place = tempfile::tempdir().unwrap();
    tests::gguf_file::run_script("compressed", &[place.path()]);
    for (name, bits, tolerance) in [
        ("w4a16", Some(4), 2e-4),
        ("w4a16-asym", Some(4), 2e-4),
        ("w8a16", Some(8), 2e-4),
        ("w8a8", Some(8), 2e-4),
        // Both have the same numbers of bfloat16.
        ("fp8-tensor", None, 0.0),
        ("fp8-channel", None, 0.0),
        ("fp8-block", None, 0.0),
    ] {
        let [packed, dense] = ["", "-dense"].map(|end| place.path().join(format!("{name}{end}")));
        let manifest = ModelManifest::read(&packed).unwrap();
        assert_eq!(manifest.quantization().map(|quantization| quantization.bits), bits, "{name}");
        let [found, expected] = [&packed, &dense].map(|folder| logits(folder));
        let largest = expected.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        let worst = apart(&found, &expected);
        println!("{name}: max Δ {worst:.1e} of logits up to {largest:.1}");
        assert!(worst <= tolerance && largest > 0.5, "{name}: {worst} apart, of logits up to {largest}");
        // What is written in MLX's form is the same model.
        let mut options = ConvertOptions::default();
        options.keep = true;
        let kept = place.path().join(format!("{name}-kept"));
        convert(&manifest, &kept, &options, &mut |_| true).unwrap();
        assert!(apart(&logits(&kept), &found) <= tolerance, "{name}");
    }
}
