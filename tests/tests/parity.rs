//! Two engines, one contract: `cpu` and Python's `mlx_lm` say the same of the demo model.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use futures::{executor::block_on, future::join_all};
use inference::{
    ClassifyOptions, Completion, GenerateOptions, LoadOptions, Message, Prompt, TextModel, TextModelExt as _,
    load_model,
};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo");

/// Logits of two engines in f32 differ by rounding alone.
const ROUNDING: f32 = 1e-3;

fn questions() -> Vec<Prompt> {
    let questions = [
        "What is 2+2?",
        "Hello!",
        "Who are you?",
        "capital of france",
        "What is 17 times 3?",
        "Classify: I have a sore throat.",
        "Who wrote Hamlet?",
    ];
    let chats = questions.into_iter().map(|question| Prompt::Chat(vec![Message::user(question)]));
    chats.chain([Prompt::from("Once upon a time"), Prompt::Tokens(vec![5, 6, 7])]).collect()
}

async fn both() -> [std::sync::Arc<dyn TextModel>; 2] {
    let load = |id| load_model(DEMO).backend(id).options(LoadOptions::new().context_length(512));
    [load("cpu").await.unwrap(), load("mlx_lm").await.unwrap()]
}

fn assert_same(a: &Completion, b: &Completion, what: &str) {
    for (at, (a, b)) in a.tokens.iter().zip(&b.tokens).enumerate() {
        let margin = a.top[0].log_probability - a.top[1].log_probability;
        if a.id != b.id && margin < ROUNDING {
            return; // a tie, after which the texts go different ways
        }
        assert_eq!((a.id, &a.text), (b.id, &b.text), "{what}: token {at}, margin {margin}");
        let apart = (a.log_probability.unwrap() - b.log_probability.unwrap()).abs();
        assert!(apart < ROUNDING, "{what}: token {at}, log-probabilities {apart} apart");
    }
    assert_eq!((&a.text, &a.finish.reason), (&b.text, &b.finish.reason), "{what}");
}

#[test]
fn greedy_texts_and_log_probabilities_agree() {
    block_on(async {
        let options = GenerateOptions::new().max_tokens(24).log_probabilities(2);
        let texts = both().await.map(|model| {
            let options = options.clone();
            async move { model.batch_generate(questions(), options).await }
        });
        let [cpu, mlx_lm]: [Vec<_>; 2] = join_all(texts).await.try_into().unwrap();
        for ((a, b), question) in cpu.into_iter().zip(mlx_lm).zip(questions()) {
            assert_same(&a.unwrap(), &b.unwrap(), &format!("{question:?}"));
        }
    });
}

#[test]
fn a_seed_draws_the_same_text_on_both() {
    block_on(async {
        let [cpu, mlx_lm] = both().await;
        for seed in 0..4 {
            let options = GenerateOptions::new()
                .max_tokens(16)
                .temperature(0.8)
                .top_p(0.95)
                .seed(seed)
                .log_probabilities(2);
            let prompt = || Prompt::Chat(vec![Message::user("Tell me something.")]);
            let a = cpu.complete(prompt(), options.clone()).await.unwrap();
            let b = mlx_lm.complete(prompt(), options).await.unwrap();
            assert_eq!(a.text, b.text, "seed {seed}");
        }
    });
}

#[test]
fn classifications_agree() {
    block_on(async {
        let labels = ["health", "sport", "weather", "music"];
        let options = || ClassifyOptions::new().labels(labels).logits(true);
        let [cpu, mlx_lm] = both().await;
        let a = cpu.classify(questions(), options()).await.unwrap();
        let b = mlx_lm.classify(questions(), options()).await.unwrap();
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((a.token, &a.text, a.prompt_tokens), (b.token, &b.text, b.prompt_tokens));
            assert_eq!(a.best().map(|label| &label.label), b.best().map(|label| &label.label));
            let logits = a.logits.as_ref().unwrap().iter().zip(b.logits.as_ref().unwrap());
            assert!(logits.into_iter().all(|(a, b)| (a - b).abs() < ROUNDING));
        }
    });
}
