//! Checkpoints quantised from dense ones and made dense again.

use std::{fs, path::Path};

use inference_core::{Dtype, Error, ModelManifest, QuantMode, Quantization};
use serde_json::json;

use super::{
    fixtures::{Variant, device},
    golden::{TOLERANCE, distance, whole},
};
use crate::load::{ConvertOptions, convert};

fn quantized(bits: u32, group_size: u32, mode: &str) -> ConvertOptions {
    ConvertOptions {
        quantization: Some(Quantization::new(bits, group_size, mode.parse().unwrap())),
        ..ConvertOptions::default()
    }
}

fn run(folder: &Path, prompt: &[u32]) -> Vec<Vec<f32>> {
    let model = crate::load::load("cpu", &ModelManifest::read(folder).unwrap(), &mut |_| true);
    whole(&*model.unwrap_or_else(|error| panic!("{error}")), prompt)
}

#[test]
fn every_family_goes_there_and_back() {
    device();
    for variant in Variant::all().iter().filter(|variant| !variant.name.contains('+')) {
        let Variant { name, folder, golden, .. } = variant;
        let scratch = tempfile::tempdir().unwrap();
        let (packed, dense) = (scratch.path().join("packed"), scratch.path().join("dense"));
        let source = ModelManifest::read(folder.path()).unwrap();
        convert(&source, &packed, &quantized(4, 32, "affine"), &mut |_| true).unwrap();
        let manifest = ModelManifest::read(&packed).unwrap();
        assert!(manifest.weight_bytes() < source.weight_bytes() / 2, "{name}: {}", manifest.weight_bytes());
        convert(&manifest, &dense, &ConvertOptions::default(), &mut |_| true).unwrap();
        let back = ModelManifest::read(&dense).unwrap();
        let shapes = |manifest: &ModelManifest| -> Vec<_> {
            manifest.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
        };
        // Experts that transformers joined come back apart.
        let joined = source.tensors().keys().any(|name| name.ends_with(".experts.gate_up_proj"));
        assert_eq!(shapes(&back) == shapes(&source), !joined, "{name}");
        assert_eq!(back.parameters(), source.parameters(), "{name}");
        assert_eq!(back.config(), source.config(), "{name}");
        let (packed, dense) = (run(&packed, &golden.prompt), run(&dense, &golden.prompt));
        for (packed, dense) in packed.iter().zip(&dense) {
            let d = distance(packed, dense);
            assert!(d <= TOLERANCE, "{name}: quantised and dense again differ by {d}");
        }
    }
}

#[test]
fn packed_experts_stay_packed_or_become_dense() {
    device();
    for name in ["gpt_oss+mxfp4", "gpt_oss-v5+mxfp4"] {
        let variant = Variant::changed(name, |_, _| {});
        let scratch = tempfile::tempdir().unwrap();
        let (dense, packed) = (scratch.path().join("dense"), scratch.path().join("packed"));
        let source = ModelManifest::read(variant.folder.path()).unwrap();
        let expected = run(variant.folder.path(), &variant.golden.prompt);
        let same = |folder: &Path| {
            let found = run(folder, &variant.golden.prompt);
            let d = found.iter().zip(&expected).map(|(a, b)| distance(a, b)).fold(0.0, f32::max);
            assert!(d <= TOLERANCE, "{name}: {} differs by {d}", folder.display());
        };
        let wide = ConvertOptions { dtype: Some(Dtype::F32), ..ConvertOptions::default() };
        convert(&source, &dense, &wide, &mut |_| true).unwrap();
        same(&dense);
        // Of the rest nothing is quantised, so that what differs is the experts alone.
        let rules = vec![("*".to_owned(), None)];
        convert(&source, &packed, &ConvertOptions { rules, ..quantized(8, 32, "affine") }, &mut |_| true)
            .unwrap();
        same(&packed);
        let manifest = ModelManifest::read(&packed).unwrap();
        let expert = "model.layers.0.mlp.experts.gate_proj";
        assert_eq!(
            manifest.quantization_of(expert).unwrap(),
            Some(Quantization::new(4, 32, QuantMode::Mxfp4))
        );
        assert_eq!(manifest.tensors()[&format!("{expert}.scales")].dtype, Dtype::U8);
        assert_eq!(manifest.config()["quantization"]["lm_head"], json!(false));
        assert_eq!(manifest.parameters(), source.parameters());
        assert!(manifest.config().pointer("/quantization_config/quant_method").is_none());
    }
}

