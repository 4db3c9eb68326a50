//! How the next token is chosen: exactly where that is determined, in distribution elsewhere, against
//! [`crate::sampler`].

use std::collections::BTreeSet;

use futures::future::join_all;
use inference_core::{
    Error, Feature, FinishReason, GenerateOptions, ModelManifest, Prompt, StopCause, TextModel,
    TextModelExt as _, Xtc,
};

use super::{alone, ended, errors::Copy, ids, logits, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    sampler,
};

clauses!("sampling":
    temperature_zero_is_greedy [Generate],
    the_models_own_values_apply_where_none_is_set [Generate Sampling Seed],
    a_seed_reproduces [Generate Sampling Seed],
    a_seed_reproduces_beside_others [Generate Sampling Seed],
    seeds_differ [Generate Sampling Seed],
    without_a_seed_draws_differ [Generate Sampling],
    top_k_of_one_is_greedy [Generate Sampling TopK],
    a_bias_bans_and_forces [Generate LogitBias],
    a_presence_penalty_forbids_repetition [Generate PresencePenalty],
    a_frequency_penalty_forbids_repetition [Generate FrequencyPenalty],
    the_logit_bias_follows_its_formula [Generate Classify Logits LogProbabilities LogitBias],
    the_repetition_penalty_follows_its_formula [Generate Classify Logits LogProbabilities RepetitionPenalty],
    the_presence_penalty_follows_its_formula [Generate Classify Logits LogProbabilities PresencePenalty],
    the_frequency_penalty_follows_its_formula [Generate Classify Logits LogProbabilities FrequencyPenalty],
    penalties_look_back_over_their_window [Generate Classify Logits LogProbabilities FrequencyPenalty],
    draws_follow_the_temperature [Generate Classify Logits Sampling],
    draws_follow_top_p [Generate Classify Logits Sampling TopP],
    draws_follow_min_p [Generate Classify Logits Sampling MinP],
    draws_follow_top_k [Generate Classify Logits Sampling TopK],
    draws_follow_xtc [Generate Classify Logits Sampling Xtc],
);

/// Draws that are less likely than this where the promise is kept count as a breach.
const SIGNIFICANCE: f64 = 1e-6;

/// An unset temperature and a temperature of 0 take the likeliest token.
pub async fn temperature_zero_is_greedy(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let mut options = subject.greedy(12)?;
        let zero = ids(&alone(&*model, &prompt, &options).await?);
        options.sampling.temperature = None;
        let unset = ids(&alone(&*model, &prompt, &options).await?);
        ensure!(zero == unset, "at temperature 0 {zero:?}, unset {unset:?}");
    }
    Ok(())
}

