//! Embeddings and reranking of every family against what sentence-transformers and transformers make of the same folders.
//!
//! `xtask/python/golden/embeddings.py` makes the fixtures.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use backend_metal::{ConvertOptions, DisableCpuKernels, convert};
use futures::executor::block_on;
use inference_core::{
    ClassifyOptions, EmbedOptions, Embedding, Error, Feature, GenerateOptions, LoadOptions, ModelManifest,
    Pooling, Prompt, QuantMode, Quantization, RerankOptions, TemplateOptions, TextModel, load_model,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::checkpoint::Rule;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
    prefix: Option<String>,
    #[serde(default)]
    prefixed: Vec<Vec<f32>>,
    query: String,
    documents: Vec<String>,
    logits: Option<Vec<f32>>,
}

const VARIANTS: [&str; 9] = [
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "mpnet",
    "modernbert",
    "nomic_bert",
    "qwen3",
    "gemma3_text",
];

/// The folder of a variant with its weights, its config changed, and what the references make of it.
fn folder(name: &str, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> (TempDir, Golden) {
    (support::folder(name, change), support::read(&support::root().join(name).join("embedding.json")))
}

fn load(folder: &Path, options: LoadOptions) -> Arc<dyn TextModel> {
    block_on(async { load_model(folder).backend("cpu").options(options).await }).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Fails unless the vectors are the reference's: their direction, and their length.
fn check(name: &str, ours: &[Embedding], reference: &[Vec<f32>]) {
    assert_eq!(ours.len(), reference.len(), "{name}");
    for (at, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        let ours = ours.to_floats();
        let near = cosine(&ours, reference);
        assert!(near >= 0.999_999, "{name}: text {at} has a cosine of {near}");
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let ratio = length(&ours) / length(reference);
        assert!((ratio - 1.0).abs() < 1e-3, "{name}: text {at} is {ratio} times as long");
    }
}

fn prompts(texts: &[String]) -> Vec<Prompt> {
    texts.iter().map(|text| Prompt::from(text.as_str())).collect()
}

fn compare(name: &str, options: LoadOptions) {
    let (folder, golden) = folder(name, |_, _| {});
    let model = load(folder.path(), options);
    for (text, ids) in golden.texts.iter().zip(&golden.ids) {
        let ours = block_on(model.tokenize(text.as_str().into(), TemplateOptions::new()));
        // A text without tokens is no prompt.
        assert_eq!(&ours.unwrap_or_default(), ids, "{name}: {text:?}");
    }
    let all = EmbedOptions::new().truncate(true);
    let (texts, vectors) = (prompts(&golden.texts), &golden.vectors);
    check(name, &block_on(model.embed(texts.clone(), all.clone())).unwrap(), vectors);
    // In another order, and one alone.
    let (turned, reference): (Vec<_>, Vec<_>) = texts.iter().cloned().zip(vectors.clone()).rev().unzip();
    check(name, &block_on(model.embed(turned, all.clone())).unwrap(), &reference);
    check(name, &block_on(model.embed(texts[2..3].to_vec(), all.clone())).unwrap(), &vectors[2..3]);
    if let Some(prefix) = &golden.prefix {
        let prefixed = block_on(model.embed(texts[..3].to_vec(), all.clone().prefix_name(prefix))).unwrap();
        check(name, &prefixed, &golden.prefixed);
    }
    if let Some(logits) = &golden.logits {
        let options = RerankOptions::new().raw(true).truncate(true);
        let ours = block_on(model.rerank(golden.query.clone(), golden.documents.clone(), options)).unwrap();
        for (at, (ours, reference)) in ours.iter().zip(logits).enumerate() {
            let off = (ours.score - reference).abs();
            assert!(off < 2e-4, "{name}: document {at} has the logit {}, expected {reference}", ours.score);
        }
        assert_eq!(ours.len(), logits.len());
    }
}

#[test]
fn vectors_and_scores_are_those_of_the_references() {
    for name in VARIANTS {
        compare(name, LoadOptions::new());
    }
}

/// What GPUs execute.
#[test]
fn mlx_alone_gives_the_same() {
    for name in VARIANTS {
        compare(name, LoadOptions::new().extension(DisableCpuKernels));
    }
}

/// A copy has the folders of the steps behind the model, and in 8 bits nearly the same vectors.
#[test]
fn a_quantised_copy_makes_nearly_the_same_vectors() {
    for name in ["bert", "mpnet", "gemma3_text"] {
        let (folder, golden) = folder(name, |_, _| {});
        let target = tempfile::tempdir().unwrap();
        let target = target.path().join("copy");
        let mut options = ConvertOptions::default();
        options.quantization = Some(Quantization::new(8, 32, QuantMode::Affine));
        let source = ModelManifest::read(folder.path()).unwrap();
        convert(&source, &target, &options, &mut |_| true).unwrap();
        let model = load(&target, LoadOptions::new());
        assert!(model.info().quantization.is_some());
        let ours = block_on(model.embed(prompts(&golden.texts), EmbedOptions::new().truncate(true))).unwrap();
        for (at, (ours, reference)) in ours.iter().zip(&golden.vectors).enumerate() {
            let near = cosine(&ours.to_floats(), reference);
            assert!(near > 0.99 && near < 0.999_999_9, "{name}: text {at} has a cosine of {near}");
        }
    }
}

#[test]
fn an_encoder_generates_nothing_and_says_so() {
    let (folder, _) = folder("bert", |_, _| {});
    let model = load(folder.path(), LoadOptions::new());
    let refused = |result: Result<(), Error>, expected: Feature| match result {
        Err(Error::Unsupported { feature, .. }) => assert_eq!(feature, expected),
        other => panic!("{expected}: {other:?}"),
    };
    block_on(async {
        refused(model.generate("a".into(), GenerateOptions::new()).await.map(drop), Feature::Generate);
        let classified = model.classify(vec!["a".into()], ClassifyOptions::new()).await;
        refused(classified.map(drop), Feature::Classify);
        refused(model.session().await.map(drop), Feature::Session);
        assert!(model.trainable().is_none());
    });
    let (folder, golden) = self::folder("nomic_bert", |_, _| {});
    let model = load(folder.path(), LoadOptions::new());
    let scored = block_on(model.rerank(golden.query, golden.documents, RerankOptions::new()));
    refused(scored.map(drop), Feature::Rerank);
}

/// Embedding and generation share a decoder.
#[test]
fn a_decoder_embeds_beside_generation() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let model = load(Path::new(demo), LoadOptions::new());
    let texts: Vec<Prompt> = (1..30).map(|n| format!("{} plus one is", n * 37).as_str().into()).collect();
    block_on(async {
        let alone = model.embed(texts.clone(), EmbedOptions::new()).await.unwrap();
        let options = GenerateOptions::new().max_tokens(40).ignore_eos(true);
        let mut stream = model.generate("Once upon a time".into(), options.clone()).await.unwrap();
        let (beside, finish) = futures::join!(model.embed(texts, EmbedOptions::new()), stream.finish());
        for (beside, alone) in beside.unwrap().iter().zip(&alone) {
            assert!(cosine(&beside.to_floats(), &alone.to_floats()) > 0.999);
        }
        assert!(finish.is_ok());
    });
}

#[test]
fn texts_of_all_lengths_are_what_they_are_alone() {
    let (folder, _) = folder("modernbert", |_, _| {});
    let model = load(folder.path(), LoadOptions::new());
    // More tokens than one pass takes, in an order that is not that of their lengths.
    let texts: Vec<Prompt> = (0..200)
        .map(|n| Prompt::Tokens((0..1 + n * 7 % 47).map(|at| 3 + (n * 31 + at) % 250).collect()))
        .collect();
    let together = block_on(model.embed(texts.clone(), EmbedOptions::new())).unwrap();
    for at in [0, 3, 57, 199] {
        let alone = block_on(model.embed(vec![texts[at].clone()], EmbedOptions::new())).unwrap();
        assert!(cosine(&alone[0].to_floats(), &together[at].to_floats()) > 0.999_999, "{at}");
        assert_eq!(alone[0].prompt_tokens, together[at].prompt_tokens);
    }
}

#[test]
fn cancelling_ends_a_long_call_between_two_batches() {
    let (folder, _) = folder("bert", |_, _| {});
    let model = load(folder.path(), LoadOptions::new());
    let texts: Vec<Prompt> = (0..2000).map(|n| format!("text number {n} of many").as_str().into()).collect();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (options, sink) = (EmbedOptions::new(), seen.clone());
    let token = options.cancel.clone();
    let options = options.on_progress(move |progress| {
        sink.lock().unwrap().push(progress.done);
        token.cancel();
    });
    let result = block_on(model.embed(texts, options));
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 1 && seen[0] < 2000, "{seen:?}");
}