#[test]
fn experts_that_do_not_fit_their_scales_are_named() {
    device();
    let scales = "model.layers.1.mlp.experts.down_proj_scales";
    for change in [0, 1] {
        let variant = Variant::changed("gpt_oss+mxfp4", |_, rules| match change {
            0 => rules.retain(|rule| rule.0 != scales),
            _ => rules.iter_mut().filter(|rule| rule.0 == scales).for_each(|rule| rule.2[2] = 2),
        });
        let source = ModelManifest::read(variant.folder.path()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("model");
        let error = convert(&source, &target, &ConvertOptions::default(), &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("model.layers.1.mlp.experts.down_proj_blocks"), "{error}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

#[test]
fn rules_choose_for_single_matrices() {
    device();
    let variant = Variant::changed("llama", |_, _| {});
    fs::write(variant.folder.path().join("tokenizer.json"), "{}").unwrap();
    let source = ModelManifest::read(variant.folder.path()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("mixed");
    let options = ConvertOptions {
        rules: vec![
            ("model.layers.*.mlp.down_proj".to_owned(), Some(Quantization::new(8, 64, QuantMode::Affine))),
            ("lm_head".to_owned(), None),
            ("*.3.mlp.down_proj".to_owned(), Some(Quantization::new(4, 32, QuantMode::Mxfp4))),
        ],
        dtype: Some(Dtype::Bf16),
        ..quantized(3, 32, "affine")
    };
    convert(&source, &target, &options, &mut |_| true).unwrap();
    let manifest = ModelManifest::read(&target).unwrap();
    let settings = &manifest.config()["quantization"];
    assert_eq!(settings, &manifest.config()["quantization_config"]);
    assert_eq!(settings["bits"], json!(3));
    assert_eq!(settings["lm_head"], json!(false));
    assert_eq!(settings["model.layers.0.mlp.down_proj"]["bits"], json!(8));
    assert_eq!(settings["model.layers.3.mlp.down_proj"]["mode"], json!("mxfp4"));
    assert_eq!(manifest.config()["torch_dtype"], json!("bfloat16"));
    assert_eq!(manifest.tensors()["lm_head.weight"].dtype, Dtype::Bf16);
    assert_eq!(manifest.tensors()["model.layers.0.self_attn.q_proj.scales"].dtype, Dtype::Bf16);
    assert!(!manifest.tensors().contains_key("model.layers.3.mlp.down_proj.biases"));
    assert!(target.join("tokenizer.json").exists());
    run(&target, &variant.golden.prompt);
}

#[test]
fn there_is_never_half_a_folder() {
    device();
    let variant = Variant::changed("llama", |_, _| {});
    let source = ModelManifest::read(variant.folder.path()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("model");
    let mut tensors = 0;
    let cancelled = convert(&source, &target, &quantized(4, 32, "affine"), &mut |_| {
        tensors += 1;
        tensors < 5
    });
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    convert(&source, &target, &quantized(4, 32, "affine"), &mut |_| true).unwrap();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    let again = convert(&source, &target, &quantized(4, 32, "affine"), &mut |_| true);
    assert!(matches!(again, Err(Error::InvalidOption { option: "target", .. })), "{again:?}");
}

#[test]
fn what_cannot_be_converted_is_refused() {
    device();
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("model");
    let attempt = |name: &str, options: &ConvertOptions| {
        let variant = Variant::changed(name, |_, _| {});
        convert(&ModelManifest::read(variant.folder.path()).unwrap(), &target, options, &mut |_| true)
            .unwrap_err()
    };
    let error = attempt("llama", &quantized(7, 32, "affine"));
    assert!(matches!(error, Error::InvalidOption { option: "quantization", .. }), "{error:?}");
    let error = attempt("llama+q4", &quantized(8, 32, "affine"));
    assert!(error.to_string().contains("quantised already"), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}