/// Sampling values of generation_config.json apply to a request that sets none, and to no other.
pub async fn the_models_own_values_apply_where_none_is_set(subject: &Subject) -> ClauseResult {
    const NAME: &str = "generation_config.json";
    if ModelManifest::read(subject.folder())?.is_gguf() {
        return Err(Failure::inconclusive(format!("a GGUF file has no {NAME}")));
    }
    let folder = Copy::of(subject, &[NAME])?;
    folder.write(NAME, br#"{"do_sample": true, "temperature": 4.0}"#)?;
    let model = subject.load_folder(folder.path(), subject.base_load_options()).await?;
    let mut unset = subject.greedy(16)?.seed(5);
    (unset.sampling.temperature, unset.generation_config) = (None, None);
    let (prompt, greedy) = (&subject.prompt, subject.greedy(16)?);
    let own = ids(&alone(&*model, prompt, &unset).await?);
    let asked = ids(&alone(&*model, prompt, &greedy.clone().temperature(4.0).seed(5)).await?);
    ensure!(own == asked, "{NAME} has temperature 4 and gave {own:?}, asked for 4 it is {asked:?}");
    let zero = ids(&alone(&*model, prompt, &unset.clone().temperature(0.0)).await?);
    let likeliest = ids(&alone(&*subject.model().await?, prompt, &greedy).await?);
    ensure!(zero == likeliest, "at temperature 0 {zero:?}, without {NAME} {likeliest:?}");
    let off = ids(&alone(&*model, prompt, &unset.generation_config(false)).await?);
    ensure!(off == likeliest, "with {NAME} left out {off:?}, without it {likeliest:?}");
    folder.write(NAME, br#"{"do_sample": true, "temperature": "hot"}"#)?;
    match subject.load_folder(folder.path(), subject.base_load_options()).await {
        Err(error @ Error::InvalidModel { .. }) => {
            let said = error.to_string();
            ensure!(said.contains(NAME) && said.contains("temperature"), "the error names neither: {said}");
            Ok(())
        }
        result => Err(Failure::broken(format!("a temperature in words ended as {}", ended(&result)))),
    }
}

/// The same seed gives the same ids.
pub async fn a_seed_reproduces(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for seed in [0, 1, u64::MAX] {
        let options = subject.greedy(16)?.temperature(1.5).seed(seed);
        let one = ids(&alone(&*model, &subject.prompt, &options).await?);
        let two = ids(&alone(&*model, &subject.prompt, &options).await?);
        ensure!(one == two, "seed {seed} gave {one:?}, then {two:?}");
    }
    Ok(())
}

/// A seed's ids are the same whatever runs beside it.
pub async fn a_seed_reproduces_beside_others(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = |seed| Ok::<_, Failure>(subject.greedy(16)?.temperature(1.5).seed(seed));
    let prompts = some_prompts(subject, &*model);
    let mut expected = Vec::new();
    for (seed, prompt) in (0..).zip(&prompts) {
        expected.push(ids(&alone(&*model, prompt, &options(seed)?).await?));
    }
    let mut requests = Vec::new();
    for (seed, prompt) in (0..).zip(&prompts) {
        requests.push(model.complete(prompt.clone(), options(seed)?));
    }
    for (found, expected) in join_all(requests).await.into_iter().zip(expected) {
        let found = ids(&found?);
        ensure!(found == expected, "beside others {found:?}, alone {expected:?}");
    }
    Ok(())
}

/// Different seeds give different texts. Eight alike, at a temperature that makes most tokens likely, are no chance.
pub async fn seeds_differ(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut texts = BTreeSet::new();
    for seed in 0..8 {
        let options = subject.greedy(24)?.temperature(4.0).seed(seed);
        texts.insert(ids(&alone(&*model, &subject.prompt, &options).await?));
    }
    ensure!(texts.len() > 1, "eight seeds gave the same text: {texts:?}");
    Ok(())
}

/// Without a seed each request is another draw.
pub async fn without_a_seed_draws_differ(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut texts = BTreeSet::new();
    for _ in 0..8 {
        let options = subject.greedy(24)?.temperature(4.0);
        texts.insert(ids(&alone(&*model, &subject.prompt, &options).await?));
    }
    ensure!(texts.len() > 1, "eight requests drew the same text: {texts:?}");
    Ok(())
}

/// A draw from the one likeliest token is that token, at any temperature.
pub async fn top_k_of_one_is_greedy(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let greedy = ids(&alone(&*model, &prompt, &subject.greedy(12)?).await?);
        let options = subject.greedy(12)?.temperature(3.0).top_k(1);
        let drawn = ids(&alone(&*model, &prompt, &options).await?);
        ensure!(drawn == greedy, "drawn from one {drawn:?}, greedy {greedy:?}");
    }
    Ok(())
}

/// A bias of −∞ bans a token; a large one makes it the only choice.
pub async fn a_bias_bans_and_forces(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let usual = ids(&alone(&*model, &subject.prompt, &subject.greedy(8)?).await?);
    let bans = usual.iter().map(|id| (*id, f32::NEG_INFINITY));
    let banned = ids(&alone(&*model, &subject.prompt, &subject.greedy(8)?.logit_bias(bans)).await?);
    ensure!(!banned.iter().any(|id| usual.contains(id)), "{usual:?} are banned, and it said {banned:?}");
    let wanted = some_ids(&*model, 1, 9)[0];
    let options = subject.greedy(4)?.logit_bias([(wanted, 1e4)]);
    let forced = ids(&alone(&*model, &subject.prompt, &options).await?);
    ensure!(forced == [wanted; 4], "{wanted} is forced, and it said {forced:?}");
    Ok(())
}

/// A huge presence penalty lets no token of the window come again.
pub async fn a_presence_penalty_forbids_repetition(subject: &Subject) -> ClauseResult {
    nothing_repeats(subject, GenerateOptions::new().presence_penalty(1e4)).await
}

/// A huge frequency penalty lets no token of the window come again.
pub async fn a_frequency_penalty_forbids_repetition(subject: &Subject) -> ClauseResult {
    nothing_repeats(subject, GenerateOptions::new().frequency_penalty(1e4)).await
}

async fn nothing_repeats(subject: &Subject, penalty: GenerateOptions) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = repeating_prompt(subject, &*model).await?;
    let options = with(subject.greedy(6)?, penalty);
    let mut seen = prompt.clone();
    for id in ids(&alone(&*model, &prompt.into(), &options).await?) {
        ensure!(!seen.contains(&id), "{id} came again after {seen:?}");
        seen.push(id);
    }
    Ok(())
}

