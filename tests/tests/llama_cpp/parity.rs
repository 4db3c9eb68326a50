//! What two engines say of one model: SmolLM2-135M-Instruct as GGUF, Q4_1 with a Q8_0 embedding.
//!
//! Ours computes with the file's values as they are. llama.cpp rounds activations to 8 bits before it multiplies them with quantised
//! matrices, which moves log-probabilities by up to half a nat. So it is asked twice: with the same values in single precision, of
//! which it rounds nothing, and with the file; what lies between both is its rounding.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use futures::executor::block_on;
use inference::{
    Completion, GenerateOptions, Message, Prompt, TemplateOptions, TextModel, TextModelExt as _,
    llamacpp::LlamaCppOptions,
};
use tests::gguf_file::{GgufFile, Tensor};

use crate::{load, load_file, smollm2};

/// How far log-probabilities may be apart in nats where nothing is rounded: sums in another order, over 30 layers.
const EXACT: f32 = 2e-2;

/// Tokens of each answer.
const TOKENS: usize = 24;

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

/// The model with its values in single precision, which is made once.
pub(crate) fn unquantized() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("SmolLM2-135M-Instruct.F32.gguf");
        if !path.exists() {
            let mut file = GgufFile::read(&smollm2()).unwrap();
            for tensor in &mut file.tensors {
                *tensor = Tensor::floats(&tensor.name, &tensor.extents, &tensor.elements());
            }
            let part = path.with_extension(format!("{}.part", std::process::id()));
            file.write(&part).unwrap();
            fs::rename(part, &path).unwrap();
        }
        path
    };
    FILE.get_or_init(make).clone()
}

/// llama.cpp with nothing rounded.
fn exact() -> std::sync::Arc<dyn TextModel> {
    load_file("llama_cpp", &unquantized(), LlamaCppOptions::new().cache_types("f32", "f32")).unwrap()
}

fn greedy() -> GenerateOptions {
    GenerateOptions::new().max_tokens(TOKENS).temperature(0.0)
}

fn ids(answer: &Completion) -> Vec<u32> {
    answer.tokens.iter().map(|token| token.id).collect()
}

fn margin(answer: &Completion, at: usize) -> f32 {
    let top = &answer.tokens[at].top;
    top[0].log_probability - top[1].log_probability
}

/// Greedy answers are the same as far as ours leads its second choice by more than `tie`; the tokens that were compared.
pub(crate) fn compare(ours: &Completion, theirs: &Completion, tie: f32) -> usize {
    for (at, (our, their)) in ours.tokens.iter().zip(&theirs.tokens).enumerate() {
        if our.id != their.id {
            let margin = margin(ours, at);
            assert!(
                margin < tie,
                "token {at}: {} with a margin of {margin}, {} by llama.cpp",
                our.id,
                their.id
            );
            return at;
        }
        assert_eq!(our.text, their.text, "token {at}");
    }
    assert_eq!(ours.text, theirs.text);
    assert_eq!(ours.finish.reason, theirs.finish.reason);
    ours.tokens.len()
}

/// Log-probabilities of the likeliest tokens at each place of an answer.
fn along(model: &dyn TextModel, prompt: &[u32], answer: &[u32]) -> Vec<HashMap<u32, f32>> {
    let options =
        GenerateOptions::new().max_tokens(1).temperature(0.0).ignore_eos(true).log_probabilities(16);
    (0..answer.len())
        .map(|at| {
            let text = [prompt, &answer[..at]].concat();
            let next = block_on(model.complete(text, options.clone())).unwrap();
            next.tokens[0].top.iter().map(|other| (other.id, other.log_probability)).collect()
        })
        .collect()
}

/// How far two engines are apart on the two likeliest tokens of each place.
fn apart(a: &[HashMap<u32, f32>], b: &[HashMap<u32, f32>]) -> f32 {
    let at_place = |(a, b): (&HashMap<u32, f32>, &HashMap<u32, f32>)| {
        let mut likely: Vec<_> = a.iter().collect();
        likely.sort_by(|x, y| y.1.total_cmp(x.1));
        let known = likely.into_iter().take(2).filter_map(|(id, p)| Some((p - b.get(id)?).abs()));
        known.fold(0.0_f32, f32::max)
    };
    a.iter().zip(b).map(at_place).fold(0.0, f32::max)
}

#[test]
fn texts_and_log_probabilities_are_equal_but_for_the_servers_rounding() {
    let (ours, exact, rounded) = (load("cpu"), exact(), load("llama_cpp"));
    let (mut compared, mut rounding) = (0, 0.0_f32);
    for prompt in prompts() {
        let tokenize = |model: &dyn TextModel| {
            block_on(model.tokenize(prompt.clone(), TemplateOptions::default())).unwrap()
        };
        let prompt_ids = tokenize(&*ours);
        assert_eq!(prompt_ids, tokenize(&*rounded));
        let ask = |model: &dyn TextModel, options| block_on(model.complete(prompt.clone(), options)).unwrap();
        let our = ask(&*ours, greedy().log_probabilities(2));
        // With the same values, texts are equal up to ties.
        assert!(compare(&our, &ask(&*exact, greedy()), EXACT) >= 1);
        let answer = ids(&our);
        let [by_ours, by_exact, by_rounded] =
            [&ours, &exact, &rounded].map(|model| along(&**model, &prompt_ids, &answer));
        let off = apart(&by_ours, &by_exact);
        let own = apart(&by_exact, &by_rounded);
        println!("ours and llama.cpp in single precision {off}, llama.cpp's own rounding {own}");
        assert!(off < EXACT, "log-probabilities are {off} apart, with the same values");
        let between = apart(&by_ours, &by_rounded);
        assert!(between <= own + EXACT, "{between} apart, of which llama.cpp's rounding is {own}");
        rounding = rounding.max(own);
        // A margin may shrink by as much on either side.
        let their = ask(&*rounded, greedy().log_probabilities(2));
        compared += compare(&our, &their, 2.0 * own + EXACT);
        // Without log-probabilities, tokens inside characters are told from their bytes.
        assert_eq!(ids(&ask(&*rounded, greedy())), ids(&their));
    }
    println!("llama.cpp's rounding moves log-probabilities by {rounding}; {compared} tokens were equal");
    assert!(compared >= 40, "ties ended the comparison after {compared} tokens");
}

#[test]
fn a_repetition_penalty_and_a_minimum_give_what_ours_gives() {
    let (ours, theirs) = (load("cpu"), exact());
    let question = Prompt::Chat(vec![Message::user("What is the capital of France?")]);
    for (prompt, options) in [
        ("The cat sat on the mat and the cat".into(), greedy().ignore_eos(true).repetition_penalty(1.3)),
        ("1, 2, 3, 1, 2, 3,".into(), greedy().ignore_eos(true).repetition_penalty(0.8)),
        (question.clone(), greedy().min_tokens(12)),
    ] {
        let our = block_on(ours.complete(prompt.clone(), options.clone().log_probabilities(2))).unwrap();
        let their = block_on(theirs.complete(prompt, options)).unwrap();
        compare(&our, &their, EXACT);
    }
    let least = block_on(theirs.complete(question, greedy().min_tokens(12))).unwrap();
    assert!(least.tokens.len() >= 12, "{} tokens", least.tokens.len());
}
