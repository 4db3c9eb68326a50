//! The log-probabilities of tokens: after bias and penalties, before filters and temperature.

use super::{alone, logits, some_ids};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    sampler,
};

clauses!("log_probabilities":
    unasked_they_are_absent [Generate],
    they_are_consistent [Generate LogProbabilities],
    they_match_the_logits [Generate LogProbabilities Classify Logits],
    the_temperature_does_not_touch_them [Generate LogProbabilities Sampling Seed],
);

/// Without the option, tokens carry none.
pub async fn unasked_they_are_absent(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for token in alone(&*model, &subject.prompt, &subject.greedy(4)?).await?.tokens {
        ensure!(token.log_probability.is_none() && token.top.is_empty(), "nobody asked for {token:?}");
    }
    Ok(())
}

/// `Some(n)` gives the chosen token's and the n likeliest, likeliest first, each once; together no more than certain. Greedy
/// takes the first of them.
pub async fn they_are_consistent(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let vocabulary = model.info().vocab_size;
    for n in [0, 1, 5.min(vocabulary)] {
        let answer = alone(&*model, &subject.prompt, &subject.greedy(6)?.log_probabilities(n)).await?;
        for token in &answer.tokens {
            let Some(chosen) = token.log_probability else {
                return Err(Failure::broken(format!("none was given for {token:?}")));
            };
            ensure!(chosen <= subject.single_tolerance() as f32, "{chosen} is above that of certainty");
            ensure!(token.top.len() == n, "{} alternatives, asked for {n}", token.top.len());
            let sorted = token.top.windows(2).all(|w| w[0].log_probability >= w[1].log_probability);
            ensure!(sorted, "the alternatives are in no order: {:?}", token.top);
            let mut distinct: Vec<u32> = token.top.iter().map(|other| other.id).collect();
            distinct.sort_unstable();
            distinct.dedup();
            ensure!(distinct.len() == n, "an alternative stands twice: {:?}", token.top);
            let sum: f64 = token.top.iter().map(|other| f64::from(other.log_probability).exp()).sum();
            ensure!(
                sum <= 1.0 + subject.single_tolerance(),
                "the alternatives' probabilities add up to {sum}"
            );
            if let Some(best) = token.top.first() {
                let behind = f64::from(best.log_probability - chosen);
                ensure!(
                    behind.abs() <= subject.single_tolerance(),
                    "greedy chose {chosen}, the likeliest has {best:?}"
                );
            }
        }
    }
    Ok(())
}

/// They are the log-softmax of the logits.
pub async fn they_match_the_logits(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut prompt = some_ids(&*model, 8, 13);
    let options = subject.greedy(3)?.log_probabilities(5.min(model.info().vocab_size));
    for token in alone(&*model, &prompt.clone().into(), &options).await?.tokens {
        let expected = sampler::log_softmax(&logits(&*model, &prompt).await?);
        let chosen = token.log_probability.map(|l| (token.id, l));
        let listed = token.top.iter().map(|other| (other.id, other.log_probability));
        for (id, found) in chosen.into_iter().chain(listed) {
            let expected = expected[id as usize];
            let off = (f64::from(found) - expected).abs();
            ensure!(off <= subject.log_tolerance()?, "token {id} has {found}, its logit says {expected}");
        }
        prompt.push(token.id);
    }
    Ok(())
}

/// A temperature changes what is drawn, not what is reported of the model.
pub async fn the_temperature_does_not_touch_them(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(1)?.log_probabilities(5.min(model.info().vocab_size));
    let greedy = alone(&*model, &subject.prompt, &options).await?;
    let drawn = alone(&*model, &subject.prompt, &options.temperature(2.5).seed(3)).await?;
    let (Some(greedy), Some(drawn)) = (greedy.tokens.first(), drawn.tokens.first()) else {
        return Err(Failure::inconclusive("the model ends the text at once: give another `prompt`"));
    };
    for (a, b) in greedy.top.iter().zip(&drawn.top) {
        let off = f64::from((a.log_probability - b.log_probability).abs());
        ensure!(off <= subject.log_tolerance()?, "at temperature 0 {:?}, at 2.5 {:?}", greedy.top, drawn.top);
    }
    let likeliest = greedy.top.first().map_or(0.0, |best| f64::from(best.log_probability));
    let chosen = drawn.log_probability.map_or(f64::INFINITY, f64::from);
    ensure!(
        chosen <= likeliest + subject.log_tolerance()?,
        "the draw has {chosen}, the likeliest {likeliest}"
    );
    Ok(())
}