/// Biases are added to the logits, as the log-probabilities show.
pub async fn the_logit_bias_follows_its_formula(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let some = some_ids(&*model, 3, 4);
    let biases = [(some[0], 3.0), (some[1], 6.5), (some[2], f32::NEG_INFINITY)];
    follows(subject, GenerateOptions::new().logit_bias(biases)).await
}

/// Logits of seen tokens are divided by the penalty where they are positive, multiplied where they are negative; once.
pub async fn the_repetition_penalty_follows_its_formula(subject: &Subject) -> ClauseResult {
    follows(subject, GenerateOptions::new().repetition_penalty(1.6)).await?;
    follows(subject, GenerateOptions::new().repetition_penalty(0.7)).await
}

/// The penalty is subtracted once from the logit of each seen token.
pub async fn the_presence_penalty_follows_its_formula(subject: &Subject) -> ClauseResult {
    follows(subject, GenerateOptions::new().presence_penalty(1.5)).await
}

/// The penalty is subtracted for each time that a token was seen.
pub async fn the_frequency_penalty_follows_its_formula(subject: &Subject) -> ClauseResult {
    follows(subject, GenerateOptions::new().frequency_penalty(0.8)).await
}

/// Penalties see the last tokens of prompt and answer together, as many as the window is long, and no others.
pub async fn penalties_look_back_over_their_window(subject: &Subject) -> ClauseResult {
    for window in [0, 1, 5] {
        follows(subject, GenerateOptions::new().frequency_penalty(2.0).penalty_window(window)).await?;
    }
    Ok(())
}

/// A draw is a draw from the softmax of the log-probabilities divided by the temperature.
pub async fn draws_follow_the_temperature(subject: &Subject) -> ClauseResult {
    draws_follow(subject, |_| GenerateOptions::new().temperature(0.7)).await?;
    draws_follow(subject, |_| GenerateOptions::new().temperature(1.8)).await
}

/// Top-p cuts the model's own probabilities, before the temperature.
pub async fn draws_follow_top_p(subject: &Subject) -> ClauseResult {
    draws_follow(subject, |sorted| {
        let mass = |n: usize| sorted[..n].iter().sum::<f64>();
        let n = sorted.len().min(6);
        let cut = f64::midpoint(mass(n - 1), mass(n)).min(0.999) as f32;
        GenerateOptions::new().temperature(2.0).top_p(cut)
    })
    .await
}

/// Min-p cuts at a share of the likeliest token's own probability, before the temperature.
pub async fn draws_follow_min_p(subject: &Subject) -> ClauseResult {
    draws_follow(subject, |sorted| {
        let n = sorted.len().min(6);
        let cut = ((sorted[n - 1] * sorted[n - 2]).sqrt() / sorted[0]) as f32;
        GenerateOptions::new().temperature(2.0).min_p(cut)
    })
    .await
}

/// Top-k keeps the k likeliest.
pub async fn draws_follow_top_k(subject: &Subject) -> ClauseResult {
    draws_follow(subject, |sorted| {
        // Where the gap is widest, so that rounding moves no token across it.
        let gap = |k: &usize| sorted[k - 1] / sorted[*k];
        let widest = (3..sorted.len().min(9)).max_by(|a, b| gap(a).total_cmp(&gap(b)));
        GenerateOptions::new().temperature(2.0).top_k(widest.unwrap_or(1))
    })
    .await
}

