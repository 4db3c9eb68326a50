//! Options: refused where they make no sense or cannot be served, honoured where they can.

use inference_core::{
    Completion, ContextOverflow, Error, Feature, FinishReason, GenerateOptions, LoadOptions, Prompt, Result,
    StopCause,
};

use super::{alone, ended, ending, ids, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
    refusal,
};

clauses!("options":
    what_is_lacking_is_refused [],
    nonsense_is_refused_before_any_work [],
    foreign_extensions_are_refused [Generate],
    ids_outside_the_vocabulary_are_named [Generate],
    stop_strings_end_the_text_across_tokens [Generate Stop],
    the_earliest_stop_string_wins [Generate Stop],
    an_absent_stop_string_changes_nothing [Generate Stop],
    stop_tokens_end_the_text [Generate Stop],
    an_end_of_sequence_token_ends_the_text [Generate],
    ignore_eos_goes_on [Generate Stop],
    min_tokens_puts_the_end_off [Generate MinTokens],
    a_request_that_would_overflow_can_be_refused [Generate ContextLength ContextOverflow],
    a_context_that_rotates_goes_on [Generate ContextLength ContextOverflow],
);

/// Every feature that is no capability is refused as `Unsupported`, before any work. Nothing is ignored.
pub async fn what_is_lacking_is_refused(subject: &Subject) -> ClauseResult {
    let capabilities = subject.capabilities()?;
    let lacking: Vec<Feature> =
        Feature::ALL.iter().copied().filter(|feature| !capabilities.has(*feature)).collect();
    refusal::refused(subject, &lacking).await
}

/// Values that make no sense are named in `InvalidOption`, and no request is counted.
pub async fn nonsense_is_refused_before_any_work(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let before = model.stats().requests;
    let options = GenerateOptions::new;
    let nonsense = [
        ("temperature", options().temperature(-1.0)),
        ("top_p", options().top_p(0.0)),
        ("min_p", options().min_p(1.5)),
        ("repetition_penalty", options().repetition_penalty(f32::NAN)),
        ("logit_bias", options().logit_bias([(1, f32::INFINITY)])),
        ("stop", options().stop([""])),
        ("min_tokens", options().max_tokens(1).min_tokens(2)),
    ];
    for (name, options) in nonsense {
        match model.generate(subject.prompt.clone(), options).await {
            Err(Error::InvalidOption { option, .. }) => {
                ensure!(option == name, "{option} was named, not {name}");
            }
            result => return Err(Failure::broken(format!("{name}: it ended as {}", ended(&result)))),
        }
    }
    let load = subject.load(LoadOptions::new().context_length(0)).await;
    ensure!(
        matches!(load, Err(Error::InvalidOption { .. })),
        "a context of 0 tokens: it ended as {}",
        ended(&load)
    );
    let after = model.stats().requests;
    ensure!(after == before, "{} requests were counted", after - before);
    Ok(())
}

/// An extension option of a type that the backend does not read is refused by its name, at a load and at a request.
pub async fn foreign_extensions_are_refused(subject: &Subject) -> ClauseResult {
    #[derive(Debug, Clone)]
    struct NobodysOption;
    let refused = |call: &str, result: Result<(), Error>| match result {
        Err(Error::InvalidOption { option: "extension", reason, .. }) => {
            ensure!(reason.contains("NobodysOption"), "{call}: the error does not name the type: {reason}");
            Ok(())
        }
        result => Err(Failure::broken(format!("{call} ended as {}", ended(&result)))),
    };
    let load = subject.load(subject.base_load_options().extension(NobodysOption)).await;
    refused("a load", load.map(drop))?;
    let model = subject.model().await?;
    let options = subject.greedy(1)?.extension(NobodysOption);
    refused("a request", model.generate(subject.prompt.clone(), options).await.map(drop))
}

/// Ids outside the vocabulary in a logit bias or among stop tokens are refused by the option's name.
pub async fn ids_outside_the_vocabulary_are_named(subject: &Subject) -> ClauseResult {
    let (model, capabilities) = (subject.model().await?, subject.capabilities()?);
    let size = u32::try_from(model.info().vocab_size).unwrap_or(u32::MAX);
    for id in [size, u32::MAX] {
        let bias = subject.greedy(1)?.logit_bias([(0, 0.0), (id, 1.0)]);
        let stop = subject.greedy(1)?.stop_tokens([0, id]);
        for (name, feature, options) in
            [("logit_bias", Feature::LogitBias, bias), ("stop_tokens", Feature::Stop, stop)]
        {
            if !capabilities.has(feature) {
                continue;
            }
            match model.generate(subject.prompt.clone(), options).await {
                Err(Error::InvalidOption { option, reason, .. }) if option == name => {
                    ensure!(
                        reason.contains(&id.to_string()),
                        "{name}: the error does not name {id}: {reason}"
                    );
                }
                result => {
                    return Err(Failure::broken(format!(
                        "{name} of {id} of {size} ended as {}",
                        ended(&result)
                    )));
                }
            }
        }
    }
    Ok(())
}

