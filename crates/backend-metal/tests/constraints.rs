//! What a caller puts between the logits and the choice: a processor of its own, and a limit on reasoning.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{path::PathBuf, sync::Arc};

use backend_metal as _;
use futures::{StreamExt as _, future::join};
use inference_core::{
    Completion, Error, GenerateOptions, Message, Prompt, TextModel, TextModelExt as _, load_model,
};

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

async fn model() -> Arc<dyn TextModel> {
    load_model(demo()).backend("cpu").await.unwrap()
}

/// The demo model with a template that has its answers begin within reasoning.
async fn thinking_model() -> Arc<dyn TextModel> {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let template = folder.path().join("chat_template.jinja");
    let source = std::fs::read_to_string(&template).unwrap();
    let source = source.replace("assistant\\n'", "assistant\\n<think>\\n' if true else '</think>'");
    assert!(source.contains("<think>"));
    std::fs::write(&template, source).unwrap();
    load_model(folder.path()).backend("cpu").await.unwrap()
}

fn question(n: usize) -> Prompt {
    Prompt::Chat(vec![Message::user(format!("What is {n}+{}?", n + 1))])
}

fn ids(completion: &Completion) -> Vec<u32> {
    completion.tokens.iter().map(|token| token.id).collect()
}

/// Bans the even ids, and each that was said.
fn odd_and_new(_prompt: &[u32], answer: &[u32], logits: &mut [f32]) {
    logits.iter_mut().step_by(2).for_each(|logit| *logit = f32::NEG_INFINITY);
    answer.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
}

#[tokio::test]
async fn a_processor_decides_and_its_neighbours_do_not_notice() {
    let model = model().await;
    let steered = GenerateOptions::new().max_tokens(24).ignore_eos(true).logits_processor(odd_and_new);
    let steered = steered.temperature(0.8).seed(3).log_probabilities(2);
    let plain = GenerateOptions::new().max_tokens(30).ignore_eos(true);
    let lone = model.complete(question(1), steered.clone()).await.unwrap();
    let lone_plain = model.complete(question(2), plain.clone()).await.unwrap();
    let (together, together_plain) =
        join(model.complete(question(1), steered), model.complete(question(2), plain)).await;
    assert_eq!(ids(&together.unwrap()), ids(&lone));
    assert_eq!(ids(&together_plain.unwrap()), ids(&lone_plain));
    let mut said = ids(&lone);
    assert!(said.iter().all(|id| id % 2 == 1), "{said:?}");
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), 24);
    // What is reported is of the edited logits.
    assert!(lone.tokens.iter().flat_map(|token| &token.top).all(|other| other.id % 2 == 1));
}

#[tokio::test]
async fn a_processor_that_fails_late_has_its_text_delivered() {
    let model = model().await;
    let options = GenerateOptions::new().max_tokens(20).ignore_eos(true);
    let expected = ids(&model.complete(question(4), options.clone()).await.unwrap());
    let fails = |_: &[u32], answer: &[u32], _: &mut [f32]| assert!(answer.len() < 6, "six are enough");
    let mut stream = model.generate(question(4), options.clone().logits_processor(fails)).await.unwrap();
    let neighbour = model.complete(question(5), options.clone());
    let read = async {
        let mut said = Vec::new();
        loop {
            match stream.next().await.unwrap() {
                Ok(token) => said.push(token.id),
                Err(error) => break (said, error),
            }
        }
    };
    let ((said, error), neighbour) = join(read, neighbour).await;
    assert_eq!(said, expected[..6]);
    assert!(
        matches!(&error, Error::InvalidOption { option: "logits_processor", reason, .. } if reason.contains("six are enough")),
        "{error}"
    );
    assert_eq!(neighbour.unwrap().tokens.len(), 20);
    assert_eq!((model.stats().failed, model.stats().active), (1, 0));
    // One that fails at the first token, in the prefill.
    let nothing =
        options.logits_processor(|_: &[u32], _: &[u32], logits: &mut [f32]| logits.fill(f32::NEG_INFINITY));
    assert!(matches!(model.complete(question(4), nothing).await, Err(Error::InvalidOption { .. })));
}

#[tokio::test]
async fn reasoning_ends_after_its_budget() {
    let model = thinking_model().await;
    let options = GenerateOptions::new().max_tokens(40).ignore_eos(true).log_probabilities(1);
    let free = model.complete(question(3), options.clone()).await.unwrap();
    assert_eq!((free.answer.text.as_str(), free.answer.thinking.is_empty()), ("", false));
    for budget in [0, 1, 2, 7] {
        let limited = options.clone().thinking_budget(budget);
        let answer = model.complete(question(3), limited.clone()).await.unwrap();
        assert_eq!(ids(&answer)[..budget], ids(&free)[..budget], "the reasoning is the model's own");
        let texts: Vec<&str> = answer.tokens.iter().map(|token| token.text.as_str()).collect();
        let (reasoning, rest) = answer.text.split_once("</think>").unwrap();
        assert_eq!(reasoning, texts[..budget].concat(), "budget {budget}");
        assert_eq!(answer.answer.text, rest.trim_start_matches('\n'));
        assert_eq!(answer.tokens.len(), 40);
        assert!(answer.tokens.iter().all(|token| token.log_probability.is_some()));
        // Beside others, and pipelined with them.
        let (beside, neighbour) =
            join(model.complete(question(3), limited), model.complete(question(3), options.clone())).await;
        assert_eq!((ids(&beside.unwrap()), ids(&neighbour.unwrap())), (ids(&answer), ids(&free)));
    }
    let ample = model.complete(question(3), options.thinking_budget(1000)).await.unwrap();
    assert_eq!(ids(&ample), ids(&free));
}
