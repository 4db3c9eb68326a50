//! From examples to tokens and masks: as mlx_lm's own datasets have it, and what cannot be learnt from is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use inference_core::{
    CancellationToken, Error, Message, ModelInfo,
    train::{Example, ExampleKind, LossOn, TokenExample, TrainOptions, TrainingData, Truncation},
};
use inference_text::{TextPipeline, TokenData};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    line: Value,
    template: Option<String>,
    mask: bool,
    tokens: Vec<u32>,
    offset: usize,
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// The demo model's text side with another template.
fn with_template(source: &str) -> TextPipeline {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
        std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    TextPipeline::load(folder.path()).unwrap()
}

fn info() -> ModelInfo {
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (2048, 1024);
    info
}

fn encode(examples: Vec<Example>, options: &TrainOptions) -> Result<TokenData, Error> {
    TextPipeline::load(&demo()).unwrap().encode_training(
        TrainingData::new(examples, vec![]),
        options,
        &info(),
        &CancellationToken::new(),
    )
}

fn options() -> TrainOptions {
    TrainOptions::new("out")
}

#[test]
fn tokens_and_masks_are_those_of_mlx_lm() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/masks.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut masked = 0;
    for Case { line, template, mask, tokens, offset } in cases {
        let path = folder.path().join("line.jsonl");
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let text =
            template.map_or_else(|| TextPipeline::load(&demo()).unwrap(), |source| with_template(&source));
        let example = TrainingData::read(&path, None, 0).unwrap().train.remove(0);
        let learn = if mask { LossOn::Answer } else { LossOn::Everything };
        let encoded = text.encode_example(&example, learn, &CancellationToken::new()).unwrap();
        assert_eq!(encoded, TokenExample::from_answer(tokens, offset), "{line}");
        masked += usize::from(offset > 0);
    }
    assert!(masked > 15, "{masked} cases have a mask");
}

#[test]
fn what_is_learnt_of_a_conversation_is_its_last_answer() {
    let conversation = vec![
        Message::user("1+1?"),
        Message::assistant("1 + 1 = 2"),
        Message::user("2+2?"),
        Message::assistant("2 + 2 = 4"),
    ];
    let text = TextPipeline::load(&demo()).unwrap();
    let cancel = CancellationToken::new();
    let encoded = text.encode_example(&Example::chat(conversation), LossOn::Answer, &cancel).unwrap();
    let learnt: Vec<u32> = encoded
        .tokens
        .iter()
        .zip(&encoded.learnt)
        .filter(|(_, learnt)| **learnt)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(text.tokenizer().decode(&learnt, false), "2 + 2 = 4<|im_end|>\n");
}

#[test]
fn too_long_examples_are_cut_or_refused_and_never_silently_empty() {
    let long = || Example::completion("2+2?", "one two three ".repeat(40));
    let cut = encode(vec![long()], &options().max_length(32, Truncation::Truncate)).unwrap();
    assert_eq!((cut.truncated, cut.train[0].tokens.len(), cut.train[0].learnt.len()), (1, 32, 32));
    let error = encode(vec![long()], &options().max_length(32, Truncation::Refuse)).unwrap_err().to_string();
    assert!(
        error.starts_with("example 1: has ") && error.ends_with("tokens, expected at most 32"),
        "{error}"
    );
    let error = encode(vec![long()], &options().max_length(4, Truncation::Truncate)).unwrap_err().to_string();
    assert!(error.contains("answer begins after the 4 that are kept"), "{error}");
    let whole = encode(vec![Example::text("word ".repeat(2000))], &options()).unwrap();
    assert_eq!(
        (whole.truncated, whole.train[0].tokens.len()),
        (1, 1024),
        "the model's context is a limit too"
    );
}

#[test]
fn examples_that_cannot_be_learnt_from_are_named() {
    let refused = |example: Example, expected: &str| {
        let error = encode(vec![Example::text("good"), example], &options()).unwrap_err();
        assert!(matches!(error, Error::InvalidData { .. }), "{error:?}");
        let error = error.to_string();
        assert!(error.starts_with("example 2: ") && error.contains(expected), "{error}");
    };
    refused(Example::tokens(vec![1, 5000]), "token 5000 is outside the vocabulary of 2048");
    refused(Example::tokens(vec![1]), "nothing to learn");
    refused(Example::chat(vec![]), "no messages");
    refused(Example::chat(vec![Message::user("Hi")]), "of role User, expected the assistant's");
    refused(Example::new(ExampleKind::Tokens(TokenExample::default())), "nothing to learn");
}

#[test]
fn a_cancellation_ends_the_encoding() {
    let text = TextPipeline::load(&demo()).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let data = TrainingData::new(vec![Example::text("word"); 3], vec![]);
    let error = text.encode_training(data, &options(), &info(), &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}