/// A stop string ends the text before it, also where it begins in one token and ends in another.
pub async fn stop_strings_end_the_text_across_tokens(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let whole = alone(&*model, &subject.prompt, &subject.greedy(24)?).await?;
    let stop = across(&whole, 0)?;
    let answer = alone(&*model, &subject.prompt, &subject.greedy(24)?.stop([stop.clone()])).await?;
    stopped(&answer, &whole.text, &stop)
}

/// Of several stop strings, the one that stands first in the text ends it.
pub async fn the_earliest_stop_string_wins(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let whole = alone(&*model, &prompt, &subject.greedy(24)?).await?;
        let Some((first, later)) = apart(&whole) else { continue };
        for stops in [[first.clone(), later.clone()], [later, first.clone()]] {
            let answer = alone(&*model, &prompt, &subject.greedy(24)?.stop(stops)).await?;
            stopped(&answer, &whole.text, &first)?;
        }
        return Ok(());
    }
    Err(Failure::inconclusive("the texts repeat themselves too soon: give another `prompt`"))
}

/// Text that was held back for a stop string that never came is delivered, to the last character.
pub async fn an_absent_stop_string_changes_nothing(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let whole = alone(&*model, &subject.prompt, &subject.greedy(24)?).await?;
    // Begins wherever the text ends, and never comes.
    let tail: String = whole.text.chars().rev().take(6).collect::<Vec<_>>().into_iter().rev().collect();
    let stops = [format!("{tail}\u{1}"), "\u{2}never\u{2}".to_owned()];
    let answer = alone(&*model, &subject.prompt, &subject.greedy(24)?.stop(stops)).await?;
    ensure!(answer.text == whole.text, "with stop strings {:?}, without {:?}", answer.text, whole.text);
    ensure!(ids(&answer) == ids(&whole), "the tokens changed");
    ensure!(answer.finish.reason == whole.finish.reason, "it ended as {:?}", answer.finish.reason);
    Ok(())
}

/// A stop token ends the text and is no part of it.
pub async fn stop_tokens_end_the_text(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let whole = ids(&alone(&*model, &subject.prompt, &subject.greedy(12)?).await?);
    let Some(stop) = whole.get(whole.len() / 2).copied() else {
        return Err(Failure::inconclusive("the model says nothing: give another `prompt`"));
    };
    let first = whole.iter().position(|id| *id == stop).unwrap_or_default();
    let answer = alone(&*model, &subject.prompt, &subject.greedy(12)?.stop_tokens([stop])).await?;
    ensure!(ids(&answer) == whole[..first], "{:?}, expected {:?}", ids(&answer), &whole[..first]);
    let expected = FinishReason::Stop(StopCause::StopToken(stop));
    ensure!(answer.finish.reason == expected, "it ended as {:?}", answer.finish.reason);
    Ok(())
}

/// The model's end-of-sequence token ends the text and is no part of it.
pub async fn an_end_of_sequence_token_ends_the_text(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let (prompt, options) = ending(subject, &*model)?;
    let answer = alone(&*model, &prompt, &options).await?;
    let eos = &model.info().eos_token_ids;
    match &answer.finish.reason {
        FinishReason::Stop(StopCause::EndOfSequence(id)) => {
            ensure!(eos.contains(id), "{id} is none of {eos:?}");
        }
        reason => return Err(Failure::broken(format!("it ended as {reason:?}"))),
    }
    ensure!(
        !ids(&answer).iter().any(|id| eos.contains(id)),
        "the end is part of the text: {:?}",
        ids(&answer)
    );
    Ok(())
}

/// With `ignore_eos` a text goes on past its end, for as many tokens as asked.
pub async fn ignore_eos_goes_on(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let (prompt, options) = ending(subject, &*model)?;
    let ended = alone(&*model, &prompt, &options).await?;
    let answer = alone(&*model, &prompt, &options.ignore_eos(true)).await?;
    ensure!(answer.finish.reason == FinishReason::Length, "it ended as {:?}", answer.finish.reason);
    ensure!(answer.tokens.len() == 64, "{} tokens, asked for 64", answer.tokens.len());
    ensure!(ids(&answer).starts_with(&ids(&ended)), "the beginning changed: {:?}", ids(&answer));
    Ok(())
}