#[test]
fn poolings_are_what_they_say() {
    let (folder, golden) = folder("bert", |_, _| {});
    let model = load(folder.path(), LoadOptions::new());
    let text = prompts(&golden.texts[..1]);
    let pooled = |pooling: Pooling| {
        let options = EmbedOptions::new().normalize(false).pooling(pooling);
        block_on(model.embed(text.clone(), options)).unwrap()[0].to_floats()
    };
    let (mean, scaled) = (pooled(Pooling::Mean), pooled(Pooling::MeanSqrtLen));
    let factor = (golden.ids[0].len() as f32).sqrt();
    for (mean, scaled) in mean.iter().zip(&scaled) {
        assert!((mean * factor - scaled).abs() < 1e-4, "{mean} {scaled}");
    }
    let largest = pooled(Pooling::Max);
    let others = [mean, pooled(Pooling::Cls), pooled(Pooling::Last), pooled(Pooling::WeightedMean)];
    for other in others {
        assert!(other.iter().zip(&largest).all(|(other, largest)| *other <= largest + 1e-5));
        assert!(cosine(&other, &largest) < 0.9999);
    }
}

#[test]
fn what_a_folder_gets_wrong_is_named() {
    let refused = |name: &str, change: &dyn Fn(&mut Value, &mut Vec<Rule>), parts: &[&str]| {
        let (folder, _) = folder(name, |config, rules| change(config, rules));
        let loaded = block_on(async { load_model(folder.path()).backend("cpu").await });
        let error = loaded.map(drop).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    };
    refused(
        "bert",
        &|config, _| config["position_embedding_type"] = json!("relative_key"),
        &["position_embedding_type"],
    );
    refused("bert", &|config, _| config["is_decoder"] = json!(true), &["is_decoder"]);
    refused(
        "bert",
        &|config, _| config["max_position_embeddings"] = json!(65),
        &["position_embeddings.weight", "[65, 32]"],
    );
    refused("roberta", &|config, _| config["pad_token_id"] = json!(70), &["max_position_embeddings"]);
    refused(
        "mpnet",
        &|config, _| config["relative_attention_num_buckets"] = json!(64),
        &["relative_attention_num_buckets"],
    );
    refused("modernbert", &|config, _| config["mlp_bias"] = json!(true), &["mlp_bias"]);
    refused(
        "modernbert",
        &|config, _| config["global_attn_every_n_layers"] = json!(0),
        &["global_attn_every_n_layers"],
    );
    refused("nomic_bert", &|config, _| config["causal"] = json!(true), &["causal"]);
    refused(
        "bert",
        &|_, rules| rules.retain(|rule| !rule.0.ends_with("layer.1.output.LayerNorm.bias")),
        &["is missing"],
    );
    let (folder, _) = folder("gemma3_text", |_, _| {});
    let config = folder.path().join("2_Dense/config.json");
    fs::write(
        &config,
        json!({"in_features": 48, "out_features": 48, "bias": false, "activation_function": null})
            .to_string(),
    )
    .unwrap();
    let error = block_on(async { load_model(folder.path()).backend("cpu").await }).map(drop).unwrap_err();
    assert!(error.to_string().contains("linear.weight"), "{error}");
}

#[test]
fn a_longer_context_than_there_are_positions_is_refused() {
    let (folder, _) = folder("roberta", |_, _| {});
    let options = LoadOptions::new().context_length(65);
    let error = block_on(async { load_model(folder.path()).backend("cpu").options(options).await })
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "context_length", .. }), "{error}");
    let model = load(folder.path(), LoadOptions::new());
    assert_eq!(model.info().context_length, 64);
    let long = Prompt::Tokens(vec![5; 65]);
    let error = block_on(model.embed(vec![long], EmbedOptions::new())).unwrap_err();
    assert!(matches!(error, Error::ContextExceeded { tokens: 65, limit: 48, .. }), "{error}");
}