/// XTC drops the top choices but the least likely of them, as often as its probability says.
pub async fn draws_follow_xtc(subject: &Subject) -> ClauseResult {
    draws_follow(subject, |sorted| {
        let threshold = (sorted[1] * sorted.get(2).copied().unwrap_or(0.0)).sqrt().min(0.5) as f32;
        GenerateOptions::new().temperature(0.5).xtc(Xtc::new(0.5, threshold))
    })
    .await
}

/// A prompt in which the tokens that the model would like next stand already, some of them twice.
async fn repeating_prompt(subject: &Subject, model: &dyn TextModel) -> Result<Vec<u32>, Failure> {
    let mut prompt = some_ids(model, 4, 3);
    let liked = ids(&alone(model, &prompt.clone().into(), &subject.greedy(4)?).await?);
    prompt.extend(liked.iter().chain(&liked[..liked.len() / 2]));
    Ok(prompt)
}

async fn follows(subject: &Subject, change: GenerateOptions) -> ClauseResult {
    let model = subject.model().await?;
    let mut history = repeating_prompt(subject, &*model).await?;
    let options = with(subject.greedy(4)?, change).log_probabilities(20.min(model.info().vocab_size));
    let answer = alone(&*model, &history.clone().into(), &options).await?;
    ensure!(!answer.tokens.is_empty(), "no token came");
    for token in &answer.tokens {
        let logits = logits(&*model, &history).await?;
        let expected = sampler::log_probabilities(&logits, &history, &options.sampling);
        let best = sampler::argmax(&expected).map_or(f64::NEG_INFINITY, |id| expected[id]);
        let chosen = token.log_probability.map(|l| (token.id, l));
        let listed = token.top.iter().map(|other| (other.id, other.log_probability));
        for (id, found) in chosen.into_iter().chain(listed) {
            let expected = expected[id as usize];
            ensure!(
                (f64::from(found) - expected).abs() <= subject.log_tolerance()?,
                "after {history:?}, token {id} has log-probability {found}, expected {expected}"
            );
        }
        let chosen = expected[token.id as usize];
        ensure!(chosen >= best - subject.log_tolerance()?, "greedy chose {chosen}, the likeliest has {best}");
        history.push(token.id);
    }
    Ok(())
}

async fn draws_follow(subject: &Subject, options: impl FnOnce(&[f64]) -> GenerateOptions) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = some_ids(&*model, 8, 11);
    let logits = logits(&*model, &prompt).await?;
    ensure!(logits.len() > 2, "a vocabulary of {} tokens leaves nothing to draw", logits.len());
    let mut sorted: Vec<f64> = sampler::log_softmax(&logits).into_iter().map(f64::exp).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let options = with(subject.greedy(1)?, options(&sorted));
    let expected = sampler::probabilities(&logits, &prompt, &options.sampling);
    let seeded = subject.capabilities()?.has(Feature::Seed);
    let mut counts = vec![0_u64; logits.len()];
    for first in (0..subject.draws).step_by(32) {
        let draws = (first..subject.draws.min(first + 32)).map(|seed| {
            let options = options.clone();
            let options = if seeded { options.seed(seed as u64) } else { options };
            model.complete(Prompt::Tokens(prompt.clone()), options)
        });
        for draw in join_all(draws).await {
            let draw = draw?;
            let id = match (draw.tokens.first(), &draw.finish.reason) {
                (Some(token), _) => token.id,
                (None, FinishReason::Stop(StopCause::EndOfSequence(id))) => *id,
                (None, reason) => return Err(Failure::broken(format!("no token, and {reason:?}"))),
            };
            let Some(count) = counts.get_mut(id as usize) else {
                return Err(Failure::broken(format!("{id} was drawn, and is outside the vocabulary")));
            };
            *count += 1;
        }
    }
    let banned = (0..counts.len()).find(|id| counts[*id] > 0 && expected[*id] == 0.0);
    ensure!(banned.is_none(), "{banned:?} was drawn, which {:?} rule out", options.sampling);
    let test = sampler::chi_square(&counts, &expected);
    ensure!(
        test.p_value > SIGNIFICANCE,
        "{} draws do not follow {:?}: χ² is {:.1} at {} degrees of freedom",
        subject.draws,
        options.sampling,
        test.statistic,
        test.degrees
    );
    Ok(())
}

fn with(mut options: GenerateOptions, sampling: GenerateOptions) -> GenerateOptions {
    options.sampling = sampling.sampling;
    options
}