/// No end-of-sequence token is chosen before `min_tokens` tokens.
pub async fn min_tokens_puts_the_end_off(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let (prompt, options) = ending(subject, &*model)?;
    let ended = alone(&*model, &prompt, &options).await?.tokens.len();
    let least = ended + 4;
    let answer = alone(&*model, &prompt, &options.min_tokens(least)).await?;
    ensure!(answer.tokens.len() >= least, "{} tokens, at least {least} asked for", answer.tokens.len());
    let eos = &model.info().eos_token_ids;
    ensure!(!ids(&answer).iter().any(|id| eos.contains(id)), "an end was chosen: {:?}", ids(&answer));
    Ok(())
}

/// A string that begins in the text of one token, at or after `from`, and ends in that of a later one.
fn across(whole: &Completion, from: usize) -> Result<String, Failure> {
    let texts: Vec<&str> = whole.tokens.iter().map(|token| token.text.as_str()).collect();
    let said: Vec<usize> = (from..texts.len()).filter(|i| !texts[*i].is_empty()).collect();
    // Not the first pair: a text that stops before its first character shows little.
    let Some(pair) = said.windows(2).nth(1).or(said.windows(2).next()) else {
        return Err(Failure::inconclusive("fewer than two tokens have a text: give another `prompt`"));
    };
    let (head, tail) = (texts[pair[0]].chars().next_back(), texts[pair[1]].chars().take(2));
    Ok(head.into_iter().chain(tail).collect())
}

/// Two strings of the text, the first of which ends before the second begins.
fn apart(whole: &Completion) -> Option<(String, String)> {
    let strings = (0..whole.tokens.len()).filter_map(|from| across(whole, from).ok());
    let mut found: Vec<(usize, String)> =
        strings.filter_map(|string| Some((whole.text.find(&string)?, string))).collect();
    found.sort();
    let (at, first) = found.first()?.clone();
    let later = found.into_iter().find(|(other, _)| *other >= at + first.len())?;
    Some((first, later.1))
}

fn stopped(answer: &Completion, whole: &str, stop: &str) -> ClauseResult {
    let end = whole.find(stop).unwrap_or(whole.len());
    ensure!(answer.text == whole[..end], "stopped at {stop:?}: {:?}, of {whole:?}", answer.text);
    let expected = FinishReason::Stop(StopCause::StopString(stop.to_owned()));
    ensure!(answer.finish.reason == expected, "it ended as {:?}", answer.finish.reason);
    Ok(())
}

/// With `ContextOverflow::Refuse`, a prompt and an answer that do not fit together are refused by the call; what fits is answered.
pub async fn a_request_that_would_overflow_can_be_refused(subject: &Subject) -> ClauseResult {
    let model = subject.load(subject.base_load_options().context_length(32)).await?;
    let prompt = some_ids(&*model, 20, 60);
    let options = |tokens| Ok::<_, Error>(subject.greedy(tokens)?.context_overflow(ContextOverflow::Refuse));
    match model.generate(prompt.clone().into(), options(13)?).await {
        Err(Error::ContextExceeded { tokens: 33, limit: 32, .. }) => {}
        result => {
            return Err(Failure::broken(format!("20 and 13 tokens of 32 ended as {}", ended(&result))));
        }
    }
    let answer = alone(&*model, &prompt.into(), &options(12)?).await?;
    ensure!(!answer.tokens.is_empty(), "20 and 12 tokens of 32 gave no answer");
    Ok(())
}

/// With `ContextOverflow::Rotate`, a text goes on where the context is full, and so does a prompt that it does not hold; until
/// then, it says what it says without.
pub async fn a_context_that_rotates_goes_on(subject: &Subject) -> ClauseResult {
    let model = subject.load(subject.base_load_options().context_length(32)).await?;
    let rotate = |tokens| {
        Ok::<_, Error>(subject.greedy(tokens)?.context_overflow(ContextOverflow::Rotate { keep: 4 }))
    };
    let prompt = Prompt::Tokens(some_ids(&*model, 20, 61));
    let plain = alone(&*model, &prompt, &subject.greedy(12)?).await?;
    let answer = alone(&*model, &prompt, &rotate(40)?).await?;
    ensure!(ids(&answer).starts_with(&ids(&plain)), "{:?} does not begin as {:?}", ids(&answer), ids(&plain));
    for (prompt, which) in [(prompt, "a text"), (some_ids(&*model, 70, 62).into(), "a prompt")] {
        let answer = alone(&*model, &prompt, &rotate(40)?).await?;
        let (reason, tokens) = (&answer.finish.reason, answer.tokens.len());
        let ended = matches!(reason, FinishReason::Stop(_)) || tokens == 40;
        ensure!(ended, "{which} longer than the context ended as {reason:?} after {tokens} of 40 tokens");
    }
    Ok(())
}
