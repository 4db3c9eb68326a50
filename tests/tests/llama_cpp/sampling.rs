//! The server's samplers are the contract's.

use futures::{executor::block_on, future::join_all};
use inference::{GenerateOptions, Prompt, TemplateOptions, TextModel, TextModelExt as _, Xtc};
use inference_conformance::sampler;

use crate::load;

/// How far a sampler may be from its formula, in nats: the arithmetic is in single precision.
const ROUNDING: f64 = 1e-3;

/// The log-probabilities of all next tokens, by the model alone.
pub(crate) fn next(model: &dyn TextModel, text: &[u32]) -> Vec<f64> {
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
